use std::collections::BTreeSet;

use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

use crate::error::{Result, TuneError};
use crate::gguf::file::GgufFile;
use crate::template::{CHATML, ChatTemplate};
use crate::tiny::WORDS;
use crate::tokens::Vocabulary;

const MODEL: &str = "tokenizer.ggml.model";
const RULE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const KINDS: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const TEMPLATE: &str = "tokenizer.chat_template";

/// What a token is, by llama.cpp's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal,
    /// Never shown.
    Control,
    /// Not made by merges, and shown.
    UserDefined,
    /// Fills a row of the model.
    Padding,
}

/// The tokenizer in a GGUF file's metadata: the same tokens for any text as the `tokenizer.json` it was made of.
///
/// Of what that file has and a GGUF file lacks, one thing shows: which tokens an answer leaves out. Converters mark all
/// `<|...|>` as control tokens, though the models' own files show some of them.
pub(super) fn vocabulary(file: &GgufFile) -> Result<Vocabulary> {
    let model = file.text(MODEL)?;
    if model != Some("gpt2") {
        let reason = format!(
            "{:?} is not supported, only byte-level BPE (\"gpt2\")",
            model.unwrap_or_default()
        );
        return Err(file.field_fault(MODEL, reason));
    }
    let missing = |key: &str| file.field_fault(key, "missing");
    let tokens = file.texts(TOKENS)?.ok_or_else(|| missing(TOKENS))?;
    let kinds = kinds(file, &tokens)?;
    let merges = merges(file, &tokens)?;
    let rule = Rule::of(file)?;

    let entries = || tokens.iter().zip(&kinds).zip(0..);
    // What nobody may write is not in the plain tokenizer at all, so that no merge of a file leads to it.
    let normal: Vocab = entries()
        .filter(|((_, kind), _)| **kind == Kind::Normal)
        .map(|((text, _), id)| ((*text).to_owned(), id))
        .collect();
    let known: Vocab = entries()
        .filter(|((_, kind), _)| **kind != Kind::Padding)
        .map(|((text, _), id)| ((*text).to_owned(), id))
        .collect();
    let added: Vec<AddedToken> = entries()
        .filter(|((_, kind), _)| matches!(kind, Kind::Control | Kind::UserDefined))
        .map(|((text, kind), _)| AddedToken::from(*text, *kind == Kind::Control).normalized(false))
        .collect();
    let made = |vocab, merges| -> tokenizers::Result<Tokenizer> {
        let model = BPE::builder().vocab_and_merges(vocab, merges).build()?;
        rule.tokenizer(model)
    };
    let fault = |error: tokenizers::Error| TuneError::Tokenizer {
        path: file.path.clone(),
        reason: error.to_string(),
    };
    let plain = made(normal, merges).map_err(fault)?;
    // It decodes and never encodes: merges would be for nothing.
    let mut whole = made(known, Merges::new()).map_err(fault)?;
    whole.add_tokens(added).map_err(fault)?;
    Ok(Vocabulary::new(whole, plain))
}

/// The chat template of the file, or ChatML where it has none.
pub(super) fn template(file: &GgufFile) -> Result<ChatTemplate> {
    let source = file.text(TEMPLATE)?.unwrap_or(CHATML).to_owned();
    let tokens = file.texts(TOKENS)?.unwrap_or_default();
    let name = |field: &'static str, key: &str| -> Result<(&'static str, String)> {
        let id = file.size(&format!("tokenizer.ggml.{key}_token_id"))?;
        let text = id.and_then(|id| tokens.get(id)).copied();
        Ok((field, text.unwrap_or_default().to_owned()))
    };
    let names = vec![
        name("eos_token", "eos")?,
        name("bos_token", "bos")?,
        name("pad_token", "padding")?,
    ];
    ChatTemplate::new(source, names)
        .map_err(|error| file.field_fault(TEMPLATE, format!("{error:#}")))
}

