use std::time::Instant;

use because_core::Prediction;
use because_eval::{TextMetrics, TextStats};

/// Prints the figures of a file of predictions and how fast they came:
/// `PAIRS=predictions.jsonl cargo test --release -p because-eval -- --ignored --nocapture speed`
#[test]
#[ignore = "measures; wants a file of predictions in PAIRS"]
#[allow(clippy::print_stdout, reason = "what it prints is what it is for")]
fn speed() {
    let path = std::env::var_os("PAIRS").expect("PAIRS names a file of predictions");
    let pairs: Vec<Prediction> = because_core::jsonl::read_all(path.as_ref()).unwrap();
    let mut fastest = f64::INFINITY;
    for _ in 0..5 {
        let started = Instant::now();
        std::hint::black_box(TextMetrics::of(&pairs));
        fastest = fastest.min(started.elapsed().as_secs_f64());
    }
    let stats = TextStats::of(&pairs);
    println!(
        "{}",
        serde_json::to_string_pretty(&stats.metrics()).unwrap()
    );
    let started = Instant::now();
    println!("{}", serde_json::to_string(&stats.intervals(7)).unwrap());
    println!("intervals: {:.3} s", started.elapsed().as_secs_f64());
    println!(
        "all metrics: {} pairs in {fastest:.3} s, {:.0} pairs/s",
        pairs.len(),
        pairs.len() as f64 / fastest
    );
}
