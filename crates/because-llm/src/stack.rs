use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::{
    Adaptive, Audited, BoxFuture, Budget, Budgeted, Cached, Calibration, ChatError, ChatModel,
    ChatRequest, ChatResponse, Concurrency, Handed, Metered, Metrics, ModelId, Paced, Recording,
    Result, Retrying, SingleFlight, Store, TokenCounter, Validated,
};

/// Puts the wrappers around a model in the order that works.
///
/// From the outside: [`Recording`], [`SingleFlight`], [`Cached`], [`Validated`], [`Retrying`], [`Adaptive`], [`Budgeted`],
/// [`Paced`], [`Metered`], [`Audited`], the model. So equal questions are one, only answers that fit are kept, a call that
/// waits to be repeated holds no place among those under way, whatever goes out again is limited, paid and counted again,
/// and every call that really goes out has its row.
///
/// ```
/// use because_llm::{ChatModel, ChatRequest, Message, ModelStack, Offline, Store};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// let store = Store::open(folder.path().join("llm.sqlite"))?;
/// let model = ModelStack::new(Offline).store(store).concurrency(64).build()?;
/// let request = ChatRequest::new(vec![Message::user("Say something about sand.")]);
/// model.chat(&request).await?;
/// model.chat(&request).await?;
/// assert_eq!(model.metrics().now().begun, 1, "the second was answered from the store");
/// # Ok(())
/// # }
/// ```
pub struct ModelStack {
    model: Box<dyn ChatModel>,
    store: Option<Store>,
    concurrency: usize,
    start: usize,
    min: usize,
    requests_per_minute: Option<u64>,
    tokens_per_minute: Option<u64>,
    retries: u32,
    backoff: Duration,
    deadline: Duration,
    hedge_after: Option<Duration>,
    repairs: u32,
    record: Option<PathBuf>,
    budget: Option<Budget>,
    counter: Option<TokenCounter>,
    calibration: Calibration,
    batch: bool,
}

impl ModelStack {
    /// Around this model: no store, between 1 and 64 calls at once and 8 at first, no rate, 4 retries in half an hour, no
    /// second question to a silent server, 2 repairs, no recording.
    #[must_use]
    pub fn new(model: impl ChatModel + 'static) -> Self {
        Self {
            model: Box::new(model),
            store: None,
            concurrency: 64,
            start: 8,
            min: 1,
            requests_per_minute: None,
            tokens_per_minute: None,
            retries: 4,
            backoff: Duration::from_millis(500),
            deadline: Duration::from_secs(30 * 60),
            hedge_after: None,
            repairs: 2,
            record: None,
            budget: None,
            counter: None,
            calibration: Calibration::default(),
            batch: false,
        }
    }

    /// Keeps answers and writes down attempts here. Without a store, nothing is kept and every question is asked.
    #[must_use]
    pub fn store(mut self, store: Store) -> Self {
        self.store = Some(store);
        self
    }

    /// At most this many calls under way at once; below that, [as many as the server bears](Adaptive).
    #[must_use]
    pub fn concurrency(mut self, calls: usize) -> Self {
        self.concurrency = calls;
        self
    }

    /// So many calls at once at first.
    #[must_use]
    pub fn start(mut self, calls: usize) -> Self {
        self.start = calls;
        self
    }

    /// Never fewer calls at once than this; as many as [`concurrency`](Self::concurrency) for a fixed number.
    #[must_use]
    pub fn min(mut self, calls: usize) -> Self {
        self.min = calls;
        self
    }

    /// At most this many requests in any minute.
    #[must_use]
    pub fn requests_per_minute(mut self, requests: u64) -> Self {
        self.requests_per_minute = Some(requests);
        self
    }

