use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::formats;
use super::rule::Rule;
use crate::{Error, Result};

/// How the files to import are written. Any file may be packed (`.gz`, `.zst`), and with the feature `parquet` any may be
/// Parquet with the same columns. Files of other names than those listed are read by their columns, by the rules of their
/// format; in a folder only the listed ones are looked for.
///
/// The columns named are those that become a field of a user, an item or an interaction; every other column of a user or an
/// item becomes an attribute, if it is not left out as said here. Rows about one user or item complete each other, in one file or in
/// several (see [`Import`](crate::Import)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Format {
    /// One JSON object a line: `users`, `items`, `interactions`, `references`, `explanations*`, each `.jsonl` or `.ndjson`.
    /// Columns go by all names in use (`user_id`, `reviewerID`, `movieId`, `stars`, `reviewText`, ...). A `.csv` or `.tsv` that is
    /// named is read as in [`Format::Csv`].
    Jsonl,
    /// Columns named by the first row, separated by commas, or by tabs in a `.tsv`; files and columns as in [`Format::Jsonl`]. A
    /// `.jsonl` or `.ndjson` that is named is read as there.
    Csv,
    /// Amazon reviews as published in 2014 ([description](https://jmcauley.ucsd.edu/data/amazon/)).
    ///
    /// - `reviews_*.json`, `*_5.json`: `reviewerID`, `asin`, `overall`, `reviewText` (the headline `summary` where it is
    ///   empty), `unixReviewTime` (else `reviewTime`, "09 13, 2009").
    /// - `meta_*.json`: `asin`, `title`, `description`; `price` becomes a number, the lists in `categories` one list; `imUrl`
    ///   and `related` are left out. Lines may be Python literals.
    /// - `ratings_*.csv`: user, item, rating, time, without a header.
    ///
    /// Tags and entities of HTML in all texts become what a browser would have shown.
    Amazon2014,
    /// Amazon reviews as published in 2018 ([description](https://nijianmo.github.io/amazon/)): as [`Format::Amazon2014`],
    /// with `*_5.json` or any `*.json` for the reviews, and `*.csv` of item, user, rating, time for the ratings alone.
    ///
    /// `price` is a text there ("$12.99", "$12.99 - $15.00"): a number, the upper end as `price_to`. Pictures, `also_buy`,
    /// `also_view`, `similar_item`, `tech1` and `tech2` are left out, and titles that are a piece of a page's script.
    Amazon2018,
    /// Amazon reviews as published in 2023 ([description](https://amazon-reviews-2023.github.io/)).
    ///
    /// - `*.jsonl`: `user_id`, `parent_asin` (by which items are joined; `asin` where it is missing), `rating`, `text` (the
    ///   headline `title` where it is empty), `timestamp` in milliseconds (or `sort_timestamp`).
    /// - `*meta*.jsonl`: `parent_asin`, `title`, `description`; `details` may be JSON in a text; pictures, videos and
    ///   `bought_together` are left out.
    /// - `*.csv`: `user_id`, `parent_asin`, `rating`, `timestamp`; of `*.train.csv`, `*.valid.csv` and `*.test.csv` that is the
    ///   split.
    Amazon2023,
    /// The Yelp Open Dataset ([description](https://www.yelp.com/dataset/documentation/main)).
    ///
    /// - `*review.json`: `user_id`, `business_id`, `stars`, `text`, `date`.
    /// - `*business.json`: `business_id`, `name`; `categories` (one text) becomes a list; `attributes` come apart, with the
    ///   Python literals in them read.
    /// - `*user.json`: `user_id`; `friends` is left out.
    /// - `*tip.json`: as reviews without stars, only where it is named.
    Yelp,
    /// Steam, version 2 ([description](https://cseweb.ucsd.edu/~jmcauley/datasets.html#steam_data)): Python literals.
    ///
    /// - `steam_reviews.json` or `steam_new.json`: `username` (which is what users are known by; `user_id` where it is
    ///   missing), `product_id`, `text`, `date`. There are no ratings.
    /// - `steam_games.json`: `id`, `app_name` (else `title`); `price` becomes a number, and "Free to Play" 0; addresses are
    ///   left out.
    Steam,
    /// MovieLens ([descriptions](https://grouplens.org/datasets/movielens/)), UTF-8 or Latin-1.
    ///
    /// - 100k: `u.data`, `u.item`, `u.user`; named, also `u1.base` (train) and `u1.test` (test).
    /// - 1m and 10m: `ratings.dat`, `movies.dat`, `users.dat`; ages and occupations are written out.
    /// - latest, 20m, 25m, 32m: `ratings.csv`, `movies.csv`.
    ///
    /// Of "Heat (1995)" the year becomes an attribute; `genres` become a list.
    MovieLens,
    /// RecBole's atomic files ([description](https://recbole.io/docs/user_guide/data/atomic_files.html)): `*.inter`, `*.item`,
    /// `*.user`, with `name:type` in the first row. A `token_seq` is a list, but a title, description or review is its words.
    /// `*.part1.inter`, `part2`, `part3` (or `train`, `valid`, `test`) are splits.
    RecBole,
    /// The files of RLMRec ([repository](https://github.com/HKUDS/RLMRec)).
    ///
    /// - `usr_prf.json`, `itm_prf.json`: one object with `profile` for each id.
    /// - `*_user.json`, `*_item.json`: lines of `uid` or `iid` with the id of the source, which becomes an attribute beside the
    ///   profile.
    /// - `trn*.csv`, `val*.csv`, `tst*.csv`: `user`, `item`, with the split in the name; made of the published matrices.
    ///
    /// Pickles are refused with a line of Python that turns them into one of these.
    RlmRec,
    /// The files of XRec ([repository](https://github.com/HKUDS/XRec)).
    ///
    /// - `item_profile.json`, `user_profile.json`: `iid` or `uid`, and the profile as JSON in a text.
    /// - `item_content.json`: `iid`, with title and attributes in `content`, which complete the profile's row.
    /// - `explanation.json`, `data.json`: `uid`, `iid`, `explanation`.
    /// - `*_trn.csv`, `*_val.csv`, `*_tst.csv`: `user`, `item`.
    XRec,
    /// Apache Parquet with columns as in [`Format::Jsonl`]; needs the feature `parquet`. The line of a row is its number.
    Parquet,
}

