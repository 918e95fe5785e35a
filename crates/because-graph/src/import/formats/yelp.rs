use super::super::RecordKind;
use super::super::change::Change;
use super::super::markup::Markup;
use super::super::record::{Field, Names};
use super::super::rule::{Rule, Syntax};
use super::COMMAS;

const NAMES: Names = &[
    (Field::User, &["userid"]),
    (Field::Item, &["businessid"]),
    (Field::Rating, &["stars"]),
    (Field::Review, &["text"]),
    (Field::Timestamp, &["date"]),
    (Field::Title, &["name"]),
];

const CHANGES: &[(&str, Change)] = &[
    ("categories", Change::List(",")),
    // Python literals in texts: {"WiFi": "u'free'"}.
    ("attributes", Change::Inside),
    // Years as one text; the ids of up to thousands of friends.
    ("elite", Change::List(",")),
    ("friends", Change::Drop),
];

const ANY: Rule = Rule {
    syntax: Syntax::Json,
    names: NAMES,
    markup: Markup::Entities,
    changes: CHANGES,
    ..Rule::DEFAULT
};

pub(in super::super) const YELP: &[Rule] = &[
    Rule {
        files: &["*business.json"],
        in_folders: true,
        kind: Some(RecordKind::Item),
        ..ANY
    },
    Rule {
        files: &["*user.json"],
        in_folders: true,
        kind: Some(RecordKind::User),
        ..ANY
    },
    Rule {
        files: &["*review.json"],
        in_folders: true,
        kind: Some(RecordKind::Interaction),
        ..ANY
    },
    // Not looked for in a folder: a tip has no rating, and a later one would take the place of the pair's review.
    Rule {
        files: &["*tip.json"],
        kind: Some(RecordKind::Interaction),
        ..ANY
    },
    Rule {
        files: &["*checkin.json", "photos.json"],
        syntax: Syntax::Refused(
            "check-ins and photos have no user; give the files of reviews, businesses and users",
        ),
        ..Rule::DEFAULT
    },
    Rule {
        files: &["*.csv"],
        syntax: COMMAS,
        ..ANY
    },
    Rule {
        files: &["*.parquet"],
        syntax: Syntax::Parquet,
        ..ANY
    },
    ANY,
];
