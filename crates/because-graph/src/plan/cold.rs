use because_core::{Side, Split};
use serde::{Deserialize, Serialize};

use super::Amount;
use crate::lots::{Lots, Purpose};
use crate::table::{Row, Table};
use crate::{Error, Result};

/// Makes nodes cold on purpose: of a sample of users or items all but a few train interactions become [`Split::Hidden`], so
/// that one sees what explanations are worth for somebody hardly known, and how that changes with every interaction more.
///
/// Sampled by lot are nodes that have a test interaction (else nothing could be measured on them) and as many train
/// interactions as the largest number of [`ColdStart::keep`], so that the groups differ in nothing but the number kept. The
/// sample is dealt out to the numbers evenly. Which interactions are kept is drawn by lot too: were it the earliest, cold
/// nodes would be known by older interactions than the others, and two effects would be measured as one. The lot is one order
/// for each node, so with the same seed whoever keeps two keeps the one it would have kept alone.
///
/// The valid interactions of a cold node are hidden as well, because what chooses settings is known. Where users and items are
/// both made cold, interactions between two of them are hidden, and an item is passed over that would leave a cold user less
/// than its number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ColdStart {
    /// How many users.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub users: Option<Amount>,
    /// How many items.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub items: Option<Amount>,
    /// The numbers of train interactions that may be kept.
    pub keep: Vec<u32>,
}

/// A node that was made cold: a line of `cold.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ColdNode {
    /// User or item.
    pub kind: Side,
    /// Its id.
    pub id: String,
    /// How many train interactions it has left.
    pub kept: u32,
    /// How many of its interactions are hidden; what was measured on stays.
    pub hidden: u32,
}

impl Default for ColdStart {
    fn default() -> Self {
        Self {
            users: None,
            items: None,
            keep: vec![0, 1, 2, 3, 4],
        }
    }
}

impl ColdStart {
    /// Whether no user and no item is to be made cold.
    #[must_use]
    pub fn is_nobody(&self) -> bool {
        self.users.is_none() && self.items.is_none()
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.is_nobody() {
            return Ok(());
        }
        if self.keep.is_empty() {
            return Err(Error::Setting {
                name: "cold_keep",
                value: "[]".into(),
                reason: "says no number of interactions to keep",
            });
        }
        for (name, amount) in [("cold_users", self.users), ("cold_items", self.items)] {
            amount.map_or(Ok(()), |amount| amount.check(name))?;
        }
        Ok(())
    }

    /// Hides what is to be hidden; the answer has users first, each side sorted by id.
    pub(crate) fn run(
        &self,
        table: &Table,
        lots: &Lots<'_>,
        splits: &mut [Option<Split>],
    ) -> Result<Vec<ColdNode>> {
        if self.is_nobody() {
            return Ok(Vec::new());
        }
        if splits.contains(&Some(Split::Hidden)) {
            return Err(Error::Setting {
                name: "cold start",
                value: "over these rows".into(),
                reason: "meets interactions that are hidden already; begin from a project that is not cold",
            });
        }
        let mut draw = Draw {
            table,
            lots,
            splits,
            keep: &self.keep,
            users: vec![None; table.users.len()],
            items: vec![None; table.items.len()],
        };
        if let Some(amount) = self.users {
            draw.sample_users(amount)?;
        }
        if let Some(amount) = self.items {
            draw.sample_items(amount)?;
        }
        draw.hide();
        Ok(draw.nodes())
    }
}

/// A sample being drawn: how many train interactions each node keeps, `None` for those that keep all.
struct Draw<'t> {
    table: &'t Table,
    lots: &'t Lots<'t>,
    splits: &'t mut [Option<Split>],
    keep: &'t [u32],
    users: Vec<Option<u32>>,
    items: Vec<Option<u32>>,
}

