use std::borrow::Cow;
use std::collections::HashSet;
use std::io::BufRead;
use std::path::Path;

use because_core::jsonl;
use memchr::memchr2_iter;
use serde_json::{Map, Value};

use super::cells::Cells;
use super::entries::Entries;
use super::literal;
use super::parquet;
use super::quick::{self, Found, Plain};
use super::record::{self, Columns, Fault, InteractionRow, Place, Record, RecordKind};
use super::rule::{Encoding, Framing, Header, Rule, Syntax};
use super::{Format, source};
use crate::{Error, Result};

/// How many rows of a file, and how many bytes of them, are looked at before it is decided what its rows are.
pub(super) const SAMPLE_ROWS: usize = 100;
pub(super) const SAMPLE_BYTES: usize = 16 << 20;

/// A header with more columns than this is no header.
const MOST_COLUMNS: usize = 1 << 14;
/// A row whose fields are read one and all may have no more values than this: each takes as much memory as some twenty
/// letters, and a row of numbers hardly longer than two would take many times its length.
const MOST_VALUES: usize = 1 << 18;
const TOO_MANY_VALUES: &str = "more values than a row may have";

/// Reads the rows of one file, each from its bytes alone. What is remembered between rows (which column is which field) does
/// not change what is read, so clones on several threads read the same.
///
/// In order: [`Parser::of`] the file; [`Parser::read_header`] with its first row where [`Parser::has_header`];
/// [`Parser::decide_kind`] on its first rows where there is no [`Parser::kind`] yet; then [`Parser::parse`].
#[derive(Debug, Clone)]
pub(super) struct Parser {
    rule: &'static Rule,
    kind: Option<RecordKind>,
    columns: Columns,
    header: Vec<Column>,
}

#[derive(Debug, Clone)]
struct Column {
    name: String,
    place: Option<Place>,
    cell: Cell,
}

/// What a cell is meant to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cell {
    Text,
    Words,
    Number,
    Numbers,
}

