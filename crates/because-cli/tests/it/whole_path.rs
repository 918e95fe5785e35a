use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::{because, fails, json, small_project, text};

const SMALL: [&str; 14] = [
    "--train-limit",
    "12",
    "--valid-limit",
    "4",
    "--test-limit",
    "6",
    "--tiny-steps",
    "12",
    "--epochs",
    "2",
    "--batch-size",
    "4",
    "--max-length",
    "512",
];

/// What must be the same whatever happened on the way: every file but the answer store, whose rows hold times, and logs.
fn artefacts(project: &Path) -> BTreeMap<String, Vec<u8>> {
    fn gather(folder: &Path, root: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path
                .strip_prefix(root)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            // What a kill left of a file under way is no artefact, and is taken away when it is old.
            let is_draft = path
                .file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with(".because");
            if is_draft || name.starts_with("llm.sqlite") || name.ends_with(".log.jsonl") {
                continue;
            }
            if path.is_dir() {
                gather(&path, root, found);
            } else {
                found.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    gather(project, project, &mut found);
    found
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn a_run_that_is_killed_again_and_again_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let project = small_project(folder.path());
    // Under the same name: a report is headed with that of its folder.
    let killed = folder.path().join("killed/project");
    copy(&project, &killed);

    json(&[&["run", text(&project)][..], &SMALL].concat());
    let whole = artefacts(&project);
    for name in [
        "because.toml",
        "profiles.layer0.jsonl",
        "profiles.layer1.jsonl",
        "profiles.layer2.jsonl",
        "explanations.jsonl",
        "sft.train.jsonl",
        "sft.valid.jsonl",
        "sft.test.jsonl",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "predictions.jsonl",
        "report.json",
        "report.html",
    ] {
        assert!(
            whole.contains_key(name),
            "{name} is missing from {:?}",
            whole.keys()
        );
    }

    let binary = assert_cmd::cargo::cargo_bin("because");
    let mut kills = 0;
    for wait in [
        30, 60, 90, 130, 180, 250, 350, 500, 700, 1000, 1500, 2000, 3000,
    ] {
        let mut child = std::process::Command::new(&binary)
            .args(["run", text(&killed), "--quiet"])
            .args(SMALL)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(wait));
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            kills += 1;
        }
        child.wait().unwrap();
    }
    assert!(kills > 2, "the run is too short for this test");
    let ended = json(&[&["run", text(&killed)][..], &SMALL].concat());
    let again = artefacts(&killed);
    assert_eq!(
        whole.keys().collect::<Vec<_>>(),
        again.keys().collect::<Vec<_>>()
    );
    for (name, bytes) in &whole {
        // The adapter and its configuration name the folder of their base.
        let same = if name.ends_with(".json") || name.ends_with(".toml") || name.ends_with(".html")
        {
            String::from_utf8_lossy(bytes).replace(text(&project), "")
                == String::from_utf8_lossy(&again[name]).replace(text(&killed), "")
        } else {
            *bytes == again[name]
        };
        assert!(same, "{name} differs after {kills} kills");
    }

    let calls = |project: &Path| json(&["profile", text(project)])["llm"].clone();
    let _ = ended;
    let (plain, after) = (calls(&project), calls(&killed));
    assert_eq!(
        plain["responses"], after["responses"],
        "as many answers as without a kill"
    );

    let kept = json(&[&["run", text(&killed)][..], &SMALL].concat());
    for stage in kept["stages"].as_array().unwrap() {
        assert_eq!(stage["status"], "kept", "{stage}");
    }
}

