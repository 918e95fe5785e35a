//! Imports under every flow and in every mishap; what they make of good and bad rows is told in `tests/it.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use because_core::{Interaction, Project, Rejected, jsonl};
use proptest::prelude::*;

use super::*;

fn written(out: &Project) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(out.root()).into_iter().flatten();
    let bytes = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().unwrap();
        (name, fs::read(entry.path()).unwrap())
    };
    entries.map(|entry| bytes(entry.unwrap())).collect()
}

fn rejected(out: &Project) -> Vec<Rejected> {
    jsonl::read_all(&out.path("rejected.jsonl")).unwrap()
}

fn import(format: Format, paths: &[PathBuf], threads: usize, block_bytes: usize) -> Import {
    let import = Import::new(format, paths).threads(threads);
    Import {
        block_bytes,
        ..import
    }
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

/// Rows good and bad in the right columns: user, item, rating, time, review.
fn arbitrary_row() -> impl Strategy<Value = [&'static str; 5]> {
    let id = || prop::sample::select(vec!["1", "2", "3", "a", "a", "", "ü", "null"]);
    let rating = prop::sample::select(vec!["1", "4", "5", "five", ""]);
    let time = prop::sample::select(vec!["1", "2", "3", "2020-01-01", "soon", ""]);
    let review = prop::sample::select(vec![
        "", "fine", "one\ntwo", "\"", "\"\n\"x", "\0", "\u{2028}",
    ]);
    (id(), id(), rating, time, review).prop_map(|(a, b, c, d, e)| [a, b, c, d, e])
}

fn as_json(row: &[&str; 5]) -> Vec<u8> {
    let names = ["user", "item", "rating", "time", "review"];
    let fields = names.iter().zip(row).filter(|(_, cell)| !cell.is_empty());
    let fields: serde_json::Map<_, _> = fields
        .map(|(name, cell)| ((*name).to_owned(), (*cell).into()))
        .collect();
    serde_json::to_vec(&fields).unwrap()
}

fn as_csv(row: &[&str; 5]) -> Vec<u8> {
    let mut out = csv::WriterBuilder::new().from_writer(Vec::new());
    out.write_record(row).unwrap();
    let mut row = out.into_inner().unwrap();
    row.pop();
    row
}

/// What befalls a row on its way.
#[derive(Debug, Clone)]
enum Mishap {
    None,
    /// Only so many of its bytes are there.
    Cut(usize),
    /// A byte is another one.
    Changed(usize, u8),
    Blank,
}

fn arbitrary_mishap() -> impl Strategy<Value = Mishap> {
    prop_oneof![
        12 => Just(Mishap::None),
        1 => (0_usize..40).prop_map(Mishap::Cut),
        1 => (0_usize..40, any::<u8>()).prop_map(|(at, byte)| Mishap::Changed(at, byte)),
        1 => Just(Mishap::Blank),
    ]
}

fn bytes(format: Format, rows: &[([&str; 5], Mishap)]) -> Vec<u8> {
    let mut lines = Vec::new();
    if format == Format::Csv {
        lines.push(b"user,item,rating,time,review".to_vec());
    }
    for (row, mishap) in rows {
        let mut line = match format {
            Format::Csv => as_csv(row),
            _ => as_json(row),
        };
        match *mishap {
            Mishap::None => {}
            Mishap::Cut(at) => line.truncate(at),
            Mishap::Changed(at, byte) => {
                let at = at % line.len();
                line[at] = byte;
            }
            Mishap::Blank => line.clear(),
        }
        lines.push(line);
    }
    lines.join(&b'\n')
}

proptest! {
    // Every case writes and syncs four projects.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_row_is_accounted_for_and_the_same_at_any_flow(
        files in prop::collection::vec(prop::collection::vec((arbitrary_row(), arbitrary_mishap()), 0..40), 1..4),
        is_csv: bool,
        is_packed: bool,
        min_rating in prop::option::of(1.0..5.0),
        k_core in prop::option::of(1_usize..3),
        block_bytes in 1_usize..60,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let format = if is_csv { Format::Csv } else { Format::Jsonl };
        let paths: Vec<PathBuf> = files.iter().enumerate().map(|(at, rows)| {
            let bytes = bytes(format, rows);
            let name = format!("{at}.{format}{}", if is_packed { ".gz" } else { "" });
            let path = folder.path().join(name);
            fs::write(&path, if is_packed { gz(&bytes) } else { bytes }).unwrap();
            path
        }).collect();
        let mut first = None;
        for (threads, block_bytes) in [(1, 1 << 20), (1, block_bytes), (2, block_bytes), (5, block_bytes)] {
            let out = Project::new(folder.path().join("out"));
            let import = import(format, &paths, threads, block_bytes).min_rating(min_rating).k_core(k_core);
            let summary = import.run(&out).map_err(|error| error.to_string());
            if let Ok(summary) = &summary {
                let kinds = summary.interactions + summary.users + summary.items + summary.references + summary.merged;
                prop_assert_eq!(summary.taken, kinds);
                prop_assert_eq!(summary.read, summary.taken + summary.rejected + summary.filtered.total());
                let lines = |name| jsonl::read_all::<serde_json::Value>(&out.path(name)).unwrap().len() as u64;
                prop_assert_eq!(summary.interactions, lines("interactions.jsonl"));
                prop_assert_eq!(summary.rejected, lines("rejected.jsonl"));
                prop_assert_eq!((summary.users, summary.items), (lines("users.jsonl"), lines("items.jsonl")));
                let of_files = summary.files.iter().map(|file| file.rejected).sum::<u64>();
                prop_assert_eq!(summary.rejected, of_files);
                let places: Vec<_> = rejected(&out).into_iter().map(|row| (row.file, row.line)).collect();
                prop_assert!(places.is_sorted_by(|a, b| a < b));
            }
            let all = (summary, written(&out));
            match &first {
                None => first = Some(all),
                Some(first) => prop_assert_eq!(first, &all),
            }
        }
    }
}

