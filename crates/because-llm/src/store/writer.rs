use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures_channel::oneshot;
use rusqlite::{CachedStatement, Connection, TransactionBehavior, params};

use super::codec::Packed;
use super::known::Known;
use super::queue::Queue;
use super::under_way::UnderWay;
use super::{AttemptId, Settled, file, unix_now};
use crate::{ChatError, ModelId, RequestKey, Result, Usage};

/// What is asked of the writing thread.
pub(super) enum Op {
    Put {
        key: RequestKey,
        model: ModelId,
        response: Packed,
        usage: Usage,
    },
    Settle {
        id: AttemptId,
        model: ModelId,
        settled: Settled,
    },
    MarkInvalid {
        key: RequestKey,
        reason: String,
    },
    Flush,
    #[cfg(test)]
    LimitPages,
}

/// Told how many rows were kept, once that is on disk; or why it is not.
enum Reply {
    Later(oneshot::Sender<Result<i64>>),
    Blocking(mpsc::Sender<Result<i64>>),
}

type Job = (Op, Option<Reply>);

/// How many calls that were answered are remembered for whoever finds that an answer does not fit. That is found as soon as
/// it has come, so this is many times what is needed; and it spares an index over every call ever made.
const REMEMBERED: usize = 4096;

/// Where somebody finds it later, so many of the newest rows are looked through.
const LOOKED_THROUGH: i64 = 100_000;

/// How often the row of this opening is brought up to date while others are written anyway.
const RUN_ROW_EVERY: Duration = Duration::from_secs(1);

