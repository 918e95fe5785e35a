#[cfg(feature = "openai")]
mod batches;
mod file;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures_channel::oneshot;
use rusqlite::{Connection, OptionalExtension, Row};
use serde::Serialize;

use crate::{ChatError, ChatResponse, ModelId, RequestKey, Result, Usage};

#[cfg(feature = "openai")]
pub(crate) use batches::{Batch, Found, Ledger, State};
use file::Lock;
use writer::{Op, Writer};

/// The answers and the audit of a project: one SQLite file that any SQLite tool opens, also while a run goes on.
///
/// Table `responses` holds the answers that passed validation, by [request key](crate::ChatRequest::key). Table `attempts`
/// holds one row for every call that went out: written as `sent` before it goes, settled with its tokens when it ends,
/// and `interrupted` if the program died first. A row counts as written once its transaction is committed; one thread
/// commits for everybody, in groups. Cloning shares the store; the last clone dropped flushes it. Several processes may
/// share the file on a local disk.
///
/// ```
/// use because_llm::{ChatRequest, ChatResponse, Message, ModelId, Store};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// let store = Store::open(folder.path().join("llm.sqlite"))?;
/// let model = ModelId::default();
/// let key = ChatRequest::new(vec![Message::user("why?")]).key(&model);
/// assert!(store.get(&key)?.is_none());
///
/// store.put(&key, &model, &ChatResponse { answer: "because".into(), ..ChatResponse::default() }).await?;
/// assert_eq!(store.get(&key)?.map(|response| response.answer).as_deref(), Some("because"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    /// Tells the rows of this opening from those of others that share the file.
    run: String,
    reader: Mutex<Connection>,
    writer: Writer,
    // Dropped last: it says that somebody alive may own rows that are still `sent`.
    _lock: Option<Lock>,
}

/// What a store adds up to: what the run cost, whatever became of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct StoreTotals {
    /// Answers kept.
    pub responses: u64,
    /// Calls that went out, by what became of them: `ok`, `invalid` (answered, but not in the shape asked for),
    /// `truncated`, `filtered`, `overloaded`, `transient`, `context_too_long`, `permanent`, `interrupted`, `sent` (under way).
    pub attempts: BTreeMap<String, u64>,
    /// The tokens of all those calls, good or bad.
    pub usage: Usage,
    /// The same by model.
    pub models: BTreeMap<String, ModelTotals>,
}

/// One model's share of [`StoreTotals`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ModelTotals {
    /// Calls that went out.
    pub attempts: u64,
    /// Their tokens.
    pub usage: Usage,
}

/// The row of a call under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AttemptId(i64);

/// What became of a call.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settled {
    pub(crate) outcome: &'static str,
    pub(crate) status: Option<u16>,
    pub(crate) usage: Usage,
    pub(crate) latency_ms: u64,
    pub(crate) finish_reason: Option<String>,
    pub(crate) error: Option<String>,
}

impl Store {
    /// Opens the file, making it if it is not there. Calls that an earlier run left under way are marked `interrupted`,
    /// unless somebody else has the file open.
    ///
    /// # Errors
    /// [`ChatError::Store`] when the file cannot be opened or written, is no SQLite file, is one of another program, or was
    /// written by a newer version.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let (connection, lock) = file::open(&path)?;
        let reader = file::connect(&path)?;
        Ok(Self {
            shared: Arc::new(Shared {
                run: file::run_label(),
                writer: Writer::start(path.clone(), connection)?,
                reader: Mutex::new(reader),
                path,
                _lock: lock,
            }),
        })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// The answer kept for a request, if there is one.
    ///
    /// # Errors
    /// [`ChatError::Store`] when the file cannot be read.
    pub fn get(&self, key: &RequestKey) -> Result<Option<ChatResponse>> {
        let text: Option<String> = self.read(|reader| {
            reader
                .prepare_cached("SELECT response FROM responses WHERE key = ?1")?
                .query_row([key.as_bytes()], |row| row.get(0))
                .optional()
        })?;
        text.map(|text| serde_json::from_str(&text))
            .transpose()
            .map_err(|error| ChatError::Store {
                file: self.path().display().to_string(),
                message: format!("response {key}: {error}"),
            })
    }

