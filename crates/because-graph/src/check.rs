//! Finds leaks and contradictions in a project directory.

mod quotes;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use because_core::{Interaction, Item, Project, Reference, Split, User};
use serde::Serialize;

use crate::Result;

/// How many examples a finding shows.
const EXAMPLES: usize = 5;

/// What a finding means for the figures of an experiment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Held-out answers can be seen in training: the figures flatter.
    Leak,
    /// The files disagree with themselves; a later stage will refuse them.
    Contradiction,
    /// Some figures cannot be had, or stand on little.
    Warning,
    /// Good to know.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Leak => "leak",
            Self::Contradiction => "contradiction",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// Its name, the same in every version: `reference_on_train_edge`.
    pub name: &'static str,
    /// What it means.
    pub severity: Severity,
    /// How often it was found.
    pub count: usize,
    /// The first few.
    pub examples: Vec<String>,
    /// What it means in words.
    pub meaning: &'static str,
}

/// What [`check()`] found, the worst first, and what it looked for in vain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CheckReport {
    /// What was found at least once.
    pub findings: Vec<Finding>,
    /// The names of the checks that found nothing.
    pub passed: Vec<&'static str>,
}

impl CheckReport {
    /// How many leaks were found, over all findings of [`Severity::Leak`]; zero is what one wants.
    #[must_use]
    pub fn leaks(&self) -> usize {
        self.of(Severity::Leak).map(|finding| finding.count).sum()
    }

    /// The findings of one severity.
    pub fn of(&self, severity: Severity) -> impl Iterator<Item = &Finding> {
        self.findings
            .iter()
            .filter(move |finding| finding.severity == severity)
    }

    /// A finding by its name; `None` where the check found nothing.
    #[must_use]
    pub fn finding(&self, name: &str) -> Option<&Finding> {
        self.findings.iter().find(|finding| finding.name == name)
    }

    fn add(
        &mut self,
        name: &'static str,
        severity: Severity,
        meaning: &'static str,
        found: impl IntoIterator<Item = String>,
    ) {
        let mut count = 0;
        let mut examples = Vec::new();
        for example in found {
            count += 1;
            if examples.len() < EXAMPLES {
                examples.push(example);
            }
        }
        if count == 0 {
            self.passed.push(name);
        } else {
            self.findings.push(Finding {
                name,
                severity,
                count,
                examples,
                meaning,
            });
        }
    }
}

/// Looks through a project directory for whatever makes its figures say more than they should: references on train edges,
/// pairs in two splits, profiles that quote held-out reviews; and for what later stages would stumble over.
///
/// # Errors
/// When `interactions.jsonl` is missing, or a line of a file is not the record it should be.
pub fn check(project: &Project) -> Result<CheckReport> {
    let interactions = project.interactions()?;
    let (users, items) = (project.users()?, project.items()?);
    let references = project.references()?;
    let mut report = CheckReport::default();
    check_pairs(&mut report, &interactions);
    check_references(&mut report, &interactions, &references);
    check_profiles(&mut report, project, &interactions, &users, &items)?;
    check_splits(&mut report, &interactions);
    check_nodes(&mut report, &interactions, &users, &items);
    report.findings.sort_by_key(|finding| finding.severity);
    Ok(report)
}

type Pair<'a> = (&'a str, &'a str);

fn pair(interaction: &Interaction) -> Pair<'_> {
    (interaction.user.as_str(), interaction.item.as_str())
}

fn split_of(interaction: &Interaction) -> Split {
    interaction.split.unwrap_or(Split::Train)
}

fn shown((user, item): Pair<'_>) -> String {
    format!("user {user}, item {item}")
}

fn check_pairs(report: &mut CheckReport, interactions: &[Interaction]) {
    let mut splits: BTreeMap<Pair<'_>, Vec<Split>> = BTreeMap::new();
    for interaction in interactions {
        splits
            .entry(pair(interaction))
            .or_default()
            .push(split_of(interaction));
    }
    let repeated = splits.iter().filter(|(_, splits)| splits.len() > 1);
    let (apart, together): (Vec<_>, Vec<_>) =
        repeated.partition(|(_, splits)| splits.iter().any(|split| split != &splits[0]));
    report.add(
        "pair_in_two_splits",
        Severity::Leak,
        "the same user and item are in more than one split",
        apart.iter().map(|&(&pair, splits)| {
            let splits: Vec<_> = splits.iter().map(|split| split.as_str()).collect();
            format!("{}: {}", shown(pair), splits.join(", "))
        }),
    );
    report.add(
        "duplicate_interaction",
        Severity::Contradiction,
        "the same user and item come more than once; a graph has one edge for them",
        together.iter().map(|&(&pair, _)| shown(pair)),
    );
}

