use because_core::Split;

use super::super::RecordKind;
use super::super::change::Change;
use super::super::markup::Markup;
use super::super::record::{Field, Names};
use super::super::rule::{Rule, Syntax};
use super::{COMMAS, TABS, bare};

/// Of 2014 and 2018; a review without a text has its headline.
const NAMES: Names = &[
    (Field::User, &["reviewerid"]),
    (Field::Item, &["asin"]),
    (Field::Rating, &["overall"]),
    (Field::Review, &["reviewtext", "summary"]),
    (Field::Timestamp, &["unixreviewtime", "reviewtime"]),
    (Field::Title, &["title"]),
    (Field::Description, &["description"]),
];

const NAMES_BARE: Names = &[
    (Field::User, &["user"]),
    (Field::Item, &["item"]),
    (Field::Rating, &["rating"]),
    (Field::Timestamp, &["timestamp"]),
];

const CHANGES: &[(&str, Change)] = &[
    ("title", Change::NoScript),
    ("price", Change::Price),
    ("categories", Change::Flatten),
    ("imUrl", Change::Drop),
    ("imageURL", Change::Drop),
    ("imageURLHighRes", Change::Drop),
    ("image", Change::Drop),
    ("related", Change::Drop),
    ("also_buy", Change::Drop),
    ("also_view", Change::Drop),
    ("similar_item", Change::Drop),
    ("tech1", Change::Drop),
    ("tech2", Change::Drop),
];

const AMAZON: Rule = Rule {
    syntax: Syntax::Loose,
    names: NAMES,
    markup: Markup::Html,
    changes: CHANGES,
    ..Rule::DEFAULT
};

const PAIRS: Rule = Rule {
    kind: Some(RecordKind::Interaction),
    ..AMAZON
};

const ITEMS: Rule = Rule {
    files: &["meta_*.json", "meta_*.jsonl", "metadata.json"],
    in_folders: true,
    kind: Some(RecordKind::Item),
    ..AMAZON
};

const BARE: Rule = Rule {
    kind: Some(RecordKind::Interaction),
    names: NAMES_BARE,
    ..Rule::DEFAULT
};

const IN_PARQUET: Rule = Rule {
    files: &["*.parquet"],
    syntax: Syntax::Parquet,
    ..AMAZON
};

pub(in super::super) const AMAZON_2014: &[Rule] = &[
    ITEMS,
    Rule {
        files: &["reviews_*.json", "*_5.json", "*_10.json", "reviews*.json"],
        in_folders: true,
        ..PAIRS
    },
    Rule {
        files: &["ratings_*.csv"],
        in_folders: true,
        syntax: bare(",", &["user", "item", "rating", "timestamp"]),
        ..BARE
    },
    IN_PARQUET,
    AMAZON,
];

pub(in super::super) const AMAZON_2018: &[Rule] = &[
    ITEMS,
    Rule {
        files: &["*_5.json"],
        in_folders: true,
        ..PAIRS
    },
    Rule {
        files: &["*.json", "*.jsonl"],
        in_folders: true,
        ..AMAZON
    },
    Rule {
        files: &["*.csv"],
        in_folders: true,
        // The other way round than in 2014.
        syntax: bare(",", &["item", "user", "rating", "timestamp"]),
        ..BARE
    },
    IN_PARQUET,
    AMAZON,
];

/// Editions of one work share their parent, and reviews and items are joined by it.
const NAMES_2023: Names = &[
    (Field::User, &["userid"]),
    (Field::Item, &["parentasin", "asin"]),
    (Field::Rating, &["rating"]),
    (Field::Review, &["text"]),
    (Field::Timestamp, &["timestamp", "sorttimestamp"]),
    (Field::Title, &["title"]),
    (Field::Description, &["description"]),
];

/// In a review `title` is its headline, which stands in for a text that is missing.
const NAMES_2023_REVIEWS: Names = &[
    (Field::User, &["userid"]),
    (Field::Item, &["parentasin", "asin"]),
    (Field::Rating, &["rating"]),
    (Field::Review, &["text", "title"]),
    (Field::Timestamp, &["timestamp", "sorttimestamp"]),
];

const CHANGES_2023: &[(&str, Change)] = &[
    ("price", Change::Price),
    ("details", Change::Inside),
    ("author", Change::Inside),
    ("author", Change::Name),
    ("images", Change::Drop),
    ("videos", Change::Drop),
    ("bought_together", Change::Drop),
];

const AMAZON_23: Rule = Rule {
    syntax: Syntax::Json,
    names: NAMES_2023,
    markup: Markup::Html,
    changes: CHANGES_2023,
    ..Rule::DEFAULT
};

const REVIEWS_23: Rule = Rule {
    kind: Some(RecordKind::Interaction),
    names: NAMES_2023_REVIEWS,
    ..AMAZON_23
};

/// The benchmark's files: ids, rating and time, with or without a split in their names.
const CSV_23: Rule = Rule {
    in_folders: true,
    syntax: COMMAS,
    ..REVIEWS_23
};

pub(in super::super) const AMAZON_2023: &[Rule] = &[
    Rule {
        files: &["*meta*.jsonl", "*meta*.json"],
        in_folders: true,
        kind: Some(RecordKind::Item),
        ..AMAZON_23
    },
    Rule {
        files: &["*.jsonl"],
        in_folders: true,
        ..REVIEWS_23
    },
    Rule {
        files: &["*.train.csv"],
        split: Some(Split::Train),
        ..CSV_23
    },
    Rule {
        files: &["*.valid.csv"],
        split: Some(Split::Valid),
        ..CSV_23
    },
    Rule {
        files: &["*.test.csv"],
        split: Some(Split::Test),
        ..CSV_23
    },
    Rule {
        files: &["*.csv"],
        ..CSV_23
    },
    Rule {
        files: &["*.tsv"],
        syntax: TABS,
        ..REVIEWS_23
    },
    Rule {
        files: &["*meta*.parquet"],
        kind: Some(RecordKind::Item),
        syntax: Syntax::Parquet,
        ..AMAZON_23
    },
    Rule {
        files: &["*review*.parquet"],
        syntax: Syntax::Parquet,
        ..REVIEWS_23
    },
    Rule {
        files: &["*.parquet"],
        syntax: Syntax::Parquet,
        ..AMAZON_23
    },
    AMAZON_23,
];
