use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::{BoxFuture, ChatModel, ChatRequest, ChatResponse, ModelId, RequestKey, Result, Store};

/// Answers a request that was answered before from the [`Store`], and keeps every new answer there before it gives it out.
///
/// The key is the whole request and the model's id, so a finished run asked again costs nothing, and a broken one goes on
/// where it broke. Identical requests under way at the same time share one call. Errors are not kept. An answer from the
/// store carries the usage it had when it was paid for.
///
/// Put it *outside* [`Validated`](crate::Validated), so that only answers that fit can satisfy a later request.
///
/// ```
/// use because_llm::{Cached, ChatModel, ChatRequest, Limited, Message, Offline, Store};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// let store = Store::open(folder.path().join("llm.sqlite"))?;
/// let model = Cached::new(Offline, store.clone());
/// let request = ChatRequest::new(vec![Message::user("Say something about sand.")]);
/// let first = model.chat(&request).await?;
/// assert_eq!(model.chat(&request).await?, first);
/// assert_eq!(store.totals()?.responses, 1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Cached<M> {
    inner: M,
    store: Store,
    flights: Flights,
}

impl<M: ChatModel> Cached<M> {
    /// Keeps the answers of `inner` in `store`.
    #[must_use]
    pub fn new(inner: M, store: Store) -> Self {
        Self {
            inner,
            store,
            flights: Flights::default(),
        }
    }
}

impl<M: ChatModel> ChatModel for Cached<M> {
    fn chat<'a>(&'a self, request: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
        Box::pin(async move {
            let model = self.inner.id();
            let key = request.key(&model);
            if let Some(response) = self.store.get(&key)? {
                return Ok(response);
            }
            let flight = self.flights.join(key);
            // One at a time for this key; whoever comes next, also after an error or a cancelled call, looks again first.
            let _turn = flight.turn.lock().await;
            if let Some(response) = self.store.get(&key)? {
                return Ok(response);
            }
            let response = self.inner.chat(request).await?;
            // Another process may have stored its answer first; everybody goes on with that one.
            self.store.keep(&key, &model, response).await
        })
    }

    fn id(&self) -> ModelId {
        self.inner.id()
    }
}

/// The requests under way, each with the lock that its askers queue at.
#[derive(Debug, Default)]
struct Flights(Mutex<HashMap<RequestKey, Arc<async_lock::Mutex<()>>>>);

#[derive(Debug)]
struct Flight<'a> {
    flights: &'a Flights,
    key: RequestKey,
    turn: Arc<async_lock::Mutex<()>>,
}

impl Flights {
    fn join(&self, key: RequestKey) -> Flight<'_> {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Flight {
            turn: Arc::clone(flights.entry(key).or_default()),
            flights: self,
            key,
        }
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let mut flights = self
            .flights
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Two hold it when nobody else waits: this one and the map.
        if Arc::strong_count(&self.turn) == 2 {
            flights.remove(&self.key);
        }
    }
}
