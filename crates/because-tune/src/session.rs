use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::backprop::{Batch, Learn};
use crate::data::Sample;
use crate::error::{Result, TuneError};
use crate::memory::Checkpointing;
use crate::model::Qwen;
use crate::ops::Gradients;
use crate::optim::{AdamW, cosine_with_warmup};
use crate::params::{Parameters, permutation};

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
    /// them; padding itself is never computed here.
    pub tokens: u64,
    /// Tokens the loss is a mean over.
    pub supervised_tokens: u64,
    /// Wall-clock time of the step.
    pub seconds: f64,
}

/// How a session moves; what [`crate::TrainConfig`] and the training of a tiny base have in common.
#[derive(Debug, Clone)]
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
    pub(crate) checkpointing: Checkpointing,
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
    cancel: Option<Arc<AtomicBool>>,
    order: Option<(u64, Vec<usize>)>,
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
            optimizer: AdamW::new(parameters.elements() as usize, plan.decay),
            gradients: Gradients::zeros(parameters.elements() as usize),
            plan,
            model,
            parameters,
            unpadded: 0,
            cancel,
            order: None,
        }
    }

    /// Steps until the plan is done or the caller wants no more, `after` each of them.
    pub(crate) fn run(
        &mut self,
        samples: &[Sample],
        mut after: impl FnMut(&Self, StepRecord) -> Result<()>,
    ) -> Result<End> {
        while self.optimizer.step < self.plan.steps {
            if self
                .cancel
                .as_ref()
                .is_some_and(|flag| flag.load(Ordering::Relaxed))
            {
                return Ok(End::Cancelled);
            }
            let record = self.step(samples)?;
            after(self, record)?;
        }
        Ok(End::Done)
    }

    fn step(&mut self, samples: &[Sample]) -> Result<StepRecord> {
        let (begun, done) = (Instant::now(), self.optimizer.step);
        let rows: Vec<usize> = self.rows(done, samples.len());
        let batches: Vec<Vec<&Sample>> = rows
            .chunks(self.plan.batch)
            .map(|rows| rows.iter().map(|&row| &samples[row]).collect())
            .collect();
        // Over all micro-batches together: a mean of their means would weigh short answers more.
        let supervised: usize = rows.iter().map(|&row| samples[row].targets.len()).sum();
        self.gradients.clear();
        let mut loss = 0.0;
        for batch in &batches {
            loss += self.accumulate(batch, supervised as f64)?;
        }
        let (step, grad_norm) = (done + 1, self.gradients.clip(self.plan.clip));
        for (quantity, value) in [("loss", loss), ("gradient norm", grad_norm)] {
            if !value.is_finite() {
                return Err(TuneError::NotFinite {
                    quantity,
                    value,
                    step,
                });
            }
        }
        let learning_rate =
            self.plan.rate * cosine_with_warmup(done, self.plan.warmup, self.plan.steps);
        self.optimizer
            .step(self.parameters.flat(), self.gradients.flat(), learning_rate)?;
        self.unpadded = rows.iter().map(|&row| samples[row].length as u64).sum();
        let padded = |batch: &Vec<&Sample>| {
            batch.len() * batch.iter().map(|row| row.length).max().unwrap_or(0)
        };
        Ok(StepRecord {
            step,
            loss,
            learning_rate,
            grad_norm,
            tokens: batches.iter().map(padded).sum::<usize>() as u64,
            supervised_tokens: supervised as u64,
            seconds: begun.elapsed().as_secs_f64(),
        })
    }

    /// Adds the gradients of one micro-batch and gives its share of the loss.
    pub(crate) fn accumulate(&mut self, batch: &[&Sample], supervised: f64) -> Result<f64> {
        let mut learn = Learn {
            denominator: supervised,
            checkpointing: self.plan.checkpointing,
            gradients: &mut self.gradients,
        };
        let loss = self.model.learn(&Batch::new(batch), &mut learn)?;
        // A parameter without a gradient is out of reach of the loss, and that is never let pass: training on would leave
        // it as it is, without a word.
        let mut slots = self.parameters.slots();
        match slots.find(|&(_, slot, len)| !self.gradients.covers(slot, len)) {
            Some((name, _, _)) => Err(TuneError::NoGradient {
                parameter: name.to_owned(),
                step: self.optimizer.step + 1,
            }),
            None => Ok(loss / supervised),
        }
    }

    #[cfg(test)]
    pub(crate) fn gradients(&self) -> &Gradients {
        &self.gradients
    }

    /// The rows of a step: the next ones of an endless stream of all rows, in file order or in a new order each round.
    /// It depends on the number of the step alone, so a resumed run needs no other memory.
    fn rows(&mut self, step: u64, count: usize) -> Vec<usize> {
        let width = self.plan.batch * self.plan.accumulation;
        (0..width as u64)
            .map(|offset| {
                let at = step * width as u64 + offset;
                let (round, place) = (at / count as u64, (at % count as u64) as usize);
                if !self.plan.shuffle {
                    return place;
                }
                if self.order.as_ref().is_none_or(|(kept, _)| *kept != round) {
                    self.order = Some((round, permutation(count, self.plan.seed, round)));
                }
                self.order.as_ref().map_or(place, |(_, order)| order[place])
            })
            .collect()
    }
}
