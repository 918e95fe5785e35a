use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::Pace;
use super::lines::Line;
use super::remote::{Fault, Remote, RemoteBatch, Status};
use crate::store::{Batch, Ledger, State};
use crate::text::excerpt;
use crate::{ChatError, RequestKey, Result};

/// Takes one batch from wherever it is to its end, each step on disk before the next.
pub(super) struct Follower {
    pub(super) ledger: Ledger,
    pub(super) remote: Arc<Remote>,
    pub(super) pace: Pace,
}

/// Where it ended, for those who wait for its rows.
#[derive(Debug)]
pub(super) enum Outcome {
    /// What the server said to each row is in the ledger; a row without a line was not come to, for this reason.
    Collected { unanswered: ChatError },
    /// It never ran, so its rows may be sent anew.
    Unsent { reason: String },
    /// The server has it, and nobody waits.
    Pending { message: String },
    /// The server read it and would not run it, for the sake of these rows or, where there are none, of all.
    Refused {
        reason: String,
        blamed: Vec<(RequestKey, String)>,
    },
}

/// So often something that may pass is tried before those who wait are told.
const TRIES: u32 = 8;

impl Follower {
    /// Follows a new batch with its lines, or one that was found in the ledger.
    pub(super) async fn follow(
        &self,
        batch: &mut Batch,
        lines: Option<Vec<u8>>,
    ) -> Result<Outcome> {
        let is_new = lines.is_some();
        if let Some(lines) = lines {
            self.upload(batch, &lines).await?;
            drop(lines);
            self.create(batch).await?;
        } else if batch.state != State::Created {
            let mut tries = 0;
            loop {
                match self.heal(batch).await {
                    Ok(true) => break,
                    Ok(false) => {
                        let reason = format!("batch {} had not been begun", batch.label);
                        return Ok(Outcome::Unsent { reason });
                    }
                    Err(error) if error.is_retryable() => {
                        tracing::warn!(batch = batch.label, %error, "cannot tell yet whether it was begun");
                        self.wait(tries, &error).await;
                        tries += 1;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        self.watch(batch, is_new).await
    }

    async fn upload(&self, batch: &mut Batch, lines: &[u8]) -> Result<()> {
        let mut tries = 0;
        let file_id = loop {
            match self.remote.upload(&batch.label, lines).await {
                Ok(file_id) => break file_id,
                Err(error) if error.is_retryable() && tries + 1 < TRIES => {
                    tracing::warn!(batch = batch.label, %error, "uploading again");
                    self.wait(tries, &error).await;
                    tries += 1;
                }
                Err(error) => {
                    self.close(batch, State::Failed, &error.to_string())?;
                    return Err(error);
                }
            }
        };
        tracing::info!(
            batch = batch.label,
            rows = batch.rows,
            file = file_id,
            "uploaded"
        );
        self.ledger.uploaded(batch, &file_id)
    }

    /// Has the file run, once: after a failure that may hide a success, the server's list says which it was.
    async fn create(&self, batch: &mut Batch) -> Result<()> {
        let file_id = batch.file_id.clone().unwrap_or_default();
        let mut unsure = false;
        let mut tries = 0;
        loop {
            let asked = if unsure {
                self.find(batch).await
            } else {
                self.remote.create(&batch.label, &file_id).await.map(Some)
            };
            let error = match asked {
                Ok(Some(batch_id)) => return self.has_begun(batch, &batch_id),
                Ok(None) => {
                    unsure = false;
                    continue;
                }
                Err(error) if error.is_retryable() => error,
                // The list cannot be read, so the batch stays open until it can.
                Err(error) if unsure => return Err(error),
                Err(error) => {
                    self.close(batch, State::Failed, &error.to_string())?;
                    return Err(error);
                }
            };
            tries += 1;
            if tries >= TRIES {
                // Without its file it cannot begin behind our back.
                return match self.heal(batch).await {
                    Ok(true) => Ok(()),
                    _ => Err(error),
                };
            }
            unsure |= matches!(error, ChatError::Transient { .. });
            tracing::warn!(batch = batch.label, %error, "not created yet");
            self.wait(tries - 1, &error).await;
        }
    }

    /// Finds out whether a batch that was being begun has begun. One that has not is closed, and its file taken away first,
    /// so that a call still on its way cannot begin it later.
    async fn heal(&self, batch: &mut Batch) -> Result<bool> {
        let files = match &batch.file_id {
            Some(file_id) => vec![file_id.clone()],
            // Nothing is begun before its file is in the ledger, so this is only about tidiness.
            None => self
                .remote
                .find_files(&batch.label, batch.created_unix)
                .await
                .or_else(|error| match error.is_retryable() {
                    true => Err(error),
                    false => Ok(Vec::new()),
                })?,
        };
        if batch.file_id.is_some()
            && let Some(batch_id) = self.find(batch).await?
        {
            self.has_begun(batch, &batch_id)?;
            return Ok(true);
        }
        for file_id in &files {
            self.remote.delete(file_id).await?;
        }
        if batch.file_id.is_some()
            && let Some(batch_id) = self.find(batch).await?
        {
            self.has_begun(batch, &batch_id)?;
            return Ok(true);
        }
        self.close(batch, State::Failed, "not begun")?;
        Ok(false)
    }

    async fn find(&self, batch: &Batch) -> Result<Option<String>> {
        self.remote
            .find_batch(&batch.label, batch.file_id.as_deref(), batch.created_unix)
            .await
    }

    fn has_begun(&self, batch: &mut Batch, batch_id: &str) -> Result<()> {
        tracing::info!(batch = batch.label, batch_id, rows = batch.rows, "created");
        self.ledger.created(batch, batch_id)
    }

    /// Asks after it until it has ended, and fetches what there is.
    async fn watch(&self, batch: &mut Batch, is_new: bool) -> Result<Outcome> {
        let mut pause = self.pace.poll;
        let mut without_files = 0;
        let mut silent = 0;
        loop {
            let batch_id = batch.batch_id.clone().unwrap_or_default();
            let mut said = "not heard of".to_owned();
            match self.remote.batch(&batch_id).await {
                Ok(remote) => {
                    said = remote.said();
                    silent = 0;
                    match remote.status() {
                        Status::UnderWay => {
                            tracing::debug!(batch_id, said, "waiting");
                        }
                        Status::Failed => {
                            if let Some(outcome) = self.failed(batch, remote, is_new).await? {
                                return Ok(outcome);
                            }
                        }
                        // Some servers name the files a little later than the end.
                        Status::Completed
                            if remote.output_file_id.is_none()
                                && remote.error_file_id.is_none()
                                && without_files < 3 =>
                        {
                            without_files += 1;
                        }
                        status => return self.collect(batch, &remote, status).await,
                    }
                }
                Err(ChatError::Permanent {
                    status: Some(404), ..
                }) if self.find(batch).await?.is_none() => {
                    let reason = format!("the server no longer knows batch {batch_id}");
                    self.close(batch, State::Failed, &reason)?;
                    return Ok(Outcome::Unsent { reason });
                }
                Err(error) if error.is_retryable() => {
                    silent += 1;
                    tracing::warn!(batch_id, %error, "asking after it again");
                }
                Err(error) => return Err(error),
            }
            if !self.pace.waits && (silent == 0 || silent > 2) && without_files == 0 {
                let rows = batch.rows;
                return Ok(Outcome::Pending {
                    message: format!(
                        "batch {batch_id} ({rows} requests) is {said}; run again to collect its answers"
                    ),
                });
            }
            sleep(pause).await;
            pause = pause.mul_f64(1.5).min(self.pace.longest_poll);
        }
    }

    /// A batch that the server would not run, which costs nothing. Where its queue was full, the same file is run later.
    async fn failed(
        &self,
        batch: &mut Batch,
        remote: RemoteBatch,
        is_new: bool,
    ) -> Result<Option<Outcome>> {
        let faults = remote.faults();
        let reason = said(&faults);
        let queue_is_full = faults
            .iter()
            .any(|fault| fault.code.as_deref() == Some("token_limit_exceeded"));
        let batch_id = batch.batch_id.clone().unwrap_or_default();
        if !is_new {
            // Its file may be gone, by our own doing; a new one says whether the fault was in the rows.
            let reason = format!("batch {batch_id} failed: {reason}");
            self.close(batch, State::Failed, &reason)?;
            return Ok(Some(Outcome::Unsent { reason }));
        }
        if queue_is_full {
            tracing::warn!(
                batch_id,
                reason,
                "the server's queue is full; trying again later"
            );
            let file_id = batch.file_id.clone().unwrap_or_default();
            self.ledger.uploaded(batch, &file_id)?;
            if !self.pace.waits {
                let message =
                    format!("batch {batch_id} was not taken: {reason}; run again to send it");
                return Ok(Some(Outcome::Pending { message }));
            }
            sleep(self.pace.longest_poll).await;
            self.create(batch).await?;
            return Ok(None);
        }
        let keys = self.ledger.keys(batch)?;
        let blamed = faults
            .iter()
            .filter_map(|fault| {
                let key = keys.get(fault.line?.checked_sub(1)?)?;
                Some((*key, said(std::slice::from_ref(fault))))
            })
            .collect();
        self.close(batch, State::Failed, &reason)?;
        Ok(Some(Outcome::Refused {
            reason: format!(
                "{}: batch {batch_id} was refused: {reason}",
                self.remote.endpoint.label
            ),
            blamed,
        }))
    }

    async fn collect(
        &self,
        batch: &mut Batch,
        remote: &RemoteBatch,
        status: Status,
    ) -> Result<Outcome> {
        let batch_id = batch.batch_id.clone().unwrap_or_default();
        for file_id in [&remote.output_file_id, &remote.error_file_id]
            .into_iter()
            .flatten()
        {
            let mut tries = 0;
            while let Err(error) = self.fetch(batch, file_id).await {
                match error {
                    ChatError::Permanent {
                        status: Some(404), ..
                    } => {
                        tracing::warn!(batch_id, file_id, %error, "a file of answers is gone");
                        break;
                    }
                    error if error.is_retryable() && tries + 1 < TRIES => {
                        tracing::warn!(batch_id, file_id, %error, "downloading again");
                        self.wait(tries, &error).await;
                        tries += 1;
                    }
                    error => return Err(error),
                }
            }
        }
        let what = format!("{} ({batch_id})", remote.said());
        self.close(batch, State::Done, &what)?;
        tracing::info!(batch_id, said = remote.said(), "collected");
        Ok(Outcome::Collected {
            unanswered: match status {
                Status::Expired => super::lines::expired(&what),
                Status::Cancelled => super::lines::cancelled(&what),
                _ => ChatError::Transient {
                    message: format!("batch {batch_id} ended without an answer to this request"),
                },
            },
        })
    }

    /// Every line of a file into the ledger, some at a time.
    async fn fetch(&self, batch: &Batch, file_id: &str) -> Result<()> {
        const AT_ONCE: usize = 1000;
        let mut rows = Vec::new();
        self.remote
            .lines(file_id, |text| {
                let line = match Line::read(text) {
                    Ok(line) => line,
                    Err(problem) => {
                        tracing::warn!(file_id, problem, line = excerpt(text, 200), "unreadable");
                        return Ok(());
                    }
                };
                let Some(key) = line.key() else {
                    tracing::warn!(file_id, line = excerpt(text, 200), "not of ours");
                    return Ok(());
                };
                rows.push((key, line.is_answer(), text.to_owned()));
                if rows.len() == AT_ONCE {
                    self.ledger.record(batch, &rows)?;
                    rows.clear();
                }
                Ok(())
            })
            .await?;
        self.ledger.record(batch, &rows)
    }

    fn close(&self, batch: &mut Batch, state: State, reason: &str) -> Result<()> {
        self.ledger
            .finish(batch, state, Some(&excerpt(reason, 500)))
    }

    async fn wait(&self, tries: u32, error: &ChatError) {
        let longest = Duration::from_secs(60);
        let asked = match error {
            ChatError::Overloaded { retry_after, .. } => retry_after.unwrap_or_default(),
            _ => Duration::ZERO,
        };
        let backoff = self.pace.backoff.saturating_mul(1 << tries.min(16));
        sleep(backoff.max(asked).min(longest)).await;
    }
}

/// What the server has against a batch, the first few points of it.
fn said(faults: &[Fault]) -> String {
    if faults.is_empty() {
        return "the server gave no reason".into();
    }
    let points: Vec<String> = faults
        .iter()
        .take(3)
        .map(|fault| {
            let message = fault.message.as_deref().or(fault.code.as_deref());
            let message = excerpt(message.unwrap_or("no reason given"), 200);
            match fault.line {
                Some(line) => format!("line {line}: {message}"),
                None => message,
            }
        })
        .collect();
    let more = match faults.len().saturating_sub(3) {
        0 => String::new(),
        more => format!(" (and {more} more)"),
    };
    points.join("; ") + &more
}
