use std::fmt;
use std::str::FromStr;

use because_core::{Interaction, Split};
use serde::{Deserialize, Serialize};

use crate::lots::{Lots, Purpose};
use crate::table::{Row, Table};
use crate::{Error, Result};

/// How interactions are divided into train, valid and test. The answer depends on the interactions and the seed, never on
/// the order of the rows. The fourth split, [`Split::Hidden`], is given by no strategy but only by
/// [`ColdStart`](crate::ColdStart), or by the rows themselves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum SplitStrategy {
    /// By lot, in exactly the proportions asked for.
    #[default]
    Random,
    /// The oldest interactions of all users together train, the latest test.
    Time,
    /// Of each user the oldest interactions train, the latest test. What is held out of a short history tests before it
    /// validates: at 8:1:1 who has fewer than three only trains, and who has three to seven tests with one.
    UserTime,
    /// Of each user the latest interaction tests and the one before validates; who has fewer than three only trains. One
    /// without a time counts as older than any with one, and among equals lots are drawn.
    LeaveOneOut,
    /// All interactions of a user fall in one split, drawn by lot: who is tested was never seen. The proportions are of
    /// interactions, as near as whole users allow.
    UserDisjoint,
    /// The same for items.
    ItemDisjoint,
    /// As the rows themselves say; each must.
    Rows,
}

impl SplitStrategy {
    /// Every strategy by its name on the command line and in files.
    pub const NAMES: [(&'static str, Self); 7] = [
        ("random", Self::Random),
        ("time", Self::Time),
        ("user-time", Self::UserTime),
        ("leave-one-out", Self::LeaveOneOut),
        ("user-disjoint", Self::UserDisjoint),
        ("item-disjoint", Self::ItemDisjoint),
        ("rows", Self::Rows),
    ];

    /// Sets the split of every interaction, whatever it was before (but for [`SplitStrategy::Rows`]). The ratio is not used
    /// by [`SplitStrategy::LeaveOneOut`] and [`SplitStrategy::Rows`].
    ///
    /// # Errors
    /// When a split by time meets an interaction without a timestamp, or the rows' own splits are asked for and one has none;
    /// nothing is then changed.
    pub fn assign(self, interactions: &mut [Interaction], ratio: Ratio, seed: u64) -> Result<()> {
        let table = Table::of(interactions)?;
        let lots = Lots::new(&table, seed);
        let rows = u32::try_from(interactions.len()).map_err(|_| Error::TooLarge {
            what: "interactions",
            count: interactions.len(),
        })?;
        let mut splits = vec![None; interactions.len()];
        draw(self, ratio, &table, &lots, (0..rows).collect(), &mut splits)?;
        for (interaction, split) in interactions.iter_mut().zip(splits) {
            interaction.split = split;
        }
        Ok(())
    }
}

impl fmt::Display for SplitStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = Self::NAMES.iter().find(|(_, strategy)| strategy == self);
        f.write_str(named.map_or("", |(name, _)| name))
    }
}

impl FromStr for SplitStrategy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let named = Self::NAMES.iter().find(|(name, _)| *name == text);
        named
            .map(|&(_, strategy)| strategy)
            .ok_or_else(|| Error::Setting {
                name: "split",
                value: format!("{text:?}"),
                reason: "is not random, time, user-time, leave-one-out, user-disjoint, item-disjoint or rows",
            })
    }
}

/// Who decided the splits, with all it takes to decide them again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SplitSource {
    /// The strategy; [`SplitStrategy::Rows`] where the rows themselves did.
    pub by: SplitStrategy,
    /// The proportions, where the strategy uses them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<Ratio>,
    /// The lot: of everything, or among interactions of one second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

