use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::adapter;
use crate::base::BaseFolder;
use crate::batches::Batches;
use crate::checkpoint::{self, Checkpoints, State, Totals};
use crate::data::TrainSet;
use crate::error::{Result, TuneError};
use crate::evaluation::History;
use crate::full;
use crate::learner::{Learner, check_same};
use crate::lora::LoraConfig;
use crate::memory::{self, Fit, Load};
use crate::params::Parameters;
use crate::prepare::Rows;
use crate::session::Plan;
use crate::train_config::TrainConfig;
use crate::train_log::{TrainEvent, TrainSummary};
use crate::train_plan::{EFFICIENCY, TrainPlan, Work, largest, measured_rate};
use crate::training::Training;

/// Trains LoRA adapters on a base folder, or the whole of a small base. The work is blocking and uses all cores; the
/// result does not depend on them.
///
/// ```no_run
/// use because_tune::{LoraConfig, TrainConfig, TrainEvent, TrainSet, Trainer};
/// use std::path::Path;
///
/// let data = TrainSet::read(Path::new("sft.train.jsonl"))?;
/// let summary = Trainer::new(TrainConfig { max_steps: Some(100), ..TrainConfig::default() })
///     .lora(LoraConfig { rank: 16, alpha: 32.0, ..LoraConfig::default() })
///     .valid(TrainSet::read(Path::new("sft.valid.jsonl"))?)
///     .run(Path::new("Qwen2.5-0.5B-Instruct"), &data, Path::new("adapter"), &mut |event| match event {
///         TrainEvent::Step(record) => eprintln!("{}: {:.4}", record.step, record.loss),
///         TrainEvent::Evaluated(seen) => eprintln!("{}: {:.4} on validation rows", seen.step, seen.loss),
///         _ => {}
///     })?;
/// assert_eq!(summary.steps, 100);
/// # Ok::<(), because_tune::TuneError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Trainer {
    config: TrainConfig,
    lora: Option<LoraConfig>,
    full: bool,
    init_adapter: Option<PathBuf>,
    valid: Option<TrainSet>,
    resume: bool,
    log: Option<PathBuf>,
    cancel: Option<Arc<AtomicBool>>,
}

impl Trainer {
    /// A run with these settings and default adapters.
    #[must_use]
    pub fn new(config: TrainConfig) -> Self {
        Self {
            config,
            lora: None,
            full: false,
            init_adapter: None,
            valid: None,
            resume: false,
            log: None,
            cancel: None,
        }
    }

    /// How the adapters look. An initial adapter brings its own settings, which these then must equal.
    #[must_use]
    pub fn lora(mut self, lora: LoraConfig) -> Self {
        self.lora = Some(lora);
        self
    }

    /// Trains all weights, without adapters, and writes a complete base folder: for small models, since weights,
    /// gradients and the optimiser take 16 bytes a weight. A rate of 1e-5 is common; that of LoRA is far too high.
    #[must_use]
    pub fn full(mut self) -> Self {
        self.full = true;
        self
    }

    /// Starts from the adapter in this folder, not from a drawn one.
    #[must_use]
    pub fn init_adapter(mut self, folder: impl Into<PathBuf>) -> Self {
        self.init_adapter = Some(folder.into());
        self
    }

    /// Evaluates on these rows on the way, and writes what was best on them. Nothing is learnt from them.
    #[must_use]
    pub fn valid(mut self, data: TrainSet) -> Self {
        self.valid = Some(data);
        self
    }

    /// Goes on from the newest checkpoint in the folder of the result, if there is one.
    #[must_use]
    pub fn resume(mut self, resume: bool) -> Self {
        self.resume = resume;
        self
    }

    /// Writes each step, and each evaluation, as a line of JSON to this file.
    #[must_use]
    pub fn log(mut self, file: impl Into<PathBuf>) -> Self {
        self.log = Some(file.into());
        self
    }

