use because_core::{ItemId, Project, Split, UserId, jsonl};
use serde::Deserialize;

use super::{CheckReport, Severity};
use crate::table::{Row, Table};
use crate::{Error, Result, SplitStrategy};

/// A row of `interactions.jsonl` as far as a check looks at it.
#[derive(Debug, Deserialize)]
pub(super) struct Line {
    pub(super) user: UserId,
    pub(super) item: ItemId,
    #[serde(default)]
    timestamp: Option<i64>,
    #[serde(default)]
    split: Option<Split>,
    #[serde(default)]
    pub(super) review: Option<String>,
}

impl Line {
    pub(super) fn split(&self) -> Split {
        self.split.unwrap_or(Split::Train)
    }

    pub(super) fn shown(&self) -> String {
        shown((self.user.as_str(), self.item.as_str()))
    }
}

pub(super) type Pair<'a> = (&'a str, &'a str);

pub(super) fn shown((user, item): Pair<'_>) -> String {
    format!("user {user}, item {item}")
}

pub(super) fn split_of(row: &Row) -> Split {
    row.split.unwrap_or(Split::Train)
}

fn bit(split: Split) -> u8 {
    1 << split as u8
}

const TRAIN: u8 = 1 << Split::Train as u8;
const TEST: u8 = 1 << Split::Test as u8;

/// The interactions of a project without their texts.
pub(super) struct Edges {
    pub(super) table: Table,
    /// The rows in the order of user and item, by their numbers.
    by_pair: Vec<u32>,
    /// For each user, and for each item, a bit for every split it is in.
    pub(super) users: Vec<u8>,
    pub(super) items: Vec<u8>,
}

impl Edges {
    /// Reads the interactions; `see` gets each line on the way with the place of its row.
    pub(super) fn read(project: &Project, mut see: impl FnMut(u32, &Line)) -> Result<Self> {
        let path = project.interactions_path();
        if !path.exists() {
            // Says what is missing and what makes it.
            project.interactions()?;
        }
        let mut table = Table::default();
        for (at, line) in (0_u32..).zip(jsonl::read::<Line>(&path)?) {
            let line = line?;
            let user = table.users.intern(line.user.as_str())?;
            let item = table.items.intern(line.item.as_str())?;
            let mut row = Row::new(user, item).with_timestamp(line.timestamp);
            row.split = line.split;
            table.rows.push(row);
            see(at, &line);
        }
        let rows = u32::try_from(table.rows.len()).map_err(|_| Error::TooLarge {
            what: "interactions",
            count: table.rows.len(),
        })?;
        let mut by_pair: Vec<u32> = (0..rows).collect();
        by_pair.sort_unstable_by_key(|&at| (ends(&table.rows[at as usize]), at));
        let mut users = vec![0; table.users.len()];
        let mut items = vec![0; table.items.len()];
        for row in &table.rows {
            users[row.user as usize] |= bit(split_of(row));
            items[row.item as usize] |= bit(split_of(row));
        }
        Ok(Self {
            table,
            by_pair,
            users,
            items,
        })
    }

