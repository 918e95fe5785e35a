use std::collections::BTreeSet;

use because_core::{Interaction, ItemId, Node, Project, Side, Split, UserId};
use petgraph::graph::{NodeIndex, UnGraph};

use crate::{Error, Result};

/// Users on one side, items on the other, one edge per interaction.
///
/// Users come before items and each side is in id order, so an index says the same in every run over the same data.
/// Edges are kept apart by [`Split`]: whoever asks for neighbours says which part of the experiment they may see.
///
/// ```
/// use because_core::{Interaction, Node, Side, Split};
/// use because_graph::BipartiteGraph;
///
/// let graph = BipartiteGraph::new(vec![
///     Interaction::new("ann", "dune"),
///     Interaction::new("bob", "dune"),
///     Interaction { split: Some(Split::Test), ..Interaction::new("bob", "emma") },
/// ])?;
/// let dune = graph.item("dune").expect("it has two edges");
/// let readers: Vec<&str> = graph
///     .neighbors(dune, Split::Train)
///     .iter()
///     .map(|neighbor| graph.node(neighbor.node).id())
///     .collect();
/// assert_eq!(readers, ["ann", "bob"]);
/// assert_eq!(graph.len(Side::Item), 2);
/// assert_eq!(petgraph::algo::connected_components(graph.as_petgraph()), 1);
/// # Ok::<(), because_graph::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct BipartiteGraph {
    graph: UnGraph<Node, Edge, u32>,
    users: usize,
    interactions: Vec<Interaction>,
    adjacency: [Adjacency; 4],
}

/// What an edge of [`BipartiteGraph::as_petgraph`] carries.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Edge {
    /// How the user rated the item.
    pub rating: Option<f64>,
    /// When, in seconds since 1970.
    pub timestamp: Option<i64>,
    /// The part of the experiment it belongs to.
    pub split: Split,
    /// Its place in [`BipartiteGraph::interactions`].
    pub interaction: u32,
}

/// One end of an edge, seen from the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbor {
    /// The node at the other end.
    pub node: NodeIndex,
    /// The edge between: its place in [`BipartiteGraph::interactions`].
    pub interaction: u32,
}

impl BipartiteGraph {
    /// The graph of these interactions; one without a split counts as [`Split::Train`].
    ///
    /// # Errors
    /// When there are none, or the same user and item come twice.
    pub fn new(interactions: Vec<Interaction>) -> Result<Self> {
        Self::with_nodes(interactions, [], [])
    }

    /// The same with nodes that may have no edge: users and items that are known only by their text.
    ///
    /// # Errors
    /// When there are no interactions, or the same user and item come twice.
    pub fn with_nodes(
        mut interactions: Vec<Interaction>,
        users: impl IntoIterator<Item = UserId>,
        items: impl IntoIterator<Item = ItemId>,
    ) -> Result<Self> {
        if interactions.is_empty() {
            return Err(Error::EmptyGraph);
        }
        interactions.sort_by(|a, b| (&a.user, &a.item).cmp(&(&b.user, &b.item)));
        if let Some(pair) = interactions
            .windows(2)
            .find(|pair| pair[0].user == pair[1].user && pair[0].item == pair[1].item)
        {
            return Err(Error::DuplicatePair {
                user: pair[0].user.clone(),
                item: pair[0].item.clone(),
            });
        }
        for interaction in &mut interactions {
            interaction.split.get_or_insert(Split::Train);
        }

        let mut nodes: BTreeSet<Node> = users.into_iter().map(Node::User).collect();
        nodes.extend(items.into_iter().map(Node::Item));
        for interaction in &interactions {
            nodes.insert(Node::User(interaction.user.clone()));
            nodes.insert(Node::Item(interaction.item.clone()));
        }
        fits("nodes", nodes.len())?;
        fits("interactions", interactions.len())?;

        let mut graph = UnGraph::with_capacity(nodes.len(), interactions.len());
        let mut users = 0;
        for node in nodes {
            users += usize::from(node.side() == Side::User);
            graph.add_node(node);
        }
        let mut built = Self {
            graph,
            users,
            interactions,
            adjacency: Default::default(),
        };
        built.add_edges();
        Ok(built)
    }

    /// The graph of a project directory: its interactions, and every user and item that its files name.
    ///
    /// # Errors
    /// When a file is missing or malformed, or the interactions make no graph.
    pub fn from_project(project: &Project) -> Result<Self> {
        Self::with_nodes(
            project.interactions()?,
            project.users()?.into_iter().map(|user| user.user),
            project.items()?.into_iter().map(|item| item.item),
        )
    }

    /// Where a node is, if it is in the graph.
    #[must_use]
    pub fn index(&self, node: &Node) -> Option<NodeIndex> {
        match node.side() {
            Side::User => self.user(node.id()),
            Side::Item => self.item(node.id()),
        }
    }

