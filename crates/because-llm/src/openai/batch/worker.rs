use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_channel::oneshot;
use futures_util::StreamExt;
use futures_util::future::{FutureExt, LocalBoxFuture};
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, interval, sleep_until};

use super::Pace;
use super::follow::{Follower, Outcome};
use super::remote::Remote;
use crate::store::{Batch, Found, Ledger, State};
use crate::{ChatError, RequestKey, Result, Stop};

/// The thread on which groups are gathered and batches followed. Dropping it is as good as a kill: it ends at once, and the
/// ledger says where.
#[derive(Debug)]
pub(super) struct Worker {
    asks: Option<UnboundedSender<Ask>>,
    halt: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

type Reply = oneshot::Sender<Result<String>>;

struct Ask {
    key: RequestKey,
    line: Vec<u8>,
    reply: Reply,
}

impl Worker {
    pub(super) fn start(
        ledger: Ledger,
        remote: Arc<Remote>,
        pace: Pace,
        stop: Stop,
    ) -> Result<Self> {
        let label = remote.endpoint.label.clone();
        let failed = |error: std::io::Error| ChatError::Permanent {
            status: None,
            message: format!("{label}: cannot start the thread of batches: {error}"),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        let (asks, asked) = unbounded_channel();
        let (halt, halted) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new()
            .name("llm-batch".into())
            .spawn(move || {
                let desk = Desk {
                    follower: Rc::new(Follower {
                        ledger,
                        remote,
                        pace,
                    }),
                    pace,
                    stop,
                    gathering: Group::default(),
                    waiting: HashMap::new(),
                    followed: HashSet::new(),
                    following: FuturesUnordered::new(),
                };
                runtime.block_on(async {
                    tokio::select! {
                        () = desk.run(asked) => {}
                        _ = halted => {}
                    }
                });
                runtime.shutdown_background();
            })
            .map_err(failed)?;
        Ok(Self {
            asks: Some(asks),
            halt: Some(halt),
            thread: Some(thread),
        })
    }

    /// The line that the server wrote to this request, whenever that is.
    pub(super) async fn ask(&self, key: RequestKey, line: Vec<u8>) -> Result<String> {
        let (reply, said) = oneshot::channel();
        if let Some(asks) = &self.asks {
            // One who cannot be reached drops the question, which is heard below.
            let _ = asks.send(Ask { key, line, reply });
        }
        said.await.unwrap_or_else(|_| {
            Err(ChatError::Pending {
                message: "batch mode has ended; run again to go on".into(),
            })
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.halt.take());
        drop(self.asks.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Who waits for a row, and its line while it may have to be sent anew.
#[derive(Default)]
struct Row {
    line: Option<Vec<u8>>,
    replies: Vec<Reply>,
}

/// The requests that will be the next file.
#[derive(Default)]
struct Group {
    keys: Vec<RequestKey>,
    lines: Vec<u8>,
    rows: HashMap<RequestKey, Row>,
    closes: Option<Instant>,
}

struct Desk {
    follower: Rc<Follower>,
    pace: Pace,
    stop: Stop,
    gathering: Group,
    /// Who waits for the rows of each batch.
    waiting: HashMap<i64, HashMap<RequestKey, Row>>,
    followed: HashSet<i64>,
    following: FuturesUnordered<LocalBoxFuture<'static, (Batch, Result<Outcome>)>>,
}

impl Desk {
    async fn run(mut self, mut asks: UnboundedReceiver<Ask>) {
        match self.follower.ledger.open_batches() {
            Ok(batches) => batches
                .into_iter()
                .for_each(|batch| self.follow(batch, None)),
            // Whoever asks for one of them finds the same fault.
            Err(error) => tracing::warn!(%error, "cannot read which batches are open"),
        }
        let mut tick = interval(Duration::from_millis(100));
        loop {
            let closes = self.gathering.closes;
            tokio::select! {
                ask = asks.recv() => match ask {
                    Some(ask) => self.accept(ask),
                    None => return,
                },
                Some((batch, outcome)) = self.following.next(), if !self.following.is_empty() => {
                    self.ended(&batch, outcome);
                }
                () = until(closes), if closes.is_some() => self.close_group(),
                _ = tick.tick() => {}
            }
            if self.stop.is_requested() {
                self.send_everybody_home();
            }
        }
    }

    fn accept(&mut self, ask: Ask) {
        let Ask { key, line, reply } = ask;
        if let Some(row) = self.gathering.rows.get_mut(&key) {
            row.replies.push(reply);
            return;
        }
        match self.follower.ledger.find(&key) {
            Err(error) => answer([reply], &Err(error)),
            Ok(Some(Found::Answered(line))) => answer([reply], &Ok(line)),
            Ok(Some(Found::Open(batch))) => {
                let row = self
                    .waiting
                    .entry(batch.id)
                    .or_default()
                    .entry(key)
                    .or_default();
                row.replies.push(reply);
                if batch.state != State::Created {
                    row.line = Some(line);
                }
                self.follow(batch, None);
            }
            Ok(None) => self.gather(key, &line, vec![reply]),
        }
    }

    fn gather(&mut self, key: RequestKey, line: &[u8], replies: Vec<Reply>) {
        let group = &self.gathering;
        if !group.keys.is_empty() && group.lines.len() + line.len() > self.pace.bytes {
            self.close_group();
        }
        let group = &mut self.gathering;
        match group.rows.entry(key) {
            Entry::Occupied(mut row) => {
                row.get_mut().replies.extend(replies);
                return;
            }
            Entry::Vacant(row) => {
                row.insert(Row {
                    line: None,
                    replies,
                });
            }
        }
        group.keys.push(key);
        group.lines.extend_from_slice(line);
        group.closes = Some(Instant::now() + self.pace.linger);
        if group.keys.len() >= self.pace.rows {
            self.close_group();
        }
    }

    fn close_group(&mut self) {
        let Group {
            keys, lines, rows, ..
        } = std::mem::take(&mut self.gathering);
        if keys.is_empty() {
            return;
        }
        match self.follower.ledger.begin(&label(), &keys) {
            Ok(batch) => {
                self.waiting.insert(batch.id, rows);
                self.follow(batch, Some(lines));
            }
            Err(error) => refuse(rows, &error),
        }
    }

    fn follow(&mut self, batch: Batch, lines: Option<Vec<u8>>) {
        if !self.followed.insert(batch.id) {
            return;
        }
        let follower = Rc::clone(&self.follower);
        self.following.push(
            async move {
                let mut batch = batch;
                let outcome = follower.follow(&mut batch, lines).await;
                (batch, outcome)
            }
            .boxed_local(),
        );
    }

    fn ended(&mut self, batch: &Batch, outcome: Result<Outcome>) {
        self.followed.remove(&batch.id);
        let rows = self.waiting.remove(&batch.id).unwrap_or_default();
        match outcome {
            Ok(Outcome::Collected { unanswered }) => {
                let ledger = &self.follower.ledger;
                for (key, row) in rows {
                    let said = match ledger.line(batch, &key) {
                        Ok(Some(line)) => Ok(line),
                        Ok(None) => Err(unanswered.clone()),
                        Err(error) => Err(error),
                    };
                    answer(row.replies, &said);
                }
                if let Err(error) = ledger.forget_kept() {
                    tracing::warn!(%error, "lines that are no longer needed stay");
                }
            }
            Ok(Outcome::Unsent { reason }) => {
                tracing::info!(batch = batch.label, reason, "its requests are sent anew");
                for (key, row) in rows {
                    match row.line {
                        Some(line) => self.gather(key, &line, row.replies),
                        None => {
                            let message = reason.clone();
                            answer(row.replies, &Err(ChatError::Transient { message }));
                        }
                    }
                }
            }
            Ok(Outcome::Pending { message }) => refuse(rows, &ChatError::Pending { message }),
            Ok(Outcome::Refused { reason, blamed }) => refuse_blamed(rows, &reason, &blamed),
            Err(error) => refuse(rows, &error),
        }
    }

    fn send_everybody_home(&mut self) {
        let pending = ChatError::Pending {
            message: "stopped on request; what the server has stays there, run again to collect it"
                .into(),
        };
        refuse(std::mem::take(&mut self.gathering).rows, &pending);
        for (_, rows) in self.waiting.drain() {
            refuse(rows, &pending);
        }
    }
}

/// The rows that the server found fault with are at fault; without any, all are, and nothing else will fare better. The
/// rows beside a faulty one are sent again without it.
fn refuse_blamed(rows: HashMap<RequestKey, Row>, reason: &str, blamed: &[(RequestKey, String)]) {
    for (key, row) in rows {
        let own = blamed.iter().find(|(other, _)| *other == key);
        let error = match own {
            Some((_, fault)) => ChatError::Permanent {
                status: Some(400),
                message: format!("{reason} (this request: {fault})"),
            },
            None if !blamed.is_empty() => ChatError::Transient {
                message: reason.to_owned(),
            },
            // Forbidden: what every other call would hear, too.
            None => ChatError::Permanent {
                status: Some(403),
                message: reason.to_owned(),
            },
        };
        answer(row.replies, &Err(error));
    }
}

fn refuse(rows: HashMap<RequestKey, Row>, error: &ChatError) {
    for row in rows.into_values() {
        answer(row.replies, &Err(error.clone()));
    }
}

fn answer(replies: impl IntoIterator<Item = Reply>, said: &Result<String>) {
    for reply in replies {
        // Who has gone away finds it in the ledger when they come back.
        let _ = reply.send(said.clone());
    }
}

async fn until(closes: Option<Instant>) {
    match closes {
        Some(closes) => sleep_until(closes).await,
        None => std::future::pending().await,
    }
}

/// A name that no other group has, on this machine or another.
fn label() -> String {
    static GROUPS: AtomicU64 = AtomicU64::new(0);
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let random = std::collections::hash_map::RandomState::new();
    let drawn = std::hash::BuildHasher::hash_one(&random, since);
    let whole = format!(
        "{}-{}-{}-{drawn}",
        std::process::id(),
        since.as_nanos(),
        GROUPS.fetch_add(1, Ordering::Relaxed)
    );
    blake3::hash(whole.as_bytes()).to_hex()[..24].to_owned()
}
