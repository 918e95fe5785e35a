use std::path::{Path, PathBuf};

use because_core::{Node, Prediction, SftExample, Split, jsonl};
use because_eval::LossPoint;
use because_tune::{
    Ask, Generation, Hub, TinyBase, TrainConfig, TrainEvent, TrainSet, Trainer, TuneError,
    TunedModel,
};
use serde::Deserialize;
use serde_json::json;

use super::answers::answer_each;
use super::{Event, Pipeline, StageReport};
use crate::{Error, Result};

impl Pipeline {
    /// Makes the base if it is `tiny`, then tunes it with LoRA on `sft.train.jsonl`, into `adapter/`. A run that was ended goes
    /// on from its last checkpoint.
    ///
    /// # Errors
    /// When the base cannot be read, there is nothing to learn from, or training fails.
    pub async fn train(&self) -> Result<Vec<StageReport>> {
        let mut reports = Vec::new();
        if self.settings.train.base == "tiny" {
            reports.push(self.tiny_base().await?);
        }
        reports.push(self.adapter().await?);
        Ok(reports)
    }

    /// Lets the tuned model explain every example of `sft.test.jsonl`, into `predictions.jsonl`. One that it cannot explain, as
    /// where it is longer than the model's context, is left out, told of and counted as `failed`.
    ///
    /// # Errors
    /// When there is nothing to explain, none can be explained, or the base or adapter cannot be read.
    pub async fn predict(&self) -> Result<StageReport> {
        let project = &self.project;
        let (base, adapter) = (self.base_folder(), project.path("adapter"));
        let examples_path = project.sft_path(Split::Test);
        let weights = adapter.join("adapter_model.safetensors");
        let depends = json!([
            self.settings.evaluate.max_tokens,
            self.settings.evaluate.repetition_penalty
        ]);
        let predict = async |_| {
            let examples: Vec<SftExample> = jsonl::read_all(&examples_path)?;
            if examples.is_empty() {
                let reason = "sft.test.jsonl is empty: no test pair has a reference or an accepted explanation".to_owned();
                return Err(Error::Empty {
                    stage: "predict",
                    reason,
                });
            }
            let model = TunedModel::load(&base, Some(&adapter))?;
            let decoding = self.settings.evaluate.decoding();
            // Those of one user one after the other: they begin alike. Where a row stands in the batch changes no answer.
            let mut order: Vec<usize> = (0..examples.len()).collect();
            order.sort_by_key(|&at| examples[at].user.as_ref());
            let asks = order.into_iter().map(|at| {
                let prompt = examples[at].prompt().to_vec();
                (at, Ask::chat(prompt, decoding.clone()))
            });
            let total = examples.len();
            let mut texts = vec![None; total];
            let (mut done, mut first_failure) = (0, None);
            let each = |at: usize, answer: Result<Generation, TuneError>| {
                match answer {
                    Ok(output) => texts[at] = Some(output.text.trim().to_owned()),
                    Err(error) => {
                        let SftExample { user, item, .. } = &examples[at];
                        self.tell_failed("predict", user.as_ref(), item.as_ref(), &error);
                        first_failure.get_or_insert(error);
                    }
                }
                done += 1;
                let what = "explanations";
                (self.events)(&Event::Progress { what, done, total });
                Ok(())
            };
            answer_each(&model, asks, &self.stop, each).await?;
            let predictions: Vec<Prediction> = examples
                .iter()
                .zip(texts)
                .filter_map(|(example, prediction)| {
                    Some(Prediction {
                        user: example.user.clone(),
                        item: example.item.clone(),
                        prediction: prediction?,
                        reference: example.answer().unwrap_or_default().to_owned(),
                    })
                })
                .collect();
            if let Some(error) = first_failure.filter(|_| predictions.is_empty()) {
                return Err(error.into());
            }
            let failed = total - predictions.len();
            let path = project.path("predictions.jsonl");
            jsonl::write(&path, &predictions)?;
            let counts = json!({ "predictions": predictions.len(), "failed": failed });
            Ok((counts, vec![path]))
        };
        let [config, tokenizer] = files_of(&self.base_files()?);
        let inputs = [examples_path.as_path(), &weights, &config, &tokenizer];
        self.stage("predict", &depends, &inputs, predict).await
    }

