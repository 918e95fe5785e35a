//! Imports as a user meets them: whole files in, a project directory out.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

#[path = "it/formats.rs"]
mod formats;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::PathBuf;

use because_core::{Interaction, ItemId, Project, Reference, Rejected, Side, Split, UserId, jsonl};
use because_graph::{
    BipartiteGraph, Format, GraphStats, Import, ImportSummary, ItemCosine, ItemScorer,
    MostRecentSampler, NeighborSampler, Ratio, RecordKind, SplitStrategy, TopRatedSampler,
    UniformSampler, check,
};
use proptest::prelude::*;

struct Desk {
    folder: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn out(&self) -> Project {
        Project::new(self.folder.path().join("out"))
    }

    fn import(&self, format: Format, name: &str, bytes: impl AsRef<[u8]>) -> ImportSummary {
        let path = self.file(name, bytes);
        Import::new(format, [path]).run(&self.out()).unwrap()
    }

    fn interactions(&self) -> Vec<Interaction> {
        self.out().interactions().unwrap()
    }

    fn rejected(&self) -> Vec<Rejected> {
        jsonl::read_all(&self.out().path("rejected.jsonl")).unwrap()
    }

    fn reasons(&self) -> Vec<(u64, String)> {
        self.rejected()
            .into_iter()
            .map(|row| (row.line, row.reason))
            .collect()
    }
}

fn balances(summary: &ImportSummary) -> bool {
    let kinds = summary.interactions + summary.users + summary.items + summary.references;
    summary.taken == kinds + summary.merged
        && summary.read == summary.taken + summary.rejected + summary.filtered.total()
}

#[test]
fn a_spiteful_jsonl_file_loses_nothing_but_its_bad_rows() {
    let desk = Desk::new();
    let mut text = Vec::new();
    for line in [
        "\u{feff}{\"user\":1,\"item\":\"good\",\"rating\":4,\"color\":\"red\"}",
        "not json",
        "{\"user\":1}",
        "{\"item\":1}",
        "{\"user\":null,\"item\":1}",
        "{\"user\":1,\"item\":\"b\",\"rating\":\"five\"}",
        "{\"user\":1,\"item\":\"b\",\"rating\":NaN}",
        "{\"user\":1,\"item\":\"b\",\"rating\":\"inf\"}",
        "{\"user\":1,\"item\":\"b\",\"rating\":1e999}",
        "{\"user\":1,\"item\":\"b\",\"split\":\"holdout\"}",
        "{\"user\":1,\"item\":\"good\"}",
        "[1, 2]",
        "{\"user\":{},\"item\":\"b\"}",
        "{\"user\":1,\"item\":\"b\",\"timestamp\":\"whenever\"}",
        "",
        "{\"user\":1,\"item\":\"b\",\"review\":true}",
        "{\"user\":1,\"item\":\"cut",
    ] {
        writeln!(text, "{line}").unwrap();
    }
    text.extend_from_slice(b"{\"user\":1,\"item\":\"\xff\"}\n");
    text.extend_from_slice(&[b"[".repeat(5000), b"\n".to_vec()].concat());
    text.extend_from_slice(b"{\"user\":2,\"item\":\"last\"}");
    let summary = desk.import(Format::Jsonl, "raw.jsonl", &text);
    assert!(balances(&summary));
    assert_eq!((summary.read, summary.taken), (19, 2));
    let reasons = desk.reasons();
    let starts = [
        (2, "unreadable JSON: expected ident (column 2)"),
        (3, "missing item"),
        (4, "missing user"),
        (5, "missing user"),
        (6, "rating \"five\" is not a number"),
        (7, "unreadable JSON: "),
        (8, "rating \"inf\" is not a finite number"),
        (9, "unreadable JSON: number out of range"),
        (10, "split \"holdout\" is not train, valid, test or hidden"),
        (11, "duplicate of "),
        (12, "not a JSON object"),
        (13, "user {} is not an id"),
        (14, "timestamp \"whenever\" is not a time"),
        (16, "review true is not a text"),
        (17, "unreadable JSON: EOF while parsing a string"),
        (18, "not UTF-8 from byte "),
        (19, "unreadable JSON: recursion limit exceeded"),
    ];
    assert_eq!(reasons.len(), starts.len());
    for ((line, reason), (expected, start)) in reasons.iter().zip(starts) {
        assert_eq!(*line, expected);
        assert!(reason.starts_with(start), "line {line}: {reason}");
    }
    let rejected = desk.rejected();
    assert!(rejected[9].reason.ends_with("raw.jsonl line 1"));
    assert_eq!(rejected[1].record, serde_json::json!({"user": 1}));
    assert_eq!(rejected[15].record, "{\"user\":1,\"item\":\"\u{fffd}\"}");
    assert_eq!(rejected[4].field.as_deref(), Some("rating"));
    assert_eq!(summary.reasons[0].reason, "unreadable JSON");
    assert_eq!(summary.reasons[0].count, 5);
    assert!(summary.reasons[0].first.ends_with("raw.jsonl line 2"));
}

