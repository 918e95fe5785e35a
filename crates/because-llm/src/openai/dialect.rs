use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use super::refusal::Refusal;
use crate::dialect::{Ways, reasons};
use crate::{ChatRequest, Dialect, StructuredOutput, TokenLimit, Usage};

/// How a server is spoken to, as far as it is known: the table and the settings at first, then what it has turned out not
/// to understand. Only ever moves towards asking for less.
#[derive(Debug)]
pub(super) struct Spoken {
    /// What nobody may learn otherwise.
    said: Dialect,
    structured: AtomicU8,
    max_completion_tokens: AtomicBool,
    no_sampling: AtomicBool,
    no_seed: AtomicBool,
    no_cache_key: AtomicBool,
    truncates: AtomicBool,
    warned: AtomicBool,
    named: AtomicBool,
}

/// The dialect at one moment: how one request is written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) structured: StructuredOutput,
    pub(super) max_completion_tokens: bool,
    pub(super) sampling: bool,
    pub(super) seed: bool,
    pub(super) prompt_cache_key: bool,
}

impl Spoken {
    pub(super) fn of(model: &str, host: &str, port: Option<u16>, said: Dialect) -> Self {
        let ways = match said.server {
            Some(server) => Ways::of(server),
            None => Ways::at(host, port, model),
        };
        let reasons = reasons(model);
        let limit = said.token_limit.unwrap_or(match reasons {
            true => TokenLimit::MaxCompletionTokens,
            false => ways.token_limit,
        });
        Self {
            structured: AtomicU8::new(said.structured.unwrap_or(ways.structured) as u8),
            max_completion_tokens: AtomicBool::new(limit == TokenLimit::MaxCompletionTokens),
            no_sampling: AtomicBool::new(!said.sampling.unwrap_or(!reasons)),
            no_seed: AtomicBool::new(!said.seed.unwrap_or(ways.seed)),
            no_cache_key: AtomicBool::new(!said.prompt_cache_key.unwrap_or(ways.prompt_cache_key)),
            truncates: AtomicBool::new(ways.truncates),
            warned: AtomicBool::new(false),
            named: AtomicBool::new(false),
            said,
        }
    }

    pub(super) fn now(&self) -> Now {
        Now {
            structured: from_level(self.structured.load(Ordering::Relaxed)),
            max_completion_tokens: self.max_completion_tokens.load(Ordering::Relaxed),
            sampling: !self.no_sampling.load(Ordering::Relaxed),
            seed: !self.no_seed.load(Ordering::Relaxed),
            prompt_cache_key: !self.no_cache_key.load(Ordering::Relaxed),
        }
    }

    /// Takes note of what a server calls itself, the first time that it does.
    pub(super) fn named(&self, header: &str) {
        if self.named.swap(true, Ordering::Relaxed) || self.said.server.is_some() {
            return;
        }
        let Some(ways) = Ways::named(header) else {
            return;
        };
        if self.said.structured.is_none() {
            self.structured
                .fetch_min(ways.structured as u8, Ordering::Relaxed);
        }
        // A port may have let us take it for another one.
        self.truncates.store(ways.truncates, Ordering::Relaxed);
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
        // The key of a prefix helps nobody's answer, so any word against it is enough.
        if sent.prompt_cache_key
            && request.prefix_group.is_some()
            && names(&["prompt_cache_key", "prompt cache key"])
        {
            self.no_cache_key.store(true, Ordering::Relaxed);
            return true;
        }
        let refused = names(&[
            "unsupported",
            "not support",
            "unknown",
            "unrecognized",
            "not permitted",
        ]);
        let draws = request.sampling.temperature.is_some() || request.sampling.top_p.is_some();
        if draws && sent.sampling && names(&["temperature", "top_p"]) && refused {
            self.no_sampling.store(true, Ordering::Relaxed);
            return true;
        }
        if request.seed.is_some() && sent.seed && names(&["seed"]) && refused {
            self.no_seed.store(true, Ordering::Relaxed);
            return true;
        }
        false
    }