fn check_references(
    report: &mut CheckReport,
    interactions: &[Interaction],
    references: &[Reference],
) {
    let splits: BTreeSet<(Pair<'_>, Split)> = interactions
        .iter()
        .map(|interaction| (pair(interaction), split_of(interaction)))
        .collect();
    let with = |split: Option<Split>| {
        let splits = &splits;
        references
            .iter()
            .map(|reference| (reference.user.as_str(), reference.item.as_str()))
            .filter(move |&pair| match split {
                Some(split) => splits.contains(&(pair, split)),
                None => !Split::ALL
                    .iter()
                    .any(|&split| splits.contains(&(pair, split))),
            })
            .map(shown)
    };
    report.add(
        "reference_on_train_edge",
        Severity::Leak,
        "a reference explanation to measure against lies on an interaction that was trained on",
        with(Some(Split::Train)),
    );
    report.add(
        "reference_on_valid_edge",
        Severity::Warning,
        "a reference explanation lies on an interaction that settings are chosen by",
        with(Some(Split::Valid)),
    );
    report.add(
        "reference_without_interaction",
        Severity::Warning,
        "a reference explanation is about a user and an item that have nothing to do with each other",
        with(None),
    );
}

fn check_profiles(
    report: &mut CheckReport,
    project: &Project,
    interactions: &[Interaction],
    users: &[User],
    items: &[Item],
) -> Result<()> {
    let mut profiles: Vec<(String, &str)> = Vec::new();
    for user in users {
        if let Some(profile) = &user.profile {
            profiles.push((format!("user {}", user.user), profile));
        }
    }
    for item in items {
        if let Some(profile) = &item.profile {
            profiles.push((format!("item {}", item.item), profile));
        }
    }
    let layers = match project.last_layer() {
        Some(last) => (0..=last).map(|layer| project.profiles(layer)).collect(),
        None => Ok(Vec::new()),
    }?;
    for layer in &layers {
        for record in layer.records() {
            let whose = format!("layer {} of {}", layer.layer(), record.node());
            profiles.push((whose, &record.profile.summary));
        }
    }
    let sold = items
        .iter()
        .flat_map(|item| [&item.title, &item.description])
        .flatten();
    report.add(
        "profile_quotes_held_out_review",
        Severity::Leak,
        "a profile has eight words in a row of a valid or test review that are in no train review and no description",
        quotes::of_held_out_reviews(&profiles, interactions, sold.map(String::as_str)),
    );
    Ok(())
}

fn check_splits(report: &mut CheckReport, interactions: &[Interaction]) {
    let without = interactions.iter().filter(|i| i.split.is_none());
    report.add(
        "interaction_without_split",
        Severity::Warning,
        "an interaction without a split counts as train",
        without.map(|interaction| shown(pair(interaction))),
    );
    let empty = Split::USED
        .iter()
        .filter(|&&split| !interactions.iter().any(|i| split_of(i) == split));
    report.add(
        "empty_split",
        Severity::Warning,
        "a split has no interaction, so nothing can be trained or measured on it",
        empty.map(ToString::to_string),
    );
    let trained = |end: fn(&Interaction) -> &str| -> BTreeSet<&str> {
        let in_train = interactions.iter().filter(|i| split_of(i) == Split::Train);
        in_train.map(end).collect()
    };
    let unseen = |end: fn(&Interaction) -> &str| -> BTreeSet<&str> {
        let seen = trained(end);
        let tested = interactions.iter().filter(|i| split_of(i) == Split::Test);
        tested.map(end).filter(|id| !seen.contains(id)).collect()
    };
    report.add(
        "test_user_unseen_in_train",
        Severity::Warning,
        "a user of the test split has no train interaction to be known by",
        unseen(|i| i.user.as_str())
            .iter()
            .map(|id| format!("user {id}")),
    );
    report.add(
        "test_item_unseen_in_train",
        Severity::Warning,
        "an item of the test split has no train interaction, so no neighbour can recommend it",
        unseen(|i| i.item.as_str())
            .iter()
            .map(|id| format!("item {id}")),
    );
}

fn check_nodes(
    report: &mut CheckReport,
    interactions: &[Interaction],
    users: &[User],
    items: &[Item],
) {
    let in_graph: [BTreeSet<&str>; 2] = [
        interactions.iter().map(|i| i.user.as_str()).collect(),
        interactions.iter().map(|i| i.item.as_str()).collect(),
    ];
    let in_file: [Vec<&str>; 2] = [
        users.iter().map(|user| user.user.as_str()).collect(),
        items.iter().map(|item| item.item.as_str()).collect(),
    ];
    let names = [
        [
            "user",
            "duplicate_user",
            "user_without_interaction",
            "user_without_row",
        ],
        [
            "item",
            "duplicate_item",
            "item_without_interaction",
            "item_without_row",
        ],
    ];
    for ((names, in_graph), in_file) in names.into_iter().zip(&in_graph).zip(&in_file) {
        let [side, duplicate, lonely, bare] = names;
        let shown = |id: &&str| format!("{side} {id}");
        let mut seen = BTreeSet::new();
        let repeated: BTreeSet<&str> = in_file
            .iter()
            .copied()
            .filter(|id| !seen.insert(*id))
            .collect();
        report.add(
            duplicate,
            Severity::Contradiction,
            "two rows of one name",
            repeated.iter().map(shown),
        );
        report.add(
            lonely,
            Severity::Note,
            "known by a row of its own, with no interaction in any split",
            seen.difference(in_graph).map(shown),
        );
        // Without a file of rows there is nothing to be missing from.
        let expected = in_graph.iter().filter(|_| !in_file.is_empty());
        report.add(
            bare,
            Severity::Note,
            "known by interactions only, while others have a row of their own",
            expected.filter(|id| !seen.contains(**id)).map(shown),
        );
    }
}

#[cfg(test)]
mod tests {
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
        assert!(report.passed.len() > 10);
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
        let expected =
            "user a: \"the quick brown fox jumps over the lazy\" of user a, item y (test)";
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
}
