use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use crate::{ChatRequest, Usage};

/// Counts the tokens of a prompt before it is sent.
///
/// With the feature `tokens` it counts with OpenAI's own vocabularies, which ship with the program; with `tokenizer-json`,
/// with the `tokenizer.json` of any other model. Without either it goes by the number of characters. Each says how far off
/// it may be ([`error`](Self::error)), and [`Calibration`] learns the rest from what the server counts.
///
/// ```
/// use because_llm::{ChatRequest, Message, TokenCounter};
///
/// let counter = TokenCounter::chars_per_token(4.0);
/// assert_eq!(counter.text("sixteen letters!"), 4);
/// let request = ChatRequest::new(vec![Message::user("sixteen letters!")]);
/// assert_eq!(counter.request(&request), 4 + 4 + 3, "a turn and the answer's beginning have tokens of their own");
/// ```
#[derive(Clone)]
pub struct TokenCounter(Arc<Kind>);

enum Kind {
    #[cfg(feature = "tokens")]
    BuiltIn {
        encoding: Encoding,
        /// The model that it stands in for, where it is not its own.
        stands_for: Option<String>,
    },
    #[cfg(feature = "tokenizer-json")]
    File {
        path: std::path::PathBuf,
        tokenizer: Box<tokenizers::Tokenizer>,
    },
    Chars(f64),
    By {
        name: String,
        count: Box<dyn Fn(&str) -> u64 + Send + Sync>,
    },
}

#[cfg(feature = "tokens")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    O200k,
    Cl100k,
}

/// A `tokenizer.json` that cannot be read.
#[cfg(feature = "tokenizer-json")]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {message}")]
pub struct TokenizerError {
    file: String,
    message: String,
}

impl TokenCounter {
    /// The counter for a model of this name: OpenAI's own vocabularies for OpenAI's models, its newest as a stand-in for
    /// others, whose vocabularies split English much alike; four characters a token without the feature `tokens`.
    #[must_use]
    pub fn for_model(model: &str) -> Self {
        #[cfg(feature = "tokens")]
        return Self(Arc::new(built_in(model)));
        #[cfg(not(feature = "tokens"))]
        {
            let _ = model;
            Self::chars_per_token(4.0)
        }
    }

    /// The vocabulary of gpt-4o and all that came after it.
    #[cfg(feature = "tokens")]
    #[must_use]
    pub fn o200k() -> Self {
        Self::exact(Encoding::O200k)
    }

    /// The vocabulary of gpt-4 and gpt-3.5.
    #[cfg(feature = "tokens")]
    #[must_use]
    pub fn cl100k() -> Self {
        Self::exact(Encoding::Cl100k)
    }

    #[cfg(feature = "tokens")]
    fn exact(encoding: Encoding) -> Self {
        Self(Arc::new(Kind::BuiltIn {
            encoding,
            stands_for: None,
        }))
    }

    /// The vocabulary in a `tokenizer.json` of Hugging Face's `tokenizers`.
    ///
    /// # Errors
    /// When the file cannot be read or is none.
    #[cfg(feature = "tokenizer-json")]
    pub fn from_file(path: impl AsRef<std::path::Path>) -> Result<Self, TokenizerError> {
        let path = path.as_ref();
        let tokenizer = tokenizers::Tokenizer::from_file(path).map_err(|error| TokenizerError {
            file: path.display().to_string(),
            message: error.to_string(),
        })?;
        Ok(Self(Arc::new(Kind::File {
            path: path.to_owned(),
            tokenizer: Box::new(tokenizer),
        })))
    }

    /// So many characters to a token of text in ASCII, and a token and a half for each two other characters; English has
    /// four or a little more.
    #[must_use]
    pub fn chars_per_token(chars: f64) -> Self {
        let chars = if chars.is_finite() { chars } else { 4.0 };
        Self(Arc::new(Kind::Chars(chars.clamp(0.25, 100.0))))
    }

    /// Counts the tokens of a text with a model's own tokenizer; `name` is what people are told.
    #[must_use]
    pub fn by(
        name: impl Into<String>,
        count: impl Fn(&str) -> u64 + Send + Sync + 'static,
    ) -> Self {
        let (name, count) = (name.into(), Box::new(count));
        Self(Arc::new(Kind::By { name, count }))
    }