    pub(super) fn pair(&self, row: &Row) -> Pair<'_> {
        (
            self.table.users.name(row.user),
            self.table.items.name(row.item),
        )
    }

    /// The splits of one user and item; none where they have nothing to do with each other.
    pub(super) fn splits(&self, user: &str, item: &str) -> impl Iterator<Item = Split> + '_ {
        let known = self.table.users.get(user).zip(self.table.items.get(item));
        let row = |at: &u32| &self.table.rows[*at as usize];
        let rows = known.map_or(&[][..], |pair| {
            let from = self.by_pair.partition_point(|at| ends(row(at)) < pair);
            let rest = &self.by_pair[from..];
            &rest[..rest.partition_point(|at| ends(row(at)) == pair)]
        });
        rows.iter().map(move |at| split_of(row(at)))
    }

    pub(super) fn check_pairs(&self, report: &mut CheckReport) {
        let row = |at: u32| &self.table.rows[at as usize];
        let same = |&a: &u32, &b: &u32| ends(row(a)) == ends(row(b));
        let repeated = |apart: bool| {
            self.by_pair
                .chunk_by(same)
                .filter(|rows| rows.len() > 1)
                .map(|rows| {
                    let splits: Vec<Split> = rows.iter().map(|&at| split_of(row(at))).collect();
                    (self.pair(row(rows[0])), splits)
                })
                .filter(move |(_, splits)| splits.iter().any(|split| *split != splits[0]) == apart)
        };
        report.add(
            "pair_in_two_splits",
            Severity::Leak,
            "the same user and item are in more than one split",
            repeated(true),
            |(pair, splits)| {
                let splits: Vec<_> = splits.iter().map(|split| split.as_str()).collect();
                format!("{}: {}", shown(pair), splits.join(", "))
            },
        );
        report.add(
            "duplicate_interaction",
            Severity::Contradiction,
            "the same user and item come more than once; a graph has one edge for them",
            repeated(false),
            |(pair, _)| shown(pair),
        );
    }

    pub(super) fn check_splits(&self, report: &mut CheckReport, promised: Option<SplitStrategy>) {
        let without = self.table.rows.iter().filter(|row| row.split.is_none());
        report.add(
            "interaction_without_split",
            Severity::Warning,
            "an interaction without a split counts as train",
            without.map(|row| self.pair(row)),
            shown,
        );
        let used = self.users.iter().fold(0, |used, splits| used | splits);
        report.add(
            "empty_split",
            Severity::Warning,
            "a split has no interaction, so nothing can be trained or measured on it",
            Split::USED
                .into_iter()
                .filter(|&split| used & bit(split) == 0),
            |split| split.to_string(),
        );
        // What was made so on purpose is worth knowing and no reason to worry.
        let of = |strategy| match promised == Some(strategy) {
            true => Severity::Note,
            false => Severity::Warning,
        };
        let unseen = |splits: &u8| splits & TEST != 0 && splits & TRAIN == 0;
        let names = self.table.users.names().zip(&self.users);
        report.add(
            "test_user_unseen_in_train",
            of(SplitStrategy::UserDisjoint),
            "a user of the test split has no train interaction to be known by",
            names.filter(|(_, splits)| unseen(splits)).map(|(id, _)| id),
            |id| format!("user {id}"),
        );
        let names = self.table.items.names().zip(&self.items);
        report.add(
            "test_item_unseen_in_train",
            of(SplitStrategy::ItemDisjoint),
            "an item of the test split has no train interaction, so no neighbour can recommend it",
            names.filter(|(_, splits)| unseen(splits)).map(|(id, _)| id),
            |id| format!("item {id}"),
        );
    }

    /// Whether the split is what it was meant to be.
    pub(super) fn check_promise(&self, report: &mut CheckReport, promised: Option<SplitStrategy>) {
        let used = Split::USED.map(bit).iter().sum::<u8>();
        let in_two = |splits: &u8| (splits & used).count_ones() > 1;
        let said = |splits: u8| {
            let names: Vec<&str> = Split::USED
                .iter()
                .filter(|&&split| splits & bit(split) != 0)
                .map(|split| split.as_str())
                .collect();
            names.join(", ")
        };
        match promised {
            Some(SplitStrategy::UserDisjoint) => {
                let names = self.table.users.names().zip(&self.users);
                report.add(
                    "user_in_two_splits",
                    Severity::Leak,
                    "the split was to keep users apart, and this one is on two sides of it",
                    names.filter(|(_, splits)| in_two(splits)),
                    |(id, splits)| format!("user {id}: {}", said(*splits)),
                );
            }
            Some(SplitStrategy::ItemDisjoint) => {
                let names = self.table.items.names().zip(&self.items);
                report.add(
                    "item_in_two_splits",
                    Severity::Leak,
                    "the split was to keep items apart, and this one is on two sides of it",
                    names.filter(|(_, splits)| in_two(splits)),
                    |(id, splits)| format!("item {id}: {}", said(*splits)),
                );
            }
            Some(SplitStrategy::Time) => report.add(
                "split_trains_on_future",
                Severity::Leak,
                "the split was to be by time, and this interaction is later than one that is held out further",
                self.after_held_out(1, |_| 0),
                shown,
            ),
            Some(SplitStrategy::UserTime | SplitStrategy::LeaveOneOut) => report.add(
                "split_trains_on_future",
                Severity::Leak,
                "the split was to be by time for each user, and this interaction is later than one of the same user that is \
                 held out further",
                self.after_held_out(self.users.len(), |row| row.user as usize),
                shown,
            ),
            _ if self.table.rows.iter().any(|row| row.timestamp().is_some()) => report.add(
                "train_after_test_of_user",
                Severity::Note,
                "an interaction is later than one of the same user that is held out further: figures tell how well gaps are \
                 filled, not how well the future is foretold",
                self.after_held_out(self.users.len(), |row| row.user as usize),
                shown,
            ),
            _ => {}
        }
    }

    /// Interactions that happened after the first one of their group that is in a later split (train before valid before test).
    fn after_held_out(
        &self,
        groups: usize,
        group: impl Fn(&Row) -> usize,
    ) -> impl Iterator<Item = Pair<'_>> {
        // The earliest time of each group in test, and in valid or test.
        let mut first = vec![[i64::MAX; 2]; groups];
        for row in &self.table.rows {
            let Some(time) = row.timestamp() else {
                continue;
            };
            let earliest = &mut first[group(row)];
            match split_of(row) {
                Split::Test => *earliest = earliest.map(|known| known.min(time)),
                Split::Valid => earliest[0] = earliest[0].min(time),
                Split::Train | Split::Hidden => {}
            }
        }
        self.table.rows.iter().filter_map(move |row| {
            let time = row.timestamp()?;
            let [held_out, tested] = first[group(row)];
            let is_late = match split_of(row) {
                Split::Train => time > held_out,
                Split::Valid => time > tested,
                Split::Test | Split::Hidden => false,
            };
            is_late.then(|| self.pair(row))
        })
    }
}

fn ends(row: &Row) -> (u32, u32) {
    (row.user, row.item)
}
