use crate::params::permutation;
use crate::session::Plan;

/// Which rows come together, batch by batch, for ever: an endless stream that depends on the seed and the place in it
/// alone, so that a run that is taken up again needs no other memory than its step.
///
/// A fixed number of rows is cut from one stream of all epochs, so that only the very last batch may be short. With
/// bucketing or a number of tokens, each epoch is cut on its own: every row is in exactly one of its batches.
#[derive(Debug)]
pub(crate) struct Batches {
    lengths: Vec<usize>,
    rule: Rule,
    shuffle: bool,
    seed: u64,
    /// After so many epochs there is no further batch; without it they never end.
    epochs: Option<u32>,
    /// Where the epochs that were cut so far begin, in batches: `starts[e]` for epoch `e`, and the end of the last one.
    starts: Vec<u64>,
    /// The epoch that was cut last.
    cut: Option<(u64, Vec<Vec<usize>>)>,
}

#[derive(Debug, Clone, Copy)]
struct Rule {
    rows: usize,
    tokens: Option<usize>,
    /// Batches in a window of sorted rows; 0 for none.
    window: usize,
}

impl Batches {
    /// Of rows of these lengths.
    pub(crate) fn new(lengths: Vec<usize>, plan: &Plan) -> Self {
        Self {
            lengths,
            rule: Rule {
                rows: plan.batch,
                tokens: plan.batch_tokens,
                window: plan.bucketing,
            },
            shuffle: plan.shuffle,
            seed: plan.seed,
            epochs: plan.epochs,
            starts: vec![0],
            cut: None,
        }
    }

    /// How many batches so many epochs have.
    pub(crate) fn count(&mut self, epochs: u32) -> u64 {
        match self.is_one_stream() {
            true => self.rows(epochs).div_ceil(self.rule.rows as u64),
            false => self.start(u64::from(epochs)),
        }
    }

    /// The rows of a batch; none past the end.
    pub(crate) fn get(&mut self, batch: u64) -> Vec<usize> {
        if self.is_one_stream() {
            return self.stream(batch);
        }
        let mut epoch = 0;
        while self.start(epoch + 1) <= batch {
            epoch += 1;
        }
        if self.epochs.is_some_and(|epochs| epoch >= u64::from(epochs)) {
            return Vec::new();
        }
        let place = (batch - self.starts[epoch as usize]) as usize;
        self.epoch(epoch)[place].clone()
    }

    /// How many epochs are over once so many batches were taken.
    pub(crate) fn epochs_done(&mut self, batches: u64) -> u64 {
        if self.is_one_stream() {
            let taken = batches * self.rule.rows as u64;
            let taken = self
                .epochs
                .map_or(taken, |epochs| taken.min(self.rows(epochs)));
            return taken / self.lengths.len() as u64;
        }
        let mut epoch = 0;
        while self.start(epoch + 1) <= batches {
            epoch += 1;
        }
        epoch
    }

    fn is_one_stream(&self) -> bool {
        self.rule.tokens.is_none() && self.rule.window == 0
    }

    fn rows(&self, epochs: u32) -> u64 {
        self.lengths.len() as u64 * u64::from(epochs)
    }

    fn stream(&mut self, batch: u64) -> Vec<usize> {
        let (count, width) = (self.lengths.len() as u64, self.rule.rows as u64);
        let end = self.epochs.map_or(u64::MAX, |epochs| self.rows(epochs));
        (batch * width..((batch + 1) * width).min(end))
            .map(|at| self.epoch(at / count)[0][(at % count) as usize])
            .collect()
    }

    /// The batch that an epoch begins with.
    fn start(&mut self, epoch: u64) -> u64 {
        while self.starts.len() as u64 <= epoch {
            let last = self.starts.len() as u64 - 1;
            let next = self.starts[last as usize] + self.epoch(last).len() as u64;
            self.starts.push(next);
        }
        self.starts[epoch as usize]
    }

    /// An epoch's batches; its whole order as one where it is not cut on its own.
    fn epoch(&mut self, epoch: u64) -> &[Vec<usize>] {
        if self.cut.as_ref().is_none_or(|(kept, _)| *kept != epoch) {
            let count = self.lengths.len();
            let order = match self.shuffle {
                true => permutation(count, self.seed, epoch),
                false => (0..count).collect(),
            };
            let batches = match self.is_one_stream() {
                true => vec![order],
                false => self.bucketed(&order, epoch),
            };
            self.cut = Some((epoch, batches));
        }
        self.cut.as_ref().map_or(&[], |(_, batches)| batches)
    }

    fn bucketed(&self, order: &[usize], epoch: u64) -> Vec<Vec<usize>> {
        if self.rule.window == 0 {
            return self.cut(order);
        }
        let window = Rule {
            rows: self.rule.rows * self.rule.window,
            tokens: self.rule.tokens.map(|tokens| tokens * self.rule.window),
            window: 0,
        };
        let mut batches = Vec::new();
        for mut rows in self.cut_by(window, order) {
            // A stable sort: rows of one length stay in the order that was drawn.
            rows.sort_by_key(|&row| self.lengths[row]);
            batches.extend(self.cut(&rows));
        }
        if !self.shuffle {
            return batches;
        }
        // Else every window would go from short to long, and the loss with it. The upper half of the rounds is for this.
        let order = permutation(batches.len(), self.seed, (1 << 63) | epoch);
        order
            .into_iter()
            .map(|batch| std::mem::take(&mut batches[batch]))
            .collect()
    }

