//! Reads raw files into a project directory.

mod again;
mod blocks;
mod cells;
mod change;
mod entries;
mod format;
mod formats;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod gather;
mod line;
mod literal;
mod markup;
mod merge;
mod nodes;
mod pairs;
mod parquet;
mod parse;
mod quick;
mod record;
mod refused;
mod rejects;
mod rule;
mod sort;
mod source;
mod spool;
mod stream;
mod summary;
#[cfg(test)]
mod tests;
pub(crate) mod time;
mod write;

use std::panic::resume_unwind;
use std::path::PathBuf;
use std::thread;

use because_core::{Error as FileError, Project};

pub use self::format::Format;
use self::gather::Gathered;
pub use self::record::RecordKind;
use self::rejects::Rejects;
use self::spool::Draft;
use self::stream::Flow;
pub use self::summary::{
    ColdCounts, Conflicts, FieldConflicts, Filtered, ImportSummary, ImportedFile, ReasonCount,
};
use self::write::Written;
use crate::plan::{Applied, Plan};
use crate::{Error, Ratio, Result, SplitStrategy};

/// Reads people's files and writes a project directory: interactions with their splits, users, items, references, and
/// every row that was not taken.
///
/// What a file holds is told by its name where the [`Format`] knows it, and by its columns else: a user and an item are an
/// interaction (with an explanation: a reference), a user alone is a user, an item alone an item. What has no place of its own
/// becomes an attribute of the user or item. Of two interactions of one pair the later is kept, or the first where a time is
/// missing.
///
/// Rows about one user or item complete each other, in whichever files they are: the first is its line, and later ones fill the
/// fields and attributes that it lacks. A later row is
///
/// - *taken* where it says something new, or less than is known and nothing otherwise; [`ImportSummary::merged`] counts these;
/// - *rejected* where one row before it says the same (`duplicate of FILE line N`), or where it says nothing new and something
///   otherwise (`contradicts FILE line N in title`).
///
/// Where a row that is taken contradicts another in some field, the value that came first stays, and the other goes to
/// `conflicts.jsonl` with both places; [`ImportSummary::conflicts`] counts these. So the order of the files decides nothing but which
/// of two contradicting values stays (and which writing of one value: 1995 and the text "1995" are the same), and no value is lost.
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
    threads: Option<usize>,
    block_bytes: usize,
}

/// Large enough that handing blocks about costs nothing, small enough that they stay in the processor's cache.
const BLOCK_BYTES: usize = 1 << 20;

