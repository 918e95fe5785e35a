use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::{ArgGroup, Args, Subcommand};

use crate::moment;

#[derive(Debug, Subcommand)]
pub(crate) enum Llm {
    /// What the calls cost and how they went, by model.
    Stats(LlmStats),
    /// List calls that went out, newest last.
    Audit(LlmAudit),
    /// Write calls, or answers, as JSON Lines.
    Export(LlmExport),
    /// Remove old rows and give their room back.
    Prune(LlmPrune),
}

#[derive(Debug, Args)]
pub(crate) struct LlmStats {
    /// The project directory.
    pub(crate) dir: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct LlmAudit {
    /// The project directory.
    pub(crate) dir: PathBuf,
    #[command(flatten)]
    pub(crate) rows: LlmRows,
    /// So many of the newest at most.
    #[arg(long, default_value_t = 50)]
    pub(crate) limit: u64,
}

/// Which rows.
#[derive(Debug, Args)]
pub(crate) struct LlmRows {
    /// Only calls that ended so: ok, invalid, truncated, filtered, overloaded, transient, context_too_long, permanent,
    /// interrupted, sent.
    #[arg(long)]
    pub(crate) outcome: Option<String>,
    /// Only this model.
    #[arg(long)]
    pub(crate) model: Option<String>,
    /// Only from this moment on: 2026-03-31, 2026-03-31T18:00 (UTC), or so long ago, as in 90m, 12h, 30d.
    #[arg(long, value_name = "WHEN", value_parser = moment::moment)]
    pub(crate) since: Option<SystemTime>,
}

#[derive(Debug, Args)]
pub(crate) struct LlmExport {
    /// The project directory.
    pub(crate) dir: PathBuf,
    #[command(flatten)]
    pub(crate) rows: LlmRows,
    /// The answers that are kept, in place of the calls.
    #[arg(long, conflicts_with = "outcome")]
    pub(crate) responses: bool,
    /// The file to write; standard output where it is not said.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").args(["attempts", "responses"]).multiple(true).required(true))]
#[command(group = ArgGroup::new("which").args(["older_than", "outcome", "model", "all"]).multiple(true).required(true))]
pub(crate) struct LlmPrune {
    /// The project directory.
    pub(crate) dir: PathBuf,
    /// Remove rows of calls. What they cost is in no total afterwards.
    #[arg(long)]
    pub(crate) attempts: bool,
    /// Remove answers. They were paid for, and would be again.
    #[arg(long, conflicts_with = "outcome")]
    pub(crate) responses: bool,
    /// Only what is older, as in 90m, 12h, 30d.
    #[arg(long, value_name = "AGE", value_parser = moment::span)]
    pub(crate) older_than: Option<Duration>,
    /// Only calls that ended so; see because llm audit.
    #[arg(long)]
    pub(crate) outcome: Option<String>,
    /// Only this model.
    #[arg(long)]
    pub(crate) model: Option<String>,
    /// All of them.
    #[arg(long, conflicts_with_all = ["older_than", "outcome", "model"])]
    pub(crate) all: bool,
    /// Remove nothing: say what would go.
    #[arg(long)]
    pub(crate) dry_run: bool,
}
