use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::ngram::{NgramMatcher, total};

/// Precision, recall and their harmonic mean, 0 to 1. Over several pairs it is the plain mean of each, so the F is a
/// mean of F's and not the F of the means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct RougeScore {
    /// The share of the prediction that is in the reference.
    pub precision: f64,
    /// The share of the reference that is in the prediction.
    pub recall: f64,
    /// The harmonic mean of the two.
    pub fmeasure: f64,
}

impl RougeScore {
    fn new(hits: u32, prediction: usize, reference: usize) -> Self {
        let share = |of: usize| {
            if of == 0 {
                0.0
            } else {
                f64::from(hits) / of as f64
            }
        };
        let (precision, recall) = (share(prediction), share(reference));
        let fmeasure = if hits == 0 {
            0.0
        } else {
            2.0 * precision * recall / (precision + recall)
        };
        Self {
            precision,
            recall,
            fmeasure,
        }
    }

    fn map2(self, other: Self, f: impl Fn(f64, f64) -> f64) -> Self {
        Self {
            precision: f(self.precision, other.precision),
            recall: f(self.recall, other.recall),
            fmeasure: f(self.fmeasure, other.fmeasure),
        }
    }
}

/// The four ROUGE variants of rouge-score (Lin 2004).
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Rouge {
    /// Shared tokens.
    pub rouge1: RougeScore,
    /// Shared pairs of neighbouring tokens.
    pub rouge2: RougeScore,
    /// The longest common subsequence of the whole texts.
    #[serde(rename = "rougeL")]
    pub rouge_l: RougeScore,
    /// The union of longest common subsequences, line by line; only a line feed ends a line.
    #[serde(rename = "rougeLsum")]
    pub rouge_lsum: RougeScore,
}

impl Rouge {
    pub(crate) fn map2(self, other: Self, f: impl Fn(f64, f64) -> f64 + Copy) -> Self {
        Self {
            rouge1: self.rouge1.map2(other.rouge1, f),
            rouge2: self.rouge2.map2(other.rouge2, f),
            rouge_l: self.rouge_l.map2(other.rouge_l, f),
            rouge_lsum: self.rouge_lsum.map2(other.rouge_lsum, f),
        }
    }

    pub(super) fn of(prediction: &Tokens, reference: &Tokens, matcher: &mut NgramMatcher) -> Self {
        let (p, r) = (&prediction.ids, &reference.ids);
        let [unigrams, bigrams] = matcher.matches::<2>(p, r);
        let longest = lcs_length(r, p);
        let rouge_l = RougeScore::new(longest, p.len(), r.len());
        let rouge_lsum =
            if prediction.lines().nth(1).is_none() && reference.lines().nth(1).is_none() {
                rouge_l
            } else {
                RougeScore::new(summary_hits(prediction, reference), p.len(), r.len())
            };
        Self {
            rouge1: RougeScore::new(unigrams, p.len(), r.len()),
            rouge2: RougeScore::new(
                bigrams,
                total(p.len(), 2) as usize,
                total(r.len(), 2) as usize,
            ),
            rouge_l,
            rouge_lsum,
        }
    }
}

/// The tokens of one text as numbers, and where its lines end.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    pub(super) ids: Vec<u32>,
    pub(super) line_ends: Vec<usize>,
}

impl Tokens {
    pub(super) fn clear(&mut self) {
        self.ids.clear();
        self.line_ends.clear();
    }

    /// The lines that hold a token.
    fn lines(&self) -> impl Iterator<Item = &[u32]> {
        let mut start = 0;
        self.line_ends
            .iter()
            .copied()
            .chain([self.ids.len()])
            .map(move |end| {
                let line = &self.ids[start..end];
                start = end;
                line
            })
            .filter(|line| !line.is_empty())
    }
}

/// The length of the longest common subsequence.
fn lcs_length(a: &[u32], b: &[u32]) -> u32 {
    let (a, b) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    if a.len() <= 64 {
        return lcs_length_by_bits(a, b);
    }
    let mut row = vec![0_u32; a.len() + 1];
    for &token in b {
        let mut diagonal = 0;
        for (at, &other) in a.iter().enumerate() {
            let above = row[at + 1];
            row[at + 1] = if token == other {
                diagonal + 1
            } else {
                above.max(row[at])
            };
            diagonal = above;
        }
    }
    row[a.len()]
}

