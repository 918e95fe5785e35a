//! What an answer of a local model takes: tokens a second, time to the first token, peak memory; and what the prefix cache is
//! worth where many prompts begin alike.
//!
//! ```sh
//! python3 benches/peers/make_model.py --shape 0.5b --dtype f32 --tokenizer --out target/peers/0.5b
//! RAYON_NUM_THREADS=2 cargo bench -p because-benches --bench generate -- --base target/peers/0.5b
//! # beside transformers, in turns, two threads each:
//! RAYON_NUM_THREADS=2 cargo bench -p because-benches --bench generate -- --base target/peers/0.5b --peers python3
//! # a GGUF file of it, beside transformers with the folder and beside llama.cpp's server with the file:
//! because merge --base target/peers/0.5b --out target/peers/0.5b-q8_0.gguf --type q8_0
//! RAYON_NUM_THREADS=2 cargo bench -p because-benches --bench generate -- --base target/peers/0.5b-q8_0.gguf \
//!     --peers python3 --peer-base target/peers/0.5b --llama python3
//! # 100 users x 10 items, with the prefix cache and without:
//! RAYON_NUM_THREADS=2 cargo bench -p because-benches --bench generate -- --base target/peers/small --shared
//! # free and held to a JSON schema:
//! RAYON_NUM_THREADS=2 cargo bench -p because-benches --bench generate -- --base target/peers/0.5b --held
//! ```
//!
//! `--rows 1,8,32` answered at once, `--prompt 300` tokens each, `--answer 60`; `--users 100 --items 10` of `--shared`. Prompts
//! are random tokens and answers are greedy. Every measurement is a process of its own, which loads the model first.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a program that prints a table, and stops where it cannot"
)]

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use because::tune::{Ask, Decoding, EngineSettings, TunedModel};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// One measurement, as a process of its own is told.
#[derive(Serialize, Deserialize)]
struct Work {
    base: String,
    prompts: Vec<Vec<u32>>,
    answer: usize,
    prefix_cache: bool,
    schema: Option<Value>,
}

/// What both sides print.
#[derive(Serialize, Deserialize)]
struct Measured {
    seconds: f64,
    /// Mean over rows.
    first_token_seconds: f64,
    /// The last row's: all prompts are read.
    prompts_seconds: f64,
    tokens: usize,
    cached_share: f64,
    peak_rss_bytes: u64,
    ids: Vec<Vec<u32>>,
}

fn option(name: &str) -> Option<String> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.nth(1)
}

fn number(name: &str, default: usize) -> usize {
    option(name).map_or(default, |text| text.parse().unwrap())
}

fn main() {
    if let Some(work) = option("--measure") {
        let work = serde_json::from_slice(&std::fs::read(work).unwrap()).unwrap();
        println!("{}", serde_json::to_string(&measure(&work)).unwrap());
        return;
    }
    // The paths of the examples above are those of the repository.
    std::env::set_current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).unwrap();
    let Some(base) = option("--base") else {
        println!("--base FOLDER is needed; see the head of benches/generate.rs");
        return;
    };
    let vocabulary = TunedModel::load(Path::new(&base), None)
        .unwrap()
        .config()
        .vocab_size;
    let mut draw = Draw(7, vocabulary as u64);
    let asked = |name: &str| std::env::args().any(|argument| argument == name);
    match () {
        () if asked("--shared") => shared(&base, &mut draw),
        () if asked("--held") => held(&base, &mut draw),
        () => rows(&base, &mut draw),
    }
}

