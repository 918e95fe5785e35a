mod data;
mod llm;
#[cfg(feature = "serve")]
mod serve;

use std::path::PathBuf;

use because::core::Split;
use because::graph::Sampling;
use because::llm::{Deadline, ModelSpec};
#[cfg(feature = "tune")]
use because::tune::WeightType;
#[cfg(feature = "tune")]
use clap::ValueEnum;
use clap::{Args, Parser, Subcommand};

pub(crate) use data::{Cold, ColdNodes, Filters, Graph, Import};
pub(crate) use llm::{Llm, LlmAudit, LlmExport, LlmPrune, LlmRows};
#[cfg(feature = "serve")]
pub(crate) use serve::Serve;

/// Tells a person why an item is recommended to them.
///
/// A project directory holds one experiment; each command reads and writes its files. Exit codes: 0 done, 1 failed, 2 bad
/// usage or bad input, 3 stopped by a budget or by you (run the same command again to go on).
#[derive(Debug, Parser)]
#[command(version, propagate_version = true)]
pub(crate) struct Cli {
    /// Print one JSON object on standard output and nothing else there.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Show no progress and no warnings.
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Read raw files into a project directory.
    Import(Box<Import>),
    /// Make some users or items of a project cold, in a new project directory.
    Cold(Cold),
    /// Tell what the profiles and explanations will cost, before anything is paid for.
    Plan(Box<Plan>),
    /// Show the interaction graph, and check it for leaks between splits.
    Graph(Graph),
    /// Write a profile for every user and item, then pass messages between them (PGHIS).
    Profile(Profile),
    /// Let a model find each chosen item among negatives and say why (CPEG).
    Contrast(Contrast),
    /// Tune the small model on explanations with LoRA.
    #[cfg(feature = "tune")]
    Train(Box<Train>),
    /// Let a local model answer a prompt or a file of prompts.
    #[cfg(feature = "tune")]
    Generate(Generate),
    /// Write a base with an adapter added into its weights, for programs that know no adapters.
    #[cfg(feature = "tune")]
    Merge(Merge),
    /// Explain one recommendation, or all of a split, with the tuned model.
    #[cfg(feature = "tune")]
    Explain(Explain),
    /// Offer a local model and its adapters to other programs, as an OpenAI-compatible endpoint.
    ///
    /// POST /v1/chat/completions (whole or streamed, with response_format json_schema), GET /v1/models and GET /health, until
    /// Ctrl-C or SIGTERM. Other commands ask it as openai:NAME@http://127.0.0.1:8080/v1.
    #[cfg(feature = "serve")]
    Serve(Box<Serve>),
    /// Measure explanations.
    #[command(subcommand)]
    Evaluate(Evaluate),
    /// Write report.json and report.html from what the project holds.
    Report(Dir),
    /// Look at the calls to models and the answers of a project, and tidy them up.
    #[command(subcommand)]
    Llm(Llm),
    /// Run every stage, going on where the last run ended.
    #[cfg(feature = "tune")]
    Run(Box<Run>),
}

#[derive(Debug, Args)]
pub(crate) struct Dir {
    /// The project directory.
    pub(crate) dir: PathBuf,
}

