use serde::{Deserialize, Serialize};

/// Linear layers by name, as PEFT spells them; in a file a list or one string.
///
/// ```
/// use because_tune::{LoraConfig, Modules};
///
/// let attention = LoraConfig {
///     target_modules: ["q_proj", "v_proj"].into(),
///     exclude_modules: Some(Modules::Pattern(r".*\.layers\.0\..*".into())),
///     ..LoraConfig::default()
/// };
/// assert_eq!(attention.target_modules, Modules::Names(vec!["q_proj".into(), "v_proj".into()]));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Modules {
    /// Each is the path of a layer or the end of one, cut at a dot: `q_proj`, `self_attn.q_proj`, `layers.3.mlp.up_proj`.
    Names(Vec<String>),
    /// A regular expression in Python's syntax for the whole path, `model\.layers\.\d+\.mlp\..*_proj`; as a target also
    /// `all-linear`, which is every linear layer but the output projection.
    Pattern(String),
}

impl From<Vec<String>> for Modules {
    fn from(names: Vec<String>) -> Self {
        Self::Names(names)
    }
}

impl<const N: usize> From<[&str; N]> for Modules {
    fn from(names: [&str; N]) -> Self {
        Self::Names(names.map(str::to_owned).to_vec())
    }
}

impl Modules {
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Names(names) => names.is_empty(),
            Self::Pattern(pattern) => pattern.is_empty(),
        }
    }

    pub(super) fn is_all_linear(&self) -> bool {
        matches!(self, Self::Pattern(pattern) if pattern.eq_ignore_ascii_case("all-linear"))
    }
}
