use std::path::Path;
use std::time::Instant;

use because_core::Message;
use because_llm::{
    BoxFuture, ChatError, ChatModel, ChatRequest, ChatResponse, ModelId, Role, Usage,
};
use serde::Serialize;

use crate::adapter;
use crate::base::Base;
use crate::chat::Chat;
use crate::config::QwenConfig;
use crate::decoding::Decoding;
use crate::error::{Result, TuneError};
use crate::generate::{Continuation, generate};
use crate::model::{Qwen, Tokens};
use crate::ops::values;

/// A base, with or without an adapter, ready to answer.
///
/// It is a [`ChatModel`]. Its work is blocking: the future does everything when it is first polled and keeps its thread
/// until the answer is there, so a server runs it where blocking is allowed. It answers in free text; a schema in the
/// request is left to whoever checks the answer.
#[derive(Debug)]
pub struct TunedModel {
    model: Qwen,
    chat: Chat,
    id: ModelId,
    decoding: Decoding,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// The model ended it.
    Stop,
    /// The limit or the context did.
    Length,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Generation {
    /// Its text, without special tokens.
    pub text: String,
    /// Its tokens, the one that ended it included.
    pub token_ids: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Why it ended.
    pub finish: Finish,
}

/// The answers to several prompts, in their order.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Generations {
    /// One for each prompt.
    pub outputs: Vec<Generation>,
    /// New tokens of all answers, over the time it took to read the prompts and write them.
    pub tokens_per_second: f64,
}

impl TunedModel {
    /// Loads a base, a folder or a GGUF file, and lays an adapter over it.
    ///
    /// # Errors
    /// When it is not a base this crate can run, its files contradict each other, or the adapter does not fit;
    /// the message says which file, field or tensor.
    pub fn load(base: &Path, adapter: Option<&Path>) -> Result<Self> {
        let base = Base::open(base)?;
        let chat = base.chat()?;
        let mut model = base.model()?;
        let mut name = format!("qwen:{}", base.name());
        if let Some(path) = adapter {
            let (lora, parameters) = adapter::read(&adapter::check_folder(path)?, base.config())?;
            lora.attach(&mut model, &parameters, false)?;
            let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
            let own = whole
                .file_name()
                .map_or("adapter".into(), |own| own.to_string_lossy());
            name = format!("{name}+{own}");
        }
        // Two models of one name must not answer from one cache.
        let id = ModelId {
            model: name,
            endpoint: format!("local:{:016x}", model.fingerprint()?),
        };
        Ok(Self {
            model,
            chat,
            id,
            decoding: Decoding::default(),
        })
    }

    /// What is used where a [`ChatRequest`] leaves the choice to the model; greedy unless set.
    #[must_use]
    pub fn decoding(mut self, decoding: Decoding) -> Self {
        self.decoding = decoding;
        self
    }

    /// The shape of the base.
    #[must_use]
    pub fn config(&self) -> &QwenConfig {
        &self.model.config
    }

    /// Answers one chat.
    ///
    /// # Errors
    /// When the chat cannot be rendered or leaves no room for an answer, or a setting is out of its range.
    pub fn generate(&self, messages: &[Message], decoding: &Decoding) -> Result<Generation> {
        let mut all = self.generate_batch(std::slice::from_ref(&messages.to_vec()), decoding)?;
        Ok(all.outputs.remove(0))
    }

    /// Answers several chats, sharing the work of reading the weights.
    ///
    /// # Errors
    /// As [`TunedModel::generate`]; one prompt at fault fails all.
    pub fn generate_batch(
        &self,
        prompts: &[Vec<Message>],
        decoding: &Decoding,
    ) -> Result<Generations> {
        let prompts = prompts
            .iter()
            .map(|messages| self.chat.prompt(messages))
            .collect::<Result<Vec<_>>>()?;
        self.continue_tokens(&prompts, decoding)
    }

