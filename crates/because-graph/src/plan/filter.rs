use serde::{Deserialize, Serialize};

use super::{Amount, Moment};
use crate::kcore::core_of;
use crate::lots::{Lots, Purpose};
use crate::table::{Row, Table};
use crate::{Error, Result};

/// What is left out of the interactions. Filters run in the order of the fields, each over what the ones before it left; the
/// k-core comes last, so that its bounds hold in the result.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Filter {
    /// Leaves out what happened before this moment, and what does not say when.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Moment>,
    /// Leaves out what happened at this moment or later, and what does not say when.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Moment>,
    /// Leaves out what is rated below this, and what is not rated at all: nobody knows that it was liked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_rating: Option<f64>,
    /// Keeps so many of the users that are left, drawn by lot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample_users: Option<Amount>,
    /// Keeps so many interactions of each user: the latest. One without a time counts as older than any with one; among
    /// equals lots are drawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_per_user: Option<usize>,
    /// Leaves out users with fewer interactions than this among those that stay, over and over until nothing changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k_core_users: Option<usize>,
    /// The same for items, in the same go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k_core_items: Option<usize>,
}

/// What one filter removed and what it left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Step {
    /// `date_range`, `min_rating`, `sample_users`, `max_per_user` or `k_core`.
    pub filter: &'static str,
    /// What it was set to, as one would say it: `at least 5 a user, 10 an item`.
    pub setting: String,
    /// What it took away: interactions, and the users and items that lost their last one by it.
    pub removed: Counts,
    /// What was there after it.
    pub left: Counts,
}

/// How many interactions there are, and how many users and items have one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Counts {
    /// Interactions.
    pub interactions: u64,
    /// Users with an interaction.
    pub users: u64,
    /// Items with an interaction.
    pub items: u64,
}

/// What the filters left.
pub(super) struct Filtered {
    pub(super) kept: Vec<bool>,
    pub(super) before: Counts,
    pub(super) steps: Vec<Step>,
    pub(super) users_lost: Vec<Option<u8>>,
    pub(super) items_lost: Vec<Option<u8>>,
}

impl Filter {
    /// The same bound of the k-core for users and items.
    pub fn k_core(&mut self, k: Option<usize>) {
        (self.k_core_users, self.k_core_items) = (k, k);
    }

    pub(super) fn check(&self) -> Result<()> {
        let refuse = |name, value: String, reason| {
            Err(Error::Setting {
                name,
                value,
                reason,
            })
        };
        if let Some(least) = self.min_rating.filter(|least| !least.is_finite()) {
            return refuse("min_rating", least.to_string(), "is not a finite number");
        }
        if let (Some(from), Some(to)) = (self.from, self.to)
            && from >= to
        {
            let range = format!("{from} to {to}");
            return refuse(
                "date range",
                range,
                "is empty: its end is not part of it and must come after its beginning",
            );
        }
        if self.max_per_user == Some(0) {
            return refuse("max_per_user", "0".into(), "leaves nothing");
        }
        self.sample_users
            .map_or(Ok(()), |amount| amount.check("sample_users"))
    }

    pub(super) fn run(&self, table: &Table, lots: &Lots<'_>) -> Filtered {
        let mut run = Run::new(table);
        if self.from.is_some() || self.to.is_some() {
            let within = |time: i64| {
                self.from.is_none_or(|from| time >= from.seconds())
                    && self.to.is_none_or(|to| time < to.seconds())
            };
            let ends = [("from ", self.from), ("before ", self.to)];
            let said: Vec<String> = ends
                .iter()
                .filter_map(|(word, end)| Some(format!("{word}{}", (*end)?)))
                .collect();
            run.step("date_range", said.join(", "), |_, row| {
                row.timestamp().is_some_and(within)
            });
        }
        if let Some(least) = self.min_rating {
            run.step("min_rating", format!("at least {least}"), |_, row| {
                row.rating().is_some_and(|rating| rating >= least)
            });
        }
        if let Some(amount) = self.sample_users {
            let chosen = run.sample_users(lots, amount);
            run.step("sample_users", amount.to_string(), |_, row| {
                chosen[row.user as usize]
            });
        }
        if let Some(most) = self.max_per_user {
            let chosen = run.latest(lots, most);
            run.step("max_per_user", format!("at most {most}"), |at, _| {
                chosen[at]
            });
        }
        if self.k_core_users.is_some() || self.k_core_items.is_some() {
            let bounds = [self.k_core_users, self.k_core_items].map(|k| k.unwrap_or(1));
            let [users, items] = bounds.map(|k| u32::try_from(k).unwrap_or(u32::MAX));
            let chosen = core_of(table, &run.filtered.kept, users, items);
            let said = format!("at least {} a user, {} an item", bounds[0], bounds[1]);
            run.step("k_core", said, |at, _| chosen[at]);
        }
        run.filtered
    }
}

