use std::path::Path;

use serde_json::Value;

use super::line;
use super::pairs::Origin;
use super::record::Fault;
use super::sort::{Sorted, SortedReader, Sorter};
use super::spool::{Spool, SpoolReader, Spooled};
use crate::Result;

/// Rows that were not taken, on disk. Most come in the order they were read; what some of those are duplicates of is known only at
/// the end. Rows of nodes are refused when all have been read, and sorted in among the others.
pub(super) struct Refusals {
    lines: Spool,
    late: Sorter,
    kinds: Vec<&'static str>,
}

/// A row that was not taken.
pub(super) struct Refused<'a> {
    pub(super) origin: Origin,
    pub(super) kind: &'static str,
    /// The place of the interaction it gave way to, which goes into the line at `head`.
    pub(super) kept: Option<u32>,
    pub(super) head: usize,
    pub(super) line: &'a [u8],
}

/// The kind of fault of a row whose pair was taken from another, or whose node is known from one that says the same.
pub(super) const DUPLICATE: &str = "duplicate";
/// The kind of fault of a row about a node that only says otherwise what is known.
pub(super) const CONTRADICTION: &str = "contradicts another row";
const NOTHING_KEPT: u32 = u32::MAX;
/// File, line, kind, what was kept, where that goes in the line, length of the line.
const HEADER_BYTES: usize = 4 + 8 + 4 + 4 + 4 + 4;

impl Refusals {
    pub(super) fn in_folder(folder: &Path) -> Result<Self> {
        Ok(Self {
            lines: Spool::in_folder(folder)?,
            late: Sorter::in_folder(folder)?,
            kinds: Vec::new(),
        })
    }

    /// A row with its whole line.
    pub(super) fn push(&mut self, origin: Origin, kind: &'static str, line: &[u8]) -> Result<()> {
        self.put(origin, kind, NOTHING_KEPT, 0, line)
    }

    /// A row that gave way to the row at that line of that file.
    pub(super) fn push_duplicate_of(
        &mut self,
        origin: Origin,
        file: &str,
        first_file: &str,
        first_line: u64,
        record: Value,
    ) -> Result<()> {
        let fault = Fault {
            field: None,
            kind: DUPLICATE,
            reason: format!("duplicate of {first_file} line {first_line}"),
        };
        let mut text = Vec::new();
        line::rejected(file, origin.line, fault, record, &mut text);
        self.push(origin, DUPLICATE, &text)
    }

    /// A row that gave way to the interaction in this place, or to what that gives way to.
    pub(super) fn push_duplicate(
        &mut self,
        origin: Origin,
        file: &str,
        kept: u32,
        record: &Value,
    ) -> Result<()> {
        let mut text = b"{\"file\":".to_vec();
        line::json(&file, &mut text);
        text.extend_from_slice(b",\"line\":");
        line::json(&origin.line, &mut text);
        text.extend_from_slice(b",\"reason\":");
        let head = text.len();
        text.extend_from_slice(b",\"record\":");
        line::json(record, &mut text);
        text.extend_from_slice(b"}\n");
        self.put(origin, DUPLICATE, kept, head, &text)
    }

    fn put(
        &mut self,
        origin: Origin,
        kind: &'static str,
        kept: u32,
        head: usize,
        line: &[u8],
    ) -> Result<()> {
        let kind = self.number(kind);
        // A line is a few times the longest row at most.
        let short = |count: usize| u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes();
        self.lines.write(&origin.file.to_le_bytes())?;
        self.lines.write(&origin.line.to_le_bytes())?;
        self.lines.write(&short(kind))?;
        self.lines.write(&kept.to_le_bytes())?;
        self.lines.write(&short(head))?;
        self.lines.write(&short(line.len()))?;
        self.lines.write(line)
    }

    /// A row with its whole line, at any time.
    pub(super) fn push_late(
        &mut self,
        origin: Origin,
        kind: &'static str,
        line: &[u8],
    ) -> Result<()> {
        // There are a few dozen kinds.
        let kind = u32::try_from(self.number(kind)).unwrap_or(u32::MAX);
        self.late.push((0, origin), &[&kind.to_le_bytes(), line])
    }

    fn number(&mut self, kind: &'static str) -> usize {
        let known = self.kinds.iter().position(|known| *known == kind);
        known.unwrap_or_else(|| {
            self.kinds.push(kind);
            self.kinds.len() - 1
        })
    }

