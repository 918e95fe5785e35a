use serde::{Deserialize, Serialize};

use crate::error::{Result, TuneError};
use crate::memory;

/// How much a model does at once when it generates. None of it changes an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineSettings {
    /// Rows that are read and written together; others wait. Decoding is bound by reading the weights, which they share.
    pub max_rows: usize,
    /// Tokens of prompts that one step reads at most beside the rows that write: more reads them faster, and lets those wait
    /// longer for their next token.
    pub prompt_tokens: usize,
    /// Memory for keys and values in bytes, those of the prefix cache included; touched as it is used, and no more of it than
    /// twice what all rows can fill. More than is free is refused. A token takes `2 layers kv_heads d_head` numbers of four
    /// bytes (0.5B: 24 KiB), and a row that alone needs more than all of it is cut as at the end of the context. Each
    /// [`Engine`](crate::Engine) has its own, and a [`TunedModel`](crate::TunedModel) that both generates and chats has two.
    pub cache_bytes: u64,
    /// Asks that may wait beside those that run; one more is refused at once.
    pub queue: usize,
    /// Whether prompts that begin alike share what was computed of their beginnings.
    pub prefix_cache: bool,
    /// Whether weights are laid out anew in memory as this machine multiplies them best, if they fit beside the cache. The first
    /// answer waits for it (0.5B in f32: a second or two), every later one is faster. Otherwise they are used where
    /// they lie in their file.
    pub lay_out: bool,
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self {
            max_rows: 32,
            prompt_tokens: 512,
            cache_bytes: 1 << 30,
            queue: 1024,
            prefix_cache: true,
            lay_out: true,
        }
    }
}

impl EngineSettings {
    /// The same with a cache of at most half of the memory that is free.
    #[must_use]
    pub fn fitted(self) -> Self {
        let half = memory::available().map_or(u64::MAX, |free| free / 2);
        Self {
            cache_bytes: self.cache_bytes.min(half),
            ..self
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        let counts = [
            ("max_rows", self.max_rows),
            ("prompt_tokens", self.prompt_tokens),
        ];
        match counts.into_iter().find(|(_, count)| *count == 0) {
            Some((field, _)) => Err(TuneError::Setting {
                field,
                reason: "is 0".into(),
            }),
            None => Ok(()),
        }
    }
}