/// A row about an item: which, what it says of it, and which of that it says otherwise than the others.
type ItemRow = (u8, [bool; 5], [bool; 5]);

const ITEM_FIELDS: [&str; 5] = ["title", "description", "profile", "year", "price"];

fn item_fields(&(item, says, otherwise): &ItemRow) -> Vec<(&'static str, String)> {
    let fields = ITEM_FIELDS.iter().zip(says).zip(otherwise);
    fields
        .filter(|((_, says), _)| *says)
        .map(|((name, _), otherwise)| {
            let what = if otherwise { "other" } else { "usual" };
            (*name, format!("{what} {name} of {item}"))
        })
        .collect()
}

fn item_json(row: &ItemRow) -> String {
    let fields = item_fields(row);
    let fields: serde_json::Map<_, _> = fields
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.into()))
        .chain([("item".to_owned(), row.0.into())])
        .collect();
    serde_json::to_string(&fields).unwrap()
}

fn item_csv(row: &ItemRow) -> String {
    let fields = item_fields(row);
    let cell = |name: &&str| {
        let found = fields.iter().find(|(known, _)| known == name);
        found.map_or(String::new(), |(_, value)| value.clone())
    };
    let cells: Vec<_> = ITEM_FIELDS.iter().map(cell).collect();
    format!("{},{}", cells.join(","), row.0)
}

/// What an import of these files makes of them: what it wrote, by the names of the files, and what it says.
fn import_items(
    files: &[(bool, Vec<ItemRow>)],
    min_rating: Option<f64>,
    flow: (usize, usize),
) -> (BTreeMap<String, Vec<u8>>, ImportSummary) {
    let folder = tempfile::tempdir().unwrap();
    let mut paths = Vec::new();
    for (at, (is_csv, rows)) in files.iter().enumerate() {
        let (name, text) = if *is_csv {
            let rows: Vec<_> = rows.iter().map(item_csv).collect();
            let header = ITEM_FIELDS.join(",");
            (
                format!("{at}.csv"),
                format!("{header},item\n{}\n", rows.join("\n")),
            )
        } else {
            let rows: Vec<_> = rows.iter().map(item_json).collect();
            (format!("{at}.jsonl"), rows.join("\n"))
        };
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        paths.push(path);
    }
    let pairs = folder.path().join("pairs.csv");
    fs::write(&pairs, "user,item,rating\n1,0,5\n1,1,1\n").unwrap();
    paths.push(pairs);
    let out = Project::new(folder.path().join("out"));
    let import = import(Format::Csv, &paths, flow.0, flow.1).min_rating(min_rating);
    let mut summary = import.run(&out).unwrap();
    let mut written = written(&out);
    // The folder is another one each time.
    let root = format!("{}/", folder.path().display());
    for bytes in written.values_mut() {
        *bytes = String::from_utf8(std::mem::take(bytes))
            .unwrap()
            .replace(&root, "")
            .into();
    }
    for file in &mut summary.files {
        file.file = file.file.replace(&root, "");
    }
    for first in summary
        .reasons
        .iter_mut()
        .map(|reason| &mut reason.first)
        .chain(
            summary
                .conflicts
                .fields
                .iter_mut()
                .map(|field| &mut field.first),
        )
    {
        *first = first.replace(&root, "");
    }
    (written, summary)
}