#[test]
fn a_spiteful_csv_file_loses_nothing_but_its_bad_rows() {
    let desk = Desk::new();
    let mut text = b"\xef\xbb\xbfuserId,movieId,rating,reviewText\r\n".to_vec();
    for row in [
        "1,good,4.5,\"two\nlines, \"\"quoted\"\"\"",
        "1,short",
        "1,long,3,fine,extra",
        "1,bad,five,",
        ",lost,3,",
        "1,,3,",
        "1,nan,NaN,",
        "1,good,2,again",
        ",,,",
        "\"2\",open,3,\"never closed",
    ] {
        text.extend_from_slice(row.as_bytes());
        text.extend_from_slice(b"\r\n");
    }
    text.extend_from_slice(b"2,\xfe\xff,1,\r\n3,end,,");
    let summary = desk.import(Format::Csv, "ratings.csv", &text);
    assert!(balances(&summary));
    assert_eq!((summary.read, summary.taken), (12, 2));
    let expected: [(u64, &str); 10] = [
        (4, "2 fields where the header has 4"),
        (5, "5 fields where the header has 4"),
        (6, "rating \"five\" is not a number"),
        (7, "missing user"),
        (8, "missing item"),
        (9, "rating \"NaN\" is not a finite number"),
        (10, "duplicate of "),
        (11, "missing user"),
        (12, "a quote opens on this line and nothing closes it"),
        (13, "not UTF-8 from byte 1 on"),
    ];
    for ((line, reason), (at, start)) in desk.reasons().into_iter().zip(expected) {
        assert!(
            line == at && reason.starts_with(start),
            "line {line}: {reason}"
        );
    }
    let interactions = desk.interactions();
    assert_eq!(
        interactions[0].review.as_deref(),
        Some("two\nlines, \"quoted\"")
    );
    assert_eq!(
        (interactions[1].user.as_str(), interactions[1].rating),
        ("3", None)
    );
}

#[test]
fn a_line_without_end_takes_no_memory() {
    let desk = Desk::new();
    let mut text = b"{\"user\":1,\"item\":1,\"review\":\"".to_vec();
    text.resize(40 << 20, b'x');
    text.extend_from_slice(b"\"}\n{\"user\":1,\"item\":2}\n");
    let summary = desk.import(Format::Jsonl, "long.jsonl", &text);
    assert_eq!((summary.taken, summary.rejected), (1, 1));
    let rejected = desk.rejected();
    assert_eq!(
        rejected[0].reason,
        "longer than 8 MiB; only its beginning is kept"
    );
    assert!(rejected[0].record.as_str().unwrap().len() < 1000);
}