    fn cut(&self, rows: &[usize]) -> Vec<Vec<usize>> {
        self.cut_by(self.rule, rows)
    }

    fn cut_by(&self, rule: Rule, rows: &[usize]) -> Vec<Vec<usize>> {
        let Some(limit) = rule.tokens else {
            return rows.chunks(rule.rows).map(<[usize]>::to_vec).collect();
        };
        by_tokens(rows, limit, |&row| self.lengths[row])
            .map(<[usize]>::to_vec)
            .collect()
    }
}

/// Cuts rows, in their order, into runs of at most `limit` tokens; a longer row is a run of its own.
pub(crate) fn by_tokens<'a, T>(
    mut rows: &'a [T],
    limit: usize,
    length: impl Fn(&T) -> usize + 'a,
) -> impl Iterator<Item = &'a [T]> + 'a {
    std::iter::from_fn(move || {
        let mut tokens = 0;
        let fits = |row: &T| {
            tokens += length(row);
            tokens <= limit
        };
        let taken = rows.iter().map(fits).take_while(|&fits| fits).count();
        let (run, rest) = rows.split_at(taken.max(1).min(rows.len()));
        rows = rest;
        (!run.is_empty()).then_some(run)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plan(batch: usize, batch_tokens: Option<usize>, bucketing: usize, seed: u64) -> Plan {
        Plan {
            batch,
            batch_tokens,
            bucketing,
            seed,
            shuffle: true,
            ..Plan::default()
        }
    }

    proptest! {
        #[test]
        fn an_epoch_has_each_row_once_wherever_one_looks_first(
            lengths in proptest::collection::vec(1_usize..60, 1..80),
            batch in 1_usize..9,
            tokens in proptest::option::of(2_usize..150),
            bucketing in 0_usize..4,
            shuffle in any::<bool>(),
            seed in any::<u64>(),
        ) {
            const EPOCHS: u32 = 3;
            let plan = Plan { shuffle, epochs: Some(EPOCHS), ..plan(batch, tokens, bucketing, seed) };
            let mut batches = Batches::new(lengths.clone(), &plan);
            let count = batches.count(EPOCHS);
            let all: Vec<Vec<usize>> = (0..count).map(|at| batches.get(at)).collect();
            prop_assert!(batches.get(count).is_empty(), "there is nothing after the end");
            prop_assert!(all.iter().all(|rows| !rows.is_empty()));
            prop_assert_eq!(batches.epochs_done(count), u64::from(EPOCHS));
            let rows = all.concat();
            for epoch in rows.chunks(lengths.len()) {
                let mut epoch = epoch.to_vec();
                epoch.sort_unstable();
                prop_assert_eq!(epoch, (0..lengths.len()).collect::<Vec<_>>());
            }
            // A resumed run asks for a later batch at once, and then perhaps for an earlier one.
            for at in [count / 2, count - 1, 0] {
                let mut fresh = Batches::new(lengths.clone(), &plan);
                prop_assert_eq!(&fresh.get(at), &all[at as usize]);
                prop_assert_eq!(&fresh.get(0), &all[0]);
            }
            if let Some(limit) = tokens {
                for rows in &all {
                    let total: usize = rows.iter().map(|&row| lengths[row]).sum();
                    prop_assert!(total <= limit || rows.len() == 1, "{total} tokens in {rows:?}");
                }
            } else {
                prop_assert!(all.iter().all(|rows| rows.len() <= batch));
            }
        }
    }

    #[test]
    fn buckets_bring_rows_of_like_length_together() {
        let lengths: Vec<usize> = (0..64).map(|row| 1 + row * 37 % 64).collect();
        let spread = |bucketing| {
            let mut batches = Batches::new(lengths.clone(), &plan(4, None, bucketing, 1));
            (0..16)
                .map(|at| {
                    let rows = batches.get(at);
                    let of = || rows.iter().map(|&row| lengths[row]);
                    of().max().unwrap() - of().min().unwrap()
                })
                .sum::<usize>()
        };
        assert!(spread(16) * 4 < spread(0), "{} {}", spread(16), spread(0));
        assert!(spread(4) < spread(0));
    }

    #[test]
    fn without_shuffling_rows_come_in_the_order_of_the_file_and_over_again() {
        let rule = Plan {
            shuffle: false,
            ..plan(2, None, 0, 0)
        };
        let mut batches = Batches::new(vec![5; 3], &rule);
        let rows: Vec<_> = (0..3).map(|at| batches.get(at)).collect();
        assert_eq!(rows, [[0, 1], [2, 0], [1, 2]]);
        assert_eq!([1, 2, 3].map(|taken| batches.epochs_done(taken)), [0, 1, 2]);
    }
}
