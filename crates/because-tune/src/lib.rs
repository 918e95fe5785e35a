//! Qwen2.5 on Candle: LoRA training and generation; a tuned model is itself a chat model.
//!
//! ```no_run
//! use because_core::Message;
//! use because_tune::{Decoding, TrainConfig, TrainSet, Trainer, TunedModel};
//! use std::path::Path;
//!
//! let (base, adapter) = (Path::new("Qwen2.5-0.5B-Instruct"), Path::new("adapter"));
//! let data = TrainSet::read(Path::new("sft.train.jsonl"))?;
//! Trainer::new(TrainConfig::default()).run(base, &data, adapter, &mut |_| {})?;
//!
//! let model = TunedModel::load(base, Some(adapter))?;
//! let answer = model.generate(&[Message::new("user", "Why this cafe?")], &Decoding::greedy(64))?;
//! println!("{}", answer.text);
//! # Ok::<(), because_tune::TuneError>(())
//! ```
//!
//! In reading order: [`QwenConfig`], [`LoraConfig`] with its [`Modules`], [`TrainConfig`], [`TrainSet`], [`Trainer`] with its
//! [`TrainPlan`], [`TrainEvent`]s and [`TrainSummary`]; [`TinyBase`], which makes a base where there is none; [`Hub`], which gets
//! one by its name; [`TunedModel`] and [`Decoding`]; [`Merge`], for programs that know no adapters.
//!
//! A base to generate with may also be a GGUF file of llama.cpp, quantised or not.
//!
//! Arithmetic is f32 on the CPU. Weights stay where they lie in their mapped files, in f32, bf16 or f16, and are widened tile
//! by tile as they are used. Sequences of a batch lie one after the other without padding, what all of them begin with is
//! computed once, and only supervised positions meet the output projection. What a person wrote never becomes a special
//! token: those come from the chat template alone.
//!
//! What it does not do: it trains no quantised model and sees no graph.
//!
//! # Features
//!
//! | feature | adds | price |
//! |---|---|---|
//! | `hub` | bases by hub id are downloaded if the cache lacks them | no package beside `openai` of `because-llm`, about 60 alone |
//! | `serve` | `Server`: a model behind an OpenAI-compatible endpoint | no package beside `hub`, about 25 alone |
//!
//! Without `hub` nothing here touches the network, and a hub id is looked for in the cache alone. With it the network is
//! touched when a base is named that is no folder, is written as `owner/name` or `owner/name@revision`, and is not whole in
//! the cache; see [`Hub`].

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may"))]

mod adapter;
mod backprop;
mod base;
mod batches;
mod chat;
mod chat_tokens;
mod checkpoint;
mod config;
mod data;
mod decoding;
mod engine;
mod error;
mod evaluation;
mod full;
mod gguf;
mod grammar;
mod hub;
mod infer;
mod learner;
mod lora;
mod memory;
mod merge;
mod model;
mod ops;
mod optim;
mod overlay;
mod params;
#[cfg(test)]
mod parity;
mod prepare;
#[cfg(feature = "serve")]
mod serve;
mod session;
mod template;
mod tiny;
mod tokens;
mod train_config;
mod train_log;
mod train_plan;
mod trainer;
mod training;
mod tuned;
mod weights;

pub use chat_tokens::ChatTokens;
pub use config::QwenConfig;
pub use data::{TokenRow, TrainSet};
pub use decoding::Decoding;
pub use engine::{Answering, Ask, Engine, EngineSettings, Piece, Prompt};
pub use error::TuneError;
pub use evaluation::Evaluation;
#[doc(hidden)]
pub use grammar::{MaskCost, Masks};
pub use hub::{Hub, HubFault};
pub use lora::{LoraConfig, Modules};
pub use memory::{Checkpointing, Memory};
pub use merge::{Merge, MergeEvent, MergeSummary, WeightType};
#[doc(hidden)]
pub use ops::BenchWeight;
pub use prepare::Skipped;
#[cfg(feature = "serve")]
pub use serve::{ApiKey, ServeSettings, Served, Server, limit_threads};
pub use session::StepRecord;
pub use tiny::{TinyBase, TinySummary};
pub use train_config::TrainConfig;
pub use train_log::{TrainEvent, TrainSummary};
pub use train_plan::TrainPlan;
pub use trainer::Trainer;
pub use tuned::{Finish, Generation, Generations, TunedModel};