#[test]
fn of_one_pair_the_later_is_kept_and_the_other_is_listed_whole() {
    let desk = Desk::new();
    let text = r#"{"user":"a","item":"x","time":1,"rating":1,"mood":"old"}
{"user":"a","item":"x","rating":2}
{"user":"a","item":"x","time":9,"rating":3}
{"user":"a","item":"x","time":5,"rating":4}
{"user":"b","item":"x","rating":5}
{"user":"b","item":"x","time":9,"rating":6}
"#;
    let summary = desk.import(Format::Jsonl, "raw.jsonl", text);
    assert!(balances(&summary));
    let ratings: Vec<_> = desk.interactions().iter().map(|i| i.rating).collect();
    assert_eq!(ratings, [Some(3.0), Some(5.0)]);
    let rejected = desk.rejected();
    let lines: Vec<_> = rejected.iter().map(|row| row.line).collect();
    assert_eq!(lines, [1, 2, 4, 6]);
    assert!(
        rejected[..3]
            .iter()
            .all(|row| row.reason.ends_with("raw.jsonl line 3"))
    );
    assert_eq!(
        rejected[0].record["mood"], "old",
        "read again from the file"
    );
}

#[test]
fn kinds_are_told_from_columns_and_a_project_imports_itself() {
    let desk = Desk::new();
    let paths = [
        desk.file("a.jsonl", "{\"uid\":1,\"iid\":2,\"split\":\"trn\"}\n{\"uid\":1,\"iid\":3,\"split\":\"tst\"}\n"),
        desk.file("b.jsonl", "{\"user\":1,\"profile\":\"p\",\"age\":3}\n{\"user\":9}\n{\"user\":9}\n"),
        desk.file("c.jsonl", "{\"item\":2,\"name\":\"Two\",\"year\":null,\"genres\":[\"a\"]}\n{\"item\":8}\n"),
        desk.file("d.jsonl", "{\"user\":1,\"item\":3,\"explanation\":\"because\",\"graph_split\":\"trn\"}\n{\"user\":5,\"item\":3,\"explanation\":\"\"}\n{\"user\":7,\"item\":3,\"explanation\":\"so\"}\n"),
    ];
    let summary = Import::new(Format::Jsonl, paths).run(&desk.out()).unwrap();
    assert!(balances(&summary));
    let kinds: Vec<_> = summary.files.iter().filter_map(|file| file.kind).collect();
    assert_eq!(
        kinds,
        [
            RecordKind::Interaction,
            RecordKind::User,
            RecordKind::Item,
            RecordKind::Reference
        ]
    );
    assert_eq!(summary.split.by, SplitStrategy::Rows);
    assert_eq!(
        (summary.users, summary.items, summary.references),
        (2, 2, 2)
    );
    assert_eq!(
        (summary.only_in_users_file, summary.only_in_items_file),
        (1, 1)
    );
    assert_eq!(
        (
            summary.users_only_in_interactions,
            summary.items_only_in_interactions
        ),
        (0, 1)
    );
    assert_eq!(summary.references_without_interaction, 1);
    assert_eq!(desk.reasons().len(), 2);
    assert_eq!(
        fs::read_to_string(desk.out().path("items.jsonl")).unwrap(),
        "{\"item\":\"2\",\"title\":\"Two\",\"attributes\":{\"genres\":[\"a\"]}}\n{\"item\":\"8\"}\n"
    );
    let graph = BipartiteGraph::from_project(&desk.out()).unwrap();
    let stats = GraphStats::of(&graph);
    assert_eq!(
        (
            stats.users,
            stats.whole.isolated_users,
            stats.whole.isolated_items
        ),
        (2, 1, 1)
    );
    assert_eq!(
        check(&desk.out())
            .unwrap()
            .finding("reference_without_interaction")
            .unwrap()
            .count,
        1
    );

    let again = Project::new(desk.folder.path().join("again"));
    Import::new(Format::Jsonl, [desk.out().root()])
        .run(&again)
        .unwrap();
    for name in [
        "interactions.jsonl",
        "users.jsonl",
        "items.jsonl",
        "references.jsonl",
    ] {
        let bytes = |project: &Project| fs::read(project.path(name)).unwrap();
        assert_eq!(bytes(&desk.out()), bytes(&again), "{name}");
    }
}

