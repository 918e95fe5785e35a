//! Building the graph, sampling neighbourhoods and scoring items, on a seeded random graph.
//!
//! `cargo bench -p because-benches --bench graph`

use because::core::{Interaction, Side};
use because::graph::{BipartiteGraph, ItemCosine, ItemScorer, NeighborSampler, UniformSampler};
use divan::Bencher;
use divan::counter::ItemsCount;

fn main() {
    divan::main();
}

/// `edges` interactions between a tenth as many users and a twentieth as many items, popular ones more often.
fn interactions(edges: usize) -> Vec<Interaction> {
    let (users, items) = (edges / 10, edges / 20);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1_u64 << 53) as f64
    };
    let mut seen = std::collections::HashSet::new();
    while seen.len() < edges {
        let user = (next() * users as f64) as usize;
        let item = (next().powi(2) * items as f64) as usize;
        seen.insert((user, item));
    }
    let mut pairs: Vec<_> = seen.into_iter().collect();
    pairs.sort_unstable();
    pairs
        .into_iter()
        .map(|(user, item)| Interaction::new(format!("u{user}"), format!("i{item}")))
        .collect()
}

fn graph(edges: usize) -> BipartiteGraph {
    BipartiteGraph::new(interactions(edges)).expect("no pair comes twice")
}

#[divan::bench(args = [10_000, 100_000])]
fn build(bencher: Bencher<'_, '_>, edges: usize) {
    bencher
        .counter(ItemsCount::new(edges))
        .with_inputs(|| interactions(edges))
        .bench_values(BipartiteGraph::new);
}

#[divan::bench(args = [100_000])]
fn sample_eight_neighbors_of_every_node(bencher: Bencher<'_, '_>, edges: usize) {
    let graph = graph(edges);
    let sampler = UniformSampler { seed: 7 };
    let nodes: Vec<_> = graph
        .nodes(Side::User)
        .chain(graph.nodes(Side::Item))
        .collect();
    bencher.counter(ItemsCount::new(nodes.len())).bench(|| {
        nodes
            .iter()
            .map(|&node| sampler.sample(&graph, node, 1, 8).len())
            .sum::<usize>()
    });
}

#[divan::bench(args = [100_000])]
fn item_cosine_for_a_hundred_users(bencher: Bencher<'_, '_>, edges: usize) {
    let graph = graph(edges);
    let scorer = ItemCosine::new(&graph);
    let users: Vec<_> = graph.nodes(Side::User).take(100).collect();
    bencher.counter(ItemsCount::new(users.len())).bench(|| {
        users
            .iter()
            .map(|&user| scorer.scores(user).len())
            .sum::<usize>()
    });
}
