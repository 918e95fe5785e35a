//! CPEG, contrastive prompting (arXiv 2507.06044): a model sees a user's profile and, in shuffled order, the item they chose
//! among hard and random negatives; it must find the right one and say why. A wrong pick is fed back and it tries again.
//! The explanations of the pairs it found are the ground truth that a small model is tuned on.
//!
//! The paper gives the task and the numbers (k = 2 hard, m = 5 random) but no prompt, no way of choosing negatives and no
//! limit of tries. What is here is a protocol of our own, and the files of the run record all of it.
//!
//! ```
//! use because_contrast::{Contrast, Explainer};
//! use because_core::{Interaction, ProfileRecord, Profiles, Profile, Side};
//! use because_graph::{BipartiteGraph, ItemCosine};
//! use because_llm::Offline;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let graph = BipartiteGraph::new(
//!     [("ann", "dune"), ("bob", "emma"), ("bob", "heat")].map(|(user, item)| Interaction::new(user, item)).to_vec(),
//! )?;
//! let profile = |kind, id: &str, summary: &str| ProfileRecord {
//!     kind, id: id.into(), layer: 0, profile: Profile { summary: summary.into(), reasoning: None },
//!     neighbors: vec![], model: "data".into(), prompt: String::new(),
//! };
//! let profiles = Profiles::from_records(0, [
//!     profile(Side::User, "ann", "Enjoys slow politics among desert clans."),
//!     profile(Side::Item, "dune", "Desert clans, prophecy and slow politics."),
//!     profile(Side::Item, "emma", "A village matchmaker learns modesty."),
//!     profile(Side::Item, "heat", "Cops and robbers in a hot city."),
//! ]);
//!
//! let scorer = ItemCosine::new(&graph);
//! let explainer = Explainer::new(Offline::new()).contrast(Contrast { hard: 0, random: 2, ..Contrast::default() });
//! let pairs = [("ann".into(), "dune".into())];
//! let done = explainer.run(&graph, &scorer, &profiles, &[], &pairs).await?;
//! assert!(done.explanations[0].accepted);
//! # Ok(()) }
//! ```
//!
//! Main types: [`Explainer`] runs the loop; [`NegativeSampler`] and its [`HardAndRandom`] choose what the positive is compared
//! with; [`ContrastivePrompt`] writes the question and [`Verdict`] reads the answer; [`StudentPrompt`] turns a profile pair
//! into what the tuned model is asked.
//!
//! What it does not do: it reads no files, writes no profiles and trains nothing.

mod error;
mod explainer;
mod negatives;
mod prompt;
mod student;

pub use error::{Error, Result};
pub use explainer::{Contrast, Explained, Explainer, Failed};
pub use negatives::{HardAndRandom, NegativeSampler};
pub use prompt::{ContrastivePrompt, Shown, Verdict};
pub use student::StudentPrompt;
