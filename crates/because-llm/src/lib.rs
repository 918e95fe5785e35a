//! Lets a program talk to any chat model: cached, limited, resumable, replayable.
//!
//! Everything is a [`ChatModel`], one async method; what a run needs beside the bare call is added by wrapping.

mod audited;
mod cached;
mod chat;
mod drive;
mod ending;
mod error;
mod limited;
mod offline;
#[cfg(feature = "openai")]
mod openai;
mod prompt;
mod recording;
mod replay;
mod retrying;
mod spec;
mod stack;
mod store;
mod text;
mod validated;

pub use audited::Audited;
pub use cached::Cached;
pub use chat::{
    BoxFuture, ChatModel, ChatRequest, ChatResponse, JsonSchema, Message, ModelId, RequestKey,
    Role, Sampling, Usage,
};
pub use drive::{Halted, Stop, drive};
pub use error::{ChatError, Result};
pub use limited::Limited;
pub use offline::Offline;
#[cfg(feature = "openai")]
pub use openai::{OpenAi, OpenAiBuilder, StructuredOutput};
pub use prompt::{PromptError, PromptTemplate, fence};
pub use recording::Recording;
pub use replay::Replay;
pub use retrying::Retrying;
pub use spec::{ModelSpec, ModelSpecError};
pub use stack::ModelStack;
pub use store::{ModelTotals, Store, StoreTotals};
pub use validated::Validated;
