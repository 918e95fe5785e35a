use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use because_core::{Error as FileError, Split};

use super::blocks::{Block, Blocks, Span, Wholeness};
use super::parse::{Parser, SAMPLE_BYTES, SAMPLE_ROWS};
use super::record::{Fault, Record};
use super::{Format, line};
use crate::Result;

/// One file and how its rows are read.
pub(super) struct Source {
    /// Its place among the files.
    pub(super) file: u32,
    /// As it is called in `rejected.jsonl` and in the summary.
    pub(super) name: String,
    pub(super) parser: Parser,
}

/// A block of rows and what became of each.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) block: Block,
    /// One for each row of the block.
    pub(super) outcomes: Vec<Outcome>,
    /// What the outcomes point into.
    text: Vec<u8>,
}

/// A piece of [`Batch::text`].
type Piece = Range<u32>;

/// What a row turned out to be. Its line is written already, as it goes into a file.
pub(super) enum Outcome {
    /// Its line lacks the end that says the split.
    Interaction {
        ids: [Piece; 2],
        rating: Option<f64>,
        timestamp: Option<i64>,
        split: Option<Split>,
        line: Piece,
    },
    Reference {
        ids: [Piece; 2],
        line: Piece,
    },
    User {
        id: Piece,
        line: Piece,
    },
    Item {
        id: Piece,
        line: Piece,
    },
    Rejected {
        kind: &'static str,
        line: Piece,
    },
}

/// What a stream gives, in the order of the files and their rows.
pub(super) enum Step {
    Rows(Arc<Source>, Batch),
    /// Nothing more comes of this file.
    End(Arc<Source>),
}

/// How a stream is cut up; the same comes out of it in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flow {
    /// How many blocks are parsed at once.
    pub(super) threads: usize,
    pub(super) block_bytes: usize,
}

impl Batch {
    pub(super) fn bytes(&self, piece: &Piece) -> &[u8] {
        &self.text[piece.start as usize..piece.end as usize]
    }

    /// A row of the block as it stands in its file.
    pub(super) fn row(&self, row: usize) -> &[u8] {
        self.block.row(&self.block.rows()[row])
    }

    pub(super) fn id(&self, piece: &Piece) -> &str {
        // It was a text when it was put there.
        std::str::from_utf8(self.bytes(piece)).unwrap_or_default()
    }

    fn clear(&mut self, block_bytes: usize) {
        self.outcomes.clear();
        self.text.clear();
        if self.text.capacity() > block_bytes.saturating_mul(4) {
            self.text = Vec::new();
        }
    }

    fn parse(&mut self, source: &Source, parser: &mut Parser) {
        let Self {
            block,
            outcomes,
            text,
        } = self;
        for span in block.rows() {
            let row = block.row(span);
            let read = match fault(span) {
                Some(fault) => Err(fault),
                None => parser.parse(row),
            };
            outcomes.push(match read {
                Ok(record) => outcome(&record, text),
                Err(fault) => Outcome::Rejected {
                    kind: fault.kind,
                    line: put(text, |text| {
                        line::rejected(&source.name, span.line, fault, parser.raw(row), text);
                    }),
                },
            });
        }
    }
}

fn outcome(record: &Record<'_>, text: &mut Vec<u8>) -> Outcome {
    let id = |text: &mut Vec<u8>, id: &str| put(text, |text| text.extend_from_slice(id.as_bytes()));
    match record {
        Record::Interaction(row) => Outcome::Interaction {
            ids: [id(text, &row.user), id(text, &row.item)],
            rating: row.rating,
            timestamp: row.timestamp,
            split: row.split,
            line: put(text, |text| line::interaction(row, text)),
        },
        Record::Reference(row) => Outcome::Reference {
            ids: [id(text, row.user.as_str()), id(text, row.item.as_str())],
            line: put(text, |text| line::of(row, text)),
        },
        Record::User(row) => Outcome::User {
            id: id(text, row.user.as_str()),
            line: put(text, |text| line::of(row, text)),
        },
        Record::Item(row) => Outcome::Item {
            id: id(text, row.item.as_str()),
            line: put(text, |text| line::of(row, text)),
        },
    }
}

