use std::time::{Duration, SystemTime};

use reqwest::header::HeaderMap;

use super::http_date::retry_after;
use crate::RateLimits;

/// No reset is farther away than this; what is, was misread.
const FARTHEST: Duration = Duration::from_secs(2 * 24 * 3600);

/// What the headers of an answer say: `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`, as OpenAI, Azure, Groq and
/// most gateways write them.
pub(super) fn rate_limits(headers: &HeaderMap, now: SystemTime) -> Option<RateLimits> {
    let mut limits = RateLimits::default();
    let mut any = false;
    for (name, value) in headers {
        let rest = name.as_str().strip_prefix("x-ratelimit-");
        let Some((field, kind)) = rest.and_then(|rest| rest.split_once('-')) else {
            continue;
        };
        let Ok(value) = value.to_str() else {
            continue;
        };
        let allowance = match kind {
            "requests" => limits.requests.get_or_insert_default(),
            "tokens" => limits.tokens.get_or_insert_default(),
            _ => continue,
        };
        let count = || value.trim().parse::<f64>().ok().map(|count| count as u64);
        match field {
            "limit" => allowance.limit = count(),
            "remaining" => allowance.remaining = count(),
            "reset" => allowance.resets_in = resets_in(value, now),
            _ => continue,
        }
        any = true;
    }
    any.then_some(limits)
}

/// `6m0s`, `1s`, `20ms`, `1h2m3.5s`, plain seconds, or a moment in RFC 3339 or as HTTP dates are written.
fn resets_in(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    let wait = parts(value)
        .or_else(|| moment(value, now))
        .or_else(|| retry_after(value, now))?;
    (wait <= FARTHEST).then_some(wait)
}

fn parts(value: &str) -> Option<Duration> {
    let mut seconds = 0.0;
    let mut rest = Some(value).filter(|value| !value.is_empty())?;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest
            .find(|c: char| !c.is_alphabetic())
            .unwrap_or(rest.len());
        seconds += number
            * match &rest[..letters] {
                "d" => 86_400.0,
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
        rest = &rest[letters..];
    }
    Duration::try_from_secs_f64(seconds).ok()
}

/// `2026-11-23T10:00:00Z`: rewritten as the date that HTTP knows, because the calendar is read there.
fn moment(value: &str, now: SystemTime) -> Option<Duration> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let (date, time) = value.strip_suffix('Z')?.split_once('T')?;
    let [year, month, day]: [&str; 3] = date.split('-').collect::<Vec<_>>().try_into().ok()?;
    let month = MONTHS.get(month.parse::<usize>().ok()?.checked_sub(1)?)?;
    let whole = time.split('.').next()?;
    retry_after(&format!("Day, {day} {month} {year} {whole} GMT"), now)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::Allowance;

    fn read(lines: &[(&'static str, &str)]) -> Option<RateLimits> {
        let headers = lines
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect();
        rate_limits(&headers, UNIX_EPOCH + Duration::from_secs(784_111_770))
    }

    #[test]
    fn requests_and_tokens_are_read_and_what_is_no_number_is_not() {
        let requests = Some(Allowance {
            limit: Some(500),
            remaining: Some(499),
            resets_in: Some(Duration::from_millis(120)),
        });
        let tokens = Some(Allowance {
            limit: Some(30_000),
            remaining: Some(0),
            resets_in: Some(Duration::from_secs(7)),
        });
        let expected = Some(RateLimits { requests, tokens });
        assert_eq!(
            read(&[
                ("x-ratelimit-limit-requests", "500"),
                ("x-ratelimit-remaining-requests", "499"),
                ("x-ratelimit-reset-requests", "120ms"),
                ("x-ratelimit-limit-tokens", "30000"),
                ("x-ratelimit-remaining-tokens", "0"),
                ("x-ratelimit-reset-tokens", "7s"),
                ("content-type", "application/json"),
            ]),
            expected
        );
        assert_eq!(read(&[("content-type", "application/json")]), None);
        assert_eq!(read(&[("x-ratelimit-remaining", "9")]), None);
        let odd = read(&[
            ("x-ratelimit-remaining-requests", "-1"),
            ("x-ratelimit-limit-requests", "many"),
            ("x-ratelimit-reset-requests", "soon"),
        ]);
        assert_eq!(
            odd.unwrap().requests.unwrap(),
            Allowance {
                limit: None,
                remaining: Some(0),
                resets_in: None
            }
        );
    }

    #[test]
    fn resets_are_read_in_every_form_and_bounded() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_770);
        let millis = |value: &str| resets_in(value, now).map(|wait| wait.as_millis());
        for (value, expected) in [
            ("6m0s", Some(360_000)),
            ("1s", Some(1000)),
            ("20ms", Some(20)),
            ("1h2m3.5s", Some(3_723_500)),
            ("12", Some(12_000)),
            ("0.25", Some(250)),
            ("", None),
            ("1994-11-06T08:49:37.5Z", Some(7000)),
            ("1994-11-06T08:49:00Z", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(7000)),
            ("9999h", None),
            ("9999-12-31T00:00:00Z", None),
            ("1784111777", None),
            ("5 apples", None),
            ("1e400s", None),
        ] {
            assert_eq!(millis(value), expected, "{value}");
        }
    }
}
