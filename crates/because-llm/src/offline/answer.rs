use serde_json::{Map, Value, json};

use super::compose::{self, Room};
use super::data::{Data, Document, Wish};
use super::explain;
use super::phrases::KeyPhrases;
use super::rank::{self, Choice};

/// A value for the schema, as JSON.
pub(super) fn structured(data: &Data, schema: &Value, seed: Option<u64>) -> String {
    Answer::new(data, schema, seed)
        .value("", schema, 0)
        .to_string()
}

/// A summary of at most so many words.
pub(super) fn free(data: &Data, words: Option<usize>) -> String {
    let wish = Wish::of(&data.instructions);
    let room = Room {
        words,
        characters: None,
    };
    compose::summary(&data.documents(), &wish, narrowed(room, &wish))
}

fn narrowed(room: Room, wish: &Wish) -> Room {
    Room {
        words: room.words.into_iter().chain(wish.words).min(),
        ..room
    }
}

/// One answer in the making: what was read, and the choice all its texts are about.
struct Answer<'a> {
    data: &'a Data,
    schema: &'a Value,
    documents: Vec<Document>,
    choice: Option<Choice>,
    /// The property that the choice was made for.
    chooses: &'a str,
    wish: Wish,
    variant: usize,
}

impl<'a> Answer<'a> {
    fn new(data: &'a Data, schema: &'a Value, seed: Option<u64>) -> Self {
        let properties = schema.get("properties").and_then(Value::as_object);
        let made = properties.into_iter().flatten().find_map(|(name, schema)| {
            let wanted = kind(schema) == "integer" || schema.get("enum").is_some();
            let choice =
                wanted.then(|| rank::choose(name, data, |number| takes(schema, number)))??;
            Some((name.as_str(), choice))
        });
        let (chooses, choice) = made.map_or(("", None), |(name, choice)| (name, Some(choice)));
        let documents = data.documents();
        let variant = variant(seed, choice.as_ref());
        Self {
            data,
            schema,
            documents,
            choice,
            chooses,
            wish: Wish::of(&data.instructions),
            variant,
        }
    }

    fn value(&self, name: &str, schema: &Value, depth: usize) -> Value {
        const DEEPEST: usize = 24;
        if depth > DEEPEST {
            return Value::Null;
        }
        if let Some(fixed) = schema.get("const") {
            return fixed.clone();
        }
        if let Some(Value::Array(members)) = schema.get("enum") {
            return self.member(name, members);
        }
        if let Some(target) = schema
            .get("$ref")
            .and_then(Value::as_str)
            .and_then(|path| self.schema.pointer(path.strip_prefix('#')?))
        {
            return self.value(name, target, depth + 1);
        }
        if let Some(first) = ["anyOf", "oneOf", "allOf"]
            .iter()
            .find_map(|of| schema.get(of)?.get(0))
        {
            return self.value(name, first, depth + 1);
        }
        match kind(schema) {
            "object" => self.object(schema, depth),
            "array" => self.array(name, schema, depth),
            "integer" => match &self.choice {
                Some(choice) if depth == 1 && name == self.chooses => json!(choice.number),
                _ => middle(schema, true),
            },
            "number" => middle(schema, false),
            "boolean" => json!(false),
            "null" => Value::Null,
            _ => Value::String(self.text(name, schema)),
        }
    }

    fn object(&self, schema: &Value, depth: usize) -> Value {
        let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
            return json!({});
        };
        // What is neither named by `required` nor part of a recursion is given too: callers read it if it is there.
        let required: Vec<&str> = schema
            .get("required")
            .and_then(Value::as_array)
            .map(|names| names.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        let wanted = properties
            .iter()
            .filter(|(name, _)| depth == 0 || required.contains(&name.as_str()));
        let fields: Map<String, Value> = wanted
            .map(|(name, schema)| (name.clone(), self.value(name, schema, depth + 1)))
            .collect();
        Value::Object(fields)
    }

