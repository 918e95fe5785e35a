use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::{Allowance, RateLimits, Usage};

/// The share of a minute's worth that may go at once.
const BURST: f64 = 0.02;
const MINUTE: Duration = Duration::from_secs(60);
/// What was spent is remembered in pieces of this length.
const SLOT: Duration = Duration::from_millis(100);
/// A server that counts days may say that there is nothing until tomorrow. Then somebody has to find out from time to
/// time, and a run has to end with an error that says why.
const LONGEST_RESET: Duration = Duration::from_secs(600);

/// When the next call may go: a state machine without clock, lock or task.
#[derive(Debug)]
pub(super) struct Pace {
    origin: Instant,
    requests: Kind,
    tokens: Kind,
    /// What calls use for each token that is estimated.
    used_share: f64,
}

/// A call that went, as [`Pace::take`] gives it out and [`Pace::settle`] takes it back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reserved {
    slot: u64,
    estimate: u64,
    tokens: u64,
    expected: f64,
    requests_before: u64,
    tokens_before: u64,
}

/// Requests, or tokens.
#[derive(Debug, Default)]
struct Kind {
    meter: Option<Meter>,
    told: Option<Told>,
    /// All that went so far.
    sent: u64,
}

/// So many a minute, as the user says.
///
/// A bucket spreads them over the minute; what is taken beyond its level is a debt that the next ones wait for. A list of
/// what went in the last minute keeps any minute, wherever it begins, within the bound.
#[derive(Debug)]
struct Meter {
    per_minute: u64,
    level: f64,
    filled_at: Instant,
    spent: VecDeque<(u64, u64)>,
    in_minute: u64,
}

/// What the server says is left.
#[derive(Debug, Clone, Copy)]
struct Told {
    limit: Option<u64>,
    left: u64,
    resets_at: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            origin: now,
            requests: Kind::default(),
            tokens: Kind::default(),
            used_share: 1.0,
        }
    }

    pub(super) fn requests_per_minute(&mut self, requests: u64) {
        self.requests.meter = Some(Meter::new(requests, self.origin));
    }

    pub(super) fn tokens_per_minute(&mut self, tokens: u64) {
        self.tokens.meter = Some(Meter::new(tokens, self.origin));
    }

    /// Whether it matters how many tokens a call has.
    pub(super) fn counts_tokens(&self) -> bool {
        self.tokens.meter.is_some() || self.tokens.told.is_some()
    }

    /// Takes what a call needs that is estimated to have so many tokens, or says how long to wait before asking again.
    pub(super) fn take(&mut self, estimate: u64, now: Instant) -> Result<Reserved, Duration> {
        let slot = slot(self.origin, now);
        // The minute is kept with what may come, the even flow with what will: estimates reckon with the longest answer.
        let expected = estimate as f64 * self.used_share;
        let tokens = estimate.max(expected as u64);
        let wait = self
            .requests
            .wait(1, 1.0, self.origin, now)
            .max(self.tokens.wait(tokens, expected, self.origin, now));
        if !wait.is_zero() {
            return Err(wait);
        }
        self.requests.take(1, 1.0, slot);
        self.tokens.take(tokens, expected, slot);
        Ok(Reserved {
            slot,
            estimate,
            tokens,
            expected,
            requests_before: self.requests.sent,
            tokens_before: self.tokens.sent,
        })
    }

    /// Puts what a call really used in the place of what was reserved for it.
    pub(super) fn settle(&mut self, reserved: Reserved, used: u64) {
        if used > 0 && reserved.estimate > 0 {
            let share = used as f64 / reserved.estimate as f64;
            self.used_share += 0.05 * (share.min(100.0) - self.used_share);
        }
        if let Some(meter) = &mut self.tokens.meter {
            meter.correct(&reserved, used);
        }
    }

    /// Learns from what came with the answer to a call.
    pub(super) fn observe(&mut self, reserved: Reserved, limits: &RateLimits, now: Instant) {
        self.requests
            .observe(limits.requests, reserved.requests_before, now);
        self.tokens
            .observe(limits.tokens, reserved.tokens_before, now);
    }
}

