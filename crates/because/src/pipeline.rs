#[cfg(feature = "tune")]
mod answers;
mod contrast;
#[cfg(feature = "tune")]
mod explain;
mod plan;
mod profile;
mod report;
mod spending;
#[cfg(feature = "tune")]
mod tune;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Instant;

use because_core::Project;
use because_llm::{
    Budget, Calibration, ChatModel, ModelSpec, ModelStack, Stop, Store, StoreTotals,
};
use serde::Serialize;

#[cfg(not(feature = "tune"))]
use crate::Error;
use crate::journal::{Journal, fingerprint};
use crate::{Result, Settings};

pub use contrast::Pairs;
#[cfg(feature = "tune")]
pub use explain::{Explained, ExplainedSplit};
pub use plan::{Amounts, Interval, Plan, PlanOptions, StagePlan, Taken};
pub use spending::{Reached, Stopped};
#[cfg(feature = "tune")]
pub use tune::{base_of, training_event};

/// The stages of an experiment over one project directory, each a method, and [`Pipeline::run`] for all of them in order.
///
/// A stage whose settings and inputs have not changed since it was done is not done again. Killed at any moment and started
/// again, a run ends with the same bytes and asks no model twice for what it answered: answers are in `llm.sqlite` before
/// they are used, files are whole or absent, and training goes on from its last checkpoint.
pub struct Pipeline {
    project: Project,
    settings: Settings,
    stop: Stop,
    events: Box<dyn Fn(&Event<'_>) + Send + Sync>,
    /// One purse for every stage of this run.
    budget: OnceLock<Budget>,
    calibration: Calibration,
    reached: spending::Reach,
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipeline")
            .field("project", &self.project)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// What a run tells while it goes on.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A stage begins.
    Begin {
        /// Which.
        stage: &'a str,
    },
    /// So many of so many are done.
    Progress {
        /// What is counted.
        what: &'a str,
        /// How many are done.
        done: usize,
        /// How many there are.
        total: usize,
    },
    /// A step of training.
    Loss {
        /// What is trained.
        what: &'a str,
        /// The step, from one.
        step: usize,
        /// How many there are.
        total: usize,
        /// The mean loss of the step, in nats a supervised token.
        loss: f64,
        /// How fast the step was.
        tokens_per_second: f64,
    },
    /// The validation set is evaluated.
    Evaluated {
        /// What is trained.
        what: &'a str,
        /// After this step.
        step: usize,
        /// The mean loss, in nats a supervised token.
        loss: f64,
        /// Whether it has never been as low.
        best: bool,
    },
    /// Something worth a line.
    Note {
        /// What it is about.
        what: &'a str,
        /// What happened.
        text: String,
    },
    /// A stage has ended.
    End(&'a StageReport),
}

/// Whether a stage was done in this run or found done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StageStatus {
    /// Its work was done now.
    Done,
    /// Nothing that it depends on has changed since it was done.
    Kept,
}

/// What a stage did and what it cost.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageReport {
    /// Its name.
    pub stage: String,
    /// Whether anything had to be done.
    pub status: StageStatus,
    /// How long it took.
    pub seconds: f64,
    /// The most memory that the process held during it, where the system tells (Linux).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_rss_bytes: Option<u64>,
    /// What it found, stage by stage different.
    pub detail: serde_json::Value,
}

impl Pipeline {
    /// The pipeline of this project, with these settings.
    #[must_use]
    pub fn new(project: Project, settings: Settings) -> Self {
        Self {
            project,
            settings,
            stop: Stop::default(),
            events: Box::new(|_| {}),
            budget: OnceLock::new(),
            calibration: Calibration::default(),
            reached: spending::Reach::default(),
        }
    }

