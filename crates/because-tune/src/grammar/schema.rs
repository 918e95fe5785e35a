use llguidance::api::ParserLimits;
use llguidance::{GrammarBuilder, JsonCompileOptions};
use serde_json::{Map, Value, json};

use crate::error::TuneError;

/// The largest whole number that every JSON reader holds exactly (RFC 8259, section 6). Beyond it readers differ, and some
/// refuse.
const LARGEST: i64 = (1 << 53) - 1;
/// Any JSON whose numbers are in that range, among the definitions.
const ANY: &str = "because.any";
const DEEPEST: usize = 64;

/// The schema as an answer is held to: nothing fits it that the given one refuses, numbers stay in the range that JSON
/// readers share, and there is no space between the parts.
pub(super) fn narrowed(schema: &Value) -> Value {
    let mut narrow = match schema {
        Value::Bool(true) => json!({}),
        schema => schema.clone(),
    };
    let mut uses_any = false;
    narrow_down(&mut narrow, &mut uses_any, 0);
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

fn narrow_down(schema: &mut Value, uses_any: &mut bool, depth: usize) {
    let Value::Object(fields) = schema else {
        return;
    };
    if depth > DEEPEST {
        return;
    }
    for (keyword, value) in fields.iter_mut() {
        for (_, part) in parts(keyword, value) {
            match part {
                Value::Bool(true) => {
                    *part = any();
                    *uses_any = true;
                }
                part => narrow_down(part, uses_any, depth + 1),
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
            let escaped = |name: &str| name.replace('~', "~0").replace('/', "~1");
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

/// The most bytes that the end of a lexeme may be away once it has begun, where no pattern says otherwise: that of a string
/// of the longest `minLength`, with an escape or a letter of several bytes under way.
pub(super) fn longest_lexeme(schema: &Value) -> Option<usize> {
    fn longest(schema: &Value) -> Option<usize> {
        match schema {
            Value::Object(fields) => fields.iter().try_fold(0, |most, (keyword, value)| {
                if ["pattern", "format", "patternProperties"].contains(&keyword.as_str()) {
                    return None;
                }
                let own = match (keyword.as_str(), value.as_u64()) {
                    ("minLength", Some(least)) => least as usize,
                    _ => keyword.len() * ESCAPED,
                };
                Some(most.max(own).max(longest(value)?))
            }),
            Value::Array(all) => all
                .iter()
                .try_fold(0, |most, one| Some(most.max(longest(one)?))),
            Value::String(text) => Some(text.len() * ESCAPED),
            _ => Some(0),
        }
    }
    const ESCAPED: usize = 6;
    longest(schema).map(|most| most + 4 * ESCAPED)
}

/// The error of a schema that cannot be compiled, at the innermost part that alone is at fault.
pub(super) fn refusal(schema: &Value, reason: &str) -> TuneError {
    let mut place = String::new();
    let mut reason = reason.to_owned();
    let mut here = schema.clone();
    let definitions = schema.get("$defs").cloned();
    for _ in 0..DEEPEST {
        let Value::Object(fields) = &mut here else {
            break;
        };
        let inner = fields.iter_mut().find_map(|(keyword, value)| {
            parts(keyword, value).into_iter().find_map(|(at, part)| {
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
    let builder = GrammarBuilder::new(None, ParserLimits::default());
    let fault = options().json_to_llg(builder, alone).err()?.to_string();
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
