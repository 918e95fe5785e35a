use std::collections::BTreeMap;

use because_core::{Explanation, ItemId, Prediction, Profiles, Side, UserId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Controls, Intervals, TextMetrics};

/// What was run. What is `None` was not part of the run and is left out of the report.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Settings {
    /// The model that wrote the profiles.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile_model: Option<String>,
    /// The model that explained under contrast.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explanation_model: Option<String>,
    /// The model that was tuned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// The seed of everything drawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Rounds of messages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<usize>,
    /// Neighbours sampled for a node and a round.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub neighbors: Option<usize>,
    /// Hard negatives beside a positive (k in the paper).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hard_negatives: Option<usize>,
    /// Random negatives beside a positive (m in the paper).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub random_negatives: Option<usize>,
    /// Answers asked for before a pair is given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<usize>,
    /// Which part of the data the figures are of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// Anything else worth a row: sampler, learning rate, prompt fingerprints.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// One layer of profiles in numbers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ProfileLayer {
    /// 0 for the initial profiles.
    pub layer: usize,
    /// Users with a record.
    pub users: usize,
    /// Items with a record.
    pub items: usize,
    /// Nodes of which nobody knows anything.
    pub unknown: usize,
    /// The mean length of the known profiles in words.
    pub mean_words: f64,
    /// Who wrote how many.
    pub models: BTreeMap<String, usize>,
}

impl ProfileLayer {
    /// Counts the profiles of one layer.
    #[must_use]
    pub fn of(profiles: &Profiles) -> Self {
        let mut counted = Self {
            layer: profiles.layer(),
            ..Self::default()
        };
        let mut words = 0;
        for record in profiles.records() {
            match record.kind {
                Side::User => counted.users += 1,
                Side::Item => counted.items += 1,
            }
            *counted.models.entry(record.model.clone()).or_default() += 1;
            if record.is_known() {
                words += record.profile.summary.split_whitespace().count();
            } else {
                counted.unknown += 1;
            }
        }
        counted.mean_words = words as f64 / (profiles.len() - counted.unknown).max(1) as f64;
        counted
    }
}

/// Training in numbers; how long it took is left out, so that the same run gives the same report.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct TrainingSummary {
    /// Examples learnt from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub examples: Option<usize>,
    /// Parameters that moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trainable_parameters: Option<u64>,
    /// Parameters in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_parameters: Option<u64>,
    /// The training loss, step by step.
    pub losses: Vec<LossPoint>,
    /// The loss on examples kept aside.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub valid_losses: Vec<LossPoint>,
}

impl TrainingSummary {
    /// A training with this loss curve.
    #[must_use]
    pub fn new(losses: Vec<LossPoint>) -> Self {
        Self {
            losses,
            ..Self::default()
        }
    }
}

/// The loss after one step. It reads a line of the training log as it is; the line's other fields pass.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LossPoint {
    /// The step, from one.
    pub step: u64,
    /// The mean cross-entropy per supervised token, in nats.
    pub loss: f64,
}

/// The figures of one set of predictions, never without what they must be read against.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TextSection {
    /// The figures.
    pub metrics: TextMetrics,
    /// How far three of them would move with other pairs.
    pub intervals: Intervals,
    /// What they are for predictions that know nothing of the pair.
    pub controls: Controls,
}

/// One explanation to read, from the contrastive stage or from the tuned model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Sample {
    /// Whom it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<UserId>,
    /// What it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item: Option<ItemId>,
    /// What the item is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item_title: Option<String>,
    /// The explanation.
    pub explanation: String,
    /// What it was measured against.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Whether the model found the item by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted: Option<bool>,
    /// How many answers it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<usize>,
}

impl Sample {
    /// The same with the name of the item, which reads better than its id.
    #[must_use]
    pub fn item_title(mut self, title: impl Into<String>) -> Self {
        self.item_title = Some(title.into());
        self
    }
}

impl From<&Explanation> for Sample {
    fn from(row: &Explanation) -> Self {
        Self {
            user: Some(row.user.clone()),
            item: Some(row.item.clone()),
            explanation: row.explanation.clone(),
            accepted: Some(row.accepted),
            attempts: Some(row.attempts),
            ..Self::default()
        }
    }
}

impl From<&Prediction> for Sample {
    fn from(pair: &Prediction) -> Self {
        Self {
            user: pair.user.clone(),
            item: pair.item.clone(),
            explanation: pair.prediction.clone(),
            reference: Some(pair.reference.clone()),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use because_core::{Profile, ProfileRecord};

    use super::*;

    #[test]
    fn a_layer_is_counted_with_what_nobody_knows() {
        let record = |kind, id: &str, summary: &str, model: &str| ProfileRecord {
            kind,
            id: id.into(),
            layer: 1,
            profile: Profile {
                summary: summary.into(),
                reasoning: None,
            },
            neighbors: Vec::new(),
            model: model.into(),
            prompt: String::new(),
        };
        let profiles = Profiles::from_records(
            1,
            [
                record(Side::User, "a", "likes slow novels", "offline"),
                record(Side::Item, "a", "a novel", "offline"),
                record(Side::Item, "b", "", ProfileRecord::FROM_NOTHING),
            ],
        );
        let layer = ProfileLayer::of(&profiles);
        assert_eq!(
            (layer.layer, layer.users, layer.items, layer.unknown),
            (1, 1, 2, 1)
        );
        assert_eq!(layer.mean_words, 2.5);
        assert_eq!(layer.models["offline"], 2);
    }

    #[test]
    fn a_line_of_the_training_log_is_a_point() {
        let line = r#"{"step":3,"loss":1.25,"learning_rate":0.0001,"grad_norm":0.5,"tokens":9,"seconds":1.0}"#;
        assert_eq!(
            serde_json::from_str::<LossPoint>(line).unwrap(),
            LossPoint {
                step: 3,
                loss: 1.25
            }
        );
    }
}
