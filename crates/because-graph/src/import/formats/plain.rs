use because_core::Split;

use super::super::record::{Field, Names};
use super::super::rule::{Header, Rule, Syntax};
use super::{COMMAS, TABS};

const LINES: Rule = Rule {
    syntax: Syntax::Json,
    ..Rule::DEFAULT
};

const CELLS: Rule = Rule {
    syntax: COMMAS,
    ..Rule::DEFAULT
};

pub(in super::super) const JSONL: &[Rule] = &[
    Rule {
        files: &[
            "users.jsonl",
            "users.ndjson",
            "items.jsonl",
            "items.ndjson",
            "interactions.jsonl",
            "interactions.ndjson",
            "references.jsonl",
            "references.ndjson",
            "explanations*.jsonl",
            "explanations*.ndjson",
        ],
        in_folders: true,
        ..LINES
    },
    Rule {
        files: &["*.csv"],
        ..CELLS
    },
    Rule {
        files: &["*.tsv"],
        syntax: TABS,
        ..CELLS
    },
    LINES,
];

pub(in super::super) const CSV: &[Rule] = &[
    Rule {
        files: &[
            "users.csv",
            "items.csv",
            "interactions.csv",
            "references.csv",
            "explanations*.csv",
        ],
        in_folders: true,
        ..CELLS
    },
    Rule {
        files: &[
            "users.tsv",
            "items.tsv",
            "interactions.tsv",
            "references.tsv",
            "explanations*.tsv",
        ],
        in_folders: true,
        syntax: TABS,
        ..CELLS
    },
    Rule {
        files: &["*.tsv"],
        syntax: TABS,
        ..CELLS
    },
    Rule {
        files: &["*.jsonl", "*.ndjson"],
        ..LINES
    },
    CELLS,
];

pub(in super::super) const PARQUET: &[Rule] = &[
    Rule {
        files: &[
            "users*.parquet",
            "items*.parquet",
            "interactions*.parquet",
            "references*.parquet",
            "explanations*.parquet",
            "*.parquet",
        ],
        in_folders: true,
        syntax: Syntax::Parquet,
        ..Rule::DEFAULT
    },
    Rule {
        syntax: Syntax::Parquet,
        ..Rule::DEFAULT
    },
];

const RECBOLE_NAMES: Names = &[
    (Field::User, &["userid", "user", "uid", "sessionid"]),
    (
        Field::Item,
        &[
            "itemid",
            "item",
            "iid",
            "businessid",
            "productid",
            "movieid",
            "parentasin",
            "asin",
        ],
    ),
    (Field::Rating, &["rating", "stars", "overall", "score"]),
    (Field::Review, &["review", "reviewtext", "text"]),
    (Field::Timestamp, &["timestamp", "time", "date"]),
    (
        Field::Title,
        &[
            "title",
            "movietitle",
            "itemname",
            "appname",
            "productname",
            "name",
        ],
    ),
    (Field::Description, &["description", "abstract"]),
    (Field::Profile, &["profile"]),
    (Field::Split, &["split"]),
];

const RECBOLE_RULE: Rule = Rule {
    syntax: Syntax::Cells {
        separator: "\t",
        quotes: false,
        header: Header::Typed,
    },
    names: RECBOLE_NAMES,
    ..Rule::DEFAULT
};

pub(in super::super) const RECBOLE: &[Rule] = &[
    Rule {
        files: &["*.user"],
        in_folders: true,
        kind: Some(super::super::RecordKind::User),
        ..RECBOLE_RULE
    },
    Rule {
        files: &["*.item"],
        in_folders: true,
        kind: Some(super::super::RecordKind::Item),
        ..RECBOLE_RULE
    },
    Rule {
        files: &["*.part1.inter", "*.train.inter"],
        in_folders: true,
        split: Some(Split::Train),
        ..INTER
    },
    Rule {
        files: &["*.part2.inter", "*.valid.inter"],
        in_folders: true,
        split: Some(Split::Valid),
        ..INTER
    },
    Rule {
        files: &["*.part3.inter", "*.test.inter"],
        in_folders: true,
        split: Some(Split::Test),
        ..INTER
    },
    Rule {
        files: &["*.inter"],
        in_folders: true,
        ..INTER
    },
    Rule {
        files: &["*.kg", "*.link", "*.net", "*.useremb", "*.itememb"],
        syntax: Syntax::Refused(
            "knowledge graphs, social nets and embeddings have no place in a project; give the .inter, .item and .user files",
        ),
        ..Rule::DEFAULT
    },
    RECBOLE_RULE,
];

const INTER: Rule = Rule {
    kind: Some(super::super::RecordKind::Interaction),
    ..RECBOLE_RULE
};
