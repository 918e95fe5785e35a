use std::borrow::Cow;
use std::collections::HashMap;

use because_core::text::excerpt;
use because_core::{Attributes, Interaction, Item, ItemId, Reference, Split, User, UserId};
use serde::Serialize;
use serde_json::{Map, Value};

use super::literal::LiteralError;
use super::rule::Rule;
use super::time;

/// What a row says, which decides the file it goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RecordKind {
    /// A user and an item.
    Interaction,
    /// A user, an item and an explanation to measure against.
    Reference,
    /// A user alone.
    User,
    /// An item alone.
    Item,
}

/// A row that was taken.
#[derive(Debug)]
pub(super) enum Record<'a> {
    Interaction(InteractionRow<'a>),
    Reference(Reference),
    User(User),
    Item(Item),
}

/// An interaction whose texts stand in the row it was read from, where they stand there as they are.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct InteractionRow<'a> {
    pub(super) user: Cow<'a, str>,
    pub(super) item: Cow<'a, str>,
    pub(super) rating: Option<f64>,
    pub(super) review: Option<Cow<'a, str>>,
    pub(super) timestamp: Option<i64>,
    pub(super) split: Option<Split>,
}

impl InteractionRow<'_> {
    pub(super) fn into_owned(self) -> InteractionRow<'static> {
        InteractionRow {
            user: self.user.into_owned().into(),
            item: self.item.into_owned().into(),
            rating: self.rating,
            review: self.review.map(|review| review.into_owned().into()),
            timestamp: self.timestamp,
            split: self.split,
        }
    }
}

impl From<InteractionRow<'_>> for Interaction {
    fn from(row: InteractionRow<'_>) -> Self {
        Self {
            user: UserId::from(&*row.user),
            item: ItemId::from(&*row.item),
            rating: row.rating,
            review: row.review.map(Cow::into_owned),
            timestamp: row.timestamp,
            split: row.split,
        }
    }
}

/// Why a row is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// The column as the file calls it.
    pub(super) field: Option<String>,
    /// The kind of fault, the same for all rows that have it: what the summary counts.
    pub(super) kind: &'static str,
    /// The fault of this very row.
    pub(super) reason: String,
}

impl Fault {
    pub(super) fn of(kind: &'static str, field: Option<&str>) -> Self {
        Self {
            field: field.map(str::to_owned),
            kind,
            reason: kind.to_owned(),
        }
    }

    pub(super) fn in_field(mut self, field: &str) -> Self {
        self.field = Some(field.to_owned());
        self
    }

    pub(super) fn utf8(at: usize) -> Self {
        Self {
            field: None,
            kind: "not UTF-8",
            reason: format!("not UTF-8 from byte {} on", at + 1),
        }
    }

    pub(super) fn json(error: &serde_json::Error) -> Self {
        let said = error.to_string();
        // A row is one line, and that line is named already.
        let said = said
            .split_once(" at line ")
            .map_or(&*said, |(said, _)| said);
        Self {
            field: None,
            kind: "unreadable JSON",
            reason: format!("unreadable JSON: {said} (column {})", error.column()),
        }
    }

    pub(super) fn literal(error: LiteralError) -> Self {
        Self {
            field: None,
            kind: "unreadable Python literal",
            reason: format!(
                "unreadable Python literal: {} (byte {})",
                error.what,
                error.at + 1
            ),
        }
    }

    fn value(column: &str, kind: &'static str, name: &str, value: &Value, what: &str) -> Self {
        let shown = excerpt(&value.to_string(), 40);
        Self {
            field: Some(column.to_owned()),
            kind,
            reason: format!("{name} {shown} {what}"),
        }
    }
}

/// A field of ours; data sets call it by many names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    User,
    Item,
    Rating,
    Review,
    Timestamp,
    Title,
    Description,
    Profile,
    Split,
    Explanation,
    /// The split of a reference's pair in the graph that others trained on.
    GraphSplit,
}

pub(super) const FIELDS: usize = 11;

