//! PGHIS, message passing in text (arXiv 2507.06044): a model writes a profile for every user and item, then, layer by
//! layer, rewrites each from the profiles of its neighbours, as a graph network would update embeddings. Profiles stay
//! readable text.
//!
//! The paper has published no prompts, no number of layers and no way of sampling. What is here is a protocol of our own:
//! layers are synchronous (layer L of both sides reads only layer L-1), a node's neighbours are a seeded sample of its
//! *train* interactions, what they share is aggregated by one call, and the profile is updated by a second one that always
//! sees the initial profile, the text counterpart of a residual connection.
//!
//! ```
//! use because_core::{Interaction, Node, User};
//! use because_graph::{BipartiteGraph, Reviews};
//! use because_llm::Offline;
//! use because_propagate::{InitialProfiles, MessagePassing};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut seen = Interaction::new("ann", "dune");
//! seen.review = Some("Slow, dry and wonderful: politics under the sand.".into());
//! let seen = [seen];
//! let graph = BipartiteGraph::new(&seen)?;
//! let reviews = Reviews::of(&graph, &seen);
//!
//! let model = Offline::new();
//! let initial = InitialProfiles::new(&model).run(&graph, &reviews, &[], &[]).await?.profiles;
//! let layers = MessagePassing::new(&model).layers(2).run(&graph, initial).await?;
//! let ann = Node::User("ann".into());
//! assert!(layers.last().and_then(|layer| layer.profiles.summary(&ann)).is_some());
//! # Ok(()) }
//! ```
//!
//! Main types: [`InitialProfiles`] for layer 0, [`MessagePassing`] for the layers after it, [`Written`] for what comes back.
//! What a node's calls are made of are pure functions ([`aggregate_request`], [`update_request`], [`parse_profile`],
//! [`parse_shared`]) that know no runtime and no store, so that another engine can run the same layers.
//!
//! What it does not do: it reads no files, keeps no cache (wrap the model in one) and knows nothing of explanations.

mod error;
mod initial;
mod message;
mod requests;
mod run;

pub use error::{Error, Result};
pub use initial::{InitialCalls, InitialProfiles, Start};
pub use message::MessagePassing;
pub use requests::{
    Prompts, WordLimits, aggregate_request, initial_item_request, initial_user_request,
    parse_profile, parse_shared, update_request,
};
pub use run::{Fallback, Progress, Written};
