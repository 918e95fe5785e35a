use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long a `Retry-After` asks for: whole or broken seconds, or a date as in `Sun, 06 Nov 1994 08:49:37 GMT`; a date that
/// has passed asks for nothing.
pub(super) fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds.max(0.0)).ok();
    }
    let until = UNIX_EPOCH + Duration::from_secs(unix_seconds(value)?);
    Some(until.duration_since(now).unwrap_or_default())
}

fn unix_seconds(date: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let mut words = date.split_once(", ")?.1.split_ascii_whitespace();
    let day: u64 = words.next()?.parse().ok()?;
    let month = words.next()?;
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let year: u64 = words.next()?.parse().ok()?;
    let clock: Vec<u64> = words
        .next()?
        .split(':')
        .map(str::parse)
        .collect::<Result<_, _>>()
        .ok()?;
    let [hour, minute, second] = clock[..] else {
        return None;
    };
    if !(1970..=9999).contains(&year)
        || !(1..=31).contains(&day)
        || hour > 23
        || minute > 59
        || second > 60
    {
        return None;
    }
    // Days since the epoch, in years that begin in March so that the leap day is the last.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    let since_1970 = days.checked_sub(719_468)?;
    Some(since_1970 * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_dates_are_read() {
        // 784111777 is the date that RFC 9110 gives as its example.
        let now = UNIX_EPOCH + Duration::from_secs(784_111_770);
        let secs = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT", now), secs(7));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:17 GMT", now), secs(0));
        assert_eq!(
            retry_after("Thu, 29 Feb 2024 00:00:00 GMT", UNIX_EPOCH),
            secs(1_709_164_800)
        );
        assert_eq!(retry_after(" 20 ", now), secs(20));
        assert_eq!(retry_after("0.5", now), Some(Duration::from_millis(500)));
        assert_eq!(retry_after("-1", now), secs(0));
        for nonsense in [
            "soon",
            "",
            "Sun, 06 Foo 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 8h GMT",
            "1e400",
            "NaN",
        ] {
            assert_eq!(
                retry_after(nonsense, now).filter(|wait| !wait.is_zero()),
                None,
                "{nonsense}"
            );
        }
    }
}
