use std::io::{self, BufRead, Cursor, Read};
use std::path::{Path, PathBuf};

use super::parse::Parser;
use super::record::Fault;
use super::rule::Framing;
use crate::Result;

/// No row may take more memory than this, whatever a file does.
pub(super) const MAX_ROW_BYTES: usize = 8 << 20;
/// How much of an overlong row is kept to show.
const EXCERPT_BYTES: usize = 200;

/// One row of an input file, not yet read.
#[derive(Debug)]
pub(super) struct Row {
    /// Where it begins, counted from one.
    pub(super) line: u64,
    /// Without its line feed.
    pub(super) bytes: Vec<u8>,
    /// Why it is no whole row; it is then its beginning at most.
    pub(super) fault: Option<Fault>,
}

/// The rows of one file, one at a time. Blank lines and a header are not rows.
pub(super) struct Rows {
    path: PathBuf,
    lines: Lines,
    delimiter: Option<u8>,
}

impl Rows {
    /// Has the parser read the header, where there is one.
    pub(super) fn open(parser: &mut Parser, path: &Path) -> Result<Self> {
        let mut rows = Self {
            path: path.to_owned(),
            lines: Lines::new(parser.open(path)?),
            delimiter: match parser.framing() {
                Framing::Lines => None,
                Framing::Quoted { delimiter } => Some(delimiter),
            },
        };
        if parser.has_header()
            && let Some(header) = rows.next()?
        {
            if let Some(fault) = header.fault {
                return Err(crate::Error::Header {
                    path: path.to_owned(),
                    line: header.line,
                    reason: format!("the header is {}", fault.reason),
                });
            }
            parser.read_header(path, header.line, &header.bytes)?;
        }
        Ok(rows)
    }

    pub(super) fn next(&mut self) -> Result<Option<Row>> {
        let taken = self
            .lines
            .take(self.delimiter)
            .map_err(|source| because_core::Error::io("read", &self.path, source))?;
        Ok(taken.map(|taken| Row {
            line: taken.line,
            bytes: self.lines.row.clone(),
            fault: taken.fault,
        }))
    }
}

/// Splits bytes into rows of bounded size: physical lines, or CSV rows whose quoted fields may hold line feeds.
struct Lines {
    source: Box<dyn BufRead>,
    /// The row that was taken last, without its line feed.
    row: Vec<u8>,
    /// The physical line that comes next.
    line: u64,
}

struct Taken {
    line: u64,
    fault: Option<Fault>,
}

/// Where a byte stands in a CSV row; a quote opens a field only at its start, as in the `csv` crate.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    FieldStart,
    Plain,
    Quoted,
    QuoteInQuoted,
}

impl Place {
    fn after(self, byte: u8, delimiter: u8) -> Self {
        match (self, byte) {
            (Self::Quoted, b'"') => Self::QuoteInQuoted,
            (Self::Quoted, _) | (Self::FieldStart | Self::QuoteInQuoted, b'"') => Self::Quoted,
            (_, byte) if byte == delimiter => Self::FieldStart,
            _ => Self::Plain,
        }
    }
}

impl Lines {
    fn new(source: Box<dyn BufRead>) -> Self {
        Self {
            source,
            row: Vec::new(),
            line: 1,
        }
    }

    /// Takes the next row that is not blank; with a delimiter a CSV row, else a line.
    fn take(&mut self, delimiter: Option<u8>) -> io::Result<Option<Taken>> {
        loop {
            let line = self.line;
            let Some(fault) = self.take_any(delimiter)? else {
                return Ok(None);
            };
            if line == 1 && self.row.starts_with(b"\xef\xbb\xbf") {
                self.row.drain(..3);
            }
            if fault.is_some() || !self.row.trim_ascii().is_empty() {
                return Ok(Some(Taken { line, fault }));
            }
        }
    }

