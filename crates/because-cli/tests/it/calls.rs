use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::{because, command, fails, json, small_project, text};

const OFFLINE: &str = "offline-extractive-1";

/// A project whose profiles were asked for.
fn asked(folder: &Path) -> PathBuf {
    let project = small_project(folder);
    json(&["profile", text(&project), "--layers", "1"]);
    project
}

fn lines(path: &Path) -> Vec<Value> {
    let written = std::fs::read_to_string(path).unwrap();
    let lines = written.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_folder_without_calls_is_named_and_stays_without() {
    let folder = tempfile::tempdir().unwrap();
    let project = small_project(folder.path());
    for arguments in [
        &["llm", "stats", text(&project)][..],
        &["llm", "audit", text(&project)],
        &[
            "llm",
            "export",
            text(&project),
            "--out",
            text(&folder.path().join("rows")),
        ],
        &["llm", "prune", text(&project), "--attempts", "--all"],
        &["llm", "stats", text(&folder.path().join("nowhere"))],
    ] {
        let said = fails(2, arguments);
        assert!(
            said.contains("llm.sqlite") && said.contains("not found"),
            "{said}"
        );
    }
    assert!(!project.join("llm.sqlite").exists());
}

#[test]
fn usage_that_says_too_little_is_code_2() {
    let folder = tempfile::tempdir().unwrap();
    let project = text(folder.path());
    for arguments in [
        &["llm"][..],
        &["llm", "prune", project],
        &["llm", "prune", project, "--attempts"],
        &["llm", "prune", project, "--older-than", "30d"],
        &[
            "llm",
            "prune",
            project,
            "--attempts",
            "--older-than",
            "soon",
        ],
        &["llm", "prune", project, "--responses", "--outcome", "ok"],
        &[
            "llm",
            "prune",
            project,
            "--attempts",
            "--all",
            "--model",
            "m",
        ],
        &["llm", "audit", project, "--since", "2026-02-30"],
        &["llm", "export", project, "--json"],
    ] {
        let output = because(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn the_calls_are_counted_listed_and_written() {
    let folder = tempfile::tempdir().unwrap();
    let project = asked(folder.path());
    let stats = json(&["llm", "stats", text(&project)]);
    let calls = stats["attempts"].as_u64().unwrap();
    assert!(calls >= 18, "{stats}");
    assert_eq!(stats["outcomes"]["ok"], calls);
    assert_eq!(stats["responses"], calls);
    assert_eq!(stats["models"][0]["model"], OFFLINE);
    assert_eq!(stats["from_store"], 0);

    let audit = json(&["llm", "audit", text(&project), "--limit", "5"]);
    let shown = audit["attempts"].as_array().unwrap();
    assert_eq!(shown.len(), 5);
    assert_eq!(shown[4]["id"], calls, "the newest is the last");
    for (arguments, fit) in [
        (&["--outcome", "invalid"][..], false),
        (&["--model", "another"], false),
        (&["--since", "2h"], true),
        (&["--since", "2100-01-01"], false),
        (&["--model", OFFLINE, "--outcome", "ok"], true),
    ] {
        let audit = json(&[&["llm", "audit", text(&project)], arguments].concat());
        assert_eq!(
            !audit["attempts"].as_array().unwrap().is_empty(),
            fit,
            "{arguments:?}"
        );
    }

    let (rows, answers) = (folder.path().join("rows"), folder.path().join("answers"));
    let written = json(&["llm", "export", text(&project), "--out", text(&rows)]);
    assert_eq!(written["rows"], calls);
    json(&[
        "llm",
        "export",
        text(&project),
        "--responses",
        "--out",
        text(&answers),
    ]);
    assert_eq!(lines(&rows).len() as u64, calls);
    assert_eq!(lines(&rows)[0]["outcome"], "ok");
    assert!(lines(&rows)[0]["prompt_tokens"].as_u64().unwrap() > 0);
    assert_eq!(lines(&answers).len() as u64, calls);
    assert!(lines(&answers)[0]["response"]["answer"].is_string());
    // The same to standard output, and no word beside it.
    let printed = because(&["llm", "export", text(&project)]);
    assert_eq!(printed.stdout, std::fs::read(&rows).unwrap());

    let table = because(&["llm", "audit", text(&project), "--limit", "1"]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert_eq!(table.lines().count(), 2, "{table}");
    assert!(
        table.starts_with("id ") && table.contains("offline"),
        "{table}"
    );
    let told = String::from_utf8(because(&["llm", "stats", text(&project)]).stdout).unwrap();
    assert!(
        told.contains("in process") && told.contains("ms for half"),
        "{told}"
    );
}

#[test]
fn answers_stay_until_somebody_says_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let project = asked(folder.path());
    let profiles = std::fs::read(project.join("profiles.layer1.jsonl")).unwrap();
    let calls = json(&["llm", "stats", text(&project)])["attempts"].clone();

    let none = json(&[
        "llm",
        "prune",
        text(&project),
        "--attempts",
        "--responses",
        "--older-than",
        "1h",
    ]);
    assert_eq!(none["removed"]["attempts"], 0);
    let would = json(&[
        "llm",
        "prune",
        text(&project),
        "--attempts",
        "--all",
        "--dry-run",
    ]);
    assert_eq!(would["removed"]["attempts"], calls);
    assert_eq!(would["dry_run"], true);
    assert_eq!(json(&["llm", "stats", text(&project)])["attempts"], calls);
    let did = json(&[
        "llm",
        "prune",
        text(&project),
        "--attempts",
        "--model",
        OFFLINE,
    ]);
    assert_eq!(did["removed"]["attempts"], calls);
    assert_eq!(did["removed"]["answers"], 0);

    // The run asked for anew finds every answer, and says so afterwards.
    std::fs::remove_dir_all(project.join(".because")).unwrap_or_default();
    std::fs::remove_file(project.join("profiles.layer1.jsonl")).unwrap();
    json(&["profile", text(&project), "--layers", "1"]);
    assert_eq!(
        std::fs::read(project.join("profiles.layer1.jsonl")).unwrap(),
        profiles
    );
    let stats = json(&["llm", "stats", text(&project)]);
    assert_eq!(stats["attempts"], 0);
    assert!(stats["from_store"].as_u64().unwrap() > 0, "{stats}");

    let did = json(&["llm", "prune", text(&project), "--responses", "--all"]);
    assert_eq!(did["removed"]["answers"], calls);
    assert_eq!(json(&["llm", "stats", text(&project)])["responses"], 0);
}

#[test]
fn nothing_is_removed_under_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let project = asked(folder.path());
    let store = because::llm::Store::open(project.join("llm.sqlite")).unwrap();
    let said = fails(1, &["llm", "prune", text(&project), "--attempts", "--all"]);
    assert!(said.contains("in use"), "{said}");
    // Looking goes on.
    assert!(json(&["llm", "stats", text(&project)])["attempts"].as_u64() > Some(0));
    drop(store);
    json(&["llm", "prune", text(&project), "--attempts", "--all"]);
}

#[test]
fn what_a_server_says_cannot_drive_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("llm.sqlite");
    let named = because::llm::ModelId {
        model: "red\u{1b}[31m\u{202e}\nlight".into(),
        endpoint: "\u{9b}2J".into(),
    };
    struct Named(because::llm::ModelId);
    impl because::llm::ChatModel for Named {
        fn chat<'a>(
            &'a self,
            _: &'a because::llm::ChatRequest,
        ) -> because::llm::BoxFuture<'a, because::llm::Result<because::llm::ChatResponse>> {
            Box::pin(std::future::ready(Err(because::llm::ChatError::Filtered {
                message: "no\u{1b}]0;title\u{7}".into(),
            })))
        }
        fn id(&self) -> because::llm::ModelId {
            self.0.clone()
        }
    }
    let store = because::llm::Store::open(&path).unwrap();
    let model = because::llm::Audited::new(Named(named), store.clone());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let request = because::llm::ChatRequest::default();
    runtime
        .block_on(because::llm::ChatModel::chat(&model, &request))
        .unwrap_err();
    drop((model, store));
    for what in ["stats", "audit"] {
        let output = command()
            .args(["llm", what, text(folder.path())])
            .timeout(Duration::from_secs(60))
            .output()
            .unwrap();
        let shown = String::from_utf8(output.stdout).unwrap();
        assert!(shown.contains("light"), "{shown:?}");
        assert!(
            shown
                .chars()
                .all(|c| c == '\n' || !(c.is_control() || c == '\u{202e}')),
            "{shown:?}"
        );
    }
}