fn kinds(file: &GgufFile, tokens: &[&str]) -> Result<Vec<Kind>> {
    let numbers = match file.i32s(KINDS)? {
        Some(numbers) if numbers.len() == tokens.len() => numbers,
        Some(numbers) => {
            let reason = format!("has {} entries for {} tokens", numbers.len(), tokens.len());
            return Err(file.field_fault(KINDS, reason));
        }
        // As llama.cpp: without kinds special tokens would be ordinary ones, and a template be read as text.
        None => return Err(file.field_fault(KINDS, "missing")),
    };
    let mut seen = BTreeSet::new();
    let all = numbers.iter().zip(tokens).enumerate();
    all.map(|(id, (number, text))| {
        let kind = match number {
            5 => Kind::Padding,
            // Converters of 2024 called padding user-defined.
            4 if *text == format!("[PAD{id}]") => Kind::Padding,
            1 => Kind::Normal,
            // Unknown tokens are as little a person's as control tokens.
            2 | 3 => Kind::Control,
            4 => Kind::UserDefined,
            other => {
                let reason = format!("entry {id}: {other} is no kind of byte-level BPE");
                return Err(file.field_fault(KINDS, reason));
            }
        };
        if kind != Kind::Padding && !seen.insert(*text) {
            return Err(file.field_fault(TOKENS, format!("entry {id}: {text:?} is there twice")));
        }
        if kind != Kind::Padding && text.is_empty() {
            return Err(file.field_fault(TOKENS, format!("entry {id} is empty")));
        }
        Ok(kind)
    })
    .collect()
}

fn merges(file: &GgufFile, tokens: &[&str]) -> Result<Merges> {
    let longest = tokens.iter().map(|text| text.len()).max().unwrap_or(0);
    let pairs = file
        .texts(MERGES)?
        .ok_or_else(|| file.field_fault(MERGES, "missing"))?;
    let pairs = pairs.into_iter().enumerate();
    pairs
        .map(|(place, pair)| {
            let parts = pair.split_once(' ');
            // The two make a token; what is longer than all tokens makes none.
            let parts = parts.filter(|(left, right)| {
                !left.is_empty() && !right.is_empty() && left.len() + right.len() <= longest
            });
            match parts {
                Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
                None => {
                    let reason =
                        format!("entry {place}: {pair:?} is not a pair that makes a token");
                    Err(file.field_fault(MERGES, reason))
                }
            }
        })
        .collect()
}

/// How a text is cut into words before its byte pairs are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    Qwen,
    Gpt2,
}

impl Rule {
    fn of(file: &GgufFile) -> Result<Self> {
        match file.text(RULE)? {
            // llama.cpp has one rule for the two.
            Some("qwen2" | "deepseek-r1-qwen") => Ok(Self::Qwen),
            Some("gpt-2") => Ok(Self::Gpt2),
            Some(other) => Err(file.field_fault(
                RULE,
                format!("{other:?} is not supported, only \"qwen2\" and \"gpt-2\""),
            )),
            None => Err(file.field_fault(
                RULE,
                "missing: the file was made by an old converter; convert the checkpoint anew",
            )),
        }
    }

    fn tokenizer(self, model: BPE) -> tokenizers::Result<Tokenizer> {
        let bytes = || ByteLevel::new(false, false, false);
        let mut tokenizer = Tokenizer::new(model);
        match self {
            Self::Qwen => {
                let split = Split::new(
                    SplitPattern::Regex(WORDS.into()),
                    SplitDelimiterBehavior::Isolated,
                    false,
                )?;
                let steps: Vec<PreTokenizerWrapper> = vec![split.into(), bytes().into()];
                tokenizer.with_normalizer(Some(NFC))?;
                tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
            }
            Self::Gpt2 => {
                tokenizer.with_pre_tokenizer(Some(bytes().use_regex(true)));
            }
        }
        tokenizer.with_post_processor(Some(bytes()));
        tokenizer.with_decoder(Some(bytes()));
        Ok(tokenizer)
    }
}
