use because_core::Message;
use serde_json::{Map, Value, json};

use super::refusal::Refusal;
use crate::decoding::Decoding;

/// What a request for a chat completion asks.
#[derive(Debug, PartialEq)]
pub(super) struct Question {
    pub(super) model: Option<String>,
    pub(super) messages: Vec<Message>,
    pub(super) decoding: Decoding,
    /// Whether it names its seed.
    pub(super) seeded: bool,
    pub(super) schema: Option<Value>,
    pub(super) stream: bool,
    /// Whether a stream ends with token counts.
    pub(super) counts: bool,
}

type Read<T> = Result<T, Refusal>;

impl Question {
    /// Reads a body. `null` is as good as none. Fields that are not known are passed over, but for those that ask for another
    /// answer than would be given.
    pub(super) fn read(body: &[u8], defaults: &Decoding) -> Read<Self> {
        let json: Value = serde_json::from_slice(body)
            .map_err(|error| Refusal::invalid(format!("the body is no JSON: {error}")))?;
        let Value::Object(fields) = &json else {
            return Err(Refusal::invalid("the body is no JSON object"));
        };
        let fields = Fields { fields, within: "" };
        fields.check_unsupported()?;
        if fields.whole("n")?.is_some_and(|n| n != 1) {
            return Err(fields.wrong("n", "only one answer to a request is possible"));
        }
        let mut most = None;
        for name in ["max_completion_tokens", "max_tokens"] {
            // Some clients write -1 for no limit.
            let asked = fields.whole(name)?.filter(|&asked| asked != -1);
            most = most.or(asked.map(|asked| (name, asked)));
        }
        let max_tokens = match most {
            Some((name, ..1)) => return Err(fields.wrong(name, "must be at least 1")),
            Some((_, most)) => usize::try_from(most)
                .map_or(defaults.max_tokens, |most| most.min(defaults.max_tokens)),
            None => defaults.max_tokens,
        };
        let top_k = match fields.whole("top_k")? {
            // As vLLM writes that there is no limit.
            Some(-1) => 0,
            Some(top_k) => usize::try_from(top_k)
                .map_err(|_| fields.wrong("top_k", "must be 0 (for all) or more"))?,
            None => defaults.top_k,
        };
        let seed = fields.seed()?;
        let options = fields.object("stream_options")?;
        let counts = match &options {
            Some(options) => options.boolean("include_usage")?.unwrap_or(false),
            None => false,
        };
        Ok(Self {
            model: fields.text("model")?.map(str::to_owned),
            messages: fields.messages()?,
            decoding: Decoding {
                max_tokens,
                temperature: fields
                    .number("temperature")?
                    .unwrap_or(defaults.temperature),
                top_p: fields.number("top_p")?.unwrap_or(defaults.top_p),
                top_k,
                repetition_penalty: fields
                    .number("repetition_penalty")?
                    .unwrap_or(defaults.repetition_penalty),
                seed: seed.unwrap_or(defaults.seed),
                stop: fields.stop()?.unwrap_or_else(|| defaults.stop.clone()),
            },
            seeded: seed.is_some(),
            schema: fields.schema()?,
            stream: fields.boolean("stream")?.unwrap_or(false),
            counts,
        })
    }
}

/// The fields of an object, and where in the request it stands.
struct Fields<'a> {
    fields: &'a Map<String, Value>,
    within: &'a str,
}

