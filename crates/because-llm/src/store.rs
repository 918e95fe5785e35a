#[cfg(feature = "openai")]
mod batches;
mod claims;
mod codec;
mod file;
mod known;
mod memory;
mod paid;
mod prune;
mod queue;
mod readers;
mod rows;
mod schema;
mod stats;
#[cfg(test)]
mod tests;
mod under_way;
mod writer;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OptionalExtension, Row};
use serde::Serialize;

use crate::{ChatError, ChatResponse, ModelId, RequestKey, Result, Usage};

#[cfg(feature = "openai")]
pub(crate) use batches::{Batch, Found, Ledger, State};
pub use paid::{Paid, PaidCall};
pub use prune::{Prune, Pruned};
pub use rows::{Attempt, KeptAnswer, RowFilter};
pub use stats::{CallStats, ModelStats, Quantiles, StoreStats};

use claims::{Claim, Claims};
use codec::{Codec, Packed};
use file::Lock;
use known::Known;
use memory::Memory;
use readers::Readers;
pub(crate) use under_way::AttemptId;
use under_way::UnderWay;
use writer::{Op, Run, Writer};

/// What of the answers is held in memory where nobody says otherwise.
const MEMORY: usize = 32 << 20;

/// The answers and the audit of a project: one SQLite file that any SQLite tool opens, also while a run goes on.
///
/// | table | holds | a row is there |
/// |---|---|---|
/// | `responses` | the answers that passed validation, by [request key](crate::ChatRequest::key) | before the answer is used |
/// | `attempts` | every call that went out: when, to whom, tokens, latency, cost, what became of it | when it ends; until then it stands in a file beside this one, and becomes a row `interrupted` if the program died first |
/// | `runs` | every opening that wrote: since when, and how many answers it gave out from here | with its first row |
/// | `meta` | `schema_version` | always; an older file is brought up to date when it is opened, a newer one refused |
///
/// An answer is JSON: as text where it is short, else compressed with zstd (`typeof(response)` is `text` or `blob`). Keys of
/// endpoints are in none of the tables.
///
/// A row counts as written once its transaction is committed; one thread commits for everybody, in groups. Answers that were
/// asked for lately are also held in [memory](Self::memory). Cloning shares the store; the last clone dropped flushes it.
/// Several processes may share the file on a local disk.
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
    memory: Memory,
    codec: Codec,
    readers: Readers,
    known: Arc<Known>,
    under_way: Arc<UnderWay>,
    writer: Writer,
    /// Answers given out from memory or the file.
    from_store: Arc<AtomicU64>,
    // Dropped last: it says that somebody alive may have calls under way.
    _lock: Option<Lock>,
    claims: Claims,
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
    /// What those with a price cost, in billionths of a dollar; `None` where none had one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_nano: Option<u64>,
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
    /// What those with a price cost, in billionths of a dollar; `None` where none had one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_nano: Option<u64>,
}

