//! Bases named by hub id, from a cache that was filled by hand.

use std::path::Path;

use serde_json::Value;

use crate::{command, small_project, text};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Runs a command with this cache, in a folder of its own, and gives its exit code and what it said.
fn with_cache(cache: &Path, code: i32, arguments: &[&str]) -> (Value, String) {
    let output = command()
        .current_dir(cache)
        .env("HF_HUB_CACHE", cache)
        .args(arguments)
        .arg("--json")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    (
        serde_json::from_slice(&output.stdout).unwrap_or_default(),
        said,
    )
}

#[test]
fn a_base_in_the_cache_trains_generates_and_explains_by_its_hub_id() {
    let folder = tempfile::tempdir().unwrap();
    let project = small_project(folder.path());
    let (dir, cache) = (text(&project), folder.path().join("cache"));
    std::fs::create_dir(&cache).unwrap();
    let run = |arguments: &[&str]| with_cache(&cache, 0, arguments).0;
    run(&["profile", dir, "--layers", "0"]);
    run(&["contrast", dir, "--limit", "6"]);
    let few = [
        "--max-steps",
        "2",
        "--batch-size",
        "2",
        "--max-length",
        "256",
    ];
    let train = |base: &str, more: &[&str]| {
        let arguments = ["train", "--base", base, "--data", dir];
        run(&[&arguments[..], &few, more].concat())
    };
    train("tiny", &["--tiny-steps", "2"]);

    let repository = cache.join("models--some--model");
    std::fs::create_dir_all(repository.join("snapshots")).unwrap();
    std::fs::create_dir_all(repository.join("refs")).unwrap();
    let snapshot = repository.join("snapshots").join(COMMIT);
    std::fs::rename(project.join("base.tiny"), &snapshot).unwrap();
    for file in ["tokenizer_config.json", "generation_config.json"] {
        if !snapshot.join(file).exists() {
            std::fs::write(snapshot.join(file), "{}").unwrap();
        }
    }
    std::fs::write(repository.join("refs/main"), COMMIT).unwrap();

    train("some/model", &[]);
    let adapter = project.join("adapter");
    let config = std::fs::read(adapter.join("adapter_config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["base_model_name_or_path"], "some/model");
    assert_eq!(config["revision"], COMMIT);

    let ask = ["--prompt", "Why?", "--greedy", "--max-tokens", "4"];
    let generate = |base: &str| {
        let arguments = ["generate", "--base", base, "--adapter", text(&adapter)];
        run(&[&arguments[..], &ask].concat())["outputs"].clone()
    };
    let by_id = generate("some/model");
    assert_eq!(by_id, generate(&format!("some/model@{COMMIT}")));
    assert_eq!(by_id, generate(text(&snapshot)));
    // `tiny` stands for the base that the adapter was trained on: here the one of the hub.
    assert_eq!(by_id, generate("tiny"));

    let rows = std::fs::read_to_string(project.join("explanations.jsonl")).unwrap();
    let row: Value = serde_json::from_str(rows.lines().next().unwrap()).unwrap();
    let (user, item) = (row["user"].as_str().unwrap(), row["item"].as_str().unwrap());
    let explained = run(&[
        "explain",
        dir,
        "--user",
        user,
        "--item",
        item,
        "--max-tokens",
        "4",
    ]);
    assert_eq!(explained["base"], format!("some/model@{COMMIT}"));

    // As a chat model it is opened the same way; to answer a whole stage would take it too long here.
    let profile = [
        "profile",
        dir,
        "--layers",
        "0",
        "--llm",
        "qwen:some/other@v1",
    ];
    let (_, said) = with_cache(&cache, 2, &profile);
    assert!(said.contains("some/other@v1: no such folder"), "{said}");
}

#[test]
fn a_base_that_is_not_in_the_cache_says_what_to_put_where() {
    let cache = tempfile::tempdir().unwrap();
    let arguments = ["generate", "--base", "some/model", "--prompt", "hi"];
    let (_, said) = with_cache(cache.path(), 2, &arguments);
    let looked = cache.path().join("models--some--model");
    for part in [
        "some/model: no such folder",
        text(&looked),
        "hf download some/model",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}