impl Parser {
    /// By the rule that the format has for a file of this name.
    pub(super) fn of(format: Format, path: &Path) -> Self {
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy())
            .unwrap_or_default();
        let rules = format.rules();
        let rule = rules
            .iter()
            .find(|rule| rule.fits(source::unpacked_name(&name)).is_some())
            .unwrap_or(&Rule::DEFAULT);
        let mut parser = Self {
            rule,
            kind: rule.kind,
            columns: Columns::new(rule),
            header: Vec::new(),
        };
        if let Syntax::Cells {
            header: Header::Always(names),
            ..
        } = rule.syntax
        {
            parser.header = names.iter().map(|name| Column::plain(name)).collect();
            parser.place_header();
        }
        parser
    }

    /// Opens the file as the bytes that [`Parser::framing`] makes rows of: unpacked, and turned into lines where it has none.
    pub(super) fn open(&self, path: &Path) -> Result<Box<dyn BufRead>> {
        match self.rule.syntax {
            Syntax::Entries => Ok(Box::new(Entries::of(jsonl::open(path)?))),
            Syntax::Parquet => parquet::open(path),
            Syntax::Refused(reason) => Err(Error::Unreadable {
                path: path.to_owned(),
                reason: reason.to_owned(),
            }),
            Syntax::Json | Syntax::Loose | Syntax::Cells { .. } => Ok(jsonl::open(path)?),
        }
    }

    /// How the file falls into rows.
    pub(super) fn framing(&self) -> Framing {
        self.rule.framing()
    }

    /// Whether the first row of the file names the columns.
    pub(super) fn has_header(&self) -> bool {
        matches!(
            self.rule.syntax,
            Syntax::Cells {
                header: Header::FirstRow | Header::Typed,
                ..
            }
        )
    }

    /// What the rows are, once it is known.
    pub(super) fn kind(&self) -> Option<RecordKind> {
        self.kind
    }

    /// Takes the names of the columns from the row at this line.
    pub(super) fn read_header(&mut self, path: &Path, line: u64, row: &[u8]) -> Result<()> {
        let wrong = |reason: String| Error::Header {
            path: path.to_owned(),
            line,
            reason,
        };
        let row = decoded(row, self.rule.encoding)
            .map_err(|at| wrong(format!("the header is not UTF-8 from byte {} on", at + 1)))?;
        let mut header: Vec<Column> = Vec::new();
        let mut names = HashSet::new();
        for (at, cell) in self.cells(&row).enumerate() {
            if at == MOST_COLUMNS {
                return Err(wrong(format!("more than {MOST_COLUMNS} columns")));
            }
            let mut column = match self.rule.syntax {
                Syntax::Cells {
                    header: Header::Typed,
                    ..
                } => Column::typed(cell.trim()).map_err(wrong)?,
                _ => Column::plain(cell.trim()),
            };
            if column.name.is_empty() {
                column.name = format!("column {}", at + 1);
            }
            if !names.insert(column.name.clone()) {
                return Err(wrong(format!(
                    "two columns are called {:?}; rename one",
                    column.name
                )));
            }
            header.push(column);
        }
        self.header = header;
        self.place_header();
        if self.kind.is_none() {
            let names: Vec<_> = self
                .header
                .iter()
                .map(|column| column.name.as_str())
                .collect();
            return Err(wrong(format!(
                "no column is a user or an item (found: {}); the first row must name the columns, separated by commas (by tabs \
                 in a .tsv), with names like user_id and item_id",
                because_core::text::excerpt(&names.join(", "), 200)
            )));
        }
        Ok(())
    }

    fn place_header(&mut self) {
        for column in &mut self.header {
            column.place = self.columns.place(&column.name);
        }
        let names = self
            .header
            .iter()
            .map(|column| (column.name.as_str(), true));
        self.kind = self.kind.or(self.columns.kind(names));
    }

    /// What most of the first rows are. One row with both a user and an item makes it a file of pairs, because a row that
    /// lost one of its ids must not pass for a user or an item. May be asked again while none of the rows told.
    pub(super) fn decide_kind<'r>(&mut self, rows: impl IntoIterator<Item = &'r [u8]>) {
        if self.kind.is_some() {
            return;
        }
        let mut counts = [0_usize; 4];
        for row in rows.into_iter().take(SAMPLE_ROWS) {
            let kind = self.fields(row).ok().and_then(|row| self.kind_of(&row));
            if let Some(kind) = kind {
                counts[kind as usize] += 1;
            }
        }
        let count = |kind: RecordKind| counts[kind as usize];
        let (pairs, references) = (count(RecordKind::Interaction), count(RecordKind::Reference));
        let (users, items) = (count(RecordKind::User), count(RecordKind::Item));
        self.kind = if references > pairs {
            Some(RecordKind::Reference)
        } else if pairs > 0 {
            Some(RecordKind::Interaction)
        } else if users > 0 && users >= items {
            Some(RecordKind::User)
        } else if items > 0 {
            Some(RecordKind::Item)
        } else {
            None
        };
    }

    /// The record in a row that is given without its line feed.
    pub(super) fn parse<'a>(&mut self, row: &'a [u8]) -> Result<Record<'a>, Fault> {
        if self.kind == Some(RecordKind::Interaction)
            && let Some(interaction) = self.quick(row)
        {
            return Ok(Record::Interaction(interaction));
        }
        self.parse_whole(row)
    }

    /// The same the long way: through all fields of the row.
    fn parse_whole(&mut self, row: &[u8]) -> Result<Record<'static>, Fault> {
        let mut fields = self.fields(row)?;
        for (column, change) in self.rule.changes {
            change.apply(column, &mut fields)?;
        }
        self.give_types(&mut fields);
        let kind = self.kind.or_else(|| self.kind_of(&fields));
        let kind = kind.ok_or_else(|| Fault::of("neither a user nor an item", None))?;
        self.columns.record(kind, &fields)
    }

    /// Reads a row both ways, and says whether they disagree. They may where a column that an interaction does not need is at
    /// fault: the quick way passes over it.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn disagrees_with_itself(&mut self, row: &[u8]) -> bool {
        let (quick, whole) = (self.parse(row), self.clone().parse_whole(row));
        match (quick, whole) {
            (Ok(Record::Interaction(quick)), Ok(Record::Interaction(whole))) => quick != whole,
            (Ok(Record::Interaction(_)), Err(fault)) => {
                !["unreadable JSON", TOO_MANY_VALUES].contains(&fault.kind)
            }
            (Ok(_), Ok(_)) => false,
            (Err(quick), Err(whole)) => quick != whole,
            _ => true,
        }
    }

    /// The row for `rejected.jsonl`: an object where it can be read as one, its text where not. Not for rows that the framing
    /// gave up: those are shown as their text.
    pub(super) fn raw(&self, row: &[u8]) -> Value {
        let text = || String::from_utf8_lossy(row).into();
        match (self.fields(row), self.rule.syntax) {
            (Ok(fields), _) => return Value::Object(fields),
            (Err(_), Syntax::Cells { .. }) => return text(),
            (Err(fault), _) if fault.kind == TOO_MANY_VALUES => return text(),
            _ => {}
        }
        // A list or a number is no row, but it is no text either.
        let row = row.trim_ascii();
        serde_json::from_slice(row).unwrap_or_else(|_| String::from_utf8_lossy(row).into())
    }

    fn quick<'a>(&mut self, row: &'a [u8]) -> Option<InteractionRow<'a>> {
        if let Syntax::Cells { .. } = self.rule.syntax {
            return match decoded(row, self.rule.encoding).ok()? {
                Cow::Borrowed(row) => self.quick_cells(row),
                Cow::Owned(row) => Some(self.quick_cells(&row)?.into_owned()),
            };
        }
        let row = std::str::from_utf8(row).ok()?.trim_ascii();
        match self.rule.syntax {
            Syntax::Loose if !is_json(row) => None,
            _ => quick::json(row, &mut self.columns),
        }
    }

    fn kind_of(&mut self, row: &Map<String, Value>) -> Option<RecordKind> {
        let columns = row.iter();
        self.columns
            .kind(columns.map(|(name, value)| (name.as_str(), record::is_filled(value))))
    }

    /// The row's fields under the names of its columns.
    fn fields(&self, row: &[u8]) -> Result<Map<String, Value>, Fault> {
        match self.rule.syntax {
            Syntax::Cells { .. } => self.cell_fields(row),
            Syntax::Loose => loose_fields(few_values(utf8(row)?)?),
            _ => json_fields(few_values(utf8(row)?)?),
        }
    }

    fn cells<'a>(&self, row: &'a str) -> Cells<'a> {
        let Syntax::Cells {
            separator, quotes, ..
        } = self.rule.syntax
        else {
            return Cells::of(row, "\n", false);
        };
        Cells::of(row, separator, quotes)
    }

    fn quick_cells<'a>(&self, row: &'a str) -> Option<InteractionRow<'a>> {
        let mut found = Found::new();
        let mut cells = self.cells(row);
        for column in &self.header {
            let cell = cells.next()?;
            if let Some(place) = column.place {
                found.put(place, Plain::Text(cell))?;
            }
        }
        if cells.next().is_some() {
            return None;
        }
        found.interaction(self.rule)
    }

    fn cell_fields(&self, row: &[u8]) -> Result<Map<String, Value>, Fault> {
        let text = decoded(row, self.rule.encoding);
        let is_utf8 = text.is_ok();
        let text = text.unwrap_or_else(|_| String::from_utf8_lossy(row));
        let columns = self.header.len();
        let mut rest = self.cells(&text);
        let cells: Vec<Cow<'_, str>> = rest.by_ref().take(columns).collect();
        let count = cells.len() + rest.count();
        if count != columns {
            return Err(Fault {
                field: None,
                kind: "another number of fields than the header",
                reason: format!("{count} fields where the header has {columns}"),
            });
        }
        if !is_utf8 {
            return Err(self.not_utf8(row));
        }
        let named = self.header.iter().zip(cells);
        Ok(named
            .map(|(column, cell)| (column.name.clone(), cell.into()))
            .collect())
    }

    /// Has cells be what their columns' types say, where no field of ours reads them: those know best what they are.
    fn give_types(&self, fields: &mut Map<String, Value>) {
        for column in &self.header {
            if column.cell == Cell::Text || column.place.is_some() {
                continue;
            }
            let Some(Value::String(text)) = fields.get(&column.name) else {
                continue;
            };
            let words = text.split(' ').filter(|word| !word.is_empty());
            let typed = match column.cell {
                Cell::Text => continue,
                Cell::Number => number(text),
                Cell::Words => words.collect(),
                Cell::Numbers => words.map(number).collect(),
            };
            fields.insert(column.name.clone(), typed);
        }
    }

    /// In which column a row is not UTF-8, and where in it.
    fn not_utf8(&self, row: &[u8]) -> Fault {
        let Err(error) = std::str::from_utf8(row) else {
            return Fault::utf8(0);
        };
        let at = error.valid_up_to();
        let before = String::from_utf8_lossy(&row[..at]);
        let cells: Vec<_> = self.cells(&before).collect();
        let place = cells.last().map_or(0, |cell| cell.len());
        match self.header.get(cells.len().saturating_sub(1)) {
            Some(column) => Fault::utf8(place).in_field(&column.name),
            None => Fault::utf8(at),
        }
    }
}

