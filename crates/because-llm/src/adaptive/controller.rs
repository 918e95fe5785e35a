use std::time::{Duration, Instant};

/// What became of a call, as far as it tells something of the server's load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The server did its work.
    Answered,
    /// It said no for a reason that has nothing to do with load.
    Refused,
    /// It asked for fewer calls.
    Overloaded,
    /// The connection failed or timed out: one tells nothing, many tell of load.
    Failed,
    /// The caller went away.
    Cancelled,
}

/// A call under way, as [`Controller::on_start`] gives it out and [`Controller::on_end`] takes it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) struct Call {
    window: u64,
    /// It began with the server as full as the limit lets it be, so that its latency is the latency at this limit.
    measures: bool,
    waited: bool,
}

/// The shares of a window, in the units they are compared in.
const DECREASE: f64 = 0.9;
/// What a server refuses, and what fails on the way, before anything is known of either.
const ASSUMED: f64 = 0.02;
/// More than this is never taken for the server's habit.
const TOLERATED: f64 = 0.25;
/// A habit is learnt over about so many calls.
const MEMORY: f64 = 200.0;
/// The least calls of a window.
const SMALL_WINDOW: usize = 16;
/// Windows just below the last known ceiling before it is tried again.
const HOLD: u32 = 8;
/// Windows without a look at how latency depends on the limit.
const UNCHECKED: u32 = 64;
/// How much of the limit is left in the look at a lower one.
const LOWERED: f64 = 0.75;
/// The same, once it is known that the limit is too high.
const LOWERED_AGAIN: f64 = 0.4;
/// A latency above the baseline's by this, and by its own uncertainty, is looked into.
const SUSPECT: f64 = 1.12;
/// The lower limit would do as well as this share of the higher one: that is congestion.
const CONGESTED: f64 = 0.93;
/// A comparison waits until the mean is known this well, or for so many windows.
const KNOWN: f64 = 0.03;
const PATIENCE: usize = 8;

/// How many calls may be under way at once: a state machine without clock, lock or task.
///
/// A window is so many calls that both begin and end under one limit, so that what is judged in it was caused by it, and
/// the many failures of one bad moment count once. What a window says:
///
/// - *More were refused or failed than this server always refuses and fails*: the limit falls by a tenth, and the limit that
///   was too high becomes the ceiling. What a server does whatever the load is learnt under lowered limits, and what counts
///   as more than that is a matter of standard deviations.
/// - *All is well and calls were waiting*: it grows. At first it doubles; below a ceiling it halves the way to it; just
///   below it it stays for some windows, then goes one above, two, four, in case the ceiling has moved.
/// - *Latency has grown*: the server may be queueing, or the questions have become longer. Only a comparison tells: under a
///   lowered limit, calls of a queue become faster in proportion, and nothing is lost. By Little's law, a server that does
///   `k` at once shows latencies `l` at the lower limit and `l × limit / k` at the higher one, which gives `k`.
#[derive(Debug)]
pub(super) struct Controller {
    min: usize,
    max: usize,
    limit: usize,
    in_flight: usize,
    decreases: u64,
    paused_until: Option<Instant>,
    growth: Growth,
    check: Option<Check>,
    /// The mean latency, in seconds, at a limit that the server bears.
    baseline: Option<f64>,
    window: Window,
    unchecked: u32,
    /// The shares of calls that this server refuses and fails under any load.
    refuses: f64,
    fails: f64,
    /// The share that was refused or failed when the limit last fell for it.
    alarm: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Growth {
    /// Doubling, until the first sign of too many.
    SlowStart,
    /// Towards the highest limit below one that was too high, then staying there.
    Below { ceiling: usize, held: u32 },
    /// By this step, doubled every time, in search of a new ceiling.
    Probing { step: usize },
}

/// A comparison with a lower limit that is going on.
#[derive(Debug, Clone, Copy)]
struct Check {
    higher: usize,
    latency: f64,
    /// A first comparison showed congestion, and this one asks whether there is more.
    confirmed: bool,
}

/// Whether so many of these calls are more than chance makes of this share, by as many standard deviations; one or two are
/// never.
fn is_above(share: f64, count: usize, calls: usize, sure: f64) -> bool {
    let expected = share * calls as f64;
    let deviation = (expected * (1.0 - share)).sqrt();
    count >= 2 && count as f64 > expected + sure * deviation + 0.5
}

#[derive(Debug, Default)]
struct Window {
    number: u64,
    began: usize,
    ended: usize,
    waited: usize,
    overloaded: usize,
    failed: usize,
    /// The most under way when a call of it began.
    used: usize,
    latency: Latency,
}

impl Window {
    fn bad(&self) -> usize {
        self.overloaded + self.failed
    }

