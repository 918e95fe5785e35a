use super::{BipartiteGraph, EdgeWeight};
use crate::Result;
use crate::table::{Row, Table};

/// Gathers edges one at a time, 32 bytes each, from whatever they are read from; texts of ids are kept once.
///
/// ```
/// use because_core::Split;
/// use because_graph::{EdgeWeight, GraphBuilder};
///
/// let mut builder = GraphBuilder::default();
/// for line in ["ann dune 5", "bob dune 3"] {
///     let [user, item, rating] = line.split(' ').collect::<Vec<_>>()[..] else { continue };
///     let weight = EdgeWeight { rating: rating.parse().ok(), timestamp: None, split: Split::Train };
///     builder.edge(user, item, weight)?;
/// }
/// builder.item("emma")?;
/// let graph = builder.build()?;
/// assert_eq!((graph.edge_count(), graph.item("emma").is_some()), (2, true));
/// # Ok::<(), because_graph::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct GraphBuilder {
    table: Table,
}

impl GraphBuilder {
    /// Adds an edge, and its ends where they are new. A rating that is not a number is none.
    ///
    /// # Errors
    /// When there are more nodes than 32 bits can count.
    pub fn edge(&mut self, user: &str, item: &str, weight: EdgeWeight) -> Result<()> {
        let (user, item) = (
            self.table.users.intern(user)?,
            self.table.items.intern(item)?,
        );
        let mut row = Row::new(user, item)
            .with_rating(weight.rating)
            .with_timestamp(weight.timestamp);
        row.split = Some(weight.split);
        self.table.rows.push(row);
        Ok(())
    }

    /// Makes sure that there is a user of this id, with or without an edge.
    ///
    /// # Errors
    /// When there are more users than 32 bits can count.
    pub fn user(&mut self, id: &str) -> Result<()> {
        self.table.users.intern(id).map(drop)
    }

    /// Makes sure that there is an item of this id, with or without an edge.
    ///
    /// # Errors
    /// When there are more items than 32 bits can count.
    pub fn item(&mut self, id: &str) -> Result<()> {
        self.table.items.intern(id).map(drop)
    }

    /// The graph of what was added, whatever the order.
    ///
    /// # Errors
    /// When no edge was added, or the same user and item come twice.
    pub fn build(&self) -> Result<BipartiteGraph> {
        BipartiteGraph::from_table(&self.table)
    }
}
