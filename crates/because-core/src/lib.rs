//! The words every stage of `because` shares, and the files they are stored in.
//!
//! A recommender picks an item for a user; the stages of `because` turn the raw interactions into profiles, the
//! profiles into explanations, the explanations into training examples. What passes between two stages is a type of
//! this crate and a JSON Lines file of a [`Project`] directory, so that a person can stop, look, and go on.
//!
//! ```
//! use because_core::{Interaction, ItemId, Split, UserId};
//!
//! let line = r#"{"user": 7, "item": "dune", "rating": 5, "review": "Sand, politics, worms.", "split": "train"}"#;
//! let read: Interaction = serde_json::from_str(line)?;
//! assert_eq!(read.user, UserId::from("7"), "a number is read as a string");
//! assert_eq!(read.item, ItemId::from("dune"));
//! assert_eq!(read.split, Some(Split::Train));
//! # Ok::<(), serde_json::Error>(())
//! ```
//!
//! In reading order: [`UserId`] and [`ItemId`], [`Interaction`], [`User`] and [`Item`], [`Profile`] and [`Profiles`],
//! [`Explanation`], [`SftExample`], [`Prediction`]; then the files: [`Project`], [`jsonl`], [`Rejected`].
//!
//! What it does not do: it builds no graph, calls no model and measures nothing.

mod error;
mod explanation;
mod id;
mod interaction;
pub mod jsonl;
mod profile;
mod project;
mod sft;
pub mod text;

pub use error::{Error, Result};
pub use explanation::{Candidate, Explanation, Reference, Role};
pub use id::{ItemId, Node, Side, UserId};
pub use interaction::{Attributes, Interaction, Item, Rejected, Split, User};
pub use profile::{Profile, ProfileRecord, Profiles};
pub use project::{Project, file_digest};
pub use sft::{Message, Prediction, SftExample};