/// The filters at work: which rows still stand, and how many of them each user and item has.
struct Run<'t> {
    table: &'t Table,
    user_degrees: Vec<u32>,
    item_degrees: Vec<u32>,
    left: Counts,
    filtered: Filtered,
}

impl<'t> Run<'t> {
    fn new(table: &'t Table) -> Self {
        let mut user_degrees = vec![0; table.users.len()];
        let mut item_degrees = vec![0; table.items.len()];
        for row in &table.rows {
            user_degrees[row.user as usize] += 1;
            item_degrees[row.item as usize] += 1;
        }
        let with_one =
            |degrees: &[u32]| degrees.iter().filter(|&&degree| degree > 0).count() as u64;
        let before = Counts {
            interactions: table.rows.len() as u64,
            users: with_one(&user_degrees),
            items: with_one(&item_degrees),
        };
        Self {
            filtered: Filtered {
                kept: vec![true; table.rows.len()],
                before,
                steps: Vec::new(),
                users_lost: vec![None; user_degrees.len()],
                items_lost: vec![None; item_degrees.len()],
            },
            table,
            user_degrees,
            item_degrees,
            left: before,
        }
    }

    fn step(&mut self, filter: &'static str, setting: String, stays: impl Fn(usize, &Row) -> bool) {
        // There are fewer filters than a byte can count.
        let step = self.filtered.steps.len() as u8;
        let mut removed = Counts::default();
        for (at, row) in self.table.rows.iter().enumerate() {
            if !self.filtered.kept[at] || stays(at, row) {
                continue;
            }
            self.filtered.kept[at] = false;
            removed.interactions += 1;
            let (user, item) = (row.user as usize, row.item as usize);
            self.user_degrees[user] -= 1;
            if self.user_degrees[user] == 0 {
                removed.users += 1;
                self.filtered.users_lost[user] = Some(step);
            }
            self.item_degrees[item] -= 1;
            if self.item_degrees[item] == 0 {
                removed.items += 1;
                self.filtered.items_lost[item] = Some(step);
            }
        }
        self.left = self.left.without(removed);
        self.filtered.steps.push(Step {
            filter,
            setting,
            removed,
            left: self.left,
        });
    }

    fn sample_users(&self, lots: &Lots<'_>, amount: Amount) -> Vec<bool> {
        let mut users: Vec<u32> = (0..)
            .zip(&self.user_degrees)
            .filter(|(_, degree)| **degree > 0)
            .map(|(user, _)| user)
            .collect();
        lots.users(Purpose::SampleUsers, &mut users);
        let mut chosen = vec![false; self.user_degrees.len()];
        for &user in &users[..amount.of(users.len())] {
            chosen[user as usize] = true;
        }
        chosen
    }

    fn latest(&self, lots: &Lots<'_>, most: usize) -> Vec<bool> {
        let kept = (0..)
            .zip(&self.filtered.kept)
            .filter(|(_, kept)| **kept)
            .map(|(row, _)| row);
        let mut chosen = vec![false; self.table.rows.len()];
        self.table.each_user(kept.collect(), |rows| {
            let rest = rows.len().saturating_sub(most);
            if rest > 0 {
                // Oldest first, `None` before any time.
                rows.select_nth_unstable_by(rest, |&a, &b| {
                    let time = |row: u32| self.table.rows[row as usize].timestamp();
                    time(a)
                        .cmp(&time(b))
                        .then_with(|| lots.rows(Purpose::LimitPerUser, a, b))
                });
            }
            for &row in &rows[rest..] {
                chosen[row as usize] = true;
            }
        });
        chosen
    }
}

impl Counts {
    fn without(self, removed: Self) -> Self {
        Self {
            interactions: self.interactions - removed.interactions,
            users: self.users - removed.users,
            items: self.items - removed.items,
        }
    }
}

#[cfg(test)]
mod tests {
    use because_core::Interaction;
    use proptest::prelude::*;

    use super::*;

    fn filter(change: impl FnOnce(&mut Filter)) -> Filter {
        let mut filter = Filter::default();
        change(&mut filter);
        filter
    }

    fn run(filter: &Filter, interactions: &[Interaction]) -> (Vec<String>, Vec<Step>) {
        let table = Table::of(interactions).unwrap();
        let found = filter.run(&table, &Lots::new(&table, 7));
        let mut pairs: Vec<String> = interactions
            .iter()
            .zip(&found.kept)
            .filter(|(_, kept)| **kept)
            .map(|(row, _)| format!("{}{}", row.user, row.item))
            .collect();
        pairs.sort();
        (pairs, found.steps)
    }

    fn row(pair: &str, rating: Option<f64>, timestamp: Option<i64>) -> Interaction {
        Interaction {
            rating,
            timestamp,
            ..Interaction::new(&pair[..1], &pair[1..])
        }
    }