fn lines(written: &BTreeMap<String, Vec<u8>>, name: &str) -> Vec<serde_json::Value> {
    let text = written.get(name).map(Vec::as_slice).unwrap_or_default();
    let lines = text.split(|&byte| byte == b'\n');
    lines
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

/// Items by their ids, with every field of theirs.
fn items_of(written: &BTreeMap<String, Vec<u8>>) -> BTreeMap<String, BTreeMap<String, String>> {
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let flat = |line: serde_json::Value| {
        let mut fields = BTreeMap::new();
        for (name, value) in line.as_object().unwrap() {
            if name == "attributes" {
                let inner = value.as_object().unwrap();
                fields.extend(
                    inner
                        .iter()
                        .map(|(name, value)| (name.clone(), text(value))),
                );
            } else if name != "item" {
                fields.insert(name.clone(), text(value));
            }
        }
        (text(&line["item"]), fields)
    };
    lines(written, "items.jsonl")
        .into_iter()
        .map(flat)
        .collect()
}

fn item_row(says_otherwise: bool) -> impl Strategy<Value = ItemRow> {
    let otherwise = prop::bool::weighted(if says_otherwise { 0.3 } else { 0.0 });
    let says = prop::array::uniform5(prop::bool::weighted(0.4));
    (0_u8..4, says, prop::array::uniform5(otherwise))
}

fn item_files(says_otherwise: bool) -> impl Strategy<Value = Vec<(bool, Vec<ItemRow>)>> {
    let rows = prop::collection::vec(item_row(says_otherwise), 1..12);
    prop::collection::vec((any::<bool>(), rows), 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn rows_about_one_item_complete_each_other_in_the_order_they_came(
        files in item_files(true),
        is_filtered: bool,
        block_bytes in 1_usize..60,
    ) {
        // The second item loses its only interaction by the filter, and all its rows go with it.
        let min_rating = is_filtered.then_some(3.0);
        let (written, summary) = import_items(&files, min_rating, (1, 1 << 20));
        for flow in [(1, block_bytes), (3, block_bytes)] {
            prop_assert_eq!(&import_items(&files, min_rating, flow), &(written.clone(), summary.clone()));
        }

        // The same by the book: every row against every row before it.
        let mut known: BTreeMap<u8, BTreeMap<&str, String>> = BTreeMap::new();
        let mut taken: BTreeMap<u8, Vec<Vec<(&str, String)>>> = BTreeMap::new();
        let (mut rejected, mut given_up) = (Vec::new(), Vec::new());
        for (file, (is_csv, rows)) in files.iter().enumerate() {
            for (line, row) in (1..).zip(rows) {
                let place = (file, line + u64::from(*is_csv));
                let (item, fields) = (row.0, item_fields(row));
                let before = taken.entry(item).or_default();
                if before.contains(&fields) {
                    rejected.push((place, "duplicate of"));
                    continue;
                }
                let node = known.entry(item).or_default();
                let adds = fields.iter().any(|(name, _)| !node.contains_key(name));
                let lost = fields.iter().filter(|(name, value)| node.get(name).is_some_and(|known| known != value));
                let lost: Vec<String> = lost.map(|(_, value)| value.clone()).collect();
                if !adds && !lost.is_empty() {
                    rejected.push((place, "contradicts"));
                    continue;
                }
                given_up.extend(lost);
                for (name, value) in &fields {
                    node.entry(name).or_insert_with(|| value.clone());
                }
                before.push(fields);
            }
        }
        let gone = |item: &u8| is_filtered && *item == 1;
        let expected: BTreeMap<String, BTreeMap<String, String>> = known
            .into_iter()
            .filter(|(item, _)| !gone(item))
            .map(|(item, fields)| {
                let fields = fields.into_iter().map(|(name, value)| (name.to_owned(), value));
                (item.to_string(), fields.collect())
            })
            .collect();
        prop_assert_eq!(items_of(&written), expected);

        let rows = |item: &u8| taken.get(item).map_or(0, Vec::len) as u64;
        let stays = taken.keys().filter(|item| !gone(item));
        prop_assert_eq!(summary.items + summary.merged, stays.map(rows).sum::<u64>());
        prop_assert_eq!(summary.filtered.total(), if is_filtered { 1 + rows(&1) } else { 0 });
        prop_assert_eq!(summary.taken, summary.interactions + summary.items + summary.merged);
        prop_assert_eq!(summary.read, summary.taken + summary.rejected + summary.filtered.total());
        let places: Vec<_> = lines(&written, "rejected.jsonl").iter().map(|row| {
            let (file, _) = row["file"].as_str().unwrap().split_once('.').unwrap();
            let reason = row["reason"].as_str().unwrap();
            let kind = if reason.starts_with("contradicts") { "contradicts" } else { "duplicate of" };
            ((file.parse().unwrap(), row["line"].as_u64().unwrap()), kind)
        }).collect();
        prop_assert_eq!(places, rejected);

        let conflicts = lines(&written, "conflicts.jsonl");
        let mut lost: Vec<_> = conflicts.iter().map(|row| row["lost"].as_str().unwrap().to_owned()).collect();
        lost.sort();
        given_up.sort();
        prop_assert_eq!(&lost, &given_up);
        prop_assert_eq!(summary.conflicts.count, conflicts.len() as u64);
        prop_assert_eq!(summary.conflicts.fields.iter().map(|field| field.count).sum::<u64>(), conflicts.len() as u64);
        for row in &conflicts {
            prop_assert_eq!(
                row["kept"].as_str().unwrap().split_once(' ').unwrap().1,
                row["lost"].as_str().unwrap().split_once(' ').unwrap().1
            );
        }
    }

    #[test]
    fn where_rows_agree_their_order_and_their_files_decide_nothing(
        files in item_files(false),
        at in any::<prop::sample::Index>(),
    ) {
        let (written, summary) = import_items(&files, None, (1, 1 << 20));
        let mut items: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for row in files.iter().flat_map(|(_, rows)| rows) {
            let fields = item_fields(row).into_iter().map(|(name, value)| (name.to_owned(), value));
            items.entry(row.0.to_string()).or_default().extend(fields);
        }
        prop_assert_eq!(items_of(&written), items);
        prop_assert_eq!(summary.conflicts.count, 0);
        prop_assert!(!written.contains_key("conflicts.jsonl"));

        let mut turned = files.clone();
        turned.rotate_left(at.index(files.len()));
        turned.iter_mut().for_each(|(is_csv, rows)| {
            *is_csv = !*is_csv;
            rows.reverse();
        });
        let one: Vec<ItemRow> = files.iter().flat_map(|(_, rows)| rows.clone()).collect();
        for other in [turned, vec![(false, one)]] {
            let (others, other) = import_items(&other, None, (2, 50));
            prop_assert_eq!(items_of(&others), items_of(&written));
            let counts = |summary: &ImportSummary| (summary.taken, summary.rejected, summary.items, summary.merged);
            prop_assert_eq!(counts(&other), counts(&summary));
        }
    }
}

/// An import of one file into a folder of its own.
fn run(name: &str, bytes: &[u8]) -> (tempfile::TempDir, Result<ImportSummary>, Project) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    let format = if name.contains(".csv") {
        Format::Csv
    } else {
        Format::Jsonl
    };
    let out = Project::new(folder.path().join("out"));
    let summary = Import::new(format, [path]).run(&out);
    (folder, summary, out)
}

#[test]
fn rows_stay_in_the_order_they_came_and_the_later_of_a_pair_in_its_place() {
    let text = "user,item,time\nb,x,1\na,y,1\nb,x,3\na,x,1\nb,x,2\n";
    let (_folder, summary, out) = run("a.csv", text.as_bytes());
    summary.unwrap();
    let rows: Vec<Interaction> = out.interactions().unwrap();
    let told: Vec<_> = rows
        .iter()
        .map(|row| (row.user.as_str(), row.item.as_str(), row.timestamp))
        .collect();
    assert_eq!(
        told,
        [
            ("a", "y", Some(1)),
            ("b", "x", Some(3)),
            ("a", "x", Some(1))
        ]
    );
    let rejected = rejected(&out);
    assert_eq!(
        rejected.iter().map(|row| row.line).collect::<Vec<_>>(),
        [2, 6]
    );
    assert!(
        rejected
            .iter()
            .all(|row| row.reason.ends_with("a.csv line 4"))
    );
    assert_eq!(rejected[0].record["time"], "1");
}

#[test]
fn a_bomb_in_a_packed_file_is_one_rejected_row() {
    let row = b"{\"user\":1,\"item\":2}\n";
    let bytes = [
        &row[..],
        &vec![b'x'; 100 << 20],
        b"\n{\"user\":1,\"item\":3}\n",
    ]
    .concat();
    for (name, packed) in [
        ("a.jsonl.gz", gz(&bytes)),
        ("a.jsonl.zst", zstd::encode_all(&bytes[..], 1).unwrap()),
    ] {
        assert!(packed.len() < 1 << 20);
        let (_folder, summary, out) = run(name, &packed);
        let summary = summary.unwrap();
        assert_eq!((summary.taken, summary.rejected), (2, 1));
        assert_eq!(rejected(&out)[0].line, 2);
        assert!(fs::metadata(out.path("rejected.jsonl")).unwrap().len() < 1000);
    }
}

#[test]
fn a_zero_byte_is_no_json_and_a_letter_in_a_cell() {
    let (_folder, summary, _) = run(
        "a.jsonl",
        b"{\"user\":1,\"item\":2}\n\0\0\0\n{\"user\":\0}\n",
    );
    let summary = summary.unwrap();
    assert_eq!((summary.taken, summary.rejected), (1, 2));
    let (_folder, summary, out) = run("a.csv", b"user,item,review\n1,2,a\0b\n");
    assert_eq!(summary.unwrap().taken, 1);
    let review = out.interactions().unwrap().remove(0).review;
    assert_eq!(review.as_deref(), Some("a\0b"));
}

#[test]
fn an_import_that_fails_leaves_nothing_behind() {
    let rows = "user,item\n".to_owned() + &"a,x\nb,y\n".repeat(10_000);
    let whole = gz(rows.as_bytes());
    let (_folder, summary, out) = run("cut.csv.gz", &whole[..whole.len() / 2]);
    let said = summary.unwrap_err();
    assert!(
        said.to_string().contains("cut.csv.gz: read failed"),
        "{said}"
    );
    assert!(said.is_bad_input());
    assert!(!out.root().exists());

    fs::create_dir(out.root()).unwrap();
    fs::write(out.path("interactions.jsonl"), "as it was").unwrap();
    let folder = out.root().parent().unwrap().to_owned();
    let good = folder.join("good.csv");
    fs::write(&good, rows).unwrap();
    for second in [folder.join("cut.csv.gz"), folder.join("gone.csv")] {
        let said = Import::new(Format::Csv, [&good, &second]).run(&out);
        let said = said.unwrap_err().to_string();
        assert!(said.contains(&*second.to_string_lossy()), "{said}");
        let files = written(&out);
        assert_eq!(files.len(), 1);
        assert_eq!(files["interactions.jsonl"], b"as it was");
    }
}

#[test]
fn a_file_that_goes_or_turns_into_a_folder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let read = |path: &Path| {
        let flow = Flow {
            threads: 1,
            block_bytes: 1 << 20,
        };
        let gathered = Gathered::read(Format::Jsonl, vec![path.to_owned()], flow, folder.path());
        gathered.err().unwrap().to_string()
    };
    let gone = folder.path().join("gone.jsonl");
    assert!(read(&gone).contains("gone.jsonl: open failed"));
    let turned = folder.path().join("turned.jsonl");
    fs::create_dir(&turned).unwrap();
    assert!(read(&turned).contains("turned.jsonl: open failed"));
}

