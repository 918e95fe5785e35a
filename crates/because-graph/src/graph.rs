mod build;
mod builder;
mod columns;
mod edges;
mod names;
mod read;
mod reviews;
mod visit;

use std::borrow::Borrow;
use std::ops::Range;

use because_core::{Interaction, ItemId, Node, Project, Side, Split, UserId};
use petgraph::graph::{EdgeIndex, NodeIndex};

use crate::Result;
use crate::sample::EdgeLots;
use columns::{Ratings, Times};
use names::Names;

pub use builder::GraphBuilder;
pub use edges::{Edge, EdgeWeight, Edges};
pub use reviews::Reviews;
pub use visit::{EdgeReferences, NodeReference, Nodes, SplitGraph};

/// Users on one side, items on the other, one edge per interaction; read-only once it is built.
///
/// Users come before items and each side is in id order, so an index says the same in every run over the same data.
/// Edges are kept apart by [`Split`]: whoever asks for neighbours says which part of the experiment they may see. Edges are
/// numbered without a gap: by user, of each user by split, of each split by item. What people wrote is not held: see
/// [`Reviews`].
///
/// petgraph's traits are implemented on `&BipartiteGraph` for all edges and on [`SplitGraph`] for those of one split, so
/// petgraph's algorithms run on both; the graph counts as undirected.
///
/// An edge takes 4 bytes for each end, 4 for its number at the item, 1 for a rating where there are fewer than 255 distinct
/// ones (2 up to 65 535, else 8) and 4 for a time where all lie within 136 years (else 8); ratings and times that no edge has
/// take nothing. A node takes 28 bytes and its id.
///
/// ```
/// use because_core::{Interaction, Split};
/// use because_graph::BipartiteGraph;
///
/// let graph = BipartiteGraph::new([
///     Interaction::new("ann", "dune"),
///     Interaction::new("bob", "dune"),
///     Interaction { split: Some(Split::Test), ..Interaction::new("bob", "emma") },
/// ])?;
/// let dune = graph.item("dune").expect("it has two edges");
/// let readers: Vec<&str> = graph
///     .neighbors(dune, Split::Train)
///     .iter()
///     .map(|&reader| graph.id(reader))
///     .collect();
/// assert_eq!(readers, ["ann", "bob"]);
/// assert_eq!(petgraph::algo::connected_components(&graph), 1);
/// assert_eq!(petgraph::algo::connected_components(graph.train()), 2);
/// # Ok::<(), because_graph::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct BipartiteGraph {
    names: Names,
    of_users: Adjacency,
    of_items: Adjacency,
    /// The numbers of the edges, by their places in `of_items`; in `of_users` the place is the number.
    edges_of_items: Vec<EdgeIndex>,
    ratings: Ratings,
    times: Times,
}

/// The neighbours of all nodes of one side, one slice after the other: of each node by split, of each split by id.
#[derive(Debug, Clone)]
struct Adjacency {
    /// Where each group of a node and a split begins; one more marks the end.
    starts: Vec<u32>,
    neighbors: Vec<NodeIndex>,
}

/// One end of an edge, seen from the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbor {
    /// The node at the other end.
    pub node: NodeIndex,
    /// The edge between.
    pub edge: EdgeIndex,
}

impl BipartiteGraph {
    /// The graph of these interactions, given or lent; one without a split counts as [`Split::Train`].
    ///
    /// # Errors
    /// When there are none, or the same user and item come twice.
    pub fn new<I>(interactions: I) -> Result<Self>
    where
        I: IntoIterator<Item: Borrow<Interaction>>,
    {
        Self::with_nodes(interactions, [], [])
    }

