//! Timers for waits and deadlines, with no async runtime: one thread for the whole process, which sleeps until the next one
//! is due.
//!
//! Nearly every timer of ours is a deadline that is dropped unused. `futures-timer` wakes its thread for each that is made and
//! for each that is dropped, which costs more than the HTTP call beside it; here both are an entry in a map.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// Resolves when so much time has passed since it was made.
#[derive(Debug)]
pub(crate) struct Delay {
    /// `None` for a moment past all reckoning.
    until: Option<Instant>,
    entry: Option<u64>,
}

impl Delay {
    pub(crate) fn new(duration: Duration) -> Self {
        Self {
            until: Instant::now().checked_add(duration),
            entry: None,
        }
    }
}

impl Future for Delay {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Some(until) = self.until else {
            return Poll::Pending;
        };
        if until <= Instant::now() {
            return Poll::Ready(());
        }
        self.entry = Some(CLOCK.wake_at(until, self.entry, context.waker()));
        Poll::Pending
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        if let Some((until, entry)) = self.until.zip(self.entry) {
            CLOCK.queue().sleepers.remove(&(until, entry));
        }
    }
}

static CLOCK: LazyLock<Clock> = LazyLock::new(|| Clock {
    queue: Mutex::default(),
    sooner: Condvar::new(),
    runs: std::thread::Builder::new()
        .name("llm-timer".into())
        .spawn(|| CLOCK.run())
        .is_ok(),
});

struct Clock {
    queue: Mutex<Queue>,
    sooner: Condvar,
    /// Whether there is a thread.
    runs: bool,
}

#[derive(Default)]
struct Queue {
    sleepers: BTreeMap<(Instant, u64), Waker>,
    entries: u64,
    /// When the thread looks next.
    next_look: Option<Instant>,
}

impl Clock {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_at(&self, until: Instant, entry: Option<u64>, waker: &Waker) -> u64 {
        if !self.runs {
            // No thread to be had: whoever waits looks by himself, over and over.
            waker.wake_by_ref();
        }
        let mut queue = self.queue();
        let entry = entry.unwrap_or_else(|| {
            queue.entries += 1;
            queue.entries
        });
        queue
            .sleepers
            .entry((until, entry))
            .and_modify(|known| known.clone_from(waker))
            .or_insert_with(|| waker.clone());
        if queue.next_look.is_none_or(|next| until < next) {
            queue.next_look = Some(until);
            self.sooner.notify_one();
        }
        entry
    }

    fn run(&self) {
        let mut queue = self.queue();
        loop {
            let now = Instant::now();
            let mut due = Vec::new();
            while let Some(first) = queue.sleepers.first_entry()
                && first.key().0 <= now
            {
                due.push(first.remove());
            }
            if !due.is_empty() {
                // A waker may do anything, also make another timer.
                drop(queue);
                due.into_iter().for_each(Waker::wake);
                queue = self.queue();
                continue;
            }
            queue.next_look = queue.sleepers.first_key_value().map(|(key, _)| key.0);
            queue = match queue.next_look {
                Some(next) => {
                    let waited = self
                        .sooner
                        .wait_timeout(queue, next.saturating_duration_since(now));
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self
                    .sooner
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn timers_come_due_in_their_order_and_not_before_their_time() {
        let begun = Instant::now();
        let order = Mutex::new(Vec::new());
        // Each is sooner than the one before, so that the thread has to be woken from a longer sleep.
        let waits = [30, 20, 10, 1, 0].map(|wait| {
            let order = &order;
            async move {
                Delay::new(millis(wait)).await;
                assert!(begun.elapsed() >= millis(wait));
                order.lock().unwrap().push(wait);
            }
        });
        futures_executor(join_all(waits));
        assert_eq!(*order.lock().unwrap(), [0, 1, 10, 20, 30]);
    }

    #[test]
    fn a_timer_dropped_is_forgotten_and_one_past_all_reckoning_never_ends() {
        let mut long = Delay::new(Duration::from_secs(3600));
        let mut context = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut long).poll(&mut context).is_pending());
        let key = long.until.zip(long.entry).unwrap();
        assert!(CLOCK.queue().sleepers.contains_key(&key));
        drop(long);
        assert!(!CLOCK.queue().sleepers.contains_key(&key));
        let mut never = Delay::new(Duration::MAX);
        assert!(Pin::new(&mut never).poll(&mut context).is_pending());
    }

    #[test]
    fn the_latest_waker_is_the_one_that_is_woken() {
        let mut delay = Delay::new(millis(5));
        let mut context = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut delay).poll(&mut context).is_pending());
        futures_executor(delay);
    }

    fn futures_executor<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(future)
    }
}
