use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value as Json;

use crate::config::token_ids;
use crate::error::{Result, TuneError};
use crate::merge::gguf::Value;
use crate::template::ChatTemplate;
use crate::tiny::WORDS;

/// A tokenizer as llama.cpp wants it: byte pairs by the text of their tokens, and the name of the rule that cuts a text
/// into words before.
pub(super) struct GgufVocabulary {
    cut: &'static str,
    /// One for each row of the model; those past the tokenizer's are padding.
    tokens: Vec<(String, Kind)>,
    merges: Vec<String>,
    /// `eos` and the like with their ids.
    named: Vec<(&'static str, u32)>,
    adds_bos: bool,
    template: String,
}

/// What a token is to llama.cpp, with its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal = 1,
    /// Never shown.
    Control = 3,
    /// Found in a text before it is cut, and shown.
    UserDefined = 4,
    Unused = 5,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    pre_tokenizer: Json,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: BTreeMap<String, u32>,
    #[serde(default)]
    merges: Vec<Pair>,
}

/// Both spellings of a merge.
#[derive(Deserialize)]
#[serde(untagged)]
enum Pair {
    Text(String),
    Two(String, String),
}

impl GgufVocabulary {
    pub(super) fn read(folder: &Path, rows: usize) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let fault = |reason: String| TuneError::Tokenizer {
            path: path.clone(),
            reason,
        };
        if !path.is_file() {
            return Err(TuneError::Base {
                path: folder.to_owned(),
                reason: "no tokenizer.json; a GGUF file holds the tokenizer too".into(),
            });
        }
        let text = std::fs::read(&path).map_err(|error| TuneError::io("read", &path, error))?;
        let file: File = serde_json::from_slice(&text).map_err(|error| fault(error.to_string()))?;
        let template = ChatTemplate::read(folder)?;
        let fields = |name: &str| -> Result<Json> {
            let path = folder.join(name);
            if !path.is_file() {
                return Ok(Json::Null);
            }
            let text = std::fs::read(&path).map_err(|error| TuneError::io("read", &path, error))?;
            serde_json::from_slice(&text).map_err(|error| TuneError::Tokenizer {
                path,
                reason: error.to_string(),
            })
        };
        let named = named(&file, &template, &fields("config.json")?);
        Ok(Self {
            cut: cut(&file).map_err(fault)?,
            tokens: tokens(&file, rows).map_err(fault)?,
            merges: merges(file.model.merges).map_err(fault)?,
            named,
            adds_bos: fields("tokenizer_config.json")?["add_bos_token"] == true,
            template: template.source()?,
        })
    }

    pub(super) fn metadata(self) -> Vec<(String, Value)> {
        let kinds = self.tokens.iter().map(|(_, kind)| *kind as i32).collect();
        let tokens = self.tokens.into_iter().map(|(text, _)| text).collect();
        let mut all = vec![
            ("ggml.model".to_owned(), Value::Text("gpt2".into())),
            ("ggml.pre".to_owned(), Value::Text(self.cut.into())),
            ("ggml.tokens".to_owned(), Value::Texts(tokens)),
            ("ggml.token_type".to_owned(), Value::I32s(kinds)),
            ("ggml.merges".to_owned(), Value::Texts(self.merges)),
        ];
        let ids = self.named.into_iter();
        all.extend(ids.map(|(name, id)| (format!("ggml.{name}_token_id"), Value::U32(id))));
        all.push(("ggml.add_bos_token".into(), Value::Bool(self.adds_bos)));
        all.push(("chat_template".into(), Value::Text(self.template)));
        let prefixed = |(key, value)| (format!("tokenizer.{key}"), value);
        all.into_iter().map(prefixed).collect()
    }
}

/// The name of the rule that cuts words. A wrong one would give other tokens than the model learnt, silently.
fn cut(file: &File) -> Result<&'static str, String> {
    if file.model.kind.as_deref().is_some_and(|kind| kind != "BPE") {
        return Err(format!(
            "model.type: {:?} is not supported in GGUF here, only byte-level BPE",
            file.model.kind.as_deref().unwrap_or_default()
        ));
    }
    let steps: Vec<&Json> = match file.pre_tokenizer["pretokenizers"].as_array() {
        Some(steps) => steps.iter().collect(),
        None => vec![&file.pre_tokenizer],
    };
    let is_bytes = |step: &Json| step["type"] == "ByteLevel" && step["add_prefix_space"] != true;
    match steps[..] {
        [split, bytes]
            if is_bytes(bytes)
                && bytes["use_regex"] == false
                && split["behavior"] == "Isolated"
                && split["invert"] != true
                && split["pattern"]["Regex"] == WORDS =>
        {
            Ok("qwen2")
        }
        [bytes] if is_bytes(bytes) && bytes["use_regex"] != false => Ok("gpt-2"),
        _ => Err(
            "pre_tokenizer: neither Qwen2's nor GPT-2's way to cut a text into words; llama.cpp would give other tokens"
                .into(),
        ),
    }
}

