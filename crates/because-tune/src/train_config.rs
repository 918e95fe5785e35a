use serde::{Deserialize, Serialize};

use crate::error::{Result, TuneError};
use crate::memory::{Checkpointing, setting};
use crate::session::Plan;

/// How a run moves. The defaults are those of common Qwen2.5 LoRA recipes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// How often each row is seen, unless `max_steps` says otherwise.
    pub epochs: u32,
    /// Optimiser steps; rows start over when they run out.
    pub max_steps: Option<u64>,
    /// Rows at once.
    pub batch_size: usize,
    /// Tokens at once, in place of a number of rows: a batch takes as many rows as fit into this many tokens, and a longer
    /// row is a batch of its own. Rows of a batch never see each other, and nothing is padded.
    pub batch_tokens: Option<usize>,
    /// Rows of like length come into the same batch: within so many batches at a time, drawn anew in each epoch, rows are
    /// sorted by length before they are cut into batches. 0 leaves them as they come.
    pub bucketing: usize,
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
    /// Tokens of a row at most, and never more than the model's context. A longer chat loses the end of its longest prompt
    /// text first, each turn keeping its opening words and its special tokens; only when no prompt text is left, the end of
    /// its answer, and first of all the token that says that it has ended. A longer row of tokens loses its end. A row of
    /// which nothing is left to learn is left out and told of.
    pub max_length: usize,
    /// A new order of the rows in each epoch, drawn from the seed; file order if false.
    pub shuffle: bool,
    /// What the adapters' start and the order of the rows are drawn from.
    pub seed: u64,
    /// Steps between two checkpoints; with 0 there is one only where a run is stopped.
    pub checkpoint_every: u64,
    /// How many of the newest checkpoints stay, the best evaluated state not counted.
    pub keep_checkpoints: usize,
    /// Steps between two evaluations on the validation set, the last step always being one; with 0 at the end of each epoch.
    pub evaluate_every: u64,
    /// Ends the run after so many evaluations in a row without an improvement by more than `min_delta`. The schedule of the
    /// learning rate keeps its full length.
    pub patience: Option<u32>,
    /// What a loss must be lower by to be an improvement in the eyes of `patience`, in nats.
    pub min_delta: f64,
    /// Which layers' intermediate values are computed again in the backward pass in place of being kept: `"auto"` (nothing
    /// here) for as few as memory allows, `"none"`, `"all"`, or a number `k` for one of every `k` layers. It changes time
    /// and memory, never a result.
    #[serde(with = "setting")]
    pub checkpointing: Option<Checkpointing>,
    /// Bytes that training may take, the weights included; 80 % of what the system has left where it is not said. A batch
    /// that does not fit is computed in parts; sums then come in another order, so a last place may differ.
    pub memory_limit: Option<u64>,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            epochs: 1,
            max_steps: None,
            batch_size: 4,
            batch_tokens: None,
            bucketing: 0,
            accumulation: 1,
            learning_rate: 2e-4,
            warmup_steps: None,
            weight_decay: 0.01,
            clip: 1.0,
            max_length: 1024,
            shuffle: true,
            seed: 0,
            checkpoint_every: 0,
            keep_checkpoints: 1,
            evaluate_every: 0,
            patience: None,
            min_delta: 0.0,
            checkpointing: None,
            memory_limit: None,
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
            _ if self.batch_tokens.is_some_and(|tokens| tokens < 2) => {
                fault("batch_tokens", "is below 2")
            }
            _ if self.bucketing > 1 << 16 => fault("bucketing", "is above 65536"),
            _ if self.keep_checkpoints == 0 => fault("keep_checkpoints", "is 0"),
            _ if self.patience == Some(0) => fault("patience", "is 0"),
            _ if self.checkpointing == Some(Checkpointing::Every(0)) => {
                fault("checkpointing", "is 0")
            }
            _ if !not_negative(self.min_delta) => fault("min_delta", "is not a number from 0"),
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

    /// Whether a run begun with these settings goes on as it would have with the others: those that only say what is
    /// kept, where to stop, and how memory is spent may differ.
    pub(crate) fn continues(&self, begun: &Self) -> bool {
        let same = Self {
            checkpoint_every: self.checkpoint_every,
            keep_checkpoints: self.keep_checkpoints,
            patience: self.patience,
            min_delta: self.min_delta,
            checkpointing: self.checkpointing,
            memory_limit: self.memory_limit,
            ..begun.clone()
        };
        // Both sides must have gone through a text, which may move a number by a last place.
        same.read_back() == self.read_back()
    }

    pub(crate) fn plan(&self, steps: u64) -> Plan {
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
            batch_tokens: self.batch_tokens,
            bucketing: self.bucketing,
            // Past the last row there is nothing more to take, unless the steps were counted by the caller.
            epochs: self.max_steps.is_none().then_some(self.epochs),
            checkpointing: Checkpointing::None,
            dropout: 0.0,
            micro_tokens: None,
        }
    }
}
