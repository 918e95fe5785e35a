use serde::{Deserialize, Serialize};

/// Which layers keep their activations for the backward, and which are computed again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Checkpointing {
    /// All keep them: the most memory, the least work.
    #[default]
    None,
    /// Of every so many layers one is computed again.
    Every(usize),
    /// Every layer is computed again.
    All,
}

impl Checkpointing {
    /// Whether a layer drops its activations.
    pub(crate) fn drops(self, layer: usize) -> bool {
        match self {
            Self::None => false,
            Self::Every(k) => layer.is_multiple_of(k.max(1)),
            Self::All => true,
        }
    }
}
