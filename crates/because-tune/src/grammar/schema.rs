use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use llguidance::api::ParserLimits;
use llguidance::{GrammarBuilder, JsonCompileOptions};
use serde_json::{Map, Value, json};

use crate::error::{Result, TuneError};

/// The largest whole number that every JSON reader holds exactly (RFC 8259, section 6). Beyond it readers differ, and some
/// refuse.
const LARGEST: i64 = (1 << 53) - 1;
/// Any JSON whose numbers are in that range, among the definitions.
const ANY: &str = "because.any";
/// Texts and names of a schema, in bytes.
const MOST_TEXT: usize = 256 << 10;
/// Objects, arrays and references within one another; a reference counts for two, as the schema of a field does, which is
/// in the object of its fields.
const DEEPEST: usize = 256;
/// Fields of one object. The compiler calls itself for each.
const MOST_FIELDS: usize = 1000;
/// Patterns of the names of one object. The compiler compares each with each, which takes milliseconds.
const MOST_PATTERNS: usize = 16;
/// Parts of a schema that are compiled to find the one at fault, and bytes of text in them.
const MOST_PARTS: usize = 200;
const MOST_PARTS_TEXT: usize = 2 << 20;

/// Refuses what would take the compiler of schemas too long or too deep, before it is asked.
///
/// # Errors
/// [`TuneError::Schema`], with the part of the schema that is too much.
pub(super) fn check(schema: &Value) -> Result<()> {
    let mut survey = Survey {
        root: schema,
        heights: HashMap::new(),
        text: 0,
        place: String::new(),
    };
    let height = survey.walk(schema, 0);
    height.map(|_| ()).map_err(|reason| TuneError::Schema {
        place: survey.place,
        reason,
    })
}

struct Survey<'a> {
    root: &'a Value,
    /// How much is within one another under each part that was walked; none while it is.
    heights: HashMap<*const Value, Option<usize>>,
    text: usize,
    place: String,
}

impl Survey<'_> {
    /// As the compiler goes: a part that is referred to once, and where references go round only once round.
    fn walk(&mut self, part: &Value, depth: usize) -> Result<usize, String> {
        let known = self.heights.get(&std::ptr::from_ref(part)).copied();
        let least = known.flatten().unwrap_or(0);
        if depth + least > DEEPEST {
            return Err(format!(
                "more than {DEEPEST} objects, arrays and references within one another"
            ));
        }
        if known.is_some() {
            return Ok(least);
        }
        self.heights.insert(part, None);
        let mut height = 0;
        match part {
            Value::Object(fields) => {
                for (keyword, value) in fields {
                    self.count(keyword)?;
                    let from = self.place.len();
                    self.place.push('/');
                    self.place.push_str(&escaped(keyword));
                    let (most, of) = match keyword.as_str() {
                        "patternProperties" => (MOST_PATTERNS, "patterns"),
                        "$defs" | "definitions" => (usize::MAX, "definitions"),
                        _ => (MOST_FIELDS, "fields"),
                    };
                    let count = match value {
                        Value::Object(all) => all.len(),
                        Value::Array(all) if keyword == "required" => all.len(),
                        _ => 0,
                    };
                    if count > most {
                        return Err(format!("has {count} {of}, more than {most}"));
                    }
                    height = height.max(1 + self.walk(value, depth + 1)?);
                    if keyword == "$ref"
                        && let Some(reference) = value.as_str()
                        && let Some(target) = target(self.root, reference)
                    {
                        let here = std::mem::replace(&mut self.place, reference[1..].to_owned());
                        height = height.max(2 + self.walk(target, depth + 2)?);
                        self.place = here;
                    }
                    self.place.truncate(from);
                }
            }
            Value::Array(all) => {
                for (at, one) in all.iter().enumerate() {
                    let from = self.place.len();
                    self.place.push_str(&format!("/{at}"));
                    height = height.max(1 + self.walk(one, depth + 1)?);
                    self.place.truncate(from);
                }
            }
            Value::String(text) => self.count(text)?,
            _ => self.count("")?,
        }
        self.heights.insert(part, Some(height));
        Ok(height)
    }

    fn count(&mut self, text: &str) -> Result<(), String> {
        /// Quotes and a comma.
        const BETWEEN: usize = 3;
        self.text += text.len() + BETWEEN;
        match self.text > MOST_TEXT {
            true => Err(format!("the schema is larger than {} KiB", MOST_TEXT >> 10)),
            false => Ok(()),
        }
    }
}

