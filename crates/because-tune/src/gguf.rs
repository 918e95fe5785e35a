mod config;
mod file;
mod ggml_type;
mod header;
mod names;
#[cfg(test)]
mod tests;
mod tokenizer;
mod value;
mod weights;

use std::path::Path;

use crate::chat::Chat;
use crate::config::QwenConfig;
use crate::error::{Result, TuneError};
use crate::gguf::file::GgufFile;
pub(crate) use crate::gguf::names::gguf_name;
use crate::model::Qwen;

/// A base in one GGUF file (llama.cpp's format): its shape, tokenizer, chat template and weights. It can be run, with or
/// without adapters; there is nothing in it to train.
#[derive(Debug, Clone)]
pub(crate) struct GgufBase {
    pub(crate) config: QwenConfig,
    file: GgufFile,
}

impl GgufBase {
    /// Whether a path is one of a GGUF file, by its name.
    pub(crate) fn is_named_by(path: &Path) -> bool {
        path.extension()
            .is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
    }

    /// Maps the file and reads what it says about itself; of a split one, all its parts.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = GgufFile::open(path)?;
        let config = config::config(&file)?;
        Ok(Self { config, file })
    }

    pub(crate) fn chat(&self) -> Result<Chat> {
        let vocabulary = tokenizer::vocabulary(&self.file)?;
        let template = tokenizer::template(&self.file)?;
        Ok(Chat::new(
            vocabulary,
            template,
            self.config.eos_token_ids.clone(),
        ))
    }

    /// The model over the mapped file.
    pub(crate) fn model(&self) -> Result<Qwen> {
        let weights = weights::weights(&self.file, &self.config)?;
        Ok(Qwen::new(self.config.clone(), weights))
    }

    /// The file's name without its ending.
    pub(crate) fn name(&self) -> String {
        let stem = self.file.path.file_stem();
        stem.map_or_else(
            || "model".to_owned(),
            |stem| stem.to_string_lossy().into_owned(),
        )
    }
}

/// What is said where only a checkpoint will do.
pub(crate) fn not_a_checkpoint(path: &Path) -> TuneError {
    TuneError::Base {
        path: path.to_owned(),
        reason: "a GGUF file can be run, but neither trained nor merged into; take the safetensors checkpoint of the same \
                 model"
            .into(),
    }
}
