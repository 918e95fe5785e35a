use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// So many, or such a share: `200`, or `0.1` for a tenth.
///
/// ```
/// use because_graph::Amount;
///
/// let tenth: Amount = "0.1".parse()?;
/// assert_eq!((tenth, tenth.of(250)), (Amount::Share(0.1), 25));
/// assert_eq!("200".parse::<Amount>()?.of(150), 150, "there are no more");
/// # Ok::<(), because_graph::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Amount {
    /// A number of users or items.
    Count(u64),
    /// Above 0 and at most 1, rounded to the nearest whole number of them and to one at least.
    Share(f64),
}

impl Amount {
    /// How many that is of so many.
    #[must_use]
    pub fn of(self, all: usize) -> usize {
        match self {
            Self::Count(count) => usize::try_from(count).unwrap_or(usize::MAX).min(all),
            // A share of at most 1 of a length is at most that length.
            Self::Share(share) => ((share * all as f64).round() as usize).clamp(all.min(1), all),
        }
    }

    pub(super) fn check(self, name: &'static str) -> Result<()> {
        let reason = match self {
            Self::Count(0) => "is nobody",
            Self::Share(share) if !(share > 0.0 && share <= 1.0) => {
                "is no share above 0 and at most 1 (write a count without a point)"
            }
            _ => return Ok(()),
        };
        Err(Error::Setting {
            name,
            value: self.to_string(),
            reason,
        })
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => count.fmt(f),
            // With its point, so that it is read as a share again.
            Self::Share(share) => write!(f, "{share:?}"),
        }
    }
}

impl FromStr for Amount {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let amount = match text.parse() {
            Ok(count) => Some(Self::Count(count)),
            Err(_) => text.parse().ok().map(Self::Share),
        };
        let amount = amount.ok_or_else(|| Error::Setting {
            name: "amount",
            value: format!("{text:?}"),
            reason: "is neither a whole number nor a share like 0.1",
        })?;
        amount.check("amount")?;
        Ok(amount)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_and_a_share_are_told_apart_by_the_point() {
        for (text, amount) in [
            ("1", Amount::Count(1)),
            ("1.0", Amount::Share(1.0)),
            (" 0.25 ", Amount::Share(0.25)),
        ] {
            let read: Amount = text.parse().unwrap();
            assert_eq!(read, amount);
            assert_eq!(read.to_string().parse::<Amount>().unwrap(), amount);
            let json = serde_json::to_string(&read).unwrap();
            assert_eq!(serde_json::from_str::<Amount>(&json).unwrap(), amount);
        }
        for wrong in ["0", "0.0", "1.5", "-1", "NaN", "some", ""] {
            assert!(wrong.parse::<Amount>().is_err(), "{wrong}");
        }
        assert_eq!(Amount::Share(0.01).of(3), 1, "a share is never nobody");
        assert_eq!(Amount::Share(0.01).of(0), 0);
    }
}
