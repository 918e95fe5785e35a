use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use because_core::Message;
use because_llm::{
    BoxFuture, ChatError, ChatModel, ChatRequest, ChatResponse, ModelId, Role, Usage,
};
use serde::Serialize;
use serde_json::Value;

use crate::base::Base;
use crate::chat::{Chat, fnv};
use crate::config::QwenConfig;
use crate::decoding::Decoding;
use crate::engine::{self, Ask, Engine, EngineSettings, Row, Scheduler};
use crate::error::{Result, TuneError};
use crate::grammar::{Grammar, Grammars};
use crate::infer::{Inference, KeyValues, Piece, Wants};
use crate::model::Qwen;
use crate::ops::PAGE;
use crate::overlay::Overlay;

/// A base, with or without adapters, ready to answer.
///
/// [`TunedModel::generate`] and its like work on the caller's thread. As a [`ChatModel`] it answers through an [`Engine`] of its
/// own, which starts with the first chat: chats that are under way together are one batch, and no thread waits for them. An
/// answer to a request with a schema fits it.
#[derive(Debug)]
pub struct TunedModel {
    loaded: Arc<Loaded>,
    id: ModelId,
    /// Of the weights, the tokenizer and the chat template.
    fingerprint: u64,
    decoding: Decoding,
    /// Where none were given, the usual ones as far as memory goes.
    settings: Option<EngineSettings>,
    /// What works on the caller's thread; its prefix cache stays from call to call.
    scheduler: Mutex<Option<Scheduler>>,
    engine: Mutex<Option<Engine>>,
}

