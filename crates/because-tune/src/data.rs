use std::path::Path;

use because_core::{SftExample, jsonl};
use serde::{Deserialize, Serialize};

use crate::error::{Result, TuneError};

/// A row of tokens, for training on what was tokenised elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRow {
    /// The tokens.
    pub input_ids: Vec<u32>,
    /// For each token the same token where it is to be learnt and -100 where not; all are learnt if this is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<i64>>,
}

impl TokenRow {
    pub(crate) fn is_learnt(&self, at: usize) -> bool {
        self.labels.as_ref().is_none_or(|labels| labels[at] != -100)
    }
}

/// What a run learns from: chats, or rows of tokens, with the line each came from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TrainSet {
    pub(crate) rows: Vec<(u64, Row)>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub(crate) enum Row {
    Tokens(TokenRow),
    Chat(SftExample),
}

impl TrainSet {
    /// Chats whose last turn, the assistant's, is to be learnt; messages call the first one line 1.
    #[must_use]
    pub fn from_examples(examples: impl IntoIterator<Item = SftExample>) -> Self {
        Self {
            rows: (1..).zip(examples.into_iter().map(Row::Chat)).collect(),
        }
    }

    /// Rows of tokens, taken as they are.
    #[must_use]
    pub fn from_rows(rows: impl IntoIterator<Item = TokenRow>) -> Self {
        Self {
            rows: (1..).zip(rows.into_iter().map(Row::Tokens)).collect(),
        }
    }

    /// Reads a JSON Lines file of `{"messages": [...]}` or `{"input_ids": [...], "labels": [...]}`.
    ///
    /// # Errors
    /// When the file cannot be read or a line is neither; the error names the line.
    pub fn read(path: &Path) -> Result<Self> {
        let (mut rows, mut lines) = (Vec::new(), jsonl::read::<serde_json::Value>(path)?);
        while let Some(value) = lines.next() {
            let (line, value) = (lines.line(), value?);
            let fault = |reason: String| {
                TuneError::File(because_core::Error::Line {
                    path: path.to_owned(),
                    line,
                    reason,
                })
            };
            let row = if value.get("input_ids").is_some() {
                TokenRow::deserialize(&value).map(Row::Tokens)
            } else if value.get("messages").is_some() {
                SftExample::deserialize(&value).map(Row::Chat)
            } else {
                return Err(fault("has neither messages nor input_ids".into()));
            };
            rows.push((line, row.map_err(|error| fault(error.to_string()))?));
        }
        Ok(Self { rows })
    }

    /// How many rows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(crate) fn has_chats(&self) -> bool {
        self.rows.iter().any(|(_, row)| matches!(row, Row::Chat(_)))
    }
}

/// A row ready to be learnt from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) ids: Vec<u32>,
    /// Positions whose *next* token is to be learnt, and that token.
    pub(crate) targets: Vec<(u32, u32)>,
    /// Tokens of the row as it was given.
    pub(crate) length: usize,
    /// Where it comes from; 0 for nowhere that could be looked up.
    pub(crate) line: u64,
}

impl Sample {
    /// From tokens and which of them to learn. The first token has nothing before it, so it is never learnt; what
    /// follows the last token learnt, and that token itself, need no computing: nothing is predicted from them.
    pub(crate) fn new(mut ids: Vec<u32>, learnt: impl Fn(usize) -> bool) -> Self {
        let length = ids.len();
        let targets: Vec<(u32, u32)> = (1..length)
            .filter(|&at| learnt(at))
            .map(|at| (at as u32 - 1, ids[at]))
            .collect();
        ids.truncate(targets.last().map_or(0, |&(at, _)| at as usize + 1));
        Self {
            ids,
            targets,
            length,
            line: 0,
        }
    }

    /// The same, known by its line.
    pub(crate) fn at(self, line: u64) -> Self {
        Self { line, ..self }
    }

    /// # Errors
    /// When labels contradict the tokens or a token is unknown to the model.
    pub(crate) fn from_row(
        row: &TokenRow,
        max_length: usize,
        vocab_size: usize,
    ) -> Result<Self, String> {
        let n = row.input_ids.len().min(max_length);
        if let Some(id) = row.input_ids.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(format!(
                "input_ids: {id} is not below vocab_size {vocab_size}"
            ));
        }
        if let Some(labels) = &row.labels {
            if labels.len() != row.input_ids.len() {
                return Err(format!(
                    "labels: {} for {} input_ids",
                    labels.len(),
                    row.input_ids.len()
                ));
            }
            let differs = |(&label, &id): (&i64, &u32)| label != -100 && label != i64::from(id);
            if let Some(at) = labels.iter().zip(&row.input_ids).position(differs) {
                return Err(format!(
                    "labels[{at}]: {} is neither -100 nor the token",
                    labels[at]
                ));
            }
        }
        Ok(Self::new(row.input_ids[..n].to_vec(), |at| {
            row.is_learnt(at)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_positions_before_a_learnt_token_are_targets_and_the_rest_is_not_computed() {
        let row = TokenRow {
            input_ids: vec![5, 6, 7, 8, 9],
            labels: Some(vec![-100, -100, 7, 8, -100]),
        };
        let sample = Sample::from_row(&row, 10, 10).unwrap();
        assert_eq!(
            (sample.ids.as_slice(), sample.targets.as_slice()),
            (&[5, 6, 7][..], &[(1, 7), (2, 8)][..])
        );
        assert_eq!(sample.length, 5);
        assert!(
            Sample::from_row(&row, 2, 10).unwrap().targets.is_empty(),
            "the answer is wholly cut"
        );
    }

    #[test]
    fn a_label_that_is_not_its_token_is_refused() {
        let row = TokenRow {
            input_ids: vec![1, 2],
            labels: Some(vec![1, 3]),
        };
        assert!(
            Sample::from_row(&row, 9, 9)
                .unwrap_err()
                .starts_with("labels[1]: 3")
        );
    }

    #[test]
    fn both_kinds_of_line_are_read_and_others_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.jsonl");
        std::fs::write(
            &path,
            "{\"input_ids\":[1,2]}\n\n{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}\n",
        )
        .unwrap();
        let lines: Vec<u64> = TrainSet::read(&path)
            .unwrap()
            .rows
            .iter()
            .map(|(line, _)| *line)
            .collect();
        assert_eq!(lines, [1, 3], "a blank line is a line");
        std::fs::write(&path, "{\"input_ids\":[1,2]}\n{\"text\":1}\n").unwrap();
        let error = TrainSet::read(&path).unwrap_err().to_string();
        assert!(
            error.ends_with("line 2: has neither messages nor input_ids"),
            "{error}"
        );
    }
}
