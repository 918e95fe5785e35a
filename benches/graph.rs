//! Building the graph, its cores, sampling neighbourhoods and scoring items, on seeded random graphs.
//!
//! ```sh
//! cargo bench -p because-benches --bench graph
//! cargo bench -p because-benches --bench graph -- --scale                    # 10 million edges; bytes and seconds
//! cargo bench -p because-benches --bench graph -- --scale --peers python3    # beside networkx and SciPy
//! ```
//!
//! Everything runs on one thread. `--scale` counts what is allocated, so its figures are what the graph holds and not what
//! the process took for a while.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a program that prints a table, and stops where it cannot"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::HashSet;
use std::hint::black_box;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use because::core::{Side, Split};
use because::graph::{
    BipartiteGraph, EdgeWeight, GraphBuilder, ItemCosine, ItemScorer, NeighborSampler, NodeIndex,
    Sampling, UniformSampler,
};
use divan::Bencher;
use divan::counter::ItemsCount;

/// The system's allocator, and how many bytes it has given out.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[allow(
    unsafe_code,
    reason = "an allocator can only be wrapped so; every call goes to the system's as it came"
)]
// SAFETY: what the contract asks for is done by `System`, which gets every argument unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn main() {
    let given: Vec<String> = std::env::args().skip(1).collect();
    if !given.iter().any(|arg| arg == "--scale") {
        return divan::main();
    }
    let python = given.iter().skip_while(|arg| *arg != "--peers").nth(1);
    beside(python.map(String::as_str));
    scale(10_000_000, 1_000_000, 200_000);
}

// --- the graphs

/// Numbers between 0 and 1, the same in every run.
fn numbers() -> impl FnMut() -> f64 {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// As many different pairs, popular items more often, in no order.
fn pairs(edges: usize, users: usize, items: usize) -> Vec<(u32, u32)> {
    let mut next = numbers();
    let mut seen = HashSet::with_capacity(edges);
    std::iter::repeat_with(|| {
        let user = (next() * users as f64) as u32;
        let item = (next().powi(2) * items as f64) as u32;
        (user, item)
    })
    .filter(|pair| seen.insert(*pair))
    .take(edges)
    .collect()
}

/// Ids as long as those of Amazon's reviews of 2023: 28 characters a user, 10 an item.
fn gathered(pairs: &[(u32, u32)]) -> GraphBuilder {
    let mut next = numbers();
    let mut builder = GraphBuilder::default();
    for &(user, item) in pairs {
        // Halves of a bijection of the number, so that ids do not come in order.
        let scattered = u64::from(user).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let user = format!("AE{scattered:020}{:06}", user % 1_000_000);
        let item = format!(
            "B{:09}",
            u64::from(item) * 387_420_489 % 1_000_000_007 % 1_000_000_000
        );
        let split = match next() {
            ..0.8 => Split::Train,
            0.8..0.9 => Split::Valid,
            _ => Split::Test,
        };
        let weight = EdgeWeight {
            rating: Some(1.0 + (next() * 5.0).floor()),
            timestamp: Some(1_000_000_000 + (next() * 7e8) as i64),
            split,
        };
        builder.edge(&user, &item, weight).unwrap();
    }
    builder
}

fn graph(edges: usize) -> BipartiteGraph {
    gathered(&pairs(edges, edges / 10, edges / 50))
        .build()
        .unwrap()
}

fn all_nodes(graph: &BipartiteGraph) -> impl Iterator<Item = NodeIndex> + Clone {
    graph.nodes(Side::User).chain(graph.nodes(Side::Item))
}

// --- at scale

fn seconds<T>(what: impl FnOnce() -> T) -> (f64, T) {
    let start = Instant::now();
    let done = black_box(what());
    (start.elapsed().as_secs_f64(), done)
}

/// The least of three, which is what other work on the machine disturbed least.
fn best_seconds(mut what: impl FnMut()) -> f64 {
    let runs = (0..3).map(|_| seconds(&mut what).0);
    runs.fold(f64::INFINITY, f64::min)
}

fn scale(edges: usize, users: usize, items: usize) {
    let pairs = pairs(edges, users, items);
    let (gathering, builder) = seconds(|| gathered(&pairs));
    drop(pairs);
    let before = HELD.load(Ordering::Relaxed);
    let (building, graph) = seconds(|| builder.build().unwrap());
    let held = HELD.load(Ordering::Relaxed) - before;
    drop(builder);
    let nodes = graph.len(Side::User) + graph.len(Side::Item);
    println!("{edges} edges, {nodes} nodes with an edge");
    println!("  gathering rows         {gathering:8.2} s");
    println!("  building               {building:8.2} s");
    println!(
        "  held                   {:8.2} bytes an edge",
        held as f64 / edges as f64
    );
    let cores = best_seconds(|| drop(black_box(graph.whole().core_numbers())));
    println!("  core numbers           {cores:8.2} s");
    for sampling in [
        Sampling::Uniform,
        Sampling::MostRecent,
        Sampling::DegreeDamped,
    ] {
        let [by_node, in_none] = [Order::ByNode, Order::None]
            .map(|order| best_seconds(|| million_samples(&graph, sampling, order)));
        println!(
            "  a million samples      {by_node:8.2} s, {in_none:.2} s in no order ({sampling})"
        );
    }
}

/// Neighbourhoods of 8 of a million nodes; who has fewer neighbours gives all.
fn million_samples(graph: &BipartiteGraph, sampling: Sampling, order: Order) {
    let sampler = sampling.sampler(7, graph, |_| None);
    let nodes = graph.len(Side::User) + graph.len(Side::Item);
    let (mut next, mut sample) = (numbers(), Vec::new());
    for at in 0..1_000_000 {
        let node = match order {
            Order::ByNode => at % nodes,
            Order::None => (next() * nodes as f64) as usize,
        };
        sampler.sample_into(graph, NodeIndex::new(node), at / nodes, 8, &mut sample);
        black_box(&sample);
    }
}

/// In which order nodes are asked about: as a layer of messages goes, or as lone questions would come.
#[derive(Debug, Clone, Copy)]
enum Order {
    ByNode,
    None,
}

/// A million edges, all in train, as networkx gets them from the same file.
fn beside(python: Option<&str>) {
    let pairs = pairs(1_000_000, 100_000, 20_000);
    let mut builder = GraphBuilder::default();
    let weight = EdgeWeight {
        rating: None,
        timestamp: None,
        split: Split::Train,
    };
    for (user, item) in &pairs {
        builder
            .edge(&user.to_string(), &item.to_string(), weight)
            .unwrap();
    }
    let before = HELD.load(Ordering::Relaxed);
    let (building, graph) = seconds(|| builder.build().unwrap());
    let held = HELD.load(Ordering::Relaxed) - before;
    let ours = [
        ("building", building),
        (
            "core numbers",
            best_seconds(|| drop(black_box(graph.whole().core_numbers()))),
        ),
        (
            "a million samples of 8",
            best_seconds(|| million_samples(&graph, Sampling::Uniform, Order::ByNode)),
        ),
        (
            "the same in no order",
            best_seconds(|| million_samples(&graph, Sampling::Uniform, Order::None)),
        ),
    ];
    let held = held as f64 / pairs.len() as f64;
    println!("1000000 edges, all in train, without ratings and times: {held:.2} bytes an edge");
    let theirs = python
        .map(|python| peer(python, &pairs))
        .unwrap_or_default();
    for (what, seconds) in ours {
        let other = theirs.iter().find(|(name, _)| name == what);
        let other = other
            .map(|(_, other)| format!("{other:10.3} s networkx  {:8.1} times", other / seconds));
        println!(
            "  {what:<22} {seconds:8.3} s  {}",
            other.unwrap_or_default()
        );
    }
    for (what, value) in theirs.iter().filter(|(what, _)| what.contains("SciPy")) {
        println!("  {what:<42} {value:8.3}");
    }
}

/// What the script beside this one prints: a name, a tab and a number in each line.
fn peer(python: &str, pairs: &[(u32, u32)]) -> Vec<(String, f64)> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pairs.u32");
    let mut file = std::io::BufWriter::new(std::fs::File::create(&path).unwrap());
    for (user, item) in pairs {
        file.write_all(&user.to_le_bytes()).unwrap();
        file.write_all(&item.to_le_bytes()).unwrap();
    }
    file.into_inner().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/graph.py");
    let output = Command::new(python)
        .arg(script)
        .arg(&path)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .filter_map(|line| {
            let (what, number) = line.split_once('\t')?;
            Some((what.to_owned(), number.parse().ok()?))
        })
        .collect()
}