fn put(text: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) -> Piece {
    // A block is a few of the longest rows, and no row grows by more than a small factor.
    let place = |text: &Vec<u8>| u32::try_from(text.len()).unwrap_or(u32::MAX);
    let start = place(text);
    write(text);
    start..place(text)
}

/// Why a row cannot be read, where not all of it is there.
fn fault(span: &Span) -> Option<Fault> {
    let said = match span.wholeness {
        Wholeness::Whole => return None,
        Wholeness::Unclosed => "a quote opens on this line and nothing closes it",
        Wholeness::Overlong => "longer than 8 MiB; only its beginning is kept",
    };
    Some(Fault::of(said, None))
}

impl Source {
    /// Opens a file and finds out how its rows are read; whatever rows that took come first.
    pub(super) fn open(
        format: Format,
        file: u32,
        path: &Path,
        block_bytes: usize,
    ) -> Result<(Self, Vec<Block>, Blocks)> {
        let failed = |source| FileError::io("read", path, source);
        let mut parser = Parser::of(format, path);
        let mut blocks = Blocks::new(parser.open(path)?, parser.framing(), block_bytes);
        let mut first = Vec::new();
        let (mut count, mut bytes) = (0, 0);
        let wanted = match (parser.has_header(), parser.kind()) {
            (true, _) => 1,
            (false, None) => SAMPLE_ROWS,
            (false, Some(_)) => 0,
        };
        while count < wanted && bytes < SAMPLE_BYTES {
            let mut block = Block::default();
            if !blocks.next(&mut block).map_err(failed)? {
                break;
            }
            count += block.rows().len();
            bytes += block.len();
            first.push(block);
        }
        if parser.has_header() {
            if let Some(block) = first.first_mut()
                && let Some(header) = block.take_first()
            {
                if let Some(fault) = fault(&header) {
                    return Err(crate::Error::Header {
                        path: path.to_owned(),
                        line: header.line,
                        reason: format!("the header is {}", fault.reason),
                    });
                }
                parser.read_header(path, header.line, block.row(&header))?;
            }
        } else if parser.kind().is_none() {
            let rows = first.iter().flat_map(|block| {
                let whole = |span: &&Span| span.wholeness == Wholeness::Whole;
                block
                    .rows()
                    .iter()
                    .filter(whole)
                    .map(|span| block.row(span))
            });
            parser.decide_kind(rows);
        }
        let source = Self {
            file,
            name: path.display().to_string(),
            parser,
        };
        Ok((source, first, blocks))
    }
}

/// Reads files on one thread, parses their blocks on some, and hands over what comes of it on this one, in order. What is in
/// flight is bounded by the number of batches there are, so a slow taker makes the reader wait.
pub(super) fn run(
    format: Format,
    paths: &[PathBuf],
    flow: Flow,
    take: impl FnMut(&Step) -> Result<()>,
) -> Result<()> {
    let threads = flow.threads.max(1);
    let (blank, blanks) = channel();
    let (job, jobs) = channel();
    let (done, dones) = channel();
    for _ in 0..2 * threads + 1 {
        // The other end is held below.
        let _ = blank.send(Batch::default());
    }
    let jobs = Mutex::new(jobs);
    thread::scope(|scope| {
        // Dropped where this closure ends, which tells the threads that nobody listens any more.
        let (blank, dones) = (blank, dones);
        for _ in 0..threads {
            let (jobs, done) = (&jobs, done.clone());
            scope.spawn(move || work(jobs, &done));
        }
        let reader = Reader {
            format,
            block_bytes: flow.block_bytes,
            blanks,
            job,
            done,
            next: 0,
        };
        scope.spawn(move || reader.run(paths));
        in_order(&dones, &blank, flow.block_bytes, take)
    })
}

/// A batch on its way to a thread that parses it, with its place in the order.
type Job = (u64, Arc<Source>, Batch);

enum Done {
    Step(u64, Result<Step>),
    /// A thread has panicked, so an answer will be missing.
    Lost,
}

struct Reader {
    format: Format,
    block_bytes: usize,
    blanks: Receiver<Batch>,
    job: Sender<Job>,
    done: Sender<Done>,
    next: u64,
}

