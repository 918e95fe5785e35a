use serde::{Deserialize, Serialize};

use crate::{ItemId, Split, UserId};

/// What a candidate is doing in a contrastive prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The item the user chose.
    Positive,
    /// An item like it that the user never touched.
    Hard,
    /// Any other item that the user never touched.
    Random,
}

/// One of the items among which the model had to find the positive, in the order shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// The item.
    pub item: ItemId,
    /// What it is doing here.
    pub role: Role,
    /// What scored a hard negative.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scorer: Option<String>,
    /// Its rank by that scorer, from zero, over all items.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// Its score by that scorer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
}

/// One row of `explanations.jsonl`: why this user and this item belong together, with the trail of how it was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// Who.
    pub user: UserId,
    /// What they chose.
    pub item: ItemId,
    /// The explanation that came with the last pick.
    pub explanation: String,
    /// What the model thought on the way to its last answer, where it shows that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// Whether the model found the item by itself; only then is the explanation ground truth.
    pub accepted: bool,
    /// How many answers were asked for.
    pub attempts: usize,
    /// What it picked, attempt by attempt.
    pub picks: Vec<ItemId>,
    /// The candidates in the order shown.
    pub candidates: Vec<Candidate>,
    /// Whether the model was told the right item before it explained.
    pub answer_shown: bool,
    /// The model that explained.
    pub model: String,
    /// The fingerprint of the prompt template.
    pub prompt: String,
    /// The seed of the negatives and of the order.
    pub seed: u64,
}

/// One row of `references.jsonl`: a reference explanation that the data brings, to measure against.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// Who.
    pub user: UserId,
    /// What.
    pub item: ItemId,
    /// The reference text.
    pub explanation: String,
    /// The split of its pair in the graph that others trained on, where the data tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub graph_split: Option<Split>,
}
