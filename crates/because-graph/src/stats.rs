use std::collections::BTreeMap;

use because_core::{Side, Split};
use petgraph::graph::NodeIndex;
use petgraph::unionfind::UnionFind;
use petgraph::visit::NodeCount;
use serde::Serialize;

use crate::kcore::core_numbers;
use crate::{BipartiteGraph, SplitGraph};

/// What kind of graph it is: size, density, degrees, pieces, cores; of all splits together and of each.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct GraphStats {
    /// Users, with or without an edge.
    pub users: usize,
    /// Items, with or without an edge.
    pub items: usize,
    /// Interactions by split.
    pub interactions: SplitCounts,
    /// The graph of all splits.
    #[serde(flatten)]
    pub whole: SplitStats,
    /// The graph of each split that has edges.
    pub splits: BTreeMap<Split, SplitStats>,
}

impl GraphStats {
    /// Measures a graph.
    #[must_use]
    pub fn of(graph: &BipartiteGraph) -> Self {
        let count = |split| graph.of(split).len();
        let splits = Split::ALL
            .into_iter()
            .filter(|&split| count(split) > 0)
            .map(|split| (split, SplitStats::of(graph.of(split))))
            .collect();
        Self {
            users: graph.len(Side::User),
            items: graph.len(Side::Item),
            interactions: SplitCounts {
                train: count(Split::Train),
                valid: count(Split::Valid),
                test: count(Split::Test),
                hidden: count(Split::Hidden),
            },
            whole: SplitStats::of(graph.whole()),
            splits,
        }
    }
}

/// The figures of the edges of one split, or of all, between all users and items.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SplitStats {
    /// Interactions over users times items.
    pub density: f64,
    /// How many items a user has.
    pub user_degree: DegreeStats,
    /// How many users an item has.
    pub item_degree: DegreeStats,
    /// What the items with the most users take of all interactions.
    pub popularity: Popularity,
    /// Pieces that no edge connects, each lone node being one.
    pub connected_components: usize,
    /// The nodes in each of the ten largest pieces.
    pub largest_components: Vec<usize>,
    /// Users without an edge.
    pub isolated_users: usize,
    /// Items without an edge.
    pub isolated_items: usize,
    /// The largest k with a k-core: the strictest filter that leaves anything.
    pub max_core: u32,
    /// What is left at 1, 2, 3, 5, 10, 20, 30, 50 and so on, and at the largest k.
    pub cores: Vec<CoreStats>,
}

impl SplitStats {
    fn of(graph: SplitGraph<'_>) -> Self {
        let [user_degrees, item_degrees] = [Side::User, Side::Item].map(|side| {
            let degree = |node| graph.neighbors_of(node).len();
            let mut degrees: Vec<usize> = graph.graph().nodes(side).map(degree).collect();
            degrees.sort_unstable();
            degrees
        });
        let isolated = |degrees: &[usize]| degrees.partition_point(|&degree| degree == 0);
        let pairs = user_degrees.len() as f64 * item_degrees.len() as f64;
        let cores = core_numbers(graph);
        let components = component_sizes(graph);
        Self {
            density: graph.len() as f64 / pairs,
            popularity: Popularity::of(&item_degrees),
            connected_components: components.len(),
            largest_components: components.into_iter().take(10).collect(),
            isolated_users: isolated(&user_degrees),
            isolated_items: isolated(&item_degrees),
            user_degree: DegreeStats::of(&user_degrees),
            item_degree: DegreeStats::of(&item_degrees),
            max_core: cores.iter().copied().max().unwrap_or(0),
            cores: CoreStats::levels(graph, &cores),
        }
    }
}

/// What a few items take: the share of the interactions that lie on the items with the most users.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Popularity {
    /// On the best connected hundredth of the items, rounded up.
    pub top_1_percent: f64,
    /// On the best connected tenth.
    pub top_10_percent: f64,
}

impl Popularity {
    fn of(ascending: &[usize]) -> Self {
        let sum = |degrees: &[usize]| degrees.iter().sum::<usize>() as f64;
        let all = sum(ascending).max(1.0);
        let share = |part: usize| {
            let items = ascending.len().div_ceil(part);
            sum(&ascending[ascending.len() - items..]) / all
        };
        Self {
            top_1_percent: share(100),
            top_10_percent: share(10),
        }
    }
}

/// What is left when everybody has to have `k` neighbours among those who are left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CoreStats {
    /// The bound for both sides.
    pub k: u32,
    /// Users left.
    pub users: usize,
    /// Items left.
    pub items: usize,
    /// Interactions left.
    pub interactions: usize,
}

impl CoreStats {
    fn levels(graph: SplitGraph<'_>, cores: &[u32]) -> Vec<Self> {
        let most = cores.iter().copied().max().unwrap_or(0);
        // How many have exactly this core number; summed from above, how many have at least it.
        let at_least = |exact: &mut dyn Iterator<Item = u32>| {
            let mut counts = vec![0_usize; most as usize + 2];
            exact.for_each(|core| counts[core as usize] += 1);
            for k in (0..=most as usize).rev() {
                counts[k] += counts[k + 1];
            }
            counts
        };
        let (of_users, of_items) = cores.split_at(graph.graph().len(Side::User));
        let users = at_least(&mut of_users.iter().copied());
        let items = at_least(&mut of_items.iter().copied());
        let edges = &mut graph.graph().nodes(Side::User).flat_map(|user| {
            let own = cores[user.index()];
            let item = move |item: &NodeIndex| own.min(cores[item.index()]);
            graph.neighbors_of(user).iter().map(item)
        });
        let interactions = at_least(edges);
        let round = (0..9).flat_map(|power| [1, 2, 3, 5].map(|digit| digit * 10_u32.pow(power)));
        round
            .take_while(|&k| k < most)
            .chain([most])
            .filter(|&k| k > 0)
            .map(|k| Self {
                k,
                users: users[k as usize],
                items: items[k as usize],
                interactions: interactions[k as usize],
            })
            .collect()
    }
}

