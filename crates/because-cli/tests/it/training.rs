//! `because train` beyond the adapter: dry runs, validation, all weights.

use std::path::{Path, PathBuf};

use crate::{fails, json, text};

/// A file of chats that differ in length, one line of it blank and one example without an answer.
fn chats(folder: &Path, name: &str, count: usize) -> PathBuf {
    let path = folder.join(name);
    let lines: String = (0..count)
        .map(|at| {
            let more = "and the long evenings there ".repeat(at % 5);
            let chat = serde_json::json!({"messages": [
                {"role": "user", "content": format!("Why game {at}? {more}")},
                {"role": "assistant", "content": format!("Since number {} is quiet.", at % 7)},
            ]});
            format!("{chat}\n{}", if at == 2 { "\n" } else { "" })
        })
        .collect();
    std::fs::write(&path, lines).unwrap();
    path
}

const SMALL: [&str; 6] = ["--base", "tiny", "--tiny-steps", "8", "--batch-size", "4"];

#[test]
fn a_dry_run_says_what_the_run_then_does_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let data = chats(folder.path(), "train.jsonl", 17);
    let out = folder.path().join("out/adapter");
    let arguments = [
        &["train", "--data", text(&data), "--out", text(&out)],
        &SMALL[..],
        &["--epochs", "2", "--batch-tokens", "200", "--bucketing", "2"],
        &["--max-length", "90"],
    ]
    .concat();
    let plan = json(&[&arguments[..], &["--dry-run"]].concat());
    assert!(!out.exists() && !out.with_file_name("base.tiny").exists());
    assert_eq!(plan["rows"], 17);
    assert!(plan["memory_bytes"].as_u64().unwrap() > 1 << 20, "{plan}");
    assert!(plan["memory"]["activations"].as_u64().unwrap() > 0);
    assert_eq!(plan["checkpointing"], "none");
    assert!(plan["seconds_low"].as_f64().unwrap() < plan["seconds_high"].as_f64().unwrap());
    let done = json(&arguments);
    for name in [
        "steps",
        "rows",
        "tokens",
        "supervised_tokens",
        "trainable_parameters",
        "truncated",
    ] {
        assert_eq!(plan[name], done[name], "{name}");
    }
    let said = fails(
        2,
        &[&arguments[..], &["--dry-run", "--memory-limit", "100KB"]].concat(),
    );
    assert!(said.contains("memory_limit: one row of"), "{said}");
    let said = fails(2, &[&arguments[..], &["--checkpointing", "some"]].concat());
    assert!(said.contains("checkpointing: \"some\""), "{said}");
}

#[test]
fn what_is_best_on_the_validation_file_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let data = chats(folder.path(), "train.jsonl", 12);
    let valid = chats(folder.path(), "valid.jsonl", 5);
    let (out, log) = (
        folder.path().join("adapter"),
        folder.path().join("log.jsonl"),
    );
    let done = json(
        &[
            &["train", "--data", text(&data), "--out", text(&out)],
            &SMALL[..],
            &["--eval-data", text(&valid), "--log", text(&log)],
            &["--max-steps", "40", "--evaluate-every", "2"],
            // Nothing improves by so much, so that the run ends two evaluations after the first.
            &["--patience", "2", "--min-delta", "10"],
        ]
        .concat(),
    );
    assert_eq!(done["valid_rows"], 5);
    assert_eq!(done["stopped_early"], true, "{done}");
    assert_eq!(done["steps"], 6);
    let lines = std::fs::read_to_string(&log).unwrap();
    let lowest = lines
        .lines()
        .filter_map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["valid_loss"].as_f64()
        })
        .fold(f64::INFINITY, f64::min);
    assert!((lowest - done["best_loss"].as_f64().unwrap()).abs() < 1e-12);
    assert!(out.join("adapter_model.safetensors").is_file());

    std::fs::write(&valid, "\n\n{\"text\": 1}\n").unwrap();
    let said = fails(
        2,
        &[
            &["train", "--data", text(&data), "--eval-data", text(&valid)],
            &SMALL[..],
        ]
        .concat(),
    );
    assert!(said.contains("valid.jsonl: line 3: has neither"), "{said}");
}

#[test]
fn all_weights_become_a_base_that_answers() {
    let folder = tempfile::tempdir().unwrap();
    let data = chats(folder.path(), "train.jsonl", 8);
    let model = folder.path().join("model");
    let arguments = [
        &["train", "--data", text(&data), "--full"],
        &SMALL[..],
        &["--max-steps", "3"],
    ]
    .concat();
    let done = json(&arguments);
    assert!(
        done["trainable_parameters"].as_u64().unwrap() > 500_000,
        "{done}"
    );
    let answer = json(&[
        "generate",
        "--base",
        text(&model),
        "--prompt",
        "Why?",
        "--greedy",
        "--max-tokens",
        "4",
    ]);
    assert!(answer["outputs"][0]["text"].is_string());
    let said = fails(2, &[&arguments[..], &["--rank", "4"]].concat());
    assert!(said.contains("--full"), "{said}");
}
