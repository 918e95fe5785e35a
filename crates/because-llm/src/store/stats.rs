use std::collections::BTreeMap;

use rusqlite::Connection;
use serde::Serialize;

use super::{Store, unsigned};
use crate::{Result, Usage};

/// What a [`Store`] says about the calls of a project: what they cost, how long they took, what was saved.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct StoreStats {
    /// Bytes of the file, with what is not yet moved into its tables.
    pub file_bytes: u64,
    /// Answers kept.
    pub responses: u64,
    /// Requests that were answered from here, so that no call went out for them. A run that was killed may have counted
    /// fewer than there were.
    pub from_store: u64,
    /// Answers kept that did not fit when they first came and fitted after a repair.
    pub repaired: u64,
    /// When the first call went out, in seconds since 1970.
    pub first_unix: Option<i64>,
    /// And the last.
    pub last_unix: Option<i64>,
    /// All calls together.
    #[serde(flatten)]
    pub calls: CallStats,
    /// The same by model and endpoint.
    pub models: Vec<ModelStats>,
}

/// The calls to one model at one endpoint.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ModelStats {
    /// The model's name.
    pub model: String,
    /// The endpoint's label; empty for a model in the process.
    pub endpoint: String,
    /// Its calls.
    #[serde(flatten)]
    pub calls: CallStats,
}

/// What calls add up to.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CallStats {
    /// Calls that went out.
    pub attempts: u64,
    /// What became of them; [`StoreTotals`](crate::StoreTotals) lists the words.
    pub outcomes: BTreeMap<String, u64>,
    /// Their tokens, good or bad.
    pub usage: Usage,
    /// The share of prompt tokens that came from the server's prefix cache; `None` without prompt tokens.
    pub cached_share: Option<f64>,
    /// Of the answers that ended by themselves, the share that was not what was asked for; `None` without an answer.
    pub invalid_share: Option<f64>,
    /// What those with a price cost, in billionths of a dollar; `None` where none had one.
    pub cost_nano: Option<u64>,
    /// Calls that took tokens and had no price.
    pub unpriced: u64,
    /// How long those took that were answered, in milliseconds.
    pub latency_ms: Option<Quantiles>,
    /// How long calls waited for their turn, in milliseconds, where that is known.
    pub queued_ms: Option<Quantiles>,
}

/// How long things took, to a thousandth.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Quantiles {
    /// Half took no longer than this.
    pub p50: u64,
    /// Nine in ten.
    pub p90: u64,
    /// Ninety-nine in a hundred.
    pub p99: u64,
    /// The longest.
    pub max: u64,
}

impl Store {
    /// What there is to say about the calls so far, in one pass over the rows that are on disk. For a look from time to
    /// time; [`totals`](Self::totals) are quicker.
    ///
    /// # Errors
    /// [`ChatError::Store`](crate::ChatError::Store) when the file cannot be read.
    pub fn stats(&self) -> Result<StoreStats> {
        let mut stats = self.read(stats)?;
        stats.file_bytes = super::file::bytes(self.path());
        Ok(stats)
    }
}

/// What is added up before it is said.
#[derive(Default)]
struct Sum {
    calls: CallStats,
    latency: Histogram,
    queued: Histogram,
}

fn stats(reader: &Connection) -> rusqlite::Result<StoreStats> {
    // One transaction, so that the figures belong together.
    let reader = reader.unchecked_transaction()?;
    let mut stats = StoreStats {
        responses: reader
            .query_row("SELECT count(*) FROM responses", [], |row| unsigned(row, 0))?,
        from_store: reader.query_row(
            "SELECT coalesce(sum(from_store), 0) FROM runs",
            [],
            |row| unsigned(row, 0),
        )?,
        // The repair itself is another request; its answer is kept for the first one.
        repaired: reader.query_row(
            "WITH bad AS MATERIALIZED (SELECT DISTINCT key FROM attempts WHERE outcome = 'invalid')
             SELECT count(*) FROM bad WHERE EXISTS (SELECT 1 FROM responses WHERE key = bad.key) AND key NOT IN
                 (SELECT key FROM attempts WHERE outcome = 'ok' AND key IN (SELECT key FROM bad))",
            [],
            |row| unsigned(row, 0),
        )?,
        ..StoreStats::default()
    };
    let mut all = Sum::default();
    let mut models: BTreeMap<(String, String), Sum> = BTreeMap::new();
    let mut statement = reader.prepare(
        "SELECT model, endpoint, outcome, created_unix, prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens,
                cost_nano, latency_ms, queued_ms FROM attempts",
    )?;
    let mut rows = statement.query([])?;
    let mut at = (String::new(), String::new());
    while let Some(row) = rows.next()? {
        if row.get_ref(0)?.as_str()? != at.0 || row.get_ref(1)?.as_str()? != at.1 {
            at = (row.get(0)?, row.get(1)?);
        }
        let created: i64 = row.get(3)?;
        stats.first_unix = Some(stats.first_unix.map_or(created, |first| first.min(created)));
        stats.last_unix = Some(stats.last_unix.map_or(created, |last| last.max(created)));
        let call = Call {
            outcome: row.get_ref(2)?.as_str()?,
            usage: Usage {
                prompt_tokens: unsigned(row, 4)?,
                completion_tokens: unsigned(row, 5)?,
                cached_tokens: unsigned(row, 6)?,
                reasoning_tokens: unsigned(row, 7)?,
            },
            cost_nano: row.get::<_, Option<i64>>(8)?.map(i64::unsigned_abs),
            latency_ms: row.get::<_, Option<i64>>(9)?.map(i64::unsigned_abs),
            queued_ms: row.get::<_, Option<i64>>(10)?.map(i64::unsigned_abs),
        };
        all.add(&call);
        match models.get_mut(&at) {
            Some(sum) => sum.add(&call),
            None => models.entry(at.clone()).or_default().add(&call),
        }
    }
    stats.calls = all.said();
    stats.models = models
        .into_iter()
        .map(|((model, endpoint), sum)| ModelStats {
            model,
            endpoint,
            calls: sum.said(),
        })
        .collect();
    Ok(stats)
}

