use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, Row, ToSql};
use serde::Serialize;

use super::codec::Packed;
use super::{Store, unsigned};
use crate::{ChatResponse, Result, Usage};

/// Which rows of a [`Store`]: those that fit all that is said; all where nothing is.
///
/// ```
/// use because_llm::{RowFilter, Store};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// let store = Store::open(folder.path().join("llm.sqlite"))?;
/// for attempt in store.attempts(&RowFilter::default().outcome("invalid").last(20))? {
///     let attempt = attempt?;
///     println!("{} {:?}", attempt.model, attempt.error);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RowFilter {
    outcome: Option<String>,
    model: Option<String>,
    since_unix: Option<i64>,
    before_unix: Option<i64>,
    last: Option<u64>,
}

impl RowFilter {
    /// With this outcome. Answers have none: with an outcome, no answer fits.
    #[must_use]
    pub fn outcome(mut self, outcome: impl Into<String>) -> Self {
        self.outcome = Some(outcome.into());
        self
    }

    /// To or from this model, by its whole name.
    #[must_use]
    pub fn model(mut self, model: impl Into<String>) -> Self {
        self.model = Some(model.into());
        self
    }

    /// Written at this moment or later.
    #[must_use]
    pub fn since(mut self, moment: SystemTime) -> Self {
        self.since_unix = Some(seconds(moment));
        self
    }

    /// Written before this moment.
    #[must_use]
    pub fn before(mut self, moment: SystemTime) -> Self {
        self.before_unix = Some(seconds(moment));
        self
    }

    /// Of those, the newest so many. Removing rows pays no attention to this.
    #[must_use]
    pub fn last(mut self, rows: u64) -> Self {
        self.last = Some(rows);
        self
    }

    /// `table`'s rows as a condition, and what to bind to it.
    pub(super) fn condition(&self, of: Of) -> (String, Vec<&dyn ToSql>) {
        fn some<T: ToSql>(value: &Option<T>) -> Option<&dyn ToSql> {
            value.as_ref().map(|value| value as &dyn ToSql)
        }
        let outcome = match of {
            Of::Attempts => "outcome = ?",
            Of::Responses => "?1 IS NULL",
        };
        let (terms, bound): (Vec<&str>, Vec<&dyn ToSql>) = [
            (outcome, some(&self.outcome)),
            ("model = ?", some(&self.model)),
            ("created_unix >= ?", some(&self.since_unix)),
            ("created_unix < ?", some(&self.before_unix)),
        ]
        .into_iter()
        .filter_map(|(term, value)| Some((term, value?)))
        .unzip();
        if terms.is_empty() {
            return ("TRUE".into(), bound);
        }
        (terms.join(" AND "), bound)
    }
}

fn seconds(moment: SystemTime) -> i64 {
    let seconds = |since: std::time::Duration| i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    match moment.duration_since(UNIX_EPOCH) {
        Ok(since) => seconds(since),
        Err(before) => -seconds(before.duration()),
    }
}

/// One call that went out, as its row says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Attempt {
    /// Counts up in the order in which calls went out.
    pub id: i64,
    /// Which opening of the store sent it: the process, when it opened the file, and which of its openings.
    pub run: String,
    /// The [key](crate::ChatRequest::key) of its request, in hexadecimal digits.
    pub key: String,
    /// When, in seconds since 1970.
    pub created_unix: i64,
    /// To which model.
    pub model: String,
    /// Where: the endpoint's label.
    pub endpoint: String,
    /// What became of it; [`StoreTotals`](crate::StoreTotals) lists the words.
    pub outcome: String,
    /// The HTTP status of a failure.
    pub status: Option<u16>,
    /// What it took.
    #[serde(flatten)]
    pub usage: Usage,
    /// What it cost in billionths of a dollar; `None` where the model has no price.
    pub cost_nano: Option<u64>,
    /// How long it took.
    pub latency_ms: Option<u64>,
    /// How long it had waited for its turn.
    pub queued_ms: Option<u64>,
    /// Why the model stopped, in the server's word.
    pub finish_reason: Option<String>,
    /// What went wrong.
    pub error: Option<String>,
}

/// One answer that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct KeptAnswer {
    /// The [key](crate::ChatRequest::key) of its request, in hexadecimal digits.
    pub key: String,
    /// When it was kept, in seconds since 1970.
    pub created_unix: i64,
    /// Which model gave it.
    pub model: String,
    /// Where: the endpoint's label.
    pub endpoint: String,
    /// The answer.
    pub response: ChatResponse,
}

#[derive(Clone, Copy)]
pub(super) enum Of {
    Attempts,
    Responses,
}

impl Of {
    pub(super) fn table(self) -> &'static str {
        match self {
            Self::Attempts => "attempts",
            Self::Responses => "responses",
        }
    }

    fn columns(self) -> &'static str {
        match self {
            Self::Attempts => {
                "id, run, key, created_unix, model, endpoint, outcome, status, prompt_tokens, completion_tokens,
                 cached_tokens, reasoning_tokens, cost_nano, latency_ms, queued_ms, finish_reason, error"
            }
            Self::Responses => "id, key, created_unix, model, endpoint, response",
        }
    }
}

/// Rows read at once; enough that beginning a query does not show, few enough that a million rows take no memory.
const PAGE: usize = 500;