    /// Stops before the next step once the flag is set: with a checkpoint, and [`TuneError::Cancelled`].
    #[must_use]
    pub fn cancel(mut self, flag: Arc<AtomicBool>) -> Self {
        self.cancel = Some(flag);
        self
    }

    /// Trains and writes the adapter, or with [`Trainer::full`] the base, into `out`; checkpoints go into folders of their
    /// own in it. `on_event` is called on the way.
    ///
    /// # Errors
    /// When a setting, the base, a row or a checkpoint is at fault (the error says where), when nothing is left to learn,
    /// when memory does not suffice, when a loss is not a number, when the caller stopped the run, or when a file cannot
    /// be written.
    pub fn run(
        &self,
        base: &Path,
        data: &TrainSet,
        out: &Path,
        on_event: &mut dyn FnMut(&TrainEvent),
    ) -> Result<TrainSummary> {
        let mut prepared = self.prepare(base, data)?;
        if self.full {
            full::check_place(out, &prepared.folder)?;
        }
        let start = self.start(&mut prepared, out)?;
        prepared.tell(on_event);
        let model = prepared
            .learner
            .model(&prepared.folder, &start.parameters)?;
        Training {
            config: &self.config,
            folder: &prepared.folder,
            learner: &prepared.learner,
            rows: &prepared.rows,
            valid: prepared.valid.as_ref(),
            plan: prepared.plan,
            fit: prepared.fit,
            at_once: prepared.largest.tokens,
            out,
            log: self.log.as_deref(),
            cancel: self.cancel.clone(),
        }
        .run(&model, start, on_event)
    }

    /// What [`Trainer::run`] would do with these rows and what it would take, without doing it: rows, tokens, steps,
    /// memory and time. It reads the rows as tokens and measures the machine for a third of a second.
    ///
    /// # Errors
    /// When [`Trainer::run`] would fail before its first step.
    pub fn plan(&self, base: &Path, data: &TrainSet) -> Result<TrainPlan> {
        let prepared = self.prepare(base, data)?;
        let (rows, plan, fit) = (&prepared.rows, &prepared.plan, prepared.fit);
        let config = &prepared.folder.config;
        let trainable = prepared.learner.trainable(&prepared.folder)?;
        let work = Work::of(rows, plan);
        let evaluation = prepared.valid.as_ref().map_or(0.0, |valid| {
            Work::of_validation(valid).forward(config) * self.evaluations(&prepared) as f64
        });
        let flops = work.training(config, trainable, fit.checkpointing) + evaluation;
        let rate = measured_rate()?;
        Ok(TrainPlan {
            rows: rows.samples.len(),
            skipped: rows.skipped.clone(),
            truncated: rows.truncated,
            answers_cut: rows.answers_cut,
            valid_rows: prepared.valid.as_ref().map(|valid| valid.samples.len()),
            longest_row: rows.lengths().into_iter().max().unwrap_or(0),
            steps: plan.steps,
            batches: work.batches,
            tokens: work.padded,
            unpadded_tokens: work.unpadded,
            supervised_tokens: work.supervised,
            trainable_parameters: trainable.numbers,
            checkpointing: fit.checkpointing,
            micro_batch_tokens: fit.micro_tokens,
            memory: fit.memory,
            memory_bytes: fit.memory.total(),
            memory_limit: prepared.limit,
            flops,
            measured_flops_per_second: rate,
            seconds_low: flops / (rate * EFFICIENCY.1),
            seconds_high: flops / (rate * EFFICIENCY.0),
        })
    }

    /// How often the validation set is looked at.
    fn evaluations(&self, prepared: &Prepared) -> u64 {
        let (steps, every) = (prepared.plan.steps, self.config.evaluate_every);
        match every {
            0 => {
                let mut batches = Batches::new(prepared.rows.lengths(), &prepared.plan);
                let taken = steps * prepared.plan.accumulation as u64;
                batches.epochs_done(taken).max(1)
            }
            every => steps.div_ceil(every),
        }
    }

