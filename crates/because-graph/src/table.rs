use because_core::{Interaction, Split};
use string_interner::StringInterner;
use string_interner::Symbol;
use string_interner::backend::StringBackend;
use string_interner::symbol::SymbolU32;

use crate::{Error, Result};

/// Interactions without their text: what filters, splits and the graph work on. A row takes 32 bytes, whatever was written
/// about it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    pub(crate) users: Ids,
    pub(crate) items: Ids,
    pub(crate) rows: Vec<Row>,
}

impl Table {
    /// The table of these interactions, row for row.
    ///
    /// # Errors
    /// When there are more nodes than 32 bits can count.
    pub(crate) fn of(interactions: &[Interaction]) -> Result<Self> {
        let mut table = Self::default();
        table.rows.reserve_exact(interactions.len());
        for interaction in interactions {
            let user = table.users.intern(interaction.user.as_str())?;
            let item = table.items.intern(interaction.item.as_str())?;
            let mut row = Row::new(user, item)
                .with_rating(interaction.rating)
                .with_timestamp(interaction.timestamp);
            row.split = interaction.split;
            table.rows.push(row);
        }
        Ok(table)
    }

    /// Shows the rows of each user among these, together and in no order of their own, to `see`. Rows are places in
    /// [`Table::rows`].
    pub(crate) fn each_user(&self, rows: Vec<u32>, see: impl FnMut(&mut [u32])) {
        each_group(
            rows,
            self.users.len(),
            |row| self.rows[row as usize].user,
            see,
        );
    }

    /// The same for each item.
    pub(crate) fn each_item(&self, rows: Vec<u32>, see: impl FnMut(&mut [u32])) {
        each_group(
            rows,
            self.items.len(),
            |row| self.rows[row as usize].item,
            see,
        );
    }
}

/// Sorts by counting, because ten million rows need no comparison to find their user.
fn each_group(
    rows: Vec<u32>,
    groups: usize,
    group: impl Fn(u32) -> u32,
    mut see: impl FnMut(&mut [u32]),
) {
    let mut starts = vec![0_usize; groups + 1];
    for &row in &rows {
        starts[group(row) as usize + 1] += 1;
    }
    for at in 0..groups {
        starts[at + 1] += starts[at];
    }
    let mut next = starts.clone();
    let mut sorted = vec![0; rows.len()];
    for row in rows {
        let place = &mut next[group(row) as usize];
        sorted[*place] = row;
        *place += 1;
    }
    for ends in starts.windows(2) {
        if ends[0] < ends[1] {
            see(&mut sorted[ends[0]..ends[1]]);
        }
    }
}

/// One interaction; its ends are places in [`Table::users`] and [`Table::items`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Row {
    pub(crate) user: u32,
    pub(crate) item: u32,
    rating: f64,
    timestamp: i64,
    pub(crate) split: Option<Split>,
}

/// What stands for a missing rating is not finite, and what stands for a missing time is no time: readers refuse both.
const NO_TIME: i64 = i64::MIN;

impl Row {
    pub(crate) fn new(user: u32, item: u32) -> Self {
        Self {
            user,
            item,
            rating: f64::NAN,
            timestamp: NO_TIME,
            split: None,
        }
    }

    pub(crate) fn with_rating(mut self, rating: Option<f64>) -> Self {
        self.rating = rating.unwrap_or(f64::NAN);
        self
    }

    pub(crate) fn with_timestamp(mut self, timestamp: Option<i64>) -> Self {
        self.timestamp = timestamp.unwrap_or(NO_TIME);
        self
    }

    pub(crate) fn rating(&self) -> Option<f64> {
        (!self.rating.is_nan()).then_some(self.rating)
    }

    pub(crate) fn timestamp(&self) -> Option<i64> {
        (self.timestamp != NO_TIME).then_some(self.timestamp)
    }
}

/// Ids as small numbers, counted from zero in the order in which they were first met; each id's text is kept once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ids {
    known: StringInterner<StringBackend<SymbolU32>>,
}

impl Ids {
    /// The number of an id, which is a new one where it was not known.
    ///
    /// # Errors
    /// When there are more ids than 32 bits can count.
    pub(crate) fn intern(&mut self, id: &str) -> Result<u32> {
        let count = self.known.len();
        if count >= u32::MAX as usize - 1 {
            return match self.get(id) {
                Some(known) => Ok(known),
                None => Err(Error::TooLarge {
                    what: "nodes",
                    count: count + 1,
                }),
            };
        }
        Ok(number(self.known.get_or_intern(id)))
    }

    pub(crate) fn get(&self, id: &str) -> Option<u32> {
        self.known.get(id).map(number)
    }

    /// The id of a number that [`Ids::intern`] gave out; no other number has one.
    pub(crate) fn name(&self, number: u32) -> &str {
        SymbolU32::try_from_usize(number as usize)
            .and_then(|symbol| self.known.resolve(symbol))
            .unwrap_or_default()
    }

    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    /// All ids in the order of their numbers.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.known.iter().map(|(_, name)| name)
    }
}

fn number(symbol: SymbolU32) -> u32 {
    // A symbol of this type was made of 32 bits.
    u32::try_from(symbol.to_usize()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_one_number_and_a_number_one_id() {
        let mut ids = Ids::default();
        let given: Vec<u32> = ["b", "a", "", "b", "ü"]
            .map(|id| ids.intern(id).unwrap())
            .into();
        assert_eq!(given, [0, 1, 2, 0, 3]);
        assert_eq!(ids.names().collect::<Vec<_>>(), ["b", "a", "", "ü"]);
        assert_eq!((ids.name(3), ids.name(1), ids.name(9)), ("ü", "a", ""));
        assert_eq!((ids.get("a"), ids.get("c"), ids.len()), (Some(1), None, 4));
    }

    #[test]
    fn a_row_is_small_and_knows_what_it_lacks() {
        assert_eq!(size_of::<Row>(), 32);
        let bare = Row::new(1, 2);
        assert_eq!((bare.rating(), bare.timestamp()), (None, None));
        let full = bare.with_rating(Some(-0.5)).with_timestamp(Some(-1));
        assert_eq!((full.rating(), full.timestamp()), (Some(-0.5), Some(-1)));
    }
}