/// Nobody takes what is read any more.
struct Unwanted;

impl Reader {
    fn run(mut self, paths: &[PathBuf]) {
        let lost = Alarm(self.done.clone());
        for (file, path) in (0..).zip(paths) {
            match self.file(file, path) {
                Ok(Ok(())) => {}
                Ok(Err(Unwanted)) => break,
                Err(error) => {
                    let _ = self.done.send(Done::Step(self.next, Err(error)));
                    break;
                }
            }
        }
        drop(lost);
    }

    fn file(&mut self, file: u32, path: &Path) -> Result<Result<(), Unwanted>> {
        let (source, first, mut blocks) = Source::open(self.format, file, path, self.block_bytes)?;
        let source = Arc::new(source);
        let mut first = first.into_iter();
        loop {
            let Ok(mut batch) = self.blanks.recv() else {
                return Ok(Err(Unwanted));
            };
            match first.next() {
                Some(block) => batch.block = block,
                None => {
                    let more = blocks.next(&mut batch.block);
                    if !more.map_err(|source| FileError::io("read", path, source))? {
                        let end = Step::End(source);
                        let sent = self.done.send(Done::Step(self.next, Ok(end)));
                        self.next += 1;
                        // It was not used.
                        return Ok(sent.map_err(|_| Unwanted));
                    }
                }
            }
            if self
                .job
                .send((self.next, Arc::clone(&source), batch))
                .is_err()
            {
                return Ok(Err(Unwanted));
            }
            self.next += 1;
        }
    }
}

/// Parses batches until no more come.
fn work(jobs: &Mutex<Receiver<Job>>, done: &Sender<Done>) {
    let _lost = Alarm(done.clone());
    let mut last: Option<(Arc<Source>, Parser)> = None;
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((place, source, mut batch)) = job else {
            return;
        };
        let parser = match &mut last {
            Some((known, parser)) if Arc::ptr_eq(known, &source) => parser,
            _ => {
                let parser = source.parser.clone();
                &mut last.insert((Arc::clone(&source), parser)).1
            }
        };
        batch.parse(&source, parser);
        if done
            .send(Done::Step(place, Ok(Step::Rows(source, batch))))
            .is_err()
        {
            return;
        }
    }
}

/// Says so when its thread panics, so that nobody waits for what it had in hand.
struct Alarm(Sender<Done>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = self.0.send(Done::Lost);
        }
    }
}

