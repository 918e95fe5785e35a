//! Lets a program talk to any chat model: cached, limited, resumable, replayable.
//!
//! Everything is a [`ChatModel`], one async method; what a run needs beside the bare call is added by wrapping.
//!
//! ```
//! use because_llm::{ChatModel, ChatRequest, Message, ModelSpec, ModelStack, Store};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! let spec: ModelSpec = "offline".parse()?; // or "openai:gpt-4o-mini", "replay:exchanges.jsonl"
//! let store = Store::open(folder.path().join("llm.sqlite"))?;
//! let model = ModelStack::new(spec.open()?).store(store.clone()).concurrency(8).build()?;
//!
//! let request = ChatRequest::new(vec![Message::user("Say something about sand.")]);
//! let first = model.chat(&request).await?;
//! assert_eq!(model.chat(&request).await?, first, "asked again, it comes from the store");
//! assert_eq!(store.totals()?.attempts["ok"], 1, "and only one call went out");
//! # Ok(())
//! # }
//! ```
//!
//! # The wrappers
//!
//! [`ModelStack`] puts them in this order, from the outside; each can be used alone.
//!
//! | wrapper | adds | why there |
//! |---|---|---|
//! | [`Recording`] | a file that [`Replay`] answers from | records what the caller got |
//! | [`Cached`] | no request is paid for twice, also at the same time | keeps only what fits |
//! | [`Validated`] | answers in the shape asked for, repaired if need be | a repair is another request |
//! | [`Retrying`] | the same call again when it may pass | holds no place while it waits |
//! | [`Limited`] | so many calls at once | every repetition queues anew |
//! | [`Audited`] | a row for every call that goes out | the next thing below is the model |
//!
//! In reading order: [`ChatModel`], [`ChatRequest`], [`ChatResponse`], [`ChatError`]; [`PromptTemplate`] and [`fence`]; the
//! wrappers; [`Store`]; the models: [`Offline`], `OpenAi` with the feature `openai`, [`Replay`]; [`ModelSpec`]; [`drive`] for
//! many calls and [`Stop`].
//!
//! # What it does not do
//!
//! It knows nothing of users and items. It does not stream, call tools, or take pictures. It names no async runtime; only
//! `OpenAi` needs Tokio's, for its HTTP client. It counts tokens as servers report them and knows no prices.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may"))]

mod audited;
mod cached;
mod chat;
mod drive;
mod ending;
mod error;
mod instructions;
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
mod timer;
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
