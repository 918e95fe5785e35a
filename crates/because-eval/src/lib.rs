#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may"))]
//! Measures explanations and writes one report.
//!
//! Figures come with what they must be read against: the settings they were computed under, an interval, and the same
//! figure for predictions that know nothing of the user or the item. Texts about recommendations share so much phrasing
//! that a figure alone says little.
//!
//! ```
//! use because_core::{Prediction, Profiles};
//! use because_eval::{Controls, Report, TextStats};
//!
//! let pair = |prediction: &str, reference: &str| Prediction {
//!     user: None,
//!     item: None,
//!     prediction: prediction.into(),
//!     reference: reference.into(),
//! };
//! let pairs = [
//!     pair("You pick long novels, and this saga is long.", "This saga is as long as the novels you pick."),
//!     pair("You pick quiet bars, and this one has no music.", "There is no music here, and you like quiet bars."),
//! ];
//!
//! let stats = TextStats::of(&pairs);
//! let controls = Controls::of(&pairs, &Profiles::default(), 7);
//! let shuffled = controls.shuffled.metrics.as_ref().expect("two pairs can change places");
//! assert!(stats.metrics().rouge.rouge_l.fmeasure > shuffled.rouge.rouge_l.fmeasure);
//!
//! let page = Report::new("Two explanations").text(&stats, controls, 7).sample(&pairs[0]).to_html()?;
//! assert!(page.contains("ROUGE-L"));
//! # Ok::<(), because_eval::Error>(())
//! ```
//!
//! In reading order: [`TextMetrics`] and the [`TextStats`] it comes from, [`Intervals`], [`Controls`],
//! [`ContrastSummary`], [`Report`].
//!
//! BLEU and chrF are those of sacrebleu 2.5.1, ROUGE is that of rouge-score 0.1.2, tested against values that those
//! packages computed. What it does not do: it asks no model to judge, reads no graph, and ranks nothing.

mod bootstrap;
mod contrast;
mod controls;
mod error;
mod evidence;
mod random;
mod report;
mod text;
#[cfg(test)]
mod vectors;

pub use bootstrap::{Interval, Intervals};
pub use contrast::ContrastSummary;
pub use controls::{Control, Controls};
pub use error::{Error, Result};
pub use evidence::{Evidence, evidence};
pub use report::{LossPoint, ProfileLayer, Report, Sample, Settings, TextSection, TrainingSummary};
pub use text::{
    Bleu, BleuByTokenizer, Distinct, MeanTokens, Rouge, RougeScore, TextMetrics, TextStats,
};