/// What generation needs of a model, shared by all that generate with it.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) base: Qwen,
    pub(crate) chat: Chat,
    /// The adapter it was loaded with.
    own: Option<(String, Arc<Overlay>)>,
    others: RwLock<BTreeMap<String, Arc<Overlay>>>,
    /// Made for the first schema.
    grammars: Mutex<Option<Grammars>>,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// The model ended it, or a stop text did.
    Stop,
    /// The limit or the context did.
    Length,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Generation {
    /// Its text, without special tokens, and cut before a stop text.
    pub text: String,
    /// Its tokens, those that ended it included.
    pub token_ids: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, those whose keys and values came from the prefix cache.
    pub cached_tokens: usize,
    /// Why it ended.
    pub finish: Finish,
    /// Seconds from the question to the first token, waiting included; not in its JSON, which is the same every time.
    #[serde(skip)]
    pub first_token_seconds: f64,
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

impl Loaded {
    pub(crate) fn new(base: Qwen, chat: Chat, own: Option<(String, Arc<Overlay>)>) -> Self {
        Self {
            base,
            chat,
            own,
            others: RwLock::default(),
            grammars: Mutex::default(),
        }
    }

    #[cfg(test)]
    pub(crate) fn with(self, name: &str, overlay: Overlay) -> Self {
        let others = BTreeMap::from([(name.to_owned(), Arc::new(overlay))]);
        Self {
            others: RwLock::new(others),
            ..self
        }
    }

    /// What holds one answer to a schema.
    pub(crate) fn grammar(&self, schema: &Value) -> Result<Grammar> {
        let grammars = {
            let mut made = self.grammars.lock().unwrap_or_else(PoisonError::into_inner);
            match &*made {
                Some(grammars) => grammars.clone(),
                None => made
                    .insert(Grammars::new(&self.chat.vocabulary, self.chat.stops())?)
                    .clone(),
            }
        };
        grammars.json(schema)
    }

    /// The adapter of this name, or the one the model was loaded with.
    pub(crate) fn overlay(&self, name: Option<&str>) -> Result<Option<Arc<Overlay>>> {
        let own = self.own.as_ref();
        let Some(name) = name else {
            return Ok(own.map(|(_, overlay)| Arc::clone(overlay)));
        };
        if let Some((_, overlay)) = own.filter(|(own, _)| own == name) {
            return Ok(Some(Arc::clone(overlay)));
        }
        let others = self.others.read().unwrap_or_else(PoisonError::into_inner);
        match others.get(name) {
            Some(overlay) => Ok(Some(Arc::clone(overlay))),
            None => Err(unknown(name)),
        }
    }
}

fn unknown(name: &str) -> TuneError {
    TuneError::Setting {
        field: "adapter",
        reason: format!("no adapter is called {name:?}"),
    }
}

impl TunedModel {
    /// Loads a base, a folder or a GGUF file, and lays an adapter over it.
    ///
    /// # Errors
    /// When it is not a base this crate can run, its files contradict each other, or the adapter does not fit;
    /// the message says which file, field or tensor.
    pub fn load(base: &Path, adapter: Option<&Path>) -> Result<Self> {
        let opened = Base::open(base)?;
        let chat = opened.chat()?;
        let base = opened.model()?;
        let mut name = format!("qwen:{}", opened.name());
        let mut own = None;
        let fingerprint = match adapter {
            None => base.fingerprint(&base.layers)?,
            Some(path) => {
                let (overlay, layers) = Overlay::read(path, &base)?;
                let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
                let called = whole
                    .file_name()
                    .map_or("adapter".into(), |own| own.to_string_lossy());
                name = format!("{name}+{called}");
                own = Some((called.into_owned(), Arc::new(overlay)));
                base.fingerprint(&layers)?
            }
        };
        let fingerprint = fnv(fingerprint, &chat.fingerprint()?.to_le_bytes());
        let model = Self {
            loaded: Arc::new(Loaded::new(base, chat, own)),
            id: ModelId {
                model: name,
                endpoint: String::new(),
            },
            fingerprint,
            decoding: Decoding::default(),
            settings: None,
            scheduler: Mutex::default(),
            engine: Mutex::default(),
        };
        Ok(model.decoding(Decoding::default()))
    }

    /// What is used where a [`ChatRequest`] leaves the choice to the model; greedy unless set.
    #[must_use]
    pub fn decoding(mut self, decoding: Decoding) -> Self {
        // What answers another way must not answer from the same cache.
        let asked = serde_json::to_vec(&decoding).unwrap_or_default();
        self.id.endpoint = format!("local:{:016x}", fnv(self.fingerprint, &asked));
        self.decoding = decoding;
        self
    }

    /// How much it does at once, and how much memory that may take.
    #[must_use]
    pub fn settings(mut self, settings: EngineSettings) -> Self {
        self.settings = Some(settings);
        self.scheduler = Mutex::default();
        self.engine = Mutex::default();
        self
    }

    /// The shape of the base.
    #[must_use]
    pub fn config(&self) -> &QwenConfig {
        &self.loaded.base.config
    }

    /// Lays one more adapter over the base, beside the others: nothing is loaded again, and nobody who asks without its name
    /// sees it. The adapter of [`TunedModel::load`] is called by its folder's name.
    ///
    /// # Errors
    /// When the adapter does not fit the base, or the name is taken.
    pub fn add_adapter(&self, name: &str, folder: &Path) -> Result<()> {
        let taken = || TuneError::Setting {
            field: "adapter",
            reason: format!("there is one called {name:?} already"),
        };
        if self.loaded.own.as_ref().is_some_and(|(own, _)| own == name) {
            return Err(taken());
        }
        let (overlay, _) = Overlay::read(folder, &self.loaded.base)?;
        let mut others = self.others();
        if others.contains_key(name) {
            return Err(taken());
        }
        others.insert(name.to_owned(), Arc::new(overlay));
        Ok(())
    }

    /// Takes an adapter away again; answers under way with it are finished.
    ///
    /// # Errors
    /// When there is none of this name, or the model was loaded with it.
    pub fn remove_adapter(&self, name: &str) -> Result<()> {
        if self.loaded.own.as_ref().is_some_and(|(own, _)| own == name) {
            return Err(TuneError::Setting {
                field: "adapter",
                reason: format!("the model was loaded with {name:?}, which stays"),
            });
        }
        match self.others().remove(name) {
            Some(_) => Ok(()),
            None => Err(unknown(name)),
        }
    }

    /// The names of its adapters, the one it was loaded with first.
    #[must_use]
    pub fn adapters(&self) -> Vec<String> {
        let own = self.loaded.own.iter().map(|(name, _)| name.clone());
        let others = &self.loaded.others;
        let others = others.read().unwrap_or_else(PoisonError::into_inner);
        own.chain(others.keys().cloned()).collect()
    }

    fn others(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<String, Arc<Overlay>>> {
        let others = &self.loaded.others;
        others.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a thread that generates with this model. It goes on when the model is dropped, and sees the adapters that are
    /// added later.
    ///
    /// # Errors
    /// When a setting is out of its range, or there is no thread to be had.
    pub fn engine(&self, settings: EngineSettings) -> Result<Engine> {
        Engine::start(Arc::clone(&self.loaded), settings)
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
        let asks = prompts
            .iter()
            .map(|messages| Ask::chat(messages.clone(), decoding.clone()));
        self.answer_all(asks.collect())
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
        let asks = prompts
            .iter()
            .map(|prompt| Ask::tokens(prompt.clone(), decoding.clone()));
        self.answer_all(asks.collect())
    }

    /// Answers questions of which each may have its own adapter and decoding, in their order. What their prompts begin with
    /// alike is computed once, also from one call to the next.
    ///
    /// # Errors
    /// As [`TunedModel::generate`], and when no adapter has a name that is asked for.
    pub fn answer_all(&self, asks: Vec<Ask>) -> Result<Generations> {
        let begun = Instant::now();
        let rows = asks
            .into_iter()
            .map(|ask| ask.row(&self.loaded))
            .collect::<Result<Vec<_>>>()?;
        let outputs = self.run(rows)?;
        let tokens: usize = outputs.iter().map(|one| one.token_ids.len()).sum();
        let seconds = begun.elapsed().as_secs_f64();
        Ok(Generations {
            outputs,
            tokens_per_second: tokens as f64 / seconds.max(1e-9),
        })
    }

    fn run(&self, rows: Vec<Row>) -> Result<Vec<Generation>> {
        let mut scheduler = self.scheduler.lock().unwrap_or_else(|poisoned| {
            // What a panic has left may be half done.
            self.scheduler.clear_poison();
            let mut scheduler = poisoned.into_inner();
            *scheduler = None;
            scheduler
        });
        let scheduler = match &mut *scheduler {
            Some(scheduler) => scheduler,
            none => none.insert(Scheduler::new(
                Arc::clone(&self.loaded),
                self.own_settings(),
            )?),
        };
        // What an error may have left.
        scheduler.clear();
        let mut outputs: Vec<Option<Generation>> = vec![None; rows.len()];
        let mut first = None;
        for mut row in rows {
            scheduler.check(&mut row)?;
            let id = scheduler.add(row);
            first.get_or_insert(id);
        }
        let first = first.unwrap_or(0);
        let mut pieces = Vec::new();
        while !scheduler.is_idle() {
            scheduler.step(&mut pieces)?;
            for (id, piece) in pieces.drain(..) {
                match piece {
                    engine::Piece::Text(_) => {}
                    engine::Piece::Done(generation) => {
                        outputs[(id - first) as usize] = Some(generation);
                    }
                    engine::Piece::Failed(error) => return Err(error),
                }
            }
        }
        let missing = || TuneError::Generation {
            reason: "a row came to no end".into(),
        };
        let outputs = outputs.into_iter().map(|one| one.ok_or_else(missing));
        outputs.collect()
    }

    /// How many tokens a prompt has.
    ///
    /// # Errors
    /// When the chat cannot be rendered.
    pub fn prompt_tokens(&self, messages: &[Message]) -> Result<usize> {
        Ok(self.loaded.chat.prompt(messages)?.len())
    }

    /// Whether the template begins the answer to these turns inside of a thought.
    #[cfg(feature = "serve")]
    pub(crate) fn opens_thought(&self, messages: &[Message]) -> Result<bool> {
        self.loaded.chat.opens_thought(messages)
    }

    /// The name of the adapter it was loaded with.
    #[cfg(feature = "serve")]
    pub(crate) fn own_adapter(&self) -> Option<&str> {
        self.loaded.own.as_ref().map(|(name, _)| name.as_str())
    }

    /// The tokens of a text that a person wrote; never a special one, whatever it says.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn tokenize(&self, text: &str) -> Result<Vec<u32>> {
        self.loaded.chat.vocabulary.encode(text)
    }

    /// The logits after each token of each row, `[t][v]`, for comparison with another implementation.
    ///
    /// # Errors
    /// When a token is unknown to the model or a row is longer than its context.
    pub fn logits(&self, rows: &[Vec<u32>]) -> Result<Vec<Vec<Vec<f32>>>> {
        let base = &self.loaded.base;
        let config = &base.config;
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
        let own = self.loaded.own.as_ref();
        let overlay = own.map(|(_, overlay)| &**overlay);
        let mut inference = Inference::default();
        rows.iter()
            .map(|row| {
                let pages: Vec<u32> = (0..row.len().div_ceil(PAGE) as u32).collect();
                let mut cache = KeyValues::new(base, pages.len());
                let piece = Piece {
                    tokens: row,
                    past: 0,
                    pages: &pages,
                    overlay,
                    wants: Wants::All,
                };
                let logits = inference.forward(base, &mut cache, &[piece])?;
                let logits = logits.chunks(config.vocab_size).map(<[f32]>::to_vec);
                Ok(logits.collect())
            })
            .collect()
    }

    fn ask(&self, request: &ChatRequest) -> Ask {
        let messages = request.messages.iter().map(|message| {
            let role = match message.role {
                Role::System => "system",
                Role::User => "user",
                Role::Assistant => "assistant",
            };
            Message::new(role, message.content.as_str())
        });
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
        Ask {
            schema: request.schema.as_ref().map(|one| one.schema.clone()),
            ..Ask::chat(messages.collect(), decoding)
        }
    }

    fn own_settings(&self) -> EngineSettings {
        let usual = || EngineSettings::default().fitted();
        self.settings.clone().unwrap_or_else(usual)
    }

    fn own_engine(&self) -> Result<Engine> {
        let mut engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(engine) = engine.as_ref().filter(|engine| !engine.has_ended()) {
            return Ok(engine.clone());
        }
        Ok(engine.insert(self.engine(self.own_settings())?).clone())
    }

    fn response(&self, generation: &Generation) -> Result<ChatResponse> {
        let (thought, answer) = because_llm::split_thinking(&generation.text);
        let reasoning_tokens = match thought {
            Some(thought) => self.tokenize(thought)?.len() as u64,
            None => 0,
        };
        let finish = match generation.finish {
            Finish::Stop => "stop",
            Finish::Length => "length",
        };
        Ok(ChatResponse {
            answer: answer.to_owned(),
            reasoning: thought.map(str::to_owned),
            finish_reason: Some(finish.to_owned()),
            model: Some(self.id.model.clone()),
            usage: Usage {
                prompt_tokens: generation.prompt_tokens as u64,
                completion_tokens: generation.token_ids.len() as u64,
                cached_tokens: generation.cached_tokens as u64,
                reasoning_tokens,
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
            let answering = self
                .own_engine()
                .and_then(|engine| engine.submit(self.ask(request)))
                .map_err(|error| chat_error(&error))?;
            let generation = answering.done().await.map_err(|error| chat_error(&error))?;
            self.response(&generation)
                .map_err(|error| chat_error(&error))
        })
    }

    fn id(&self) -> ModelId {
        self.id.clone()
    }
}

fn chat_error(error: &TuneError) -> ChatError {
    let message = error.to_string();
    match error {
        TuneError::ContextTooLong { .. } => ChatError::ContextTooLong { message },
        TuneError::Busy { .. } => ChatError::Overloaded {
            message,
            retry_after: None,
            rate_limits: None,
        },
        // The next ask starts another engine.
        TuneError::Ended => ChatError::Transient { message },
        _ => ChatError::Permanent {
            status: None,
            message,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(folder: &Path) -> TunedModel {
        crate::tiny::TinyBase::new()
            .steps(1)
            .vocab_size(300)
            .build(
                vec!["why this and why not that".to_owned(); 4],
                folder,
                &mut |_| {},
            )
            .unwrap();
        TunedModel::load(folder, None).unwrap()
    }

    #[test]
    fn an_id_tells_apart_all_that_answers_depend_on() {
        let folder = tempfile::tempdir().unwrap();
        let plain = base(folder.path()).id();
        let load = || TunedModel::load(folder.path(), None).unwrap();
        assert_eq!(load().id(), plain);
        assert!(plain.endpoint.starts_with("local:"));
        let mut all = vec![plain];
        let usual = Decoding::default;
        for decoding in [
            Decoding {
                temperature: 0.5,
                ..usual()
            },
            Decoding {
                repetition_penalty: 1.5,
                ..usual()
            },
            Decoding {
                top_k: 4,
                ..usual()
            },
            Decoding {
                stop: vec!["END".into()],
                ..usual()
            },
            Decoding::greedy(7),
        ] {
            let model = load().decoding(decoding);
            assert!(!all.contains(&model.id()), "{:?}", model.decoding);
            all.push(model.id());
            assert_eq!(model.decoding(usual()).id(), all[0]);
        }
        let write = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).unwrap();
        };
        write("generation_config.json", r#"{"eos_token_id": [7]}"#);
        assert!(!all.contains(&load().id()), "a token that ends answers");
        all.push(load().id());
        write(
            "chat_template.jinja",
            "{% for one in messages %}{{ one['content'] }}{% endfor %}",
        );
        assert!(!all.contains(&load().id()), "the template");
        all.push(load().id());
        let path = folder.path().join("tokenizer.json");
        let mut rules: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let merges = rules["model"]["merges"].as_array_mut().unwrap();
        merges.pop().unwrap();
        std::fs::write(&path, rules.to_string()).unwrap();
        assert!(!all.contains(&load().id()), "the tokenizer");
    }

    #[test]
    fn an_engine_that_ended_may_be_asked_again() {
        assert!(chat_error(&TuneError::Ended).is_retryable());
        let reason = "no token".to_owned();
        assert!(!chat_error(&TuneError::Generation { reason }).is_retryable());
    }

    #[test]
    fn the_adapter_of_the_model_is_not_taken_away() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/parity");
        let adapter = folder.join("adapter");
        let model = base(tempfile::tempdir().unwrap().path());
        let error = model.remove_adapter("adapter").unwrap_err().to_string();
        assert_eq!(error, "adapter: no adapter is called \"adapter\"");
        let opened = crate::base::BaseFolder::open(&folder.join("base"))
            .unwrap()
            .model()
            .unwrap();
        let (overlay, _) = Overlay::read(&adapter, &opened).unwrap();
        let own = Some(("adapter".to_owned(), Arc::new(overlay)));
        let chat = crate::tiny::tests::chat();
        let model = TunedModel {
            loaded: Arc::new(Loaded::new(opened, chat, own)),
            ..model
        };
        let error = model.remove_adapter("adapter").unwrap_err().to_string();
        assert_eq!(
            error,
            "adapter: the model was loaded with \"adapter\", which stays"
        );
        assert_eq!(model.adapters(), ["adapter"]);
    }
}
