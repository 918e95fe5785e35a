use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{because, fails, json, small_project, text};

/// A project that was run, small.
fn tuned_project(folder: &std::path::Path) -> std::path::PathBuf {
    let project = small_project(folder);
    let small = "--layers 1 --train-limit 12 --valid-limit 2 --test-limit 12 --tiny-steps 8 --max-steps 3 --max-length 512";
    let small: Vec<&str> = small.split(' ').collect();
    json(&[&["run", text(&project)][..], &small].concat());
    project
}

fn lines(path: &std::path::Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines.collect()
}

#[test]
fn a_split_is_explained_once_and_as_its_pairs_are_one_by_one() {
    let folder = tempfile::tempdir().unwrap();
    let project = tuned_project(folder.path());
    let out = project.join("explained.test.jsonl");
    let of_split = [
        "explain",
        text(&project),
        "--split",
        "test",
        "--max-tokens",
        "24",
    ];
    let first = json(&of_split);
    let pairs = first["pairs"].as_u64().unwrap();
    assert!(pairs > 4, "{first}");
    assert_eq!(
        (&first["explanations"], &first["kept"]),
        (&pairs.into(), &0.into())
    );
    assert_eq!(first["failed"], 0);
    assert!(first["cached_share"].as_f64().unwrap() > 0.0, "{first}");
    let whole = std::fs::read(&out).unwrap();
    let explained = lines(&out);
    assert_eq!(explained.len() as u64, pairs);

    let field = |line: &Value, name: &str| line[name].as_str().unwrap().to_owned();
    let (user, item) = (field(&explained[3], "user"), field(&explained[3], "item"));
    let alone = json(&[
        "explain",
        text(&project),
        "--user",
        &user,
        "--item",
        &item,
        "--max-tokens",
        "24",
    ]);
    for name in ["explanation", "evidence"] {
        assert_eq!(alone[name], explained[3][name]);
    }

    // Torn by a kill: one line is gone and half of another left. With fewer pairs asked for nothing is lost.
    let cut = whole.len() - whole.len() / 3;
    std::fs::write(&out, &whole[..cut]).unwrap();
    let again = json(&of_split);
    let (kept, made) = (
        again["kept"].as_u64().unwrap(),
        again["explanations"].as_u64().unwrap(),
    );
    assert!(kept > 0 && made > 0 && kept + made == pairs, "{again}");
    assert_eq!(std::fs::read(&out).unwrap(), whole);
    let few = json(&[&of_split[..], &["--limit", "2"]].concat());
    assert_eq!((&few["pairs"], &few["kept"]), (&2.into(), &2.into()));
    assert_eq!(lines(&out).len() as u64, pairs);

    // Other settings make other explanations, and a file of something else stays what it is.
    let longer = json(&[
        "explain",
        text(&project),
        "--split",
        "test",
        "--max-tokens",
        "25",
        "--limit",
        "2",
    ]);
    assert_eq!(
        (&longer["explanations"], &longer["kept"]),
        (&2.into(), &0.into())
    );
    let items = project.join("items.jsonl");
    let before = std::fs::read(&items).unwrap();
    let said = fails(2, &[&of_split[..], &["--out", text(&items)]].concat());
    assert!(
        said.contains("items.jsonl") && said.contains("--out"),
        "{said}"
    );
    assert_eq!(std::fs::read(&items).unwrap(), before);
    assert_eq!(because(&["explain", text(&project)]).status.code(), Some(2));

    // A prompt longer than the model's context is the matter of its own pair.
    let path = project.join("profiles.layer1.jsonl");
    let mut profiles = lines(&path);
    for profile in &mut profiles {
        if profile["id"] == item.as_str() {
            profile["summary"] = "why this and not that ".repeat(20_000).into();
        }
    }
    let profiles: Vec<String> = profiles.iter().map(Value::to_string).collect();
    std::fs::write(&path, profiles.join("\n") + "\n").unwrap();
    let without = json(&of_split);
    let count = |name: &str| without[name].as_u64().unwrap();
    assert!(count("failed") > 0, "{without}");
    assert_eq!(
        count("failed") + count("explanations") + count("kept"),
        pairs
    );
    assert_eq!(lines(&out).len() as u64, pairs - count("failed"));
    assert!(lines(&out).iter().all(|line| line["item"] != item.as_str()));
}

/// Ends it with the test, however that ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(all(unix, feature = "serve", feature = "openai"))]
#[test]
fn a_run_asks_what_serve_offers_and_a_signal_ends_it_cleanly() {
    use std::io::BufRead;

    let folder = tempfile::tempdir().unwrap();
    let project = tuned_project(folder.path());
    let (base, adapter) = (project.join("base.tiny"), project.join("adapter"));
    let named = format!("student={}", text(&adapter));
    let mut command = Command::new(assert_cmd::cargo::cargo_bin("because"));
    command
        .args([
            "serve",
            "--json",
            "--base",
            text(&base),
            "--adapter",
            &named,
            "--port",
            "0",
        ])
        .args(["--api-key-env", "SERVE_TEST_KEY", "--max-tokens", "200"])
        .env("SERVE_TEST_KEY", "k3y")
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut running = Running(command.spawn().unwrap());
    let mut said = String::new();
    let mut stdout = std::io::BufReader::new(running.0.stdout.take().unwrap());
    stdout.read_line(&mut said).unwrap();
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["models"], serde_json::json!(["base.tiny", "student"]));

    let url = said["base_url"].as_str().unwrap();
    let asked = folder.path().join("asked");
    std::fs::create_dir(&asked).unwrap();
    for name in ["interactions.jsonl", "users.jsonl", "items.jsonl"] {
        std::fs::copy(project.join(name), asked.join(name)).unwrap();
    }
    let output = crate::command()
        .env("OPENAI_API_KEY", "k3y")
        .args([
            "profile",
            text(&asked),
            "--layers",
            "0",
            "--json",
            "--quiet",
        ])
        .args(["--llm", &format!("openai:student@{url}")])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );

    let id = running.0.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &id])
            .status()
            .unwrap()
            .success()
    );
    let begun = Instant::now();
    let ended = loop {
        if let Some(ended) = running.0.try_wait().unwrap() {
            break ended;
        }
        assert!(begun.elapsed() < Duration::from_secs(40), "it does not end");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(ended.code(), Some(0));
}
