use std::borrow::Cow;
use std::cmp::Reverse;

use because_core::Side;
use petgraph::graph::NodeIndex;

use super::damped::ln;
use super::{ascending, smallest_first};
use crate::BipartiteGraph;
use crate::table::Ids;

/// The neighbours whose text is closest to the node's own first; equals, and those without a text, by lot.
///
/// Close is the cosine of TF-IDF vectors: a word that comes `n` times in a text weighs `(1 + ln n) (1 + ln((1 + N) / (1 + d)))`
/// there, `d` of `N` texts having it. Words are runs of letters and digits in lower case.
///
/// ```
/// use because_core::Interaction;
/// use because_graph::{BipartiteGraph, NeighborSampler, RelevanceSampler};
///
/// let graph = BipartiteGraph::new([Interaction::new("ann", "dune"), Interaction::new("ann", "emma")])?;
/// let sampler = RelevanceSampler::new(7, &graph, |node| match graph.id(node) {
///     "ann" => Some("likes deserts and giant worms".into()),
///     "dune" => Some("a desert planet, its worms and its spice".into()),
///     _ => Some("matchmaking in a village".into()),
/// });
/// let ann = graph.user("ann").expect("she read two");
/// assert_eq!(graph.id(sampler.sample(&graph, ann, 1, 1)[0].node), "dune");
/// # Ok::<(), because_graph::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct RelevanceSampler {
    seed: u64,
    /// Where each node's words begin in `words`; one more marks the end.
    starts: Vec<usize>,
    /// Words by number with their weights, by number within a node; the squares of a node's weights sum to one.
    words: Vec<(u32, f32)>,
}

impl RelevanceSampler {
    /// Over these texts, each asked for once; they are not kept. The seed draws among equals.
    pub fn new<'t>(
        seed: u64,
        graph: &BipartiteGraph,
        mut text: impl FnMut(NodeIndex) -> Option<Cow<'t, str>>,
    ) -> Self {
        let mut known = Ids::default();
        let mut counts: Vec<(u32, u32)> = Vec::new();
        let mut starts = vec![0];
        let mut texts_with: Vec<u32> = Vec::new();
        let (mut numbers, mut texts) = (Vec::new(), 0);
        for node in graph.nodes(Side::User).chain(graph.nodes(Side::Item)) {
            numbers.clear();
            if let Some(text) = text(node) {
                texts += 1;
                // More words than 32 bits can count do not fit into memory; one beyond would only be passed over.
                numbers.extend(words(&text).filter_map(|word| known.intern(&word).ok()));
            }
            numbers.sort_unstable();
            texts_with.resize(known.len(), 0);
            for same in numbers.chunk_by(|a, b| a == b) {
                texts_with[same[0] as usize] += 1;
                counts.push((same[0], same.len() as u32));
            }
            starts.push(counts.len());
        }
        let rarity: Vec<f64> = texts_with
            .iter()
            .map(|&with| 1.0 + ln((1.0 + f64::from(texts)) / (1.0 + f64::from(with))))
            .collect();
        let mut weighed = Vec::with_capacity(counts.len());
        for ends in starts.windows(2) {
            let weight = |&(word, count): &(u32, u32)| {
                let weight = (1.0 + ln(f64::from(count))) * rarity[word as usize];
                (word, weight)
            };
            let of_node = counts[ends[0]..ends[1]].iter().map(weight);
            let length = of_node.clone().map(|(_, w)| w * w).sum::<f64>().sqrt();
            weighed.extend(of_node.map(|(word, weight)| (word, (weight / length) as f32)));
        }
        Self {
            seed,
            starts,
            words: weighed,
        }
    }

    fn words_of(&self, node: NodeIndex) -> &[(u32, f32)] {
        // A node of a larger graph than the one this was made for has no text.
        match self.starts.get(node.index()..=node.index() + 1) {
            Some([from, to]) => &self.words[*from..*to],
            _ => &[],
        }
    }

    fn cosine(&self, node: NodeIndex, neighbor: NodeIndex) -> f64 {
        let (mut a, mut b) = (self.words_of(node), self.words_of(neighbor));
        let mut sum = 0.0;
        while let ([(word, x), rest_a @ ..], [(other, y), rest_b @ ..]) = (a, b) {
            if word == other {
                sum += f64::from(*x) * f64::from(*y);
            }
            if word <= other {
                a = rest_a;
            }
            if other <= word {
                b = rest_b;
            }
        }
        sum
    }
}

smallest_first!(RelevanceSampler, |own, _, node| |neighbor, _, _| {
    Reverse(ascending(own.cosine(node, neighbor)))
});

fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
}

#[cfg(test)]
mod tests {
    use because_core::Interaction;

    use super::*;
    use crate::NeighborSampler;

    #[test]
    fn closeness_by_hand() {
        let rows = ["x", "y", "z"].map(|item| Interaction::new("u", item));
        let graph = BipartiteGraph::new(&rows).unwrap();
        let sampler = RelevanceSampler::new(0, &graph, |node| match graph.id(node) {
            "u" => Some("Red, red wine".into()),
            "x" => Some("red".into()),
            "y" => Some("WINE bottle".into()),
            _ => None,
        });
        let [u, x, y, z] = [0, 1, 2, 3].map(NodeIndex::new);
        // Three texts; red and wine are in two of them, bottle in one.
        let (common, rare) = (1.0 + (4_f64 / 3.0).ln(), 1.0 + 2_f64.ln());
        let (red, wine) = ((1.0 + 2_f64.ln()) * common, common);
        let length = (red * red + wine * wine).sqrt();
        assert!((sampler.cosine(u, x) - red / length).abs() < 1e-6);
        let of_y = (common * common + rare * rare).sqrt();
        assert!((sampler.cosine(u, y) - wine / length * common / of_y).abs() < 1e-6);
        assert!(sampler.cosine(u, z).abs() < 1e-15);
        let sample = sampler.sample(&graph, u, 0, 3);
        let found: Vec<_> = sample.iter().map(|neighbor| neighbor.node).collect();
        assert_eq!(found, [x, y, z]);
    }

    #[test]
    fn without_a_text_of_its_own_a_node_draws_by_lot() {
        let rows: Vec<_> = (0..9)
            .map(|n| Interaction::new("u", n.to_string()))
            .collect();
        let graph = BipartiteGraph::new(&rows).unwrap();
        let user = graph.user("u").unwrap();
        let text = |node| (graph.side(node) == Side::Item).then(|| "red".into());
        let sample = RelevanceSampler::new(3, &graph, text).sample(&graph, user, 1, 4);
        let uniform = crate::UniformSampler { seed: 3 }.sample(&graph, user, 1, 4);
        assert_eq!(sample, uniform);
    }
}
