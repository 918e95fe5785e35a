use std::pin::pin;
use std::time::{Duration, Instant};

use futures_timer::Delay;
use futures_util::future::{Either, select};

use crate::alarm::Alarm;
use crate::departure::Departure;
use crate::{
    BoxFuture, ChatError, ChatModel, ChatRequest, ChatResponse, Handed, ModelId, RequestKey, Result,
};

/// Asks again after an error that [may pass](ChatError::is_retryable): the one place where a call is repeated unchanged.
///
/// Waits `base × 2ⁿ`, drawn between nothing and all of it so that many callers do not return together, and at least as
/// long as the server asked for, up to a bound. The draw depends on the request and the attempt only, not on a clock.
///
/// Some servers now and then accept a call and never say a word. With [`hedge_after`](Self::hedge_after), a call that has
/// been silent for so long gets company: the same is asked once more, the first answer is taken, and the other call is
/// dropped (it may have to be paid for all the same). Such a second call is an attempt like any other.
///
/// ```
/// use std::time::Duration;
/// use because_llm::{ChatModel, ChatRequest, Message, Offline, Retrying};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), because_llm::ChatError> {
/// let model = Retrying::new(Offline).attempts(3).deadline(Duration::from_secs(120));
/// model.chat(&ChatRequest::new(vec![Message::user("Say something about sand.")])).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Retrying<M> {
    inner: M,
    attempts: u32,
    base: Duration,
    longest_wait: Duration,
    deadline: Duration,
    hedge_after: Option<Duration>,
}

impl<M: ChatModel> Retrying<M> {
    /// At most 5 attempts, half a second at first, a minute at most, half an hour in all.
    #[must_use]
    pub fn new(inner: M) -> Self {
        Self {
            inner,
            attempts: 5,
            base: Duration::from_millis(500),
            longest_wait: Duration::from_secs(60),
            deadline: Duration::from_secs(30 * 60),
            hedge_after: None,
        }
    }

    /// At most this many attempts, the first one included.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// The longest first wait.
    #[must_use]
    pub fn base(mut self, base: Duration) -> Self {
        self.base = base;
        self
    }

    /// The longest wait between two attempts, also when the server asks for more.
    #[must_use]
    pub fn longest_wait(mut self, longest_wait: Duration) -> Self {
        self.longest_wait = longest_wait;
        self
    }

    /// How long one call may take with all its attempts and waits.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Asks a second time, at most once for each attempt, when a call that has gone out is silent for so long. Time in the
    /// queues of [`Adaptive`](crate::Adaptive) and [`Paced`](crate::Paced) inside does not count.
    #[must_use]
    pub fn hedge_after(mut self, silence: Duration) -> Self {
        self.hedge_after = Some(silence);
        self
    }

    fn wait(&self, key: &RequestKey, attempt: u32, error: &ChatError) -> Duration {
        let most = self.base.saturating_mul(1 << (attempt - 1).min(16));
        let drawn = most.min(self.longest_wait).mul_f64(draw(key, attempt));
        let asked = match error {
            ChatError::Overloaded { retry_after, .. } => retry_after.unwrap_or_default(),
            _ => Duration::ZERO,
        };
        // What the server asks for comes before the draw, or all who were sent away return at the same moment.
        asked.min(self.longest_wait).saturating_add(drawn)
    }

    /// One attempt, or two if the first one is silent for too long.
    async fn attempt(
        &self,
        request: &ChatRequest,
        handed: Handed,
        attempt: &mut u32,
    ) -> Result<ChatResponse> {
        let handed = Handed {
            ready: Some(Instant::now()),
            ..handed
        };
        let Some(silence) = self.hedge_after.filter(|_| *attempt < self.attempts) else {
            return self.inner.chat_with(request, handed).await;
        };
        let departure = Departure::now();
        let mut first = departure.watch(self.inner.chat_with(request, handed));
        loop {
            let now = Instant::now();
            let until = later(departure.at().unwrap_or(now), silence);
            if until <= now {
                break;
            }
            match select(first, Alarm::at(until)).await {
                Either::Left((result, _)) => return result,
                Either::Right(((), still)) => first = still,
            }
        }
        *attempt += 1;
        tracing::debug!(attempt, ?silence, "silent, asking a second time");
        let second = self.inner.chat_with(request, handed);
        match select(first, second).await {
            Either::Left((Err(error), second)) if error.is_retryable() => second.await,
            Either::Right((Err(error), first)) if error.is_retryable() => first.await,
            Either::Left((result, _)) | Either::Right((result, _)) => result,
        }
    }
}

