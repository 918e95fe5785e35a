use std::collections::HashSet;

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::error::{Result, TuneError};
use crate::ops::{boltzmann, highest};
use crate::params::generator;

/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Decoding {
    /// Tokens of an answer at most; fewer where the context ends before.
    pub max_tokens: usize,
    /// 0 takes the likeliest token; else logits are divided by it and a token is drawn.
    pub temperature: f64,
    /// Draw among the fewest likeliest tokens that together have this probability at least.
    pub top_p: f64,
    /// Draw among this many likeliest tokens, and those as likely as the last of them; 0 for all. The penalty, `temperature`,
    /// `top_k` and `top_p` act in this order, each as in transformers.
    pub top_k: usize,
    /// Divides the positive and multiplies the negative logits of tokens that occurred already, prompt included; 1 for
    /// none (Keskar et al. 2019, arXiv 1909.05858), 0.01 to 100.
    pub repetition_penalty: f64,
    /// What draws are made from. Each prompt of a batch draws as if it were alone.
    pub seed: u64,
    /// Texts before which an answer ends, wherever the borders of its tokens are; not part of it. Of several the one that is
    /// complete first counts. At most 16 of 1024 bytes each.
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
            // Beyond, logits of f32 come to nothing or to infinity.
            _ if !(0.01..=100.0).contains(&self.repetition_penalty) => {
                fault("repetition_penalty", "is not from 0.01 to 100")
            }
            _ if self.stop.iter().any(String::is_empty) => fault("stop", "has an empty text"),
            // They are looked for at each token of each row.
            _ if self.stop.len() > 16 => fault("stop", "has more than 16 texts"),
            _ if self.stop.iter().any(|stop| stop.len() > 1024) => {
                fault("stop", "has a text of more than 1024 bytes")
            }
            _ => Ok(()),
        }
    }
}

/// Chooses the tokens of one answer.
#[derive(Debug)]
pub(crate) struct Sampler {
    decoding: Decoding,
    rng: ChaCha8Rng,
    /// The first `noted` tokens of prompt and answer, each once.
    said: HashSet<u32>,
    noted: usize,
    ids: Vec<u32>,
    weights: Vec<f32>,
}

impl Sampler {
    pub(crate) fn new(decoding: Decoding) -> Self {
        Self {
            rng: generator(decoding.seed, "sampling"),
            decoding,
            said: HashSet::new(),
            noted: 0,
            ids: Vec::new(),
            weights: Vec::new(),
        }
    }

    pub(crate) fn decoding(&self) -> &Decoding {
        &self.decoding
    }

    /// Chooses among `logits`, those of the tokenizer's tokens only; `seen` are the tokens so far, to which each call may
    /// have added. Where there is nothing to choose the logit of the result is not finite.
    pub(crate) fn choose(&mut self, logits: &mut [f32], seen: &[u32]) -> u32 {
        self.penalise(logits, seen);
        let first = likeliest(logits);
        let temperature = self.decoding.temperature;
        let top = logits[first as usize];
        if temperature == 0.0 || !top.is_finite() {
            return first;
        }
        let all = boltzmann(logits, top, temperature, &mut self.weights);
        if all.is_nan() {
            return logits.iter().position(|x| x.is_nan()).unwrap_or(0) as u32;
        }
        let near = top - (NEAR * temperature) as f32;
        let mut order = Descending::new(logits, near, &mut self.ids);
        let weights = &self.weights;
        let weight = |id: u32| f64::from(weights[id as usize]);
        let most = match self.decoding.top_k {
            0 => logits.len(),
            top_k => order.reach(top_k),
        };
        // Of all tokens the sum needs no order; the few that a nucleus or a draw reaches are sorted as they are met.
        let total = match most {
            most if most < logits.len() => (0..most).map(|place| weight(order.at(place))).sum(),
            _ => all,
        };
        let (mut kept, mut within) = (most, total);
        if self.decoding.top_p < 1.0 {
            let mut mass = 0.0;
            let reached = (0..most).find(|&place| {
                mass += weight(order.at(place));
                mass >= self.decoding.top_p * total
            });
            if let Some(place) = reached {
                (kept, within) = (place + 1, mass);
            }
        }
        let mut draw = self.rng.random::<f64>() * within;
        let mut last = first;
        for place in 0..kept {
            let id = order.at(place);
            // Rounding may leave a little of the draw; what is impossible stays so.
            if weight(id) == 0.0 {
                break;
            }
            last = id;
            draw -= weight(id);
            if draw < 0.0 {
                break;
            }
        }
        last
    }