    fn bad_share(&self) -> f64 {
        self.bad() as f64 / self.began.max(1) as f64
    }
}

/// The mean of what was measured, and how sure it is.
#[derive(Debug, Default, Clone, Copy)]
struct Latency {
    count: usize,
    sum: f64,
    squares: f64,
}

impl Latency {
    fn add(&mut self, seconds: f64) {
        self.count += 1;
        self.sum += seconds;
        self.squares += seconds * seconds;
    }

    fn mean(&self) -> f64 {
        self.sum / self.count as f64
    }

    /// The standard error of the mean, as a share of it.
    fn uncertainty(&self) -> f64 {
        let (count, mean) = (self.count as f64, self.mean());
        let variance = (self.squares / count - mean * mean).max(0.0);
        (variance / count).sqrt() / mean.max(1e-9)
    }
}

impl Controller {
    pub(super) fn new(min: usize, start: usize, max: usize) -> Self {
        let max = max.max(1);
        let min = min.clamp(1, max);
        Self {
            min,
            max,
            limit: start.clamp(min, max),
            in_flight: 0,
            decreases: 0,
            paused_until: None,
            growth: Growth::SlowStart,
            check: None,
            baseline: None,
            window: Window::default(),
            unchecked: 0,
            refuses: ASSUMED,
            fails: ASSUMED,
            alarm: 1.0,
        }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(super) fn decreases(&self) -> u64 {
        self.decreases
    }

    /// Until when nobody may begin, if that is still to come.
    pub(super) fn pause(&self, now: Instant) -> Option<Instant> {
        self.paused_until.filter(|until| *until > now)
    }

    /// Lets nobody begin for this long.
    pub(super) fn pause_for(&mut self, pause: Duration, now: Instant) {
        // More than a day is asked for by mistake.
        let until = now + pause.min(Duration::from_secs(24 * 3600));
        self.paused_until = Some(self.paused_until.map_or(until, |other| other.max(until)));
    }

    pub(super) fn has_room(&self, now: Instant) -> bool {
        self.in_flight < self.limit && self.pause(now).is_none()
    }

    /// Begins a call; the caller has made sure that there is room. `waited` says that there was none when it came.
    pub(super) fn on_start(&mut self, waited: bool) -> Call {
        self.in_flight += 1;
        self.window.began += 1;
        self.window.used = self.window.used.max(self.in_flight);
        Call {
            window: self.window.number,
            measures: self.in_flight <= self.limit && self.in_flight * 10 >= self.limit * 9,
            waited,
        }
    }

    /// Ends a call.
    pub(super) fn on_end(&mut self, call: Call, outcome: Outcome, latency: Duration) {
        self.in_flight -= 1;
        if call.window != self.window.number || outcome == Outcome::Cancelled || self.is_fixed() {
            return;
        }
        let window = &mut self.window;
        window.ended += 1;
        window.waited += usize::from(call.waited);
        match outcome {
            Outcome::Overloaded => window.overloaded += 1,
            Outcome::Failed => window.failed += 1,
            Outcome::Answered if call.measures => window.latency.add(latency.as_secs_f64()),
            Outcome::Answered | Outcome::Refused | Outcome::Cancelled => {}
        }
        if self.is_stormed() {
            self.decrease();
        } else if self.window.ended >= self.window_size() {
            self.judge();
        }
    }

    fn is_fixed(&self) -> bool {
        self.min == self.max
    }

    fn window_size(&self) -> usize {
        match self.growth {
            Growth::SlowStart if self.check.is_none() => 2 * self.limit,
            _ => (2 * self.limit).max(SMALL_WINDOW),
        }
    }

    /// Refusals come back at once, and whoever waits runs into the next: no need to see the whole window.
    fn is_stormed(&self) -> bool {
        // What is refused ends long before what is answered, so it is counted among all that began.
        let Window {
            overloaded, began, ..
        } = self.window;
        let sure = if self.is_probing() { 3.0 } else { 4.0 };
        is_above(self.refuses, overloaded, began, sure) && !(began >= 50 && self.is_habit())
    }

    /// Right above what the server bore, a refusal is more likely to be due to that.
    fn is_probing(&self) -> bool {
        matches!(self.growth, Growth::Probing { .. })
    }

    /// What a lower limit did not cure is not the load's doing: some servers refuse and fail now and then, whatever is asked
    /// of them.
    fn is_habit(&self) -> bool {
        let share = self.window.bad_share();
        let lowered = matches!(self.growth, Growth::Below { .. });
        lowered && share < TOLERATED && share > 0.5 * self.alarm
    }

    fn learn_habit(&mut self) {
        let Window {
            overloaded,
            failed,
            began,
            ..
        } = self.window;
        let began = began as f64;
        let weight = began / (began + MEMORY);
        for (habit, count) in [(&mut self.refuses, overloaded), (&mut self.fails, failed)] {
            *habit += weight * ((count as f64 / began).min(TOLERATED) - *habit);
        }
    }

    fn judge(&mut self) {
        let window = &self.window;
        let used = window.waited * 2 >= window.ended;
        let habit = self.refuses + self.fails;
        let above = |sure| is_above(habit, window.bad(), window.began, sure);
        let sound = !above(1.0);
        if above(if self.is_probing() { 2.0 } else { 3.0 }) && !self.is_habit() {
            return self.decrease();
        }
        if matches!(self.growth, Growth::Below { .. }) {
            self.learn_habit();
        }
        let window = &self.window;
        let latency = window.latency;
        let measured = latency.count * 4 >= window.ended;
        if measured && self.is_undecided(latency) {
            return;
        }
        self.unchecked += 1;
        if measured {
            if let Some(check) = self.check {
                return self.compare(check, latency.mean());
            }
            if self.is_suspect(latency) {
                return self.look_lower(latency.mean(), false);
            }
            self.learn(latency.mean());
        } else if self.check.is_some() {
            // Too few calls are there to compare anything.
            return self.resume();
        }
        if sound && used {
            self.grow();
        } else {
            self.set(self.limit);
        }
    }

    fn decrease(&mut self) {
        self.alarm = self.window.bad_share();
        let too_high = self.window.used.min(self.limit).max(1);
        let lower = ((too_high as f64 * DECREASE) as usize).min(too_high - 1);
        // What only fails may fail for any reason; nothing is remembered of it.
        self.growth = if self.window.overloaded >= self.window.failed {
            Growth::Below {
                ceiling: too_high,
                held: 0,
            }
        } else {
            Growth::Below {
                ceiling: too_high + 1,
                held: HOLD,
            }
        };
        self.check = None;
        self.decreases += 1;
        self.set(lower);
    }

    fn grow(&mut self) {
        let limit = self.limit;
        match self.growth {
            Growth::SlowStart if limit >= self.max => {
                self.growth = Growth::Probing { step: 1 };
                self.set(limit);
            }
            Growth::SlowStart => self.set(limit * 2),
            Growth::Below { ceiling, held } if limit + 1 >= ceiling => {
                self.growth = match held {
                    HOLD.. => Growth::Probing { step: 1 },
                    _ => Growth::Below {
                        ceiling,
                        held: held + 1,
                    },
                };
                match self.growth {
                    Growth::Probing { .. } => self.grow(),
                    _ => self.set(limit),
                }
            }
            Growth::Below { ceiling, .. } => {
                self.set(limit + (ceiling - 1 - limit).div_ceil(2));
            }
            Growth::Probing { step } => {
                self.growth = Growth::Probing {
                    step: (step * 2).min(limit),
                };
                self.set(limit + step);
            }
        }
    }

    fn is_suspect(&self, latency: Latency) -> bool {
        let Some(baseline) = self.baseline else {
            return false;
        };
        // Where the first window was congested already, nothing stands out; so look from time to time.
        let due = self.unchecked >= UNCHECKED
            || (self.growth == Growth::SlowStart && self.limit >= self.max);
        let bound = SUSPECT + 2.0 * latency.uncertainty();
        (due || latency.mean() > baseline * bound) && self.limit > self.min
    }

    /// Whether more calls have to be seen before anything is concluded from how long they take.
    fn is_undecided(&self, latency: Latency) -> bool {
        (self.check.is_some() || self.is_suspect(latency))
            && latency.uncertainty() > KNOWN
            && self.window.ended < PATIENCE * self.window_size()
    }

    fn learn(&mut self, mean: f64) {
        let Some(baseline) = &mut self.baseline else {
            self.baseline = Some(mean);
            return;
        };
        // While the limit grows, a baseline that followed upwards would never show that it has grown too far.
        let stays = match self.growth {
            Growth::Below { ceiling, .. } => self.limit + 1 >= ceiling,
            Growth::Probing { .. } => self.limit == self.max,
            Growth::SlowStart => false,
        };
        if mean < 0.8 * *baseline {
            // The work itself has become shorter.
            *baseline = mean;
        } else if stays || mean < *baseline {
            *baseline += 0.25 * (mean - *baseline);
        }
    }

    fn look_lower(&mut self, latency: f64, confirmed: bool) {
        self.check = Some(Check {
            higher: self.limit,
            latency,
            confirmed,
        });
        self.unchecked = 0;
        let limit = self.limit as f64;
        let lower = match self.baseline {
            // What the baseline promises is worth a try once it is no longer the only sign.
            Some(baseline) if confirmed => {
                (limit * baseline / latency).clamp(limit * LOWERED_AGAIN, limit * LOWERED)
            }
            _ => limit * LOWERED,
        };
        self.set((lower as usize).min(self.limit - 1));
    }

    fn compare(&mut self, check: Check, mean: f64) {
        let served = check.higher as f64 * (mean / check.latency).min(1.0);
        let served = served.max(self.limit as f64);
        if !check.confirmed && served > CONGESTED * check.higher as f64 {
            // The same latency with fewer calls: the work itself takes as long.
            self.baseline = Some(check.latency);
            return self.resume();
        }
        if served < 1.1 * self.limit as f64 && self.limit > self.min {
            return self.look_lower(mean, true);
        }
        self.baseline = Some(mean);
        self.check = None;
        self.decreases += 1;
        let served = served.round() as usize;
        self.growth = Growth::Below {
            ceiling: served + 1,
            held: 0,
        };
        self.set(served);
    }

    /// Goes back to where the comparison began.
    fn resume(&mut self) {
        if let Some(check) = self.check.take() {
            if self.growth == Growth::SlowStart && check.higher >= self.max {
                self.growth = Growth::Probing { step: 1 };
            }
            self.set(check.higher);
        }
    }

    /// Sets the limit and begins a window.
    fn set(&mut self, limit: usize) {
        self.limit = limit.clamp(self.min, self.max);
        self.window = Window {
            number: self.window.number + 1,
            ..Window::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Fills the limit and ends all of it with these outcomes in turn.
    fn round(controller: &mut Controller, waited: bool, outcomes: &[Outcome]) {
        let now = Instant::now();
        let mut calls = Vec::new();
        while controller.has_room(now) {
            calls.push(controller.on_start(waited));
        }
        for (call, outcome) in calls.into_iter().zip(outcomes.iter().cycle()) {
            controller.on_end(call, *outcome, Duration::from_secs(1));
        }
    }

    #[test]
    fn it_grows_only_while_calls_wait() {
        let mut controller = Controller::new(1, 4, 64);
        for _ in 0..50 {
            round(&mut controller, false, &[Outcome::Answered]);
        }
        assert_eq!(controller.limit(), 4);
        for _ in 0..2 {
            round(&mut controller, true, &[Outcome::Answered]);
        }
        assert_eq!(controller.limit(), 8);
    }

    #[test]
    fn many_failures_of_one_moment_are_one_decrease() {
        for outcome in [Outcome::Failed, Outcome::Overloaded] {
            let mut controller = Controller::new(1, 100, 100);
            let now = Instant::now();
            let mut calls = Vec::new();
            while controller.has_room(now) {
                calls.push(controller.on_start(true));
            }
            for call in calls {
                controller.on_end(call, outcome, Duration::from_millis(1));
            }
            if outcome == Outcome::Overloaded {
                assert_eq!((controller.limit(), controller.decreases()), (90, 1));
            } else {
                // A window is two rounds.
                assert_eq!((controller.limit(), controller.decreases()), (100, 0));
                round(&mut controller, true, &[outcome]);
                assert_eq!((controller.limit(), controller.decreases()), (90, 1));
            }
        }
    }

    #[test]
    fn a_fixed_limit_stays_whatever_happens() {
        let mut controller = Controller::new(7, 1, 7);
        for outcome in [Outcome::Overloaded, Outcome::Failed, Outcome::Answered] {
            for _ in 0..20 {
                round(&mut controller, true, &[outcome]);
            }
        }
        assert_eq!((controller.limit(), controller.decreases()), (7, 0));
    }

    #[test]
    fn a_pause_lasts_as_long_as_the_longest_that_was_asked_for() {
        let mut controller = Controller::new(1, 1, 1);
        let now = Instant::now();
        let seconds = Duration::from_secs;
        controller.pause_for(seconds(5), now);
        controller.pause_for(seconds(2), now);
        assert!(!controller.has_room(now + seconds(4)));
        assert!(controller.has_room(now + seconds(5)));
    }

    proptest! {
        #[test]
        fn the_limit_stays_within_its_bounds_whatever_ends_when(
            min in 1_usize..20,
            start in 0_usize..200,
            more in 0_usize..200,
            events in proptest::collection::vec((0_u8..8, 0_usize..64, 1_u64..5000), 1..2000),
        ) {
            let max = min + more;
            let mut controller = Controller::new(min, start, max);
            let mut open = Vec::new();
            let now = Instant::now();
            for (event, which, millis) in events {
                if event < 4 && controller.has_room(now) {
                    open.push(controller.on_start(event > 0));
                } else if !open.is_empty() {
                    let call = open.swap_remove(which % open.len());
                    let outcome = match event {
                        0..=4 => Outcome::Answered,
                        5 => Outcome::Overloaded,
                        6 => Outcome::Failed,
                        _ => Outcome::Cancelled,
                    };
                    controller.on_end(call, outcome, Duration::from_millis(millis));
                }
                prop_assert_eq!(controller.in_flight(), open.len());
                prop_assert!((min..=max).contains(&controller.limit()));
            }
        }
    }
}
