use std::time::Duration;

/// Steps in a doubling: a latency is known to within a twelfth.
const STEPS: usize = 8;
/// From a microsecond to more than an hour.
const DOUBLINGS: usize = 32;

/// How often something took how long, in bounded memory.
#[derive(Debug, Clone)]
pub(super) struct Histogram {
    counts: Box<[u64; STEPS * DOUBLINGS]>,
    count: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: Box::new([0; STEPS * DOUBLINGS]),
            count: 0,
        }
    }
}

impl Histogram {
    pub(super) fn add(&mut self, duration: Duration) {
        self.counts[bucket(duration)] += 1;
        self.count += 1;
    }

    /// So large a share took no longer than this; nothing where nothing was counted.
    pub(super) fn quantile(&self, share: f64) -> Option<Duration> {
        if self.count == 0 {
            return None;
        }
        let rank = (share.clamp(0.0, 1.0) * self.count as f64).ceil().max(1.0) as u64;
        let mut below = 0;
        let bucket = self.counts.iter().position(|count| {
            below += count;
            below >= rank
        })?;
        Some(upper(bucket))
    }
}

/// The doubling, then the step within it.
fn bucket(duration: Duration) -> usize {
    let micros = u64::try_from(duration.as_micros())
        .unwrap_or(u64::MAX)
        .max(1);
    let doubling = micros.ilog2() as usize;
    let within = (micros as f64 / (1_u64 << doubling) as f64 - 1.0) * STEPS as f64;
    (doubling * STEPS + (within as usize).min(STEPS - 1)).min(STEPS * DOUBLINGS - 1)
}

fn upper(bucket: usize) -> Duration {
    let (doubling, step) = (bucket / STEPS, bucket % STEPS);
    let micros = (1_u64 << doubling) as f64 * (1.0 + (step + 1) as f64 / STEPS as f64);
    Duration::from_nanos((micros * 1000.0) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_to_an_eighth() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        for millis in 1..=1000 {
            histogram.add(Duration::from_millis(millis));
        }
        for (share, expected) in [
            (0.0, 1.0),
            (0.5, 500.0),
            (0.9, 900.0),
            (0.99, 990.0),
            (1.0, 1000.0),
        ] {
            let found = histogram.quantile(share).unwrap().as_secs_f64() * 1000.0;
            assert!(
                (1.0..=1.126).contains(&(found / expected)),
                "{share}: {found}"
            );
        }
    }

    #[test]
    fn the_shortest_and_the_longest_have_a_place() {
        let mut histogram = Histogram::default();
        histogram.add(Duration::ZERO);
        assert!(histogram.quantile(1.0).unwrap() < Duration::from_micros(2));
        histogram.add(Duration::MAX);
        assert!(histogram.quantile(1.0).unwrap() > Duration::from_secs(3600));
    }
}
