use std::path::Path;

use serde_json::Value;

use super::line;
use super::pairs::Origin;
use super::record::Fault;
use super::spool::{Spool, SpoolReader, Spooled};
use crate::Result;

/// Rows that were not taken, on disk, in the order they were read. What some are duplicates of is known only at the end.
pub(super) struct Refusals {
    lines: Spool,
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

/// The kind of fault of a row whose id or pair was taken from another.
pub(super) const DUPLICATE: &str = "duplicate";
const NOTHING_KEPT: u32 = u32::MAX;
/// File, line, kind, what was kept, where that goes in the line, length of the line.
const HEADER_BYTES: usize = 4 + 8 + 4 + 4 + 4 + 4;

impl Refusals {
    pub(super) fn in_folder(folder: &Path) -> Result<Self> {
        Ok(Self {
            lines: Spool::in_folder(folder)?,
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
        let known = self.kinds.iter().position(|known| *known == kind);
        let kind = known.unwrap_or_else(|| {
            self.kinds.push(kind);
            self.kinds.len() - 1
        });
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

    pub(super) fn close(self) -> Result<RefusedRows> {
        Ok(RefusedRows {
            lines: self.lines.close()?,
            kinds: self.kinds,
        })
    }
}

/// What was refused.
pub(super) struct RefusedRows {
    lines: Spooled,
    kinds: Vec<&'static str>,
}

impl RefusedRows {
    /// All of it, from the beginning.
    pub(super) fn read(&self) -> RefusedReader<'_> {
        RefusedReader {
            lines: self.lines.read(),
            kinds: &self.kinds,
        }
    }
}

pub(super) struct RefusedReader<'a> {
    lines: SpoolReader,
    kinds: &'a [&'static str],
}

impl RefusedReader<'_> {
    pub(super) fn next(&mut self) -> Result<Option<Refused<'_>>> {
        if self.lines.is_at_end()? {
            return Ok(None);
        }
        let mut header = [0; HEADER_BYTES];
        header.copy_from_slice(self.lines.bytes(HEADER_BYTES)?);
        let short = |at: usize| {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(&header[at..at + 4]);
            u32::from_le_bytes(bytes)
        };
        let line = u64::from(short(4)) | (u64::from(short(8)) << 32);
        let kept = short(16);
        Ok(Some(Refused {
            origin: Origin {
                file: short(0),
                line,
            },
            kind: self.kinds[short(12) as usize],
            kept: (kept != NOTHING_KEPT).then_some(kept),
            head: short(20) as usize,
            line: self.lines.bytes(short(24) as usize)?,
        }))
    }
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
            let mut rows = refused.read();
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
