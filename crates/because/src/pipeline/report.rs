use std::collections::HashMap;
use std::path::PathBuf;

use because_contrast::{ContrastivePrompt, StudentPrompt};
use because_core::{Prediction, Split, jsonl};
use because_eval::{
    ContrastSummary, Controls, LossPoint, ProfileLayer, Report, Sample, Settings, TextStats,
    TrainingSummary,
};
use because_graph::{BipartiteGraph, GraphStats};
use serde_json::json;

use super::{Pipeline, StageReport};
use crate::Result;

impl Pipeline {
    /// Measures `predictions.jsonl` beside its controls and writes `report.json` and `report.html` from whatever the project
    /// holds so far.
    ///
    /// # Errors
    /// When a file of the project cannot be read or the report not be written.
    pub async fn report(&self) -> Result<StageReport> {
        let project = &self.project;
        let layers = project.last_layer().map_or(0, |last| last + 1);
        let mut inputs: Vec<PathBuf> = (0..layers)
            .map(|layer| project.profiles_path(layer))
            .collect();
        inputs.push(project.interactions_path());
        inputs.extend(
            ["explanations.jsonl", "sft.train.jsonl", "predictions.jsonl"]
                .map(|name| project.path(name)),
        );
        inputs.extend([project.items_path(), project.references_path()]);
        inputs.extend([self.losses_path(), self.valid_losses_path()]);
        let inputs: Vec<_> = inputs.iter().map(PathBuf::as_path).collect();
        let title = project
            .root()
            .file_name()
            .map_or_else(|| "because".into(), |name| name.to_string_lossy());
        let depends = json!([title, self.settings, StudentPrompt::default().fingerprint()]);
        let write = async |_| {
            let mut report = Report::new(title.clone()).settings(self.report_settings());
            let graph = BipartiteGraph::from_project(project)?;
            report = report.graph(serde_json::to_value(GraphStats::of(&graph)).unwrap_or_default());
            for layer in 0..layers {
                report = report.profile_layer(ProfileLayer::of(&project.profiles(layer)?));
            }
            if project.path("explanations.jsonl").exists() {
                report = report.contrast(ContrastSummary::of(&project.explanations()?));
            }
            let losses = self.losses_path();
            if losses.exists() {
                let mut summary = TrainingSummary::new(jsonl::read_all::<LossPoint>(&losses)?);
                let valid = self.valid_losses_path();
                if valid.exists() {
                    summary.valid_losses = jsonl::read_all(&valid)?;
                }
                summary.examples = Some(
                    jsonl::read_all::<serde::de::IgnoredAny>(&project.sft_path(Split::Train))?
                        .len(),
                );
                report = report.training(summary);
            }
            let mut detail = serde_json::Value::Null;
            let predictions = project.path("predictions.jsonl");
            if predictions.exists() {
                let pairs: Vec<Prediction> = jsonl::read_all(&predictions)?;
                let stats = TextStats::of(&pairs);
                let controls = Controls::of(&pairs, &self.last_profiles()?, self.settings.seed);
                report = report.text(&stats, controls, self.settings.seed);
                detail = serde_json::to_value(&report.text).unwrap_or_default();
                for sample in self.samples(&pairs)? {
                    report = report.sample(sample);
                }
            }
            report.write(project.root())?;
            Ok((
                detail,
                ["report.json", "report.html"]
                    .map(|name| project.path(name))
                    .to_vec(),
            ))
        };
        self.stage("report", &depends, &inputs, write).await
    }

    /// Some of the predictions, evenly spaced, with the names of their items.
    fn samples(&self, pairs: &[Prediction]) -> Result<Vec<Sample>> {
        let items = self.project.items()?;
        let titles: HashMap<&str, &str> = items
            .iter()
            .filter_map(|item| Some((item.item.as_str(), item.title.as_deref()?)))
            .collect();
        let step = pairs
            .len()
            .div_ceil(self.settings.evaluate.samples.max(1))
            .max(1);
        Ok(pairs
            .iter()
            .step_by(step)
            .map(|pair| {
                let title = pair
                    .item
                    .as_ref()
                    .and_then(|item| titles.get(item.as_str()));
                let sample = Sample::from(pair);
                match title {
                    Some(title) => sample.item_title(*title),
                    None => sample,
                }
            })
            .collect())
    }

    fn report_settings(&self) -> Settings {
        let ours = &self.settings;
        let mut settings = Settings::default();
        settings.profile_model = Some(ours.llm.model.to_string());
        settings.explanation_model = Some(ours.reasoner().to_string());
        settings.base = Some(ours.train.base.clone());
        settings.seed = Some(ours.seed);
        settings.layers = Some(ours.profile.layers);
        settings.neighbors = Some(ours.profile.neighbors);
        settings.hard_negatives = Some(ours.contrast.hard);
        settings.random_negatives = Some(ours.contrast.random);
        settings.max_attempts = Some(ours.contrast.max_attempts);
        settings.split = Some(Split::Test.to_string());
        let other = [
            ("neighbor_sampling", json!(ours.profile.sampling)),
            (
                "contrast_prompt",
                json!(ContrastivePrompt::default().fingerprint()),
            ),
            (
                "student_prompt",
                json!(StudentPrompt::default().fingerprint()),
            ),
            ("lora_rank", json!(ours.train.rank)),
            ("lora_alpha", json!(ours.train.alpha)),
            ("learning_rate", json!(ours.train.learning_rate())),
            (
                "decoding",
                json!(format!(
                    "greedy, at most {} tokens",
                    ours.evaluate.max_tokens
                )),
            ),
        ];
        settings.other = other
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        settings
    }

    /// The loss of every step of the adapter, without the times that `train.log.jsonl` has.
    pub(super) fn losses_path(&self) -> PathBuf {
        self.project.path("losses.jsonl")
    }

    /// The same of the validation set, where there is one.
    pub(super) fn valid_losses_path(&self) -> PathBuf {
        self.project.path("losses.valid.jsonl")
    }
}
