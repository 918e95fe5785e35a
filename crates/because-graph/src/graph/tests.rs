use std::collections::BTreeMap;

use petgraph::algo;
use petgraph::graph::UnGraph;
use petgraph::visit::{
    Bfs, EdgeRef, GetAdjacencyMatrix, IntoEdgeReferences, IntoNodeReferences, NodeRef,
};
use proptest::prelude::*;

use super::*;

fn arbitrary() -> impl Strategy<Value = Vec<Interaction>> {
    let split = prop::option::of(prop::sample::select(Split::ALL.to_vec()));
    let rating = prop::option::of(prop::sample::select(vec![0.5, 1.0, -2.25]));
    let facts = (split, rating, prop::option::of(-9..9_i64));
    prop::collection::btree_map((0_u8..12, 0_u8..12), facts, 1..60).prop_map(|pairs| {
        pairs
            .into_iter()
            .rev()
            .map(|((user, item), (split, rating, timestamp))| Interaction {
                split,
                rating,
                timestamp,
                ..Interaction::new(user.to_string(), item.to_string())
            })
            .collect()
    })
}

/// The same graph as petgraph would keep it, with the edges of these splits.
fn peer(graph: &BipartiteGraph, splits: &[Split]) -> UnGraph<(), f64> {
    let mut peer = UnGraph::default();
    for _ in 0..graph.len(Side::User) + graph.len(Side::Item) {
        peer.add_node(());
    }
    for at in 0..graph.edge_count() {
        let edge = graph.edge(EdgeIndex::new(at));
        if splits.contains(&edge.weight.split) {
            peer.add_edge(edge.source, edge.target, cost(&edge.weight));
        }
    }
    peer
}

fn cost(weight: &EdgeWeight) -> f64 {
    3.0 + weight.rating.unwrap_or_default()
}