    fn take_any(&mut self, delimiter: Option<u8>) -> io::Result<Option<Option<Fault>>> {
        self.row.clear();
        let mut place = Place::FieldStart;
        let mut feeds = 0;
        let mut at_bom = self.line == 1;
        loop {
            let chunk = self.source.fill_buf()?;
            if chunk.is_empty() {
                if place == Place::Quoted {
                    return Ok(Some(Some(self.give_back_unclosed())));
                }
                self.line += feeds + 1;
                if self.row.is_empty() {
                    return Ok(None);
                }
                self.drop_carriage_return();
                return Ok(Some(None));
            }
            let room = (MAX_ROW_BYTES + 1 - self.row.len()).min(chunk.len());
            let mut end = None;
            match delimiter {
                None => end = chunk[..room].iter().position(|&byte| byte == b'\n'),
                Some(delimiter) => {
                    // A byte-order mark does not hide the quote behind it.
                    let skip = if at_bom && chunk.starts_with(b"\xef\xbb\xbf") {
                        3
                    } else {
                        0
                    };
                    for (at, &byte) in chunk[..room].iter().enumerate().skip(skip) {
                        if byte == b'\n' && place != Place::Quoted {
                            end = Some(at);
                            break;
                        }
                        let closes = [b'"', delimiter, b'\r'].contains(&byte);
                        if place == Place::QuoteInQuoted && feeds > 0 && !closes {
                            // The quote that seemed to close a field lines above opens the next one.
                            self.row.extend_from_slice(&chunk[..at]);
                            self.source.consume(at);
                            return Ok(Some(Some(self.give_back_unclosed())));
                        }
                        feeds += u64::from(byte == b'\n');
                        place = place.after(byte, delimiter);
                    }
                }
            }
            at_bom = false;
            self.row.extend_from_slice(&chunk[..end.unwrap_or(room)]);
            self.source.consume(end.map_or(room, |end| end + 1));
            if end.is_some() {
                self.line += feeds + 1;
                self.drop_carriage_return();
                return Ok(Some(None));
            }
            if self.row.len() > MAX_ROW_BYTES {
                if place == Place::Quoted && self.row.contains(&b'\n') {
                    return Ok(Some(Some(self.give_back_unclosed())));
                }
                return self.skip_overlong(feeds).map(Some);
            }
        }
    }

    fn drop_carriage_return(&mut self) {
        if self.row.last() == Some(&b'\r') {
            self.row.pop();
        }
    }

    /// A quote that nothing closes would swallow every row behind it. So only its own line is given up, and reading goes
    /// on with the next. In a quoted field of more than [`MAX_ROW_BYTES`] it does the same.
    fn give_back_unclosed(&mut self) -> Fault {
        let end = self.row.iter().position(|&byte| byte == b'\n');
        let end = end.unwrap_or(self.row.len());
        let rest = self.row.get(end + 1..).unwrap_or_default().to_vec();
        self.row.truncate(end);
        let behind = std::mem::replace(&mut self.source, Box::new(io::empty()));
        self.source = Box::new(Cursor::new(rest).chain(behind));
        self.line += 1;
        Fault::of("a quote opens on this line and nothing closes it", None)
    }

    fn skip_overlong(&mut self, feeds: u64) -> io::Result<Option<Fault>> {
        self.row.truncate(EXCERPT_BYTES);
        self.line += feeds + 1;
        loop {
            let chunk = self.source.fill_buf()?;
            let end = chunk.iter().position(|&byte| byte == b'\n');
            let used = end.map_or(chunk.len(), |end| end + 1);
            let done = end.is_some() || chunk.is_empty();
            self.source.consume(used);
            if done {
                return Ok(Some(Fault::of(
                    "longer than 8 MiB; only its beginning is kept",
                    None,
                )));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use serde_json::Value;

    use super::super::Format;
    use super::*;

    struct Read {
        line: u64,
        record: Value,
        fault: Option<Fault>,
    }

    fn rows(format: Format, name: &str, bytes: &[u8]) -> Vec<Read> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let mut parser = Parser::of(format, &path);
        let mut rows = Rows::open(&mut parser, &path).unwrap();
        std::iter::from_fn(|| rows.next().unwrap())
            .map(|row| Read {
                line: row.line,
                record: match row.fault {
                    Some(_) => String::from_utf8_lossy(&row.bytes).into(),
                    None => parser.raw(&row.bytes),
                },
                fault: row.fault,
            })
            .collect()
    }

    fn cells(row: &Read) -> Vec<&str> {
        let fields = row.record.as_object().unwrap();
        fields
            .values()
            .map(|value| value.as_str().unwrap())
            .collect()
    }

    #[test]
    fn quotes_line_feeds_and_the_mark_of_windows_are_read() {
        let text = "\u{feff}\"user\",item,review\r\n\r\nu,i,\"one\r\ntwo, \"\"three\"\"\"\r\nu,5\" nail,\r\n";
        let rows = rows(Format::Csv, "a.csv", text.as_bytes());
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0].record["user"], "u");
        assert_eq!(cells(&rows[0]), ["u", "i", "one\r\ntwo, \"three\""]);
        assert_eq!(cells(&rows[1]), ["u", "5\" nail", ""]);
        assert_eq!((rows[0].line, rows[1].line), (3, 5));
    }

