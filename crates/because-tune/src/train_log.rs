use std::io::Write;
use std::path::{Path, PathBuf};

use because_core::jsonl;
use serde::Serialize;

use crate::error::{Result, TuneError};
use crate::session::StepRecord;

/// What happens while a run goes on.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum TrainEvent {
    /// The rows are read; the first step follows.
    Started {
        /// Rows to learn from.
        rows: usize,
        /// Rows of which nothing was left to learn.
        skipped: usize,
        /// Rows that were shortened to `max_length`.
        truncated: usize,
        /// Steps of the whole run.
        steps: u64,
        /// Numbers that learn.
        trainable_parameters: u64,
    },
    /// A row is left out.
    Skipped {
        /// Its line.
        line: u64,
        /// Why.
        reason: String,
    },
    /// A step is done.
    Step(StepRecord),
    /// A checkpoint is written.
    Checkpoint {
        /// After this step.
        step: u64,
        /// Where.
        path: PathBuf,
    },
}

/// What a finished run amounted to.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TrainSummary {
    /// Steps done.
    pub steps: u64,
    /// Rows learnt from.
    pub rows: usize,
    /// Rows of which nothing was left to learn.
    pub skipped: usize,
    /// Rows that were shortened.
    pub truncated: usize,
    /// Numbers that learnt.
    pub trainable_parameters: u64,
    /// Positions seen, padding included; see [`StepRecord::tokens`].
    pub tokens: u64,
    /// Tokens the losses were means over.
    pub supervised_tokens: u64,
    /// Time of all steps together.
    pub seconds: f64,
    /// `tokens / seconds`: comparable with trainers that compute their padding.
    pub tokens_per_second: f64,
    /// The same without the padding that was never computed.
    pub unpadded_tokens_per_second: f64,
    /// The most memory this process has had at once, where the system tells.
    pub peak_rss_bytes: Option<u64>,
    /// Loss of the first step.
    pub first_loss: f64,
    /// Loss of the last step.
    pub last_loss: f64,
}

/// The log: lines of steps after the one resumed from are forgotten, since they are taken again.
pub(crate) struct Log {
    path: PathBuf,
    file: std::fs::File,
}

impl Log {
    pub(crate) fn open(path: &Path, done: u64) -> Result<Self> {
        let kept: Vec<StepRecord> = match done > 0 && path.is_file() {
            true => jsonl::read(path)?
                .filter_map(Result::ok)
                .filter(|line: &StepRecord| line.step <= done)
                .collect(),
            false => Vec::new(),
        };
        jsonl::write(path, kept)?;
        let file = std::fs::OpenOptions::new().append(true).open(path);
        let file = file.map_err(|error| TuneError::io("open", path, error))?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    pub(crate) fn write(&mut self, record: &StepRecord) -> Result<()> {
        let mut line = serde_json::to_vec(record).expect("a plain struct is serialisable");
        line.push(b'\n');
        self.file
            .write_all(&line)
            .map_err(|error| TuneError::io("write", &self.path, error))
    }
}

/// `VmHWM`, which Linux keeps for every process.
pub(crate) fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()
        .map(|kib| kib * 1024)
}
