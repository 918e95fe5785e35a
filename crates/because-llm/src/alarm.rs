use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use futures_timer::Delay;

/// Resolves at a moment that hardly ever comes: the deadline of a call that will have ended long before.
///
/// A general timer wakes its thread for every one that is set, which costs a million calls more than their cache does.
/// Here setting one wakes the thread only if it is due before all others, and taking it back never does.
#[derive(Debug)]
pub(crate) struct Alarm {
    at: Instant,
    set: Option<u64>,
    /// Where no thread can be started.
    fallback: Option<Delay>,
}

#[derive(Debug, Default)]
struct Clock {
    alarms: Mutex<Alarms>,
    earlier: Condvar,
}

#[derive(Debug, Default)]
struct Alarms {
    next: u64,
    waiting: BTreeMap<(Instant, u64), Waker>,
}

impl Alarm {
    pub(crate) fn at(at: Instant) -> Self {
        Self {
            at,
            set: None,
            fallback: None,
        }
    }
}

impl Future for Alarm {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let now = Instant::now();
        if self.at <= now {
            return Poll::Ready(());
        }
        let Some(clock) = clock() else {
            let left = self.at - now;
            let delay = self.fallback.get_or_insert_with(|| Delay::new(left));
            return Pin::new(delay).poll(context);
        };
        let at = self.at;
        let mut alarms = clock.lock();
        let number = match self.set {
            Some(number) => number,
            None => {
                alarms.next += 1;
                *self.set.insert(alarms.next)
            }
        };
        match alarms.waiting.get_mut(&(at, number)) {
            Some(waker) => waker.clone_from(context.waker()),
            None => {
                let is_first = alarms
                    .waiting
                    .first_key_value()
                    .is_none_or(|((first, _), _)| at < *first);
                alarms.waiting.insert((at, number), context.waker().clone());
                if is_first {
                    clock.earlier.notify_one();
                }
            }
        }
        Poll::Pending
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if let (Some(number), Some(clock)) = (self.set, clock()) {
            clock.lock().waiting.remove(&(self.at, number));
        }
    }
}

impl Clock {
    fn lock(&self) -> MutexGuard<'_, Alarms> {
        self.alarms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut alarms = self.lock();
        loop {
            let now = Instant::now();
            let mut due = Vec::new();
            while let Some(first) = alarms.waiting.first_entry()
                && first.key().0 <= now
            {
                due.push(first.remove());
            }
            if !due.is_empty() {
                // A waker may run code that sets or takes back an alarm.
                drop(alarms);
                due.into_iter().for_each(Waker::wake);
                alarms = self.lock();
                continue;
            }
            alarms = match alarms.waiting.first_key_value() {
                None => self
                    .earlier
                    .wait(alarms)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(((first, _), _)) => {
                    let left = *first - now;
                    let woken = self.earlier.wait_timeout(alarms, left);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

/// The one clock of the process, started with the first alarm.
fn clock() -> Option<&'static Clock> {
    static CLOCK: Clock = Clock {
        alarms: Mutex::new(Alarms {
            next: 0,
            waiting: BTreeMap::new(),
        }),
        earlier: Condvar::new(),
    };
    static RUNS: OnceLock<bool> = OnceLock::new();
    let start = || {
        std::thread::Builder::new()
            .name("because-llm alarms".into())
            .spawn(|| CLOCK.run())
            .is_ok()
    };
    RUNS.get_or_init(start).then_some(&CLOCK)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::future::join_all;

    use super::*;

    #[tokio::test]
    async fn alarms_go_off_in_time_whatever_the_order_they_were_set_in() {
        let begun = Instant::now();
        let taken_back: Vec<Alarm> = (0..20).map(|_| Alarm::at(begun)).collect();
        let mut late = Alarm::at(begun + Duration::from_secs(3600));
        assert!(futures_util::poll!(&mut late).is_pending());
        let mut also_taken_back = Alarm::at(begun + Duration::from_millis(1));
        let _ = futures_util::poll!(&mut also_taken_back);
        drop((taken_back, also_taken_back));
        let alarms = [40, 10, 30, 20].map(|millis| async move {
            Alarm::at(begun + Duration::from_millis(millis)).await;
            (millis, begun.elapsed().as_millis() as u64)
        });
        for (due, came) in join_all(alarms).await {
            assert!((due..due + 3000).contains(&came), "{due}: {came}");
        }
        assert!(futures_util::poll!(&mut late).is_pending());
    }
}
