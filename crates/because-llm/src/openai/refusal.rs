use std::fmt;
use std::time::Duration;

use serde_json::Value;

use super::endpoint::{ApiKey, Endpoint};
use crate::text::excerpt;
use crate::{ChatError, RateLimits};

/// An answer that is none: a status other than 2xx, or an error inside a 200, with whatever the server said.
#[derive(Debug, Default)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) retry_after: Option<Duration>,
    pub(super) rate_limits: Option<RateLimits>,
    pub(super) request_id: Option<String>,
    /// Where a 3xx points.
    pub(super) location: Option<String>,
    /// The body, bounded.
    pub(super) body: String,
    /// The message in it, as it came.
    pub(super) said: String,
    /// Its `code` and `type`, in lower case, in whatever JSON type they came.
    pub(super) codes: Vec<String>,
    /// `n_prompt_tokens` and `n_ctx`, which llama.cpp gives.
    pub(super) limits: Option<(u64, u64)>,
}

impl Refusal {
    pub(super) fn new(status: u16, body: String) -> Self {
        let mut refusal = Self {
            status,
            said: plain(&body),
            ..Self::default()
        };
        if let Ok(json) = serde_json::from_str::<Value>(&body) {
            refusal.read(&json);
        }
        refusal.body = body;
        refusal
    }

    /// An error object where the choices should be. Its own `code` says what status it should have had.
    pub(super) fn inside_an_answer(error: &Value) -> Self {
        let status = error.get("code").and_then(|code| match code {
            Value::Number(code) => code.as_u64(),
            code => code.as_str()?.parse().ok(),
        });
        let status = status.and_then(|status| u16::try_from(status).ok());
        Self::new(
            status
                .filter(|status| (400..600).contains(status))
                .unwrap_or(502),
            serde_json::json!({ "error": error }).to_string(),
        )
    }

    pub(super) fn of_no_choice() -> Self {
        Self {
            status: 502,
            said: "the server answered without a choice".into(),
            ..Self::default()
        }
    }

    /// Reads the shapes that are about: `{"error": {...}}`, `{"error": "..."}`, `{"message": ...}`, `{"detail": ...}`.
    fn read(&mut self, json: &Value) {
        let error = match json.get("error") {
            Some(error) if !error.is_null() => error,
            _ => json,
        };
        let said = [
            error.get("message"),
            error.get("detail"),
            error.get("msg"),
            Some(error),
        ]
        .into_iter()
        .flatten()
        .find_map(|said| match said {
            Value::String(text) if !text.is_empty() => Some(text.clone()),
            Value::Array(_) => Some(said.to_string()),
            _ => None,
        });
        if let Some(said) = said {
            self.said = said;
        }
        for name in ["code", "type"] {
            match error.get(name) {
                Some(Value::String(code)) => self.codes.push(code.to_ascii_lowercase()),
                Some(Value::Number(code)) => self.codes.push(code.to_string()),
                _ => {}
            }
        }
        let number = |name| error.get(name).and_then(Value::as_u64);
        self.limits = number("n_prompt_tokens").zip(number("n_ctx"));
    }

    /// What a caller can do about it.
    pub(super) fn explain(&self, endpoint: &Endpoint, model: &str) -> ChatError {
        let message = self.message(&endpoint.label, &endpoint.key);
        let permanent = |advice: &str| ChatError::Permanent {
            status: Some(self.status),
            message: format!("{message}; {advice}"),
        };
        if self.is_too_long() {
            return ChatError::ContextTooLong { message };
        }
        if self.names(&[
            "content_filter",
            "content_policy_violation",
            "responsibleaipolicyviolation",
        ]) {
            return ChatError::Filtered { message };
        }
        if self.is_unpaid() {
            return permanent("the account has no balance or quota left");
        }
        match self.status {
            401 => permanent("check OPENAI_API_KEY"),
            403 => permanent("check OPENAI_API_KEY and what it is allowed to use"),
            404 => permanent(&format!(
                "check the base URL and the model's name, {model:?}"
            )),
            429 | 503 | 529 => ChatError::Overloaded {
                message,
                retry_after: self.retry_after,
                rate_limits: self.rate_limits.map(Box::new),
            },
            408 | 409 | 425 | 500 | 502 | 504..=599 => ChatError::Transient { message },
            300..=399 => permanent(&match &self.location {
                Some(location) => format!(
                    "the server is to be found at {}",
                    excerpt(&endpoint.key.redact(location), 200)
                ),
                None => "the server is to be found elsewhere".into(),
            }),
            _ => ChatError::Permanent {
                status: Some(self.status),
                message,
            },
        }
    }

