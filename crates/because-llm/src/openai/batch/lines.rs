//! The lines of a batch's files: one request each on the way up, one answer each on the way down, in any order.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::refusal::Refusal;
use super::super::wire::{Answer, Question, lenient};
use crate::{ChatError, ChatResponse, RequestKey};

/// The line of a request, with its end.
pub(super) fn write(key: &RequestKey, question: &Question<'_>) -> Vec<u8> {
    #[derive(Serialize)]
    struct Line<'a> {
        custom_id: String,
        method: &'static str,
        url: &'static str,
        body: &'a Question<'a>,
    }
    let line = Line {
        custom_id: key.to_string(),
        method: "POST",
        // The route as the Batch API names it, whatever the base URL is.
        url: "/v1/chat/completions",
        body: question,
    };
    let mut bytes =
        serde_json::to_vec(&line).expect("strings and numbers with string keys serialise");
    bytes.push(b'\n');
    bytes
}

/// What the server said to one request.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Line {
    #[serde(deserialize_with = "lenient")]
    custom_id: Option<String>,
    #[serde(deserialize_with = "lenient")]
    response: Option<Response>,
    #[serde(deserialize_with = "lenient")]
    error: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Response {
    #[serde(deserialize_with = "lenient")]
    status_code: Option<u16>,
    #[serde(deserialize_with = "lenient")]
    request_id: Option<String>,
    body: Value,
}

impl Line {
    pub(super) fn read(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    /// The request that it belongs to.
    pub(super) fn key(&self) -> Option<RequestKey> {
        let hex = self.custom_id.as_deref()?;
        let mut key = [0; 32];
        if hex.len() != 64 || !hex.is_ascii() {
            return None;
        }
        for (place, byte) in key.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[2 * place..2 * place + 2], 16).ok()?;
        }
        Some(RequestKey(key))
    }

    /// Whether it holds an answer, which was paid for.
    pub(super) fn is_answer(&self) -> bool {
        self.response.as_ref().is_some_and(|response| {
            response
                .status_code
                .is_none_or(|status| (200..300).contains(&status))
                && response
                    .body
                    .get("choices")
                    .and_then(Value::as_array)
                    .is_some_and(|choices| !choices.is_empty())
        })
    }

    /// The answer, or what the server said instead.
    pub(super) fn into_response(self) -> Result<ChatResponse, Ended> {
        let Some(Response {
            status_code,
            request_id,
            body,
        }) = self.response
        else {
            return Err(ended(&self.error.unwrap_or_default()));
        };
        let status = status_code.unwrap_or(200);
        if !(200..300).contains(&status) {
            let said = match &body {
                Value::String(said) => said.clone(),
                body => body.to_string(),
            };
            return Err(Ended::Refused(Box::new(Refusal {
                request_id,
                ..Refusal::new(status, said)
            })));
        }
        match serde_json::from_value::<Answer>(body) {
            Ok(answer) => answer.into_response().map_err(Ended::Refused),
            Err(_) => Err(Ended::Refused(Box::new(Refusal::of_no_choice()))),
        }
    }
}

/// Why a line holds no answer.
#[derive(Debug)]
pub(super) enum Ended {
    /// The server would not, or could not.
    Refused(Box<Refusal>),
    /// It was not come to.
    Unanswered(ChatError),
}

/// An error beside the response: the batch ended before this request's turn, or something of the server's own.
fn ended(error: &Value) -> Ended {
    let said = |name| error.get(name).and_then(Value::as_str);
    let message = said("message").unwrap_or("the server gave no reason");
    match said("code") {
        Some("batch_expired") => Ended::Unanswered(expired(message)),
        Some("batch_cancelled") => Ended::Unanswered(cancelled(message)),
        _ => Ended::Refused(Box::new(Refusal::inside_an_answer(error))),
    }
}

pub(super) fn expired(message: &str) -> ChatError {
    ChatError::Transient {
        message: format!("the batch expired before this request's turn: {message}"),
    }
}

/// Somebody did that on purpose, so nothing is sent again by itself.
pub(super) fn cancelled(message: &str) -> ChatError {
    ChatError::Pending {
        message: format!(
            "the batch was cancelled before this request's turn: {message}; run again to send what is left"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_servers_write_is_read_or_refused_with_the_reason() {
        let key = "ab".repeat(32);
        let read = |rest: &str| Line::read(&format!(r#"{{"custom_id":"{key}",{rest}}}"#)).unwrap();
        let answer = read(
            r#""id":7,"response":{"status_code":200,"request_id":"r","body":{"choices":[{"message":{"content":"yes"}}]}},"error":null"#,
        );
        assert_eq!(answer.key().unwrap().to_string(), key);
        assert!(answer.is_answer());
        assert_eq!(answer.into_response().unwrap().answer, "yes");

        let refused = read(
            r#""response":{"status_code":429,"request_id":"r-9","body":{"error":{"message":"slow down"}}}"#,
        );
        assert!(!refused.is_answer());
        let Err(Ended::Refused(refusal)) = refused.into_response() else {
            panic!("429 is a refusal");
        };
        assert_eq!((refusal.status, refusal.said.as_str()), (429, "slow down"));
        assert_eq!(refusal.request_id.as_deref(), Some("r-9"));

        let expired =
            read(r#""response":null,"error":{"code":"batch_expired","message":"too late"}"#);
        assert!(matches!(
            expired.into_response(),
            Err(Ended::Unanswered(ChatError::Transient { message })) if message.contains("too late")
        ));
        let cancelled = read(r#""error":{"code":"batch_cancelled"}"#);
        assert!(matches!(
            cancelled.into_response(),
            Err(Ended::Unanswered(ChatError::Pending { .. }))
        ));
        let odd = read(r#""response":{"body":{"choices":[]}},"error":"""#);
        assert!(!odd.is_answer());
        assert!(matches!(odd.into_response(), Err(Ended::Refused(_))));
        assert!(Line::read("{\"custom_id\": \"ab").is_err());
        assert_eq!(Line::read(r#"{"custom_id":"zz"}"#).unwrap().key(), None);
    }
}
