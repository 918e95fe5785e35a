use serde::Serialize;

use crate::base::BaseFolder;
use crate::chat::Chat;
use crate::data::{Row, Sample, TrainSet};
use crate::error::{Result, TuneError};
use crate::train_config::TrainConfig;

/// Rows as tokens, and what became of those that do not fit.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    pub(crate) samples: Vec<Sample>,
    pub(crate) skipped: Vec<Skipped>,
    /// Rows that were shortened.
    pub(crate) truncated: usize,
    /// Of these the ones that lost some of what is to be learnt.
    pub(crate) answers_cut: usize,
}

/// A row of which nothing can be learnt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Skipped {
    /// Its line.
    pub line: u64,
    /// Why.
    pub reason: String,
}

impl Rows {
    /// Every row of a set as tokens; rows of which nothing can be learnt are set aside.
    ///
    /// # Errors
    /// When a row cannot be used at all, or none is left; `field` says which set it was.
    pub(crate) fn read(
        folder: &BaseFolder,
        data: &TrainSet,
        config: &TrainConfig,
        field: &'static str,
    ) -> Result<Self> {
        let vocab_size = folder.config.vocab_size;
        let max_length = config.max_length.min(folder.config.max_position_embeddings);
        let chat = data
            .has_chats()
            .then(|| Chat::read(&folder.path, &folder.config))
            .transpose()?;
        let mut rows = Self::default();
        for (line, row) in &data.rows {
            let fault = |reason: String| TuneError::Row {
                line: *line,
                reason,
            };
            let sample = match (row, &chat) {
                (Row::Chat(example), Some(chat)) => {
                    let encoded = chat
                        .example(&example.messages, max_length)
                        .map_err(|error| fault(error.to_string()))?;
                    encoded.map(|encoded| {
                        rows.truncated += usize::from(encoded.truncated);
                        rows.answers_cut += usize::from(encoded.answer_cut);
                        Sample::new(encoded.ids, |at| encoded.answer.contains(&at))
                    })
                }
                (Row::Tokens(row), _) => {
                    let sample = Sample::from_row(row, max_length, vocab_size).map_err(fault)?;
                    let learnt = (1..row.input_ids.len())
                        .filter(|&at| row.is_learnt(at))
                        .count();
                    let is_left = !sample.targets.is_empty();
                    rows.truncated += usize::from(is_left && row.input_ids.len() > max_length);
                    rows.answers_cut += usize::from(is_left && sample.targets.len() < learnt);
                    if learnt == 0 {
                        rows.skip(*line, "no token of it is to be learnt: there is none after the first whose label is not -100".into());
                        continue;
                    }
                    Some(sample)
                }
                (Row::Chat(_), None) => unreachable!("a tokenizer is read where there is a chat"),
            };
            match sample.filter(|sample| !sample.targets.is_empty()) {
                Some(sample) => rows.samples.push(sample.at(*line)),
                None => rows.skip(
                    *line,
                    format!("nothing of the answer is left within {max_length} tokens"),
                ),
            }
        }
        if rows.samples.is_empty() {
            let reason = format!(
                "no row to learn from: {} were given, {} skipped{}",
                data.len(),
                rows.skipped.len(),
                rows.skipped.first().map_or_else(String::new, |first| {
                    format!(", the first, line {}, since {}", first.line, first.reason)
                })
            );
            return Err(TuneError::Setting { field, reason });
        }
        Ok(rows)
    }

    fn skip(&mut self, line: u64, reason: String) {
        self.skipped.push(Skipped { line, reason });
    }

    pub(crate) fn lengths(&self) -> Vec<usize> {
        self.samples.iter().map(|sample| sample.length).collect()
    }

    pub(crate) fn supervised(&self) -> u64 {
        self.samples
            .iter()
            .map(|sample| sample.targets.len() as u64)
            .sum()
    }

    /// Tells by all tokens and targets whether the rows are other ones (FNV-1a).
    pub(crate) fn fingerprint(&self) -> String {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut eat = |number: u32| {
            for byte in number.to_le_bytes() {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        };
        for sample in &self.samples {
            eat(sample.ids.len() as u32);
            sample.ids.iter().for_each(|&id| eat(id));
            sample.targets.iter().for_each(|&(at, id)| {
                eat(at);
                eat(id);
            });
        }
        format!("{hash:016x}")
    }
}
