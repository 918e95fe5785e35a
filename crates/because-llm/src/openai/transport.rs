use std::error::Error as _;
use std::fmt;
use std::future::Future;
use std::io::ErrorKind;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use async_openai::error::OpenAIError;
use async_openai::middleware::HttpRequestFactory;
use reqwest::header::{AUTHORIZATION, HeaderValue, LOCATION, RETRY_AFTER, SERVER};
use reqwest::{Client, Response};

use super::dialect::Spoken;
use super::endpoint::{Endpoint, chain};
use super::http_date::retry_after;
use super::rate_limits::rate_limits;
use super::refusal::Refusal;
use super::wire::Answer;
use crate::text::excerpt;
use crate::{ChatError, RateLimits};

/// The lowest layer under async-openai: sends once, and keeps what a refusal says before anything above can lose it.
///
/// Left alone, async-openai repeats calls by itself, and reads an error page only in OpenAI's own shape: the status of any
/// other is lost.
#[derive(Debug, Clone)]
pub(super) struct Bottom {
    client: Client,
    authorization: Option<HeaderValue>,
    latest: LatestLimits,
    dialect: Arc<Spoken>,
}

/// What the headers of the latest answer said, which async-openai does not hand up. Of many at once, the latest is what
/// counts for all.
#[derive(Debug, Clone, Default)]
pub(super) struct LatestLimits(Arc<Mutex<Option<RateLimits>>>);

impl LatestLimits {
    pub(super) fn get(&self) -> Option<RateLimits> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, limits: RateLimits) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(limits);
    }
}

impl Bottom {
    pub(super) fn new(
        client: Client,
        authorization: Option<HeaderValue>,
        latest: LatestLimits,
        dialect: Arc<Spoken>,
    ) -> Self {
        Self {
            client,
            authorization,
            latest,
            dialect,
        }
    }
}

impl tower::Service<HttpRequestFactory> for Bottom {
    type Response = Response;
    type Error = OpenAIError;
    type Future = Pin<Box<dyn Future<Output = Result<Response, OpenAIError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), OpenAIError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, factory: HttpRequestFactory) -> Self::Future {
        let Self {
            client,
            authorization,
            latest,
            dialect,
        } = self.clone();
        Box::pin(async move {
            let mut request = factory.build().await?;
            // async-openai writes `Bearer ` and nothing behind it where there is no key.
            match authorization {
                Some(header) => request.headers_mut().insert(AUTHORIZATION, header),
                None => request.headers_mut().remove(AUTHORIZATION),
            };
            let response = client.execute(request).await?;
            let limits = rate_limits(response.headers(), SystemTime::now());
            if let Some(limits) = limits {
                latest.set(limits);
            }
            if let Some(name) = response.headers().get(SERVER) {
                dialect.named(name.to_str().unwrap_or_default());
            }
            if response.status().is_success() {
                return Err(OpenAIError::Boxed(hand_up(&response.bytes().await?)));
            }
            Err(OpenAIError::Boxed(Box::new(Refusal {
                rate_limits: limits,
                ..read(response).await
            })))
        })
    }
}

/// An answer goes up as an error, the one door through which async-openai hands on what it has not looked at. A body that it
/// cannot read it writes into the log as it is, with whatever the server repeats of what it was sent: the key, for one.
fn hand_up(body: &[u8]) -> Box<dyn std::error::Error + Send + Sync> {
    match serde_json::from_slice::<Answer>(body) {
        Ok(answer) => Box::new(answer),
        Err(problem) => Box::new(Failure::NotJson {
            problem: problem.to_string(),
            body: String::from_utf8_lossy(body).into_owned(),
        }),
    }
}

/// The answer that [`Bottom`] handed up, or else what went wrong instead.
pub(super) fn answer(error: OpenAIError) -> Result<Answer, OpenAIError> {
    match error {
        OpenAIError::Boxed(boxed) => match boxed.downcast::<Answer>() {
            Ok(answer) => Ok(*answer),
            Err(other) => Err(OpenAIError::Boxed(other)),
        },
        other => Err(other),
    }
}

