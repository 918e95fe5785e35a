use crate::ChatResponse;

/// How an answer ended, read from the server's own word for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// By itself, or with a word we do not know: those are taken at their face.
    Complete,
    /// At the token limit.
    Truncated,
    /// At the content filter.
    Filtered,
}

impl Ending {
    pub(crate) fn outcome(self) -> &'static str {
        match self {
            Self::Complete => "ok",
            Self::Truncated => "truncated",
            Self::Filtered => "filtered",
        }
    }
}

impl ChatResponse {
    pub(crate) fn ending(&self) -> Ending {
        let word = self.finish_reason.as_deref().unwrap_or_default();
        match word.to_ascii_lowercase().as_str() {
            "length" | "max_tokens" | "max_length" => Ending::Truncated,
            "content_filter" | "content-filter" | "refusal" | "safety" => Ending::Filtered,
            _ => Ending::Complete,
        }
    }
}