/// How chat models are called.
#[derive(Debug, Args)]
pub(crate) struct Calls {
    /// The chat model: offline, openai:MODEL, openai:MODEL@URL, qwen:PATH[+ADAPTER] or replay:FILE.
    #[arg(long)]
    pub(crate) llm: Option<ModelSpec>,
    /// The chat model that explains, where it is another one.
    #[arg(long)]
    pub(crate) reasoner: Option<ModelSpec>,
    /// Calls in flight at most; how many the server bears is found out.
    #[arg(long)]
    pub(crate) concurrency: Option<usize>,
    /// Requests in any minute at most.
    #[arg(long)]
    pub(crate) requests_per_minute: Option<u64>,
    /// Tokens in any minute at most, those of prompts and answers together.
    #[arg(long)]
    pub(crate) tokens_per_minute: Option<u64>,
    /// Write every exchange to this file, for replay:FILE.
    #[arg(long)]
    pub(crate) record: Option<PathBuf>,
    /// Ask through the server's Batch API (openai: models only): half the price, answers within a day.
    #[arg(long)]
    pub(crate) batch: bool,
    /// Requests of a batch at most.
    #[arg(long, value_name = "N")]
    pub(crate) batch_rows: Option<usize>,
    /// With --batch: end with code 3 once the server has the requests; the same command collects the answers later.
    #[arg(long)]
    pub(crate) batch_no_wait: bool,
    /// The seed of everything that is drawn.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Stop before the calls of this run cost more US dollars than this. Needs [llm.prices.MODEL] in because.toml.
    #[arg(long, value_name = "DOLLARS")]
    pub(crate) budget_usd: Option<f64>,
    /// Stop before they take more tokens than this, those of prompts and answers together.
    #[arg(long, value_name = "TOKENS")]
    pub(crate) budget_tokens: Option<u64>,
    /// Begin no call after so long (2h30m) or after a moment (2026-11-24T08:00:00Z).
    #[arg(long, value_name = "WHEN")]
    pub(crate) deadline: Option<Deadline>,
}

/// How many pairs are explained.
#[derive(Debug, Args)]
pub(crate) struct Limits {
    /// Train pairs explained at most.
    #[arg(long)]
    pub(crate) train_limit: Option<usize>,
    /// Valid pairs explained at most.
    #[arg(long)]
    pub(crate) valid_limit: Option<usize>,
    /// Test pairs explained at most, where the data brings no references.
    #[arg(long)]
    pub(crate) test_limit: Option<usize>,
}

#[derive(Debug, Args)]
pub(crate) struct Plan {
    /// The project directory.
    pub(crate) dir: PathBuf,
    #[command(flatten)]
    pub(crate) calls: Calls,
    #[command(flatten)]
    pub(crate) messages: Messages,
    #[command(flatten)]
    pub(crate) negatives: Negatives,
    #[command(flatten)]
    pub(crate) limits: Limits,
    /// Seconds a call takes, where earlier calls do not tell.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) latency: Option<f64>,
    /// Of more calls of a kind than this, look at so many, drawn by seed.
    #[arg(long, value_name = "CALLS", default_value_t = 5000)]
    pub(crate) sample: usize,
}

#[derive(Debug, Args)]
pub(crate) struct Messages {
    /// Rounds of messages after the initial profiles.
    #[arg(long)]
    pub(crate) layers: Option<usize>,
    /// Neighbours read by a node at each layer.
    #[arg(long)]
    pub(crate) neighbors: Option<usize>,
    /// Which neighbours are read: uniform, most-recent, top-rated, degree-damped or relevance.
    #[arg(long)]
    pub(crate) sampling: Option<Sampling>,
}

#[derive(Debug, Args)]
pub(crate) struct Profile {
    /// The project directory.
    pub(crate) dir: PathBuf,
    #[command(flatten)]
    pub(crate) messages: Messages,
    #[command(flatten)]
    pub(crate) calls: Calls,
}

#[derive(Debug, Args)]
pub(crate) struct Negatives {
    /// Hard negatives a pair.
    #[arg(long)]
    pub(crate) hard: Option<usize>,
    /// Random negatives a pair.
    #[arg(long)]
    pub(crate) random: Option<usize>,
    /// Answers asked for before a pair is given up.
    #[arg(long)]
    pub(crate) max_attempts: Option<usize>,
}

#[derive(Debug, Args)]
pub(crate) struct Contrast {
    /// The project directory.
    pub(crate) dir: PathBuf,
    #[command(flatten)]
    pub(crate) negatives: Negatives,
    /// The split whose pairs are explained.
    #[arg(long, default_value = "train")]
    pub(crate) split: Split,
    /// Pairs at most, drawn by seed.
    #[arg(long)]
    pub(crate) limit: Option<usize>,
    #[command(flatten)]
    pub(crate) calls: Calls,
}

