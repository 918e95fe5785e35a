use std::fmt;
use std::str::FromStr;

use because_core::{Interaction, Split};
use serde::{Deserialize, Serialize};

use crate::hash::stable_hash;
use crate::{Error, Result};

/// How interactions are divided into train, valid and test. The answer depends on the interactions and the seed, never on
/// the order of the rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum SplitStrategy {
    /// By lot, in exactly the proportions asked for.
    #[default]
    Random,
    /// The oldest interactions of all users together train, the latest test.
    Time,
    /// Of each user the latest interaction tests and the one before validates; who has fewer than three only trains.
    LeaveOneOut,
}

impl SplitStrategy {
    /// Sets the split of every interaction, whatever it was before. The ratio is not used by
    /// [`SplitStrategy::LeaveOneOut`].
    ///
    /// # Errors
    /// When a split by time meets an interaction without a timestamp; nothing is then changed.
    pub fn assign(self, interactions: &mut [Interaction], ratio: Ratio, seed: u64) -> Result<()> {
        let ranks: Vec<u64> = interactions
            .iter()
            .map(|interaction| rank(interaction, seed))
            .collect();
        let mut order: Vec<usize> = (0..interactions.len()).collect();
        let splits = match self {
            Self::Random => {
                order.sort_by_key(|&at| (ranks[at], pair(&interactions[at])));
                ratio.cut(&order)
            }
            Self::Time => {
                if let Some(untimed) = interactions
                    .iter()
                    .filter(|interaction| interaction.timestamp.is_none())
                    .min_by_key(|interaction| pair(interaction))
                {
                    return Err(Error::NoTimestamp {
                        user: untimed.user.clone(),
                        item: untimed.item.clone(),
                    });
                }
                order.sort_by_key(|&at| {
                    let interaction = &interactions[at];
                    (interaction.timestamp, ranks[at], pair(interaction))
                });
                ratio.cut(&order)
            }
            Self::LeaveOneOut => {
                // `None` sorts first: an interaction without a time counts as older than any with one.
                order.sort_by_key(|&at| {
                    let Interaction { user, item, .. } = &interactions[at];
                    (user, interactions[at].timestamp, ranks[at], item)
                });
                leave_one_out(&order, interactions)
            }
        };
        for (interaction, split) in interactions.iter_mut().zip(splits) {
            interaction.split = Some(split);
        }
        Ok(())
    }
}

impl fmt::Display for SplitStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Random => "random",
            Self::Time => "time",
            Self::LeaveOneOut => "leave-one-out",
        })
    }
}

impl FromStr for SplitStrategy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "random" => Ok(Self::Random),
            "time" => Ok(Self::Time),
            "leave-one-out" => Ok(Self::LeaveOneOut),
            other => Err(Error::Setting {
                name: "split",
                value: format!("{other:?}"),
                reason: "is not random, time or leave-one-out",
            }),
        }
    }
}

/// The proportions of train, valid and test, written `8:1:1`.
///
/// ```
/// use because_graph::Ratio;
///
/// let ratio: Ratio = "3:1:1".parse()?;
/// assert_eq!(ratio.to_string(), "3:1:1");
/// assert!("0:1:1".parse::<Ratio>().is_err(), "nothing to learn from");
/// # Ok::<(), because_graph::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ratio {
    train: u32,
    valid: u32,
    test: u32,
}

impl Ratio {
    /// So many parts each.
    ///
    /// # Errors
    /// When train gets nothing.
    pub fn new(train: u32, valid: u32, test: u32) -> Result<Self> {
        if train == 0 {
            return Err(Error::Setting {
                name: "ratio",
                value: format!("{train}:{valid}:{test}"),
                reason: "leaves nothing to train",
            });
        }
        Ok(Self { train, valid, test })
    }

    /// Cuts the order at the two borders; the answer is by position in the data, not in the order.
    fn cut(self, order: &[usize]) -> Vec<Split> {
        let count = order.len() as u128;
        let parts = u128::from(self.train) + u128::from(self.valid) + u128::from(self.test);
        let border = |upto: u128| (count * upto * 2 + parts) / (2 * parts);
        let train = border(u128::from(self.train));
        let valid = border(u128::from(self.train) + u128::from(self.valid));
        let mut splits = vec![Split::Train; order.len()];
        for (place, &at) in (0_u128..).zip(order) {
            if place >= valid {
                splits[at] = Split::Test;
            } else if place >= train {
                splits[at] = Split::Valid;
            }
        }
        splits
    }
}

impl Default for Ratio {
    /// 8:1:1, the usual one.
    fn default() -> Self {
        Self {
            train: 8,
            valid: 1,
            test: 1,
        }
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.train, self.valid, self.test)
    }
}

impl FromStr for Ratio {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Option<Vec<u32>> = text
            .split(':')
            .map(|part| part.trim().parse().ok())
            .collect();
        match parts.as_deref() {
            Some(&[train, valid, test]) => Self::new(train, valid, test),
            _ => Err(Error::Setting {
                name: "ratio",
                value: format!("{text:?}"),
                reason: "is not three whole numbers like 8:1:1",
            }),
        }
    }
}

