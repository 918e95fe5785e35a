use std::sync::Arc;

use because_core::{Side, Split};
use petgraph::graph::NodeIndex;

use crate::BipartiteGraph;

/// An item and how well it fits a user.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scored {
    /// The item.
    pub item: NodeIndex,
    /// Higher fits better; only the order within one answer means something.
    pub score: f64,
}

/// What hard negatives and rankings are built on: any recommender that can score items for a user. It is given train
/// interactions only; masking what the user already knows is left to who asks.
pub trait ItemScorer: Send + Sync {
    /// Every item that scores above zero, in item order (not in score order).
    fn scores(&self, user: NodeIndex) -> Vec<Scored>;

    /// What reports and artefacts call it; the name of its type unless it says otherwise.
    fn name(&self) -> &str {
        let path = std::any::type_name::<Self>();
        let path = path.split_once('<').map_or(path, |(path, _)| path);
        path.rsplit("::").next().unwrap_or(path)
    }
}

macro_rules! forward_scorer {
    ($($holder:ty),*) => {$(
        impl<T: ItemScorer + ?Sized> ItemScorer for $holder {
            fn scores(&self, user: NodeIndex) -> Vec<Scored> {
                (**self).scores(user)
            }

            fn name(&self) -> &str {
                (**self).name()
            }
        }
    )*};
}

forward_scorer!(&T, Box<T>, Arc<T>);

/// Item-kNN by shrunk cosine, the training-free recommender that is hard to beat:
/// `score(u, j) = sum over i in train(u), i != j, of c_ij / (sqrt(d_i d_j) + shrinkage)`, where `c_ij` counts the users
/// with both items and `d_i` those with item `i`, all over train edges.
///
/// Nothing is precomputed: one user costs a walk of three steps, so a run over few users is cheap on any graph.
///
/// ```
/// use because_core::Interaction;
/// use because_graph::{BipartiteGraph, ItemCosine, ItemScorer};
///
/// let graph = BipartiteGraph::new(vec![
///     Interaction::new("ann", "dune"),
///     Interaction::new("bob", "dune"),
///     Interaction::new("bob", "solaris"),
///     Interaction::new("cid", "emma"),
/// ])?;
/// let scorer = ItemCosine::new(&graph).shrinkage(0.0);
/// let ann = graph.user("ann").expect("she read Dune");
/// let scored = scorer.scores(ann);
/// assert_eq!(scored.len(), 1, "emma shares no reader with dune");
/// assert_eq!(scored[0].item, graph.item("solaris").expect("bob read it"));
/// assert!((scored[0].score - 1.0 / 2_f64.sqrt()).abs() < 1e-12);
/// # Ok::<(), because_graph::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct ItemCosine<'g> {
    graph: &'g BipartiteGraph,
    shrinkage: f64,
    max_bridge_degree: usize,
}

impl<'g> ItemCosine<'g> {
    /// With a shrinkage of 10 and bridges of at most 2000 items.
    #[must_use]
    pub fn new(graph: &'g BipartiteGraph) -> Self {
        Self {
            graph,
            shrinkage: 10.0,
            max_bridge_degree: 2000,
        }
    }

    /// What is added to the denominator so that two rare items met once are not taken for twins; below zero counts as zero.
    #[must_use]
    pub fn shrinkage(mut self, shrinkage: f64) -> Self {
        self.shrinkage = shrinkage.max(0.0);
        self
    }

    /// Users with more train items than this connect nothing: they cost the square of their degree and say little. They
    /// still count in the degrees of the items and get scores themselves.
    #[must_use]
    pub fn max_bridge_degree(mut self, items: usize) -> Self {
        self.max_bridge_degree = items;
        self
    }

    /// `c_ij / (sqrt(d_i d_j) + shrinkage)`; zero where nobody has both or a node is not an item.
    #[must_use]
    pub fn similarity(&self, i: NodeIndex, j: NodeIndex) -> f64 {
        if [i, j]
            .iter()
            .any(|&node| self.graph.side(node) != Side::Item)
        {
            return 0.0;
        }
        let (mut of_i, mut of_j) = (self.train(i), self.train(j));
        let mut common = 0;
        while let ([a, rest_i @ ..], [b, rest_j @ ..]) = (of_i, of_j) {
            common += u32::from(a == b && self.is_bridge(*a));
            if a <= b {
                of_i = rest_i;
            }
            if b <= a {
                of_j = rest_j;
            }
        }
        self.shrunk_cosine(common, i, j)
    }

    fn train(&self, node: NodeIndex) -> &'g [NodeIndex] {
        self.graph.neighbors(node, Split::Train)
    }

    fn is_bridge(&self, user: NodeIndex) -> bool {
        self.train(user).len() <= self.max_bridge_degree
    }

    fn shrunk_cosine(&self, common: u32, i: NodeIndex, j: NodeIndex) -> f64 {
        if common == 0 {
            return 0.0;
        }
        let degrees = self.train(i).len() as f64 * self.train(j).len() as f64;
        f64::from(common) / (degrees.sqrt() + self.shrinkage)
    }
}

