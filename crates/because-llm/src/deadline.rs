use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// Until when calls may begin: so long from now, or a moment.
///
/// ```
/// use std::time::Duration;
/// use because_llm::Deadline;
///
/// assert_eq!("2h30m".parse::<Deadline>()?, Deadline::In(Duration::from_secs(9000)));
/// let moment: Deadline = "2026-11-24T08:00:00+01:00".parse()?;
/// assert_eq!(moment.to_string(), "2026-11-24T07:00:00Z");
/// # Ok::<(), because_llm::DeadlineError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Deadline {
    /// So long after the run has begun, as `90s`, `45m`, `2h30m` or `1d12h`.
    In(Duration),
    /// This moment, as RFC 3339 writes it: `2026-11-24T08:00:00Z`.
    At(SystemTime),
}

/// A deadline that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("deadline {0:?} is neither a span like 2h30m nor a moment like 2026-11-24T08:00:00Z")]
pub struct DeadlineError(String);

impl Deadline {
    /// The moment, for a run that begins then.
    #[must_use]
    pub fn after(self, begun: SystemTime) -> SystemTime {
        match self {
            Self::In(span) => begun.checked_add(span).unwrap_or(begun),
            Self::At(moment) => moment,
        }
    }
}

impl FromStr for Deadline {
    type Err = DeadlineError;

    fn from_str(text: &str) -> Result<Self, DeadlineError> {
        let given = text.trim();
        span(given)
            .map(Self::In)
            .or_else(|| moment(given).map(Self::At))
            .ok_or_else(|| DeadlineError(text.to_owned()))
    }
}

impl TryFrom<String> for Deadline {
    type Error = DeadlineError;

    fn try_from(text: String) -> Result<Self, DeadlineError> {
        text.parse()
    }
}

impl From<Deadline> for String {
    fn from(deadline: Deadline) -> Self {
        deadline.to_string()
    }
}

impl fmt::Display for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::In(span) => {
                let mut left = span.as_secs();
                if left == 0 {
                    return f.write_str("0s");
                }
                for (unit, seconds) in UNITS {
                    if left >= seconds {
                        write!(f, "{}{unit}", left / seconds)?;
                        left %= seconds;
                    }
                }
                Ok(())
            }
            Self::At(moment) => f.write_str(&rfc3339(*moment)),
        }
    }
}

const UNITS: [(char, u64); 4] = [('d', 86_400), ('h', 3600), ('m', 60), ('s', 1)];

/// Numbers with units, each unit smaller than the one before it.
fn span(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds: u64 = 0;
    let mut units = UNITS.iter();
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        let unit = rest[digits..].chars().next()?;
        let (_, scale) = units.find(|(name, _)| *name == unit.to_ascii_lowercase())?;
        seconds = seconds.checked_add(number.checked_mul(*scale)?)?;
        rest = &rest[digits + unit.len_utf8()..];
    }
    (!text.is_empty()).then(|| Duration::from_secs(seconds))
}

fn moment(text: &str) -> Option<SystemTime> {
    let (date, clock) = text.split_once(['T', 't', ' '])?;
    let mut date = date.splitn(3, '-').map(|part| number(part, part.len()));
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (clock, offset) = match clock.find(['Z', 'z', '+', '-']) {
        Some(at) if clock[at..].eq_ignore_ascii_case("z") => (&clock[..at], 0),
        Some(at) => {
            let (hours, minutes) = clock[at + 1..].split_once(':')?;
            let east = number(hours, 2)? * 3600 + number(minutes, 2)? * 60;
            let sign = if clock[at..].starts_with('-') { -1 } else { 1 };
            (&clock[..at], sign * east)
        }
        None => return None,
    };
    let clock = clock.split_once('.').map_or(clock, |(whole, _)| whole);
    let mut clock = clock.splitn(3, ':').map(|part| number(part, 2));
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let in_range = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=days_in_month(year, month)).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..=60).contains(&second);
    let seconds = days_since_1970(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
    in_range
        .then(|| u64::try_from(seconds - offset).ok())?
        .map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

fn number(digits: &str, length: usize) -> Option<i64> {
    let right = digits.len() == length && digits.bytes().all(|digit| digit.is_ascii_digit());
    right.then(|| digits.parse().ok())?
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Counted in years that begin in March, so that the leap day is a year's last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let months = (month + 9) % 12;
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * months + 2) / 5 + day - 1;
    days - 719_468
}

/// A moment in UTC, to the second.
pub(crate) fn rfc3339(moment: SystemTime) -> String {
    let seconds = moment
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let (days, clock) = (seconds / 86_400, seconds % 86_400);
    // From the first of March of the year 0, in eras of 400 years.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let months = (5 * of_year + 2) / 153;
    let day = of_year - (153 * months + 2) / 5 + 1;
    let month = if months < 10 { months + 3 } else { months - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        clock / 3600,
        clock / 60 % 60,
        clock % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_moments_come_back_as_they_are_written() {
        for text in [
            "90s",
            "45m",
            "2h30m",
            "1d12h",
            "0s",
            "2026-11-24T08:00:00Z",
            "2024-02-29T23:59:59Z",
            "1970-01-01T00:00:00Z",
            "2000-03-01T00:00:00Z",
        ] {
            let deadline: Deadline = text.parse().unwrap();
            let again: Deadline = deadline.to_string().parse().unwrap();
            assert_eq!(deadline, again, "{text}");
        }
        assert_eq!("90s".parse::<Deadline>().unwrap().to_string(), "1m30s");
        let west: Deadline = "2024-02-29T20:00:00.5-05:30".parse().unwrap();
        assert_eq!(west.to_string(), "2024-03-01T01:30:00Z");
    }

    #[test]
    fn what_is_neither_is_refused() {
        for text in [
            "",
            "2",
            "h",
            "30m2h",
            "2h2h",
            "2 h",
            "tomorrow",
            "2026-11-24",
            "2026-11-24T08:00:00",
            "2026-02-29T08:00:00Z",
            "2026-13-01T08:00:00Z",
            "99999999999999999999d",
        ] {
            assert!(text.parse::<Deadline>().is_err(), "{text}");
        }
    }
}
