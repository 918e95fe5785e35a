//! Generation for many at once: rows that share the work of reading the weights, pages of keys and values that rows share
//! where they begin alike, and a thread that runs it all.

mod answering;
mod pages;
mod prefix;
mod row;
mod scheduler;
mod settings;
#[cfg(test)]
mod tests;
mod text;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};

use because_core::Message;
use serde_json::Value;

use self::answering::Answer;
pub use self::answering::{Answering, Piece};
pub(crate) use self::row::{Constraint, Row};
pub(crate) use self::scheduler::Scheduler;
pub use self::settings::EngineSettings;
use crate::decoding::Decoding;
use crate::error::{Result, TuneError};
use crate::tuned::Loaded;

/// A thread that generates: whoever asks while it works joins the batch that is under way.
///
/// It is a handle: clones ask the same thread, which ends when the last of them is dropped and what was asked is answered.
#[derive(Debug, Clone)]
pub struct Engine {
    model: Arc<Loaded>,
    inbox: Sender<Submission>,
    /// Asks that are not answered yet.
    under_way: Arc<AtomicUsize>,
    most: usize,
    context: usize,
    /// The thread holds the other end while it lives.
    life: Weak<()>,
}

/// A row and where its answer goes.
type Submission = (Row, Answer);

/// A question to an [`Engine`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Ask {
    /// What to answer.
    pub prompt: Prompt,
    /// How.
    pub decoding: Decoding,
    /// The adapter by its name; `None` for the one the model was loaded with, if there is one.
    pub adapter: Option<String>,
    /// A JSON schema: the answer is a JSON document that fits it, whatever the model would say.
    pub schema: Option<Value>,
}

/// What an [`Ask`] continues.
#[derive(Debug, Clone)]
pub enum Prompt {
    /// A chat, which the model's template turns into tokens.
    Chat(Vec<Message>),
    /// Tokens.
    Tokens(Vec<u32>),
}

impl Ask {
    /// Asks for the next turn of a chat.
    #[must_use]
    pub fn chat(messages: Vec<Message>, decoding: Decoding) -> Self {
        Self::new(Prompt::Chat(messages), decoding)
    }

    /// Asks for what follows these tokens.
    #[must_use]
    pub fn tokens(ids: Vec<u32>, decoding: Decoding) -> Self {
        Self::new(Prompt::Tokens(ids), decoding)
    }

    fn new(prompt: Prompt, decoding: Decoding) -> Self {
        Self {
            prompt,
            decoding,
            adapter: None,
            schema: None,
        }
    }

    /// Answers with this adapter.
    #[must_use]
    pub fn adapter(self, name: impl Into<String>) -> Self {
        Self {
            adapter: Some(name.into()),
            ..self
        }
    }

    /// Answers with a JSON document that fits this schema.
    #[must_use]
    pub fn schema(self, schema: Value) -> Self {
        Self {
            schema: Some(schema),
            ..self
        }
    }

    pub(crate) fn row(self, model: &Loaded) -> Result<Row> {
        let prompt = match self.prompt {
            Prompt::Chat(messages) => model.chat.prompt(&messages)?,
            Prompt::Tokens(ids) => ids,
        };
        let overlay = model.overlay(self.adapter.as_deref())?;
        let grammar = self
            .schema
            .map(|schema| model.grammar(&schema))
            .transpose()?;
        let constraint = grammar.map(|grammar| Box::new(grammar) as Box<dyn Constraint>);
        Row::new(prompt, self.decoding, overlay, constraint)
    }
}

impl Engine {
    pub(crate) fn start(model: Arc<Loaded>, settings: EngineSettings) -> Result<Self> {
        let most = settings.max_rows.saturating_add(settings.queue);
        let scheduler = Scheduler::new(Arc::clone(&model), settings)?;
        let context = scheduler.context();
        let (inbox, submissions) = channel();
        let alive = Arc::new(());
        let life = Arc::downgrade(&alive);
        let work = move || {
            // Let go of after the inbox.
            let _alive = alive;
            let submissions = submissions;
            run(scheduler, &submissions);
        };
        std::thread::Builder::new()
            .name("because-engine".into())
            .spawn(work)
            .map_err(|error| TuneError::Generation {
                reason: format!("no thread for it: {error}"),
            })?;
        Ok(Self {
            model,
            inbox,
            under_way: Arc::default(),
            most,
            context,
            life,
        })
    }

    /// Asks, and returns as soon as the prompt is turned into tokens.
    ///
    /// # Errors
    /// [`TuneError::Busy`] when the queue is full, [`TuneError::Ended`] when the engine has ended, [`TuneError::ContextTooLong`] when there is no room for an answer, and when
    /// the chat cannot be rendered, a setting is out of its range, no adapter has this name or the schema cannot be followed.
    pub fn submit(&self, ask: Ask) -> Result<Answering> {
        self.submit_row(ask.row(&self.model)?)
    }

    fn submit_row(&self, mut row: Row) -> Result<Answering> {
        row.check(&self.model.base.config, self.context)?;
        let reserved =
            self.under_way
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, |waiting| {
                    (waiting < self.most).then_some(waiting + 1)
                });
        if let Err(waiting) = reserved {
            return Err(TuneError::Busy { waiting });
        }
        let (answer, answering) = Answer::new(Arc::clone(&self.under_way));
        match self.inbox.send((row, answer)) {
            Ok(()) => Ok(answering),
            Err(_) => Err(TuneError::Ended),
        }
    }

    /// Whether its thread is no more, which a fault of this program alone can bring about: then every ask fails.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.life.strong_count() == 0
    }

    /// Asks that run or wait.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Acquire)
    }

    /// Tokens a prompt and its answer can have together.
    #[must_use]
    pub fn context(&self) -> usize {
        self.context
    }
}

fn run(mut scheduler: Scheduler, submissions: &Receiver<Submission>) {
    let mut answers: HashMap<u64, Answer> = HashMap::new();
    let mut pieces = Vec::new();
    loop {
        if scheduler.is_idle() {
            let Ok((row, answer)) = submissions.recv() else {
                return;
            };
            answers.insert(scheduler.add(row), answer);
        }
        while let Ok((row, answer)) = submissions.try_recv() {
            answers.insert(scheduler.add(row), answer);
        }
        answers.retain(|&id, answer| {
            let cancelled = answer.is_cancelled();
            if cancelled {
                scheduler.cancel(id);
            }
            !cancelled
        });
        if let Err(error) = scheduler.step(&mut pieces) {
            scheduler.clear();
            let reason = error.to_string();
            for (_, mut answer) in answers.drain() {
                let reason = reason.clone();
                answer.put(Piece::Failed(TuneError::Generation { reason }));
            }
        }
        for (id, piece) in pieces.drain(..) {
            if let Piece::Text(_) = piece {
                if let Some(answer) = answers.get_mut(&id) {
                    answer.put(piece);
                }
            } else if let Some(mut answer) = answers.remove(&id) {
                answer.put(piece);
            }
        }
        answers.values().for_each(Answer::wake);
    }
}