    fn penalise(&mut self, logits: &mut [f32], seen: &[u32]) {
        let penalty = self.decoding.repetition_penalty as f32;
        if penalty == 1.0 {
            return;
        }
        self.said.extend(seen.get(self.noted..).unwrap_or_default());
        self.noted = seen.len();
        for &id in &self.said {
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

/// Tokens within so many temperatures of the likeliest are sorted first: nearly every draw ends among them.
const NEAR: f64 = 10.0;

/// Ids by falling logit, sorted as far as they are asked for. Ties go to the lower id, so that the order is the same
/// everywhere.
struct Descending<'a> {
    logits: &'a [f32],
    /// The ids of logits from here on come first.
    near: f32,
    ids: &'a mut Vec<u32>,
    sorted: usize,
}

impl<'a> Descending<'a> {
    fn new(logits: &'a [f32], near: f32, ids: &'a mut Vec<u32>) -> Self {
        ids.clear();
        ids.extend((0..logits.len() as u32).filter(|&id| logits[id as usize] >= near));
        Self {
            logits,
            near,
            ids,
            sorted: 0,
        }
    }

    fn at(&mut self, place: usize) -> u32 {
        const FIRST: usize = 64;
        let (logits, near) = (self.logits, self.near);
        let by_logit = |a: &u32, b: &u32| {
            logits[*b as usize]
                .total_cmp(&logits[*a as usize])
                .then_with(|| a.cmp(b))
        };
        while place >= self.sorted {
            if self.sorted == self.ids.len() {
                let far = (0..logits.len() as u32).filter(|&id| logits[id as usize] < near);
                self.ids.extend(far);
            }
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

    /// How many have a logit not less than the one at place `count - 1`, of those that are possible.
    fn reach(&mut self, count: usize) -> usize {
        let mut count = count.min(self.logits.len());
        let last = self.logits[self.at(count - 1) as usize];
        while last > f32::NEG_INFINITY
            && count < self.logits.len()
            && self.logits[self.at(count) as usize] == last
        {
            count += 1;
        }
        count
    }
}

fn likeliest(logits: &[f32]) -> u32 {
    let top = highest(logits);
    logits.iter().position(|&x| x == top).unwrap_or(0) as u32
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

    /// What can be drawn, with its share of many draws.
    fn shares(decoding: &Decoding, logits: &[f32], seen: &[u32]) -> Vec<(u32, f64)> {
        const DRAWS: usize = 40_000;
        let mut sampler = Sampler::new(decoding.clone());
        let mut counts = std::collections::BTreeMap::new();
        for _ in 0..DRAWS {
            *counts
                .entry(sampler.choose(&mut logits.to_vec(), seen))
                .or_insert(0) += 1;
        }
        let share = |(id, count)| (id, f64::from(count) / DRAWS as f64);
        counts.into_iter().map(share).collect()
    }

    /// By transformers 5.23.0 (torch 2.15.0): `RepetitionPenaltyLogitsProcessor`, `TemperatureLogitsWarper`,
    /// `TopKLogitsWarper` and `TopPLogitsWarper`, one after the other, then a softmax in double precision.
    #[test]
    fn what_can_be_drawn_is_what_transformers_leaves() {
        const SOME: &[f32] = &[
            -2.41, 0.12, 2.33, -3.0, -3.19, -0.04, -4.26, -1.05, -0.2, 0.02, -0.89, -3.0,
        ];
        const TIES: &[f32] = &[1.0, 3.0, 2.0, 2.0, 0.5, 2.0, -1.0, 3.0];
        type Case = (
            &'static [f32],
            &'static [u32],
            [f64; 2],
            (usize, f64),
            &'static [(u32, f64)],
        );
        // Logits, tokens so far, penalty and temperature, top k and top p, and what is left.
        let cases: [Case; 6] = [
            (
                SOME,
                &[2, 5, 5, 9],
                [1.3, 0.7],
                (6, 0.9),
                &[(1, 0.073822), (2, 0.804863), (5, 0.05774), (9, 0.063574)],
            ),
            (
                SOME,
                &[],
                [1.0, 1.5],
                (0, 0.8),
                &[
                    (1, 0.124907),
                    (2, 0.545062),
                    (5, 0.112269),
                    (8, 0.10091),
                    (9, 0.116851),
                ],
            ),
            (
                SOME,
                &[0, 1, 3],
                [2.5, 1.0],
                (4, 1.0),
                &[(1, 0.078837), (2, 0.772307), (5, 0.072196), (9, 0.07666)],
            ),
            (
                TIES,
                &[],
                [1.0, 1.0],
                (3, 1.0),
                &[
                    (1, 0.322202),
                    (2, 0.118532),
                    (3, 0.118532),
                    (5, 0.118532),
                    (7, 0.322202),
                ],
            ),
            (TIES, &[], [1.0, 2.0], (4, 0.5), &[(1, 0.5), (7, 0.5)]),
            (TIES, &[1], [1.2, 1.0], (0, 0.05), &[(7, 1.0)]),
        ];
        for (logits, seen, [repetition_penalty, temperature], (top_k, top_p), expected) in cases {
            let decoding = Decoding {
                temperature,
                top_p,
                top_k,
                repetition_penalty,
                ..Decoding::default()
            };
            let drawn = shares(&decoding, logits, seen);
            assert_eq!(drawn.len(), expected.len(), "{drawn:?} {expected:?}");
            for ((id, share), (expected_id, probability)) in drawn.iter().zip(expected) {
                assert_eq!(id, expected_id);
                assert!(
                    (share - probability).abs() < 0.012,
                    "{drawn:?} {expected:?}"
                );
            }
        }
    }

    #[test]
    fn a_draw_reaches_what_is_far_from_the_likeliest() {
        let mut logits = vec![-11.0; 5000];
        logits[4000] = 0.0;
        logits[17] = f32::NEG_INFINITY;
        let warm = Decoding {
            temperature: 1.0,
            ..Decoding::default()
        };
        let drawn = draws(&warm, &logits, 300);
        assert!(!drawn.contains(&17));
        let likeliest = drawn.iter().filter(|&&id| id == 4000).count() as f64 / 300.0;
        let expected = 1.0 / (1.0 + 4998.0 * (-11f64).exp());
        assert!((likeliest - expected).abs() < 0.1, "{likeliest} {expected}");
        assert!(likeliest < 1.0);
    }

    #[test]
    fn logits_that_are_no_numbers_are_shown_to_the_caller() {
        let infinity = f32::INFINITY;
        for temperature in [0.0, 0.7] {
            let decoding = Decoding {
                temperature,
                ..Decoding::default()
            };
            for logits in [
                [f32::NAN; 3],
                [-f32::NAN; 3],
                [-infinity; 3],
                [0.0, infinity, 1.0],
            ] {
                let id = draws(&decoding, &logits, 1)[0];
                assert!(!logits[id as usize].is_finite(), "{logits:?}");
            }
        }
        let warm = Decoding {
            temperature: 1.0,
            ..Decoding::default()
        };
        assert_eq!(draws(&warm, &[1.0, -f32::NAN, 2.0], 1), [1]);
    }

    #[test]
    fn a_setting_that_cannot_be_followed_is_named() {
        let plain = Decoding::default;
        for (decoding, said) in [
            (
                Decoding {
                    repetition_penalty: 1e-50,
                    ..plain()
                },
                "repetition_penalty: is not from 0.01 to 100",
            ),
            (
                Decoding {
                    stop: vec!["x".into(); 17],
                    ..plain()
                },
                "stop: has more than 16 texts",
            ),
            (
                Decoding {
                    stop: vec!["x".repeat(1025)],
                    ..plain()
                },
                "stop: has a text of more than 1024 bytes",
            ),
        ] {
            assert_eq!(decoding.check().unwrap_err().to_string(), said);
        }
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