impl TryFrom<String> for Ratio {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Ratio> for String {
    fn from(ratio: Ratio) -> Self {
        ratio.to_string()
    }
}

fn rank(interaction: &Interaction, seed: u64) -> u64 {
    let user = interaction.user.as_str().as_bytes();
    let item = interaction.item.as_str().as_bytes();
    stable_hash("because split", seed, &[user, item])
}

fn pair(interaction: &Interaction) -> (&str, &str) {
    (interaction.user.as_str(), interaction.item.as_str())
}

/// `order` has each user's interactions together, oldest first.
fn leave_one_out(order: &[usize], interactions: &[Interaction]) -> Vec<Split> {
    let mut splits = vec![Split::Train; order.len()];
    let same_user = |&a: &usize, &b: &usize| interactions[a].user == interactions[b].user;
    for of_user in order.chunk_by(same_user) {
        if let [.., _, before, last] = *of_user {
            splits[before] = Split::Valid;
            splits[last] = Split::Test;
        }
    }
    splits
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn arbitrary() -> impl Strategy<Value = Vec<Interaction>> {
        prop::collection::btree_map((0_u8..9, 0_u8..9), 0_i64..20, 1..60).prop_map(|pairs| {
            pairs
                .into_iter()
                .map(|((user, item), time)| Interaction {
                    timestamp: Some(time),
                    ..Interaction::new(user.to_string(), item.to_string())
                })
                .collect()
        })
    }

    fn by_pair(interactions: &[Interaction]) -> BTreeMap<(String, String), Split> {
        interactions
            .iter()
            .map(|i| ((i.user.to_string(), i.item.to_string()), i.split.unwrap()))
            .collect()
    }

    fn count(interactions: &[Interaction], split: Split) -> usize {
        interactions
            .iter()
            .filter(|interaction| interaction.split == Some(split))
            .count()
    }

    proptest! {
        #[test]
        fn a_split_covers_everything_whatever_the_order_of_the_rows(rows in arbitrary(), seed: u64) {
            for strategy in [SplitStrategy::Random, SplitStrategy::Time, SplitStrategy::LeaveOneOut] {
                let (mut forward, mut backward) = (rows.clone(), rows.clone());
                backward.reverse();
                strategy.assign(&mut forward, Ratio::default(), seed).unwrap();
                strategy.assign(&mut backward, Ratio::default(), seed).unwrap();
                prop_assert_eq!(by_pair(&forward), by_pair(&backward));
                let total: usize = Split::ALL.iter().map(|&split| count(&forward, split)).sum();
                prop_assert_eq!(total, rows.len());
            }
        }

        #[test]
        fn a_split_by_time_never_trains_on_the_future(rows in arbitrary(), seed: u64) {
            let mut rows = rows;
            SplitStrategy::Time.assign(&mut rows, "2:1:1".parse().unwrap(), seed).unwrap();
            let times = |split| rows.iter().filter(move |i| i.split == Some(split)).filter_map(|i| i.timestamp);
            if let (Some(trained), Some(tested)) = (times(Split::Train).max(), times(Split::Test).min()) {
                prop_assert!(trained <= tested);
            }
        }
    }

    #[test]
    fn random_meets_the_ratio_and_follows_the_seed() {
        let mut rows: Vec<_> = (0..100)
            .map(|n| Interaction::new("u", n.to_string()))
            .collect();
        SplitStrategy::Random
            .assign(&mut rows, Ratio::default(), 1)
            .unwrap();
        let counts = Split::USED.map(|split| count(&rows, split));
        assert_eq!(counts, [80, 10, 10]);
        let first = by_pair(&rows);
        SplitStrategy::Random
            .assign(&mut rows, Ratio::default(), 2)
            .unwrap();
        assert_ne!(by_pair(&rows), first);
    }

    #[test]
    fn the_latest_is_left_out_and_a_short_history_only_trains() {
        let row = |user, item, timestamp| Interaction {
            timestamp,
            ..Interaction::new(user, item)
        };
        let mut rows = vec![
            row("a", "w", Some(9)),
            row("a", "x", None),
            row("a", "y", Some(3)),
            row("b", "x", Some(1)),
            row("b", "y", Some(2)),
        ];
        SplitStrategy::LeaveOneOut
            .assign(&mut rows, Ratio::default(), 0)
            .unwrap();
        let splits: Vec<_> = rows.iter().filter_map(|row| row.split).collect();
        assert_eq!(
            splits,
            [
                Split::Test,
                Split::Train,
                Split::Valid,
                Split::Train,
                Split::Train
            ]
        );
    }

    #[test]
    fn no_split_by_time_without_a_time() {
        let mut rows = vec![Interaction::new("b", "x"), Interaction::new("a", "y")];
        let failed = SplitStrategy::Time.assign(&mut rows, Ratio::default(), 0);
        let said = failed.unwrap_err().to_string();
        assert!(said.starts_with("user a, item y: no timestamp"), "{said}");
        assert_eq!(rows[0].split, None);
    }

    #[test]
    fn names_and_ratios_are_read_or_refused() {
        for strategy in ["random", "time", "leave-one-out"] {
            assert_eq!(
                strategy.parse::<SplitStrategy>().unwrap().to_string(),
                strategy
            );
        }
        assert!("chronological".parse::<SplitStrategy>().is_err());
        for wrong in [
            "8:1",
            "8:1:1:1",
            "8:-1:1",
            "a:b:c",
            "",
            "0:0:0",
            "1:1:99999999999",
        ] {
            let said = wrong.parse::<Ratio>().unwrap_err().to_string();
            assert!(said.starts_with("ratio "), "{said}");
        }
    }
}