impl Draw<'_> {
    fn sample_users(&mut self, amount: Amount) -> Result<()> {
        let candidates = self.candidates(self.users.len(), |row| row.user, |_| true);
        let mut order = enough(candidates, "cold_users", amount)?;
        self.lots.users(Purpose::ColdNode, &mut order);
        order.truncate(amount.of(order.len()));
        self.lots.users(Purpose::ColdGroup, &mut order);
        for (user, &kept) in order.into_iter().zip(self.keep.iter().cycle()) {
            self.users[user as usize] = Some(kept);
        }
        Ok(())
    }

    fn sample_items(&mut self, amount: Amount) -> Result<()> {
        let stays_warm = |row: &Row| self.users[row.user as usize].is_none();
        let candidates = self.candidates(self.items.len(), |row| row.item, stays_warm);
        let mut order = enough(candidates, "cold_items", amount)?;
        self.lots.items(Purpose::ColdNode, &mut order);
        let wanted = amount.of(order.len());
        let mut chosen = self.sparing_cold_users(&order, wanted);
        self.lots.items(Purpose::ColdGroup, &mut chosen);
        for (item, &kept) in chosen.into_iter().zip(self.keep.iter().cycle()) {
            self.items[item as usize] = Some(kept);
        }
        Ok(())
    }

    /// Nodes of one side with a test interaction and enough train interactions, of those that `counts`.
    fn candidates(
        &self,
        nodes: usize,
        node: impl Fn(&Row) -> u32,
        counts: impl Fn(&Row) -> bool,
    ) -> Vec<u32> {
        let most = self.keep.iter().copied().max().unwrap_or(0);
        let mut trained = vec![0_u32; nodes];
        let mut tested = vec![false; nodes];
        for (row, split) in self.table.rows.iter().zip(&*self.splits) {
            let at = node(row) as usize;
            match split {
                Some(Split::Train) if counts(row) => trained[at] += 1,
                Some(Split::Test) => tested[at] = true,
                _ => {}
            }
        }
        (0..)
            .zip(trained.iter().zip(tested))
            .filter(|&(_, (&trained, tested))| tested && trained >= most)
            .map(|(at, _)| at)
            .collect()
    }

    /// The first of these items whose going leaves every cold user the number it keeps.
    fn sparing_cold_users(&self, order: &[u32], wanted: usize) -> Vec<u32> {
        let mut supply = vec![0_u32; self.users.len()];
        let mut cold_users_of: Vec<Vec<u32>> = vec![Vec::new(); self.items.len()];
        for (row, split) in self.table.rows.iter().zip(&*self.splits) {
            if *split == Some(Split::Train) && self.users[row.user as usize].is_some() {
                supply[row.user as usize] += 1;
                cold_users_of[row.item as usize].push(row.user);
            }
        }
        let mut chosen = Vec::new();
        for &item in order {
            if chosen.len() == wanted {
                break;
            }
            let users = &cold_users_of[item as usize];
            let spared = |&user: &u32| Some(supply[user as usize]) > self.users[user as usize];
            if users.iter().all(spared) {
                for &user in users {
                    supply[user as usize] -= 1;
                }
                chosen.push(item);
            }
        }
        chosen
    }

    fn hide(&mut self) {
        let is_cold = |row: &Row| {
            let (user, item) = (self.users[row.user as usize], self.items[row.item as usize]);
            (user.is_some(), item.is_some())
        };
        let (mut of_users, mut of_items) = (Vec::new(), Vec::new());
        for (at, row) in (0_u32..).zip(&self.table.rows) {
            let split = self.splits[at as usize];
            let (user, item) = is_cold(row);
            match split {
                Some(Split::Train) if user && !item => of_users.push(at),
                Some(Split::Train) if item && !user => of_items.push(at),
                _ => {}
            }
            if matches!(split, Some(Split::Train | Split::Valid)) && (user || item) {
                self.splits[at as usize] = Some(Split::Hidden);
            }
        }
        let Self {
            table,
            lots,
            splits,
            users,
            items,
            ..
        } = self;
        let mut keep = |rows: &mut [u32], kept: u32| {
            rows.sort_unstable_by(|&a, &b| lots.rows(Purpose::ColdEdge, a, b));
            for &at in rows.iter().take(kept as usize) {
                splits[at as usize] = Some(Split::Train);
            }
        };
        table.each_user(of_users, |rows| {
            let user = table.rows[rows[0] as usize].user;
            keep(rows, users[user as usize].unwrap_or(0));
        });
        table.each_item(of_items, |rows| {
            let item = table.rows[rows[0] as usize].item;
            keep(rows, items[item as usize].unwrap_or(0));
        });
    }

    fn nodes(&self) -> Vec<ColdNode> {
        let mut hidden = [vec![0_u32; self.users.len()], vec![0; self.items.len()]];
        for (row, split) in self.table.rows.iter().zip(&*self.splits) {
            if *split == Some(Split::Hidden) {
                hidden[0][row.user as usize] += 1;
                hidden[1][row.item as usize] += 1;
            }
        }
        let sides = [
            (Side::User, &self.users, &self.table.users),
            (Side::Item, &self.items, &self.table.items),
        ];
        let mut nodes = Vec::new();
        for ((kind, kept, ids), hidden) in sides.into_iter().zip(&hidden) {
            let first = nodes.len();
            nodes.extend((0..).zip(kept).filter_map(|(at, kept)| {
                Some(ColdNode {
                    kind,
                    id: ids.name(at).to_owned(),
                    kept: (*kept)?,
                    hidden: hidden[at as usize],
                })
            }));
            nodes[first..].sort_by(|a, b| a.id.cmp(&b.id));
        }
        nodes
    }
}

