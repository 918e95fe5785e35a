use std::sync::LazyLock;

use proptest::prelude::*;
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, json};

use super::*;
use crate::decoding::{Decoding, Sampler};
use crate::params::generator;
use crate::tiny::train_tokenizer;

/// Bytes, parts of JSON and a few words; letters of other scripts are several tokens.
static VOCABULARY: LazyLock<Vocabulary> = LazyLock::new(|| {
    let json = r#"{"summary":"the cafe","reasoning":"it is quiet","tags":["a","b"],"n":[[1,2],[3]],"x":{"y":{}}},{"":""},null"#;
    let texts = vec![json; 3];
    let text = train_tokenizer(&texts, 400).unwrap();
    Vocabulary::parse(text.as_bytes()).unwrap()
});

static GRAMMARS: LazyLock<Grammars> =
    LazyLock::new(|| Grammars::new(&VOCABULARY, &stops()).unwrap());

fn stops() -> [u32; 2] {
    ["<|im_end|>", "<|endoftext|>"].map(|name| VOCABULARY.special(name).unwrap())
}

/// What a model of random numbers answers: its tokens and the text.
fn answer(
    schema: &Value,
    room: usize,
    decoding: &Decoding,
    rng: &mut ChaCha8Rng,
) -> Result<String> {
    let mut grammar = GRAMMARS.json(schema)?;
    let mut sampler = Sampler::new(decoding.clone());
    let mut ids: Vec<u32> = Vec::new();
    // Some tokens that the model is fond of, so that it goes on and on with them.
    let size = VOCABULARY.size();
    let fond: Vec<usize> = (0..8).map(|_| rng.random_range(0..size)).collect();
    let forces = rng.random_bool(0.3);
    loop {
        if forces {
            let forced = grammar.forced(room - ids.len());
            for &token in &forced {
                grammar.take(token)?;
            }
            ids.extend(forced);
        }
        let mut logits: Vec<f32> = (0..size + 5).map(|_| rng.random_range(-4.0..4.0)).collect();
        for &token in &fond {
            logits[token] += 8.0;
        }
        grammar.mask(&mut logits, room - ids.len())?;
        let token = sampler.choose(&mut logits, &ids);
        assert!(
            logits[token as usize].is_finite(),
            "every token is forbidden"
        );
        grammar.take(token)?;
        ids.push(token);
        assert!(ids.len() <= room, "{ids:?} has more than {room} tokens");
        if stops().contains(&token) {
            break;
        }
        assert!(ids.len() < room, "{:?} has no end", VOCABULARY.decode(&ids));
    }
    assert!(grammar.is_done());
    let trie = GRAMMARS.0.tokens.tok_trie();
    let bytes = trie.decode_raw(&ids[..ids.len() - 1]);
    let text = String::from_utf8(bytes).expect("an answer is text");
    assert_eq!(VOCABULARY.decode(&ids)?, text);
    Ok(text)
}

fn needed(schema: &Value) -> usize {
    GRAMMARS.compiled(schema).unwrap().smallest.len() + 1
}

fn assert_fits(schema: &Value, text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|fault| panic!("{text}: {fault}"));
    let validator = jsonschema::validator_for(schema).unwrap();
    if let Err(fault) = validator.validate(&value) {
        panic!("{text} does not fit {schema}: {fault}");
    }
}

