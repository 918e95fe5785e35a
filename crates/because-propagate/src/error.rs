use because_core::Node;
use because_llm::{ChatError, Halted, PromptError};

/// Why profiles could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The run stopped because somebody asked for it; what was answered is kept, and the same run goes on from there.
    #[error("stopped on request after {done} of {total} {stage}")]
    Stopped {
        /// What was being written.
        stage: String,
        /// How many were written.
        done: usize,
        /// How many there are.
        total: usize,
    },
    /// The model could not be asked any further.
    #[error("after {done} of {total} {stage}")]
    Model {
        /// What was being written.
        stage: String,
        /// How many were written.
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
    /// A review could not be read.
    #[error(transparent)]
    Graph(#[from] because_graph::Error),
    /// The profiles handed in do not cover the graph.
    #[error("{node} has no layer-{layer} profile")]
    NoProfile {
        /// The node.
        node: Node,
        /// The layer.
        layer: usize,
    },
}

impl Error {
    pub(crate) fn halted(stage: &str, done: usize, total: usize, halted: Halted) -> Self {
        let stage = stage.to_owned();
        match halted {
            Halted::Failed(source) => Self::Model {
                stage,
                done,
                total,
                source,
            },
            _ => Self::Stopped { stage, done, total },
        }
    }
}

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