struct Call<'a> {
    outcome: &'a str,
    usage: Usage,
    cost_nano: Option<u64>,
    latency_ms: Option<u64>,
    queued_ms: Option<u64>,
}

impl Sum {
    fn add(&mut self, call: &Call<'_>) {
        let calls = &mut self.calls;
        calls.attempts += 1;
        match calls.outcomes.get_mut(call.outcome) {
            Some(count) => *count += 1,
            None => {
                calls.outcomes.insert(call.outcome.to_owned(), 1);
            }
        }
        calls.usage += call.usage;
        match call.cost_nano {
            Some(cost) => *calls.cost_nano.get_or_insert(0) += cost,
            None => calls.unpriced += u64::from(call.usage != Usage::default()),
        }
        if let (Some(latency), "ok" | "invalid" | "truncated" | "filtered") =
            (call.latency_ms, call.outcome)
        {
            self.latency.add(latency);
        }
        if let Some(queued) = call.queued_ms {
            self.queued.add(queued);
        }
    }

    fn said(self) -> CallStats {
        let share = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
        let outcome = |name| self.calls.outcomes.get(name).copied().unwrap_or(0);
        let (ok, invalid) = (outcome("ok"), outcome("invalid"));
        CallStats {
            cached_share: share(
                self.calls.usage.cached_tokens,
                self.calls.usage.prompt_tokens,
            ),
            invalid_share: share(invalid, ok + invalid),
            latency_ms: self.latency.quantiles(),
            queued_ms: self.queued.quantiles(),
            ..self.calls
        }
    }
}

/// Counts by value, rounded to eleven binary digits: a few thousand places at most for any number of values.
#[derive(Default)]
struct Histogram {
    counts: BTreeMap<u64, u64>,
    total: u64,
    max: u64,
}

impl Histogram {
    fn add(&mut self, value: u64) {
        let dropped = (u64::BITS - value.leading_zeros()).saturating_sub(11);
        *self.counts.entry(value >> dropped << dropped).or_default() += 1;
        self.total += 1;
        self.max = self.max.max(value);
    }

    fn quantiles(&self) -> Option<Quantiles> {
        let at = |hundredths: u64| {
            let rank = (self.total * hundredths).div_ceil(100);
            let mut seen = 0;
            let reached = |(_, count): &(&u64, &u64)| {
                seen += **count;
                seen >= rank
            };
            self.counts
                .iter()
                .find(reached)
                .map_or(0, |(value, _)| *value)
        };
        (self.total > 0).then(|| Quantiles {
            p50: at(50),
            p90: at(90),
            p99: at(99),
            max: self.max,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_sorted_values() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantiles(), None);
        for value in (1..=1000).rev() {
            histogram.add(value);
        }
        let expected = Quantiles {
            p50: 500,
            p90: 900,
            p99: 990,
            max: 1000,
        };
        assert_eq!(histogram.quantiles(), Some(expected));

        let mut histogram = Histogram::default();
        for value in 0..2_000_000 {
            histogram.add(value);
        }
        assert!(histogram.counts.len() < 15_000);
        let p90 = histogram.quantiles().unwrap().p90;
        assert!((1_798_000..=1_800_000).contains(&p90), "{p90}");
    }
}
