use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use serde::Serialize;

use crate::batches::Batches;
use crate::config::QwenConfig;
use crate::error::Result;
use crate::memory::{Checkpointing, Load, Memory, Trainable};
use crate::prepare::{Rows, Skipped};
use crate::session::Plan;

/// What a run would do and take, without doing it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TrainPlan {
    /// Rows to learn from.
    pub rows: usize,
    /// Rows of which nothing can be learnt, and why.
    pub skipped: Vec<Skipped>,
    /// Rows that are shortened to `max_length`.
    pub truncated: usize,
    /// Of these the ones that lose some of what is to be learnt, and not of their prompts alone.
    pub answers_cut: usize,
    /// Rows of the validation set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_rows: Option<usize>,
    /// Tokens of the longest row.
    pub longest_row: usize,
    /// Optimiser steps.
    pub steps: u64,
    /// Batches of all steps.
    pub batches: u64,
    /// Positions of all batches with padding, as other trainers count and compute them.
    pub tokens: u64,
    /// Positions without padding.
    pub unpadded_tokens: u64,
    /// Tokens to learn.
    pub supervised_tokens: u64,
    /// Numbers that learn.
    pub trainable_parameters: u64,
    /// Which layers are computed again.
    pub checkpointing: Checkpointing,
    /// Tokens of a part of a batch at most, where batches have to be cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_batch_tokens: Option<usize>,
    /// What is expected at the peak, in bytes by part.
    pub memory: Memory,
    /// The same in one number.
    pub memory_bytes: u64,
    /// What may be taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<u64>,
    /// Operations of all steps and evaluations.
    pub flops: f64,
    /// Operations a second of a plain matrix product, as measured now.
    pub measured_flops_per_second: f64,
    /// What all steps and evaluations are expected to take: from here,
    pub seconds_low: f64,
    /// to here.
    pub seconds_high: f64,
}

/// Sums over all batches of a run.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub(crate) struct Work {
    pub(crate) batches: u64,
    pub(crate) padded: u64,
    pub(crate) unpadded: u64,
    pub(crate) supervised: u64,
    /// Positions that are computed: nothing is after the last one to learn from.
    computed: f64,
    /// The sum of the squares of the rows' computed lengths, which attention grows with.
    squares: f64,
}

impl Work {
    /// Of the whole run.
    pub(crate) fn of(rows: &Rows, plan: &Plan) -> Self {
        let mut batches = Batches::new(rows.lengths(), plan);
        let mut work = Self::default();
        for batch in 0..plan.steps * plan.accumulation as u64 {
            let batch = batches.get(batch);
            if batch.is_empty() {
                break;
            }
            let (mut longest, mut unpadded) = (0, 0);
            for &row in &batch {
                let sample = &rows.samples[row];
                longest = longest.max(sample.length);
                unpadded += sample.length;
                work.supervised += sample.targets.len() as u64;
                work.computed += sample.ids.len() as f64;
                work.squares += (sample.ids.len() as f64).powi(2);
            }
            work.batches += 1;
            work.unpadded += unpadded as u64;
            work.padded += match plan.batch_tokens {
                Some(_) => unpadded,
                None => longest * batch.len(),
            } as u64;
        }
        work
    }

    /// Of one look at a validation set.
    pub(crate) fn of_validation(rows: &Rows) -> Self {
        let computed = || rows.samples.iter().map(|sample| sample.ids.len() as f64);
        Self {
            supervised: rows.supervised(),
            computed: computed().sum(),
            squares: computed().map(|length| length * length).sum(),
            ..Self::default()
        }
    }

    /// Operations of the forward pass: two for each weight that a position meets, and the two products of attention over
    /// half a square.
    pub(crate) fn forward(&self, config: &QwenConfig) -> f64 {
        self.layers(config) + self.attention(config) + self.head(config)
    }

    /// Operations of training: the forward pass, the way back to the inputs, for weights that learn the way to them, and
    /// what is computed twice. Attention's way back has five products for its two.
    pub(crate) fn training(
        &self,
        config: &QwenConfig,
        trainable: Trainable,
        checkpointing: Checkpointing,
    ) -> f64 {
        let layers = config.num_hidden_layers;
        let again = checkpointing.recomputed(layers) as f64 / layers as f64;
        let passes = if trainable.base.is_none() { 3.0 } else { 2.0 };
        let adapters = match trainable.base.is_none() {
            true => 0.0,
            false => 6.0 * trainable.numbers as f64 * self.computed,
        };
        self.layers(config) * (passes + again)
            + self.attention(config) * (3.5 + again)
            + self.head(config) * passes
            + adapters
    }

    fn layers(&self, config: &QwenConfig) -> f64 {
        let (d, inner) = (config.hidden_size, config.intermediate_size);
        let kv = config.num_key_value_heads * config.head_dim();
        let weights = 2 * d * d + 2 * d * kv + 3 * d * inner;
        2.0 * (config.num_hidden_layers * weights) as f64 * self.computed
    }

    fn attention(&self, config: &QwenConfig) -> f64 {
        2.0 * (config.num_hidden_layers * config.hidden_size) as f64 * self.squares
    }

