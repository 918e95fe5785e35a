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
//! let model = ModelStack::new(spec.open()?).store(store.clone()).concurrency(64).build()?;
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
//! | [`SingleFlight`] | one call for all who ask the same at the same time | what comes later is for the next below |
//! | [`Cached`] | no request is paid for twice | keeps only what fits |
//! | [`Validated`] | answers in the shape asked for, repaired if need be | a repair is another request |
//! | [`Retrying`] | the same call again when it may pass, or beside one that is silent | holds no place while it waits |
//! | [`Adaptive`] | as many calls at once as the server bears | every repetition queues anew |
//! | [`Budgeted`] | no call that the [`Budget`] cannot pay | a repetition is a payment too |
//! | [`Paced`] | so many requests and tokens a minute | no more are let in than the rate needs |
//! | [`Metered`] | figures, and a span of `tracing` for every call | its latencies are the server's, without queues |
//! | [`Audited`] | a row for every call that goes out | the next thing below is the model |
//!
//! In reading order: [`ChatModel`], [`ChatRequest`], [`ChatResponse`], [`ChatError`]; [`PromptTemplate`] and [`fence`]; the
//! wrappers; [`Store`] with [`StoreStats`], [`RowFilter`] and [`Prune`]; [`Budget`], [`PriceTable`] and [`TokenCounter`]; the
//! models: [`Offline`], `OpenAi` and `OpenAiBatch` with the feature `openai`, [`Replay`]; [`ModelSpec`]; [`drive`] for many
//! calls and [`Stop`].
//!
//! # What it does not do
//!
//! It knows nothing of users and items. It does not stream, call tools, or take pictures. It names no async runtime; only
//! `OpenAi` needs Tokio's, for its HTTP client. It knows no prices but those of your [`PriceTable`].

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may"))]

mod adaptive;
mod alarm;
mod audited;
mod budget;
mod cached;
mod chat;
mod deadline;
mod departure;
mod dialect;
mod drive;
mod ending;
mod error;
mod instructions;
mod key;
mod metered;
mod offline;
#[cfg(feature = "openai")]
mod openai;
mod paced;
mod prices;
mod prompt;
mod rate_limits;
mod recording;
mod replay;
mod retrying;
mod single_flight;
mod spec;
mod stack;
mod store;
mod text;
mod tokens;
mod validated;

pub use adaptive::{Adaptive, Concurrency};
pub use audited::Audited;
pub use budget::{Budget, Budgeted, Spent};
pub use cached::Cached;
#[doc(hidden)]
pub use chat::Handed;
pub use chat::{
    BoxFuture, ChatModel, ChatRequest, ChatResponse, JsonSchema, Message, ModelId, Role, Sampling,
    Usage,
};
pub use deadline::{Deadline, DeadlineError};
pub use dialect::{Dialect, Server, StructuredOutput, TokenLimit};
pub use drive::{Halted, Stop, drive};
pub use error::{ChatError, Result};
pub use key::RequestKey;
pub use metered::{Figures, Metered, Metrics};
pub use offline::Offline;
#[cfg(feature = "openai")]
pub use openai::{OpenAi, OpenAiBatch, OpenAiBatchBuilder, OpenAiBuilder};
pub use paced::Paced;
pub use prices::{Price, PriceError, PriceTable};
pub use prompt::{PromptError, PromptTemplate, fence};
pub use rate_limits::{Allowance, RateLimits};
pub use recording::Recording;
pub use replay::Replay;
pub use retrying::Retrying;
pub use single_flight::SingleFlight;
pub use spec::{ModelSpec, ModelSpecError};
pub use stack::{ModelStack, Stacked};
pub use store::{
    Attempt, CallStats, KeptAnswer, ModelStats, ModelTotals, Paid, PaidCall, Prune, Pruned,
    Quantiles, RowFilter, Store, StoreStats, StoreTotals,
};
pub use text::split_thinking;
#[cfg(feature = "tokenizer-json")]
pub use tokens::TokenizerError;
pub use tokens::{Calibration, Learnt, TokenCounter};
pub use validated::Validated;