impl<M: ChatModel> ChatModel for Retrying<M> {
    fn chat<'a>(&'a self, request: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
        self.chat_with(request, Handed::default())
    }

    fn chat_with<'a>(
        &'a self,
        request: &'a ChatRequest,
        handed: Handed,
    ) -> BoxFuture<'a, Result<ChatResponse>> {
        Box::pin(async move {
            let mut key = handed.key;
            let begun = Instant::now();
            let mut attempt = 1;
            loop {
                let ends = later(begun, self.deadline);
                let result = {
                    let asked = pin!(self.attempt(request, handed, &mut attempt));
                    match select(asked, Alarm::at(ends)).await {
                        Either::Left((result, _)) => Some(result),
                        Either::Right(_) => None,
                    }
                };
                let error = match result {
                    Some(Ok(response)) => return Ok(response),
                    Some(Err(error)) => error,
                    None => {
                        return Err(ChatError::Transient {
                            message: format!(
                                "no answer within {:?} and {attempt} attempts",
                                self.deadline
                            ),
                        });
                    }
                };
                if !error.is_retryable() {
                    return Err(error);
                }
                let key = key.get_or_insert_with(|| request.key(&self.inner.id()));
                let wait = self.wait(key, attempt, &error);
                if attempt >= self.attempts || begun.elapsed().saturating_add(wait) >= self.deadline
                {
                    return Err(given_up(error, attempt));
                }
                // One hiccup is the rule in a long run; a person wants to hear of a server that stays away.
                if attempt < 3 {
                    tracing::debug!(%key, attempt, ?wait, %error, "asking again");
                } else {
                    tracing::warn!(attempt, ?wait, %error, "asking again");
                }
                Delay::new(wait).await;
                attempt += 1;
            }
        })
    }

    fn id(&self) -> ModelId {
        self.inner.id()
    }
}

/// So long after that; what lies beyond the end of the clock does not come in our time.
fn later(since: Instant, wait: Duration) -> Instant {
    const LONG: Duration = Duration::from_secs(1 << 30);
    since.checked_add(wait).unwrap_or_else(|| since + LONG)
}

/// A number in `0..1` that depends on nothing but these.
fn draw(key: &RequestKey, attempt: u32) -> f64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(key.as_bytes()).update(&attempt.to_le_bytes());
    let mut bytes = [0; 4];
    hasher.finalize_xof().fill(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
}