    fn array(&self, name: &str, schema: &Value, depth: usize) -> Value {
        let bound = |bound: &str| {
            schema
                .get(bound)
                .and_then(Value::as_u64)
                .and_then(|bound| usize::try_from(bound).ok())
        };
        let least = bound("minItems").unwrap_or(0);
        let most = bound("maxItems").unwrap_or(least.max(5));
        let items = schema.get("items").unwrap_or(&Value::Bool(true));
        let mut values: Vec<Value> = Vec::new();
        if kind(items) == "string" && items.get("enum").is_none() && items.get("const").is_none() {
            let room = characters(items);
            let phrases = KeyPhrases::of(&self.documents);
            let mut texts: Vec<String> = phrases
                .pick(most.min(100), &[])
                .iter()
                .map(|phrase| phrase.text.clone())
                .collect();
            texts.extend((texts.len()..least).map(|at| format!("unknown {}", at + 1)));
            for text in texts {
                let text = Value::String(padded(room.cut(&text), items));
                if !values.contains(&text) {
                    values.push(text);
                }
            }
        }
        while values.len() < least {
            values.push(self.value(name, items, depth + 1));
        }
        values.truncate(most);
        Value::Array(values)
    }

    fn member(&self, name: &str, members: &[Value]) -> Value {
        let chosen = self
            .choice
            .as_ref()
            .filter(|_| name == self.chooses)
            .map(|choice| json!(choice.number));
        if let Some(member) =
            chosen.and_then(|chosen| members.iter().find(|member| **member == chosen))
        {
            return member.clone();
        }
        let listed: Vec<Document> = members
            .iter()
            .map(|member| Document::of(member, 1.0))
            .collect();
        let best = rank::best(&self.documents, &listed);
        best.and_then(|at| members.get(at))
            .cloned()
            .unwrap_or(Value::Null)
    }

    fn text(&self, name: &str, schema: &Value) -> String {
        let description = schema
            .get("description")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let own = Wish::of(description);
        let wish = Wish {
            lead: own.lead.clone(),
            words: own.words.or(self.wish.words),
        };
        let room = narrowed(characters(schema), &wish);
        let text = match (Part::of(name, description), &self.choice) {
            (Part::Reason, Some(choice)) => explain::explanation(choice, &wish, room, self.variant),
            (Part::Evidence, Some(choice)) => explain::evidence(choice, room),
            (Part::Evidence, None) => compose::evidence(&self.documents, self.residual(), room),
            (Part::Shared, _) => compose::shared(&self.largest(), &wish, room),
            (Part::Summary | Part::Reason, _) => {
                let wish = Wish {
                    lead: own.lead.or_else(|| self.wish.lead.clone()),
                    ..wish
                };
                match self.residual() {
                    true => compose::updated(&self.documents, &wish, room),
                    false => compose::summary(&self.documents, &wish, room),
                }
            }
        };
        padded(text, schema)
    }

    /// Whether the request is several single texts, the first of which the others add to.
    fn residual(&self) -> bool {
        self.data.blocks.len() > 1 && self.data.blocks.iter().all(|block| !block.value.is_array())
    }

    /// The elements of the longest list; everything, if there is no list.
    fn largest(&self) -> Vec<Document> {
        let told = self
            .data
            .blocks
            .iter()
            .rev()
            .filter(|block| !block.lists_wrong());
        told.filter_map(|block| Some((block.value.as_array()?.len(), block)))
            .max_by_key(|(length, _)| *length)
            .map_or_else(|| self.data.documents(), |(_, block)| block.documents(1.0))
    }
}

/// What a text property is for, by its name and description.
enum Part {
    Summary,
    Shared,
    Evidence,
    Reason,
}

impl Part {
    fn of(name: &str, description: &str) -> Self {
        let name = name.to_lowercase();
        let says = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
        let description = description.to_lowercase();
        if says(&["reasoning", "evidence", "rationale"]) {
            Self::Evidence
        } else if says(&["expla", "reason", "why", "justif"]) {
            Self::Reason
        } else if says(&["shared", "common"])
            || description.contains("share")
            || description.contains("in common")
        {
            Self::Shared
        } else {
            Self::Summary
        }
    }
}

