//! Interactions read without building a [`serde_json::Value`]: what is plain is borrowed from the row, what no field of ours
//! needs is passed over. Whatever is not plain (a list as a text, a number as a split, anything wrong) is left to the general
//! way in `record.rs`, so that there is one place that decides what is at fault.

use std::borrow::Cow;
use std::fmt;

use because_core::Split;
use serde::Deserialize;
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

use super::record::{Columns, FIELDS, Field, InteractionRow, Place};
use super::rule::Rule;
use super::time;

/// A value as it stands in the row.
#[derive(Debug, Clone)]
pub(super) enum Plain<'a> {
    Text(Cow<'a, str>),
    Whole(i64),
    Number(f64),
    Null,
    /// A list, an object, a truth value: nothing a field of an interaction is plainly made of.
    Odd,
}

/// The values found for each field.
#[derive(Debug)]
pub(super) struct Found<'a> {
    best: [Option<(usize, Plain<'a>)>; FIELDS],
    /// A bit for each name of a field that the row has.
    seen: [u32; FIELDS],
}

impl<'a> Found<'a> {
    pub(super) fn new() -> Self {
        Self {
            best: std::array::from_fn(|_| None),
            seen: [0; FIELDS],
        }
    }

    /// Takes a value in; `None` where it is not plain which one is meant.
    pub(super) fn put(&mut self, (field, rank): Place, value: Plain<'a>) -> Option<()> {
        let bit = 1_u32.checked_shl(rank as u32)?;
        let seen = &mut self.seen[field as usize];
        if *seen & bit != 0 {
            return None;
        }
        *seen |= bit;
        match &value {
            Plain::Null => return Some(()),
            Plain::Text(text) if is_blank(text) => return Some(()),
            _ => {}
        }
        let best = &mut self.best[field as usize];
        if best.as_ref().is_none_or(|(before, _)| rank < *before) {
            *best = Some((rank, value));
        }
        Some(())
    }

    /// The interaction, where all is plain.
    pub(super) fn interaction(mut self, rule: &Rule) -> Option<InteractionRow<'a>> {
        if self.best[Field::Explanation as usize].is_some() {
            return None;
        }
        Some(InteractionRow {
            user: id(self.take(Field::User)?)?,
            item: id(self.take(Field::Item)?)?,
            rating: match self.take(Field::Rating) {
                None => None,
                Some(value) => Some(rating(value)?),
            },
            review: match self.take(Field::Review) {
                None => None,
                Some(Plain::Text(text)) => {
                    Some(rule.markup.plain(text)).filter(|text| !is_blank(text))
                }
                Some(_) => return None,
            },
            timestamp: match self.take(Field::Timestamp) {
                None => None,
                Some(value) => Some(timestamp(value)?),
            },
            split: match self.take(Field::Split) {
                None => rule.split,
                Some(Plain::Text(text)) => Some(text.parse::<Split>().ok()?),
                Some(_) => return None,
            },
        })
    }

    fn take(&mut self, field: Field) -> Option<Plain<'a>> {
        self.best[field as usize].take().map(|(_, value)| value)
    }
}

/// Whether an interaction has this field.
pub(super) fn is_needed(field: Field) -> bool {
    !matches!(field, Field::Title | Field::Description | Field::Profile)
}

fn is_blank(text: &str) -> bool {
    // A letter ends the search at once.
    text.as_bytes()
        .first()
        .is_none_or(|&byte| byte <= b' ' || byte >= 0x80)
        && text.trim().is_empty()
}

fn id(value: Plain<'_>) -> Option<Cow<'_, str>> {
    match value {
        Plain::Text(Cow::Borrowed(id)) => Some(id.trim().into()),
        Plain::Text(Cow::Owned(id)) => Some(id.trim().to_owned().into()),
        Plain::Whole(id) => Some(id.to_string().into()),
        _ => None,
    }
}

fn rating(value: Plain<'_>) -> Option<f64> {
    let number = match value {
        Plain::Text(text) => text.trim().parse().ok()?,
        Plain::Whole(number) => number as f64,
        Plain::Number(number) => number,
        _ => return None,
    };
    number.is_finite().then_some(number)
}

fn timestamp(value: Plain<'_>) -> Option<i64> {
    match value {
        Plain::Text(text) => time::from_text(&text),
        Plain::Whole(number) => time::from_whole(number),
        Plain::Number(number) => time::from_number(number),
        _ => None,
    }
}

/// The interaction in a row of JSON.
pub(super) fn json<'a>(row: &'a str, columns: &mut Columns) -> Option<InteractionRow<'a>> {
    let mut reader = serde_json::Deserializer::from_str(row);
    let rule = columns.rule();
    let found = reader.deserialize_map(RowVisitor { columns }).ok()?;
    reader.end().ok()?;
    found.interaction(rule)
}

struct RowVisitor<'c> {
    columns: &'c mut Columns,
}

impl<'de> Visitor<'de> for RowVisitor<'_> {
    type Value = Found<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found<'de>, A::Error> {
        let mut found = Found::new();
        let mut at = 0;
        while let Some(place) = map.next_key_seed(NameSeed {
            columns: self.columns,
            at,
        })? {
            at += 1;
            match place {
                Some(place) if is_needed(place.0) => {
                    let value = map.next_value()?;
                    found
                        .put(place, value)
                        .ok_or_else(|| A::Error::custom("two columns for one field"))?;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(found)
    }
}

struct NameSeed<'c> {
    columns: &'c mut Columns,
    at: usize,
}

impl<'de> DeserializeSeed<'de> for NameSeed<'_> {
    type Value = Option<Place>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for NameSeed<'_> {
    type Value = Option<Place>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a column")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.columns.place_at(self.at, name))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Plain<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PlainVisitor)
    }
}

struct PlainVisitor;

impl<'de> Visitor<'de> for PlainVisitor {
    type Value = Plain<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Plain<'de>, E> {
        Ok(Plain::Text(text.into()))
    }

    fn visit_str<E>(self, text: &str) -> Result<Plain<'de>, E> {
        Ok(Plain::Text(text.to_owned().into()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Plain<'de>, E> {
        Ok(Plain::Whole(number))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Plain<'de>, E> {
        Ok(i64::try_from(number).map_or(Plain::Odd, Plain::Whole))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Plain<'de>, E> {
        Ok(Plain::Number(number))
    }

    fn visit_unit<E>(self) -> Result<Plain<'de>, E> {
        Ok(Plain::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Plain<'de>, E> {
        Ok(Plain::Odd)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Plain<'de>, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Plain::Odd)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Plain<'de>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Plain::Odd)
    }
}