#[test]
fn the_stages_one_by_one() {
    let folder = tempfile::tempdir().unwrap();
    let project = small_project(folder.path());
    let dir = text(&project);
    let graph = json(&["graph", dir, "--check"]);
    assert_eq!(graph["graph"]["users"], 9);

    json(&["profile", dir, "--layers", "2", "--neighbors", "3"]);
    json(&["profile", dir, "--layers", "1", "--neighbors", "3"]);
    assert!(
        !project.join("profiles.layer2.jsonl").exists(),
        "a layer of an earlier run is no result of this one"
    );
    json(&[
        "contrast",
        dir,
        "--hard",
        "1",
        "--random",
        "3",
        "--max-attempts",
        "4",
    ]);
    json(&[
        "contrast",
        dir,
        "--hard",
        "1",
        "--random",
        "3",
        "--max-attempts",
        "4",
        "--split",
        "test",
        "--limit",
        "3",
    ]);
    let explanations = std::fs::read_to_string(project.join("explanations.jsonl")).unwrap();
    assert_eq!(
        explanations.lines().count(),
        18 + 3,
        "train pairs stay when test pairs come"
    );

    let log = folder.path().join("train.log.jsonl");
    let trained = json(&[
        "train",
        "--base",
        "tiny",
        "--data",
        dir,
        "--max-steps",
        "6",
        "--batch-size",
        "4",
        "--tiny-steps",
        "12",
        "--max-length",
        "512",
        "--log",
        text(&log),
    ]);
    assert!(
        trained["tokens_per_second"].as_f64().unwrap() > 0.0,
        "{trained}"
    );
    let lines = std::fs::read_to_string(&log).unwrap();
    assert_eq!(lines.lines().count(), 6);
    let step: serde_json::Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    for field in [
        "step",
        "loss",
        "learning_rate",
        "grad_norm",
        "tokens",
        "supervised_tokens",
        "seconds",
    ] {
        assert!(step[field].is_number(), "{field} in {step}");
    }

    let row: serde_json::Value =
        serde_json::from_str(explanations.lines().next().unwrap()).unwrap();
    let (user, item) = (row["user"].as_str().unwrap(), row["item"].as_str().unwrap());
    let explained = json(&[
        "explain",
        dir,
        "--user",
        user,
        "--item",
        item,
        "--max-tokens",
        "16",
    ]);
    assert!(
        explained["explanation"].is_string() && explained["evidence"].is_array(),
        "{explained}"
    );
    assert!(
        fails(2, &["explain", dir, "--user", "nobody", "--item", item]).contains("user nobody")
    );

    let adapter = project.join("adapter");
    let arguments = [
        "generate",
        "--base",
        "tiny",
        "--adapter",
        text(&adapter),
        "--prompt",
        "Why?",
        "--greedy",
        "--max-tokens",
        "8",
    ];
    let (one, two) = (json(&arguments), json(&arguments));
    assert_eq!(one["outputs"], two["outputs"]);
    merged_weights_answer_alike(folder.path(), &adapter, &one);
    assert!(one["outputs"][0]["token_ids"].as_array().unwrap().len() <= 8);
    assert!(one["outputs"][0]["text"].is_string() && one["tokens_per_second"].is_number());
}

#[test]
fn a_recording_replays_to_the_same_profiles() {
    let folder = tempfile::tempdir().unwrap();
    let project = small_project(folder.path());
    let twin = folder.path().join("twin");
    copy(&project, &twin);
    let tape = folder.path().join("tape.jsonl");
    json(&[
        "profile",
        text(&project),
        "--layers",
        "2",
        "--record",
        text(&tape),
    ]);
    json(&[
        "profile",
        text(&twin),
        "--layers",
        "2",
        "--llm",
        &format!("replay:{}", text(&tape)),
    ]);
    for layer in 0..3 {
        let name = format!("profiles.layer{layer}.jsonl");
        assert_eq!(
            std::fs::read(project.join(&name)).unwrap(),
            std::fs::read(twin.join(&name)).unwrap()
        );
    }
}

#[test]
fn references_of_the_data_are_what_test_pairs_are_measured_against() {
    let folder = tempfile::tempdir().unwrap();
    let project = small_project(folder.path());
    let interactions = std::fs::read_to_string(project.join("interactions.jsonl")).unwrap();
    let references: String = interactions
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|row| row["split"] == "test")
        .map(|row| format!("{}\n", serde_json::json!({"user": row["user"], "item": row["item"], "explanation": "You like it so."})))
        .collect();
    std::fs::write(project.join("references.jsonl"), &references).unwrap();
    json(&[&["run", text(&project)][..], &SMALL].concat());
    let predictions = std::fs::read_to_string(project.join("predictions.jsonl")).unwrap();
    assert_eq!(predictions.lines().count(), references.lines().count());
    assert!(
        predictions
            .lines()
            .all(|line| line.contains("\"reference\":\"You like it so.\""))
    );
}

/// Merges an adapter into its base, and asks the result what base and adapter were asked.
fn merged_weights_answer_alike(folder: &Path, adapter: &Path, apart: &serde_json::Value) {
    let (merged, gguf) = (folder.join("merged"), folder.join("merged.gguf"));
    let merge = |out: &Path| {
        let files = ["--adapter", text(adapter), "--out", text(out)];
        json(&[&["merge", "--base", "tiny"][..], &files].concat())
    };
    let written = merge(&merged);
    assert_eq!(written["format"], "safetensors");
    assert_eq!(written["merged_tensors"], 4 * 7);
    assert!(written["bytes"].as_u64() > Some(0) && written["seconds"].is_number());
    let alone = json(&[
        "generate",
        "--base",
        text(&merged),
        "--prompt",
        "Why?",
        "--greedy",
        "--max-tokens",
        "8",
    ]);
    assert_eq!(alone["outputs"], apart["outputs"]);

    let written = merge(&gguf);
    assert_eq!(
        (&written["format"], &written["type"]),
        (&"gguf".into(), &"f32".into())
    );
    assert_eq!(written["bytes"], std::fs::metadata(&gguf).unwrap().len());
    let again = [
        "merge",
        "--base",
        "tiny",
        "--adapter",
        text(adapter),
        "--out",
        text(&gguf),
        "--type",
        "q8_0",
    ];
    assert!(fails(2, &again).contains("merged.gguf exists"));
    let unknown = [&again[..7], &["--type", "q3"]].concat();
    assert_eq!(because(&unknown).status.code(), Some(2));
}