proptest! {
    #[test]
    fn both_sides_of_an_edge_agree(interactions in arbitrary()) {
        let graph = BipartiteGraph::new(&interactions).unwrap();
        prop_assert_eq!(graph.edge_count(), interactions.len());
        let mut seen = 0;
        for split in Split::ALL {
            for side in [Side::User, Side::Item] {
                for node in graph.nodes(side) {
                    prop_assert_eq!(graph.side(node), side);
                    let neighbors = graph.neighbors(node, split);
                    prop_assert!(neighbors.is_sorted_by_key(|&n| graph.id(n).to_owned()));
                    let edges = graph.edges(node, split);
                    prop_assert_eq!((edges.len(), graph.degree(node, split)), (neighbors.len(), neighbors.len()));
                    seen += neighbors.len();
                    for (edge, &neighbor) in edges.zip(neighbors) {
                        prop_assert_eq!((edge.source, edge.target, edge.weight.split), (node, neighbor, split));
                        prop_assert_eq!(graph.side(neighbor), side.other());
                        let back = graph.edges(neighbor, split).find(|back| back.index == edge.index);
                        let turned = Edge { source: neighbor, target: node, ..edge };
                        prop_assert_eq!(back, Some(turned));
                        let numbered = graph.edge(edge.index);
                        prop_assert_eq!(numbered, if side == Side::User { edge } else { turned });
                        let (user, item) = (numbered.source, numbered.target);
                        prop_assert_eq!(graph.edge_between(user, item), Some(numbered));
                        prop_assert_eq!(graph.split_of(user, item), Some(split));
                        prop_assert_eq!(graph.edge_between(item, user), None);
                    }
                }
            }
        }
        prop_assert_eq!(seen, 2 * interactions.len());
        let asked: BTreeMap<_, _> = interactions.iter().map(|i| ((i.user.as_str(), i.item.as_str()), i)).collect();
        for user in graph.nodes(Side::User) {
            for item in graph.nodes(Side::Item) {
                let expected = asked.get(&(graph.id(user), graph.id(item))).map(|row| Interaction {
                    split: Some(row.split.unwrap_or(Split::Train)),
                    ..(*row).clone()
                });
                let found = graph.edge_between(user, item).map(|edge| graph.interaction(edge.index));
                prop_assert_eq!(found, expected);
            }
        }
    }

    #[test]
    fn the_order_of_the_rows_does_not_matter(interactions in arbitrary()) {
        let forward = BipartiteGraph::new(&interactions).unwrap();
        let backward = BipartiteGraph::new(interactions.iter().rev()).unwrap();
        prop_assert!(forward.edge_references().eq(backward.edge_references()));
        let numbers = forward.edge_references().map(|edge| edge.index.index());
        prop_assert!(numbers.eq(0..interactions.len()), "edges are numbered in the order they come in");
    }

    #[test]
    fn every_node_is_found_where_it_stands(interactions in arbitrary()) {
        let graph = BipartiteGraph::new(interactions).unwrap();
        for side in [Side::User, Side::Item] {
            prop_assert_eq!(graph.nodes(side).len(), graph.len(side));
            for node in graph.nodes(side) {
                prop_assert_eq!(graph.index(&graph.node(node)), Some(node));
            }
        }
        prop_assert_eq!(graph.user("nobody"), None);
    }

    #[test]
    fn petgraphs_algorithms_say_the_same_as_on_petgraphs_own_graph(interactions in arbitrary()) {
        let graph = BipartiteGraph::new(interactions).unwrap();
        let first = NodeIndex::new(0);
        for split in [None, Some(Split::Train), Some(Split::Hidden)] {
            let (of, peer) = match split {
                None => (graph.whole(), peer(&graph, &Split::ALL)),
                Some(split) => (graph.of(split), peer(&graph, &[split])),
            };
            prop_assert_eq!(of.edge_references().count(), peer.edge_count());
            prop_assert_eq!(of.len(), peer.edge_count());
            prop_assert_eq!(algo::connected_components(of), algo::connected_components(&peer));
            prop_assert_eq!(
                algo::dijkstra(of, first, None, |edge| cost(edge.weight())),
                algo::dijkstra(&peer, first, None, |edge| *edge.weight())
            );
            prop_assert!(algo::is_bipartite_undirected(of, first));
            prop_assert_eq!(algo::is_cyclic_undirected(of), algo::is_cyclic_undirected(&peer));
            let ranks = |ranks: Vec<f64>| ranks.into_iter().map(|rank| (rank * 1e9).round()).collect::<Vec<_>>();
            prop_assert_eq!(ranks(algo::page_rank(of, 0.85, 20)), ranks(algo::page_rank(&peer, 0.85, 20)));
            let pieces = |mut pieces: Vec<Vec<NodeIndex>>| {
                pieces.iter_mut().for_each(|piece| piece.sort_unstable());
                pieces.sort_unstable();
                pieces
            };
            prop_assert_eq!(pieces(algo::tarjan_scc(of)), pieces(algo::tarjan_scc(&peer)));
            let reached = |mut walk: Bfs<_, _>, next: &dyn Fn(&mut Bfs<_, _>) -> Option<NodeIndex>| {
                let mut met: Vec<_> = std::iter::from_fn(|| next(&mut walk)).collect();
                met.sort_unstable();
                met
            };
            prop_assert_eq!(
                reached(Bfs::new(of, first), &|walk| walk.next(of)),
                reached(Bfs::new(&peer, first), &|walk| walk.next(&peer))
            );
            of.adjacency_matrix();
            for a in graph.whole().neighbors_of(first) {
                prop_assert_eq!(of.is_adjacent(&(), *a, first), peer.find_edge(*a, first).is_some());
                prop_assert_eq!(of.is_adjacent(&(), first, *a), peer.find_edge(*a, first).is_some());
            }
        }
        prop_assert_eq!(
            algo::dijkstra(&graph, first, None, |_| 1),
            algo::dijkstra(graph.whole(), first, None, |_| 1)
        );
        for node in graph.node_references() {
            prop_assert_eq!(*node.weight(), graph.side(node.id()));
        }
    }
}

#[test]
fn a_user_and_an_item_of_one_name_are_two_nodes() {
    let graph = BipartiteGraph::new([Interaction::new("1", "1")]).unwrap();
    assert_ne!(graph.user("1"), graph.item("1"));
    assert_eq!(graph.len(Side::User) + graph.len(Side::Item), 2);
}

#[test]
fn known_nodes_without_an_edge_stand_alone() {
    let graph = BipartiteGraph::with_nodes(
        [Interaction::new("a", "x")],
        ["b".into(), "a".into()],
        ["w".into()],
    )
    .unwrap();
    let users: Vec<_> = graph.nodes(Side::User).map(|node| graph.id(node)).collect();
    assert_eq!(users, ["a", "b"]);
    let lonely = graph.item("w").unwrap();
    assert!(graph.whole().neighbors_of(lonely).is_empty());
}

