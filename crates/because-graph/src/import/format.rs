use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::rule::Rule;
use crate::{Error, Result};

/// How the files to import are written. All may be packed (`.gz`, `.zst`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Format {
    /// One JSON object a line.
    Jsonl,
    /// Columns named by the first row, separated by commas, or by tabs in a `.tsv`.
    Csv,
}

impl Format {
    /// Every format that can be named.
    pub const ALL: [Self; 2] = [Self::Jsonl, Self::Csv];

    /// Its name, as it is given on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Jsonl => "jsonl",
            Self::Csv => "csv",
        }
    }

    /// How its files are read; the first rule that a file's name fits is the one, and the last one fits all.
    pub(super) fn rules(self) -> &'static [Rule] {
        match self {
            Self::Jsonl => super::formats::JSONL,
            Self::Csv => super::formats::CSV,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let known = Self::ALL.into_iter().find(|format| format.as_str() == text);
        known.ok_or_else(|| Error::Setting {
            name: "format",
            value: format!("{text:?}"),
            reason: "is not jsonl or csv",
        })
    }
}
