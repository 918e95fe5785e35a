use std::collections::HashMap;

use super::bleu::BleuCounts;
use super::chrf::ChrfCounts;
use super::ngram::NgramMatcher;
use super::porter;
use super::rouge::{Rouge, Tokens};
use super::stats::{Pair, PairCounts};
use super::tokenize::{RougePiece, rewrite_13a, rouge_pieces, visible_chars, words};

/// Counts pairs one after another, keeping its buffers and what it learned of the words.
#[derive(Debug, Default)]
pub(super) struct Counter {
    dictionary: Dictionary,
    matcher: NgramMatcher,
    lower: String,
    prediction: Side,
    reference: Side,
}

/// One text as numbers: plain symbols for BLEU and chrF, tokens with their lines for ROUGE.
#[derive(Debug, Default)]
struct Side {
    symbols: Vec<u32>,
    tokens: Tokens,
}

impl Counter {
    pub(super) fn count(&mut self, pair: Pair<'_>) -> PairCounts {
        let bleu_13a = self.bleu(&rewrite_13a(pair.prediction), &rewrite_13a(pair.reference));
        let bleu_none = self.bleu(pair.prediction, pair.reference);
        let chrf = self.chrf(pair);
        self.dictionary.rouge_tokens(
            pair.prediction,
            &mut self.prediction.tokens,
            &mut self.lower,
        );
        self.dictionary
            .rouge_tokens(pair.reference, &mut self.reference.tokens, &mut self.lower);
        let rouge = self.rouge();
        self.dictionary.stem_all(&mut self.prediction.tokens.ids);
        self.dictionary.stem_all(&mut self.reference.tokens.ids);
        PairCounts {
            bleu_13a,
            bleu_none,
            chrf,
            rouge,
            rouge_stemmed: self.rouge(),
        }
    }

    fn bleu(&mut self, prediction: &str, reference: &str) -> BleuCounts {
        self.dictionary
            .ids_of(words(prediction), &mut self.prediction.symbols);
        self.dictionary
            .ids_of(words(reference), &mut self.reference.symbols);
        let (p, r) = (&self.prediction.symbols, &self.reference.symbols);
        BleuCounts::new(self.matcher.matches::<4>(p, r), p.len(), r.len())
    }

    /// Over Unicode scalar values, as Python counts characters, not over graphemes.
    fn chrf(&mut self, pair: Pair<'_>) -> ChrfCounts {
        let (p, r) = (&mut self.prediction.symbols, &mut self.reference.symbols);
        p.clear();
        p.extend(visible_chars(pair.prediction).map(u32::from));
        r.clear();
        r.extend(visible_chars(pair.reference).map(u32::from));
        ChrfCounts::new(self.matcher.matches::<6>(p, r), p.len(), r.len())
    }

    fn rouge(&mut self) -> Rouge {
        Rouge::of(
            &self.prediction.tokens,
            &self.reference.tokens,
            &mut self.matcher,
        )
    }
}

/// Numbers for words. Which number a word gets depends on what came before, so numbers never leave the counter: only
/// counts of equal ones do.
#[derive(Debug, Default)]
struct Dictionary {
    ids: HashMap<Box<str>, u32>,
    /// The number of each ROUGE token's stem, once it was asked for.
    stems: HashMap<u32, u32>,
    words: Vec<Box<str>>,
}

impl Dictionary {
    fn id(&mut self, word: &str) -> u32 {
        if let Some(&id) = self.ids.get(word) {
            return id;
        }
        let id = u32::try_from(self.words.len())
            .expect("four thousand million different words do not fit in memory");
        self.ids.insert(word.into(), id);
        self.words.push(word.into());
        id
    }

    fn ids_of<'a>(&mut self, words: impl Iterator<Item = &'a str>, ids: &mut Vec<u32>) {
        ids.clear();
        ids.extend(words.map(|word| self.id(word)));
    }

    fn rouge_tokens(&mut self, text: &str, tokens: &mut Tokens, lower: &mut String) {
        tokens.clear();
        rouge_pieces(text, lower, |piece| match piece {
            RougePiece::Token(token) => tokens.ids.push(self.id(token)),
            RougePiece::LineEnd => tokens.line_ends.push(tokens.ids.len()),
        });
    }

    fn stem_all(&mut self, ids: &mut [u32]) {
        for id in ids {
            *id = self.stem(*id);
        }
    }

    fn stem(&mut self, id: u32) -> u32 {
        if let Some(&stem) = self.stems.get(&id) {
            return stem;
        }
        let stem = porter::stem_token(&self.words[id as usize]);
        let stem = self.id(&stem);
        self.stems.insert(id, stem);
        stem
    }
}
