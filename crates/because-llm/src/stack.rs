use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::{Audited, Cached, ChatModel, Limited, Recording, Result, Retrying, Store, Validated};

/// Puts the wrappers around a model in the order that works.
///
/// From the outside: [`Recording`], [`Cached`], [`Validated`], [`Retrying`], [`Limited`], [`Audited`], the model. So only
/// answers that fit are kept, a call that waits to be repeated holds no place among those under way, and every call that
/// really goes out has its row.
///
/// ```
/// use because_llm::{ChatModel, ChatRequest, Message, ModelStack, Offline, Store};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// let store = Store::open(folder.path().join("llm.sqlite"))?;
/// let model = ModelStack::new(Offline).store(store.clone()).concurrency(8).build()?;
/// let request = ChatRequest::new(vec![Message::user("Say something about sand.")]);
/// model.chat(&request).await?;
/// model.chat(&request).await?;
/// assert_eq!(store.totals()?.attempts["ok"], 1, "the second was answered from the store");
/// # Ok(())
/// # }
/// ```
pub struct ModelStack {
    model: Box<dyn ChatModel>,
    store: Option<Store>,
    concurrency: usize,
    retries: u32,
    backoff: Duration,
    repairs: u32,
    record: Option<PathBuf>,
    batch: bool,
}

impl ModelStack {
    /// Around this model: no store, 8 calls at once, 4 retries, 2 repairs, no recording.
    #[must_use]
    pub fn new(model: impl ChatModel + 'static) -> Self {
        Self {
            model: Box::new(model),
            store: None,
            concurrency: 8,
            retries: 4,
            backoff: Duration::from_millis(500),
            repairs: 2,
            record: None,
            batch: false,
        }
    }

    /// Keeps answers and writes down attempts here. Without a store, nothing is kept and every question is asked.
    #[must_use]
    pub fn store(mut self, store: Store) -> Self {
        self.store = Some(store);
        self
    }

    /// At most this many calls under way at once.
    #[must_use]
    pub fn concurrency(mut self, calls: usize) -> Self {
        self.concurrency = calls;
        self
    }

    /// At most this many repetitions of a call that failed in a way that may pass.
    #[must_use]
    pub fn retries(mut self, retries: u32) -> Self {
        self.retries = retries;
        self
    }

    /// The longest first wait before a repetition; each next one may be twice as long.
    #[must_use]
    pub fn backoff(mut self, base: Duration) -> Self {
        self.backoff = base;
        self
    }

    /// At most this many questions after an answer that does not fit.
    #[must_use]
    pub fn repairs(mut self, repairs: u32) -> Self {
        self.repairs = repairs;
        self
    }

    /// Records every exchange in this file.
    #[must_use]
    pub fn record(mut self, path: impl Into<PathBuf>) -> Self {
        self.record = Some(path.into());
        self
    }

    /// For a model that answers in groups and after hours, as `OpenAiBatch` does: as many calls at once as a group has
    /// rows, and no deadline for a call.
    #[must_use]
    pub fn batch(mut self, rows: usize) -> Self {
        self.batch = true;
        self.concurrency = rows;
        self
    }

    /// The model with all that around it.
    ///
    /// # Errors
    /// [`ChatError::Store`](crate::ChatError::Store) when the recording cannot be opened.
    pub fn build(self) -> Result<Box<dyn ChatModel>> {
        let audited: Box<dyn ChatModel> = match &self.store {
            Some(store) => Box::new(Audited::new(self.model, store.clone())),
            None => self.model,
        };
        let limited = Limited::new(audited, self.concurrency);
        let mut retrying = Retrying::new(limited)
            .attempts(self.retries.saturating_add(1))
            .base(self.backoff);
        if self.batch {
            retrying = retrying.deadline(A_YEAR);
        }
        let validated = Validated::new(retrying).repairs(self.repairs);
        let cached: Box<dyn ChatModel> = match self.store {
            Some(store) => Box::new(Cached::new(validated.audit(store.clone()), store)),
            None => Box::new(validated),
        };
        Ok(match self.record {
            Some(path) => Box::new(Recording::open(cached, path)?),
            None => cached,
        })
    }
}

/// Longer than any batch takes, and short enough for every clock.
const A_YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

impl fmt::Debug for ModelStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelStack")
            .field("model", &self.model.id())
            .field("store", &self.store)
            .field("concurrency", &self.concurrency)
            .field("retries", &self.retries)
            .field("backoff", &self.backoff)
            .field("repairs", &self.repairs)
            .field("record", &self.record)
            .field("batch", &self.batch)
            .finish()
    }
}