fn slot(origin: Instant, now: Instant) -> u64 {
    (now.saturating_duration_since(origin).as_millis() / SLOT.as_millis()) as u64
}

impl Kind {
    fn wait(&mut self, need: u64, expected: f64, origin: Instant, now: Instant) -> Duration {
        let metered = match &mut self.meter {
            Some(meter) => meter.wait(need, expected, origin, now),
            None => Duration::ZERO,
        };
        if self.told.is_some_and(|told| told.resets_at <= now) {
            self.told = None;
        }
        metered.max(
            self.told
                .map_or(Duration::ZERO, |told| told.wait(need, now)),
        )
    }

    fn take(&mut self, amount: u64, expected: f64, slot: u64) {
        self.sent += amount;
        if let Some(meter) = &mut self.meter {
            meter.take(amount, expected, slot);
        }
        if let Some(told) = &mut self.told {
            told.left = told.left.saturating_sub(amount);
        }
    }

    fn observe(&mut self, allowance: Option<Allowance>, sent_before: u64, now: Instant) {
        let Some(Allowance {
            limit,
            remaining: Some(remaining),
            resets_in: Some(resets_in),
        }) = allowance
        else {
            return;
        };
        // The server counted when the call came; what went after it is not in its figure.
        self.told = Some(Told {
            limit,
            left: remaining.saturating_sub(self.sent - sent_before),
            resets_at: now + resets_in.min(LONGEST_RESET),
        });
    }
}

impl Told {
    fn wait(&self, need: u64, now: Instant) -> Duration {
        // More than there ever is would wait for ever.
        let need = self.limit.map_or(need, |limit| need.min(limit));
        match self.left < need.max(1) {
            true => self.resets_at.saturating_duration_since(now),
            false => Duration::ZERO,
        }
    }
}

impl Meter {
    fn new(per_minute: u64, now: Instant) -> Self {
        let mut meter = Self {
            per_minute: per_minute.max(1),
            level: 0.0,
            filled_at: now,
            spent: VecDeque::new(),
            in_minute: 0,
        };
        meter.level = meter.burst();
        meter
    }

    fn burst(&self) -> f64 {
        (self.per_minute as f64 * BURST).max(1.0)
    }

    fn per_second(&self) -> f64 {
        self.per_minute as f64 / 60.0
    }

    fn wait(&mut self, need: u64, expected: f64, origin: Instant, now: Instant) -> Duration {
        let need = need.min(self.per_minute);
        let seconds = now.saturating_duration_since(self.filled_at).as_secs_f64();
        self.filled_at = now;
        let filled = (self.level + seconds * self.per_second()).min(self.burst());
        // What was given back may stand above the brim; it only does not grow there.
        self.level = self.level.max(filled);
        let lacks = expected.min(self.burst()) - self.level;
        // A hair's breadth less than needed is enough: it is what rounding leaves.
        let level = Duration::from_secs_f64((lacks - 1e-6).max(0.0) / self.per_second());
        level.max(self.wait_for_minute(need, origin, now))
    }

    fn wait_for_minute(&mut self, need: u64, origin: Instant, now: Instant) -> Duration {
        let gone_at = |slot: u64| {
            let end = u32::try_from(slot + 1).unwrap_or(u32::MAX);
            origin + SLOT * end + MINUTE
        };
        while let Some((slot, amount)) = self.spent.front()
            && gone_at(*slot) <= now
        {
            self.in_minute -= amount;
            self.spent.pop_front();
        }
        let mut left = self.in_minute;
        let mut wait = Duration::ZERO;
        for (slot, amount) in &self.spent {
            if left + need <= self.per_minute {
                break;
            }
            left -= amount;
            wait = gone_at(*slot).saturating_duration_since(now);
        }
        wait
    }