    /// Continues rows of tokens, for prompts that were tokenised elsewhere.
    ///
    /// # Errors
    /// As [`TunedModel::generate`], and when a token is unknown to the model.
    pub fn continue_tokens(
        &self,
        prompts: &[Vec<u32>],
        decoding: &Decoding,
    ) -> Result<Generations> {
        let begun = Instant::now();
        let continued = generate(&self.model, &self.chat, prompts, decoding)?;
        let tokens: usize = continued.iter().map(|one| one.ids.len()).sum();
        let seconds = begun.elapsed().as_secs_f64();
        let outputs = prompts
            .iter()
            .zip(continued)
            .map(|(prompt, Continuation { ids, stopped })| {
                Ok(Generation {
                    text: self.chat.vocabulary.decode(&ids)?,
                    token_ids: ids,
                    prompt_tokens: prompt.len(),
                    finish: if stopped {
                        Finish::Stop
                    } else {
                        Finish::Length
                    },
                })
            })
            .collect::<Result<_>>()?;
        Ok(Generations {
            outputs,
            tokens_per_second: tokens as f64 / seconds.max(1e-9),
        })
    }

    /// How many tokens a prompt has.
    ///
    /// # Errors
    /// When the chat cannot be rendered.
    pub fn prompt_tokens(&self, messages: &[Message]) -> Result<usize> {
        Ok(self.chat.prompt(messages)?.len())
    }

    /// The tokens of a text that a person wrote; never a special one, whatever it says.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn tokenize(&self, text: &str) -> Result<Vec<u32>> {
        self.chat.vocabulary.encode(text)
    }

    /// The logits after each token of each row, `[t][v]`, for comparison with another implementation.
    ///
    /// # Errors
    /// When a token is unknown to the model or a row is longer than its context.
    pub fn logits(&self, rows: &[Vec<u32>]) -> Result<Vec<Vec<Vec<f32>>>> {
        let config = &self.model.config;
        for row in rows {
            if row.is_empty() || row.len() > config.max_position_embeddings {
                return Err(TuneError::ContextTooLong {
                    prompt_tokens: row.len(),
                    context: config.max_position_embeddings,
                });
            }
            if let Some(id) = row.iter().find(|&&id| id as usize >= config.vocab_size) {
                return Err(TuneError::Chat {
                    reason: format!("token {id} is unknown to the model"),
                });
            }
        }
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let tokens = Tokens::new(rows.iter().map(Vec::as_slice));
        let hidden = self.model.hidden(&tokens)?;
        tokens
            .segments
            .iter()
            .map(|segment| {
                let at: Vec<u32> = (segment.start..segment.start + segment.len)
                    .map(|row| row as u32)
                    .collect();
                let logits = values(&self.model.logits(&hidden, &at)?)?;
                Ok(logits
                    .chunks(config.vocab_size)
                    .map(<[f32]>::to_vec)
                    .collect())
            })
            .collect()
    }

    fn answer(&self, request: &ChatRequest) -> Result<ChatResponse> {
        let messages: Vec<Message> = request
            .messages
            .iter()
            .map(|message| {
                let role = match message.role {
                    Role::System => "system",
                    Role::User => "user",
                    Role::Assistant => "assistant",
                };
                Message::new(role, message.content.as_str())
            })
            .collect();
        let (asked, own) = (&request.sampling, &self.decoding);
        let decoding = Decoding {
            max_tokens: asked
                .max_tokens
                .map_or(own.max_tokens, |most| most as usize),
            temperature: asked.temperature.unwrap_or(own.temperature),
            top_p: asked.top_p.unwrap_or(own.top_p),
            seed: request.seed.unwrap_or(own.seed),
            ..own.clone()
        };
        let generation = self.generate(&messages, &decoding)?;
        Ok(ChatResponse {
            answer: generation.text,
            finish_reason: Some(
                if generation.finish == Finish::Stop {
                    "stop"
                } else {
                    "length"
                }
                .to_owned(),
            ),
            model: Some(self.id.model.clone()),
            usage: Usage {
                prompt_tokens: generation.prompt_tokens as u64,
                completion_tokens: generation.token_ids.len() as u64,
                ..Usage::default()
            },
            ..ChatResponse::default()
        })
    }
}

impl ChatModel for TunedModel {
    fn chat<'a>(
        &'a self,
        request: &'a ChatRequest,
    ) -> BoxFuture<'a, because_llm::Result<ChatResponse>> {
        Box::pin(async move {
            self.answer(request).map_err(|error| match error {
                TuneError::ContextTooLong { .. } => ChatError::ContextTooLong {
                    message: error.to_string(),
                },
                _ => ChatError::Permanent {
                    status: None,
                    message: error.to_string(),
                },
            })
        })
    }

    fn id(&self) -> ModelId {
        self.id.clone()
    }
}
