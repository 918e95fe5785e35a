use because_core::jsonl;

use super::*;

struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new(interactions: &str) -> Self {
        let fixture = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        fixture.file("interactions.jsonl", interactions)
    }

    fn file(self, name: &str, text: &str) -> Self {
        std::fs::write(self.folder.path().join(name), text).unwrap();
        self
    }

    fn check(&self) -> CheckReport {
        check(&Project::new(self.folder.path())).unwrap()
    }

    fn promised(&self, strategy: SplitStrategy) -> CheckReport {
        let check = Check {
            promised: Some(strategy),
        };
        check.run(&Project::new(self.folder.path())).unwrap()
    }
}

const SOUND: &str = r#"{"user":"a","item":"x","split":"train"}
{"user":"a","item":"y","split":"test","review":"the quick brown fox jumps over the lazy dog again"}
{"user":"b","item":"y","split":"train"}
{"user":"b","item":"x","split":"valid"}
"#;

#[test]
fn a_sound_project_passes_every_check() {
    let report = Fixture::new(SOUND).check();
    assert_eq!(report.findings, []);
    assert_eq!(report.leaks(), 0);
    assert!(report.passed.contains(&"pair_in_two_splits"));
    assert!(
        !report.passed.contains(&"reference_on_train_edge"),
        "there are no references"
    );
}

#[test]
fn references_are_held_against_the_splits() {
    let report = Fixture::new(SOUND)
        .file(
            "references.jsonl",
            r#"{"user":"a","item":"x","explanation":"e"}
{"user":"a","item":"y","explanation":"e"}
{"user":"b","item":"x","explanation":"e"}
{"user":"c","item":"x","explanation":"e"}
"#,
        )
        .check();
    assert_eq!(report.leaks(), 1);
    let leak = report.finding("reference_on_train_edge").unwrap();
    assert_eq!(leak.examples, ["user a, item x"]);
    assert_eq!(report.finding("reference_on_valid_edge").unwrap().count, 1);
    assert_eq!(
        report
            .finding("reference_without_interaction")
            .unwrap()
            .count,
        1
    );
    assert_eq!(
        report.findings[0].severity,
        Severity::Leak,
        "the worst comes first"
    );
}

#[test]
fn repeated_pairs_are_told_apart() {
    let report = Fixture::new(
        r#"{"user":"a","item":"x","split":"train"}
{"user":"a","item":"x","split":"test"}
{"user":"a","item":"y"}
{"user":"a","item":"y","split":"train"}
"#,
    )
    .check();
    let leak = report.finding("pair_in_two_splits").unwrap();
    assert_eq!(leak.examples, ["user a, item x: train, test"]);
    assert_eq!(
        report.finding("duplicate_interaction").unwrap().examples,
        ["user a, item y"]
    );
    assert_eq!(
        report.finding("interaction_without_split").unwrap().count,
        1
    );
    assert_eq!(report.finding("empty_split").unwrap().examples, ["valid"]);
}

#[test]
fn strangers_to_train_and_to_one_file_are_named() {
    let report = Fixture::new("{\"user\":\"a\",\"item\":\"x\",\"split\":\"test\"}\n")
        .file("users.jsonl", "{\"user\":\"z\"}\n{\"user\":\"z\"}\n")
        .check();
    for name in [
        "test_user_unseen_in_train",
        "test_item_unseen_in_train",
        "user_without_interaction",
        "user_without_row",
        "duplicate_user",
    ] {
        assert_eq!(
            report.finding(name).map(|finding| finding.count),
            Some(1),
            "{name}"
        );
    }
    assert!(
        report.finding("item_without_row").is_none(),
        "there are no item rows at all"
    );
}

