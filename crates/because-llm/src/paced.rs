mod pace;

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use futures_timer::Delay;

use crate::{
    BoxFuture, ChatError, ChatModel, ChatRequest, ChatResponse, Handed, ModelId, RateLimits, Result,
};

use pace::{Pace, Reserved};

/// Sends no more requests and tokens a minute than it is told, evenly, and none at all while the server says that nothing
/// is left (`x-ratelimit-*`).
///
/// In any minute, wherever it begins, no more goes out than was said; at once, only a fiftieth of that. The tokens of a call
/// are estimated before it goes and put right when it has ended. Without settings it only obeys the server, whose *limits*
/// it does not take for a rate: some count by the minute, some by the day, and they do not say.
///
/// Put it *inside* [`Adaptive`](crate::Adaptive): then a call that waits here takes a place, and no more are let in than
/// the rate needs.
///
/// ```
/// use because_llm::{ChatModel, ChatRequest, Message, Offline, Paced};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), because_llm::ChatError> {
/// let model = Paced::new(Offline).requests_per_minute(500).tokens_per_minute(200_000);
/// model.chat(&ChatRequest::new(vec![Message::user("Say something about sand.")])).await?;
/// # Ok(())
/// # }
/// ```
pub struct Paced<M> {
    inner: M,
    estimate: Estimate,
    /// Who waits, in the order in which they came.
    line: async_lock::Mutex<()>,
    pace: Mutex<Pace>,
}

type Estimate = Box<dyn Fn(&ChatRequest) -> u64 + Send + Sync>;

impl<M: ChatModel> Paced<M> {
    /// Without limits of its own.
    #[must_use]
    pub fn new(inner: M) -> Self {
        Self {
            inner,
            estimate: Box::new(estimate),
            line: async_lock::Mutex::new(()),
            pace: Mutex::new(Pace::new(Instant::now())),
        }
    }

    /// At most this many requests in any minute.
    #[must_use]
    pub fn requests_per_minute(self, requests: u64) -> Self {
        self.pace().requests_per_minute(requests);
        self
    }

    /// At most this many tokens in any minute, those of prompts and answers together.
    #[must_use]
    pub fn tokens_per_minute(self, tokens: u64) -> Self {
        self.pace().tokens_per_minute(tokens);
        self
    }

    /// Reckons the tokens of a call in this way before it goes. Unless said otherwise: a third of the bytes of its turns,
    /// and as many as the answer may have.
    #[must_use]
    pub fn estimate(
        mut self,
        tokens: impl Fn(&ChatRequest) -> u64 + Send + Sync + 'static,
    ) -> Self {
        self.estimate = Box::new(tokens);
        self
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn reserve(&self, request: &ChatRequest) -> Reserved {
        let _first = match self.line.try_lock() {
            Some(first) => first,
            None => {
                crate::departure::held();
                self.line.lock().await
            }
        };
        let tokens = match self.pace().counts_tokens() {
            true => (self.estimate)(request),
            false => 0,
        };
        loop {
            let taken = self.pace().take(tokens, Instant::now());
            match taken {
                Ok(reserved) => return reserved,
                Err(wait) => {
                    crate::departure::held();
                    Delay::new(wait).await;
                }
            }
        }
    }
}

/// A byte of text is a third of a token or less in any language that tokenizers know well.
fn estimate(request: &ChatRequest) -> u64 {
    let turns = request.messages.iter();
    let bytes: usize = turns.map(|turn| turn.content.len() + 12).sum();
    bytes as u64 / 3 + u64::from(request.sampling.max_tokens.unwrap_or_default())
}

/// What a result says of the server's limits.
fn rate_limits(result: &Result<ChatResponse>) -> Option<&RateLimits> {
    match result {
        Ok(response) => response.rate_limits.as_ref(),
        Err(ChatError::Overloaded { rate_limits, .. }) => rate_limits.as_deref(),
        Err(_) => None,
    }
}

/// What a call used, where that is known.
fn used(result: &Result<ChatResponse>) -> Option<u64> {
    let known =
        |response: &ChatResponse| Some(pace::tokens(&response.usage)).filter(|used| *used > 0);
    match result {
        Ok(response) => known(response),
        Err(ChatError::Truncated { response }) => known(response),
        // Sent back at the door.
        Err(ChatError::Overloaded { .. } | ChatError::Permanent { .. }) => Some(0),
        Err(_) => None,
    }
}

impl<M: ChatModel> ChatModel for Paced<M> {
    fn chat<'a>(&'a self, request: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
        self.chat_with(request, Handed::default())
    }

    fn chat_with<'a>(
        &'a self,
        request: &'a ChatRequest,
        handed: Handed,
    ) -> BoxFuture<'a, Result<ChatResponse>> {
        Box::pin(async move {
            let reserved = self.reserve(request).await;
            crate::departure::departs();
            let result = self.inner.chat_with(request, handed).await;
            let (limits, used) = (rate_limits(&result), used(&result));
            if limits.is_some() || used.is_some() {
                let mut pace = self.pace();
                if let Some(used) = used {
                    pace.settle(reserved, used);
                }
                if let Some(limits) = limits {
                    pace.observe(reserved, limits, Instant::now());
                }
            }
            result
        })
    }

    fn id(&self) -> ModelId {
        self.inner.id()
    }
}

impl<M: fmt::Debug> fmt::Debug for Paced<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Paced")
            .field("inner", &self.inner)
            .field("pace", &self.pace)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::future::{join_all, ready};

    use super::*;
    use crate::{Allowance, Usage};

    /// Says that nothing is left for a moment.
    struct Spent;

    impl ChatModel for Spent {
        fn chat<'a>(&'a self, _: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
            Box::pin(ready(Ok(ChatResponse {
                rate_limits: Some(RateLimits {
                    requests: Some(Allowance {
                        limit: None,
                        remaining: Some(0),
                        resets_in: Some(Duration::from_millis(30)),
                    }),
                    tokens: None,
                }),
                usage: Usage {
                    prompt_tokens: 1,
                    ..Usage::default()
                },
                ..ChatResponse::default()
            })))
        }
    }

    #[tokio::test]
    async fn while_nothing_is_left_nobody_goes() {
        let model = Paced::new(Spent);
        let request = ChatRequest::default();
        let begun = Instant::now();
        join_all((0..4).map(|_| model.chat(&request))).await;
        let took = begun.elapsed().as_millis();
        assert!((85..5000).contains(&took), "{took}");
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_while_it_waits_has_taken_nothing() {
        let model = Paced::new(crate::Offline).requests_per_minute(60 * 50);
        let request = ChatRequest::new(vec![crate::Message::user("Say something about sand.")]);
        join_all((0..60).map(|_| model.chat(&request))).await;
        let mut waiting: Vec<_> = (0..50).map(|_| model.chat(&request)).collect();
        for call in &mut waiting {
            assert!(futures_util::poll!(call).is_pending());
        }
        drop(waiting);
        let begun = Instant::now();
        model.chat(&request).await.unwrap();
        assert!(begun.elapsed() < Duration::from_millis(500));
    }
}
