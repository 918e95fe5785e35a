use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::import::time;
use crate::{Error, Result};

/// A point in time, written as a date (`2018-01-31`, at its beginning in UTC), as a date with a clock
/// (`2018-01-31T12:00:00Z`), or in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub i64);

impl Moment {
    /// Seconds since 1970.
    #[must_use]
    pub fn seconds(self) -> i64 {
        self.0
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, clock) = (self.0.div_euclid(86_400), self.0.rem_euclid(86_400));
        let (year, month, day) = civil(days);
        if !(0..=9999).contains(&year) {
            return self.0.fmt(f);
        }
        write!(f, "{year:04}-{month:02}-{day:02}")?;
        if clock == 0 {
            return Ok(());
        }
        let (hours, minutes, seconds) = (clock / 3600, clock / 60 % 60, clock % 60);
        write!(f, "T{hours:02}:{minutes:02}:{seconds:02}Z")
    }
}

impl FromStr for Moment {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = |reason| Error::Setting {
            name: "date",
            value: format!("{text:?}"),
            reason,
        };
        // In seconds it would be an hour of 1970, and nobody would notice.
        if matches!(text.trim().parse(), Ok(1900..=2100)) {
            return Err(refused("is a year; write a date like 2018-01-31"));
        }
        time::seconds(&serde_json::Value::String(text.to_owned()))
            .map(Self)
            .ok_or_else(|| refused("is neither a date like 2018-01-31 nor seconds since 1970"))
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Written;

        impl serde::de::Visitor<'_> for Written {
            type Value = Moment;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a date in quotes like \"2018-01-31\", or seconds since 1970")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Moment, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_i64<E: serde::de::Error>(self, seconds: i64) -> Result<Moment, E> {
                seconds.to_string().parse().map_err(E::custom)
            }

            fn visit_u64<E: serde::de::Error>(self, seconds: u64) -> Result<Moment, E> {
                seconds.to_string().parse().map_err(E::custom)
            }
        }

        from.deserialize_any(Written)
    }
}

/// Year, month and day of a day since 1970 in the proleptic Gregorian calendar, counted in eras of 400 years that begin on
/// 1 March.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = (from_march + 2) % 12 + 1;
    (year + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(seconds in -60_000_000_000_i64..90_000_000_000) {
            let moment = Moment(seconds);
            prop_assert_eq!(moment.to_string().parse::<Moment>().unwrap(), moment);
        }
    }

    #[test]
    fn a_date_is_shown_as_short_as_it_can_be() {
        for (seconds, shown) in [
            (1_530_921_600, "2018-07-07"),
            (1_531_001_351, "2018-07-07T22:09:11Z"),
            (951_782_400, "2000-02-29"),
            (-1, "1969-12-31T23:59:59Z"),
        ] {
            assert_eq!(Moment(seconds).to_string(), shown);
        }
        assert_eq!(serde_json::from_str::<Moment>("5").unwrap(), Moment(5));
        let said = "soon".parse::<Moment>().unwrap_err().to_string();
        assert!(said.starts_with("date \"soon\" is neither"), "{said}");
        let said = "2018".parse::<Moment>().unwrap_err().to_string();
        assert!(said.starts_with("date \"2018\" is a year"), "{said}");
    }
}
