use std::cmp::Ordering;

use crate::hash::{id_key, mix};
use crate::table::Table;

/// What a lot is drawn for: one seed gives different lots for different purposes, so that, say, the sampled users are not
/// also those whose interactions are tested first.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose {
    Split = 1,
    SampleUsers = 2,
    LimitPerUser = 3,
    ColdNode = 4,
    ColdGroup = 5,
    ColdEdge = 6,
    EdgeRank = 7,
}

/// Lots over the users, items and pairs of a table. They come from the ids and the seed, so neither the order of the rows
/// nor the number of threads changes one.
pub(crate) struct Lots<'t> {
    table: &'t Table,
    seed: u64,
    users: Vec<u64>,
    items: Vec<u64>,
}

impl<'t> Lots<'t> {
    pub(crate) fn new(table: &'t Table, seed: u64) -> Self {
        Self {
            table,
            seed,
            users: table.users.names().map(id_key).collect(),
            items: table.items.names().map(id_key).collect(),
        }
    }

    /// Users in the order of their lots.
    pub(crate) fn users(&self, purpose: Purpose, users: &mut [u32]) {
        let lot = |user: u32| mix(self.seed, &[purpose as u64, 0, self.users[user as usize]]);
        let name = |user: u32| self.table.users.name(user);
        users.sort_by_cached_key(|&user| (lot(user), name(user)));
    }

    /// Items in the order of their lots.
    pub(crate) fn items(&self, purpose: Purpose, items: &mut [u32]) {
        let lot = |item: u32| mix(self.seed, &[purpose as u64, 1, self.items[item as usize]]);
        let name = |item: u32| self.table.items.name(item);
        items.sort_by_cached_key(|&item| (lot(item), name(item)));
    }

    /// The lot of a row.
    pub(crate) fn row(&self, purpose: Purpose, at: u32) -> u64 {
        let row = &self.table.rows[at as usize];
        let (user, item) = (self.users[row.user as usize], self.items[row.item as usize]);
        mix(self.seed, &[purpose as u64, user, item])
    }

    /// Compares two rows by their lots. It is worked out at every comparison, which costs less than keeping ten million.
    pub(crate) fn rows(&self, purpose: Purpose, a: u32, b: u32) -> Ordering {
        let lots = self.row(purpose, a).cmp(&self.row(purpose, b));
        let rows = &self.table.rows;
        let (a, b) = (&rows[a as usize], &rows[b as usize]);
        let name = |user, item| (self.table.users.name(user), self.table.items.name(item));
        lots.then_with(|| name(a.user, a.item).cmp(&name(b.user, b.item)))
    }
}