    /// What it counts with, for people.
    #[must_use]
    pub fn name(&self) -> String {
        match &*self.0 {
            #[cfg(feature = "tokens")]
            Kind::BuiltIn {
                encoding,
                stands_for,
            } => {
                let own = match encoding {
                    Encoding::O200k => "o200k_base",
                    Encoding::Cl100k => "cl100k_base",
                };
                match stands_for {
                    Some(model) => format!("{own}, standing in for that of {model}"),
                    None => own.to_owned(),
                }
            }
            #[cfg(feature = "tokenizer-json")]
            Kind::File { path, .. } => path.display().to_string(),
            Kind::Chars(chars) => format!("{chars} characters a token"),
            Kind::By { name, .. } => name.clone(),
        }
    }

    /// How far off a count may be before anything is learnt: 0.1 for a tenth, both ways.
    #[must_use]
    pub fn error(&self) -> f64 {
        match &*self.0 {
            #[cfg(feature = "tokens")]
            Kind::BuiltIn {
                stands_for: Some(_),
                ..
            } => 0.2,
            Kind::Chars(_) => 0.35,
            // The words are exact; what the server puts around them is a guess.
            _ => 0.02,
        }
    }

    /// The tokens of a text.
    #[must_use]
    pub fn text(&self, text: &str) -> u64 {
        match &*self.0 {
            #[cfg(feature = "tokens")]
            Kind::BuiltIn { encoding, .. } => {
                let tokenizer = match encoding {
                    Encoding::O200k => bpe_openai::o200k_base(),
                    Encoding::Cl100k => bpe_openai::cl100k_base(),
                };
                tokenizer.count(text) as u64
            }
            #[cfg(feature = "tokenizer-json")]
            Kind::File { tokenizer, .. } => match tokenizer.encode_fast(text, false) {
                Ok(encoding) => encoding.len() as u64,
                // A vocabulary with a hole: every byte a token is the most it could have been.
                Err(_) => text.len() as u64,
            },
            Kind::By { count, .. } => count(text),
            Kind::Chars(chars) => {
                let ascii = text.bytes().filter(u8::is_ascii).count() as f64;
                let other = text.chars().filter(|letter| !letter.is_ascii()).count() as f64;
                (ascii / chars + other * 0.75).ceil() as u64
            }
        }
    }

    /// The tokens of a whole prompt: its turns, what stands between them, and the schema that the server shows the model.
    #[must_use]
    pub fn request(&self, request: &ChatRequest) -> u64 {
        const TURN: u64 = 4;
        const ANSWER: u64 = 3;
        let turns = request
            .messages
            .iter()
            .map(|message| self.text(&message.content) + TURN);
        let schema = request.schema.as_ref().map_or(0, |schema| {
            self.text(&schema.schema.to_string()) + self.text(&schema.name) + TURN
        });
        turns.sum::<u64>() + schema + ANSWER
    }
}

impl fmt::Debug for TokenCounter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TokenCounter").field(&self.name()).finish()
    }
}

#[cfg(feature = "tokens")]
fn built_in(model: &str) -> Kind {
    let name = model
        .rsplit('/')
        .next()
        .unwrap_or(model)
        .to_ascii_lowercase();
    let begins = |starts: &[&str]| starts.iter().any(|start| name.starts_with(start));
    let (encoding, own) = if begins(&[
        "gpt-4o", "gpt-4.", "gpt-5", "chatgpt-", "o1", "o3", "o4", "gpt-oss",
    ]) {
        (Encoding::O200k, true)
    } else if begins(&["gpt-4", "gpt-3.5", "gpt-35"]) {
        (Encoding::Cl100k, true)
    } else {
        (Encoding::O200k, false)
    };
    Kind::BuiltIn {
        encoding,
        stands_for: (!own).then(|| model.to_owned()),
    }
}

/// What servers counted where we had estimated, by model: shared by whoever estimates and whoever sees the usage.
///
/// ```
/// use because_llm::{Calibration, Usage};
///
/// let calibration = Calibration::default();
/// assert_eq!(calibration.of("m").ratio(), 1.0);
/// for _ in 0..100 {
///     calibration.learn("m", 1000, &Usage { prompt_tokens: 1500, completion_tokens: 80, ..Usage::default() });
/// }
/// assert!((calibration.of("m").ratio() - 1.5).abs() < 0.02);
/// assert_eq!(calibration.of("m").mean_answer(), Some(80.0));
/// ```
#[derive(Debug, Clone, Default)]
pub struct Calibration(Arc<Mutex<BTreeMap<String, Learnt>>>);