#[test]
fn profiles_given_or_made_must_not_quote_what_is_held_out() {
    let quoting = "Likes that THE quick, brown fox jumps over the lazy ... cat.";
    let fixture = Fixture::new(SOUND)
            .file(
                "users.jsonl",
                &format!("{{\"user\":\"a\",\"profile\":{quoting:?}}}\n"),
            )
            .file(
                "items.jsonl",
                "{\"item\":\"x\",\"profile\":\"quick brown fox jumps over the lazy\"}\n",
            )
            .file(
                "profiles.layer0.jsonl",
                &format!(
                    "{{\"kind\":\"user\",\"id\":\"b\",\"layer\":0,\"summary\":{quoting:?},\"neighbors\":[],\"model\":\"m\",\"prompt\":\"\"}}\n"
                ),
            );
    let report = fixture.check();
    let leak = report.finding("profile_quotes_held_out_review").unwrap();
    assert_eq!(leak.count, 2, "seven words are no quotation");
    let expected = "user a: \"the quick brown fox jumps over the lazy\" of user a, item y (test)";
    assert_eq!(leak.examples[0], expected);
    assert!(leak.examples[1].starts_with("layer 0 of user b: "));
}

#[test]
fn a_phrase_that_train_knows_is_no_leak() {
    let phrase = "the quick brown fox jumps over the lazy dog";
    let known = SOUND.replace(
        r#""item":"y","split":"train""#,
        &format!(r#""item":"y","split":"train","review":"{phrase}""#),
    );
    let profile = format!("{{\"user\":\"a\",\"profile\":\"{phrase}\"}}\n");
    assert_eq!(
        Fixture::new(SOUND)
            .file("users.jsonl", &profile)
            .check()
            .leaks(),
        1
    );
    assert_eq!(
        Fixture::new(&known)
            .file("users.jsonl", &profile)
            .check()
            .leaks(),
        0
    );
}

#[test]
fn a_report_is_json_and_a_missing_file_an_error() {
    let report = Fixture::new(SOUND).check();
    assert!(report.passed.contains(&"own_review_repeated_in_train"));
    assert!(
        !report.passed.contains(&"profile_quotes_held_out_review"),
        "there is no profile to look at"
    );
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["findings"], serde_json::json!([]));
    let folder = tempfile::tempdir().unwrap();
    assert!(
        check(&Project::new(folder.path()))
            .unwrap_err()
            .is_bad_input()
    );
    jsonl::write(&folder.path().join("interactions.jsonl"), [1]).unwrap();
    let said = check(&Project::new(folder.path())).unwrap_err().to_string();
    assert!(said.contains("interactions.jsonl: line 1"), "{said}");
}

/// Rows of `user item split timestamp`; a time of 0 is none.
fn rows(rows: &[(&str, &str, &str, i64)]) -> String {
    rows.iter()
        .map(|(user, item, split, time)| {
            let time = match time {
                0 => String::new(),
                time => format!(",\"timestamp\":{time}"),
            };
            format!("{{\"user\":\"{user}\",\"item\":\"{item}\",\"split\":\"{split}\"{time}}}\n")
        })
        .collect()
}

fn count(report: &CheckReport, name: &str) -> usize {
    report.finding(name).map_or(0, |finding| finding.count)
}

#[test]
fn a_promise_that_is_broken_is_a_leak() {
    let fixture = Fixture::new(&rows(&[
        ("a", "x", "train", 5),
        ("a", "y", "test", 4),
        ("b", "x", "train", 1),
        ("b", "z", "valid", 2),
        ("c", "z", "train", 9),
        ("c", "y", "hidden", 9),
    ]));
    let plain = fixture.check();
    assert_eq!(plain.leaks(), 0, "nothing was promised");
    let note = plain.finding("train_after_test_of_user").unwrap();
    assert_eq!((note.severity, note.count), (Severity::Note, 1));

    let users = fixture.promised(SplitStrategy::UserDisjoint);
    let leak = users.finding("user_in_two_splits").unwrap();
    assert_eq!(
        leak.examples,
        ["user a: train, test", "user b: train, valid"]
    );
    let items = fixture.promised(SplitStrategy::ItemDisjoint);
    assert_eq!(
        items.finding("item_in_two_splits").unwrap().examples,
        ["item z: train, valid"]
    );
    let time = fixture.promised(SplitStrategy::Time);
    assert_eq!(
        time.finding("split_trains_on_future").unwrap().examples,
        ["user a, item x", "user c, item z"]
    );
    let own = fixture.promised(SplitStrategy::UserTime);
    assert_eq!(
        own.finding("split_trains_on_future").unwrap().examples,
        ["user a, item x"]
    );
}

