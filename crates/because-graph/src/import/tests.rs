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
                let kinds = summary.interactions + summary.users + summary.items + summary.references;
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
