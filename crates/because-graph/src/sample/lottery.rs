use because_core::Split;
use petgraph::graph::NodeIndex;

use super::EdgeLots;
use crate::{BipartiteGraph, Neighbor};

/// So many lots are put in order at once.
const LANES: usize = 16;
/// So many lots of a node with many neighbours are looked at again.
const POOL: usize = 64;

/// The train neighbours with the `count` smallest lots, in order: what [`super::smallest`] says without a key before the lot,
/// for what a run does most. Hardly any step depends on a comparison, which a processor could not foresee; what is rare is
/// left to the other.
pub(super) fn smallest(
    graph: &BipartiteGraph,
    node: NodeIndex,
    lots: EdgeLots,
    count: usize,
    sample: &mut Vec<Neighbor>,
) {
    let (places, neighbors) = graph.placed_neighbors(node, Split::Train);
    let wanted = count.min(places.len());
    let found = match wanted {
        0 => None,
        1..=SHOWN if neighbors.len() <= LANES => among_few(graph, lots, neighbors),
        1..=SHOWN => among_many(graph, lots, neighbors, wanted, 6)
            .or_else(|| among_many(graph, lots, neighbors, wanted, 20)),
        _ => None,
    };
    let Some(found) = found else {
        return super::smallest(graph, node, lots, count, sample, |_, _, _| ());
    };
    let side = graph.side(node);
    sample.clear();
    sample.extend(found[..wanted].iter().map(|&at| Neighbor {
        node: neighbors[at as usize],
        edge: graph.edge_at(side, places.start + at as usize),
    }));
}

/// Samples up to half of the lanes leave the other half for more candidates.
const SHOWN: usize = LANES / 2;

#[inline]
fn among_few(
    graph: &BipartiteGraph,
    lots: EdgeLots,
    neighbors: &[NodeIndex],
) -> Option<[u32; LANES]> {
    let mut drawn = [i16::MAX; LANES];
    for (lot, &neighbor) in drawn.iter_mut().zip(neighbors) {
        *lot = upper(lots.of(graph.key(neighbor)));
    }
    in_order(&drawn, neighbors.len())
}

fn among_many(
    graph: &BipartiteGraph,
    lots: EdgeLots,
    neighbors: &[NodeIndex],
    wanted: usize,
    more: u64,
) -> Option<[u32; LANES]> {
    // Lots are even, so about that many more than are wanted lie below this; with six, in one of thirty samples of eight
    // fewer than wanted do, and nothing is found here.
    let bound = (u64::MAX / neighbors.len() as u64).saturating_mul(wanted as u64 + more);
    let shift = bound.leading_zeros();
    let (mut drawn, mut places, mut count) = ([0; POOL], [0; POOL], 0);
    for (at, &neighbor) in (0_u32..).zip(neighbors) {
        let lot = lots.of(graph.key(neighbor));
        drawn[count % POOL] = upper(lot << shift);
        places[count % POOL] = at;
        count += usize::from(lot <= bound);
    }
    if count < wanted || count > POOL {
        return None;
    }
    let mut lanes: [i16; LANES] =
        std::array::from_fn(|at| if at < count { drawn[at] } else { i16::MAX });
    let mut of_lanes: [u32; LANES] = std::array::from_fn(|at| places[at]);
    let mut taken = count.min(LANES);
    let mut order = in_order(&lanes, taken)?;
    loop {
        let best: [usize; LANES] = order.map(|lane| lane as usize % LANES);
        let found = best.map(|lane| of_lanes[lane]);
        if taken == count {
            return Some(found);
        }
        // The best so far stay; as many more as there are lanes left come in.
        let more = (count - taken).min(LANES - wanted);
        let lots = best.map(|lane| lanes[lane]);
        lanes = [i16::MAX; LANES];
        lanes[..wanted].copy_from_slice(&lots[..wanted]);
        lanes[wanted..wanted + more].copy_from_slice(&drawn[taken..taken + more]);
        of_lanes = found;
        of_lanes[wanted..wanted + more].copy_from_slice(&places[taken..taken + more]);
        order = in_order(&lanes, wanted + more)?;
        taken += more;
    }
}

/// The uppermost bits of a lot as a signed number of the same order, of which a vector of any processor compares eight at
/// once.
fn upper(lot: u64) -> i16 {
    ((lot >> 48) as u16 ^ 1 << 15).cast_signed()
}

/// The places of the first `count` of these lots, in ascending order of the lots; `None` where two are alike in the bits that
/// are looked at. The rest of `lots` is at its highest; what comes behind `count` means nothing.
#[inline]
fn in_order(lots: &[i16; LANES], count: usize) -> Option<[u32; LANES]> {
    // Each goes where the number of smaller ones says. In the vectors of any processor, what is true is minus one.
    let mut minus_smaller = [0_i16; LANES];
    let mut twice = [0; 2 * LANES];
    twice[..LANES].copy_from_slice(lots);
    twice[LANES..].copy_from_slice(lots);
    for shift in 1..LANES {
        for at in 0..LANES {
            minus_smaller[at] -= i16::from(twice[at + shift] < lots[at]);
        }
    }
    let smaller = minus_smaller.map(|minus| -minus);
    let mut order = [0; LANES];
    for (at, &place) in (0..).zip(&smaller) {
        order[place as usize % LANES] = at;
    }
    // Different lots have 0, 1, 2 and so on below them, and each of the rest has all of them.
    let below = smaller.iter().sum::<i16>() as usize;
    let expected = count * count.saturating_sub(1) / 2 + (LANES - count) * count;
    (below == expected).then_some(order)
}

#[cfg(test)]
mod tests {
    use because_core::{Interaction, Side};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_quick_way_says_what_the_plain_way_says(
            degrees in prop::collection::vec(0_usize..120, 1..5),
            count in 0_usize..20,
            seed: u64,
        ) {
            let rows = (0..).zip(&degrees).flat_map(|(user, &degree)| {
                (0..degree).map(move |item| Interaction::new(format!("u{user}"), item.to_string()))
            });
            prop_assume!(degrees.iter().any(|&degree| degree > 0));
            let graph = BipartiteGraph::new(rows).unwrap();
            for node in [Side::User, Side::Item].into_iter().flat_map(|side| graph.nodes(side)) {
                let lots = EdgeLots::of_node(&graph, seed, 1, node);
                let (mut quick, mut plain) = (Vec::new(), Vec::new());
                smallest(&graph, node, lots, count, &mut quick);
                super::super::smallest(&graph, node, lots, count, &mut plain, |_, _, _| ());
                prop_assert_eq!(quick, plain);
            }
        }
    }

    #[test]
    fn lots_that_begin_alike_are_left_to_the_plain_way() {
        let mut lots = [i16::MAX; LANES];
        (lots[0], lots[1], lots[2]) = (upper(9 << 50), upper(0), upper(u64::MAX >> 1));
        assert_eq!(in_order(&lots, 3).unwrap()[..3], [1, 0, 2]);
        lots[1] = upper((9 << 50) + 1);
        assert_eq!(in_order(&lots, 3), None);
        lots[1] = upper(u64::MAX - 1);
        assert_eq!(
            in_order(&lots, 3),
            None,
            "nothing tells it from what is behind"
        );
        let falling = std::array::from_fn(|at| -(at as i16));
        let order = in_order(&falling, LANES).unwrap();
        assert!(order.into_iter().eq((0..LANES as u32).rev()));
    }
}
