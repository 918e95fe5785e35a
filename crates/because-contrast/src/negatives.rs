use because_core::{Candidate, Role, Side};
use because_graph::{BipartiteGraph, ItemScorer, NodeIndex};

/// Chooses what a positive is compared with.
pub trait NegativeSampler: Send + Sync {
    /// The negatives for one pair, hard ones first. None of them is an interaction of the user in any split.
    fn negatives(
        &self,
        graph: &BipartiteGraph,
        user: NodeIndex,
        positive: NodeIndex,
    ) -> Vec<Candidate>;
}

macro_rules! forward {
    ($pointer:ty) => {
        impl<S: NegativeSampler + ?Sized> NegativeSampler for $pointer {
            fn negatives(
                &self,
                graph: &BipartiteGraph,
                user: NodeIndex,
                positive: NodeIndex,
            ) -> Vec<Candidate> {
                (**self).negatives(graph, user, positive)
            }
        }
    };
}

forward!(&S);
forward!(Box<S>);
forward!(std::sync::Arc<S>);

/// The paper's mix: `hard` items that a scorer ranks high for the user, and `random` ones drawn uniformly.
///
/// The very top of a good scorer is full of items the user would have chosen next: of the two best-ranked items by
/// item-item cosine 5 % were held-out positives on Yelp, 1.3 % at ranks 51-52. So hard negatives are drawn from a window of
/// ranks that begins below the top, by a seeded hash of the pair, which also keeps all pairs of one user from sharing the
/// same two. On small catalogues the window shrinks with the number of ranked items.
#[derive(Debug, Clone)]
pub struct HardAndRandom<S> {
    scorer: S,
    hard: usize,
    random: usize,
    seed: u64,
    skip: usize,
    depth: usize,
}

impl<S: ItemScorer> HardAndRandom<S> {
    /// Two hard and five random negatives (the paper's k and m), seed 0, ranks 20 to 120.
    pub fn new(scorer: S) -> Self {
        Self {
            scorer,
            hard: 2,
            random: 5,
            seed: 0,
            skip: 20,
            depth: 100,
        }
    }

    /// How many hard ones.
    #[must_use]
    pub fn hard(mut self, hard: usize) -> Self {
        self.hard = hard;
        self
    }

    /// How many random ones.
    #[must_use]
    pub fn random(mut self, random: usize) -> Self {
        self.random = random;
        self
    }

    /// The seed of the draws.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The window of ranks from which hard ones are drawn: it begins `skip` ranks down and is `depth` ranks long.
    #[must_use]
    pub fn window(mut self, skip: usize, depth: usize) -> Self {
        self.skip = skip;
        self.depth = depth;
        self
    }

    fn hard_negatives(
        &self,
        graph: &BipartiteGraph,
        user: NodeIndex,
        positive: NodeIndex,
    ) -> Vec<Candidate> {
        if self.hard == 0 {
            return Vec::new();
        }
        let mut ranked = self.scorer.scores(user);
        ranked.retain(|scored| {
            scored.item != positive && graph.split_of(user, scored.item).is_none()
        });
        ranked.sort_by(|a, b| {
            b.score
                .total_cmp(&a.score)
                .then_with(|| graph.id(a.item).cmp(graph.id(b.item)))
        });
        let skip = self.skip.min(ranked.len() / 5);
        let depth = self.depth.min(ranked.len() / 4).max(self.hard);
        let mut window: Vec<_> = ranked
            .iter()
            .enumerate()
            .skip(skip)
            .take(depth)
            .map(|(rank, scored)| {
                (
                    self.draw("hard", graph, user, positive, scored.item),
                    rank,
                    scored,
                )
            })
            .collect();
        window.sort_by_key(|(draw, rank, _)| (*draw, *rank));
        window.truncate(self.hard);
        window.sort_by_key(|(_, rank, _)| *rank);
        window
            .into_iter()
            .map(|(_, rank, scored)| Candidate {
                item: graph.id(scored.item).into(),
                role: Role::Hard,
                scorer: Some(self.scorer.name().to_owned()),
                rank: Some(rank),
                score: Some(scored.score),
            })
            .collect()
    }

    fn draw(
        &self,
        what: &str,
        graph: &BipartiteGraph,
        user: NodeIndex,
        positive: NodeIndex,
        item: NodeIndex,
    ) -> u64 {
        let ids = [user, positive, item].map(|index| graph.id(index));
        draw(what, self.seed, &ids)
    }
}

impl<S: ItemScorer> NegativeSampler for HardAndRandom<S> {
    fn negatives(
        &self,
        graph: &BipartiteGraph,
        user: NodeIndex,
        positive: NodeIndex,
    ) -> Vec<Candidate> {
        let mut chosen = self.hard_negatives(graph, user, positive);
        // A user too new for the scorer still gets as many candidates as everybody else.
        let wanted = self.hard + self.random - chosen.len();
        let mut others: Vec<_> = graph
            .nodes(Side::Item)
            .filter(|&item| item != positive && graph.split_of(user, item).is_none())
            .map(|item| {
                (
                    self.draw("random", graph, user, positive, item),
                    graph.id(item),
                )
            })
            .filter(|(_, id)| chosen.iter().all(|taken| taken.item.as_str() != *id))
            .collect();
        if wanted < others.len() {
            others.select_nth_unstable(wanted);
            others.truncate(wanted);
        }
        others.sort_unstable();
        chosen.extend(others.into_iter().map(|(_, id)| Candidate {
            item: id.into(),
            role: Role::Random,
            scorer: None,
            rank: None,
            score: None,
        }));
        chosen
    }
}

/// A stable number for a draw: BLAKE3 over what is drawn for whom, each part with its length before it.
pub(crate) fn draw(what: &str, seed: u64, parts: &[&str]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    for part in std::iter::once(&what).chain(parts) {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    let bytes = *hasher.finalize().as_bytes();
    u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes of thirty-two"))
}

#[cfg(test)]
mod tests {
    use because_core::{Interaction, Split};
    use because_graph::ItemCosine;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn negatives_exclude_everything_the_user_touched(
            edges in proptest::collection::btree_set((0..8u8, 0..14u8), 2..60),
            splits in proptest::collection::vec(0..4usize, 60),
            seed in any::<u64>(),
        ) {
            let interactions: Vec<_> = edges.iter().zip(splits).map(|(&(user, item), split)| Interaction {
                split: Some(Split::ALL[split]),
                ..Interaction::new(format!("u{user}"), format!("i{item}"))
            }).collect();
            let pairs: Vec<_> = interactions.iter().map(|i| (i.user.clone(), i.item.clone())).collect();
            let graph = BipartiteGraph::new(interactions).unwrap();
            let sampler = HardAndRandom::new(ItemCosine::new(&graph)).seed(seed);
            for (user, item) in pairs {
                let (user, item) = (graph.user(user.as_str()).unwrap(), graph.item(item.as_str()).unwrap());
                let negatives = sampler.negatives(&graph, user, item);
                let known = graph.nodes(Side::Item).filter(|&item| graph.split_of(user, item).is_some()).count();
                prop_assert_eq!(negatives.len(), (graph.len(Side::Item) - known).min(7));
                let mut seen = std::collections::BTreeSet::new();
                for negative in &negatives {
                    let index = graph.item(negative.item.as_str()).unwrap();
                    prop_assert!(graph.split_of(user, index).is_none(), "{negative:?} is known");
                    prop_assert!(seen.insert(negative.item.clone()), "{negative:?} comes twice");
                }
                prop_assert_eq!(negatives, sampler.negatives(&graph, user, item));
            }
        }
    }
}