    /// Everything that is known before a weight is read.
    fn prepare(&self, base: &Path, data: &TrainSet) -> Result<Prepared> {
        let config = &self.config;
        config.check()?;
        self.check_together()?;
        let folder = BaseFolder::open(base)?;
        let rows = Rows::read(&folder, data, config, "data")?;
        let valid = self
            .valid
            .as_ref()
            .map(|valid| Rows::read(&folder, valid, config, "valid"))
            .transpose()?;
        let learner = match (&self.init_adapter, self.full) {
            (_, true) => Learner::All,
            (Some(path), _) => {
                let (found, _) = adapter::read(&adapter::check_folder(path)?, &folder.config)?;
                if let Some(asked) = &self.lora {
                    asked.check()?;
                    check_same(asked, &found, &folder.config, path)?;
                }
                Learner::Lora(found)
            }
            _ => Learner::Lora(self.lora.clone().unwrap_or_default()),
        };
        let trainable = learner.trainable(&folder)?;
        let steps = match config.max_steps {
            Some(steps) => steps,
            None => Batches::new(rows.lengths(), &config.plan(0))
                .count(config.epochs)
                .div_ceil(config.accumulation as u64),
        };
        let mut plan = config.plan(steps);
        let largest = largest(&rows, &plan);
        // A fifth is left to the allocator's holes and to everybody else.
        let left = || memory::available().map(|bytes| bytes / 5 * 4);
        let limit = config.memory_limit.or_else(left);
        let asked = config.checkpointing;
        let fit = memory::fit(&folder.config, trainable, largest, asked, limit)?;
        (plan.checkpointing, plan.micro_tokens) = (fit.checkpointing, fit.micro_tokens);
        if let Learner::Lora(lora) = &learner {
            if lora.dora && lora.dropout > 0.0 {
                // PEFT drops the inputs of the frozen weight too then, which would cost its product twice.
                let reason = "does not go with dora: set it to 0".to_owned();
                return Err(TuneError::Setting {
                    field: "dropout",
                    reason,
                });
            }
            plan.dropout = lora.dropout;
        }
        Ok(Prepared {
            trainable_parameters: trainable.numbers,
            largest: largest.0,
            folder,
            rows,
            valid,
            learner,
            plan,
            fit,
            limit,
        })
    }

    fn check_together(&self) -> Result<()> {
        let fault = |field, reason: &str| {
            Err(TuneError::Setting {
                field,
                reason: reason.to_owned(),
            })
        };
        let config = &self.config;
        if self.full && self.init_adapter.is_some() {
            return fault("init_adapter", "does not go with training all weights");
        }
        if self.full && self.lora.is_some() {
            return fault("lora", "does not go with training all weights");
        }
        match self.valid {
            None if config.evaluate_every > 0 => {
                fault("evaluate_every", "is set, but there is no validation set")
            }
            None if config.patience.is_some() => {
                fault("patience", "is set, but there is no validation set")
            }
            _ => Ok(()),
        }
    }

    /// What a run begins with: a checkpoint's parameters, an adapter's, or new ones.
    fn start(&self, prepared: &mut Prepared, out: &Path) -> Result<Start> {
        let keep = self.config.keep_checkpoints;
        let data = prepared.rows.fingerprint();
        let valid = prepared.valid.as_ref().map(Rows::fingerprint);
        let newest = match self.resume {
            true => checkpoint::newest(out)?,
            false => None,
        };
        if let Some(path) = newest {
            let state = checkpoint::read_state(&path)?;
            self.check_resumable(&path, &state, prepared, (&data, valid.as_ref()))?;
            let parameters = prepared.learner.read(&path, &prepared.folder.config)?;
            let decay = prepared.plan.decay;
            let optimizer = checkpoint::read_optimizer(&path, &parameters, state.step, decay)?;
            prepared.cut_as(state.micro_tokens)?;
            return Ok(Start {
                checkpoints: Checkpoints::resumed(out, keep, &state)?,
                parameters,
                optimizer: Some(optimizer),
                state,
            });
        }
        let learner = &prepared.learner;
        let parameters = match &self.init_adapter {
            Some(path) => adapter::read(path, &prepared.folder.config)?.1,
            None => learner.initial(&prepared.folder, self.config.seed)?,
        };
        let state = State {
            step: 0,
            steps: prepared.plan.steps,
            config: self.config.clone(),
            lora: match learner {
                Learner::Lora(lora) => Some(lora.clone()),
                Learner::All => None,
            },
            data,
            valid,
            micro_tokens: prepared.plan.micro_tokens,
            evaluations: History::default(),
            totals: Totals::default(),
        };
        Ok(Start {
            checkpoints: Checkpoints::new(out, keep),
            parameters,
            optimizer: None,
            state,
        })
    }

