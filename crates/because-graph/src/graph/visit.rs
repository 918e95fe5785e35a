use std::iter::{Copied, FusedIterator};
use std::ops::Range;

use because_core::{Side, Split};
use petgraph::Undirected;
use petgraph::graph::{EdgeIndex, NodeIndex, UnGraph};
use petgraph::visit::{
    Data, EdgeCount, EdgeIndexable, GetAdjacencyMatrix, GraphBase, GraphProp, GraphRef,
    IntoEdgeReferences, IntoEdges, IntoNeighbors, IntoNodeIdentifiers, IntoNodeReferences,
    NodeCompactIndexable, NodeCount, NodeIndexable, NodeRef, Visitable,
};

use super::edges::{Edge, EdgeWeight, Edges};
use super::{Adjacency, BipartiteGraph};
use crate::kcore::core_numbers;

/// The nodes of a [`BipartiteGraph`] with the edges of one split, or of all: a graph of its own for petgraph's algorithms.
/// It is a view, so it costs nothing; edges keep their numbers.
#[derive(Debug, Clone, Copy)]
pub struct SplitGraph<'g> {
    graph: &'g BipartiteGraph,
    from: usize,
    to: usize,
}

impl BipartiteGraph {
    /// The graph of one split.
    #[must_use]
    pub fn of(&self, split: Split) -> SplitGraph<'_> {
        SplitGraph {
            graph: self,
            from: split as usize,
            to: split as usize + 1,
        }
    }

    /// The graph that everything is learnt from.
    #[must_use]
    pub fn train(&self) -> SplitGraph<'_> {
        self.of(Split::Train)
    }

    /// The graph of all splits together.
    #[must_use]
    pub fn whole(&self) -> SplitGraph<'_> {
        SplitGraph {
            graph: self,
            from: 0,
            to: Split::ALL.len(),
        }
    }
}

impl<'g> SplitGraph<'g> {
    /// The graph that this is a part of.
    #[must_use]
    pub fn graph(self) -> &'g BipartiteGraph {
        self.graph
    }

    /// The other ends of a node's edges: by split where there is more than one, of each split by id.
    ///
    /// # Panics
    /// When the index is not of this graph.
    #[must_use]
    pub fn neighbors_of(self, node: NodeIndex) -> &'g [NodeIndex] {
        let (_, place, adjacency) = self.graph.placed(node);
        &adjacency.neighbors[adjacency.range(place, self.from, self.to)]
    }

    /// The same with what the edges carry.
    ///
    /// # Panics
    /// When the index is not of this graph.
    #[must_use]
    pub fn edges_of(self, node: NodeIndex) -> Edges<'g> {
        Edges::new(self.graph, node, self.from..self.to)
    }

    /// The core number of every node, by index: the largest `k` for which it lies in a part where everybody has at least
    /// `k` neighbours.
    #[must_use]
    pub fn core_numbers(self) -> Vec<u32> {
        core_numbers(self)
    }

    /// How many edges it has.
    #[must_use]
    pub fn len(self) -> usize {
        let Adjacency { starts, neighbors } = &self.graph.of_users;
        if self.to - self.from == Split::ALL.len() {
            return neighbors.len();
        }
        let groups = starts.windows(2).skip(self.from).step_by(Split::ALL.len());
        groups.map(|group| (group[1] - group[0]) as usize).sum()
    }

    /// Whether it has no edges.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// Some nodes that follow one another.
#[derive(Debug, Clone)]
pub struct Nodes(Range<usize>);

impl Nodes {
    pub(super) fn new(places: Range<usize>) -> Self {
        Self(places)
    }
}

impl Iterator for Nodes {
    type Item = NodeIndex;

    fn next(&mut self) -> Option<NodeIndex> {
        self.0.next().map(NodeIndex::new)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl DoubleEndedIterator for Nodes {
    fn next_back(&mut self) -> Option<NodeIndex> {
        self.0.next_back().map(NodeIndex::new)
    }
}

impl ExactSizeIterator for Nodes {}
impl FusedIterator for Nodes {}

/// A node with its side, which is its weight for petgraph; its id is at [`BipartiteGraph::id`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeReference {
    index: NodeIndex,
    side: Side,
}

impl NodeRef for NodeReference {
    type NodeId = NodeIndex;
    type Weight = Side;

    fn id(&self) -> NodeIndex {
        self.index
    }

    fn weight(&self) -> &Side {
        &self.side
    }
}

/// All nodes with their sides, users first.
#[derive(Debug, Clone)]
pub struct NodeReferences {
    nodes: Nodes,
    users: usize,
}

impl Iterator for NodeReferences {
    type Item = NodeReference;

    fn next(&mut self) -> Option<NodeReference> {
        let index = self.nodes.next()?;
        let side = match index.index() < self.users {
            true => Side::User,
            false => Side::Item,
        };
        Some(NodeReference { index, side })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.nodes.size_hint()
    }
}

/// Every edge once, from its user to its item, in the order of their numbers.
#[derive(Debug, Clone)]
pub struct EdgeReferences<'g> {
    of: SplitGraph<'g>,
    users: Nodes,
    edges: Option<Edges<'g>>,
}

