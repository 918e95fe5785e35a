//! What reading raw data costs: rows a second and peak memory of an import from CSV and from JSON Lines with review text,
//! beside pandas on the same file.
//!
//! ```sh
//! cargo bench -p because-benches --bench data
//! cargo bench -p because-benches --bench data -- --rows 10000000 --peers python3    # beside pandas; see benches/peers
//! ```
//!
//! `--rows N` (2,000,000), `--rounds N` (1), `--folder DIR` (a temporary one; about 600 bytes a row) and `--threads N` say how
//! much is done. Every measurement is a process of its own, which reports its own time and peak memory.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a program that prints a table, and stops where it cannot"
)]

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use because::core::Project;
use because::graph::{Format, Import};
use serde::{Deserialize, Serialize};

/// That of the `because` command.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let given: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| arg != "--bench")
        .collect();
    let words: Vec<&str> = given.iter().map(String::as_str).collect();
    match words[..] {
        ["measure", file, out, threads] => {
            let measured = measure(Path::new(file), out, threads.parse().unwrap());
            println!("{}", serde_json::to_string(&measured).unwrap());
        }
        _ => compare(&words),
    }
}

// --- the rows

const WORDS: [&str; 48] = [
    "the",
    "a",
    "book",
    "story",
    "plot",
    "it",
    "was",
    "and",
    "but",
    "slow",
    "wonderful",
    "ending",
    "characters",
    "I",
    "loved",
    "hated",
    "never",
    "again",
    "of",
    "map",
    "sister",
    "letters",
    "winter",
    "with",
    "for",
    "my",
    "in",
    "first",
    "second",
    "half",
    "chapter",
    "read",
    "twice",
    "too",
    "long",
    "short",
    "funny",
    "sad",
    "quiet",
    "strange",
    "café",
    "naïve",
    "\"quoted\"",
    "5\"",
    "really,",
    "however,",
    "so-so.",
    "great!",
];

/// The next number of SplitMix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut bits = *state;
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// A place among `count` whose chance falls about as one over itself, as popularity does.
fn popular(state: &mut u64, count: u64) -> u64 {
    let even = (next(state) >> 11) as f64 / (1_u64 << 53) as f64;
    ((count as f64).powf(even) as u64).min(count - 1)
}

struct Files {
    csv: PathBuf,
    jsonl: PathBuf,
}

/// The same rows in both formats: ids as Amazon's, about 110 bytes of text, some pairs more than once.
fn generate(rows: u64, folder: &Path) -> Files {
    let files = Files {
        csv: folder.join(format!("reviews-{rows}.csv")),
        jsonl: folder.join(format!("reviews-{rows}.jsonl")),
    };
    if files.csv.exists() && files.jsonl.exists() {
        return files;
    }
    let create = |path: &Path| {
        let file = std::fs::File::create(path).unwrap();
        BufWriter::with_capacity(1 << 20, file)
    };
    let (mut csv, mut jsonl) = (create(&files.csv), create(&files.jsonl));
    csv.write_all(b"user_id,item_id,rating,timestamp,text\n")
        .unwrap();
    let (users, items) = (rows / 12 + 10, rows / 60 + 10);
    let mut state = 7;
    let mut text = String::new();
    for _ in 0..rows {
        // Users are less uneven than items.
        let user = if next(&mut state).is_multiple_of(4) {
            popular(&mut state, users)
        } else {
            next(&mut state) % users
        };
        let item = popular(&mut state, items);
        let user = format!(
            "A{:013X}",
            user.wrapping_mul(0x9e37_79b9_7f4b) & 0xf_ffff_ffff_ffff
        );
        let item = format!("B{:09}", item * 7919 % 1_000_000_007);
        let rating = [1, 2, 3, 4, 4, 5, 5, 5][next(&mut state) as usize % 8];
        let time = 1_200_000_000 + next(&mut state) % 300_000_000;
        text.clear();
        let words = 8 + next(&mut state) % 24;
        for word in 0..words {
            if word > 0 {
                text.push(' ');
            }
            text.push_str(WORDS[next(&mut state) as usize % WORDS.len()]);
        }
        writeln!(
            csv,
            "{user},{item},{rating}.0,{time},\"{}\"",
            text.replace('"', "\"\"")
        )
        .unwrap();
        let text = serde_json::to_string(&text).unwrap();
        writeln!(
            jsonl,
            "{{\"user_id\":\"{user}\",\"item_id\":\"{item}\",\"rating\":{rating}.0,\"timestamp\":{time},\"text\":{text}}}"
        )
        .unwrap();
    }
    csv.flush().unwrap();
    jsonl.flush().unwrap();
    files
}

