use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::adapter;
use crate::base::BaseFolder;
use crate::chat::Chat;
use crate::checkpoint::{self, State, Totals};
use crate::data::{Row, Sample, TrainSet};
use crate::error::{Result, TuneError};
use crate::lora::LoraConfig;
use crate::model::Qwen;
use crate::params::Parameters;
use crate::session::{End, Session, StepRecord};
use crate::train_config::TrainConfig;
use crate::train_log::{Log, TrainEvent, TrainSummary, peak_rss_bytes};

/// Trains LoRA adapters on a base folder. The work is blocking and uses all cores; the result does not depend on them.
///
/// ```no_run
/// use because_tune::{LoraConfig, TrainConfig, TrainEvent, TrainSet, Trainer};
/// use std::path::Path;
///
/// let data = TrainSet::read(Path::new("sft.train.jsonl"))?;
/// let summary = Trainer::new(TrainConfig { max_steps: Some(100), ..TrainConfig::default() })
///     .lora(LoraConfig { rank: 16, alpha: 32.0, ..LoraConfig::default() })
///     .run(Path::new("Qwen2.5-0.5B-Instruct"), &data, Path::new("adapter"), &mut |event| {
///         if let TrainEvent::Step(record) = event {
///             eprintln!("{}: {:.4}", record.step, record.loss);
///         }
///     })?;
/// assert_eq!(summary.steps, 100);
/// # Ok::<(), because_tune::TuneError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Trainer {
    config: TrainConfig,
    lora: Option<LoraConfig>,
    init_adapter: Option<PathBuf>,
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
            init_adapter: None,
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

    /// Starts from the adapter in this folder, not from a drawn one.
    #[must_use]
    pub fn init_adapter(mut self, folder: impl Into<PathBuf>) -> Self {
        self.init_adapter = Some(folder.into());
        self
    }

    /// Goes on from the newest checkpoint in the folder of the result, if there is one.
    #[must_use]
    pub fn resume(mut self, resume: bool) -> Self {
        self.resume = resume;
        self
    }

    /// Writes each step as a line of JSON to this file.
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

    /// Trains and writes the adapter into `out`; checkpoints go into folders of their own in it. `on_event` is called on
    /// the way.
    ///
    /// # Errors
    /// When a setting, the base, a row or a checkpoint is at fault (the error says where), when nothing is left to learn,
    /// when a loss is not a number, when the caller stopped the run, or when a file cannot be written.
    pub fn run(
        &self,
        base: &Path,
        data: &TrainSet,
        out: &Path,
        on_event: &mut dyn FnMut(&TrainEvent),
    ) -> Result<TrainSummary> {
        self.config.check()?;
        let folder = BaseFolder::open(base)?;
        let rows = self.rows(&folder, data, on_event)?;
        let mut model = folder.model()?;
        let start = self.start(&folder, &rows.samples, out)?;
        start.lora.attach(&mut model, &start.parameters.tracked());
        on_event(&TrainEvent::Started {
            rows: rows.samples.len(),
            skipped: rows.skipped,
            truncated: rows.truncated,
            steps: self.config.steps(rows.samples.len()),
            trainable_parameters: start.parameters.elements(),
        });
        self.train(&folder, &model, &rows, start, out, on_event)
    }

    fn train(
        &self,
        folder: &BaseFolder,
        model: &Qwen,
        rows: &Rows,
        start: Start,
        out: &Path,
        on_event: &mut dyn FnMut(&TrainEvent),
    ) -> Result<TrainSummary> {
        let base = folder.named();
        let plan = self.config.plan(rows.samples.len());
        let (steps, decay) = (plan.steps, plan.decay);
        let mut session = Session::new(plan, model, &start.parameters, self.cancel.clone());
        let mut state = State {
            step: 0,
            steps,
            config: self.config.clone(),
            lora: start.lora.clone(),
            data: start.data,
            totals: Totals::default(),
        };
        if let Some((checkpoint, kept)) = &start.checkpoint {
            session.optimizer =
                checkpoint::read_optimizer(checkpoint, &start.parameters, kept.step, decay)?;
            (state.step, state.totals) = (kept.step, kept.totals);
        }
        let mut log = self
            .log
            .as_ref()
            .map(|path| Log::open(path, state.step))
            .transpose()?;
        let save = |state: &State, session: &Session<'_>| -> Result<PathBuf> {
            checkpoint::write(out, &base, state, &start.parameters, &session.optimizer)
        };
        let end = session.run(&rows.samples, |session, record| {
            state.step = record.step;
            state.totals.add(&record, session.unpadded);
            if let Some(log) = &mut log {
                log.write(&record)?;
            }
            let step = record.step;
            on_event(&TrainEvent::Step(record));
            let every = self.config.checkpoint_every;
            if every > 0 && (step.is_multiple_of(every) || step == steps) {
                let path = save(&state, session)?;
                on_event(&TrainEvent::Checkpoint { step, path });
            }
            Ok(())
        })?;
        if end == End::Cancelled {
            let path = save(&state, &session)?;
            on_event(&TrainEvent::Checkpoint {
                step: state.step,
                path: path.clone(),
            });
            return Err(TuneError::Cancelled {
                step: state.step,
                checkpoint: Some(path),
            });
        }
        adapter::write(out, &base, &start.lora, &start.parameters)?;
        Ok(summary(rows, &state, start.parameters.elements()))
    }

    /// Every row as tokens; rows of which nothing can be learnt are told of and left out.
    fn rows(
        &self,
        folder: &BaseFolder,
        data: &TrainSet,
        on_event: &mut dyn FnMut(&TrainEvent),
    ) -> Result<Rows> {
        let config = &folder.config;
        let max_length = self.config.max_length.min(config.max_position_embeddings);
        let chat = data
            .has_chats()
            .then(|| Chat::read(&folder.path, config))
            .transpose()?;
        let mut rows = Rows {
            samples: Vec::new(),
            skipped: 0,
            truncated: 0,
        };
        for (line, row) in &data.rows {
            let fault = |reason: String| TuneError::Row {
                line: *line,
                reason,
            };
            let sample = match (row, &chat) {
                (Row::Chat(example), Some(chat)) => {
                    let encoded = chat
                        .example(&example.messages, max_length)
                        .map_err(|error| fault(error.to_string()))?;
                    encoded.map(|encoded| {
                        rows.truncated += usize::from(encoded.truncated);
                        Sample::new(encoded.ids, |at| encoded.answer.contains(&at))
                    })
                }
                (Row::Tokens(row), _) => {
                    rows.truncated += usize::from(row.input_ids.len() > max_length);
                    Some(Sample::from_row(row, max_length, config.vocab_size).map_err(fault)?)
                }
                (Row::Chat(_), None) => unreachable!("a tokenizer is read where there is a chat"),
            };
            match sample.filter(|sample| !sample.targets.is_empty()) {
                Some(sample) => rows.samples.push(sample),
                None => {
                    rows.skipped += 1;
                    let reason =
                        format!("nothing of the answer is left within {max_length} tokens");
                    tracing::warn!(line, %reason, "row skipped");
                    on_event(&TrainEvent::Skipped {
                        line: *line,
                        reason,
                    });
                }
            }
        }
        if rows.samples.is_empty() {
            let reason = format!(
                "no row to learn from: {} were given, {} skipped",
                data.len(),
                rows.skipped
            );
            return Err(TuneError::Setting {
                field: "data",
                reason,
            });
        }
        Ok(rows)
    }

    /// The adapters a run begins with: a checkpoint's, an adapter's, or new ones.
    fn start(&self, folder: &BaseFolder, samples: &[Sample], out: &Path) -> Result<Start> {
        let data = fingerprint(samples);
        let newest = if self.resume {
            checkpoint::newest(out)?
        } else {
            None
        };
        if let Some(path) = newest {
            let state = checkpoint::read_state(&path)?;
            self.check_resumable(&path, &state, &data, samples.len())?;
            let (lora, parameters) = adapter::read(&path, &folder.config)?;
            self.check_same_lora(&lora, &path)?;
            return Ok(Start {
                lora,
                parameters,
                data,
                checkpoint: Some((path, state)),
            });
        }
        let (lora, parameters) = match &self.init_adapter {
            Some(path) => {
                let (lora, parameters) =
                    adapter::read(&adapter::check_folder(path)?, &folder.config)?;
                self.check_same_lora(&lora, path)?;
                (lora, parameters)
            }
            None => {
                let lora = self.lora.clone().unwrap_or_default();
                lora.check()?;
                let parameters = lora.initial(&folder.config, self.config.seed)?;
                (lora, parameters)
            }
        };
        Ok(Start {
            lora,
            parameters,
            data,
            checkpoint: None,
        })
    }

    fn check_same_lora(&self, found: &LoraConfig, path: &Path) -> Result<()> {
        let Some(asked) = &self.lora else {
            return Ok(());
        };
        asked.check()?;
        let targets = |config: &LoraConfig| {
            config
                .target_modules
                .iter()
                .cloned()
                .collect::<BTreeSet<_>>()
        };
        // A number that went through a text may come back a last place off.
        let same_scale = (asked.scale() / found.scale() - 1.0).abs() < 1e-12;
        if same_scale && asked.rank == found.rank && targets(asked) == targets(found) {
            return Ok(());
        }
        let reason = format!("was made with {found:?}, but {asked:?} is asked for");
        Err(TuneError::Adapter {
            path: path.to_owned(),
            reason,
        })
    }

    fn check_resumable(&self, path: &Path, state: &State, data: &str, rows: usize) -> Result<()> {
        let fault = |reason: &str| {
            Err(TuneError::Checkpoint {
                path: path.to_owned(),
                reason: reason.to_owned(),
            })
        };
        // How often checkpoints are written changes nothing about what is learnt. Both sides went
        // through a text, which may move a number by a last place.
        let same = TrainConfig {
            checkpoint_every: self.config.checkpoint_every,
            ..state.config.clone()
        };
        if same != self.config.read_back() || state.steps != self.config.steps(rows) {
            return fault(
                "belongs to a run with other settings; resume with the same ones or train into another folder",
            );
        }
        if state.data != data {
            return fault(
                "belongs to a run on other rows; resume with the same ones or train into another folder",
            );
        }
        Ok(())
    }
}