#[test]
fn packed_files_are_read() {
    let desk = Desk::new();
    let rows = "user,item\na,x\na,y\n";
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(rows.as_bytes()).unwrap();
    let gz = gz.finish().unwrap();
    let summary = desk.import(Format::Csv, "a.csv.gz", &gz);
    assert_eq!(summary.taken, 2);
    let zst = zstd::encode_all(rows.replace(',', "\t").as_bytes(), 1).unwrap();
    assert_eq!(desk.import(Format::Csv, "a.tsv.zst", zst).taken, 2);
    let cut = desk.file("cut.csv.gz", &gz[..gz.len() - 9]);
    let failed = Import::new(Format::Csv, [cut])
        .run(&desk.out())
        .unwrap_err();
    assert!(
        failed.to_string().contains("cut.csv.gz: read failed"),
        "{failed}"
    );
}

#[test]
fn splits_in_the_rows_are_kept_only_when_all_have_one_and_none_is_asked() {
    let desk = Desk::new();
    let rows = |last: &str| {
        (0..9)
            .map(|n| format!("{{\"user\":\"u\",\"item\":{n},\"split\":\"test\"}}\n"))
            .chain([format!("{{\"user\":\"u\",\"item\":9{last}}}\n")])
            .collect::<String>()
    };
    let whole = desk.file("whole.jsonl", rows(",\"split\":\"train\""));
    let partly = desk.file("partly.jsonl", rows(""));
    let kept = Import::new(Format::Jsonl, [&whole])
        .run(&desk.out())
        .unwrap();
    assert_eq!(
        (kept.splits.train, kept.splits.test, kept.splits_replaced),
        (1, 9, 0)
    );
    for import in [
        Import::new(Format::Jsonl, [&partly]),
        Import::new(Format::Jsonl, [&whole]).split(SplitStrategy::Random),
    ] {
        let drawn = import.run(&desk.out()).unwrap();
        assert_eq!(
            (drawn.splits.train, drawn.splits.valid, drawn.splits.test),
            (8, 1, 1)
        );
        assert_eq!(
            (drawn.split.by, drawn.split.ratio, drawn.split.seed),
            (SplitStrategy::Random, Some(Ratio::default()), Some(0))
        );
        assert!(drawn.splits_replaced >= 9);
    }
    let untimed = Import::new(Format::Jsonl, [&whole]).split(SplitStrategy::Time);
    let said = untimed.run(&desk.out()).unwrap_err().to_string();
    assert!(said.starts_with("user u, item 0: no timestamp"), "{said}");
}

#[test]
fn filters_take_the_nodes_they_empty_and_leave_the_cold_ones() {
    let desk = Desk::new();
    let ratings = desk.file(
        "r.csv",
        "user,item,rating\na,x,5\na,y,5\nb,x,5\nb,y,5\nc,z,5\nd,x,1\n",
    );
    let items = desk.file("i.csv", "item,title\nx,X\nz,Z\ncold,C\n");
    let users = desk.file("u.csv", "user\na\nd\n");
    let summary = Import::new(Format::Csv, [ratings, items, users])
        .min_rating(3.0)
        .k_core(2)
        .run(&desk.out())
        .unwrap();
    assert!(balances(&summary));
    assert_eq!(
        (summary.filtered.min_rating, summary.filtered.k_core),
        (2, 2)
    );
    let kept: Vec<_> = desk
        .out()
        .items()
        .unwrap()
        .into_iter()
        .map(|row| row.item)
        .collect();
    assert_eq!(kept, ["x".into(), "cold".into()]);
    assert_eq!(desk.out().users().unwrap().len(), 1);
}

