use serde::{Deserialize, Serialize};

/// One evaluation on the validation set, as a line of the log.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Evaluation {
    /// After this step.
    pub step: u64,
    /// Mean cross-entropy over all supervised tokens of the set, in nats.
    #[serde(rename = "valid_loss")]
    pub loss: f64,
    /// `exp(loss)`: among how many tokens the model is as undecided as if they were equally likely.
    #[serde(rename = "valid_perplexity")]
    pub perplexity: f64,
    /// Tokens the loss is a mean over.
    #[serde(rename = "valid_tokens")]
    pub supervised_tokens: u64,
    /// Whether no evaluation before it was as low.
    pub best: bool,
    /// Wall-clock time of the evaluation.
    pub seconds: f64,
}

/// The losses of all evaluations so far, from which follows which one is best and whether to go on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct History(Vec<Point>);

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Point {
    pub(crate) step: u64,
    #[serde(with = "exact")]
    pub(crate) loss: f64,
}

impl History {
    /// Notes a loss and tells whether it is the lowest so far.
    pub(crate) fn add(&mut self, step: u64, loss: f64) -> bool {
        let is_best = self.best().is_none_or(|best| loss < best.loss);
        self.0.push(Point { step, loss });
        is_best
    }

    /// The first of the lowest.
    pub(crate) fn best(&self) -> Option<Point> {
        let lower = |best: Option<Point>, &point: &Point| match best {
            Some(best) if best.loss <= point.loss => Some(best),
            _ => Some(point),
        };
        self.0.iter().fold(None, lower)
    }

    /// Whether so many evaluations in a row brought nothing that is lower by more than `min_delta`. Small improvements
    /// add up: they are measured against the last loss that was an improvement.
    pub(crate) fn is_stale(&self, patience: Option<u32>, min_delta: f64) -> bool {
        let (mut mark, mut without) = (f64::INFINITY, 0);
        for point in &self.0 {
            if point.loss < mark - min_delta {
                (mark, without) = (point.loss, 0);
            } else {
                without += 1;
            }
        }
        patience.is_some_and(|patience| without >= patience)
    }
}

/// A number in a file as the text that gives back exactly it: JSON numbers may be read back a last place off, and what a
/// resumed run compares and reports must be what it was.
pub(crate) mod exact {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(number: &f64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format!("{number:?}"))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(losses: &[f64]) -> History {
        let mut history = History::default();
        for (step, &loss) in (1..).zip(losses) {
            history.add(step, loss);
        }
        history
    }

    #[test]
    fn the_best_is_the_first_of_the_lowest() {
        let history = history(&[3.0, 2.0, 2.5, 2.0]);
        assert_eq!(history.best(), Some(Point { step: 2, loss: 2.0 }));
        assert_eq!(History::default().best(), None);
    }

    #[test]
    fn patience_ends_after_so_many_evaluations_without_an_improvement() {
        let stale = |losses: &[f64], min_delta| history(losses).is_stale(Some(2), min_delta);
        assert!(!stale(&[3.0, 2.0, 2.5], 0.0));
        assert!(stale(&[3.0, 2.0, 2.5, 2.0], 0.0), "as low is not lower");
        assert!(stale(&[3.0, 2.95, 2.91], 0.1));
        assert!(!stale(&[3.0, 2.95, 2.85], 0.1), "small improvements add up");
        assert!(!history(&[1.0; 9]).is_stale(None, 0.0));
    }

    #[test]
    fn losses_come_back_from_a_file_as_they_were() {
        let history = history(&[0.1 + 0.2, 2.0 / 3.0, 1e-300, 5.123_456_789_012_345]);
        let text = serde_json::to_string(&history).unwrap();
        assert_eq!(serde_json::from_str::<History>(&text).unwrap(), history);
    }
}