impl<'a> Fields<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.fields.get(name).filter(|value| !value.is_null())
    }

    fn wrong(&self, name: &str, reason: &str) -> Refusal {
        match self.within {
            "" => Refusal::field(name, reason),
            within => Refusal::field(format!("{within}.{name}"), reason),
        }
    }

    fn read<T>(
        &self,
        name: &str,
        what: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Read<Option<T>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => Err(self.wrong(name, &format!("must be {what}, and is {}", kind(value)))),
        }
    }

    fn text(&self, name: &str) -> Read<Option<&'a str>> {
        self.read(name, "a string", Value::as_str)
    }

    fn number(&self, name: &str) -> Read<Option<f64>> {
        self.read(name, "a number", Value::as_f64)
    }

    fn boolean(&self, name: &str) -> Read<Option<bool>> {
        self.read(name, "true or false", Value::as_bool)
    }

    /// A whole number; one too large for any count is the largest.
    fn whole(&self, name: &str) -> Read<Option<i64>> {
        let number = self.read(name, "a whole number", whole)?;
        Ok(number.map(|number| number.clamp(i64::MIN.into(), i64::MAX.into()) as i64))
    }

    fn seed(&self) -> Read<Option<u64>> {
        let seed = self.read("seed", "a whole number", whole)?;
        // As llama.cpp writes that any will do.
        Ok(seed.filter(|&seed| seed != -1).map(|seed| seed as u64))
    }

    /// Refuses what would change the answer and is not followed.
    fn check_unsupported(&self) -> Read<()> {
        for (tools, choice) in [("tools", "tool_choice"), ("functions", "function_call")] {
            let chosen = self.get(choice).map(|choice| choice.as_str().unwrap_or(""));
            if chosen == Some("none") {
                continue;
            }
            if self.get(tools).is_some_and(asks) {
                let reason = format!("no tools can be called here, unless {choice} is \"none\"");
                return Err(self.wrong(tools, &reason));
            }
            if chosen.is_some_and(|chosen| chosen != "auto") {
                return Err(self.wrong(choice, "no tools can be called here"));
            }
        }
        match UNSUPPORTED
            .iter()
            .find(|name| self.get(name).is_some_and(asks))
        {
            Some(name) => Err(self.wrong(name, "is not supported here; leave it out")),
            None => Ok(()),
        }
    }

    fn object<'b>(&self, name: &'b str) -> Read<Option<Fields<'b>>>
    where
        'a: 'b,
    {
        let fields = self.read(name, "an object", Value::as_object)?;
        Ok(fields.map(|fields| Fields {
            fields,
            within: name,
        }))
    }

    fn stop(&self) -> Read<Option<Vec<String>>> {
        self.read(
            "stop",
            "a string or a list of strings",
            |value| match value {
                Value::String(text) => Some(vec![text.clone()]),
                Value::Array(texts) => texts
                    .iter()
                    .map(|text| text.as_str().map(str::to_owned))
                    .collect(),
                _ => None,
            },
        )
    }

    /// The schema that the answer is to fit.
    fn schema(&self) -> Read<Option<Value>> {
        let Some(format) = self.object("response_format")? else {
            return Ok(None);
        };
        let kind_of_format = format.text("type")?;
        if kind_of_format != Some("json_schema") && format.get("schema").is_some_and(asks) {
            let reason = "is followed only as json_schema.schema, with the type json_schema";
            return Err(format.wrong("schema", reason));
        }
        match kind_of_format {
            Some("text") => Ok(None),
            Some("json_object") => Ok(Some(json!({ "type": "object" }))),
            Some("json_schema") => {
                let missing = || {
                    let name = "response_format.json_schema.schema";
                    Refusal::field(name, "is missing")
                };
                let named = format.object("json_schema")?.ok_or_else(missing)?;
                let schema = named.get("schema").ok_or_else(missing)?;
                if !schema.is_object() && !schema.is_boolean() {
                    let reason = format!("must be a JSON schema, and is {}", kind(schema));
                    return Err(Refusal::field(
                        "response_format.json_schema.schema",
                        &reason,
                    ));
                }
                Ok(Some(schema.clone()))
            }
            Some(other) => Err(format.wrong(
                "type",
                &format!("{other:?} is none of text, json_object and json_schema"),
            )),
            None => Err(format.wrong("type", "is missing")),
        }
    }

    fn messages(&self) -> Read<Vec<Message>> {
        let turns = self.read("messages", "a list", Value::as_array)?;
        let turns = turns.ok_or_else(|| self.wrong("messages", "is missing"))?;
        if turns.is_empty() {
            return Err(self.wrong("messages", "is empty"));
        }
        turns
            .iter()
            .enumerate()
            .map(|(place, turn)| message(&format!("messages[{place}]"), turn))
            .collect()
    }
}