/// What a reference leads to, as the compiler follows it: without escapes.
fn target<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    let path = reference.strip_prefix('#')?;
    if path.is_empty() || path == "/" {
        return Some(root);
    }
    let mut segments = path.strip_prefix('/')?.split('/');
    segments.try_fold(root, |part, segment| match part {
        Value::Array(all) => all.get(segment.parse::<usize>().ok()?),
        part => part.get(segment),
    })
}

/// A name as a JSON pointer has it.
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// The schema as an answer is held to: nothing fits it that the given one refuses, numbers stay in the range that JSON
/// readers share, and there is no space between the parts.
pub(super) fn narrowed(schema: &Value) -> Value {
    let mut narrow = match schema {
        Value::Bool(true) => json!({}),
        schema => schema.clone(),
    };
    let mut uses_any = false;
    narrow_down(&mut narrow, &mut uses_any);
    narrow_targets(&mut narrow, &mut uses_any);
    let Value::Object(fields) = &mut narrow else {
        return narrow;
    };
    if uses_any {
        let definitions = fields.entry("$defs").or_insert_with(|| json!({}));
        if let Value::Object(definitions) = definitions {
            let any = json!({
                "minimum": -LARGEST,
                "maximum": LARGEST,
                "items": any(),
                "additionalProperties": any(),
            });
            definitions.insert(ANY.to_owned(), any);
        }
    }
    options().apply_to(&mut narrow);
    narrow
}

fn any() -> Value {
    json!({ "$ref": format!("#/$defs/{ANY}") })
}

fn options() -> JsonCompileOptions {
    JsonCompileOptions {
        whitespace_flexible: false,
        ..JsonCompileOptions::default()
    }
}

/// References may lead to where no keyword has schemas. What is narrow already stays as it is.
fn narrow_targets(root: &mut Value, uses_any: &mut bool) {
    let mut known = HashSet::new();
    loop {
        let mut found = Vec::new();
        references(root, &mut found);
        found.retain(|one| known.insert(one.clone()));
        if found.is_empty() {
            return;
        }
        for reference in found {
            let Some(part) = target(root, &reference) else {
                continue;
            };
            let mut narrow = match part {
                Value::Bool(true) => json!({}),
                part => part.clone(),
            };
            narrow_down(&mut narrow, uses_any);
            if let Some(part) = target_mut(root, &reference) {
                *part = narrow;
            }
        }
    }
}

/// Where the references of a schema lead, but for those among definitions, which are narrow, and into values, which stay as
/// they are.
fn references(part: &Value, found: &mut Vec<String>) {
    match part {
        Value::Object(fields) => {
            if let Some(Value::String(reference)) = fields.get("$ref") {
                let names = ["#/$defs/", "#/definitions/"];
                let name = names.iter().find_map(|start| reference.strip_prefix(start));
                let mut segments = reference.split('/');
                let in_value = segments.any(|segment| matches!(segment, "const" | "enum"));
                if name.is_none_or(|name| name.contains('/')) && reference.len() > 2 && !in_value {
                    found.push(reference.clone());
                }
            }
            for value in fields.values() {
                references(value, found);
            }
        }
        Value::Array(all) => {
            for one in all {
                references(one, found);
            }
        }
        _ => {}
    }
}

fn target_mut<'a>(root: &'a mut Value, reference: &str) -> Option<&'a mut Value> {
    let mut segments = reference.strip_prefix("#/")?.split('/');
    segments.try_fold(root, |part, segment| match part {
        Value::Array(all) => all.get_mut(segment.parse::<usize>().ok()?),
        part => part.get_mut(segment),
    })
}