impl Store {
    /// The calls that fit, oldest first, read as they are asked for: no matter how many they are, they take little memory
    /// and block no writer. What is written after this call is not among them.
    ///
    /// # Errors
    /// [`ChatError::Store`](crate::ChatError::Store) when the file cannot be read; each row may also be one.
    pub fn attempts(
        &self,
        filter: &RowFilter,
    ) -> Result<impl Iterator<Item = Result<Attempt>> + use<>> {
        Pages::new(self.clone(), filter.clone(), Of::Attempts, attempt)
    }

    /// The answers that fit, oldest first, read as they are asked for, as in [`attempts`](Self::attempts).
    ///
    /// # Errors
    /// [`ChatError::Store`](crate::ChatError::Store) when the file cannot be read; each row may also be one.
    pub fn answers(
        &self,
        filter: &RowFilter,
    ) -> Result<impl Iterator<Item = Result<KeptAnswer>> + use<>> {
        let store = self.clone();
        let rows = Pages::new(self.clone(), filter.clone(), Of::Responses, |row| {
            let packed: Packed = row.get(5)?;
            let kept = KeptAnswer {
                key: hexadecimal(row.get_ref(1)?.as_blob()?),
                created_unix: row.get(2)?,
                model: row.get(3)?,
                endpoint: row.get(4)?,
                response: ChatResponse::default(),
            };
            Ok((kept, packed))
        })?;
        Ok(rows.map(move |row| {
            let (mut kept, packed) = row?;
            kept.response = store.unpack(&kept.key, &packed)?;
            Ok(kept)
        }))
    }
}

/// Rows, a page at a time, so that no transaction stays open while somebody thinks about a row.
struct Pages<T> {
    store: Store,
    filter: RowFilter,
    of: Of,
    read: fn(&Row<'_>) -> rusqlite::Result<T>,
    /// The last row that was read, and the last one there is.
    after: i64,
    until: i64,
    page: std::vec::IntoIter<(i64, T)>,
}

impl<T> Pages<T> {
    fn new(
        store: Store,
        filter: RowFilter,
        of: Of,
        read: fn(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Self> {
        let (condition, bound) = filter.condition(of);
        let table = of.table();
        let (after, until) = store.read(|reader| {
            let until: i64 = reader.query_row(
                &format!("SELECT coalesce(max(id), 0) FROM {table}"),
                [],
                |row| row.get(0),
            )?;
            let after = match filter.last {
                None => 0,
                Some(0) => until,
                Some(last) => reader
                    .query_row(
                        &format!(
                            "SELECT id FROM {table} WHERE {condition} ORDER BY id DESC LIMIT 1 OFFSET {}",
                            i64::try_from(last - 1).unwrap_or(i64::MAX)
                        ),
                        bound.as_slice(),
                        |row| row.get::<_, i64>(0),
                    )
                    .map(|id| id - 1)
                    .or_else(|error| match error {
                        rusqlite::Error::QueryReturnedNoRows => Ok(0),
                        error => Err(error),
                    })?,
            };
            Ok((after, until))
        })?;
        Ok(Self {
            store,
            filter,
            of,
            read,
            after,
            until,
            page: Vec::new().into_iter(),
        })
    }

    fn turn(&self) -> Result<Vec<(i64, T)>> {
        let (condition, bound) = self.filter.condition(self.of);
        let sql = format!(
            "SELECT {} FROM {} WHERE {condition} AND id > {} AND id <= {} ORDER BY id LIMIT {PAGE}",
            self.of.columns(),
            self.of.table(),
            self.after,
            self.until
        );
        self.store.read(|reader: &Connection| {
            reader
                .prepare(&sql)?
                .query_map(bound.as_slice(), |row| Ok((row.get(0)?, (self.read)(row)?)))?
                .collect()
        })
    }
}

impl<T> Iterator for Pages<T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Result<T>> {
        if let Some((_, row)) = self.page.next() {
            return Some(Ok(row));
        }
        if self.after >= self.until {
            return None;
        }
        match self.turn() {
            Ok(page) => {
                // A page that is not full is the last one.
                self.after = match page.last() {
                    Some((id, _)) if page.len() == PAGE => *id,
                    _ => self.until,
                };
                self.page = page.into_iter();
                self.page.next().map(|(_, row)| Ok(row))
            }
            Err(error) => {
                self.after = self.until;
                Some(Err(error))
            }
        }
    }
}

fn attempt(row: &Row<'_>) -> rusqlite::Result<Attempt> {
    let count = |column| -> rusqlite::Result<Option<u64>> {
        let value: Option<i64> = row.get(column)?;
        Ok(value.and_then(|value| u64::try_from(value).ok()))
    };
    Ok(Attempt {
        id: row.get(0)?,
        run: row.get(1)?,
        key: hexadecimal(row.get_ref(2)?.as_blob()?),
        created_unix: row.get(3)?,
        model: row.get(4)?,
        endpoint: row.get(5)?,
        outcome: row.get(6)?,
        status: row.get(7)?,
        usage: Usage {
            prompt_tokens: unsigned(row, 8)?,
            completion_tokens: unsigned(row, 9)?,
            cached_tokens: unsigned(row, 10)?,
            reasoning_tokens: unsigned(row, 11)?,
        },
        cost_nano: count(12)?,
        latency_ms: count(13)?,
        queued_ms: count(14)?,
        finish_reason: row.get(15)?,
        error: row.get(16)?,
    })
}

fn hexadecimal(bytes: &[u8]) -> String {
    let digit = |half: u8| char::from(b"0123456789abcdef"[usize::from(half)]);
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}