/// Rows that have nothing in common, beside the peer.
fn rows(base: &str, draw: &mut Draw) {
    let (prompt, answer) = (number("--prompt", 300), number("--answer", 60));
    let counts = option("--rows").unwrap_or("1,8,32".into());
    let peer_base = option("--peer-base").unwrap_or(base.to_owned());
    let peers = [
        (
            "transformers",
            "generate.py",
            option("--peers"),
            &*peer_base,
        ),
        ("llama.cpp", "llama_server.py", option("--llama"), base),
    ];
    println!(
        "| rows | program | first token | prompts read | tokens/s | decoding tokens/s | peak memory | same tokens |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for count in counts.split(',').map(|count| count.parse().unwrap()) {
        let mut work = Work {
            base: base.to_owned(),
            prompts: (0..count).map(|_| draw.tokens(prompt)).collect(),
            answer,
            prefix_cache: true,
            schema: None,
        };
        let ours = Measured::of(&work, None);
        ours.print(&format!("{count} | because"), "");
        for (name, script, python, base) in &peers {
            let Some(python) = python else { continue };
            work.base = (*base).to_owned();
            let peer = Measured::of(&work, Some((python, script)));
            let pairs = ours.ids.iter().zip(&peer.ids).filter(|(a, b)| a == b);
            let same = format!("{} of {count} rows", pairs.count());
            peer.print(&format!("{count} | {name}"), &same);
            println!(
                "| {count} | ratio to {name} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | |",
                peer.first_token_seconds / ours.first_token_seconds,
                peer.prompts_seconds / ours.prompts_seconds,
                peer.seconds / ours.seconds,
                ours.decoding_rate() / peer.decoding_rate(),
                peer.peak_rss_bytes as f64 / ours.peak_rss_bytes as f64
            );
        }
    }
}

/// An instruction, a profile of each user and one of each item, as explanations have them.
fn shared(base: &str, draw: &mut Draw) {
    let (users, items) = (number("--users", 100), number("--items", 10));
    let instruction = draw.tokens(90);
    let mut prompts = Vec::new();
    for _ in 0..users {
        let user = draw.tokens(150);
        for _ in 0..items {
            prompts.push([&instruction[..], &user, &draw.tokens(60)].concat());
        }
    }
    let mut work = Work {
        base: base.to_owned(),
        prompts,
        answer: number("--answer", 60),
        prefix_cache: true,
        schema: None,
    };
    println!("| prefix cache | seconds | tokens/s | of the prompts from the cache | peak memory |");
    println!("|---|---|---|---|---|");
    let mut seconds = Vec::new();
    for prefix_cache in [true, false] {
        work.prefix_cache = prefix_cache;
        let one = Measured::of(&work, None);
        println!(
            "| {prefix_cache} | {:.1} | {:.0} | {:.0} % | {:.0} MiB |",
            one.seconds,
            one.tokens as f64 / one.seconds,
            one.cached_share * 100.0,
            one.peak_rss_bytes as f64 / f64::from(1 << 20)
        );
        seconds.push((one.seconds, one.ids));
    }
    println!(
        "\nratio {:.2}; the same answers: {}",
        seconds[1].0 / seconds[0].0,
        seconds[0].1 == seconds[1].1
    );
}

/// What holding answers to a schema costs: the same prompts answered freely and as JSON with one long text, in turns.
fn held(base: &str, draw: &mut Draw) {
    let (prompt, answer) = (number("--prompt", 300), number("--answer", 60));
    let text = json!({
        "type": "object",
        "properties": { "text": { "type": "string", "minLength": 1 } },
        "required": ["text"],
        "additionalProperties": false,
    });
    println!("| rows | free, decoding tokens/s | held | cost |");
    println!("|---|---|---|---|");
    let counts = option("--rows").unwrap_or("1,8,32".into());
    for count in counts.split(',').map(|count| count.parse().unwrap()) {
        let mut work = Work {
            base: base.to_owned(),
            prompts: (0..count).map(|_| draw.tokens(prompt)).collect(),
            answer,
            prefix_cache: true,
            schema: None,
        };
        let mut costs = Vec::new();
        let mut rates = [0.0; 2];
        for _ in 0..3 {
            let each = [None, Some(text.clone())].map(|schema| {
                work.schema = schema;
                Measured::of(&work, None).decoding_rate()
            });
            costs.push(each[0] / each[1] - 1.0);
            rates = [rates[0] + each[0] / 3.0, rates[1] + each[1] / 3.0];
        }
        costs.sort_by(f64::total_cmp);
        println!(
            "| {count} | {:.1} | {:.1} | {:.1} % ({:.1} to {:.1}) |",
            rates[0],
            rates[1],
            costs[1] * 100.0,
            costs[0] * 100.0,
            costs[2] * 100.0
        );
    }
}

