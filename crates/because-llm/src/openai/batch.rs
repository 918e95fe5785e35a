mod follow;
mod lines;
mod remote;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderValue};

use super::dialect::Spoken;
use super::wire::Question;
use crate::store::Ledger;
use crate::{
    BoxFuture, ChatError, ChatModel, ChatRequest, ChatResponse, ModelId, Result, Stop, Store,
};

use lines::{Ended, Line};
use remote::Remote;
use worker::Worker;

use super::OpenAiBuilder;

/// A model behind OpenAI's Batch API: half the price, answers within a day.
///
/// It is asked like any other model, by many callers at once, and each waits: requests gather until a group is full or
/// nothing new has come for a while, the group goes up as one file, the batch is watched, and every answer is handed to
/// its caller. What has no answer (its line failed, or the batch expired first) is an error that
/// [may pass](ChatError::is_retryable), for that request alone; asked again it becomes part of the next group.
///
/// Every step is in the [`Store`] before it is taken (tables `batches` and `batch_rows`), so a program may be killed at
/// any moment and started days later: a request that is in a batch already waits for that one, an answer that was fetched
/// and not yet used is used, and what a kill left between two steps is looked up on the server. Nothing is submitted
/// twice. The key of a request is the same as online, so answers of either way serve the other.
///
/// Calls take hours: put no short deadline around it, and as many at once as a group has rows
/// ([`ModelStack::batch`](crate::ModelStack::batch) does both). Its network calls run on a thread of their own, so it needs
/// no runtime of the caller's. One process at a time may use batch mode with a store.
///
/// ```no_run
/// use because_llm::{ChatModel, ChatRequest, Message, ModelStack, OpenAi, Store};
///
/// # async fn example() -> Result<(), because_llm::ChatError> {
/// let store = Store::open("llm.sqlite")?;
/// let batch = OpenAi::from_env("gpt-4o-mini").batch(store.clone()).rows(10_000).build()?;
/// let model = ModelStack::new(batch).store(store).batch(10_000).build()?;
/// let response = model.chat(&ChatRequest::new(vec![Message::user("Why is the sky blue?")])).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct OpenAiBatch {
    remote: Arc<Remote>,
    dialect: Spoken,
    worker: Worker,
}

/// The settings of an [`OpenAiBatch`], until they are checked.
#[derive(Debug, Clone)]
pub struct OpenAiBatchBuilder {
    inner: OpenAiBuilder,
    store: Store,
    pace: Pace,
    stop: Stop,
}

/// How groups are made and batches watched.
#[derive(Debug, Clone, Copy)]
struct Pace {
    rows: usize,
    bytes: usize,
    linger: Duration,
    poll: Duration,
    longest_poll: Duration,
    backoff: Duration,
    waits: bool,
}

impl OpenAiBuilder {
    /// The same model through its server's Batch API, with the state of batches in this store, which should also be that of
    /// the [`ModelStack`](crate::ModelStack) around it.
    #[must_use]
    pub fn batch(self, store: Store) -> OpenAiBatchBuilder {
        OpenAiBatchBuilder {
            inner: self,
            store,
            pace: Pace {
                rows: OpenAiBatchBuilder::MOST_ROWS,
                bytes: OpenAiBatchBuilder::MOST_BYTES,
                linger: Duration::from_secs(3),
                poll: Duration::from_secs(10),
                longest_poll: Duration::from_secs(120),
                backoff: Duration::from_secs(1),
                waits: true,
            },
            stop: Stop::default(),
        }
    }
}

impl OpenAiBatchBuilder {
    /// The most requests that OpenAI takes in one file.
    pub const MOST_ROWS: usize = 50_000;
    /// The most bytes that OpenAI takes in one file.
    pub const MOST_BYTES: usize = 200_000_000;

    /// At most so many requests a file.
    #[must_use]
    pub fn rows(mut self, rows: usize) -> Self {
        self.pace.rows = rows.clamp(1, Self::MOST_ROWS);
        self
    }

    /// At most so many bytes a file, unless a single request has more.
    #[must_use]
    pub fn bytes(mut self, bytes: usize) -> Self {
        self.pace.bytes = bytes.min(Self::MOST_BYTES);
        self
    }