/// The names of each field's columns, in small letters and without `_`, `-` and blanks.
pub(super) type Names = &'static [(Field, &'static [&'static str])];

/// A field, and how well known the column's name is for it: of two columns for one field the lower is read.
pub(super) type Place = (Field, usize);

/// The names known for each field; of two in one row the one that stands first here is read. They are compared without
/// case, `_`, `-` and blanks, so `user_id`, `userId` and `UserID` are one name.
pub(super) const NAMES: Names = &[
    (Field::User, &["user", "userid", "uid", "reviewerid"]),
    (
        Field::Item,
        &[
            "item",
            "itemid",
            "iid",
            "parentasin",
            "asin",
            "movieid",
            "businessid",
            "productid",
        ],
    ),
    (Field::Rating, &["rating", "stars", "overall", "score"]),
    (Field::Review, &["review", "reviewtext", "text", "body"]),
    (
        Field::Timestamp,
        &["timestamp", "unixreviewtime", "time", "date"],
    ),
    (Field::Title, &["title", "name"]),
    (Field::Description, &["description"]),
    (Field::Profile, &["profile"]),
    (Field::Split, &["split"]),
    (Field::Explanation, &["explanation"]),
    (Field::GraphSplit, &["graphsplit"]),
];

/// Remembers which column of a file is which field, so that names are compared once and not for every row.
#[derive(Debug, Clone)]
pub(super) struct Columns {
    rule: &'static Rule,
    known: HashMap<String, Option<Place>>,
    /// The columns as the rows before had them: most rows have the same in the same order.
    order: Vec<(String, Option<Place>)>,
}

/// Rows may have names without end (a map written as a row); beyond this they are not worth remembering.
const MOST_KNOWN: usize = 1000;
/// A longer name is none of ours, and a thousand such would fill the memory.
const LONGEST_NAME: usize = 200;

impl Columns {
    pub(super) fn new(rule: &'static Rule) -> Self {
        Self {
            rule,
            known: HashMap::new(),
            order: Vec::new(),
        }
    }

    pub(super) fn rule(&self) -> &'static Rule {
        self.rule
    }

    /// The field of the column at `at` in its row.
    pub(super) fn place_at(&mut self, at: usize, column: &str) -> Option<Place> {
        if let Some((known, place)) = self.order.get(at)
            && known == column
        {
            return *place;
        }
        let place = self.place(column);
        if column.len() > LONGEST_NAME {
            return place;
        }
        if at < self.order.len() {
            self.order[at] = (column.to_owned(), place);
        } else if at == self.order.len() && at < MOST_KNOWN {
            self.order.push((column.to_owned(), place));
        }
        place
    }

    pub(super) fn place(&mut self, column: &str) -> Option<Place> {
        if column.len() > LONGEST_NAME {
            return None;
        }
        if let Some(&place) = self.known.get(column) {
            return place;
        }
        let name: String = column
            .chars()
            .filter(|c| !matches!(c, '_' | '-' | ' '))
            .flat_map(char::to_lowercase)
            .collect();
        let place = self.rule.names.iter().find_map(|(field, names)| {
            let rank = names.iter().position(|known| *known == name)?;
            Some((*field, rank))
        });
        if self.known.len() < MOST_KNOWN {
            self.known.insert(column.to_owned(), place);
        }
        place
    }

    /// What the names of the columns make of a row; `filled` says whether a column has something in it.
    pub(super) fn kind<'a>(
        &mut self,
        columns: impl Iterator<Item = (&'a str, bool)>,
    ) -> Option<RecordKind> {
        let mut has = [false; FIELDS];
        for (column, filled) in columns {
            if let Some((field, _)) = self.place(column) {
                // An id that is null is still meant to be there.
                has[field as usize] |= filled || matches!(field, Field::User | Field::Item);
            }
        }
        let [user, item, explanation] =
            [Field::User, Field::Item, Field::Explanation].map(|field| has[field as usize]);
        match (user, item) {
            (true, true) if explanation => Some(RecordKind::Reference),
            (true, true) => Some(RecordKind::Interaction),
            (true, false) => Some(RecordKind::User),
            (false, true) => Some(RecordKind::Item),
            (false, false) => None,
        }
    }

    /// Reads a row of a file of this kind.
    pub(super) fn record(
        &mut self,
        kind: RecordKind,
        fields: &Map<String, Value>,
    ) -> Result<Record<'static>, Fault> {
        let row = self.pick(fields);
        match kind {
            RecordKind::Reference => row.reference(),
            RecordKind::Interaction if row.get(Field::Explanation).is_some() => row.reference(),
            RecordKind::Interaction => Ok(Record::Interaction(row.interaction()?.into_owned())),
            RecordKind::User => Ok(Record::User(User {
                user: UserId::from(&*row.user()?),
                profile: row.owned(Field::Profile)?,
                attributes: row.attributes(&[Field::User, Field::Profile])?,
            })),
            RecordKind::Item => Ok(Record::Item(Item {
                item: ItemId::from(&*row.item()?),
                title: row.owned(Field::Title)?,
                description: row.owned(Field::Description)?,
                profile: row.owned(Field::Profile)?,
                attributes: row.attributes(&[
                    Field::Item,
                    Field::Title,
                    Field::Description,
                    Field::Profile,
                ])?,
            })),
        }
    }

    fn pick<'a>(&mut self, fields: &'a Map<String, Value>) -> Picked<'a> {
        let mut found = [None::<(usize, &str, &Value)>; FIELDS];
        let mut named = Vec::new();
        for (column, value) in fields {
            let Some((field, rank)) = self.place(column) else {
                continue;
            };
            named.push((column.as_str(), field));
            let best = &mut found[field as usize];
            if is_filled(value) && best.is_none_or(|(before, ..)| rank < before) {
                *best = Some((rank, column, value));
            }
        }
        Picked {
            rule: self.rule,
            fields,
            named,
            found,
        }
    }
}