impl Measured {
    fn of(work: &Work, peer: Option<(&String, &str)>) -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), serde_json::to_vec(work).unwrap()).unwrap();
        let mut command = match peer {
            None => {
                let mut command = Command::new(std::env::current_exe().unwrap());
                command.arg("--measure");
                command
            }
            Some((python, script)) => {
                let script = Path::new(env!("CARGO_MANIFEST_DIR"))
                    .join("peers")
                    .join(script);
                let mut command = Command::new(python);
                command.arg(script);
                command
            }
        };
        let output = command.arg(file.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        let text = String::from_utf8(output.stdout).unwrap();
        serde_json::from_str(text.lines().last().unwrap()).unwrap()
    }

    /// Tokens a second when all prompts are read; the few that were written before count as well.
    fn decoding_rate(&self) -> f64 {
        (self.tokens - self.ids.len()) as f64 / (self.seconds - self.prompts_seconds)
    }

    fn print(&self, name: &str, same: &str) {
        println!(
            "| {name} | {:.2} s | {:.2} s | {:.1} | {:.1} | {:.0} MiB | {same} |",
            self.first_token_seconds,
            self.prompts_seconds,
            self.tokens as f64 / self.seconds,
            self.decoding_rate(),
            self.peak_rss_bytes as f64 / f64::from(1 << 20)
        );
    }
}

fn measure(work: &Work) -> Measured {
    let settings = EngineSettings {
        prefix_cache: work.prefix_cache,
        ..EngineSettings::default()
    };
    let model = TunedModel::load(Path::new(&work.base), None)
        .unwrap()
        .settings(settings);
    // Weights are mapped: they are read from the disk before the clock runs.
    let ask = |prompt: &[u32], answer| {
        let ask = Ask::tokens(prompt.to_vec(), Decoding::greedy(answer));
        match &work.schema {
            Some(schema) => ask.schema(schema.clone()),
            None => ask,
        }
    };
    drop(model.answer_all(vec![ask(&[1; 20], 16)]).unwrap());
    let asks = work.prompts.iter().map(|prompt| ask(prompt, work.answer));
    let begun = Instant::now();
    let all = model.answer_all(asks.collect()).unwrap();
    let seconds = begun.elapsed().as_secs_f64();
    let outputs = &all.outputs;
    let sum =
        |each: fn(&because::tune::Generation) -> usize| outputs.iter().map(each).sum::<usize>();
    let first: f64 = outputs.iter().map(|one| one.first_token_seconds).sum();
    Measured {
        seconds,
        first_token_seconds: first / outputs.len() as f64,
        prompts_seconds: outputs
            .iter()
            .fold(0.0, |last, one| last.max(one.first_token_seconds)),
        tokens: sum(|one| one.token_ids.len()),
        cached_share: sum(|one| one.cached_tokens) as f64 / sum(|one| one.prompt_tokens) as f64,
        peak_rss_bytes: peak_rss_bytes(),
        ids: all.outputs.into_iter().map(|one| one.token_ids).collect(),
    }
}

#[cfg(unix)]
fn peak_rss_bytes() -> u64 {
    use nix::sys::resource::{UsageWho, getrusage};
    let peak = getrusage(UsageWho::RUSAGE_SELF).unwrap().max_rss() as u64;
    if cfg!(target_vendor = "apple") {
        peak
    } else {
        peak * 1024
    }
}

#[cfg(not(unix))]
fn peak_rss_bytes() -> u64 {
    0
}

/// Tokens that follow from a seed (splitmix64), none of them among the first, where special ones may be.
struct Draw(u64, u64);

impl Draw {
    fn tokens(&mut self, count: usize) -> Vec<u32> {
        (0..count)
            .map(|_| {
                self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut z = self.0;
                z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                (300 + (z ^ (z >> 31)) % (self.1 - 300)) as u32
            })
            .collect()
    }
}