// --- one measurement, in a process of its own

/// What reading a file took.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Measured {
    rows: u64,
    taken: u64,
    seconds: f64,
    peak_rss_bytes: u64,
}

impl Measured {
    fn per_second(&self) -> f64 {
        self.rows as f64 / self.seconds
    }

    fn bytes_a_row(&self) -> f64 {
        self.peak_rss_bytes as f64 / self.rows as f64
    }
}

fn measure(file: &Path, out: &str, threads: usize) -> Measured {
    let format = if file.extension().is_some_and(|extension| extension == "csv") {
        Format::Csv
    } else {
        Format::Jsonl
    };
    let begun = Instant::now();
    let summary = Import::new(format, [file])
        .min_rating(3.0)
        .k_core(5)
        .threads((threads > 0).then_some(threads))
        .run(&Project::new(out))
        .unwrap();
    Measured {
        rows: summary.read,
        taken: summary.taken,
        seconds: begun.elapsed().as_secs_f64(),
        peak_rss_bytes: peak_rss_bytes(),
    }
}

#[cfg(unix)]
fn peak_rss_bytes() -> u64 {
    use nix::sys::resource::{UsageWho, getrusage};
    let peak = getrusage(UsageWho::RUSAGE_SELF)
        .unwrap()
        .max_rss()
        .unsigned_abs();
    if cfg!(target_os = "macos") {
        peak
    } else {
        peak * 1024
    }
}

#[cfg(not(unix))]
fn peak_rss_bytes() -> u64 {
    0
}

// --- the table

fn compare(given: &[&str]) {
    let option = |name: &str| {
        let at = given.iter().position(|given| *given == name)?;
        given.get(at + 1).copied()
    };
    let rows = option("--rows").map_or(2_000_000, |rows| rows.parse().unwrap());
    let rounds: usize = option("--rounds").map_or(1, |rounds| rounds.parse().unwrap());
    let threads = option("--threads").unwrap_or("0");
    let temporary = tempfile::tempdir().unwrap();
    let folder = option("--folder").map_or(temporary.path(), Path::new);
    std::fs::create_dir_all(folder).unwrap();
    let files = generate(rows, folder);
    let out = folder.join("out");
    println!("| what | rows/s | peak MB | peak bytes a row | rows left |");
    println!("|---|---|---|---|---|");
    for file in [&files.csv, &files.jsonl] {
        let name = file.extension().unwrap().to_string_lossy();
        for _ in 0..rounds {
            let ours = run(Command::new(std::env::current_exe().unwrap())
                .arg("measure")
                .args([file, &out])
                .arg(threads));
            line(&format!("because import {name}"), ours);
            std::fs::remove_dir_all(&out).unwrap();
            let Some(python) = option("--peers") else {
                continue;
            };
            for what in ["read", "import"] {
                let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/data.py");
                let written = folder.join("pandas.jsonl");
                let peer = run(Command::new(python)
                    .arg(script)
                    .arg(what)
                    .args([file, &written]));
                line(&format!("pandas {what} {name}"), peer);
                if what == "import" {
                    println!(
                        "| ratio, import {name} | {:.1} times | {:.3} of its memory | | |",
                        ours.per_second() / peer.per_second(),
                        ours.peak_rss_bytes as f64 / peer.peak_rss_bytes as f64
                    );
                    std::fs::remove_file(&written).unwrap();
                }
            }
        }
    }
}

fn run(command: &mut Command) -> Measured {
    let done = command.output().unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    serde_json::from_slice(&done.stdout).unwrap()
}

fn line(what: &str, measured: Measured) {
    println!(
        "| {what} | {:.0} | {:.0} | {:.0} | {} |",
        measured.per_second(),
        measured.peak_rss_bytes as f64 / 1e6,
        measured.bytes_a_row(),
        measured.taken
    );
}