#[test]
fn what_follows_from_a_promise_is_no_warning() {
    let fixture = Fixture::new(&rows(&[("a", "x", "train", 0), ("b", "x", "test", 0)]));
    let severity = |report: CheckReport| {
        report
            .finding("test_user_unseen_in_train")
            .unwrap()
            .severity
    };
    assert_eq!(severity(fixture.check()), Severity::Warning);
    assert_eq!(
        severity(fixture.promised(SplitStrategy::UserDisjoint)),
        Severity::Note
    );
    assert!(
        fixture
            .check()
            .finding("train_after_test_of_user")
            .is_none()
    );
    assert!(
        !fixture.check().passed.contains(&"train_after_test_of_user"),
        "there are no times"
    );
}

#[test]
fn a_reference_is_believed_where_it_says_that_it_was_trained_on() {
    let report = Fixture::new(SOUND)
        .file(
            "references.jsonl",
            r#"{"user":"a","item":"y","explanation":"e","graph_split":"trn"}
{"user":"c","item":"z","explanation":"e","graph_split":"train"}
{"user":"b","item":"y","explanation":"e","graph_split":"test"}
{"user":"b","item":"x","explanation":"e","graph_split":"valid"}
"#,
        )
        .check();
    let leak = report.finding("reference_on_train_edge").unwrap();
    assert_eq!((leak.count, leak.of), (3, Some(4)));
    assert_eq!(leak.examples[0], "user a, item y (by its own graph_split)");
    assert_eq!(leak.examples[1], "user b, item y");
    let against = report.finding("reference_split_contradicts").unwrap();
    assert_eq!(
        against.examples,
        [
            "user a, item y: says train, is test",
            "user b, item y: says test, is train"
        ]
    );
    assert_eq!(count(&report, "reference_on_valid_edge"), 1);
}

const OPINION: &str =
    "I bought this lamp for my desk and the light is warm and even and it never flickers at all";

fn reviewed(pairs: &[(&str, &str, &str, &str)]) -> String {
    pairs
        .iter()
        .map(|(user, item, split, review)| {
            format!("{{\"user\":\"{user}\",\"item\":\"{item}\",\"split\":\"{split}\",\"review\":{review:?}}}\n")
        })
        .collect()
}

#[test]
fn a_held_out_review_that_stands_in_train_is_found() {
    let report = Fixture::new(&reviewed(&[
        ("a", "x", "train", &format!("Well! {OPINION}")),
        ("a", "y", "test", OPINION),
        ("b", "y", "valid", &OPINION.to_uppercase()),
        (
            "b",
            "x",
            "train",
            "short and of nothing else than of itself alone and of the rest",
        ),
        (
            "c",
            "x",
            "test",
            "I bought this lamp for my desk and then I gave it away to somebody who wanted it",
        ),
    ]))
    .check();
    let own = report.finding("own_review_repeated_in_train").unwrap();
    assert_eq!(own.severity, Severity::Leak);
    assert_eq!(own.examples, ["user a, item y repeats user a, item x"]);
    assert_eq!(own.of, Some(3));
    let others = report.finding("review_repeated_in_train").unwrap();
    assert_eq!(others.examples, ["user b, item y repeats user a, item x"]);
}

#[test]
fn what_everybody_writes_is_no_repetition() {
    let users: Vec<String> = (0..80).map(|user| format!("u{user}")).collect();
    let mut pairs: Vec<(&str, &str, &str, &str)> = users
        .iter()
        .map(|user| (user.as_str(), "x", "test", OPINION))
        .collect();
    pairs.push(("u0", "y", "train", OPINION));
    let report = Fixture::new(&reviewed(&pairs)).check();
    assert_eq!(report.leaks(), 0);
    assert!(report.finding("review_repeated_in_train").is_none());
}

#[test]
fn a_description_that_a_held_out_review_quotes_is_a_warning() {
    let report = Fixture::new(&reviewed(&[
        ("a", "x", "test", OPINION),
        ("b", "x", "train", "fine"),
    ]))
    .file(
        "items.jsonl",
        &format!("{{\"item\":\"x\",\"description\":{OPINION:?}}}\n"),
    )
    .check();
    assert_eq!(report.leaks(), 0);
    assert_eq!(
        count(&report, "description_shares_words_with_held_out_review"),
        1
    );
}

