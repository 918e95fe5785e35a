use because_core::{ItemId, Split, UserId};
use petgraph::graph::{EdgeIndex, NodeIndex};

use super::columns::{Ratings, Times};
use super::names::Names;
use super::{Adjacency, BipartiteGraph};
use crate::table::Table;
use crate::{Error, Result};

const SPLITS: usize = Split::ALL.len();

impl BipartiteGraph {
    /// The graph of a table's rows, whatever their order, with a node for each of its ids; a row without a split counts as
    /// [`Split::Train`].
    ///
    /// # Errors
    /// When there are no rows, or the same user and item come twice.
    pub(crate) fn from_table(table: &Table) -> Result<Self> {
        let rows = &table.rows;
        if rows.is_empty() {
            return Err(Error::EmptyGraph);
        }
        // petgraph keeps the highest index for "none".
        if rows.len() >= u32::MAX as usize {
            return Err(Error::TooLarge {
                what: "interactions",
                count: rows.len(),
            });
        }
        let (names, [places_of_users, places_of_items]) = Names::new(&table.users, &table.items)?;
        let users = names.users();
        let ends = |row: &crate::table::Row| {
            let user = places_of_users[row.user as usize] as usize;
            let item = places_of_items[row.item as usize] as usize;
            let split = row.split.unwrap_or(Split::Train) as usize;
            (user, item, split)
        };

        let mut of_users = Groups::new(users);
        let mut of_items = Groups::new(names.len() - users);
        for row in rows {
            let (user, item, split) = ends(row);
            of_users.count(user, split);
            of_items.count(item - users, split);
        }
        of_users.sum();
        of_items.sum();

        // One walk over the rows puts each to its user; the few of each group are then sorted where they are.
        let mut neighbors = vec![NodeIndex::end(); rows.len()];
        let mut ratings = Ratings::for_rows(rows);
        let mut times = Times::for_rows(rows);
        for row in rows {
            let (user, item, split) = ends(row);
            let edge = of_users.take(user, split);
            neighbors[edge] = NodeIndex::new(item);
            ratings.set(edge, row.rating());
            times.set(edge, row.timestamp());
        }
        let starts = of_users.rewound();
        let mut order: Vec<(NodeIndex, u32)> = Vec::new();
        for group in starts.windows(2) {
            let edges = group[0] as usize..group[1] as usize;
            if neighbors[edges.clone()].is_sorted() {
                continue;
            }
            order.clear();
            order.extend(neighbors[edges.clone()].iter().copied().zip(0..));
            order.sort_unstable();
            for (neighbor, (item, _)) in neighbors[edges.clone()].iter_mut().zip(&order) {
                *neighbor = *item;
            }
            let from = |&(_, at): &(NodeIndex, u32)| at as usize;
            ratings.reorder(edges.clone(), order.iter().map(from));
            times.reorder(edges, order.iter().map(from));
        }
        let of_users = Adjacency { starts, neighbors };

        // The same from the users' side, which leaves every group of an item sorted by user.
        let mut neighbors = vec![NodeIndex::end(); rows.len()];
        let mut edges = vec![EdgeIndex::end(); rows.len()];
        let mut last_user = vec![usize::MAX; names.len() - users];
        for user in 0..users {
            for split in 0..SPLITS {
                for edge in of_users.range(user, split, split + 1) {
                    let item = of_users.neighbors[edge].index();
                    if std::mem::replace(&mut last_user[item - users], user) == user {
                        return Err(Error::DuplicatePair {
                            user: UserId::from(names.get(user)),
                            item: ItemId::from(names.get(item)),
                        });
                    }
                    let place = of_items.take(item - users, split);
                    neighbors[place] = NodeIndex::new(user);
                    edges[place] = EdgeIndex::new(edge);
                }
            }
        }
        Ok(Self {
            names,
            of_users,
            of_items: Adjacency {
                starts: of_items.rewound(),
                neighbors,
            },
            edges_of_items: edges,
            ratings,
            times,
        })
    }
}

/// Counts the members of each group of a node and a split, then says where each member goes.
struct Groups {
    starts: Vec<u32>,
}

impl Groups {
    fn new(nodes: usize) -> Self {
        Self {
            starts: vec![0; nodes * SPLITS + 1],
        }
    }

    fn count(&mut self, node: usize, split: usize) {
        self.starts[node * SPLITS + split] += 1;
    }

    fn sum(&mut self) {
        let mut sum = 0;
        for start in &mut self.starts {
            sum += std::mem::replace(start, sum);
        }
    }

    /// The next free place of a group.
    fn take(&mut self, node: usize, split: usize) -> usize {
        let next = &mut self.starts[node * SPLITS + split];
        *next += 1;
        *next as usize - 1
    }

    /// Where the groups begin again, once all of them are full: each then ends where the next one began.
    fn rewound(mut self) -> Vec<u32> {
        let last = self.starts.len() - 1;
        self.starts.copy_within(0..last, 1);
        self.starts[0] = 0;
        self.starts
    }
}

impl Adjacency {
    /// The places of a node's neighbours in the splits from one up to another.
    pub(super) fn range(&self, node: usize, from: usize, to: usize) -> std::ops::Range<usize> {
        let first = node * SPLITS;
        self.starts[first + from] as usize..self.starts[first + to] as usize
    }

    /// The node and the split of the group that a place lies in.
    pub(super) fn group_of(&self, place: usize) -> (usize, Split) {
        let group = self
            .starts
            .partition_point(|&start| start as usize <= place)
            - 1;
        (group / SPLITS, Split::ALL[group % SPLITS])
    }
}
