use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, TransactionBehavior, params};

use super::{Settled, file};
use crate::{ChatError, ModelId, RequestKey, Result, Usage};

/// What is asked of the writing thread.
pub(super) enum Op {
    Put {
        key: RequestKey,
        model: ModelId,
        response: String,
        usage: Usage,
    },
    Begin {
        key: RequestKey,
        model: ModelId,
        run: String,
    },
    Settle {
        id: i64,
        settled: Settled,
    },
    MarkInvalid {
        key: RequestKey,
        run: String,
        reason: String,
    },
    Flush,
    #[cfg(test)]
    LimitPages,
}

/// Called with the id of the row once it is on disk, or with why it is not.
pub(super) type Reply = Box<dyn FnOnce(Result<i64>) + Send>;

type Job = (Op, Option<Reply>);

/// The one thread that writes. While it commits, more work gathers; all of that is the next commit.
#[derive(Clone)]
pub(super) struct Writer {
    path: PathBuf,
    jobs: Arc<Mutex<Option<Sender<Job>>>>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
    /// The first failure that nobody waited for.
    unheard: Arc<Mutex<Option<ChatError>>>,
}

impl Writer {
    pub(super) fn start(path: PathBuf, connection: Connection) -> Result<Self> {
        let (sender, receiver) = channel();
        let unheard = Arc::new(Mutex::new(None));
        let thread = std::thread::Builder::new()
            .name("llm-store".into())
            .spawn({
                let (path, unheard) = (path.clone(), Arc::clone(&unheard));
                move || run(&path, connection, &receiver, &unheard)
            })
            .map_err(|error| ChatError::Store {
                file: path.display().to_string(),
                message: format!("cannot start the writing thread: {error}"),
            })?;
        Ok(Self {
            path,
            jobs: Arc::new(Mutex::new(Some(sender))),
            thread: Arc::new(Mutex::new(Some(thread))),
            unheard,
        })
    }

    pub(super) fn send(&self, op: Op, reply: Option<Reply>) {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = match &*jobs {
            Some(jobs) => jobs.send((op, reply)).err().map(|error| error.0),
            None => Some((op, reply)),
        };
        drop(jobs);
        if let Some((_, Some(reply))) = refused {
            reply(Err(ChatError::Store {
                file: self.path.display().to_string(),
                message: "closed".into(),
            }));
        }
    }

    pub(super) fn flush(&self) -> Result<()> {
        let (sender, receiver) = channel();
        self.send(
            Op::Flush,
            Some(Box::new(move |result| {
                let _ = sender.send(result);
            })),
        );
        if let Ok(result) = receiver.recv() {
            result?;
        }
        let unheard = self
            .unheard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        unheard.map_or(Ok(()), Err)
    }

    pub(super) fn stop(&self) {
        drop(
            self.jobs
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        // The last clone may be dropped by a reply, which is the writing thread itself.
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }

    /// Leaves room for a few pages more and then says that the disk is full.
    #[cfg(test)]
    pub(super) fn limit_pages(&self) {
        self.send(Op::LimitPages, None);
        self.flush().unwrap();
    }
}

pub(super) fn unix_now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
        })
}

fn run(
    path: &Path,
    mut connection: Connection,
    jobs: &Receiver<Job>,
    unheard: &Mutex<Option<ChatError>>,
) {
    const LARGEST_GROUP: usize = 256;
    while let Ok(first) = jobs.recv() {
        let (ops, replies): (Vec<Op>, Vec<Option<Reply>>) = std::iter::once(first)
            .chain(jobs.try_iter())
            .take(LARGEST_GROUP)
            .unzip();
        let results = match commit(&mut connection, &ops) {
            Ok(ids) => ids.into_iter().map(Ok).collect(),
            Err(error) if ops.len() == 1 => vec![Err(error)],
            // One row may be at fault: each for itself, then.
            Err(_) => ops
                .iter()
                .map(|op| commit(&mut connection, std::slice::from_ref(op)).map(|ids| ids[0]))
                .collect::<Vec<_>>(),
        };
        for (result, reply) in results.into_iter().zip(replies) {
            let result = result.map_err(|error| file::failure(path, &error));
            match (reply, result) {
                (Some(reply), result) => reply(result),
                (None, Err(error)) => {
                    tracing::warn!(%error, "a row of the audit was not written");
                    unheard
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .get_or_insert(error);
                }
                (None, Ok(_)) => {}
            }
        }
    }
}

