use super::ngram::total;

/// What BLEU needs to know of one pair, or of any sum of pairs (Papineni et al. 2002): n-gram matches and totals by
/// order, and both lengths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct BleuCounts {
    matches: [u64; 4],
    totals: [u64; 4],
    prediction_tokens: u64,
    reference_tokens: u64,
}

impl BleuCounts {
    pub(crate) fn new(
        matches: [u32; 4],
        prediction_tokens: usize,
        reference_tokens: usize,
    ) -> Self {
        Self {
            matches: matches.map(u64::from),
            totals: [1, 2, 3, 4].map(|order| u64::from(total(prediction_tokens, order))),
            prediction_tokens: prediction_tokens as u64,
            reference_tokens: reference_tokens as u64,
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for order in 0..4 {
            self.matches[order] += other.matches[order];
            self.totals[order] += other.totals[order];
        }
        self.prediction_tokens += other.prediction_tokens;
        self.reference_tokens += other.reference_tokens;
    }

    /// Corpus BLEU up to this order, 0 to 100, with uniform weights and sacrebleu's `exp` smoothing: the k-th order
    /// without a match counts as `1 / 2^k` of a match. No match at all is 0, and so is an order without n-grams.
    pub(crate) fn score(&self, max_order: usize) -> f64 {
        if self.matches[..max_order].iter().all(|&n| n == 0)
            || self.totals[..max_order].contains(&0)
        {
            return 0.0;
        }
        let mut halving = 1.0;
        let mut log_sum = 0.0;
        for order in 0..max_order {
            let (matches, total) = (self.matches[order] as f64, self.totals[order] as f64);
            let precision = if self.matches[order] == 0 {
                halving *= 2.0;
                100.0 / (halving * total)
            } else {
                100.0 * matches / total
            };
            log_sum += f64::ln(precision);
        }
        self.brevity_penalty() * (log_sum / max_order as f64).exp()
    }

    fn brevity_penalty(&self) -> f64 {
        if self.prediction_tokens >= self.reference_tokens {
            return 1.0;
        }
        (1.0 - self.reference_tokens as f64 / self.prediction_tokens as f64).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_without_a_match_is_halved_and_one_without_ngrams_is_zero() {
        let counts = BleuCounts::new([4, 1, 0, 0], 5, 5);
        let by_hand = (80.0_f64 * 25.0 * (100.0 / (2.0 * 3.0)) * (100.0 / (4.0 * 2.0))).powf(0.25);
        assert!((counts.score(4) - by_hand).abs() < 1e-12);
        assert_eq!(BleuCounts::new([3, 2, 1, 0], 3, 3).score(4), 0.0);
        assert_eq!(BleuCounts::default().score(1), 0.0);
    }

    #[test]
    fn what_is_too_short_pays() {
        let counts = BleuCounts::new([2, 1, 0, 0], 2, 4);
        assert!((counts.score(1) - 100.0 * (-1.0_f64).exp()).abs() < 1e-12);
    }
}
