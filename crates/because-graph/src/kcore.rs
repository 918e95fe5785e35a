use because_core::Side;
use petgraph::graph::NodeIndex;
use petgraph::visit::NodeCount;

use crate::SplitGraph;
use crate::table::{Row, Table};

/// The core number of every node: the largest `k` for which the node lies in a subgraph where everybody has at least `k`
/// neighbours (peeling in order of degree, Batagelj and Zaversnik 2003). An edge is in the k-core where both its ends have
/// a core number of at least `k`.
pub(crate) fn core_numbers(graph: SplitGraph<'_>) -> Vec<u32> {
    let nodes = graph.node_count();
    let neighbors = |node: usize| graph.neighbors_of(NodeIndex::new(node));
    let mut degree: Vec<u32> = (0..nodes)
        .map(|node| neighbors(node).len() as u32)
        .collect();

    // Nodes sorted by current degree; `bin[d]` is where those of degree d begin, `place` is each node's position.
    let most = degree.iter().copied().max().unwrap_or(0) as usize;
    let mut bin = vec![0_u32; most + 2];
    for &d in &degree {
        bin[d as usize + 1] += 1;
    }
    for d in 1..bin.len() {
        bin[d] += bin[d - 1];
    }
    let mut next = bin.clone();
    let mut order = vec![0_u32; nodes];
    let mut place = vec![0_u32; nodes];
    for node in 0..nodes {
        let at = &mut next[degree[node] as usize];
        place[node] = *at;
        order[*at as usize] = node as u32;
        *at += 1;
    }

    for at in 0..nodes {
        let node = order[at] as usize;
        let own = degree[node];
        for neighbor in neighbors(node).iter().map(|neighbor| neighbor.index()) {
            let d = degree[neighbor];
            if d <= own {
                continue;
            }
            // One degree less: swap to the front of its bin and move the bin's start past it.
            let front = &mut bin[d as usize];
            let displaced = order[*front as usize];
            let from = place[neighbor];
            order[*front as usize] = neighbor as u32;
            order[from as usize] = displaced;
            place[displaced as usize] = from;
            place[neighbor] = *front;
            *front += 1;
            degree[neighbor] = d - 1;
        }
    }
    degree
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
    use because_core::{Interaction, Split};
    use petgraph::visit::IntoEdgeReferences;
    use proptest::prelude::*;

    use super::*;
    use crate::{BipartiteGraph, Edge};

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
            pairs in prop::collection::btree_set((0_u8..8, 0_u8..10), 1..70),
            k in 1_usize..6,
        ) {
            let graph = BipartiteGraph::from_table(&table(pairs)).unwrap();
            let ends = |edge: Edge| (edge.source.index() as u32, edge.target.index() as u32);
            let edges: Vec<_> = graph.edge_references().map(ends).collect();
            let inside = |edges: &[(u32, u32)], core: &[u32]| {
                let deep = |node: u32| core[node as usize] as usize >= k;
                edges.iter().copied().filter(|&(a, b)| deep(a) && deep(b)).collect::<Vec<_>>()
            };
            let kept = inside(&edges, &core_numbers(graph.whole()));
            prop_assert_eq!(&kept, &by_definition(&edges, k));
            if !kept.is_empty() {
                let left = kept.iter().map(|&(a, b)| (a as u8, b as u8));
                let again = BipartiteGraph::from_table(&table(left)).unwrap();
                prop_assert!(core_numbers(again.whole()).iter().all(|&core| core as usize >= k));
            }
        }

        #[test]
        fn a_core_with_equal_bounds_is_the_k_core(
            pairs in prop::collection::btree_set((0_u8..8, 0_u8..10), 1..70),
            k in 0_u32..6,
        ) {
            let table = table(pairs);
            let graph = BipartiteGraph::from_table(&table).unwrap();
            let core = core_numbers(graph.whole());
            let kept = core_of(&table, &vec![true; table.rows.len()], k, k);
            for (row, kept) in table.rows.iter().zip(kept) {
                let user = graph.user(table.users.name(row.user)).unwrap();
                let item = graph.item(table.items.name(row.item)).unwrap();
                prop_assert_eq!(kept, core[user.index()].min(core[item.index()]) >= k);
            }
        }
    }

    #[test]
    fn a_split_has_cores_of_its_own() {
        let row = |user: &str, item: &str, split| Interaction {
            split: Some(split),
            ..Interaction::new(user, item)
        };
        let graph = BipartiteGraph::new([
            row("a", "x", Split::Train),
            row("a", "y", Split::Train),
            row("b", "x", Split::Train),
            row("b", "y", Split::Test),
        ])
        .unwrap();
        assert_eq!(core_numbers(graph.whole()), [2, 2, 2, 2]);
        assert_eq!(core_numbers(graph.train()), [1, 1, 1, 1]);
        assert_eq!(core_numbers(graph.of(Split::Test)), [0, 1, 0, 1]);
        assert_eq!(core_numbers(graph.of(Split::Valid)), [0; 4]);
    }

    #[test]
    fn no_rows_no_core() {
        assert!(core_of(&Table::default(), &[], 5, 5).is_empty());
    }
}