/// The text of a row, or from which byte on it is none.
fn decoded(row: &[u8], encoding: Encoding) -> Result<Cow<'_, str>, usize> {
    match (std::str::from_utf8(row), encoding) {
        (Ok(text), _) => Ok(text.into()),
        (Err(_), Encoding::Latin1) => Ok(row.iter().map(|&byte| char::from(byte)).collect()),
        (Err(error), Encoding::Utf8) => Err(error.valid_up_to()),
    }
}

/// A number where the text is one.
fn number(text: &str) -> Value {
    let text = text.trim();
    if let Ok(whole) = text.parse::<i64>() {
        return whole.into();
    }
    let number = text.parse().ok().and_then(serde_json::Number::from_f64);
    number.map_or_else(|| text.into(), Value::Number)
}

fn utf8(row: &[u8]) -> Result<&str, Fault> {
    let row = row.trim_ascii();
    std::str::from_utf8(row).map_err(|error| Fault::utf8(error.valid_up_to()))
}

/// The row, where it cannot have more than [`MOST_VALUES`]: each but the first stands behind a comma or a colon.
fn few_values(row: &str) -> Result<&str, Fault> {
    // Two bytes a value are the least.
    if row.len() / 2 > MOST_VALUES && memchr2_iter(b',', b':', row.as_bytes()).count() > MOST_VALUES
    {
        return Err(Fault {
            field: None,
            kind: TOO_MANY_VALUES,
            reason: format!("{TOO_MANY_VALUES}: over {MOST_VALUES} commas and colons"),
        });
    }
    Ok(row)
}