pub(super) fn is_filled(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.trim().is_empty(),
        _ => true,
    }
}

/// Whether an attribute says anything.
fn says_something(value: &Value) -> bool {
    match value {
        Value::Array(list) => list.iter().any(says_something),
        Value::Object(fields) => fields.values().any(says_something),
        value => is_filled(value),
    }
}

/// A text that is not blank; one of tags alone has become so.
fn filled(text: Cow<'_, str>) -> Option<Cow<'_, str>> {
    (!text.trim().is_empty()).then_some(text)
}

/// One row with its fields found.
struct Picked<'a> {
    rule: &'static Rule,
    fields: &'a Map<String, Value>,
    /// Every column that is a field of ours, read or not.
    named: Vec<(&'a str, Field)>,
    found: [Option<(usize, &'a str, &'a Value)>; FIELDS],
}

impl<'a> Picked<'a> {
    fn get(&self, field: Field) -> Option<(&'a str, &'a Value)> {
        self.found[field as usize].map(|(_, column, value)| (column, value))
    }

    fn user(&self) -> Result<Cow<'a, str>, Fault> {
        self.id(Field::User, "user", ["missing user", "user is not an id"])
    }

    fn item(&self) -> Result<Cow<'a, str>, Fault> {
        self.id(Field::Item, "item", ["missing item", "item is not an id"])
    }

    fn id(
        &self,
        field: Field,
        name: &str,
        [missing, wrong]: [&'static str; 2],
    ) -> Result<Cow<'a, str>, Fault> {
        match self.get(field) {
            None => Err(Fault::of(missing, Some(name))),
            Some((_, Value::String(id))) => Ok(id.trim().into()),
            Some((_, Value::Number(id))) if id.is_i64() || id.is_u64() => Ok(id.to_string().into()),
            Some((column, value)) => Err(Fault::value(
                column,
                wrong,
                name,
                value,
                "is not an id (a text that is not empty, or a whole number)",
            )),
        }
    }

    /// A text; a number stands for its digits, and a list of texts (Amazon's descriptions) for its lines.
    fn text(&self, field: Field) -> Result<Option<Cow<'a, str>>, Fault> {
        let Some((column, value)) = self.get(field) else {
            return Ok(None);
        };
        let wrong = || Fault::value(column, "not a text", column, value, "is not a text");
        match value {
            Value::String(text) => Ok(filled(self.rule.markup.plain(text.into()))),
            Value::Number(number) => Ok(Some(number.to_string().into())),
            Value::Array(lines) => {
                let lines: Option<Vec<&str>> = lines.iter().map(Value::as_str).collect();
                let text = lines.ok_or_else(wrong)?.join("\n");
                Ok(filled(self.rule.markup.plain(text.into())))
            }
            _ => Err(wrong()),
        }
    }

    fn owned(&self, field: Field) -> Result<Option<String>, Fault> {
        Ok(self.text(field)?.map(Cow::into_owned))
    }

    fn rating(&self) -> Result<Option<f64>, Fault> {
        let Some((column, value)) = self.get(Field::Rating) else {
            return Ok(None);
        };
        let wrong = |kind, what| Fault::value(column, kind, "rating", value, what);
        let number = match value {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        match number {
            None => Err(wrong("rating is not a number", "is not a number")),
            Some(number) if !number.is_finite() => {
                Err(wrong("rating is not finite", "is not a finite number"))
            }
            Some(number) => Ok(Some(number)),
        }
    }

    fn timestamp(&self) -> Result<Option<i64>, Fault> {
        let Some((column, value)) = self.get(Field::Timestamp) else {
            return Ok(None);
        };
        match time::seconds(value) {
            Some(seconds) => Ok(Some(seconds)),
            None => Err(Fault::value(
                column,
                "timestamp is not a time",
                "timestamp",
                value,
                "is not a time (seconds since 1970, or YYYY-MM-DD HH:MM:SS)",
            )),
        }
    }

    fn split(&self, field: Field) -> Result<Option<Split>, Fault> {
        let Some((column, value)) = self.get(field) else {
            return Ok(None);
        };
        match value.as_str().map(str::parse) {
            Some(Ok(split)) => Ok(Some(split)),
            _ => Err(Fault::value(
                column,
                "split is not train, valid, test or hidden",
                "split",
                value,
                "is not train, valid, test or hidden",
            )),
        }
    }

    fn interaction(&self) -> Result<InteractionRow<'a>, Fault> {
        Ok(InteractionRow {
            user: self.user()?,
            item: self.item()?,
            rating: self.rating()?,
            review: self.text(Field::Review)?,
            timestamp: self.timestamp()?,
            split: self.split(Field::Split)?.or(self.rule.split),
        })
    }

    fn reference(&self) -> Result<Record<'static>, Fault> {
        let (user, item) = (self.user()?, self.item()?);
        let explanation = self
            .owned(Field::Explanation)?
            .ok_or_else(|| Fault::of("missing explanation", Some("explanation")))?;
        Ok(Record::Reference(Reference {
            user: UserId::from(&*user),
            item: ItemId::from(&*item),
            explanation,
            graph_split: self.split(Field::GraphSplit)?,
        }))
    }

    /// Every filled column that was not read as one of `taken`, nor says the same as the one that was; the entries of an `attributes` object come along, and give
    /// way to a column of the same name.
    fn attributes(&self, taken: &[Field]) -> Result<Attributes, Fault> {
        let is_taken = |field: Field, column: &str, value: &Value| {
            let read = self.get(field).filter(|_| taken.contains(&field));
            read.is_some_and(|(read, same)| read == column || same == value)
        };
        // They stand in the order of the row.
        let mut named = self.named.iter().peekable();
        let mut attributes = Attributes::new();
        let plain = |value: &Value| self.rule.markup.plain_value(value.clone());
        for (column, value) in self.fields {
            let field = named.next_if(|(name, _)| name == column);
            let is_taken = field.is_some_and(|&(_, field)| is_taken(field, column, value));
            if !is_filled(value) || is_taken {
                continue;
            }
            match value {
                Value::Object(inner) if column == "attributes" => {
                    for (name, value) in inner {
                        let value = plain(value);
                        if says_something(&value) {
                            attributes.entry(name.as_str()).or_insert(value);
                        }
                    }
                }
                value => {
                    let value = plain(value);
                    if says_something(&value) {
                        attributes.insert(column.clone(), value);
                    }
                }
            }
        }
        Ok(attributes)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(kind: RecordKind, row: &Value) -> Result<Record<'static>, Fault> {
        Columns::new(&Rule::DEFAULT).record(kind, row.as_object().unwrap())
    }

    fn interaction(row: &Value) -> Result<Interaction, Fault> {
        match read(RecordKind::Interaction, row)? {
            Record::Interaction(interaction) => Ok(interaction.into()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_without_end_are_not_remembered() {
        let mut columns = Columns::new(&Rule::DEFAULT);
        for name in ["x".repeat(LONGEST_NAME + 1), "user".repeat(LONGEST_NAME)] {
            assert_eq!(columns.place_at(0, &name), None);
        }
        assert!(columns.known.is_empty() && columns.order.is_empty());
        assert_eq!(columns.place_at(0, "user_id"), Some((Field::User, 1)));
    }

    #[test]
    fn every_alias_is_read() {
        for user in ["user", "user_id", "userId", "uid", "reviewerID", "User ID"] {
            assert_eq!(
                interaction(&json!({user: "u", "item": 1})).unwrap().user,
                "u".into()
            );
        }
        for item in [
            "item",
            "item_id",
            "itemId",
            "iid",
            "asin",
            "parent_asin",
            "movieId",
            "business_id",
            "product_id",
        ] {
            assert_eq!(
                interaction(&json!({"user": 1, item: "i"})).unwrap().item,
                "i".into()
            );
        }
        for rating in ["rating", "stars", "overall", "score"] {
            let row = json!({"user": 1, "item": 2, rating: "4.5"});
            assert_eq!(interaction(&row).unwrap().rating, Some(4.5));
        }
        for review in ["review", "text", "reviewText", "review_text", "body"] {
            let row = json!({"user": 1, "item": 2, review: "good"});
            assert_eq!(interaction(&row).unwrap().review.as_deref(), Some("good"));
        }
        for time in ["timestamp", "time", "date", "unixReviewTime"] {
            let row = json!({"user": 1, "item": 2, time: 7});
            assert_eq!(interaction(&row).unwrap().timestamp, Some(7));
        }
    }

    #[test]
    fn of_two_names_the_better_known_wins_and_the_other_is_kept() {
        let row = json!({"asin": "edition", "parent_asin": "work", "name": "n", "price": 3, "gone": null});
        let Record::Item(item) = read(RecordKind::Item, &row).unwrap() else {
            panic!("an item")
        };
        assert_eq!(item.item, "work".into());
        assert_eq!(item.title.as_deref(), Some("n"));
        assert_eq!(
            Value::Object(item.attributes),
            json!({"asin": "edition", "price": 3})
        );
    }

    #[test]
    fn an_attributes_object_comes_apart() {
        let row = json!({"user": 1, "profile": "p", "attributes": {"city": "Rome"}, "age": 3});
        let Record::User(user) = read(RecordKind::User, &row).unwrap() else {
            panic!("a user")
        };
        assert_eq!(
            Value::Object(user.attributes),
            json!({"city": "Rome", "age": 3})
        );
    }

    #[test]
    fn each_wrong_value_is_named() {
        for (row, field, reason) in [
            (json!({"user": "u"}), "item", "missing item"),
            (json!({"user": " ", "item": 1}), "user", "missing user"),
            (
                json!({"user": 1.5, "item": 1}),
                "user",
                "user 1.5 is not an id (a text that is not empty, or a whole number)",
            ),
            (
                json!({"user": [1], "item": 1}),
                "user",
                "user [1] is not an id (a text that is not empty, or a whole number)",
            ),
            (
                json!({"user": 1, "item": 1, "rating": "five"}),
                "rating",
                "rating \"five\" is not a number",
            ),
            (
                json!({"user": 1, "item": 1, "stars": true}),
                "stars",
                "rating true is not a number",
            ),
            (
                json!({"user": 1, "item": 1, "rating": "NaN"}),
                "rating",
                "rating \"NaN\" is not a finite number",
            ),
            (
                json!({"user": 1, "item": 1, "rating": "-inf"}),
                "rating",
                "rating \"-inf\" is not a finite number",
            ),
            (
                json!({"user": 1, "item": 1, "review": {"a": 1}}),
                "review",
                "review {\"a\":1} is not a text",
            ),
            (
                json!({"user": 1, "item": 1, "split": "holdout"}),
                "split",
                "split \"holdout\" is not train, valid, test or hidden",
            ),
            (
                json!({"user": 1, "item": 1, "split": 3}),
                "split",
                "split 3 is not train, valid, test or hidden",
            ),
            (
                json!({"user": 1, "item": 1, "date": "soon"}),
                "date",
                "timestamp \"soon\" is not a time (seconds since 1970, or YYYY-MM-DD HH:MM:SS)",
            ),
        ] {
            let fault = interaction(&row).unwrap_err();
            assert_eq!(
                (fault.field.as_deref(), &*fault.reason),
                (Some(field), reason)
            );
        }
        let fault = read(RecordKind::Reference, &json!({"user": 1, "item": 1})).unwrap_err();
        assert_eq!(fault.reason, "missing explanation");
    }

    #[test]
    fn kinds_follow_the_columns() {
        let kind = |columns: &[&str]| {
            Columns::new(&Rule::DEFAULT).kind(columns.iter().map(|&column| (column, true)))
        };
        assert_eq!(
            kind(&["userId", "movieId", "rating"]),
            Some(RecordKind::Interaction)
        );
        assert_eq!(
            kind(&["uid", "iid", "explanation"]),
            Some(RecordKind::Reference)
        );
        assert_eq!(kind(&["user_id", "name"]), Some(RecordKind::User));
        assert_eq!(kind(&["asin", "title"]), Some(RecordKind::Item));
        assert_eq!(kind(&["a", "b"]), None);
    }
}