impl Format {
    /// Every format that can be named.
    pub const ALL: [Self; 12] = [
        Self::Jsonl,
        Self::Csv,
        Self::Amazon2014,
        Self::Amazon2018,
        Self::Amazon2023,
        Self::Yelp,
        Self::Steam,
        Self::MovieLens,
        Self::RecBole,
        Self::RlmRec,
        Self::XRec,
        Self::Parquet,
    ];

    /// Its name, as it is given on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Jsonl => "jsonl",
            Self::Csv => "csv",
            Self::Amazon2014 => "amazon2014",
            Self::Amazon2018 => "amazon2018",
            Self::Amazon2023 => "amazon2023",
            Self::Yelp => "yelp",
            Self::Steam => "steam",
            Self::MovieLens => "movielens",
            Self::RecBole => "recbole",
            Self::RlmRec => "rlmrec",
            Self::XRec => "xrec",
            Self::Parquet => "parquet",
        }
    }

    /// How its files are read; the first rule that a file's name fits is the one, and the last one fits all.
    pub(super) fn rules(self) -> &'static [Rule] {
        match self {
            Self::Jsonl => formats::JSONL,
            Self::Csv => formats::CSV,
            Self::Amazon2014 => formats::AMAZON_2014,
            Self::Amazon2018 => formats::AMAZON_2018,
            Self::Amazon2023 => formats::AMAZON_2023,
            Self::Yelp => formats::YELP,
            Self::Steam => formats::STEAM,
            Self::MovieLens => formats::MOVIELENS,
            Self::RecBole => formats::RECBOLE,
            Self::RlmRec => formats::RLMREC,
            Self::XRec => formats::XREC,
            Self::Parquet => formats::PARQUET,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let known = Self::ALL.into_iter().find(|format| format.as_str() == text);
        known.ok_or_else(|| Error::Setting {
            name: "format",
            value: format!("{text:?}"),
            reason: "is not jsonl, csv, amazon2014, amazon2018, amazon2023, yelp, steam, movielens, recbole, rlmrec, xrec or \
                     parquet",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_is_known_by_its_name() {
        for format in Format::ALL {
            assert_eq!(format.as_str().parse::<Format>().unwrap(), format);
            assert_eq!(serde_json::to_value(format).unwrap(), format.as_str());
            let last = format.rules().last().unwrap();
            assert!(last.fits("anything.else").is_some(), "{format}");
            let said = "xml".parse::<Format>().unwrap_err().to_string();
            assert!(said.contains(format.as_str()), "{said}");
        }
    }
}
