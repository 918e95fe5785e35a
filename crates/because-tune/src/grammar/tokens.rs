use std::sync::Arc;

use llguidance::toktrie::{TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use crate::tokens::Vocabulary;

/// What a grammar knows of a tokenizer: the bytes of each token, and which tokens a text has.
pub(super) struct ByteTokens {
    trie: TokTrie,
    vocabulary: Vocabulary,
}

impl ByteTokens {
    pub(super) fn new(vocabulary: &Vocabulary, stops: &[u32]) -> Result<TokEnv, String> {
        let bytes = vocabulary.bytes()?;
        for byte in b' '..=b'~' {
            if !bytes.iter().any(|token| token[..] == [byte]) {
                return Err(format!(
                    "no token is {:?} alone, so not every JSON can be written",
                    byte as char
                ));
            }
        }
        if let Some(stop) = stops.iter().find(|&&stop| stop as usize >= bytes.len()) {
            return Err(format!("the stop token {stop} is not among its tokens"));
        }
        let &stop = stops.first().ok_or("no token ends an answer")?;
        let info = TokRxInfo::new(bytes.len() as u32, stop);
        Ok(Arc::new(Self {
            trie: TokTrie::from(&info, &bytes),
            vocabulary: vocabulary.clone(),
        }))
    }
}

impl TokenizerEnv for ByteTokens {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    /// As the model saw texts in training, so that what is forced reads familiar. Bytes that are no text, or that the
    /// tokenizer would change, are cut by the longest tokens.
    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        std::str::from_utf8(bytes)
            .ok()
            .and_then(|text| self.vocabulary.encode(text).ok())
            .filter(|ids| self.trie.decode_raw(ids) == bytes)
            .unwrap_or_else(|| self.trie.greedy_tokenize(bytes))
    }
}

/// The most values, names and commas of compact JSON that any one token can begin.
pub(super) fn most_begun(trie: &TokTrie) -> usize {
    let tokens = (0..trie.vocab_size() as u32).map(|token| trie.token(token));
    let begun = |bytes: &[u8]| {
        let inside = after_string(bytes).and_then(|rest| begun(rest, Before::Value));
        begun(bytes, Before::Anything).max(inside)
    };
    tokens.filter_map(begun).max().unwrap_or(1).max(1)
}

/// What comes after the end of a string that a text is inside of.
fn after_string(bytes: &[u8]) -> Option<&[u8]> {
    let mut escaped = false;
    for (place, &byte) in bytes.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some(&bytes[place + 1..]),
            _ => {}
        }
    }
    None
}

#[derive(Clone, Copy, PartialEq)]
enum Before {
    Anything,
    Value,
    /// What a value must follow.
    Opening,
}

/// What a text outside of strings begins; none where no compact JSON holds it.
fn begun(mut bytes: &[u8], mut before: Before) -> Option<usize> {
    let mut count = 0;
    while let Some((&byte, rest)) = bytes.split_first() {
        bytes = rest;
        before = match byte {
            b',' if before != Before::Opening => {
                count += 1;
                Before::Opening
            }
            b':' if before != Before::Opening => Before::Opening,
            b'}' | b']' => Before::Value,
            b'[' | b'{' if before != Before::Value => {
                count += 1;
                Before::Opening
            }
            b'"' if before != Before::Value => {
                count += 1;
                match after_string(bytes) {
                    Some(rest) => bytes = rest,
                    None => return Some(count),
                }
                Before::Value
            }
            b'-' | b'+' | b'.' | b'0'..=b'9' | b'a'..=b'z' | b'E' if before != Before::Value => {
                count += 1;
                let word = |byte: &&u8| matches!(byte, b'-' | b'+' | b'.' | b'0'..=b'9' | b'a'..=b'z' | b'E');
                bytes = &bytes[bytes.iter().take_while(word).count()..];
                Before::Value
            }
            _ => return None,
        };
    }
    Some(count)
}