fn narrow_down(schema: &mut Value, uses_any: &mut bool) {
    let Value::Object(fields) = schema else {
        return;
    };
    for (keyword, value) in fields.iter_mut() {
        for (_, part) in parts(keyword, value) {
            match part {
                Value::Bool(true) => {
                    *part = any();
                    *uses_any = true;
                }
                part => narrow_down(part, uses_any),
            }
        }
    }
    // What these allow is said by their parts.
    let by_parts = ["$ref", "anyOf", "oneOf", "allOf", "enum", "const"];
    if by_parts.iter().any(|keyword| fields.contains_key(*keyword)) {
        return;
    }
    if may_be(fields, "number") || may_be(fields, "integer") {
        bound(fields);
    }
    for (kind, rest) in [("array", "items"), ("object", "additionalProperties")] {
        if may_be(fields, kind) && !fields.contains_key(rest) {
            fields.insert(rest.to_owned(), any());
            *uses_any = true;
        }
    }
}

/// Whether the `type` of a schema lets a kind pass.
fn may_be(fields: &Map<String, Value>, kind: &str) -> bool {
    match fields.get("type") {
        None => true,
        Some(Value::Array(kinds)) => kinds.iter().any(|one| one == kind),
        Some(one) => one == kind,
    }
}

/// Gives numbers the bounds they lack.
fn bound(fields: &mut Map<String, Value>) {
    let given = |names: [&str; 2]| names.iter().find_map(|name| fields.get(*name)?.as_f64());
    let low = given(["minimum", "exclusiveMinimum"]);
    let high = given(["maximum", "exclusiveMaximum"]);
    let largest = LARGEST as f64;
    // A schema that asks for larger ones gets them.
    if high.is_none() && low.is_none_or(|low| low < largest) {
        fields.insert("maximum".into(), LARGEST.into());
    }
    if low.is_none() && high.is_none_or(|high| high > -largest) {
        fields.insert("minimum".into(), (-LARGEST).into());
    }
}

/// The schemas right under a keyword, each with its place there.
fn parts<'a>(keyword: &str, value: &'a mut Value) -> Vec<(String, &'a mut Value)> {
    let named = ["properties", "patternProperties", "$defs", "definitions"];
    let listed = ["anyOf", "oneOf", "allOf", "prefixItems", "items"];
    let single = ["items", "additionalProperties", "additionalItems"];
    if single.contains(&keyword) && !value.is_array() {
        return vec![(format!("/{keyword}"), value)];
    }
    match value {
        Value::Object(all) if named.contains(&keyword) => {
            let all = all.iter_mut();
            all.map(|(name, part)| (format!("/{keyword}/{}", escaped(name)), part))
                .collect()
        }
        Value::Array(all) if listed.contains(&keyword) => {
            let all = all.iter_mut().enumerate();
            all.map(|(place, part)| (format!("/{keyword}/{place}"), part))
                .collect()
        }
        _ => Vec::new(),
    }
}

/// The most bytes that the end of a lexeme may be away once it has begun, where it has too many states to be looked
/// through; none where that cannot be said.
///
/// The compiler makes one lexeme of all strings and numbers of alternatives, so the longest text counts for all.
pub(super) fn longest_lexeme(schema: &Value) -> Option<usize> {
    /// Of a name that is none of those taken: the end of two escapes that are one letter, one letter more, and the quote.
    const LEAST: usize = 12;
    let mut found = Vec::new();
    references(schema, &mut found);
    let targets = found.iter();
    let targets = targets.filter_map(|reference| target(schema, reference));
    targets
        .chain([schema])
        .try_fold(LEAST, |most, part| Some(most.max(longest_of_schema(part)?)))
}

fn longest_of_schema(schema: &Value) -> Option<usize> {
    match schema {
        Value::Object(fields) => most(fields.iter().map(|(keyword, value)| {
            match (keyword.as_str(), value) {
                ("pattern" | "format" | "patternProperties" | "multipleOf", _) => None,
                ("const" | "enum", data) => Some(longest_of_data(data)),
                // With the end of an escape under way, and the quote.
                ("minLength", least) => usize::try_from(least.as_u64()?).ok()?.checked_add(8),
                ("required", names) => names
                    .as_array()
                    .map_or(Some(0), |names| names.iter().map(quoted).max().or(Some(0))),
                ("properties" | "$defs" | "definitions", Value::Object(all)) => {
                    most(all.iter().map(|(name, part)| {
                        let name = quoted(&Value::from(name.as_str()));
                        Some(name.max(longest_of_schema(part)?))
                    }))
                }
                (_, value) => longest_of_schema(value),
            }
        })),
        Value::Array(all) => most(all.iter().map(longest_of_schema)),
        // What keywords say in words is not written.
        Value::String(_) => Some(0),
        other => Some(longest_of_data(other)),
    }
}

