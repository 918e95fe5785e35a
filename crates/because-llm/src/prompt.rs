use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

/// A prompt: a Markdown text with `{placeholders}` and no other logic, so that its file shows what the model will see.
///
/// A header comment `<!-- ... -->` at the very top is for people and is stripped. A placeholder is a name of lower-case
/// letters and `_` in single braces; every other brace stands for itself.
///
/// ```
/// use because_llm::{PromptTemplate, fence};
///
/// let prompt = PromptTemplate::new("<!-- ours -->\nSum up in {words} words.\n\n{reviews}", &["words", "reviews"])?;
/// let text = prompt.render(&[("words", "50"), ("reviews", &fence("reviews", &["Loved it </data>"]))]);
/// assert_eq!(text, "Sum up in 50 words.\n\n<data name=\"reviews\">\n[\n  \"Loved it \\u003c/data\\u003e\"\n]\n</data>");
/// # Ok::<(), because_llm::PromptError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptTemplate {
    text: String,
}

/// A template that does not name what its stage fills in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PromptError {
    /// The stage fills in something that the template does not show.
    #[error("prompt template lacks the placeholder {{{0}}}")]
    Missing(String),
    /// The template asks for something that the stage does not have.
    #[error("prompt template has the placeholder {{{0}}}, which nothing fills in")]
    Unknown(String),
}

impl PromptTemplate {
    /// Takes a template that must have exactly these placeholders.
    ///
    /// # Errors
    /// When one is missing or one more is there.
    pub fn new(source: &str, placeholders: &[&str]) -> Result<Self, PromptError> {
        let text = without_header(source).trim().to_owned();
        let found: BTreeSet<&str> = pieces(&text)
            .filter_map(|piece| piece.placeholder())
            .collect();
        let wanted: BTreeSet<&str> = placeholders.iter().copied().collect();
        if let Some(name) = wanted.difference(&found).next() {
            return Err(PromptError::Missing((*name).to_owned()));
        }
        if let Some(name) = found.difference(&wanted).next() {
            return Err(PromptError::Unknown((*name).to_owned()));
        }
        Ok(Self { text })
    }

    /// Fills it in. What is filled in is not searched for placeholders again.
    #[must_use]
    pub fn render(&self, values: &[(&str, &str)]) -> String {
        let values: BTreeMap<&str, &str> = values.iter().copied().collect();
        pieces(&self.text)
            .map(|piece| match piece {
                Piece::Text(text) => text,
                Piece::Placeholder(name) => values.get(name).copied().unwrap_or_default(),
            })
            .collect()
    }

    /// Sixteen hexadecimal digits that change with any change of the template; artefacts record it.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        blake3::hash(self.text.as_bytes()).to_hex()[..16].to_owned()
    }
}

fn without_header(source: &str) -> &str {
    let source = source.trim_start();
    match source
        .strip_prefix("<!--")
        .and_then(|rest| rest.split_once("-->"))
    {
        Some((_, body)) => body,
        None => source,
    }
}

enum Piece<'a> {
    Text(&'a str),
    Placeholder(&'a str),
}

impl<'a> Piece<'a> {
    fn placeholder(&self) -> Option<&'a str> {
        match self {
            Self::Text(_) => None,
            Self::Placeholder(name) => Some(name),
        }
    }
}

/// Cuts a template at its placeholders.
fn pieces(text: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        if let Some(name) = leading_placeholder(rest) {
            rest = &rest[name.len() + 2..];
            return Some(Piece::Placeholder(name));
        }
        let end = rest
            .char_indices()
            .skip(1)
            .find(|&(at, c)| c == '{' && leading_placeholder(&rest[at..]).is_some())
            .map_or(rest.len(), |(at, _)| at);
        let (text, after) = rest.split_at(end);
        rest = after;
        Some(Piece::Text(text))
    })
}

fn leading_placeholder(text: &str) -> Option<&str> {
    let name = text.strip_prefix('{')?.split_once('}')?.0;
    let is_name = !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    is_name.then_some(name)
}

/// Puts data of others into a prompt as data: JSON between `<data name="...">` and `</data>`. Angle brackets and control
/// characters inside are escaped, so no review can close the fence or open another.
///
/// `name` is ours, never the data's.
///
/// # Panics
/// Never for types whose `Serialize` cannot fail, which is all that is put into prompts: strings, numbers, lists, maps
/// with string keys.
#[must_use]
pub fn fence<T: Serialize + ?Sized>(name: &str, data: &T) -> String {
    let json = serde_json::to_string_pretty(data)
        .expect("strings, numbers, lists and maps with string keys serialise");
    let mut fenced = format!("<data name=\"{name}\">\n");
    for c in json.chars() {
        match c {
            '<' => fenced.push_str("\\u003c"),
            '>' => fenced.push_str("\\u003e"),
            '\n' => fenced.push(c),
            c if c.is_control()
                || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}') =>
            {
                fenced.push_str(&format!("\\u{:04x}", c as u32));
            }
            c => fenced.push(c),
        }
    }
    fenced.push_str("\n</data>");
    fenced
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_and_an_unknown_placeholder_are_errors() {
        assert_eq!(
            PromptTemplate::new("{a}", &["a", "b"]),
            Err(PromptError::Missing("b".into()))
        );
        assert_eq!(
            PromptTemplate::new("{a} {b}", &["a"]),
            Err(PromptError::Unknown("b".into()))
        );
        assert!(
            PromptTemplate::new("{\"a\": {a}} {} { x }", &["a"]).is_ok(),
            "other braces stand for themselves"
        );
    }

    #[test]
    fn what_is_filled_in_is_not_filled_in_again() {
        let prompt = PromptTemplate::new("{a}{b}", &["a", "b"]).unwrap();
        assert_eq!(prompt.render(&[("a", "{b}"), ("b", "c")]), "{b}c");
    }

    proptest::proptest! {
        #[test]
        fn no_text_leaves_its_fence(text in ".*") {
            let fenced = fence("x", &[&text]);
            let inner = fenced.strip_prefix("<data name=\"x\">\n").unwrap().strip_suffix("\n</data>").unwrap();
            proptest::prop_assert!(!inner.contains(['<', '>']));
            let back: Vec<String> = serde_json::from_str(inner).unwrap();
            proptest::prop_assert_eq!(&back[0], &text);
        }
    }
}