fn enough(candidates: Vec<u32>, name: &'static str, amount: Amount) -> Result<Vec<u32>> {
    if candidates.is_empty() {
        return Err(Error::Setting {
            name,
            value: amount.to_string(),
            reason: "finds nobody with a test interaction and as many train interactions as the largest number of cold_keep",
        });
    }
    Ok(candidates)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use because_core::Interaction;
    use proptest::prelude::*;

    use super::*;

    fn arbitrary() -> impl Strategy<Value = Vec<Interaction>> {
        let split = prop::sample::select(vec![
            Split::Train,
            Split::Train,
            Split::Train,
            Split::Valid,
            Split::Test,
        ]);
        prop::collection::btree_map((0_u8..12, 0_u8..12), split, 1..100).prop_map(|pairs| {
            pairs
                .into_iter()
                .map(|((user, item), split)| Interaction {
                    split: Some(split),
                    ..Interaction::new(user.to_string(), item.to_string())
                })
                .collect()
        })
    }

    type ByPair = BTreeMap<(String, String), Option<Split>>;

    fn run(cold: &ColdStart, rows: &[Interaction], seed: u64) -> Option<(ByPair, Vec<ColdNode>)> {
        let table = Table::of(rows).unwrap();
        let mut splits: Vec<_> = rows.iter().map(|row| row.split).collect();
        let nodes = cold
            .run(&table, &Lots::new(&table, seed), &mut splits)
            .ok()?;
        let pairs = rows
            .iter()
            .map(|row| (row.user.to_string(), row.item.to_string()));
        Some((pairs.zip(splits).collect(), nodes))
    }

    proptest! {
        #[test]
        fn a_cold_node_has_what_it_keeps_and_nobody_else_gains(
            rows in arbitrary(),
            seed: u64,
            users in prop::option::of(1_u64..6),
            items in prop::option::of(1_u64..6),
            keep in prop::collection::vec(0_u32..4, 1..4),
        ) {
            let cold = ColdStart {
                users: users.map(Amount::Count),
                items: items.map(Amount::Count),
                keep,
            };
            let Some((splits, nodes)) = run(&cold, &rows, seed) else { return Ok(()) };
            let mut backward = rows.clone();
            backward.reverse();
            prop_assert_eq!(&run(&cold, &backward, seed).unwrap(), &(splits.clone(), nodes.clone()));

            let is_cold = |kind, id: &str| nodes.iter().any(|node| node.kind == kind && node.id == id);
            for row in &rows {
                let (user, item) = (row.user.to_string(), row.item.to_string());
                let now = splits[&(user.clone(), item.clone())];
                let touched = is_cold(Side::User, &user) || is_cold(Side::Item, &item);
                prop_assert!(now == row.split || (touched && now == Some(Split::Hidden)));
                prop_assert!(row.split != Some(Split::Test) || now == row.split);
                prop_assert!(row.split != Some(Split::Valid) || (now == Some(Split::Hidden)) == touched);
            }
            let mut groups: BTreeMap<(Side, u32), usize> = BTreeMap::new();
            for node in &nodes {
                let of_node = |split| {
                    let pairs = splits.iter().filter(|((user, item), _)| match node.kind {
                        Side::User => *user == node.id,
                        Side::Item => *item == node.id,
                    });
                    pairs.filter(|(_, now)| **now == Some(split)).count()
                };
                prop_assert_eq!(of_node(Split::Train), node.kept as usize);
                prop_assert_eq!(of_node(Split::Hidden), node.hidden as usize);
                prop_assert!(of_node(Split::Test) > 0);
                prop_assert!(cold.keep.contains(&node.kept));
                *groups.entry((node.kind, node.kept)).or_default() += 1;
            }
            for kind in [Side::User, Side::Item] {
                let of_kind = nodes.iter().filter(|node| node.kind == kind).count();
                for (&(_, kept), &group) in groups.iter().filter(|((of, _), _)| *of == kind) {
                    let times = cold.keep.iter().filter(|&&keep| keep == kept).count();
                    let fair = of_kind * times / cold.keep.len();
                    prop_assert!(group <= fair + times && group + times >= fair);
                }
            }
        }
    }

    #[test]
    fn whoever_keeps_two_keeps_the_one_it_would_keep_alone() {
        let mut rows: Vec<_> = (0..9)
            .map(|item| Interaction {
                split: Some(Split::Train),
                ..Interaction::new("a", item.to_string())
            })
            .collect();
        rows[8].split = Some(Split::Test);
        let kept = |keep: u32| {
            let cold = ColdStart {
                users: Some(Amount::Count(1)),
                items: None,
                keep: vec![keep],
            };
            let (splits, nodes) = run(&cold, &rows, 3).unwrap();
            assert_eq!((nodes[0].kept, nodes[0].hidden), (keep, 8 - keep));
            let kept = splits
                .into_iter()
                .filter(|(_, split)| *split == Some(Split::Train));
            kept.map(|(pair, _)| pair.1).collect::<Vec<_>>()
        };
        let (one, two) = (kept(1), kept(2));
        assert!(two.contains(&one[0]));
        assert!(kept(0).is_empty());
    }

    #[test]
    fn nobody_to_make_cold_is_an_error_that_says_why() {
        let cold = ColdStart {
            users: Some(Amount::Count(1)),
            ..ColdStart::default()
        };
        let table = Table::of(&[Interaction::new("a", "x")]).unwrap();
        let failed = cold.run(&table, &Lots::new(&table, 0), &mut [Some(Split::Test)]);
        let said = failed.unwrap_err().to_string();
        assert!(
            said.starts_with("cold_users 1 finds nobody with a test"),
            "{said}"
        );
        assert!(cold.check().is_ok());
        let none = ColdStart {
            keep: vec![],
            ..cold
        };
        assert!(none.check().is_err());
    }
}
