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