fn commit(connection: &mut Connection, ops: &[Op]) -> rusqlite::Result<Vec<i64>> {
    if ops.iter().all(|op| matches!(op, Op::Flush)) {
        return Ok(vec![0; ops.len()]);
    }
    // Immediate, so that waiting for another process happens here and not in the middle.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let ids = ops
        .iter()
        .map(|op| write(&transaction, op))
        .collect::<rusqlite::Result<Vec<i64>>>()?;
    transaction.commit()?;
    Ok(ids)
}

fn write(connection: &Connection, op: &Op) -> rusqlite::Result<i64> {
    match op {
        Op::Put {
            key,
            model,
            response,
            usage,
        } => {
            connection
                .prepare_cached(
                    "INSERT INTO responses(key, created_unix, model, endpoint, response, prompt_tokens, completion_tokens,
                         cached_tokens, reasoning_tokens) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
                     ON CONFLICT(key) DO NOTHING",
                )?
                .execute(params![
                    key.as_bytes(),
                    unix_now(),
                    model.model,
                    model.endpoint,
                    response,
                    column(usage.prompt_tokens),
                    column(usage.completion_tokens),
                    column(usage.cached_tokens),
                    column(usage.reasoning_tokens),
                ])?;
        }
        Op::Begin { key, model, run } => {
            connection
                .prepare_cached(
                    "INSERT INTO attempts(run, key, created_unix, model, endpoint, outcome)
                     VALUES (?1, ?2, ?3, ?4, ?5, 'sent')",
                )?
                .execute(params![
                    run,
                    key.as_bytes(),
                    unix_now(),
                    model.model,
                    model.endpoint
                ])?;
        }
        Op::Settle { id, settled } => {
            connection
                .prepare_cached(
                    "UPDATE attempts SET outcome = ?2, status = ?3, prompt_tokens = ?4, completion_tokens = ?5,
                         cached_tokens = ?6, reasoning_tokens = ?7, latency_ms = ?8, finish_reason = ?9, error = ?10
                     WHERE id = ?1",
                )?
                .execute(params![
                    id,
                    settled.outcome,
                    settled.status,
                    column(settled.usage.prompt_tokens),
                    column(settled.usage.completion_tokens),
                    column(settled.usage.cached_tokens),
                    column(settled.usage.reasoning_tokens),
                    column(settled.latency_ms),
                    settled.finish_reason,
                    settled.error,
                ])?;
        }
        Op::MarkInvalid { key, run, reason } => {
            connection
                .prepare_cached(
                    "UPDATE attempts SET outcome = 'invalid', error = ?3 WHERE id =
                         (SELECT max(id) FROM attempts WHERE key = ?1 AND run = ?2 AND outcome = 'ok')",
                )?
                .execute(params![key.as_bytes(), run, reason])?;
        }
        Op::Flush => {}
        #[cfg(test)]
        Op::LimitPages => {
            let pages: i64 = connection.query_row("PRAGMA page_count", [], |row| row.get(0))?;
            let _: i64 = connection.query_row(
                &format!("PRAGMA max_page_count = {}", pages + 8),
                [],
                |row| row.get(0),
            )?;
        }
    }
    Ok(connection.last_insert_rowid())
}

/// A count that no call can have is a server's mistake; it must neither lose the row nor overflow the sums.
fn column(count: u64) -> i64 {
    i64::try_from(count.min(1 << 40)).unwrap_or_default()
}