/// A schema that something fits, of everything that schemas here are made of.
fn schema(rng: &mut ChaCha8Rng, depth: usize) -> Value {
    let kinds = if depth == 0 { 9 } else { 15 };
    match rng.random_range(0..kinds) {
        0 => json!({ "type": "string" }),
        1 => {
            let least = rng.random_range(0..12);
            json!({ "type": "string", "minLength": least, "maxLength": least + rng.random_range(0..30) })
        }
        2 => {
            let patterns = [
                "^[a-z]{2,5}$",
                "^\\d{4}-\\d{2}$",
                "caf\u{e9}",
                "^(yes|no|perhaps a little)$",
                "^é+$",
            ];
            let pattern = patterns.choose(rng);
            json!({ "type": "string", "pattern": pattern })
        }
        3 => json!({ "type": "integer" }),
        4 => {
            let low = rng.random_range(-1000..1000);
            let high = low + rng.random_range(0..50);
            let kind = ["integer", "number"].choose(rng);
            json!({ "type": kind, "minimum": low, "maximum": high })
        }
        5 => json!({ "type": "number" }),
        6 => {
            json!({ "enum": ["a", "abc", "ab\"c\\", "日本", 1, 12, -3.5, null, true, {"k": [1, "x"]}] })
        }
        7 => json!({ "type": ["boolean", "null", "string"] }),
        8 => json!({ "const": [1, "two", {"three": null}] }),
        9 | 10 => {
            let mut properties = Map::new();
            let mut required = Vec::new();
            for name in ["a", "b c", "quoted \"name\"", "é", "longer_name_of_a_field"] {
                if rng.random_bool(0.5) {
                    properties.insert(name.into(), schema(rng, depth - 1));
                    if rng.random_bool(0.6) {
                        required.push(name);
                    }
                }
            }
            let mut object =
                json!({ "type": "object", "properties": properties, "required": required });
            match rng.random_range(0..4) {
                0 => {}
                1 => object["additionalProperties"] = schema(rng, depth - 1),
                _ => object["additionalProperties"] = json!(false),
            }
            object
        }
        11 => {
            let least = rng.random_range(0..4);
            let mut array =
                json!({ "type": "array", "items": schema(rng, depth - 1), "minItems": least });
            if rng.random_bool(0.5) {
                array["maxItems"] = json!(least + rng.random_range(0..4));
            }
            if rng.random_bool(0.2) {
                array["prefixItems"] = json!([schema(rng, depth - 1)]);
            }
            array
        }
        12 => json!({ "anyOf": [schema(rng, depth - 1), schema(rng, depth - 1)] }),
        13 => {
            json!({ "oneOf": [{ "type": "null" }, { "type": "array", "items": schema(rng, depth - 1), "minItems": 2 }] })
        }
        _ => {
            json!({ "$ref": "#/$defs/".to_owned() + ["tree", "list", "any"].choose(rng).unwrap() })
        }
    }
}

/// The schema as the whole, with what its references name.
fn whole(schema: &Value) -> Value {
    json!({
        "allOf": [schema],
        "$defs": {
            "any": {},
            "tree": {
                "type": "object",
                "properties": {
                    "name": { "type": "string", "minLength": 1 },
                    "children": { "type": "array", "items": { "$ref": "#/$defs/tree" } }
                },
                "required": ["name", "children"],
                "additionalProperties": false
            },
            "list": {
                "anyOf": [
                    { "type": "object", "properties": { "head": { "type": "integer" }, "tail": { "$ref": "#/$defs/list" } },
                      "required": ["head", "tail"], "additionalProperties": false },
                    { "type": "null" }
                ]
            }
        }
    })
}

fn decodings(seed: u64) -> [Decoding; 3] {
    let warm = Decoding {
        temperature: 1.0,
        seed,
        ..Decoding::greedy(0)
    };
    [
        Decoding::greedy(0),
        warm.clone(),
        Decoding {
            top_k: 3,
            repetition_penalty: 1.3,
            ..warm
        },
    ]
}

proptest! {
    #[test]
    fn an_answer_always_parses_fits_and_ends_in_its_room(seed: u64, slack in prop_oneof![Just(0usize), 0usize..40, 0usize..400]) {
        let mut rng = generator(seed, "schemas");
        let schema = whole(&schema(&mut rng, 3));
        let room = needed(&schema) + slack;
        for decoding in decodings(seed) {
            let text = answer(&schema, room, &decoding, &mut rng).unwrap();
            assert_fits(&schema, &text);
        }
    }
}

#[test]
fn a_room_too_small_for_any_answer_is_an_error_before_the_first_token() {
    let schema = json!({ "type": "array", "items": { "type": "integer" }, "minItems": 30 });
    let needed = needed(&schema);
    let mut rng = generator(1, "room");
    let fault = answer(&schema, needed - 1, &Decoding::greedy(0), &mut rng).unwrap_err();
    assert!(
        matches!(fault, TuneError::SchemaRoom { needed: least, room } if least == needed && room == needed - 1),
        "{fault}"
    );
    let text = answer(&schema, needed, &Decoding::greedy(0), &mut rng).unwrap();
    assert_fits(&schema, &text);
}

