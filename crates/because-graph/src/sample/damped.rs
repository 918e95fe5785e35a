use because_core::Split;

use super::{ascending, smallest_first};

/// The better connected a neighbour, the smaller its chance: drawn without replacement with the weight
/// `train degree ^ -alpha`, so that what everybody chose does not fill every sample.
///
/// Weighted sampling by exponential keys (Efraimidis and Spirakis 2006): the smallest of `-ln(u) / weight`, with `u` from the
/// lot of the edge, compared as logarithms.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DegreeDampedSampler {
    seed: u64,
    alpha: f64,
}

impl DegreeDampedSampler {
    /// With an alpha of 0.5: the symmetric normalisation that graph convolutions divide a neighbour's message by
    /// (LightGCN, arXiv 2002.02126, equation 3).
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed, alpha: 0.5 }
    }

    /// How strongly: 0 is uniform, 1 weighs by one over the degree; below zero favours the well connected. What is not a
    /// number counts as 0.
    #[must_use]
    pub fn alpha(mut self, alpha: f64) -> Self {
        self.alpha = if alpha.is_finite() { alpha } else { 0.0 };
        self
    }
}

smallest_first!(DegreeDampedSampler, |own, graph, _| |neighbor, _, lot| {
    let degree = graph.degree(neighbor, Split::Train) as f64;
    // Strictly between zero and one, so both logarithms exist.
    let u = ((lot >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    ascending(ln(-ln(u)) + own.alpha * ln(degree))
});

/// The natural logarithm of a positive, normal number from additions, multiplications and divisions alone, which are the same
/// to the last bit on every machine; the one of the standard library is not. Within 1e-15 of it, relatively, away from 1.
pub(super) fn ln(x: f64) -> f64 {
    const MANTISSA: u64 = (1 << 52) - 1;
    let bits = x.to_bits();
    let mut exponent = ((bits >> 52) & 0x7ff) as i64 - 1023;
    let mut mantissa = f64::from_bits((bits & MANTISSA) | 1.0_f64.to_bits());
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa /= 2.0;
        exponent += 1;
    }
    // ln m = 2 artanh s with s = (m - 1) / (m + 1), and |s| < 0.172: eleven terms are as good as all.
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let square = s * s;
    let series = (0..11).rev().fold(0.0, |sum, term| {
        sum * square + 1.0 / f64::from(2 * term + 1)
    });
    exponent as f64 * std::f64::consts::LN_2 + 2.0 * s * series
}

#[cfg(test)]
mod tests {
    use because_core::Interaction;
    use proptest::prelude::*;

    use super::*;
    use crate::{BipartiteGraph, NeighborSampler};

    proptest! {
        #[test]
        fn the_logarithm_is_the_logarithm(x in prop_oneof![1e-300..1e300_f64, 1e-9..3.0_f64, 0.99..1.01_f64]) {
            let expected = x.ln();
            prop_assert!((ln(x) - expected).abs() <= 4e-16 + 1e-15 * expected.abs(), "{} {expected}", ln(x));
        }
    }

    /// Items of degree 1 and 4 beside each other: the chance to come first is `w / sum of w`.
    fn first_draws(alpha: f64) -> [f64; 2] {
        let mut rows = vec![Interaction::new("u", "rare")];
        rows.extend(["u", "a", "b", "c"].map(|user| Interaction::new(user, "liked")));
        let graph = BipartiteGraph::new(&rows).unwrap();
        let (user, rare) = (graph.user("u").unwrap(), graph.item("rare").unwrap());
        let draws = 4000;
        let rare_first = (0..draws)
            .filter(|&seed| {
                let sampler = DegreeDampedSampler::new(seed).alpha(alpha);
                sampler.sample(&graph, user, 1, 1)[0].node == rare
            })
            .count();
        let share = rare_first as f64 / f64::from(draws as u32);
        [share, 1.0 - share]
    }

    #[test]
    fn the_chance_falls_with_the_degree_to_the_alpha() {
        // Weights 1 and 4^-alpha; the standard deviation of a share is below 0.008.
        for (alpha, expected) in [(0.5, 2.0 / 3.0), (1.0, 0.8), (0.0, 0.5), (-0.5, 1.0 / 3.0)] {
            let [rare, _] = first_draws(alpha);
            assert!((rare - expected).abs() < 0.03, "alpha {alpha}: {rare}");
        }
    }
}
