use std::path::{Path, PathBuf};

use crate::hub::HubFault;

/// Why a base could not be read, an adapter not be trained, or a text not be generated. Each variant says where.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TuneError {
    /// What was given as the base is not a folder this crate can run.
    #[error("{}: {reason}", path.display())]
    Base {
        /// What was given.
        path: PathBuf,
        /// What is missing, and what to put where.
        reason: String,
    },
    /// A base that was named by its hub id could not be had.
    #[error("{id}: {fault}")]
    Hub {
        /// What was given.
        id: String,
        /// Why, and what to do about it.
        fault: HubFault,
    },
    /// A setting of a model's `config.json` is missing, contradictory or not implemented.
    #[error("{}: {field}: {reason}", path.display())]
    ModelConfig {
        /// The file.
        path: PathBuf,
        /// The field in it.
        field: String,
        /// What is wrong.
        reason: String,
    },
    /// A weight file does not hold what the configuration asks for.
    #[error("{}: {reason}", path.display())]
    Weights {
        /// The file or folder.
        path: PathBuf,
        /// Which tensor, and its two shapes.
        reason: String,
    },
    /// The tokenizer or the chat template cannot be used.
    #[error("{}: {reason}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// An adapter folder is malformed, asks for something not implemented, or does not fit the base.
    #[error("{}: {reason}", path.display())]
    Adapter {
        /// The file or folder.
        path: PathBuf,
        /// Which setting or tensor.
        reason: String,
    },
    /// A chat could not be turned into tokens.
    #[error("chat cannot be rendered: {reason}")]
    Chat {
        /// What the template said.
        reason: String,
    },
    /// A row of the training data cannot be used.
    #[error("line {line}: {reason}")]
    Row {
        /// The line of the file, or the place in the list, counted from one.
        line: u64,
        /// What is wrong.
        reason: String,
    },
    /// A setting of the run is out of its range.
    #[error("{field}: {reason}")]
    Setting {
        /// The setting.
        field: &'static str,
        /// Its range.
        reason: String,
    },
    /// A parameter that should learn got no gradient: the graph between it and the loss is cut.
    #[error("step {step}: parameter {parameter} received no gradient")]
    NoGradient {
        /// The parameter's name.
        parameter: String,
        /// The optimiser step, counted from one.
        step: u64,
    },
    /// The loss or the gradients are no longer numbers.
    #[error(
        "step {step}: {quantity} is {value}; lower the learning rate or look at the rows of this step{}",
        named(lines)
    )]
    NotFinite {
        /// `loss` or `gradient norm`.
        quantity: &'static str,
        /// Its value.
        value: f64,
        /// The optimiser step, counted from one.
        step: u64,
        /// The lines of the step's rows.
        lines: Vec<u64>,
    },
    /// A checkpoint is malformed or belongs to another run.
    #[error("{}: {reason}", path.display())]
    Checkpoint {
        /// The checkpoint's folder or file.
        path: PathBuf,
        /// What does not match.
        reason: String,
    },
    /// The caller stopped the run.
    #[error("stopped after step {step}{}", kept(checkpoint.as_deref()))]
    Cancelled {
        /// How many steps were done.
        step: u64,
        /// What the run can be resumed from; a tiny base is made anew.
        checkpoint: Option<PathBuf>,
    },
    /// The caller stopped a merge.
    #[error("{}: merge stopped; nothing was written", base.display())]
    Interrupted {
        /// The base that was read.
        base: PathBuf,
    },
    /// The prompt fills the model's context.
    #[error(
        "prompt of {prompt_tokens} tokens leaves no room for an answer in a context of {context} tokens"
    )]
    ContextTooLong {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// What the model can attend to.
        context: usize,
    },
    /// An engine has as many asks waiting as it takes.
    #[error("{waiting} asks are under way already; try again later")]
    Busy {
        /// Asks that run or wait.
        waiting: usize,
    },
    /// A text could not be generated, though nothing is wrong with what was asked: the model gives no numbers, or the engine
    /// has failed.
    #[error("generation failed: {reason}")]
    Generation {
        /// What happened.
        reason: String,
    },
    /// An engine is no more, through a fault of this program. Another one may answer the same ask.
    #[error("the engine ended before the answer")]
    Ended,
    /// A JSON schema that an answer cannot be held to.
    #[error("schema{}: {reason}", at(place))]
    Schema {
        /// The part of the schema, as a JSON pointer; empty for the whole.
        place: String,
        /// What is wrong with it, or not supported.
        reason: String,
    },
    /// The smallest JSON document of a schema has more tokens than the answer may have.
    #[error(
        "the smallest answer to the schema has {needed} tokens, its end included, and there is room for {room}; allow \
         more tokens"
    )]
    SchemaRoom {
        /// Tokens of the smallest answer, the one that ends it included.
        needed: usize,
        /// Tokens an answer may have.
        room: usize,
    },
    /// A server cannot listen where it should.
    #[cfg(feature = "serve")]
    #[error("{address}: cannot listen there")]
    Listen {
        /// The address.
        address: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] because_core::Error),
    /// A tensor operation failed; with inputs that were checked this is a fault of this crate or of the machine.
    #[error("tensor operation failed")]
    Tensor(#[source] Box<dyn std::error::Error + Send + Sync>),
}

fn at(place: &str) -> String {
    match place {
        "" => String::new(),
        place => format!(" at {place}"),
    }
}

fn kept(checkpoint: Option<&Path>) -> String {
    checkpoint.map_or_else(String::new, |path| {
        format!("; {} holds everything to go on", path.display())
    })
}

/// Lines, the first of many.
pub(crate) fn named(lines: &[u64]) -> String {
    const SHOWN: usize = 16;
    let shown: Vec<String> = lines.iter().take(SHOWN).map(u64::to_string).collect();
    match lines.len() {
        0 => String::new(),
        1 => format!(", line {}", shown[0]),
        2..=SHOWN => format!(", lines {}", shown.join(", ")),
        more => format!(", lines {} and {} more", shown.join(", "), more - SHOWN),
    }
}

impl TuneError {
    /// Whether what the caller gave is at fault, and not this program or the machine.
    #[must_use]
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::File(error) => error.is_bad_input(),
            Self::Hub { fault, .. } => {
                !fault.is_passing() && !matches!(fault, HubFault::NotAHub { .. })
            }
            #[cfg(feature = "serve")]
            Self::Listen { .. } => false,
            Self::NoGradient { .. }
            | Self::NotFinite { .. }
            | Self::Cancelled { .. }
            | Self::Interrupted { .. }
            | Self::Busy { .. }
            | Self::Generation { .. }
            | Self::Ended
            | Self::Tensor(_) => false,
            _ => true,
        }
    }

    pub(crate) fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::File(because_core::Error::io(action, path, source))
    }
}

impl From<candle_core::Error> for TuneError {
    fn from(error: candle_core::Error) -> Self {
        Self::Tensor(Box::new(error))
    }
}

pub(crate) type Result<T, E = TuneError> = std::result::Result<T, E>;
