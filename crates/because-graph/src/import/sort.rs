use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;
use std::path::Path;

use super::pairs::Origin;
use super::spool::{Spool, SpoolReader, Spooled};
use crate::Result;

/// What entries are sorted by: a number, then where the row stands. No two entries have the same.
pub(super) type Key = (u32, Origin);

/// So much is held and sorted at once; each such run then costs one small buffer where all are read together. Tests have many.
const RUN_BYTES: usize = if cfg!(test) { 300 } else { 16 << 20 };
const READ_BYTES: usize = 1 << 15;
/// Number, file, line, length of the entry.
const HEADER_BYTES: usize = 4 + 4 + 8 + 4;

/// Sorts more than fits in memory: entries are put down in sorted runs, which are read back all at once.
pub(super) struct Sorter {
    spool: Spool,
    runs: Vec<Range<u64>>,
    entries: Vec<(Key, Range<usize>)>,
    bytes: Vec<u8>,
    run_bytes: usize,
}

impl Sorter {
    pub(super) fn in_folder(folder: &Path) -> Result<Self> {
        Ok(Self {
            spool: Spool::in_folder(folder)?,
            runs: Vec::new(),
            entries: Vec::new(),
            bytes: Vec::new(),
            run_bytes: RUN_BYTES,
        })
    }

    /// Adds the entry that these pieces make together.
    pub(super) fn push(&mut self, key: Key, pieces: &[&[u8]]) -> Result<()> {
        let start = self.bytes.len();
        pieces
            .iter()
            .for_each(|piece| self.bytes.extend_from_slice(piece));
        self.entries.push((key, start..self.bytes.len()));
        let held = self.bytes.len() + self.entries.len() * size_of::<(Key, Range<usize>)>();
        if held < self.run_bytes {
            return Ok(());
        }
        self.put_down()
    }

    fn put_down(&mut self) -> Result<()> {
        self.entries.sort_unstable_by_key(|(key, _)| *key);
        let start = self.runs.last().map_or(0, |run| run.end);
        let mut end = start;
        for ((number, origin), span) in self.entries.drain(..) {
            let entry = &self.bytes[span];
            // An entry is a few times the longest row at most.
            let length = u32::try_from(entry.len()).unwrap_or(u32::MAX);
            self.spool.write(&number.to_le_bytes())?;
            self.spool.write(&origin.file.to_le_bytes())?;
            self.spool.write(&origin.line.to_le_bytes())?;
            self.spool.write(&length.to_le_bytes())?;
            self.spool.write(entry)?;
            end += (HEADER_BYTES + entry.len()) as u64;
        }
        self.bytes.clear();
        self.runs.push(start..end);
        Ok(())
    }

    /// Ends the adding.
    pub(super) fn close(mut self) -> Result<Sorted> {
        if !self.entries.is_empty() {
            self.put_down()?;
        }
        Ok(Sorted {
            spooled: self.spool.close()?,
            runs: self.runs,
        })
    }
}

/// What was given to a [`Sorter`].
pub(super) struct Sorted {
    spooled: Spooled,
    runs: Vec<Range<u64>>,
}

impl Sorted {
    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// All of it in the order of the keys.
    pub(super) fn read(&self) -> Result<SortedReader> {
        let mut reader = SortedReader {
            runs: Vec::new(),
            heads: BinaryHeap::new(),
            entry: Vec::new(),
        };
        for run in &self.runs {
            reader.runs.push(Run {
                source: self.spooled.read_from(run.start, READ_BYTES),
                left: run.end - run.start,
            });
            reader.advance(reader.runs.len() - 1)?;
        }
        Ok(reader)
    }
}

pub(super) struct SortedReader {
    runs: Vec<Run>,
    /// The next entry of each run that has one: its key, its run and its length.
    heads: BinaryHeap<Reverse<(Key, usize, usize)>>,
    entry: Vec<u8>,
}

struct Run {
    source: SpoolReader,
    left: u64,
}

impl SortedReader {
    /// The key of what [`SortedReader::next`] gives.
    pub(super) fn key(&self) -> Option<Key> {
        self.heads.peek().map(|Reverse((key, ..))| *key)
    }

    pub(super) fn next(&mut self) -> Result<Option<(Key, &[u8])>> {
        let Some(Reverse((key, run, length))) = self.heads.pop() else {
            return Ok(None);
        };
        self.entry.clear();
        self.entry
            .extend_from_slice(self.runs[run].source.bytes(length)?);
        self.runs[run].left -= length as u64;
        self.advance(run)?;
        Ok(Some((key, &self.entry)))
    }

    fn advance(&mut self, at: usize) -> Result<()> {
        let run = &mut self.runs[at];
        if run.left == 0 {
            return Ok(());
        }
        run.left -= HEADER_BYTES as u64;
        let header = run.source.bytes(HEADER_BYTES)?;
        let short = |at: usize| {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(&header[at..at + 4]);
            u32::from_le_bytes(bytes)
        };
        let line = u64::from(short(8)) | (u64::from(short(12)) << 32);
        let origin = Origin {
            file: short(4),
            line,
        };
        self.heads
            .push(Reverse(((short(0), origin), at, short(16) as usize)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn entries_come_back_by_their_keys(
            given in prop::collection::btree_map((0_u32..9, 0_u32..3, any::<u64>()), "[a-z\n]{0,9}", 0..60),
            by_lot in any::<u64>(),
            run_bytes in 1_usize..2000,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let mut sorter = Sorter::in_folder(folder.path()).unwrap();
            sorter.run_bytes = run_bytes;
            let mut shuffled: Vec<_> = given.iter().collect();
            shuffled.sort_by_key(|((number, _, line), _)| (line ^ by_lot, *number));
            for (&(number, file, line), text) in shuffled {
                let (one, two) = text.split_at(text.len() / 2);
                sorter.push((number, Origin { file, line }), &[one.as_bytes(), two.as_bytes()]).unwrap();
            }
            let sorted = sorter.close().unwrap();
            prop_assert_eq!(sorted.is_empty(), given.is_empty());
            let mut reader = sorted.read().unwrap();
            for (&(number, file, line), text) in &given {
                let key = (number, Origin { file, line });
                prop_assert_eq!(reader.key(), Some(key));
                prop_assert_eq!(reader.next().unwrap(), Some((key, text.as_bytes())));
            }
            prop_assert!(reader.next().unwrap().is_none());
        }
    }
}
