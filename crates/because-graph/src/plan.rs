//! What happens to interactions between reading and writing: filters, the split, cold nodes.

mod amount;
mod cold;
mod filter;
mod moment;

use because_core::Split;
use serde::{Deserialize, Serialize};

pub use self::amount::Amount;
pub use self::cold::{ColdNode, ColdStart};
pub use self::filter::{Counts, Filter, Step};
pub use self::moment::Moment;
use crate::lots::Lots;
use crate::split::draw;
use crate::table::Table;
use crate::{Error, Ratio, Result, SplitSource, SplitStrategy};

/// Everything that is decided about interactions after they were read. First the filters, in the order of [`Filter`]'s
/// fields; then the split; last the cold nodes. The same interactions, plan and seed give the same answer whatever the order
/// of the rows.
///
/// ```
/// use because_graph::{Plan, SplitStrategy};
///
/// let mut plan = Plan::default();
/// plan.filter.from = Some("2018-01-01".parse()?);
/// plan.filter.k_core_users = Some(5);
/// plan.split = Some(SplitStrategy::UserTime);
/// plan.seed = 7;
/// # Ok::<(), because_graph::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Plan {
    /// The lot of everything that is drawn.
    pub seed: u64,
    /// How to split. Without it the rows' own splits are kept where every interaction left has one, and drawn by
    /// [`SplitStrategy::Random`] where not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split: Option<SplitStrategy>,
    /// The proportions of train, valid and test.
    pub ratio: Ratio,
    /// What is left out.
    pub filter: Filter,
    /// Who is made cold.
    #[serde(skip_serializing_if = "ColdStart::is_nobody")]
    pub cold: ColdStart,
}

/// What a plan made of a table.
#[derive(Debug)]
pub(crate) struct Applied {
    /// The split of each row of the table; `None` where a filter left it out.
    pub(crate) splits: Vec<Option<Split>>,
    /// What was there before the first filter.
    pub(crate) before: Counts,
    /// What each filter of the plan removed, in the order they were run.
    pub(crate) steps: Vec<Step>,
    /// For each user of the table the place in `steps` of the filter that took its last interaction; `None` for those that
    /// keep one and for those that had none before.
    pub(crate) users_lost: Vec<Option<u8>>,
    /// The same for each item.
    pub(crate) items_lost: Vec<Option<u8>>,
    /// Who decided the splits.
    pub(crate) split: SplitSource,
    /// Rows left that brought a split which was not kept.
    pub(crate) splits_replaced: u64,
    /// Who was made cold, users first, each side by id.
    pub(crate) cold: Vec<ColdNode>,
}

impl Plan {
    /// Runs the plan over a table in which no user and item come twice. Where the filters leave nothing there is nothing to
    /// split either, and the answer says only which filter took what.
    ///
    /// # Errors
    /// When a setting makes no sense, a split by time meets a row without one, the rows' own splits are asked for and one has
    /// none, or nobody can be made cold.
    pub(crate) fn apply(&self, table: &Table) -> Result<Applied> {
        self.check()?;
        if u32::try_from(table.rows.len()).is_err() {
            return Err(Error::TooLarge {
                what: "interactions",
                count: table.rows.len(),
            });
        }
        let lots = Lots::new(table, self.seed);
        let filtered = self.filter.run(table, &lots);
        let kept: Vec<u32> = (0..)
            .zip(&filtered.kept)
            .filter(|(_, kept)| **kept)
            .map(|(row, _)| row)
            .collect();
        let brought = kept
            .iter()
            .filter(|&&row| table.rows[row as usize].split.is_some())
            .count();
        let strategy = match self.split {
            Some(strategy) => strategy,
            None if brought == kept.len() => SplitStrategy::Rows,
            None => SplitStrategy::default(),
        };
        let mut splits = vec![None; table.rows.len()];
        let mut cold = Vec::new();
        if !kept.is_empty() {
            draw(strategy, self.ratio, table, &lots, kept, &mut splits)?;
            cold = self.cold.run(table, &lots, &mut splits)?;
        }
        Ok(Applied {
            splits,
            before: filtered.before,
            steps: filtered.steps,
            users_lost: filtered.users_lost,
            items_lost: filtered.items_lost,
            split: SplitSource::of(strategy, self.ratio, self.seed),
            splits_replaced: match strategy {
                SplitStrategy::Rows => 0,
                _ => brought as u64,
            },
            cold,
        })
    }

    /// Looks at the settings alone.
    ///
    /// # Errors
    /// When one of them makes no sense.
    pub fn check(&self) -> Result<()> {
        self.filter.check()?;
        self.cold.check()
    }
}
