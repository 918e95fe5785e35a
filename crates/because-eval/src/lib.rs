#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may"))]
//! Measures explanations and writes one report.
mod bootstrap;
mod contrast;
mod controls;
mod error;
mod random;
mod text;
#[cfg(test)]
mod vectors;

pub use bootstrap::{Interval, Intervals};
pub use contrast::ContrastSummary;
pub use controls::{Control, Controls};
pub use error::{Error, Result};
pub use text::{
    Bleu, BleuByTokenizer, Distinct, MeanTokens, Rouge, RougeScore, TextMetrics, TextStats,
};
