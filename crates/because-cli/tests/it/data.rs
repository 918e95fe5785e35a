use std::path::{Path, PathBuf};

use crate::{because, fails, json, small_project, text};

/// Twenty users who each rated twelve of twenty items, a day apart.
fn ratings(folder: &Path) -> PathBuf {
    let mut rows = String::from("user,item,rating,timestamp\n");
    for user in 0..20 {
        for step in 0..12 {
            let item = (user * 7 + step) % 20;
            let time = 1_500_000_000 + (step * 20 + user) * 86_400;
            rows += &format!("u{user},i{item},{},{time}\n", 1 + (user + item) % 5);
        }
    }
    let path = folder.join("ratings.csv");
    std::fs::write(&path, rows).unwrap();
    path
}

fn bytes(project: &Path, name: &str) -> Vec<u8> {
    std::fs::read(project.join(name)).unwrap()
}

const PLAN: &[&str] = &[
    "--from",
    "2017-07-20",
    "--to",
    "2018-02-01",
    "--min-rating",
    "2",
    "--sample-users",
    "0.9",
    "--max-per-user",
    "9",
    "--k-core-users",
    "4",
    "--k-core-items",
    "3",
    "--split",
    "user-time",
    "--ratio",
    "3:1:1",
    "--cold-users",
    "4",
    "--cold-keep",
    "0,1",
    "--seed",
    "5",
];

#[test]
fn an_import_is_written_down_and_can_be_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, one, two) = (
        ratings(folder.path()),
        folder.path().join("one"),
        folder.path().join("two"),
    );
    let arguments = [&["import", "csv", text(&raw), "--out", text(&one)], PLAN].concat();
    let summary = json(&arguments);
    let steps = summary["steps"].as_array().unwrap();
    let names: Vec<_> = steps
        .iter()
        .map(|step| step["filter"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "date_range",
            "min_rating",
            "sample_users",
            "max_per_user",
            "k_core"
        ]
    );
    assert_eq!(summary["before"]["interactions"], 240);
    let removed: u64 = steps
        .iter()
        .map(|step| step["removed"]["interactions"].as_u64().unwrap())
        .sum();
    assert_eq!(removed + summary["interactions"].as_u64().unwrap(), 240);
    assert_eq!(summary["cold"]["users"], 4);
    assert_eq!(summary["split"]["by"], "user-time");
    assert_eq!(
        bytes(&one, "cold.jsonl")
            .iter()
            .filter(|&&byte| byte == b'\n')
            .count(),
        4
    );

    let config = one.join("because.toml");
    json(&[
        "import",
        "--from-config",
        text(&config),
        "--out",
        text(&two),
    ]);
    for name in ["interactions.jsonl", "cold.jsonl", "because.toml"] {
        assert_eq!(bytes(&one, name), bytes(&two, name), "{name}");
    }
    // Into its own folder, with one thing changed, which is then written down.
    let other = json(&["import", "--from-config", text(&config), "--seed", "6"]);
    assert_eq!(other["split"]["seed"], 6);
    assert!(
        String::from_utf8(bytes(&one, "because.toml"))
            .unwrap()
            .contains("seed = 6")
    );
    assert_ne!(
        bytes(&one, "interactions.jsonl"),
        bytes(&two, "interactions.jsonl")
    );

    let strict = json(&["graph", text(&two), "--check", "--strict"]);
    assert!(strict["graph"]["interactions"]["hidden"].as_u64().unwrap() > 0);
    let passed = strict["check"]["passed"].as_array().unwrap();
    for name in ["split_trains_on_future", "cold_node_knows_more"] {
        assert!(passed.iter().any(|passed| passed == name), "{name}");
    }
}

