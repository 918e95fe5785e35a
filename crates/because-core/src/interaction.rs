use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{ItemId, UserId};

/// What the data says about a node beside its title and text: brand, categories, city, price.
pub type Attributes = serde_json::Map<String, serde_json::Value>;

/// Which part of the experiment an interaction belongs to. Only [`Split::Train`] reaches a profile, a negative's score or
/// a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Seen by everything.
    #[serde(alias = "trn")]
    Train,
    /// For choosing settings.
    #[serde(alias = "val", alias = "validation", alias = "dev")]
    Valid,
    /// For the figures in the report.
    #[serde(alias = "tst")]
    Test,
    /// Taken away to make a node cold: nothing learns from it and nothing is measured on it. It is kept because what a user
    /// is known to have chosen is no negative.
    Hidden,
}

impl Split {
    /// All of them, in order.
    pub const ALL: [Self; 4] = [Self::Train, Self::Valid, Self::Test, Self::Hidden];

    /// Those that explanations are made for.
    pub const USED: [Self; 3] = [Self::Train, Self::Valid, Self::Test];

    /// `"train"`, `"valid"`, `"test"` or `"hidden"`, as in the files.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Valid => "valid",
            Self::Test => "test",
            Self::Hidden => "hidden",
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Split {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim().to_ascii_lowercase().as_str() {
            "train" | "trn" => Ok(Self::Train),
            "valid" | "val" | "validation" | "dev" => Ok(Self::Valid),
            "test" | "tst" => Ok(Self::Test),
            "hidden" => Ok(Self::Hidden),
            other => Err(format!(
                "split {other:?} is not train, valid, test or hidden"
            )),
        }
    }
}

/// One row of `interactions.jsonl`: somebody had to do with something.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Interaction {
    /// Who.
    pub user: UserId,
    /// With what.
    pub item: ItemId,
    /// How they rated it, on the data's own scale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rating: Option<f64>,
    /// What they wrote about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub review: Option<String>,
    /// When, in seconds since 1970 (UTC).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<i64>,
    /// The part of the experiment, once it is decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<Split>,
}

impl Interaction {
    /// A bare interaction without rating, review, time or split.
    pub fn new(user: impl Into<UserId>, item: impl Into<ItemId>) -> Self {
        Self {
            user: user.into(),
            item: item.into(),
            rating: None,
            review: None,
            timestamp: None,
            split: None,
        }
    }
}

/// One row of `users.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct User {
    /// Who.
    pub user: UserId,
    /// A profile that the data already brings; it becomes the layer-0 profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// What else is known.
    #[serde(default, skip_serializing_if = "Attributes::is_empty")]
    pub attributes: Attributes,
}

/// One row of `items.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// What.
    pub item: ItemId,
    /// Its name for people. Names repeat in real data, so they identify nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// The seller's or publisher's own words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// A profile that the data already brings; it becomes the layer-0 profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// What else is known.
    #[serde(default, skip_serializing_if = "Attributes::is_empty")]
    pub attributes: Attributes,
}

/// One row of `rejected.jsonl`: an input row that was not taken, kept whole, with where it stood and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rejected {
    /// The input file as it was named on the command line.
    pub file: String,
    /// The line in it, counted from one.
    pub line: u64,
    /// The field at fault, where one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What is wrong with it.
    pub reason: String,
    /// The row as it was read.
    pub record: serde_json::Value,
}
