mod ledger;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use serde::Serialize;

use crate::prices::dollars;
use crate::{
    BoxFuture, Calibration, ChatError, ChatModel, ChatRequest, ChatResponse, Handed, ModelId,
    Price, PriceError, PriceTable, Result, TokenCounter, Usage,
};

use ledger::{Ledger, Need, Reservation};

/// What a run may spend, in dollars, in tokens and in time. A clone is another handle on the same purse, so that several
/// models and stages share it; set the limits before it is cloned.
///
/// Every call [reserves](Budgeted) the most it can cost before it goes out, and when it ends it pays what it did cost; so the
/// sum stays below the limit however many calls are under way. A call for which nothing is left waits, first come first
/// served, as long as others may give back some of what they hold; when nobody holds anything, it is
/// [`ChatError::Exhausted`]. What is left then is less than the next call may cost, not always nothing.
///
/// ```
/// use because_llm::{Budget, Budgeted, ChatError, ChatModel, ChatRequest, Message, Offline};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let budget = Budget::new().tokens(3000);
/// let model = Budgeted::new(Offline, budget.clone())?.unbounded_answer(1000);
/// model.chat(&ChatRequest::new(vec![Message::user("Say something about sand.")])).await?;
/// assert!(budget.spent().tokens() < 100);
///
/// let costly = model.unbounded_answer(5000);
/// let refused = costly.chat(&ChatRequest::new(vec![Message::user("And about worms?")])).await;
/// assert!(matches!(refused, Err(ChatError::Exhausted { .. })));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Budget {
    limits: Limits,
    ledger: Arc<Mutex<Ledger>>,
}

#[derive(Clone, Default)]
struct Limits {
    nano: Option<u64>,
    tokens: Option<u64>,
    until: Option<SystemTime>,
    prices: Arc<PriceTable>,
}

/// What was spent, so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Spent {
    /// Calls that were paid for, or may have been.
    pub calls: u64,
    /// Their tokens, as servers counted them.
    pub usage: Usage,
    /// What they cost, in nano-dollars, by the prices given.
    pub cost_nano: u64,
    /// Beside that, what is assumed for calls of which nothing is known, because they broke off or were dropped.
    pub assumed_nano: u64,
    /// The tokens assumed for those.
    pub assumed_tokens: u64,
    /// What runs before this one had spent, where they count.
    pub before_nano: u64,
    /// The tokens of those.
    pub before_tokens: u64,
}

impl Spent {
    /// Everything, in US dollars.
    #[must_use]
    pub fn usd(&self) -> f64 {
        dollars(self.nano())
    }

    /// Everything, in tokens of prompts and answers.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.usage.prompt_tokens
            + self.usage.completion_tokens
            + self.assumed_tokens
            + self.before_tokens
    }

    fn nano(&self) -> u64 {
        self.cost_nano + self.assumed_nano + self.before_nano
    }
}

impl Budget {
    /// Without limits; it still adds up what is spent.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What models cost. A limit in dollars needs the price of every model it is put around.
    #[must_use]
    pub fn prices(mut self, prices: PriceTable) -> Self {
        self.limits.prices = Arc::new(prices);
        self
    }

    /// At most this many US dollars; a negative amount is none.
    #[must_use]
    pub fn usd(mut self, dollars: f64) -> Self {
        self.limits.nano = Some((dollars.max(0.0) * 1e9).round() as u64);
        self
    }

    /// At most this many tokens, those of prompts and of answers together.
    #[must_use]
    pub fn tokens(mut self, tokens: u64) -> Self {
        self.limits.tokens = Some(tokens);
        self
    }

    /// No call begins at or after this moment; those under way may end.
    #[must_use]
    pub fn until(mut self, moment: SystemTime) -> Self {
        self.limits.until = Some(moment);
        self
    }

    /// Counts what was spent before: nano-dollars and tokens. A budget is for a run unless somebody says so here.
    #[must_use]
    pub fn spent_before(self, cost_nano: u64, tokens: u64) -> Self {
        {
            let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
            ledger.spent.before_nano = cost_nano;
            ledger.spent.before_tokens = tokens;
        }
        self
    }

    /// Whether anything is limited.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.counts() || self.limits.until.is_some()
    }

    /// What was spent so far.
    #[must_use]
    pub fn spent(&self) -> Spent {
        self.ledger
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .spent
    }

    pub(crate) fn price_table(&self) -> Arc<PriceTable> {
        Arc::clone(&self.limits.prices)
    }

    fn counts(&self) -> bool {
        self.limits.nano.is_some() || self.limits.tokens.is_some()
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget")
            .field("usd", &self.limits.nano.map(dollars))
            .field("tokens", &self.limits.tokens)
            .field("until", &self.limits.until)
            .field("spent", &self.spent())
            .finish_non_exhaustive()
    }
}

/// Lets a call go out only if the most it can cost still fits a [`Budget`].
///
/// The most it can cost is its prompt, counted and corrected by what the server counted before, and the longest answer it
/// may give (`max_tokens`, or the longest seen so far and half as much again). Put it *inside*
/// [`Retrying`](crate::Retrying) and [`Validated`](crate::Validated): a repetition and a repair are payments too.
///
/// When a call ends, the tokens its server counted are paid. Refusals (overload, a wrong request) cost nothing. A call that
/// broke off after it was sent is assumed to have cost its prompt and an answer of mean length, and one whose future was
/// dropped all that it had reserved.
///
/// ```
/// use because_llm::{Budget, Budgeted, ChatModel, ChatRequest, Message, Offline, Price, PriceTable};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut prices = PriceTable::default();
/// prices.insert(Offline.id().model, Price::per_million(0.15, 0.60)?);
/// let budget = Budget::new().prices(prices).usd(0.01);
/// let model = Budgeted::new(Offline, budget.clone())?;
/// model.chat(&ChatRequest::new(vec![Message::user("Say something about sand.")])).await?;
/// assert!(budget.spent().usd() > 0.0);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Budgeted<M> {
    inner: M,
    budget: Budget,
    price: Option<Price>,
    counter: TokenCounter,
    calibration: Calibration,
    unbounded_answer: u64,
}