/// What became of a call.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settled {
    pub(crate) outcome: &'static str,
    pub(crate) status: Option<u16>,
    pub(crate) usage: Usage,
    pub(crate) latency_ms: u64,
    /// How long it waited for its turn before it went out, where that is known.
    pub(crate) queued_ms: Option<u64>,
    /// What it cost, in billionths of a dollar, where the model has a price.
    pub(crate) cost_nano: Option<u64>,
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
        let alone = lock.as_ref().and_then(|lock| {
            let length = lock.alone?;
            Some((Arc::clone(&lock.file), length))
        });
        let known = Arc::new(Known::new(alone));
        let readers = Readers::open(&path)?;
        let from_store = Arc::new(AtomicU64::new(0));
        let label = file::run_label();
        let under_way = Arc::new(UnderWay::new(&path, &label));
        let run = Run {
            label,
            begun_unix: unix_now(),
            from_store: Arc::clone(&from_store),
        };
        Ok(Self {
            shared: Arc::new(Shared {
                memory: Memory::new(MEMORY),
                codec: Codec::default(),
                readers,
                under_way: Arc::clone(&under_way),
                known: Arc::clone(&known),
                writer: Writer::start(path.clone(), connection, run, under_way, known)?,
                from_store,
                path,
                claims: Claims::new(lock.as_ref().map(|lock| Arc::clone(&lock.file))),
                _lock: lock,
            }),
        })
    }

    /// Holds at most this many bytes of answers in memory, in all clones together: 32 MiB where nobody says otherwise,
    /// nothing with 0. Only what is in the file is held, so it changes no answer.
    #[must_use]
    pub fn memory(self, bytes: usize) -> Self {
        self.shared.memory.limit(bytes);
        self
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
        self.look_up(key)
    }

    /// The same for somebody who then makes no call, which is counted.
    pub(crate) fn answer(&self, key: &RequestKey) -> Result<Option<ChatResponse>> {
        if !self.shared.known.may_hold(key, &self.shared.readers)? {
            return Ok(None);
        }
        let found = self.look_up(key)?;
        if found.is_some() {
            self.shared.from_store.fetch_add(1, Ordering::Relaxed);
        }
        Ok(found)
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
        self.put_first(key, model, response).await.map(drop)
    }

    /// Keeps an answer as [`put`](Self::put) does and gives back the one that stays: another process may have been first.
    pub(crate) async fn keep(
        &self,
        key: &RequestKey,
        model: &ModelId,
        response: ChatResponse,
    ) -> Result<ChatResponse> {
        if self.put_first(key, model, &response).await? {
            return Ok(response);
        }
        Ok(self.look_up(key)?.unwrap_or(response))
    }

    /// An answer that is in memory.
    pub(crate) fn at_hand(&self, key: &RequestKey) -> Option<ChatResponse> {
        let response = self.shared.memory.get(key)?;
        self.shared.from_store.fetch_add(1, Ordering::Relaxed);
        Some(response)
    }

    /// Waits until no other process asks this; whoever holds the claim looks again before they ask.
    pub(crate) async fn claim(&self, key: &RequestKey) -> Claim {
        self.shared.claims.claim(key).await
    }

    /// Whether it was kept: false where there was an answer already.
    async fn put_first(
        &self,
        key: &RequestKey,
        model: &ModelId,
        response: &ChatResponse,
    ) -> Result<bool> {
        let text = serde_json::to_string(response)
            .expect("strings and numbers with string keys serialise");
        let kept = self
            .ask(Op::Put {
                key: *key,
                model: model.clone(),
                response: self.shared.codec.pack(text),
                usage: response.usage,
            })
            .await?;
        if kept > 0 {
            self.shared.memory.put(key, response);
        }
        Ok(kept > 0)
    }

    /// Marks the last call with this key that was answered as `invalid`, with the reason: for a caller who finds that an
    /// answer is not what was asked for. Does not wait.
    pub fn mark_invalid(&self, key: &RequestKey, reason: &str) {
        self.shared.writer.send(Op::MarkInvalid {
            key: *key,
            reason: crate::text::excerpt(reason, 500),
        });
    }

    /// What the store adds up to now.
    ///
    /// # Errors
    /// [`ChatError::Store`] when the file cannot be read.
    pub fn totals(&self) -> Result<StoreTotals> {
        self.read(|reader| totals(self.path(), reader))
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

    /// Writes down that a call is about to go out, so that a kill leaves a trace of it.
    pub(crate) fn begin(&self, key: &RequestKey, model: &ModelId) -> Result<AttemptId> {
        self.shared.under_way.begin(key, model)
    }

    /// Writes down what became of a call. Does not wait, so that no answer is lost between the model and the cache when a
    /// caller stops listening; on disk with the next commit, at the latest when the answer of that call is kept.
    pub(crate) fn settle(&self, id: AttemptId, model: ModelId, settled: Settled) {
        self.shared.writer.send(Op::Settle { id, model, settled });
    }

    async fn ask(&self, op: Op) -> Result<i64> {
        let answer = self.shared.writer.ask(op).await;
        answer.unwrap_or_else(|_| Err(self.shared.writer.stopped()))
    }

    fn look_up(&self, key: &RequestKey) -> Result<Option<ChatResponse>> {
        if let Some(response) = self.shared.memory.get(key) {
            return Ok(Some(response));
        }
        let packed: Option<Packed> = self.read(|reader| {
            reader
                .prepare_cached("SELECT response FROM responses WHERE key = ?1")?
                .query_row([key.as_bytes()], |row| row.get(0))
                .optional()
        })?;
        let Some(packed) = packed else {
            return Ok(None);
        };
        let response = self.unpack(key, &packed)?;
        self.shared.memory.put(key, &response);
        Ok(Some(response))
    }

    fn unpack(&self, key: &dyn fmt::Display, packed: &Packed) -> Result<ChatResponse> {
        let json = self.shared.codec.unpack(packed);
        json.map_err(|error| error.to_string())
            .and_then(|json| serde_json::from_slice(&json).map_err(|error| error.to_string()))
            .map_err(|error| ChatError::Store {
                file: self.path().display().to_string(),
                message: format!("response {key}: {error}"),
            })
    }

    fn read<T>(&self, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        self.shared.readers.with(query)
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

fn totals(path: &Path, reader: &Connection) -> rusqlite::Result<StoreTotals> {
    // One transaction, so that the figures belong together.
    let reader = reader.unchecked_transaction()?;
    let mut totals = StoreTotals {
        responses: reader
            .query_row("SELECT count(*) FROM responses", [], |row| unsigned(row, 0))?,
        ..StoreTotals::default()
    };
    let mut statement = reader.prepare(
        "SELECT model, outcome, count(*), sum(prompt_tokens), sum(completion_tokens), sum(cached_tokens),
                sum(reasoning_tokens), sum(cost_nano) FROM attempts GROUP BY model, outcome",
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
        let cost: Option<i64> = row.get(7)?;
        let model = totals.models.entry(row.get(0)?).or_default();
        model.attempts += count;
        model.usage += usage;
        if let Some(cost) = cost {
            *totals.cost_nano.get_or_insert(0) += cost.unsigned_abs();
            *model.cost_nano.get_or_insert(0) += cost.unsigned_abs();
        }
    }
    for model in under_way::models(path, &reader)? {
        *totals.attempts.entry("sent".into()).or_default() += 1;
        totals.models.entry(model).or_default().attempts += 1;
    }
    Ok(totals)
}

fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    Ok(u64::try_from(value).unwrap_or_default())
}

fn unix_now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
        })
}