    /// The folder of the base: the user's own, or the one that `tiny` is made in.
    fn base_folder(&self) -> PathBuf {
        match self.settings.train.base.as_str() {
            "tiny" => self.project.path("base.tiny"),
            folder => PathBuf::from(folder),
        }
    }

    /// Where the files of the base lie: its own folder or, for a hub id, the one in the hub's cache, filled if it has to be.
    fn base_files(&self) -> Result<PathBuf> {
        let base = self.base_folder();
        match self.settings.train.base.as_str() {
            "tiny" => Ok(base),
            _ => Ok(Hub::from_env().folder(&base)?),
        }
    }

    /// Makes the `tiny` base of the project, in `base.tiny/`, from its profiles and examples.
    ///
    /// # Errors
    /// When there are no profiles or examples, or training fails.
    pub async fn tiny_base(&self) -> Result<StageReport> {
        let project = &self.project;
        let folder = self.base_folder();
        let layers = project.last_layer().map_or(0, |last| last + 1);
        let mut inputs: Vec<PathBuf> = (0..layers)
            .map(|layer| project.profiles_path(layer))
            .collect();
        inputs.push(project.sft_path(Split::Train));
        let inputs: Vec<_> = inputs.iter().map(PathBuf::as_path).collect();
        let depends = json!([self.settings.seed, self.settings.train.tiny_steps]);
        let make = async |_| {
            let tiny = self.tiny()?.steps(self.settings.train.tiny_steps);
            let mut steps = Steps::new("base", &*self.events);
            let texts = self.summaries()?;
            let summary = tiny.build(texts, &folder, &mut |event| steps.show(event))?;
            let files = [
                "config.json",
                "tokenizer.json",
                "tokenizer_config.json",
                "model.safetensors",
            ];
            Ok((
                serde_json::to_value(&summary).unwrap_or_default(),
                files.map(|name| folder.join(name)).to_vec(),
            ))
        };
        self.stage("base", &depends, &inputs, make).await
    }

    /// Makes a stand-in for the `tiny` base in another folder, for a dry run: of the same shape and with the same tokenizer,
    /// its weights hardly trained.
    ///
    /// # Errors
    /// As [`Pipeline::tiny_base`].
    pub fn draft_base(&self, folder: &Path) -> Result<()> {
        let tiny = self.tiny()?.steps(1);
        tiny.build(self.summaries()?, folder, &mut |_| {})?;
        Ok(())
    }

    fn tiny(&self) -> Result<TinyBase> {
        Ok(TinyBase::new()
            .seed(self.settings.seed)
            .examples(self.chats_about_profiles()?)
            .cancel(self.stop.flag()))
    }

    /// The texts of all profiles, layer by layer.
    fn summaries(&self) -> Result<Vec<String>> {
        let layers = self.project.last_layer().map_or(0, |last| last + 1);
        let mut texts = Vec::new();
        for layer in 0..layers {
            texts.extend(
                self.project
                    .profiles(layer)?
                    .records()
                    .map(|record| record.profile.summary.clone()),
            );
        }
        Ok(texts)
    }

