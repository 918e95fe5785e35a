//! Servers in virtual time: what the controller finds of them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use super::controller::{Call, Controller, Outcome};

/// What a server does with more calls than it can bear.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    /// Says no at once.
    Refuses,
    /// Lets them stand in a line.
    Queues,
    /// Does all of them, each the slower.
    Shares,
}

struct Server {
    kind: Kind,
    limit: usize,
    /// Seconds of work in a call, give or take `spread` of it.
    work: f64,
    spread: f64,
    fault_share: f64,
    refused_share: f64,
    /// When each of its places comes free.
    places: BinaryHeap<Reverse<u64>>,
    serving: usize,
    random: u64,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Ends {
    at: u64,
    number: u64,
    began: u64,
    outcome: u8,
}

impl Server {
    fn new(kind: Kind, limit: usize) -> Self {
        Self {
            kind,
            limit,
            work: 1.0,
            spread: 0.3,
            fault_share: 0.0,
            refused_share: 0.0,
            places: BinaryHeap::new(),
            serving: 0,
            random: 7,
        }
    }

    fn draw(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// When a call that comes now ends, and how.
    fn take(&mut self, now: u64) -> (u64, Outcome) {
        let micros = |seconds: f64| (seconds * 1e6) as u64;
        if self.draw() < self.fault_share {
            return (now + micros(0.02), Outcome::Failed);
        }
        if self.refused_share > 0.0 && self.draw() < self.refused_share {
            return (now + micros(0.005), Outcome::Overloaded);
        }
        let work = self.work * (1.0 + self.spread * (2.0 * self.draw() - 1.0));
        match self.kind {
            Kind::Refuses if self.serving >= self.limit => {
                (now + micros(0.005), Outcome::Overloaded)
            }
            Kind::Refuses => {
                self.serving += 1;
                (now + micros(work), Outcome::Answered)
            }
            Kind::Shares => {
                self.serving += 1;
                let slower = (self.serving as f64 / self.limit as f64).max(1.0);
                (now + micros(work * slower), Outcome::Answered)
            }
            Kind::Queues => {
                let mut from = now;
                while self.places.len() >= self.limit {
                    let Reverse(free) = self.places.pop().unwrap();
                    from = from.max(free);
                }
                let end = from + micros(work);
                self.places.push(Reverse(end));
                (end, Outcome::Answered)
            }
        }
    }
}

struct Run {
    controller: Controller,
    server: Server,
    now: u64,
    number: u64,
    under_way: BinaryHeap<Reverse<Ends>>,
    calls: std::collections::HashMap<u64, Call>,
    answered: u64,
    overloaded: u64,
}

impl Run {
    fn new(server: Server) -> Self {
        Self {
            controller: Controller::new(1, 4, 2000),
            server,
            now: 0,
            number: 0,
            under_way: BinaryHeap::new(),
            calls: std::collections::HashMap::new(),
            answered: 0,
            overloaded: 0,
        }
    }

