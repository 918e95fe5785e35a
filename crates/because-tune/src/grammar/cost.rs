use std::time::{Duration, Instant};

use rand::Rng;
use serde_json::Value;

use crate::decoding::{Decoding, Sampler};
use crate::error::{Result, TuneError};
use crate::grammar::Grammars;
use crate::params::generator;
use crate::tokens::Vocabulary;

/// Answers to schemas without a model, for the benchmarks of this workspace: what holding to a schema costs alone.
#[derive(Debug)]
pub struct Masks {
    grammars: Grammars,
    size: usize,
    stops: Vec<u32>,
}

/// What one answer took.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct MaskCost {
    /// Tokens of the answer.
    pub tokens: usize,
    /// Until the schema was ready.
    pub ready: Duration,
    /// Forbidding tokens.
    pub mask: Duration,
    /// Going on after tokens.
    pub take: Duration,
    /// The longest for one token, both together.
    pub slowest: Duration,
}

impl Masks {
    /// From a `tokenizer.json` and its token that ends an answer.
    ///
    /// # Errors
    /// When the tokenizer cannot be read or is no byte-level BPE.
    pub fn new(tokenizer: &[u8], stop: &str) -> Result<Self> {
        let fault = |reason: String| TuneError::Tokenizer {
            path: "tokenizer.json".into(),
            reason,
        };
        let vocabulary = Vocabulary::parse(tokenizer).map_err(fault)?;
        let stop = vocabulary
            .special(stop)
            .ok_or_else(|| fault(format!("has no {stop}")))?;
        Ok(Self {
            grammars: Grammars::new(&vocabulary, &[stop])?,
            size: vocabulary.size(),
            stops: vec![stop],
        })
    }

    /// An answer of random tokens.
    ///
    /// # Errors
    /// When the schema cannot be kept or the room is too small.
    pub fn answer(&self, schema: &Value, room: usize, seed: u64) -> Result<MaskCost> {
        let begun = Instant::now();
        let mut grammar = self.grammars.json(schema)?;
        let mut cost = MaskCost {
            ready: begun.elapsed(),
            ..MaskCost::default()
        };
        let decoding = Decoding::greedy(room);
        let mut sampler = Sampler::new(decoding.clone());
        let mut rng = generator(seed, "masks");
        let noise: Vec<f32> = (0..2 * self.size).map(|_| rng.random()).collect();
        loop {
            let from = rng.random_range(0..self.size);
            let mut logits = noise[from..from + self.size].to_vec();
            let begun = Instant::now();
            grammar.mask(&mut logits, room - cost.tokens)?;
            let mask = begun.elapsed();
            let token = sampler.choose(&mut logits, &[]);
            let begun = Instant::now();
            grammar.take(token)?;
            let take = begun.elapsed();
            cost.tokens += 1;
            cost.mask += mask;
            cost.take += take;
            cost.slowest = cost.slowest.max(mask + take);
            if self.stops.contains(&token) {
                return Ok(cost);
            }
        }
    }
}