#[test]
fn the_summary_for_people_shows_what_each_filter_took() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, out) = (ratings(folder.path()), folder.path().join("out"));
    let output = because(&[
        "import",
        "csv",
        text(&raw),
        "--out",
        text(&out),
        "--quiet",
        "--min-rating",
        "3",
        "--k-core",
        "2",
    ]);
    let said = String::from_utf8(output.stdout).unwrap();
    for line in [
        "filter      set to",
        "min rating  at least 3",
        "k core      at least 2 a user, 2 an item",
        "(-",
    ] {
        assert!(said.contains(line), "{said}");
    }
}

#[test]
fn the_summary_says_which_rows_completed_others() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, out) = (ratings(folder.path()), folder.path().join("out"));
    let [titles, texts] = [
        ("titles.csv", "item,title\ni1,One\ni2,Two\n"),
        (
            "texts.jsonl",
            "{\"item\":\"i2\",\"description\":\"second\",\"title\":\"Zwei\"}\n",
        ),
    ]
    .map(|(name, rows)| {
        let path = folder.path().join(name);
        std::fs::write(&path, rows).unwrap();
        path
    });
    let files = [text(&raw), text(&titles), text(&texts)];
    let arguments = [&["import", "csv"], &files[..], &["--out", text(&out)]].concat();
    let summary = json(&arguments);
    assert_eq!(summary["items"], 2);
    assert_eq!(summary["merged"], 1);
    assert_eq!(summary["conflicts"]["count"], 1);
    assert_eq!(summary["conflicts"]["fields"][0]["field"], "title");
    let said = because(&arguments);
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.contains("1 rows are no line of their own"), "{said}");
    assert!(said.contains("1 values of theirs contradict an earlier row"));
}

#[test]
fn plans_that_make_no_sense_are_bad_usage() {
    let folder = tempfile::tempdir().unwrap();
    let raw = ratings(folder.path());
    let out = folder.path().join("out");
    for (flags, said) in [
        (
            &["--from", "2020-01-01", "--to", "2019-01-01"][..],
            "is empty",
        ),
        (&["--from", "soon"], "neither a date"),
        (&["--split", "sometimes"], "is not random, time, user-time"),
        (&["--split", "rows"], "no split of its own"),
        (&["--sample-users", "1.5"], "no share"),
        (&["--max-per-user", "0"], "leaves nothing"),
        (
            &["--cold-users", "3", "--cold-keep", "99"],
            "cold_users 3 finds nobody",
        ),
    ] {
        let arguments = [&["import", "csv", text(&raw), "--out", text(&out)], flags].concat();
        let found = fails(2, &arguments);
        assert!(found.contains(said), "{flags:?}: {found}");
    }
    assert!(fails(2, &["import", "csv"]).contains("PATHS"));
    let config = folder.path().join("other.toml");
    std::fs::write(&config, "seed = 1\n").unwrap();
    let bare = fails(2, &["import", "--from-config", text(&config)]);
    assert!(bare.contains("has no [import]"), "{bare}");
    std::fs::write(
        &config,
        "[import]\nformat = \"csv\"\npaths = []\nkcore = 1\n",
    )
    .unwrap();
    let unknown = fails(2, &["import", "--from-config", text(&config)]);
    assert!(unknown.contains("kcore"), "{unknown}");
}