/// The one thread that writes. While it commits, more work gathers; all of that is the next commit.
pub(super) struct Writer {
    path: PathBuf,
    queue: Arc<Queue<Job>>,
    /// The first failure that nobody waited for.
    unheard: Arc<Mutex<Option<ChatError>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// This opening of the file, for its row in `runs`.
pub(super) struct Run {
    pub(super) label: String,
    pub(super) begun_unix: i64,
    /// Answers that were given out from the store.
    pub(super) from_store: Arc<AtomicU64>,
}

impl Writer {
    pub(super) fn start(
        path: PathBuf,
        connection: Connection,
        run: Run,
        under_way: Arc<UnderWay>,
        known: Arc<Known>,
    ) -> Result<Self> {
        let queue = Arc::new(Queue::default());
        let unheard = Arc::<Mutex<Option<ChatError>>>::default();
        let thread = std::thread::Builder::new()
            .name("llm-store".into())
            .spawn({
                let (path, queue, unheard) =
                    (path.clone(), Arc::clone(&queue), Arc::clone(&unheard));
                move || {
                    let kept = Kept { under_way, known };
                    Writing::new(&path, connection, run, &unheard, kept).until_closed(&queue);
                }
            })
            .map_err(|error| ChatError::Store {
                file: path.display().to_string(),
                message: format!("cannot start the writing thread: {error}"),
            })?;
        Ok(Self {
            path,
            queue,
            unheard,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Sends work whose failure is told at the next [`flush`](Self::flush).
    pub(super) fn send(&self, op: Op) {
        self.queue.push((op, None), false);
    }

    /// Sends work, to be told what became of it. The work goes on also when nobody listens any more.
    pub(super) fn ask(&self, op: Op) -> oneshot::Receiver<Result<i64>> {
        let (sender, receiver) = oneshot::channel();
        self.queue.push((op, Some(Reply::Later(sender))), true);
        receiver
    }

    pub(super) fn flush(&self) -> Result<()> {
        let (sender, receiver) = mpsc::channel();
        let reply = Some(Reply::Blocking(sender));
        self.queue.push((Op::Flush, reply), true);
        // A closed queue has dropped the sender; there is nothing left to wait for then.
        if let Ok(result) = receiver.recv() {
            result?;
        }
        let unheard = lock(&self.unheard).take();
        unheard.map_or(Ok(()), Err)
    }

    /// Writes what was sent and ends the thread.
    pub(super) fn stop(&self) {
        self.queue.close();
        let thread = lock(&self.thread).take();
        // The last clone may be dropped by whom a reply wakes, which is the writing thread itself.
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }

    pub(super) fn stopped(&self) -> ChatError {
        ChatError::Store {
            file: self.path.display().to_string(),
            message: "the writer has stopped".into(),
        }
    }

    /// Leaves room for a few pages more and then says that the disk is full.
    #[cfg(test)]
    pub(super) fn limit_pages(&self) {
        self.send(Op::LimitPages);
        self.flush().unwrap();
    }
}

/// The writing thread's own.
struct Writing<'a> {
    path: &'a Path,
    connection: Connection,
    run: Run,
    /// What the row of this opening says, and since when.
    run_row: Option<(u64, Instant)>,
    answered: VecDeque<Answered>,
    unheard: &'a Mutex<Option<ChatError>>,
    kept: Kept,
}

/// What has to be told of a commit.
struct Kept {
    under_way: Arc<UnderWay>,
    known: Arc<Known>,
}

/// The row of a call that was answered.
struct Answered {
    row: i64,
    key: RequestKey,
}

impl<'a> Writing<'a> {
    fn new(
        path: &'a Path,
        connection: Connection,
        run: Run,
        unheard: &'a Mutex<Option<ChatError>>,
        kept: Kept,
    ) -> Self {
        Self {
            path,
            connection,
            run,
            run_row: None,
            answered: VecDeque::with_capacity(REMEMBERED),
            unheard,
            kept,
        }
    }

    fn until_closed(mut self, queue: &Queue<Job>) {
        let _end = queue.end();
        let mut jobs = Vec::new();
        let mut had_company = false;
        while queue.next(&mut jobs, had_company) {
            let awaited = jobs.iter().filter(|(_, reply)| reply.is_some()).count();
            had_company = awaited > 1;
            self.write(&mut jobs);
        }
        if self.run.from_store.load(Ordering::Relaxed) > 0
            && let Err(error) = self.commit(&[], true)
        {
            tracing::warn!(%error, "the number of answers from the store was not written");
        }
    }

    /// Commits these together, and tells those who wait. What fails in company is tried alone: one row that does not fit
    /// takes no other with it.
    fn write(&mut self, jobs: &mut Vec<Job>) {
        let (ops, replies): (Vec<Op>, Vec<Option<Reply>>) = jobs.drain(..).unzip();
        let flushed = ops.iter().any(|op| matches!(op, Op::Flush));
        let results: Vec<rusqlite::Result<i64>> = match self.commit(&ops, flushed) {
            Ok(ids) => ids.into_iter().map(Ok).collect(),
            Err(error) if ops.len() == 1 => vec![Err(error)],
            Err(_) => ops
                .iter()
                .map(|op| {
                    self.commit(std::slice::from_ref(op), false)
                        .map(|ids| ids[0])
                })
                .collect(),
        };
        // The row of a call that could not be written is made of its slot when the file is opened again.
        let settled = ops.iter().zip(&results).filter_map(|pair| match pair {
            (Op::Settle { id, .. }, Ok(_)) => Some(*id),
            _ => None,
        });
        self.kept.under_way.done(settled);
        let put = ops.iter().zip(&results).filter_map(|pair| match pair {
            (Op::Put { key, .. }, Ok(_)) => Some(key),
            _ => None,
        });
        self.kept.known.add(put);
        for (reply, result) in replies.into_iter().zip(results) {
            let result = result.map_err(|error| file::failure(self.path, &error));
            match (reply, result) {
                (Some(Reply::Later(sender)), result) => {
                    let _ = sender.send(result);
                }
                (Some(Reply::Blocking(sender)), result) => {
                    let _ = sender.send(result);
                }
                (None, Err(error)) => {
                    tracing::warn!(%error, "a row of the audit was not written");
                    lock(self.unheard).get_or_insert(error);
                }
                (None, Ok(_)) => {}
            }
        }
    }

    fn commit(&mut self, ops: &[Op], flushed: bool) -> rusqlite::Result<Vec<i64>> {
        let from_store = self.run.from_store.load(Ordering::Relaxed);
        let run_row = match self.run_row {
            None => from_store > 0 || ops.iter().any(|op| !matches!(op, Op::Flush)),
            Some((said, at)) => said != from_store && (flushed || at.elapsed() >= RUN_ROW_EVERY),
        };
        if !run_row && ops.iter().all(|op| matches!(op, Op::Flush)) {
            return Ok(vec![0; ops.len()]);
        }
        let now = unix_now();
        // Immediate, so that waiting for another process happens here and not in the middle.
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut statements = Statements {
            connection: &transaction,
            run: &self.run.label,
            now,
            answered: &mut self.answered,
            put: None,
            settle: None,
        };
        let ids = ops
            .iter()
            .map(|op| statements.write(op))
            .collect::<rusqlite::Result<Vec<i64>>>()?;
        drop(statements);
        if run_row {
            transaction
                .prepare_cached(
                    "INSERT INTO runs(run, begun_unix, from_store) VALUES (?1, ?2, ?3)
                     ON CONFLICT(run) DO UPDATE SET from_store = ?3",
                )?
                .execute(params![
                    self.run.label,
                    self.run.begun_unix,
                    column(from_store)
                ])?;
        }
        transaction.commit()?;
        if run_row {
            self.run_row = Some((from_store, Instant::now()));
        }
        Ok(ids)
    }
}

/// What one transaction writes with: each statement looked up once.
struct Statements<'c> {
    connection: &'c Connection,
    run: &'c str,
    now: i64,
    answered: &'c mut VecDeque<Answered>,
    put: Option<CachedStatement<'c>>,
    settle: Option<CachedStatement<'c>>,
}

impl Statements<'_> {
    fn write(&mut self, op: &Op) -> rusqlite::Result<i64> {
        match op {
            Op::Put {
                key,
                model,
                response,
                usage,
            } => {
                let kept = looked_up(
                    &mut self.put,
                    self.connection,
                    "INSERT INTO responses(key, created_unix, model, endpoint, response, prompt_tokens,
                         completion_tokens, cached_tokens, reasoning_tokens)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT(key) DO NOTHING",
                )?
                .execute(params![
                    key.as_bytes(),
                    self.now,
                    model.model,
                    model.endpoint,
                    response,
                    column(usage.prompt_tokens),
                    column(usage.completion_tokens),
                    column(usage.cached_tokens),
                    column(usage.reasoning_tokens),
                ])?;
                return Ok(i64::from(kept > 0));
            }
            Op::Settle { id, model, settled } => {
                looked_up(
                    &mut self.settle,
                    self.connection,
                    "INSERT INTO attempts(run, seq, key, created_unix, model, endpoint, outcome, status, prompt_tokens,
                         completion_tokens, cached_tokens, reasoning_tokens, latency_ms, finish_reason, error, cost_nano,
                         queued_ms)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)",
                )?
                .execute(params![
                    self.run,
                    column(id.seq),
                    id.key.as_bytes(),
                    id.begun_unix,
                    model.model,
                    model.endpoint,
                    settled.outcome,
                    settled.status,
                    column(settled.usage.prompt_tokens),
                    column(settled.usage.completion_tokens),
                    column(settled.usage.cached_tokens),
                    column(settled.usage.reasoning_tokens),
                    column(settled.latency_ms),
                    settled.finish_reason,
                    settled.error,
                    settled.cost_nano.map(cost_column),
                    settled.queued_ms.map(column),
                ])?;
                if settled.outcome == "ok" {
                    if self.answered.len() == REMEMBERED {
                        self.answered.pop_front();
                    }
                    self.answered.push_back(Answered {
                        row: self.connection.last_insert_rowid(),
                        key: id.key,
                    });
                }
            }
            Op::MarkInvalid { key, reason } => {
                let id = match self
                    .answered
                    .iter()
                    .rposition(|answered| answered.key == *key)
                {
                    Some(place) => self.answered.remove(place).map(|answered| answered.row),
                    None => self.answered_before(key)?,
                };
                self.connection
                    .prepare_cached(
                        "UPDATE attempts SET outcome = 'invalid', error = ?2 WHERE id = ?1",
                    )?
                    .execute(params![id, reason])?;
            }
            Op::Flush => {}
            #[cfg(test)]
            Op::LimitPages => {
                let pages: i64 = self
                    .connection
                    .query_row("PRAGMA page_count", [], |row| row.get(0))?;
                let _: i64 = self.connection.query_row(
                    &format!("PRAGMA max_page_count = {}", pages + 8),
                    [],
                    |row| row.get(0),
                )?;
            }
        }
        Ok(self.connection.last_insert_rowid())
    }

    fn answered_before(&self, key: &RequestKey) -> rusqlite::Result<Option<i64>> {
        self.connection.query_row(
            "SELECT max(id) FROM attempts
             WHERE id > (SELECT max(id) FROM attempts) - ?1 AND key = ?2 AND run = ?3 AND outcome = 'ok'",
            params![LOOKED_THROUGH, key.as_bytes(), self.run],
            |row| row.get(0),
        )
    }
}

fn looked_up<'s, 'c>(
    statement: &'s mut Option<CachedStatement<'c>>,
    connection: &'c Connection,
    sql: &str,
) -> rusqlite::Result<&'s mut CachedStatement<'c>> {
    Ok(match statement {
        Some(statement) => statement,
        none => none.insert(connection.prepare_cached(sql)?),
    })
}

/// A count that no call can have is a server's mistake; it must neither lose the row nor overflow the sums.
fn column(count: u64) -> i64 {
    i64::try_from(count.min(1 << 40)).unwrap_or_default()
}

/// A call costs less than a million dollars, which is 10^15 of these.
fn cost_column(nano: u64) -> i64 {
    i64::try_from(nano.min(1 << 50)).unwrap_or_default()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