// --- small ones

#[divan::bench(args = [10_000, 100_000])]
fn build(bencher: Bencher<'_, '_>, edges: usize) {
    let builder = gathered(&pairs(edges, edges / 10, edges / 50));
    bencher
        .counter(ItemsCount::new(edges))
        .bench(|| builder.build().unwrap());
}

#[divan::bench(args = [100_000])]
fn core_numbers(bencher: Bencher<'_, '_>, edges: usize) {
    let graph = graph(edges);
    bencher
        .counter(ItemsCount::new(edges))
        .bench(|| graph.whole().core_numbers());
}

#[divan::bench(args = [Sampling::Uniform, Sampling::MostRecent, Sampling::TopRated, Sampling::DegreeDamped, Sampling::Relevance])]
fn sample_eight_neighbors_of_every_node(bencher: Bencher<'_, '_>, sampling: Sampling) {
    let graph = graph(100_000);
    let text = |node: NodeIndex| {
        Some(format!(
            "word{} word{}",
            node.index() % 7,
            node.index() % 90
        ))
    };
    let sampler = sampling.sampler(7, &graph, |node| text(node).map(Into::into));
    let nodes: Vec<_> = all_nodes(&graph).collect();
    bencher.counter(ItemsCount::new(nodes.len())).bench(|| {
        let mut sample = Vec::new();
        for &node in &nodes {
            sampler.sample_into(&graph, node, 1, 8, &mut sample);
            black_box(&sample);
        }
    });
}

#[divan::bench(args = [100_000])]
fn sample_into_lists_of_their_own(bencher: Bencher<'_, '_>, edges: usize) {
    let graph = graph(edges);
    let sampler = UniformSampler { seed: 7 };
    let nodes: Vec<_> = all_nodes(&graph).collect();
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