struct Rows {
    samples: Vec<Sample>,
    skipped: usize,
    truncated: usize,
}

struct Start {
    lora: LoraConfig,
    parameters: Parameters,
    data: String,
    checkpoint: Option<(PathBuf, State)>,
}

impl Totals {
    fn add(&mut self, record: &StepRecord, unpadded: u64) {
        if self.tokens == 0 {
            self.first_loss = record.loss;
        }
        self.tokens += record.tokens;
        self.unpadded_tokens += unpadded;
        self.supervised_tokens += record.supervised_tokens;
        self.seconds += record.seconds;
        self.last_loss = record.loss;
    }
}

fn summary(rows: &Rows, state: &State, trainable_parameters: u64) -> TrainSummary {
    let totals = state.totals;
    let rate = |tokens: u64| {
        if totals.seconds > 0.0 {
            tokens as f64 / totals.seconds
        } else {
            0.0
        }
    };
    TrainSummary {
        steps: state.step,
        rows: rows.samples.len(),
        skipped: rows.skipped,
        truncated: rows.truncated,
        trainable_parameters,
        tokens: totals.tokens,
        supervised_tokens: totals.supervised_tokens,
        seconds: totals.seconds,
        tokens_per_second: rate(totals.tokens),
        unpadded_tokens_per_second: rate(totals.unpadded_tokens),
        peak_rss_bytes: peak_rss_bytes(),
        first_loss: totals.first_loss,
        last_loss: totals.last_loss,
    }
}

/// FNV-1a over all tokens and targets: enough to notice that the rows are other ones.
fn fingerprint(samples: &[Sample]) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut eat = |number: u32| {
        for byte in number.to_le_bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for sample in samples {
        eat(sample.ids.len() as u32);
        sample.ids.iter().for_each(|&id| eat(id));
        sample.targets.iter().for_each(|&(at, id)| {
            eat(at);
            eat(id);
        });
    }
    format!("{hash:016x}")
}