    /// Goes on for so many seconds with more to ask than is ever allowed; gives the mean of the limit over that time.
    fn seconds(&mut self, seconds: f64) -> f64 {
        let clock = Instant::now();
        let until = self.now + (seconds * 1e6) as u64;
        let from = self.now;
        let mut area = 0.0;
        while self.now < until {
            while self.controller.has_room(clock) {
                let call = self.controller.on_start(true);
                let (at, outcome) = self.server.take(self.now);
                self.number += 1;
                self.calls.insert(self.number, call);
                self.under_way.push(Reverse(Ends {
                    at,
                    number: self.number,
                    began: self.now,
                    outcome: outcome as u8,
                }));
            }
            let Reverse(ends) = self.under_way.pop().unwrap();
            area += self.controller.limit() as f64 * (ends.at - self.now) as f64;
            self.now = ends.at;
            let outcome = [Outcome::Answered, Outcome::Overloaded, Outcome::Failed]
                .into_iter()
                .find(|outcome| *outcome as u8 == ends.outcome)
                .unwrap();
            match outcome {
                Outcome::Answered => {
                    self.answered += 1;
                    self.server.serving = self.server.serving.saturating_sub(1);
                }
                Outcome::Overloaded => self.overloaded += 1,
                _ => {}
            }
            self.controller.on_end(
                self.calls.remove(&ends.number).unwrap(),
                outcome,
                Duration::from_micros(ends.at - ends.began),
            );
        }
        area / (self.now - from) as f64
    }
}

fn near(mean: f64, limit: usize) -> bool {
    (mean / limit as f64 - 1.0).abs() <= 0.1
}

const KINDS: [Kind; 3] = [Kind::Refuses, Kind::Queues, Kind::Shares];

#[test]
fn the_limit_of_a_server_is_found_within_a_tenth() {
    let mut failures = Vec::new();
    for kind in KINDS {
        for limit in [3, 10, 50, 400] {
            for (spread, random) in [(0.05, 7), (0.3, 7), (0.3, 8), (0.3, 9)] {
                let mut run = Run::new(Server {
                    spread,
                    random,
                    ..Server::new(kind, limit)
                });
                run.seconds(120.0);
                let (answered, overloaded) = (run.answered, run.overloaded);
                let mean = run.seconds(600.0);
                let answered = (run.answered - answered) as f64;
                let rate = answered / 600.0 / limit as f64;
                let refused = (run.overloaded - overloaded) as f64 / answered;
                if !near(mean, limit) || rate < 0.9 || refused > 0.02 {
                    failures.push(format!(
                        "{kind:?} {limit} ±{spread}: mean {mean:.1}, {rate:.2} of what it can, {refused:.3} refused"
                    ));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn a_limit_that_moves_is_followed() {
    let mut failures = Vec::new();
    for kind in KINDS {
        for (first, then) in [
            (50, 200),
            (200, 50),
            (10, 100),
            (100, 10),
            (400, 40),
            (3, 30),
            (30, 3),
        ] {
            let mut run = Run::new(Server::new(kind, first));
            run.seconds(300.0);
            run.server.limit = then;
            // Calls of a queue that has become ten times too long take ten times as long, and so do the windows.
            run.seconds(if kind == Kind::Refuses { 60.0 } else { 240.0 });
            let mean = run.seconds(300.0);
            if !near(mean, then) {
                failures.push(format!("{kind:?} {first} -> {then}: {mean:.1}"));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn a_fault_in_a_hundred_calls_does_not_bring_it_down() {
    let mut failures = Vec::new();
    for kind in KINDS {
        for limit in [3, 10, 50, 400] {
            let mut run = Run::new(Server {
                fault_share: 0.01,
                ..Server::new(kind, limit)
            });
            run.seconds(120.0);
            let mean = run.seconds(600.0);
            if (mean / limit as f64 - 1.0).abs() > 0.15 {
                failures.push(format!("{kind:?} {limit}: {mean:.1}"));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn latencies_that_differ_by_a_factor_of_nine_are_borne() {
    let mut failures = Vec::new();
    for kind in KINDS {
        for limit in [3, 10, 50, 400] {
            let mut run = Run::new(Server {
                spread: 0.8,
                ..Server::new(kind, limit)
            });
            run.seconds(600.0);
            let answered = run.answered;
            let mean = run.seconds(1200.0);
            let rate = (run.answered - answered) as f64 / 1200.0 / limit as f64;
            if !(0.75..1.25).contains(&(mean / limit as f64)) || rate < 0.85 {
                failures.push(format!(
                    "{kind:?} {limit}: {mean:.1}, {rate:.2} of what it can"
                ));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn questions_that_become_longer_are_not_taken_for_congestion() {
    for kind in KINDS {
        let mut run = Run::new(Server::new(kind, 100));
        run.seconds(200.0);
        for work in [4.0, 0.5, 3.0] {
            run.server.work = work;
            let mean = run.seconds(100.0 * work);
            assert!((80.0..115.0).contains(&mean), "{kind:?} {work}: {mean}");
        }
    }
}

#[test]
fn a_server_that_fails_and_refuses_at_random_is_used_all_the_same() {
    let mut failures = Vec::new();
    for kind in KINDS {
        for limit in [3, 10, 50, 400] {
            for (fault_share, refused_share) in
                [(0.03, 0.02), (0.0, 0.05), (0.1, 0.0), (0.05, 0.05)]
            {
                for random in [7, 8, 9] {
                    let mut run = Run::new(Server {
                        fault_share,
                        refused_share,
                        random,
                        ..Server::new(kind, limit)
                    });
                    run.seconds(240.0);
                    let answered = run.answered;
                    let mean = run.seconds(600.0);
                    let rate = (run.answered - answered) as f64 / 600.0 / limit as f64;
                    // One less of three is a third less.
                    let least = if limit == 3 { 0.5 } else { 0.75 };
                    if !(least..1.25).contains(&(mean / limit as f64)) || rate < least {
                        failures.push(format!(
                            "{kind:?} {limit}, {fault_share} fail, {refused_share} refused: {mean:.1}, {rate:.2} of what it can"
                        ));
                    }
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
