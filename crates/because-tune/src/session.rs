use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::batches::{Batches, by_tokens};
use crate::data::Sample;
use crate::error::{Result, TuneError};
use crate::memory::Checkpointing;
use crate::model::{Qwen, Tokens};
use crate::optim::{AdamW, Gradients, cosine_with_warmup};
use crate::params::Parameters;

/// One optimiser step, as a line of the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StepRecord {
    /// Counted from one.
    pub step: u64,
    /// Mean cross-entropy over the step's supervised tokens, in nats.
    pub loss: f64,
    /// The rate of this step.
    pub learning_rate: f64,
    /// Euclidean norm of all gradients before clipping.
    pub grad_norm: f64,
    /// Positions of the step's batches, each row counted as long as the longest of its batch, as other trainers count
    /// them; padding itself is never computed here. Batches by tokens have none anywhere, and count their tokens.
    pub tokens: u64,
    /// Tokens the loss is a mean over.
    pub supervised_tokens: u64,
    /// Wall-clock time of the step.
    pub seconds: f64,
}

/// How a session moves; what [`crate::TrainConfig`] and the training of a tiny base have in common.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plan {
    pub(crate) steps: u64,
    pub(crate) warmup: u64,
    pub(crate) rate: f64,
    pub(crate) decay: f64,
    pub(crate) clip: f64,
    pub(crate) batch: usize,
    pub(crate) accumulation: usize,
    pub(crate) shuffle: bool,
    pub(crate) seed: u64,
    pub(crate) batch_tokens: Option<usize>,
    pub(crate) bucketing: usize,
    /// How often each row is seen; without it rows start over for ever.
    pub(crate) epochs: Option<u32>,
    pub(crate) checkpointing: Checkpointing,
    /// Tokens of a part of a batch at most: a step's gradient does not depend on how the step is cut.
    pub(crate) micro_tokens: Option<usize>,
}

/// A model, what of it learns, and how far it has come.
pub(crate) struct Session<'a> {
    pub(crate) plan: Plan,
    pub(crate) model: &'a Qwen,
    pub(crate) parameters: &'a Parameters,
    pub(crate) optimizer: AdamW,
    gradients: Gradients,
    /// Positions of the last step without padding.
    pub(crate) unpadded: u64,
    /// Whether an epoch ended with the last step.
    pub(crate) ends_epoch: bool,
    /// Lines of the last step's rows.
    pub(crate) lines: Vec<u64>,
    finished: bool,
    cancel: Option<Arc<AtomicBool>>,
}

/// How a session ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    Done,
    Cancelled,
}

impl<'a> Session<'a> {
    pub(crate) fn new(
        plan: Plan,
        model: &'a Qwen,
        parameters: &'a Parameters,
        cancel: Option<Arc<AtomicBool>>,
    ) -> Self {
        Self {
            optimizer: AdamW::new(parameters, plan.decay),
            gradients: Gradients::zeros(parameters),
            plan,
            model,
            parameters,
            unpadded: 0,
            ends_epoch: false,
            lines: Vec::new(),
            finished: false,
            cancel,
        }
    }

    /// Steps until the plan is done or the caller wants no more, `after` each of them.
    pub(crate) fn run(
        &mut self,
        samples: &[Sample],
        mut after: impl FnMut(&mut Self, StepRecord) -> Result<()>,
    ) -> Result<End> {
        let lengths = samples.iter().map(|sample| sample.length).collect();
        let mut batches = Batches::new(lengths, &self.plan);
        while self.optimizer.step < self.plan.steps && !self.finished {
            if self
                .cancel
                .as_ref()
                .is_some_and(|flag| flag.load(Ordering::Relaxed))
            {
                return Ok(End::Cancelled);
            }
            let record = self.step(samples, &mut batches)?;
            after(self, record)?;
        }
        Ok(End::Done)
    }

    /// Makes this step the last.
    pub(crate) fn finish(&mut self) {
        self.finished = true;
    }

