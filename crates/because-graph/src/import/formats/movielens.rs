use because_core::Split;

use super::super::RecordKind;
use super::super::change::Change;
use super::super::record::{Field, Names};
use super::super::rule::{Encoding, Rule, Syntax};
use super::{COMMAS, bare};

const NAMES: Names = &[
    (Field::User, &["userid"]),
    (Field::Item, &["movieid", "itemid"]),
    (Field::Rating, &["rating"]),
    (Field::Timestamp, &["timestamp"]),
    (Field::Title, &["title"]),
];

const RATINGS: &[&str] = &["user_id", "movie_id", "rating", "timestamp"];

const CHANGES: &[(&str, Change)] = &[("title", Change::TitleYear), ("genres", Change::List("|"))];

const ANY: Rule = Rule {
    syntax: COMMAS,
    encoding: Encoding::Latin1,
    names: NAMES,
    changes: CHANGES,
    ..Rule::DEFAULT
};

const PAIRS: Rule = Rule {
    kind: Some(RecordKind::Interaction),
    ..ANY
};

const ITEMS: Rule = Rule {
    in_folders: true,
    kind: Some(RecordKind::Item),
    ..ANY
};

const USERS: Rule = Rule {
    in_folders: true,
    kind: Some(RecordKind::User),
    ..ANY
};

pub(in super::super) const MOVIELENS: &[Rule] = &[
    // 100k.
    Rule {
        files: &["u.item"],
        syntax: bare("|", ITEM_COLUMNS),
        changes: &[
            ("title", Change::TitleYear),
            ("genres", Change::Flags("genre ")),
            ("imdb_url", Change::Drop),
        ],
        ..ITEMS
    },
    Rule {
        files: &["u.user"],
        syntax: bare("|", &["user_id", "age", "gender", "occupation", "zip_code"]),
        ..USERS
    },
    Rule {
        files: &["u.data"],
        in_folders: true,
        syntax: bare("\t", RATINGS),
        ..PAIRS
    },
    Rule {
        files: &["u*.base"],
        split: Some(Split::Train),
        syntax: bare("\t", RATINGS),
        ..PAIRS
    },
    Rule {
        files: &["u*.test"],
        split: Some(Split::Test),
        syntax: bare("\t", RATINGS),
        ..PAIRS
    },
    // 1m and 10m.
    Rule {
        files: &["movies.dat"],
        syntax: bare("::", &["movie_id", "title", "genres"]),
        ..ITEMS
    },
    Rule {
        files: &["users.dat"],
        syntax: bare(
            "::",
            &["user_id", "gender", "age", "occupation", "zip_code"],
        ),
        changes: &[
            ("age", Change::Codes(AGES)),
            ("occupation", Change::Codes(OCCUPATIONS)),
        ],
        ..USERS
    },
    Rule {
        files: &["ratings.dat"],
        in_folders: true,
        syntax: bare("::", RATINGS),
        ..PAIRS
    },
    // latest, 20m, 25m, 32m.
    Rule {
        files: &["movies.csv", "movie.csv"],
        ..ITEMS
    },
    Rule {
        files: &["ratings.csv", "rating.csv"],
        in_folders: true,
        ..PAIRS
    },
    Rule {
        files: &["tag*.csv", "tags.dat", "link*.csv", "genome*"],
        syntax: Syntax::Refused(
            "tags, links and genome scores are neither ratings nor movies; give the files of ratings and movies",
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

const ITEM_COLUMNS: &[&str] = &[
    "movie_id",
    "title",
    "release_date",
    "video_release_date",
    "imdb_url",
    "genre unknown",
    "genre Action",
    "genre Adventure",
    "genre Animation",
    "genre Children's",
    "genre Comedy",
    "genre Crime",
    "genre Documentary",
    "genre Drama",
    "genre Fantasy",
    "genre Film-Noir",
    "genre Horror",
    "genre Musical",
    "genre Mystery",
    "genre Romance",
    "genre Sci-Fi",
    "genre Thriller",
    "genre War",
    "genre Western",
];

/// As the README of ml-1m explains them.
const AGES: &[(&str, &str)] = &[
    ("1", "under 18"),
    ("18", "18-24"),
    ("25", "25-34"),
    ("35", "35-44"),
    ("45", "45-49"),
    ("50", "50-55"),
    ("56", "56 and over"),
];

/// As the README of ml-1m explains them; 0 is no occupation or another one.
const OCCUPATIONS: &[(&str, &str)] = &[
    ("0", "other"),
    ("1", "academic or educator"),
    ("2", "artist"),
    ("3", "clerical or admin"),
    ("4", "college or grad student"),
    ("5", "customer service"),
    ("6", "doctor or health care"),
    ("7", "executive or managerial"),
    ("8", "farmer"),
    ("9", "homemaker"),
    ("10", "K-12 student"),
    ("11", "lawyer"),
    ("12", "programmer"),
    ("13", "retired"),
    ("14", "sales or marketing"),
    ("15", "scientist"),
    ("16", "self-employed"),
    ("17", "technician or engineer"),
    ("18", "tradesman or craftsman"),
    ("19", "unemployed"),
    ("20", "writer"),
];
