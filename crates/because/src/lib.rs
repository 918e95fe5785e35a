//! Why is this recommended to me? `because` answers from the interactions a recommender already has.
//!
//! It turns interactions into readable profiles of users and items ([`propagate`], text message passing over the interaction
//! graph), lets a reasoning model find each chosen item among look-alikes and say why ([`contrast`]), tunes a small local
//! model on the answers (`tune`, with the feature of that name) and measures the result beside controls ([`eval`]). The
//! method is that of *Hierarchical Interaction Summarization and Contrastive Prompting for Explainable Recommendations*
//! (arXiv 2507.06044); what that paper leaves open is decided here and recorded in every artefact.
//!
//! # The whole path
//!
//! ```no_run
//! use because::Pipeline;
//! use because::core::Project;
//! use because::graph::{Format, Import};
//!
//! # #[cfg(feature = "tune")]
//! # async fn tour() -> Result<(), because::Error> {
//! Import::new(Format::Jsonl, ["ratings.jsonl.gz", "movies.jsonl"]).run(&Project::new("demo"))?;
//! let stages = Pipeline::open("demo")?.run().await?;
//! println!("{} stages; see demo/report.html", stages.len());
//! # Ok(()) }
//! ```
//!
//! # One stage
//!
//! Each stage takes plain values and gives plain values, so a program with its own storage calls it directly:
//!
//! ```
//! use because::core::{Interaction, Node};
//! use because::graph::{BipartiteGraph, Reviews};
//! use because::llm::Offline;
//! use because::propagate::{InitialProfiles, MessagePassing};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), because::Error> {
//! let mut seen = Interaction::new("ann", "dune");
//! seen.review = Some("Slow politics under the sand, and I loved every page.".into());
//! let seen = [seen];
//! let graph = BipartiteGraph::new(&seen)?;
//! let reviews = Reviews::of(&graph, &seen);
//!
//! let model = Offline::new(); // or any other `ChatModel`
//! let initial = InitialProfiles::new(&model).run(&graph, &reviews, &[], &[]).await?.profiles;
//! let layers = MessagePassing::new(&model).layers(1).run(&graph, initial).await?;
//! println!("{:?}", layers[0].profiles.summary(&Node::User("ann".into())));
//! # Ok(()) }
//! ```
//!
//! # Where things are
//!
//! [`Pipeline`] runs the stages over a project directory and resumes them, [`Settings`] is its `because.toml`, [`Event`] what it
//! tells. [`core`] has the words and files, [`graph`] reads and splits raw data, [`llm`] talks to models, [`propagate`],
//! [`contrast`], `tune` and [`eval`] are the stages.
//!
//! # Features
//!
//! | feature | adds | price |
//! |---|---|---|
//! | `openai` (default) | any OpenAI-compatible endpoint | about 115 packages |
//! | `tune` | training and generation on Candle | about 120 packages |
//! | `hub` | bases by hub id are downloaded (implies `tune`) | none beside `openai`, about 60 without |
//!
//! # What it does not do
//!
//! It recommends nothing: the pairs to explain are yours.

mod error;
mod journal;
mod pipeline;
mod settings;

pub use because_contrast as contrast;
pub use because_core as core;
pub use because_eval as eval;
pub use because_graph as graph;
pub use because_llm as llm;
pub use because_propagate as propagate;
#[cfg(feature = "tune")]
pub use because_tune as tune;

pub use error::{Error, Fault, Result};
pub use pipeline::{
    Amounts, Event, Interval, Pairs, Pipeline, Plan, PlanOptions, Reached, StagePlan, StageReport,
    StageStatus, Stopped, Taken,
};
#[cfg(feature = "tune")]
pub use pipeline::{Explained, ExplainedSplit, base_of, training_event};
pub use settings::{
    BudgetFor, ContrastSettings, EvaluateSettings, ImportSettings, LlmSettings, ProfileSettings,
    Settings, TrainSettings,
};
