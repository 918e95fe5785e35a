use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::store::{AttemptId, Settled};
use crate::text::excerpt;
use crate::{
    BoxFuture, ChatError, ChatModel, ChatRequest, ChatResponse, Handed, ModelId, Price, PriceTable,
    Result, Store, Usage,
};

/// Writes one row of the [`Store`]'s `attempts` for every call to the model inside: before it goes out, and when it ends.
///
/// A row says what the transport gave: `ok` with its tokens, `truncated` or `filtered` when the answer ended that way, or
/// the kind of error. An answer that later turns out not to fit is marked `invalid` by
/// [`Validated::audit`](crate::Validated::audit). A call whose future is dropped becomes `interrupted`.
///
/// ```
/// use because_llm::{Audited, ChatModel, ChatRequest, Message, Offline, Store};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// let store = Store::open(folder.path().join("llm.sqlite"))?;
/// let model = Audited::new(Offline, store.clone());
/// model.chat(&ChatRequest::new(vec![Message::user("Say something about sand.")])).await?;
/// store.flush()?;
/// assert_eq!(store.totals()?.attempts["ok"], 1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Audited<M> {
    inner: M,
    store: Store,
    prices: Arc<PriceTable>,
}

impl<M: ChatModel> Audited<M> {
    /// Writes the calls to `inner` down in `store`.
    #[must_use]
    pub fn new(inner: M, store: Store) -> Self {
        Self {
            inner,
            store,
            prices: Arc::default(),
        }
    }

    /// Writes down what each call cost, where these have a price for its model.
    #[must_use]
    pub fn prices(mut self, prices: impl Into<Arc<PriceTable>>) -> Self {
        self.prices = prices.into();
        self
    }
}

impl<M: ChatModel> ChatModel for Audited<M> {
    fn chat<'a>(&'a self, request: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
        self.chat_with(request, Handed::default())
    }

    fn chat_with<'a>(
        &'a self,
        request: &'a ChatRequest,
        handed: Handed,
    ) -> BoxFuture<'a, Result<ChatResponse>> {
        Box::pin(async move {
            let model = self.inner.id();
            let key = handed.key.unwrap_or_else(|| request.key(&model));
            let id = self.store.begin(&key, &model)?;
            let since = Instant::now();
            let row = UnderWay {
                store: &self.store,
                price: self.prices.get(&model.model),
                id,
                model,
                since,
                queued_ms: handed.ready.map(|ready| millis(since - ready)),
                settled: false,
            };
            let result = self.inner.chat_with(request, handed).await;
            row.settle(&result);
            result
        })
    }

    fn id(&self) -> ModelId {
        self.inner.id()
    }
}

/// A row that has to be settled, whatever happens to the call.
struct UnderWay<'a> {
    store: &'a Store,
    price: Option<&'a Price>,
    id: AttemptId,
    model: ModelId,
    since: Instant,
    /// How long limits held it back.
    queued_ms: Option<u64>,
    settled: bool,
}

impl UnderWay<'_> {
    fn settle(mut self, result: &Result<ChatResponse>) {
        self.settled = true;
        self.write(match result {
            Ok(response) => Settled {
                outcome: response.ending().outcome(),
                usage: response.usage,
                finish_reason: response.finish_reason.clone(),
                ..Settled::default()
            },
            Err(error) => Settled {
                outcome: outcome(error),
                status: status(error),
                usage: match error {
                    ChatError::Truncated { response } => response.usage,
                    _ => Usage::default(),
                },
                error: Some(excerpt(&error.to_string(), 500)),
                ..Settled::default()
            },
        });
    }

    fn write(&mut self, settled: Settled) {
        self.store.settle(
            self.id,
            std::mem::take(&mut self.model),
            Settled {
                cost_nano: self.price.map(|price| price.cost(&settled.usage)),
                latency_ms: millis(self.since.elapsed()),
                queued_ms: self.queued_ms,
                ..settled
            },
        );
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if !self.settled {
            self.write(Settled {
                outcome: "interrupted",
                ..Settled::default()
            });
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The word for an error, in rows, counts and spans.
pub(crate) fn outcome(error: &ChatError) -> &'static str {
    match error {
        ChatError::Transient { .. } => "transient",
        ChatError::Overloaded { .. } => "overloaded",
        ChatError::ContextTooLong { .. } => "context_too_long",
        ChatError::Truncated { .. } => "truncated",
        ChatError::Filtered { .. } => "filtered",
        ChatError::Invalid { .. } => "invalid",
        ChatError::Permanent { .. } => "permanent",
        ChatError::NotRecorded { .. } => "not_recorded",
        ChatError::Store { .. } => "store",
        ChatError::Exhausted { .. } => "exhausted",
        ChatError::Pending { .. } => "pending",
    }
}

/// The HTTP status: a field where a caller may act on it, else in the message, where our client writes `HTTP 503`.
fn status(error: &ChatError) -> Option<u16> {
    let message = match error {
        ChatError::Permanent { status, .. } => return *status,
        ChatError::Transient { message }
        | ChatError::Overloaded { message, .. }
        | ChatError::ContextTooLong { message }
        | ChatError::Filtered { message } => message,
        _ => return None,
    };
    message.split_once("HTTP ")?.1.get(..3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_row_says_what_its_call_cost() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().join("llm.sqlite")).unwrap();
        let request = ChatRequest::new(vec![crate::Message::user("one two three")]);
        let mut prices = PriceTable::default();
        prices.insert(
            crate::Offline.id().model,
            Price::per_million(1.0, 0.0).unwrap(),
        );
        for priced in [prices, PriceTable::default()] {
            let model = Audited::new(crate::Offline, store.clone()).prices(priced);
            model.chat(&request).await.unwrap();
        }
        store.flush().unwrap();
        let totals = store.totals().unwrap();
        assert_eq!(totals.cost_nano, Some(3000), "one of two calls had a price");
    }

    #[tokio::test]
    async fn a_row_says_how_long_limits_held_its_call_back() {
        struct Slow;
        impl ChatModel for Slow {
            fn chat<'a>(&'a self, _: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
                Box::pin(async {
                    tokio::time::sleep(Duration::from_millis(40)).await;
                    Ok(ChatResponse {
                        answer: "slow".into(),
                        finish_reason: Some("stop".into()),
                        ..ChatResponse::default()
                    })
                })
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().join("llm.sqlite")).unwrap();
        let one_at_a_time = crate::ModelStack::new(Slow).concurrency(1);
        let model = one_at_a_time.store(store.clone()).build().unwrap();
        let [one, two] =
            ["one", "two"].map(|text| ChatRequest::new(vec![crate::Message::user(text)]));
        let (first, second) = tokio::join!(model.chat(&one), model.chat(&two));
        first.and(second).unwrap();
        store.flush().unwrap();
        let rows = store.attempts(&crate::RowFilter::default()).unwrap();
        let mut queued: Vec<u64> = rows.map(|row| row.unwrap().queued_ms.unwrap()).collect();
        queued.sort_unstable();
        assert!(queued[0] < 40 && queued[1] >= 39, "{queued:?}");
    }

    #[test]
    fn the_status_is_found_where_it_is_said() {
        let said = |message: &str| {
            status(&ChatError::Transient {
                message: message.into(),
            })
        };
        assert_eq!(
            said("http://a: HTTP 503 Service Unavailable: no"),
            Some(503)
        );
        assert_eq!(said("http://a: connection refused"), None);
        assert_eq!(said("HTTP 5ü"), None);
    }
}