fn json_fields(row: &str) -> Result<Map<String, Value>, Fault> {
    match serde_json::from_str(row) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(Fault::of("not a JSON object", None)),
        Err(error) => Err(Fault::json(&error)),
    }
}

/// Whether a row is rather JSON than a Python literal: by its first quote.
fn is_json(row: &str) -> bool {
    let first = row.trim_start_matches(['{', ' ', '\t']).chars().next();
    !matches!(first, Some('\'' | 'u'))
}

fn loose_fields(row: &str) -> Result<Map<String, Value>, Fault> {
    if is_json(row) {
        return match json_fields(row) {
            Ok(fields) => Ok(fields),
            Err(fault) => match literal::parse(row) {
                Ok(Value::Object(fields)) => Ok(fields),
                _ => Err(fault),
            },
        };
    }
    match literal::parse(row) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(Fault::of("not a dict", None)),
        Err(error) => Err(Fault::literal(error)),
    }
}

impl Column {
    fn plain(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            place: None,
            cell: Cell::Text,
        }
    }

    /// From `name:type`.
    fn typed(header: &str) -> Result<Self, String> {
        let Some((name, kind)) = header.rsplit_once(':') else {
            return Err(format!(
                "the column {header:?} has no type; RecBole's columns are named like user_id:token or rating:float"
            ));
        };
        let cell = match kind.trim() {
            "token" => Cell::Text,
            "token_seq" => Cell::Words,
            "float" => Cell::Number,
            "float_seq" => Cell::Numbers,
            other => {
                return Err(format!(
                    "the column {name:?} is of the type {other:?}, which is not token, token_seq, float or float_seq"
                ));
            }
        };
        Ok(Self {
            cell,
            ..Self::plain(name.trim())
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parser(format: Format, name: &str, header: &str) -> Parser {
        let path = Path::new(name);
        let mut parser = Parser::of(format, path);
        if parser.has_header() {
            parser.read_header(path, 1, header.as_bytes()).unwrap();
        }
        parser.kind = Some(RecordKind::Interaction);
        parser
    }

    fn interaction<'a>(parser: &mut Parser, row: &'a str) -> InteractionRow<'a> {
        match parser.parse(row.as_bytes()).unwrap() {
            Record::Interaction(interaction) => interaction,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_plain_interaction_is_not_copied() {
        let mut json = parser(Format::Jsonl, "a.jsonl", "");
        let row = r#"{"x": [{"deep": 1e999}], "reviewText": "good", "user_id": " u ", "asin": "i", "overall": "4", "unixReviewTime": 7, "split": "tst"}"#;
        let found = interaction(&mut json, row);
        assert!(matches!(
            (&found.user, &found.item, &found.review),
            (Cow::Borrowed(_), Cow::Borrowed(_), Some(Cow::Borrowed(_)))
        ));
        assert_eq!(
            (&*found.user, found.rating, found.timestamp),
            ("u", Some(4.0), Some(7))
        );
        assert_eq!(found.split, Some(because_core::Split::Test));

        let mut csv = parser(Format::Csv, "a.csv", "user,x,item,review,time");
        let found = interaction(&mut csv, "u,,i,\"good, or not\",2018-07-07");
        assert!(matches!(found.review, Some(Cow::Borrowed("good, or not"))));
        assert_eq!((&*found.item, found.timestamp), ("i", Some(1_530_921_600)));
    }

    #[test]
    fn a_row_of_more_values_than_it_may_have_is_refused_and_shown_as_its_text() {
        let numbers = "1,".repeat(MOST_VALUES + 1);
        for row in [
            format!("{{\"user\": \"\", \"item\": \"i\", \"x\": [{numbers}1]}}"),
            format!("[{numbers}1]"),
        ] {
            let mut json = parser(Format::Jsonl, "a.jsonl", "");
            let fault = json.parse(row.as_bytes()).unwrap_err();
            assert_eq!(fault.kind, TOO_MANY_VALUES);
            assert_eq!(json.raw(row.as_bytes()), Value::String(row.clone()));
        }
        // What an interaction does not need is passed over, and a long text is one value.
        let mut json = parser(Format::Jsonl, "a.jsonl", "");
        let row = format!("{{\"user\": \"u\", \"item\": \"i\", \"x\": [{numbers}1]}}");
        assert_eq!(interaction(&mut json, &row).user, "u");
        assert!(!json.disagrees_with_itself(row.as_bytes()));
        let mut csv = parser(Format::Csv, "a.csv", "user,item");
        let fault = csv.parse(numbers.as_bytes()).unwrap_err();
        let said = format!("{} fields where the header has 2", MOST_VALUES + 2);
        assert_eq!(fault.reason, said);
    }

    #[test]
    fn a_header_of_commas_is_refused_at_once() {
        let path = Path::new("a.csv");
        let header = ",".repeat(super::super::blocks::MAX_ROW_BYTES - 1);
        let read = Parser::of(Format::Csv, path).read_header(path, 1, header.as_bytes());
        let said = read.unwrap_err().to_string();
        assert!(
            said.ends_with("a.csv: line 1: more than 16384 columns"),
            "{said}"
        );
    }

    #[test]
    fn rows_with_other_columns_than_the_one_before_are_read() {
        let mut json = parser(Format::Jsonl, "a.jsonl", "");
        for (row, user) in [
            (r#"{"user":"a","item":"i"}"#, "a"),
            (r#"{"item":"i","user":"b"}"#, "b"),
            (r#"{"uid":"c","iid":"i","user":null}"#, "c"),
            (r#"{"uid":"no","user":"d","item":"i"}"#, "d"),
            (r#"{"user":"no","user":"e","item":"i"}"#, "e"),
        ] {
            assert_eq!(interaction(&mut json, row).user, user, "{row}");
            assert!(!json.disagrees_with_itself(row.as_bytes()), "{row}");
        }
    }

    fn json_row() -> impl Strategy<Value = String> {
        let name = prop::sample::select(vec![
            "user",
            "item",
            "rating",
            "review",
            "time",
            "split",
            "explanation",
            "x",
            "user_id",
            "\\u0075ser",
            "title",
        ]);
        let value = prop::sample::select(vec![
            "1",
            "-1",
            "1.5",
            "\"a\"",
            "\" b \"",
            "\"\"",
            "null",
            "true",
            "[\"x\"]",
            "{}",
            "\"4.5\"",
            "\"NaN\"",
            "\"test\"",
            "1e400",
            "\"2018-07-07\"",
            "99999999999999999999",
            "18446744073709551615",
            "\"\\u00e9\\n\"",
            "\"\u{a0}\"",
            "nope",
            "[[1]]",
            "1531001351123",
        ]);
        prop::collection::vec((name, value), 0..7).prop_map(|fields| {
            let fields: Vec<_> = fields
                .iter()
                .map(|(name, value)| format!("\"{name}\":{value}"))
                .collect();
            format!("{{{}}}", fields.join(","))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn the_quick_way_reads_what_the_long_way_reads(row in json_row()) {
            let mut parser = parser(Format::Jsonl, "a.jsonl", "");
            prop_assert!(!parser.disagrees_with_itself(row.as_bytes()));
        }

        #[test]
        fn cells_are_read_alike_both_ways(cells in prop::collection::vec("[a1\"., é-]{0,5}", 4..7), header in 0_usize..2) {
            let header = ["user,item,rating,review,time", "item,user_id,user,rating,x"][header];
            let mut parser = parser(Format::Csv, "a.csv", header);
            prop_assert!(!parser.disagrees_with_itself(cells.join(",").as_bytes()));
        }

        #[test]
        fn no_bytes_stop_any_parser(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            for format in Format::ALL {
                for name in ["a.jsonl", "a.csv", "meta_a.json", "u.item", "movies.dat", "a.item", "usr_prf.json", "item_profile.json", "x"] {
                    let mut parser = Parser::of(format, Path::new(name));
                    let _ = parser.read_header(Path::new(name), 1, b"user_id:token\titem_id:token");
                    parser.decide_kind([&*bytes]);
                    parser.disagrees_with_itself(&bytes);
                    parser.raw(&bytes);
                }
            }
        }
    }
}
