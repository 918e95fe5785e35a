use because_core::Side;

use crate::table::{Row, Table};

/// The core number of every node of an undirected graph without repeated edges: the largest `k` for which the node lies
/// in a subgraph where everybody has at least `k` neighbours (peeling in order of degree, Batagelj and Zaversnik 2003).
/// An edge is in the k-core where both its ends have a core number of at least `k`.
pub(crate) fn core_numbers(nodes: usize, edges: &[(u32, u32)]) -> Vec<u32> {
    let (starts, neighbors) = adjacency(nodes, edges);
    let mut degree: Vec<usize> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();

    // Nodes sorted by current degree; `bin[d]` is where those of degree d begin, `place` is each node's position.
    let most = degree.iter().copied().max().unwrap_or(0);
    let mut bin = vec![0; most + 2];
    for &d in &degree {
        bin[d + 1] += 1;
    }
    for d in 1..bin.len() {
        bin[d] += bin[d - 1];
    }
    let mut next = bin.clone();
    let mut order = vec![0; nodes];
    let mut place = vec![0; nodes];
    for node in 0..nodes {
        place[node] = next[degree[node]];
        order[place[node]] = node;
        next[degree[node]] += 1;
    }

    for at in 0..nodes {
        let node = order[at];
        for &neighbor in &neighbors[starts[node]..starts[node + 1]] {
            let neighbor = neighbor as usize;
            if degree[neighbor] <= degree[node] {
                continue;
            }
            // One degree less: swap to the front of its bin and move the bin's start past it.
            let front = bin[degree[neighbor]];
            let displaced = order[front];
            order.swap(place[neighbor], front);
            place[displaced] = place[neighbor];
            place[neighbor] = front;
            bin[degree[neighbor]] += 1;
            degree[neighbor] -= 1;
        }
    }
    degree
        .into_iter()
        .map(|core| u32::try_from(core).unwrap_or(u32::MAX))
        .collect()
}

fn adjacency(nodes: usize, edges: &[(u32, u32)]) -> (Vec<usize>, Vec<u32>) {
    let mut starts = vec![0; nodes + 1];
    for &(a, b) in edges {
        starts[a as usize + 1] += 1;
        starts[b as usize + 1] += 1;
    }
    for node in 0..nodes {
        starts[node + 1] += starts[node];
    }
    let mut next = starts.clone();
    let mut neighbors = vec![0; edges.len() * 2];
    for &(a, b) in edges {
        for (from, to) in [(a, b), (b, a)] {
            neighbors[next[from as usize]] = to;
            next[from as usize] += 1;
        }
    }
    (starts, neighbors)
}

/// Which rows of a table lie in its (`k_users`, `k_items`)-core: the largest set of `alive` rows in which every user that has
/// a row has at least `k_users`, and every item at least `k_items`. There is one such set, whatever the order of the rows.
pub(crate) fn core_of(table: &Table, alive: &[bool], k_users: u32, k_items: u32) -> Vec<bool> {
    let mut kept = alive.to_vec();
    let mut users = RowsOf::new(table, alive, table.users.len(), |row| row.user);
    let mut items = RowsOf::new(table, alive, table.items.len(), |row| row.item);
    let mut thin: Vec<(Side, u32)> = Vec::new();
    thin.extend(users.below(k_users).map(|user| (Side::User, user)));
    thin.extend(items.below(k_items).map(|item| (Side::Item, item)));
    while let Some((side, node)) = thin.pop() {
        let (own, other, k) = match side {
            Side::User => (&mut users, &mut items, k_items),
            Side::Item => (&mut items, &mut users, k_users),
        };
        for &row in own.of(node) {
            if !std::mem::take(&mut kept[row as usize]) {
                continue;
            }
            let end = match side {
                Side::User => table.rows[row as usize].item,
                Side::Item => table.rows[row as usize].user,
            };
            let left = &mut other.left[end as usize];
            *left -= 1;
            // Only the step across the bound counts: who is already below it stands in the list.
            if *left + 1 == k {
                thin.push((side.other(), end));
            }
        }
    }
    kept
}

/// The rows of each node of one side, and how many of them are left.
struct RowsOf {
    starts: Vec<u32>,
    rows: Vec<u32>,
    left: Vec<u32>,
}

