use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::backprop::{Batch, Learn};
use crate::batches::{Batches, by_tokens};
use crate::data::Sample;
use crate::error::{Result, TuneError};
use crate::memory::Checkpointing;
use crate::model::Qwen;
use crate::ops::Gradients;
use crate::optim::{AdamW, cosine_with_warmup};
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
    /// The share of an adapter's inputs that is dropped.
    pub(crate) dropout: f64,
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
    /// Rows of this step that have gone through the model.
    rows_seen: u64,
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
            optimizer: AdamW::new(parameters.elements() as usize, plan.decay),
            gradients: Gradients::zeros(parameters.elements() as usize),
            plan,
            model,
            parameters,
            unpadded: 0,
            ends_epoch: false,
            lines: Vec::new(),
            finished: false,
            rows_seen: 0,
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
        self.rows_seen = 0;
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
            .step(self.parameters.flat(), self.gradients.flat(), learning_rate)?;
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
        let mut learn = Learn {
            denominator: supervised,
            checkpointing: self.plan.checkpointing,
            gradients: &mut self.gradients,
        };
        let batch = match self.plan.dropout {
            0.0 => Batch::new(batch),
            rate => {
                // Drawn from the row's place in the step, whatever micro-batch it came in.
                let step = self.optimizer.step;
                let key = |place| stable_hash(&[self.plan.seed, step, place]);
                let first = self.rows_seen;
                self.rows_seen += batch.len() as u64;
                let keys: Vec<u64> = (first..self.rows_seen).map(key).collect();
                Batch::with_dropout(batch, rate, &keys)
            }
        };
        let loss = self.model.learn(&batch, &mut learn)?;
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

    /// The mean loss over all supervised tokens of some rows, taken at most so many tokens at a time. It moves nothing.
    pub(crate) fn evaluate(&self, samples: &[Sample], at_once: usize) -> Result<f64> {
        let supervised: usize = samples.iter().map(|sample| sample.targets.len()).sum();
        let rows: Vec<&Sample> = samples.iter().collect();
        let mut loss = 0.0;
        for part in by_tokens(&rows, at_once, |row| row.ids.len()) {
            loss += self.model.loss(&Batch::new(part))? / supervised as f64;
        }
        Ok(loss)
    }

    #[cfg(test)]
    pub(crate) fn gradients(&self) -> &Gradients {
        &self.gradients
    }
}

/// FNV-1a over some numbers, mixed by multiplication: stable for ever.
fn stable_hash(numbers: &[u64]) -> u64 {
    let bytes = numbers.iter().flat_map(|number| number.to_le_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::base::BaseFolder;
    use crate::learner::{Learner, all_learning};
    use crate::lora::LoraConfig;
    use crate::ops::values;
    use crate::params::{generator, normal};

    fn base() -> BaseFolder {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        BaseFolder::open(&data.join("parity/base")).unwrap()
    }

    fn plan() -> Plan {
        Plan {
            steps: 3,
            rate: 0.1,
            batch: 2,
            accumulation: 1,
            ..Plan::default()
        }
    }

    /// Runs a session that has five steps behind it, which must say that this parameter got no gradient and move none.
    fn assert_names(unused: &str, model: &Qwen, parameters: &Parameters) {
        let samples: Vec<Sample> = (0..4)
            .map(|row| Sample::new((row..row + 9).collect(), |_| true))
            .collect();
        for checkpointing in [Checkpointing::None, Checkpointing::All] {
            let plan = Plan {
                steps: 9,
                checkpointing,
                ..plan()
            };
            let before = values(parameters.flat()).unwrap();
            let mut session = Session::new(plan, model, parameters, None);
            session.optimizer.step = 5;
            let mut steps = 0;
            let ended = session.run(&samples, |_, _| {
                steps += 1;
                Ok(())
            });
            let error = ended.unwrap_err();
            assert!(
                matches!(
                    &error,
                    TuneError::NoGradient { parameter, step: 6 } if parameter == unused
                ),
                "{unused}: {error}"
            );
            assert!(!error.is_bad_input());
            assert_eq!(
                error.to_string(),
                format!("step 6: parameter {unused} received no gradient")
            );
            assert_eq!((steps, values(parameters.flat()).unwrap()), (0, before));
        }
    }

    #[test]
    fn a_weight_that_no_layer_reads_is_named() {
        let config = base().config;
        let tensors = config.tensors();
        for place in [0, 1, tensors.len() / 2, tensors.len()] {
            let mut tensors = tensors.clone();
            tensors.insert(place, ("model.idle.weight".to_owned(), vec![5]));
            let parameters = Parameters::new(tensors.into_iter().map(|(name, shape)| {
                let count = shape.iter().product();
                let values = normal(&mut generator(1, &name), count, 0.1);
                (name, shape, values)
            }));
            let parameters = parameters.unwrap();
            let model = all_learning(&config, &parameters);
            assert_names("model.idle.weight", &model, &parameters);
        }
    }

    #[test]
    fn an_adapter_that_is_not_in_the_model_is_named() {
        let base = base();
        let all = LoraConfig::default();
        let parameters = Learner::Lora(all.clone()).initial(&base, 1).unwrap();
        let part = |change: fn(&mut LoraConfig)| {
            let mut lora = all.clone();
            change(&mut lora);
            let mut model = base.model().unwrap();
            lora.attach(&mut model, &parameters, true).unwrap();
            model
        };
        type Change = fn(&mut LoraConfig);
        let cases: [(Change, &str); 4] = [
            (
                |lora| lora.layers_to_transform = Some(vec![0]),
                "model.layers.1.self_attn.q_proj.lora_A.weight",
            ),
            (
                |lora| lora.layers_to_transform = Some(vec![1]),
                "model.layers.0.self_attn.q_proj.lora_A.weight",
            ),
            (
                |lora| lora.exclude_modules = Some(["layers.0.self_attn.o_proj"].into()),
                "model.layers.0.self_attn.o_proj.lora_A.weight",
            ),
            (
                |lora| lora.exclude_modules = Some(["layers.1.mlp.down_proj"].into()),
                "model.layers.1.mlp.down_proj.lora_A.weight",
            ),
        ];
        for (change, unused) in cases {
            assert_names(unused, &part(change), &parameters);
        }
        // All of them are there, but one of them does not learn.
        let mut model = part(|_| ());
        let up = &mut model.layers[1].groups[2].all[1];
        up.lora.as_mut().unwrap().b.slot = None;
        let unused = "model.layers.1.mlp.up_proj.lora_B.weight";
        assert_names(unused, &model, &parameters);
    }
}
