//! The formats as data: which files there are, which of their columns is what, and what is done to a value because of how the
//! data set writes it. [`super::parse`] works by these tables and knows no format by name.

mod amazon;
mod hkuds;
mod movielens;
mod plain;
mod steam;
mod yelp;

pub(super) use self::amazon::{AMAZON_2014, AMAZON_2018, AMAZON_2023};
pub(super) use self::hkuds::{RLMREC, XREC};
pub(super) use self::movielens::MOVIELENS;
pub(super) use self::plain::{CSV, JSONL, PARQUET, RECBOLE};
pub(super) use self::steam::STEAM;
pub(super) use self::yelp::YELP;
use super::rule::{Header, Syntax};

const COMMAS: Syntax = Syntax::Cells {
    separator: ",",
    quotes: true,
    header: Header::FirstRow,
};

const TABS: Syntax = Syntax::Cells {
    separator: "\t",
    quotes: true,
    header: Header::FirstRow,
};

/// Cells without quotes, in files that do not name their columns.
const fn bare(separator: &'static str, columns: &'static [&'static str]) -> Syntax {
    Syntax::Cells {
        separator,
        quotes: false,
        header: Header::Always(columns),
    }
}

const PICKLE: &str = "a pickle can run any program when it is opened, so it is not read; write it as JSON or CSV with the \
    Python that made it: json.dump(pickle.load(open(\"usr_prf.pkl\", \"rb\")), open(\"usr_prf.json\", \"w\")) for a dict, \
    pandas.read_pickle(\"tst.pkl\").to_json(\"tst.jsonl\", orient=\"records\", lines=True) for a data frame, \
    m = pickle.load(open(\"trn_mat.pkl\", \"rb\")).tocoo(); \
    pandas.DataFrame({\"user\": m.row, \"item\": m.col}).to_csv(\"trn.csv\", index=False) for a matrix";
