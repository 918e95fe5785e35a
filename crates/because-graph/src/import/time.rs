use serde_json::Value;

/// Above this a number of seconds would lie after the year 5138, so it counts milliseconds; above a thousand times as much
/// microseconds, and again nanoseconds (as data frames write times).
const MILLISECONDS_FROM: f64 = 1e11;

/// Seconds since 1970 (UTC) from what data sets write: seconds or milliseconds as a number or as digits, or a date
/// `YYYY-MM-DD`, optionally with `HH:MM[:SS[.fraction]]` and `Z` or an offset, or Amazon's `MM D, YYYY`.
pub(crate) fn seconds(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => from_number(number.as_f64()?),
        Value::String(text) => from_text(text),
        _ => None,
    }
}

pub(super) fn from_text(text: &str) -> Option<i64> {
    let text = text.trim();
    if let Ok(whole) = text.parse() {
        return from_whole(whole);
    }
    match text.parse() {
        Ok(number) => from_number(number),
        Err(_) => from_date(text),
    }
}

pub(super) fn from_whole(number: i64) -> Option<i64> {
    if number.unsigned_abs() <= MILLISECONDS_FROM as u64 {
        return Some(number);
    }
    from_number(number as f64)
}

pub(super) fn from_number(number: f64) -> Option<i64> {
    let mut seconds = number;
    for _ in 0..3 {
        if seconds.abs() > MILLISECONDS_FROM {
            seconds /= 1000.0;
        }
    }
    // Beyond 2^53 a float no longer names single seconds, and no clock goes there.
    (seconds.abs() < 9e15).then(|| seconds.floor() as i64)
}

fn from_date(text: &str) -> Option<i64> {
    let (date, clock) = match text.split_once(['T', 't', ' ']) {
        Some((date, clock)) => (date, clock.trim_start()),
        None => (text, "00:00"),
    };
    let ([year, month, day], clock) = match numbers(date, '-', [4, 2, 2]) {
        Some(date) => (date, clock),
        None => (amazon_date(text)?, "00:00"),
    };
    if !(1..=12).contains(&month) || !(1..=days_in_month(year, month)).contains(&day) {
        return None;
    }
    Some(days_since_1970(year, month, day) * 86_400 + seconds_of_day(clock)?)
}

/// "09 13, 2009" and "09 3, 2009".
fn amazon_date(text: &str) -> Option<[i64; 3]> {
    let (month, rest) = text.split_once(' ')?;
    let (day, year) = rest.split_once(", ")?;
    Some([
        number(year, 4)?,
        number(month, 2)?,
        number(day, day.len().clamp(1, 2))?,
    ])
}

fn seconds_of_day(clock: &str) -> Option<i64> {
    let utc = clock.strip_suffix(['Z', 'z']);
    let (clock, offset) = if let Some(clock) = utc.or_else(|| clock.strip_suffix(" UTC")) {
        (clock, 0)
    } else if let Some(sign) = clock.rfind(['+', '-']) {
        let digits = &clock[sign + 1..];
        let [hours, minutes] = numbers(digits, ':', [2, 2]).or_else(|| {
            // Databases write whole hours alone: +00.
            let (hours, minutes) = digits.split_at_checked(2)?;
            let minutes = if minutes.is_empty() { "00" } else { minutes };
            Some([number(hours, 2)?, number(minutes, 2)?])
        })?;
        if hours > 23 || minutes > 59 {
            return None;
        }
        let east = hours * 3600 + minutes * 60;
        let east = if clock[sign..].starts_with('-') {
            -east
        } else {
            east
        };
        (&clock[..sign], east)
    } else {
        (clock, 0)
    };
    let clock = clock.trim_end();
    let whole = match clock.split_once('.') {
        Some((whole, fraction)) => {
            let digits = !fraction.is_empty() && fraction.bytes().all(|b| b.is_ascii_digit());
            (digits && whole.len() == 8).then_some(whole)?
        }
        None => clock,
    };
    let [hours, minutes, seconds] = match numbers(whole, ':', [2, 2]) {
        Some([hours, minutes]) => [hours, minutes, 0],
        None => numbers(whole, ':', [2, 2, 2])?,
    };
    // 60 is a leap second; it counts as the first of the next minute.
    (hours < 24 && minutes < 60 && seconds <= 60)
        .then_some(hours * 3600 + minutes * 60 + seconds - offset)
}

/// Numbers of exactly these many digits with `between` between them.
fn numbers<const N: usize>(text: &str, between: char, digits: [usize; N]) -> Option<[i64; N]> {
    let mut parts = text.split(between);
    let mut found = [0; N];
    for (found, digits) in found.iter_mut().zip(digits) {
        *found = number(parts.next()?, digits)?;
    }
    parts.next().is_none().then_some(found)
}

fn number(text: &str, digits: usize) -> Option<i64> {
    let plain = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days in the proleptic Gregorian calendar, counted in years that begin in March so that the leap day comes last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let from_march = (month + 9) % 12;
    let year = if month <= 2 { year - 1 } else { year };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // 719468 days lie between 1 March of the year 0 and 1 January 1970.
    year * 365 + leap_days + (from_march * 153 + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_data_sets_write_is_read() {
        // The expected values are of `date -u -d ... +%s`.
        for (written, expected) in [
            (json!(1_531_001_351), 1_531_001_351),
            (json!("1531001351"), 1_531_001_351),
            (json!(1_531_001_351_123_i64), 1_531_001_351),
            (json!(1_531_001_351.9), 1_531_001_351),
            (json!(-5), -5),
            (json!("2018-07-07"), 1_530_921_600),
            (json!("2018-07-07 22:09:11"), 1_531_001_351),
            (json!("2018-07-07T22:09:11Z"), 1_531_001_351),
            (json!("2018-07-07T22:09"), 1_531_001_340),
            (json!("2018-07-08T00:09:11.250+02:00"), 1_531_001_351),
            (json!("2018-07-07 17:09:11 -0500"), 1_531_001_351),
            (json!("2018-07-07 22:09:11.5+00"), 1_531_001_351),
            (json!("2018-07-07 22:09:11 UTC"), 1_531_001_351),
            (json!("2000-02-29"), 951_782_400),
            (json!("09 13, 2009"), 1_252_800_000),
            (json!("09 3, 2009"), 1_251_936_000),
            (json!("1531001351123"), 1_531_001_351),
            (json!(1_531_001_351_123_456_i64), 1_531_001_351),
            (json!(1_531_001_351_123_456_789_i64), 1_531_001_351),
            (json!("891717742.0"), 891_717_742),
            (json!(" 1531001351 "), 1_531_001_351),
            (json!("1969-12-31T23:59:59Z"), -1),
            (json!("0001-01-01"), -62_135_596_800),
        ] {
            assert_eq!(seconds(&written), Some(expected), "{written}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for wrong in [
            json!("yesterday"),
            json!("2018-13-01"),
            json!("1900-02-29"),
            json!("2018-7-7"),
            json!("2018-07-07T24:00"),
            json!("2018-07-07T22:60"),
            json!("09 31, 2009"),
            json!("13 1, 2009"),
            json!("09 , 2009"),
            json!("09 13 2009"),
            json!("9 13, 2009"),
            json!("2018-07-07Tü"),
            json!("2018-07-07+é1"),
            json!("NaN"),
            json!("inf"),
            json!(1e300),
            json!(true),
            json!([1]),
            json!(""),
        ] {
            assert_eq!(seconds(&wrong), None, "{wrong}");
        }
    }
}
