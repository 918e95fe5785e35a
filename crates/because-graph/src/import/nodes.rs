use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::RecordKind;
use super::line;
use super::merge::{Clash, Merged, Verdict, reason};
use super::pairs::{Origin, Origins};
use super::record::Fault;
use super::refused::{CONTRADICTION, DUPLICATE, Refusals};
use super::sort::{SortedReader, Sorter};
use super::spool::{Spool, SpoolReader, Spooled};
use super::stream::Source;
use super::summary::{Conflicts, ImportedFile};
use crate::Result;
use crate::table::Ids;

/// Rows of one node each, on disk: the first of every node in the order they came, and the others, which complete those once all
/// have been read.
pub(super) struct Nodes {
    kind: RecordKind,
    ids: Ids,
    origins: Origins,
    first: Spool,
    later: Sorter,
}

/// The rows of the nodes on one side, of every node one.
pub(super) struct NodeRows {
    pub(super) ids: Ids,
    pub(super) lines: Spooled,
    /// By the number of the node how many rows completed its first, where any did.
    pub(super) completed: Vec<(u32, u64)>,
}

/// What settling needs to know and tell beside the nodes.
pub(super) struct Settling<'a> {
    pub(super) files: &'a mut [ImportedFile],
    /// For every file how its rows are read, where it has any.
    pub(super) sources: &'a [Option<Arc<Source>>],
    pub(super) refused: &'a mut Refusals,
    pub(super) conflicts: &'a mut GivenUp,
}

/// Values of rows that were taken, given up for others: the lines of `conflicts.jsonl`.
pub(super) struct GivenUp {
    pub(super) lines: Spool,
    pub(super) counts: Conflicts,
}

impl Nodes {
    pub(super) fn in_folder(kind: RecordKind, folder: &Path) -> Result<Self> {
        Ok(Self {
            kind,
            ids: Ids::default(),
            origins: Origins::default(),
            first: Spool::in_folder(folder)?,
            later: Sorter::in_folder(folder)?,
        })
    }

    /// Takes the line of a row about the node of this id. What becomes of a row that is not its node's first is known at the end,
    /// so it is put down as it stands in its file as well.
    pub(super) fn take(&mut self, origin: Origin, id: &str, line: &[u8], row: &[u8]) -> Result<()> {
        let count = self.ids.len();
        let node = self.ids.intern(id)?;
        if node as usize >= count {
            self.origins.push(origin);
            return self.first.write(line);
        }
        // A line is a few times the longest row at most.
        let length = u32::try_from(line.len()).unwrap_or(u32::MAX);
        self.later
            .push((node, origin), &[&length.to_le_bytes(), line, row])
    }

    /// Has the rows of every node complete its first, in the order of the files and their lines.
    pub(super) fn settle(self, folder: &Path, settling: &mut Settling<'_>) -> Result<NodeRows> {
        let first = self.first.close()?;
        let later = self.later.close()?;
        if later.is_empty() {
            return Ok(NodeRows {
                ids: self.ids,
                lines: first,
                completed: Vec::new(),
            });
        }
        let completing = Completing {
            kind: self.kind,
            origins: &self.origins,
            first: first.read(),
            later: later.read()?,
            settling,
        };
        let (lines, completed) = completing.run(&self.ids, Spool::in_folder(folder)?)?;
        Ok(NodeRows {
            ids: self.ids,
            lines,
            completed,
        })
    }
}

struct Completing<'a, 'b> {
    kind: RecordKind,
    origins: &'a Origins,
    first: SpoolReader,
    later: SortedReader,
    settling: &'a mut Settling<'b>,
}

