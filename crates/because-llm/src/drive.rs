use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::ChatError;

/// A request to stop, shared between whoever may ask for it (a signal handler, another thread) and the runs that obey.
/// A run that obeys begins nothing new and waits for what is under way, because that is paid for.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asks every run that holds this to stop.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// The flag itself, for work that is not asynchronous.
    #[must_use]
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }

    /// Whether somebody has asked.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why a run ended before its last call.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Halted {
    /// Somebody asked for it through [`Stop`].
    #[error("stopped on request")]
    Requested,
    /// A call failed in a way that the others would share or that the run cannot do without.
    #[error(transparent)]
    Failed(#[from] ChatError),
}

/// Runs many calls with at most `concurrency` in flight. Jobs are pulled from the iterator as places come free, so a
/// queue of millions stays an iterator; results go to `each` in the order in which they arrive.
///
/// # Errors
/// When a job fails or a stop is requested: nothing new is begun, what is in flight is awaited and handed to `each`, then
/// the first cause is returned.
pub async fn drive<T, F>(
    jobs: impl IntoIterator<Item = F>,
    concurrency: usize,
    stop: &Stop,
    mut each: impl FnMut(T),
) -> Result<(), Halted>
where
    F: Future<Output = Result<T, ChatError>>,
{
    let mut jobs = jobs.into_iter();
    let mut in_flight = FuturesUnordered::new();
    let mut halted = None;
    loop {
        while halted.is_none() && in_flight.len() < concurrency.max(1) {
            if stop.is_requested() {
                halted = Some(Halted::Requested);
                break;
            }
            match jobs.next() {
                Some(job) => in_flight.push(job),
                None => break,
            }
        }
        match in_flight.next().await {
            Some(Ok(done)) => each(done),
            Some(Err(error)) => {
                halted.get_or_insert(Halted::Failed(error));
            }
            None => return halted.map_or(Ok(()), Err),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[tokio::test]
    async fn a_failure_waits_for_what_is_in_flight_and_begins_nothing_new() {
        let begun = AtomicUsize::new(0);
        let jobs = (0..100).map(|job| {
            let begun = &begun;
            async move {
                begun.fetch_add(1, Ordering::Relaxed);
                futures_timer::Delay::new(std::time::Duration::from_millis(if job == 0 {
                    1
                } else {
                    20
                }))
                .await;
                if job == 0 {
                    return Err(ChatError::Permanent {
                        status: Some(401),
                        message: "no".into(),
                    });
                }
                Ok(job)
            }
        });
        let mut done = Vec::new();
        let halted = drive(jobs, 4, &Stop::default(), |job| done.push(job)).await;
        assert!(matches!(
            halted,
            Err(Halted::Failed(ChatError::Permanent { .. }))
        ));
        done.sort_unstable();
        assert_eq!(done, [1, 2, 3]);
        assert_eq!(begun.load(Ordering::Relaxed), 4);
    }

    #[tokio::test]
    async fn a_stop_is_obeyed_between_jobs() {
        let stop = Stop::default();
        let mut done = 0;
        let halted = drive((0..10).map(|job| async move { Ok(job) }), 1, &stop, |job| {
            done += 1;
            if job == 4 {
                stop.request();
            }
        })
        .await;
        assert!(matches!(halted, Err(Halted::Requested)));
        assert_eq!(done, 5);
    }
}
