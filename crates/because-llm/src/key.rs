use std::fmt;

use serde::Serialize;
use serde_json::Value;

use crate::{ChatRequest, JsonSchema, Message, ModelId, Role, Sampling};

/// The identity of a request to a model; see [`ChatRequest::key`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestKey(pub(crate) [u8; 32]);

impl RequestKey {
    /// The bytes, as they are stored.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for RequestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for RequestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The part of the key that says how it is made. Another number here makes everybody pay again.
const VERSION: &str = "1";

impl ChatRequest {
    /// What identifies this request to this model: BLAKE3 over the version of the key, the model's id and the whole
    /// request, as JSON with sorted keys.
    #[must_use]
    pub fn key(&self, model: &ModelId) -> RequestKey {
        RequestKey(*blake3::hash(&canonical(self, model)).as_bytes())
    }
}

/// The bytes that are hashed: what `serde_json` writes of `[VERSION, model, request]` with the fields of every object
/// sorted. Written field by field, because building that value costs more than hashing it; the test below holds the two
/// against each other.
fn canonical(request: &ChatRequest, model: &ModelId) -> Vec<u8> {
    let ChatRequest {
        messages,
        schema,
        sampling,
        seed,
        prefix_group: _,
    } = request;
    let said: usize = messages.iter().map(|message| message.content.len()).sum();
    // Room for the escapes of ordinary prose and for a schema; what needs more, grows.
    let mut out = Vec::with_capacity(said + said / 16 + 1024);
    out.push(b'[');
    out.extend_from_slice(VERSION.as_bytes());
    out.extend_from_slice(b",{\"endpoint\":");
    string(&mut out, &model.endpoint);
    out.extend_from_slice(b",\"model\":");
    string(&mut out, &model.model);
    out.extend_from_slice(b"},{\"messages\":[");
    for (place, Message { role, content }) in messages.iter().enumerate() {
        if place > 0 {
            out.push(b',');
        }
        out.extend_from_slice(b"{\"content\":");
        string(&mut out, content);
        out.extend_from_slice(match role {
            Role::System => b",\"role\":\"system\"}".as_slice(),
            Role::User => b",\"role\":\"user\"}",
            Role::Assistant => b",\"role\":\"assistant\"}",
        });
    }
    out.extend_from_slice(b"],\"sampling\":");
    sampled(&mut out, sampling);
    if let Some(JsonSchema { name, schema }) = schema {
        out.extend_from_slice(b",\"schema\":{\"name\":");
        string(&mut out, name);
        out.extend_from_slice(b",\"schema\":");
        sorted(&mut out, schema);
        out.push(b'}');
    }
    if let Some(seed) = seed {
        out.extend_from_slice(b",\"seed\":");
        plain(&mut out, seed);
    }
    out.extend_from_slice(b"}]");
    out
}

fn sampled(out: &mut Vec<u8>, sampling: &Sampling) {
    let Sampling {
        temperature,
        top_p,
        max_tokens,
    } = sampling;
    let mut open = b'{';
    let mut field = |out: &mut Vec<u8>, name: &str| {
        out.push(std::mem::replace(&mut open, b','));
        out.extend_from_slice(name.as_bytes());
    };
    if let Some(tokens) = max_tokens {
        field(out, "\"max_tokens\":");
        plain(out, tokens);
    }
    if let Some(temperature) = temperature {
        field(out, "\"temperature\":");
        plain(out, temperature);
    }
    if let Some(top_p) = top_p {
        field(out, "\"top_p\":");
        plain(out, top_p);
    }
    if open == b'{' {
        out.push(b'{');
    }
    out.push(b'}');
}

fn sorted(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<(&String, &Value)> = fields.iter().collect();
            fields.sort_unstable_by_key(|(name, _)| *name);
            out.push(b'{');
            for (place, (name, value)) in fields.into_iter().enumerate() {
                if place > 0 {
                    out.push(b',');
                }
                string(out, name);
                out.push(b':');
                sorted(out, value);
            }
            out.push(b'}');
        }
        Value::Array(items) => {
            out.push(b'[');
            for (place, item) in items.iter().enumerate() {
                if place > 0 {
                    out.push(b',');
                }
                sorted(out, item);
            }
            out.push(b']');
        }
        Value::String(text) => string(out, text),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Null => out.extend_from_slice(b"null"),
        Value::Number(number) => plain(out, number),
    }
}