/// The nodes of each piece, the largest first.
fn component_sizes(graph: SplitGraph<'_>) -> Vec<usize> {
    let nodes = graph.node_count();
    let mut pieces = UnionFind::<u32>::new(nodes);
    for user in graph.graph().nodes(Side::User) {
        for item in graph.neighbors_of(user) {
            pieces.union(user.index() as u32, item.index() as u32);
        }
    }
    let mut sizes = vec![0; nodes];
    for piece in pieces.into_labeling() {
        sizes[piece as usize] += 1;
    }
    sizes.retain(|&size| size > 0);
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    sizes
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
    /// A quarter of the nodes have at most this many edges.
    pub p25: usize,
    /// Half of the nodes have at most this many edges.
    pub median: f64,
    /// Edges per node.
    pub mean: f64,
    /// Three quarters of the nodes have at most this many edges.
    pub p75: usize,
    /// Nine of ten nodes have at most this many edges.
    pub p90: usize,
    /// Ninety-nine of a hundred nodes have at most this many edges.
    pub p99: usize,
    /// The best connected node.
    pub max: usize,
    /// The Gini coefficient: 0 where all nodes have as many edges, towards 1 where one has all.
    pub gini: f64,
}

impl DegreeStats {
    fn of(ascending: &[usize]) -> Self {
        let count = ascending.len();
        let at = |place: usize| ascending.get(place).copied().unwrap_or(0);
        let percentile = |percent: usize| at((count * percent).div_ceil(100).saturating_sub(1));
        let sum = ascending.iter().sum::<usize>() as f64;
        let ranked = |(rank, &degree): (usize, &usize)| (rank + 1) as f64 * degree as f64;
        let weighted: f64 = ascending.iter().enumerate().map(ranked).sum();
        let nodes = count.max(1) as f64;
        Self {
            min: at(0),
            p25: percentile(25),
            median: (at(count.saturating_sub(1) / 2) + at(count / 2)) as f64 / 2.0,
            mean: sum / nodes,
            p75: percentile(75),
            p90: percentile(90),
            p99: percentile(99),
            max: at(count.saturating_sub(1)),
            gini: match sum > 0.0 {
                true => 2.0 * weighted / (nodes * sum) - (nodes + 1.0) / nodes,
                false => 0.0,
            },
        }
    }
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
        let graph = BipartiteGraph::with_nodes(rows, ["d".into()], []).unwrap();
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
        let whole = &stats.whole;
        assert!((whole.density - 5.0 / 12.0).abs() < 1e-15);
        let degrees = whole.user_degree;
        assert_eq!((degrees.min, degrees.max), (0, 2));
        assert!((degrees.median - 1.5).abs() < 1e-15 && (degrees.mean - 1.25).abs() < 1e-15);
        // Degrees 0, 1, 2, 2: the mean difference of two nodes, 14 / 16, over twice the mean, 2.5.
        assert!((degrees.gini - 0.35).abs() < 1e-15);
        assert_eq!([degrees.p25, degrees.p75, degrees.p90], [0, 2, 2]);
        assert_eq!(whole.connected_components, 3);
        assert_eq!(whole.largest_components, [4, 2, 1]);
        assert_eq!((whole.isolated_users, whole.isolated_items), (1, 0));
        assert!((whole.popularity.top_1_percent - 0.4).abs() < 1e-15);
        let core = |k, users, items, interactions| CoreStats {
            k,
            users,
            items,
            interactions,
        };
        assert_eq!(whole.cores, [core(1, 3, 3, 5), core(2, 2, 2, 4)]);
        assert_eq!(whole.max_core, 2);

        let splits: Vec<_> = stats.splits.keys().copied().collect();
        assert_eq!(splits, [Split::Train, Split::Test]);
        let test = &stats.splits[&Split::Test];
        assert_eq!((test.isolated_users, test.connected_components), (3, 6));
        assert_eq!(test.cores, [core(1, 1, 1, 1)]);

        let object = serde_json::to_value(&stats).unwrap();
        assert_eq!(object["interactions"]["train"], 4);
        assert_eq!(object["connected_components"], 3);
        assert_eq!(object["splits"]["train"]["max_core"], 2);
    }

    #[test]
    fn cores_are_told_at_round_numbers() {
        let complete = (0..12).flat_map(|user| {
            (0..12).map(move |item| Interaction::new(user.to_string(), item.to_string()))
        });
        let graph = BipartiteGraph::new(complete).unwrap();
        let levels = GraphStats::of(&graph).whole.cores;
        let found: Vec<_> = levels.iter().map(|level| level.k).collect();
        assert_eq!(found, [1, 2, 3, 5, 10, 12]);
        assert!(levels.iter().all(|level| level.interactions == 144));
    }
}
