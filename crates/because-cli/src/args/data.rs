use std::path::PathBuf;

use because::graph::{Amount, Format, Moment, Ratio, SplitStrategy};
use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// What the files are: jsonl, csv, amazon2014, amazon2018, amazon2023, yelp, steam, movielens, recbole, rlmrec, xrec, or
    /// parquet in a build with that feature.
    #[arg(required_unless_present = "from_config")]
    pub(crate) format: Option<Format>,
    /// Files, or a folder that holds them; .gz and .zst are read as they are.
    #[arg(required_unless_present = "from_config")]
    pub(crate) paths: Vec<PathBuf>,
    /// The project directory to write; with --from-config the folder of that file where it is not said.
    #[arg(long, required_unless_present = "from_config")]
    pub(crate) out: Option<PathBuf>,
    /// Import as the [import] of this because.toml says; what else is given here goes before it.
    #[arg(long, value_name = "FILE")]
    pub(crate) from_config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) filter: Filters,
    /// How to split: random, time, user-time, leave-one-out, user-disjoint, item-disjoint, or rows as they say themselves.
    /// Where every row names its split, that is kept unless this is given; else it is random.
    #[arg(long)]
    pub(crate) split: Option<SplitStrategy>,
    /// Train, valid and test shares of the split; 8:1:1 where it is not said.
    #[arg(long)]
    pub(crate) ratio: Option<Ratio>,
    /// The seed of everything that is drawn; 0 where it is not said.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    #[command(flatten)]
    pub(crate) cold: ColdNodes,
}

/// What is left out, in the order in which it is.
#[derive(Debug, Args)]
pub(crate) struct Filters {
    /// Leave out what happened before: a date (2018-01-31) or seconds since 1970.
    #[arg(long, value_name = "WHEN")]
    pub(crate) from: Option<Moment>,
    /// Leave out what happened then or later.
    #[arg(long, value_name = "WHEN")]
    pub(crate) to: Option<Moment>,
    /// Leave out interactions rated lower, or not rated.
    #[arg(long)]
    pub(crate) min_rating: Option<f64>,
    /// Keep so many users (1000) or such a share of them (0.2), drawn by seed.
    #[arg(long, value_name = "AMOUNT")]
    pub(crate) sample_users: Option<Amount>,
    /// Keep the latest so many interactions of each user.
    #[arg(long, value_name = "N")]
    pub(crate) max_per_user: Option<usize>,
    /// Keep only users and items with this many interactions among those kept.
    #[arg(long, value_name = "K")]
    pub(crate) k_core: Option<usize>,
    /// The same bound for users alone.
    #[arg(long, value_name = "K")]
    pub(crate) k_core_users: Option<usize>,
    /// The same bound for items alone.
    #[arg(long, value_name = "K")]
    pub(crate) k_core_items: Option<usize>,
}

/// Who is made cold.
#[derive(Debug, Args)]
pub(crate) struct ColdNodes {
    /// Make so many users cold (200), or such a share of those it can be done with (0.1): hide all but a few of their train
    /// interactions.
    #[arg(long, value_name = "AMOUNT")]
    pub(crate) cold_users: Option<Amount>,
    /// The same for items.
    #[arg(long, value_name = "AMOUNT")]
    pub(crate) cold_items: Option<Amount>,
    /// How many train interactions a cold one keeps; each gets one of these numbers. 0,1,2,3,4 where it is not said.
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',')]
    pub(crate) cold_keep: Option<Vec<u32>>,
}

#[derive(Debug, Args)]
pub(crate) struct Graph {
    /// The project directory.
    pub(crate) dir: PathBuf,
    /// Look for leaks between splits and for contradictions.
    #[arg(long)]
    pub(crate) check: bool,
    /// With --check: end with code 1 if a leak is found. Warnings are none.
    #[arg(long, requires = "check")]
    pub(crate) strict: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Cold {
    /// The project directory to read; it stays as it is.
    pub(crate) dir: PathBuf,
    /// The project directory to write. Profiles are not taken along, since they know what is hidden now.
    #[arg(long)]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) nodes: ColdNodes,
    /// The seed of the sample.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
}