/// What is learnt of one model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Learnt {
    /// Calls whose usage was seen.
    pub calls: u64,
    /// The tokens of their prompts as they were estimated.
    pub estimated_tokens: u64,
    /// The tokens of their prompts as the server counted them.
    pub prompt_tokens: u64,
    /// The tokens of their answers.
    pub completion_tokens: u64,
    /// The longest of those answers.
    pub longest_answer: u64,
}

impl Calibration {
    /// Learns from a call whose prompt was estimated and then counted. A server that counts nothing teaches nothing.
    pub fn learn(&self, model: &str, estimated: u64, usage: &Usage) {
        if usage.prompt_tokens == 0 {
            return;
        }
        let mut models = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !models.contains_key(model) {
            models.insert(model.to_owned(), Learnt::default());
        }
        if let Some(learnt) = models.get_mut(model) {
            learnt.calls += 1;
            learnt.estimated_tokens += estimated;
            learnt.prompt_tokens += usage.prompt_tokens;
            learnt.completion_tokens += usage.completion_tokens;
            learnt.longest_answer = learnt.longest_answer.max(usage.completion_tokens);
        }
    }

    /// What is known of a model by now.
    #[must_use]
    pub fn of(&self, model: &str) -> Learnt {
        let models = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        models.get(model).copied().unwrap_or_default()
    }
}

impl Learnt {
    /// Tokens the server counts for one that is estimated. The first few calls move it little, lest one odd prompt decide.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        const DOUBT: f64 = 1000.0;
        let ratio = (self.prompt_tokens as f64 + DOUBT) / (self.estimated_tokens as f64 + DOUBT);
        ratio.clamp(0.1, 10.0)
    }

    /// The mean length of an answer, in tokens.
    #[must_use]
    pub fn mean_answer(&self) -> Option<f64> {
        (self.calls > 0).then(|| self.completion_tokens as f64 / self.calls as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Message;

    #[test]
    fn a_schema_and_every_turn_are_counted() {
        let counter = TokenCounter::for_model("gpt-4o-mini");
        let bare = ChatRequest::new(vec![Message::user("why?")]);
        let schema = serde_json::json!({"type": "object", "properties": {"a": {"type": "string"}}});
        let with_schema = bare.clone().schema("s", schema);
        let mut two_turns = bare.clone();
        two_turns.messages.push(Message::assistant("because"));
        assert!(counter.request(&with_schema) > counter.request(&bare) + 10);
        assert!(counter.request(&two_turns) > counter.request(&bare) + 4);
    }

    #[test]
    fn characters_of_other_scripts_weigh_more() {
        let counter = TokenCounter::chars_per_token(4.0);
        assert_eq!(counter.text("abcdefgh"), 2);
        assert_eq!(counter.text("沙漠政治沙漠政治"), 6);
        assert_eq!(counter.text(""), 0);
        assert!(TokenCounter::chars_per_token(f64::NAN).text("abcd") == 1);
        assert!(TokenCounter::chars_per_token(0.0).text("abcd") <= 16);
    }

    #[cfg(feature = "tokens")]
    #[test]
    fn openais_vocabularies_count_as_published() {
        // tiktoken 0.8 (Python): o200k_base and cl100k_base of the same strings.
        let [o200k, cl100k] = [TokenCounter::o200k(), TokenCounter::cl100k()];
        assert_eq!(o200k.text("hello world"), 2);
        assert_eq!(cl100k.text("hello world"), 2);
        assert_eq!(cl100k.text("tiktoken is great!"), 6);
        assert_eq!(o200k.text("antidisestablishmentarianism"), 6);
        assert_eq!(cl100k.text("antidisestablishmentarianism"), 6);
        for (model, name) in [
            ("gpt-4o-mini", "o200k_base"),
            ("openai/gpt-4.1", "o200k_base"),
            ("gpt-4-turbo", "cl100k_base"),
            (
                "deepseek-chat",
                "o200k_base, standing in for that of deepseek-chat",
            ),
        ] {
            assert_eq!(TokenCounter::for_model(model).name(), name);
        }
    }

    #[cfg(feature = "tokenizer-json")]
    #[test]
    fn a_tokenizer_file_is_used_or_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let text = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": {"?": 0, "sand": 1, "and": 2, "worms": 3}, "unk_token": "?"}}"#;
        std::fs::write(&path, text).unwrap();
        let counter = TokenCounter::from_file(&path).unwrap();
        assert_eq!(counter.text("sand and worms, too"), 5);
        std::fs::write(&path, "{}").unwrap();
        let error = TokenCounter::from_file(&path).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json"), "{error}");
    }
}
