use because_core::Node;
use because_llm::{ChatError, PromptError};

/// Why explanations could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The run stopped because somebody asked for it; what was answered is kept, and the same run goes on from there.
    #[error("stopped on request after {done} of {total} pairs")]
    Stopped {
        /// How many pairs were done.
        done: usize,
        /// How many there are.
        total: usize,
    },
    /// The model could not be asked any further.
    #[error("after {done} of {total} pairs")]
    Model {
        /// How many pairs were done.
        done: usize,
        /// How many there are.
        total: usize,
        /// Why.
        #[source]
        source: ChatError,
    },
    /// A template of the user's does not fit its stage.
    #[error("{name}")]
    Prompt {
        /// Which template.
        name: &'static str,
        /// What is wrong with it.
        #[source]
        source: PromptError,
    },
    /// A pair names somebody or something that the graph does not know.
    #[error("{node} is not in the graph")]
    UnknownNode {
        /// The node.
        node: Node,
    },
    /// The settings ask for nothing to compare with.
    #[error("a contrastive prompt needs at least one negative; both --hard and --random are 0")]
    NoNegativesAsked,
}

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
