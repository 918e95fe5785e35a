//! Reads people's raw files, builds the user-item graph, splits it, and answers who is near whom.
//!
//! ```
//! use because_core::{Project, Side};
//! use because_graph::{BipartiteGraph, Format, Import, NeighborSampler, UniformSampler};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let folder = tempfile::tempdir()?;
//! let ratings = folder.path().join("ratings.csv");
//! std::fs::write(&ratings, "userId,movieId,rating\nann,dune,5\nann,solaris,4\nbob,dune,five\n")?;
//!
//! let project = Project::new(folder.path().join("books"));
//! let summary = Import::new(Format::Csv, [ratings]).seed(7).run(&project)?;
//! assert_eq!((summary.read, summary.taken, summary.rejected), (3, 2, 1));
//!
//! let graph = BipartiteGraph::from_project(&project)?;
//! let ann = graph.user("ann").ok_or("ann has two ratings")?;
//! let sample = UniformSampler { seed: 7 }.sample(&graph, ann, 1, 8);
//! assert!(sample.iter().all(|neighbor| graph.side(neighbor.node) == Side::Item));
//! # Ok(())
//! # }
//! ```
//!
//! In reading order: [`Import`] makes a project directory of raw files, with [`SplitStrategy`]; [`BipartiteGraph`] is the
//! graph; [`NeighborSampler`] chooses whose profiles a node reads; [`ItemScorer`] and [`ItemCosine`] say which items are
//! close to a user; [`GraphStats`] describes the graph and [`check()`] finds leaks and contradictions.
//!
//! What it does not do: it never sees a model, a prompt or a profile being written.
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")
)]

mod check;
mod error;
mod graph;
mod hash;
mod import;
mod kcore;
mod lots;
mod plan;
mod sample;
mod scorer;
mod split;
mod stats;
mod table;

pub use check::{Check, CheckReport, Finding, Severity, check};
pub use error::{Error, Result};
pub use graph::{
    BipartiteGraph, Edge, EdgeReferences, EdgeWeight, Edges, GraphBuilder, Neighbor, NodeReference,
    Nodes, Reviews, SplitGraph,
};
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use import::fuzzing;
pub use import::{
    ColdCounts, Conflicts, FieldConflicts, Filtered, Format, Import, ImportSummary, ImportedFile,
    ReasonCount, RecordKind,
};
pub use petgraph::graph::{EdgeIndex, NodeIndex};
pub use plan::{Amount, ColdNode, ColdStart, Counts, Filter, Moment, Plan, Step};
pub use sample::{
    DegreeDampedSampler, MostRecentSampler, NeighborSampler, RelevanceSampler, Sampling,
    TopRatedSampler, UniformSampler, edge_rank,
};
pub use scorer::{ItemCosine, ItemScorer, Scored};
pub use split::{Ratio, SplitSource, SplitStrategy};
pub use stats::{CoreStats, DegreeStats, GraphStats, Popularity, SplitCounts, SplitStats};