/// Which way of saying it: a hash, so that a set of texts is not all alike and each stays the same.
fn variant(seed: Option<u64>, choice: Option<&Choice>) -> usize {
    let Some(choice) = choice else { return 0 };
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.unwrap_or(0).to_le_bytes());
    for document in choice.query.iter().chain([&choice.chosen]) {
        hasher.update(document.title.as_deref().unwrap_or_default().as_bytes());
        document.sentences().for_each(|sentence| {
            hasher.update(sentence.text.as_bytes());
        });
    }
    usize::from(hasher.finalize().as_bytes()[0])
}

/// The type a schema asks for; of several, the first that is not `null`.
fn kind(schema: &Value) -> &str {
    let named = match schema.get("type") {
        Some(Value::Array(kinds)) => kinds
            .iter()
            .filter_map(Value::as_str)
            .find(|kind| *kind != "null")
            .or(Some("null")),
        Some(kind) => kind.as_str(),
        None => None,
    };
    named.unwrap_or(if schema.get("properties").is_some() {
        "object"
    } else {
        "string"
    })
}

fn takes(schema: &Value, number: i64) -> bool {
    let bound = |bound: &str| schema.get(bound).and_then(Value::as_f64);
    let value = number as f64;
    bound("minimum").is_none_or(|least| value >= least)
        && bound("maximum").is_none_or(|most| value <= most)
        && bound("exclusiveMinimum").is_none_or(|least| value > least)
        && bound("exclusiveMaximum").is_none_or(|most| value < most)
        && schema
            .get("enum")
            .and_then(Value::as_array)
            .is_none_or(|members| members.contains(&json!(number)))
}

/// A number that claims nothing: the middle of its bounds, or the nearest to 0.
fn middle(schema: &Value, whole: bool) -> Value {
    let bound = |bound: &str| schema.get(bound).and_then(Value::as_f64);
    let above = |least: f64| {
        if whole {
            least.floor() + 1.0
        } else {
            least + 1e-6
        }
    };
    let below = |most: f64| {
        if whole {
            most.ceil() - 1.0
        } else {
            most - 1e-6
        }
    };
    let least = bound("minimum").or(bound("exclusiveMinimum").map(above));
    let most = bound("maximum").or(bound("exclusiveMaximum").map(below));
    let value = match (least, most) {
        (Some(least), Some(most)) => least + (most - least) / 2.0,
        (Some(least), None) => least.max(0.0),
        (None, Some(most)) => most.min(0.0),
        (None, None) => 0.0,
    };
    if !whole {
        return json!(value);
    }
    let floor = value.floor();
    let within = if least.is_some_and(|least| floor < least) {
        value.ceil()
    } else {
        floor
    };
    json!(within as i64)
}

fn characters(schema: &Value) -> Room {
    let most = schema.get("maxLength").and_then(Value::as_u64);
    Room {
        words: None,
        characters: most.map(|most| usize::try_from(most).unwrap_or(usize::MAX)),
    }
}

/// Reaches a `minLength` by saying so.
fn padded(mut text: String, schema: &Value) -> String {
    let least = schema
        .get("minLength")
        .and_then(Value::as_u64)
        .unwrap_or(0)
        .min(100_000);
    let least = usize::try_from(least).unwrap_or(usize::MAX);
    if text.chars().count() >= least {
        return text;
    }
    while text.chars().count() < least {
        text.push_str(if text.is_empty() {
            "Nothing is known."
        } else {
            " Nothing more is known."
        });
    }
    let most = characters(schema)
        .characters
        .unwrap_or(usize::MAX)
        .max(least);
    match text.char_indices().nth(most) {
        Some((end, _)) => text[..end].to_owned(),
        None => text,
    }
}
