//! Reads raw files into a project directory.

mod gather;
mod record;
mod rows;
mod source;
mod summary;
pub(crate) mod time;

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use because_core::{Error as FileError, Interaction, Project, jsonl};
use serde::{Deserialize, Serialize};

use self::gather::Gathered;
pub use self::record::RecordKind;
pub use self::summary::{ColdCounts, Filtered, ImportSummary, ImportedFile, ReasonCount};
use crate::plan::{Applied, ColdNode, Plan};
use crate::table::Table;
use crate::{Error, Ratio, Result, SplitCounts, SplitStrategy};

/// How the files to import are written. Both may be packed (`.gz`, `.zst`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Format {
    /// One JSON object a line.
    Jsonl,
    /// Columns named by the first row, separated by commas, or by tabs in a `.tsv`.
    Csv,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Jsonl => "jsonl",
            Self::Csv => "csv",
        })
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "jsonl" => Ok(Self::Jsonl),
            "csv" => Ok(Self::Csv),
            other => Err(Error::Setting {
                name: "format",
                value: format!("{other:?}"),
                reason: "is not jsonl or csv",
            }),
        }
    }
}

/// Reads people's files and writes a project directory: interactions with their splits, users, items, references, and
/// every row that was not taken.
///
/// What a file holds is told by its columns: a user and an item are an interaction (with an explanation: a reference), a
/// user alone is a user, an item alone an item. Columns go by the names in use (`userId`, `reviewerID`, `parent_asin`,
/// `stars`, `reviewText`, `unixReviewTime`, ...); what has no place of its own becomes an attribute of the user or item. Of
/// two interactions of one pair the later is kept, or the first where a time is missing.
///
/// ```no_run
/// use because_core::Project;
/// use because_graph::{Format, Import, SplitStrategy};
///
/// let summary = Import::new(Format::Csv, ["ratings.csv", "movies.csv"])
///     .min_rating(4.0)
///     .k_core(5)
///     .split(SplitStrategy::Time)
///     .ratio("8:1:1".parse()?)
///     .run(&Project::new("movies"))?;
/// assert_eq!(summary.read, summary.taken + summary.rejected + summary.filtered.total());
/// # Ok::<(), because_graph::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Import {
    format: Format,
    paths: Vec<PathBuf>,
    plan: Plan,
}

impl Import {
    /// Of these files. In a folder the files named `users`, `items`, `interactions`, `references` and `explanations*` are
    /// read.
    #[must_use]
    pub fn new(format: Format, paths: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        Self {
            format,
            paths: paths.into_iter().map(Into::into).collect(),
            plan: Plan::default(),
        }
    }

    /// Filters, splits and makes cold by this plan, in place of whatever was set before.
    #[must_use]
    pub fn plan(mut self, plan: Plan) -> Self {
        self.plan = plan;
        self
    }

    /// Leaves out what is rated below this, and what is not rated at all.
    #[must_use]
    pub fn min_rating(mut self, least: impl Into<Option<f64>>) -> Self {
        self.plan.filter.min_rating = least.into();
        self
    }

    /// Leaves out users and items with fewer interactions than this among those that stay; it comes after every other filter.
    #[must_use]
    pub fn k_core(mut self, k: impl Into<Option<usize>>) -> Self {
        self.plan.filter.k_core(k.into());
        self
    }

    /// Splits this way, whatever the rows say. Without it the rows' own splits are kept where every interaction has one,
    /// and drawn by [`SplitStrategy::Random`] where not.
    #[must_use]
    pub fn split(mut self, strategy: impl Into<Option<SplitStrategy>>) -> Self {
        self.plan.split = strategy.into();
        self
    }

    /// The proportions of train, valid and test; 8:1:1 unless it is said.
    #[must_use]
    pub fn ratio(mut self, ratio: Ratio) -> Self {
        self.plan.ratio = ratio;
        self
    }

    /// The lot by which splits are drawn; 0 unless it is said.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.plan.seed = seed;
        self
    }

    /// Reads everything, then writes everything; a file of an earlier import is replaced.
    ///
    /// # Errors
    /// When a path is missing or holds nothing to read, a header makes no sense, no interaction is left (the rejected rows
    /// are then written all the same), a split by time meets an interaction without one, or the disk fails.
    pub fn run(&self, out: &Project) -> Result<ImportSummary> {
        self.plan.check()?;
        let files = source::files(self.format, &self.paths)?;
        source::keep_apart(&files, out)?;
        let mut gathered = Gathered::read(self.format, &files)?;

        let mut interactions: Vec<Interaction> = std::mem::take(&mut gathered.interactions)
            .into_values()
            .map(|(interaction, _)| interaction)
            .collect();
        let table = Table::of(&interactions)?;
        let applied = self.plan.apply(&table)?;
        let filtered = leave_out(&applied, &table, &mut gathered);
        let mut splits = applied.splits.iter();
        interactions.retain_mut(|interaction| {
            interaction.split = splits.next().copied().flatten();
            interaction.split.is_some()
        });

        std::fs::create_dir_all(out.root())
            .map_err(|source| FileError::io("make folder", out.root(), source))?;
        if interactions.is_empty() {
            write_rejected(out, &gathered)?;
            return Err(nothing_left(out, &gathered, filtered));
        }
        let summary = summarize(&gathered, &interactions, filtered, &applied);
        write(out, &gathered, &interactions, &applied.cold)?;
        Ok(summary)
    }
}

