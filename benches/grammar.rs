//! What holding an answer to a JSON schema costs for each token, with a vocabulary as large as Qwen2.5's and no model: the
//! time as a share of that of one step of a model, which is to stay under 15 %. Steps are given in milliseconds; without, they
//! are the 20 ms that a token of a model of 0.5B parameters takes in Q8_0 on two cores, and its 70 ms in f32.
//!
//! `cargo bench -p because-benches --bench grammar -- 12.5`
#![allow(clippy::print_stdout, reason = "a program that prints a table")]

use std::collections::HashSet;
use std::time::{Duration, Instant};

use because_tune::{MaskCost, Masks};
use serde_json::{Value, json};

const VOCABULARY: usize = 151_936;
const STOP: &str = "<|im_end|>";
const ANSWERS: u64 = 8;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Cargo has arguments of its own.
    let given = std::env::args().skip(1).filter_map(|one| one.parse().ok());
    let mut steps: Vec<f64> = given.collect();
    if steps.is_empty() {
        steps = vec![20.0, 70.0];
    }
    let begun = Instant::now();
    let masks = Masks::new(tokenizer().to_string().as_bytes(), STOP)?;
    println!(
        "{VOCABULARY} tokens, read in {:.2} s",
        begun.elapsed().as_secs_f64()
    );
    print!("schema            ready ms  tokens  mask us  take us  slowest us");
    for step in &steps {
        print!("  {:>9}", format!("of {step} ms"));
    }
    println!();
    for (name, schema) in schemas() {
        let (mut first, mut all) = (None, MaskCost::default());
        // The first answer pays for what the others find: states of the automaton that were met.
        for seed in 0..=ANSWERS {
            let cost = masks.answer(&schema, 160, seed)?;
            if first.is_none() {
                row(&format!("{name}, first"), &cost, &steps);
                first = Some(cost);
                continue;
            }
            all.tokens += cost.tokens;
            all.ready += cost.ready / ANSWERS as u32;
            all.mask += cost.mask;
            all.take += cost.take;
            all.slowest = all.slowest.max(cost.slowest);
        }
        row(name, &all, &steps);
    }
    Ok(())
}

fn row(name: &str, cost: &MaskCost, steps: &[f64]) {
    let tokens = cost.tokens.max(1) as u32;
    let each = (cost.mask + cost.take) / tokens;
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    print!(
        "{name:16} {:9.2} {:7} {:8.1} {:8.1} {:11.1}",
        cost.ready.as_secs_f64() * 1e3,
        cost.tokens,
        micros(cost.mask / tokens),
        micros(cost.take / tokens),
        micros(cost.slowest),
    );
    for step in steps {
        print!("  {:8.2}%", 100.0 * each.as_secs_f64() * 1e3 / step);
    }
    println!();
}

fn schemas() -> [(&'static str, Value); 3] {
    let text = |most: usize| json!({ "type": "string", "minLength": 1, "maxLength": most });
    [
        (
            "profile",
            json!({
                "type": "object",
                "properties": { "summary": text(1800), "reasoning": text(900) },
                "required": ["summary", "reasoning"],
                "additionalProperties": false,
            }),
        ),
        (
            "verdict",
            json!({
                "type": "object",
                "properties": {
                    "choice": { "type": "integer", "minimum": 1, "maximum": 10 },
                    "explanation": text(720),
                },
                "required": ["choice", "explanation"],
                "additionalProperties": false,
            }),
        ),
        ("any JSON", json!({})),
    ]
}

/// A byte-level BPE of that size: the bytes, the joints of JSON, and words that are joined of smaller ones.
fn tokenizer() -> Value {
    let letters: Vec<String> = (0..=255u8).map(letter).collect();
    let mut tokens = letters.clone();
    let mut known: HashSet<String> = letters.into_iter().collect();
    let mut merges: Vec<[String; 2]> = Vec::new();
    let mut join = |left: &str, right: &str, tokens: &mut Vec<String>| {
        let whole = format!("{left}{right}");
        if known.insert(whole.clone()) {
            merges.push([left.to_owned(), right.to_owned()]);
            tokens.push(whole);
        }
    };
    for (left, right) in [
        ("{", "\""),
        ("\"", ":"),
        ("\":", "\""),
        ("\"", ","),
        ("\",", "\""),
        ("\"", "}"),
        ("[", "\""),
        ("\"", "]"),
        ("}", ","),
        ("]", ","),
        ("[", "{"),
        ("}", "]"),
        (",", "\""),
        ("\"]", "}"),
        (".", "\""),
        ("[", "["),
        ("]", "]"),
    ] {
        join(left, right, &mut tokens);
    }
    let common: Vec<String> = "eetaoinshrdlucmfwypvbgk\u{120}\u{120}\u{120}"
        .chars()
        .map(String::from)
        .collect();
    let mut words = common.clone();
    let mut state = 1u64;
    let mut draw = |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) as usize % below
    };
    while tokens.len() < VOCABULARY - 1 {
        let left = words[draw(words.len())].clone();
        let right = &common[draw(common.len() - 3)];
        if left.chars().count() < 12 {
            let before = tokens.len();
            join(&left, right, &mut tokens);
            if tokens.len() > before {
                words.push(format!("{left}{right}"));
            }
        }
    }
    let ids: serde_json::Map<String, Value> = tokens
        .into_iter()
        .enumerate()
        .map(|(id, token)| (token, json!(id)))
        .collect();
    let bytes = |regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": regex });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [{
            "id": VOCABULARY - 1, "content": STOP, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }],
        "normalizer": null,
        "pre_tokenizer": bytes(true),
        "post_processor": null,
        "decoder": bytes(false),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": ids, "merges": merges,
        },
    })
}

/// What byte-level BPE writes for a byte.
fn letter(byte: u8) -> String {
    let is_itself = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if is_itself(byte) {
        return char::from(byte).to_string();
    }
    let place = (0..byte).filter(|&byte| !is_itself(byte)).count() as u32;
    char::from_u32(0x100 + place).map_or_else(String::new, String::from)
}