    #[test]
    fn the_unrated_and_the_disliked_go() {
        let rows = [
            row("ax", Some(3.0), None),
            row("ay", Some(2.9), None),
            row("bx", None, None),
        ];
        let (kept, steps) = run(&filter(|f| f.min_rating = Some(3.0)), &rows);
        assert_eq!(kept, ["ax"]);
        let counts = |interactions, users, items| Counts {
            interactions,
            users,
            items,
        };
        assert_eq!(steps[0].removed, counts(2, 1, 1));
        assert_eq!(steps[0].left, counts(1, 1, 1));
    }

    #[test]
    fn a_range_has_its_beginning_and_not_its_end() {
        let rows = [
            row("aw", None, Some(9)),
            row("ax", None, Some(10)),
            row("ay", None, Some(20)),
            row("az", None, None),
        ];
        let range = filter(|f| (f.from, f.to) = (Some(Moment(10)), Some(Moment(20))));
        assert_eq!(run(&range, &rows).0, ["ax"]);
        assert_eq!(
            run(&filter(|f| f.from = Some(Moment(10))), &rows).0,
            ["ax", "ay"]
        );
        let (_, steps) = run(&range, &rows);
        assert_eq!(
            steps[0].setting,
            "from 1970-01-01T00:00:10Z, before 1970-01-01T00:00:20Z"
        );
    }

    #[test]
    fn the_latest_of_each_user_stay_and_an_untimed_one_goes_first() {
        let rows = [
            row("aw", None, Some(1)),
            row("ax", None, None),
            row("ay", None, Some(3)),
            row("az", None, Some(2)),
            row("bw", None, None),
        ];
        let (kept, _) = run(&filter(|f| f.max_per_user = Some(2)), &rows);
        assert_eq!(kept, ["ay", "az", "bw"]);
    }

    #[test]
    fn a_core_is_peeled_until_it_holds_with_bounds_apart() {
        // c hangs on z, which hangs on c: both go at 2, and nothing else.
        let rows = ["ax", "ay", "bx", "by", "bz", "cz"].map(|pair| row(pair, None, None));
        let both = |k| filter(|f| f.k_core(Some(k)));
        assert_eq!(run(&both(2), &rows).0, ["ax", "ay", "bx", "by"]);
        assert!(run(&both(3), &rows).0.is_empty());
        let of_users = filter(|f| f.k_core_users = Some(3));
        assert_eq!(run(&of_users, &rows).0, ["bx", "by", "bz"]);
        let of_items = filter(|f| f.k_core_items = Some(2));
        assert_eq!(run(&of_items, &rows).0.len(), 6);
    }

    #[test]
    fn what_leaves_nothing_by_itself_is_refused() {
        for wrong in [
            filter(|f| f.min_rating = Some(f64::NAN)),
            filter(|f| (f.from, f.to) = (Some(Moment(5)), Some(Moment(5)))),
            filter(|f| f.max_per_user = Some(0)),
            filter(|f| f.sample_users = Some(Amount::Share(2.0))),
        ] {
            assert!(wrong.check().unwrap_err().is_bad_input());
        }
    }

    fn arbitrary() -> impl Strategy<Value = Vec<Interaction>> {
        let about = (prop::option::of(1_u8..6), prop::option::of(0_i64..20));
        prop::collection::btree_map((0_u8..9, 0_u8..9), about, 0..60).prop_map(|pairs| {
            let rows = pairs.into_iter().map(|((user, item), (rating, time))| {
                row(&format!("{user}{item}"), rating.map(f64::from), time)
            });
            rows.collect()
        })
    }

    proptest! {
        #[test]
        fn every_bound_holds_and_every_row_is_accounted_for(
            rows in arbitrary(),
            sample in 1_u64..9,
            most in 1_usize..9,
            bounds in (1_usize..4, 1_usize..4),
        ) {
            let all = filter(|f| {
                (f.from, f.to, f.min_rating) = (Some(Moment(2)), Some(Moment(18)), Some(2.0));
                (f.sample_users, f.max_per_user) = (Some(Amount::Count(sample)), Some(most));
                (f.k_core_users, f.k_core_items) = (Some(bounds.0), Some(bounds.1));
            });
            let (kept, steps) = run(&all, &rows);
            let mut backward = rows.clone();
            backward.reverse();
            prop_assert_eq!(&run(&all, &backward), &(kept.clone(), steps.clone()));

            let removed: u64 = steps.iter().map(|step| step.removed.interactions).sum();
            prop_assert_eq!(removed as usize + kept.len(), rows.len());
            prop_assert_eq!(steps[4].left.interactions as usize, kept.len());
            prop_assert!(steps[2].left.users <= sample);
            let degree = |end: usize, id: u8| kept.iter().filter(|pair| pair.as_bytes()[end] == id).count();
            for pair in &kept {
                let ends = pair.as_bytes();
                prop_assert!((bounds.0..=most).contains(&degree(0, ends[0])));
                prop_assert!(degree(1, ends[1]) >= bounds.1);
            }
        }
    }
}
