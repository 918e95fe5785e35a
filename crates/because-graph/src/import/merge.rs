use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write;

use serde_json::{Number, Value};

use super::pairs::Origin;

/// What is known of one node: the lines of its rows as one, field by field. The first row that has a field gives it; an
/// attribute is a field of its own.
///
/// Two values agree where they say the same: a number and its digits as a text, texts that differ in blanks around them. Which of
/// them is written is the first's affair. Lines are taken apart and put together as bytes, so numbers stay as they stand.
pub(super) struct Merged {
    /// The id with its name, as it stands in the line.
    id: Vec<u8>,
    fields: Vec<Known>,
    places: HashMap<Vec<u8>, usize>,
    /// The rows that were taken, by the names of their fields.
    rows: HashMap<Vec<u8>, Vec<Row>>,
}

struct Known {
    name: Vec<u8>,
    value: Vec<u8>,
    from: Origin,
}

/// A row that was taken.
struct Row {
    origin: Origin,
    /// Sorted by name.
    fields: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What becomes of a row that is not the first of its node.
#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    /// It says something that nothing before it said, or less than is known, and none of it otherwise but for these fields.
    Taken(Vec<Clash>),
    /// The row there says all of it and no more.
    Repeats(Origin),
    /// It adds nothing, and says these fields otherwise.
    Contradicts(Vec<Clash>),
}

/// Two values for one field.
#[derive(Debug, PartialEq)]
pub(super) struct Clash {
    /// Where the field stands in the line: `title`, `attributes.price`.
    pub(super) field: String,
    /// JSON, as are all values here.
    pub(super) kept: Vec<u8>,
    pub(super) from: Origin,
    pub(super) lost: Vec<u8>,
}

const TEXTS: [&[u8]; 3] = [b"title", b"description", b"profile"];

impl Merged {
    /// A node of which this line is known.
    pub(super) fn of(origin: Origin, line: &[u8]) -> Self {
        let mut entries = entries(line);
        let id = entries.next().unwrap_or_default();
        let mut merged = Self {
            id: [id.0, b":", id.1].concat(),
            fields: Vec::new(),
            places: HashMap::new(),
            rows: HashMap::new(),
        };
        merged.add(origin, line);
        merged
    }

    /// Takes from the line what is not known yet.
    pub(super) fn add(&mut self, origin: Origin, line: &[u8]) -> Verdict {
        // In the order of the line, which is the one the attributes are written in.
        let in_order = fields(line);
        let mut fields = in_order.clone();
        fields.sort();
        let names: Vec<&[u8]> = fields.iter().map(|(name, _)| name.as_slice()).collect();
        // No name has a line feed: they are JSON.
        let names = names.join(&b'\n');
        let same = |row: &&Row| {
            let mut pairs = row.fields.iter().zip(&fields);
            pairs.all(|((_, one), (_, other))| agree(one, other))
        };
        if let Some(row) = self
            .rows
            .get(&names)
            .and_then(|rows| rows.iter().find(same))
        {
            return Verdict::Repeats(row.origin);
        }
        let (mut adds, mut clashes) = (false, Vec::new());
        for (name, value) in in_order {
            match self.places.get(&name) {
                None => {
                    adds = true;
                    self.places.insert(name.clone(), self.fields.len());
                    self.fields.push(Known {
                        name,
                        value,
                        from: origin,
                    });
                }
                Some(&place) => {
                    let known = &self.fields[place];
                    if !agree(&known.value, &value) {
                        clashes.push(Clash {
                            field: shown(&name),
                            kept: known.value.clone(),
                            from: known.from,
                            lost: value,
                        });
                    }
                }
            }
        }
        if !adds && !clashes.is_empty() {
            return Verdict::Contradicts(clashes);
        }
        let row = Row { origin, fields };
        self.rows.entry(names).or_default().push(row);
        Verdict::Taken(clashes)
    }

    /// Writes all that is known as one line.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.push(b'{');
        out.extend_from_slice(&self.id);
        for text in TEXTS {
            if let Some(&place) = self.places.get(text) {
                let value = &self.fields[place].value;
                for piece in [b",\"", text, b"\":", value] {
                    out.extend_from_slice(piece);
                }
            }
        }
        let attributes = self.fields.iter().filter(|known| is_attribute(&known.name));
        let mut before: &[u8] = b",\"attributes\":{";
        for known in attributes {
            for piece in [before, &known.name, b":", &known.value] {
                out.extend_from_slice(piece);
            }
            before = b",";
        }
        if before == b"," {
            out.push(b'}');
        }
        out.extend_from_slice(b"}\n");
    }
}

