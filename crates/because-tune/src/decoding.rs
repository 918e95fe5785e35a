use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::error::{Result, TuneError};
use crate::params::generator;

/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Decoding {
    /// Tokens of an answer at most; fewer where the context ends before.
    pub max_tokens: usize,
    /// 0 takes the likeliest token; else logits are divided by it and a token is drawn.
    pub temperature: f64,
    /// Draw among the likeliest tokens that together have this probability.
    pub top_p: f64,
    /// Draw among this many likeliest tokens; 0 for all.
    pub top_k: usize,
    /// Divides the positive and multiplies the negative logits of tokens that occurred already, prompt included; 1 for
    /// none (Keskar et al. 2019, arXiv 1909.05858).
    pub repetition_penalty: f64,
    /// What draws are made from. Each prompt of a batch draws as if it were alone.
    pub seed: u64,
    /// Texts before which an answer ends, wherever the borders of its tokens are; not part of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
}

impl Default for Decoding {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            repetition_penalty: 1.0,
            seed: 0,
            stop: Vec::new(),
        }
    }
}

impl Decoding {
    /// The likeliest token each time.
    #[must_use]
    pub fn greedy(max_tokens: usize) -> Self {
        Self {
            max_tokens,
            ..Self::default()
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        let fault = |field, reason: &str| {
            Err(TuneError::Setting {
                field,
                reason: reason.to_owned(),
            })
        };
        match self {
            _ if self.max_tokens == 0 => fault("max_tokens", "is 0"),
            _ if !(self.temperature.is_finite() && self.temperature >= 0.0) => {
                fault("temperature", "is not a number from 0")
            }
            _ if !(self.top_p > 0.0 && self.top_p <= 1.0) => {
                fault("top_p", "is not above 0 and at most 1")
            }
            _ if !(self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0) => {
                fault("repetition_penalty", "is not a positive number")
            }
            _ if self.stop.iter().any(String::is_empty) => fault("stop", "has an empty text"),
            _ => Ok(()),
        }
    }
}

/// Chooses the tokens of one answer.
#[derive(Debug)]
pub(crate) struct Sampler {
    decoding: Decoding,
    rng: ChaCha8Rng,
}

impl Sampler {
    pub(crate) fn new(decoding: Decoding) -> Self {
        Self {
            rng: generator(decoding.seed, "sampling"),
            decoding,
        }
    }

    pub(crate) fn decoding(&self) -> &Decoding {
        &self.decoding
    }

    /// Chooses among `logits`, those of the tokenizer's tokens only; `seen` are the tokens so far.
    pub(crate) fn choose(&mut self, logits: &mut [f32], seen: &[u32]) -> u32 {
        self.penalise(logits, seen);
        if self.decoding.temperature == 0.0 {
            return likeliest(logits);
        }
        let mut order = Descending::new(logits);
        let most = match self.decoding.top_k {
            0 => logits.len(),
            top_k => top_k.min(logits.len()),
        };
        let top = f64::from(logits[order.at(0) as usize]);
        let temperature = self.decoding.temperature;
        let weight = |id: u32| ((f64::from(logits[id as usize]) - top) / temperature).exp();
        // Of all tokens the sum needs no order; the few that a nucleus or a draw reaches are sorted as they are met.
        let total: f64 = match most {
            most if most < logits.len() => (0..most).map(|place| weight(order.at(place))).sum(),
            _ => (0..most as u32).map(weight).sum(),
        };
        let within = match self.decoding.top_p {
            top_p if top_p < 1.0 => {
                let mut mass = 0.0;
                let reached = (0..most).find(|&place| {
                    mass += weight(order.at(place));
                    mass >= top_p * total
                });
                reached.map_or(total, |_| mass)
            }
            _ => total,
        };
        let mut draw = self.rng.random::<f64>() * within;
        let mut last = 0;
        for place in 0..most {
            last = order.at(place);
            draw -= weight(last);
            if draw < 0.0 {
                break;
            }
        }
        last
    }

    fn penalise(&self, logits: &mut [f32], seen: &[u32]) {
        let penalty = self.decoding.repetition_penalty as f32;
        if penalty == 1.0 {
            return;
        }
        let mut seen = seen.to_vec();
        seen.sort_unstable();
        seen.dedup();
        for id in seen {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = if *logit > 0.0 {
                    *logit / penalty
                } else {
                    *logit * penalty
                };
            }
        }
    }
}

/// Ids by falling logit, sorted as far as they are asked for. Ties go to the lower id, so that the order is the same
/// everywhere.
struct Descending<'a> {
    logits: &'a [f32],
    ids: Vec<u32>,
    sorted: usize,
}

impl<'a> Descending<'a> {
    fn new(logits: &'a [f32]) -> Self {
        Self {
            logits,
            ids: (0..logits.len() as u32).collect(),
            sorted: 0,
        }
    }

    fn at(&mut self, place: usize) -> u32 {
        const FIRST: usize = 64;
        let logits = self.logits;
        let by_logit = |a: &u32, b: &u32| {
            logits[*b as usize]
                .total_cmp(&logits[*a as usize])
                .then_with(|| a.cmp(b))
        };
        while place >= self.sorted {
            let rest = &mut self.ids[self.sorted..];
            let next = (self.sorted * 4).max(FIRST).min(rest.len());
            if next < rest.len() {
                rest.select_nth_unstable_by(next - 1, by_logit);
            }
            rest[..next].sort_unstable_by(by_logit);
            self.sorted += next;
        }
        self.ids[place]
    }
}

fn likeliest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(decoding: &Decoding, logits: &[f32], count: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(decoding.clone());
        (0..count)
            .map(|_| sampler.choose(&mut logits.to_vec(), &[]))
            .collect()
    }

    #[test]
    fn draws_follow_the_probabilities_and_the_seed() {
        let decoding = Decoding {
            temperature: 1.0,
            seed: 5,
            ..Decoding::default()
        };
        let logits = [0.0, 3f32.ln(), f32::NEG_INFINITY];
        let all = draws(&decoding, &logits, 4000);
        let ones = all.iter().filter(|&&id| id == 1).count();
        assert!(
            (2900..3100).contains(&ones),
            "{ones} of 4000 at probability 3/4"
        );
        assert!(!all.contains(&2));
        assert_eq!(all, draws(&decoding, &logits, 4000));
    }

    #[test]
    fn top_k_and_top_p_leave_the_likeliest() {
        let logits = [1.0, 3.0, 2.0, 0.0];
        let only = |decoding: Decoding| {
            let mut ids = draws(&decoding, &logits, 300);
            ids.sort_unstable();
            ids.dedup();
            ids
        };
        let warm = Decoding {
            temperature: 1.0,
            ..Decoding::default()
        };
        assert_eq!(
            only(Decoding {
                top_k: 2,
                ..warm.clone()
            }),
            [1, 2]
        );
        assert_eq!(
            only(Decoding {
                top_p: 0.6,
                ..warm.clone()
            }),
            [1]
        );
        assert_eq!(only(Decoding { top_p: 0.7, ..warm }), [1, 2]);
    }

    #[test]
    fn the_penalty_turns_away_from_what_was_said() {
        let decoding = Decoding {
            repetition_penalty: 2.0,
            ..Decoding::default()
        };
        assert_eq!(Sampler::new(decoding).choose(&mut [1.0, 1.5], &[1, 1]), 0);
    }
}
