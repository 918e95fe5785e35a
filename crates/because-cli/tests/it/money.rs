//! Plans, budgets and deadlines, without a network: the model inside the program and a small server on loopback.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json as object};

use crate::{because, fails, json, small_project, text};

/// Runs a command that must stop at a limit, and gives what it says on standard output.
fn stops(arguments: &[&str]) -> Value {
    let output = because(&[arguments, &["--json", "--quiet"]].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{arguments:?}: {said}");
    assert!(said.contains("the rest would take"), "{said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The example data as a project: texts that differ, as real ones do, and a split by which no two questions are the same.
fn example_project(folder: &Path) -> PathBuf {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/data");
    let project = folder.join("example");
    json(&[
        "import",
        "jsonl",
        text(&data),
        "--out",
        text(&project),
        "--seed",
        "2",
    ]);
    project
}

fn calls(plan: &Value, stage: &str) -> u64 {
    let stages = plan["stages"].as_array().unwrap();
    let own = stages
        .iter()
        .filter(|row| row["stage"].as_str().unwrap().starts_with(stage));
    own.map(|row| row["whole"]["calls"]["expected"].as_u64().unwrap())
        .sum()
}

fn attempts(printed: &Value) -> u64 {
    printed["llm"]["attempts"]["ok"].as_u64().unwrap()
}

#[test]
fn a_plan_counts_the_calls_that_a_run_then_makes() {
    let folder = tempfile::tempdir().unwrap();
    let project = example_project(folder.path());
    let arguments = ["plan", text(&project), "--train-limit", "8"];
    let plan = json(&arguments);
    assert!(!project.join("llm.sqlite").exists(), "a plan asks nobody");
    assert_eq!(plan["left"], plan["whole"]);

    let profiled = json(&["profile", text(&project)]);
    assert_eq!(calls(&plan, "profile"), attempts(&profiled));
    let after = json(&arguments);
    assert_eq!(calls(&after, "profile"), calls(&plan, "profile"));
    assert_eq!(after["taken"]["calls"], attempts(&profiled));
    assert_eq!(after["taken_elsewhere"]["calls"], 0);
    for stage in after["stages"].as_array().unwrap() {
        if stage["stage"].as_str().unwrap().starts_with("profile") {
            assert_eq!(stage["left"]["calls"]["high"], 0, "{stage}");
            assert_eq!(stage["taken"]["calls"], stage["whole"]["calls"]["expected"]);
        }
    }

    let explained = json(&["contrast", text(&project), "--limit", "8"]);
    let made = attempts(&explained) - attempts(&profiled);
    let foreseen = &plan["stages"]
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["stage"] == "contrast train")
        .unwrap()["whole"]["calls"];
    let within = foreseen["low"].as_u64().unwrap()..=foreseen["high"].as_u64().unwrap();
    assert!(within.contains(&made), "{made} of {foreseen}");
    let last = json(&arguments);
    assert_eq!(calls(&last, "contrast train"), made);
    let tokens = &last["taken"]["usage"]["prompt_tokens"];
    let estimated: u64 = last["stages"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|row| row.get("taken").is_some())
        .map(|row| row["whole"]["prompt_tokens"]["expected"].as_u64().unwrap())
        .sum();
    let tokens = tokens.as_u64().unwrap();
    assert!(
        estimated.abs_diff(tokens) * 20 < tokens,
        "{estimated} for {tokens}"
    );
}

#[test]
fn a_sample_tells_nearly_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let project = small_project(folder.path());
    let all = json(&["plan", text(&project)]);
    let some = json(&["plan", text(&project), "--sample", "5"]);
    assert_eq!(calls(&all, "profile"), calls(&some, "profile"));
    let [all, some] = [&all, &some].map(|plan| &plan["whole"]["prompt_tokens"]);
    let number = |value: &Value| value.as_f64().unwrap();
    assert!(
        number(&some["low"]) <= number(&all["expected"]),
        "{some} {all}"
    );
    assert!(
        number(&some["high"]) >= number(&all["expected"]),
        "{some} {all}"
    );
}

#[test]
fn a_budget_of_tokens_stops_a_run_that_then_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let whole = example_project(folder.path());
    let straight = attempts(&json(&["profile", text(&whole)]));
    let [before, after] = [0, 2].map(|layer| whole.join(format!("profiles.layer{layer}.jsonl")));
    let expected = [before, after].map(|path| std::fs::read(path).unwrap());

    let again = tempfile::tempdir().unwrap();
    let project = example_project(again.path());
    let stopped = stops(&[
        "profile",
        text(&project),
        "--budget-tokens",
        "90000",
        "--concurrency",
        "3",
    ]);
    let stopped = &stopped["stopped"];
    assert!(
        stopped["reason"]
            .as_str()
            .unwrap()
            .contains("budget of 90000 tokens"),
        "{stopped}"
    );
    let spent = stopped["spent"]["usage"].clone();
    let tokens =
        spent["prompt_tokens"].as_u64().unwrap() + spent["completion_tokens"].as_u64().unwrap();
    assert!(tokens > 0 && tokens <= 90_000, "{stopped}");
    let made = stopped["spent"]["calls"].as_u64().unwrap();
    assert_eq!(
        made + stopped["rest"]["calls"]["expected"].as_u64().unwrap(),
        straight,
        "{stopped}"
    );
    assert!(
        stopped["reached"]
            .as_array()
            .is_some_and(|reached| !reached.is_empty())
    );

    assert_eq!(
        attempts(&json(&["profile", text(&project)])),
        straight,
        "nothing is asked twice"
    );
    let [before, after] = [0, 2].map(|layer| project.join(format!("profiles.layer{layer}.jsonl")));
    assert_eq!(
        [before, after].map(|path| std::fs::read(path).unwrap()),
        expected
    );

    let settings = "[llm]\nbudget_for = \"project\"\nbudget_tokens = 100\n";
    std::fs::write(project.join("because.toml"), settings).unwrap();
    let stopped = stops(&["contrast", text(&project)]);
    assert!(
        stopped["stopped"]["spent"]["before_tokens"]
            .as_u64()
            .unwrap()
            > 100
    );
    assert_eq!(stopped["stopped"]["spent"]["calls"], 0);
}

