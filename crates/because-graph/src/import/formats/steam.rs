use super::super::RecordKind;
use super::super::change::Change;
use super::super::markup::Markup;
use super::super::record::{Field, Names};
use super::super::rule::{Rule, Syntax};

/// Users are known by their names: most reviews have no `user_id`.
const NAMES: Names = &[
    (Field::User, &["username", "userid"]),
    (Field::Item, &["productid", "id", "appid"]),
    (Field::Review, &["text"]),
    (Field::Timestamp, &["date"]),
    (Field::Title, &["appname", "title"]),
];

const CHANGES: &[(&str, Change)] = &[
    ("price", Change::Price),
    ("discount_price", Change::Price),
    ("url", Change::Drop),
    ("reviews_url", Change::Drop),
];

const ANY: Rule = Rule {
    syntax: Syntax::Loose,
    names: NAMES,
    markup: Markup::Entities,
    changes: CHANGES,
    ..Rule::DEFAULT
};

pub(in super::super) const STEAM: &[Rule] = &[
    Rule {
        files: &["steam_games.json"],
        in_folders: true,
        kind: Some(RecordKind::Item),
        ..ANY
    },
    Rule {
        files: &["steam_reviews.json", "steam_new.json"],
        in_folders: true,
        kind: Some(RecordKind::Interaction),
        ..ANY
    },
    Rule {
        files: &["australian_*", "bundle_data.json"],
        syntax: Syntax::Refused(
            "the first version has all of a user's reviews on one line and no whole text of them; give steam_reviews.json and \
             steam_games.json of version 2",
        ),
        ..Rule::DEFAULT
    },
    Rule {
        files: &["*.parquet"],
        syntax: Syntax::Parquet,
        ..ANY
    },
    ANY,
];