impl Iterator for EdgeReferences<'_> {
    type Item = Edge;

    fn next(&mut self) -> Option<Edge> {
        loop {
            if let Some(edge) = self.edges.as_mut().and_then(Iterator::next) {
                return Some(edge);
            }
            self.edges = Some(self.of.edges_of(self.users.next()?));
        }
    }
}

impl GraphRef for SplitGraph<'_> {}

macro_rules! read_as_a_graph {
    ([$($life:lifetime)?] $graph:ty, $whole:expr) => {
        impl $(<$life>)? GraphBase for $graph {
            type NodeId = NodeIndex;
            type EdgeId = EdgeIndex;
        }

        impl $(<$life>)? Data for $graph {
            type NodeWeight = Side;
            type EdgeWeight = EdgeWeight;
        }

        impl $(<$life>)? GraphProp for $graph {
            type EdgeType = Undirected;
        }

        impl $(<$life>)? NodeCount for $graph {
            fn node_count(&self) -> usize {
                $whole(self).graph.names.len()
            }
        }

        impl $(<$life>)? EdgeCount for $graph {
            fn edge_count(&self) -> usize {
                $whole(self).len()
            }
        }

        impl $(<$life>)? NodeIndexable for $graph {
            fn node_bound(&self) -> usize {
                self.node_count()
            }

            fn to_index(&self, node: NodeIndex) -> usize {
                node.index()
            }

            fn from_index(&self, index: usize) -> NodeIndex {
                NodeIndex::new(index)
            }
        }

        impl $(<$life>)? NodeCompactIndexable for $graph {}

        impl $(<$life>)? EdgeIndexable for $graph {
            fn edge_bound(&self) -> usize {
                $whole(self).graph.of_users.neighbors.len()
            }

            fn to_index(&self, edge: EdgeIndex) -> usize {
                edge.index()
            }

            fn from_index(&self, index: usize) -> EdgeIndex {
                EdgeIndex::new(index)
            }
        }

        impl $(<$life>)? Visitable for $graph {
            type Map = <UnGraph<(), ()> as Visitable>::Map;

            fn visit_map(&self) -> Self::Map {
                Self::Map::with_capacity(self.node_count())
            }

            fn reset_map(&self, map: &mut Self::Map) {
                map.clear();
                map.grow(self.node_count());
            }
        }

        /// A search in the shorter list of neighbours; there is no matrix.
        impl $(<$life>)? GetAdjacencyMatrix for $graph {
            type AdjMatrix = ();

            fn adjacency_matrix(&self) {}

            fn is_adjacent(&self, (): &(), a: NodeIndex, b: NodeIndex) -> bool {
                $whole(self).is_edge(a, b)
            }
        }
    };
}

read_as_a_graph!([] BipartiteGraph, BipartiteGraph::whole);
read_as_a_graph!(['g] SplitGraph<'g>, |graph: &SplitGraph<'g>| *graph);

macro_rules! walk_as_a_graph {
    ($graph:ty, $whole:expr) => {
        impl<'g> IntoNeighbors for $graph {
            type Neighbors = Copied<std::slice::Iter<'g, NodeIndex>>;

            fn neighbors(self, node: NodeIndex) -> Self::Neighbors {
                $whole(self).neighbors_of(node).iter().copied()
            }
        }

        impl<'g> IntoEdgeReferences for $graph {
            type EdgeRef = Edge;
            type EdgeReferences = EdgeReferences<'g>;

            fn edge_references(self) -> Self::EdgeReferences {
                let of = $whole(self);
                EdgeReferences {
                    users: of.graph.nodes(Side::User),
                    edges: None,
                    of,
                }
            }
        }

        impl<'g> IntoEdges for $graph {
            type Edges = Edges<'g>;

            fn edges(self, node: NodeIndex) -> Self::Edges {
                $whole(self).edges_of(node)
            }
        }

        impl<'g> IntoNodeIdentifiers for $graph {
            type NodeIdentifiers = Nodes;

            fn node_identifiers(self) -> Self::NodeIdentifiers {
                Nodes::new(0..self.node_count())
            }
        }

        impl<'g> IntoNodeReferences for $graph {
            type NodeRef = NodeReference;
            type NodeReferences = NodeReferences;

            fn node_references(self) -> Self::NodeReferences {
                NodeReferences {
                    users: $whole(self).graph.names.users(),
                    nodes: self.node_identifiers(),
                }
            }
        }
    };
}

walk_as_a_graph!(&'g BipartiteGraph, BipartiteGraph::whole);
walk_as_a_graph!(SplitGraph<'g>, std::convert::identity);

impl SplitGraph<'_> {
    fn is_edge(self, a: NodeIndex, b: NodeIndex) -> bool {
        let (few, node) = match self.neighbors_of(a).len() <= self.neighbors_of(b).len() {
            true => (a, b),
            false => (b, a),
        };
        (self.from..self.to).any(|split| {
            self.graph
                .neighbors(few, Split::ALL[split])
                .binary_search(&node)
                .is_ok()
        })
    }
}
