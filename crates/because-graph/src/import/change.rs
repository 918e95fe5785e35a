use std::collections::HashSet;

use serde_json::{Map, Number, Value};

use super::literal;
use super::record::Fault;

/// What is done to a column of a row of a user or an item before it is taken, because of how the data set writes it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Change {
    /// Left out: addresses of pictures, lists of other ids, what no profile is written from.
    Drop,
    /// "$12.99" becomes 12.99; "$12.99 - $15.00" becomes 12.99 with a `price_to` of 15; "Free to Play" becomes 0; what has no
    /// amount stays a text, and pieces of a page (style sheets) are left out.
    Price,
    /// One text with this between its parts becomes a list.
    List(&'static str),
    /// A list of lists becomes one list without repetitions.
    Flatten,
    /// "Heat (1995)" becomes "Heat", with 1995 as the attribute `year`.
    TitleYear,
    /// A piece of a page's script that was taken for a title is left out.
    NoScript,
    /// A text in which JSON or a Python literal stands becomes that value, and so do such texts in an object.
    Inside,
    /// The profile in what a model answered: the text itself, or JSON in it with the profile in `summarization`.
    Answer,
    /// The entries of an object become columns.
    Open,
    /// An object is named by its entry `name`.
    Name,
    /// A code becomes what it stands for.
    Codes(&'static [(&'static str, &'static str)]),
    /// The columns that begin with this and hold a 1 become one list.
    Flags(&'static str),
}

impl Change {
    /// Does it to the column of this name, where the row has it.
    pub(super) fn apply(self, column: &str, row: &mut Map<String, Value>) -> Result<(), Fault> {
        if let Self::Flags(prefix) = self {
            flags(prefix, column, row);
            return Ok(());
        }
        let Some(value) = row.get_mut(column) else {
            return Ok(());
        };
        match self {
            Self::Drop => *value = Value::Null,
            Self::Price => {
                let (from, to) = price(value.take());
                *value = from;
                if let Some(to) = to {
                    row.insert(format!("{column}_to"), to);
                }
            }
            Self::List(separator) => {
                if let Value::String(text) = value {
                    *value = list(text, separator);
                }
            }
            Self::Flatten => *value = flatten(value.take()),
            Self::TitleYear => {
                if let Some((title, year)) = value.as_str().and_then(title_and_year) {
                    *value = title.into();
                    row.insert("year".to_owned(), year.into());
                }
            }
            Self::NoScript => {
                let is_script =
                    |text: &str| text.contains("getTime()") || text.contains("function(");
                if value.as_str().is_some_and(is_script) {
                    *value = Value::Null;
                }
            }
            Self::Inside => *value = inside(value.take()),
            Self::Answer => answer(value, column)?,
            Self::Open => {
                if value.is_object()
                    && let Value::Object(inner) = value.take()
                {
                    for (name, value) in inner {
                        row.entry(name).or_insert(value);
                    }
                }
            }
            Self::Name => {
                if let Value::Object(fields) = value {
                    *value = fields.remove("name").unwrap_or_default();
                }
            }
            Self::Codes(codes) => {
                let code = match &*value {
                    Value::String(text) => text.trim().to_owned(),
                    other => other.to_string(),
                };
                if let Some((_, meaning)) = codes.iter().find(|(known, _)| *known == code) {
                    *value = (*meaning).into();
                }
            }
            Self::Flags(_) => {}
        }
        Ok(())
    }
}

fn flags(prefix: &str, column: &str, row: &mut Map<String, Value>) {
    let mut set = Vec::new();
    row.retain(|name, value| {
        let Some(flag) = name.strip_prefix(prefix) else {
            return true;
        };
        if value == "1" {
            set.push(Value::from(flag));
        }
        false
    });
    if !set.is_empty() {
        row.insert(column.to_owned(), set.into());
    }
}

/// The price, and the upper end where it is a range.
fn price(value: Value) -> (Value, Option<Value>) {
    let Value::String(text) = value else {
        return (value, None);
    };
    let text = text.trim();
    let starts_free = text
        .get(..4)
        .is_some_and(|start| start.eq_ignore_ascii_case("free"));
    if starts_free || text.eq_ignore_ascii_case("play for free!") {
        return (0.into(), None);
    }
    // A page's style sheet, more text than a price could need, or nothing said in Python.
    let says_nothing = text == "None" || !text.contains(char::is_alphanumeric);
    if says_nothing || text.contains(['{', '<']) || text.len() > 60 {
        return (Value::Null, None);
    }
    let mut amounts = text.split(" - ").map(amount);
    match (amounts.next(), amounts.next(), amounts.next()) {
        (Some(Some(from)), None, _) => (from, None),
        (Some(Some(from)), Some(Some(to)), None) => (from, Some(to)),
        _ => (text.into(), None),
    }
}

/// "$1,299.00", "from 14.99", "US$ 5": one number, with a sign of money before or behind it.
fn amount(text: &str) -> Option<Value> {
    let text = text.trim();
    let text = text.strip_prefix("from ").unwrap_or(text).trim();
    let text = text
        .trim_start_matches("US")
        .trim_matches(|c: char| "$€£¥".contains(c) || c.is_whitespace());
    let digits: String = text.chars().filter(|c| *c != ',').collect();
    let plain = digits
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.');
    let thousands = text
        .split('.')
        .next()
        .is_some_and(|whole| whole.split(',').skip(1).all(|group| group.len() == 3));
    if !plain || !thousands {
        return None;
    }
    let number: f64 = digits.parse().ok()?;
    Number::from_f64(number).map(Value::Number)
}

fn list(text: &str, separator: &str) -> Value {
    // MovieLens says it in words where there is none.
    let parts = text.split(separator).map(str::trim);
    parts
        .filter(|part| !part.is_empty() && *part != "(no genres listed)")
        .collect()
}

fn flatten(value: Value) -> Value {
    fn add(value: Value, known: &mut HashSet<Value>, all: &mut Vec<Value>) {
        match value {
            Value::Array(list) => list.into_iter().for_each(|value| add(value, known, all)),
            Value::Null => {}
            value => {
                if known.insert(value.clone()) {
                    all.push(value);
                }
            }
        }
    }
    if !value.is_array() {
        return value;
    }
    let mut all = Vec::new();
    add(value, &mut HashSet::new(), &mut all);
    all.into()
}

fn title_and_year(title: &str) -> Option<(String, i64)> {
    let (name, year) = title.trim().strip_suffix(')')?.rsplit_once('(')?;
    // "(2006–2007)" and "(2009- )" are series that began then.
    let (first, rest) = year.split_at_checked(4)?;
    let rest = rest.trim_start_matches(['-', '–']).trim();
    let is_year = |text: &str| text.len() == 4 && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_year(first) || !(rest.is_empty() || is_year(rest)) || name.trim().is_empty() {
        return None;
    }
    Some((name.trim().to_owned(), first.parse().ok()?))
}

fn inside(value: Value) -> Value {
    match value {
        Value::String(text) => read_inside(&text).unwrap_or(Value::String(text)),
        Value::Object(fields) => fields
            .into_iter()
            .map(|(name, value)| match value {
                Value::String(text) => (name, read_inside(&text).unwrap_or(Value::String(text))),
                other => (name, other),
            })
            .collect(),
        other => other,
    }
}

fn read_inside(text: &str) -> Option<Value> {
    let text = text.trim();
    serde_json::from_str(text)
        .ok()
        .or_else(|| literal::parse(text).ok())
}

/// The names by which answers call their text, the likeliest first.
const ANSWERS: [&str; 4] = ["summarization", "summary", "profile", "explanation"];

fn answer(value: &mut Value, column: &str) -> Result<(), Fault> {
    if let Value::String(text) = value {
        let text = text.trim();
        if !text.starts_with('{') {
            *value = text.into();
            return Ok(());
        }
        // Answers have line feeds in their texts, which JSON does not allow.
        let text = text.replace(|c: char| c.is_ascii_control(), " ");
        let parsed = serde_json::from_str(&text).ok().filter(Value::is_object);
        *value = parsed.ok_or_else(|| Fault::of("unreadable JSON in a text", Some(column)))?;
    }
    if let Value::Object(fields) = value {
        let found = ANSWERS.iter().find_map(|name| fields.get(*name)).cloned();
        *value = found.ok_or_else(|| Fault::of("no summarization in an answer", Some(column)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn after(change: Change, value: Value) -> Value {
        let mut row = Map::from_iter([("x".to_owned(), value)]);
        change.apply("x", &mut row).unwrap();
        row.retain(|_, value| !value.is_null());
        Value::Object(row)
    }

    #[test]
    fn a_list_as_long_as_a_row_may_have_it_is_flattened_in_one_walk() {
        // Compared each with each, these would take minutes.
        let numbers: Vec<Value> = (0..250_000).map(Value::from).collect();
        let twice = json!([numbers, [0, 1], null, "a"]);
        let flat = after(Change::Flatten, twice);
        assert_eq!(flat["x"].as_array().unwrap().len(), 250_001);
        assert_eq!(flat["x"][250_000], "a");
    }

    #[test]
    fn prices_are_read_however_they_are_written() {
        for (written, read) in [
            (json!("$12.99"), json!({"x": 12.99})),
            (json!("12.99 - 15.00"), json!({"x": 12.99, "x_to": 15.0})),
            (json!("$12.99 - $15"), json!({"x": 12.99, "x_to": 15.0})),
            (json!("$1,299.00"), json!({"x": 1299.0})),
            (json!("from 14.99"), json!({"x": 14.99})),
            (json!("Free"), json!({"x": 0})),
            (json!("Free to Play"), json!({"x": 0})),
            (json!("Third-party"), json!({"x": "Third-party"})),
            (json!("1,5"), json!({"x": "1,5"})),
            (json!(".a-size{color:#000}"), json!({})),
            (json!("—"), json!({})),
            (json!("None"), json!({})),
            (json!(""), json!({})),
            (json!(4.99), json!({"x": 4.99})),
            (json!(null), json!({})),
        ] {
            assert_eq!(after(Change::Price, written.clone()), read, "{written}");
        }
    }

    #[test]
    fn titles_give_up_their_year() {
        for (written, read) in [
            ("Heat (1995)", json!({"x": "Heat", "year": 1995})),
            (
                "City of Lost Children, The (Cité, La) (1995) ",
                json!({"x": "City of Lost Children, The (Cité, La)", "year": 1995}),
            ),
            (
                "Death Note (2006–2007)",
                json!({"x": "Death Note", "year": 2006}),
            ),
            ("Series (2009- )", json!({"x": "Series", "year": 2009})),
            ("Babylon 5", json!({"x": "Babylon 5"})),
            ("1984", json!({"x": "1984"})),
            ("(1995)", json!({"x": "(1995)"})),
            ("Name (12345)", json!({"x": "Name (12345)"})),
            ("Name (199é)", json!({"x": "Name (199é)"})),
        ] {
            assert_eq!(after(Change::TitleYear, written.into()), read, "{written}");
        }
    }

    #[test]
    fn lists_come_apart_and_together() {
        assert_eq!(
            after(Change::List("|"), json!("A|B ")),
            json!({"x": ["A", "B"]})
        );
        assert_eq!(
            after(Change::List("|"), json!("(no genres listed)")),
            json!({"x": []})
        );
        assert_eq!(
            after(Change::List(","), json!("Food, Bars & Pubs")),
            json!({"x": ["Food", "Bars & Pubs"]})
        );
        assert_eq!(after(Change::List(","), json!(["a"])), json!({"x": ["a"]}));
        assert_eq!(
            after(
                Change::Flatten,
                json!([["Books", "Poetry"], ["Books", null, "New"]])
            ),
            json!({"x": ["Books", "Poetry", "New"]})
        );
        let mut row = Map::from_iter([
            ("is A".to_owned(), json!("1")),
            ("is B".to_owned(), json!("0")),
        ]);
        Change::Flags("is ").apply("genres", &mut row).unwrap();
        assert_eq!(Value::Object(row), json!({"genres": ["A"]}));
    }

    #[test]
    fn what_stands_in_a_text_is_read() {
        assert_eq!(
            after(
                Change::Inside,
                json!({"WiFi": "u'free'", "Parking": "{'lot': True}", "Noise": "loud here"})
            ),
            json!({"x": {"WiFi": "free", "Parking": {"lot": true}, "Noise": "loud here"}})
        );
        assert_eq!(
            after(Change::Inside, json!("{\"a\": null}")),
            json!({"x": {"a": null}})
        );
        let answer = json!("{\"summarization\": \"Fans of\nnoir\", \"reasoning\": \"r\"} \n ");
        assert_eq!(after(Change::Answer, answer), json!({"x": "Fans of noir"}));
        assert_eq!(
            after(Change::Answer, json!(" plain \n")),
            json!({"x": "plain"})
        );
        let mut row = Map::from_iter([("x".to_owned(), json!("{\"summarization\": "))]);
        let fault = Change::Answer.apply("x", &mut row).unwrap_err();
        assert_eq!(
            (fault.field.as_deref(), fault.kind),
            (Some("x"), "unreadable JSON in a text")
        );
        assert_eq!(
            after(Change::Open, json!({"name": "N"})),
            json!({"name": "N"})
        );
        assert_eq!(
            after(Change::Name, json!({"name": "N", "about": []})),
            json!({"x": "N"})
        );
        assert_eq!(
            after(Change::Codes(&[("1", "one")]), json!("1")),
            json!({"x": "one"})
        );
        assert_eq!(
            after(Change::NoScript, json!("var a = (new Date()).getTime();")),
            json!({})
        );
    }
}