/// The forms of the requests of because-propagate and because-contrast, and of a judge.
fn own_schemas() -> [Value; 4] {
    let text = |least: usize, most: usize| json!({ "type": "string", "minLength": least, "maxLength": most, "description": "words" });
    let object = |fields: &[(&str, Value)]| {
        let names: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
        let properties: Map<String, Value> = fields
            .iter()
            .map(|(name, one)| ((*name).to_owned(), one.clone()))
            .collect();
        json!({ "type": "object", "properties": properties, "required": names, "additionalProperties": false })
    };
    [
        object(&[("shared", text(1, 960))]),
        object(&[("summary", text(1, 1800)), ("reasoning", text(0, 900))]),
        object(&[
            (
                "choice",
                json!({ "type": "integer", "minimum": 1, "maximum": 10, "description": "the number" }),
            ),
            ("explanation", text(1, 720)),
        ]),
        object(&[
            (
                "score",
                json!({ "type": "integer", "minimum": 0, "maximum": 100 }),
            ),
            ("reason", json!({ "type": "string" })),
        ]),
    ]
}

#[test]
fn the_schemas_of_our_own_prompts_compile_and_need_little_room() {
    let mut rng = generator(3, "own");
    for schema in own_schemas() {
        assert!(needed(&schema) < 40, "{schema}: {}", needed(&schema));
        for room in [needed(&schema), 60, 250] {
            let warm = &decodings(4)[1];
            assert_fits(&schema, &answer(&schema, room, warm, &mut rng).unwrap());
        }
    }
}

#[test]
fn with_room_the_end_is_far_and_everything_that_fits_may_come() {
    for schema in own_schemas() {
        let mut grammar = GRAMMARS.json(&schema).unwrap();
        for token in grammar.forced(300) {
            grammar.take(token).unwrap();
        }
        assert!(grammar.has_room(50), "{schema}");
    }
}

#[test]
fn a_schema_that_cannot_be_kept_is_refused_with_its_place() {
    let refused = |schema: Value| GRAMMARS.json(&schema).unwrap_err().to_string();
    let unique = json!({ "type": "array", "uniqueItems": true });
    let said = refused(json!({ "type": "object", "properties": { "tags/all": unique } }));
    assert!(
        said.starts_with("schema at /properties/tags~1all: ") && said.contains("uniqueItems"),
        "{said}"
    );
    let both = json!({ "oneOf": [{ "type": "string" }, { "type": "string", "minLength": 3 }] });
    let said = refused(json!({ "type": "array", "items": both }));
    assert!(
        said.starts_with("schema at /items: ") && said.contains("oneOf"),
        "{said}"
    );
    for nothing in [
        json!(false),
        json!({ "type": "integer", "minimum": 3, "maximum": 2 }),
        json!({ "$ref": "#/$defs/no" }),
        json!(7),
    ] {
        let said = refused(nothing.clone());
        assert!(said.starts_with("schema"), "{nothing}: {said}");
    }
    // One that has no smallest answer, because each holds another.
    let endless = json!({
        "$ref": "#/$defs/a",
        "$defs": { "a": { "type": "object", "properties": { "a": { "$ref": "#/$defs/a" } }, "required": ["a"] } }
    });
    let said = refused(endless);
    assert!(said.contains("no JSON fits it"), "{said}");
}

#[test]
fn brackets_within_one_another_stay_few_enough_for_readers() {
    let mut rng = generator(8, "brackets");
    let tree = whole(&json!({ "$ref": "#/$defs/tree" }));
    for (schema, opening) in [(json!({}), "["), (json!({}), "{"), (tree, "{")] {
        let mut grammar = GRAMMARS.json(&schema).unwrap();
        let mut sampler = Sampler::new(Decoding::greedy(0));
        let (fond, mut ids) = (VOCABULARY.encode(opening).unwrap()[0], Vec::new());
        while !grammar.is_done() {
            let mut logits: Vec<f32> = (0..VOCABULARY.size())
                .map(|_| rng.random_range(0.0..1.0))
                .collect();
            logits[fond as usize] += 9.0;
            grammar.mask(&mut logits, 500 - ids.len()).unwrap();
            ids.push(sampler.choose(&mut logits, &[]));
            grammar.take(ids[ids.len() - 1]).unwrap();
        }
        assert_fits(&schema, &VOCABULARY.decode(&ids).unwrap());
    }
}

#[test]
fn letters_of_several_tokens_are_written_whole_or_not_at_all() {
    let schema = json!({ "type": "string", "pattern": "^[日é]+$" });
    let mut rng = generator(5, "letters");
    for room in needed(&schema)..needed(&schema) + 12 {
        let text = answer(&schema, room, &decodings(room as u64)[1], &mut rng).unwrap();
        assert_fits(&schema, &text);
    }
    let mut grammar = GRAMMARS.json(&json!({ "type": "string" })).unwrap();
    for token in VOCABULARY.encode("\"日本 🍜").unwrap() {
        let mut logits = vec![0.0; VOCABULARY.size()];
        grammar.mask(&mut logits, 500).unwrap();
        assert!(logits[token as usize].is_finite());
        grammar.take(token).unwrap();
    }
}

