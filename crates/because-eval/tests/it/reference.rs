use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use because_core::Prediction;
use because_eval::TextMetrics;
use serde_json::{Value, json};

fn read(path: &Path) -> Vec<Value> {
    because_core::jsonl::read_all(path).unwrap()
}

fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../../shared/data/metric-vectors"
    ))
    .join(name);
    if path.exists() {
        return Some(path);
    }
    // Past the test harness, which would swallow it when the test passes.
    let mut stderr = std::io::stderr();
    writeln!(
        stderr,
        "SKIPPED: {} is absent, only our own cases are checked",
        path.display()
    )
    .unwrap();
    None
}

fn pairs(value: &Value) -> Vec<Prediction> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Every number of `expected` against the one at the same place, within 1e-9 relative.
fn assert_close(found: &Value, expected: &Value, place: &str) {
    match expected {
        Value::Object(fields) => {
            for (name, expected) in fields {
                assert_close(&found[name], expected, &format!("{place}/{name}"));
            }
        }
        Value::Number(expected) => {
            let (found, expected) = (
                found.as_f64().unwrap_or(f64::NAN),
                expected.as_f64().unwrap(),
            );
            assert!(
                (found - expected).abs() <= 1e-9 * expected.abs().max(1.0),
                "{place}: {found}, expected {expected}"
            );
        }
        other => panic!("{place}: {other} is not an expected value"),
    }
}

fn measured(pairs: &[Prediction]) -> Value {
    serde_json::to_value(TextMetrics::of(pairs)).unwrap()
}

#[test]
fn figures_are_those_of_sacrebleu_and_rouge_score() {
    for (line, case) in read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/cases.jsonl"))
        .iter()
        .enumerate()
    {
        assert_close(
            &measured(&pairs(&case["pairs"])),
            &case["expected"],
            &format!("case {}", line + 1),
        );
    }
}

#[test]
fn figures_agree_with_the_shared_pairs() {
    let Some(path) = shared("text_pairs.jsonl") else {
        return;
    };
    for case in read(&path) {
        let found = measured(&pairs(&json!([case])));
        assert_close(
            &found,
            &in_our_shape(&case["expected"], "sacrebleu_13a_corpus"),
            &case["id"].to_string(),
        );
    }
}

#[test]
fn figures_agree_with_the_shared_corpora() {
    let (Some(path), Some(texts)) = (shared("corpora.jsonl"), shared("text_pairs.jsonl")) else {
        return;
    };
    let texts: HashMap<String, Value> = read(&texts)
        .into_iter()
        .map(|case| (case["id"].as_str().unwrap().to_owned(), case))
        .collect();
    for corpus in read(&path) {
        let members: Vec<&Value> = corpus["pair_ids"]
            .as_array()
            .unwrap()
            .iter()
            .map(|id| &texts[id.as_str().unwrap()])
            .collect();
        let found = measured(&pairs(&json!(members)));
        let expected = &corpus["expected"];
        let id = corpus["id"].to_string();
        for tokenizer in ["13a", "none"] {
            for order in 1..=4 {
                let expected = &expected[format!("sacrebleu_{tokenizer}_bleu{order}")]["score"];
                assert_close(
                    &found["bleu"][tokenizer][format!("bleu{order}")],
                    expected,
                    &format!("{id} {tokenizer} {order}"),
                );
            }
        }
        assert_close(&found["chrf"], &expected["chrf"], &id);
        for (ours, theirs) in [("rouge", "rouge"), ("rouge_stemmed", "rouge_stem")] {
            for name in ["rouge1", "rouge2", "rougeL", "rougeLsum"] {
                assert_close(
                    &found[ours][name],
                    &long_names(&expected[theirs][name]),
                    &format!("{id} {ours} {name}"),
                );
            }
        }
        let diversity = &expected["diversity"]["prediction"];
        assert_close(&found["unique_sentence_ratio"], &diversity["usr"], &id);
        assert_close(
            &found["distinct"]["distinct1"],
            &diversity["distinct_1_corpus"],
            &id,
        );
        assert_close(
            &found["distinct"]["distinct2"],
            &diversity["distinct_2_corpus"],
            &id,
        );
    }
}

/// The expected values of one shared pair under the names of our own JSON.
fn in_our_shape(expected: &Value, bleu: &str) -> Value {
    let rouge = |end: &str| {
        let names = ["rouge1", "rouge2", "rougeL", "rougeLsum"];
        Value::Object(
            names
                .iter()
                .map(|name| {
                    (
                        (*name).to_owned(),
                        long_names(&expected[format!("{name}{end}")]),
                    )
                })
                .collect(),
        )
    };
    json!({
        "bleu": {"13a": {"bleu4": expected[bleu]}},
        "chrf": expected["chrf"],
        "rouge": rouge(""),
        "rouge_stemmed": rouge("_stem"),
    })
}

fn long_names(score: &Value) -> Value {
    json!({"precision": score["p"], "recall": score["r"], "fmeasure": score["f"]})
}

#[test]
fn the_json_has_the_fields_of_the_contract_in_their_order() {
    let found = measured(&[]);
    let names = |value: &Value| {
        value
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(
        names(&found),
        [
            "pairs",
            "bleu",
            "rouge",
            "rouge_stemmed",
            "chrf",
            "distinct",
            "unique_sentence_ratio",
            "mean_tokens",
            "signatures"
        ]
    );
    assert_eq!(names(&found["bleu"]), ["13a", "none"]);
    assert_eq!(
        names(&found["bleu"]["none"]),
        ["bleu1", "bleu2", "bleu3", "bleu4"]
    );
    assert_eq!(
        names(&found["rouge_stemmed"]),
        ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    );
    assert_eq!(
        names(&found["rouge"]["rougeL"]),
        ["precision", "recall", "fmeasure"]
    );
    assert_eq!(names(&found["distinct"]), ["distinct1", "distinct2"]);
    assert_eq!(names(&found["mean_tokens"]), ["prediction", "reference"]);
    assert!(
        found["signatures"]["bleu4.13a"]
            .as_str()
            .unwrap()
            .starts_with("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|order:4|")
    );
    let back: TextMetrics = serde_json::from_value(found.clone()).unwrap();
    assert_eq!(serde_json::to_value(back).unwrap(), found);
}
