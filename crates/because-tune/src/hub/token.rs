use std::fmt;
use std::path::Path;

/// A secret, trimmed. Nothing prints it.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Token(String);

impl Token {
    pub(super) fn new(secret: &str) -> Self {
        Self(secret.trim().to_owned())
    }

    /// The token that a login left in a file; none where there is no such file.
    pub(super) fn read(file: &Path) -> Self {
        Self::new(&std::fs::read_to_string(file).unwrap_or_default())
    }
}

#[cfg(feature = "hub")]
impl Token {
    pub(super) fn reveal(&self) -> Option<&str> {
        (!self.0.is_empty()).then_some(self.0.as_str())
    }

    /// A text without the token, which some servers repeat in their refusal.
    pub(super) fn redact(&self, text: &str) -> String {
        match self.reveal() {
            Some(token) => text.replace(token, "***"),
            None => text.to_owned(),
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "none" } else { "***" })
    }
}
