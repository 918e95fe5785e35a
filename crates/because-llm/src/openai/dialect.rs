use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use super::refusal::Refusal;
use crate::ChatRequest;

/// How a server is asked for an answer in a shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StructuredOutput {
    /// Only in the prompt.
    Instructions,
    /// For a JSON object, with the schema in the prompt.
    JsonObject,
    /// With the schema without its bounds on the length of texts, which some strict servers do not take.
    JsonSchemaWithoutLengths,
    /// With the schema itself, which the server keeps to.
    JsonSchema,
}

impl StructuredOutput {
    fn from_level(level: u8) -> Self {
        match level {
            0 => Self::Instructions,
            1 => Self::JsonObject,
            2 => Self::JsonSchemaWithoutLengths,
            _ => Self::JsonSchema,
        }
    }
}

/// What a server has turned out to understand. Only ever moves towards asking for less.
#[derive(Debug)]
pub(super) struct Dialect {
    structured: AtomicU8,
    max_completion_tokens: AtomicBool,
    no_sampling: AtomicBool,
}

/// The dialect at one moment: how one request is written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) structured: StructuredOutput,
    pub(super) max_completion_tokens: bool,
    pub(super) no_sampling: bool,
}

impl Dialect {
    pub(super) fn of(model: &str, structured: StructuredOutput) -> Self {
        let name = model.rsplit('/').next().unwrap_or(model);
        // OpenAI's reasoning models take no other name for the limit, and no temperature.
        let reasons = ["o1", "o3", "o4", "gpt-5"].iter().any(|family| {
            name.strip_prefix(family)
                .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphanumeric()))
        });
        Self {
            structured: AtomicU8::new(structured as u8),
            max_completion_tokens: AtomicBool::new(reasons),
            no_sampling: AtomicBool::new(reasons),
        }
    }

    pub(super) fn now(&self) -> Now {
        Now {
            structured: StructuredOutput::from_level(self.structured.load(Ordering::Relaxed)),
            max_completion_tokens: self.max_completion_tokens.load(Ordering::Relaxed),
            no_sampling: self.no_sampling.load(Ordering::Relaxed),
        }
    }

    /// Whether a refusal teaches how to ask the same differently. Every lesson asks for less than what was sent, so a
    /// request is asked again at most as often as there are lessons.
    pub(super) fn learns(&self, refusal: &Refusal, sent: Now, request: &ChatRequest) -> bool {
        if !matches!(refusal.status, 400 | 404 | 415 | 422 | 501) || refusal.is_too_long() {
            return false;
        }
        let said = refusal.body.to_ascii_lowercase();
        let names = |words: &[&str]| words.iter().any(|word| said.contains(word));
        if request.schema.is_some()
            && sent.structured > StructuredOutput::Instructions
            && names(&[
                "response_format",
                "json_schema",
                "json_object",
                "json schema",
                "json mode",
                "guided",
                "structured output",
            ])
        {
            let lengths = names(&["minlength", "maxlength"]);
            let next = match sent.structured {
                StructuredOutput::JsonSchema if lengths => {
                    StructuredOutput::JsonSchemaWithoutLengths
                }
                StructuredOutput::JsonSchema | StructuredOutput::JsonSchemaWithoutLengths => {
                    StructuredOutput::JsonObject
                }
                _ => StructuredOutput::Instructions,
            };
            self.structured.fetch_min(next as u8, Ordering::Relaxed);
            return true;
        }
        if request.sampling.max_tokens.is_some()
            && !sent.max_completion_tokens
            && names(&["max_completion_tokens"])
        {
            self.max_completion_tokens.store(true, Ordering::Relaxed);
            return true;
        }
        let draws = request.sampling.temperature.is_some() || request.sampling.top_p.is_some();
        if draws
            && !sent.no_sampling
            && names(&["temperature", "top_p"])
            && names(&["unsupported", "not support"])
        {
            self.no_sampling.store(true, Ordering::Relaxed);
            return true;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_without_lengths_still_gets_the_schema() {
        let dialect = Dialect::of("m", StructuredOutput::JsonSchema);
        let request = ChatRequest::default().schema("s", serde_json::json!({"type": "object"}));
        let mut refusal = Refusal {
            status: 400,
            body: "Invalid schema for response_format 's': 'maxLength' is not permitted.".into(),
            ..Refusal::default()
        };
        assert!(dialect.learns(&refusal, dialect.now(), &request));
        assert_eq!(
            dialect.now().structured,
            StructuredOutput::JsonSchemaWithoutLengths
        );
        refusal.body = "response_format.type json_schema is unavailable".into();
        assert!(dialect.learns(&refusal, dialect.now(), &request));
        assert_eq!(dialect.now().structured, StructuredOutput::JsonObject);
    }

    #[test]
    fn reasoning_models_are_known_by_their_names() {
        let asks = |model| {
            Dialect::of(model, StructuredOutput::JsonSchema)
                .now()
                .max_completion_tokens
        };
        assert!(
            [
                "o1",
                "o3-mini",
                "openai/o4-mini",
                "gpt-5",
                "gpt-5.1",
                "gpt-5-nano"
            ]
            .into_iter()
            .all(asks)
        );
        assert!(
            !["gpt-4o", "o10x", "olmo", "qwen2.5", "openchat/o", "gpt-50"]
                .into_iter()
                .any(asks)
        );
    }
}