#[test]
fn numbers_stay_in_the_range_that_readers_share() {
    let mut rng = generator(6, "numbers");
    for schema in [
        json!({}),
        json!(true),
        json!({ "type": "number" }),
        json!({ "type": "integer" }),
    ] {
        let mut grammar = GRAMMARS.json(&schema).unwrap();
        let mut written = 0;
        // As many nines as may come, then exponents.
        for text in ["9"; 400].into_iter().chain(["e", "E"]) {
            let token = VOCABULARY.encode(text).unwrap()[0];
            let mut logits = vec![0.0; VOCABULARY.size()];
            grammar.mask(&mut logits, 2000).unwrap();
            if logits[token as usize].is_finite() {
                grammar.take(token).unwrap();
                written += 1;
            }
        }
        assert!(written <= 16, "{written} digits");
        assert_fits(
            &schema,
            &answer(&schema, 60, &decodings(7)[1], &mut rng).unwrap(),
        );
    }
}

#[test]
fn what_is_forced_is_cut_as_the_tokenizer_cuts_it() {
    let mut grammar = GRAMMARS.json(&own_schemas()[1]).unwrap();
    let forced = grammar.forced(100);
    let text = VOCABULARY.decode(&forced).unwrap();
    assert!(
        r#"{"summary":""#.starts_with(&text) && text.len() > 8,
        "{text}"
    );
    let whole = VOCABULARY.encode(r#"{"summary":"x"#).unwrap();
    assert_eq!(whole[..forced.len()], forced);
}

#[test]
fn a_stop_token_comes_at_the_end_only_and_nothing_after_it() {
    let mut grammar = GRAMMARS.json(&json!({ "enum": ["ab"] })).unwrap();
    assert!(grammar.take(stops()[1]).is_err());
    let mut grammar = GRAMMARS.json(&json!({ "enum": ["ab"] })).unwrap();
    for token in VOCABULARY.encode("\"ab\"").unwrap() {
        assert!(!grammar.is_done());
        grammar.take(token).unwrap();
    }
    assert!(grammar.is_done());
    let mut logits = vec![1.0; VOCABULARY.size()];
    grammar.mask(&mut logits, 1).unwrap();
    let may: Vec<u32> = (0..VOCABULARY.size() as u32)
        .filter(|&token| logits[token as usize].is_finite())
        .collect();
    let mut ends = stops();
    ends.sort_unstable();
    assert_eq!(may, ends);
    assert!(grammar.take(VOCABULARY.encode("a").unwrap()[0]).is_err());
    grammar.take(stops()[1]).unwrap();
    assert!(grammar.take(stops()[1]).is_err());
}

#[test]
fn a_grammar_goes_to_another_thread() {
    fn sends<T: Send>() {}
    sends::<Grammar>();
    sends::<Grammars>();
}

#[test]
fn a_schema_is_compiled_once() {
    let schema = json!({ "type": "string", "maxLength": 7 });
    let first = GRAMMARS.compiled(&schema).unwrap();
    assert!(Arc::ptr_eq(&first, &GRAMMARS.compiled(&schema).unwrap()));
}

fn refused(schema: &Value) -> String {
    GRAMMARS.json(schema).unwrap_err().to_string()
}

/// On a thread with the stack that threads have by default.
fn on_a_small_stack<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(2 << 20);
        let thread = thread.spawn_scoped(scope, test).unwrap();
        thread.join().unwrap()
    })
}

#[test]
fn a_schema_whose_smallest_answer_is_huge_is_refused() {
    let nulls =
        |least: u64| json!({ "type": "array", "items": { "type": "null" }, "minItems": least });
    let said = refused(&nulls(4_000_000_000));
    assert!(
        said.contains("the smallest JSON that fits it has"),
        "{said}"
    );
    let mut nested = nulls(500);
    for level in 0..8 {
        nested = json!({ "type": "array", "items": nested, "minItems": 500 });
        let said = refused(&nested);
        // More than can be counted is as good as none.
        let expected = [
            "the smallest JSON that fits it has",
            "none that could be found",
        ];
        assert!(
            expected.iter().any(|one| said.contains(one)),
            "{level}: {said}"
        );
    }
    assert!(needed(&nulls(1000)) > 1000);
}

