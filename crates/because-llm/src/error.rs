use std::time::Duration;

/// Why a call has no answer. Each variant is something a caller could act on differently.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// The connection failed, broke off or timed out, or the server had a fault of its own: the same call may succeed.
    #[error("{message}")]
    Transient {
        /// What happened, with the status if there was one.
        message: String,
    },
    /// The server asks for fewer calls (429, 503).
    #[error("overloaded: {message}")]
    Overloaded {
        /// What the server said.
        message: String,
        /// How long it asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// The prompt does not fit the model's context.
    #[error("prompt too long for the model: {message}")]
    ContextTooLong {
        /// What the server said, with its limit if it names one.
        message: String,
    },
    /// The answer ended at the token limit. Asking the same again would pay for the same end.
    #[error("answer cut off at the token limit ({} tokens); raise max_tokens", response.usage.completion_tokens)]
    Truncated {
        /// What there is of it.
        response: Box<crate::ChatResponse>,
    },
    /// The server would not answer this.
    #[error("refused by the content filter: {message}")]
    Filtered {
        /// What the server said.
        message: String,
    },
    /// The answer, after every repair allowed, is not what was asked for.
    #[error("answer does not fit after {attempts} attempts: {reason}; it begins {excerpt:?}")]
    Invalid {
        /// What is wrong with the last one.
        reason: String,
        /// How it begins.
        excerpt: String,
        /// How often was asked.
        attempts: u32,
    },
    /// The key, the balance, the model's name or the request is at fault: no retry will help.
    #[error("{message}")]
    Permanent {
        /// The HTTP status, where there is one.
        status: Option<u16>,
        /// What the server said and what to do about it.
        message: String,
    },
    /// A replay was asked something that was not recorded.
    #[error("not recorded in {file}: request {key}; its last turn begins {excerpt:?}")]
    NotRecorded {
        /// The recording.
        file: String,
        /// The key of the request.
        key: String,
        /// How the last turn of the request begins.
        excerpt: String,
    },
    /// A budget or a deadline of the run allows no more calls. Nothing is wrong: with more of it the run goes on.
    #[error("{message}")]
    Exhausted {
        /// Which limit, what is left of it, and what was asked.
        message: String,
    },
    /// The answer will come later, in a batch that is under way. Asked again then, it is there.
    #[error("{message}")]
    Pending {
        /// What is waited for.
        message: String,
    },
    /// The answer was given but could not be stored; going on would risk paying for it twice.
    #[error("{file}: {message}")]
    Store {
        /// The file of answers.
        file: String,
        /// What the database said.
        message: String,
    },
}

impl ChatError {
    /// Whether the very same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Transient { .. } | Self::Overloaded { .. })
    }

    /// Whether every other call would fail in the same way, so that a run should stop instead of going on: a wrong key,
    /// an empty account, an unknown model, an answer store that cannot be written, a recording of
    /// another run, a budget that is spent.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        self.is_stop()
            || matches!(self, Self::Store { .. } | Self::NotRecorded { .. })
            || matches!(
                self,
                Self::Permanent {
                    status: Some(401 | 402 | 403 | 404 | 429),
                    ..
                }
            )
    }

    /// Whether a run that ends with this has not failed but stopped: the same run goes on from there another time.
    #[must_use]
    pub fn is_stop(&self) -> bool {
        matches!(self, Self::Exhausted { .. } | Self::Pending { .. })
    }
}

/// The result of asking a model.
pub type Result<T, E = ChatError> = std::result::Result<T, E>;