    /// The pipeline of a directory, with the settings of its `because.toml` or, where it has none, the defaults.
    ///
    /// # Errors
    /// When the directory does not exist or its `because.toml` is not one.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let project = Project::new(root);
        if !project.root().is_dir() {
            return Err(because_core::Error::Missing {
                path: project.root().to_owned(),
                hint: "make a project directory with `because import`",
            }
            .into());
        }
        let path = project.path("because.toml");
        let settings = if path.exists() {
            Settings::load(&path)?
        } else {
            Settings::default()
        };
        Ok(Self::new(project, settings))
    }

    /// Obeys this stop: what is under way is waited for, then the run ends with [`crate::Fault::Stopped`].
    #[must_use]
    pub fn stop(mut self, stop: Stop) -> Self {
        self.stop = stop;
        self
    }

    /// Tells what happens, from whatever thread it happens on.
    #[must_use]
    pub fn on_event(mut self, events: impl Fn(&Event<'_>) + Send + Sync + 'static) -> Self {
        self.events = Box::new(events);
        self
    }

    /// The project.
    #[must_use]
    pub fn project(&self) -> &Project {
        &self.project
    }

    /// The settings.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Changes settings before a stage is run.
    pub fn settings_mut(&mut self) -> &mut Settings {
        &mut self.settings
    }

    /// Runs every stage: profiles, explanations, examples, training, predictions, figures, report. Writes `because.toml` in
    /// full first, so that the directory says how everything in it was made. Where there are no interactions yet and the
    /// settings have an `[import]`, they are imported before all else.
    ///
    /// # Errors
    /// With the first stage that fails; the stages before it stay done.
    #[cfg(feature = "tune")]
    pub async fn run(&self) -> Result<Vec<StageReport>> {
        self.check_budget(&[&self.settings.llm.model, self.settings.reasoner()])?;
        self.settings.save(&self.project.path("because.toml"))?;
        let mut reports: Vec<StageReport> = self.import()?.into_iter().collect();
        reports.extend(self.profile().await?);
        reports.push(self.contrast_all().await?);
        reports.push(self.examples().await?);
        reports.extend(self.train().await?);
        reports.push(self.predict().await?);
        reports.push(self.report().await?);
        Ok(reports)
    }

    /// Imports what the settings say, where the project has no interactions yet.
    #[cfg(feature = "tune")]
    fn import(&self) -> Result<Option<StageReport>> {
        let Some(mut import) = self.settings.import.clone() else {
            return Ok(None);
        };
        if self.project.interactions_path().exists() {
            return Ok(None);
        }
        let begun = std::time::Instant::now();
        import.resolve(self.project.root())?;
        let summary = import.import().run(&self.project)?;
        Ok(Some(StageReport {
            stage: "import".into(),
            status: StageStatus::Done,
            seconds: begun.elapsed().as_secs_f64(),
            peak_rss_bytes: memory::peak(),
            detail: serde_json::to_value(&summary).unwrap_or_default(),
        }))
    }

    /// What all the calls of this project came to so far; `None` where none was ever made.
    ///
    /// # Errors
    /// When `llm.sqlite` is there and cannot be read.
    pub fn llm_totals(&self) -> Result<Option<StoreTotals>> {
        let path = self.project.llm_path();
        if !path.exists() {
            return Ok(None);
        }
        Ok(Some(Store::open(path)?.totals()?))
    }

    /// The model behind a spec with everything around it: validation and repair, retries, a bound on calls in flight, the
    /// project's answer store and, if the settings say so, a recording.
    fn model(&self, spec: &ModelSpec) -> Result<Box<dyn ChatModel>> {
        let llm = &self.settings.llm;
        self.check_budget(&[spec])?;
        let store = Store::open(self.project.llm_path())?;
        let bare = self.bare_model(spec, Some(&store))?;
        let name = bare.id().model;
        let mut stack = ModelStack::new(bare)
            .budget(self.budget_for(spec, &name)?)
            .counter(self.counter(spec, &name)?)
            .calibration(self.calibration.clone())
            .store(store)
            .concurrency(llm.concurrency)
            .retries(llm.retries)
            .repairs(llm.repairs);
        if let Some(requests) = llm.requests_per_minute.filter(|_| !llm.batch) {
            stack = stack.requests_per_minute(requests);
        }
        if let Some(tokens) = llm.tokens_per_minute.filter(|_| !llm.batch) {
            stack = stack.tokens_per_minute(tokens);
        }
        let is_local = matches!(spec, ModelSpec::Qwen { .. });
        #[cfg(feature = "tune")]
        if is_local {
            // What the engine computes at once, from the first call on: there is no server whose limit is to be found.
            let rows = because_tune::EngineSettings::default().max_rows;
            let rows = rows.min(llm.concurrency.max(1));
            stack = stack.concurrency(rows).start(rows).min(rows);
        }
        // Asking this machine twice makes neither answer faster.
        if let Some(seconds) = llm.hedge_after_secs.filter(|_| !is_local) {
            stack = stack.hedge_after(std::time::Duration::from_secs(seconds));
        }
        if llm.batch {
            stack = stack.batch(llm.batch_rows);
        }
        if let Some(record) = &llm.record {
            stack = stack.record(record);
        }
        Ok(Box::new(stack.build()?))
    }

    /// The model itself; in batch mode its batches are kept in `store`, without which it is only there to say which it is.
    fn bare_model(&self, spec: &ModelSpec, store: Option<&Store>) -> Result<Box<dyn ChatModel>> {
        let llm = &self.settings.llm;
        if llm.batch && !matches!(spec, ModelSpec::OpenAi { .. }) {
            return Err(crate::Error::NoBatches {
                model: spec.to_string(),
            });
        }
        // Only the `openai` feature has batches.
        let _ = store;
        match spec {
            #[cfg(feature = "openai")]
            ModelSpec::OpenAi { model, url } => {
                let timeout = std::time::Duration::from_secs(llm.timeout_secs);
                let mut builder = because_llm::OpenAi::from_env(model).timeout(timeout);
                if let Some(url) = url {
                    builder = builder.base_url(url);
                }
                let dialect = llm.dialect_at(builder.url());
                builder = builder.dialect(dialect);
                let (true, Some(store)) = (llm.batch, store) else {
                    return Ok(Box::new(builder.build()?));
                };
                let mut batch = builder
                    .batch(store.clone())
                    .rows(llm.batch_rows)
                    .stop(self.stop.clone());
                if !llm.batch_wait {
                    batch = batch.collect_later();
                }
                Ok(Box::new(batch.build()?))
            }
            #[cfg(feature = "tune")]
            ModelSpec::Qwen { base, adapter } => {
                let model = because_tune::TunedModel::load(Path::new(base), adapter.as_deref())?;
                // Where a stage sets no limit, an answer is as long as a profile with its reasons may be.
                Ok(Box::new(
                    model.decoding(because_tune::Decoding::greedy(1024)),
                ))
            }
            #[cfg(not(feature = "tune"))]
            ModelSpec::Qwen { .. } => Err(Error::Feature {
                what: spec.to_string(),
                feature: "tune",
            }),
            other => Ok(other.open()?),
        }
    }

    /// What a model's tokens are counted with: what the settings name, a local model's own tokenizer, or what fits its name.
    fn counter(&self, spec: &ModelSpec, name: &str) -> Result<because_llm::TokenCounter> {
        #[cfg(feature = "tune")]
        if let (ModelSpec::Qwen { base, .. }, None) = (spec, &self.settings.llm.tokenizer) {
            let tokens = because_tune::ChatTokens::open(Path::new(base))?;
            let own = format!("the tokenizer of {}", tokens.name());
            return Ok(because_llm::TokenCounter::by(own, move |text| {
                // A vocabulary with a hole: every byte a token is the most it could have been.
                tokens.text_tokens(text).unwrap_or(text.len()) as u64
            }));
        }
        let _ = spec;
        self.settings.llm.token_counter(name, self.project.root())
    }

    /// A model that is not asked, for plans. Of a local one the weights are looked at only where it has answered before:
    /// which answers are its own they alone tell.
    fn unasked_model(&self, spec: &ModelSpec, store: Option<&Store>) -> Result<Box<dyn ChatModel>> {
        #[cfg(feature = "tune")]
        if let ModelSpec::Qwen { base, adapter } = spec {
            let tokens = because_tune::ChatTokens::open(Path::new(base))?;
            let mut model = format!("qwen:{}", tokens.name());
            if let Some(adapter) = adapter {
                let whole = adapter.canonicalize().unwrap_or_else(|_| adapter.clone());
                let called = whole.file_name().unwrap_or("adapter".as_ref());
                model = format!("{model}+{}", called.to_string_lossy());
            }
            let totals = store.map(Store::totals).transpose()?;
            if !totals.is_some_and(|totals| totals.models.contains_key(&model)) {
                let endpoint = "local".to_owned();
                return Ok(Box::new(Unasked(because_llm::ModelId { model, endpoint })));
            }
        }
        let _ = store;
        self.bare_model(spec, None)
    }

    /// Does a stage unless it is done, and measures it. `work` is told whether the same stage was begun before and not ended,
    /// and returns what it found and the files it wrote.
    async fn stage<S: Serialize>(
        &self,
        name: &str,
        settings: &S,
        inputs: &[&Path],
        work: impl AsyncFnOnce(bool) -> Result<(serde_json::Value, Vec<PathBuf>)>,
    ) -> Result<StageReport> {
        self.tell(&Event::Begin { stage: name });
        let begun = Instant::now();
        memory::reset_peak();
        let fingerprint = fingerprint(name, settings, inputs)?;
        let mut journal = Journal::open(&self.project)?;
        let (status, detail) = if journal.is_done(&self.project, name, &fingerprint)? {
            (StageStatus::Kept, serde_json::Value::Null)
        } else {
            let goes_on = journal.begin(name, &fingerprint)?;
            let (detail, outputs) = work(goes_on).await?;
            journal.done(&self.project, name, fingerprint, &outputs)?;
            (StageStatus::Done, detail)
        };
        let report = StageReport {
            stage: name.to_owned(),
            status,
            seconds: begun.elapsed().as_secs_f64(),
            peak_rss_bytes: memory::peak(),
            detail,
        };
        self.tell(&Event::End(&report));
        Ok(report)
    }

    fn tell(&self, event: &Event<'_>) {
        self.reached.note(event);
        (self.events)(event);
    }

    fn last_profiles(&self) -> Result<because_core::Profiles> {
        let layer = self
            .project
            .last_layer()
            .ok_or_else(|| because_core::Error::Missing {
                path: self.project.profiles_path(0),
                hint: "make it with `because profile`",
            })?;
        Ok(self.project.profiles(layer)?)
    }
}