fn message(within: &str, turn: &Value) -> Read<Message> {
    let Value::Object(fields) = turn else {
        let reason = format!("must be an object, and is {}", kind(turn));
        return Err(Refusal::field(within, &reason));
    };
    let fields = Fields { fields, within };
    let role = match fields.text("role")? {
        Some(role @ ("system" | "user" | "assistant")) => role,
        Some("developer") => "system",
        Some("tool" | "function") => {
            return Err(fields.wrong("role", "results of tools cannot be read here"));
        }
        Some(other) => {
            let reason = format!("{other:?} is none of system, developer, user and assistant");
            return Err(fields.wrong("role", &reason));
        }
        None => return Err(fields.wrong("role", "is missing")),
    };
    for calls in ["tool_calls", "function_call"] {
        if fields.get(calls).is_some_and(asks) {
            return Err(fields.wrong(calls, "turns that call tools cannot be read here"));
        }
    }
    let content = match fields.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => texts(within, parts)?,
        // A turn whose answer was cut while the model still thought.
        None if role == "assistant" => String::new(),
        None => return Err(fields.wrong("content", "is missing")),
        Some(other) => {
            let reason = format!(
                "must be a string or a list of parts, and is {}",
                kind(other)
            );
            return Err(fields.wrong("content", &reason));
        }
    };
    Ok(Message::new(role, content))
}

/// The texts of a content in parts.
fn texts(within: &str, parts: &[Value]) -> Read<String> {
    let mut all = String::new();
    for (place, part) in parts.iter().enumerate() {
        let within = format!("{within}.content[{place}]");
        match (part.get("type").and_then(Value::as_str), part.get("text")) {
            (Some("text"), Some(Value::String(text))) => all += text,
            (Some("text"), _) => {
                return Err(Refusal::field(format!("{within}.text"), "must be a string"));
            }
            _ => {
                let name = format!("{within}.type");
                return Err(Refusal::field(name, "only parts of text can be read"));
            }
        }
    }
    Ok(all)
}

/// Fields of other servers and of OpenAI's own whose answer would not be the one that is asked for.
const UNSUPPORTED: [&str; 16] = [
    "audio",
    "frequency_penalty",
    "grammar",
    "guided_choice",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "json_schema",
    "logit_bias",
    "logprobs",
    "min_p",
    "presence_penalty",
    "regex",
    "structured_outputs",
    "top_logprobs",
    "web_search_options",
];

