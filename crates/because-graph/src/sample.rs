mod damped;
mod lottery;
mod relevance;

use std::borrow::Cow;
use std::cmp::Reverse;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use because_core::{Side, Split};
use petgraph::graph::{EdgeIndex, NodeIndex};
use serde::{Deserialize, Serialize};

use crate::hash::{Mixed, id_key};
use crate::lots::Purpose;
use crate::{BipartiteGraph, Error, Neighbor, Result};

pub use damped::DegreeDampedSampler;
pub use relevance::RelevanceSampler;

/// Chooses whose profiles a node gets to read. Whatever it chooses must be a pure function of its arguments and of its
/// own settings, or a run cannot be resumed or spread over machines.
pub trait NeighborSampler: Send + Sync {
    /// Replaces what is in `sample` by at most `count` different train neighbours of `node`, in the order they are to be
    /// shown. A buffer that is used again makes many samples without an allocation each.
    fn sample_into(
        &self,
        graph: &BipartiteGraph,
        node: NodeIndex,
        layer: usize,
        count: usize,
        sample: &mut Vec<Neighbor>,
    );

    /// The same in a list of its own.
    fn sample(
        &self,
        graph: &BipartiteGraph,
        node: NodeIndex,
        layer: usize,
        count: usize,
    ) -> Vec<Neighbor> {
        let mut sample = Vec::new();
        self.sample_into(graph, node, layer, count, &mut sample);
        sample
    }
}

macro_rules! forward_sampler {
    ($($holder:ty),*) => {$(
        impl<T: NeighborSampler + ?Sized> NeighborSampler for $holder {
            fn sample_into(
                &self,
                graph: &BipartiteGraph,
                node: NodeIndex,
                layer: usize,
                count: usize,
                sample: &mut Vec<Neighbor>,
            ) {
                (**self).sample_into(graph, node, layer, count, sample);
            }
        }
    )*};
}

forward_sampler!(&T, Box<T>, Arc<T>);

/// Makes a sampler of a type with a `seed`: it shows the neighbours first whose keys are the smallest, equals by lot. The key
/// is made from the sampler, the graph and the node by what [`smallest`] is given as `first`.
macro_rules! smallest_first {
    ($sampler:ty, |$own:pat_param, $graph:pat_param, $node:pat_param| $first:expr) => {
        impl $crate::NeighborSampler for $sampler {
            fn sample_into(
                &self,
                graph: &$crate::BipartiteGraph,
                node: petgraph::graph::NodeIndex,
                layer: usize,
                count: usize,
                sample: &mut Vec<$crate::Neighbor>,
            ) {
                let ($own, $graph, $node) = (self, graph, node);
                let lots = $crate::sample::EdgeLots::of_node(graph, self.seed, layer, node);
                $crate::sample::smallest(graph, node, lots, count, sample, $first);
            }
        }
    };
}
use smallest_first;

/// Every neighbour has the same chance, drawn anew in each layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UniformSampler {
    /// The lot.
    pub seed: u64,
}

impl NeighborSampler for UniformSampler {
    fn sample_into(
        &self,
        graph: &BipartiteGraph,
        node: NodeIndex,
        layer: usize,
        count: usize,
        sample: &mut Vec<Neighbor>,
    ) {
        let lots = EdgeLots::of_node(graph, self.seed, layer, node);
        lottery::smallest(graph, node, lots, count, sample);
    }
}

/// The latest interactions first; those without a time last; equals by lot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MostRecentSampler {
    /// The lot among equals.
    pub seed: u64,
}

smallest_first!(MostRecentSampler, |_, graph, _| |_, edge, _| {
    Reverse(graph.timestamp(edge()))
});

/// The best rated interactions first; those without a rating last; equals by lot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopRatedSampler {
    /// The lot among equals.
    pub seed: u64,
}

smallest_first!(TopRatedSampler, |_, graph, _| |_, edge, _| {
    Reverse(graph.rating(edge()).and_then(ascending))
});

/// The samplers of this crate by name, for settings and command lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Sampling {
    /// [`UniformSampler`].
    #[default]
    Uniform,
    /// [`MostRecentSampler`].
    MostRecent,
    /// [`TopRatedSampler`].
    TopRated,
    /// [`DegreeDampedSampler`] with its usual damping.
    DegreeDamped,
    /// [`RelevanceSampler`].
    Relevance,
}

