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

    proptest! {
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