fn given_up(error: ChatError, attempts: u32) -> ChatError {
    if attempts == 1 {
        return error;
    }
    let after = |message: String| format!("{message}; given up after {attempts} attempts");
    match error {
        ChatError::Transient { message } => ChatError::Transient {
            message: after(message),
        },
        ChatError::Overloaded {
            message,
            retry_after,
            rate_limits,
        } => ChatError::Overloaded {
            message: after(message),
            retry_after,
            rate_limits,
        },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::Message;

    /// Fails with `error` for so many calls, then answers.
    struct Failing {
        error: ChatError,
        left: AtomicU32,
        calls: AtomicU32,
    }

    impl Failing {
        fn new(error: ChatError, times: u32) -> Self {
            Self {
                error,
                left: AtomicU32::new(times),
                calls: AtomicU32::new(0),
            }
        }
    }

    impl ChatModel for Failing {
        fn chat<'a>(&'a self, _: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
            Box::pin(async move {
                self.calls.fetch_add(1, Ordering::Relaxed);
                let fails = self
                    .left
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                        left.checked_sub(1)
                    });
                match fails {
                    Ok(_) => Err(self.error.clone()),
                    Err(_) => Ok(ChatResponse::default()),
                }
            })
        }
    }

    fn transient() -> ChatError {
        ChatError::Transient {
            message: "reset".into(),
        }
    }

    fn overloaded(retry_after: Option<Duration>) -> ChatError {
        ChatError::Overloaded {
            message: "busy".into(),
            retry_after,
            rate_limits: None,
        }
    }

    #[tokio::test]
    async fn only_what_may_pass_is_asked_again() {
        let said = || String::from("no");
        let permanent = |status| ChatError::Permanent {
            status,
            message: said(),
        };
        let request = ChatRequest::new(vec![Message::user("a")]);
        for (error, times, calls, answered) in [
            (transient(), 2, 3, true),
            (transient(), 9, 4, false),
            (overloaded(None), 3, 4, true),
            (ChatError::ContextTooLong { message: said() }, 1, 1, false),
            (
                ChatError::Truncated {
                    response: Box::default(),
                },
                1,
                1,
                false,
            ),
            (ChatError::Filtered { message: said() }, 1, 1, false),
            (
                ChatError::Invalid {
                    reason: said(),
                    excerpt: said(),
                    attempts: 3,
                },
                1,
                1,
                false,
            ),
            (permanent(Some(401)), 1, 1, false),
            (permanent(None), 1, 1, false),
            (
                ChatError::NotRecorded {
                    file: said(),
                    key: said(),
                    excerpt: said(),
                },
                1,
                1,
                false,
            ),
            (
                ChatError::Store {
                    file: said(),
                    message: said(),
                },
                1,
                1,
                false,
            ),
        ] {
            let name = format!("{error:?}");
            let inner = Failing::new(error, times);
            let result = Retrying::new(&inner)
                .attempts(4)
                .base(Duration::from_millis(2))
                .hedge_after(Duration::from_secs(60))
                .chat(&request)
                .await;
            assert_eq!(result.is_ok(), answered, "{name}");
            assert_eq!(inner.calls.load(Ordering::Relaxed), calls, "{name}");
        }
    }

    /// Does for each call what the script says: answers after so many milliseconds, fails after so many, or hangs.
    struct Scripted {
        script: Vec<(u64, Option<Result<&'static str>>)>,
        calls: AtomicU32,
        dropped: AtomicU32,
    }

    impl Scripted {
        fn new(script: Vec<(u64, Option<Result<&'static str>>)>) -> Self {
            Self {
                script,
                calls: AtomicU32::new(0),
                dropped: AtomicU32::new(0),
            }
        }

        fn calls(&self) -> u32 {
            self.calls.load(Ordering::Relaxed)
        }
    }

    impl ChatModel for Scripted {
        fn chat<'a>(&'a self, _: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
            struct Dropped<'a>(&'a AtomicU32);
            impl Drop for Dropped<'_> {
                fn drop(&mut self) {
                    self.0.fetch_add(1, Ordering::Relaxed);
                }
            }
            let call = self.calls.fetch_add(1, Ordering::Relaxed) as usize;
            Box::pin(async move {
                let (millis, result) = &self.script[call];
                let unanswered = Dropped(&self.dropped);
                Delay::new(Duration::from_millis(*millis)).await;
                let Some(result) = result else {
                    return std::future::pending().await;
                };
                std::mem::forget(unanswered);
                result.clone().map(|answer| ChatResponse {
                    answer: answer.into(),
                    ..ChatResponse::default()
                })
            })
        }
    }

    async fn hedged(
        script: Vec<(u64, Option<Result<&'static str>>)>,
        attempts: u32,
    ) -> (Result<String>, u32, u32) {
        let inner = Scripted::new(script);
        let result = Retrying::new(&inner)
            .attempts(attempts)
            .base(Duration::ZERO)
            .deadline(Duration::from_millis(400))
            .hedge_after(Duration::from_millis(20))
            .chat(&ChatRequest::default())
            .await;
        let dropped = inner.dropped.load(Ordering::Relaxed);
        (
            result.map(|response| response.answer),
            inner.calls(),
            dropped,
        )
    }

    #[tokio::test]
    async fn a_silent_call_gets_one_companion_and_the_first_answer_is_taken() {
        let ok = |answer| Some(Ok(answer));
        // The second answers, and the first, which hangs, is dropped.
        let (result, calls, dropped) = hedged(vec![(0, None), (1, ok("two"))], 5).await;
        assert_eq!((result.unwrap().as_str(), calls, dropped), ("two", 2, 1));
        // The first is only slow.
        let (result, calls, dropped) = hedged(vec![(60, ok("one")), (200, ok("two"))], 5).await;
        assert_eq!((result.unwrap().as_str(), calls, dropped), ("one", 2, 1));
        // One of the two fails: the other may still answer.
        let (result, calls, _) =
            hedged(vec![(60, ok("one")), (1, Some(Err(transient())))], 5).await;
        assert_eq!((result.unwrap().as_str(), calls), ("one", 2));
        // Both fail, and both count as attempts.
        let failing = |millis| (millis, Some(Err(transient())));
        let (result, calls, _) = hedged(vec![failing(40), failing(30), failing(0)], 3).await;
        assert!(result.unwrap_err().to_string().contains("3 attempts"));
        assert_eq!(calls, 3);
        // Both are silent: there is no third, and the deadline ends it.
        let (result, calls, dropped) = hedged(vec![(0, None), (0, None)], 5).await;
        assert!(result.unwrap_err().to_string().contains("400ms"));
        assert_eq!((calls, dropped), (2, 2));
        // No attempt is left for a companion.
        let (_, calls, _) = hedged(vec![(0, None)], 1).await;
        assert_eq!(calls, 1);
        // One that answers in time has none.
        let (result, calls, _) = hedged(vec![(1, ok("one"))], 5).await;
        assert_eq!((result.unwrap().as_str(), calls), ("one", 1));
    }

    #[tokio::test]
    async fn time_in_a_queue_is_not_silence() {
        let ok = |answer| (30, Some(Ok(answer)));
        let inner = Scripted::new(vec![ok("a"), ok("b"), ok("c"), ok("d")]);
        let model =
            Retrying::new(crate::Adaptive::fixed(&inner, 1)).hedge_after(Duration::from_millis(50));
        let request = ChatRequest::default();
        let answers = futures_util::future::join_all((0..4).map(|_| model.chat(&request))).await;
        assert!(answers.iter().all(Result::is_ok));
        assert_eq!(inner.calls(), 4);
    }

    #[tokio::test]
    async fn the_server_is_obeyed_up_to_the_bound() {
        let inner = Failing::new(overloaded(Some(Duration::from_secs(3600))), 1);
        let begun = Instant::now();
        let model = Retrying::new(&inner)
            .base(Duration::ZERO)
            .longest_wait(Duration::from_millis(60));
        model.chat(&ChatRequest::default()).await.unwrap();
        assert!((60..2000).contains(&begun.elapsed().as_millis()));
    }

    #[tokio::test]
    async fn the_deadline_ends_a_call_that_hangs_and_a_wait_that_is_too_long() {
        struct Hanging;
        impl ChatModel for Hanging {
            fn chat<'a>(&'a self, _: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
                Box::pin(std::future::pending())
            }
        }
        let short = Duration::from_millis(50);
        let error = Retrying::new(Hanging)
            .deadline(short)
            .chat(&ChatRequest::default())
            .await
            .unwrap_err();
        assert!(
            error.is_retryable() && error.to_string().contains("50ms"),
            "{error}"
        );

        let inner = Failing::new(transient(), 9);
        let begun = Instant::now();
        let slow = Retrying::new(&inner)
            .base(Duration::from_secs(3600))
            .longest_wait(Duration::from_secs(3600));
        assert!(
            slow.deadline(short)
                .chat(&ChatRequest::default())
                .await
                .is_err()
        );
        assert!(begun.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn the_draw_is_the_same_every_time_and_different_between_requests() {
        let key = |text: &str| ChatRequest::new(vec![Message::user(text)]).key(&ModelId::default());
        assert_eq!(draw(&key("a"), 1).to_bits(), draw(&key("a"), 1).to_bits());
        assert_ne!(draw(&key("a"), 1).to_bits(), draw(&key("b"), 1).to_bits());
        assert!((0..100).all(|n| (0.0..1.0).contains(&draw(&key("a"), n))));
    }
}
