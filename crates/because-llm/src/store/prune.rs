use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};
use serde::Serialize;

use super::rows::Of;
use super::{RowFilter, Store, file, unsigned};
use crate::{Result, Usage};

/// Removes rows of a [`Store`] that nobody needs any more, and gives their room on the disk back.
///
/// Answers were paid for: they are removed only where [`answers`](Self::answers) says so, and what they answered is asked,
/// and paid for, again. What the removed calls took is in no total afterwards.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use because_llm::{Prune, RowFilter, Store};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("llm.sqlite");
/// # drop(Store::open(&path)?);
/// let month_ago = SystemTime::now() - Duration::from_secs(30 * 86_400);
/// let prune = Prune::default().attempts(RowFilter::default().before(month_ago));
/// let would = prune.clone().dry_run(true).run(&path)?;
/// let did = prune.run(&path)?;
/// assert_eq!(would.attempts, did.attempts);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prune {
    attempts: Option<RowFilter>,
    answers: Option<RowFilter>,
    dry_run: bool,
}

/// What was removed, or would have been.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Pruned {
    /// Rows of calls.
    pub attempts: u64,
    /// What those calls had taken.
    pub usage: Usage,
    /// What they had cost, in billionths of a dollar, where that was known.
    pub cost_nano: Option<u64>,
    /// Answers.
    pub answers: u64,
    /// Bytes of the file before.
    pub bytes_before: u64,
    /// And after; the same in a dry run.
    pub bytes_after: u64,
}

impl Prune {
    /// The rows of these calls.
    #[must_use]
    pub fn attempts(mut self, filter: RowFilter) -> Self {
        self.attempts = Some(filter);
        self
    }

    /// These answers.
    #[must_use]
    pub fn answers(mut self, filter: RowFilter) -> Self {
        self.answers = Some(filter);
        self
    }

    /// Only counts.
    #[must_use]
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// Removes them from this file. Nobody may have it open; who opens it meanwhile waits.
    ///
    /// # Errors
    /// [`ChatError::Store`](crate::ChatError::Store) when the file is in use, is no store, or cannot be written; then
    /// nothing was removed, or what was is removed and its room not yet given back.
    pub fn run(&self, path: impl AsRef<Path>) -> Result<Pruned> {
        let path = path.as_ref();
        if self.dry_run {
            let store = Store::open(path)?;
            let mut would = store.read(|reader| self.count(reader))?;
            would.bytes_before = file::bytes(path);
            would.bytes_after = would.bytes_before;
            return Ok(would);
        }
        let (mut connection, _lock) = file::open_alone(path)?;
        let bytes_before = file::bytes(path);
        let mut pruned = self
            .remove(&mut connection)
            .map_err(|error| file::failure(path, &error))?;
        drop(connection);
        pruned.bytes_before = bytes_before;
        pruned.bytes_after = file::bytes(path);
        Ok(pruned)
    }

    fn remove(&self, connection: &mut Connection) -> rusqlite::Result<Pruned> {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let pruned = self.count(&transaction)?;
        for (of, filter) in self.tables() {
            let (condition, bound) = filter.condition(of);
            transaction.execute(
                &format!("DELETE FROM {} WHERE {condition}", of.table()),
                bound.as_slice(),
            )?;
        }
        transaction.commit()?;
        if pruned.attempts + pruned.answers > 0 {
            connection.execute_batch("VACUUM")?;
        }
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(pruned)
    }

    fn count(&self, connection: &Connection) -> rusqlite::Result<Pruned> {
        let mut pruned = Pruned::default();
        for (of, filter) in self.tables() {
            let (condition, bound) = filter.condition(of);
            let taken = match of {
                Of::Attempts => {
                    "coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0), coalesce(sum(cached_tokens), 0),
                     coalesce(sum(reasoning_tokens), 0), sum(cost_nano)"
                }
                Of::Responses => "0, 0, 0, 0, NULL",
            };
            connection.query_row(
                &format!(
                    "SELECT count(*), {taken} FROM {} WHERE {condition}",
                    of.table()
                ),
                bound.as_slice(),
                |row| {
                    match of {
                        Of::Responses => pruned.answers = unsigned(row, 0)?,
                        Of::Attempts => {
                            pruned.attempts = unsigned(row, 0)?;
                            pruned.usage = Usage {
                                prompt_tokens: unsigned(row, 1)?,
                                completion_tokens: unsigned(row, 2)?,
                                cached_tokens: unsigned(row, 3)?,
                                reasoning_tokens: unsigned(row, 4)?,
                            };
                            pruned.cost_nano = row.get::<_, Option<i64>>(5)?.map(i64::unsigned_abs);
                        }
                    }
                    Ok(())
                },
            )?;
        }
        Ok(pruned)
    }

    fn tables(&self) -> impl Iterator<Item = (Of, &RowFilter)> {
        let attempts = self.attempts.iter().map(|filter| (Of::Attempts, filter));
        let answers = self.answers.iter().map(|filter| (Of::Responses, filter));
        attempts.chain(answers)
    }
}
