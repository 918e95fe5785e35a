use std::hash::BuildHasher;

use hashbrown::hash_table::Entry;
use hashbrown::{DefaultHashBuilder, HashTable};

use crate::table::{Row, Table};
use crate::{Error, Result};

/// Where a row stands: the place of its file among the files, and its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Origin {
    pub(super) file: u32,
    pub(super) line: u64,
}

/// Where each of a list of rows stands that come in the order of the files and their lines, in four bytes a row.
#[derive(Debug, Default)]
pub(super) struct Origins {
    /// Counted from the line of the mark that the row is under.
    lines: Vec<u32>,
    /// The first row of every file, and of every stretch of lines that 32 bits can count.
    marks: Vec<(usize, Origin)>,
}

impl Origins {
    pub(super) fn push(&mut self, origin: Origin) {
        let since_mark = self
            .marks
            .last()
            .filter(|(_, mark)| mark.file == origin.file)
            .and_then(|(_, mark)| u32::try_from(origin.line - mark.line).ok());
        if since_mark.is_none() {
            self.marks.push((self.lines.len(), origin));
        }
        self.lines.push(since_mark.unwrap_or(0));
    }

    /// Where the row stands that was pushed in this place.
    pub(super) fn of(&self, row: u32) -> Origin {
        let row = row as usize;
        let mark = self.marks.partition_point(|(first, _)| *first <= row);
        let (_, mark) = self.marks[mark - 1];
        Origin {
            line: mark.line + u64::from(self.lines[row]),
            ..mark
        }
    }
}

/// Rows of a user and an item each, of which every pair counts once.
///
/// Every row that is taken gets a place, counted from zero; a row that gives way to a later one keeps it until
/// [`Pairs::settle`].
#[derive(Debug, Default)]
pub(super) struct Pairs {
    table: Table,
    origins: Origins,
    /// The place of the row that counts for its pair.
    by_pair: HashTable<u32>,
    hasher: DefaultHashBuilder,
    displaced: Vec<Displaced>,
}

/// A row that was taken and then gave way to another of its pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Displaced {
    pub(super) row: u32,
    /// The row of its pair that counts.
    pub(super) kept: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placed {
    /// It has the next place.
    Taken,
    /// The row in this place counts, unless a later one comes.
    DuplicateOf(u32),
}

impl Pairs {
    /// The numbers of these ids; what they are for is up to [`Pairs::place`].
    pub(super) fn intern(&mut self, [user, item]: [&str; 2]) -> Result<[u32; 2]> {
        Ok([
            self.table.users.intern(user)?,
            self.table.items.intern(item)?,
        ])
    }

    /// Takes a row of interned ids. Of two rows of one pair the later counts where both say when, else the one that came first.
    pub(super) fn place(&mut self, origin: Origin, row: Row) -> Result<Placed> {
        let rows = &mut self.table.rows;
        let (user, item) = (row.user, row.item);
        let place = u32::try_from(rows.len())
            .ok()
            .filter(|&place| place < u32::MAX)
            .ok_or(Error::TooLarge {
                what: "interactions",
                count: rows.len(),
            })?;
        let entry = self.by_pair.entry(
            hash(&self.hasher, user, item),
            |&known| {
                let known = &rows[known as usize];
                (known.user, known.item) == (user, item)
            },
            |&known| {
                let known = &rows[known as usize];
                hash(&self.hasher, known.user, known.item)
            },
        );
        match entry {
            Entry::Vacant(entry) => {
                entry.insert(place);
            }
            Entry::Occupied(mut entry) => {
                let kept = entry.get_mut();
                let is_later = matches!(
                    (row.timestamp(), rows[*kept as usize].timestamp()),
                    (Some(this), Some(other)) if this > other
                );
                if !is_later {
                    return Ok(Placed::DuplicateOf(*kept));
                }
                let row = std::mem::replace(kept, place);
                self.displaced.push(Displaced { row, kept: place });
            }
        }
        rows.push(row);
        self.origins.push(origin);
        Ok(Placed::Taken)
    }

    /// Rows that have a place.
    pub(super) fn len(&self) -> usize {
        self.table.rows.len()
    }

    /// The place of the row that counts for this pair.
    pub(super) fn find(&self, [user, item]: [&str; 2]) -> Option<u32> {
        let user = self.table.users.get(user)?;
        let item = self.table.items.get(item)?;
        let is_it = |&known: &u32| {
            let known = &self.table.rows[known as usize];
            (known.user, known.item) == (user, item)
        };
        self.by_pair
            .find(hash(&self.hasher, user, item), is_it)
            .copied()
    }