impl Sampling {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Uniform,
        Self::MostRecent,
        Self::TopRated,
        Self::DegreeDamped,
        Self::Relevance,
    ];

    /// The sampler of this name. Only [`Sampling::Relevance`] asks for texts, once for each node.
    pub fn sampler<'t>(
        self,
        seed: u64,
        graph: &BipartiteGraph,
        text: impl FnMut(NodeIndex) -> Option<Cow<'t, str>>,
    ) -> Box<dyn NeighborSampler> {
        match self {
            Self::Uniform => Box::new(UniformSampler { seed }),
            Self::MostRecent => Box::new(MostRecentSampler { seed }),
            Self::TopRated => Box::new(TopRatedSampler { seed }),
            Self::DegreeDamped => Box::new(DegreeDampedSampler::new(seed)),
            Self::Relevance => Box::new(RelevanceSampler::new(seed, graph, text)),
        }
    }

    /// Its name in settings and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::MostRecent => "most-recent",
            Self::TopRated => "top-rated",
            Self::DegreeDamped => "degree-damped",
            Self::Relevance => "relevance",
        }
    }
}

impl fmt::Display for Sampling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Sampling {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let named = |sampling: &Self| sampling.as_str() == text;
        Self::ALL
            .into_iter()
            .find(named)
            .ok_or_else(|| Error::Setting {
                name: "sampling",
                value: format!("{text:?}"),
                reason: "is not uniform, most-recent, top-rated, degree-damped or relevance",
            })
    }
}

/// Counts the definitions that [`edge_rank`] and the samplers have had. Whoever keeps what was made from a sample notes it, so
/// that it is made anew once samples are drawn another way.
pub const EDGE_RANK_VERSION: u32 = 2;

/// The lot of one edge in one layer, seen from `node` (which is on `side`). It is a pure function of these: 64 bits of each
/// id (BLAKE3) and the rest, mixed by multiplications, so every engine in every version draws the same.
#[must_use]
pub fn edge_rank(seed: u64, layer: usize, side: Side, node: &str, neighbor: &str) -> u64 {
    EdgeLots::new(seed, layer, side, id_key(node)).of(id_key(neighbor))
}

/// The lots of a node's edges in one layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EdgeLots(Mixed);

impl EdgeLots {
    pub(crate) fn new(seed: u64, layer: usize, side: Side, key: u64) -> Self {
        let mixed = Mixed::new(seed)
            .with(Purpose::EdgeRank as u64)
            .with(layer as u64);
        Self(mixed.with(side as u64).with(key))
    }

    fn of_node(graph: &BipartiteGraph, seed: u64, layer: usize, node: NodeIndex) -> Self {
        Self::new(seed, layer, graph.side(node), graph.key(node))
    }

    pub(crate) fn of(self, neighbor: u64) -> u64 {
        self.0.lot_of(neighbor)
    }
}

/// Samples of up to so many are kept in order while the neighbours go by, on the stack.
const FEW: usize = 16;

/// The `count` smallest train neighbours by (`first`, [`edge_rank`], neighbour id), in that order. `first` is given a
/// neighbour, the way to its edge, and its lot.
fn smallest<K: Ord + Copy + Default>(
    graph: &BipartiteGraph,
    node: NodeIndex,
    lots: EdgeLots,
    count: usize,
    sample: &mut Vec<Neighbor>,
    first: impl Fn(NodeIndex, &dyn Fn() -> EdgeIndex, u64) -> K,
) {
    sample.clear();
    let (places, neighbors) = graph.placed_neighbors(node, Split::Train);
    let wanted = count.min(neighbors.len());
    if wanted == 0 {
        return;
    }
    let side = graph.side(node);
    // Node indices of one side are in id order, so the index stands for the id.
    let candidates = places.zip(neighbors).map(|(place, &neighbor)| {
        let lot = lots.of(graph.key(neighbor));
        let own = first(neighbor, &|| graph.edge_at(side, place), lot);
        (own, lot, neighbor, place as u32)
    });
    let neighbor = |&(_, _, node, place): &(K, u64, NodeIndex, u32)| Neighbor {
        node,
        edge: graph.edge_at(side, place as usize),
    };
    if wanted > FEW {
        let mut ranked: Vec<_> = candidates.collect();
        if wanted < ranked.len() {
            ranked.select_nth_unstable(wanted - 1);
            ranked.truncate(wanted);
        }
        ranked.sort_unstable();
        sample.extend(ranked.iter().map(neighbor));
        return;
    }
    let mut best = [(K::default(), 0, NodeIndex::default(), 0); FEW];
    let best = &mut best[..wanted];
    for (seen, candidate) in candidates.enumerate() {
        insert(best, seen, candidate);
    }
    sample.extend(best.iter().map(neighbor));
}