#[cfg(feature = "tune")]
#[derive(Debug, Clone, Args)]
pub(crate) struct Tuning {
    /// A folder with a Qwen2.5 checkpoint, a hub id (owner/name or owner/name@revision), or `tiny`: a small one made from the
    /// texts at hand.
    #[arg(long)]
    pub(crate) base: Option<String>,
    /// Optimiser steps; as many as the epochs have where it is not said.
    #[arg(long)]
    pub(crate) max_steps: Option<u64>,
    /// Times that every example is seen, where --max-steps does not say otherwise.
    #[arg(long)]
    pub(crate) epochs: Option<u32>,
    /// Examples at once.
    #[arg(long)]
    pub(crate) batch_size: Option<usize>,
    /// Tokens at once, in place of a number of examples: as many whole examples as fit.
    #[arg(long, value_name = "TOKENS")]
    pub(crate) batch_tokens: Option<usize>,
    /// Sort examples by length within so many batches at a time, so that those of like length come together.
    #[arg(long, value_name = "BATCHES")]
    pub(crate) bucketing: Option<usize>,
    /// Batches whose gradients are added up before a step.
    #[arg(long)]
    pub(crate) accumulation: Option<usize>,
    /// The highest learning rate.
    #[arg(long)]
    pub(crate) learning_rate: Option<f64>,
    /// Steps over which the learning rate rises.
    #[arg(long)]
    pub(crate) warmup_steps: Option<u64>,
    /// The rank of the adapter.
    #[arg(long)]
    pub(crate) rank: Option<usize>,
    /// The scale of the adapter times its rank.
    #[arg(long)]
    pub(crate) alpha: Option<f64>,
    /// The layers that get an adapter, separated by commas.
    #[arg(long, value_delimiter = ',')]
    pub(crate) target_modules: Option<Vec<String>>,
    /// The share of inputs dropped on the way into an adapter.
    #[arg(long)]
    pub(crate) dropout: Option<f64>,
    /// Learn the length of each row of a weight apart from its direction (DoRA).
    #[arg(long)]
    pub(crate) dora: bool,
    /// Scale by the root of the rank in place of the rank (rsLoRA).
    #[arg(long)]
    pub(crate) rslora: bool,
    /// Another rank for some layers, as in down_proj=16; may be given again.
    #[arg(long, value_name = "LAYERS=RANK", value_parser = named::<usize>)]
    pub(crate) rank_pattern: Vec<(String, usize)>,
    /// Another alpha for some layers, as in down_proj=32; may be given again.
    #[arg(long, value_name = "LAYERS=ALPHA", value_parser = named::<f64>)]
    pub(crate) alpha_pattern: Vec<(String, f64)>,
    /// Tokens of an example at most: the end of the longest text of its prompt goes first, its answer last.
    #[arg(long)]
    pub(crate) max_length: Option<usize>,
    /// Evaluate on the validation examples after every so many steps; at the end of each epoch where it is not said.
    #[arg(long, value_name = "STEPS")]
    pub(crate) evaluate_every: Option<u64>,
    /// Stop after so many evaluations in a row without an improvement.
    #[arg(long, value_name = "EVALUATIONS")]
    pub(crate) patience: Option<u32>,
    /// What the validation loss must be lower by to be an improvement, in nats.
    #[arg(long, value_name = "NATS")]
    pub(crate) min_delta: Option<f64>,
    /// Which layers are computed again in the backward pass to save memory: auto, none, all, or N for one of every N.
    #[arg(long, value_name = "LAYERS")]
    pub(crate) checkpointing: Option<String>,
    /// What training may take, as in 8GB or 6GiB; 80 % of what is left where it is not said.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) memory_limit: Option<u64>,
    /// Steps between two checkpoints, from which a run that was killed goes on.
    #[arg(long, value_name = "STEPS")]
    pub(crate) checkpoint_every: Option<u64>,
    /// How many of the newest checkpoints stay, the best one not counted.
    #[arg(long, value_name = "N")]
    pub(crate) keep_checkpoints: Option<usize>,
    /// Steps in which the weights of `tiny` are made.
    #[arg(long)]
    pub(crate) tiny_steps: Option<u64>,
}

