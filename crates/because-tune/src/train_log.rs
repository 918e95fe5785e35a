use std::io::Write;
use std::path::{Path, PathBuf};

use because_core::jsonl;
use serde::{Deserialize, Serialize};

use crate::error::{Result, TuneError};
use crate::evaluation::Evaluation;
use crate::memory::{Checkpointing, Memory};
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
    /// How the run is fitted into memory.
    Fitted {
        /// What it is expected to take at its peak.
        memory: Memory,
        /// What it may take.
        limit: Option<u64>,
        /// Which layers are computed again.
        checkpointing: Checkpointing,
        /// Tokens of a part of a batch at most, where batches have to be cut.
        micro_batch_tokens: Option<usize>,
    },
    /// A step is done.
    Step(StepRecord),
    /// The validation set is evaluated.
    Evaluated(Evaluation),
    /// Nothing has improved for as long as `patience` says: this was the last step.
    StoppedEarly {
        /// The last step.
        step: u64,
        /// The best one, whose parameters are written.
        best_step: u64,
        /// Its validation loss.
        best_loss: f64,
    },
    /// Something that a person should look at, and that does not end the run.
    Warning {
        /// What, and where.
        reason: String,
    },
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
    /// Rows of the validation set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_rows: Option<usize>,
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
    /// The step with the lowest validation loss; with a validation set it is this step's parameters that are written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_step: Option<u64>,
    /// Its validation loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_loss: Option<f64>,
    /// Whether `patience` ended the run.
    pub stopped_early: bool,
    /// Which layers were computed again.
    pub checkpointing: Checkpointing,
    /// Tokens of a part of a batch at most, where batches had to be cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_batch_tokens: Option<usize>,
}

/// The log: lines of steps after the one resumed from are forgotten, since they are taken again.
pub(crate) struct Log {
    path: PathBuf,
    file: std::fs::File,
}

impl Log {
    pub(crate) fn open(path: &Path, done: u64) -> Result<Self> {
        let io = |action, error| TuneError::io(action, path, error);
        let kept = match done > 0 && path.is_file() {
            true => up_to(
                done,
                &std::fs::read(path).map_err(|error| io("read", error))?,
            ),
            false => Vec::new(),
        };
        jsonl::write_atomic(path, |out| out.write_all(&kept))?;
        let file = std::fs::OpenOptions::new().append(true).open(path);
        Ok(Self {
            path: path.to_owned(),
            file: file.map_err(|error| io("open", error))?,
        })
    }

    /// Writes a line: a step, or an evaluation.
    pub(crate) fn write(&mut self, record: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(record).expect("a plain struct is serialisable");
        line.push(b'\n');
        self.file
            .write_all(&line)
            .map_err(|error| TuneError::io("write", &self.path, error))
    }
}

/// The lines of the steps up to this one, byte for byte: read and written again, a number could move by a last place.
fn up_to(done: u64, log: &[u8]) -> Vec<u8> {
    #[derive(Deserialize)]
    struct Line {
        step: u64,
    }
    log.split_inclusive(|&byte| byte == b'\n')
        .filter(|line| line.ends_with(b"\n"))
        .filter(|line| serde_json::from_slice::<Line>(line).is_ok_and(|line| line.step <= done))
        .flatten()
        .copied()
        .collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_log_keeps_whole_lines_of_steps_that_are_done_as_they_are() {
        let log = b"{\"step\":1,\"loss\":0.30000000000000004}\n{\"step\":1,\"valid_loss\":2}\n{\"step\":2}\n{\"step\":1";
        let second = log.windows(9).rposition(|part| part == b"{\"step\":2");
        assert_eq!(Some(up_to(1, log).as_slice()), second.map(|at| &log[..at]));
    }
}
