mod cache;
mod chart;
mod cost;
mod lexemes;
mod nesting;
mod rules;
mod schema;
#[cfg(test)]
mod tests;
mod tokens;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{SimpleVob, TokEnv};
use llguidance::{ParserFactory, TokenParser};
use serde_json::Value;

pub use cost::{MaskCost, Masks};

use crate::error::{Result, TuneError};
use crate::grammar::cache::Cache;
use crate::grammar::chart::Chart;
use crate::grammar::lexemes::{Fuel, Lexemes};
use crate::grammar::nesting::{DEEPEST, Nesting};
use crate::grammar::rules::{MOST_TOKENS, Rules};
use crate::tokens::Vocabulary;

/// Tokens that are tried where only those may be chosen that leave room for the end.
const TRIED: usize = 16;
/// Tokens of all the ways to the end that are written out for one token; where they are long, fewer are tried.
const WRITTEN: usize = 1 << 16;
/// States of one schema's automaton; the compiler's own bound would be half a gigabyte.
const MOST_STATES: usize = 100_000;
/// The compiler calls itself once for each field of an object and for each reference behind a reference. What
/// [`schema::check`] lets pass has room in this many bytes of stack, of which only those are used that are needed.
const STACK: usize = 64 << 20;

/// Holds answers of one model to JSON schemas. Made once per model; clones share what is compiled.
#[derive(Clone)]
pub(crate) struct Grammars(Arc<Shared>);

struct Shared {
    factory: ParserFactory,
    tokens: TokEnv,
    stops: Vec<u32>,
    /// The most lexemes that one token may begin.
    begun: usize,
    compiled: Mutex<Cache>,
}

/// A compiled schema, before the first token.
struct Compiled {
    parser: TokenParser,
    rules: Rules,
    lexemes: Mutex<Lexemes>,
    chart: Chart,
    /// Tokens of the smallest answer, without the one that ends it.
    smallest: Vec<u32>,
    /// What [`Compiled::weigh`] said last.
    weight: AtomicUsize,
}

