//! The products of generation, for the shapes of a 0.5B model, per type of weight: how fast weights are read and how much is
//! computed where they are laid out for the kernels, where they lie in their file, and by training's products (f32, f16 and bf16).
//!
//! `RAYON_NUM_THREADS=2 cargo bench -p because-benches --bench linear` (types may follow after `--`: `Q8_0 Q4_K`)

use std::hint::black_box;
use std::time::{Duration, Instant};

use because_tune::BenchWeight;

const SHAPES: [(usize, usize); 4] = [(896, 896), (4864, 896), (896, 4864), (151_936, 896)];
const ROWS: [usize; 5] = [1, 4, 8, 32, 300];
const KINDS: [&str; 9] = [
    "f32", "f16", "bf16", "Q8_0", "Q4_0", "Q5_0", "Q4_K", "Q5_K", "Q6_K",
];
/// Copies of a weight fill so many bytes, which few caches hold.
const ROOM: usize = 600 << 20;

#[allow(clippy::print_stdout, reason = "a table is what this program makes")]
fn main() {
    let asked: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    println!("shape           type   rows |  GB/s  GFLOP/s | in file: GFLOP/s | training: GFLOP/s");
    for shape in SHAPES {
        let (out, input) = shape;
        for kind in KINDS {
            if !asked.is_empty() && !asked.iter().any(|asked| asked == kind) {
                continue;
            }
            // Rows of 896 are no whole number of blocks of 256.
            let Ok(mut in_file) = BenchWeight::new(kind, shape, ROOM) else {
                continue;
            };
            let mut weight = BenchWeight::new(kind, shape, ROOM).expect("as before");
            weight.lay_out().expect("memory");
            let plain = matches!(kind, "f32" | "f16" | "bf16");
            for rows in ROWS.into_iter().filter(|&rows| out < 100_000 || rows < 100) {
                let x: Vec<f32> = (0..rows * input)
                    .map(|at| (at as f32 * 0.3).sin())
                    .collect();
                let mut into = vec![0.0; rows * out];
                let ours = best(|| weight.linear(&x, rows, &mut into).expect("shapes agree"));
                let there = best(|| in_file.linear(&x, rows, &mut into).expect("shapes agree"));
                let trained = plain
                    .then(|| best(|| in_file.trained(&x, rows, &mut into).expect("shapes agree")));
                black_box(&into);
                let rate =
                    |time: Duration| (2 * rows * out * input) as f64 / 1e9 / time.as_secs_f64();
                println!(
                    "{:15} {kind:5} {rows:5} | {:5.1} {:8.1} | {:8.1} | {:8.1}",
                    format!("{out}x{input}"),
                    weight.bytes() as f64 / 1e9 / ours.as_secs_f64(),
                    rate(ours),
                    rate(there),
                    trained.map_or(0.0, rate),
                );
            }
        }
    }
}

/// The shortest of some runs.
fn best(mut run: impl FnMut()) -> Duration {
    let (start, mut best, mut runs) = (Instant::now(), Duration::MAX, 0);
    while runs < 3 || start.elapsed() < Duration::from_millis(200) {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed());
        runs += 1;
    }
    best
}