    /// The validation examples, if the project has any.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn valid_set(&self) -> Result<Option<TrainSet>> {
        let path = self.project.sft_path(Split::Valid);
        if !path.exists() {
            return Ok(None);
        }
        Ok(Some(TrainSet::read(&path)?).filter(|set| !set.is_empty()))
    }

    /// The questions of the train examples, each answered with the item's own profile: they teach a base the form of a chat
    /// and nothing of the explanations, which are the adapter's to learn.
    fn chats_about_profiles(&self) -> Result<Vec<SftExample>> {
        let profiles = self.last_profiles()?;
        let mut examples: Vec<SftExample> = jsonl::read_all(&self.project.sft_path(Split::Train))?;
        for example in &mut examples {
            let profile = example
                .item
                .as_ref()
                .and_then(|item| profiles.summary(&Node::Item(item.clone())));
            if let (Some(answer), Some(profile)) = (example.messages.last_mut(), profile) {
                profile.clone_into(&mut answer.content);
            }
        }
        Ok(examples)
    }

    async fn adapter(&self) -> Result<StageReport> {
        let (base, out) = (self.base_folder(), self.project.path("adapter"));
        let data_path = self.project.sft_path(Split::Train);
        if !data_path.exists() {
            let hint = "make it with `because contrast`, then `because train`";
            return Err(because_core::Error::Missing {
                path: data_path,
                hint,
            }
            .into());
        }
        let valid = self.valid_set()?;
        let valid_path = project_valid(&self.project, valid.as_ref());
        let mut config = self.settings.train.config(self.settings.seed)?;
        if valid.is_none() {
            without_validation(&mut config);
        }
        let lora = self.settings.train.lora();
        let depends = json!([self.settings.train.base, config, lora]);
        let [config_file, tokenizer] = files_of(&self.base_files()?);
        let weights = self.project.path("base.tiny/model.safetensors");
        // A checkpoint of somebody else's may be 15 GB: it is known by its path and configuration.
        let mut inputs = vec![data_path.as_path(), &config_file, &tokenizer];
        inputs.extend(valid_path.as_deref());
        if self.settings.train.base == "tiny" {
            inputs.push(&weights);
        }
        let train = async |goes_on: bool| {
            if !goes_on {
                // Left by a run with other settings, data or base: nothing of it is of use here.
                remove_checkpoints(&out)?;
            }
            let data = TrainSet::read(&data_path)?;
            let log = self.project.path("train.log.jsonl");
            let trainer = Trainer::new(config.clone()).lora(lora.clone());
            let mut trainer = trainer.resume(goes_on).log(&log).cancel(self.stop.flag());
            if let Some(valid) = valid {
                trainer = trainer.valid(valid);
            }
            let mut steps = Steps::new("adapter", &*self.events);
            let summary = trainer.run(&base, &data, &out, &mut |event| steps.show(event))?;
            remove_checkpoints(&out)?;
            let mut files = ["adapter_config.json", "adapter_model.safetensors"]
                .map(|name| out.join(name))
                .to_vec();
            files.extend(self.write_losses(&log)?);
            Ok((serde_json::to_value(&summary).unwrap_or_default(), files))
        };
        self.stage("train", &depends, &inputs, train).await
    }
}

impl Pipeline {
    /// Takes the losses out of a training log, without times, into files of their own, and names these.
    fn write_losses(&self, log: &Path) -> Result<Vec<PathBuf>> {
        let (mut losses, mut valid) = (Vec::new(), Vec::new());
        for line in jsonl::read_all::<LogLine>(log)? {
            let step = line.step;
            losses.extend(line.loss.map(|loss| LossPoint { step, loss }));
            valid.extend(line.valid_loss.map(|loss| LossPoint { step, loss }));
        }
        let mut files = vec![self.losses_path()];
        jsonl::write(&files[0], &losses)?;
        let path = self.valid_losses_path();
        if !valid.is_empty() {
            jsonl::write(&path, &valid)?;
            files.push(path);
        } else if path.exists() {
            std::fs::remove_file(&path)
                .map_err(|source| because_core::Error::io("remove", &path, source))?;
        }
        Ok(files)
    }
}

/// A line of a training log: a step has a loss, an evaluation one of the validation set.
#[derive(Deserialize)]
struct LogLine {
    step: u64,
    loss: Option<f64>,
    valid_loss: Option<f64>,
}

fn project_valid(project: &because_core::Project, valid: Option<&TrainSet>) -> Option<PathBuf> {
    valid.map(|_| project.sft_path(Split::Valid))
}

/// What a validation set is needed for cannot be done without one; a project whose split left none is trained all the same.
fn without_validation(config: &mut TrainConfig) {
    if config.patience.is_some() || config.evaluate_every > 0 {
        tracing::warn!(
            "sft.valid.jsonl has no example: training is not evaluated, and patience not counted"
        );
    }
    (config.patience, config.evaluate_every) = (None, 0);
}

