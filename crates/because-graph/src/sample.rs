use std::cmp::Reverse;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use because_core::{Interaction, Side, Split};
use petgraph::graph::NodeIndex;
use serde::{Deserialize, Serialize};

use crate::hash::stable_hash;
use crate::{BipartiteGraph, Error, Neighbor, Result};

/// Chooses whose profiles a node gets to read. Whatever it chooses must be a pure function of its arguments and of its
/// own settings, or a run cannot be resumed or spread over machines.
pub trait NeighborSampler: Send + Sync {
    /// At most `count` different train neighbours of `node`, in the order they are to be shown.
    fn sample(
        &self,
        graph: &BipartiteGraph,
        node: NodeIndex,
        layer: usize,
        count: usize,
    ) -> Vec<Neighbor>;
}

macro_rules! forward_sampler {
    ($($holder:ty),*) => {$(
        impl<T: NeighborSampler + ?Sized> NeighborSampler for $holder {
            fn sample(&self, graph: &BipartiteGraph, node: NodeIndex, layer: usize, count: usize) -> Vec<Neighbor> {
                (**self).sample(graph, node, layer, count)
            }
        }
    )*};
}

forward_sampler!(&T, Box<T>, Arc<T>);

/// Every neighbour has the same chance, drawn anew in each layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UniformSampler {
    /// The lot.
    pub seed: u64,
}

impl NeighborSampler for UniformSampler {
    fn sample(
        &self,
        graph: &BipartiteGraph,
        node: NodeIndex,
        layer: usize,
        count: usize,
    ) -> Vec<Neighbor> {
        smallest(graph, node, (self.seed, layer), count, |_| ())
    }
}

/// The latest interactions first; those without a time last; equals by lot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MostRecentSampler {
    /// The lot among equals.
    pub seed: u64,
}

impl NeighborSampler for MostRecentSampler {
    fn sample(
        &self,
        graph: &BipartiteGraph,
        node: NodeIndex,
        layer: usize,
        count: usize,
    ) -> Vec<Neighbor> {
        smallest(graph, node, (self.seed, layer), count, |interaction| {
            Reverse(interaction.timestamp)
        })
    }
}

/// The best rated interactions first; those without a rating last; equals by lot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopRatedSampler {
    /// The lot among equals.
    pub seed: u64,
}

impl NeighborSampler for TopRatedSampler {
    fn sample(
        &self,
        graph: &BipartiteGraph,
        node: NodeIndex,
        layer: usize,
        count: usize,
    ) -> Vec<Neighbor> {
        smallest(graph, node, (self.seed, layer), count, |interaction| {
            Reverse(interaction.rating.and_then(ascending))
        })
    }
}

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
}

impl Sampling {
    /// The sampler of this name.
    #[must_use]
    pub fn sampler(self, seed: u64) -> Box<dyn NeighborSampler> {
        match self {
            Self::Uniform => Box::new(UniformSampler { seed }),
            Self::MostRecent => Box::new(MostRecentSampler { seed }),
            Self::TopRated => Box::new(TopRatedSampler { seed }),
        }
    }
}

impl fmt::Display for Sampling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uniform => "uniform",
            Self::MostRecent => "most-recent",
            Self::TopRated => "top-rated",
        })
    }
}

impl FromStr for Sampling {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "uniform" => Ok(Self::Uniform),
            "most-recent" => Ok(Self::MostRecent),
            "top-rated" => Ok(Self::TopRated),
            other => Err(Error::Setting {
                name: "sampling",
                value: format!("{other:?}"),
                reason: "is not uniform, most-recent or top-rated",
            }),
        }
    }
}

/// The lot of one edge in one layer, seen from `node` (which is on `side`). It is the first eight bytes (little endian) of
/// BLAKE3 over its arguments, each behind its length, so every engine in every version draws the same.
#[must_use]
pub fn edge_rank(seed: u64, layer: usize, side: Side, node: &str, neighbor: &str) -> u64 {
    stable_hash(
        "because edge rank",
        seed,
        &[
            &(layer as u64).to_le_bytes(),
            side.as_str().as_bytes(),
            node.as_bytes(),
            neighbor.as_bytes(),
        ],
    )
}

/// The `count` smallest train neighbours by (`first`, [`edge_rank`], neighbour id), in that order.
fn smallest<K: Ord>(
    graph: &BipartiteGraph,
    node: NodeIndex,
    (seed, layer): (u64, usize),
    count: usize,
    first: impl Fn(&Interaction) -> K,
) -> Vec<Neighbor> {
    let center = graph.node(node);
    // Node indices of one side are in id order, so the index stands for the id.
    let mut ranked: Vec<_> = graph
        .neighbors(node, Split::Train)
        .iter()
        .map(|&neighbor| {
            let id = graph.node(neighbor.node).id();
            let rank = edge_rank(seed, layer, center.side(), center.id(), id);
            let own = first(graph.interaction(neighbor.interaction));
            ((own, rank, neighbor.node), neighbor)
        })
        .collect();
    if count == 0 {
        return Vec::new();
    }
    if count < ranked.len() {
        ranked.select_nth_unstable_by(count - 1, |a, b| a.0.cmp(&b.0));
        ranked.truncate(count);
    }
    ranked.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    ranked.into_iter().map(|(_, neighbor)| neighbor).collect()
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
                })
                .collect(),
        )
        .unwrap()
    }

    fn shown(graph: &BipartiteGraph, sampling: Sampling, count: usize) -> Vec<String> {
        let user = graph.user("u").unwrap();
        sampling
            .sampler(7)
            .sample(graph, user, 1, count)
            .into_iter()
            .map(|neighbor| graph.node(neighbor.node).id().to_owned())
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
            let rows = splits.iter().map(|(&(user, item), &split)| Interaction {
                split: Some(Split::ALL[split]),
                rating: item.is_multiple_of(2).then(|| f64::from(item)),
                timestamp: item.is_multiple_of(3).then(|| i64::from(item)),
                ..Interaction::new(user.to_string(), item.to_string())
            });
            let graph = BipartiteGraph::new(rows.collect()).unwrap();
            for sampling in [Sampling::Uniform, Sampling::MostRecent, Sampling::TopRated] {
                let sampler = sampling.sampler(seed);
                for node in [Side::User, Side::Item].into_iter().flat_map(|side| graph.nodes(side)) {
                    let sample = sampler.sample(&graph, node, layer, count);
                    let trained = graph.neighbors(node, Split::Train);
                    prop_assert_eq!(sample.len(), count.min(trained.len()));
                    prop_assert!(sample.iter().all(|neighbor| trained.contains(neighbor)));
                    let distinct: BTreeSet<_> = sample.iter().map(|neighbor| neighbor.node).collect();
                    prop_assert_eq!(distinct.len(), sample.len());
                    prop_assert_eq!(&sample, &sampling.sampler(seed).sample(&graph, node, layer, count));
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
        // Worked out once with this code: a change here changes every profile ever made.
        assert_eq!(
            edge_rank(42, 1, Side::User, "u1", "i1"),
            4_416_727_011_309_043_578
        );
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
        for name in ["uniform", "most-recent", "top-rated"] {
            assert_eq!(name.parse::<Sampling>().unwrap().to_string(), name);
        }
        assert!("newest".parse::<Sampling>().is_err());
    }

    #[test]
    fn a_uniform_draw_is_uniform() {
        let items: Vec<String> = (0..10).map(|n| n.to_string()).collect();
        let rows = items
            .iter()
            .map(|item| Interaction::new("u", item.as_str()));
        let graph = BipartiteGraph::new(rows.collect()).unwrap();
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
