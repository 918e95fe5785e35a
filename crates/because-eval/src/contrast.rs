use std::collections::BTreeMap;

use because_core::{Explanation, Role};
use serde::{Deserialize, Serialize};

use crate::Interval;

/// How the contrastive stage went: whether the task was hard, whether it was fair, and what was kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ContrastSummary {
    /// The pairs that were tried.
    pub pairs: usize,
    /// The pairs where the model found the item by itself, whose explanations are kept.
    pub accepted: usize,
    /// The pairs where the model was told the item before it explained.
    pub answer_shown: usize,
    /// How many pairs took how many attempts.
    pub attempts: BTreeMap<usize, usize>,
    /// The share of pairs whose first pick was the item.
    pub first_try_accuracy: f64,
    /// Its 95 % interval (Wilson 1927).
    pub first_try_interval: Interval,
    /// The share that picking blindly would find.
    pub chance: f64,
    /// Where the item stood among the candidates; the first place comes first.
    pub positions: Vec<usize>,
    /// How many would stand there if every place were as likely.
    pub expected_positions: Vec<f64>,
    /// Where the model's first pick stood: a model that reads nothing and likes a place shows here.
    pub picked_positions: Vec<usize>,
    /// Pearson's chi-square of [`positions`](Self::positions) against what is expected.
    pub chi_square: f64,
    /// What [`chi_square`](Self::chi_square) is about as large as, when the places are even.
    pub degrees_of_freedom: usize,
    /// The models that explained, and for how many pairs each.
    pub models: BTreeMap<String, usize>,
}

impl ContrastSummary {
    /// Sums up the rows of `explanations.jsonl`.
    #[must_use]
    pub fn of(explanations: &[Explanation]) -> Self {
        let places = explanations
            .iter()
            .map(|row| row.candidates.len())
            .max()
            .unwrap_or(0);
        let mut summary = Self {
            pairs: explanations.len(),
            positions: vec![0; places],
            expected_positions: vec![0.0; places],
            picked_positions: vec![0; places],
            degrees_of_freedom: places.saturating_sub(1),
            ..Self::default()
        };
        let mut first_tries = 0;
        for row in explanations {
            summary.accepted += usize::from(row.accepted);
            summary.answer_shown += usize::from(row.answer_shown);
            *summary.attempts.entry(row.attempts).or_default() += 1;
            *summary.models.entry(row.model.clone()).or_default() += 1;
            first_tries += usize::from(row.picks.first() == Some(&row.item));
            summary.count_places(row);
        }
        let n = explanations.len();
        summary.first_try_accuracy = first_tries as f64 / n.max(1) as f64;
        summary.first_try_interval = wilson(first_tries, n);
        summary.chance /= n.max(1) as f64;
        summary.chi_square = summary
            .positions
            .iter()
            .zip(&summary.expected_positions)
            .filter(|(_, expected)| **expected > 0.0)
            .map(|(&seen, expected)| (seen as f64 - expected).powi(2) / expected)
            .sum();
        summary
    }

    fn count_places(&mut self, row: &Explanation) {
        let share = 1.0 / row.candidates.len().max(1) as f64;
        self.chance += if row.candidates.is_empty() {
            0.0
        } else {
            share
        };
        let positive = row
            .candidates
            .iter()
            .position(|candidate| candidate.role == Role::Positive);
        if let Some(place) = positive {
            self.positions[place] += 1;
            for expected in &mut self.expected_positions[..row.candidates.len()] {
                *expected += share;
            }
        }
        let first = row.picks.first();
        let picked = row
            .candidates
            .iter()
            .position(|candidate| Some(&candidate.item) == first);
        if let Some(place) = picked {
            self.picked_positions[place] += 1;
        }
    }
}

/// The interval of a share, which stays inside 0 and 1 and is honest at both ends, unlike the usual plus and minus.
fn wilson(hits: usize, n: usize) -> Interval {
    if n == 0 {
        return Interval {
            low: 0.0,
            high: 1.0,
        };
    }
    let (z, n, share) = (1.959_963_984_540_054, n as f64, hits as f64 / n as f64);
    let middle = (share + z * z / (2.0 * n)) / (1.0 + z * z / n);
    let half = z / (1.0 + z * z / n) * (share * (1.0 - share) / n + z * z / (4.0 * n * n)).sqrt();
    Interval {
        low: (middle - half).max(0.0),
        high: (middle + half).min(1.0),
    }
}

#[cfg(test)]
mod tests {
    use because_core::Candidate;

    use super::*;

    fn row(place: usize, picks: &[&str], accepted: bool) -> Explanation {
        let candidate = |item: &str, role| Candidate {
            item: item.into(),
            role,
            scorer: None,
            rank: None,
            score: None,
        };
        let mut candidates = vec![candidate("b", Role::Hard), candidate("c", Role::Random)];
        candidates.insert(place, candidate("a", Role::Positive));
        Explanation {
            user: "u".into(),
            item: "a".into(),
            explanation: "because".into(),
            reasoning: None,
            accepted,
            attempts: picks.len(),
            picks: picks.iter().map(|&pick| pick.into()).collect(),
            candidates,
            answer_shown: !accepted,
            model: "test".into(),
            prompt: String::new(),
            seed: 1,
        }
    }

    #[test]
    fn rows_are_summed_up() {
        let summary = ContrastSummary::of(&[
            row(0, &["a"], true),
            row(0, &["b", "a"], true),
            row(2, &["c", "c", "c"], false),
        ]);
        assert_eq!(
            (summary.pairs, summary.accepted, summary.answer_shown),
            (3, 2, 1)
        );
        assert_eq!(summary.attempts, BTreeMap::from([(1, 1), (2, 1), (3, 1)]));
        assert_eq!(summary.positions, [2, 0, 1]);
        assert_eq!(summary.picked_positions, [1, 2, 0]);
        assert!((summary.first_try_accuracy - 1.0 / 3.0).abs() < 1e-12);
        assert!((summary.chance - 1.0 / 3.0).abs() < 1e-12);
        assert!((summary.chi_square - 2.0).abs() < 1e-9, "(1 + 1 + 0) / 1");
        assert_eq!(summary.degrees_of_freedom, 2);
    }

    #[test]
    fn nothing_is_summed_up_to_nothing() {
        let summary = ContrastSummary::of(&[]);
        assert_eq!(
            (
                summary.pairs,
                summary.first_try_accuracy,
                summary.chi_square
            ),
            (0, 0.0, 0.0)
        );
    }

    #[test]
    fn the_wilson_interval_is_the_published_one() {
        // 8 of 10, worked out apart from this code: 0.4901624715 to 0.9433178485.
        let Interval { low, high } = wilson(8, 10);
        assert!(
            (low - 0.490_162_471_5).abs() < 1e-9 && (high - 0.943_317_848_5).abs() < 1e-9,
            "{low} {high}"
        );
    }
}
