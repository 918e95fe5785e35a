use std::path::Path;

use because_core::Side;
use serde::Serialize;

use super::RecordKind;
use crate::plan::{ColdNode, Counts, Step};
use crate::{SplitCounts, SplitSource};

/// What became of every row: `read = taken + rejected + filtered`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ImportSummary {
    /// The files in the order they were read.
    pub files: Vec<ImportedFile>,
    /// Rows of all files; blank lines and headers are none.
    pub read: u64,
    /// Rows that are in the project now: `interactions + users + items + references + merged`.
    pub taken: u64,
    /// Rows that could not be taken, each with its reason in `rejected.jsonl`.
    pub rejected: u64,
    /// Rows that were fine and that a filter left out.
    pub filtered: Filtered,
    /// What there was before the first filter: interactions, and the users and items that have one.
    pub before: Counts,
    /// What each filter removed and left, in the order they were run.
    pub steps: Vec<Step>,
    /// Interactions taken.
    pub interactions: u64,
    /// Users with a row of their own: lines of `users.jsonl`.
    pub users: u64,
    /// Items with a row of their own: lines of `items.jsonl`.
    pub items: u64,
    /// Reference explanations taken.
    pub references: u64,
    /// Rows of users and items taken that are no line of their own: an earlier row is about the same node, and they complete its
    /// line.
    pub merged: u64,
    /// Values of such rows that were given up, because an earlier row says otherwise.
    pub conflicts: Conflicts,
    /// Users with a row of their own and no interaction; they are kept.
    pub only_in_users_file: u64,
    /// Items with a row of their own and no interaction; they are kept.
    pub only_in_items_file: u64,
    /// Users of whom only interactions are known.
    pub users_only_in_interactions: u64,
    /// Items of which only interactions are known.
    pub items_only_in_interactions: u64,
    /// References whose user and item have no interaction; they are kept.
    pub references_without_interaction: u64,
    /// Interactions by split.
    pub splits: SplitCounts,
    /// Who decided the splits.
    pub split: SplitSource,
    /// How many users and items were made cold; `cold.jsonl` names them.
    pub cold: ColdCounts,
    /// Rows that brought a split which was not kept.
    pub splits_replaced: u64,
    /// The commonest reasons of rejection, the commonest first.
    pub reasons: Vec<ReasonCount>,
}

/// One file that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ImportedFile {
    /// As it was named, or found in a folder that was named.
    pub file: String,
    /// What its rows were taken for; absent where it has none that could be read.
    pub kind: Option<RecordKind>,
    /// How many rows it has.
    pub read: u64,
    /// How many of them were not taken.
    pub rejected: u64,
}

impl ImportedFile {
    pub(super) fn unread(path: &Path) -> Self {
        Self {
            file: path.display().to_string(),
            kind: None,
            read: 0,
            rejected: 0,
        }
    }
}

/// Rows that a filter left out: interactions, and the rows of users and items that lost their last interaction by it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Filtered {
    /// Outside the range of dates, or without a time.
    pub date_range: u64,
    /// Rated below the minimum, or not rated.
    pub min_rating: u64,
    /// Of users that were not drawn.
    pub sample_users: u64,
    /// More than one user may have.
    pub max_per_user: u64,
    /// Outside the k-core.
    pub k_core: u64,
}

impl Filtered {
    /// All steps together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.date_range + self.min_rating + self.sample_users + self.max_per_user + self.k_core
    }

    /// Counts rows that a step of this name left out.
    pub(super) fn add(&mut self, filter: &str, rows: u64) {
        match filter {
            "date_range" => self.date_range += rows,
            "min_rating" => self.min_rating += rows,
            "sample_users" => self.sample_users += rows,
            "max_per_user" => self.max_per_user += rows,
            _ => self.k_core += rows,
        }
    }
}

/// What rows about one node say differently, where the later row was taken because it says something new as well. Of each field the
/// first row's value is in the project, the other in `conflicts.jsonl`. (A row that only contradicts is rejected, and stands in
/// `rejected.jsonl`.) As with rejected rows, filters change nothing here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Conflicts {
    /// How many values: lines of `conflicts.jsonl`.
    pub count: u64,
    /// The ten fields that have the most.
    pub fields: Vec<FieldConflicts>,
}

/// A field of users or items, and how many values of it were given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FieldConflicts {
    /// Whether users have the field or items.
    pub kind: RecordKind,
    /// Where it stands in a line: `title`, `attributes.price`.
    pub field: String,
    /// How many values.
    pub count: u64,
    /// The first of them: file and line.
    pub first: String,
}

/// Attributes can have names without end; of those beyond this the values are only counted.
const MOST_FIELDS: usize = 1000;

impl Conflicts {
    /// Counts one more value that was given up.
    pub(super) fn count(&mut self, kind: RecordKind, field: &str, file: &str, line: u64) {
        self.count += 1;
        let is_it = |known: &&mut FieldConflicts| known.kind == kind && known.field == field;
        if let Some(known) = self.fields.iter_mut().find(is_it) {
            known.count += 1;
        } else if self.fields.len() < MOST_FIELDS {
            self.fields.push(FieldConflicts {
                kind,
                field: field.to_owned(),
                count: 1,
                first: format!("{file} line {line}"),
            });
        }
    }

    /// With the ten fields that have the most, equals in the order they were met.
    pub(super) fn top(mut self) -> Self {
        self.fields
            .sort_by_key(|field| std::cmp::Reverse(field.count));
        self.fields.truncate(10);
        self
    }
}

/// How many nodes were made cold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ColdCounts {
    /// Users.
    pub users: u64,
    /// Items.
    pub items: u64,
}

impl ColdCounts {
    pub(super) fn of(cold: &[ColdNode]) -> Self {
        let of_side = |side| cold.iter().filter(|node| node.kind == side).count() as u64;
        Self {
            users: of_side(Side::User),
            items: of_side(Side::Item),
        }
    }
}

/// A reason and how often it was met.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ReasonCount {
    /// The reason without the value at fault.
    pub reason: String,
    /// How many rows.
    pub count: u64,
    /// The first of them: file and line.
    pub first: String,
}

impl ReasonCount {
    /// Counts one more row that was not taken; rows are counted in the order of the files and their lines.
    pub(super) fn count(reasons: &mut Vec<Self>, kind: &str, file: &str, line: u64) {
        match reasons.iter_mut().find(|reason| reason.reason == kind) {
            Some(reason) => reason.count += 1,
            None => reasons.push(Self {
                reason: kind.to_owned(),
                count: 1,
                first: format!("{file} line {line}"),
            }),
        }
    }

    /// The ten commonest, equals in the order they were met.
    pub(super) fn top(mut reasons: Vec<Self>) -> Vec<Self> {
        reasons.sort_by_key(|reason| std::cmp::Reverse(reason.count));
        reasons.truncate(10);
        reasons
    }
}