    fn message(&self, label: &str, key: &ApiKey) -> String {
        let reason = reqwest::StatusCode::from_u16(self.status)
            .ok()
            .and_then(|status| status.canonical_reason());
        // Shortened only after the key is out, or half of it could stay at the cut.
        let said = excerpt(&key.redact(&self.said), 300);
        let mut message = format!("{label}: HTTP {}", self.status);
        for (before, part) in [(" ", reason.unwrap_or_default()), (": ", said.as_str())] {
            if !part.is_empty() {
                message.push_str(before);
                message.push_str(part);
            }
        }
        if let Some((prompt, context)) = self.limits {
            message.push_str(&format!(" (prompt {prompt} tokens, context {context})"));
        }
        if let Some(id) = &self.request_id {
            message.push_str(&format!(" (request {})", excerpt(&key.redact(id), 80)));
        }
        message
    }

    fn names(&self, codes: &[&str]) -> bool {
        codes
            .iter()
            .any(|code| self.codes.iter().any(|own| own == code))
    }

    fn says(&self, phrases: &[&str]) -> bool {
        let said = self.said.to_ascii_lowercase();
        phrases.iter().any(|phrase| said.contains(phrase))
    }

    pub(super) fn is_too_long(&self) -> bool {
        self.status == 413
            || self.names(&["context_length_exceeded", "exceed_context_size_error"])
            || (matches!(self.status, 400 | 422 | 500)
                && self.says(&[
                    "maximum context length",
                    "context length exceeded",
                    "exceeds the available context size",
                    "exceeds the context window",
                    "longer than the maximum model length",
                    "prompt is too long",
                ]))
    }

    fn is_unpaid(&self) -> bool {
        self.status == 402
            || self.names(&["insufficient_quota", "billing_hard_limit_reached"])
            || (self.status == 429
                && self.says(&["exceeded your current quota", "insufficient balance"]))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HTTP {}", self.status)
    }
}

impl std::error::Error for Refusal {}