/// `name=value`.
#[cfg(feature = "tune")]
fn named<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<(String, T), String> {
    let (name, value) = text
        .rsplit_once('=')
        .ok_or_else(|| "is not of the form name=value".to_owned())?;
    let value = value
        .parse()
        .map_err(|error| format!("{value:?}: {error}"))?;
    Ok((name.to_owned(), value))
}

/// `8GB`, `1.5 GiB`, `512MiB`, or bytes.
#[cfg(feature = "tune")]
fn size(text: &str) -> Result<u64, String> {
    let cut = text
        .find(|letter: char| letter.is_ascii_alphabetic())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(cut);
    let scale = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" | "k" => 1e3,
        "mb" | "m" => 1e6,
        "gb" | "g" => 1e9,
        "tb" | "t" => 1e12,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        _ => {
            return Err(format!(
                "unknown unit {unit:?}; there are GB, GiB and the like"
            ));
        }
    };
    match number.trim().parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok((number * scale) as u64),
        _ => Err(format!("{number:?} is not a size")),
    }
}

#[cfg(feature = "tune")]
#[derive(Debug, Args)]
pub(crate) struct Train {
    /// A project directory, or a file of examples.
    #[arg(long)]
    pub(crate) data: PathBuf,
    /// Examples to evaluate on while training, of which nothing is learnt; what was best on them is what is written. Where
    /// --data is a project directory, its own validation examples if it has any.
    #[arg(long, value_name = "FILE")]
    pub(crate) eval_data: Option<PathBuf>,
    /// The adapter folder to write; DIR/adapter where --data is a project directory. With --full the base, DIR/model.
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
    /// Train all weights of a small base in place of adapters, and write a complete base.
    #[arg(long, conflicts_with_all = ["init_adapter", "rank", "alpha", "target_modules", "dropout", "dora", "rslora", "rank_pattern", "alpha_pattern"])]
    pub(crate) full: bool,
    /// Train nothing: say what training would do, and what memory and time it would take.
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) tuning: Tuning,
    /// Begin with this adapter instead of a new one.
    #[arg(long)]
    pub(crate) init_adapter: Option<PathBuf>,
    /// Take the examples in the order of the file.
    #[arg(long)]
    pub(crate) no_shuffle: bool,
    /// Learn from explanations of pairs that the model never found, too.
    #[arg(long)]
    pub(crate) include_rejected: bool,
    /// The seed of the adapter and of the order.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Write one JSON line for each step, and one for each evaluation, here.
    #[arg(long)]
    pub(crate) log: Option<PathBuf>,
    /// Go on from the last checkpoint of a run that was ended.
    #[arg(long)]
    pub(crate) resume: bool,
}

#[cfg(feature = "tune")]
#[derive(Debug, Args)]
pub(crate) struct Generate {
    /// A folder with a Qwen2.5 checkpoint, a GGUF file, a hub id (owner/name or owner/name@revision), or `tiny` with --adapter
    /// for the base that the adapter was trained on.
    #[arg(long)]
    pub(crate) base: String,
    /// A LoRA adapter in PEFT's format.
    #[arg(long)]
    pub(crate) adapter: Option<PathBuf>,
    /// One prompt, put as a user's turn.
    #[arg(long, required_unless_present = "data", conflicts_with = "data")]
    pub(crate) prompt: Option<String>,
    /// A file of examples; the turns before each answer are the prompt.
    #[arg(long)]
    pub(crate) data: Option<PathBuf>,
    /// Take the likeliest token every time.
    #[arg(long)]
    pub(crate) greedy: bool,
    /// How freely tokens are drawn, without --greedy.
    #[arg(long, default_value_t = 0.7)]
    pub(crate) temperature: f64,
    /// Tokens of an answer at most.
    #[arg(long, default_value_t = 128)]
    pub(crate) max_tokens: usize,
    /// The seed of the draw.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
}

