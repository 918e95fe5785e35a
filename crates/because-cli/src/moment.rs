//! Moments and spans as people write them. Everything is in UTC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY: u64 = 86_400;

/// `45s`, `90m`, `12h`, `30d`, `2w`.
pub(crate) fn span(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let cut = text
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(cut);
    let scale = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => DAY,
        "w" => 7 * DAY,
        _ => 0,
    };
    match number.parse::<u64>() {
        Ok(number) if scale > 0 => number
            .checked_mul(scale)
            .filter(|seconds| *seconds <= 1000 * 366 * DAY)
            .map(Duration::from_secs)
            .ok_or_else(|| format!("{text:?} is longer than a thousand years")),
        _ => Err(format!(
            "{text:?} is no span; write a number and s, m, h, d or w, as in 30d"
        )),
    }
}

/// A date, a date with a time, or a span ago.
pub(crate) fn moment(text: &str) -> Result<SystemTime, String> {
    if let Ok(ago) = span(text) {
        let earliest = UNIX_EPOCH;
        return Ok(SystemTime::now()
            .checked_sub(ago)
            .map_or(earliest, |moment| moment.max(earliest)));
    }
    date(text.trim())
        .map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds))
        .ok_or_else(|| {
            format!("{text:?} is no moment; write 2026-03-31, 2026-03-31T18:00 or a span as in 30d")
        })
}

/// `2026-03-31 18:00:05`.
pub(crate) fn shown(unix: i64) -> String {
    let seconds = unix.rem_euclid(DAY as i64);
    let (year, month, day) = civil(unix.div_euclid(DAY as i64));
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

/// Seconds since 1970.
fn date(text: &str) -> Option<u64> {
    let text = text.strip_suffix('Z').unwrap_or(text);
    let (date, time) = match text.split_once(['T', ' ']) {
        Some((date, time)) => (date, Some(time)),
        None => (text, None),
    };
    let numbers = |text: &str, between: char| -> Option<Vec<u64>> {
        text.split(between)
            .map(|part| {
                let digits = part.bytes().all(|byte| byte.is_ascii_digit());
                part.parse()
                    .ok()
                    .filter(|_| digits && (2..=4).contains(&part.len()))
            })
            .collect()
    };
    let &[year, month, day] = numbers(date, '-')?.as_slice() else {
        return None;
    };
    let (hour, minute, second) = match time {
        None => (0, 0, 0),
        Some(time) => match *numbers(time, ':')?.as_slice() {
            [hour, minute] => (hour, minute, 0),
            [hour, minute, second] => (hour, minute, second),
            _ => return None,
        },
    };
    if year < 1970 || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let days = days(year as i64, month as i64, day as i64);
    // The thirtieth of February comes back as another day.
    if civil(days) != (year as i64, month as i64, day as i64) {
        return None;
    }
    Some(days as u64 * DAY + hour * 3600 + minute * 60 + second)
}

/// Days since 1970. Years begin in March here, so that the day that is not always there is the last one.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year
        - 719_468
}

/// The year, month and day that [`days`] came from.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (year, month) = if month < 10 {
        (0, month + 3)
    } else {
        (1, month - 9)
    };
    (era * 400 + year_of_era + year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_with_their_units() {
        for (text, seconds) in [
            ("45s", 45),
            ("90m", 5400),
            ("12h", 43_200),
            ("30d", 30 * DAY),
            ("2w", 14 * DAY),
        ] {
            assert_eq!(span(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in [
            "",
            "d",
            "30",
            "30 years",
            "-1d",
            "1.5h",
            "99999999999999999999d",
            "999999999999d",
        ] {
            assert!(span(text).is_err(), "{text}");
        }
    }

    #[test]
    fn dates_are_read_and_shown() {
        for (text, unix) in [
            ("1970-01-01", 0),
            ("2000-02-29", 951_782_400),
            ("2026-11-22T14:03:05Z", 1_795_356_185),
            ("2026-11-22 14:03", 1_795_356_180),
        ] {
            assert_eq!(date(text), Some(unix), "{text}");
        }
        assert_eq!(shown(1_795_356_185), "2026-11-22 14:03:05");
        for text in [
            "2026-02-30",
            "2026-13-01",
            "2026-00-01",
            "2026-1",
            "yesterday",
            "1969-12-31",
            "2026-11-22T25:00",
            "2026-11-22T",
            "+026-11-22",
        ] {
            assert_eq!(date(text), None, "{text}");
        }
    }

    #[test]
    fn every_day_comes_back() {
        for day in 0..200_000 {
            let (year, month, date) = civil(day);
            assert_eq!(days(year, month, date), day);
        }
    }

    #[test]
    fn a_span_is_so_long_ago() {
        let two_hours = moment("2h").unwrap();
        let ago = SystemTime::now().duration_since(two_hours).unwrap();
        assert!((7200..7260).contains(&ago.as_secs()), "{ago:?}");
        // Before the first moment that can be written, there was nothing.
        assert_eq!(moment("30000d").unwrap(), UNIX_EPOCH);
    }
}