/// Says which model it is, and answers nothing.
#[cfg(feature = "tune")]
struct Unasked(because_llm::ModelId);

#[cfg(feature = "tune")]
impl ChatModel for Unasked {
    fn chat<'a>(
        &'a self,
        _: &'a because_llm::ChatRequest,
    ) -> because_llm::BoxFuture<'a, because_llm::Result<because_llm::ChatResponse>> {
        let message = format!("{} is planned with and not loaded", self.0.model);
        let status = None;
        Box::pin(async move { Err(because_llm::ChatError::Permanent { status, message }) })
    }

    fn id(&self) -> because_llm::ModelId {
        self.0.clone()
    }
}

/// The process's peak memory, as Linux tells it; nothing elsewhere.
mod memory {
    /// Forgets the peak so far, so that the next reading is that of the stage in between.
    pub(super) fn reset_peak() {
        // Not being allowed to only means that a peak includes earlier stages.
        let _ = std::fs::write("/proc/self/clear_refs", "5");
    }

    pub(super) fn peak() -> Option<u64> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kilobytes * 1024)
    }
}

#[cfg(all(test, feature = "tune"))]
mod tests {
    use super::*;

    #[test]
    fn a_run_imports_where_there_is_nothing_yet_and_only_there() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("r.csv"), "user,item\na,x\nb,x\na,y\n").unwrap();
        let text =
            "[import]\nformat = \"csv\"\npaths = [\"r.csv\"]\n[import.filter]\nk_core_items = 2\n";
        std::fs::write(folder.path().join("because.toml"), text).unwrap();
        let pipeline = Pipeline::open(folder.path()).unwrap();
        let report = pipeline.import().unwrap().unwrap();
        assert_eq!(
            (report.stage.as_str(), &report.detail["interactions"]),
            ("import", &2.into())
        );
        assert_eq!(pipeline.project().interactions().unwrap().len(), 2);
        assert!(pipeline.import().unwrap().is_none());
    }
}