impl Import {
    /// Of these files, and of those in these folders that the [`Format`] looks for.
    #[must_use]
    pub fn new(format: Format, paths: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        Self {
            format,
            paths: paths.into_iter().map(Into::into).collect(),
            plan: Plan::default(),
            threads: None,
            block_bytes: BLOCK_BYTES,
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

    /// How many threads take rows apart, beside one that reads and one that writes; as many as the machine has unless it is
    /// said. The files are the same in any case.
    #[must_use]
    pub fn threads(mut self, threads: impl Into<Option<usize>>) -> Self {
        self.threads = threads.into();
        self
    }

    /// Reads everything, then writes everything; a file of an earlier import is replaced. Texts are put down on disk on the
    /// way, so memory holds the ids and some 50 bytes an interaction, and the output folder needs room for two copies of what
    /// is written (of users and items with more than one row, for four).
    ///
    /// # Errors
    /// When a path is missing or holds nothing to read, a header makes no sense, no interaction is left (the rejected rows
    /// are then written all the same), a split by time meets an interaction without one, or the disk fails.
    pub fn run(&self, out: &Project) -> Result<ImportSummary> {
        self.plan.check()?;
        let files = source::files(self.format, &self.paths)?;
        source::keep_apart(&files, out)?;
        let is_new = !out.root().exists();
        std::fs::create_dir_all(out.root())
            .map_err(|source| FileError::io("make folder", out.root(), source))?;
        spool::remove_old_drafts(out.root());
        let summary = self.import(files, out);
        if is_new && summary.is_err() {
            // It goes only if there is nothing in it.
            let _ = std::fs::remove_dir(out.root());
        }
        summary
    }

    fn import(&self, files: Vec<PathBuf>, out: &Project) -> Result<ImportSummary> {
        let threads = self
            .threads
            .or_else(|| thread::available_parallelism().ok().map(usize::from));
        let flow = Flow {
            threads: threads.unwrap_or(1),
            block_bytes: self.block_bytes,
        };
        let (taken, mut rejects) = Gathered::read(self.format, files, flow, out.root())?;
        let mut rejected_out = Draft::of(out.path("rejected.jsonl"))?;
        // Neither waits for the other: what was rejected does not depend on the plan.
        let (reasons, kept) = thread::scope(|scope| {
            let reasons = scope.spawn(|| rejects.write(&taken, &mut rejected_out));
            let applied = self.plan.apply(&taken.table);
            let kept =
                applied.and_then(|applied| Ok((Written::of(&taken, &applied, out)?, applied)));
            let reasons = reasons.join().unwrap_or_else(|panic| resume_unwind(panic));
            (reasons, kept)
        });
        let (reasons, (written, applied)) = (reasons?, kept?);
        rejected_out.put_in_place()?;
        let references = taken.referenced.len() as u64;
        if written.splits.total() == 0 {
            return Err(nothing_left(out, &rejects, &written, references, &reasons));
        }
        let Written {
            users,
            items,
            filtered,
            splits,
            ..
        } = written.put_in_place(out)?;

        let interactions = splits.total() as u64;
        let merged = users.merged + items.merged;
        Ok(ImportSummary {
            read: rejects.rows_read(),
            taken: interactions + users.rows + items.rows + references + merged,
            rejected: rejects.count(),
            files: rejects.files,
            filtered,
            before: applied.before,
            references_without_interaction: without_interaction(&taken.referenced, &applied),
            steps: applied.steps,
            interactions,
            users: users.rows,
            items: items.rows,
            references,
            merged,
            conflicts: rejects.conflicts,
            only_in_users_file: users.only_rows,
            only_in_items_file: items.only_rows,
            users_only_in_interactions: users.only_interactions,
            items_only_in_interactions: items.only_interactions,
            splits,
            split: applied.split,
            cold: ColdCounts::of(&applied.cold),
            splits_replaced: applied.splits_replaced,
            reasons,
        })
    }
}

fn without_interaction(referenced: &[Option<u32>], applied: &Applied) -> u64 {
    let has_one = |row: &Option<u32>| row.is_some_and(|row| applied.splits[row as usize].is_some());
    referenced.iter().filter(|row| !has_one(row)).count() as u64
}

fn nothing_left(
    out: &Project,
    rejects: &Rejects,
    written: &Written,
    references: u64,
    reasons: &[ReasonCount],
) -> Error {
    let filtered = written.filtered;
    let (users, items) = (written.users.rows, written.items.rows);
    let merged = written.users.merged + written.items.merged;
    let mut account = format!(
        "{} rows read, {} rejected, {} outside the date range, {} below or without min_rating, {} of users not drawn, \
         {} over max_per_user, {} outside the k_core, {users} users, {items} items, {merged} more rows of these, {references} references",
        rejects.rows_read(),
        rejects.count(),
        filtered.date_range,
        filtered.min_rating,
        filtered.sample_users,
        filtered.max_per_user,
        filtered.k_core,
    );
    if let Some(most) = reasons.first() {
        account += &format!(
            "; rejected most often for: {} (first at {}), all in {}",
            most.reason,
            most.first,
            out.path("rejected.jsonl").display()
        );
    }
    account += if filtered.total() > 0 {
        "; loosen the filters"
    } else if references > 0 {
        "; a row with an explanation is a reference, so add a file of interactions (user, item)"
    } else {
        "; give a file whose rows have a user and an item"
    };
    Error::NoInteractions { account }
}
