use std::ops::Range;

use crate::table::Row;

/// The ratings of all edges by their numbers, in as many bytes as their distinct values ask for.
#[derive(Debug, Clone)]
pub(super) enum Ratings {
    Absent,
    Bytes(Codes, Vec<u8>),
    Shorts(Codes, Vec<u16>),
    Full(Vec<f64>),
}

impl Ratings {
    /// Room for the ratings of these rows; none is set yet.
    pub(super) fn for_rows(rows: &[Row]) -> Self {
        let Some(codes) = Codes::of(rows, usize::from(u16::MAX)) else {
            return Self::Full(vec![f64::NAN; rows.len()]);
        };
        match codes.values.len() {
            0 => Self::Absent,
            1..0xff => Self::Bytes(codes, vec![u8::MAX; rows.len()]),
            _ => Self::Shorts(codes, vec![u16::MAX; rows.len()]),
        }
    }

    pub(super) fn set(&mut self, edge: usize, rating: Option<f64>) {
        let Some(rating) = rating else { return };
        match self {
            Self::Absent => {}
            Self::Bytes(codes, of) => of[edge] = codes.code(rating) as u8,
            Self::Shorts(codes, of) => of[edge] = codes.code(rating) as u16,
            Self::Full(of) => of[edge] = rating,
        }
    }

    /// Puts the ratings of these edges in a new order: to each place of it the one that stood `from` the first.
    pub(super) fn reorder(&mut self, edges: Range<usize>, from: impl Iterator<Item = usize>) {
        match self {
            Self::Absent => {}
            Self::Bytes(_, of) => reorder(&mut of[edges], from),
            Self::Shorts(_, of) => reorder(&mut of[edges], from),
            Self::Full(of) => reorder(&mut of[edges], from),
        }
    }

    pub(super) fn get(&self, edge: usize) -> Option<f64> {
        match self {
            Self::Absent => None,
            Self::Bytes(codes, of) => codes.values.get(usize::from(of[edge])).copied(),
            Self::Shorts(codes, of) => codes.values.get(usize::from(of[edge])).copied(),
            Self::Full(of) => Some(of[edge]).filter(|rating| !rating.is_nan()),
        }
    }
}

/// The distinct ratings in ascending order; the code of a rating is its place here.
#[derive(Debug, Clone)]
pub(super) struct Codes {
    values: Vec<f64>,
    /// Codes met lately, by a few bits of their rating: people rate with few values, so nearly every look ends here.
    lately: Vec<(u64, u32)>,
}

/// No rating has these bits: one that is not a number is none.
const NO_RATING: u64 = u64::MAX;
const LATELY: usize = 64;

fn slot(bits: u64) -> usize {
    (bits.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58) as usize
}

impl Codes {
    /// `None` where there are more than `most`.
    fn of(rows: &[Row], most: usize) -> Option<Self> {
        let mut values = std::collections::HashSet::new();
        let mut lately = [NO_RATING; LATELY];
        for bits in rows.iter().filter_map(Row::rating).map(f64::to_bits) {
            let known = &mut lately[slot(bits)];
            if *known != bits {
                *known = bits;
                values.insert(bits);
                if values.len() > most {
                    return None;
                }
            }
        }
        let mut values: Vec<f64> = values.into_iter().map(f64::from_bits).collect();
        values.sort_unstable_by(f64::total_cmp);
        Some(Self {
            values,
            lately: vec![(NO_RATING, 0); LATELY],
        })
    }

    fn code(&mut self, rating: f64) -> u32 {
        let known = &mut self.lately[slot(rating.to_bits())];
        if known.0 != rating.to_bits() {
            let place = self
                .values
                .partition_point(|v| v.total_cmp(&rating).is_lt());
            *known = (rating.to_bits(), place as u32);
        }
        known.1
    }
}

/// The times of all edges by their numbers: seconds after the first where 32 bits hold them, else whole.
#[derive(Debug, Clone)]
pub(super) enum Times {
    Absent,
    After { first: i64, seconds: Vec<u32> },
    Full(Vec<i64>),
}

