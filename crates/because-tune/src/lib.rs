//! wip
#![allow(dead_code, unused)]
mod config;
mod error;
mod lora;
mod model;
mod ops;
mod optim;
mod params;
mod weights;
pub use config::QwenConfig;
pub use error::TuneError;
pub use lora::LoraConfig;
