use std::path::Path;

use because_core::{Error as FileError, Project, Split};

use super::gather::Kept;
use super::line::{self, split_end};
use super::pairs::{Displaced, Nodes};
use super::spool::{Draft, Spool};
use super::summary::Filtered;
use crate::plan::{Applied, ColdNode};
use crate::table::{Ids, Table};
use crate::{Result, SplitCounts};

/// The files of a project, written and not yet in their places.
pub(super) struct Drafts {
    rejected: Draft,
    /// In the order in which they take their places.
    files: Vec<(&'static str, Option<Draft>)>,
}

impl Drafts {
    pub(super) fn new(rejected: Draft) -> Self {
        Self {
            rejected,
            files: Vec::new(),
        }
    }

    /// A file for later; nothing is put there where there are no rows, and what an earlier import left goes: measuring against
    /// it would mix two data sets.
    pub(super) fn add(&mut self, name: &'static str, draft: Option<Draft>) {
        self.files.push((name, draft));
    }

    /// Puts the rejected rows in their place, and nothing else.
    pub(super) fn put_rejected(self) -> Result<()> {
        self.rejected.put_in_place()
    }

    pub(super) fn put_in_place(self, out: &Project) -> Result<()> {
        self.rejected.put_in_place()?;
        for (name, draft) in self.files {
            let path = out.path(name);
            match draft {
                Some(draft) => draft.put_in_place()?,
                None => remove(&path)?,
            }
        }
        Ok(())
    }
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(FileError::io("remove", path, error).into())
        }
        _ => Ok(()),
    }
}

/// Copies the interactions that stay, each with its split, in the order they came.
pub(super) fn interactions(
    lines: &mut Spool,
    displaced: &[Displaced],
    splits: &[Option<Split>],
    out: &mut Draft,
) -> Result<SplitCounts> {
    let mut counts = SplitCounts::default();
    let mut lines = lines.read()?;
    let mut gone = displaced.iter().map(|displaced| displaced.row).peekable();
    let mut splits = splits.iter();
    for place in 0.. {
        let Some(line) = lines.line()? else {
            break;
        };
        if gone.next_if_eq(&place).is_some() {
            continue;
        }
        if let Some(Some(split)) = splits.next() {
            out.write(line)?;
            out.write(split_end(*split))?;
            counts.add(*split);
        }
    }
    Ok(counts)
}

/// What is known of the nodes on one side: the rows of their own, and the interactions that are left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NodeCounts {
    /// Rows that stay.
    pub(super) rows: u64,
    /// Rows of nodes without an interaction.
    pub(super) only_rows: u64,
    /// Nodes without a row.
    pub(super) only_interactions: u64,
}

/// What one side's nodes are to the plan.
pub(super) struct Side<'a> {
    pub(super) ids: &'a Ids,
    /// The step that took each node's last interaction.
    pub(super) lost: &'a [Option<u8>],
    /// Whether each has an interaction left.
    pub(super) alive: Vec<bool>,
}

impl<'a> Side<'a> {
    pub(super) fn both(table: &'a Table, applied: &'a Applied) -> [Self; 2] {
        let mut users = vec![false; table.users.len()];
        let mut items = vec![false; table.items.len()];
        for (row, split) in table.rows.iter().zip(&applied.splits) {
            if split.is_some() {
                users[row.user as usize] = true;
                items[row.item as usize] = true;
            }
        }
        [
            Self {
                ids: &table.users,
                lost: &applied.users_lost,
                alive: users,
            },
            Self {
                ids: &table.items,
                lost: &applied.items_lost,
                alive: items,
            },
        ]
    }

    /// Copies the rows of this side's nodes but for those that lost their last interaction, which are counted as filtered. A
    /// node that had none before is not the filters' business: it is known by its text alone, and stays.
    pub(super) fn copy(
        &self,
        rows: &mut Kept<Nodes>,
        applied: &Applied,
        filtered: &mut Filtered,
        out: &mut Draft,
    ) -> Result<NodeCounts> {
        let alive = self.alive.iter().filter(|alive| **alive).count() as u64;
        let (mut kept, mut with_both) = (0, 0);
        let mut lines = rows.lines.read()?;
        for id in rows.index.ids.names() {
            let Some(line) = lines.line()? else {
                break;
            };
            let node = self.ids.get(id).map(|node| node as usize);
            if let Some(step) = node.and_then(|node| self.lost[node]) {
                filtered.add(applied.steps[step as usize].filter, 1);
                continue;
            }
            kept += 1;
            with_both += u64::from(node.is_some_and(|node| self.alive[node]));
            out.write(line)?;
            out.write(b"\n")?;
        }
        Ok(NodeCounts {
            rows: kept,
            only_rows: kept - with_both,
            only_interactions: alive - with_both,
        })
    }
}

/// Copies all lines.
pub(super) fn all(lines: &mut Spool, out: &mut Draft) -> Result<()> {
    let mut lines = lines.read()?;
    while let Some(line) = lines.line()? {
        out.write(line)?;
        out.write(b"\n")?;
    }
    Ok(())
}

pub(super) fn cold(nodes: &[ColdNode], out: &mut Draft) -> Result<()> {
    let mut line = Vec::new();
    for node in nodes {
        line.clear();
        line::of(node, &mut line);
        out.write(&line)?;
    }
    Ok(())
}
