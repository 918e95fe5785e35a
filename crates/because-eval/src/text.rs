mod bleu;
mod chrf;
mod count;
mod diversity;
mod ngram;
mod porter;
mod rouge;
mod signature;
mod stats;
mod tokenize;

use std::collections::BTreeMap;

use because_core::Prediction;
use serde::{Deserialize, Serialize};

use self::bleu::BleuCounts;
pub use self::diversity::{Distinct, MeanTokens};
pub(crate) use self::porter::stem_token;
pub use self::rouge::{Rouge, RougeScore};
pub use self::stats::TextStats;
pub(crate) use self::stats::{Pair, PairCounts};

/// How near predictions come to their references, and how much they repeat themselves: the JSON of
/// `because evaluate text`. BLEU and chrF are corpus figures from 0 to 100, ROUGE is a mean over pairs from 0 to 1.
///
/// BLEU and chrF are sacrebleu's to the last digits, ROUGE is rouge-score's; [`signatures`](Self::signatures) says so
/// beside each. Texts are measured as they are: nothing is trimmed but what the reference implementations trim.
///
/// ```
/// use because_core::Prediction;
/// use because_eval::TextMetrics;
///
/// let same = "They would enjoy the quiet terrace.";
/// let metrics = TextMetrics::of(&[Prediction {
///     user: None,
///     item: None,
///     prediction: same.into(),
///     reference: same.into(),
/// }]);
/// assert!((metrics.bleu.tok_13a.bleu4 - 100.0).abs() < 1e-9);
/// assert_eq!(metrics.rouge.rouge_l.fmeasure, 1.0);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextMetrics {
    /// How many pairs were measured.
    pub pairs: usize,
    /// Corpus BLEU.
    pub bleu: BleuByTokenizer,
    /// Mean ROUGE on the words as they are.
    pub rouge: Rouge,
    /// Mean ROUGE on Porter stems; 1 to 2 points higher on English, so never compare it with the other.
    pub rouge_stemmed: Rouge,
    /// Corpus chrF2.
    pub chrf: f64,
    /// How rich the predictions are together.
    pub distinct: Distinct,
    /// Different predictions over all predictions, compared token for token: 1 where none is repeated.
    pub unique_sentence_ratio: f64,
    /// How long both sides are.
    pub mean_tokens: MeanTokens,
    /// Under which settings each figure was computed.
    pub signatures: BTreeMap<String, String>,
}

impl TextMetrics {
    /// Measures all pairs. Without a pair every figure is zero; use [`TextStats`] where intervals are wanted too.
    #[must_use]
    pub fn of(pairs: &[Prediction]) -> Self {
        TextStats::of(pairs).metrics()
    }

    /// The mean of every figure; the number of pairs and the signatures are the first one's.
    pub(crate) fn mean(all: &[Self]) -> Option<Self> {
        let (first, rest) = all.split_first()?;
        let n = all.len() as f64;
        let sum = rest
            .iter()
            .fold(first.clone(), |sum, next| sum.map2(next, |a, b| a + b));
        Some(sum.map2(&sum, |a, _| a / n))
    }

    fn map2(&self, other: &Self, f: impl Fn(f64, f64) -> f64 + Copy) -> Self {
        Self {
            pairs: self.pairs,
            bleu: BleuByTokenizer {
                tok_13a: self.bleu.tok_13a.map2(other.bleu.tok_13a, f),
                tok_none: self.bleu.tok_none.map2(other.bleu.tok_none, f),
            },
            rouge: self.rouge.map2(other.rouge, f),
            rouge_stemmed: self.rouge_stemmed.map2(other.rouge_stemmed, f),
            chrf: f(self.chrf, other.chrf),
            distinct: Distinct {
                distinct1: f(self.distinct.distinct1, other.distinct.distinct1),
                distinct2: f(self.distinct.distinct2, other.distinct.distinct2),
            },
            unique_sentence_ratio: f(self.unique_sentence_ratio, other.unique_sentence_ratio),
            mean_tokens: MeanTokens {
                prediction: f(self.mean_tokens.prediction, other.mean_tokens.prediction),
                reference: f(self.mean_tokens.reference, other.mean_tokens.reference),
            },
            signatures: self.signatures.clone(),
        }
    }
}

/// BLEU under the two tokenizers in use; they differ by several points on the same texts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct BleuByTokenizer {
    /// sacrebleu's default, which takes punctuation off words.
    #[serde(rename = "13a")]
    pub tok_13a: Bleu,
    /// White space only, as in the PETER and PEPLER line of papers.
    #[serde(rename = "none")]
    pub tok_none: Bleu,
}

/// Corpus BLEU by its highest n-gram order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Bleu {
    /// Unigrams.
    pub bleu1: f64,
    /// Up to bigrams.
    pub bleu2: f64,
    /// Up to trigrams.
    pub bleu3: f64,
    /// Up to four: what "BLEU" means without a number.
    pub bleu4: f64,
}

impl Bleu {
    fn of(counts: &BleuCounts) -> Self {
        Self {
            bleu1: counts.score(1),
            bleu2: counts.score(2),
            bleu3: counts.score(3),
            bleu4: counts.score(4),
        }
    }

    fn map2(self, other: Self, f: impl Fn(f64, f64) -> f64) -> Self {
        Self {
            bleu1: f(self.bleu1, other.bleu1),
            bleu2: f(self.bleu2, other.bleu2),
            bleu3: f(self.bleu3, other.bleu3),
            bleu4: f(self.bleu4, other.bleu4),
        }
    }
}
