use std::iter::FusedIterator;
use std::ops::Range;

use because_core::{Side, Split};
use petgraph::graph::{EdgeIndex, NodeIndex};
use petgraph::visit::EdgeRef;

use super::BipartiteGraph;

/// An edge of a [`BipartiteGraph`], seen from one of its ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Edge {
    /// Its number.
    pub index: EdgeIndex,
    /// The node that was asked for its edges; the user where none was.
    pub source: NodeIndex,
    /// The neighbour; the item where no node was asked.
    pub target: NodeIndex,
    /// What is known of it.
    pub weight: EdgeWeight,
}

/// What an edge of a [`BipartiteGraph`] carries.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EdgeWeight {
    /// How the user rated the item.
    pub rating: Option<f64>,
    /// When, in seconds since 1970.
    pub timestamp: Option<i64>,
    /// The part of the experiment it belongs to.
    pub split: Split,
}

impl EdgeRef for Edge {
    type NodeId = NodeIndex;
    type EdgeId = EdgeIndex;
    type Weight = EdgeWeight;

    fn source(&self) -> NodeIndex {
        self.source
    }

    fn target(&self) -> NodeIndex {
        self.target
    }

    fn weight(&self) -> &EdgeWeight {
        &self.weight
    }

    fn id(&self) -> EdgeIndex {
        self.index
    }
}

/// The edges of a node, in the order of their splits, of each split by the neighbour's id.
#[derive(Debug, Clone)]
pub struct Edges<'g> {
    graph: &'g BipartiteGraph,
    side: Side,
    source: NodeIndex,
    places: Range<usize>,
    /// Where the edges of each split end, of those not yet behind.
    ends: &'g [u32],
    split: usize,
}

impl<'g> Edges<'g> {
    /// The edges of `source` in the splits from one up to another.
    pub(super) fn new(graph: &'g BipartiteGraph, source: NodeIndex, splits: Range<usize>) -> Self {
        let (side, place, adjacency) = graph.placed(source);
        let first = place * Split::ALL.len();
        Self {
            graph,
            side,
            source,
            places: adjacency.range(place, splits.start, splits.end),
            ends: &adjacency.starts[first + splits.start + 1..=first + splits.end],
            split: splits.start,
        }
    }
}

impl Iterator for Edges<'_> {
    type Item = Edge;

    fn next(&mut self) -> Option<Edge> {
        let place = self.places.next()?;
        while let [end, rest @ ..] = self.ends
            && *end as usize <= place
        {
            self.ends = rest;
            self.split += 1;
        }
        let index = self.graph.edge_at(self.side, place);
        let neighbors = match self.side {
            Side::User => &self.graph.of_users.neighbors,
            Side::Item => &self.graph.of_items.neighbors,
        };
        Some(Edge {
            index,
            source: self.source,
            target: neighbors[place],
            weight: self.graph.weight(index, Split::ALL[self.split]),
        })
    }

    fn nth(&mut self, n: usize) -> Option<Edge> {
        self.places.start = self.places.start.saturating_add(n).min(self.places.end);
        self.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.places.size_hint()
    }
}

impl ExactSizeIterator for Edges<'_> {}
impl FusedIterator for Edges<'_> {}
