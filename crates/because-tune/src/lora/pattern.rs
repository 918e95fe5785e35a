use std::collections::BTreeMap;

use fancy_regex::Regex;

use super::modules::Modules;
use crate::error::{Result, TuneError};

/// [`Modules`] ready to be asked, for messages with the setting they came from.
pub(super) enum Matcher<'a> {
    Names(&'a [String]),
    Pattern(Pattern),
}

impl<'a> Matcher<'a> {
    pub(super) fn new(field: &'static str, modules: &'a Modules) -> Result<Self> {
        Ok(match modules {
            Modules::Names(names) => Self::Names(names),
            Modules::Pattern(pattern) => Self::Pattern(Pattern::whole(field, pattern)?),
        })
    }

    pub(super) fn matches(&self, path: &str) -> Result<bool> {
        match self {
            Self::Names(names) => Ok(names.iter().any(|name| is_end_of(name, path))),
            Self::Pattern(pattern) => pattern.matches(path),
        }
    }
}

/// Whether a name is a path or its end, cut at a dot.
pub(super) fn is_end_of(name: &str, path: &str) -> bool {
    path.strip_suffix(name)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Values for the layers whose path a pattern fits; of several patterns the first counts, as in PEFT.
pub(crate) struct PatternMap<T>(Vec<(Pattern, T)>);

impl<T: Copy> PatternMap<T> {
    /// # Errors
    /// When a pattern is none.
    pub(crate) fn new<'a>(
        field: &'static str,
        patterns: impl IntoIterator<Item = (&'a str, T)>,
    ) -> Result<Self> {
        let compiled = patterns
            .into_iter()
            .map(|(pattern, value)| Ok((Pattern::end(field, pattern)?, value)));
        Ok(Self(compiled.collect::<Result<_>>()?))
    }

    pub(super) fn sorted(field: &'static str, patterns: &BTreeMap<String, T>) -> Result<Self> {
        let patterns = patterns.iter();
        Self::new(
            field,
            patterns.map(|(pattern, &value)| (pattern.as_str(), value)),
        )
    }

    /// # Errors
    /// When a pattern gives up on the path.
    pub(crate) fn first(&self, path: &str) -> Result<Option<T>> {
        for (pattern, value) in &self.0 {
            if pattern.matches(path)? {
                return Ok(Some(*value));
            }
        }
        Ok(None)
    }

    /// The first pattern that fits none of the paths.
    pub(super) fn idle(&self, paths: &[&str]) -> Result<Option<&str>> {
        for (pattern, _) in &self.0 {
            if !pattern.matches_any(paths)? {
                return Ok(Some(&pattern.text));
            }
        }
        Ok(None)
    }
}

/// A regular expression with the meaning Python gives it.
pub(super) struct Pattern {
    field: &'static str,
    text: String,
    regex: Regex,
}

impl Pattern {
    /// `re.fullmatch(pattern, path)`.
    fn whole(field: &'static str, pattern: &str) -> Result<Self> {
        Self::new(field, pattern, pattern, &format!(r"\A(?:{pattern})\z"))
    }

    /// `re.match(rf"(.*\.)?({pattern})$", path)`, with the same groups, to which a pattern may refer by number.
    fn end(field: &'static str, pattern: &str) -> Result<Self> {
        let alone = format!("()(){pattern}");
        Self::new(field, pattern, &alone, &format!(r"\A(.*\.)?({pattern})\z"))
    }

    /// `alone` has the pattern with nothing around it: an unbalanced bracket must not find its partner there.
    fn new(field: &'static str, text: &str, alone: &str, whole: &str) -> Result<Self> {
        let fault = |reason: String| TuneError::Setting {
            field,
            reason: format!("pattern {text:?}: {reason}"),
        };
        if let Some(part) = means_something_else_in_python(text) {
            let reason = format!("{part} is not read the same way by Python, and so not here");
            return Err(fault(reason));
        }
        let regex = Regex::new(alone).and_then(|_| Regex::new(whole));
        Ok(Self {
            field,
            text: text.to_owned(),
            regex: regex.map_err(|error| fault(error.to_string()))?,
        })
    }

    pub(super) fn matches(&self, path: &str) -> Result<bool> {
        self.regex
            .is_match(path)
            .map_err(|error| TuneError::Setting {
                field: self.field,
                reason: format!("pattern {:?} on {path}: {error}", self.text),
            })
    }

    pub(super) fn matches_any(&self, paths: &[&str]) -> Result<bool> {
        for path in paths {
            if self.matches(path)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// The first part of a pattern that compiles here but means another thing, or nothing, in Python: operations between
/// sets, of which Python warns, and escapes of letters it does not know.
fn means_something_else_in_python(pattern: &str) -> Option<String> {
    let symbols: Vec<char> = pattern.chars().collect();
    let mut set_began = None;
    let mut at = 0;
    while at < symbols.len() {
        let symbol = symbols[at];
        let next = symbols.get(at + 1).copied();
        match (symbol, set_began) {
            ('\\', _) => {
                if let Some(letter) = next.filter(char::is_ascii_alphabetic)
                    && !"AbBdDsSwWZafnrtvxuUN".contains(letter)
                {
                    return Some(format!("\\{letter}"));
                }
                at += 1;
            }
            ('[', None) => {
                // A bracket that comes first, negated or not, closes nothing.
                at += usize::from(next == Some('^'));
                at += usize::from(symbols.get(at + 1) == Some(&']'));
                set_began = Some(at);
            }
            (']', Some(_)) => set_began = None,
            ('[', Some(_)) => return Some("a set in a set".into()),
            ('&' | '~' | '-', Some(began)) if next == Some(symbol) && at > began => {
                return Some(format!("{symbol}{symbol} in a set"));
            }
            _ => {}
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "model.layers.11.self_attn.q_proj";

    fn whole(pattern: &str) -> bool {
        Pattern::whole("target_modules", pattern)
            .unwrap()
            .matches(PATH)
            .unwrap()
    }

    fn end(pattern: &str) -> bool {
        PatternMap::new("rank_pattern", [(pattern, ())])
            .unwrap()
            .first(PATH)
            .unwrap()
            .is_some()
    }

    #[test]
    fn a_name_ends_a_path_at_a_dot() {
        for (name, is) in [
            ("q_proj", true),
            ("self_attn.q_proj", true),
            (PATH, true),
            ("proj", false),
            ("attn.q_proj", false),
            ("1.self_attn.q_proj", false),
            ("layers.11.self_attn", false),
        ] {
            assert_eq!(is_end_of(name, PATH), is, "{name}");
        }
    }

    #[test]
    fn a_target_pattern_covers_the_whole_path() {
        assert!(whole(r".*\.q_proj"));
        assert!(whole(r"model\.layers\.(?:3|11)\..*(?<!k)_proj"));
        assert!(whole(r"(?!.*mlp).*(?P<name>q|v)_proj$"));
        assert!(!whole("q_proj"));
        assert!(!whole(r"model\.layers\.1"));
        assert!(!whole("model|q_proj"));
    }

    #[test]
    fn a_rank_pattern_covers_the_end_of_a_path() {
        assert!(end("q_proj"));
        assert!(end("k_proj|q_proj"));
        assert!(end(r"^model.layers.\d+.self_attn.q_proj"));
        assert!(end(r"layers\.11\..*"));
        assert!(end(r"(q)_(?!\3).*"));
        assert!(!end("proj"));
        assert!(!end("^layers.11.self_attn.q_proj"));
        assert!(!end(r"layers\.1\..*"));
    }

    #[test]
    fn what_python_reads_otherwise_is_refused() {
        for (pattern, said) in [
            (r"\p{L}+_proj", r"\p is not read"),
            ("[a-z&&[^q]]_proj", "&& in a set"),
            ("[[:alpha:]]_proj", "a set in a set"),
            ("[a-z--q]", "-- in a set"),
            ("(q_proj", "pattern \"(q_proj\""),
            ("a)|(b", "pattern \"a)|(b\""),
            ("(?a)q_proj", "pattern \"(?a)q_proj\""),
        ] {
            let error = Pattern::whole("target_modules", pattern)
                .err()
                .unwrap()
                .to_string();
            assert!(
                error.starts_with("target_modules: ") && error.contains(said),
                "{pattern}: {error}"
            );
        }
        assert!(PatternMap::new("rank_pattern", [("q)|(k", ())]).is_err());
        for fine in [r"[]\]a]*", r"[^]a-]\w", r"\[a&&b", r"[\w.-]+"] {
            assert!(Pattern::whole("target_modules", fine).is_ok(), "{fine}");
        }
    }

    #[test]
    fn a_pattern_that_explodes_is_told_of() {
        let pattern = Pattern::whole("target_modules", r"(?:(?=\w|.)(\w|.|\1)*)*!").unwrap();
        let error = pattern.matches(&"a".repeat(64)).unwrap_err().to_string();
        assert!(error.contains("target_modules: pattern"), "{error}");
    }
}
