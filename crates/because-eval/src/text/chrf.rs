use super::ngram::total;

/// The longest character n-gram, as in Popović (2015) and in sacrebleu's default.
pub(crate) const ORDERS: usize = 6;

/// What chrF needs to know of one pair, or of any sum of pairs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ChrfCounts {
    matches: [u64; ORDERS],
    prediction: [u64; ORDERS],
    reference: [u64; ORDERS],
}

impl ChrfCounts {
    pub(crate) fn new(
        matches: [u32; ORDERS],
        prediction_chars: usize,
        reference_chars: usize,
    ) -> Self {
        let mut counts = Self {
            matches: matches.map(u64::from),
            ..Self::default()
        };
        for order in 1..=ORDERS {
            let reference = u64::from(total(reference_chars, order));
            counts.reference[order - 1] = reference;
            // Where the reference has no n-gram of this order, those of the prediction are not held against it.
            if reference > 0 {
                counts.prediction[order - 1] = u64::from(total(prediction_chars, order));
            }
        }
        counts
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for order in 0..ORDERS {
            self.matches[order] += other.matches[order];
            self.prediction[order] += other.prediction[order];
            self.reference[order] += other.reference[order];
        }
    }

    /// chrF2 over what was summed, 0 to 100: precision and recall averaged over the orders that both sides have, then
    /// one F with recall worth beta = 2 times precision.
    pub(crate) fn score(&self) -> f64 {
        let (mut precision, mut recall, mut orders) = (0.0, 0.0, 0.0);
        for order in 0..ORDERS {
            if self.prediction[order] > 0 && self.reference[order] > 0 {
                precision += self.matches[order] as f64 / self.prediction[order] as f64;
                recall += self.matches[order] as f64 / self.reference[order] as f64;
                orders += 1.0;
            }
        }
        if precision + recall == 0.0 {
            return 0.0;
        }
        let (precision, recall) = (precision / orders, recall / orders);
        100.0 * 5.0 * precision * recall / (4.0 * precision + recall)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_order_by_hand() {
        // "ab" against "b": unigram precision 1/2, recall 1; the reference has no bigram, so only one order counts.
        let counts = ChrfCounts::new([1, 0, 0, 0, 0, 0], 2, 1);
        assert!((counts.score() - 100.0 * 5.0 * 0.5 / (4.0 * 0.5 + 1.0)).abs() < 1e-12);
        assert_eq!(ChrfCounts::new([0; 6], 0, 0).score(), 0.0);
    }
}
