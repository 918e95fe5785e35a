mod chart;
mod cost;
mod lexemes;
mod rules;
mod schema;
#[cfg(test)]
mod tests;
mod tokens;

use std::sync::{Arc, Mutex, PoisonError};

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{SimpleVob, TokEnv};
use llguidance::{ParserFactory, TokenParser};
use serde_json::Value;

pub use cost::{MaskCost, Masks};

use crate::error::{Result, TuneError};
use crate::grammar::chart::Chart;
use crate::grammar::lexemes::Lexemes;
use crate::grammar::rules::Rules;
use crate::tokens::Vocabulary;

/// Compiled schemas that are kept; some stages name the candidates of a call in its schema.
const KEPT: usize = 32;
/// Tokens that are tried where only those may be chosen that leave room for the end.
const TRIED: usize = 16;
/// States of a compiled schema's automaton above which it is made anew, so that patterns do not fill the memory of a
/// program that runs for long.
const MOST_STATES: usize = 100_000;

/// Holds answers of one model to JSON schemas. Made once per model; clones share what is compiled.
#[derive(Clone)]
pub(crate) struct Grammars(Arc<Shared>);

struct Shared {
    factory: ParserFactory,
    tokens: TokEnv,
    stops: Vec<u32>,
    /// The most lexemes that one token may begin.
    begun: usize,
    /// The last used last.
    compiled: Mutex<Vec<(Value, Arc<Compiled>)>>,
}

/// A compiled schema, before the first token.
struct Compiled {
    parser: TokenParser,
    rules: Rules,
    lexemes: Mutex<Lexemes>,
    chart: Chart,
    /// Tokens of the smallest answer, without the one that ends it.
    smallest: Vec<u32>,
}

/// What one answer to a schema may go on with.
///
/// Before each token [`Grammar::mask`] forbids what cannot come; after it [`Grammar::take`] goes on. As long as there is
/// room, everything may come that the schema allows. When the end is near, of the likeliest tokens only those may that
/// leave room for a way to the end, and there is always one; so an answer ends with a stop token before its room does.
pub(crate) struct Grammar {
    shared: Arc<Shared>,
    compiled: Arc<Compiled>,
    parser: TokenParser,
    chart: Chart,
    /// A way to the end that fits the room, where one was looked for.
    way: Option<Vec<u32>>,
    /// The tokens that may come where the end is near, each with the way to the end after it.
    tried: Vec<(u32, Vec<u32>)>,
    begun: bool,
    stopped: bool,
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammars").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammar")
            .field("stopped", &self.stopped)
            .finish_non_exhaustive()
    }
}

impl Grammars {
    /// `stops` end an answer; special tokens are never part of one.
    ///
    /// # Errors
    /// When the tokenizer is no byte-level BPE or a stop token is none of its tokens.
    pub(crate) fn new(vocabulary: &Vocabulary, stops: &[u32]) -> Result<Self> {
        let fault = |reason: String| TuneError::Schema {
            place: String::new(),
            reason: format!("answers cannot be held to one with this tokenizer: {reason}"),
        };
        let tokens = tokens::ByteTokens::new(vocabulary, stops).map_err(fault)?;
        let mut factory =
            ParserFactory::new_simple(&tokens).map_err(|error| fault(error.to_string()))?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        Ok(Self(Arc::new(Shared {
            factory,
            stops: stops.to_vec(),
            begun: tokens::most_begun(tokens.tok_trie()),
            tokens,
            compiled: Mutex::new(Vec::new()),
        })))
    }

    /// A grammar for one answer. A schema is compiled when it is first seen.
    ///
    /// # Errors
    /// [`TuneError::Schema`], with the part of the schema that is at fault.
    pub(crate) fn json(&self, schema: &Value) -> Result<Grammar> {
        let compiled = self.compiled(schema)?;
        Ok(Grammar {
            shared: Arc::clone(&self.0),
            parser: compiled.parser.clone(),
            chart: compiled.chart.clone(),
            compiled,
            way: None,
            tried: Vec::new(),
            begun: false,
            stopped: false,
        })
    }

    fn compiled(&self, schema: &Value) -> Result<Arc<Compiled>> {
        let mut kept = self
            .0
            .compiled
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = kept.iter().position(|(one, _)| one == schema) {
            let one = kept.remove(place);
            if one.1.parser.parser.lexer_stats().num_states < MOST_STATES {
                let compiled = Arc::clone(&one.1);
                kept.push(one);
                return Ok(compiled);
            }
        }
        let compiled = Arc::new(self.0.compile(schema)?);
        if kept.len() >= KEPT {
            kept.remove(0);
        }
        kept.push((schema.clone(), Arc::clone(&compiled)));
        Ok(compiled)
    }
}