/// A chain of definitions, each of which is the next.
fn chain(length: usize) -> Value {
    let mut definitions = Map::new();
    for link in 0..length {
        let next = json!({ "$ref": format!("#/$defs/{}", link + 1) });
        definitions.insert(link.to_string(), next);
    }
    definitions.insert(length.to_string(), json!({ "type": "null" }));
    json!({ "$ref": "#/$defs/0", "$defs": definitions })
}

fn with_fields(count: usize, prefix: &str) -> Value {
    let fields = (0..count).map(|field| (format!("{prefix}{field}"), json!({ "type": "null" })));
    let fields: Map<String, Value> = fields.collect();
    let names: Vec<String> = fields.keys().cloned().collect();
    json!({ "type": "object", "properties": fields, "required": names, "additionalProperties": false })
}

#[test]
fn a_schema_too_deep_or_too_wide_is_refused_and_never_ends_the_program() {
    on_a_small_stack(|| {
        for length in [30_000, 3000, 200] {
            let said = refused(&chain(length));
            assert!(
                said.contains("within one another") || said.contains("larger than"),
                "{said}"
            );
        }
        let said = refused(&json!({ "properties": { "x": with_fields(20_000, "") } }));
        assert!(
            said.contains("schema at /properties/x/properties: has 20000 fields"),
            "{said}"
        );
        let constant: Map<String, Value> =
            (0..20_000).map(|at| (at.to_string(), json!(1))).collect();
        assert!(refused(&json!({ "const": constant })).contains("fields"));
        let mut deep = json!({});
        for _ in 0..1000 {
            deep = json!({ "anyOf": [deep] });
        }
        assert!(refused(&deep).contains("within one another"));
        let mut patterns = Map::new();
        for at in 0..40 {
            patterns.insert(format!("^{at}$"), json!({}));
        }
        assert!(refused(&json!({ "patternProperties": patterns })).contains("patterns"));
    });
}

#[test]
fn the_deepest_and_widest_schemas_compile_on_a_small_stack() {
    on_a_small_stack(|| {
        assert!(needed(&chain(120)) > 0);
        let wide = with_fields(1000, "a");
        assert!(needed(&wide) > 1000);
        let mut grammar = GRAMMARS.json(&wide).unwrap();
        let mut logits = vec![0.0; VOCABULARY.size()];
        grammar.mask(&mut logits, 10_000).unwrap();
        // Their fields are those of one object.
        let parts: Vec<Value> = (0..8)
            .map(|part| {
                let mut part = with_fields(1000, &part.to_string());
                part["additionalProperties"] = json!(true);
                part
            })
            .collect();
        let _ = GRAMMARS.json(&json!({ "allOf": parts }));
    });
}

#[test]
fn references_that_go_round_compile() {
    let node = json!({
        "type": "object",
        "properties": { "a": { "$ref": "#/$defs/b" }, "b": { "$ref": "#/$defs/a" }, "c": { "$ref": "#" } },
        "additionalProperties": false
    });
    let schema = json!({ "$ref": "#/$defs/a", "$defs": { "a": node, "b": node } });
    assert!(needed(&schema) < 10);
}

#[test]
fn a_fault_the_compiler_panics_at_has_its_place() {
    let long = "\u{e9}".repeat(80);
    let said = refused(&json!({ "properties": { "a": { "minLength": long } } }));
    assert!(said.starts_with("schema at /properties/a: "), "{said}");
}

#[test]
fn patterns_with_too_many_states_to_look_through_take_the_way_that_is_known() {
    let pattern =
        |letter: &str| json!({ "type": "string", "pattern": format!("^(y|x.*{letter}.{{24}})$") });
    let schema = json!({ "allOf": [pattern("a"), pattern("b")] });
    let begun = std::time::Instant::now();
    let mut rng = generator(11, "patterns");
    for room in [needed(&schema), 100] {
        for decoding in decodings(room as u64) {
            assert_fits(
                &schema,
                &answer(&schema, room, &decoding, &mut rng).unwrap(),
            );
        }
    }
    let compiled = GRAMMARS.compiled(&schema).unwrap();
    assert!(compiled.lexemes(Fuel::TOKEN).fault().is_none());
    assert!(begun.elapsed().as_secs() < 60);
}

