use std::path::{Path, PathBuf};

use serde_json::Value;

use super::again::Again;
use super::pairs::{Displaced, Nodes, Origin, Pairs, Placed, settled};
use super::record::Fault;
use super::refused::Refusals;
use super::spool::{Draft, Spool, SpoolReader};
use super::stream::{self, Batch, Flow, Outcome, Source, Step};
use super::summary::{ImportedFile, ReasonCount};
use super::{Format, RecordKind, line};
use crate::Result;

const DUPLICATE: &str = "duplicate";

/// Everything the files hold: texts on disk, in the order they were read, and in memory what ties them together.
pub(super) struct Gathered {
    format: Format,
    paths: Vec<PathBuf>,
    block_bytes: usize,
    pub(super) files: Vec<ImportedFile>,
    pub(super) interactions: Kept<Pairs>,
    pub(super) references: Kept<Pairs>,
    pub(super) users: Kept<Nodes>,
    pub(super) items: Kept<Nodes>,
    refused: Refusals,
}

/// Rows that were taken: their lines, and which there are.
pub(super) struct Kept<Index> {
    pub(super) index: Index,
    pub(super) lines: Spool,
}

impl<Index: Default> Kept<Index> {
    fn in_folder(folder: &Path) -> Result<Self> {
        Ok(Self {
            index: Index::default(),
            lines: Spool::in_folder(folder)?,
        })
    }
}

impl Gathered {
    /// Reads all files; what has to be put down on the way goes into the folder.
    pub(super) fn read(
        format: Format,
        paths: Vec<PathBuf>,
        flow: Flow,
        folder: &Path,
    ) -> Result<Self> {
        let files = paths.iter().map(|path| ImportedFile::unread(path));
        let mut gathered = Self {
            files: files.collect(),
            format,
            paths,
            block_bytes: flow.block_bytes,
            interactions: Kept::in_folder(folder)?,
            references: Kept::in_folder(folder)?,
            users: Kept::in_folder(folder)?,
            items: Kept::in_folder(folder)?,
            refused: Refusals::in_folder(folder)?,
        };
        let paths = std::mem::take(&mut gathered.paths);
        let read = stream::run(format, &paths, flow, |step| gathered.take(step));
        gathered.paths = paths;
        read.map(|()| gathered)
    }

    pub(super) fn rows_read(&self) -> u64 {
        self.files.iter().map(|file| file.read).sum()
    }

    pub(super) fn rejected(&self) -> u64 {
        self.files.iter().map(|file| file.rejected).sum()
    }

    /// For each reference the interaction of its user and item, as its row in the settled table.
    pub(super) fn referenced(&self, displaced: &[Displaced]) -> Vec<Option<u32>> {
        let references = &self.references.index;
        let row = |place: u32| {
            let gone = displaced.partition_point(|displaced| displaced.row < place);
            u32::try_from(gone)
                .ok()
                .and_then(|gone| place.checked_sub(gone))
        };
        (0..)
            .take(references.len())
            .map(|reference| {
                self.interactions
                    .index
                    .find(references.ids(reference))
                    .and_then(row)
            })
            .collect()
    }