    /// Says once that a server seems to have read only part of a prompt, of one that is known to do so silently. Its
    /// OpenAI route takes no option for the size of the context, so a person has to set it.
    pub(super) fn check(&self, request: &ChatRequest, usage: &Usage, endpoint: &str) {
        if !self.truncates.load(Ordering::Relaxed) || self.warned.load(Ordering::Relaxed) {
            return;
        }
        let chars = request
            .messages
            .iter()
            .map(|message| message.content.chars().count() as u64)
            .sum();
        if seems_cut(chars, usage.prompt_tokens) && !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                endpoint,
                chars,
                prompt_tokens = usage.prompt_tokens,
                "the server counts far fewer tokens than the prompt should have: it may have cut it off without a word; \
                 raise the model's context (num_ctx, or OLLAMA_CONTEXT_LENGTH for the server)"
            );
        }
    }
}

/// Text has about four characters a token, and hardly ever more than seven. A full context is a round number.
fn seems_cut(chars: u64, prompt_tokens: u64) -> bool {
    let full = prompt_tokens >= 2048 && prompt_tokens.is_multiple_of(1024);
    prompt_tokens > 0 && chars > 4000 && (prompt_tokens < chars / 8 || full)
}

fn from_level(level: u8) -> StructuredOutput {
    match level {
        0 => StructuredOutput::Instructions,
        1 => StructuredOutput::JsonObject,
        2 => StructuredOutput::JsonSchemaWithoutLengths,
        _ => StructuredOutput::JsonSchema,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Message, Server};

    fn spoken(said: Dialect) -> Spoken {
        Spoken::of("m", "gateway.example", None, said)
    }

    #[test]
    fn a_server_without_lengths_still_gets_the_schema() {
        let dialect = spoken(Dialect::default());
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
    fn the_table_speaks_first_the_settings_before_it_and_a_refusal_last() {
        let deepseek = Spoken::of(
            "deepseek-chat",
            "api.deepseek.com",
            None,
            Dialect::default(),
        )
        .now();
        assert_eq!(deepseek.structured, StructuredOutput::JsonObject);
        assert!(!deepseek.seed && !deepseek.prompt_cache_key && !deepseek.max_completion_tokens);
        let openai = Spoken::of("gpt-4o", "api.openai.com", None, Dialect::default());
        assert!(openai.now().prompt_cache_key && openai.now().max_completion_tokens);
        assert!(openai.now().sampling);
        let reasoning = Spoken::of("openai/o3", "h", None, Dialect::default()).now();
        assert!(reasoning.max_completion_tokens && !reasoning.sampling);
        let said = spoken(Dialect {
            server: Some(Server::DeepSeek),
            structured: Some(StructuredOutput::JsonSchema),
            token_limit: Some(TokenLimit::MaxCompletionTokens),
            seed: Some(true),
            sampling: Some(false),
            prompt_cache_key: Some(true),
        })
        .now();
        assert_eq!(said.structured, StructuredOutput::JsonSchema);
        assert!(said.max_completion_tokens && said.seed && !said.sampling && said.prompt_cache_key);

        let request = ChatRequest::new(vec![Message::user("?")])
            .seed(1)
            .prefix_group("g");
        for (word, still) in [
            ("Unknown field prompt_cache_key", [true, false]),
            ("seed is not supported", [false, false]),
        ] {
            let refusal = Refusal {
                status: 422,
                body: word.into(),
                ..Refusal::default()
            };
            assert!(openai.learns(&refusal, openai.now(), &request));
            assert!(
                !openai.learns(&refusal, openai.now(), &request),
                "only once"
            );
            assert_eq!([openai.now().seed, openai.now().prompt_cache_key], still);
        }
    }

    #[test]
    fn a_server_that_names_itself_is_believed_once() {
        let ollama_port = Spoken::of("m", "h", Some(11434), Dialect::default());
        assert!(ollama_port.truncates.load(Ordering::Relaxed));
        ollama_port.named("llama.cpp");
        assert!(!ollama_port.truncates.load(Ordering::Relaxed));
    }

    #[test]
    fn a_prompt_that_lost_its_beginning_shows_in_the_count() {
        assert!(seems_cut(40_000, 4096));
        assert!(seems_cut(40_000, 3000));
        assert!(seems_cut(9_000, 2048));
        assert!(!seems_cut(40_000, 9_500));
        assert!(!seems_cut(900, 12), "short prompts are never cut");
        assert!(
            !seems_cut(9_000, 0),
            "a server that counts nothing says nothing"
        );
    }
}