impl RowsOf {
    fn new(table: &Table, alive: &[bool], nodes: usize, end: impl Fn(&Row) -> u32) -> Self {
        let of_alive = || {
            (0_u32..)
                .zip(table.rows.iter().zip(alive))
                .filter(|(_, (_, alive))| **alive)
                .map(|(at, (row, _))| (at, end(row) as usize))
        };
        let mut left = vec![0_u32; nodes];
        for (_, node) in of_alive() {
            left[node] += 1;
        }
        let mut starts = Vec::with_capacity(nodes + 1);
        let mut sum = 0;
        starts.push(sum);
        for &count in &left {
            sum += count;
            starts.push(sum);
        }
        let mut next = starts.clone();
        let mut rows = vec![0; sum as usize];
        for (at, node) in of_alive() {
            rows[next[node] as usize] = at;
            next[node] += 1;
        }
        Self { starts, rows, left }
    }

    fn of(&self, node: u32) -> &[u32] {
        let [from, to] = [0, 1].map(|next| self.starts[node as usize + next] as usize);
        &self.rows[from..to]
    }

    fn below(&self, k: u32) -> impl Iterator<Item = u32> {
        (0..)
            .zip(&self.left)
            .filter(move |&(_, &left)| left < k)
            .map(|(node, _)| node)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// The definition itself: throw out whoever has too few neighbours until nobody is thrown out.
    fn by_definition(edges: &[(u32, u32)], k: usize) -> Vec<(u32, u32)> {
        let mut kept = edges.to_vec();
        loop {
            let degree = |node| {
                kept.iter()
                    .filter(|&&(a, b)| a == node || b == node)
                    .count()
            };
            let next: Vec<_> = kept
                .iter()
                .copied()
                .filter(|&(a, b)| degree(a) >= k && degree(b) >= k)
                .collect();
            if next.len() == kept.len() {
                return kept;
            }
            kept = next;
        }
    }

    /// The same for a table with a bound for each side, thrown out round by round.
    fn core_by_rounds(table: &Table, alive: &[bool], k_users: usize, k_items: usize) -> Vec<bool> {
        let mut kept = alive.to_vec();
        loop {
            let degree = |same: &dyn Fn(&Row) -> bool| {
                table
                    .rows
                    .iter()
                    .zip(&kept)
                    .filter(|(row, kept)| **kept && same(row))
                    .count()
            };
            let next: Vec<bool> = table
                .rows
                .iter()
                .zip(&kept)
                .map(|(row, &kept)| {
                    kept && degree(&|other| other.user == row.user) >= k_users
                        && degree(&|other| other.item == row.item) >= k_items
                })
                .collect();
            if next == kept {
                return kept;
            }
            kept = next;
        }
    }

    fn table(pairs: impl IntoIterator<Item = (u8, u8)>) -> Table {
        let mut table = Table::default();
        for (user, item) in pairs {
            let user = table.users.intern(&user.to_string()).unwrap();
            let item = table.items.intern(&item.to_string()).unwrap();
            table.rows.push(Row::new(user, item));
        }
        table
    }

    proptest! {
        #[test]
        fn the_core_of_a_table_is_maximal_stable_and_the_same_in_any_order(
            pairs in prop::collection::btree_map((0_u8..8, 0_u8..10), prop::bool::weighted(0.9), 0..70),
            (k_users, k_items) in (0_u32..6, 0_u32..6),
        ) {
            let forward = table(pairs.keys().copied());
            let alive: Vec<bool> = pairs.values().copied().collect();
            let core = core_of(&forward, &alive, k_users, k_items);
            prop_assert_eq!(&core, &core_by_rounds(&forward, &alive, k_users as usize, k_items as usize));
            prop_assert_eq!(&core_of(&forward, &core, k_users, k_items), &core);
            let backward = table(pairs.keys().rev().copied());
            let alive: Vec<bool> = alive.into_iter().rev().collect();
            let mut turned = core_of(&backward, &alive, k_users, k_items);
            turned.reverse();
            prop_assert_eq!(turned, core);
        }

        #[test]
        fn the_core_is_maximal_and_stable(
            pairs in prop::collection::vec((0_u32..8, 8_u32..18), 0..70),
            k in 1_usize..6,
        ) {
            let edges: Vec<_> = pairs.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
            let inside = |edges: &[(u32, u32)]| {
                let core = core_numbers(18, edges);
                let deep = |node: u32| core[node as usize] as usize >= k;
                edges.iter().copied().filter(|&(a, b)| deep(a) && deep(b)).collect::<Vec<_>>()
            };
            let kept = inside(&edges);
            prop_assert_eq!(&kept, &by_definition(&edges, k));
            prop_assert_eq!(&inside(&kept), &kept);
        }
    }

    #[test]
    fn no_edges_no_cores() {
        assert_eq!(core_numbers(2, &[]), [0, 0]);
        assert!(core_numbers(0, &[]).is_empty());
    }
}
