use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use because_llm::{Budget, ModelSpec, Price, PriceError, PriceTable, Spent};
use serde::Serialize;

use super::plan::Amounts;
use super::{Event, Pipeline, PlanOptions};
use crate::settings::BudgetFor;
use crate::{Error, Fault, Result};

/// How far something that is counted has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Reached {
    /// What is counted: "layer-0 items", "pairs".
    pub what: String,
    /// How many are done.
    pub done: usize,
    /// How many there are.
    pub total: usize,
}

/// Where a run stands that stopped at a limit or because somebody asked for it: the same command goes on from there.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Stopped {
    /// Why.
    pub reason: String,
    /// How far each part has come.
    pub reached: Vec<Reached>,
    /// What this run spent.
    pub spent: Spent,
    /// The same in US dollars, where every model has a price.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spent_usd: Option<f64>,
    /// What the rest would take, as far as it can be told now; `None` where the project cannot be planned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rest: Option<Amounts>,
}

/// What has been counted in a run so far, in the order in which it began.
#[derive(Debug, Default)]
pub(super) struct Reach(Mutex<Vec<Reached>>);

impl Reach {
    pub(super) fn note(&self, event: &Event<'_>) {
        let Event::Progress { what, done, total } = *event else {
            return;
        };
        let mut reached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match reached.iter_mut().rev().find(|known| known.what == what) {
            Some(known) => (known.done, known.total) = (done, total),
            None => reached.push(Reached {
                what: what.to_owned(),
                done,
                total,
            }),
        }
    }

    fn so_far(&self) -> Vec<Reached> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Pipeline {
    /// What this run has spent so far.
    #[must_use]
    pub fn spent(&self) -> Spent {
        self.budget.get().map(Budget::spent).unwrap_or_default()
    }

    /// Where the run stands after a stage ended with this error, if the error is a stop and no failure. `pairs` are those
    /// that the run was to explain, as [`PlanOptions::pairs`] takes them.
    #[must_use]
    pub fn stopped(&self, error: &Error, options: &PlanOptions) -> Option<Stopped> {
        if error.fault() != Fault::Stopped {
            return None;
        }
        let mut reason = error.to_string();
        let mut cause = std::error::Error::source(error);
        while let Some(source) = cause {
            reason = format!("{reason}: {source}");
            cause = source.source();
        }
        let spent = self.spent();
        // What is left is wanted now, and not to the last call.
        let mut options = options.clone();
        options.sample = options.sample.min(500);
        let rest = match self.plan(&options) {
            Ok(plan) => Some(plan.left),
            Err(error) => {
                tracing::debug!(%error, "what is left cannot be planned");
                None
            }
        };
        Some(Stopped {
            reason,
            reached: self.reached.so_far(),
            spent_usd: self.is_priced().then(|| spent.usd()),
            spent,
            rest,
        })
    }

    /// Whether the budget can be kept with these models: limits that are numbers, and a price for each where there is money.
    pub(super) fn check_budget(&self, specs: &[&ModelSpec]) -> Result<()> {
        let llm = &self.settings.llm;
        let Some(dollars) = llm.budget_usd else {
            return Ok(());
        };
        if !dollars.is_finite() || dollars < 0.0 {
            return Err(Error::Limit {
                field: "budget_usd",
                reason: format!("{dollars} is no amount of money"),
            });
        }
        let prices = self.prices()?;
        for spec in specs {
            if let ModelSpec::OpenAi { model, .. } = spec
                && prices.get(model).is_none()
            {
                let model = model.clone();
                return Err(PriceError::Unknown { model }.into());
            }
        }
        Ok(())
    }

    /// This run's purse, with what the model behind `spec` costs: nothing where it is no server's.
    pub(super) fn budget_for(&self, spec: &ModelSpec, name: &str) -> Result<Budget> {
        let budget = match self.budget.get() {
            Some(budget) => budget,
            None => {
                let made = self.make_budget()?;
                self.budget.get_or_init(|| made)
            }
        };
        let mut prices = self.prices()?;
        if !is_paid(spec) {
            prices.insert(name, Price::free());
        }
        Ok(budget.clone().prices(prices))
    }

    fn make_budget(&self) -> Result<Budget> {
        let llm = &self.settings.llm;
        let mut budget = Budget::new();
        if let Some(dollars) = llm.budget_usd {
            budget = budget.usd(dollars);
        }
        if let Some(tokens) = llm.budget_tokens {
            budget = budget.tokens(tokens);
        }
        if let Some(deadline) = llm.deadline {
            budget = budget.until(deadline.after(SystemTime::now()));
        }
        if llm.budget_for == BudgetFor::Project
            && let Some(totals) = self.llm_totals()?
        {
            let prices = self.prices()?;
            let cost = totals
                .models
                .iter()
                .filter_map(|(model, total)| Some(prices.get(model)?.cost(&total.usage)))
                .sum();
            let tokens = totals.usage.prompt_tokens + totals.usage.completion_tokens;
            budget = budget.spent_before(cost, tokens);
        }
        Ok(budget)
    }

    pub(super) fn prices(&self) -> Result<PriceTable> {
        self.settings.llm.price_table(self.project.root())
    }

    fn is_priced(&self) -> bool {
        let Ok(prices) = self.prices() else {
            return false;
        };
        [&self.settings.llm.model, self.settings.reasoner()]
            .iter()
            .all(|spec| match spec {
                ModelSpec::OpenAi { model, .. } => prices.get(model).is_some(),
                _ => true,
            })
    }
}

/// Whether somebody may send a bill for calls to it.
pub(super) fn is_paid(spec: &ModelSpec) -> bool {
    matches!(spec, ModelSpec::OpenAi { .. })
}
