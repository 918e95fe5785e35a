use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::again::Inputs;
use super::nodes::{GivenUp, NodeRows, Nodes, Settling};
use super::pairs::{Displaced, Origin, Pairs, Placed, settled_row};
use super::refused::Refusals;
use super::rejects::Rejects;
use super::spool::{Spool, Spooled};
use super::stream::{self, Batch, Flow, Outcome, Source, Step};
use super::summary::{Conflicts, ImportedFile};
use super::{Format, RecordKind};
use crate::Result;
use crate::table::{Row, Table};

/// Everything the files hold: texts on disk, in the order they were read, and in memory what ties them together.
pub(super) struct Gathered {
    files: Vec<ImportedFile>,
    /// How the rows of each file are read, once there are any.
    sources: Vec<Option<Arc<Source>>>,
    interactions: Kept,
    references: Kept,
    users: Nodes,
    items: Nodes,
    refused: Refusals,
    placed: Vec<Option<Placed>>,
    numbers: Vec<Option<[u32; 2]>>,
}

/// Rows of pairs that were taken: their lines, and which there are.
struct Kept {
    index: Pairs,
    lines: Spool,
}

/// The rows that were taken, once it is known which of each pair counts.
pub(super) struct Taken {
    /// The interactions that count, in the order they came.
    pub(super) table: Table,
    /// Interactions whose lines are among `lines` and that do not count.
    pub(super) displaced: Vec<Displaced>,
    pub(super) lines: Spooled,
    pub(super) users: NodeRows,
    pub(super) items: NodeRows,
    /// Lines of `conflicts.jsonl`.
    pub(super) conflicts: Spooled,
    pub(super) references: Spooled,
    /// For each reference the row in the table of its user and item.
    pub(super) referenced: Vec<Option<u32>>,
}

