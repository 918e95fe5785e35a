//! Reads raw files into a project directory.

mod cells;
mod change;
mod entries;
mod filter;
mod format;
mod formats;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod gather;
mod literal;
mod markup;
mod parquet;
mod parse;
mod quick;
mod record;
mod rows;
mod rule;
mod source;
mod summary;
mod time;

use std::collections::HashSet;
use std::path::PathBuf;

use because_core::{Error as FileError, Interaction, Project, jsonl};

use self::filter::Filter;
pub use self::format::Format;
use self::gather::Gathered;
pub use self::record::RecordKind;
pub use self::summary::{Filtered, ImportSummary, ImportedFile, ReasonCount, SplitSource};
use crate::{Error, Ratio, Result, SplitCounts, SplitStrategy};

/// Reads people's files and writes a project directory: interactions with their splits, users, items, references, and
/// every row that was not taken.
///
/// What a file holds is told by its name where the [`Format`] knows it, and by its columns else: a user and an item are an
/// interaction (with an explanation: a reference), a user alone is a user, an item alone an item. What has no place of its own
/// becomes an attribute of the user or item. Of two interactions of one pair the later is kept, or the first where a time is
/// missing.
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
    min_rating: Option<f64>,
    k_core: Option<usize>,
    split: Option<SplitStrategy>,
    ratio: Ratio,
    seed: u64,
}

impl Import {
    /// Of these files, and of those in these folders that the [`Format`] looks for.
    #[must_use]
    pub fn new(format: Format, paths: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        Self {
            format,
            paths: paths.into_iter().map(Into::into).collect(),
            min_rating: None,
            k_core: None,
            split: None,
            ratio: Ratio::default(),
            seed: 0,
        }
    }

    /// Leaves out what is rated below this, and what is not rated at all.
    #[must_use]
    pub fn min_rating(mut self, least: impl Into<Option<f64>>) -> Self {
        self.min_rating = least.into();
        self
    }

    /// Leaves out users and items with fewer interactions than this among those that stay; it comes after the rating.
    #[must_use]
    pub fn k_core(mut self, k: impl Into<Option<usize>>) -> Self {
        self.k_core = k.into();
        self
    }

    /// Splits this way, whatever the rows say. Without it the rows' own splits are kept where every interaction has one,
    /// and drawn by [`SplitStrategy::Random`] where not.
    #[must_use]
    pub fn split(mut self, strategy: impl Into<Option<SplitStrategy>>) -> Self {
        self.split = strategy.into();
        self
    }

    /// The proportions of train, valid and test; 8:1:1 unless it is said.
    #[must_use]
    pub fn ratio(mut self, ratio: Ratio) -> Self {
        self.ratio = ratio;
        self
    }

    /// The lot by which splits are drawn; 0 unless it is said.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Reads everything, then writes everything; a file of an earlier import is replaced.
    ///
    /// # Errors
    /// When a path is missing or holds nothing to read, a header makes no sense, no interaction is left (the rejected rows
    /// are then written all the same), a split by time meets an interaction without one, or the disk fails.
    pub fn run(&self, out: &Project) -> Result<ImportSummary> {
        if let Some(least) = self.min_rating.filter(|least| !least.is_finite()) {
            return Err(Error::Setting {
                name: "min_rating",
                value: least.to_string(),
                reason: "is not a finite number",
            });
        }
        let files = source::files(self.format, &self.paths)?;
        source::keep_apart(&files, out)?;
        let mut gathered = Gathered::read(self.format, &files)?;

        let mut interactions: Vec<Interaction> = std::mem::take(&mut gathered.interactions)
            .into_values()
            .map(|(interaction, _)| interaction)
            .collect();
        let filtered = Filter {
            interactions: &mut interactions,
            users: &mut gathered.users,
            items: &mut gathered.items,
        }
        .run(self.min_rating, self.k_core);

        std::fs::create_dir_all(out.root())
            .map_err(|source| FileError::io("make folder", out.root(), source))?;
        if interactions.is_empty() {
            write_rejected(out, &gathered)?;
            return Err(nothing_left(out, &gathered, filtered));
        }
        let (split, splits_replaced) = self.assign_splits(&mut interactions)?;
        let summary = summarize(&gathered, &interactions, filtered, split, splits_replaced);
        write(out, &gathered, &interactions)?;
        Ok(summary)
    }

    fn assign_splits(&self, interactions: &mut [Interaction]) -> Result<(SplitSource, u64)> {
        let brought = interactions
            .iter()
            .filter(|interaction| interaction.split.is_some())
            .count();
        if self.split.is_none() && brought == interactions.len() {
            return Ok((SplitSource::Rows, 0));
        }
        let strategy = self.split.unwrap_or_default();
        strategy.assign(interactions, self.ratio, self.seed)?;
        let (ratio, seed) = (self.ratio, self.seed);
        let source = match strategy {
            SplitStrategy::Random => SplitSource::Random { ratio, seed },
            SplitStrategy::Time => SplitSource::Time { ratio, seed },
            SplitStrategy::LeaveOneOut => SplitSource::LeaveOneOut { seed },
        };
        Ok((source, brought as u64))
    }
}

fn summarize(
    gathered: &Gathered,
    interactions: &[Interaction],
    filtered: Filtered,
    split: SplitSource,
    splits_replaced: u64,
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
        split,
        splits_replaced,
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
fn write(out: &Project, gathered: &Gathered, interactions: &[Interaction]) -> Result<()> {
    write_rejected(out, gathered)?;
    let users = gathered.users.values().map(|(user, _)| user);
    jsonl::write(&out.path("users.jsonl"), users)?;
    let items = gathered.items.values().map(|(item, _)| item);
    jsonl::write(&out.path("items.jsonl"), items)?;
    let references = out.path("references.jsonl");
    if !gathered.references.is_empty() {
        let rows = gathered.references.values().map(|(reference, _)| reference);
        jsonl::write(&references, rows)?;
    } else if references.exists() {
        // Of an earlier import; measuring against it would mix two data sets.
        std::fs::remove_file(&references)
            .map_err(|source| FileError::io("remove", &references, source))?;
    }
    jsonl::write(&out.path("interactions.jsonl"), interactions)?;
    Ok(())
}

fn write_rejected(out: &Project, gathered: &Gathered) -> Result<()> {
    let rows = gathered.rejected.iter().map(|refused| &refused.row);
    jsonl::write(&out.path("rejected.jsonl"), rows)?;
    Ok(())
}

fn nothing_left(out: &Project, gathered: &Gathered, filtered: Filtered) -> Error {
    let mut account = format!(
        "{} rows read, {} rejected, {} below or without min_rating, {} outside the k_core, {} users, {} items, {} references",
        gathered.rows_read(),
        gathered.rejected.len(),
        filtered.min_rating,
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
