use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

/// When a call went out, told by the wrappers that hold calls back to the one that repeats them.
///
/// Time in a queue is not silence of the server. The two know nothing of each other, so this travels beside the call: as
/// long as a [`Watched`] future is polled, what is [`held`] or [`departs`] on the same thread is that call.
#[derive(Debug, Clone)]
pub(crate) struct Departure(Arc<Mutex<Option<Instant>>>);

thread_local! {
    static WATCHED: RefCell<Option<Departure>> = const { RefCell::new(None) };
}

/// Says that the call being polled is held back.
pub(crate) fn held() {
    note(None);
}

/// Says that the call being polled goes on its way now.
pub(crate) fn departs() {
    note(Some(()));
}

fn note(departed: Option<()>) {
    WATCHED.with_borrow(|watched| {
        if let Some(Departure(at)) = watched {
            *at.lock().unwrap_or_else(PoisonError::into_inner) = departed.map(|()| Instant::now());
        }
    });
}

impl Departure {
    /// A call that departs now, unless somebody holds it back.
    pub(crate) fn now() -> Self {
        Self(Arc::new(Mutex::new(Some(Instant::now()))))
    }

    /// When the call went out; `None` while it is held back.
    pub(crate) fn at(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn watch<F: Future + Unpin>(&self, call: F) -> Watched<F> {
        Watched {
            departure: self.clone(),
            call,
        }
    }
}

/// A call whose [`Departure`] is noted.
pub(crate) struct Watched<F> {
    departure: Departure,
    call: F,
}

impl<F: Future + Unpin> Future for Watched<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        /// Puts back what was watched before, also when the call panics.
        struct Restore(Option<Departure>);
        impl Drop for Restore {
            fn drop(&mut self) {
                WATCHED.set(self.0.take());
            }
        }
        let _restore = Restore(WATCHED.replace(Some(self.departure.clone())));
        Pin::new(&mut self.call).poll(context)
    }
}