    /// The user and the item of the row in this place.
    pub(super) fn ids(&self, row: u32) -> [&str; 2] {
        let row = &self.table.rows[row as usize];
        [
            self.table.users.name(row.user),
            self.table.items.name(row.item),
        ]
    }

    pub(super) fn origin(&self, row: u32) -> Origin {
        self.origins.of(row)
    }

    /// The rows that gave way, in the order they came, each with the one that counts in the end.
    pub(super) fn displaced(&self) -> Vec<Displaced> {
        let mut displaced = self.displaced.clone();
        displaced.sort_unstable();
        // A row gives way to a later one only, so from the last to the first what each stands behind is settled already.
        for at in (0..displaced.len()).rev() {
            displaced[at].kept = settled(&displaced[at + 1..], displaced[at].kept);
        }
        displaced
    }

    /// The interactions that count, in the order they came, and where each row stands that has a place.
    pub(super) fn settle(self, displaced: &[Displaced]) -> (Table, Origins) {
        let mut table = self.table;
        let mut gone = displaced.iter().map(|displaced| displaced.row).peekable();
        let mut place = 0;
        table.rows.retain(|_| {
            let stays = gone.next_if_eq(&place).is_none();
            place += 1;
            stays
        });
        (table, self.origins)
    }
}

/// The row of the settled table that a row's place becomes, where it counts.
pub(super) fn settled_row(displaced: &[Displaced], place: u32) -> u32 {
    let gone = displaced.partition_point(|displaced| displaced.row < place);
    // No more than `place` rows stand before it.
    place - u32::try_from(gone).unwrap_or(place)
}

fn hash(hasher: &DefaultHashBuilder, user: u32, item: u32) -> u64 {
    hasher.hash_one((u64::from(user) << 32) | u64::from(item))
}

/// The row that counts for this one's pair in the end.
pub(super) fn settled(displaced: &[Displaced], row: u32) -> u32 {
    displaced
        .binary_search_by_key(&row, |displaced| displaced.row)
        .map_or(row, |at| displaced[at].kept)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn at(file: u32, line: u64) -> Origin {
        Origin { file, line }
    }

    #[test]
    fn origins_are_found_again() {
        let far = u64::from(u32::MAX);
        let given = [
            at(0, 1),
            at(0, 7),
            at(2, 3),
            at(2, 4),
            at(2, 4 + far),
            at(2, 4 + 2 * far),
            at(3, 1),
        ];
        let mut origins = Origins::default();
        for origin in given {
            origins.push(origin);
        }
        for (row, origin) in (0..).zip(given) {
            assert_eq!(origins.of(row), origin);
        }
        assert_eq!(origins.marks.len(), 4);
    }

    proptest! {
        #[test]
        fn of_every_pair_the_latest_counts_or_the_first(
            rows in prop::collection::vec((0_u8..3, 0_u8..3, prop::option::of(0_i64..4)), 0..60),
        ) {
            let mut pairs = Pairs::default();
            let mut expected: BTreeMap<(u8, u8), (u32, Option<i64>)> = BTreeMap::new();
            let mut refused = 0;
            for &(user, item, time) in &rows {
                let place = pairs.len() as u32;
                let ids = [user.to_string(), item.to_string()];
                let [user_number, item_number] = pairs.intern([&ids[0], &ids[1]]).unwrap();
                let row = Row::new(user_number, item_number).with_timestamp(time);
                let placed = pairs.place(at(0, 1), row).unwrap();
                let kept = expected.get(&(user, item)).copied();
                let counts = kept.is_none_or(|(_, before)| before.is_some() && time > before);
                if counts {
                    prop_assert_eq!(placed, Placed::Taken);
                    expected.insert((user, item), (place, time));
                } else {
                    prop_assert_eq!(placed, Placed::DuplicateOf(kept.unwrap().0));
                    refused += 1;
                }
            }
            let displaced = pairs.displaced();
            let counting: Vec<u32> = (0..pairs.len() as u32)
                .filter(|&row| displaced.iter().all(|displaced| displaced.row != row))
                .collect();
            let mut kept: Vec<u32> = expected.values().map(|(row, _)| *row).collect();
            kept.sort_unstable();
            prop_assert_eq!(&counting, &kept);
            for displaced in &displaced {
                let [gone, kept] = [displaced.row, displaced.kept].map(|row| pairs.table.rows[row as usize]);
                prop_assert_eq!((gone.user, gone.item), (kept.user, kept.item));
                prop_assert!(counting.contains(&displaced.kept));
            }
            let (table, _) = pairs.settle(&displaced);
            prop_assert_eq!(table.rows.len() + displaced.len() + refused, rows.len());
            prop_assert_eq!(table.rows.len(), kept.len());
        }
    }
}
