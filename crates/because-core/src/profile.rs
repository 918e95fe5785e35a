use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Node, Side};

/// The text of one node: what a user likes, or whom an item suits (the shape of RLMRec, arXiv 2310.15950).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// What later stages read.
    pub summary: String,
    /// Why the model wrote it; kept for people, never shown to another node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
}

/// One row of `profiles.layer{L}.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileRecord {
    /// Which side of the graph the node is on.
    pub kind: Side,
    /// The node's id.
    pub id: String,
    /// 0 for the initial profile, then one more per round of messages.
    pub layer: usize,
    /// The profile.
    #[serde(flatten)]
    pub profile: Profile,
    /// The neighbours whose profiles were read for it, in the order they were shown; empty at layer 0.
    pub neighbors: Vec<String>,
    /// The model that wrote it; `"data"` where the data brought it, `"none"` where nothing is known of the node.
    pub model: String,
    /// The fingerprint of the prompt template; empty where no prompt was sent.
    pub prompt: String,
}

impl ProfileRecord {
    /// The `model` of a profile that the data brought.
    pub const FROM_DATA: &str = "data";
    /// The `model` of a profile of which nobody knows anything: no text, no neighbour, no profile given.
    pub const FROM_NOTHING: &str = "none";

    /// Whether the profile says anything about the node.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.model != Self::FROM_NOTHING && !self.profile.summary.is_empty()
    }

    /// The node the profile is of.
    #[must_use]
    pub fn node(&self) -> Node {
        Node::new(self.kind, &self.id)
    }
}

/// All profiles of one layer, by node, in the order of the file (side, then id).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Profiles {
    layer: usize,
    records: BTreeMap<Node, ProfileRecord>,
}

impl Profiles {
    /// No profiles yet, for this layer.
    #[must_use]
    pub fn new(layer: usize) -> Self {
        Self {
            layer,
            records: BTreeMap::new(),
        }
    }

    /// Gathers the records of one layer; a node that comes twice keeps its last record.
    pub fn from_records(layer: usize, records: impl IntoIterator<Item = ProfileRecord>) -> Self {
        Self {
            layer,
            records: records
                .into_iter()
                .map(|record| (record.node(), record))
                .collect(),
        }
    }

    /// The layer they belong to.
    #[must_use]
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// Adds or replaces one.
    pub fn insert(&mut self, record: ProfileRecord) {
        self.records.insert(record.node(), record);
    }

    /// The record of a node.
    #[must_use]
    pub fn record(&self, node: &Node) -> Option<&ProfileRecord> {
        self.records.get(node)
    }

    /// What is known of a node, in text; `None` where nothing is ([`ProfileRecord::is_known`]).
    #[must_use]
    pub fn summary(&self, node: &Node) -> Option<&str> {
        self.records
            .get(node)
            .filter(|record| record.is_known())
            .map(|record| record.profile.summary.as_str())
    }

    /// All records, users before items, by id.
    #[must_use]
    pub fn records(&self) -> impl ExactSizeIterator<Item = &ProfileRecord> {
        self.records.values()
    }

    /// All records, taken apart, in the same order.
    #[must_use]
    pub fn into_records(self) -> impl ExactSizeIterator<Item = ProfileRecord> {
        self.records.into_values()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}