    pub(super) fn close(self) -> Result<RefusedRows> {
        Ok(RefusedRows {
            lines: self.lines.close()?,
            late: self.late.close()?,
            kinds: self.kinds,
        })
    }
}

/// What was refused.
pub(super) struct RefusedRows {
    lines: Spooled,
    late: Sorted,
    kinds: Vec<&'static str>,
}

impl RefusedRows {
    /// All of it, in the order of the files and their lines.
    pub(super) fn read(&self) -> Result<RefusedReader<'_>> {
        Ok(RefusedReader {
            lines: self.lines.read(),
            head: None,
            late: self.late.read()?,
            kinds: &self.kinds,
        })
    }
}

pub(super) struct RefusedReader<'a> {
    lines: SpoolReader,
    /// The next row of `lines`, of which the line is not read yet.
    head: Option<Head>,
    late: SortedReader,
    kinds: &'a [&'static str],
}

struct Head {
    origin: Origin,
    kind: u32,
    kept: u32,
    head: u32,
    length: u32,
}

impl RefusedReader<'_> {
    pub(super) fn next(&mut self) -> Result<Option<Refused<'_>>> {
        if self.head.is_none() && !self.lines.is_at_end()? {
            self.head = Some(Head::read(&mut self.lines)?);
        }
        let is_late = match (&self.head, self.late.key()) {
            (Some(head), Some((_, origin))) => origin < head.origin,
            (_, late) => late.is_some(),
        };
        if is_late {
            return self.next_late();
        }
        let Some(head) = self.head.take() else {
            return Ok(None);
        };
        Ok(Some(Refused {
            origin: head.origin,
            kind: self.kinds[head.kind as usize],
            kept: (head.kept != NOTHING_KEPT).then_some(head.kept),
            head: head.head as usize,
            line: self.lines.bytes(head.length as usize)?,
        }))
    }

    fn next_late(&mut self) -> Result<Option<Refused<'_>>> {
        let Some(((_, origin), entry)) = self.late.next()? else {
            return Ok(None);
        };
        let (kind, line) = entry.split_at(size_of::<u32>());
        Ok(Some(Refused {
            origin,
            kind: self.kinds[short(kind, 0) as usize],
            kept: None,
            head: 0,
            line,
        }))
    }
}

impl Head {
    fn read(lines: &mut SpoolReader) -> Result<Self> {
        let header = lines.bytes(HEADER_BYTES)?;
        Ok(Self {
            origin: Origin {
                file: short(header, 0),
                line: u64::from(short(header, 4)) | (u64::from(short(header, 8)) << 32),
            },
            kind: short(header, 12),
            kept: short(header, 16),
            head: short(header, 20),
            length: short(header, 24),
        })
    }
}

/// The number of four bytes that stands there.
fn short(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

#[cfg(test)]
mod tests {
    use because_core::Rejected;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_refused_is_read_back_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let mut refusals = Refusals::in_folder(folder.path()).unwrap();
        let [first, second] = [7, u64::MAX - 3].map(|line| Origin { file: 2, line });
        refusals.push(first, "missing user", b"{}\n").unwrap();
        refusals
            .push_duplicate(second, "a \"b\".csv", 5, &json!({"user": 1}))
            .unwrap();
        let refused = refusals.close().unwrap();
        for _ in 0..2 {
            let mut rows = refused.read().unwrap();
            let row = rows.next().unwrap().unwrap();
            assert_eq!(
                (row.origin, row.kind, row.kept, row.line),
                (first, "missing user", None, &b"{}\n"[..])
            );
            let row = rows.next().unwrap().unwrap();
            assert_eq!(
                (row.origin, row.kind, row.kept),
                (second, "duplicate", Some(5))
            );
            let (head, tail) = row.line.split_at(row.head);
            let line = [head, b"\"why\"", tail].concat();
            let read: Rejected = serde_json::from_slice(&line).unwrap();
            let expected = Rejected {
                file: "a \"b\".csv".to_owned(),
                line: second.line,
                field: None,
                reason: "why".to_owned(),
                record: json!({"user": 1}),
            };
            assert_eq!(read, expected);
            assert_eq!(line.trim_ascii(), serde_json::to_vec(&expected).unwrap());
            assert!(rows.next().unwrap().is_none());
        }
    }
}