#[test]
fn a_refusal_is_remembered() {
    let grammars = Grammars::new(&VOCABULARY, &stops()).unwrap();
    let bad = json!({ "type": "array", "items": { "uniqueItems": true } });
    let first = grammars.json(&bad).unwrap_err().to_string();
    let known = grammars.kept().find(&bad.to_string());
    assert_eq!(known.err().unwrap().to_string(), first);
    assert_eq!(grammars.json(&bad).unwrap_err().to_string(), first);
}

#[test]
fn a_schema_whose_automaton_is_lost_is_compiled_anew() {
    let schema = json!({ "type": "string", "pattern": "^[a-f]{3,900}$" });
    let first = GRAMMARS.compiled(&schema).unwrap();
    {
        let mut lexemes = first.lexemes(Fuel {
            steps: 1,
            searched: 1,
        });
        let mut chart = first.chart.clone();
        // More letters than were looked at when it was compiled.
        let text = format!("\"{}", "a".repeat(800));
        chart.read(&first.rules, &mut lexemes, text.as_bytes());
        assert!(lexemes.fault().is_some());
    }
    let second = GRAMMARS.compiled(&schema).unwrap();
    assert!(!Arc::ptr_eq(&first, &second));
    let mut rng = generator(9, "lost");
    assert_fits(
        &schema,
        &answer(&schema, 20, &decodings(9)[1], &mut rng).unwrap(),
    );
}

#[test]
fn the_way_to_the_end_of_a_long_text_is_searched_once() {
    let schema = json!({ "type": "string", "minLength": 3000 });
    let mut grammar = GRAMMARS.json(&schema).unwrap();
    let trie = GRAMMARS.0.tokens.tok_trie();
    for text in ["\"", "z", "quiet", "\u{e9}"] {
        let bytes = text.as_bytes();
        let compiled = Arc::clone(&grammar.compiled);
        let mut lexemes = compiled.lexemes(Fuel {
            steps: 200_000,
            searched: 0,
        });
        assert!(grammar.chart.read(&compiled.rules, &mut lexemes, bytes));
        let ending = grammar
            .chart
            .ending(&compiled.rules, &mut lexemes, trie, 5000);
        assert!(ending.is_some(), "{text}");
    }
}

#[test]
fn fields_come_in_the_order_of_the_schema_that_was_given() {
    let ordered = |names: [&str; 2]| {
        let fields = names
            .iter()
            .map(|name| ((*name).to_owned(), json!({ "type": "null" })));
        json!({ "type": "object", "properties": fields.collect::<Map<_, _>>(), "required": names,
            "additionalProperties": false })
    };
    let mut rng = generator(10, "order");
    for (names, text) in [
        (["one", "two"], r#"{"one":null,"two":null}"#),
        (["two", "one"], r#"{"two":null,"one":null}"#),
    ] {
        let own = answer(&ordered(names), 60, &decodings(3)[1], &mut rng).unwrap();
        assert_eq!(own, text);
    }
}

#[test]
fn what_a_reference_leads_to_is_narrow_wherever_it_is() {
    let schema = json!({
        "type": "object",
        "properties": { "n": { "$ref": "#/components/schemas/count" } },
        "required": ["n"],
        "additionalProperties": false,
        "components": { "schemas": { "count": { "anyOf": [{ "$ref": "#/x/whole" }] } } },
        "x": { "whole": { "type": "integer" } }
    });
    let narrow = schema::narrowed(&schema);
    assert_eq!(narrow["x"]["whole"]["maximum"], json!((1u64 << 53) - 1));
    assert_eq!(
        narrow["components"]["schemas"]["count"]["anyOf"],
        schema["components"]["schemas"]["count"]["anyOf"]
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn one_of_many_long_names_is_written_whole_however_small_the_room(
        names in prop::collection::btree_set("[a-z\\-\u{e9}]{10,40}|[a-z0-9]{22}", 20..60),
        seed: u64,
        slack in 0usize..30,
    ) {
        let names: Vec<String> = names.into_iter().collect();
        let mut rng = generator(seed, "names");
        for schema in [
            json!({ "enum": names }),
            json!({ "type": "object", "properties": { "choice": { "enum": names }, "why": { "type": "string", "maxLength": 30 } },
                "required": ["choice", "why"], "additionalProperties": false }),
            json!({ "anyOf": [{ "enum": names }, { "type": "integer", "multipleOf": 7 }, { "const": 1e300 }] }),
        ] {
            let room = needed(&schema) + slack;
            for decoding in decodings(seed) {
                let text = answer(&schema, room, &decoding, &mut rng).unwrap();
                assert_fits(&schema, &text);
            }
        }
    }
}
