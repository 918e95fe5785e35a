use serde::{Deserialize, Serialize};

use crate::error::{Result, TuneError};
use crate::session::Plan;

/// How a LoRA run moves. The defaults are those of common Qwen2.5 LoRA recipes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// How often each row is seen, unless `max_steps` says otherwise.
    pub epochs: u32,
    /// Optimiser steps; rows start over when they run out.
    pub max_steps: Option<u64>,
    /// Rows at once.
    pub batch_size: usize,
    /// Batches for one step. The loss is normalised by the supervised tokens of all of them together.
    pub accumulation: usize,
    /// The highest rate, reached after the warm-up.
    pub learning_rate: f64,
    /// Steps of a straight rise from 0; half a cosine down to 0 follows. Where it is not said: 3 % of all steps, the share
    /// of the QLoRA recipe, and at least 2.
    pub warmup_steps: Option<u64>,
    /// Decoupled weight decay: 0.01, PyTorch's default.
    pub weight_decay: f64,
    /// Bound of the global gradient norm; 0 for none.
    pub clip: f64,
    /// Tokens of a row at most, and never more than the model's context.
    pub max_length: usize,
    /// A new order of the rows in each epoch, drawn from the seed; file order if false.
    pub shuffle: bool,
    /// What the adapters' start and the order of the rows are drawn from.
    pub seed: u64,
    /// Steps between two checkpoints; with 0 there is one only where a run is stopped.
    pub checkpoint_every: u64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            epochs: 1,
            max_steps: None,
            batch_size: 4,
            accumulation: 1,
            learning_rate: 2e-4,
            warmup_steps: None,
            weight_decay: 0.01,
            clip: 1.0,
            max_length: 1024,
            shuffle: true,
            seed: 0,
            checkpoint_every: 0,
        }
    }
}

impl TrainConfig {
    pub(crate) fn check(&self) -> Result<()> {
        let fault = |field, reason: &str| {
            Err(TuneError::Setting {
                field,
                reason: reason.to_owned(),
            })
        };
        let not_negative = |number: f64| number.is_finite() && number >= 0.0;
        match self {
            _ if !(1..=1 << 16).contains(&self.batch_size) => {
                fault("batch_size", "is not between 1 and 65536")
            }
            _ if !(1..=1 << 16).contains(&self.accumulation) => {
                fault("accumulation", "is not between 1 and 65536")
            }
            _ if self.max_length < 2 => fault("max_length", "is below 2"),
            _ if self.max_steps == Some(0) => fault("max_steps", "is 0"),
            _ if self.max_steps.is_none() && self.epochs == 0 => fault("epochs", "is 0"),
            _ if !not_negative(self.learning_rate) => {
                fault("learning_rate", "is not a number from 0")
            }
            _ if !not_negative(self.weight_decay) => {
                fault("weight_decay", "is not a number from 0")
            }
            _ if !not_negative(self.clip) => fault("clip", "is not a number from 0"),
            _ => Ok(()),
        }
    }

    /// These settings as a checkpoint gives them back.
    pub(crate) fn read_back(&self) -> Self {
        let text = serde_json::to_string(self).expect("a plain struct is serialisable");
        serde_json::from_str(&text).expect("what was just written can be read")
    }

    /// The last step of the last epoch is filled up with rows from the beginning.
    pub(crate) fn steps(&self, rows: usize) -> u64 {
        let width = (self.batch_size * self.accumulation) as u64;
        self.max_steps
            .unwrap_or((rows as u64 * u64::from(self.epochs)).div_ceil(width))
    }

    pub(crate) fn plan(&self, rows: usize) -> Plan {
        let steps = self.steps(rows);
        Plan {
            steps,
            warmup: self.warmup_steps.unwrap_or((steps * 3 / 100).max(2)),
            rate: self.learning_rate,
            decay: self.weight_decay,
            clip: self.clip,
            batch: self.batch_size,
            accumulation: self.accumulation,
            shuffle: self.shuffle,
            seed: self.seed,
            checkpointing: crate::memory::Checkpointing::None,
        }
    }
}