impl ItemScorer for ItemCosine<'_> {
    fn scores(&self, user: NodeIndex) -> Vec<Scored> {
        if self.graph.side(user) != Side::User {
            return Vec::new();
        }
        // Items follow the users without a gap, so an item's place in these is its index less the number of users.
        let first = self.graph.len(Side::User);
        let mut common = vec![0_u32; self.graph.len(Side::Item)];
        let mut scores = vec![0_f64; common.len()];
        let mut met = Vec::new();
        // A score is summed over the user's items in id order, so its last bit is the same in every run.
        for &i in self.train(user) {
            for &bridge in self.train(i) {
                if !self.is_bridge(bridge) {
                    continue;
                }
                for &j in self.train(bridge) {
                    let place = j.index() - first;
                    if common[place] == 0 {
                        met.push(j);
                    }
                    common[place] += 1;
                }
            }
            for j in met.drain(..) {
                let together = std::mem::take(&mut common[j.index() - first]);
                if j != i {
                    scores[j.index() - first] += self.shrunk_cosine(together, i, j);
                }
            }
        }
        self.graph
            .nodes(Side::Item)
            .zip(scores)
            .filter(|&(_, score)| score > 0.0)
            .map(|(item, score)| Scored { item, score })
            .collect()
    }

    fn name(&self) -> &str {
        "item-cosine"
    }
}

#[cfg(test)]
mod tests {
    use because_core::Interaction;
    use proptest::prelude::*;

    use super::*;

    fn arbitrary() -> impl Strategy<Value = BipartiteGraph> {
        prop::collection::btree_map((0_u8..9, 0_u8..9), 0_usize..4, 1..60).prop_map(|pairs| {
            let rows = pairs.into_iter().map(|((user, item), split)| Interaction {
                split: Some(Split::ALL[split.min(2)]),
                ..Interaction::new(user.to_string(), item.to_string())
            });
            BipartiteGraph::new(rows).unwrap()
        })
    }

    proptest! {
        #[test]
        fn a_score_is_the_sum_of_similarities(graph in arbitrary(), cap in 0_usize..9) {
            let scorer = ItemCosine::new(&graph).shrinkage(3.0).max_bridge_degree(cap);
            for user in graph.nodes(Side::User) {
                let scored = scorer.scores(user);
                prop_assert!(scored.is_sorted_by_key(|scored| scored.item));
                for item in graph.nodes(Side::Item) {
                    let expected: f64 = graph
                        .neighbors(user, Split::Train)
                        .iter()
                        .filter(|&&neighbor| neighbor != item)
                        .map(|&neighbor| scorer.similarity(neighbor, item))
                        .sum();
                    let found = scored.iter().find(|scored| scored.item == item);
                    prop_assert!((found.map_or(0.0, |scored| scored.score) - expected).abs() < 1e-12);
                    prop_assert!(found.is_none_or(|scored| scored.score > 0.0));
                }
            }
        }

        #[test]
        fn similarity_is_symmetric(graph in arbitrary()) {
            let scorer = ItemCosine::new(&graph);
            for i in graph.nodes(Side::Item) {
                for j in graph.nodes(Side::Item) {
                    prop_assert_eq!(scorer.similarity(i, j), scorer.similarity(j, i));
                }
            }
        }
    }

    #[test]
    fn held_out_edges_and_crowded_bridges_connect_nothing() {
        let held = Interaction {
            split: Some(Split::Test),
            ..Interaction::new("b", "y")
        };
        let graph = BipartiteGraph::new(vec![
            Interaction::new("a", "x"),
            Interaction::new("b", "x"),
            Interaction::new("b", "z"),
            held,
        ])
        .unwrap();
        let a = graph.user("a").unwrap();
        let found = ItemCosine::new(&graph).scores(a);
        assert_eq!(found.len(), 1);
        // c = 1, d_x = 2, d_z = 1.
        assert!((found[0].score - 1.0 / (2_f64.sqrt() + 10.0)).abs() < 1e-15);
        assert!(
            ItemCosine::new(&graph)
                .max_bridge_degree(1)
                .scores(a)
                .is_empty()
        );
        assert!(
            ItemCosine::new(&graph)
                .scores(graph.item("x").unwrap())
                .is_empty()
        );
    }

    #[test]
    fn a_scorer_is_named_by_its_type_unless_it_says() {
        struct Nothing;
        impl ItemScorer for Nothing {
            fn scores(&self, _: NodeIndex) -> Vec<Scored> {
                Vec::new()
            }
        }
        let boxed: Box<dyn ItemScorer> = Box::new(Nothing);
        assert_eq!(boxed.name(), "Nothing");
        let graph = BipartiteGraph::new(vec![Interaction::new("a", "x")]).unwrap();
        assert_eq!(Arc::new(ItemCosine::new(&graph)).name(), "item-cosine");
    }
}