/// What of training a pipeline tells on: `total` is the number of steps, once [`TrainEvent::Started`] has told it.
#[must_use]
pub fn training_event<'a>(what: &'a str, total: usize, event: &TrainEvent) -> Option<Event<'a>> {
    let note = |text: String| Some(Event::Note { what, text });
    match event {
        TrainEvent::Step(record) => Some(Event::Loss {
            what,
            step: record.step as usize,
            total,
            loss: record.loss,
            tokens_per_second: record.tokens as f64 / record.seconds.max(1e-9),
        }),
        TrainEvent::Evaluated(seen) => Some(Event::Evaluated {
            what,
            step: seen.step as usize,
            loss: seen.loss,
            best: seen.best,
        }),
        TrainEvent::StoppedEarly {
            step,
            best_step,
            best_loss,
        } => note(format!(
            "stopped after step {step} of {total}: nothing was better than step {best_step} with a loss of {best_loss:.4}"
        )),
        TrainEvent::Warning { reason } => note(reason.clone()),
        TrainEvent::Skipped { line, reason } => note(format!("line {line} left out: {reason}")),
        TrainEvent::Fitted {
            checkpointing,
            micro_batch_tokens,
            ..
        } if micro_batch_tokens.is_some() || checkpointing.to_string() != "none" => {
            let parts = micro_batch_tokens.map_or_else(String::new, |tokens| {
                format!(", batches in parts of {tokens} tokens")
            });
            note(format!(
                "to fit into memory: checkpointing {checkpointing}{parts}"
            ))
        }
        _ => None,
    }
}

/// Tells training as the pipeline's own events.
struct Steps<'a> {
    what: &'a str,
    total: usize,
    events: &'a (dyn Fn(&Event<'_>) + Send + Sync),
}

impl<'a> Steps<'a> {
    fn new(what: &'a str, events: &'a (dyn Fn(&Event<'_>) + Send + Sync)) -> Self {
        Self {
            what,
            total: 0,
            events,
        }
    }

    fn show(&mut self, event: &TrainEvent) {
        if let TrainEvent::Started { steps, .. } = event {
            self.total = *steps as usize;
        }
        if let Some(event) = training_event(self.what, self.total, event) {
            (self.events)(&event);
        }
    }
}

/// The base that an adapter was trained on, as its configuration names it.
///
/// # Errors
/// When the folder holds no `adapter_config.json`, or it names no base.
pub fn base_of(adapter: &Path) -> Result<PathBuf> {
    let path = adapter.join("adapter_config.json");
    let bytes =
        std::fs::read(&path).map_err(|source| because_core::Error::io("read", &path, source))?;
    let config: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
    match config["base_model_name_or_path"].as_str() {
        Some(base) => {
            // A model of the hub is named together with the commit it was at.
            let named = match config["revision"].as_str() {
                Some(revision) if !Path::new(base).exists() => {
                    PathBuf::from(format!("{base}@{revision}"))
                }
                _ => PathBuf::from(base),
            };
            // A project that was moved, or is looked at from another folder, still has its base beside its adapter.
            let beside = adapter
                .parent()
                .and_then(|project| Some(project.join(named.file_name()?)));
            Ok(beside
                .filter(|beside| !named.is_dir() && beside.is_dir())
                .unwrap_or(named))
        }
        None => Err(because_core::Error::Line {
            path,
            line: 1,
            reason: "base_model_name_or_path: names no base; say which with --base".into(),
        }
        .into()),
    }
}

fn files_of(base: &Path) -> [PathBuf; 2] {
    ["config.json", "tokenizer.json"].map(|name| base.join(name))
}

fn remove_checkpoints(adapter: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(adapter) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with("checkpoint-")
        {
            let path = entry.path();
            std::fs::remove_dir_all(&path)
                .map_err(|source| because_core::Error::io("remove", &path, source))?;
        }
    }
    Ok(())
}
