use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::stats::Pair;
use super::tokenize::words;

/// Distinct n-grams of all predictions over all n-grams of all predictions (Li et al. 2016). It falls as a corpus
/// grows, so only equal numbers of predictions compare.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Distinct {
    /// Over single tokens.
    pub distinct1: f64,
    /// Over pairs of neighbouring tokens.
    pub distinct2: f64,
}

/// The mean length of a text in white-space tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct MeanTokens {
    /// Of the predictions.
    pub prediction: f64,
    /// Of the references.
    pub reference: f64,
}

/// What is measured on the whole corpus at once, over `str.split()` tokens with their case kept.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Diversity {
    pub(crate) distinct: Distinct,
    pub(crate) unique_sentence_ratio: f64,
    pub(crate) mean_tokens: MeanTokens,
}

impl Diversity {
    pub(crate) fn of(pairs: &[Pair<'_>]) -> Self {
        let mut ids: HashMap<&str, u32> = HashMap::new();
        let mut bigrams: HashSet<(u32, u32)> = HashSet::new();
        let mut sentences: HashSet<Box<[u32]>> = HashSet::new();
        let (mut prediction_tokens, mut reference_tokens, mut bigram_total) =
            (0_usize, 0_usize, 0_usize);
        for pair in pairs {
            let sentence: Box<[u32]> = words(pair.prediction)
                .map(|word| {
                    let next = u32::try_from(ids.len())
                        .expect("four thousand million different words do not fit in memory");
                    *ids.entry(word).or_insert(next)
                })
                .collect();
            prediction_tokens += sentence.len();
            reference_tokens += words(pair.reference).count();
            bigram_total += sentence.len().saturating_sub(1);
            bigrams.extend(sentence.windows(2).map(|two| (two[0], two[1])));
            sentences.insert(sentence);
        }
        Self {
            distinct: Distinct {
                distinct1: ratio(ids.len(), prediction_tokens),
                distinct2: ratio(bigrams.len(), bigram_total),
            },
            unique_sentence_ratio: ratio(sentences.len(), pairs.len()),
            mean_tokens: MeanTokens {
                prediction: ratio(prediction_tokens, pairs.len()),
                reference: ratio(reference_tokens, pairs.len()),
            },
        }
    }
}

fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}