impl Shared {
    fn compile(&self, schema: &Value) -> Result<Compiled> {
        let narrow = schema::narrowed(schema);
        let grammar = TopLevelGrammar::from_json_schema(narrow);
        let mut parser = self
            .factory
            .create_parser(grammar)
            .map_err(|error| schema::refusal(schema, &error.to_string()))?;
        parser.start_without_prompt();
        let fault = |reason| TuneError::Schema {
            place: String::new(),
            reason,
        };
        let trie = self.tokens.tok_trie();
        let grammar = parser.parser.grammar();
        let mut lexemes = Lexemes::new(grammar.lexer_spec()).map_err(fault)?;
        let longest = schema::longest_lexeme(schema);
        let rules = Rules::read(grammar, &mut lexemes, trie, longest).map_err(fault)?;
        let chart = Chart::new(&rules, &mut lexemes);
        let smallest = chart
            .ending(&rules, &mut lexemes, trie)
            .ok_or_else(|| fault("no JSON fits it, or none that could be found".into()))?;
        Ok(Compiled {
            parser,
            rules,
            lexemes: Mutex::new(lexemes),
            chart,
            smallest,
        })
    }
}

impl Grammar {
    /// Forbids, by negative infinity, every token that must not come next. `logits` are those of the tokenizer's tokens or
    /// more, and `room` is how many tokens may still be written, this one included.
    ///
    /// # Errors
    /// [`TuneError::SchemaRoom`] before the first token where `room` is too small for any answer, and
    /// [`TuneError::Schema`] where a pattern takes too long to follow.
    pub(crate) fn mask(&mut self, logits: &mut [f32], room: usize) -> Result<()> {
        let needed = self.compiled.smallest.len() + 1;
        if !self.begun && room < needed {
            return Err(TuneError::SchemaRoom { needed, room });
        }
        self.begun = true;
        self.tried.clear();
        if self.is_done() {
            keep(logits, &self.shared.stops);
            return Ok(());
        }
        let mut allowed = self
            .parser
            .compute_mask()
            .map_err(|error| too_complex(&error.to_string()))?;
        let may_end = self.parser.is_accepting();
        for &stop in &self.shared.stops {
            allowed.set(stop as usize, may_end);
        }
        if self.has_room(room) {
            self.way = None;
            forbid(logits, &allowed);
            return Ok(());
        }
        self.close(&allowed, may_end, logits, room)
    }

    /// Goes on after a token that [`Grammar::mask`] allowed.
    ///
    /// # Errors
    /// When it is another token.
    pub(crate) fn take(&mut self, token: u32) -> Result<()> {
        let wrong = |why: &str| TuneError::Schema {
            place: String::new(),
            reason: format!("token {token} cannot come here: {why}"),
        };
        let tried = std::mem::take(&mut self.tried);
        let way = tried.into_iter().find(|(one, _)| *one == token);
        self.way = way.map(|(_, way)| way);
        if self.shared.stops.contains(&token) {
            if self.stopped || !(self.parser.stopped() || self.parser.is_accepting()) {
                return Err(wrong("the JSON is not at its end"));
            }
            self.stopped = true;
            return Ok(());
        }
        if self.is_done() {
            return Err(wrong("the JSON is at its end"));
        }
        let trie = self.shared.tokens.tok_trie();
        if token as usize >= trie.vocab_size() || trie.token(token).is_empty() {
            return Err(wrong("it is no text"));
        }
        let taken = self.parser.consume_token(token);
        taken.map_err(|error| wrong(&error.to_string()))?;
        self.parser
            .check_stop()
            .map_err(|error| too_complex(&error.to_string()))?;
        let mut lexemes = self.compiled.lexemes();
        match self
            .chart
            .read(&self.compiled.rules, &mut lexemes, trie.token(token))
        {
            true => Ok(()),
            false => Err(wrong("the rules of the schema do not have it")),
        }
    }

    /// Whether nothing but a stop token may come, or one has come.
    pub(crate) fn is_done(&self) -> bool {
        self.stopped || self.parser.stopped()
    }