#[test]
fn what_is_no_graph_says_why() {
    let nothing: [Interaction; 0] = [];
    assert!(matches!(
        BipartiteGraph::new(nothing),
        Err(crate::Error::EmptyGraph)
    ));
    let held = Interaction {
        split: Some(Split::Test),
        ..Interaction::new("a", "x")
    };
    for twice in [Interaction::new("a", "x"), held] {
        let said = BipartiteGraph::new([Interaction::new("a", "x"), twice])
            .unwrap_err()
            .to_string();
        assert!(
            said.starts_with("user a, item x: two interactions"),
            "{said}"
        );
    }
}

#[test]
fn a_project_is_read_without_its_texts_and_reviews_are_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let project = Project::new(folder.path());
    let rows = "\u{feff}{\"user\":1,\"item\":\"x\",\"review\":\"sand \\\"and\\\" spice\",\"rating\":4.5}\n\n\
        {\"user\":\"b\",\"item\":\"x\",\"review\":\"held\",\"split\":\"test\"}\n\
        {\"user\":\"b\",\"item\":\"y\",\"review\":\"  \",\"more\":{}}\r\n\
        {\"user\":\"b\",\"item\":\"z\",\"review\":\"last\",\"timestamp\":7}";
    std::fs::write(project.path("interactions.jsonl"), rows).unwrap();
    std::fs::write(
        project.path("items.jsonl"),
        "{\"item\":\"w\",\"title\":\"W\"}\n",
    )
    .unwrap();
    let graph = BipartiteGraph::from_project(&project).unwrap();
    let ids = |side| graph.nodes(side).map(|n| graph.id(n)).collect::<Vec<_>>();
    assert_eq!(ids(Side::User), ["1", "b"]);
    assert_eq!(ids(Side::Item), ["w", "x", "y", "z"]);

    let check = |graph: &BipartiteGraph, reviews: &Reviews| {
        let found: Vec<_> = graph
            .edge_references()
            .map(|edge| {
                let read = reviews.interaction(graph, edge.index).unwrap();
                assert_eq!(reviews.has(edge.index), read.review.is_some());
                (read.item.to_string(), read.review, read.rating)
            })
            .collect();
        let row = |item: &str, review: Option<&str>, rating| {
            (item.to_owned(), review.map(str::to_owned), rating)
        };
        assert_eq!(
            found,
            [
                row("x", Some("sand \"and\" spice"), Some(4.5)),
                row("y", None, None),
                row("z", Some("last"), None),
                row("x", None, None),
            ]
        );
    };
    let reviews = Reviews::from_project(&project, &graph).unwrap();
    check(&graph, &reviews);
    check(
        &graph,
        &Reviews::of(&graph, project.interactions().unwrap()),
    );

    let packed = zstd::encode_all(rows.as_bytes(), 1).unwrap();
    std::fs::write(project.path("interactions.jsonl"), rows.replace("sand", "")).unwrap();
    let z = graph
        .edge_between(graph.user("b").unwrap(), graph.item("z").unwrap())
        .unwrap();
    let said = reviews
        .interaction(&graph, z.index)
        .unwrap_err()
        .to_string();
    assert!(said.contains("was changed while it was in use"), "{said}");

    std::fs::remove_file(project.path("interactions.jsonl")).unwrap();
    std::fs::write(project.path("interactions.jsonl.zst"), packed).unwrap();
    let graph = BipartiteGraph::from_project(&project).unwrap();
    check(&graph, &Reviews::from_project(&project, &graph).unwrap());
}

#[test]
fn a_malformed_line_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let project = Project::new(folder.path());
    let said = |rows: &str| {
        std::fs::write(project.path("interactions.jsonl"), rows).unwrap();
        BipartiteGraph::from_project(&project)
            .unwrap_err()
            .to_string()
    };
    let bare = "{\"user\":1,\"item\":2}\n\n";
    for (line, reason) in [
        ("{\"user\":1}", "line 3: missing field `item`"),
        ("{\"user\":1,\"item\":\"\"}", "line 3: invalid value"),
        (
            "{\"user\":1,\"item\":3,\"review\":5}",
            "line 3: invalid type: integer `5`, expected a string",
        ),
        (
            "{\"user\":1,\"item\":3,\"rating\":\"5\"}",
            "line 3: invalid type",
        ),
    ] {
        let said = said(&format!("{bare}{line}"));
        assert!(said.contains(reason), "{said}");
    }
    std::fs::remove_file(project.path("interactions.jsonl")).unwrap();
    let missing = BipartiteGraph::from_project(&project)
        .unwrap_err()
        .to_string();
    assert!(missing.contains("because import"), "{missing}");
}
