use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_timer::Delay;

use super::controller::{Call, Controller, Outcome};

/// The door that calls wait at: as many are let in as the [`Controller`] has room for, in the order in which they came.
#[derive(Debug)]
pub(super) struct Gate(Mutex<State>);

#[derive(Debug)]
struct State {
    controller: Controller,
    next_ticket: u64,
    waiting: BTreeMap<u64, Waker>,
    /// Let in, but they have not heard of it yet.
    called: BTreeMap<u64, Call>,
}

impl Default for Gate {
    fn default() -> Self {
        Self::new(Controller::new(1, 1, 1))
    }
}

impl Gate {
    pub(super) fn new(controller: Controller) -> Self {
        Self(Mutex::new(State {
            controller,
            next_ticket: 0,
            waiting: BTreeMap::new(),
            called: BTreeMap::new(),
        }))
    }

    /// A place, when it is this caller's turn.
    pub(super) fn enter(self: &Arc<Self>) -> Entering {
        Entering {
            gate: Arc::clone(self),
            ticket: None,
            pause: None,
        }
    }

    /// Reads the controller, and how many wait.
    pub(super) fn look<T>(&self, read: impl FnOnce(&Controller, usize) -> T) -> T {
        let state = self.lock();
        read(&state.controller, state.waiting.len())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Lets in whoever there is room for; gives those to be woken.
    fn let_in(&mut self, now: Instant) -> Vec<Waker> {
        let mut woken = Vec::new();
        while self.controller.has_room(now)
            && let Some((ticket, waker)) = self.waiting.pop_first()
        {
            let call = self.controller.on_start(true);
            self.called.insert(ticket, call);
            woken.push(waker);
        }
        woken
    }

    /// While everybody has to pause, the first in the line keeps the time.
    fn timekeeper(&self, now: Instant) -> Option<(u64, &Waker, Instant)> {
        let until = self.controller.pause(now)?;
        let (ticket, waker) = self.waiting.first_key_value()?;
        Some((*ticket, waker, until))
    }
}

/// A caller in the line. Dropped, it leaves it.
#[derive(Debug)]
pub(super) struct Entering {
    gate: Arc<Gate>,
    ticket: Option<u64>,
    pause: Option<(Instant, Delay)>,
}

/// What a caller finds at the gate.
enum Found {
    Place(Call),
    Line,
    /// A line, at whose head this caller stands, until the pause ends.
    Pause(Instant),
}

impl Entering {
    fn look(&mut self, waker: &Waker) -> Found {
        let (found, woken) = {
            let mut state = self.gate.lock();
            let now = Instant::now();
            let ticket = match self.ticket {
                Some(ticket) => ticket,
                None if state.waiting.is_empty() && state.controller.has_room(now) => {
                    return Found::Place(state.controller.on_start(false));
                }
                None => {
                    let ticket = state.next_ticket;
                    state.next_ticket += 1;
                    *self.ticket.insert(ticket)
                }
            };
            if let Some(call) = state.called.remove(&ticket) {
                self.ticket = None;
                return Found::Place(call);
            }
            match state.waiting.get_mut(&ticket) {
                Some(own) => own.clone_from(waker),
                None => drop(state.waiting.insert(ticket, waker.clone())),
            }
            // The end of a pause is noticed by whoever kept its time.
            let woken = state.let_in(now);
            let found = match (state.called.remove(&ticket), state.timekeeper(now)) {
                (Some(call), _) => {
                    self.ticket = None;
                    Found::Place(call)
                }
                (None, Some((first, _, until))) if first == ticket => Found::Pause(until),
                (None, _) => Found::Line,
            };
            (found, woken)
        };
        woken.into_iter().for_each(Waker::wake);
        found
    }
}

impl Future for Entering {
    type Output = Place;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Place> {
        loop {
            let until = match self.look(context.waker()) {
                Found::Place(call) => {
                    return Poll::Ready(Place {
                        gate: Arc::clone(&self.gate),
                        call: Some(call),
                        since: Instant::now(),
                    });
                }
                Found::Line => return Poll::Pending,
                Found::Pause(until) => until,
            };
            if self.pause.as_ref().is_none_or(|(end, _)| *end != until) {
                let left = until.saturating_duration_since(Instant::now());
                self.pause = Some((until, Delay::new(left)));
            }
            if let Some((_, delay)) = &mut self.pause
                && Pin::new(delay).poll(context).is_pending()
            {
                return Poll::Pending;
            }
            self.pause = None;
        }
    }
}

impl Drop for Entering {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else {
            return;
        };
        let woken = {
            let mut state = self.gate.lock();
            let now = Instant::now();
            state.waiting.remove(&ticket);
            if let Some(call) = state.called.remove(&ticket) {
                state
                    .controller
                    .on_end(call, Outcome::Cancelled, Duration::ZERO);
            }
            let mut woken = state.let_in(now);
            woken.extend(state.timekeeper(now).map(|(_, waker, _)| waker.clone()));
            woken
        };
        woken.into_iter().for_each(Waker::wake);
    }
}

/// A place among the calls under way. Dropped, it counts as given up by the caller.
#[derive(Debug)]
pub(super) struct Place {
    gate: Arc<Gate>,
    call: Option<Call>,
    since: Instant,
}

impl Place {
    /// Gives the place back, with what became of the call and how long everybody should wait now.
    pub(super) fn leave(mut self, outcome: Outcome, pause: Option<Duration>) {
        self.end(outcome, pause);
    }

    fn end(&mut self, outcome: Outcome, pause: Option<Duration>) {
        let Some(call) = self.call.take() else {
            return;
        };
        let woken = {
            let mut state = self.gate.lock();
            let now = Instant::now();
            let latency = now.saturating_duration_since(self.since);
            state.controller.on_end(call, outcome, latency);
            if let Some(pause) = pause {
                state.controller.pause_for(pause, now);
            }
            let mut woken = state.let_in(now);
            woken.extend(state.timekeeper(now).map(|(_, waker, _)| waker.clone()));
            woken
        };
        woken.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.end(Outcome::Cancelled, None);
    }
}
