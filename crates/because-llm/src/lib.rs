//! Lets a program talk to any chat model: cached, limited, resumable, replayable.
//!
//! Everything is a [`ChatModel`], one async method; what a run needs beside the bare call is added by wrapping.

mod chat;
mod drive;
mod error;
mod offline;
mod prompt;

pub use chat::{
    BoxFuture, ChatModel, ChatRequest, ChatResponse, JsonSchema, Message, ModelId, RequestKey,
    Role, Sampling, Usage,
};
pub use drive::{Halted, Stop, drive};
pub use error::{ChatError, Result};
pub use offline::Offline;
pub use prompt::{PromptError, PromptTemplate, fence};