    /// Keeps an answer; resolves when it is on disk. The first answer to a request stays: a second one is dropped.
    ///
    /// The row is under way as soon as the future is first polled: dropping it afterwards does not take it back.
    ///
    /// # Errors
    /// [`ChatError::Store`] when it could not be written; nothing written before is lost.
    pub async fn put(
        &self,
        key: &RequestKey,
        model: &ModelId,
        response: &ChatResponse,
    ) -> Result<()> {
        let text = serde_json::to_string(response)
            .expect("strings and numbers with string keys serialise");
        self.write(Op::Put {
            key: *key,
            model: model.clone(),
            response: text,
            usage: response.usage,
        })
        .await
        .map(drop)
    }

    /// Marks the last call with this key that was answered as `invalid`, with the reason: for a caller who finds that an
    /// answer is not what was asked for. Does not wait.
    pub fn mark_invalid(&self, key: &RequestKey, reason: &str) {
        self.shared.writer.send(
            Op::MarkInvalid {
                key: *key,
                run: self.shared.run.clone(),
                reason: crate::text::excerpt(reason, 500),
            },
            None,
        );
    }

    /// What the store adds up to now.
    ///
    /// # Errors
    /// [`ChatError::Store`] when the file cannot be read.
    pub fn totals(&self) -> Result<StoreTotals> {
        self.read(totals)
    }

    /// Waits until everything sent so far is on disk.
    ///
    /// # Errors
    /// [`ChatError::Store`] with the first row of the audit that could not be written, if there was one.
    pub fn flush(&self) -> Result<()> {
        self.shared.writer.flush()
    }

    /// Flushes and lets go of the file, once no clone holds it any more.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    pub fn close(self) -> Result<()> {
        self.flush()
    }

    /// Writes down that a call is about to go out; resolves when that is on disk.
    pub(crate) async fn begin(&self, key: &RequestKey, model: &ModelId) -> Result<AttemptId> {
        let id = self
            .write(Op::Begin {
                key: *key,
                model: model.clone(),
                run: self.shared.run.clone(),
            })
            .await?;
        Ok(AttemptId(id))
    }

    /// Writes down what became of a call. Does not wait, so that no answer is lost between the model and the cache when a
    /// caller stops listening.
    pub(crate) fn settle(&self, id: AttemptId, settled: Settled) {
        self.shared
            .writer
            .send(Op::Settle { id: id.0, settled }, None);
    }

    async fn write(&self, op: Op) -> Result<i64> {
        let (sender, receiver) = oneshot::channel();
        let begins = matches!(op, Op::Begin { .. });
        let writer = self.shared.writer.clone();
        self.shared.writer.send(
            op,
            Some(Box::new(move |result| {
                let Err(unheard) = sender.send(result) else {
                    return;
                };
                // Whoever began this attempt went away before the call could go out.
                if let (true, Ok(id)) = (begins, unheard) {
                    let settled = Settled {
                        outcome: "interrupted",
                        error: Some("dropped before it was sent".into()),
                        ..Settled::default()
                    };
                    writer.send(Op::Settle { id, settled }, None);
                }
            })),
        );
        receiver.await.unwrap_or_else(|_| {
            Err(ChatError::Store {
                file: self.path().display().to_string(),
                message: "the writer has stopped".into(),
            })
        })
    }

    fn read<T>(&self, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        let reader = self
            .shared
            .reader
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        query(&reader).map_err(|error| file::failure(&self.shared.path, &error))
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("path", &self.shared.path)
            .finish_non_exhaustive()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.writer.stop();
    }
}

fn totals(reader: &Connection) -> rusqlite::Result<StoreTotals> {
    // One transaction, so that the figures belong together.
    let reader = reader.unchecked_transaction()?;
    let mut totals = StoreTotals {
        responses: reader
            .query_row("SELECT count(*) FROM responses", [], |row| unsigned(row, 0))?,
        ..StoreTotals::default()
    };
    let mut statement = reader.prepare(
        "SELECT model, outcome, count(*), sum(prompt_tokens), sum(completion_tokens), sum(cached_tokens),
                sum(reasoning_tokens) FROM attempts GROUP BY model, outcome",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let count = unsigned(row, 2)?;
        let usage = Usage {
            prompt_tokens: unsigned(row, 3)?,
            completion_tokens: unsigned(row, 4)?,
            cached_tokens: unsigned(row, 5)?,
            reasoning_tokens: unsigned(row, 6)?,
        };
        *totals.attempts.entry(row.get(1)?).or_default() += count;
        totals.usage += usage;
        let model = totals.models.entry(row.get(0)?).or_default();
        model.attempts += count;
        model.usage += usage;
    }
    Ok(totals)
}

fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    Ok(u64::try_from(value).unwrap_or_default())
}
