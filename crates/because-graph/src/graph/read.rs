use std::borrow::Cow;
use std::fmt;
use std::path::Path;

use because_core::{Project, Split, jsonl};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};

use crate::table::{Row, Table};
use crate::{Error, Result};

/// The interactions of a project without their texts, with every user and item that its files name.
pub(super) fn table(project: &Project) -> Result<Table> {
    let mut table = Table::default();
    let path = project.interactions_path();
    interactions(&path, |_, read| {
        let user = table.users.intern(&read.user.0)?;
        let item = table.items.intern(&read.item.0)?;
        let mut row = Row::new(user, item)
            .with_rating(read.rating)
            .with_timestamp(read.timestamp);
        row.split = read.split;
        table.rows.push(row);
        Ok(())
    })?;
    let users = project.users_path();
    each_line(&users, |_, line| {
        let named: NamedUser<'_> = serde_json::from_slice(line)?;
        Ok(table.users.intern(&named.user.0).map(drop))
    })?;
    let items = project.items_path();
    each_line(&items, |_, line| {
        let named: NamedItem<'_> = serde_json::from_slice(line)?;
        Ok(table.items.intern(&named.item.0).map(drop))
    })?;
    Ok(table)
}

/// Reads the interactions of a file one by one, each with the byte that its line begins at.
pub(super) fn interactions(
    path: &Path,
    mut each: impl FnMut(u64, Read<'_>) -> Result<()>,
) -> Result<()> {
    if !path.exists() {
        return Err(Error::File(because_core::Error::Missing {
            path: path.to_owned(),
            hint: "make it with `because import`",
        }));
    }
    each_line(path, |start, line| {
        Ok(each(start, serde_json::from_slice(line)?))
    })
}

/// One interaction; its text is known to be there and passed over.
#[derive(Deserialize)]
pub(super) struct Read<'a> {
    #[serde(borrow)]
    pub(super) user: Id<'a>,
    #[serde(borrow)]
    pub(super) item: Id<'a>,
    #[serde(default)]
    pub(super) rating: Option<f64>,
    #[serde(default)]
    pub(super) timestamp: Option<i64>,
    #[serde(default)]
    pub(super) split: Option<Split>,
    #[serde(default)]
    pub(super) review: Option<Said>,
}

#[derive(Deserialize)]
struct NamedUser<'a> {
    #[serde(borrow)]
    user: Id<'a>,
}

#[derive(Deserialize)]
struct NamedItem<'a> {
    #[serde(borrow)]
    item: Id<'a>,
}

/// An id as because-core reads it, without a copy where the file has it as it is.
pub(super) struct Id<'a>(pub(super) Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Id<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(IdVisitor)
    }
}

struct IdVisitor;

impl IdVisitor {
    fn filled<E: de::Error>(self, id: &str) -> Result<&str, E> {
        match id {
            "" => Err(E::invalid_value(de::Unexpected::Str(id), &self)),
            id => Ok(id),
        }
    }
}

impl<'de> Visitor<'de> for IdVisitor {
    type Value = Id<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an id (a string that is not empty, or a whole number)")
    }

    fn visit_borrowed_str<E: de::Error>(self, id: &'de str) -> Result<Self::Value, E> {
        self.filled(id).map(|id| Id(Cow::Borrowed(id)))
    }

    fn visit_str<E: de::Error>(self, id: &str) -> Result<Self::Value, E> {
        self.filled(id).map(|id| Id(Cow::Owned(id.to_owned())))
    }

    fn visit_u64<E: de::Error>(self, id: u64) -> Result<Self::Value, E> {
        Ok(Id(Cow::Owned(id.to_string())))
    }

    fn visit_i64<E: de::Error>(self, id: i64) -> Result<Self::Value, E> {
        Ok(Id(Cow::Owned(id.to_string())))
    }
}

/// A text that is passed over: only whether it says anything is kept.
pub(super) struct Said(pub(super) bool);

impl<'de> Deserialize<'de> for Said {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(SaidVisitor)
    }
}

struct SaidVisitor;

impl Visitor<'_> for SaidVisitor {
    type Value = Said;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Said, E> {
        Ok(Said(!text.trim().is_empty()))
    }
}

/// Gives every line that is not blank, with the byte it begins at, counted in the unpacked text. A file that is not there
/// has no lines.
fn each_line(
    path: &Path,
    mut each: impl FnMut(u64, &[u8]) -> serde_json::Result<Result<()>>,
) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let mut source = jsonl::open(path)?;
    let (mut buffer, mut start) = (Vec::new(), 0);
    for line in 1.. {
        buffer.clear();
        let read = source
            .read_until(b'\n', &mut buffer)
            .map_err(|source| because_core::Error::io("read", path, source))?;
        if read == 0 {
            break;
        }
        let text = trimmed(&buffer);
        if !text.is_empty() {
            match each(start, text) {
                Ok(done) => done?,
                Err(error) => {
                    return Err(Error::File(because_core::Error::Line {
                        path: path.to_owned(),
                        line,
                        reason: reason(&error),
                    }));
                }
            }
        }
        start += read as u64;
    }
    Ok(())
}

/// A line without its end, and without the mark that some editors put before the first.
pub(super) fn trimmed(line: &[u8]) -> &[u8] {
    let line = line.trim_ascii();
    line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line)
}

/// What serde_json says, without its own position: a record is one line, and that line is named already.
fn reason(error: &serde_json::Error) -> String {
    let said = error.to_string();
    match said.rfind(" at line ") {
        Some(cut) => format!("{} (column {})", &said[..cut], error.column()),
        None => said,
    }
}