    fn check_resumable(
        &self,
        path: &Path,
        state: &State,
        prepared: &Prepared,
        (data, valid): (&String, Option<&String>),
    ) -> Result<()> {
        let fault = |reason: &str| {
            Err(TuneError::Checkpoint {
                path: path.to_owned(),
                reason: reason.to_owned(),
            })
        };
        let same_learner = matches!(prepared.learner, Learner::Lora(_)) == state.lora.is_some();
        if !self.config.continues(&state.config)
            || !same_learner
            || state.steps != prepared.plan.steps
        {
            return fault(
                "belongs to a run with other settings; resume with the same ones or train into another folder",
            );
        }
        if state.data != *data {
            return fault(
                "belongs to a run on other rows; resume with the same ones or train into another folder",
            );
        }
        if state.valid.as_ref() != valid {
            return fault(
                "belongs to a run with another validation set; resume with the same one or train into another folder",
            );
        }
        Ok(())
    }
}

/// What is known before a weight is read.
struct Prepared {
    folder: BaseFolder,
    rows: Rows,
    valid: Option<Rows>,
    learner: Learner,
    plan: Plan,
    fit: Fit,
    limit: Option<u64>,
    trainable_parameters: u64,
    /// The largest batch.
    largest: Load,
}

impl Prepared {
    /// Cuts batches as a run that is gone on with did, whatever memory there is now.
    fn cut_as(&mut self, micro_tokens: Option<usize>) -> Result<()> {
        let load = Load {
            tokens: micro_tokens.unwrap_or(self.largest.tokens),
            supervised: self
                .largest
                .supervised
                .min(micro_tokens.unwrap_or(usize::MAX)),
        };
        let trainable = self.learner.trainable(&self.folder)?;
        let (config, checkpointing) = (&self.folder.config, self.fit.checkpointing);
        self.fit.memory = memory::estimate(config, trainable, load, checkpointing);
        self.fit.micro_tokens = micro_tokens;
        self.plan.micro_tokens = micro_tokens;
        Ok(())
    }

    fn tell(&self, on_event: &mut dyn FnMut(&TrainEvent)) {
        for row in &self.rows.skipped {
            on_event(&TrainEvent::Skipped {
                line: row.line,
                reason: row.reason.clone(),
            });
        }
        for row in self.valid.iter().flat_map(|valid| &valid.skipped) {
            on_event(&TrainEvent::Warning {
                reason: format!("validation set, line {}: {}", row.line, row.reason),
            });
        }
        on_event(&TrainEvent::Started {
            rows: self.rows.samples.len(),
            skipped: self.rows.skipped.len(),
            truncated: self.rows.truncated,
            steps: self.plan.steps,
            trainable_parameters: self.trainable_parameters,
        });
        on_event(&TrainEvent::Fitted {
            memory: self.fit.memory,
            limit: self.limit,
            checkpointing: self.plan.checkpointing,
            micro_batch_tokens: self.plan.micro_tokens,
        });
    }
}

/// What a run begins with.
pub(crate) struct Start {
    pub(crate) state: State,
    pub(crate) parameters: Parameters,
    /// Of a run that goes on.
    pub(crate) optimizer: Option<crate::optim::AdamW>,
    pub(crate) checkpoints: Checkpoints,
}