    fn take(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::End(source) => {
                let file = &mut self.files[source.file as usize];
                file.kind = source.parser.kind().or(file.kind);
                Ok(())
            }
            Step::Rows(source, batch) => {
                self.files[source.file as usize].read += batch.outcomes.len() as u64;
                for (row, outcome) in batch.outcomes.iter().enumerate() {
                    self.take_row(source, batch, row, outcome)?;
                }
                Ok(())
            }
        }
    }

    fn take_row(
        &mut self,
        source: &Source,
        batch: &Batch,
        row: usize,
        outcome: &Outcome,
    ) -> Result<()> {
        let origin = Origin {
            file: source.file,
            line: batch.block.rows()[row].line,
        };
        let (kind, duplicate) = match outcome {
            Outcome::Interaction {
                ids: [user, item],
                rating,
                timestamp,
                split,
                line,
            } => {
                let ids = [batch.id(user), batch.id(item)];
                let placed = self.interactions.index.place(origin, ids, |mut row| {
                    row.split = *split;
                    row.with_rating(*rating).with_timestamp(*timestamp)
                })?;
                match placed {
                    Placed::Taken => self.interactions.lines.write(batch.bytes(line))?,
                    Placed::DuplicateOf(kept) => {
                        return self.refuse_duplicate(source, batch, row, Of::Settled(kept));
                    }
                }
                (RecordKind::Interaction, None)
            }
            Outcome::Reference {
                ids: [user, item],
                line,
            } => {
                let ids = [batch.id(user), batch.id(item)];
                let placed = self.references.index.place(origin, ids, |row| row)?;
                let first = match placed {
                    Placed::Taken => {
                        self.references.lines.write(batch.bytes(line))?;
                        None
                    }
                    Placed::DuplicateOf(kept) => Some(self.references.index.origin(kept)),
                };
                (RecordKind::Reference, first)
            }
            Outcome::User { id, line } => {
                let first = self.users.take(origin, batch.id(id), batch.bytes(line))?;
                (RecordKind::User, first)
            }
            Outcome::Item { id, line } => {
                let first = self.items.take(origin, batch.id(id), batch.bytes(line))?;
                (RecordKind::Item, first)
            }
            Outcome::Rejected { kind, line } => {
                self.files[source.file as usize].rejected += 1;
                return self.refused.push(origin, kind, batch.bytes(line));
            }
        };
        match duplicate {
            Some(first) => self.refuse_duplicate(source, batch, row, Of::First(first)),
            None => {
                self.files[source.file as usize].kind.get_or_insert(kind);
                Ok(())
            }
        }
    }

    fn refuse_duplicate(
        &mut self,
        source: &Source,
        batch: &Batch,
        row: usize,
        of: Of,
    ) -> Result<()> {
        let span = &batch.block.rows()[row];
        let origin = Origin {
            file: source.file,
            line: span.line,
        };
        self.files[source.file as usize].rejected += 1;
        let record = source.parser.raw(batch.block.row(span));
        match of {
            Of::First(first) => {
                let fault = self.duplicate_of(first);
                let mut line = Vec::new();
                line::rejected(&source.name, origin.line, fault, record, &mut line);
                self.refused.push(origin, DUPLICATE, &line)
            }
            Of::Settled(kept) => {
                self.refused
                    .push_duplicate(origin, DUPLICATE, kept, &source.name, &record)
            }
        }
    }

    fn duplicate_of(&self, kept: Origin) -> Fault {
        let file = &self.files[kept.file as usize].file;
        Fault {
            field: None,
            kind: DUPLICATE,
            reason: format!("duplicate of {file} line {}", kept.line),
        }
    }

    /// Writes every row that was not taken, in the order of the files and their lines, and counts the reasons. Rows that were
    /// taken and then gave way are read from their files again: keeping every row's text for them would take the memory of
    /// the whole input.
    pub(super) fn write_rejected(
        &mut self,
        displaced: &[Displaced],
        out: &mut Draft,
    ) -> Result<Vec<ReasonCount>> {
        let mut reasons = Vec::new();
        let mut refused = self.refused.read()?;
        let mut lines = Places::of(self.interactions.lines.read()?);
        let mut again = Again::new(self.format, &self.paths, self.block_bytes);
        let mut late = displaced.iter().peekable();
        let mut line = Vec::new();
        loop {
            let next = refused.next()?;
            let before = |displaced: &&Displaced| {
                let origin = self.interactions.index.origin(displaced.row);
                next.as_ref().is_none_or(|next| origin < next.origin)
            };
            while let Some(gone) = late.next_if(before) {
                let origin = self.interactions.index.origin(gone.row);
                let fault = self.duplicate_of(self.interactions.index.origin(gone.kept));
                let file = &mut self.files[origin.file as usize];
                file.rejected += 1;
                ReasonCount::count(&mut reasons, DUPLICATE, &file.file, origin.line);
                let ids = self.interactions.index.ids(gone.row);
                let record = match again.record(origin, ids)? {
                    Some(record) => record,
                    None => lines.fields(gone.row)?,
                };
                line.clear();
                line::rejected(&file.file, origin.line, fault, record, &mut line);
                out.write(&line)?;
            }
            let Some(next) = next else {
                return Ok(reasons);
            };
            let file = &self.files[next.origin.file as usize].file;
            ReasonCount::count(&mut reasons, next.kind, file, next.origin.line);
            match next.kept {
                None => out.write(next.line)?,
                Some(kept) => {
                    let kept = self.interactions.index.origin(settled(displaced, kept));
                    let (head, tail) = next.line.split_at(next.head);
                    out.write(head)?;
                    line.clear();
                    line::json(&self.duplicate_of(kept).reason, &mut line);
                    out.write(&line)?;
                    out.write(tail)?;
                }
            }
        }
    }
}

/// Which row a duplicate gave way to.
enum Of {
    /// The first of its id or pair, which stays.
    First(Origin),
    /// The interaction in this place, or what that gives way to.
    Settled(u32),
}

impl Kept<Nodes> {
    fn take(&mut self, origin: Origin, id: &str, line: &[u8]) -> Result<Option<Origin>> {
        let first = self.index.place(origin, id)?;
        if first.is_none() {
            self.lines.write(line)?;
        }
        Ok(first)
    }
}

/// The lines of interactions by their place, asked for in order.
struct Places {
    lines: SpoolReader,
    next: u32,
}

impl Places {
    fn of(lines: SpoolReader) -> Self {
        Self { lines, next: 0 }
    }

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