/// Takes away the rows of users and items that lost their last interaction. A node that had none before is not the
/// filters' business: it is known by its text alone, and stays.
fn leave_out(applied: &Applied, table: &Table, gathered: &mut Gathered) -> Filtered {
    let mut filtered = Filtered::default();
    for step in &applied.steps {
        filtered.add(step.filter, step.removed.interactions);
    }
    let mut stays = |lost: Option<Option<u8>>| {
        let step = lost.flatten().map(|step| &applied.steps[step as usize]);
        if let Some(step) = step {
            filtered.add(step.filter, 1);
        }
        step.is_none()
    };
    gathered.users.retain(|id, _| {
        let known = table.users.get(id.as_str());
        stays(known.map(|user| applied.users_lost[user as usize]))
    });
    gathered.items.retain(|id, _| {
        let known = table.items.get(id.as_str());
        stays(known.map(|item| applied.items_lost[item as usize]))
    });
    filtered
}

fn summarize(
    gathered: &Gathered,
    interactions: &[Interaction],
    filtered: Filtered,
    applied: &Applied,
) -> ImportSummary {
    let mut splits = SplitCounts::default();
    let mut users = HashSet::new();
    let mut items = HashSet::new();
    let mut pairs = HashSet::new();
    for interaction in interactions {
        splits.add(interaction.split.unwrap_or(because_core::Split::Train));
        users.insert(&interaction.user);
        items.insert(&interaction.item);
        pairs.insert((&interaction.user, &interaction.item));
    }
    let with_user_row = users
        .iter()
        .filter(|id| gathered.users.contains_key(**id))
        .count();
    let with_item_row = items
        .iter()
        .filter(|id| gathered.items.contains_key(**id))
        .count();
    let known_pairs = gathered
        .references
        .keys()
        .filter(|(user, item)| pairs.contains(&(user, item)))
        .count();
    let [interactions, user_rows, item_rows, references] = [
        interactions.len(),
        gathered.users.len(),
        gathered.items.len(),
        gathered.references.len(),
    ];
    ImportSummary {
        files: gathered.files.clone(),
        read: gathered.rows_read(),
        taken: (interactions + user_rows + item_rows + references) as u64,
        rejected: gathered.rejected.len() as u64,
        filtered,
        before: applied.before,
        steps: applied.steps.clone(),
        interactions: interactions as u64,
        users: user_rows as u64,
        items: item_rows as u64,
        references: references as u64,
        only_in_users_file: (user_rows - with_user_row) as u64,
        only_in_items_file: (item_rows - with_item_row) as u64,
        users_only_in_interactions: (users.len() - with_user_row) as u64,
        items_only_in_interactions: (items.len() - with_item_row) as u64,
        references_without_interaction: (references - known_pairs) as u64,
        splits,
        split: applied.split.clone(),
        cold: ColdCounts::of(&applied.cold),
        splits_replaced: applied.splits_replaced,
        reasons: reasons(gathered),
    }
}

fn reasons(gathered: &Gathered) -> Vec<ReasonCount> {
    ReasonCount::top(
        gathered
            .rejected
            .iter()
            .map(|refused| (refused.kind, &refused.row)),
    )
}

/// The interactions go last: where they are, the rest is there too.
fn write(
    out: &Project,
    gathered: &Gathered,
    interactions: &[Interaction],
    cold: &[ColdNode],
) -> Result<()> {
    write_rejected(out, gathered)?;
    let users = gathered.users.values().map(|(user, _)| user);
    jsonl::write(&out.path("users.jsonl"), users)?;
    let items = gathered.items.values().map(|(item, _)| item);
    jsonl::write(&out.path("items.jsonl"), items)?;
    let references = gathered.references.values().map(|(reference, _)| reference);
    write_or_remove(&out.path("references.jsonl"), references)?;
    write_or_remove(&out.path("cold.jsonl"), cold.iter())?;
    jsonl::write(&out.path("interactions.jsonl"), interactions)?;
    Ok(())
}

/// A file of an earlier import goes where there is nothing to write: measuring against it would mix two data sets.
fn write_or_remove<T: Serialize>(
    path: &Path,
    rows: impl ExactSizeIterator<Item = T>,
) -> Result<()> {
    if rows.len() > 0 {
        jsonl::write(path, rows)?;
    } else if path.exists() {
        std::fs::remove_file(path).map_err(|source| FileError::io("remove", path, source))?;
    }
    Ok(())
}

fn write_rejected(out: &Project, gathered: &Gathered) -> Result<()> {
    let rows = gathered.rejected.iter().map(|refused| &refused.row);
    jsonl::write(&out.path("rejected.jsonl"), rows)?;
    Ok(())
}

fn nothing_left(out: &Project, gathered: &Gathered, filtered: Filtered) -> Error {
    let mut account = format!(
        "{} rows read, {} rejected, {} outside the date range, {} below or without min_rating, {} of users not drawn, \
         {} over max_per_user, {} outside the k_core, {} users, {} items, {} references",
        gathered.rows_read(),
        gathered.rejected.len(),
        filtered.date_range,
        filtered.min_rating,
        filtered.sample_users,
        filtered.max_per_user,
        filtered.k_core,
        gathered.users.len(),
        gathered.items.len(),
        gathered.references.len(),
    );
    if let Some(most) = reasons(gathered).first() {
        account += &format!(
            "; rejected most often for: {} (first at {}), all in {}",
            most.reason,
            most.first,
            out.path("rejected.jsonl").display()
        );
    }
    account += if filtered.total() > 0 {
        "; loosen the filters"
    } else if !gathered.references.is_empty() {
        "; a row with an explanation is a reference, so add a file of interactions (user, item)"
    } else {
        "; give a file whose rows have a user and an item"
    };
    Error::NoInteractions { account }
}
