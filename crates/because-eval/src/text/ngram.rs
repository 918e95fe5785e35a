/// For each order 1 to `N`, how many n-grams two sequences share, each counted no more often than on the scarcer side.
///
/// All orders come from one sort: every position becomes a number of `N` symbols of `128 / N` bits, first symbol in the
/// highest bits, zero where the sequence has ended. Sorted by that number the positions are sorted by their n-gram of
/// every order at once, so each order is one merge over prefixes.
///
/// Symbols must be below `2^(128 / N) - 1`: any `u32` fits at `N` = 2, any id but the last at `N` = 4, any Unicode
/// scalar value at `N` = 6.
#[derive(Debug, Default)]
pub(crate) struct NgramMatcher {
    left: Vec<u128>,
    right: Vec<u128>,
}

impl NgramMatcher {
    pub(crate) fn matches<const N: usize>(&mut self, left: &[u32], right: &[u32]) -> [u32; N] {
        pack::<N>(left, &mut self.left);
        pack::<N>(right, &mut self.right);
        let mut matches = [0; N];
        for order in 1..=N {
            matches[order - 1] = merge::<N>(&self.left, &self.right, order);
            if matches[order - 1] == 0 {
                break;
            }
        }
        matches
    }
}

/// How many n-grams of this order a sequence of `length` symbols has.
pub(crate) fn total(length: usize, order: usize) -> u32 {
    u32::try_from((length + 1).saturating_sub(order)).unwrap_or(u32::MAX)
}

const fn width<const N: usize>() -> usize {
    128 / N
}

fn pack<const N: usize>(symbols: &[u32], packed: &mut Vec<u128>) {
    packed.clear();
    let mut key = 0_u128;
    for &symbol in symbols.iter().rev() {
        key = (key >> width::<N>()) | ((u128::from(symbol) + 1) << (width::<N>() * (N - 1)));
        packed.push(key);
    }
    packed.sort_unstable();
}

/// The size of the intersection of two sorted multisets of prefixes. Without branches on the data: which side is
/// smaller is as good as random here, and a mispredicted branch costs more than the whole step.
fn merge<const N: usize>(left: &[u128], right: &[u128], order: usize) -> u32 {
    let shift = width::<N>() * (N - order);
    let last_symbol = (1_u128 << width::<N>()) - 1;
    let (mut i, mut j, mut shared) = (0, 0, 0);
    while i < left.len() && j < right.len() {
        let (a, b) = (left[i] >> shift, right[j] >> shift);
        shared += u32::from(a == b) & u32::from(a & last_symbol != 0);
        i += usize::from(a <= b);
        j += usize::from(b <= a);
    }
    shared
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn counted(left: &[u32], right: &[u32], order: usize) -> u32 {
        let mut spare: HashMap<&[u32], u32> = HashMap::new();
        for gram in right.windows(order) {
            *spare.entry(gram).or_default() += 1;
        }
        let mut shared = 0;
        for gram in left.windows(order) {
            if let Some(left_over) = spare.get_mut(gram).filter(|n| **n > 0) {
                *left_over -= 1;
                shared += 1;
            }
        }
        shared
    }

    proptest! {
        #[test]
        fn merging_prefixes_counts_what_counting_does(
            left in proptest::collection::vec(0_u32..4, 0..30),
            right in proptest::collection::vec(0_u32..4, 0..30),
        ) {
            let mut matcher = NgramMatcher::default();
            let words = matcher.matches::<4>(&left, &right);
            let chars = matcher.matches::<6>(&left, &right);
            for order in 1..=6 {
                let expected = counted(&left, &right, order);
                prop_assert_eq!(chars[order - 1], expected);
                if order <= 4 {
                    prop_assert_eq!(words[order - 1], expected);
                }
            }
        }
    }

    #[test]
    fn the_largest_symbols_do_not_collide() {
        let mut matcher = NgramMatcher::default();
        let last = u32::from(char::MAX);
        assert_eq!(
            matcher.matches::<6>(&[last, 0, last], &[last, 0, last]),
            [3, 2, 1, 0, 0, 0]
        );
        let id = u32::MAX - 1;
        assert_eq!(
            matcher.matches::<4>(&[id, id, 0], &[id, 0, 0]),
            [2, 1, 0, 0]
        );
    }

    #[test]
    fn short_sequences_have_no_long_ngrams() {
        assert_eq!(
            (total(0, 1), total(3, 4), total(4, 4), total(5, 2)),
            (0, 0, 1, 4)
        );
    }
}