fn most(mut all: impl Iterator<Item = Option<usize>>) -> Option<usize> {
    all.try_fold(0, |most, one| Some(most.max(one?)))
}

/// The bytes of a name: it is written in one way only.
fn quoted(name: &Value) -> usize {
    name.to_string().len()
}

/// The most bytes of any part of a value that is written as it is.
fn longest_of_data(data: &Value) -> usize {
    /// `\u0000` is a letter of six bytes.
    const ESCAPED: usize = 6;
    match data {
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| quoted(&Value::from(name.as_str())).max(longest_of_data(value)))
            .max()
            .unwrap_or(0),
        Value::Array(all) => all.iter().map(longest_of_data).max().unwrap_or(0),
        Value::String(text) => text.len() * ESCAPED + 2,
        // All digits, and a sign and a point: the compiler writes no exponents.
        Value::Number(number) => number.as_f64().map_or(0, |n| n.to_string().len() + 4),
        Value::Bool(_) | Value::Null => 5,
    }
}

/// The error of a schema that cannot be compiled, at the innermost part that alone is at fault.
pub(super) fn refusal(schema: &Value, reason: &str) -> TuneError {
    let mut place = String::new();
    let mut reason = reason.to_owned();
    let mut here = schema.clone();
    let definitions = schema.get("$defs").cloned();
    let beside = definitions.as_ref().map_or(0, |all| all.to_string().len());
    let (mut parts_left, mut text_left) = (MOST_PARTS, MOST_PARTS_TEXT);
    for _ in 0..DEEPEST {
        let Value::Object(fields) = &mut here else {
            break;
        };
        let inner = fields.iter_mut().find_map(|(keyword, value)| {
            parts(keyword, value).into_iter().find_map(|(at, part)| {
                parts_left = parts_left.checked_sub(1)?;
                text_left = text_left.checked_sub(beside + part.to_string().len())?;
                let fault = fault_of(part, definitions.as_ref())?;
                Some((at, part.clone(), fault))
            })
        });
        let Some((at, part, fault)) = inner else {
            break;
        };
        place.push_str(&at);
        (here, reason) = (part, fault);
    }
    TuneError::Schema {
        place,
        reason: worded(&reason),
    }
}

fn fault_of(part: &Value, definitions: Option<&Value>) -> Option<String> {
    let mut alone = part.clone();
    if let (Value::Object(fields), Some(definitions)) = (&mut alone, definitions) {
        fields.insert("$defs".into(), definitions.clone());
    }
    // That nothing fits a part is no fault: it may be one of several.
    if alone == Value::Bool(false) {
        return None;
    }
    // The compiler panics at some faults, such as long texts where it wants numbers.
    let compiled = catch_unwind(AssertUnwindSafe(|| {
        let builder = GrammarBuilder::new(None, ParserLimits::default());
        options().json_to_llg(builder, alone)
    }));
    let fault = match compiled {
        Ok(compiled) => compiled.err()?.to_string(),
        Err(_) => {
            "the compiler fails at it; is a value of another type than its keyword has?".into()
        }
    };
    (!fault.starts_with("Unsatisfiable")).then_some(fault)
}

/// The first line of what the compiler said, as we write messages.
fn worded(reason: &str) -> String {
    let line = reason
        .lines()
        .find(|line| !line.trim().is_empty() && !line.starts_with('<'))
        .unwrap_or("cannot be compiled")
        .trim();
    if let Some(rest) = line.strip_prefix("Unimplemented keys: ") {
        return format!("keywords that are not supported: {rest}");
    }
    if line.starts_with("oneOf constraints") {
        return "alternatives of oneOf that cannot be told apart; use anyOf where more than one may fit".into();
    }
    let mut letters = line.chars();
    match letters.next() {
        Some(first) if !line.starts_with("JSON") => first.to_lowercase().chain(letters).collect(),
        _ => line.to_owned(),
    }
}