/// Whether a field asks for something: clients also send what changes nothing.
fn asks(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(asked) => *asked,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(all) => !all.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

/// A whole number, however it is written: some languages know only one kind and send 100.0.
fn whole(value: &Value) -> Option<i128> {
    let integer = value.as_i64().map(i128::from);
    let integer = integer.or(value.as_u64().map(i128::from));
    let float = value.as_f64().filter(|float| float.fract() == 0.0);
    integer.or(float.map(|float| float as i128))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(body: &Value) -> Read<Question> {
        Question::read(body.to_string().as_bytes(), &Decoding::greedy(100))
    }

    fn with(name: &str, value: Value) -> Value {
        let mut body = json!({ "model": "m", "messages": [{ "role": "user", "content": "hi" }] });
        body[name] = value;
        body
    }

    #[test]
    fn every_field_is_read_and_what_is_unknown_is_passed_over() {
        let question = read(&json!({
            "model": "m",
            "messages": [
                { "role": "developer", "content": [{ "type": "text", "text": "be " }, { "type": "text", "text": "brief" }] },
                { "role": "user", "content": "hi", "name": "ann" },
                { "role": "assistant", "content": null },
            ],
            "max_tokens": 7, "max_completion_tokens": 9, "temperature": 1, "top_p": 0.5, "top_k": -1,
            "repetition_penalty": 1.5, "seed": -2, "stop": "x", "n": 1, "user": "u", "stream": true,
            "stream_options": { "include_usage": true }, "response_format": { "type": "json_object" },
        }))
        .unwrap();
        let turns = [("system", "be brief"), ("user", "hi"), ("assistant", "")];
        assert_eq!(
            question,
            Question {
                model: Some("m".into()),
                messages: turns.map(|(role, text)| Message::new(role, text)).into(),
                decoding: Decoding {
                    max_tokens: 9,
                    temperature: 1.0,
                    top_p: 0.5,
                    top_k: 0,
                    repetition_penalty: 1.5,
                    seed: u64::MAX - 1,
                    stop: vec!["x".into()],
                },
                seeded: true,
                schema: Some(json!({ "type": "object" })),
                stream: true,
                counts: true,
            }
        );
        // An answer is never longer than the server allows.
        for most in [json!(1000), json!(u64::MAX), Value::Null] {
            let question = read(&with("max_tokens", most)).unwrap();
            assert_eq!(question.decoding.max_tokens, 100);
        }
    }

    #[test]
    fn numbers_are_read_as_other_clients_write_them() {
        let question = read(&with("max_tokens", json!(50.0))).unwrap();
        assert_eq!(question.decoding.max_tokens, 50);
        assert!(read(&with("n", json!(1.0))).is_ok());
        for name in ["max_tokens", "max_completion_tokens"] {
            let question = read(&with(name, json!(-1))).unwrap();
            assert_eq!(question.decoding.max_tokens, 100);
        }
        for (seed, read_as) in [
            (json!(7.0), Some(7)),
            (json!(u64::MAX), Some(u64::MAX)),
            (json!(-1), None),
            (json!(-1.0), None),
        ] {
            let question = read(&with("seed", seed)).unwrap();
            let found = question.seeded.then_some(question.decoding.seed);
            assert_eq!(found, read_as);
        }
    }

    #[test]
    fn what_would_change_the_answer_is_refused_unless_it_changes_nothing() {
        for name in UNSUPPORTED.iter().chain(&["tools", "functions"]) {
            for neutral in [
                json!(null),
                json!(false),
                json!(0),
                json!(0.0),
                json!(""),
                json!([]),
                json!({}),
            ] {
                assert!(read(&with(name, neutral)).is_ok(), "{name}");
            }
            for asked in [
                json!(true),
                json!(0.5),
                json!("x"),
                json!([{}]),
                json!({ "x": 1 }),
            ] {
                let refusal = read(&with(name, asked)).unwrap_err().body();
                assert_eq!(refusal["error"]["param"], **name, "{refusal}");
            }
        }
        let mut body = with("tools", json!([{ "type": "function" }]));
        body["tool_choice"] = "none".into();
        assert!(read(&body).is_ok());
        assert!(read(&with("tool_choice", json!("auto"))).is_ok());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (body, param) in [
            (json!({}), "messages"),
            (json!({ "messages": [] }), "messages"),
            (json!({ "messages": ["hi"] }), "messages[0]"),
            (
                json!({ "messages": [{ "role": "tool", "content": "" }] }),
                "messages[0].role",
            ),
            (
                json!({ "messages": [{ "role": "user" }] }),
                "messages[0].content",
            ),
            (
                json!({ "messages": [{ "role": "assistant", "content": null, "tool_calls": [{ "id": "1" }] }] }),
                "messages[0].tool_calls",
            ),
            (with("tool_choice", json!("required")), "tool_choice"),
            (
                with("tool_choice", json!({ "type": "function" })),
                "tool_choice",
            ),
            (
                with(
                    "response_format",
                    json!({ "type": "json_object", "schema": { "type": "object" } }),
                ),
                "response_format.schema",
            ),
            (
                json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] }),
                "messages[0].content[0].type",
            ),
            (with("n", json!(2)), "n"),
            (with("model", json!(2)), "model"),
            (with("max_tokens", json!(0)), "max_tokens"),
            (with("max_tokens", json!(1.5)), "max_tokens"),
            (with("temperature", json!("hot")), "temperature"),
            (with("top_k", json!(-2)), "top_k"),
            (with("stop", json!([1])), "stop"),
            (with("stream", json!("yes")), "stream"),
            (
                with("stream_options", json!({ "include_usage": 1 })),
                "stream_options.include_usage",
            ),
            (
                with("response_format", json!({ "type": "xml" })),
                "response_format.type",
            ),
            (
                with("response_format", json!({ "type": "json_schema" })),
                "response_format.json_schema.schema",
            ),
            (
                with(
                    "response_format",
                    json!({ "type": "json_schema", "json_schema": { "schema": 1 } }),
                ),
                "response_format.json_schema.schema",
            ),
        ] {
            let refusal = read(&body).unwrap_err().body();
            assert_eq!(refusal["error"]["param"], param, "{body} {refusal}");
        }
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[a-z]{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::vec(
                    ("role|content|type|text|json_schema|schema|x", inner),
                    0..4
                )
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Question::read(&bytes, &Decoding::default());
        }

        #[test]
        fn no_json_makes_it_panic(
            fields in proptest::collection::vec(
                ("messages|model|n|stop|seed|top_k|max_tokens|temperature|stream|stream_options|response_format|tools|tool_choice|min_p", json_value()),
                0..8,
            ),
        ) {
            let body = Value::Object(fields.into_iter().collect());
            let _ = read(&body);
        }
    }
}