const LAMP: &str = "A steel desk lamp with a heavy foot and a long arm that turns every way you like and a switch in the cord";

#[test]
fn an_item_over_again_is_known_by_title_and_description() {
    let near = LAMP.replace("steel", "brass");
    let items = [
        ("x", "Desk lamp Luna black", LAMP),
        ("y", "Desk lamp Luna white", &near),
        // A chain: one name, other places.
        (
            "p",
            "Corner Cafe",
            "Coffee and cake beside the river with a view of the old bridge",
        ),
        (
            "q",
            "Corner Cafe",
            "Breakfast all day long next to the station, and the best rolls in town",
        ),
        // A shop: one text under many things.
        ("r", "Garden hose", LAMP),
    ]
    .map(|(item, title, text)| {
        format!("{{\"item\":\"{item}\",\"title\":\"{title}\",\"description\":\"{text}\"}}\n")
    })
    .concat();
    let pairs = rows(&[
        ("a", "x", "train", 0),
        ("a", "y", "test", 0),
        ("b", "y", "test", 0),
        ("b", "p", "train", 0),
        ("b", "q", "test", 0),
        ("a", "r", "test", 0),
    ]);
    let report = Fixture::new(&pairs).file("items.jsonl", &items).check();
    let own = report.finding("near_duplicate_of_own_train_item").unwrap();
    assert_eq!(own.severity, Severity::Leak);
    assert_eq!(own.examples, ["user a, item y is nearly item x"]);
    let across = report.finding("near_duplicate_item_in_train").unwrap();
    assert_eq!((across.severity, across.of), (Severity::Warning, Some(5)));
    assert_eq!(across.examples, ["item y is nearly item x"]);
    let promised = Fixture::new(&pairs).file("items.jsonl", &items);
    let strict = promised.promised(SplitStrategy::ItemDisjoint);
    assert_eq!(
        strict
            .finding("near_duplicate_item_in_train")
            .unwrap()
            .severity,
        Severity::Leak
    );
}

#[test]
fn a_cold_node_must_be_as_cold_as_it_is_said_to_be() {
    let report = Fixture::new(&rows(&[
        ("a", "x", "train", 0),
        ("a", "y", "hidden", 0),
        ("b", "x", "train", 0),
        ("b", "y", "valid", 0),
        ("c", "y", "train", 0),
        ("c", "x", "hidden", 0),
        ("d", "x", "train", 0),
        ("a", "z", "test", 0),
    ]))
    .file(
        "cold.jsonl",
        r#"{"kind":"user","id":"a","kept":1,"hidden":1}
{"kind":"user","id":"b","kept":1,"hidden":0}
{"kind":"user","id":"d","kept":3,"hidden":0}
{"kind":"user","id":"nobody","kept":0,"hidden":0}
"#,
    )
    .file("users.jsonl", "{\"user\":\"a\",\"profile\":\"likes y\"}\n{\"user\":\"c\",\"profile\":\"p\"}\n")
    .file(
        "profiles.layer0.jsonl",
        r#"{"kind":"user","id":"a","layer":0,"summary":"s","neighbors":[],"model":"m","prompt":""}
"#,
    )
    .file(
        "profiles.layer1.jsonl",
        r#"{"kind":"user","id":"a","layer":1,"summary":"s","neighbors":["x","y"],"model":"m","prompt":""}
{"kind":"item","id":"x","layer":1,"summary":"s","neighbors":["a","d"],"model":"m","prompt":""}
"#,
    )
    .check();
    let more = report.finding("cold_node_knows_more").unwrap();
    assert_eq!(more.examples, ["user b: keeps 1, has 1 train and 1 valid"]);
    assert_eq!(count(&report, "cold_node_knows_less"), 2);
    assert_eq!(
        report
            .finding("hidden_edge_of_no_cold_node")
            .unwrap()
            .examples,
        ["user c, item x"]
    );
    assert_eq!(
        report
            .finding("cold_node_with_given_profile")
            .unwrap()
            .examples,
        ["user a"]
    );
    assert_eq!(
        report
            .finding("profile_read_held_out_edge")
            .unwrap()
            .examples,
        ["layer 1: user a, item y (hidden)"]
    );
}