/// The words of a page, without its tags.
fn plain(body: &str) -> String {
    if !body.trim_start().starts_with('<') {
        return body.to_owned();
    }
    let mut words = String::new();
    let mut inside = false;
    for c in body.chars() {
        match c {
            '<' => {
                inside = true;
                words.push(' ');
            }
            '>' => inside = false,
            c if !inside => words.push(c),
            _ => {}
        }
    }
    words.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explain(status: u16, body: &str) -> ChatError {
        let endpoint = Endpoint::parse("http://h/v1", ApiKey::new("sk-secret")).unwrap();
        let mut refusal = Refusal::new(status, body.to_owned());
        refusal.request_id = Some("req-1".into());
        refusal.explain(&endpoint, "m")
    }

    #[test]
    fn every_kind_of_refusal_is_understood() {
        let bodies = [
            (
                400,
                r#"{"error":{"message":"This model's maximum context length is 8192 tokens","code":"context_length_exceeded"}}"#,
            ),
            (
                400,
                r#"{"error":{"code":400,"message":"the request exceeds the available context size","type":"exceed_context_size_error","n_prompt_tokens":20000,"n_ctx":16384}}"#,
            ),
            (
                400,
                r#"{"object":"error","message":"This model's maximum context length is 4096","type":"BadRequestError","code":400}"#,
            ),
            (
                400,
                r#"{"error":{"message":"bad","code":"content_filter"}}"#,
            ),
            (
                400,
                r#"{"error":{"code":400,"message":"messages is required"}}"#,
            ),
            (
                401,
                r#"{"error":{"message":"Incorrect API key provided: sk-secret.","code":"invalid_api_key"}}"#,
            ),
            (402, r#"{"error":{"message":"Insufficient Balance"}}"#),
            (
                404,
                r#"{"error":{"message":"The model `m` does not exist"}}"#,
            ),
            (
                422,
                r#"{"detail":[{"loc":["body"],"msg":"field required"}]}"#,
            ),
            (
                429,
                r#"{"error":{"message":"You exceeded your current quota","type":"insufficient_quota","code":"insufficient_quota"}}"#,
            ),
            (429, r#"{"error":{"code":429,"message":"slow down"}}"#),
            (429, "Too many requests, slow down"),
            (
                429,
                "<html><head><title>429 Too Many Requests</title></head><body><h1>nginx</h1></body></html>",
            ),
            (500, r#"{"error":"upstream died"}"#),
            (503, ""),
            (
                529,
                r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#,
            ),
            (301, ""),
            (418, "\u{1b}[31mteapot"),
        ];
        let said: Vec<String> = bodies
            .iter()
            .map(|(status, body)| format!("{:?}", explain(*status, body)))
            .collect();
        insta::assert_snapshot!(said.join("\n"), @r#"
        ContextTooLong { message: "http://h/v1: HTTP 400 Bad Request: This model's maximum context length is 8192 tokens (request req-1)" }
        ContextTooLong { message: "http://h/v1: HTTP 400 Bad Request: the request exceeds the available context size (prompt 20000 tokens, context 16384) (request req-1)" }
        ContextTooLong { message: "http://h/v1: HTTP 400 Bad Request: This model's maximum context length is 4096 (request req-1)" }
        Filtered { message: "http://h/v1: HTTP 400 Bad Request: bad (request req-1)" }
        Permanent { status: Some(400), message: "http://h/v1: HTTP 400 Bad Request: messages is required (request req-1)" }
        Permanent { status: Some(401), message: "http://h/v1: HTTP 401 Unauthorized: Incorrect API key provided: ***. (request req-1); check OPENAI_API_KEY" }
        Permanent { status: Some(402), message: "http://h/v1: HTTP 402 Payment Required: Insufficient Balance (request req-1); the account has no balance or quota left" }
        Permanent { status: Some(404), message: "http://h/v1: HTTP 404 Not Found: The model `m` does not exist (request req-1); check the base URL and the model's name, \"m\"" }
        Permanent { status: Some(422), message: "http://h/v1: HTTP 422 Unprocessable Entity: [{\"loc\":[\"body\"],\"msg\":\"field required\"}] (request req-1)" }
        Permanent { status: Some(429), message: "http://h/v1: HTTP 429 Too Many Requests: You exceeded your current quota (request req-1); the account has no balance or quota left" }
        Overloaded { message: "http://h/v1: HTTP 429 Too Many Requests: slow down (request req-1)", retry_after: None, rate_limits: None }
        Overloaded { message: "http://h/v1: HTTP 429 Too Many Requests: Too many requests, slow down (request req-1)", retry_after: None, rate_limits: None }
        Overloaded { message: "http://h/v1: HTTP 429 Too Many Requests: 429 Too Many Requests nginx (request req-1)", retry_after: None, rate_limits: None }
        Transient { message: "http://h/v1: HTTP 500 Internal Server Error: upstream died (request req-1)" }
        Overloaded { message: "http://h/v1: HTTP 503 Service Unavailable (request req-1)", retry_after: None, rate_limits: None }
        Overloaded { message: "http://h/v1: HTTP 529: Overloaded (request req-1)", retry_after: None, rate_limits: None }
        Permanent { status: Some(301), message: "http://h/v1: HTTP 301 Moved Permanently (request req-1); the server is to be found elsewhere" }
        Permanent { status: Some(418), message: "http://h/v1: HTTP 418 I'm a teapot:  [31mteapot (request req-1)" }
        "#);
    }

    #[test]
    fn no_part_of_the_key_is_left_at_a_cut() {
        for before in 280..310 {
            let error = explain(401, &format!("{}sk-secret", "x".repeat(before)));
            assert!(!error.to_string().contains("sk"), "{error}");
        }
    }

    #[test]
    fn an_error_inside_a_200_has_the_status_that_it_names() {
        let inside = |text: &str| Refusal::inside_an_answer(&serde_json::from_str(text).unwrap());
        assert_eq!(inside(r#"{"code":429,"message":"slow down"}"#).status, 429);
        assert_eq!(inside(r#"{"code":"503"}"#).status, 503);
        assert_eq!(inside(r#""no""#).status, 502);
        assert_eq!(inside(r#"{"message":"no"}"#).said, "no");
    }
}