#[test]
fn what_cannot_be_imported_says_where_and_what_to_do() {
    let desk = Desk::new();
    let out = desk.out();
    let said = |import: &Import| import.run(&out).unwrap_err().to_string();
    let csv = |name: &str, text: &str| Import::new(Format::Csv, [desk.file(name, text)]);

    let headless = said(&csv("a.csv", "1,2,3\n4,5,6\n"));
    assert!(
        headless.contains("a.csv: line 1: no column is a user or an item (found: 1, 2, 3)"),
        "{headless}"
    );
    let empty = said(&csv("empty.csv", ""));
    assert!(
        empty.starts_with("no interaction left: 0 rows read"),
        "{empty}"
    );
    let only_items = said(&csv("items.csv", "item\nx\n"));
    assert!(
        only_items.contains("1 items") && only_items.contains("have a user and an item"),
        "{only_items}"
    );
    let strict = said(&csv("r.csv", "user,item,rating\na,x,1\n").min_rating(3.0));
    assert!(
        strict.contains("1 below or without min_rating") && strict.contains("loosen"),
        "{strict}"
    );
    let references = said(&csv("e.csv", "user,item,explanation\na,x,why\n"));
    assert!(
        references.contains("add a file of interactions"),
        "{references}"
    );
    let endless = said(&csv("n.csv", "user,item\na,x\n").min_rating(f64::NAN));
    assert!(
        endless.contains("min_rating NaN is not a finite number"),
        "{endless}"
    );
    let broken = said(&csv("b.csv", "user,item\n,x\n"));
    assert!(
        broken.contains("missing user (first at ") && broken.contains("rejected.jsonl"),
        "{broken}"
    );
    assert_eq!(
        desk.rejected().len(),
        1,
        "the rejected rows are there to look at"
    );

    fs::create_dir_all(out.root()).unwrap();
    fs::write(out.path("interactions.jsonl"), "{\"user\":1,\"item\":2}\n").unwrap();
    let over = said(&Import::new(Format::Jsonl, [out.root()]));
    assert!(over.contains("would be read and written over"), "{over}");
}

#[test]
fn references_of_an_earlier_import_do_not_stay() {
    let desk = Desk::new();
    let pairs = desk.file("p.jsonl", "{\"user\":1,\"item\":2}\n");
    let explained = desk.file(
        "e.jsonl",
        "{\"user\":1,\"item\":2,\"explanation\":\"so\"}\n",
    );
    Import::new(Format::Jsonl, [&pairs, &explained])
        .run(&desk.out())
        .unwrap();
    let expected = Reference {
        user: "1".into(),
        item: "2".into(),
        explanation: "so".to_owned(),
        graph_split: None,
    };
    assert_eq!(desk.out().references().unwrap(), [expected]);
    Import::new(Format::Jsonl, [&pairs])
        .run(&desk.out())
        .unwrap();
    assert!(desk.out().references().unwrap().is_empty());
}

fn arbitrary_row() -> impl Strategy<Value = String> {
    let id = prop::sample::select(vec!["1", "2", "3", "\"a\"", "null", "\"\"", "1.5"]);
    let rating = prop::sample::select(vec!["1", "4", "5", "\"five\"", "null"]);
    let time = prop::sample::select(vec!["1", "2", "null", "\"soon\"", "\"2020-01-01\""]);
    (id.clone(), id, rating, time, 0_u8..12).prop_map(|(user, item, rating, time, shape)| {
        match shape {
            0 => "{\"user\":".to_owned(),
            1 => format!("{{\"user\":{user},\"age\":{rating}}}"),
            2 => format!("{{\"item\":{item},\"title\":{rating}}}"),
            3 => String::new(),
            4 => format!("{{\"user\":{user},\"item\":{item},\"explanation\":{time}}}"),
            _ => format!("{{\"user\":{user},\"item\":{item},\"rating\":{rating},\"time\":{time}}}"),
        }
    })
}