    /// A group that is not full is closed when nothing new came for this long; 3 seconds where it is not said.
    #[must_use]
    pub fn linger(mut self, linger: Duration) -> Self {
        self.pace.linger = linger;
        self
    }

    /// How often the server is asked whether a batch is done: at first and, growing by halves, at last. From 10 seconds to
    /// 2 minutes where it is not said.
    #[must_use]
    pub fn poll(mut self, first: Duration, last: Duration) -> Self {
        self.pace.poll = first.max(Duration::from_millis(1));
        self.pace.longest_poll = last.max(first);
        self
    }

    /// The wait before an upload, a creation or a download that failed is tried again; doubled each time, up to a minute.
    #[must_use]
    pub fn backoff(mut self, backoff: Duration) -> Self {
        self.pace.backoff = backoff;
        self
    }

    /// Does not wait for batches: whoever would have to gets [`ChatError::Pending`] as soon as the server has the request,
    /// and asks again another day.
    #[must_use]
    pub fn collect_later(mut self) -> Self {
        self.pace.waits = false;
        self
    }

    /// Obeys this stop: every caller that waits gets [`ChatError::Pending`]. What the server has, it keeps.
    #[must_use]
    pub fn stop(mut self, stop: Stop) -> Self {
        self.stop = stop;
        self
    }

    /// Checks the settings, opens the state of batches and goes on with those that an earlier run left.
    ///
    /// # Errors
    /// As [`OpenAiBuilder::build`], and [`ChatError::Store`] when the store cannot be written or another process uses it for
    /// batches.
    pub fn build(self) -> Result<OpenAiBatch> {
        let online = self.inner.clone().build()?;
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("openai-organization", &self.inner.organization),
            ("openai-project", &self.inner.project),
        ] {
            // `build` above has refused those that cannot stand in a header.
            if let (false, Ok(value)) =
                (value.trim().is_empty(), HeaderValue::from_str(value.trim()))
            {
                headers.insert(name, value);
            }
        }
        let client =
            online
                .endpoint
                .client(online.timeout)
                .map_err(|message| ChatError::Permanent {
                    status: None,
                    message,
                })?;
        let id = online.id();
        let dialect = Spoken::of(
            &online.model,
            &online.endpoint.host,
            online.endpoint.port,
            self.inner.dialect,
        );
        let remote = Arc::new(Remote {
            endpoint: online.endpoint,
            model: online.model,
            timeout: online.timeout,
            client,
            headers,
        });
        let ledger = Ledger::open(&self.store, id)?;
        let worker = Worker::start(ledger, Arc::clone(&remote), self.pace, self.stop)?;
        Ok(OpenAiBatch {
            remote,
            dialect,
            worker,
        })
    }
}

impl OpenAiBatch {
    async fn ask(&self, request: &ChatRequest) -> Result<ChatResponse> {
        let key = request.key(&self.id());
        loop {
            let sent = self.dialect.now();
            let question = Question::new(&self.remote.model, request, sent);
            let line = lines::write(&key, &question);
            let said = self.worker.ask(key, line).await?;
            let line = Line::read(&said).map_err(|problem| ChatError::Transient {
                message: format!("the line of request {key} cannot be read: {problem}"),
            })?;
            let refusal = match line.into_response() {
                Ok(response) => return Ok(response),
                Err(Ended::Unanswered(error)) => return Err(error),
                Err(Ended::Refused(refusal)) => refusal,
            };
            if !self.dialect.learns(&refusal, sent, request) {
                return Err(self.remote.refused(&refusal));
            }
            tracing::debug!(%key, "refused, asking differently in the next batch: {}", self.remote.refused(&refusal));
        }
    }
}

impl ChatModel for OpenAiBatch {
    fn chat<'a>(&'a self, request: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
        Box::pin(self.ask(request))
    }

    fn id(&self) -> ModelId {
        ModelId {
            model: self.remote.model.clone(),
            endpoint: self.remote.endpoint.label.clone(),
        }
    }
}
