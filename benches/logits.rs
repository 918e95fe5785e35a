//! The most likely tokens after each place of rows of tokens, by a model of ours, for comparison with another program.
//!
//! `cargo bench -p because-benches --bench logits -- MODEL ROWS.jsonl [ADAPTER]`, where MODEL is a folder or a GGUF file and a row is
//! `{"tokens": [1, 2, 3], "from": 1}`. For each it prints a JSON list with one entry for each place from `from` on:
//! `{"top": [[id, logarithm of the probability], ...]}`. Seconds and memory of loading go to stderr.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that prints what it found, and what it took"
)]

use std::error::Error;
use std::io::BufRead;
use std::path::PathBuf;
use std::time::Instant;

use because::tune::TunedModel;
use serde::Deserialize;

/// Tokens told of each place.
const TOP: usize = 64;

#[derive(Deserialize)]
struct Row {
    tokens: Vec<u32>,
    from: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    // `cargo bench` adds a switch of its own.
    let paths: Vec<PathBuf> = std::env::args()
        .skip(1)
        .filter(|arg| arg != "--bench")
        .map(PathBuf::from)
        .collect();
    let [model, rows, adapter @ ..] = &paths[..] else {
        eprintln!("nothing to do: name a model and a file of rows");
        return Ok(());
    };
    let (begun, before) = (Instant::now(), resident());
    let model = TunedModel::load(model, adapter.first().map(PathBuf::as_path))?;
    eprintln!(
        "loaded in {:.3} s, {:.1} MB more in memory, {:.1} MB of them pages of the file",
        begun.elapsed().as_secs_f64(),
        megabytes(resident().0 - before.0),
        megabytes(resident().1 - before.1),
    );
    for line in std::io::BufReader::new(std::fs::File::open(rows)?).lines() {
        let row: Row = serde_json::from_str(&line?)?;
        let logits = model.logits(&[row.tokens])?.remove(0);
        let places: Vec<_> = logits[row.from..]
            .iter()
            .map(|logits| serde_json::json!({"top": top(logits)}))
            .collect();
        println!("{}", serde_json::to_string(&places)?);
    }
    Ok(())
}

/// The largest logits as logarithms of probabilities.
fn top(logits: &[f32]) -> Vec<(usize, f64)> {
    let most = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&x| (f64::from(x) - most).exp()).sum();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    let log = |id: usize| f64::from(logits[id]) - most - sum.ln();
    order
        .into_iter()
        .take(TOP)
        .map(|id| (id, log(id)))
        .collect()
}

/// Bytes in memory, and those of them that are pages of files; nothing where the system does not say.
fn resident() -> (i64, i64) {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let mut pages = pages
        .split(' ')
        .skip(1)
        .map(|one| one.parse::<i64>().unwrap_or(0) * 4096);
    (pages.next().unwrap_or(0), pages.next().unwrap_or(0))
}

fn megabytes(bytes: i64) -> f64 {
    bytes as f64 / 1e6
}
