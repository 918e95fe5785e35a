use rusqlite::{Params, Row};

use super::{Store, unsigned};
use crate::{ModelId, RequestKey, Result, Usage};

/// What calls that went out came to, as the store's `attempts` have it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Paid {
    /// Calls that went out, good or bad.
    pub calls: u64,
    /// Those that were answered.
    pub answered: u64,
    /// The tokens of all of them.
    pub usage: Usage,
    /// The tokens of those that were answered.
    pub answered_usage: Usage,
    /// How long those that were answered took together, in milliseconds.
    pub answered_ms: u64,
}

impl Store {
    /// What a request came to so far, with everything that was sent again; nothing where it was never sent.
    ///
    /// # Errors
    /// [`ChatError::Store`](crate::ChatError::Store) when the file cannot be read.
    pub fn paid_for(&self, key: &RequestKey) -> Result<Paid> {
        self.paid("key = ?1", [key.as_bytes()])
    }

    /// What all requests to a model came to.
    ///
    /// # Errors
    /// As [`paid_for`](Self::paid_for).
    pub fn paid_to(&self, model: &ModelId) -> Result<Paid> {
        self.paid(
            "model = ?1 AND endpoint = ?2",
            [&model.model, &model.endpoint],
        )
    }

    fn paid(&self, which: &str, parameters: impl Params) -> Result<Paid> {
        let sql = format!(
            "SELECT outcome = 'ok', count(*), sum(prompt_tokens), sum(completion_tokens), sum(cached_tokens),
                    sum(reasoning_tokens), sum(coalesce(latency_ms, 0)) FROM attempts WHERE {which} GROUP BY 1"
        );
        self.read(|reader| {
            let mut statement = reader.prepare_cached(&sql)?;
            let mut rows = statement.query(parameters)?;
            let mut paid = Paid::default();
            while let Some(row) = rows.next()? {
                paid.add(row)?;
            }
            Ok(paid)
        })
    }
}

impl Paid {
    fn add(&mut self, row: &Row<'_>) -> rusqlite::Result<()> {
        let calls = unsigned(row, 1)?;
        let usage = Usage {
            prompt_tokens: unsigned(row, 2)?,
            completion_tokens: unsigned(row, 3)?,
            cached_tokens: unsigned(row, 4)?,
            reasoning_tokens: unsigned(row, 5)?,
        };
        self.calls += calls;
        self.usage += usage;
        if row.get(0)? {
            self.answered += calls;
            self.answered_usage += usage;
            self.answered_ms += unsigned(row, 6)?;
        }
        Ok(())
    }
}

impl std::ops::AddAssign for Paid {
    fn add_assign(&mut self, other: Self) {
        self.calls += other.calls;
        self.answered += other.answered;
        self.usage += other.usage;
        self.answered_usage += other.answered_usage;
        self.answered_ms += other.answered_ms;
    }
}