pub(super) async fn read(mut response: Response) -> Refusal {
    const MOST_BYTES: usize = 64 * 1024;
    let header = |name: &str| {
        let value = response.headers().get(name)?;
        Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    let millis = header("retry-after-ms")
        .and_then(|millis| millis.trim().parse().ok())
        .map(Duration::from_millis);
    let asked =
        header(RETRY_AFTER.as_str()).and_then(|value| retry_after(&value, SystemTime::now()));
    let request_id = ["x-request-id", "request-id", "x-amzn-requestid", "cf-ray"]
        .iter()
        .find_map(|name| header(name));
    let location = header(LOCATION.as_str());
    let status = response.status().as_u16();
    let mut body = Vec::new();
    // A body that breaks off still says something.
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() >= MOST_BYTES {
            body.truncate(MOST_BYTES);
            break;
        }
    }
    Refusal {
        retry_after: millis.or(asked),
        request_id,
        location,
        ..Refusal::new(status, String::from_utf8_lossy(&body).into_owned())
    }
}

/// A call that brought no answer at all.
#[derive(Debug)]
pub(super) enum Failure {
    Http(reqwest::Error),
    NotJson { problem: String, body: String },
    Other(String),
}

/// What [`Bottom`] kept, or else what went wrong instead.
pub(super) fn refusal(error: OpenAIError) -> Result<Refusal, Failure> {
    match error {
        OpenAIError::Boxed(boxed) => match boxed.downcast::<Refusal>() {
            Ok(refusal) => Ok(*refusal),
            Err(other) => Err(match other.downcast::<Failure>() {
                Ok(failure) => *failure,
                Err(other) => Failure::Other(other.to_string()),
            }),
        },
        // The URL in it may hold a query that is nobody's business.
        OpenAIError::Reqwest(error) => Err(Failure::Http(error.without_url())),
        other => Err(Failure::Other(other.to_string())),
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no answer")
    }
}

impl std::error::Error for Failure {}

impl Failure {
    /// What a caller can do about it.
    pub(super) fn explain(&self, endpoint: &Endpoint, timeout: Duration) -> ChatError {
        let label = &endpoint.label;
        let transient = |message: String| ChatError::Transient { message };
        let shown = |text: &str| excerpt(&endpoint.key.redact(text), 300);
        let error = match self {
            Self::Http(error) => error,
            Self::NotJson { problem, body } => {
                return transient(format!(
                    "{label}: the answer is not the JSON it should be ({}); it begins {:?}",
                    shown(problem),
                    shown(body)
                ));
            }
            Self::Other(message) => {
                return ChatError::Permanent {
                    status: None,
                    message: format!("{label}: {}", shown(message)),
                };
            }
        };
        let said = chain(error);
        if error.is_timeout() {
            return transient(match error.is_connect() {
                true => format!("{label}: no connection in time; is the server running?"),
                false => format!("{label}: no answer within {timeout:?}"),
            });
        }
        if error.is_connect() {
            let words = said.to_ascii_lowercase();
            if error.is_dns() || words.contains("dns error") {
                return transient(format!(
                    "{label}: the name of the host cannot be resolved; check the base URL"
                ));
            }
            if io_kind(error) == Some(ErrorKind::ConnectionRefused) {
                return transient(format!(
                    "{label}: connection refused; is the server running?"
                ));
            }
            if ["certificate", "tls", "invalidcontenttype", "handshake"]
                .iter()
                .any(|word| words.contains(word))
            {
                return ChatError::Permanent {
                    status: None,
                    message: format!(
                        "{label}: no secure connection: {}; check whether it is http or https",
                        shown(&said)
                    ),
                };
            }
        }
        transient(format!(
            "{label}: the connection broke off: {}",
            shown(&said)
        ))
    }
}

fn io_kind(error: &reqwest::Error) -> Option<ErrorKind> {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return Some(io.kind());
        }
        source = error.source();
    }
    None
}
