//! The command as a person meets it: exit codes, messages, files, and what is left after a kill.
#![allow(clippy::unwrap_used, reason = "a test may")]

mod bad_input;
#[cfg(feature = "openai")]
mod batch;
#[cfg(feature = "openai")]
#[path = "../../../because-llm/tests/it/batch_server.rs"]
#[allow(dead_code, reason = "the other tests use the rest")]
mod batch_server;
mod calls;
mod data;
#[cfg(feature = "tune")]
mod explaining;
mod hub_ids;
mod money;
mod training;
mod whole_path;

/// What the server of batches answers with.
#[cfg(feature = "openai")]
mod server {
    pub(crate) fn completion(answer: &str) -> serde_json::Value {
        serde_json::json!({
            "choices": [{"message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}
        })
    }
}

use std::path::Path;
use std::process::Output;

use assert_cmd::Command;

fn because(arguments: &[&str]) -> Output {
    command().args(arguments).output().unwrap()
}

/// The command with nothing set that could lead it to a network.
fn command() -> Command {
    let mut command = Command::cargo_bin("because").unwrap();
    command
        .env("HF_HUB_OFFLINE", "1")
        .env_remove("OPENAI_API_KEY")
        .env_remove("OPENAI_BASE_URL")
        .env_remove("RUST_LOG");
    command
}

/// Runs a command that must succeed and gives its JSON.
fn json(arguments: &[&str]) -> serde_json::Value {
    let output = because(&[arguments, &["--json", "--quiet"]].concat());
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Runs a command that must fail with this code and gives what it said.
fn fails(code: i32, arguments: &[&str]) -> String {
    let output = because(&[arguments, &["--json", "--quiet"]].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    assert!(output.stdout.is_empty(), "a failure prints no result");
    said
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A project of nine users who each know four of nine games, written as raw rows and imported.
fn small_project(folder: &Path) -> std::path::PathBuf {
    let likes = [
        "trading goods",
        "hidden traitors",
        "quiet tiles",
        "racing camels",
        "baking bread",
        "deep caves",
    ];
    let mut rows = String::new();
    for user in 0..9 {
        for step in 0..4 {
            let item = (user * 2 + step * 2) % 9;
            let split = ["train", "train", "test", "valid"][(user + step) % 4];
            let (one, two) = (likes[item % 6], likes[(item + 1) % 6]);
            rows += &format!(
                "{{\"user\":\"u{user}\",\"item\":\"i{item}\",\"rating\":{},\"review\":\"All about {one} and some {two}.\",\"split\":\"{split}\"}}\n",
                3 + step % 3
            );
        }
    }
    let items: String = (0..9)
        .map(|item| format!("{{\"item\":\"i{item}\",\"title\":\"Game {item}\",\"description\":\"A game of {}.\"}}\n", likes[item % 6]))
        .collect();
    let raw = folder.join("raw");
    std::fs::create_dir_all(&raw).unwrap();
    std::fs::write(raw.join("interactions.jsonl"), rows).unwrap();
    std::fs::write(raw.join("items.jsonl"), items).unwrap();
    let project = folder.join("project");
    json(&["import", "jsonl", text(&raw), "--out", text(&project)]);
    project
}
