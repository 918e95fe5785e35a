use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::error::{Result, TuneError};
use crate::tuned::Generation;

/// What an answer brings, in order: texts, then one of the other two.
#[derive(Debug)]
pub enum Piece {
    /// More of the text: whole characters, and nothing of a stop text.
    Text(String),
    /// The end, with all of it.
    Done(Generation),
    /// The end without an answer.
    Failed(TuneError),
}

/// An answer under way. Dropping it cancels it, and the next step has room for another.
#[derive(Debug)]
pub struct Answering {
    channel: Arc<Channel>,
}

#[derive(Debug, Default)]
struct Channel {
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct State {
    pieces: VecDeque<Piece>,
    waker: Option<Waker>,
    /// Whether the last piece was put in.
    complete: bool,
    /// Whether nobody waits any more.
    cancelled: bool,
}

impl Channel {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Answering {
    /// The next piece; `None` after the last. It needs no runtime and blocks no thread.
    pub async fn next(&mut self) -> Option<Piece> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// The same as a poll, for whoever makes a stream of it.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Piece>> {
        let mut state = self.channel.state();
        match state.pieces.pop_front() {
            Some(piece) => Poll::Ready(Some(piece)),
            None if state.complete => Poll::Ready(None),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    /// The answer, when it is whole.
    ///
    /// # Errors
    /// What a [`Piece::Failed`] says.
    pub async fn done(mut self) -> Result<Generation> {
        loop {
            match self.next().await {
                Some(Piece::Text(_)) => {}
                Some(Piece::Done(generation)) => return Ok(generation),
                Some(Piece::Failed(error)) => return Err(error),
                None => return Err(TuneError::Ended),
            }
        }
    }

    /// The same, blocking this thread.
    ///
    /// # Errors
    /// As [`Answering::done`].
    pub fn wait(self) -> Result<Generation> {
        let mut state = self.channel.state();
        loop {
            match state.pieces.pop_front() {
                Some(Piece::Text(_)) => {}
                Some(Piece::Done(generation)) => return Ok(generation),
                Some(Piece::Failed(error)) => return Err(error),
                None if state.complete => return Err(TuneError::Ended),
                None => {
                    let waited = self.channel.arrived.wait(state);
                    state = waited.unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.channel.state().cancelled = true;
    }
}

/// The engine's end of an [`Answering`]. Dropped before the answer is whole, as by a panic, it says so.
#[derive(Debug)]
pub(super) struct Answer {
    channel: Arc<Channel>,
    /// Counts the asks of the engine, this one until it is answered.
    under_way: Option<Arc<AtomicUsize>>,
}

impl Answer {
    /// Both ends of a new answer, which counts as under way until it is whole.
    pub(super) fn new(under_way: Arc<AtomicUsize>) -> (Self, Answering) {
        let channel = Arc::new(Channel::default());
        let answering = Answering {
            channel: Arc::clone(&channel),
        };
        let under_way = Some(under_way);
        (Self { channel, under_way }, answering)
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.channel.state().cancelled
    }

    /// Lets whoever waits look again, though there is nothing new: a stop asked for elsewhere is seen then.
    pub(super) fn wake(&self) {
        let waker = self.channel.state().waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Hands over the next piece; nothing follows one that is not a text.
    pub(super) fn put(&mut self, piece: Piece) {
        let is_last = !matches!(piece, Piece::Text(_));
        if is_last && let Some(under_way) = self.under_way.take() {
            under_way.fetch_sub(1, Ordering::AcqRel);
        }
        let waker = {
            let mut state = self.channel.state();
            if state.complete {
                return;
            }
            state.complete = is_last;
            state.pieces.push_back(piece);
            state.waker.take()
        };
        self.channel.arrived.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.put(Piece::Failed(TuneError::Ended));
    }
}