/// Numbers, in the one spelling that everything else here has too.
fn plain(out: &mut Vec<u8>, value: &impl Serialize) {
    serde_json::to_writer(out, value).expect("numbers serialise, and a vector takes them");
}

fn string(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    out.push(b'"');
    let mut from = 0;
    while let Some(at) = next_escaped(bytes, from) {
        out.extend_from_slice(&bytes[from..at]);
        match bytes[at] {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x0c => out.extend_from_slice(b"\\f"),
            control => {
                let digit = |half: u8| b"0123456789abcdef"[usize::from(half)];
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&[digit(control >> 4), digit(control & 15)]);
            }
        }
        from = at + 1;
    }
    out.extend_from_slice(&bytes[from..]);
    out.push(b'"');
}

/// The first place at or after `from` of a byte that JSON does not take as it is: a quote, a backslash, a control
/// character. Eight bytes at a time; texts are long and few of their bytes are any of these.
fn next_escaped(bytes: &[u8], from: usize) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const TOPS: u64 = 0x8080_8080_8080_8080;
    let mut at = from;
    while let Some(chunk) = bytes.get(at..).and_then(<[u8]>::first_chunk::<8>) {
        let word = u64::from_le_bytes(*chunk);
        // The lowest marked byte is right in each of these; a borrow can only mark bytes above a true one.
        let zero = |word: u64| word.wrapping_sub(ONES) & !word;
        let control = word.wrapping_sub(ONES * 0x20) & !word;
        let found = (control
            | zero(word ^ (ONES * u64::from(b'"')))
            | zero(word ^ (ONES * u64::from(b'\\'))))
            & TOPS;
        if found != 0 {
            return Some(at + found.trailing_zeros() as usize / 8);
        }
        at += 8;
    }
    let rest = bytes.get(at..)?;
    let escaped = |&byte: &u8| byte < 0x20 || byte == b'"' || byte == b'\\';
    rest.iter().position(escaped).map(|place| at + place)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the key was first made of. It must never change: answers already paid for are found by it.
    fn by_value(request: &ChatRequest, model: &ModelId) -> Vec<u8> {
        let mut whole = serde_json::json!([1, model, request]);
        whole.sort_all_objects();
        whole.to_string().into_bytes()
    }

    fn text() -> impl Strategy<Value = String> {
        prop_oneof![
            ".{0,40}",
            "[a-zé\"\\\\\n\t\r\u{0}-\u{1f}\u{7f}\u{80}-\u{9f} ]{0,60}",
            proptest::collection::vec(any::<char>(), 0..40)
                .prop_map(|chars| chars.into_iter().collect()),
        ]
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            text().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                proptest::collection::vec((text(), inner), 0..6)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    fn request() -> impl Strategy<Value = ChatRequest> {
        let message = (0..3usize, text()).prop_map(|(role, content)| Message {
            role: [Role::System, Role::User, Role::Assistant][role],
            content,
        });
        let number = || prop_oneof![any::<f64>(), -2.0..2.0f64, Just(1.0), Just(f64::NAN)];
        let sampling = (
            proptest::option::of(number()),
            proptest::option::of(number()),
            proptest::option::of(any::<u32>()),
        )
            .prop_map(|(temperature, top_p, max_tokens)| Sampling {
                temperature,
                top_p,
                max_tokens,
            });
        let schema = (text(), value()).prop_map(|(name, schema)| JsonSchema { name, schema });
        (
            proptest::collection::vec(message, 0..5),
            proptest::option::of(schema),
            sampling,
            proptest::option::of(any::<u64>()),
        )
            .prop_map(|(messages, schema, sampling, seed)| {
                let mut request = ChatRequest::new(messages).sampling(sampling);
                request.schema = schema;
                request.seed = seed;
                request
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn the_bytes_are_those_of_the_sorted_value(request in request(), model in text(), endpoint in text()) {
            let model = ModelId { model, endpoint };
            let written = canonical(&request, &model);
            let expected = by_value(&request, &model);
            prop_assert_eq!(String::from_utf8_lossy(&written), String::from_utf8_lossy(&expected));
        }

        #[test]
        fn what_has_to_be_escaped_is_found(bytes in proptest::collection::vec(any::<u8>(), 0..40), from in 0..40usize) {
            let plainly = (from..bytes.len())
                .find(|&at| bytes[at] < 0x20 || matches!(bytes[at], b'"' | b'\\'));
            prop_assert_eq!(next_escaped(&bytes, from), plainly);
        }
    }

    #[test]
    fn a_key_once_given_out_stays() {
        let request = ChatRequest::new(vec![
            Message::system("Answer \"briefly\".\n"),
            Message::user("Warum? \u{1f35d}\u{1}"),
        ])
        .schema(
            "s",
            serde_json::json!({"type": "object", "additionalProperties": false, "n": 1.0}),
        )
        .sampling(Sampling {
            temperature: Some(0.7),
            top_p: Some(1.0),
            max_tokens: Some(64),
        })
        .seed(u64::MAX);
        let model = ModelId {
            model: "m".into(),
            endpoint: "https://a.example/v1".into(),
        };
        insta::assert_snapshot!(String::from_utf8_lossy(&canonical(&request, &model)), @r#"[1,{"endpoint":"https://a.example/v1","model":"m"},{"messages":[{"content":"Answer \"briefly\".\n","role":"system"},{"content":"Warum? 🍝\u0001","role":"user"}],"sampling":{"max_tokens":64,"temperature":0.7,"top_p":1.0},"schema":{"name":"s","schema":{"additionalProperties":false,"n":1.0,"type":"object"}},"seed":18446744073709551615}]"#);
        insta::assert_snapshot!(request.key(&model), @"52ade374b9850683b0c26ef591d752a4bf05e7ad6c0553554a06736101c620ed");
    }

    #[test]
    fn the_key_changes_with_everything_the_answer_depends_on() {
        let model = ModelId {
            model: "m".into(),
            endpoint: "http://a".into(),
        };
        let request = ChatRequest::new(vec![Message::user("why?")]);
        let others = [
            request.clone().seed(1).key(&model),
            request
                .clone()
                .schema("s", serde_json::json!({"type": "object"}))
                .key(&model),
            request
                .clone()
                .sampling(Sampling {
                    temperature: Some(0.5),
                    ..Sampling::default()
                })
                .key(&model),
            ChatRequest::new(vec![Message::system("why?")]).key(&model),
            request.key(&ModelId {
                endpoint: "http://b".into(),
                ..model.clone()
            }),
            request.key(&ModelId {
                model: "n".into(),
                ..model.clone()
            }),
        ];
        assert!(others.iter().all(|other| *other != request.key(&model)));
        assert_eq!(request.key(&model), request.clone().key(&model));
    }

    #[test]
    fn the_key_does_not_depend_on_the_order_of_a_schemas_fields() {
        let ask = |schema: &str| {
            ChatRequest::default()
                .schema("s", serde_json::from_str(schema).unwrap())
                .key(&ModelId::default())
        };
        assert_eq!(
            ask(r#"{"type":"object","title":"t"}"#),
            ask(r#"{"title":"t","type":"object"}"#)
        );
    }
}
