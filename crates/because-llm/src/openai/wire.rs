//! What goes over the wire, written by us so that nothing a server adds, leaves out or names anew loses a paid answer.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::dialect::Now;
use super::refusal::Refusal;
use crate::instructions::instructions;
use crate::text::split_thinking;
use crate::{ChatRequest, ChatResponse, JsonSchema, Message, Role, StructuredOutput, Usage};

/// The body of a call.
#[derive(Debug, Serialize)]
pub(super) struct Question<'a> {
    model: &'a str,
    messages: Cow<'a, [Message]>,
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_format: Option<ResponseFormat<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_cache_key: Option<String>,
}

impl<'a> Question<'a> {
    pub(super) fn new(model: &'a str, request: &'a ChatRequest, dialect: Now) -> Self {
        let sampling = &request.sampling;
        let (response_format, told) = match (&request.schema, dialect.structured) {
            (None, _) => (None, None),
            (Some(schema), StructuredOutput::JsonSchema) => (
                Some(native(&schema.name, Cow::Borrowed(&schema.schema))),
                None,
            ),
            (Some(schema), StructuredOutput::JsonSchemaWithoutLengths) => (
                Some(native(
                    &schema.name,
                    Cow::Owned(without_lengths(&schema.schema)),
                )),
                None,
            ),
            (Some(schema), StructuredOutput::JsonObject) => {
                (Some(ResponseFormat::JsonObject), Some(schema))
            }
            (Some(schema), StructuredOutput::Instructions) => (None, Some(schema)),
        };
        Self {
            model,
            messages: match told {
                Some(schema) => Cow::Owned(with_instructions(&request.messages, schema)),
                None => Cow::Borrowed(&request.messages),
            },
            stream: false,
            temperature: sampling.temperature.filter(|_| dialect.sampling),
            top_p: sampling.top_p.filter(|_| dialect.sampling),
            max_tokens: sampling
                .max_tokens
                .filter(|_| !dialect.max_completion_tokens),
            max_completion_tokens: sampling
                .max_tokens
                .filter(|_| dialect.max_completion_tokens),
            // Servers keep a seed in 32 or 64 signed bits, some in a double: this much all of them take.
            seed: request
                .seed
                .filter(|_| dialect.seed)
                .map(|seed| seed & 0x7fff_ffff),
            response_format,
            prompt_cache_key: request
                .prefix_group
                .as_deref()
                .filter(|_| dialect.prompt_cache_key)
                .map(cache_key),
        }
    }
}

/// Names a group to the server without telling it what the group is about; it takes at most 64 characters.
fn cache_key(group: &str) -> String {
    format!("because-{}", &blake3::hash(group.as_bytes()).to_hex()[..24])
}

/// A schema without bounds on the length of texts; what an answer has to fit is still checked on our side.
fn without_lengths(schema: &Value) -> Value {
    match schema {
        Value::Object(fields) => fields
            .iter()
            .filter(|(name, value)| {
                !(value.is_number() && matches!(name.as_str(), "minLength" | "maxLength"))
            })
            .map(|(name, value)| (name.clone(), without_lengths(value)))
            .collect(),
        Value::Array(list) => list.iter().map(without_lengths).collect(),
        other => other.clone(),
    }
}

/// The form in which an answer is asked for.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ResponseFormat<'a> {
    JsonSchema { json_schema: NamedSchema<'a> },
    JsonObject,
}

#[derive(Debug, Serialize)]
struct NamedSchema<'a> {
    name: &'a str,
    schema: Cow<'a, Value>,
    strict: bool,
}

fn native<'a>(name: &'a str, schema: Cow<'a, Value>) -> ResponseFormat<'a> {
    ResponseFormat::JsonSchema {
        json_schema: NamedSchema {
            name,
            schema,
            strict: true,
        },
    }
}

/// The turns with the schema said in words, at the end of the instructions.
fn with_instructions(messages: &[Message], schema: &JsonSchema) -> Vec<Message> {
    let said = instructions(schema);
    let mut messages = messages.to_vec();
    match messages.first_mut() {
        Some(first) if first.role == Role::System => {
            first.content.push_str("\n\n");
            first.content.push_str(&said);
        }
        _ => messages.insert(0, Message::system(said)),
    }
    messages
}