/// Keeps the smallest of all candidates in order, this one coming after `seen` others.
fn insert<T: Ord + Copy>(best: &mut [T], seen: usize, candidate: T) {
    let last = best.len() - 1;
    if seen > last && candidate >= best[last] {
        return;
    }
    let mut at = seen.min(last);
    while at > 0 && candidate < best[at - 1] {
        best[at] = best[at - 1];
        at -= 1;
    }
    best[at] = candidate;
}

/// A whole number in the order of the ratings; what is not a number has no place among them.
fn ascending(rating: f64) -> Option<i64> {
    if rating.is_nan() {
        return None;
    }
    // The bits of a float sort like an integer once those of the negative ones are turned round (IEEE 754 totalOrder);
    // adding zero first makes one of the two zeros.
    let bits = (rating + 0.0).to_bits().cast_signed();
    Some(bits ^ ((bits >> 63).cast_unsigned() >> 1).cast_signed())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use because_core::Interaction;
    use proptest::prelude::*;

    use super::*;

    fn graph(rows: &[(&str, Option<f64>, Option<i64>, Split)]) -> BipartiteGraph {
        BipartiteGraph::new(
            rows.iter()
                .map(|&(item, rating, timestamp, split)| Interaction {
                    rating,
                    timestamp,
                    split: Some(split),
                    ..Interaction::new("u", item)
                }),
        )
        .unwrap()
    }

    fn shown(graph: &BipartiteGraph, sampling: Sampling, count: usize) -> Vec<String> {
        let user = graph.user("u").unwrap();
        sampling
            .sampler(7, graph, |_| None)
            .sample(graph, user, 1, count)
            .into_iter()
            .map(|neighbor| graph.id(neighbor.node).to_owned())
            .collect()
    }

    proptest! {
        #[test]
        fn a_sample_is_of_train_neighbors_without_repeats_and_stays_the_same(
            splits in prop::collection::btree_map((0_u8..6, 0_u8..9), 0_usize..3, 1..50),
            seed: u64,
            layer in 0_usize..4,
            count in 0_usize..8,
        ) {
            let words = ["red", "green wine", "blue", "red wine"];
            let text = |node: NodeIndex| words.get(node.index() % 5).map(|&text| text.into());
            let rows = splits.iter().map(|(&(user, item), &split)| Interaction {
                split: Some(Split::ALL[split]),
                rating: item.is_multiple_of(2).then(|| f64::from(item)),
                timestamp: item.is_multiple_of(3).then(|| i64::from(item)),
                ..Interaction::new(user.to_string(), item.to_string())
            });
            let graph = BipartiteGraph::new(rows).unwrap();
            for sampling in Sampling::ALL {
                let sampler = sampling.sampler(seed, &graph, text);
                for node in [Side::User, Side::Item].into_iter().flat_map(|side| graph.nodes(side)) {
                    let sample = sampler.sample(&graph, node, layer, count);
                    let trained = graph.neighbors(node, Split::Train);
                    prop_assert_eq!(sample.len(), count.min(trained.len()));
                    prop_assert!(sample.iter().all(|neighbor| trained.contains(&neighbor.node)));
                    let ends = |edge: crate::Edge| [edge.source, edge.target];
                    let lies_between = |neighbor: &Neighbor| {
                        let ends = ends(graph.edge(neighbor.edge));
                        ends.contains(&node) && ends.contains(&neighbor.node)
                    };
                    prop_assert!(sample.iter().all(lies_between));
                    let distinct: BTreeSet<_> = sample.iter().map(|neighbor| neighbor.node).collect();
                    prop_assert_eq!(distinct.len(), sample.len());
                    prop_assert_eq!(&sample, &sampling.sampler(seed, &graph, text).sample(&graph, node, layer, count));
                    let more = sampler.sample(&graph, node, layer, count + 1);
                    prop_assert!(more.starts_with(&sample), "a larger sample begins with the smaller");
                }
            }
        }

        #[test]
        fn ratings_keep_their_order(a: f64, b: f64) {
            prop_assume!(!a.is_nan() && !b.is_nan());
            prop_assert_eq!(ascending(a).cmp(&ascending(b)), a.partial_cmp(&b).unwrap());
        }
    }

    #[test]
    fn recency_and_rating_rank_first_and_what_lacks_them_last() {
        let graph = graph(&[
            ("old", Some(5.0), Some(1), Split::Train),
            ("new", Some(-1.0), Some(9), Split::Train),
            ("bare", None, None, Split::Train),
            ("held", Some(5.0), Some(99), Split::Test),
        ]);
        assert_eq!(
            shown(&graph, Sampling::MostRecent, 9),
            ["new", "old", "bare"]
        );
        assert_eq!(shown(&graph, Sampling::TopRated, 2), ["old", "new"]);
        assert!(shown(&graph, Sampling::Uniform, 0).is_empty());
    }

    #[test]
    fn the_rank_of_an_edge_never_changes() {
        // Worked out once with this code: a change here changes every profile ever made, and is a new version.
        assert_eq!(
            (EDGE_RANK_VERSION, edge_rank(42, 1, Side::User, "u1", "i1")),
            (2, 8_152_908_412_659_158_619)
        );
    }

    #[test]
    fn large_samples_are_the_small_ones_carried_on() {
        let rows = (0..60).map(|n| Interaction {
            timestamp: Some(n % 7),
            ..Interaction::new("u", n.to_string())
        });
        let graph = BipartiteGraph::new(rows).unwrap();
        let user = graph.user("u").unwrap();
        for sampling in Sampling::ALL {
            let sampler = sampling.sampler(5, &graph, |_| Some("all the same".into()));
            let all = sampler.sample(&graph, user, 2, usize::MAX);
            for count in [1, FEW - 1, FEW, FEW + 1, 59, 60] {
                assert_eq!(sampler.sample(&graph, user, 2, count), all[..count]);
            }
            if sampling == Sampling::Uniform {
                let rank = |neighbor: &Neighbor| graph.edge_rank(5, 2, user, neighbor.node);
                assert!(all.is_sorted_by_key(rank));
                let by_ids = edge_rank(5, 2, Side::User, "u", graph.id(all[0].node));
                assert_eq!(rank(&all[0]), by_ids);
            }
        }
    }

    #[test]
    fn layers_and_sides_draw_apart() {
        let rank = |layer, side| edge_rank(42, layer, side, "a", "b");
        let drawn: BTreeSet<_> = [
            rank(1, Side::User),
            rank(2, Side::User),
            rank(1, Side::Item),
        ]
        .into();
        assert_eq!(drawn.len(), 3);
    }

    #[test]
    fn names_are_read_or_refused() {
        for sampling in Sampling::ALL {
            let name = sampling.to_string();
            assert_eq!(name.parse::<Sampling>().unwrap(), sampling);
            assert_eq!(serde_json::to_value(sampling).unwrap(), name);
        }
        assert!("newest".parse::<Sampling>().is_err());
    }

    #[test]
    fn a_uniform_draw_is_uniform() {
        let items: Vec<String> = (0..10).map(|n| n.to_string()).collect();
        let rows = items
            .iter()
            .map(|item| Interaction::new("u", item.as_str()));
        let graph = BipartiteGraph::new(rows).unwrap();
        let user = graph.user("u").unwrap();
        let mut drawn = vec![0_u32; 10];
        for seed in 0..2000 {
            for neighbor in (UniformSampler { seed }).sample(&graph, user, 1, 3) {
                drawn[neighbor.node.index() - 1] += 1;
            }
        }
        // 600 expected each, standard deviation about 20.5.
        assert!(
            drawn.iter().all(|count| (500..700).contains(count)),
            "{drawn:?}"
        );
    }
}
