use std::path::Path;

use because_core::{Error as FileError, Project, Split};

use super::gather::Taken;
use super::line::{self, split_end};
use super::nodes::NodeRows;
use super::spool::{Draft, Spooled};
use super::summary::Filtered;
use crate::plan::{Applied, ColdNode};
use crate::table::{Ids, Table};
use crate::{Result, SplitCounts};

/// The files of a project but `rejected.jsonl`: written, and not yet in their places.
pub(super) struct Written {
    /// In the order in which they take their places.
    drafts: Vec<(&'static str, Option<Draft>)>,
    pub(super) users: NodeCounts,
    pub(super) items: NodeCounts,
    pub(super) filtered: Filtered,
    pub(super) splits: SplitCounts,
}

impl Written {
    /// Writes what stays of the rows that were taken.
    pub(super) fn of(taken: &Taken, applied: &Applied, out: &Project) -> Result<Self> {
        let draft = |name: &str| Draft::of(out.path(name));
        let mut filtered = Filtered::default();
        for step in &applied.steps {
            filtered.add(step.filter, step.removed.interactions);
        }
        let [users, items] = Side::both(&taken.table, applied);
        let (mut users_out, mut items_out) = (draft("users.jsonl")?, draft("items.jsonl")?);
        let users = users.copy(&taken.users, applied, &mut filtered, &mut users_out)?;
        let items = items.copy(&taken.items, applied, &mut filtered, &mut items_out)?;

        let mut references_out = None;
        if !taken.referenced.is_empty() {
            let out = references_out.insert(draft("references.jsonl")?);
            all(&taken.references, out)?;
        }
        let mut conflicts_out = None;
        if !taken.conflicts.read().is_at_end()? {
            let out = conflicts_out.insert(draft("conflicts.jsonl")?);
            all(&taken.conflicts, out)?;
        }
        let mut cold_out = None;
        if !applied.cold.is_empty() {
            cold(&applied.cold, cold_out.insert(draft("cold.jsonl")?))?;
        }
        let mut interactions_out = draft("interactions.jsonl")?;
        let splits = interactions(taken, &applied.splits, &mut interactions_out)?;
        Ok(Self {
            drafts: vec![
                ("users.jsonl", Some(users_out)),
                ("items.jsonl", Some(items_out)),
                ("references.jsonl", references_out),
                ("conflicts.jsonl", conflicts_out),
                ("cold.jsonl", cold_out),
                // Where the interactions are, the rest is there too.
                ("interactions.jsonl", Some(interactions_out)),
            ],
            users,
            items,
            filtered,
            splits,
        })
    }

    /// Where nothing is to be put, what an earlier import left goes: measuring against it would mix two data sets.
    pub(super) fn put_in_place(mut self, out: &Project) -> Result<Self> {
        for (name, draft) in self.drafts.drain(..) {
            match draft {
                Some(draft) => draft.put_in_place()?,
                None => remove(&out.path(name))?,
            }
        }
        Ok(self)
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
fn interactions(taken: &Taken, splits: &[Option<Split>], out: &mut Draft) -> Result<SplitCounts> {
    let mut counts = SplitCounts::default();
    let mut lines = taken.lines.read();
    let mut gone = taken
        .displaced
        .iter()
        .map(|displaced| displaced.row)
        .peekable();
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
    /// Lines that stay.
    pub(super) rows: u64,
    /// Rows that completed those, beside the first of each.
    pub(super) merged: u64,
    /// Lines of nodes without an interaction.
    pub(super) only_rows: u64,
    /// Nodes without a row.
    pub(super) only_interactions: u64,
}

/// What one side's nodes are to the plan.
struct Side<'a> {
    ids: &'a Ids,
    /// The step that took each node's last interaction.
    lost: &'a [Option<u8>],
    /// Whether each has an interaction left.
    alive: Vec<bool>,
}

impl<'a> Side<'a> {
    fn both(table: &'a Table, applied: &'a Applied) -> [Self; 2] {
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

    /// Copies the lines of this side's nodes but for those that lost their last interaction, all rows of which are counted as
    /// filtered. A
    /// node that had none before is not the filters' business: it is known by its text alone, and stays.
    fn copy(
        &self,
        rows: &NodeRows,
        applied: &Applied,
        filtered: &mut Filtered,
        out: &mut Draft,
    ) -> Result<NodeCounts> {
        let alive = self.alive.iter().filter(|alive| **alive).count() as u64;
        let (mut kept, mut merged, mut with_both) = (0, 0, 0);
        let mut lines = rows.lines.read();
        let mut completed = rows.completed.iter().peekable();
        for (number, id) in (0..).zip(rows.ids.names()) {
            let Some(line) = lines.line()? else {
                break;
            };
            let others = completed
                .next_if(|(completed, _)| *completed == number)
                .map_or(0, |(_, others)| *others);
            let node = self.ids.get(id).map(|node| node as usize);
            if let Some(step) = node.and_then(|node| self.lost[node]) {
                filtered.add(applied.steps[step as usize].filter, 1 + others);
                continue;
            }
            kept += 1;
            merged += others;
            with_both += u64::from(node.is_some_and(|node| self.alive[node]));
            out.write(line)?;
            out.write(b"\n")?;
        }
        Ok(NodeCounts {
            rows: kept,
            merged,
            only_rows: kept - with_both,
            only_interactions: alive - with_both,
        })
    }
}

/// Copies all lines.
fn all(lines: &Spooled, out: &mut Draft) -> Result<()> {
    let mut lines = lines.read();
    while let Some(line) = lines.line()? {
        out.write(line)?;
        out.write(b"\n")?;
    }
    Ok(())
}

fn cold(nodes: &[ColdNode], out: &mut Draft) -> Result<()> {
    let mut line = Vec::new();
    for node in nodes {
        line.clear();
        line::of(node, &mut line);
        out.write(&line)?;
    }
    Ok(())
}
