use std::path::{Path, PathBuf};

use crate::config::QwenConfig;
use crate::error::{Result, TuneError};
use crate::model::Qwen;
use crate::weights::Weights;

const WHAT_A_BASE_IS: &str = "a base is a folder with config.json, tokenizer.json and model.safetensors (or its shards \
                              with model.safetensors.index.json), or `tiny`";

/// A folder with a model in it.
#[derive(Debug, Clone)]
pub(crate) struct BaseFolder {
    pub(crate) path: PathBuf,
    pub(crate) config: QwenConfig,
}

impl BaseFolder {
    /// Checks that there is a folder and reads its configuration; the weights come later.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let fault = |reason: String| TuneError::Base {
            path: path.to_owned(),
            reason,
        };
        let is_gguf = path
            .extension()
            .is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
        if is_gguf {
            return Err(fault(format!(
                "GGUF files cannot be run here; take the safetensors checkpoint of the same model: {WHAT_A_BASE_IS}"
            )));
        }
        if path.is_file() {
            return Err(fault(format!("is a file; {WHAT_A_BASE_IS}")));
        }
        if !path.is_dir() {
            let hint = match path.components().count() {
                2 if path.is_relative() => {
                    "; nothing is downloaded: if this is a hub id, fetch its files into a folder first and name that"
                }
                _ => "",
            };
            return Err(fault(format!("no such folder; {WHAT_A_BASE_IS}{hint}")));
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
        })
    }

    pub(crate) fn model(&self) -> Result<Qwen> {
        Ok(Qwen::new(
            self.config.clone(),
            Weights::read(&self.path, &self.config)?,
        ))
    }

    /// The folder's own name, by which artefacts know the model.
    pub(crate) fn name(&self) -> String {
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
