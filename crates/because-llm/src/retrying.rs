use std::time::{Duration, Instant};

use futures_util::future::{Either, select};

use crate::timer::Delay;
use crate::{
    BoxFuture, ChatError, ChatModel, ChatRequest, ChatResponse, ModelId, RequestKey, Result,
};

/// Asks again after an error that [may pass](ChatError::is_retryable): the one place where a call is repeated unchanged.
///
/// Waits `base × 2ⁿ`, drawn between nothing and all of it so that many callers do not return together, and at least as
/// long as the server asked for, up to a bound. The draw depends on the request and the attempt only, not on a clock.
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

    fn wait(&self, key: &RequestKey, attempt: u32, error: &ChatError) -> Duration {
        let most = self.base.saturating_mul(1 << (attempt - 1).min(16));
        let drawn = most.min(self.longest_wait).mul_f64(draw(key, attempt));
        let asked = match error {
            ChatError::Overloaded { retry_after, .. } => retry_after.unwrap_or_default(),
            _ => Duration::ZERO,
        };
        // What the server asks for comes before the draw, or all who were sent away return at the same moment.
        (asked.min(self.longest_wait)) + drawn
    }
}

impl<M: ChatModel> ChatModel for Retrying<M> {
    fn chat<'a>(&'a self, request: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
        Box::pin(async move {
            let key = request.key(&self.inner.id());
            let begun = Instant::now();
            let mut attempt = 1;
            loop {
                let left = self.deadline.saturating_sub(begun.elapsed());
                let error = match select(self.inner.chat(request), Delay::new(left)).await {
                    Either::Left((Ok(response), _)) => return Ok(response),
                    Either::Left((Err(error), _)) => error,
                    Either::Right(_) => {
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
                let wait = self.wait(&key, attempt, &error);
                if attempt >= self.attempts || begun.elapsed() + wait >= self.deadline {
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
        } => ChatError::Overloaded {
            message: after(message),
            retry_after,
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

    #[tokio::test]
    async fn only_what_may_pass_is_asked_again() {
        let request = ChatRequest::new(vec![Message::user("a")]);
        for (error, times, calls, answered) in [
            (transient(), 2, 3, true),
            (transient(), 9, 4, false),
            (
                ChatError::Filtered {
                    message: "no".into(),
                },
                1,
                1,
                false,
            ),
            (
                ChatError::Truncated {
                    response: Box::default(),
                },
                1,
                1,
                false,
            ),
        ] {
            let inner = Failing::new(error, times);
            let result = Retrying::new(&inner)
                .attempts(4)
                .base(Duration::from_millis(2))
                .chat(&request)
                .await;
            assert_eq!(result.is_ok(), answered);
            assert_eq!(inner.calls.load(Ordering::Relaxed), calls);
        }
    }

    #[tokio::test]
    async fn the_server_is_obeyed_up_to_the_bound() {
        let inner = Failing::new(
            ChatError::Overloaded {
                message: "busy".into(),
                retry_after: Some(Duration::from_secs(3600)),
            },
            1,
        );
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