impl Kept {
    fn in_folder(folder: &Path) -> Result<Self> {
        Ok(Self {
            index: Pairs::default(),
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
    ) -> Result<(Taken, Rejects)> {
        let files = paths.iter().map(|path| ImportedFile::unread(path));
        let mut gathered = Self {
            files: files.collect(),
            sources: vec![None; paths.len()],
            interactions: Kept::in_folder(folder)?,
            references: Kept::in_folder(folder)?,
            users: Nodes::in_folder(RecordKind::User, folder)?,
            items: Nodes::in_folder(RecordKind::Item, folder)?,
            refused: Refusals::in_folder(folder)?,
            placed: Vec::new(),
            numbers: Vec::new(),
        };
        stream::run(format, &paths, flow, |step| gathered.take(step))?;
        let inputs = Inputs {
            format,
            paths,
            block_bytes: flow.block_bytes,
        };
        gathered.settle(inputs, folder)
    }

    fn settle(mut self, inputs: Inputs, folder: &Path) -> Result<(Taken, Rejects)> {
        let mut given_up = GivenUp {
            lines: Spool::in_folder(folder)?,
            counts: Conflicts::default(),
        };
        let mut settling = Settling {
            files: &mut self.files,
            sources: &self.sources,
            refused: &mut self.refused,
            conflicts: &mut given_up,
        };
        let users = self.users.settle(folder, &mut settling)?;
        let items = self.items.settle(folder, &mut settling)?;
        let displaced = self.interactions.index.displaced();
        let references = &self.references.index;
        let referenced = (0..)
            .take(references.len())
            .map(|reference| {
                let place = self.interactions.index.find(references.ids(reference))?;
                Some(settled_row(&displaced, place))
            })
            .collect();
        let (table, origins) = self.interactions.index.settle(&displaced);
        let taken = Taken {
            table,
            displaced,
            lines: self.interactions.lines.close()?,
            users,
            items,
            conflicts: given_up.lines.close()?,
            references: self.references.lines.close()?,
            referenced,
        };
        let rejects = Rejects {
            files: self.files,
            conflicts: given_up.counts.top(),
            origins,
            refused: self.refused.close()?,
            inputs,
        };
        Ok((taken, rejects))
    }

    fn take(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::End(source) => {
                let file = &mut self.files[source.file as usize];
                file.kind = source.parser.kind().or(file.kind);
                Ok(())
            }
            Step::Rows(source, batch) => {
                self.sources[source.file as usize].get_or_insert_with(|| Arc::clone(source));
                self.files[source.file as usize].read += batch.outcomes.len() as u64;
                self.place(source, batch)?;
                for (row, outcome) in batch.outcomes.iter().enumerate() {
                    self.take_row(source, batch, row, outcome)?;
                }
                Ok(())
            }
        }
    }

    /// Finds the places of a batch's interactions, one step for all of them after the other: what each waits for is memory, and
    /// in short loops the processor waits for many at once.
    fn place(&mut self, source: &Source, batch: &Batch) -> Result<()> {
        let index = &mut self.interactions.index;
        self.numbers.clear();
        for outcome in &batch.outcomes {
            self.numbers.push(match outcome {
                Outcome::Interaction {
                    ids: [user, item], ..
                } => Some(index.intern([batch.id(user), batch.id(item)])?),
                _ => None,
            });
        }
        self.placed.clear();
        let rows = batch.block.rows().iter().zip(&batch.outcomes);
        for ((span, outcome), numbers) in rows.zip(&self.numbers) {
            let placed = match (outcome, numbers) {
                (
                    Outcome::Interaction {
                        rating,
                        timestamp,
                        split,
                        ..
                    },
                    &Some([user, item]),
                ) => {
                    let origin = Origin {
                        file: source.file,
                        line: span.line,
                    };
                    let mut row = Row::new(user, item)
                        .with_rating(*rating)
                        .with_timestamp(*timestamp);
                    row.split = *split;
                    Some(index.place(origin, row)?)
                }
                _ => None,
            };
            self.placed.push(placed);
        }
        Ok(())
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
        let (kind, first) = match outcome {
            Outcome::Interaction { line, .. } => {
                if let Some(Placed::DuplicateOf(kept)) = self.placed[row] {
                    return self.refuse_duplicate(source, batch, row, Of::Settled(kept));
                }
                self.interactions.lines.write(batch.bytes(line))?;
                (RecordKind::Interaction, None)
            }
            Outcome::Reference {
                ids: [user, item],
                line,
            } => {
                let Kept { index, lines } = &mut self.references;
                let [user, item] = index.intern([batch.id(user), batch.id(item)])?;
                let first = match index.place(origin, Row::new(user, item))? {
                    Placed::Taken => {
                        lines.write(batch.bytes(line))?;
                        None
                    }
                    Placed::DuplicateOf(kept) => Some(index.origin(kept)),
                };
                (RecordKind::Reference, first)
            }
            Outcome::User { id, line } => {
                let [line, row] = [batch.bytes(line), batch.row(row)];
                self.users.take(origin, batch.id(id), line, row)?;
                (RecordKind::User, None)
            }
            Outcome::Item { id, line } => {
                let [line, row] = [batch.bytes(line), batch.row(row)];
                self.items.take(origin, batch.id(id), line, row)?;
                (RecordKind::Item, None)
            }
            Outcome::Rejected { kind, line } => {
                self.files[source.file as usize].rejected += 1;
                return self.refused.push(origin, kind, batch.bytes(line));
            }
        };
        match first {
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
                let first_file = &self.files[first.file as usize].file;
                self.refused
                    .push_duplicate_of(origin, &source.name, first_file, first.line, record)
            }
            Of::Settled(kept) => self
                .refused
                .push_duplicate(origin, &source.name, kept, &record),
        }
    }
}

/// Which row a duplicate gave way to.
#[derive(Debug, Clone, Copy)]
enum Of {
    /// The first of its pair, which stays.
    First(Origin),
    /// The interaction in this place, or what that gives way to.
    Settled(u32),
}
