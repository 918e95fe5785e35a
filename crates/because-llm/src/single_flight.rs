use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{BoxFuture, ChatModel, ChatRequest, ChatResponse, Handed, ModelId, RequestKey, Result};

/// Lets identical requests that are under way at the same time share one call, and its result, be it an answer or an error.
///
/// If the one who asked goes away before there is a result, the next who waits asks in its place. Nothing is kept: a
/// request that comes after the result asks anew, so put it *outside* [`Cached`](crate::Cached), which remembers.
///
/// ```
/// use because_llm::{ChatModel, ChatRequest, Message, Offline, SingleFlight};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), because_llm::ChatError> {
/// let model = SingleFlight::new(Offline);
/// let request = ChatRequest::new(vec![Message::user("Say something about sand.")]);
/// let (one, other) = futures_util::future::join(model.chat(&request), model.chat(&request)).await;
/// assert_eq!(one?, other?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct SingleFlight<M> {
    inner: M,
    flights: Flights,
}

impl<M: ChatModel> SingleFlight<M> {
    /// Asks `inner` for everybody who asks the same.
    #[must_use]
    pub fn new(inner: M) -> Self {
        Self {
            inner,
            flights: Flights::default(),
        }
    }
}

impl<M: ChatModel> ChatModel for SingleFlight<M> {
    fn chat<'a>(&'a self, request: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
        self.chat_with(request, Handed::default())
    }

    fn chat_with<'a>(
        &'a self,
        request: &'a ChatRequest,
        handed: Handed,
    ) -> BoxFuture<'a, Result<ChatResponse>> {
        Box::pin(async move {
            let key = handed.key.unwrap_or_else(|| request.key(&self.inner.id()));
            let seat = self.flights.join(key);
            // Whoever holds the lock asks; the others find the result in it, or nothing if the one before went away.
            let mut landed = seat.flight.lock().await;
            if let Some(result) = &*landed {
                return result.clone();
            }
            let result = self.inner.chat_with(request, handed.keyed(key)).await;
            if seat.has_company() {
                *landed = Some(result.clone());
            }
            result
        })
    }

    fn id(&self) -> ModelId {
        self.inner.id()
    }
}

type Flight = async_lock::Mutex<Option<Result<ChatResponse>>>;

/// The requests under way.
#[derive(Debug, Default)]
struct Flights(Mutex<HashMap<RequestKey, Arc<Flight>>>);

/// A place in a flight. The last to leave clears it away.
#[derive(Debug)]
struct Seat<'a> {
    flights: &'a Flights,
    key: RequestKey,
    flight: Arc<Flight>,
}

impl Flights {
    fn join(&self, key: RequestKey) -> Seat<'_> {
        Seat {
            flight: Arc::clone(self.lock().entry(key).or_default()),
            flights: self,
            key,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RequestKey, Arc<Flight>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat<'_> {
    /// Closes the flight to newcomers; says whether somebody else is in it.
    fn has_company(&self) -> bool {
        let mut flights = self.flights.lock();
        flights.remove(&self.key);
        Arc::strong_count(&self.flight) > 1
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut flights = self.flights.lock();
        // Two hold it when nobody else waits: this one and the map. A closed flight is in the map no more, and another
        // under the same key is not this one's to clear away.
        if Arc::strong_count(&self.flight) == 2
            && flights
                .get(&self.key)
                .is_some_and(|other| Arc::ptr_eq(other, &self.flight))
        {
            flights.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use futures_util::future::{join, join_all};
    use futures_util::poll;

    use super::*;
    use crate::{ChatError, Message};

    /// Fails every second time, and counts.
    #[derive(Default)]
    struct Moody(AtomicUsize);

    impl ChatModel for Moody {
        fn chat<'a>(&'a self, _: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
            Box::pin(async move {
                let call = self.0.fetch_add(1, Ordering::SeqCst);
                futures_timer::Delay::new(Duration::from_millis(5)).await;
                if call % 2 == 1 {
                    return Err(ChatError::Transient {
                        message: format!("call {call}"),
                    });
                }
                Ok(ChatResponse {
                    answer: format!("call {call}"),
                    ..ChatResponse::default()
                })
            })
        }
    }

    fn said(result: &Result<ChatResponse>) -> String {
        match result {
            Ok(response) => response.answer.clone(),
            Err(error) => format!("failed: {error}"),
        }
    }

    #[tokio::test]
    async fn answers_and_errors_are_shared_by_those_who_wait_and_by_nobody_after() {
        let model = SingleFlight::new(Moody::default());
        let (same, other) = (
            ChatRequest::new(vec![Message::user("a")]),
            ChatRequest::new(vec![Message::user("b")]),
        );
        for expected in ["call 0", "failed: call 1", "call 2"] {
            let results = join_all((0..20).map(|_| model.chat(&same))).await;
            assert!(results.iter().all(|result| said(result) == expected));
        }
        let (one, two) = join(model.chat(&same), model.chat(&other)).await;
        assert_eq!(
            (said(&one).as_str(), said(&two).as_str()),
            ("failed: call 3", "call 4")
        );
        assert!(model.flights.lock().is_empty());
    }

    #[tokio::test]
    async fn when_the_one_who_asks_goes_away_the_next_asks() {
        let model = SingleFlight::new(Moody::default());
        let request = ChatRequest::new(vec![Message::user("a")]);
        let mut first = model.chat(&request);
        let mut second = model.chat(&request);
        let third = model.chat(&request);
        let mut fourth = model.chat(&request);
        for call in [&mut first, &mut second, &mut fourth] {
            assert!(poll!(call).is_pending());
        }
        drop(first);
        drop(fourth);
        let (second, third) = join(second, third).await;
        assert_eq!(said(&second), "failed: call 1");
        assert_eq!(said(&third), said(&second));
        assert!(model.flights.lock().is_empty());

        let mut alone = model.chat(&request);
        assert!(poll!(&mut alone).is_pending());
        drop(alone);
        assert!(model.flights.lock().is_empty());
    }
}
