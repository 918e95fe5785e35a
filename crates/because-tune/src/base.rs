use std::path::{Path, PathBuf};

use crate::chat::Chat;
use crate::config::QwenConfig;
use crate::error::{Result, TuneError};
use crate::gguf::{GgufBase, not_a_checkpoint};
use crate::hub::{Hub, HubId};
use crate::model::Qwen;
use crate::weights::Weights;

const WHAT_A_BASE_IS: &str = "a base is a folder with config.json, tokenizer.json and model.safetensors (or its shards \
                              with model.safetensors.index.json), a hub id such as Qwen/Qwen2.5-0.5B-Instruct, `tiny`, or to \
                              generate with, a GGUF file";

/// What a model is loaded from.
#[derive(Debug, Clone)]
pub(crate) enum Base {
    Folder(BaseFolder),
    Gguf(GgufBase),
}

impl Base {
    /// A file whose name ends in `.gguf`, or what [`BaseFolder::open`] takes.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        match GgufBase::is_named_by(path) {
            true => GgufBase::open(path).map(Self::Gguf),
            false => BaseFolder::open(path).map(Self::Folder),
        }
    }

    pub(crate) fn config(&self) -> &QwenConfig {
        match self {
            Self::Folder(folder) => &folder.config,
            Self::Gguf(gguf) => &gguf.config,
        }
    }

    /// Its tokenizer and chat template.
    pub(crate) fn chat(&self) -> Result<Chat> {
        match self {
            Self::Folder(folder) => Chat::read(&folder.path, &folder.config),
            Self::Gguf(gguf) => gguf.chat(),
        }
    }

    pub(crate) fn model(&self) -> Result<Qwen> {
        match self {
            Self::Folder(folder) => folder.model(),
            Self::Gguf(gguf) => gguf.model(),
        }
    }

    /// By which artefacts know it.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Folder(folder) => folder.name(),
            Self::Gguf(gguf) => gguf.name(),
        }
    }
}

/// A folder with a model in it.
#[derive(Debug, Clone)]
pub(crate) struct BaseFolder {
    pub(crate) path: PathBuf,
    pub(crate) config: QwenConfig,
    origin: Option<Origin>,
}

/// The repository and commit of a folder that was named by its hub id.
#[derive(Debug, Clone)]
struct Origin {
    id: HubId,
    commit: String,
}

impl BaseFolder {
    /// Checks that there is a folder and reads its configuration; the weights come later. What is no path and can be a hub
    /// id is looked for in the hub's cache and, with the feature `hub`, on the hub.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Self::open_from(path, Hub::from_env)
    }

    /// As [`BaseFolder::open`]; the hub is made only where one is asked.
    pub(crate) fn open_from(path: &Path, hub: impl FnOnce() -> Hub) -> Result<Self> {
        let fault = |reason: String| TuneError::Base {
            path: path.to_owned(),
            reason,
        };
        if GgufBase::is_named_by(path) {
            return Err(not_a_checkpoint(path));
        }
        if path.is_file() {
            return Err(fault(format!("is a file; {WHAT_A_BASE_IS}")));
        }
        if !path.is_dir() {
            let Some(id) = HubId::parse(path) else {
                return Err(fault(format!("no such folder; {WHAT_A_BASE_IS}")));
            };
            let snapshot = hub().fetch(&id)?;
            return Ok(Self {
                config: QwenConfig::read(&snapshot.path.join("config.json"))?,
                path: snapshot.path,
                origin: Some(Origin {
                    id,
                    commit: snapshot.commit,
                }),
            });
        }
        let file = path.join("config.json");
        if !file.is_file() {
            return Err(fault(format!(
                "no config.json in this folder; {WHAT_A_BASE_IS}"
            )));
        }
        Ok(Self {
            path: path.to_owned(),
            config: QwenConfig::read(&file)?,
            origin: None,
        })
    }

    /// How an adapter's configuration names its base: for a model of the hub the id and the commit, which mean the same on
    /// every machine.
    pub(crate) fn named(&self) -> String {
        match &self.origin {
            Some(Origin { id, commit }) => id.at(commit).to_string(),
            None => self.path.display().to_string(),
        }
    }

    pub(crate) fn model(&self) -> Result<Qwen> {
        Ok(Qwen::new(
            self.config.clone(),
            Weights::read(&self.path, &self.config)?,
        ))
    }

    /// The folder's own name or the model's on the hub, by which artefacts know it.
    pub(crate) fn name(&self) -> String {
        if let Some(Origin { id, .. }) = &self.origin {
            return id.name().to_owned();
        }
        let whole = self
            .path
            .canonicalize()
            .unwrap_or_else(|_| self.path.clone());
        whole.file_name().map_or_else(
            || "model".to_owned(),
            |name| name.to_string_lossy().into_owned(),
        )
    }
}