#[test]
fn after_a_deadline_nothing_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let project = small_project(folder.path());
    let stopped = stops(&[
        "profile",
        text(&project),
        "--deadline",
        "2020-01-01T00:00:00Z",
    ]);
    assert_eq!(stopped["stopped"]["spent"]["calls"], 0);
    assert!(
        stopped["stopped"]["reason"]
            .as_str()
            .unwrap()
            .contains("2020-01-01T00:00:00Z")
    );
    fails(2, &["profile", text(&project), "--deadline", "soon"]);
}

#[test]
fn money_needs_prices_and_is_not_overspent() {
    let folder = tempfile::tempdir().unwrap();
    let project = small_project(folder.path());
    let served = Arc::new(AtomicU64::new(0));
    let model = format!("openai:m@http://127.0.0.1:{}/v1", serve(&served));
    let profile = ["profile", text(&project), "--llm", &model];

    let said = fails(2, &[&profile[..], &["--budget-usd", "0.5"]].concat());
    assert!(said.contains("[llm.prices.\"m\"]"), "{said}");
    fails(2, &[&profile[..], &["--budget-usd", "-1"]].concat());
    assert_eq!(
        served.load(Ordering::Relaxed),
        0,
        "both before the first call"
    );

    std::fs::write(
        project.join("because.toml"),
        "[llm.prices.m]\ninput = 1.0\noutput = 2.0\nas_of = \"2026-11-01\"\n",
    )
    .unwrap();
    // A call costs (500 + 2 x 100) millionths and may cost its prompt and 2 x 2048 of them.
    let budget = 0.02;
    let stopped = stops(&[&profile[..], &["--budget-usd", "0.02"]].concat());
    let made = served.load(Ordering::Relaxed);
    let spent = stopped["stopped"]["spent_usd"].as_f64().unwrap();
    assert!(spent <= budget && spent > budget / 2.0, "{stopped}");
    assert_eq!((spent * 1e6).round() as u64, made * 700);
    let rest = &stopped["stopped"]["rest"];
    assert!(rest["usd"]["expected"].as_f64().unwrap() > 0.0, "{rest}");

    let whole = json(&profile);
    assert_eq!(attempts(&whole), served.load(Ordering::Relaxed));
    assert_eq!(
        made + rest["calls"]["expected"].as_u64().unwrap(),
        attempts(&whole)
    );
    let plan = json(&["plan", text(&project), "--llm", &model]);
    let usd = plan["taken"]["usd"].as_f64().unwrap();
    assert!(
        (usd - attempts(&whole) as f64 * 700e-6).abs() < 1e-9,
        "{usd}"
    );
}

/// A server whose answers fit our questions and have 500 and 100 tokens; gives its port.
fn serve(served: &Arc<AtomicU64>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let served = Arc::clone(served);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            let served = Arc::clone(&served);
            std::thread::spawn(move || answer_all(stream, &served));
        }
    });
    port
}

fn answer_all(stream: TcpStream, served: &AtomicU64) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut stream = stream;
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let line = line.trim().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let asked: Value = serde_json::from_slice(&body).ok()?;
        // Texts that differ keep questions apart, as real ones would.
        let number = served.fetch_add(1, Ordering::Relaxed);
        let content = match asked["response_format"]["json_schema"]["name"].as_str() {
            Some("shared") => object!({ "shared": format!("They share thing {number}.") }),
            _ => {
                object!({ "summary": format!("Enjoys thing {number}."), "reasoning": "It shows." })
            }
        };
        let answer = object!({
            "model": "m",
            "choices": [{"message": {"role": "assistant", "content": content.to_string()}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 500, "completion_tokens": 100},
        })
        .to_string();
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            answer.len()
        );
        stream.write_all((head + &answer).as_bytes()).ok()?;
    }
}

#[test]
fn prices_come_from_litellms_file_too() {
    let folder = tempfile::tempdir().unwrap();
    let project = small_project(folder.path());
    let file = r#"{"m": {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6, "litellm_provider": "x"}}"#;
    std::fs::write(project.join("prices.json"), file).unwrap();
    std::fs::write(
        project.join("because.toml"),
        "[llm]\nmodel = \"openai:m\"\nprices_file = \"prices.json\"\n",
    )
    .unwrap();
    let plan = json(&[
        "plan",
        text(Path::new(&project)),
        "--requests-per-minute",
        "1",
    ]);
    assert!(plan["whole"]["usd"]["expected"].as_f64().unwrap() > 0.0);
    let [calls, hours] =
        ["calls", "hours"].map(|what| plan["whole"][what]["expected"].as_f64().unwrap());
    assert!(
        (hours - calls / 60.0).abs() < calls / 600.0,
        "{hours} h for {calls} calls"
    );
}
