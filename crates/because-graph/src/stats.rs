use because_core::{Side, Split};
use serde::Serialize;

use crate::BipartiteGraph;
use crate::kcore::core_numbers;

/// What kind of graph it is: size, density, degrees, pieces.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct GraphStats {
    /// Users, with or without an edge.
    pub users: usize,
    /// Items, with or without an edge.
    pub items: usize,
    /// Interactions by split.
    pub interactions: SplitCounts,
    /// Interactions over users times items.
    pub density: f64,
    /// How many items a user has, over all splits.
    pub user_degree: DegreeStats,
    /// How many users an item has, over all splits.
    pub item_degree: DegreeStats,
    /// Pieces that no edge connects, each lone node being one.
    pub connected_components: usize,
    /// Users without an edge in any split.
    pub isolated_users: usize,
    /// Items without an edge in any split.
    pub isolated_items: usize,
    /// The largest k with a k-core: the strictest filter that leaves anything.
    pub max_core: u32,
}

impl GraphStats {
    /// Measures a graph.
    #[must_use]
    pub fn of(graph: &BipartiteGraph) -> Self {
        let (users, items) = (graph.len(Side::User), graph.len(Side::Item));
        let mut interactions = SplitCounts::default();
        for interaction in graph.interactions() {
            interactions.add(interaction.split.unwrap_or(Split::Train));
        }
        let user_degrees = degrees(graph, Side::User);
        let item_degrees = degrees(graph, Side::Item);
        let isolated = |degrees: &[usize]| degrees.iter().filter(|&&degree| degree == 0).count();
        let pairs: Vec<(u32, u32)> = graph
            .as_petgraph()
            .raw_edges()
            .iter()
            .map(|edge| (edge.source().index() as u32, edge.target().index() as u32))
            .collect();
        Self {
            users,
            items,
            interactions,
            density: interactions.total() as f64 / (users as f64 * items as f64),
            isolated_users: isolated(&user_degrees),
            isolated_items: isolated(&item_degrees),
            user_degree: DegreeStats::of(user_degrees),
            item_degree: DegreeStats::of(item_degrees),
            connected_components: petgraph::algo::connected_components(graph.as_petgraph()),
            max_core: core_numbers(users + items, &pairs)
                .into_iter()
                .max()
                .unwrap_or(0),
        }
    }
}

/// How many rows each split has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SplitCounts {
    /// In [`Split::Train`].
    pub train: usize,
    /// In [`Split::Valid`].
    pub valid: usize,
    /// In [`Split::Test`].
    pub test: usize,
    /// In [`Split::Hidden`].
    #[serde(skip_serializing_if = "is_zero")]
    pub hidden: usize,
}

impl SplitCounts {
    /// All of them together.
    #[must_use]
    pub fn total(&self) -> usize {
        self.train + self.valid + self.test + self.hidden
    }

    /// The count of one split.
    #[must_use]
    pub fn of(&self, split: Split) -> usize {
        match split {
            Split::Train => self.train,
            Split::Valid => self.valid,
            Split::Test => self.test,
            Split::Hidden => self.hidden,
        }
    }

    pub(crate) fn add(&mut self, split: Split) {
        match split {
            Split::Train => self.train += 1,
            Split::Valid => self.valid += 1,
            Split::Test => self.test += 1,
            Split::Hidden => self.hidden += 1,
        }
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks for a reference"
)]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// How unevenly the edges of one side are spread.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DegreeStats {
    /// The least connected node.
    pub min: usize,
    /// Half of the nodes have at most this many edges.
    pub median: f64,
    /// Edges per node.
    pub mean: f64,
    /// The best connected node.
    pub max: usize,
}

impl DegreeStats {
    fn of(mut degrees: Vec<usize>) -> Self {
        degrees.sort_unstable();
        let count = degrees.len();
        let middle = |at: usize| degrees.get(at).copied().unwrap_or(0) as f64;
        Self {
            min: degrees.first().copied().unwrap_or(0),
            median: (middle(count.saturating_sub(1) / 2) + middle(count / 2)) / 2.0,
            mean: degrees.iter().sum::<usize>() as f64 / count.max(1) as f64,
            max: degrees.last().copied().unwrap_or(0),
        }
    }
}

fn degrees(graph: &BipartiteGraph, side: Side) -> Vec<usize> {
    graph
        .nodes(side)
        .map(|node| {
            Split::ALL
                .iter()
                .map(|&split| graph.degree(node, split))
                .sum()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use because_core::Interaction;

    use super::*;

    #[test]
    fn a_small_graph_by_hand() {
        let rows = ["ax", "ay", "bx", "by", "cz"].map(|pair| Interaction {
            split: (pair == "cz").then_some(Split::Test),
            ..Interaction::new(&pair[..1], &pair[1..])
        });
        let graph = BipartiteGraph::with_nodes(rows.into(), ["d".into()], []).unwrap();
        let stats = GraphStats::of(&graph);
        assert_eq!((stats.users, stats.items), (4, 3));
        assert_eq!(
            stats.interactions,
            SplitCounts {
                train: 4,
                valid: 0,
                test: 1,
                hidden: 0
            }
        );
        assert!((stats.density - 5.0 / 12.0).abs() < 1e-15);
        let degrees = stats.user_degree;
        assert_eq!((degrees.min, degrees.max), (0, 2));
        assert!((degrees.median - 1.5).abs() < 1e-15 && (degrees.mean - 1.25).abs() < 1e-15);
        assert_eq!(stats.connected_components, 3);
        assert_eq!((stats.isolated_users, stats.isolated_items), (1, 0));
        assert_eq!(stats.max_core, 2);
    }
}
