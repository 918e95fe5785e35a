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
            _ => Ok(()),
        }
    }
}

/// Chooses the tokens of one answer.
pub(crate) struct Sampler<'a> {
    decoding: &'a Decoding,
    rng: ChaCha8Rng,
}

impl<'a> Sampler<'a> {
    pub(crate) fn new(decoding: &'a Decoding) -> Self {
        Self {
            decoding,
            rng: generator(decoding.seed, "sampling"),
        }
    }

    /// Chooses among `logits`, those of the tokenizer's tokens only; `seen` are the tokens so far.
    pub(crate) fn choose(&mut self, logits: &mut [f32], seen: &[u32]) -> u32 {
        self.penalise(logits, seen);
        if self.decoding.temperature == 0.0 {
            return likeliest(logits);
        }
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        // Ties go to the lower id, so that the order is the same everywhere.
        let by_logit = |a: &u32, b: &u32| {
            logits[*b as usize]
                .total_cmp(&logits[*a as usize])
                .then_with(|| a.cmp(b))
        };
        if self.decoding.top_k > 0 && self.decoding.top_k < order.len() {
            order.select_nth_unstable_by(self.decoding.top_k - 1, by_logit);
            order.truncate(self.decoding.top_k);
        }
        order.sort_unstable_by(by_logit);
        let top = f64::from(logits[order[0] as usize]);
        let weight =
            |id: &u32| ((f64::from(logits[*id as usize]) - top) / self.decoding.temperature).exp();
        let weights: Vec<f64> = order.iter().map(weight).collect();
        let total: f64 = weights.iter().sum();
        let mut mass = 0.0;
        let nucleus = weights.iter().position(|weight| {
            mass += weight;
            mass >= self.decoding.top_p * total
        });
        let last = nucleus.unwrap_or(order.len() - 1);
        let mut draw = self.rng.random::<f64>() * weights[..=last].iter().sum::<f64>();
        let hit = weights[..=last].iter().position(|weight| {
            draw -= weight;
            draw < 0.0
        });
        order[hit.unwrap_or(last)]
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
        let mut sampler = Sampler::new(decoding);
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
        assert_eq!(Sampler::new(&decoding).choose(&mut [1.0, 1.5], &[1, 1]), 0);
    }
}
