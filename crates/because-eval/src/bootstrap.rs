use std::num::NonZero;

use serde::{Deserialize, Serialize};

use crate::random::SplitMix64;
use crate::text::PairCounts;

/// Percentile bootstrap intervals (Efron 1979; for BLEU, Koehn 2004) of the three figures a report leads with.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Intervals {
    /// How many samples were drawn.
    pub samples: usize,
    /// The share of samples inside an interval.
    pub level: f64,
    /// What the draws came from.
    pub seed: u64,
    /// BLEU-4 with the `13a` tokenizer.
    pub bleu4_13a: Interval,
    /// ROUGE-L F, not stemmed.
    #[serde(rename = "rougeL")]
    pub rouge_l: Interval,
    /// chrF.
    pub chrf: Interval,
}

/// Between which two values a figure lies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

const SAMPLES: usize = 1000;
const LEVEL: f64 = 0.95;

pub(crate) fn intervals(rows: &[PairCounts], seed: u64) -> Intervals {
    let threads = std::thread::available_parallelism()
        .map_or(1, NonZero::get)
        .min(SAMPLES);
    let drawn: Vec<[f64; 3]> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|thread| {
                let share = SAMPLES * thread / threads..SAMPLES * (thread + 1) / threads;
                scope.spawn(move || {
                    share
                        .map(|sample| resampled(rows, seed, sample))
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        running
            .into_iter()
            .flat_map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    });
    let interval = |metric: usize| percentiles(drawn.iter().map(|sample| sample[metric]).collect());
    Intervals {
        samples: SAMPLES,
        level: LEVEL,
        seed,
        bleu4_13a: interval(0),
        rouge_l: interval(1),
        chrf: interval(2),
    }
}

/// BLEU-4, ROUGE-L and chrF of as many pairs as there are, drawn with replacement. Each sample has its own stream, so
/// it is the same on whichever thread it is drawn.
fn resampled(rows: &[PairCounts], seed: u64, sample: usize) -> [f64; 3] {
    let mut random = SplitMix64::stream(seed, sample as u64);
    let mut sum = PairCounts::default();
    let mut rouge_l = 0.0;
    for _ in 0..rows.len() {
        let row = &rows[random.below(rows.len())];
        sum.bleu_13a.add(&row.bleu_13a);
        sum.chrf.add(&row.chrf);
        rouge_l += row.rouge.rouge_l.fmeasure;
    }
    [
        sum.bleu_13a.score(4),
        rouge_l / rows.len().max(1) as f64,
        sum.chrf.score(),
    ]
}

/// The two ends, between neighbouring values where an end falls between them, as NumPy's `percentile` has it.
fn percentiles(mut values: Vec<f64>) -> Interval {
    values.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| {
        let place = share * (values.len() - 1) as f64;
        let (below, above) = (
            values[place.floor() as usize],
            values[place.ceil() as usize],
        );
        below + (above - below) * place.fract()
    };
    Interval {
        low: at((1.0 - LEVEL) / 2.0),
        high: at(f64::midpoint(1.0, LEVEL)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_numpys() {
        // numpy.percentile(range(1000), [2.5, 97.5]) == [24.975, 974.025]
        let Interval { low, high } = percentiles((0..1000).rev().map(f64::from).collect());
        assert!(
            (low - 24.975).abs() < 1e-9 && (high - 974.025).abs() < 1e-9,
            "{low} {high}"
        );
    }

    #[test]
    fn one_pair_has_an_interval_of_no_width_and_none_has_zero() {
        let rows = [PairCounts::default()];
        assert_eq!(intervals(&rows, 1).chrf, Interval::default());
        assert_eq!(intervals(&[], 1).rouge_l, Interval::default());
    }
}
