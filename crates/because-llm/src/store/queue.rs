use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long what nobody waits for may lie in memory.
const LONGEST_UNHEARD: Duration = Duration::from_millis(10);

/// How long a commit waits for company, when the one before it had some: under load one commit for thirty rows costs a
/// fraction of thirty, and beside a model's answer nobody sees two milliseconds.
const GATHERING: Duration = Duration::from_millis(2);

/// As many rows as are worth a commit of their own.
const FULL: usize = 256;

/// What many ask of one thread, which takes all of it at once. Waking that thread costs more than the work itself, so it is
/// done for those who wait, and for them once.
pub(super) struct Queue<J> {
    state: Mutex<State<J>>,
    more: Condvar,
}

struct State<J> {
    jobs: Vec<J>,
    /// Somebody waits for one of them.
    awaited: bool,
    closed: bool,
    waiting: Waiting,
}

/// What the one thread would be woken by.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Waiting {
    /// Not at all: it is at work.
    No,
    /// By anything.
    ForAny,
    /// By what somebody waits for; it comes by itself soon.
    ForAwaited,
    /// By enough for a commit; it comes by itself very soon.
    ForMany,
}

impl<J> Default for Queue<J> {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                jobs: Vec::new(),
                awaited: false,
                closed: false,
                waiting: Waiting::No,
            }),
            more: Condvar::new(),
        }
    }
}

impl<J> Queue<J> {
    /// Adds a job; what comes after the end is dropped, with whatever it holds to answer through.
    pub(super) fn push(&self, job: J, awaited: bool) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        state.awaited |= awaited;
        state.jobs.push(job);
        let wakes = match state.waiting {
            Waiting::No => false,
            Waiting::ForAny => true,
            Waiting::ForAwaited => awaited || state.jobs.len() >= FULL,
            Waiting::ForMany => state.jobs.len() >= FULL,
        };
        if wakes {
            // The next one to send need not wake it again.
            state.waiting = Waiting::No;
            drop(state);
            self.more.notify_one();
        }
    }

    /// What is there is the last.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.more.notify_one();
    }

    /// For the one thread: when it is dropped, also by a panic, nobody waits for that thread any more.
    pub(super) fn end(&self) -> End<'_, J> {
        End(self)
    }

    /// What there is to do next, in `jobs`, which is empty before; false when there will be nothing more.
    pub(super) fn next(&self, jobs: &mut Vec<J>, had_company: bool) -> bool {
        let mut state = self.lock();
        while state.jobs.is_empty() && !state.closed {
            state.waiting = Waiting::ForAny;
            state = self
                .more
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if !state.awaited {
            state = self.wait(state, Waiting::ForAwaited, LONGEST_UNHEARD);
        }
        if had_company {
            state = self.wait(state, Waiting::ForMany, GATHERING);
        }
        state.waiting = Waiting::No;
        state.awaited = false;
        std::mem::swap(&mut state.jobs, jobs);
        !jobs.is_empty()
    }

    fn wait<'a>(
        &self,
        mut state: MutexGuard<'a, State<J>>,
        waiting: Waiting,
        at_most: Duration,
    ) -> MutexGuard<'a, State<J>> {
        let until = Instant::now() + at_most;
        state.waiting = waiting;
        while state.waiting == waiting && !state.closed && state.jobs.len() < FULL {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self
                .more
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        state
    }

    fn lock(&self) -> MutexGuard<'_, State<J>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`Queue::end`].
pub(super) struct End<'a, J>(&'a Queue<J>);

impl<J> Drop for End<'_, J> {
    fn drop(&mut self) {
        self.0.close();
        let unheard = std::mem::take(&mut self.0.lock().jobs);
        // Not under the lock: whom it wakes may send.
        drop(unheard);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_sent_arrives_once_and_in_order() {
        let queue = Queue::default();
        let mut arrived: Vec<(usize, usize)> = Vec::new();
        std::thread::scope(|scope| {
            let senders: Vec<_> = (0..4)
                .map(|sender| {
                    let queue = &queue;
                    scope.spawn(move || {
                        for n in 0..5000 {
                            queue.push((sender, n), n % 3 == 0);
                        }
                    })
                })
                .collect();
            scope.spawn(|| {
                for sender in senders {
                    sender.join().unwrap();
                }
                queue.close();
            });
            let mut jobs = Vec::new();
            while queue.next(&mut jobs, arrived.len().is_multiple_of(2)) {
                arrived.append(&mut jobs);
            }
        });
        for sender in 0..4 {
            let of_one = arrived.iter().filter(|(from, _)| *from == sender);
            assert!(of_one.map(|(_, n)| *n).eq(0..5000));
        }
    }

    #[test]
    fn what_nobody_waits_for_comes_by_itself_and_the_end_at_once() {
        let queue = Queue::default();
        queue.push(1, false);
        let mut jobs = Vec::new();
        assert!(queue.next(&mut jobs, false));
        assert_eq!(jobs, [1]);
        jobs.clear();
        queue.push(2, false);
        queue.close();
        queue.push(3, true);
        assert!(queue.next(&mut jobs, true));
        assert_eq!(jobs, [2]);
        jobs.clear();
        assert!(!queue.next(&mut jobs, true));
    }
}
