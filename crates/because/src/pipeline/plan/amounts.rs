use because_llm::Usage;
use serde::{Serialize, Serializer};

/// A number that is not known yet: between `low` and `high`, most likely `expected`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Interval {
    /// Hardly less than this.
    #[serde(serialize_with = "short")]
    pub low: f64,
    /// The best guess.
    #[serde(serialize_with = "short")]
    pub expected: f64,
    /// Hardly more than this.
    #[serde(serialize_with = "short")]
    pub high: f64,
}

impl Interval {
    pub(super) fn new(low: f64, expected: f64, high: f64) -> Self {
        Self {
            low: low.min(expected),
            expected,
            high: high.max(expected),
        }
    }

    pub(super) fn exactly(value: f64) -> Self {
        Self::new(value, value, value)
    }

    /// `value`, more or less this share of it.
    pub(super) fn around(value: f64, share: f64) -> Self {
        Self::new(value * (1.0 - share.min(1.0)), value, value * (1.0 + share))
    }

    pub(super) fn each(self, change: impl Fn(f64) -> f64) -> Self {
        Self {
            low: change(self.low),
            expected: change(self.expected),
            high: change(self.high),
        }
    }

    pub(super) fn with(self, other: Self, join: impl Fn(f64, f64) -> f64) -> Self {
        Self {
            low: join(self.low, other.low),
            expected: join(self.expected, other.expected),
            high: join(self.high, other.high),
        }
    }

    pub(super) fn times(self, other: Self) -> Self {
        self.with(other, |a, b| a * b)
    }

    pub(super) fn plus(self, other: Self) -> Self {
        self.with(other, |a, b| a + b)
    }

    /// Whole numbers, outwards.
    fn whole(self) -> Self {
        // What is a whole number but for the dust of floating point stays that number.
        Self {
            low: (self.low + 1e-6).floor().abs(),
            expected: self.expected.round().abs(),
            high: (self.high - 1e-6).ceil().abs(),
        }
    }
}

/// A whole number as one, any other with six decimals.
fn short<S: Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
    let rounded = (value * 1e6).round() / 1e6;
    if rounded.fract() == 0.0 && (0.0..9e15).contains(&rounded) {
        to.serialize_u64(rounded as u64)
    } else {
        to.serialize_f64(rounded)
    }
}

/// What some calls come to, beforehand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Amounts {
    /// How many there are. Repetitions after a failure and repairs of answers that do not fit come on top; questions that turn
    /// out to be the same, because the texts in them do, are asked once.
    pub calls: Interval,
    /// Tokens of their prompts.
    pub prompt_tokens: Interval,
    /// Tokens of their answers, reasoning included.
    pub completion_tokens: Interval,
    /// US dollars; `None` where a model has no price.
    pub usd: Option<Interval>,
    /// Hours, at the limits given.
    pub hours: Interval,
}

impl Amounts {
    pub(super) fn nothing() -> Self {
        Self {
            usd: Some(Interval::default()),
            ..Self::default()
        }
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            calls: self.calls.plus(other.calls),
            prompt_tokens: self.prompt_tokens.plus(other.prompt_tokens),
            completion_tokens: self.completion_tokens.plus(other.completion_tokens),
            usd: self.usd.zip(other.usd).map(|(a, b)| a.plus(b)),
            hours: self.hours.plus(other.hours),
        }
    }

    pub(super) fn whole(self) -> Self {
        Self {
            calls: self.calls.whole(),
            prompt_tokens: self.prompt_tokens.whole(),
            completion_tokens: self.completion_tokens.whole(),
            ..self
        }
    }
}

/// What some calls came to, afterwards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Taken {
    /// Calls that went out, also those that failed or were repeated.
    pub calls: u64,
    /// Their tokens, as the servers counted them.
    pub usage: Usage,
    /// US dollars at today's prices; `None` where a model has no price.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usd: Option<f64>,
}