/// What a row contradicts, as a reason: `contradicts a.csv line 2 in title, attributes.price`.
pub(super) fn reason(clashes: &[Clash], place: impl Fn(Origin) -> String) -> String {
    const MOST: usize = 5;
    let mut reason = "contradicts ".to_owned();
    let mut before = None;
    for clash in clashes.iter().take(MOST) {
        let field = because_core::text::excerpt(&clash.field, 60);
        // Writing to a text does not fail.
        let _ = match before {
            Some(origin) if origin == clash.from => write!(reason, ", {field}"),
            Some(_) => write!(reason, " and {} in {field}", place(clash.from)),
            None => write!(reason, "{} in {field}", place(clash.from)),
        };
        before = Some(clash.from);
    }
    if let Some(more) = clashes.len().checked_sub(MOST).filter(|more| *more > 0) {
        let _ = write!(reason, " and {more} more");
    }
    reason
}

/// An attribute's name has its quotes, so that it is never taken for a text's.
fn is_attribute(name: &[u8]) -> bool {
    name.starts_with(b"\"")
}

fn shown(name: &[u8]) -> String {
    match serde_json::from_slice::<String>(name) {
        Ok(attribute) => format!("attributes.{attribute}"),
        Err(_) => String::from_utf8_lossy(name).into_owned(),
    }
}

/// The fields of a node's line but for its id.
fn fields(line: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut fields = Vec::new();
    for (name, value) in entries(line).skip(1) {
        if name == b"\"attributes\"" {
            let inner = entries(value).map(|(name, value)| (name.to_vec(), value.to_vec()));
            fields.extend(inner);
        } else {
            let name = name.strip_prefix(b"\"").unwrap_or(name);
            let name = name.strip_suffix(b"\"").unwrap_or(name);
            fields.push((name.to_vec(), value.to_vec()));
        }
    }
    fields
}

/// The names and values of a JSON object as it stands, where it is written without blanks, as ours are.
fn entries(object: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut rest = object.get(1..).unwrap_or_default();
    std::iter::from_fn(move || {
        if !rest.starts_with(b"\"") {
            return None;
        }
        let (name, behind) = rest.split_at(length(rest));
        let behind = behind.strip_prefix(b":")?;
        let (value, behind) = behind.split_at(length(behind));
        rest = behind.strip_prefix(b",").unwrap_or_default();
        Some((name, value))
    })
}

/// How many bytes the first value takes.
fn length(json: &[u8]) -> usize {
    let (mut open, mut in_text, mut escaped) = (0_usize, false, false);
    for (at, &byte) in json.iter().enumerate() {
        if in_text {
            in_text = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
            if !in_text && open == 0 {
                return at + 1;
            }
            continue;
        }
        match byte {
            b'"' => in_text = true,
            b'{' | b'[' => open += 1,
            b'}' | b']' if open > 1 => open -= 1,
            b'}' | b']' => return at + open,
            b',' if open == 0 => return at,
            _ => {}
        }
    }
    json.len()
}

fn agree(one: &[u8], other: &[u8]) -> bool {
    let read = |json| serde_json::from_slice::<Value>(json).ok();
    one == other
        || matches!((read(one), read(other)), (Some(one), Some(other)) if same(&one, &other))
}

fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::String(one), Value::String(other)) => one.trim() == other.trim(),
        (Value::Number(one), Value::Number(other)) => same_number(one, other),
        (Value::String(text), Value::Number(number))
        | (Value::Number(number), Value::String(text)) => {
            let read = serde_json::from_str(text.trim());
            read.is_ok_and(|read: Number| same_number(&read, number))
        }
        (Value::String(text), Value::Bool(yes)) | (Value::Bool(yes), Value::String(text)) => {
            let name: Cow<'_, str> = text.trim().to_lowercase().into();
            name == if *yes { "true" } else { "false" }
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            let in_other = |(name, one): (&String, &Value)| {
                other.get(name).is_some_and(|other| same(one, other))
            };
            one.len() == other.len() && one.iter().all(in_other)
        }
        (one, other) => one == other,
    }
}

