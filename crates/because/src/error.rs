use std::path::PathBuf;

use because_llm::ChatError;

/// What a stage can end with. Every crate's own error is kept as the source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the project.
    #[error(transparent)]
    Files(#[from] because_core::Error),
    /// The raw files or the graph.
    #[error(transparent)]
    Graph(#[from] because_graph::Error),
    /// The profiles.
    #[error(transparent)]
    Profile(#[from] because_propagate::Error),
    /// The explanations.
    #[error(transparent)]
    Contrast(#[from] because_contrast::Error),
    /// The small model.
    #[cfg(feature = "tune")]
    #[error(transparent)]
    Tune(#[from] because_tune::TuneError),
    /// The figures or the report.
    #[error(transparent)]
    Evaluate(#[from] because_eval::Error),
    /// A chat model that cannot be opened or asked.
    #[error(transparent)]
    Model(#[from] ChatError),
    /// `because.toml` or another settings file.
    #[error("{}", path.display())]
    Settings {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the line.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A stage has nothing to work on.
    #[error("{stage}: {reason}")]
    Empty {
        /// Which stage.
        stage: &'static str,
        /// What is missing, and which command makes it.
        reason: String,
    },
    /// A user or an item that the project does not know.
    #[error("{0} has no profile in this project")]
    Unknown(because_core::Node),
    /// A strict check found leaks between the splits.
    #[error("{count} leaks between the splits")]
    Leaks {
        /// How many findings there are.
        count: usize,
    },
    /// A price that is missing or cannot be one.
    #[error(transparent)]
    Price(#[from] because_llm::PriceError),
    /// A limit on spending that cannot be one.
    #[error("llm.{field}: {reason}")]
    Limit {
        /// The setting.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Batch mode with a model that has none.
    #[error(
        "{model} has no batches; --batch (batch = true in because.toml) is for openai:MODEL and openai:MODEL@URL"
    )]
    NoBatches {
        /// The model.
        model: String,
    },
    /// Something that this build leaves out.
    #[error("{what} needs the `{feature}` feature, which this build leaves out")]
    Feature {
        /// What was asked for.
        what: String,
        /// The feature to build with.
        feature: &'static str,
    },
    /// The run stopped because somebody asked for it; started again it goes on.
    #[error("stopped on request {0}; run the same command again to go on")]
    Stopped(String),
}

/// How a command that failed should tell its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The machine, the network or the model: exit code 1.
    Run,
    /// What the caller gave: exit code 2.
    Input,
    /// A budget or the caller's own wish; the run can go on: exit code 3.
    Stopped,
}

impl Error {
    /// Who can do something about it.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Files(error) if error.is_bad_input() => Fault::Input,
            Self::Graph(error) if error.is_bad_input() => Fault::Input,
            #[cfg(feature = "tune")]
            Self::Tune(
                because_tune::TuneError::Cancelled { .. }
                | because_tune::TuneError::Interrupted { .. },
            ) => Fault::Stopped,
            #[cfg(feature = "tune")]
            Self::Tune(error) if error.is_bad_input() => Fault::Input,
            Self::Settings { .. }
            | Self::Price(_)
            | Self::Limit { .. }
            | Self::NoBatches { .. }
            | Self::Empty { .. }
            | Self::Unknown(_)
            | Self::Feature { .. } => Fault::Input,
            Self::Profile(because_propagate::Error::Prompt { .. })
            | Self::Contrast(
                because_contrast::Error::Prompt { .. }
                | because_contrast::Error::NoNegativesAsked
                | because_contrast::Error::UnknownNode { .. },
            ) => Fault::Input,
            Self::Stopped(_)
            | Self::Profile(because_propagate::Error::Stopped { .. })
            | Self::Contrast(because_contrast::Error::Stopped { .. }) => Fault::Stopped,
            Self::Model(source)
            | Self::Profile(because_propagate::Error::Model { source, .. })
            | Self::Contrast(because_contrast::Error::Model { source, .. })
                if source.is_stop() =>
            {
                Fault::Stopped
            }
            _ => Fault::Run,
        }
    }
}

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
