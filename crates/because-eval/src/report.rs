mod curve;
mod page;
mod sections;
mod table;

use std::path::Path;

use because_core::jsonl::write_atomic;
use serde::Serialize;
use serde_json::Value;

pub use self::sections::{LossPoint, ProfileLayer, Sample, Settings, TextSection, TrainingSummary};
use crate::{ContrastSummary, Controls, Error, Result, TextStats};

/// Everything one run has to show: `report.json` for programs, `report.html` for people. What was not run is left out;
/// the same parts give the same bytes.
///
/// ```
/// use because_eval::{Report, Settings};
///
/// let mut settings = Settings::default();
/// settings.profile_model = Some("offline".into());
/// let report = Report::new("Reading group").settings(settings).note("A dry run on twelve users.");
///
/// let page = report.to_html()?;
/// assert!(page.contains("Reading group") && page.contains("not a language model"));
/// # Ok::<(), because_eval::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// What the page is headed with.
    pub title: String,
    /// What was run, and with which seeds.
    pub settings: Settings,
    /// The statistics of the graph, as whoever counted them writes them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub graph: Option<Value>,
    /// The profiles, layer by layer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub profiles: Vec<ProfileLayer>,
    /// How the contrastive stage went.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contrast: Option<ContrastSummary>,
    /// How training went.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub training: Option<TrainingSummary>,
    /// The figures, with intervals and controls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<TextSection>,
    /// A few texts to read, which no figure replaces.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<Sample>,
    /// What a reader must know before quoting a figure; [`Report::write`] adds what follows from the settings.
    pub notes: Vec<String>,
}