/// What one answer to a schema may go on with.
///
/// Before each token [`Grammar::mask`] forbids what cannot come; after it [`Grammar::take`] goes on. As long as there is
/// room, everything may come that the schema allows. When the end is near, of the likeliest tokens only those may that
/// leave room for a way to the end, and there is always one; so an answer ends with a stop token before its room does. The
/// same keeps an answer from more brackets within one another than JSON readers take.
pub(crate) struct Grammar {
    shared: Arc<Shared>,
    compiled: Arc<Compiled>,
    parser: TokenParser,
    chart: Chart,
    nesting: Nesting,
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
        let tokens = tokens::ByteTokens::shared(vocabulary, stops).map_err(fault)?;
        let mut factory =
            ParserFactory::new_simple(&tokens).map_err(|error| fault(error.to_string()))?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        factory.limits_mut().max_lexer_states = MOST_STATES;
        Ok(Self(Arc::new(Shared {
            factory,
            stops: stops.to_vec(),
            begun: tokens::most_begun(tokens.tok_trie()),
            tokens,
            compiled: Mutex::new(Cache::default()),
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
            way: Some(compiled.smallest.clone()),
            compiled,
            nesting: Nesting::default(),
            tried: Vec::new(),
            begun: false,
            stopped: false,
        })
    }

    fn compiled(&self, schema: &Value) -> Result<Arc<Compiled>> {
        schema::check(schema)?;
        // Not the value: equal ones may have their fields in another order, and answers keep to that order.
        let text = schema.to_string();
        let known = self.kept().find(&text)?;
        if let Some(known) = known {
            if known.weigh() <= cache::MOST_BYTES {
                return Ok(known);
            }
            self.kept().remove(&known);
        }
        // Others look their schemas up meanwhile.
        let compiled = self.0.compile_apart(schema);
        match compiled.map_err(|error| too_complex(&format!("no thread to compile it: {error}")))? {
            Ok(compiled) => Ok(self.kept().keep(text, Arc::new(compiled))),
            Err(fault) => {
                self.kept().refuse(text, &fault);
                Err(fault)
            }
        }
    }

    fn kept(&self) -> MutexGuard<'_, Cache> {
        let kept = self.0.compiled.lock();
        kept.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Compiles where there is enough stack.
    fn compile_apart(&self, schema: &Value) -> std::io::Result<Result<Compiled>> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("because-schema".into())
                .stack_size(STACK)
                .spawn_scoped(scope, || self.compile(schema))?;
            let compiled = thread.join();
            Ok(compiled.unwrap_or_else(|_| Err(too_complex("the compiler fails at it"))))
        })
    }

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
        let smallest = chart.ending(&rules, &mut lexemes, trie, MOST_TOKENS + 1);
        if let Some(reason) = lexemes.fault() {
            return Err(too_complex(&reason));
        }
        let smallest =
            smallest.ok_or_else(|| fault("no JSON fits it, or none that could be found".into()))?;
        if Nesting::default().read(&trie.decode_raw(&smallest)) > DEEPEST {
            return Err(fault(format!(
                "all that fits it has more than {DEEPEST} brackets within one another"
            )));
        }
        let compiled = Compiled {
            parser,
            rules,
            lexemes: Mutex::new(lexemes),
            chart,
            smallest,
            weight: AtomicUsize::new(0),
        };
        compiled.weigh();
        Ok(compiled)
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
        let mut allowed = guarded(|| self.parser.compute_mask())?
            .map_err(|error| too_complex(&error.to_string()))?;
        let may_end = self.parser.is_accepting();
        for &stop in &self.shared.stops {
            allowed.set(stop as usize, may_end);
        }
        if self.has_room(room) && !self.nesting.is_deep() {
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
        self.begun = true;
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
        let taken = guarded(|| self.parser.consume_token(token))?;
        taken.map_err(|error| wrong(&error.to_string()))?;
        self.parser
            .check_stop()
            .map_err(|error| too_complex(&error.to_string()))?;
        let bytes = trie.token(token);
        let mut lexemes = self.compiled.lexemes(Fuel::TOKEN);
        let read = self.chart.read(&self.compiled.rules, &mut lexemes, bytes);
        if let Some(reason) = lexemes.fault() {
            return Err(too_complex(&reason));
        }
        if !read {
            return Err(wrong("the rules of the schema do not have it"));
        }
        self.nesting.read(bytes);
        Ok(())
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
        // Where the parser fails, the next mask says so.
        let forced = guarded(|| self.parser.compute_ff_tokens()).unwrap_or_default();
        if forced.is_empty() || forced.len() >= room {
            return Vec::new();
        }
        // They may be more tokens than the way to the end would have for the same text.
        let compiled = Arc::clone(&self.compiled);
        let trie = self.shared.tokens.tok_trie();
        let mut lexemes = compiled.lexemes(Fuel::TOKEN);
        let bytes = trie.decode_raw(&forced);
        let room = room - forced.len();
        let after = self
            .chart
            .ending_after(&compiled.rules, &mut lexemes, trie, &bytes, room);
        match after {
            Some(_) => forced,
            None => Vec::new(),
        }
    }

    /// Whether every token that the schema allows leaves room for an end, one that ends the answer included.
    fn has_room(&self, room: usize) -> bool {
        let rules = &self.compiled.rules;
        let most = self.chart.most(rules).zip(rules.step);
        let most = most.map(|(most, step)| most + self.shared.begun * step);
        let farthest = most.into_iter().chain(rules.depth).min();
        farthest.is_some_and(|farthest| farthest + 2 <= room)
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
        let mut lexemes = compiled.lexemes(Fuel::TOKEN);
        let found = self.chart.ending(&compiled.rules, &mut lexemes, trie, room);
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
        lexemes.refuel(Fuel::TRIED);
        let tried = TRIED.min(WRITTEN / (way.len() + 1)).max(1);
        for token in likeliest(logits, allowed, &self.shared.stops, tried) {
            let bytes = trie.token(token);
            let room = room - 1;
            let after = self
                .chart
                .ending_after(&compiled.rules, &mut lexemes, trie, bytes, room);
            let shallow = |after: &Vec<u32>| {
                let mut nesting = self.nesting;
                let deepest = nesting.read(bytes);
                deepest.max(nesting.read(&trie.decode_raw(after))) <= DEEPEST
            };
            if let Some(after) = after.filter(shallow) {
                kept.push(token);
                self.tried.push((token, after));
            }
        }
        if let Some(reason) = lexemes.fault() {
            return Err(too_complex(&reason));
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

impl Drop for Grammar {
    /// What its automatons have grown to meanwhile.
    fn drop(&mut self) {
        self.compiled.weigh();
    }
}

impl Compiled {
    fn lexemes(&self, fuel: Fuel) -> MutexGuard<'_, Lexemes> {
        let mut lexemes = self.lexemes.lock().unwrap_or_else(PoisonError::into_inner);
        lexemes.refuel(fuel);
        lexemes
    }

    /// About how many bytes of memory its automatons take, which answers add to. All where one of them is lost or full: it
    /// ran out of what it may spend, and all answers of the schema have it in common.
    fn weigh(&self) -> usize {
        // The parser panics where another has within it.
        let stats = catch_unwind(AssertUnwindSafe(|| self.parser.parser.lexer_stats()));
        let lexemes = self.lexemes.lock().unwrap_or_else(PoisonError::into_inner);
        let weight = match stats {
            Ok(stats) if !stats.error && !lexemes.is_full() => {
                lexemes::bytes_of(&stats) + lexemes.bytes()
            }
            _ => usize::MAX,
        };
        self.weight.store(weight, Ordering::Relaxed);
        weight
    }
}

/// What the parser says; one that panics at a schema ends one answer, and not the thread of all.
fn guarded<T>(parse: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(parse)).map_err(|_| too_complex("the parser fails at it"))
}

/// The allowed tokens with the highest logits, the highest first, equal ones by their id.
fn likeliest(logits: &[f32], allowed: &SimpleVob, stops: &[u32], count: usize) -> Vec<u32> {
    let mut best: Vec<u32> = Vec::with_capacity(count + 1);
    let logit = |token: u32| {
        logits
            .get(token as usize)
            .copied()
            .unwrap_or(f32::NEG_INFINITY)
    };
    for token in allowed.iter() {
        if best.len() == count && logit(token) <= logit(best[count - 1]) {
            continue;
        }
        if stops.contains(&token) || token as usize >= logits.len() {
            continue;
        }
        let place = best.partition_point(|&other| logit(other) >= logit(token));
        best.insert(place, token);
        best.truncate(count);
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