    /// Where a user is.
    #[must_use]
    pub fn user(&self, id: &str) -> Option<NodeIndex> {
        self.find(0, self.users, id)
    }

    /// Where an item is.
    #[must_use]
    pub fn item(&self, id: &str) -> Option<NodeIndex> {
        self.find(self.users, self.graph.node_count(), id)
    }

    /// The name of a node.
    ///
    /// # Panics
    /// When the index is not of this graph.
    #[must_use]
    pub fn node(&self, index: NodeIndex) -> &Node {
        &self.graph[index]
    }

    /// All nodes of one side, in id order; their indices follow one another without a gap.
    pub fn nodes(&self, side: Side) -> impl ExactSizeIterator<Item = NodeIndex> + '_ {
        let range = match side {
            Side::User => 0..self.users,
            Side::Item => self.users..self.graph.node_count(),
        };
        range.map(NodeIndex::new)
    }

    /// How many nodes a side has.
    #[must_use]
    pub fn len(&self, side: Side) -> usize {
        match side {
            Side::User => self.users,
            Side::Item => self.graph.node_count() - self.users,
        }
    }

    /// The other ends of a node's edges in one split, ordered by their id.
    ///
    /// # Panics
    /// When the index is not of this graph.
    #[must_use]
    pub fn neighbors(&self, node: NodeIndex, split: Split) -> &[Neighbor] {
        self.adjacency[split as usize].of(node)
    }

    /// How many edges a node has in one split.
    ///
    /// # Panics
    /// When the index is not of this graph.
    #[must_use]
    pub fn degree(&self, node: NodeIndex, split: Split) -> usize {
        self.neighbors(node, split).len()
    }

    /// One interaction by its place.
    ///
    /// # Panics
    /// When there is no such place in this graph.
    #[must_use]
    pub fn interaction(&self, index: u32) -> &Interaction {
        &self.interactions[index as usize]
    }

    /// Every interaction of every split, sorted by user, then item.
    #[must_use]
    pub fn interactions(&self) -> &[Interaction] {
        &self.interactions
    }

    /// The split of the edge between two nodes; `None` where they have nothing to do with each other in any split, which
    /// is what makes an item a possible negative.
    #[must_use]
    pub fn split_of(&self, user: NodeIndex, item: NodeIndex) -> Option<Split> {
        Split::ALL.into_iter().find(|&split| {
            self.neighbors(user, split)
                .binary_search_by_key(&item, |neighbor| neighbor.node)
                .is_ok()
        })
    }

    /// The same graph for petgraph's own algorithms; node and edge weights are ours.
    #[must_use]
    pub fn as_petgraph(&self) -> &UnGraph<Node, Edge, u32> {
        &self.graph
    }

    fn find(&self, from: usize, to: usize, id: &str) -> Option<NodeIndex> {
        let (mut low, mut high) = (from, to);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.graph[NodeIndex::new(middle)].id().cmp(id) {
                std::cmp::Ordering::Equal => return Some(NodeIndex::new(middle)),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    fn add_edges(&mut self) {
        let known = "every end of an interaction was made a node";
        let mut ends = Split::ALL.map(|_| Vec::new());
        for (index, interaction) in (0..).zip(&self.interactions) {
            let user = self.user(interaction.user.as_str()).expect(known);
            let item = self.item(interaction.item.as_str()).expect(known);
            let split = interaction.split.unwrap_or(Split::Train);
            ends[split as usize].push((user, item, index));
            self.graph.add_edge(
                user,
                item,
                Edge {
                    rating: interaction.rating,
                    timestamp: interaction.timestamp,
                    split,
                    interaction: index,
                },
            );
        }
        let nodes = self.graph.node_count();
        self.adjacency = ends.map(|ends| Adjacency::new(nodes, &ends));
    }
}

/// petgraph keeps the highest index for "none".
fn fits(what: &'static str, count: usize) -> Result<()> {
    if count < u32::MAX as usize {
        Ok(())
    } else {
        Err(Error::TooLarge { what, count })
    }
}

/// The neighbours of all nodes in one split, one slice after the other: what sampling and scoring walk over.
#[derive(Debug, Clone, Default)]
struct Adjacency {
    starts: Vec<usize>,
    neighbors: Vec<Neighbor>,
}

impl Adjacency {
    /// `ends` is sorted by user, then item; filling in that order leaves every slice sorted by neighbour.
    fn new(nodes: usize, ends: &[(NodeIndex, NodeIndex, u32)]) -> Self {
        let mut starts = vec![0_usize; nodes + 1];
        for (user, item, _) in ends {
            starts[user.index() + 1] += 1;
            starts[item.index() + 1] += 1;
        }
        for node in 0..nodes {
            starts[node + 1] += starts[node];
        }
        let mut next = starts.clone();
        let nowhere = Neighbor {
            node: NodeIndex::end(),
            interaction: u32::MAX,
        };
        let mut neighbors = vec![nowhere; ends.len() * 2];
        for &(user, item, interaction) in ends {
            for (from, node) in [(user, item), (item, user)] {
                neighbors[next[from.index()]] = Neighbor { node, interaction };
                next[from.index()] += 1;
            }
        }
        Self { starts, neighbors }
    }

    fn of(&self, node: NodeIndex) -> &[Neighbor] {
        &self.neighbors[self.starts[node.index()]..self.starts[node.index() + 1]]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn arbitrary() -> impl Strategy<Value = Vec<Interaction>> {
        let split = prop::sample::select(vec![
            None,
            Some(Split::Train),
            Some(Split::Valid),
            Some(Split::Test),
        ]);
        prop::collection::btree_map((0_u8..12, 0_u8..12), split, 1..60).prop_map(|pairs| {
            pairs
                .into_iter()
                .rev()
                .map(|((user, item), split)| Interaction {
                    split,
                    ..Interaction::new(user.to_string(), item.to_string())
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn both_sides_of_an_edge_agree(interactions in arbitrary()) {
            let graph = BipartiteGraph::new(interactions.clone()).unwrap();
            let mut seen = 0;
            for split in Split::ALL {
                for side in [Side::User, Side::Item] {
                    for node in graph.nodes(side) {
                        let neighbors = graph.neighbors(node, split);
                        prop_assert!(neighbors.is_sorted_by_key(|n| graph.node(n.node).id().to_owned()));
                        prop_assert_eq!(graph.degree(node, split), neighbors.len());
                        seen += neighbors.len();
                        for neighbor in neighbors {
                            prop_assert_eq!(graph.node(neighbor.node).side(), side.other());
                            let back = Neighbor { node, interaction: neighbor.interaction };
                            prop_assert!(graph.neighbors(neighbor.node, split).contains(&back));
                            prop_assert_eq!(graph.interaction(neighbor.interaction).split, Some(split));
                            prop_assert_eq!(graph.split_of(node, neighbor.node), Some(split));
                        }
                    }
                }
            }
            prop_assert_eq!(seen, 2 * interactions.len());
            prop_assert_eq!(graph.as_petgraph().edge_count(), interactions.len());
            let asked: BTreeMap<_, _> = interactions.iter().map(|i| ((&i.user, &i.item), i.split)).collect();
            for user in graph.nodes(Side::User) {
                for item in graph.nodes(Side::Item) {
                    let pair = (&UserId::from(graph.node(user).id()), &ItemId::from(graph.node(item).id()));
                    let expected = asked.get(&pair).map(|split| split.unwrap_or(Split::Train));
                    prop_assert_eq!(graph.split_of(user, item), expected);
                }
            }
        }

        #[test]
        fn every_node_is_found_where_it_stands(interactions in arbitrary()) {
            let graph = BipartiteGraph::new(interactions).unwrap();
            for side in [Side::User, Side::Item] {
                prop_assert_eq!(graph.nodes(side).len(), graph.len(side));
                for node in graph.nodes(side) {
                    prop_assert_eq!(graph.index(graph.node(node)), Some(node));
                }
            }
            prop_assert_eq!(graph.user("nobody"), None);
        }
    }

    #[test]
    fn a_user_and_an_item_of_one_name_are_two_nodes() {
        let graph = BipartiteGraph::new(vec![Interaction::new("1", "1")]).unwrap();
        assert_ne!(graph.user("1"), graph.item("1"));
        assert_eq!(graph.as_petgraph().node_count(), 2);
    }

    #[test]
    fn known_nodes_without_an_edge_stand_alone() {
        let graph = BipartiteGraph::with_nodes(
            vec![Interaction::new("a", "x")],
            ["b".into(), "a".into()],
            ["w".into()],
        )
        .unwrap();
        let users: Vec<_> = graph
            .nodes(Side::User)
            .map(|node| graph.node(node).id())
            .collect();
        assert_eq!(users, ["a", "b"]);
        let lonely = graph.item("w").unwrap();
        assert!(graph.neighbors(lonely, Split::Train).is_empty());
    }

    #[test]
    fn what_is_no_graph_says_why() {
        assert!(matches!(
            BipartiteGraph::new(vec![]),
            Err(Error::EmptyGraph)
        ));
        let twice = vec![Interaction::new("a", "x"), Interaction::new("a", "x")];
        let said = BipartiteGraph::new(twice).unwrap_err().to_string();
        assert!(
            said.starts_with("user a, item x: two interactions"),
            "{said}"
        );
    }
}