fn tokens(file: &File, rows: usize) -> Result<Vec<(String, Kind)>, String> {
    let mut tokens: Vec<_> = (0..rows)
        .map(|row| (format!("[PAD{row}]"), Kind::Unused))
        .collect();
    let model = file.model.vocab.iter();
    let model = model.map(|(text, &id)| (id, text, Kind::Normal));
    let added = file.added_tokens.iter().map(|added| {
        let kind = match added.special || looks_special(&added.content) {
            true => Kind::Control,
            false => Kind::UserDefined,
        };
        (added.id, &added.content, kind)
    });
    for (id, text, kind) in model.chain(added) {
        *tokens.get_mut(id as usize).ok_or_else(|| {
            format!("has id {id}, the model only {rows} rows; the two are not of one model")
        })? = (text.clone(), kind);
    }
    Ok(tokens)
}

/// Qwen marks some of its control tokens as ordinary, such as `<|fim_prefix|>`.
fn looks_special(text: &str) -> bool {
    text.starts_with("<|") && text.ends_with("|>")
}

fn merges(pairs: Vec<Pair>) -> Result<Vec<String>, String> {
    let written = |(place, pair): (usize, Pair)| {
        let text = match pair {
            Pair::Text(text) => text,
            Pair::Two(left, right) => format!("{left} {right}"),
        };
        // Byte-level tokens have no space, so one space stands between the two of a pair.
        match text.split(' ').filter(|part| !part.is_empty()).count() {
            2 if text.matches(' ').count() == 1 => Ok(text),
            _ => Err(format!("model.merges: entry {place}: {text:?} is no pair")),
        }
    };
    pairs.into_iter().enumerate().map(written).collect()
}

/// The ids of tokens with a task: by the name that the tokenizer's settings give, then by `config.json`, then by what
/// Qwen2.5 calls them. Without them llama.cpp would take ids of another model.
fn named(file: &File, template: &ChatTemplate, config: &Json) -> Vec<(&'static str, u32)> {
    let id_of = |text: &str| {
        let added = file.added_tokens.iter().find(|one| one.content == text);
        added.map(|one| one.id)
    };
    let id = |field: &str, usual: &[&str]| {
        template
            .token(field)
            .and_then(id_of)
            .or_else(|| {
                let ids = token_ids(config.get(format!("{field}_id")))?;
                ids.into_iter().next()
            })
            .or_else(|| usual.iter().find_map(|text| id_of(text)))
    };
    [
        ("bos", id("bos_token", &["<|endoftext|>"])),
        ("eos", id("eos_token", &["<|im_end|>", "<|endoftext|>"])),
        ("padding", id("pad_token", &["<|endoftext|>"])),
    ]
    .into_iter()
    .filter_map(|(name, id)| Some((name, id?)))
    .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn file(pre_tokenizer: &Json) -> File {
        serde_json::from_value(json!({
            "added_tokens": [
                {"id": 3, "content": "<|im_end|>", "special": true},
                {"id": 4, "content": "<|fim_prefix|>", "special": false},
                {"id": 5, "content": "<tool_call>", "special": false},
            ],
            "pre_tokenizer": pre_tokenizer,
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
        }))
        .unwrap()
    }

    fn bytes(use_regex: bool) -> Json {
        json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": use_regex})
    }

    #[test]
    fn rows_without_a_token_are_padding_and_added_tokens_have_their_kind() {
        let tokens = tokens(&file(&Json::Null), 7).unwrap();
        let kinds: Vec<_> = tokens.iter().map(|(_, kind)| *kind).collect();
        assert_eq!(tokens[6].0, "[PAD6]");
        assert_eq!(
            kinds[2..],
            [
                Kind::Normal,
                Kind::Control,
                Kind::Control,
                Kind::UserDefined,
                Kind::Unused
            ]
        );
        let said = super::tokens(&file(&Json::Null), 5).unwrap_err();
        assert!(said.contains("id 5, the model only 5 rows"), "{said}");
    }

    #[test]
    fn the_rule_of_words_is_known_or_refused() {
        let split = |regex: &str| json!({"type": "Split", "behavior": "Isolated", "invert": false, "pattern": {"Regex": regex}});
        let both = |one: Json, two: Json| json!({"type": "Sequence", "pretokenizers": [one, two]});
        assert_eq!(cut(&file(&both(split(WORDS), bytes(false)))), Ok("qwen2"));
        assert_eq!(cut(&file(&bytes(true))), Ok("gpt-2"));
        for other in [
            both(split(r"\p{N}{1,3}"), bytes(false)),
            bytes(false),
            Json::Null,
        ] {
            assert!(cut(&file(&other)).unwrap_err().contains("pre_tokenizer"));
        }
    }

    #[test]
    fn merges_are_pairs_in_either_spelling() {
        let pair = |text: &str| Pair::Text(text.into());
        let two = Pair::Two("a".into(), "b".into());
        assert_eq!(merges(vec![pair("a b"), two]).unwrap(), ["a b", "a b"]);
        let said = merges(vec![pair("a b"), pair("a")]).unwrap_err();
        assert!(said.contains("entry 1"), "{said}");
    }
}
