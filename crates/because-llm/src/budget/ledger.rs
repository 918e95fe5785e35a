use std::collections::VecDeque;
use std::mem::take;
use std::sync::PoisonError;
use std::time::SystemTime;

use futures_channel::oneshot;

use super::{Budget, Limits, Spent};
use crate::deadline::rfc3339;
use crate::prices::dollars;
use crate::{ChatError, Result, Usage};

/// What is spent, what is held for calls under way, and who waits for some of that.
#[derive(Default)]
pub(super) struct Ledger {
    pub(super) spent: Spent,
    held: Need,
    under_way: usize,
    queue: VecDeque<Waiter>,
}

/// What a call can cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Need {
    pub(super) nano: u64,
    pub(super) tokens: u64,
}

struct Waiter {
    need: Need,
    turn: oneshot::Sender<Result<()>>,
}

/// What is held for one call. Dropped without a word, all of it counts as spent, because it may have been.
pub(super) struct Reservation {
    budget: Budget,
    need: Need,
    settled: bool,
}

impl Budget {
    /// Holds `need` as soon as it fits.
    pub(super) async fn reserve(&self, need: Need) -> Result<Reservation> {
        let mut waiting = {
            let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(late) = self.limits.late() {
                return Err(late);
            }
            if ledger.queue.is_empty() {
                if ledger.fits(&self.limits, need) {
                    ledger.hold(need);
                    return Ok(Reservation::new(self, need));
                }
                if ledger.under_way == 0 {
                    return Err(ledger.exhausted(&self.limits, need));
                }
            }
            let (turn, answer) = oneshot::channel();
            ledger.queue.push_back(Waiter { need, turn });
            Waiting {
                budget: self,
                need,
                answer: Some(answer),
            }
        };
        let answered = match &mut waiting.answer {
            Some(answer) => answer.await,
            None => Err(oneshot::Canceled),
        };
        waiting.answer = None;
        // Whoever takes somebody out of the queue answers them first.
        answered.expect("a waiter in the queue is answered before it is let go")?;
        Ok(Reservation::new(self, need))
    }

    fn settle(&self, need: Need, settle: impl FnOnce(&mut Spent)) {
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        ledger.let_go(need);
        settle(&mut ledger.spent);
        ledger.serve(&self.limits);
    }
}

impl Limits {
    fn late(&self) -> Option<ChatError> {
        let until = self.until.filter(|until| SystemTime::now() >= *until)?;
        Some(ChatError::Exhausted {
            message: format!("the deadline of {} has passed", rfc3339(until)),
        })
    }
}

impl Ledger {
    fn fits(&self, limits: &Limits, need: Need) -> bool {
        let fits = |limit: Option<u64>, sums: [u64; 3]| {
            limit.is_none_or(|limit| {
                sums.iter()
                    .try_fold(0u64, |sum, part| sum.checked_add(*part))
                    .is_some_and(|sum| sum <= limit)
            })
        };
        fits(limits.nano, [self.spent.nano(), self.held.nano, need.nano])
            && fits(
                limits.tokens,
                [self.spent.tokens(), self.held.tokens, need.tokens],
            )
    }

    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.held == Need::default() && self.under_way == 0 && self.queue.is_empty()
    }

    fn hold(&mut self, need: Need) {
        self.held.nano += need.nano;
        self.held.tokens += need.tokens;
        self.under_way += 1;
    }

    fn let_go(&mut self, need: Need) {
        self.held.nano -= need.nano;
        self.held.tokens -= need.tokens;
        self.under_way -= 1;
    }

    /// Lets in whoever now fits, in the order in which they came; with nobody under way, whoever does not fit never will.
    fn serve(&mut self, limits: &Limits) {
        while let Some(first) = self.queue.front() {
            let need = first.need;
            let answer = if first.turn.is_canceled() {
                self.queue.pop_front();
                continue;
            } else if let Some(late) = limits.late() {
                Err(late)
            } else if self.fits(limits, need) {
                Ok(())
            } else if self.under_way == 0 {
                Err(self.exhausted(limits, need))
            } else {
                return;
            };
            let granted = answer.is_ok();
            if granted {
                self.hold(need);
            }
            let Some(first) = self.queue.pop_front() else {
                return;
            };
            if first.turn.send(answer).is_err() && granted {
                self.let_go(need);
            }
        }
    }

    fn exhausted(&self, limits: &Limits, need: Need) -> ChatError {
        let mut reached = Vec::new();
        if let Some(limit) = limits.nano
            && self.spent.nano().saturating_add(need.nano) > limit
        {
            reached.push(format!(
                "the budget of {} USD has {} left, and the next call may cost {}",
                usd(limit),
                usd(limit.saturating_sub(self.spent.nano())),
                usd(need.nano)
            ));
        }
        if let Some(limit) = limits.tokens
            && self.spent.tokens().saturating_add(need.tokens) > limit
        {
            reached.push(format!(
                "the budget of {limit} tokens has {} left, and the next call may take {}",
                limit.saturating_sub(self.spent.tokens()),
                need.tokens
            ));
        }
        ChatError::Exhausted {
            message: reached.join("; "),
        }
    }
}

/// As few decimals as say something.
fn usd(nano: u64) -> String {
    let amount = dollars(nano);
    let decimals = if amount >= 1.0 || nano == 0 { 2 } else { 6 };
    format!("{amount:.decimals$}")
}

impl Reservation {
    fn new(budget: &Budget, need: Need) -> Self {
        Self {
            budget: budget.clone(),
            need,
            settled: false,
        }
    }

    /// The call cost this.
    pub(super) fn pay(self, usage: Usage, nano: u64) {
        self.settle(|spent| {
            spent.calls += 1;
            spent.usage += usage;
            spent.cost_nano += nano;
        });
    }

    /// The call may have cost this.
    pub(super) fn assume(self, need: Need) {
        self.settle(|spent| spent.assume(need));
    }

    /// The call cost nothing.
    pub(super) fn give_back(self) {
        self.settle(|_| {});
    }

    fn settle(mut self, settle: impl FnOnce(&mut Spent)) {
        self.settled = true;
        self.budget.settle(self.need, settle);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.settled {
            self.budget
                .settle(self.need, |spent| spent.assume(self.need));
        }
    }
}

impl Spent {
    fn assume(&mut self, need: Need) {
        self.calls += 1;
        self.assumed_nano += need.nano;
        self.assumed_tokens += need.tokens;
    }
}

/// A place in the queue; left early, what was granted meanwhile goes to the others.
struct Waiting<'a> {
    budget: &'a Budget,
    need: Need,
    answer: Option<oneshot::Receiver<Result<()>>>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let Some(mut answer) = take(&mut self.answer) else {
            return;
        };
        answer.close();
        if let Ok(Some(Ok(()))) = answer.try_recv() {
            self.budget.settle(self.need, |_| {});
        }
    }
}