/// Whole numbers are compared exactly, however large.
fn same_number(one: &Number, other: &Number) -> bool {
    one == other || ((one.is_f64() || other.is_f64()) && one.as_f64() == other.as_f64())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn at(line: u64) -> Origin {
        Origin { file: 0, line }
    }

    fn line(merged: &Merged) -> String {
        let mut out = Vec::new();
        merged.write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn rows_complete_each_other() {
        let mut merged = Merged::of(
            at(1),
            br#"{"item":"7 \"","description":"d","attributes":{"year":1995,"x\n":[1,{"y":"}"}]}}"#,
        );
        let taken = Verdict::Taken(Vec::new());
        let second = br#"{"item":"7 \"","title":"T","attributes":{"year":"1995","price":0.10000000000000000555}}"#;
        assert_eq!(merged.add(at(2), second), taken);
        assert_eq!(merged.add(at(3), second), Verdict::Repeats(at(2)));
        assert_eq!(merged.add(at(4), br#"{"item":"7 \""}"#), taken);
        assert_eq!(
            merged.add(at(5), br#"{"item":"7 \""}"#),
            Verdict::Repeats(at(4))
        );
        assert_eq!(
            line(&merged),
            "{\"item\":\"7 \\\"\",\"title\":\"T\",\"description\":\"d\",\"attributes\":{\"year\":1995,\"x\\n\":[1,{\"y\":\"}\"}],\
             \"price\":0.10000000000000000555}}\n"
        );
    }

    #[test]
    fn what_contradicts_gives_way_and_is_told() {
        let mut merged = Merged::of(at(1), br#"{"user":"u","profile":"p"}"#);
        let age = br#"{"user":"u","attributes":{"age":3}}"#;
        assert_eq!(merged.add(at(2), age), Verdict::Taken(Vec::new()));
        let clash = |field: &str, kept: &str, from, lost: &str| Clash {
            field: field.to_owned(),
            kept: kept.into(),
            from: at(from),
            lost: lost.into(),
        };
        let row = br#"{"user":"u","profile":"q","attributes":{"age":4}}"#;
        let clashes = vec![
            clash("profile", "\"p\"", 1, "\"q\""),
            clash("attributes.age", "3", 2, "4"),
        ];
        let place = |origin: Origin| format!("a line {}", origin.line);
        assert_eq!(
            reason(&clashes, place),
            "contradicts a line 1 in profile and a line 2 in attributes.age"
        );
        assert_eq!(merged.add(at(3), row), Verdict::Contradicts(clashes));
        let row = br#"{"user":"u","profile":"q","attributes":{"city":"Rome"}}"#;
        let clashes = vec![clash("profile", "\"p\"", 1, "\"q\"")];
        assert_eq!(merged.add(at(4), row), Verdict::Taken(clashes));
        assert_eq!(merged.add(at(5), row), Verdict::Repeats(at(4)));
        assert_eq!(
            line(&merged),
            "{\"user\":\"u\",\"profile\":\"p\",\"attributes\":{\"age\":3,\"city\":\"Rome\"}}\n"
        );
    }

    #[test]
    fn values_that_say_the_same_agree() {
        for (one, other, expected) in [
            (json!(1995), json!("1995"), true),
            (json!(12.9), json!(" 12.90"), true),
            (json!(1), json!(1.0), true),
            (json!("1.10"), json!("1.1"), false),
            (json!(7), json!("007"), false),
            (json!(i64::MAX), json!(i64::MAX - 1), false),
            (json!(true), json!("True"), true),
            (json!(true), json!("yes"), false),
            (json!("a "), json!("a"), true),
            (json!("a"), json!("A"), false),
            (json!(["a", 1]), json!(["a", "1"]), true),
            (json!(["a", "b"]), json!(["b", "a"]), false),
            (json!({"a": 1, "b": 2}), json!({"b": 2, "a": 1}), true),
            (json!({"a": 1}), json!({"a": 1, "b": 2}), false),
            (json!([]), json!({}), false),
        ] {
            let [left, right] = [&one, &other].map(|value| serde_json::to_vec(value).unwrap());
            assert_eq!(agree(&left, &right), expected, "{one} {other}");
            assert_eq!(agree(&right, &left), expected, "{other} {one}");
        }
    }

    fn arbitrary_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[a\"\\\\{}\\[\\],:\n é]{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 12, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec(("[a\"\\\\,}]{0,3}", inner), 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_line_comes_apart_and_together_as_it_was(
            attributes in prop::collection::vec(("[a-c\"\\\\,}]{0,3}", arbitrary_json()), 0..5),
            title in prop::option::of("[a\"\\\\{}]{0,5}"),
            profile in prop::option::of("[a\"\\\\{}]{0,5}"),
        ) {
            let row = because_core::Item {
                item: "\"i\\".into(), title, description: None, profile,
                attributes: attributes.into_iter().collect(),
            };
            let given = serde_json::to_string(&row).unwrap();
            let mut merged = Merged::of(at(1), given.as_bytes());
            prop_assert_eq!(line(&merged), given.clone() + "\n");
            prop_assert_eq!(merged.add(at(2), given.as_bytes()), Verdict::Repeats(at(1)));
        }

        #[test]
        fn no_bytes_stop_the_taking_apart(bytes in "[\"{}\\[\\],:\\\\a1]{0,30}") {
            fields(bytes.as_bytes());
            fields(format!("{{{bytes}").as_bytes());
        }
    }
}