#[cfg(feature = "tune")]
#[derive(Debug, Args)]
pub(crate) struct Merge {
    /// A folder with a Qwen2.5 checkpoint, or `tiny` with --adapter for the base that the adapter was trained on.
    #[arg(long)]
    pub(crate) base: String,
    /// The LoRA adapter to add, in PEFT's format; without it the base itself is written.
    #[arg(long)]
    pub(crate) adapter: Option<PathBuf>,
    /// What to write: a folder, or a file that ends in .gguf. It must not exist.
    #[arg(long)]
    pub(crate) out: PathBuf,
    /// The format; by the name of --out where it is not said.
    #[arg(long)]
    pub(crate) format: Option<MergeFormat>,
    /// The type of the weights: f32, f16, bf16, or q8_0 for GGUF; that of the base where it is not said.
    #[arg(long = "type")]
    pub(crate) weight_type: Option<WeightType>,
}

#[cfg(feature = "tune")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum MergeFormat {
    /// A checkpoint folder for transformers, vLLM and this program.
    Safetensors,
    /// One file for llama.cpp.
    Gguf,
}

#[cfg(feature = "tune")]
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// The project directory.
    pub(crate) dir: PathBuf,
    /// Who.
    #[arg(long, requires = "item", required_unless_present = "split")]
    pub(crate) user: Option<String>,
    /// What.
    #[arg(long, requires = "user")]
    pub(crate) item: Option<String>,
    /// All pairs of this split (train, valid or test) with profiles on both sides, into a file of JSON Lines. What it has
    /// already is not made again.
    #[arg(long, conflicts_with_all = ["user", "item"])]
    pub(crate) split: Option<Split>,
    /// With --split: so many pairs at most, drawn by the project's seed.
    #[arg(long, requires = "split")]
    pub(crate) limit: Option<usize>,
    /// With --split: the file; DIR/explained.SPLIT.jsonl where it is not said.
    #[arg(long, requires = "split")]
    pub(crate) out: Option<PathBuf>,
    /// Another base than the one the adapter was trained on.
    #[arg(long)]
    pub(crate) base: Option<String>,
    /// Another adapter than DIR/adapter.
    #[arg(long)]
    pub(crate) adapter: Option<PathBuf>,
    /// Tokens at most.
    #[arg(long)]
    pub(crate) max_tokens: Option<usize>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Evaluate {
    /// BLEU, ROUGE, chrF and diversity of predictions against references.
    Text(EvaluateText),
}

#[derive(Debug, Args)]
pub(crate) struct EvaluateText {
    /// JSON Lines with "prediction" and "reference".
    #[arg(long)]
    pub(crate) pairs: PathBuf,
}

#[cfg(feature = "tune")]
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The project directory.
    pub(crate) dir: PathBuf,
    #[command(flatten)]
    pub(crate) calls: Calls,
    #[command(flatten)]
    pub(crate) messages: Messages,
    #[command(flatten)]
    pub(crate) negatives: Negatives,
    #[command(flatten)]
    pub(crate) limits: Limits,
    #[command(flatten)]
    pub(crate) tuning: Tuning,
}

#[cfg(all(test, feature = "tune"))]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, bytes) in [
            ("512", 512),
            ("8GB", 8_000_000_000),
            ("1.5GiB", 3 << 29),
            ("512 MiB", 512 << 20),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "GB", "8 boxes", "-1GB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn patterns_are_names_and_numbers() {
        assert_eq!(named("down_proj=16"), Ok(("down_proj".to_owned(), 16)));
        assert!(named::<usize>("down_proj").is_err());
        assert!(named::<usize>("down_proj=x").is_err());
    }
}
