use because_core::Split;

use super::super::RecordKind;
use super::super::change::Change;
use super::super::record::{Field, Names};
use super::super::rule::{Rule, Syntax};
use super::{COMMAS, PICKLE};

/// Users and items are numbered; which number was which id of Amazon, Yelp or Steam stays as an attribute.
const NAMES: Names = &[
    (Field::User, &["uid", "user"]),
    (Field::Item, &["iid", "item"]),
    (Field::Rating, &["rating"]),
    (Field::Review, &["review"]),
    (Field::Timestamp, &["timestamp", "date"]),
    (Field::Title, &["title", "name"]),
    (Field::Description, &["description"]),
    (Field::Split, &["split"]),
    (Field::Explanation, &["explanation"]),
    (
        Field::Profile,
        &[
            "profile",
            "summarization",
            "businesssummary",
            "itemsummary",
            "usersummary",
            "completion",
        ],
    ),
];

/// In a file of entries the key of an entry is its id.
const USER_ENTRIES: Names = &[(Field::User, &["id"]), (Field::Profile, &["profile"])];
const ITEM_ENTRIES: Names = &[(Field::Item, &["id"]), (Field::Profile, &["profile"])];

const CHANGES: &[(&str, Change)] = &[
    ("content", Change::Open),
    ("business summary", Change::Answer),
    ("item summary", Change::Answer),
    ("user summary", Change::Answer),
    ("completion", Change::Answer),
    ("profile", Change::Answer),
    ("explanation", Change::Answer),
    // How a model came to the profile is not what the person is told.
    ("reasoning", Change::Drop),
];

const ANY: Rule = Rule {
    syntax: Syntax::Json,
    names: NAMES,
    changes: CHANGES,
    ..Rule::DEFAULT
};

const PAIRS: Rule = Rule {
    in_folders: true,
    kind: Some(RecordKind::Interaction),
    syntax: COMMAS,
    ..ANY
};

const USERS: Rule = Rule {
    in_folders: true,
    kind: Some(RecordKind::User),
    ..ANY
};

const ITEMS: Rule = Rule {
    in_folders: true,
    kind: Some(RecordKind::Item),
    ..ANY
};

const TRAIN: Rule = Rule {
    files: &[
        "trn.csv",
        "train.csv",
        "*_trn.csv",
        "*_train.csv",
        "trn_*.csv",
    ],
    split: Some(Split::Train),
    ..PAIRS
};

const VALID: Rule = Rule {
    files: &[
        "val.csv",
        "valid.csv",
        "*_val.csv",
        "*_valid.csv",
        "val_*.csv",
    ],
    split: Some(Split::Valid),
    ..PAIRS
};

const TEST: Rule = Rule {
    files: &[
        "tst.csv",
        "test.csv",
        "*_tst.csv",
        "*_test.csv",
        "tst_*.csv",
    ],
    split: Some(Split::Test),
    ..PAIRS
};

const WITHOUT_SPLIT: Rule = Rule {
    files: &["*.csv"],
    in_folders: false,
    ..PAIRS
};

const PICKLES: Rule = Rule {
    files: &["*.pkl", "*.pickle"],
    syntax: Syntax::Refused(PICKLE),
    ..Rule::DEFAULT
};

const IN_PARQUET: Rule = Rule {
    files: &["*.parquet"],
    syntax: Syntax::Parquet,
    ..ANY
};

pub(in super::super) const RLMREC: &[Rule] = &[
    Rule {
        files: &["usr_prf.json", "user_prf.json"],
        syntax: Syntax::Entries,
        names: USER_ENTRIES,
        ..USERS
    },
    Rule {
        files: &["itm_prf.json", "item_prf.json"],
        syntax: Syntax::Entries,
        names: ITEM_ENTRIES,
        ..ITEMS
    },
    Rule {
        files: &["*_user.json"],
        ..USERS
    },
    Rule {
        files: &["*_item.json"],
        ..ITEMS
    },
    TRAIN,
    VALID,
    TEST,
    WITHOUT_SPLIT,
    PICKLES,
    IN_PARQUET,
    ANY,
];

pub(in super::super) const XREC: &[Rule] = &[
    Rule {
        files: &["user_profile.json"],
        ..USERS
    },
    Rule {
        files: &["item_profile.json", "item_content.json"],
        ..ITEMS
    },
    Rule {
        files: &["explanation.json", "data.json"],
        in_folders: true,
        kind: Some(RecordKind::Reference),
        ..ANY
    },
    TRAIN,
    VALID,
    TEST,
    WITHOUT_SPLIT,
    PICKLES,
    IN_PARQUET,
    ANY,
];