    /// The tokens that must come next, whatever the model says, in the tokenizer's own way to cut them; none where there
    /// is a choice. Each is still to be [taken](Grammar::take).
    pub(crate) fn forced(&mut self, room: usize) -> Vec<u32> {
        let needed = self.compiled.smallest.len() + 1;
        if self.is_done() || (!self.begun && room < needed) {
            return Vec::new();
        }
        self.begun = true;
        let forced = self.parser.compute_ff_tokens();
        if forced.is_empty() {
            return forced;
        }
        // They may be more tokens than the way to the end would have for the same text.
        let compiled = Arc::clone(&self.compiled);
        let trie = self.shared.tokens.tok_trie();
        let mut lexemes = compiled.lexemes();
        let bytes = trie.decode_raw(&forced);
        let after = self
            .chart
            .ending_after(&compiled.rules, &mut lexemes, trie, &bytes);
        match after {
            Some(after) if forced.len() + after.len() < room => forced,
            _ => Vec::new(),
        }
    }

    /// Whether every token that the schema allows leaves room for an end, one that ends the answer included.
    fn has_room(&self, room: usize) -> bool {
        let rules = &self.compiled.rules;
        let most = self.chart.most(rules).zip(rules.step);
        most.is_some_and(|(most, step)| most + self.shared.begun * step + 2 <= room)
    }

    /// Allows those of the likeliest tokens after which there is room for an end.
    fn close(
        &mut self,
        allowed: &SimpleVob,
        may_end: bool,
        logits: &mut [f32],
        room: usize,
    ) -> Result<()> {
        let compiled = Arc::clone(&self.compiled);
        let trie = self.shared.tokens.tok_trie();
        let mut lexemes = compiled.lexemes();
        let found = self.chart.ending(&compiled.rules, &mut lexemes, trie);
        let way = match (self.way.take(), found) {
            (Some(known), Some(found)) if known.len() <= found.len() => known,
            (_, Some(found)) => found,
            (Some(known), None) => known,
            (None, None) => return Err(too_complex("no end was found")),
        };
        let mut kept = Vec::with_capacity(TRIED + 1 + self.shared.stops.len());
        if may_end {
            kept.extend(self.shared.stops.iter().copied());
        }
        for token in likeliest(logits, allowed, &self.shared.stops) {
            let bytes = trie.token(token);
            let after = self
                .chart
                .ending_after(&compiled.rules, &mut lexemes, trie, bytes);
            if let Some(after) = after.filter(|after| after.len() + 2 <= room) {
                kept.push(token);
                self.tried.push((token, after));
            }
        }
        if let Some((&first, rest)) = way.split_first()
            && !kept.contains(&first)
        {
            kept.push(first);
            self.tried.push((first, rest.to_vec()));
        }
        self.way = Some(way);
        keep(logits, &kept);
        Ok(())
    }
}

impl Compiled {
    fn lexemes(&self) -> std::sync::MutexGuard<'_, Lexemes> {
        self.lexemes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The allowed tokens with the highest logits, the highest first, equal ones by their id.
fn likeliest(logits: &[f32], allowed: &SimpleVob, stops: &[u32]) -> Vec<u32> {
    let mut best: Vec<u32> = Vec::with_capacity(TRIED + 1);
    let logit = |token: u32| {
        logits
            .get(token as usize)
            .copied()
            .unwrap_or(f32::NEG_INFINITY)
    };
    for token in allowed.iter() {
        if best.len() == TRIED && logit(token) <= logit(best[TRIED - 1]) {
            continue;
        }
        if stops.contains(&token) || token as usize >= logits.len() {
            continue;
        }
        let place = best.partition_point(|&other| logit(other) >= logit(token));
        best.insert(place, token);
        best.truncate(TRIED);
    }
    best
}

/// Forbids all but a set of tokens.
fn forbid(logits: &mut [f32], allowed: &SimpleVob) {
    let words = allowed.as_slice();
    for (place, logits) in logits.chunks_mut(32).enumerate() {
        match words.get(place).copied().unwrap_or(0) {
            0 => logits.fill(f32::NEG_INFINITY),
            u32::MAX => {}
            bits => {
                for (bit, logit) in logits.iter_mut().enumerate() {
                    if bits >> bit & 1 == 0 {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }
}

/// Forbids all but a few tokens.
fn keep(logits: &mut [f32], kept: &[u32]) {
    let own: Vec<Option<f32>> = kept
        .iter()
        .map(|&token| logits.get(token as usize).copied())
        .collect();
    logits.fill(f32::NEG_INFINITY);
    for (&token, own) in kept.iter().zip(own) {
        if let (Some(logit), Some(own)) = (logits.get_mut(token as usize), own) {
            *logit = own;
        }
    }
}

fn too_complex(reason: &str) -> TuneError {
    let line = reason.lines().next().unwrap_or_default();
    TuneError::Schema {
        place: String::new(),
        reason: format!("an answer cannot be followed through it: {line}"),
    }
}