    fn head(&self, config: &QwenConfig) -> f64 {
        2.0 * (config.vocab_size * config.hidden_size) as f64 * self.supervised as f64
    }
}

/// The largest batch and the largest row there can be: whatever is drawn, no batch is larger.
pub(crate) fn largest(rows: &Rows, plan: &Plan) -> (Load, Load) {
    let mut lengths: Vec<usize> = rows.samples.iter().map(|row| row.ids.len()).collect();
    let mut targets: Vec<usize> = rows.samples.iter().map(|row| row.targets.len()).collect();
    lengths.sort_unstable_by(|one, other| other.cmp(one));
    targets.sort_unstable_by(|one, other| other.cmp(one));
    let row = Load {
        tokens: lengths[0],
        supervised: targets[0],
    };
    let batch = match plan.batch_tokens {
        Some(tokens) => {
            let tokens = lengths.iter().sum::<usize>().min(tokens).max(row.tokens);
            let all: usize = targets.iter().sum();
            Load {
                tokens,
                supervised: all.min(tokens),
            }
        }
        None => Load {
            // A batch of an endless stream may hold a row twice.
            tokens: sum(&lengths, plan.batch),
            supervised: sum(&targets, plan.batch),
        },
    };
    (batch, row)
}

fn sum(sorted: &[usize], count: usize) -> usize {
    sorted.iter().cycle().take(count).sum()
}

/// What share of a plain matrix product's rate training reaches: its products are smaller, and norms, attention and the
/// optimiser lie between them. Measured between the two on models of 30 million to 0.5 billion weights.
pub(crate) const EFFICIENCY: (f64, f64) = (0.45, 0.9);

/// Operations a second of matrix products, measured for a third of a second.
pub(crate) fn measured_rate() -> Result<f64> {
    const SIDE: usize = 768;
    const SECONDS: f64 = 0.3;
    let x = Tensor::ones((SIDE, SIDE), DType::F32, &Device::Cpu)?;
    // The first one pays for the threads' start.
    x.matmul(&x)?;
    let begun = Instant::now();
    let mut products = 0;
    while begun.elapsed().as_secs_f64() < SECONDS {
        x.matmul(&x)?;
        products += 1;
    }
    let each = 2.0 * (SIDE as f64).powi(3);
    Ok(f64::from(products) * each / begun.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Sample;

    fn rows(lengths: &[usize]) -> Rows {
        let sample = |&length: &usize| Sample::new(vec![1; length], |at| at >= length / 2);
        Rows {
            samples: lengths.iter().map(sample).collect(),
            ..Rows::default()
        }
    }

    #[test]
    fn tokens_are_counted_with_and_without_padding() {
        let plan = Plan {
            steps: 2,
            batch: 2,
            accumulation: 1,
            epochs: Some(1),
            ..Plan::default()
        };
        let work = Work::of(&rows(&[4, 10, 6]), &plan);
        assert_eq!((work.batches, work.padded, work.unpadded), (2, 20 + 6, 20));
        assert_eq!(work.supervised, 2 + 5 + 3);
        assert_eq!(work.computed, 3.0 + 9.0 + 5.0);
        let packed = Plan {
            batch_tokens: Some(10),
            ..plan
        };
        let work = Work::of(&rows(&[4, 10, 6]), &packed);
        assert_eq!(work.padded, 14, "two batches: 4, and 10");
    }

    #[test]
    fn no_batch_is_larger_than_the_largest() {
        let rows = rows(&[4, 10, 6, 8]);
        let plan = Plan {
            batch: 2,
            ..Plan::default()
        };
        let (batch, row) = largest(&rows, &plan);
        assert_eq!((batch.tokens, row.tokens), (9 + 7, 9));
        let endless = Plan { batch: 9, ..plan };
        assert_eq!(largest(&rows, &endless).0.tokens, 2 * (9 + 7 + 5 + 3) + 9);
    }

    #[test]
    fn operations_are_those_of_the_known_figure() {
        // Qwen2.5-0.5B at 256 tokens a row, LoRA of rank 8: about 2.0 GFLOP a token, the head included at every position.
        let config = QwenConfig {
            vocab_size: 151_936,
            hidden_size: 896,
            intermediate_size: 4864,
            num_hidden_layers: 24,
            num_attention_heads: 14,
            num_key_value_heads: 2,
            max_position_embeddings: 32768,
            rms_norm_eps: 1e-6,
            rope_theta: 1e6,
            tie_word_embeddings: true,
            eos_token_ids: vec![151_645],
        };
        let lora = Trainable {
            numbers: 4_399_104,
            ranks: 56,
            scaled: 0,
            base: Some(1),
        };
        let work = Work {
            supervised: 256,
            computed: 256.0,
            squares: 256.0 * 256.0,
            ..Work::default()
        };
        let token = |checkpointing| work.training(&config, lora, checkpointing) / 256.0;
        let plain = token(Checkpointing::None);
        assert!((1.95e9..2.1e9).contains(&plain), "{plain:e}");
        assert!(token(Checkpointing::All) > plain + 0.7e9);
        assert!(work.forward(&config) / 256.0 < plain / 2.0 + 1e7);
    }
}