    #[test]
    fn an_unclosed_quote_costs_its_own_line_only() {
        let rows = rows(
            Format::Csv,
            "a.csv",
            b"user,item\na,\"x\nb,y\nc,\"z\"\"\"\nd,\"v\nw,e",
        );
        let faults: Vec<_> = rows.iter().map(|row| row.fault.is_some()).collect();
        assert_eq!(faults, [true, false, false, true, false]);
        assert_eq!(rows[0].record, "a,\"x");
        assert_eq!(cells(&rows[2]), ["c", "z\""]);
        assert_eq!(
            rows.iter().map(|row| row.line).collect::<Vec<_>>(),
            [2, 3, 4, 5, 6]
        );
    }

    #[test]
    fn an_overlong_line_is_cut_short_and_the_next_is_read() {
        let mut bytes = vec![b'x'; MAX_ROW_BYTES + 1];
        bytes.extend_from_slice(b"\n{\"user\":1}\n");
        let found = rows(Format::Jsonl, "a.jsonl", &bytes);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].record.as_str().unwrap().len(), EXCERPT_BYTES);
        assert!(found[0].fault.as_ref().unwrap().reason.contains("8 MiB"));
        assert_eq!((found[1].line, &found[1].fault.is_none()), (2, &true));

        let mut bytes = b"user,item\na,\"".to_vec();
        bytes.resize(MAX_ROW_BYTES + 100, b'x');
        bytes.extend_from_slice(b"\"\nb,y\n");
        let found = rows(Format::Csv, "a.csv", &bytes);
        assert!(found[0].fault.as_ref().unwrap().reason.contains("8 MiB"));
        assert_eq!(cells(&found[1]), ["b", "y"]);
    }

    #[test]
    fn a_row_of_exactly_the_limit_is_read() {
        let mut bytes = b"{\"user\":\"".to_vec();
        bytes.resize(MAX_ROW_BYTES - 2, b'x');
        bytes.extend_from_slice(b"\"}");
        assert_eq!(bytes.len(), MAX_ROW_BYTES);
        assert!(rows(Format::Jsonl, "a.jsonl", &bytes)[0].fault.is_none());
    }

    #[test]
    fn tabs_separate_a_tsv() {
        let rows = rows(Format::Csv, "a.tsv", b"user\titem\na,b\tc\n");
        assert_eq!(cells(&rows[0]), ["a,b", "c"]);
    }

    #[test]
    fn a_header_that_names_a_column_twice_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.csv");
        std::fs::write(&path, "user,item,item\n").unwrap();
        let mut parser = Parser::of(Format::Csv, &path);
        let said = Rows::open(&mut parser, &path).err().unwrap().to_string();
        assert!(
            said.ends_with("a.csv: line 1: two columns are called \"item\"; rename one"),
            "{said}"
        );
    }

    proptest! {
        #[test]
        fn what_the_csv_crate_writes_is_read_back(
            table in prop::collection::vec(prop::array::uniform2("[a,\"\n\r é]{0,6}"), 0..12),
        ) {
            let mut out = csv::Writer::from_writer(Vec::new());
            out.write_record(["user", "item"]).unwrap();
            for row in &table {
                out.write_record(row).unwrap();
            }
            let found = rows(Format::Csv, "a.csv", &out.into_inner().unwrap());
            prop_assert_eq!(found.iter().map(cells).collect::<Vec<_>>(), table);
        }

        #[test]
        fn no_bytes_stop_the_reader(bytes in prop::collection::vec(prop::sample::select(b"a,\"\n\r{}\xff\xef\xbb\xbf:".to_vec()), 0..60)) {
            for format in [Format::Jsonl, Format::Csv] {
                let text = [b"user,item\n", &bytes[..]].concat();
                let found = rows(format, "a", &text);
                prop_assert!(found.is_sorted_by(|a, b| a.line < b.line));
            }
        }
    }
}
