use std::io::{Read, Write};
use std::net::TcpListener;

use crate::{because, fails, json, small_project, text};

#[test]
fn bad_usage_is_code_2() {
    assert_eq!(
        because(&["import", "xml", "a", "--out", "b"]).status.code(),
        Some(2)
    );
    assert_eq!(because(&["profile"]).status.code(), Some(2));
    assert_eq!(
        because(&["profile", ".", "--llm", "gpt"]).status.code(),
        Some(2)
    );
    assert_eq!(because(&["--help"]).status.code(), Some(0));
}

#[test]
fn a_missing_file_and_a_missing_project_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = folder.path().join("nowhere");
    for arguments in [
        &[
            "import",
            "jsonl",
            text(&nowhere),
            "--out",
            text(&folder.path().join("out")),
        ][..],
        &["graph", text(&nowhere)],
        &["profile", text(&nowhere)],
        &["contrast", text(&nowhere)],
        &["run", text(&nowhere)],
        &["evaluate", "text", "--pairs", text(&nowhere)],
        &["train", "--data", text(&nowhere)],
    ] {
        let said = fails(2, arguments);
        assert!(said.contains("nowhere"), "{arguments:?}: {said}");
    }
}

#[test]
fn stages_out_of_order_say_which_command_comes_first() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    assert!(fails(2, &["profile", text(&empty)]).contains("because import"));
    let project = small_project(folder.path());
    assert!(fails(2, &["contrast", text(&project)]).contains("because profile"));
    assert!(fails(2, &["train", "--data", text(&project)]).contains("because"));
    assert!(
        fails(
            2,
            &["explain", text(&project), "--user", "u0", "--item", "i0"]
        )
        .contains("because")
    );
}

#[test]
fn settings_of_another_name_are_refused_with_their_line() {
    let folder = tempfile::tempdir().unwrap();
    let project = small_project(folder.path());
    std::fs::write(
        project.join("because.toml"),
        "seed = 1\n[profile]\nlayerz = 3\n",
    )
    .unwrap();
    let said = fails(2, &["profile", text(&project)]);
    assert!(
        said.contains("because.toml") && said.contains("layerz") && said.contains("line 3"),
        "{said}"
    );
}

#[test]
fn a_pair_without_reference_is_named_by_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let pairs = folder.path().join("pairs.jsonl");
    std::fs::write(
        &pairs,
        "{\"prediction\":\"a\",\"reference\":\"b\"}\n{\"prediction\":\"a\"}\n",
    )
    .unwrap();
    let said = fails(2, &["evaluate", "text", "--pairs", text(&pairs)]);
    assert!(
        said.contains("line 2") && said.contains("reference"),
        "{said}"
    );
    std::fs::write(&pairs, "").unwrap();
    assert!(fails(2, &["evaluate", "text", "--pairs", text(&pairs)]).contains("no pair"));
}

#[test]
fn a_refused_connection_says_where_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let project = small_project(folder.path());
    std::fs::write(project.join("because.toml"), "[llm]\nretries = 0\n").unwrap();
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let said = fails(
        1,
        &[
            "profile",
            text(&project),
            "--llm",
            &format!("openai:m@http://127.0.0.1:{port}/v1"),
        ],
    );
    assert!(said.contains(&format!("127.0.0.1:{port}")), "{said}");
    assert!(
        project.join("interactions.jsonl").exists()
            && !project.join("profiles.layer0.jsonl").exists()
    );
    json(&["profile", text(&project), "--layers", "1"]);
}

#[test]
fn a_wrong_key_ends_the_run_at_once_and_is_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let project = small_project(folder.path());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut buffer = [0; 65_536];
            let _ = stream.read(&mut buffer);
            let body = r#"{"error":{"message":"Incorrect API key provided","type":"invalid_request_error","code":"invalid_api_key"}}"#;
            let head = format!(
                "HTTP/1.1 401 Unauthorized\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all((head + body).as_bytes());
        }
    });
    let mut command = assert_cmd::Command::cargo_bin("because").unwrap();
    command
        .env("OPENAI_API_KEY", "sk-secret-of-mine")
        .env("RUST_LOG", "trace");
    let url = format!("openai:m@http://127.0.0.1:{port}/v1");
    let output = command
        .args(["profile", text(&project), "--llm", &url, "--json"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("OPENAI_API_KEY"), "{said}");
    assert!(!said.contains("sk-secret"), "the key is in the log");
    for file in std::fs::read_dir(&project).unwrap() {
        let path = file.unwrap().path();
        if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            assert!(
                !bytes.windows(9).any(|window| window == b"sk-secret"),
                "{}",
                path.display()
            );
        }
    }
}

#[test]
fn a_base_without_tokenizer_says_what_to_put_where() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base");
    std::fs::create_dir(&base).unwrap();
    let said = fails(
        2,
        &[
            "generate",
            "--base",
            text(&base),
            "--prompt",
            "hi",
            "--greedy",
        ],
    );
    assert!(
        said.contains("config.json") || said.contains("tokenizer.json"),
        "{said}"
    );
    let said = fails(
        2,
        &[
            "generate",
            "--base",
            text(&folder.path().join("none")),
            "--prompt",
            "hi",
        ],
    );
    assert!(said.contains("none"), "{said}");
}

#[test]
fn an_unrecorded_request_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let project = small_project(folder.path());
    let tape = folder.path().join("tape.jsonl");
    json(&[
        "profile",
        text(&project),
        "--layers",
        "0",
        "--record",
        text(&tape),
    ]);
    let said = fails(
        1,
        &[
            "profile",
            text(&project),
            "--layers",
            "1",
            "--llm",
            &format!("replay:{}", text(&tape)),
        ],
    );
    assert!(
        said.contains("not recorded") && said.contains("tape.jsonl"),
        "{said}"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_said_and_leaves_the_old_files() {
    let folder = tempfile::tempdir().unwrap();
    let project = small_project(folder.path());
    json(&["profile", text(&project), "--layers", "0"]);
    let before = std::fs::read(project.join("profiles.layer0.jsonl")).unwrap();
    // A limit on file sizes stands in for the end of the disk: writes past it fail just so.
    let binary = assert_cmd::cargo::cargo_bin("because");
    let limited = std::process::Command::new("bash")
        .arg("-c")
        .arg("trap '' XFSZ; ulimit -f 4; exec \"$0\" profile \"$1\" --layers 0 --seed 9 --json")
        .args([binary.as_os_str(), project.as_os_str()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&limited.stderr);
    assert_eq!(limited.status.code(), Some(1), "{said}");
    assert!(said.contains(text(&project)), "{said}");
    assert_eq!(
        std::fs::read(project.join("profiles.layer0.jsonl")).unwrap(),
        before
    );
    json(&["profile", text(&project), "--layers", "0", "--seed", "9"]);
}
