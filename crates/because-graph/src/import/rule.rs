use because_core::Split;

use super::RecordKind;
use super::change::Change;
use super::markup::Markup;
use super::record::Names;

/// How the files of these names are read: all that the files of all formats differ in, as data.
#[derive(Debug)]
pub(super) struct Rule {
    /// The names without `.gz` and `.zst`, in small letters; `*` stands for anything.
    pub(super) files: &'static [&'static str],
    /// Whether they are looked for in a folder, or only read when they are named.
    pub(super) in_folders: bool,
    /// What their rows are, where the name of the file says it; the columns say it else.
    pub(super) kind: Option<RecordKind>,
    /// How a row is written.
    pub(super) syntax: Syntax,
    /// In which letters.
    pub(super) encoding: Encoding,
    /// Which columns are which fields.
    pub(super) names: Names,
    /// What the texts hold that was meant for a browser.
    pub(super) markup: Markup,
    /// What is done to which column; never to one that an interaction is made of, because those are read without it.
    pub(super) changes: &'static [(&'static str, Change)],
    /// The split of every interaction, where the name of the file says it.
    pub(super) split: Option<Split>,
}

/// How rows are written.
#[derive(Debug, Clone, Copy)]
pub(super) enum Syntax {
    /// One JSON object a line.
    Json,
    /// One JSON object or one Python literal a line.
    Loose,
    /// One JSON object in the file, an entry for each row.
    Entries,
    /// Cells with a separator between them.
    Cells {
        /// What stands between two cells.
        separator: &'static str,
        /// Whether a cell may stand in quotes, and then hold separators and line feeds.
        quotes: bool,
        /// What names the columns.
        header: Header,
    },
    /// Apache Parquet, each row of it as an object.
    Parquet,
    /// Not read; what to do instead.
    Refused(&'static str),
}

/// What names the columns of cells.
#[derive(Debug, Clone, Copy)]
pub(super) enum Header {
    /// The first row.
    FirstRow,
    /// The first row, with a type behind each name (`age:token`).
    Typed,
    /// No row: these are the columns.
    Always(&'static [&'static str]),
}

/// The letters of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Utf8,
    /// Latin-1 in each row that is no UTF-8: there are copies in both, and what is both means UTF-8.
    Latin1,
}

/// How the bytes of a file fall into rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// A row is a line.
    Lines,
    /// A row is a line, unless a quoted cell holds line feeds.
    Quoted {
        /// What stands between two cells.
        delimiter: u8,
    },
}

impl Rule {
    /// Left out by most rules.
    pub(super) const DEFAULT: Self = Self {
        files: &["*"],
        in_folders: false,
        kind: None,
        syntax: Syntax::Json,
        encoding: Encoding::Utf8,
        names: super::record::NAMES,
        markup: Markup::None,
        changes: &[],
        split: None,
    };

    /// The place of the first of its patterns that a name (unpacked) fits.
    pub(super) fn fits(&self, name: &str) -> Option<usize> {
        let name = name.to_lowercase();
        self.files.iter().position(|pattern| fits(pattern, &name))
    }

    pub(super) fn framing(&self) -> Framing {
        match self.syntax {
            Syntax::Cells {
                separator,
                quotes: true,
                ..
            } => Framing::Quoted {
                delimiter: separator.as_bytes()[0],
            },
            _ => Framing::Lines,
        }
    }
}

/// Whether a name fits a pattern whose `*` stand for anything. The first star takes as little as it can, so no pattern takes
/// long.
fn fits(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(mut name) = name.strip_prefix(start) else {
        return false;
    };
    let mut parts = rest.split('*').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return name.ends_with(part);
        }
        let Some(at) = name.find(part) else {
            return false;
        };
        name = &name[at + part.len()..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_anything() {
        for (pattern, name, expected) in [
            ("u.data", "u.data", true),
            ("u.data", "xu.data", false),
            ("meta_*.json", "meta_books.json", true),
            ("meta_*.json", "meta_books.jsonl", false),
            ("*_5.json", "books_5.json", true),
            ("*.train.*", "books.train.csv", true),
            ("*.train.*", "books.test.csv", false),
            ("*", "", true),
            ("a*a", "a", false),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }
}