/// What comes back with a 200.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Answer {
    #[serde(deserialize_with = "lenient")]
    choices: Option<Vec<Choice>>,
    #[serde(deserialize_with = "lenient")]
    model: Option<String>,
    #[serde(deserialize_with = "lenient")]
    usage: Option<WireUsage>,
    /// Some gateways say 200 and mean an error.
    #[serde(deserialize_with = "lenient")]
    error: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Choice {
    #[serde(deserialize_with = "lenient")]
    message: Option<WireMessage>,
    #[serde(deserialize_with = "lenient")]
    text: Option<String>,
    #[serde(deserialize_with = "lenient")]
    finish_reason: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WireMessage {
    #[serde(deserialize_with = "lenient")]
    content: Option<Content>,
    #[serde(deserialize_with = "lenient")]
    reasoning_content: Option<String>,
    #[serde(deserialize_with = "lenient")]
    reasoning: Option<String>,
    #[serde(deserialize_with = "lenient")]
    refusal: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Part {
    #[serde(deserialize_with = "lenient")]
    text: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WireUsage {
    #[serde(deserialize_with = "count")]
    prompt_tokens: u64,
    #[serde(deserialize_with = "count")]
    completion_tokens: u64,
    #[serde(deserialize_with = "count")]
    prompt_cache_hit_tokens: u64,
    #[serde(deserialize_with = "lenient")]
    prompt_tokens_details: Option<PromptDetails>,
    #[serde(deserialize_with = "lenient")]
    completion_tokens_details: Option<CompletionDetails>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PromptDetails {
    #[serde(deserialize_with = "count")]
    cached_tokens: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CompletionDetails {
    #[serde(deserialize_with = "count")]
    reasoning_tokens: u64,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an answer")
    }
}

// Only so that it can go up as `transport::hand_up` sends it.
impl std::error::Error for Answer {}

impl Answer {
    pub(super) fn into_response(self) -> Result<ChatResponse, Box<Refusal>> {
        if let (None, Some(error)) = (
            self.choices.as_ref().and_then(|choices| choices.first()),
            &self.error,
        ) {
            return Err(Box::new(Refusal::inside_an_answer(error)));
        }
        let Some(choice) = self.choices.and_then(|choices| choices.into_iter().next()) else {
            return Err(Box::new(Refusal::of_no_choice()));
        };
        let message = choice.message.unwrap_or_default();
        let content = match message.content {
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) => parts.into_iter().filter_map(|part| part.text).collect(),
            None => choice.text.unwrap_or_default(),
        };
        let (thought, answer) = split_thinking(&content);
        let reasoning = [message.reasoning_content, message.reasoning]
            .into_iter()
            .flatten()
            .find(|text| !text.trim().is_empty())
            .or_else(|| thought.map(str::to_owned));
        let refusal = message
            .refusal
            .filter(|text| !text.is_empty() && answer.is_empty());
        Ok(ChatResponse {
            finish_reason: match refusal {
                Some(_) => Some("content_filter".into()),
                None => choice.finish_reason,
            },
            answer: refusal.unwrap_or_else(|| answer.to_owned()),
            reasoning,
            model: self.model,
            usage: self.usage.map(Usage::from).unwrap_or_default(),
            rate_limits: None,
        })
    }
}

impl From<WireUsage> for Usage {
    fn from(wire: WireUsage) -> Self {
        let cached = wire
            .prompt_tokens_details
            .map_or(0, |details| details.cached_tokens);
        Self {
            prompt_tokens: wire.prompt_tokens,
            completion_tokens: wire.completion_tokens,
            cached_tokens: cached.max(wire.prompt_cache_hit_tokens),
            reasoning_tokens: wire
                .completion_tokens_details
                .map_or(0, |details| details.reasoning_tokens),
        }
    }
}

/// A field of another type than expected is as good as none.
pub(super) fn lenient<'de, D: Deserializer<'de>, T: for<'a> Deserialize<'a>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(value).ok())
}

/// A number of tokens, whole, broken or null.
fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let broken = || {
        value
            .as_f64()
            .filter(|count| (0.0..1e12).contains(count))
            .map(|count| count as u64)
    };
    Ok(value.as_u64().or_else(broken).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> ChatResponse {
        serde_json::from_str::<Answer>(text)
            .unwrap()
            .into_response()
            .unwrap()
    }

    #[test]
    fn what_servers_add_or_name_anew_passes() {
        let deepseek = read(
            r#"{"id":1,"service_tier":"on_demand","choices":[{"index":0,"finish_reason":"insufficient_system_resource",
                "message":{"role":"assistant","content":"yes","reasoning_content":"hm"},"logprobs":[[]]}],
                "usage":{"prompt_tokens":9,"completion_tokens":4.0,"prompt_cache_hit_tokens":6,
                "completion_tokens_details":{"reasoning_tokens":3,"accepted_prediction_tokens":null}},"model":"r1"}"#,
        );
        insta::assert_json_snapshot!(deepseek, @r#"
        {
          "answer": "yes",
          "reasoning": "hm",
          "finish_reason": "insufficient_system_resource",
          "model": "r1",
          "usage": {
            "prompt_tokens": 9,
            "completion_tokens": 4,
            "cached_tokens": 6,
            "reasoning_tokens": 3
          }
        }
        "#);
        let parts = read(
            r#"{"choices":[{"message":{"content":[{"type":"text","text":"a"},{"type":"x"},{"text":"b"}]}}],"usage":null}"#,
        );
        assert_eq!(parts.answer, "ab");
        let thinking = read(
            r#"{"choices":[{"message":{"content":"<think>hm</think>yes","reasoning":null},"finish_reason":7}]}"#,
        );
        assert_eq!(
            (thinking.answer.as_str(), thinking.reasoning.as_deref()),
            ("yes", Some("hm"))
        );
        assert_eq!(thinking.finish_reason, None);
        let refused = read(
            r#"{"choices":[{"message":{"content":null,"refusal":"I cannot"},"finish_reason":"stop"}]}"#,
        );
        assert_eq!(
            (refused.answer.as_str(), refused.finish_reason.as_deref()),
            ("I cannot", Some("content_filter"))
        );
        let only_thought = read(
            r#"{"choices":[{"message":{"content":null,"reasoning":"hm"},"finish_reason":"stop"}]}"#,
        );
        assert_eq!(
            (
                only_thought.answer.as_str(),
                only_thought.reasoning.as_deref()
            ),
            ("", Some("hm"))
        );
    }

    #[test]
    fn a_question_is_written_as_each_kind_of_server_takes_it() {
        let request = ChatRequest::new(vec![Message::system("Be brief."), Message::user("why?")])
            .schema("answer", json!({"type": "object"}))
            .seed(u64::MAX)
            .prefix_group("layer-1 aggregate user")
            .sampling(crate::Sampling {
                temperature: Some(0.5),
                top_p: None,
                max_tokens: Some(9),
            });
        let ask = |structured, reasons| {
            Question::new(
                "m",
                &request,
                Now {
                    structured,
                    max_completion_tokens: reasons,
                    sampling: !reasons,
                    seed: true,
                    prompt_cache_key: reasons,
                },
            )
        };
        insta::assert_json_snapshot!([
            ask(StructuredOutput::JsonSchema, false),
            ask(StructuredOutput::JsonObject, true),
            ask(StructuredOutput::Instructions, false),
        ], @r#"
        [
          {
            "model": "m",
            "messages": [
              {
                "role": "system",
                "content": "Be brief."
              },
              {
                "role": "user",
                "content": "why?"
              }
            ],
            "stream": false,
            "temperature": 0.5,
            "max_tokens": 9,
            "seed": 2147483647,
            "response_format": {
              "type": "json_schema",
              "json_schema": {
                "name": "answer",
                "schema": {
                  "type": "object"
                },
                "strict": true
              }
            }
          },
          {
            "model": "m",
            "messages": [
              {
                "role": "system",
                "content": "Be brief.\n\nAnswer with one JSON object and nothing else: no Markdown, no words before or after it. The object has to fit this JSON\nSchema:\n\n{\"type\":\"object\"}"
              },
              {
                "role": "user",
                "content": "why?"
              }
            ],
            "stream": false,
            "max_completion_tokens": 9,
            "seed": 2147483647,
            "response_format": {
              "type": "json_object"
            },
            "prompt_cache_key": "because-cc1e3cde17d33be42485a878"
          },
          {
            "model": "m",
            "messages": [
              {
                "role": "system",
                "content": "Be brief.\n\nAnswer with one JSON object and nothing else: no Markdown, no words before or after it. The object has to fit this JSON\nSchema:\n\n{\"type\":\"object\"}"
              },
              {
                "role": "user",
                "content": "why?"
              }
            ],
            "stream": false,
            "temperature": 0.5,
            "max_tokens": 9,
            "seed": 2147483647
          }
        ]
        "#);
    }
}
