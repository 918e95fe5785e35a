use std::num::NonZero;

use because_core::Prediction;

use super::bleu::BleuCounts;
use super::chrf::ChrfCounts;
use super::count::Counter;
use super::diversity::Diversity;
use super::rouge::Rouge;
use super::{Bleu, BleuByTokenizer, TextMetrics, signature};
use crate::{Intervals, bootstrap};

/// What every metric needs to know of each pair, counted once. Metrics and their intervals are both sums over it, so
/// nothing is tokenized again for the thousand samples of a bootstrap.
///
/// ```
/// use because_core::Prediction;
/// use because_eval::TextStats;
///
/// let pair = |prediction: &str, reference: &str| Prediction {
///     user: None,
///     item: None,
///     prediction: prediction.into(),
///     reference: reference.into(),
/// };
/// let stats = TextStats::of(&[
///     pair("a quiet room with a view", "a quiet room and a fine view"),
///     pair("they love the strong coffee", "they come for the coffee"),
/// ]);
/// let (metrics, intervals) = (stats.metrics(), stats.intervals(7));
/// assert!(intervals.chrf.low <= metrics.chrf && metrics.chrf <= intervals.chrf.high);
/// ```
#[derive(Debug, Clone)]
pub struct TextStats {
    rows: Vec<PairCounts>,
    diversity: Diversity,
}

/// The sufficient statistics of one pair.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PairCounts {
    pub(crate) bleu_13a: BleuCounts,
    pub(crate) bleu_none: BleuCounts,
    pub(crate) chrf: ChrfCounts,
    pub(crate) rouge: Rouge,
    pub(crate) rouge_stemmed: Rouge,
}

/// One pair without its owners; fields, so that the two texts cannot change places.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pair<'a> {
    pub(crate) prediction: &'a str,
    pub(crate) reference: &'a str,
}

impl<'a> From<&'a Prediction> for Pair<'a> {
    fn from(pair: &'a Prediction) -> Self {
        Self {
            prediction: &pair.prediction,
            reference: &pair.reference,
        }
    }
}

/// Below this many pairs a second thread costs more than it saves.
const PAIRS_PER_THREAD: usize = 256;

impl TextStats {
    /// Counts everything, on as many threads as the machine has; how many does not change a figure.
    #[must_use]
    pub fn of(pairs: &[Prediction]) -> Self {
        Self::of_pairs(&pairs.iter().map(Pair::from).collect::<Vec<_>>())
    }

    pub(crate) fn of_pairs(pairs: &[Pair<'_>]) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self::on_threads(pairs, threads.min(pairs.len() / PAIRS_PER_THREAD).max(1))
    }

    fn on_threads(pairs: &[Pair<'_>], threads: usize) -> Self {
        let count = |pairs: &[Pair<'_>]| {
            let mut counter = Counter::default();
            pairs
                .iter()
                .map(|&pair| counter.count(pair))
                .collect::<Vec<_>>()
        };
        let rows = if threads == 1 {
            count(pairs)
        } else {
            std::thread::scope(|scope| {
                let running: Vec<_> = pairs
                    .chunks(pairs.len().div_ceil(threads))
                    .map(|chunk| scope.spawn(move || count(chunk)))
                    .collect();
                running
                    .into_iter()
                    .flat_map(|thread| {
                        thread
                            .join()
                            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                    })
                    .collect()
            })
        };
        Self {
            rows,
            diversity: Diversity::of(pairs),
        }
    }

    /// How many pairs were counted.
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.rows.len()
    }

    /// The figures of section "text" of a report. Without a pair every figure is zero.
    #[must_use]
    pub fn metrics(&self) -> TextMetrics {
        let mut sum = PairCounts::default();
        for row in &self.rows {
            sum.bleu_13a.add(&row.bleu_13a);
            sum.bleu_none.add(&row.bleu_none);
            sum.chrf.add(&row.chrf);
            sum.rouge = sum.rouge.map2(row.rouge, |a, b| a + b);
            sum.rouge_stemmed = sum.rouge_stemmed.map2(row.rouge_stemmed, |a, b| a + b);
        }
        let n = self.rows.len().max(1) as f64;
        let mean = |sum: Rouge| sum.map2(sum, |a, _| a / n);
        TextMetrics {
            pairs: self.rows.len(),
            bleu: BleuByTokenizer {
                tok_13a: Bleu::of(&sum.bleu_13a),
                tok_none: Bleu::of(&sum.bleu_none),
            },
            rouge: mean(sum.rouge),
            rouge_stemmed: mean(sum.rouge_stemmed),
            chrf: sum.chrf.score(),
            distinct: self.diversity.distinct,
            unique_sentence_ratio: self.diversity.unique_sentence_ratio,
            mean_tokens: self.diversity.mean_tokens,
            signatures: signature::all(),
        }
    }

    /// 95 % percentile bootstrap intervals over pairs, from 1000 samples: how far the figures would move with another
    /// draw of as many pairs. They say nothing about how good a metric is, nor about the references.
    #[must_use]
    pub fn intervals(&self, seed: u64) -> Intervals {
        bootstrap::intervals(&self.rows, seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_change_no_figure() {
        let texts: Vec<(String, String)> = (0..50)
            .map(|n| {
                (
                    format!("they like room {n} and tea {}", n % 7),
                    format!("room {} was fine, tea {n} too", n % 5),
                )
            })
            .collect();
        let pairs: Vec<Pair<'_>> = texts
            .iter()
            .map(|(prediction, reference)| Pair {
                prediction,
                reference,
            })
            .collect();
        let alone = TextStats::on_threads(&pairs, 1);
        for threads in [2, 3, 7] {
            let shared = TextStats::on_threads(&pairs, threads);
            assert_eq!(shared.metrics(), alone.metrics());
            assert_eq!(shared.intervals(1), alone.intervals(1));
        }
    }
}
