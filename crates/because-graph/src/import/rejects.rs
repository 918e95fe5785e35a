use serde_json::Value;

use super::again::{Again, Inputs};
use super::gather::Taken;
use super::line;
use super::pairs::{Displaced, Origins, settled, settled_row};
use super::record::Fault;
use super::refused::{DUPLICATE, RefusedRows};
use super::spool::{Draft, SpoolReader};
use super::summary::{Conflicts, ImportedFile, ReasonCount};
use crate::Result;

/// The rows that were not taken, and what it takes to write them; with them the values of others that were given up.
pub(super) struct Rejects {
    pub(super) files: Vec<ImportedFile>,
    pub(super) conflicts: Conflicts,
    /// Where the interactions stand that were taken.
    pub(super) origins: Origins,
    pub(super) refused: RefusedRows,
    pub(super) inputs: Inputs,
}

impl Rejects {
    pub(super) fn rows_read(&self) -> u64 {
        self.files.iter().map(|file| file.read).sum()
    }

    /// Of all files; those that gave way are among them once they are written.
    pub(super) fn count(&self) -> u64 {
        self.files.iter().map(|file| file.rejected).sum()
    }

    /// Writes every row that was not taken, in the order of the files and their lines, and counts the reasons. Interactions
    /// that were taken and then gave way are read from their files again: keeping every row's text for them would take the
    /// memory of the whole input.
    pub(super) fn write(&mut self, taken: &Taken, out: &mut Draft) -> Result<Vec<ReasonCount>> {
        let (table, displaced) = (&taken.table, &*taken.displaced);
        let mut reasons = Vec::new();
        let mut refused = self.refused.read()?;
        let mut again = Again::new(&self.inputs);
        let mut lines = Places {
            lines: taken.lines.read(),
            next: 0,
        };
        let mut late = displaced.iter().peekable();
        let mut line = Vec::new();
        loop {
            let next = refused.next()?;
            let before = |displaced: &&Displaced| {
                let origin = self.origins.of(displaced.row);
                next.as_ref().is_none_or(|next| origin < next.origin)
            };
            while let Some(gone) = late.next_if(before) {
                let origin = self.origins.of(gone.row);
                let reason = self.duplicate_of(gone.kept);
                let pair = &table.rows[settled_row(displaced, gone.kept) as usize];
                let ids = [table.users.name(pair.user), table.items.name(pair.item)];
                let record = match again.record(origin, ids)? {
                    Some(record) => record,
                    None => lines.fields(gone.row)?,
                };
                let file = &mut self.files[origin.file as usize];
                file.rejected += 1;
                ReasonCount::count(&mut reasons, DUPLICATE, &file.file, origin.line);
                let fault = Fault {
                    field: None,
                    kind: DUPLICATE,
                    reason,
                };
                line.clear();
                line::rejected(&file.file, origin.line, fault, record, &mut line);
                out.write(&line)?;
            }
            let Some(next) = next else {
                return Ok(ReasonCount::top(reasons));
            };
            let file = &self.files[next.origin.file as usize].file;
            ReasonCount::count(&mut reasons, next.kind, file, next.origin.line);
            match next.kept {
                None => out.write(next.line)?,
                Some(kept) => {
                    let (head, tail) = next.line.split_at(next.head);
                    out.write(head)?;
                    line.clear();
                    line::json(&self.duplicate_of(settled(displaced, kept)), &mut line);
                    out.write(&line)?;
                    out.write(tail)?;
                }
            }
        }
    }

    /// Says which interaction counts, by its place.
    fn duplicate_of(&self, kept: u32) -> String {
        let kept = self.origins.of(kept);
        let file = &self.files[kept.file as usize].file;
        format!("duplicate of {file} line {}", kept.line)
    }
}

/// The lines of interactions by their place, asked for in order.
struct Places {
    lines: SpoolReader,
    next: u32,
}

impl Places {
    /// What was taken from a row, for want of the row itself.
    fn fields(&mut self, place: u32) -> Result<Value> {
        while self.next < place {
            self.lines.line()?;
            self.next += 1;
        }
        self.next += 1;
        Ok(self.lines.line()?.map(line::fields).unwrap_or_default())
    }
}