    fn take(&mut self, amount: u64, expected: f64, slot: u64) {
        self.level -= expected;
        self.in_minute += amount;
        match self.spent.back_mut() {
            Some((last, spent)) if *last == slot => *spent += amount,
            _ => self.spent.push_back((slot, amount)),
        }
    }

    fn correct(&mut self, reserved: &Reserved, used: u64) {
        self.level += reserved.expected - used as f64;
        if let Ok(place) = self
            .spent
            .binary_search_by_key(&reserved.slot, |(slot, _)| *slot)
        {
            let (_, spent) = &mut self.spent[place];
            *spent = *spent - reserved.tokens + used;
            self.in_minute = self.in_minute - reserved.tokens + used;
        }
    }
}

/// All that a call used.
pub(super) fn tokens(usage: &Usage) -> u64 {
    usage.prompt_tokens + usage.completion_tokens
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn millis(since: Instant, at: Instant) -> u64 {
        at.duration_since(since).as_millis() as u64
    }

    /// The most that went in any minute.
    fn most_in_a_minute(went: &[(u64, u64)]) -> u64 {
        let mut most = 0;
        let (mut first, mut sum) = (0, 0);
        for (at, amount) in went {
            sum += amount;
            while went[first].0 + 60_000 <= *at {
                sum -= went[first].1;
                first += 1;
            }
            most = most.max(sum);
        }
        most
    }

    /// Sends as fast as it may for so many minutes, with the reservations settled two seconds later.
    fn greedy(
        pace: &mut Pace,
        begun: Instant,
        minutes: u64,
        mut call: impl FnMut(u64) -> (u64, u64),
    ) -> Vec<(u64, u64, u64)> {
        let mut now = begun;
        let mut went = Vec::new();
        let mut open: VecDeque<(Instant, Reserved, u64)> = VecDeque::new();
        for number in 0.. {
            let (estimate, used) = call(number);
            loop {
                while let Some((at, reserved, used)) = open.front().copied()
                    && at <= now
                {
                    pace.settle(reserved, used);
                    open.pop_front();
                }
                match pace.take(estimate, now) {
                    Ok(reserved) => {
                        open.push_back((now + Duration::from_secs(2), reserved, used));
                        went.push((millis(begun, now), estimate, used));
                        break;
                    }
                    Err(wait) => {
                        let settles = open.front().map(|(at, ..)| *at);
                        now = settles.map_or(now + wait, |at| at.min(now + wait)).max(now);
                    }
                }
            }
            if now >= begun + MINUTE * minutes as u32 {
                break;
            }
        }
        went
    }

    #[test]
    fn requests_never_exceed_the_rate_and_use_it() {
        for rate in [1, 3, 20, 60, 500, 30_000] {
            let begun = Instant::now();
            let mut pace = Pace::new(begun);
            pace.requests_per_minute(rate);
            let went = greedy(&mut pace, begun, 10, |_| (0, 0));
            let times: Vec<(u64, u64)> = went.iter().map(|(at, ..)| (*at, 1)).collect();
            assert!(most_in_a_minute(&times) <= rate, "{rate}");
            assert!(
                went.len() as f64 >= 0.95 * (rate * 10) as f64,
                "{rate}: {}",
                went.len()
            );
            // No more than the burst at once.
            let at_once = went.iter().filter(|(at, ..)| *at < 100).count() as f64;
            let allowed = (0.02 * rate as f64).max(1.0) + rate as f64 / 600.0 + 1.0;
            assert!(at_once <= allowed, "{rate}: {at_once}");
        }
    }

    #[test]
    fn tokens_never_exceed_the_rate_and_use_it() {
        let rate = 200_000;
        // What is reserved for the two seconds of a call cannot be used meanwhile, so too high an estimate has its price.
        for (least, most, over, share) in [
            (100, 900, 1.0, 0.95),
            (4000, 12_000, 1.0, 0.95),
            (500, 3000, 1.5, 0.95),
            (500, 3000, 4.0, 0.85),
        ] {
            let begun = Instant::now();
            let mut pace = Pace::new(begun);
            pace.tokens_per_minute(rate);
            let went = greedy(&mut pace, begun, 10, |number| {
                let used = least + number * 7919 % (most - least);
                ((used as f64 * over) as u64, used)
            });
            let used: Vec<(u64, u64)> = went.iter().map(|(at, _, used)| (*at, *used)).collect();
            let sum: u64 = used.iter().map(|(_, used)| used).sum();
            assert!(
                most_in_a_minute(&used) <= rate,
                "{least}: {}",
                most_in_a_minute(&used)
            );
            assert!(sum as f64 >= share * (rate * 10) as f64, "{least}: {sum}");
        }
    }

    #[test]
    fn too_low_an_estimate_is_waited_for_afterwards() {
        let begun = Instant::now();
        let mut pace = Pace::new(begun);
        pace.tokens_per_minute(60_000);
        let went = greedy(&mut pace, begun, 10, |_| (100, 1000));
        let used: u64 = went.iter().map(|(.., used)| used).sum();
        assert!((570_000..=660_000).contains(&used), "{used}");
    }

    #[test]
    fn a_call_that_is_more_than_a_minute_holds_goes_alone() {
        let begun = Instant::now();
        let mut pace = Pace::new(begun);
        pace.tokens_per_minute(1000);
        pace.take(10, begun).unwrap();
        let wait = pace.take(5000, begun).unwrap_err();
        assert!(
            (60_000..=60_200).contains(&(wait.as_millis() as u64)),
            "{wait:?}"
        );
        pace.take(5000, begun + wait).unwrap();
        assert!(
            pace.take(1, begun + wait + Duration::from_secs(59))
                .is_err()
        );
    }

    #[test]
    fn what_the_server_says_is_left_is_not_exceeded() {
        let begun = Instant::now();
        let mut pace = Pace::new(begun);
        let first = pace.take(0, begun).unwrap();
        pace.take(0, begun).unwrap();
        let left = |remaining, resets_in| {
            Some(Allowance {
                limit: Some(100),
                remaining: Some(remaining),
                resets_in: Some(Duration::from_secs(resets_in)),
            })
        };
        let limits = RateLimits {
            requests: left(3, 20),
            tokens: left(50, 10),
        };
        pace.observe(first, &limits, begun);
        assert!(pace.counts_tokens());
        // One of the three went since.
        pace.take(10, begun).unwrap();
        assert_eq!(pace.take(60, begun).unwrap_err(), Duration::from_secs(10));
        pace.take(40, begun).unwrap();
        assert_eq!(pace.take(0, begun).unwrap_err(), Duration::from_secs(20));
        let reset = begun + Duration::from_secs(20);
        let next = pace.take(5000, reset).unwrap();
        // What says nothing of a reset changes nothing, and one that is far away is bounded.
        let vague = RateLimits {
            requests: Some(Allowance {
                remaining: Some(0),
                ..Allowance::default()
            }),
            tokens: None,
        };
        pace.observe(next, &vague, reset);
        let next = pace.take(0, reset).unwrap();
        let tomorrow = RateLimits {
            requests: left(0, 86_400),
            tokens: None,
        };
        pace.observe(next, &tomorrow, reset);
        assert_eq!(pace.take(0, reset).unwrap_err(), LONGEST_RESET);
    }

    proptest! {
        #[test]
        fn no_minute_is_ever_exceeded(
            rate in 50_u64..5000,
            calls in proptest::collection::vec((0_u64..400, 0_u64..3000), 1..300),
        ) {
            let begun = Instant::now();
            let mut pace = Pace::new(begun);
            pace.requests_per_minute(rate);
            pace.tokens_per_minute(rate * 10);
            let mut now = begun;
            let mut went = Vec::new();
            for (tokens, idle) in calls {
                now += Duration::from_millis(idle);
                while let Err(wait) = pace.take(tokens, now) {
                    prop_assert!(!wait.is_zero());
                    now += wait;
                }
                went.push((millis(begun, now), tokens));
            }
            prop_assert!(most_in_a_minute(&went) <= rate * 10);
        }
    }
}
