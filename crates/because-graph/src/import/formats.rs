//! The formats as data: which files, which columns.

use super::rule::{Rule, Syntax};

const LINES: Rule = Rule {
    syntax: Syntax::Json,
    ..Rule::DEFAULT
};

pub(super) const JSONL: &[Rule] = &[
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
    LINES,
];

const COMMAS: Rule = Rule {
    syntax: Syntax::Cells {
        separator: ",",
        quotes: true,
    },
    ..Rule::DEFAULT
};

const TABS: Rule = Rule {
    syntax: Syntax::Cells {
        separator: "\t",
        quotes: true,
    },
    ..Rule::DEFAULT
};

pub(super) const CSV: &[Rule] = &[
    Rule {
        files: &[
            "users.csv",
            "items.csv",
            "interactions.csv",
            "references.csv",
            "explanations*.csv",
        ],
        in_folders: true,
        ..COMMAS
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
        ..TABS
    },
    Rule {
        files: &["*.tsv"],
        ..TABS
    },
    COMMAS,
];
