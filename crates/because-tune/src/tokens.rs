use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use tokenizers::Tokenizer;

use crate::error::{Result, TuneError};

/// A tokenizer in two halves: one that knows no special token, for whatever a person may have written, and a list of the
/// special tokens, for what the template writes.
#[derive(Debug, Clone)]
pub(crate) struct Vocabulary {
    whole: Tokenizer,
    plain: Tokenizer,
    /// Longest first, so that a token that begins with another is found.
    specials: Vec<(String, u32)>,
    size: usize,
}

/// A piece of a template's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    Special(u32),
    Text(&'a str),
}

impl Vocabulary {
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        if !path.is_file() {
            return Err(TuneError::Base {
                path: folder.to_owned(),
                reason: "no tokenizer.json; put the one of the model into this folder (vocab.json and merges.txt alone \
                         are not read)"
                    .into(),
            });
        }
        let text = std::fs::read(&path).map_err(|error| TuneError::io("read", &path, error))?;
        Self::parse(&text).map_err(|reason| TuneError::Tokenizer { path, reason })
    }

    pub(crate) fn parse(text: &[u8]) -> Result<Self, String> {
        let mut whole = Tokenizer::from_bytes(text).map_err(|error| error.to_string())?;
        // Settings of training runs, which would cut or lengthen what is encoded here.
        whole.with_padding(None);
        whole
            .with_truncation(None)
            .map_err(|error| error.to_string())?;
        let mut fields: Value = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        fields["added_tokens"] = Value::Array(Vec::new());
        fields["padding"] = Value::Null;
        fields["truncation"] = Value::Null;
        let plain = Tokenizer::from_bytes(fields.to_string()).map_err(|error| error.to_string())?;
        Ok(Self::new(whole, plain))
    }

    /// From a tokenizer that knows all tokens, and one with the same rules that knows no special ones.
    pub(crate) fn new(whole: Tokenizer, plain: Tokenizer) -> Self {
        let added: BTreeMap<u32, String> = whole
            .get_added_tokens_decoder()
            .into_iter()
            .map(|(id, token)| (id, token.content))
            .collect();
        let mut specials: Vec<(String, u32)> = added
            .into_iter()
            .filter(|(_, text)| !text.is_empty())
            .map(|(id, text)| (text, id))
            .collect();
        specials.sort_by(|(a, _), (b, _)| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        let top = whole
            .get_vocab(true)
            .into_values()
            .max()
            .map_or(0, |id| id as usize + 1);
        Self {
            whole,
            plain,
            specials,
            size: top,
        }
    }

    /// One more than the highest id; rows of the model above it are padding and mean nothing.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// All that makes its tokens and texts, as `tokenizer.json` says it.
    pub(crate) fn rules(&self) -> Result<String> {
        self.whole
            .to_string(false)
            .map_err(|error| TuneError::Chat {
                reason: error.to_string(),
            })
    }

    /// The id of a special token.
    pub(crate) fn special(&self, text: &str) -> Option<u32> {
        self.specials
            .iter()
            .find(|(special, _)| special == text)
            .map(|&(_, id)| id)
    }

    /// The bytes of each token of a byte-level BPE, by id; none for special tokens, which are never text, and for ids
    /// that no token has.
    pub(crate) fn bytes(&self) -> Result<Vec<Vec<u8>>, String> {
        let mut bytes = vec![Vec::new(); self.size];
        for (text, id) in self.plain.get_vocab(false) {
            let of = text.chars().map(byte_of).collect::<Option<Vec<u8>>>();
            let of = of.ok_or_else(|| {
                format!(
                    "token {id} {text:?} is not of a byte-level BPE, the only kind that is read"
                )
            })?;
            match bytes.get_mut(id as usize) {
                Some(_) if self.specials.iter().any(|&(_, special)| special == id) => {}
                Some(place) => *place = of,
                None => {}
            }
        }
        Ok(bytes)
    }

    /// Cuts a template's own text at its special tokens.
    pub(crate) fn pieces<'a>(&self, text: &'a str) -> Vec<Piece<'a>> {
        let mut pieces = Vec::new();
        let (mut rest, mut from) = (text, 0);
        while from < rest.len() {
            let here = &rest[from..];
            match self
                .specials
                .iter()
                .find(|(special, _)| here.starts_with(special.as_str()))
            {
                Some((special, id)) => {
                    if from > 0 {
                        pieces.push(Piece::Text(&rest[..from]));
                    }
                    pieces.push(Piece::Special(*id));
                    (rest, from) = (&rest[from + special.len()..], 0);
                }
                None => from += here.chars().next().map_or(1, char::len_utf8),
            }
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest));
        }
        pieces
    }

    /// The tokens of a person's text; never a special one, whatever it says.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self
            .plain
            .encode_fast(text, false)
            .map_err(|error| TuneError::Chat {
                reason: error.to_string(),
            })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of tokens, special ones left out.
    pub(crate) fn decode(&self, ids: &[u32]) -> Result<String> {
        self.whole
            .decode(ids, true)
            .map_err(|error| TuneError::Chat {
                reason: error.to_string(),
            })
    }
}

/// The byte that a letter of a byte-level BPE stands for: printable ones for themselves, the others for the letters from
/// U+0100 on, in their order.
fn byte_of(letter: char) -> Option<u8> {
    let is_itself = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let code = letter as u32;
    match code {
        0..=0xff => is_itself(code).then_some(code as u8),
        _ => {
            let place = code.checked_sub(0x100)? as usize;
            let other = (0..=255u8).filter(|&byte| !is_itself(u32::from(byte)));
            other.into_iter().nth(place)
        }
    }
}