proptest! {
    #[test]
    fn every_row_is_taken_rejected_or_filtered(
        files in prop::collection::vec(prop::collection::vec(arbitrary_row(), 0..30), 1..4),
        min_rating in prop::option::of(1.0..5.0),
        k_core in prop::option::of(1_usize..3),
    ) {
        let desk = Desk::new();
        let mut rows = 0;
        let mut paths = Vec::new();
        for (at, file) in files.iter().enumerate() {
            rows += file.iter().filter(|line| !line.is_empty()).count() as u64;
            paths.push(desk.file(&format!("{at}.jsonl"), file.join("\n")));
        }
        let import = Import::new(Format::Jsonl, paths).min_rating(min_rating).k_core(k_core);
        match import.run(&desk.out()) {
            Err(error) => prop_assert!(matches!(error, because_graph::Error::NoInteractions { .. }), "{error}"),
            Ok(summary) => {
                prop_assert!(balances(&summary));
                prop_assert_eq!(summary.read, rows);
                prop_assert_eq!(summary.rejected, desk.rejected().len() as u64);
                let written = desk.interactions();
                prop_assert_eq!(summary.interactions, written.len() as u64);
                prop_assert_eq!(summary.splits.total(), written.len());
                let pairs: BTreeSet<_> = written.iter().map(|i| (i.user.clone(), i.item.clone())).collect();
                prop_assert_eq!(pairs.len(), written.len());
                prop_assert!(desk.rejected().is_sorted_by(|a, b| (&a.file, a.line) < (&b.file, b.line)));
                let graph = BipartiteGraph::new(written).unwrap();
                for side in [Side::User, Side::Item] {
                    for node in graph.nodes(side) {
                        let degree: usize = Split::ALL.iter().map(|&split| graph.degree(node, split)).sum();
                        prop_assert!(degree >= k_core.unwrap_or(1));
                    }
                }
                let first: BTreeMap<_, _> = written_files(&desk);
                import.run(&desk.out()).unwrap();
                prop_assert_eq!(first, written_files(&desk), "the same again");
            }
        }
    }
}

fn written_files(desk: &Desk) -> BTreeMap<String, Vec<u8>> {
    fs::read_dir(desk.out().root())
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).unwrap())
        })
        .collect()
}

proptest! {
    /// Whoever learns, learns from a hidden interaction as much as from one that is not there.
    #[test]
    fn hidden_interactions_are_as_good_as_none_and_still_no_negatives(
        rows in prop::collection::btree_map((0_u8..9, 0_u8..9), prop::sample::select(Split::ALL.to_vec()), 1..60),
        seed: u64,
    ) {
        let row = |(&(user, item), &split): (&(u8, u8), &Split)| Interaction {
            split: Some(split),
            rating: Some(f64::from(user % 5)),
            timestamp: Some(i64::from(item)),
            ..Interaction::new(user.to_string(), item.to_string())
        };
        let whole = BipartiteGraph::new(rows.iter().map(row)).unwrap();
        let without: Vec<_> = rows.iter().filter(|(_, split)| **split != Split::Hidden).map(row).collect();
        prop_assume!(!without.is_empty());
        let ends = |graph: &BipartiteGraph, side| graph.nodes(side).map(|n| graph.id(n).to_owned()).collect::<Vec<_>>();
        let bare = BipartiteGraph::with_nodes(
            without,
            ends(&whole, Side::User).into_iter().map(UserId::from),
            ends(&whole, Side::Item).into_iter().map(ItemId::from),
        ).unwrap();
        for user in whole.nodes(Side::User) {
            let (one, other) = (ItemCosine::new(&whole), ItemCosine::new(&bare));
            prop_assert_eq!(one.scores(user), other.scores(user));
        }
        let samplers: [&dyn NeighborSampler; 3] =
            [&UniformSampler { seed }, &MostRecentSampler { seed }, &TopRatedSampler { seed }];
        for sampler in samplers {
            for node in whole.nodes(Side::User).chain(whole.nodes(Side::Item)) {
                let nodes = |graph| sampler.sample(graph, node, 1, 4).into_iter().map(|n| n.node).collect::<Vec<_>>();
                prop_assert_eq!(nodes(&whole), nodes(&bare));
            }
        }
        for (pair, split) in &rows {
            let (user, item) = (whole.user(&pair.0.to_string()).unwrap(), whole.item(&pair.1.to_string()).unwrap());
            prop_assert_eq!(whole.split_of(user, item), Some(*split), "what is known is no negative");
        }
    }
}