impl SplitSource {
    pub(crate) fn of(by: SplitStrategy, ratio: Ratio, seed: u64) -> Self {
        use SplitStrategy::{LeaveOneOut, Rows};
        Self {
            by,
            ratio: (!matches!(by, Rows | LeaveOneOut)).then_some(ratio),
            seed: (by != Rows).then_some(seed),
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

    /// Where valid and where test begin among so many, to the nearest whole number.
    fn borders(self, count: usize) -> [usize; 2] {
        let [train, valid, test] = [self.train, self.valid, self.test].map(u128::from);
        [
            share(count, train, train + valid + test),
            share(count, train + valid, train + valid + test),
        ]
    }

    /// The same within one history: what is held out tests before it validates, and one always trains.
    fn borders_of_history(self, count: usize) -> [usize; 2] {
        let [train, valid, test] = [self.train, self.valid, self.test].map(u128::from);
        let held = share(count, valid + test, train + valid + test).min(count.saturating_sub(1));
        let tested = if held == 0 {
            0
        } else {
            share(held, test, valid + test)
        };
        [count - held, count - tested]
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

/// `count * part / whole`, halves rounded up.
fn share(count: usize, part: u128, whole: u128) -> usize {
    let rounded = (count as u128 * part * 2 + whole) / (2 * whole);
    // A part of the whole is no more than the count itself.
    usize::try_from(rounded).unwrap_or(count)
}

/// Gives each of these rows of a table its split; the others keep what they have.
pub(crate) fn draw(
    strategy: SplitStrategy,
    ratio: Ratio,
    table: &Table,
    lots: &Lots<'_>,
    mut rows: Vec<u32>,
    splits: &mut [Option<Split>],
) -> Result<()> {
    let row = |at: u32| &table.rows[at as usize];
    // `None` sorts first: an interaction without a time counts as older than any with one.
    let by_time = |&a: &u32, &b: &u32| {
        let times = row(a).timestamp().cmp(&row(b).timestamp());
        times.then_with(|| lots.rows(Purpose::Split, a, b))
    };
    let borders = ratio.borders(rows.len());
    match strategy {
        SplitStrategy::Random => {
            // Each lot is worked out once: ten million rows are compared some thirty million times.
            let lot = |at: u32| (lots.row(Purpose::Split, at), at);
            let mut drawn: Vec<(u64, u32)> = rows.into_iter().map(lot).collect();
            let by_lot = |a: &(u64, u32), b: &(u64, u32)| {
                let drawn = a.0.cmp(&b.0);
                drawn.then_with(|| lots.rows(Purpose::Split, a.1, b.1))
            };
            cut(&mut drawn, borders, by_lot, |drawn| drawn.1, splits);
        }
        SplitStrategy::Time => {
            timed(table, &rows)?;
            cut(&mut rows, borders, by_time, |&at| at, splits);
        }
        SplitStrategy::UserTime => {
            timed(table, &rows)?;
            table.each_user(rows, |rows| {
                let borders = ratio.borders_of_history(rows.len());
                cut(rows, borders, by_time, |&at| at, splits);
            });
        }
        SplitStrategy::LeaveOneOut => table.each_user(rows, |rows| {
            let borders = match rows.len() {
                count @ ..3 => [count; 2],
                count => [count - 2, count - 1],
            };
            cut(rows, borders, by_time, |&at| at, splits);
        }),
        SplitStrategy::UserDisjoint => {
            let mut order: Vec<u32> = (0..table.users.len() as u32).collect();
            lots.users(Purpose::Split, &mut order);
            whole_nodes(&order, &rows, |at| row(at).user, ratio, splits);
        }
        SplitStrategy::ItemDisjoint => {
            let mut order: Vec<u32> = (0..table.items.len() as u32).collect();
            lots.items(Purpose::Split, &mut order);
            whole_nodes(&order, &rows, |at| row(at).item, ratio, splits);
        }
        SplitStrategy::Rows => {
            if let Some((user, item)) = first(table, &rows, |row| row.split.is_none()) {
                return Err(Error::NoSplit {
                    user: user.into(),
                    item: item.into(),
                });
            }
            for at in rows {
                splits[at as usize] = row(at).split;
            }
        }
    }
    Ok(())
}

fn timed(table: &Table, rows: &[u32]) -> Result<()> {
    match first(table, rows, |row| row.timestamp().is_none()) {
        Some((user, item)) => Err(Error::NoTimestamp {
            user: user.into(),
            item: item.into(),
        }),
        None => Ok(()),
    }
}

/// The first pair in the order of ids whose row is of a kind.
fn first<'t>(
    table: &'t Table,
    rows: &[u32],
    kind: impl Fn(&Row) -> bool,
) -> Option<(&'t str, &'t str)> {
    rows.iter()
        .map(|&at| &table.rows[at as usize])
        .filter(|row| kind(row))
        .map(|row| (table.users.name(row.user), table.items.name(row.item)))
        .min()
}

/// Divides rows at two places of their order. Nothing is sorted: which rows stand before a place is all that is asked.
fn cut<T>(
    rows: &mut [T],
    [valid, test]: [usize; 2],
    order: impl Fn(&T, &T) -> std::cmp::Ordering,
    row: impl Fn(&T) -> u32,
    splits: &mut [Option<Split>],
) {
    if test < rows.len() {
        rows.select_nth_unstable_by(test, &order);
    }
    let learnt = test.min(rows.len());
    if valid < learnt {
        rows[..learnt].select_nth_unstable_by(valid, &order);
    }
    for (place, at) in rows.iter().enumerate() {
        splits[row(at) as usize] = Some(if place >= test {
            Split::Test
        } else if place >= valid {
            Split::Valid
        } else {
            Split::Train
        });
    }
}

/// Gives each node with all its rows to the split in whose range the middle of its rows falls, nodes being laid side by side
/// in the order of their lots; so each border is missed by half a node at most.
fn whole_nodes(
    order: &[u32],
    rows: &[u32],
    node: impl Fn(u32) -> u32,
    ratio: Ratio,
    splits: &mut [Option<Split>],
) {
    let mut degrees = vec![0_usize; order.len()];
    for &at in rows {
        degrees[node(at) as usize] += 1;
    }
    let [valid, test] = ratio.borders(rows.len());
    let mut begin = 0;
    let mut of_node = vec![Split::Train; order.len()];
    for &at in order {
        let degree = degrees[at as usize];
        // Twice the middle, to stay with whole numbers.
        let middle = 2 * begin + degree;
        if middle > 2 * test {
            of_node[at as usize] = Split::Test;
        } else if middle > 2 * valid {
            of_node[at as usize] = Split::Valid;
        }
        begin += degree;
    }
    for &at in rows {
        splits[at as usize] = Some(of_node[node(at) as usize]);
    }
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
            let mut rows = rows;
            for (at, row) in rows.iter_mut().enumerate() {
                row.split = Some(Split::ALL[at % 4]);
            }
            for (_, strategy) in SplitStrategy::NAMES {
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

    proptest! {
        #[test]
        fn a_history_never_trains_on_its_own_future(rows in arbitrary(), seed: u64) {
            for strategy in [SplitStrategy::UserTime, SplitStrategy::LeaveOneOut] {
                let mut rows = rows.clone();
                strategy.assign(&mut rows, "2:1:1".parse().unwrap(), seed).unwrap();
                for one in &rows {
                    for other in rows.iter().filter(|other| other.user == one.user) {
                        if one.split < other.split {
                            prop_assert!(one.timestamp <= other.timestamp);
                        }
                    }
                    let trained = rows.iter().any(|row| row.user == one.user && row.split == Some(Split::Train));
                    prop_assert!(trained, "somebody to learn from in every history");
                }
            }
        }

        #[test]
        fn no_node_is_on_two_sides_of_a_disjoint_split(rows in arbitrary(), seed: u64) {
            for (strategy, of_users) in [(SplitStrategy::UserDisjoint, true), (SplitStrategy::ItemDisjoint, false)] {
                let mut rows = rows.clone();
                let ratio: Ratio = "2:1:1".parse().unwrap();
                strategy.assign(&mut rows, ratio, seed).unwrap();
                let mut degrees = BTreeMap::new();
                for row in &rows {
                    let node = if of_users { row.user.as_str() } else { row.item.as_str() };
                    let (split, degree) = degrees.entry(node).or_insert((row.split, 0));
                    prop_assert_eq!(*split, row.split);
                    *degree += 1;
                }
                // Each border is missed by half of the largest node at most.
                let largest = degrees.values().map(|&(_, degree)| degree).max().unwrap();
                let [valid, test] = ratio.borders(rows.len());
                let trained = count(&rows, Split::Train);
                prop_assert!(2 * trained.abs_diff(valid) <= largest);
                prop_assert!(2 * (trained + count(&rows, Split::Valid)).abs_diff(test) <= largest);
            }
        }
    }

    #[test]
    fn a_short_history_tests_before_it_validates() {
        let splits_of = |count: usize| {
            let borders = Ratio::default().borders_of_history(count);
            [borders[0], borders[1] - borders[0], count - borders[1]]
        };
        for (count, expected) in [
            (1, [1, 0, 0]),
            (2, [2, 0, 0]),
            (3, [2, 0, 1]),
            (7, [6, 0, 1]),
            (8, [6, 1, 1]),
            (10, [8, 1, 1]),
            (100, [80, 10, 10]),
        ] {
            assert_eq!(splits_of(count), expected);
        }
        let only_train: Ratio = "1:0:0".parse().unwrap();
        assert_eq!(only_train.borders_of_history(5), [5, 5]);
        let only_valid: Ratio = "1:1:0".parse().unwrap();
        assert_eq!(only_valid.borders_of_history(1), [1, 1]);
        assert_eq!(only_valid.borders_of_history(4), [2, 4]);
    }

    #[test]
    fn rows_keep_their_own_splits_or_none_is_changed() {
        let mut rows = vec![Interaction::new("a", "x"), Interaction::new("b", "x")];
        rows[0].split = Some(Split::Hidden);
        let failed = SplitStrategy::Rows.assign(&mut rows, Ratio::default(), 0);
        let said = failed.unwrap_err().to_string();
        assert!(
            said.starts_with("user b, item x: no split of its own"),
            "{said}"
        );
        rows[1].split = Some(Split::Valid);
        SplitStrategy::Rows
            .assign(&mut rows, Ratio::default(), 0)
            .unwrap();
        assert_eq!(rows[0].split, Some(Split::Hidden));
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
        for (name, strategy) in SplitStrategy::NAMES {
            assert_eq!(name.parse::<SplitStrategy>().unwrap(), strategy);
            assert_eq!(strategy.to_string(), name);
            assert_eq!(serde_json::to_value(strategy).unwrap(), name);
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