fn in_order(
    dones: &Receiver<Done>,
    blank: &Sender<Batch>,
    block_bytes: usize,
    mut take: impl FnMut(&Step) -> Result<()>,
) -> Result<()> {
    let mut early = BTreeMap::new();
    let mut next = 0;
    for done in dones {
        let Done::Step(place, step) = done else {
            // The panic goes on once all threads have ended.
            break;
        };
        early.insert(place, step);
        while let Some(step) = early.remove(&next) {
            next += 1;
            let step = step?;
            take(&step)?;
            let mut batch = match step {
                Step::Rows(_, batch) => batch,
                Step::End(_) => Batch::default(),
            };
            batch.clear(block_bytes);
            // A reader that is through needs none.
            let _ = blank.send(batch);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    struct Row {
        line: u64,
        record: Value,
        kind: Option<&'static str>,
    }

    fn read(format: Format, name: &str, bytes: &[u8], flow: Flow) -> Result<Vec<Row>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let mut rows = Vec::new();
        let mut ends = 0;
        run(format, &[path], flow, |step| {
            let Step::Rows(source, batch) = step else {
                ends += 1;
                return Ok(());
            };
            assert_eq!(batch.outcomes.len(), batch.block.rows().len());
            for (span, outcome) in batch.block.rows().iter().zip(&batch.outcomes) {
                rows.push(Row {
                    line: span.line,
                    record: source.parser.raw(batch.block.row(span)),
                    kind: match outcome {
                        Outcome::Rejected { kind, .. } => Some(kind),
                        _ => None,
                    },
                });
            }
            Ok(())
        })?;
        assert_eq!(ends, 1);
        Ok(rows)
    }

    const USUAL: Flow = Flow {
        threads: 2,
        block_bytes: 1 << 20,
    };

    fn cells(row: &Row) -> Vec<&str> {
        let fields = row.record.as_object().unwrap();
        fields
            .values()
            .map(|value| value.as_str().unwrap())
            .collect()
    }

    #[test]
    fn a_header_and_its_rows_are_told_apart() {
        let text = "\u{feff}\"user\",item,review\r\n\r\nu,i,\"one\r\ntwo, \"\"three\"\"\"\r\nu,5\" nail,\r\n";
        let rows = read(Format::Csv, "a.csv", text.as_bytes(), USUAL).unwrap();
        assert_eq!(rows[0].record["user"], "u");
        assert_eq!(cells(&rows[0]), ["u", "i", "one\r\ntwo, \"three\""]);
        assert_eq!(cells(&rows[1]), ["u", "5\" nail", ""]);
        assert_eq!((rows[0].line, rows[1].line), (3, 5));
        let rows = read(Format::Csv, "a.tsv", b"user\titem\na,b\tc\n", USUAL).unwrap();
        assert_eq!(cells(&rows[0]), ["a,b", "c"]);
    }

    #[test]
    fn a_header_that_cannot_be_one_is_refused() {
        let said = |bytes: &[u8]| {
            let read = read(Format::Csv, "a.csv", bytes, USUAL);
            read.err().unwrap().to_string()
        };
        let twice = said(b"user,item,item\n");
        assert!(
            twice.ends_with("a.csv: line 1: two columns are called \"item\"; rename one"),
            "{twice}"
        );
        let open = said(b"user,\"item\nu,i\n");
        assert!(
            open.contains("line 1: the header is a quote opens"),
            "{open}"
        );
        let long = said(&vec![b'x'; super::super::blocks::MAX_ROW_BYTES + 1]);
        assert!(
            long.contains("line 1: the header is longer than 8 MiB"),
            "{long}"
        );
    }

    #[test]
    fn a_taker_that_stops_stops_the_stream() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        std::fs::write(&path, "{\"user\":1,\"item\":2}\n".repeat(10_000)).unwrap();
        let flow = Flow {
            threads: 3,
            block_bytes: 100,
        };
        let mut taken = 0;
        let stopped = run(Format::Jsonl, &[path], flow, |_| {
            taken += 1;
            match taken {
                5 => Err(crate::Error::EmptyGraph),
                _ => Ok(()),
            }
        });
        assert!(matches!(stopped, Err(crate::Error::EmptyGraph)));
        assert_eq!(taken, 5);
    }

    proptest! {
        #[test]
        fn what_the_csv_crate_writes_is_read_back(
            table in prop::collection::vec(prop::array::uniform2("[a,\"\n\r é]{0,6}"), 0..12),
            block_bytes in 1_usize..40,
        ) {
            let mut out = csv::Writer::from_writer(Vec::new());
            out.write_record(["user", "item"]).unwrap();
            for row in &table {
                out.write_record(row).unwrap();
            }
            let flow = Flow { threads: 2, block_bytes };
            let found = read(Format::Csv, "a.csv", &out.into_inner().unwrap(), flow).unwrap();
            prop_assert_eq!(found.iter().map(cells).collect::<Vec<_>>(), table);
        }

        #[test]
        fn no_bytes_stop_the_reader(
            bytes in prop::collection::vec(prop::sample::select(b"a,\"\n\r{}\xff\xef\xbb\xbf\0:".to_vec()), 0..60),
            block_bytes in 1_usize..40,
        ) {
            for format in [Format::Jsonl, Format::Csv] {
                let text = [b"user,item\n", &bytes[..]].concat();
                let found = read(format, "a", &text, Flow { threads: 2, block_bytes }).unwrap();
                prop_assert!(found.is_sorted_by(|a, b| a.line < b.line));
                let whole = read(format, "a", &text, Flow { threads: 1, block_bytes: 1 << 20 }).unwrap();
                let told = |rows: &[Row]| -> Vec<_> { rows.iter().map(|row| (row.line, row.kind)).collect() };
                prop_assert_eq!(told(&found), told(&whole));
            }
        }
    }
}