impl Completing<'_, '_> {
    fn run(mut self, ids: &Ids, mut out: Spool) -> Result<(Spooled, Vec<(u32, u64)>)> {
        let mut completed = Vec::new();
        let mut text = Vec::new();
        for (node, id) in (0..).zip(ids.names()) {
            let Some(line) = self.first.line()? else {
                break;
            };
            if self.later.key().is_none_or(|(next, _)| next != node) {
                out.write(line)?;
                out.write(b"\n")?;
                continue;
            }
            let mut merged = Merged::of(self.origins.of(node), line);
            let count = self.complete(node, id, &mut merged)?;
            if count > 0 {
                completed.push((node, count));
            }
            text.clear();
            merged.write(&mut text);
            out.write(&text)?;
        }
        Ok((out.close()?, completed))
    }

    /// Adds the node's other rows to its first; how many of them were taken.
    fn complete(&mut self, node: u32, id: &str, merged: &mut Merged) -> Result<u64> {
        let mut count = 0;
        while self.later.key().is_some_and(|(next, _)| next == node) {
            let Some(((_, origin), entry)) = self.later.next()? else {
                break;
            };
            let (length, rest) = entry.split_at(size_of::<u32>());
            let mut bytes = [0; 4];
            bytes.copy_from_slice(length);
            let (line, row) = rest.split_at(u32::from_le_bytes(bytes) as usize);
            let fault = match merged.add(origin, line.trim_ascii_end()) {
                Verdict::Taken(clashes) => {
                    count += 1;
                    for clash in &clashes {
                        self.settling.give_up(self.kind, id, origin, clash)?;
                    }
                    continue;
                }
                Verdict::Repeats(first) => Fault {
                    field: None,
                    kind: DUPLICATE,
                    reason: format!("duplicate of {}", self.settling.place(first)),
                },
                Verdict::Contradicts(clashes) => Fault {
                    field: clashes.first().map(|clash| clash.field.clone()),
                    kind: CONTRADICTION,
                    reason: reason(&clashes, |origin| self.settling.place(origin)),
                },
            };
            self.settling.refuse(origin, fault, row)?;
        }
        Ok(count)
    }
}

impl Settling<'_> {
    fn place(&self, origin: Origin) -> String {
        let file = &self.files[origin.file as usize].file;
        format!("{file} line {}", origin.line)
    }

    fn refuse(&mut self, origin: Origin, fault: Fault, row: &[u8]) -> Result<()> {
        let file = &mut self.files[origin.file as usize];
        file.rejected += 1;
        let source = self.sources[origin.file as usize].as_ref();
        let record = source.map_or(Value::Null, |source| source.parser.raw(row));
        let kind = fault.kind;
        let mut text = Vec::new();
        line::rejected(&file.file, origin.line, fault, record, &mut text);
        self.refused.push_late(origin, kind, &text)
    }

    fn give_up(&mut self, kind: RecordKind, id: &str, origin: Origin, clash: &Clash) -> Result<()> {
        let own = self.files[origin.file as usize].file.as_str();
        let kept = self.files[clash.from.file as usize].file.as_str();
        let mut text = b"{\"kind\":".to_vec();
        line::json(&kind, &mut text);
        for (name, value) in [("id", id), ("field", clash.field.as_str())] {
            named(name, &mut text);
            line::json(&value, &mut text);
        }
        let sides = [
            (
                ["kept", "kept_file", "kept_line"],
                &clash.kept,
                kept,
                clash.from,
            ),
            (["lost", "file", "line"], &clash.lost, own, origin),
        ];
        for ([what, file, line], value, path, origin) in sides {
            named(what, &mut text);
            text.extend_from_slice(value);
            named(file, &mut text);
            line::json(&path, &mut text);
            named(line, &mut text);
            line::json(&origin.line, &mut text);
        }
        text.extend_from_slice(b"}\n");
        let counts = &mut self.conflicts.counts;
        counts.count(kind, &clash.field, own, origin.line);
        self.conflicts.lines.write(&text)
    }
}

fn named(name: &str, out: &mut Vec<u8>) {
    for piece in [",\"", name, "\":"] {
        out.extend_from_slice(piece.as_bytes());
    }
}
