use because_llm::{Calibration, ModelId, Paid, Price, TokenCounter};
use serde::Serialize;

use super::amounts::{Amounts, Interval};
use super::{PlanOptions, Row};
use crate::settings::LlmSettings;

/// A model and what is known of how it counts, what it costs and how fast it is.
#[derive(Debug, Serialize)]
pub(super) struct Speaker {
    pub(super) model: String,
    /// What its tokens are counted with.
    counter: String,
    /// How far off the counts may be.
    pub(super) count_error: f64,
    /// Tokens the server counted for one of ours.
    pub(super) ratio: f64,
    /// How many calls that is learnt from.
    learnt_from_calls: u64,
    /// The share of prompts that came from the server's prefix cache.
    cached_share: f64,
    /// Seconds an answer takes; `None` where no call was seen and nothing was said.
    seconds_per_call: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    price: Option<Price>,
    #[serde(skip)]
    pub(super) thinks: bool,
    #[serde(skip)]
    pub(super) tokens: TokenCounter,
    #[serde(skip)]
    concurrency: f64,
    #[serde(skip)]
    limits: (Option<u64>, Option<u64>),
    /// Calls of a batch, in batch mode.
    batch_rows: Option<usize>,
    #[serde(skip)]
    in_process: bool,
    /// Whether it is a language model of this machine.
    #[serde(skip)]
    local: bool,
}

impl Speaker {
    pub(super) fn new(
        id: &ModelId,
        tokens: TokenCounter,
        price: Option<Price>,
        (options, llm): (&PlanOptions, &LlmSettings),
    ) -> Self {
        Self {
            model: id.model.clone(),
            thinks: thinks(&id.model),
            local: id.endpoint.starts_with("local"),
            in_process: !id.endpoint.starts_with("http"),
            counter: tokens.name(),
            count_error: tokens.error(),
            tokens,
            ratio: 1.0,
            learnt_from_calls: 0,
            cached_share: 0.0,
            seconds_per_call: options.latency_secs,
            price,
            concurrency: llm.concurrency.max(1) as f64,
            limits: (llm.requests_per_minute, llm.tokens_per_minute),
            batch_rows: llm.batch.then_some(llm.batch_rows.max(1)),
        }
    }

    /// Learns from all calls it has answered.
    pub(super) fn saw(&mut self, paid: &Paid) {
        if paid.answered > 0 {
            let mean = paid.answered_ms as f64 / 1000.0 / paid.answered as f64;
            self.seconds_per_call.get_or_insert(mean);
        }
        let usage = &paid.answered_usage;
        if usage.prompt_tokens > 0 {
            self.cached_share = usage.cached_tokens as f64 / usage.prompt_tokens as f64;
        }
    }

    /// Learns how the server counts from the rows whose prompts are known and were answered.
    pub(super) fn learn<'a>(&mut self, rows: impl Iterator<Item = &'a Row>) {
        let calibration = Calibration::default();
        for row in rows {
            calibration.learn("", row.estimated, &row.paid.answered_usage);
            self.learnt_from_calls += row.paid.answered;
        }
        self.ratio = calibration.of("").ratio();
        if self.learnt_from_calls >= 20 {
            self.count_error = self.count_error.min(0.03);
        }
    }

    pub(super) fn amounts(&self, calls: Interval, prompts: Interval, answers: Interval) -> Amounts {
        Amounts {
            calls,
            prompt_tokens: prompts,
            completion_tokens: answers,
            usd: self
                .price
                .as_ref()
                .map(|price| self.usd(price, prompts, answers)),
            hours: self.hours(calls, prompts, answers),
        }
    }

    fn usd(&self, price: &Price, prompts: Interval, answers: Interval) -> Interval {
        prompts.with(answers, |prompt, answer| {
            let usage = because_llm::Usage {
                prompt_tokens: prompt.round() as u64,
                completion_tokens: answer.round() as u64,
                cached_tokens: (prompt * self.cached_share).round() as u64,
                ..because_llm::Usage::default()
            };
            price.cost(&usage) as f64 / 1e9
        })
    }

    /// Without batches as long as the slowest of three takes: the calls at this concurrency, the requests a minute, the tokens a minute.
    fn hours(&self, calls: Interval, prompts: Interval, answers: Interval) -> Interval {
        if let Some(rows) = self.batch_rows {
            // A batch is promised within a day; how much sooner it comes is the server's affair.
            let batches = calls.each(|calls| (calls / rows as f64).ceil());
            return batches.times(Interval::new(0.1, 2.0, 24.0));
        }
        let seconds = match self.seconds_per_call {
            Some(seconds) => Interval::around(seconds, 0.3),
            // From a small model on many cores to a large one on few.
            None if self.local => Interval::new(0.5, 10.0, 300.0),
            // Nothing here waits for a network; what it takes shows after some calls.
            None if self.in_process => Interval::new(0.000_5, 0.005, 0.5),
            // A second until the first token, then some tens of tokens a second.
            None => {
                let each = answers.with(calls, |tokens, calls| tokens / calls.max(1.0));
                Interval::new(
                    0.4 + each.low / 120.0,
                    1.0 + each.expected / 60.0,
                    2.0 + each.high / 25.0,
                )
            }
        };
        let by_concurrency = calls
            .times(seconds)
            .each(|seconds| seconds / self.concurrency);
        let by_limit = |limit: Option<u64>, amount: Interval| {
            let limit = limit.filter(|limit| *limit > 0);
            limit.map_or(Interval::default(), |limit| {
                amount.each(|amount| amount * 60.0 / limit as f64)
            })
        };
        by_concurrency
            .with(by_limit(self.limits.0, calls), f64::max)
            .with(by_limit(self.limits.1, prompts.plus(answers)), f64::max)
            .each(|seconds| seconds / 3600.0)
    }

    /// What an estimate of this model rests on, in words.
    pub(super) fn said(&self) -> String {
        let learnt = match self.learnt_from_calls {
            0 => format!("may be off by {:.0} %", self.count_error * 100.0),
            calls => format!(
                "times {:.3}, as {calls} answered calls were counted",
                self.ratio
            ),
        };
        let speed = match self.seconds_per_call {
            Some(seconds) => format!("{seconds:.2} s a call"),
            None if self.in_process => "no call was timed yet".to_owned(),
            None => "1 s and 60 tokens a second, a guess".to_owned(),
        };
        let price = match &self.price {
            None => format!(
                "no price: add [llm.prices.{:?}] to because.toml",
                self.model
            ),
            Some(price) if *price == Price::free() => "costs nothing".to_owned(),
            Some(price) => match price.as_of() {
                Some(date) => format!("prices as of {date}"),
                None => "prices without a date".to_owned(),
            },
        };
        format!(
            "{}: tokens by {}, {learnt}; {speed}; {price}",
            self.model, self.counter
        )
    }
}

/// Whether a model of this name reasons before it answers.
fn thinks(model: &str) -> bool {
    let name = model.to_ascii_lowercase();
    let name = name.rsplit('/').next().unwrap_or_default();
    ["o1", "o3", "o4", "gpt-5"]
        .iter()
        .any(|start| name.starts_with(start))
        || ["reasoner", "-r1", "thinking", "qwq"]
            .iter()
            .any(|part| name.contains(part))
}