    /// At most this many tokens in any minute.
    #[must_use]
    pub fn tokens_per_minute(mut self, tokens: u64) -> Self {
        self.tokens_per_minute = Some(tokens);
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

    /// How long one call may take with all its attempts and waits.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Asks a second time when a call is [silent for so long](Retrying::hedge_after).
    #[must_use]
    pub fn hedge_after(mut self, silence: Duration) -> Self {
        self.hedge_after = Some(silence);
        self
    }

    /// At most this many questions after an answer that does not fit.
    #[must_use]
    pub fn repairs(mut self, repairs: u32) -> Self {
        self.repairs = repairs;
        self
    }

    /// Pays every call from this budget; what it cost by the budget's prices is written down.
    #[must_use]
    pub fn budget(mut self, budget: Budget) -> Self {
        self.budget = Some(budget);
        self
    }

    /// Counts tokens with this, where they have to be counted before a call.
    #[must_use]
    pub fn counter(mut self, counter: TokenCounter) -> Self {
        self.counter = Some(counter);
        self
    }

    /// Corrects those counts by this, and teaches it.
    #[must_use]
    pub fn calibration(mut self, calibration: Calibration) -> Self {
        self.calibration = calibration;
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
    /// [`ChatError::Store`] when the recording cannot be opened; [`ChatError::Permanent`] when a budget in dollars has no
    /// price for the model.
    pub fn build(self) -> Result<Stacked> {
        let audited: Box<dyn ChatModel> = match &self.store {
            Some(store) => {
                let audited = Audited::new(self.model, store.clone());
                Box::new(match &self.budget {
                    Some(budget) => audited.prices(budget.price_table()),
                    None => audited,
                })
            }
            None => self.model,
        };
        let metered = Metered::new(audited);
        let metrics = metered.metrics();
        let mut paced = Paced::new(metered);
        if let Some(requests) = self.requests_per_minute {
            paced = paced.requests_per_minute(requests);
        }
        if let Some(tokens) = self.tokens_per_minute {
            paced = paced.tokens_per_minute(tokens);
        }
        // Reserved for every attempt, and before the attempt waits for its turn in the minute.
        let budgeted: Box<dyn ChatModel> = match self.budget {
            Some(budget) => {
                let budgeted =
                    Budgeted::new(paced, budget).map_err(|error| ChatError::Permanent {
                        status: None,
                        message: error.to_string(),
                    })?;
                let budgeted = budgeted.calibration(self.calibration);
                Box::new(match self.counter {
                    Some(counter) => budgeted.counter(counter),
                    None => budgeted,
                })
            }
            None => Box::new(paced),
        };
        let adaptive = match self.batch {
            // A group waits until it is full or nothing more comes: there is no limit to be found.
            true => Adaptive::fixed(budgeted, self.concurrency),
            false => Adaptive::new(budgeted, self.concurrency)
                .start(self.start)
                .min(self.min),
        };
        let concurrency = adaptive.concurrency();
        let mut retrying = Retrying::new(adaptive)
            .attempts(self.retries.saturating_add(1))
            .base(self.backoff)
            .deadline(if self.batch { A_YEAR } else { self.deadline });
        if let Some(silence) = self.hedge_after.filter(|_| !self.batch) {
            retrying = retrying.hedge_after(silence);
        }
        let validated = Validated::new(retrying).repairs(self.repairs);
        let cached: Box<dyn ChatModel> = match self.store {
            Some(store) => Box::new(Cached::new(validated.audit(store.clone()), store)),
            None => Box::new(validated),
        };
        let single = SingleFlight::new(cached);
        let model: Box<dyn ChatModel> = match self.record {
            Some(path) => Box::new(Recording::open(single, path)?),
            None => Box::new(single),
        };
        Ok(Stacked {
            model,
            metrics,
            concurrency,
        })
    }
}

/// A model with everything around it, as [`ModelStack::build`] makes it, and what can be seen of it from outside.
pub struct Stacked {
    model: Box<dyn ChatModel>,
    metrics: Metrics,
    concurrency: Concurrency,
}

impl Stacked {
    /// What went out to the model so far.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.metrics.clone()
    }

    /// How many calls may be, and are, under way.
    #[must_use]
    pub fn concurrency(&self) -> Concurrency {
        self.concurrency.clone()
    }
}

impl ChatModel for Stacked {
    fn chat<'a>(&'a self, request: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
        self.chat_with(request, Handed::default())
    }

    fn chat_with<'a>(
        &'a self,
        request: &'a ChatRequest,
        handed: Handed,
    ) -> BoxFuture<'a, Result<ChatResponse>> {
        self.model.chat_with(request, handed)
    }

    fn id(&self) -> ModelId {
        self.model.id()
    }
}

impl fmt::Debug for Stacked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stacked")
            .field("model", &self.model.id())
            .field("metrics", &self.metrics.now())
            .field("concurrency", &self.concurrency.limit())
            .finish_non_exhaustive()
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
            .field("start", &self.start)
            .field("min", &self.min)
            .field("requests_per_minute", &self.requests_per_minute)
            .field("tokens_per_minute", &self.tokens_per_minute)
            .field("retries", &self.retries)
            .field("backoff", &self.backoff)
            .field("deadline", &self.deadline)
            .field("hedge_after", &self.hedge_after)
            .field("repairs", &self.repairs)
            .field("record", &self.record)
            .field("budget", &self.budget)
            .field("batch", &self.batch)
            .finish_non_exhaustive()
    }
}