impl<M: ChatModel> Budgeted<M> {
    /// Puts `inner` under this budget. Tokens are counted as [`TokenCounter::for_model`] says.
    ///
    /// # Errors
    /// [`PriceError::Unknown`] when the budget is in dollars and has no price for this model.
    pub fn new(inner: M, budget: Budget) -> Result<Self, PriceError> {
        let model = inner.id().model;
        let price = budget.limits.prices.get(&model).cloned();
        if price.is_none() && budget.limits.nano.is_some() {
            return Err(PriceError::Unknown { model });
        }
        Ok(Self {
            counter: TokenCounter::for_model(&model),
            price,
            inner,
            budget,
            calibration: Calibration::default(),
            unbounded_answer: 4096,
        })
    }

    /// Counts prompts with this.
    #[must_use]
    pub fn counter(mut self, counter: TokenCounter) -> Self {
        self.counter = counter;
        self
    }

    /// Corrects counts by this, and teaches it.
    #[must_use]
    pub fn calibration(mut self, calibration: Calibration) -> Self {
        self.calibration = calibration;
        self
    }

    /// What is reserved for the answer to a request without `max_tokens` before any answer was seen; 4,096 tokens where it is
    /// not said.
    #[must_use]
    pub fn unbounded_answer(mut self, tokens: u64) -> Self {
        self.unbounded_answer = tokens;
        self
    }

    fn estimate(&self, request: &ChatRequest, model: &str) -> Estimate {
        let prompt = self.counter.request(request);
        let learnt = self.calibration.of(model);
        let likely_prompt = (prompt as f64 * learnt.ratio()).ceil();
        let longest = match request.sampling.max_tokens {
            Some(most) => u64::from(most),
            None if learnt.calls >= 32 => learnt.longest_answer + learnt.longest_answer / 2,
            None => self.unbounded_answer.max(learnt.longest_answer),
        };
        Estimate {
            prompt,
            likely: Usage {
                prompt_tokens: likely_prompt as u64,
                completion_tokens: learnt
                    .mean_answer()
                    .map_or(longest, |mean| (mean.ceil() as u64).min(longest)),
                ..Usage::default()
            },
            most: Usage {
                prompt_tokens: (likely_prompt * (1.0 + self.counter.error())).ceil() as u64,
                completion_tokens: longest,
                ..Usage::default()
            },
        }
    }

    fn need(&self, usage: &Usage) -> Need {
        Need {
            nano: self.price.as_ref().map_or(0, |price| price.cost(usage)),
            tokens: usage.prompt_tokens + usage.completion_tokens,
        }
    }

    fn pay(
        &self,
        reservation: Reservation,
        estimate: &Option<Estimate>,
        model: &str,
        result: &Result<ChatResponse>,
    ) {
        let response = match result {
            Ok(response) => response,
            Err(ChatError::Truncated { response }) => response,
            // A batch will be paid for when it is collected, and cannot be called back for less.
            Err(ChatError::Pending { .. }) => return drop(reservation),
            Err(error) if may_be_paid(error) => {
                let likely = estimate
                    .as_ref()
                    .map(|estimate| self.need(&estimate.likely));
                return reservation.assume(likely.unwrap_or_default());
            }
            Err(_) => return reservation.give_back(),
        };
        let usage = response.usage;
        if usage.prompt_tokens + usage.completion_tokens > 0 {
            if let Some(estimate) = estimate {
                self.calibration.learn(model, estimate.prompt, &usage);
            }
            return reservation.pay(usage, self.need(&usage).nano);
        }
        // A server that counts nothing.
        let Some(estimate) = estimate else {
            return reservation.pay(usage, 0);
        };
        let said = self.counter.text(&response.answer)
            + self
                .counter
                .text(response.reasoning.as_deref().unwrap_or_default());
        reservation.assume(self.need(&Usage {
            completion_tokens: said,
            ..estimate.likely
        }));
    }
}

impl<M: ChatModel> ChatModel for Budgeted<M> {
    fn chat<'a>(&'a self, request: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
        self.chat_with(request, Handed::default())
    }

    fn chat_with<'a>(
        &'a self,
        request: &'a ChatRequest,
        handed: Handed,
    ) -> BoxFuture<'a, Result<ChatResponse>> {
        Box::pin(async move {
            let model = self.inner.id().model;
            let estimate = self.budget.counts().then(|| self.estimate(request, &model));
            let most = estimate.as_ref().map(|estimate| self.need(&estimate.most));
            let reservation = self.budget.reserve(most.unwrap_or_default()).await?;
            let result = self.inner.chat_with(request, handed).await;
            self.pay(reservation, &estimate, &model, &result);
            result
        })
    }

    fn id(&self) -> ModelId {
        self.inner.id()
    }
}

struct Estimate {
    /// As counted, before it is corrected.
    prompt: u64,
    likely: Usage,
    most: Usage,
}

/// Whether a failed call may stand on the bill: it was sent and nobody said no.
fn may_be_paid(error: &ChatError) -> bool {
    let ChatError::Transient { message } = error else {
        return false;
    };
    const NOT_SENT: [&str; 3] = [
        "connection refused",
        "no connection in time",
        "cannot be resolved",
    ];
    !message.contains("HTTP ") && !NOT_SENT.iter().any(|said| message.contains(said))
}
