use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::{
    Audited, Budget, Budgeted, Cached, Calibration, ChatError, ChatModel, Limited, Recording,
    Result, Retrying, Store, TokenCounter, Validated,
};

/// Puts the wrappers around a model in the order that works.
///
/// From the outside: [`Recording`], [`Cached`], [`Validated`], [`Retrying`], [`Limited`], [`Budgeted`], [`Audited`], the model. So only
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
    budget: Option<Budget>,
    counter: Option<TokenCounter>,
    calibration: Calibration,
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
            budget: None,
            counter: None,
            calibration: Calibration::default(),
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

    /// The model with all that around it.
    ///
    /// # Errors
    /// [`ChatError::Store`] when the recording cannot be opened; [`ChatError::Permanent`] when a budget in dollars has no
    /// price for the model.
    pub fn build(self) -> Result<Box<dyn ChatModel>> {
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
        let budgeted: Box<dyn ChatModel> = match self.budget {
            Some(budget) => {
                let budgeted =
                    Budgeted::new(audited, budget).map_err(|error| ChatError::Permanent {
                        status: None,
                        message: error.to_string(),
                    })?;
                let budgeted = budgeted.calibration(self.calibration);
                Box::new(match self.counter {
                    Some(counter) => budgeted.counter(counter),
                    None => budgeted,
                })
            }
            None => audited,
        };
        let limited = Limited::new(budgeted, self.concurrency);
        let retrying = Retrying::new(limited)
            .attempts(self.retries.saturating_add(1))
            .base(self.backoff);
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
            .field("budget", &self.budget)
            .finish_non_exhaustive()
    }
}