/// The same for a shorter side of at most 64 tokens, one row of the table in one word (Hyyrö 2004): a zero bit marks
/// a place where the row grows.
fn lcs_length_by_bits(short: &[u32], long: &[u32]) -> u32 {
    let mut flat = u64::MAX;
    for &token in long {
        let places = short
            .iter()
            .enumerate()
            .fold(0_u64, |places, (at, &other)| {
                places | (u64::from(token == other) << at)
            });
        let grown = flat & places;
        flat = flat.wrapping_add(grown) | (flat & !places);
    }
    let used = if short.len() == 64 {
        u64::MAX
    } else {
        (1 << short.len()) - 1
    };
    (!flat & used).count_ones()
}

/// The hits of ROUGE-Lsum: for each reference line the union over the prediction's lines, no token hit more often than
/// it occurs on either side.
fn summary_hits(prediction: &Tokens, reference: &Tokens) -> u32 {
    let mut spare_in_prediction = count(&prediction.ids);
    let mut spare_in_reference = count(&reference.ids);
    let mut hits = 0;
    for reference_line in reference.lines() {
        let mut in_union = vec![false; reference_line.len()];
        for prediction_line in prediction.lines() {
            mark_common(reference_line, prediction_line, &mut in_union);
        }
        for (token, _) in reference_line.iter().zip(in_union).filter(|(_, hit)| *hit) {
            let (Some(left), Some(right)) = (
                spare_in_prediction.get_mut(token),
                spare_in_reference.get_mut(token),
            ) else {
                continue;
            };
            if *left > 0 && *right > 0 {
                *left -= 1;
                *right -= 1;
                hits += 1;
            }
        }
    }
    hits
}

fn count(ids: &[u32]) -> HashMap<u32, u32> {
    let mut counts = HashMap::new();
    for &id in ids {
        *counts.entry(id).or_default() += 1;
    }
    counts
}

/// Marks one longest common subsequence in the reference line, read from the end, and of two ways of equal length the
/// one that leaves the reference's last token out: which of several it is changes the union, and this is rouge-score's.
fn mark_common(reference: &[u32], prediction: &[u32], marked: &mut [bool]) {
    let (rows, columns) = (reference.len(), prediction.len());
    // One bit a cell: whether the way on is to the left.
    let mut to_the_left = vec![0_u64; (rows * columns).div_ceil(64)];
    let mut row = vec![0_u32; columns + 1];
    for (i, &token) in reference.iter().enumerate() {
        let mut diagonal = 0;
        for (j, &other) in prediction.iter().enumerate() {
            let above = row[j + 1];
            let left = row[j];
            row[j + 1] = if token == other {
                diagonal + 1
            } else {
                above.max(left)
            };
            diagonal = above;
            let cell = i * columns + j;
            to_the_left[cell / 64] |= u64::from(left > above) << (cell % 64);
        }
    }
    let (mut i, mut j) = (rows, columns);
    while i > 0 && j > 0 {
        let cell = (i - 1) * columns + j - 1;
        if reference[i - 1] == prediction[j - 1] {
            marked[i - 1] = true;
            i -= 1;
            j -= 1;
        } else if to_the_left[cell / 64] >> (cell % 64) & 1 == 1 {
            j -= 1;
        } else {
            i -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn by_table(a: &[u32], b: &[u32]) -> u32 {
        let mut table = vec![vec![0; b.len() + 1]; a.len() + 1];
        for i in 0..a.len() {
            for j in 0..b.len() {
                table[i + 1][j + 1] = if a[i] == b[j] {
                    table[i][j] + 1
                } else {
                    table[i][j + 1].max(table[i + 1][j])
                };
            }
        }
        table[a.len()][b.len()]
    }

    proptest! {
        #[test]
        fn bits_rows_and_the_walk_back_agree_with_the_table(
            a in proptest::collection::vec(0_u32..5, 0..90),
            b in proptest::collection::vec(0_u32..5, 0..90),
        ) {
            let expected = by_table(&a, &b);
            prop_assert_eq!(lcs_length(&a, &b), expected);
            let mut marked = vec![false; a.len()];
            mark_common(&a, &b, &mut marked);
            prop_assert_eq!(marked.iter().filter(|hit| **hit).count() as u32, expected);
        }
    }

    #[test]
    fn sixty_four_tokens_fill_the_word() {
        let a: Vec<u32> = (0..64).collect();
        assert_eq!(lcs_length(&a, &a), 64);
        assert_eq!(lcs_length(&a[..63], &a), 63);
    }
}
