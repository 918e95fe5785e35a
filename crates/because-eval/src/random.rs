/// SplitMix64 (Steele, Lea and Flood 2014): one addition and three mixes a number. Written here so that the draws of a
/// published figure never change with the version of a dependency.
#[derive(Debug, Clone)]
pub(crate) struct SplitMix64(u64);

impl SplitMix64 {
    /// The stream of this seed and number: streams of one seed are independent of each other, so that whoever draws
    /// stream 7 need not have drawn streams 0 to 6.
    pub(crate) fn stream(seed: u64, number: u64) -> Self {
        let mut mixed = Self(seed);
        let seed = mixed.draw();
        Self(mix(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `bound` by multiply and shift; its bias is below `bound / 2^64`, which no table of ours can show.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.draw()) * bound as u128) >> 64) as usize
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_splitmix64() {
        // The first three outputs for state 1234567, from the generator's published test values.
        let mut random = SplitMix64(1_234_567);
        let drawn: Vec<u64> = (0..3).map(|_| random.draw()).collect();
        assert_eq!(
            drawn,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423
            ]
        );
    }

    #[test]
    fn draws_are_below_the_bound_and_even() {
        let mut random = SplitMix64::stream(1, 2);
        let mut seen = [0_u32; 8];
        for _ in 0..80_000 {
            seen[random.below(8)] += 1;
        }
        assert!(
            seen.iter().all(|&n| (9_500..10_500).contains(&n)),
            "{seen:?}"
        );
    }
}