const NO_SECONDS: u32 = u32::MAX;
/// [`Row`] does not hold it either.
const NO_TIME: i64 = i64::MIN;

impl Times {
    /// Room for the times of these rows; none is set yet.
    pub(super) fn for_rows(rows: &[Row]) -> Self {
        let times = || rows.iter().filter_map(Row::timestamp);
        let Some((first, last)) = times().min().zip(times().max()) else {
            return Self::Absent;
        };
        match last.checked_sub(first) {
            Some(span) if span < i64::from(NO_SECONDS) => Self::After {
                first,
                seconds: vec![NO_SECONDS; rows.len()],
            },
            _ => Self::Full(vec![NO_TIME; rows.len()]),
        }
    }

    pub(super) fn set(&mut self, edge: usize, time: Option<i64>) {
        let Some(time) = time else { return };
        match self {
            Self::Absent => {}
            Self::After { first, seconds } => seconds[edge] = (time - *first) as u32,
            Self::Full(times) => times[edge] = time,
        }
    }

    /// As [`Ratings::reorder`].
    pub(super) fn reorder(&mut self, edges: Range<usize>, from: impl Iterator<Item = usize>) {
        match self {
            Self::Absent => {}
            Self::After { seconds, .. } => reorder(&mut seconds[edges], from),
            Self::Full(times) => reorder(&mut times[edges], from),
        }
    }

    pub(super) fn get(&self, edge: usize) -> Option<i64> {
        match self {
            Self::Absent => None,
            Self::After { first, seconds } => match seconds[edge] {
                NO_SECONDS => None,
                seconds => Some(first + i64::from(seconds)),
            },
            Self::Full(times) => Some(times[edge]).filter(|&time| time != NO_TIME),
        }
    }
}

fn reorder<T: Copy>(values: &mut [T], from: impl Iterator<Item = usize>) {
    let before = values.to_vec();
    for (value, from) in values.iter_mut().zip(from) {
        *value = before[from];
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn agree(facts: &[(Option<f64>, Option<i64>)]) -> (Ratings, Times) {
        let rows: Vec<Row> = facts
            .iter()
            .map(|&(rating, time)| Row::new(0, 0).with_rating(rating).with_timestamp(time))
            .collect();
        let (mut ratings, mut times) = (Ratings::for_rows(&rows), Times::for_rows(&rows));
        for (edge, row) in rows.iter().enumerate() {
            ratings.set(edge, row.rating());
            times.set(edge, row.timestamp());
        }
        for (edge, row) in rows.iter().enumerate() {
            assert_eq!(
                ratings.get(edge).map(f64::to_bits),
                row.rating().map(f64::to_bits)
            );
            assert_eq!(times.get(edge), row.timestamp());
        }
        (ratings, times)
    }

    proptest! {
        #[test]
        fn what_is_kept_small_reads_as_it_was_given(
            facts in prop::collection::vec((
                prop::option::of(prop_oneof![Just(0.0), Just(-0.0), Just(4.5), prop::num::f64::NORMAL]),
                prop::option::of(prop_oneof![0..9_i64, 1_500_000_000..1_500_009_000_i64, (i64::MIN + 1)..=i64::MAX]),
            ), 0..40),
        ) {
            agree(&facts);
        }
    }

    #[test]
    fn as_many_bytes_as_the_values_ask_for() {
        let facts = |distinct: u32, step: i64| -> Vec<_> {
            (0..distinct)
                .map(|n| (Some(f64::from(n) / 7.0), Some(i64::from(n) * step - 5)))
                .chain([(None, None)])
                .collect()
        };
        assert!(matches!(
            agree(&[(None, None)]),
            (Ratings::Absent, Times::Absent)
        ));
        assert!(matches!(
            agree(&facts(254, 1)),
            (Ratings::Bytes(..), Times::After { .. })
        ));
        assert!(matches!(agree(&facts(255, 1)).0, Ratings::Shorts(..)));
        assert!(matches!(agree(&facts(65_535, 1)).0, Ratings::Shorts(..)));
        assert!(matches!(
            agree(&facts(65_536, 1 << 20)),
            (Ratings::Full(_), Times::Full(_))
        ));
    }
}