    /// The same with nodes that may have no edge: users and items that are known only by their text.
    ///
    /// # Errors
    /// When there are no interactions, or the same user and item come twice.
    pub fn with_nodes<I>(
        interactions: I,
        users: impl IntoIterator<Item = UserId>,
        items: impl IntoIterator<Item = ItemId>,
    ) -> Result<Self>
    where
        I: IntoIterator<Item: Borrow<Interaction>>,
    {
        let mut builder = GraphBuilder::default();
        for interaction in interactions {
            let interaction = interaction.borrow();
            let weight = EdgeWeight {
                rating: interaction.rating,
                timestamp: interaction.timestamp,
                split: interaction.split.unwrap_or(Split::Train),
            };
            builder.edge(interaction.user.as_str(), interaction.item.as_str(), weight)?;
        }
        for user in users {
            builder.user(user.as_str())?;
        }
        for item in items {
            builder.item(item.as_str())?;
        }
        builder.build()
    }

    /// The graph of a project directory: its interactions, and every user and item that its files name. Texts are passed
    /// over, so memory grows with the number of interactions and not with what was written.
    ///
    /// # Errors
    /// When a file is missing or malformed, or the interactions make no graph.
    pub fn from_project(project: &Project) -> Result<Self> {
        Self::from_table(&read::table(project)?)
    }

    /// Where a node is, if it is in the graph.
    #[must_use]
    pub fn index(&self, node: &Node) -> Option<NodeIndex> {
        self.names.find(node.side(), node.id()).map(NodeIndex::new)
    }

    /// Where a user is.
    #[must_use]
    pub fn user(&self, id: &str) -> Option<NodeIndex> {
        self.names.find(Side::User, id).map(NodeIndex::new)
    }

    /// Where an item is.
    #[must_use]
    pub fn item(&self, id: &str) -> Option<NodeIndex> {
        self.names.find(Side::Item, id).map(NodeIndex::new)
    }

    /// The id of a node.
    ///
    /// # Panics
    /// When the index is not of this graph.
    #[must_use]
    pub fn id(&self, index: NodeIndex) -> &str {
        self.names.get(index.index())
    }

    /// Which side a node is on.
    #[must_use]
    pub fn side(&self, index: NodeIndex) -> Side {
        if index.index() < self.names.users() {
            Side::User
        } else {
            Side::Item
        }
    }

    /// The name of a node, made for this call; [`BipartiteGraph::id`] lends its text.
    ///
    /// # Panics
    /// When the index is not of this graph.
    #[must_use]
    pub fn node(&self, index: NodeIndex) -> Node {
        Node::new(self.side(index), self.id(index))
    }

    /// All nodes of one side, in id order; their indices follow one another without a gap.
    #[must_use]
    pub fn nodes(&self, side: Side) -> Nodes {
        let users = self.names.users();
        Nodes::new(match side {
            Side::User => 0..users,
            Side::Item => users..self.names.len(),
        })
    }

    /// How many nodes a side has.
    #[must_use]
    pub fn len(&self, side: Side) -> usize {
        self.nodes(side).len()
    }

    /// The other ends of a node's edges in one split, ordered by their id.
    ///
    /// # Panics
    /// When the index is not of this graph.
    #[must_use]
    pub fn neighbors(&self, node: NodeIndex, split: Split) -> &[NodeIndex] {
        self.of(split).neighbors_of(node)
    }