    fn step(&mut self, samples: &[Sample], batches: &mut Batches) -> Result<StepRecord> {
        let (begun, done) = (Instant::now(), self.optimizer.step);
        let width = self.plan.accumulation as u64;
        let (first, next) = (done * width, (done + 1) * width);
        self.ends_epoch = batches.epochs_done(next) > batches.epochs_done(first);
        let batches: Vec<Vec<&Sample>> = (first..next)
            .map(|batch| batches.get(batch).into_iter().map(|row| &samples[row]))
            .map(Iterator::collect)
            .collect();
        let rows = || batches.iter().flatten();
        self.lines = rows()
            .map(|row| row.line)
            .filter(|&line| line > 0)
            .collect();
        self.unpadded = rows().map(|row| row.length as u64).sum();
        // Over all micro-batches together: a mean of their means would weigh short answers more.
        let supervised: usize = rows().map(|row| row.targets.len()).sum();
        let limit = self.plan.micro_tokens.unwrap_or(usize::MAX);
        self.gradients.clear();
        let mut loss = 0.0;
        for batch in &batches {
            for part in by_tokens(batch, limit, |row| row.ids.len()) {
                loss += self.accumulate(part, supervised as f64)?;
            }
        }
        let (step, grad_norm) = (done + 1, self.gradients.clip(self.plan.clip));
        for (quantity, value) in [("loss", loss), ("gradient norm", grad_norm)] {
            if !value.is_finite() {
                return Err(TuneError::NotFinite {
                    quantity,
                    value,
                    step,
                    lines: std::mem::take(&mut self.lines),
                });
            }
        }
        let learning_rate =
            self.plan.rate * cosine_with_warmup(done, self.plan.warmup, self.plan.steps);
        self.optimizer
            .step(self.parameters, &self.gradients, learning_rate)?;
        let padded = |batch: &Vec<&Sample>| {
            batch.len() * batch.iter().map(|row| row.length).max().unwrap_or(0)
        };
        Ok(StepRecord {
            step,
            loss,
            learning_rate,
            grad_norm,
            tokens: match self.plan.batch_tokens {
                Some(_) => self.unpadded,
                None => batches.iter().map(padded).sum::<usize>() as u64,
            },
            supervised_tokens: supervised as u64,
            seconds: begun.elapsed().as_secs_f64(),
        })
    }

    /// Adds the gradients of one micro-batch and gives its share of the loss.
    pub(crate) fn accumulate(&mut self, batch: &[&Sample], supervised: f64) -> Result<f64> {
        let (tokens, targets) = packed(batch);
        let loss = self.model.loss(&tokens, &targets, supervised)?;
        let value = f64::from(loss.to_scalar::<f32>()?);
        self.gradients
            .accumulate(self.parameters, loss.backward()?, self.optimizer.step + 1)?;
        Ok(value)
    }

    /// The mean loss over all supervised tokens of some rows, taken at most so many tokens at a time. It moves nothing.
    pub(crate) fn evaluate(&self, samples: &[Sample], at_once: usize) -> Result<f64> {
        let supervised: usize = samples.iter().map(|sample| sample.targets.len()).sum();
        let rows: Vec<&Sample> = samples.iter().collect();
        let mut loss = 0.0;
        for part in by_tokens(&rows, at_once, |row| row.ids.len()) {
            loss += self.loss(part, supervised as f64)?;
        }
        Ok(loss)
    }

    /// A micro-batch's share of the loss, without gradients.
    fn loss(&self, batch: &[&Sample], supervised: f64) -> Result<f64> {
        let (tokens, targets) = packed(batch);
        let loss = self.model.loss(&tokens, &targets, supervised)?;
        Ok(f64::from(loss.to_scalar::<f32>()?))
    }

    #[cfg(test)]
    pub(crate) fn gradients(&self) -> &Gradients {
        &self.gradients
    }
}

/// Rows one after the other, and what is to be learnt where in them.
fn packed(batch: &[&Sample]) -> (Tokens, Vec<(u32, u32)>) {
    let tokens = Tokens::new(batch.iter().map(|sample| sample.ids.as_slice()));
    let targets = batch
        .iter()
        .zip(tokens.segments.iter())
        .flat_map(|(sample, segment)| {
            sample
                .targets
                .iter()
                .map(move |&(at, token)| (at + segment.start as u32, token))
        })
        .collect();
    (tokens, targets)
}
