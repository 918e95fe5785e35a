use std::future::poll_fn;
use std::task::Poll;

use because_llm::Stop;
use because_tune::{Answering, Ask, EngineSettings, Generation, Piece, TunedModel};

use crate::{Error, Result};

/// Answers many questions with a model of this machine, as one batch that is always full, and hands each answer over as soon
/// as it is whole. Questions are taken in the order given, so that those which begin alike should follow each other.
///
/// # Errors
/// When a question cannot be answered or `each` fails; [`Error::Stopped`] as soon as a stop is requested, what is under way
/// being let go.
pub(super) async fn answer_each<K>(
    model: &TunedModel,
    asks: impl IntoIterator<Item = (K, Ask)>,
    stop: &Stop,
    mut each: impl FnMut(K, Generation) -> Result<()>,
) -> Result<()> {
    let settings = EngineSettings::default();
    // As many wait as run: a row that ends is followed at once.
    let most = settings.max_rows * 2;
    let engine = model.engine(settings)?;
    let mut asks = asks.into_iter();
    let mut under_way: Vec<(K, Answering)> = Vec::with_capacity(most);
    let mut answered = 0;
    loop {
        while under_way.len() < most {
            let Some((key, ask)) = asks.next() else { break };
            under_way.push((key, engine.submit(ask)?));
        }
        if under_way.is_empty() {
            return Ok(());
        }
        // Every token wakes this, so that a stop is seen within a step.
        let arrived = poll_fn(|context| {
            if stop.is_requested() {
                return Poll::Ready(None);
            }
            for (place, (_, answering)) in under_way.iter_mut().enumerate() {
                while let Poll::Ready(piece) = answering.poll_next(context) {
                    match piece {
                        Some(Piece::Text(_)) => {}
                        last => return Poll::Ready(Some((place, last))),
                    }
                }
            }
            Poll::Pending
        });
        let Some((place, piece)) = arrived.await else {
            return Err(Error::Stopped(format!("after {answered} explanations")));
        };
        let (key, answering) = under_way.remove(place);
        match piece {
            Some(Piece::Done(generation)) => each(key, generation)?,
            Some(Piece::Failed(error)) => return Err(error.into()),
            // The engine says why before it ends; what it says is asked for once more.
            _ => each(key, answering.done().await?)?,
        }
        answered += 1;
    }
}
