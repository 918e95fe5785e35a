use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{RateLimits, RequestKey, Result};

/// A boxed future that may move between threads. A call takes seconds; the box costs nothing beside it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Anything that answers a chat: a server, a local model, a recording, or a wrapper around another `ChatModel`.
///
/// Dropping the future cancels the call.
pub trait ChatModel: Send + Sync {
    /// Asks once.
    fn chat<'a>(&'a self, request: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>>;

    /// The same with what wrappers hand down to each other. A wrapper passes it on; a model need not know of it.
    #[doc(hidden)]
    fn chat_with<'a>(
        &'a self,
        request: &'a ChatRequest,
        handed: Handed,
    ) -> BoxFuture<'a, Result<ChatResponse>> {
        let _ = handed;
        self.chat(request)
    }

    /// Which model this is, for artefacts and for the key of a cached answer. A wrapper passes its inner model's on.
    fn id(&self) -> ModelId {
        ModelId::default()
    }
}

/// What a wrapper may tell those below it of one call.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Handed {
    /// The key of this very request to this very model: hashing a long prompt is most of what a wrapper costs.
    pub(crate) key: Option<RequestKey>,
    /// Since when the call could go out, but for limits.
    pub(crate) ready: Option<Instant>,
}

impl Handed {
    pub(crate) fn keyed(self, key: RequestKey) -> Self {
        Self {
            key: Some(key),
            ..self
        }
    }
}

macro_rules! forward {
    ($pointer:ty) => {
        impl<M: ChatModel + ?Sized> ChatModel for $pointer {
            fn chat<'a>(&'a self, request: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
                (**self).chat(request)
            }

            fn chat_with<'a>(
                &'a self,
                request: &'a ChatRequest,
                handed: Handed,
            ) -> BoxFuture<'a, Result<ChatResponse>> {
                (**self).chat_with(request, handed)
            }

            fn id(&self) -> ModelId {
                (**self).id()
            }
        }
    };
}

forward!(&M);
forward!(Box<M>);
forward!(Arc<M>);

/// Which model answers, and where. It never holds a key: it is hashed, stored and printed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ModelId {
    /// The model's name, as artefacts and reports show it.
    pub model: String,
    /// A label of the endpoint: scheme, host, port and path of its base URL, without user, query or fragment; empty for
    /// a model in this process.
    #[serde(default)]
    pub endpoint: String,
}

impl Default for ModelId {
    fn default() -> Self {
        Self {
            model: "unnamed".into(),
            endpoint: String::new(),
        }
    }
}

/// Who speaks in a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The instructions.
    System,
    /// The one who asks.
    User,
    /// The model.
    Assistant,
}

/// One turn.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What they say.
    pub content: String,
}

impl Message {
    /// Instructions.
    pub fn system(content: impl Into<String>) -> Self {
        Self {
            role: Role::System,
            content: content.into(),
        }
    }

    /// A question.
    pub fn user(content: impl Into<String>) -> Self {
        Self {
            role: Role::User,
            content: content.into(),
        }
    }

    /// An answer of the model.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self {
            role: Role::Assistant,
            content: content.into(),
        }
    }
}

/// The JSON Schema an answer has to fit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JsonSchema {
    /// A short name (letters, digits, `_`, `-`), sent to servers that want one.
    pub name: String,
    /// The schema: an object with `properties`, `required` and `additionalProperties: false`, the subset that strict
    /// servers take.
    pub schema: Value,
}

/// How the next token is drawn. `None` leaves it to the model's own default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// 0 for the likeliest token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Draw among the likeliest tokens that together have this probability.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// At most this many tokens in the answer, reasoning included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
}

/// One question to a model: everything that its answer may depend on, and nothing else (no key, no URL, no timeout), so
/// that the whole of it is the cache key.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ChatRequest {
    /// The conversation so far.
    pub messages: Vec<Message>,
    /// What the answer has to fit; `None` for free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<JsonSchema>,
    /// How to draw.
    #[serde(default)]
    pub sampling: Sampling,
    /// The seed of the draw, for models that take one. Asking the same again for another answer needs another seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// What the calls that begin with the same text are called, so that a server can keep them on one machine. It changes
    /// no answer and is no part of the key.
    #[serde(skip)]
    pub prefix_group: Option<String>,
}

impl ChatRequest {
    /// A request of these turns, in free text.
    #[must_use]
    pub fn new(messages: Vec<Message>) -> Self {
        Self {
            messages,
            ..Self::default()
        }
    }

    /// Asks for an answer in this shape.
    #[must_use]
    pub fn schema(mut self, name: impl Into<String>, schema: Value) -> Self {
        self.schema = Some(JsonSchema {
            name: name.into(),
            schema,
        });
        self
    }

    /// Draws in this way.
    #[must_use]
    pub fn sampling(mut self, sampling: Sampling) -> Self {
        self.sampling = sampling;
        self
    }

    /// Draws with this seed.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Says that its beginning is that of the other requests of this group.
    #[must_use]
    pub fn prefix_group(mut self, group: impl Into<String>) -> Self {
        self.prefix_group = Some(group.into());
        self
    }
}

/// A model's answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ChatResponse {
    /// The answer itself, without its reasoning.
    pub answer: String,
    /// What a reasoning model thought before it answered, where it shows that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// Why it stopped, in the server's own word: `stop`, `length`, `content_filter`, or anything else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<String>,
    /// The model's name as the server gives it back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What was paid for.
    pub usage: Usage,
    /// What the server said beside it of how much more it takes. It belongs to the moment, so it is not kept.
    #[serde(skip)]
    pub rate_limits: Option<RateLimits>,
}

/// Tokens, as the server counts them; 0 where it does not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// In the prompt, cached ones included.
    pub prompt_tokens: u64,
    /// In the answer, reasoning included.
    pub completion_tokens: u64,
    /// Of the prompt's, those that came from the server's prefix cache.
    pub cached_tokens: u64,
    /// Of the answer's, those spent on reasoning.
    pub reasoning_tokens: u64,
}

impl Usage {
    /// The share of the prompts' tokens that came from the server's prefix cache; `None` before the first one.
    #[must_use]
    pub fn cached_share(&self) -> Option<f64> {
        (self.prompt_tokens > 0).then(|| self.cached_tokens as f64 / self.prompt_tokens as f64)
    }
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.prompt_tokens += other.prompt_tokens;
        self.completion_tokens += other.completion_tokens;
        self.cached_tokens += other.cached_tokens;
        self.reasoning_tokens += other.reasoning_tokens;
    }
}