    /// The same with what the edges carry, in the same order.
    ///
    /// # Panics
    /// When the index is not of this graph.
    #[must_use]
    pub fn edges(&self, node: NodeIndex, split: Split) -> Edges<'_> {
        self.of(split).edges_of(node)
    }

    /// How many edges a node has in one split.
    ///
    /// # Panics
    /// When the index is not of this graph.
    #[must_use]
    pub fn degree(&self, node: NodeIndex, split: Split) -> usize {
        self.neighbors(node, split).len()
    }

    /// How many edges all splits have together; their numbers go from zero up to it.
    #[must_use]
    pub fn edge_count(&self) -> usize {
        self.of_users.neighbors.len()
    }

    /// One edge by its number, from its user to its item.
    ///
    /// # Panics
    /// When there is no such edge in this graph.
    #[must_use]
    pub fn edge(&self, index: EdgeIndex) -> Edge {
        let target = self.of_users.neighbors[index.index()];
        let (user, split) = self.of_users.group_of(index.index());
        Edge {
            index,
            source: NodeIndex::new(user),
            target,
            weight: self.weight(index, split),
        }
    }

    /// The interaction that an edge stands for, without its review.
    ///
    /// # Panics
    /// When there is no such edge in this graph.
    #[must_use]
    pub fn interaction(&self, index: EdgeIndex) -> Interaction {
        let edge = self.edge(index);
        Interaction {
            rating: edge.weight.rating,
            timestamp: edge.weight.timestamp,
            split: Some(edge.weight.split),
            ..Interaction::new(self.id(edge.source), self.id(edge.target))
        }
    }

    /// The edge between two nodes; `None` where they have nothing to do with each other in any split.
    #[must_use]
    pub fn edge_between(&self, user: NodeIndex, item: NodeIndex) -> Option<Edge> {
        if self.side(user) != Side::User {
            return None;
        }
        Split::ALL.into_iter().find_map(|split| {
            let at = self.neighbors(user, split).binary_search(&item).ok()?;
            self.edges(user, split).nth(at)
        })
    }

    /// The split of the edge between two nodes; `None` where they have nothing to do with each other in any split, which
    /// is what makes an item a possible negative.
    #[must_use]
    pub fn split_of(&self, user: NodeIndex, item: NodeIndex) -> Option<Split> {
        Split::ALL
            .into_iter()
            .find(|&split| self.neighbors(user, split).binary_search(&item).is_ok())
    }

    /// [`edge_rank`](crate::edge_rank) of two nodes of this graph, without a look at their ids.
    ///
    /// # Panics
    /// When an index is not of this graph.
    #[must_use]
    pub fn edge_rank(&self, seed: u64, layer: usize, node: NodeIndex, neighbor: NodeIndex) -> u64 {
        EdgeLots::new(seed, layer, self.side(node), self.key(node)).of(self.key(neighbor))
    }

    /// What [`edge_rank`](crate::edge_rank) knows a node by.
    pub(crate) fn key(&self, node: NodeIndex) -> u64 {
        self.names.key(node.index())
    }

    /// The number of the edge at a place in the neighbours of a side.
    pub(crate) fn edge_at(&self, side: Side, place: usize) -> EdgeIndex {
        match side {
            Side::User => EdgeIndex::new(place),
            Side::Item => self.edges_of_items[place],
        }
    }

    pub(crate) fn rating(&self, edge: EdgeIndex) -> Option<f64> {
        self.ratings.get(edge.index())
    }

    pub(crate) fn timestamp(&self, edge: EdgeIndex) -> Option<i64> {
        self.times.get(edge.index())
    }

    /// A node's neighbours in one split, with their places among those of its side.
    pub(crate) fn placed_neighbors(
        &self,
        node: NodeIndex,
        split: Split,
    ) -> (Range<usize>, &[NodeIndex]) {
        let (_, place, adjacency) = self.placed(node);
        let places = adjacency.range(place, split as usize, split as usize + 1);
        (places.clone(), &adjacency.neighbors[places])
    }

    fn weight(&self, edge: EdgeIndex, split: Split) -> EdgeWeight {
        EdgeWeight {
            rating: self.rating(edge),
            timestamp: self.timestamp(edge),
            split,
        }
    }

    /// The side of a node, its place on that side, and the neighbours of all that side.
    fn placed(&self, node: NodeIndex) -> (Side, usize, &Adjacency) {
        let users = self.names.users();
        match node.index().checked_sub(users) {
            None => (Side::User, node.index(), &self.of_users),
            Some(item) => (Side::Item, item, &self.of_items),
        }
    }
}

#[cfg(test)]
mod tests;
