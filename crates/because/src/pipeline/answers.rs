use std::future::poll_fn;
use std::task::Poll;

use because_llm::Stop;
use because_tune::{
    Answering, Ask, Engine, EngineSettings, Generation, Piece, TuneError, TunedModel,
};

use crate::{Error, Result};

/// Answers many questions with a model of this machine, as one batch that is always full, and hands each answer over as soon
/// as it is whole, or why there is none. Questions are taken in the order given, so that those which begin alike should follow
/// each other.
///
/// # Errors
/// When the engine fails all that is asked of it, or `each` fails; [`Error::Stopped`] as soon as a stop is requested, what is
/// under way being let go.
pub(super) async fn answer_each<K>(
    model: &TunedModel,
    asks: impl IntoIterator<Item = (K, Ask)>,
    stop: &Stop,
    each: impl FnMut(K, Result<Generation, TuneError>) -> Result<()>,
) -> Result<()> {
    let settings = EngineSettings::default().fitted();
    // As many wait as run: a row that ends is followed at once.
    let most = settings.max_rows * 2;
    answer_with(&model.engine(settings)?, most, asks, stop, each).await
}

async fn answer_with<K>(
    engine: &Engine,
    most: usize,
    asks: impl IntoIterator<Item = (K, Ask)>,
    stop: &Stop,
    mut each: impl FnMut(K, Result<Generation, TuneError>) -> Result<()>,
) -> Result<()> {
    let mut asks = asks.into_iter();
    let mut under_way: Vec<(K, Answering)> = Vec::with_capacity(most);
    let mut answered = 0;
    loop {
        while under_way.len() < most {
            let Some((key, ask)) = asks.next() else { break };
            match engine.submit(ask) {
                Ok(answering) => under_way.push((key, answering)),
                Err(error) => {
                    each(key, Err(of_one(error)?))?;
                    answered += 1;
                }
            }
        }
        if under_way.is_empty() {
            return Ok(());
        }
        // Every step wakes this, so that a stop is seen within one.
        let arrived = poll_fn(|context| {
            if stop.is_requested() {
                return Poll::Ready(None);
            }
            for (place, (_, answering)) in under_way.iter_mut().enumerate() {
                while let Poll::Ready(Some(piece)) = answering.poll_next(context) {
                    match piece {
                        Piece::Text(_) => {}
                        Piece::Done(generation) => {
                            return Poll::Ready(Some((place, Ok(generation))));
                        }
                        Piece::Failed(error) => return Poll::Ready(Some((place, Err(error)))),
                    }
                }
            }
            Poll::Pending
        });
        let Some((place, answer)) = arrived.await else {
            return Err(Error::Stopped(format!("after {answered} explanations")));
        };
        let (key, _) = under_way.remove(place);
        let answer = match answer {
            Ok(generation) => Ok(generation),
            Err(error) => Err(of_one(error)?),
        };
        each(key, answer)?;
        answered += 1;
    }
}

/// Tells what is wrong with one question, which the others have nothing to do with, from what would meet them too.
fn of_one(error: TuneError) -> Result<TuneError> {
    match error {
        TuneError::ContextTooLong { .. }
        | TuneError::Chat { .. }
        | TuneError::Generation { .. } => Ok(error),
        of_all => Err(of_all.into()),
    }
}

#[cfg(test)]
mod tests {
    use because_core::Message;
    use because_tune::{Decoding, TinyBase};

    use super::*;

    #[tokio::test]
    async fn a_question_that_is_too_long_fails_alone_and_an_adapter_that_is_not_there_ends_all() {
        let folder = tempfile::tempdir().unwrap();
        let texts = vec!["why this and why not that".to_owned(); 4];
        TinyBase::new()
            .steps(1)
            .vocab_size(300)
            .build(texts, folder.path(), &mut |_| {})
            .unwrap();
        let model = TunedModel::load(folder.path(), None).unwrap();
        let ask = |text: String| Ask::chat(vec![Message::new("user", text)], Decoding::greedy(3));
        let long = "why ".repeat(model.config().max_position_embeddings);
        let asks = ["why?".to_owned(), long, "why not?".to_owned()].map(ask);
        let mut answers = vec![None; 3];
        answer_each(
            &model,
            asks.into_iter().enumerate(),
            &Stop::default(),
            |at, answer| {
                let is_long = matches!(answer, Err(TuneError::ContextTooLong { .. }));
                answers[at] = Some((answer.is_ok(), is_long));
                Ok(())
            },
        )
        .await
        .unwrap();
        let (done, failed) = (Some((true, false)), Some((false, true)));
        assert_eq!(answers, [done, failed, done]);
        let wrong = [((), ask("why?".into()).adapter("other"))];
        let ended = answer_each(&model, wrong, &Stop::default(), |(), _| Ok(())).await;
        assert!(ended.unwrap_err().to_string().contains("other"));
    }
}