#[test]
fn a_row_that_cannot_be_read_again_is_told_by_what_was_taken() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    let rows = "{\"user\":1,\"item\":2,\"time\":1,\"mood\":\"old\"}\n{\"user\":1,\"item\":3}\n\
                {\"user\":1,\"item\":2,\"time\":2}\n";
    for (change, expected) in [
        (
            rows.to_owned(),
            r#"{"user":1,"item":2,"time":1,"mood":"old"}"#,
        ),
        (
            rows.replace("\"item\":2,\"time\":1", "\"item\":9,\"time\":1"),
            r#"{"user":"1","item":"2","timestamp":1}"#,
        ),
        (String::new(), r#"{"user":"1","item":"2","timestamp":1}"#),
    ] {
        fs::write(&path, rows).unwrap();
        let flow = Flow {
            threads: 1,
            block_bytes: 1 << 20,
        };
        let (taken, mut rejects) =
            Gathered::read(Format::Jsonl, vec![path.clone()], flow, folder.path()).unwrap();
        fs::write(&path, change).unwrap();
        let out = folder.path().join("rejected.jsonl");
        let mut draft = Draft::of(out.clone()).unwrap();
        rejects.write(&taken, &mut draft).unwrap();
        draft.put_in_place().unwrap();
        let read: Vec<Rejected> = jsonl::read_all(&out).unwrap();
        assert_eq!(read.len(), 1);
        assert_eq!(read[0].record.to_string(), expected);
        assert_eq!(rejects.count(), 1);
    }
}
