use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{ALLOW, HeaderValue, RETRY_AFTER};
use serde_json::{Value, json};

use super::reply::{Reply, json_reply};
use crate::error::TuneError;

/// Why a request is not answered, in the shape in which OpenAI's own server says so.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    kind: &'static str,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
    /// The methods there are, of a 405.
    allow: Option<&'static str>,
}

/// After how long a client may try again when the queue is full. When a row ends nobody knows; it is soon enough to find the
/// place and seldom enough to cost nothing.
const RETRY: Duration = Duration::from_secs(1);

impl Refusal {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            message: message.into(),
            param: None,
            code: None,
            allow: None,
        }
    }

    /// The request cannot be answered as it is.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// A field of it cannot.
    pub(super) fn field(name: impl Into<String>, reason: &str) -> Self {
        let name = name.into();
        Self {
            message: format!("{name}: {reason}"),
            param: Some(name),
            ..Self::invalid("")
        }
    }

    pub(super) fn unknown_model(name: &str, known: &[String]) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            param: Some("model".into()),
            code: Some("model_not_found"),
            ..Self::invalid(format!(
                "there is no model {name:?} here; there are {}",
                known.join(", ")
            ))
        }
    }

    pub(super) fn unknown_path(path: &str) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            code: Some("unknown_url"),
            ..Self::invalid(format!("there is nothing at {path}"))
        }
    }

    pub(super) fn method(allow: &'static str) -> Self {
        Self {
            status: StatusCode::METHOD_NOT_ALLOWED,
            allow: Some(allow),
            ..Self::invalid(format!("only {allow} is possible here"))
        }
    }

    pub(super) fn key() -> Self {
        Self {
            status: StatusCode::UNAUTHORIZED,
            code: Some("invalid_api_key"),
            ..Self::invalid("the key in the header Authorization: Bearer is missing or wrong")
        }
    }

    pub(super) fn host() -> Self {
        Self {
            status: StatusCode::FORBIDDEN,
            ..Self::invalid(
                "the header Host names no address of this machine; a page of a foreign site may not ask here",
            )
        }
    }

    pub(super) fn media_type() -> Self {
        Self {
            status: StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ..Self::invalid("the body must be JSON, with the header Content-Type: application/json")
        }
    }

    pub(super) fn too_large(limit: usize) -> Self {
        Self {
            status: StatusCode::PAYLOAD_TOO_LARGE,
            ..Self::invalid(format!("the body has more than {limit} bytes"))
        }
    }

    pub(super) fn too_slow() -> Self {
        Self {
            status: StatusCode::REQUEST_TIMEOUT,
            ..Self::invalid("the body did not arrive in time")
        }
    }

    pub(super) fn busy(waiting: usize) -> Self {
        Self {
            code: Some("rate_limit_exceeded"),
            ..Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_error",
                format!("{waiting} answers are under way or waiting already; try again later"),
            )
        }
    }

    pub(super) fn fault(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", reason)
    }

    /// The error object.
    pub(super) fn body(&self) -> Value {
        json!({ "error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }})
    }

    pub(super) fn reply(&self) -> hyper::Response<Reply> {
        let mut reply = json_reply(self.status, &self.body());
        let headers = reply.headers_mut();
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            headers.insert(RETRY_AFTER, HeaderValue::from(RETRY.as_secs()));
        }
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        reply
    }
}

impl From<TuneError> for Refusal {
    fn from(error: TuneError) -> Self {
        let message = error.to_string();
        match error {
            TuneError::ContextTooLong { .. } => Self {
                message,
                code: Some("context_length_exceeded"),
                ..Self::field("messages", "")
            },
            TuneError::Busy { waiting } => Self::busy(waiting),
            TuneError::Setting { field, reason } => Self::field(field, &reason),
            TuneError::Schema { .. } => Self {
                message,
                ..Self::field("response_format", "")
            },
            TuneError::SchemaRoom { .. } => Self {
                message,
                ..Self::field("max_tokens", "")
            },
            TuneError::Chat { .. } => Self {
                message,
                ..Self::field("messages", "")
            },
            _ => Self::fault(message),
        }
    }
}