#[test]
fn a_project_is_made_cold_in_another_folder() {
    let folder = tempfile::tempdir().unwrap();
    let warm = small_project(folder.path());
    let before = bytes(&warm, "interactions.jsonl");
    std::fs::write(
        warm.join("explanations.jsonl"),
        "{\"not\":\"taken along\"}\n",
    )
    .unwrap();
    let cold = folder.path().join("cold");
    let summary = json(&[
        "cold",
        text(&warm),
        "--out",
        text(&cold),
        "--cold-users",
        "2",
        "--cold-items",
        "0.2",
        "--cold-keep",
        "0,1",
        "--seed",
        "3",
    ]);
    assert_eq!(summary["cold"]["users"], 2);
    assert!(summary["splits"]["hidden"].as_u64().unwrap() > 0);
    assert_eq!(summary["references"], 0);
    assert_eq!(bytes(&warm, "interactions.jsonl"), before);
    assert_eq!(bytes(&warm, "items.jsonl"), bytes(&cold, "items.jsonl"));

    json(&["profile", text(&cold), "--layers", "1"]);
    json(&["contrast", text(&cold), "--limit", "3"]);
    let strict = json(&["graph", text(&cold), "--check", "--strict"]);
    let passed = strict["check"]["passed"].as_array().unwrap();
    for name in [
        "cold_node_knows_more",
        "cold_node_knows_less",
        "profile_read_held_out_edge",
    ] {
        assert!(passed.iter().any(|passed| passed == name), "{name}");
    }
    let hidden = fails(2, &["contrast", text(&cold), "--split", "hidden"]);
    assert!(hidden.contains("not to be known"), "{hidden}");
    let again = folder.path().join("again");
    json(&[
        "import",
        "--from-config",
        text(&cold.join("because.toml")),
        "--out",
        text(&again),
    ]);
    for name in ["interactions.jsonl", "cold.jsonl"] {
        assert_eq!(bytes(&cold, name), bytes(&again, name), "{name}");
    }

    let twice = fails(
        2,
        &[
            "cold",
            text(&cold),
            "--out",
            text(&again),
            "--cold-users",
            "1",
        ],
    );
    assert!(twice.contains("hidden already"), "{twice}");
    let nobody = fails(2, &["cold", text(&warm), "--out", text(&again)]);
    assert!(nobody.contains("--cold-users"), "{nobody}");
    let itself = fails(
        2,
        &[
            "cold",
            text(&warm),
            "--out",
            text(&warm),
            "--cold-users",
            "1",
        ],
    );
    assert!(itself.contains("read and written over"), "{itself}");
}

#[test]
fn leaks_fail_a_strict_check_and_warnings_do_not() {
    let folder = tempfile::tempdir().unwrap();
    let project = small_project(folder.path());
    let file = project.join("references.jsonl");
    let row = |split: &str| {
        let interactions = String::from_utf8(bytes(&project, "interactions.jsonl")).unwrap();
        let with = format!("\"split\":\"{split}\"");
        let found = interactions
            .lines()
            .find(|line| line.contains(&with))
            .unwrap();
        let row: serde_json::Value = serde_json::from_str(found).unwrap();
        format!(
            "{{\"user\":{},\"item\":{},\"explanation\":\"so\"}}\n",
            row["user"], row["item"]
        )
    };
    std::fs::write(&file, row("valid")).unwrap();
    json(&["graph", text(&project), "--check", "--strict"]);
    std::fs::write(&file, row("train")).unwrap();
    let output = because(&[
        "graph",
        text(&project),
        "--check",
        "--strict",
        "--json",
        "--quiet",
    ]);
    assert_eq!(output.status.code(), Some(1));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        found["check"]["findings"][0]["name"],
        "reference_on_train_edge"
    );
    assert_eq!(found["check"]["findings"][0]["of"], 1);
    json(&["graph", text(&project), "--check"]);
    let people = because(&["graph", text(&project), "--check", "--quiet"]);
    let said = String::from_utf8(people.stdout).unwrap();
    assert!(
        said.contains("leak: reference_on_train_edge, 1 of 1"),
        "{said}"
    );
}

#[test]
fn a_pair_in_two_splits_is_found_though_it_makes_no_graph() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("interactions.jsonl"),
        "{\"user\":1,\"item\":2,\"split\":\"train\"}\n{\"user\":1,\"item\":2,\"split\":\"test\"}\n",
    )
    .unwrap();
    let found = json(&["graph", text(folder.path()), "--check"]);
    assert_eq!(found["check"]["findings"][0]["name"], "pair_in_two_splits");
    assert!(
        found["graph"]["error"]
            .as_str()
            .unwrap()
            .contains("two interactions")
    );
    fails(2, &["graph", text(folder.path())]);
}