impl Report {
    /// A report without any section yet.
    pub fn new(title: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            ..Self::default()
        }
    }

    /// What was run.
    #[must_use]
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// The graph's statistics: an object whose fields become rows, and whose objects become rows under a dotted name.
    #[must_use]
    pub fn graph(mut self, statistics: Value) -> Self {
        self.graph = Some(statistics);
        self
    }

    /// One layer of profiles; call it once a layer.
    #[must_use]
    pub fn profile_layer(mut self, layer: ProfileLayer) -> Self {
        self.profiles.push(layer);
        self
    }

    /// The contrastive stage.
    #[must_use]
    pub fn contrast(mut self, summary: ContrastSummary) -> Self {
        self.contrast = Some(summary);
        self
    }

    /// The training.
    #[must_use]
    pub fn training(mut self, summary: TrainingSummary) -> Self {
        self.training = Some(summary);
        self
    }

    /// The figures, their intervals from `seed`, and the controls without which they mean little.
    #[must_use]
    pub fn text(mut self, stats: &TextStats, controls: Controls, seed: u64) -> Self {
        self.text = Some(TextSection {
            metrics: stats.metrics(),
            intervals: stats.intervals(seed),
            controls,
        });
        self
    }

    /// One text to read.
    #[must_use]
    pub fn sample(mut self, sample: impl Into<Sample>) -> Self {
        self.samples.push(sample.into());
        self
    }

    /// One more thing a reader must know.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// The text of `report.json`, ending in a line feed.
    ///
    /// # Errors
    /// When the graph's statistics cannot be written as JSON.
    pub fn to_json(&self) -> Result<String> {
        let mut text =
            serde_json::to_string_pretty(&self.with_standing_notes()).map_err(Error::Json)?;
        text.push('\n');
        Ok(text)
    }

    /// The text of `report.html`: one file that needs nothing else, with all text of others escaped.
    ///
    /// # Errors
    /// When the template cannot be filled in.
    pub fn to_html(&self) -> Result<String> {
        page::render(&self.with_standing_notes()).map_err(Error::Page)
    }

    /// Writes `report.json` and `report.html` into the folder, making it where it is missing. Each file is whole or
    /// untouched, and neither is begun before both are made.
    ///
    /// # Errors
    /// When a file cannot be written, or as [`Report::to_json`] and [`Report::to_html`].
    pub fn write(&self, folder: impl AsRef<Path>) -> Result<()> {
        let folder = folder.as_ref();
        let files = [
            ("report.json", self.to_json()?),
            ("report.html", self.to_html()?),
        ];
        std::fs::create_dir_all(folder)
            .map_err(|source| because_core::Error::io("create", folder, source))?;
        for (name, text) in files {
            write_atomic(&folder.join(name), |out| out.write_all(text.as_bytes()))?;
        }
        Ok(())
    }

    fn with_standing_notes(&self) -> Self {
        let mut whole = self.clone();
        whole.notes.splice(0..0, self.standing_notes());
        whole
    }

    /// What follows from how the run was made, so that nobody has to remember to say it.
    fn standing_notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.models().any(is_offline) {
            notes.push(
                "Profiles or explanations were written by the offline model, which picks and joins sentences of its input. \
                 It is not a language model: these figures are a floor to beat and a test of the path, not a result."
                    .to_owned(),
            );
        }
        if self.settings.base.as_deref() == Some("tiny") {
            notes.push(
                "The base model is tiny: made from scratch on this project's own texts, so that every stage runs without \
                 a download. Its explanations show that training works, not how good they can be."
                    .to_owned(),
            );
        }
        if let Some(text) = &self.text {
            if text.metrics.pairs < 100 {
                notes.push(format!(
                    "Only {} pairs were measured; differences smaller than the intervals mean nothing.",
                    text.metrics.pairs
                ));
            }
            notes.push(
                "Where references were written by a model, as in XRec's data and in the contrastive stage here, closeness to \
                 them is agreement with that model and not proof that an explanation is true or useful to its reader."
                    .to_owned(),
            );
        }
        notes.push(
            "The paper's tables (arXiv 2507.06044) cannot be reproduced: no prompts or tables of it are public. Figures here \
             compare with other runs of this software under the same signatures only."
                .to_owned(),
        );
        notes
    }

    fn models(&self) -> impl Iterator<Item = &str> {
        let settings = [
            &self.settings.profile_model,
            &self.settings.explanation_model,
        ];
        let named = settings.into_iter().flatten().map(String::as_str);
        let wrote_profiles = self.profiles.iter().flat_map(|layer| layer.models.keys());
        let wrote_explanations = self
            .contrast
            .iter()
            .flat_map(|contrast| contrast.models.keys());
        named.chain(wrote_profiles.chain(wrote_explanations).map(String::as_str))
    }
}

fn is_offline(model: &str) -> bool {
    model
        .strip_prefix("offline")
        .is_some_and(|rest| !rest.starts_with(|next: char| next.is_alphanumeric()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_follow_from_what_was_run() {
        let settings = Settings {
            base: Some("tiny".into()),
            ..Settings::default()
        };
        let report = Report::new("x").settings(settings).note("mine");
        let notes = report.with_standing_notes().notes;
        assert!(notes[0].contains("tiny"), "{notes:?}");
        assert_eq!(notes.last().unwrap(), "mine");
        assert!(!notes.iter().any(|note| note.contains("offline")));
    }

    #[test]
    fn the_offline_model_is_known_by_any_of_its_names() {
        assert!(
            is_offline("offline") && is_offline("offline/1") && is_offline("offline:extractive")
        );
        assert!(!is_offline("offliner-7b") && !is_offline("gpt"));
    }

    #[test]
    fn both_files_are_written_and_a_missing_folder_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("new/run");
        let report = Report::new("x");
        report.write(&inside).unwrap();
        assert_eq!(
            std::fs::read_to_string(inside.join("report.json")).unwrap(),
            report.to_json().unwrap()
        );
        assert_eq!(
            std::fs::read_to_string(inside.join("report.html")).unwrap(),
            report.to_html().unwrap()
        );
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let failed = report.write(&file).unwrap_err().to_string();
        assert!(failed.contains("file: create failed"), "{failed}");
    }
}
