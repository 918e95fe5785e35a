use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_timer::Delay;
use futures_util::future::join_all;
use proptest::prelude::*;

use super::*;
use crate::{Message, Retrying, Sampling};

/// Says how it will end for each call in turn, after so many milliseconds.
#[derive(Debug)]
struct Scripted {
    ends: Mutex<Vec<(Result<ChatResponse>, u64)>>,
    calls: AtomicU64,
}

impl Scripted {
    fn new(ends: impl IntoIterator<Item = (Result<ChatResponse>, u64)>) -> Self {
        let mut ends: Vec<_> = ends.into_iter().collect();
        ends.reverse();
        Self {
            ends: Mutex::new(ends),
            calls: AtomicU64::new(0),
        }
    }

    fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }
}

impl ChatModel for Scripted {
    fn chat<'a>(&'a self, _: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
        Box::pin(async move {
            self.calls.fetch_add(1, Ordering::Relaxed);
            let (end, millis) = self.ends.lock().unwrap().pop().unwrap();
            Delay::new(Duration::from_millis(millis)).await;
            end
        })
    }
}

fn answered(prompt_tokens: u64, completion_tokens: u64) -> Result<ChatResponse> {
    Ok(ChatResponse {
        answer: "yes".into(),
        usage: Usage {
            prompt_tokens,
            completion_tokens,
            ..Usage::default()
        },
        ..ChatResponse::default()
    })
}

fn broken(message: &str) -> Result<ChatResponse> {
    Err(ChatError::Transient {
        message: message.into(),
    })
}

/// 4 tokens a turn and 3 for the answer's beginning stand around the text, and a third is added for doubt.
fn request(max_tokens: u32) -> ChatRequest {
    ChatRequest::new(vec![Message::user("why?")]).sampling(Sampling {
        max_tokens: Some(max_tokens),
        ..Sampling::default()
    })
}

fn budgeted<M: ChatModel>(model: M, budget: &Budget) -> Budgeted<M> {
    Budgeted::new(model, budget.clone())
        .unwrap()
        .counter(TokenCounter::chars_per_token(4.0))
}

fn a_dollar_a_million() -> PriceTable {
    let mut prices = PriceTable::default();
    prices.insert("unnamed", Price::per_million(1.0, 1.0).unwrap());
    prices
}

#[tokio::test]
async fn the_message_says_which_limit_and_what_was_asked() {
    let budget = Budget::new()
        .prices(a_dollar_a_million())
        .usd(0.002)
        .tokens(2100);
    let model = budgeted(Scripted::new([(answered(10, 900), 0)]), &budget);
    model.chat(&request(1000)).await.unwrap();
    let error = model.chat(&request(2000)).await.unwrap_err();
    assert!(error.is_fatal() && error.is_stop() && !error.is_retryable());
    insta::assert_snapshot!(error, @"the budget of 0.002000 USD has 0.001090 left, and the next call may cost 0.002013; the budget of 2100 tokens has 1190 left, and the next call may take 2013");
    assert_eq!(model.inner.calls(), 1);
    assert_eq!(budget.spent().cost_nano, 910_000);
}

#[test]
fn a_budget_in_dollars_needs_the_price_of_every_model() {
    let error = Budgeted::new(Scripted::new([]), Budget::new().usd(1.0)).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("[llm.prices.\"unnamed\"]\ninput"),
        "{error}"
    );
    assert!(Budgeted::new(Scripted::new([]), Budget::new().tokens(1)).is_ok());
}

#[tokio::test]
async fn who_does_not_fit_waits_for_what_others_give_back_and_comes_in_order() {
    let budget = Budget::new().tokens(2500);
    let model = budgeted(
        Scripted::new([
            (answered(10, 10), 20),
            (answered(10, 10), 5),
            (answered(10, 10), 5),
        ]),
        &budget,
    );
    let order = Mutex::new(Vec::new());
    let ask = async |name: u8, max_tokens| {
        let result = model.chat(&request(max_tokens)).await;
        order.lock().unwrap().push(name);
        result
    };
    let (first, second, third) = futures_util::join!(ask(1, 2000), ask(2, 1500), ask(3, 1000));
    assert!(first.is_ok() && second.is_ok() && third.is_ok());
    assert_eq!(*order.lock().unwrap(), [1, 2, 3]);
    assert_eq!(budget.spent().tokens(), 60);
}

#[tokio::test]
async fn with_nothing_to_come_back_everybody_in_the_queue_is_told() {
    let budget = Budget::new().tokens(2500);
    let model = budgeted(
        Scripted::new([(answered(10, 1900), 5), (answered(10, 90), 0)]),
        &budget,
    );
    let (request_2000, request_1000) = (request(2000), request(1000));
    let (first, second, third) = futures_util::join!(
        model.chat(&request_2000),
        model.chat(&request_2000),
        model.chat(&request_1000)
    );
    assert!(first.is_ok());
    assert!(matches!(second, Err(ChatError::Exhausted { .. })));
    assert!(matches!(third, Err(ChatError::Exhausted { .. })));
    assert!(
        model.chat(&request(400)).await.is_ok(),
        "a smaller one still fits"
    );
}

#[tokio::test]
async fn a_dropped_call_keeps_what_it_reserved_and_a_dropped_waiter_nothing() {
    let budget = Budget::new().tokens(3000);
    let model = budgeted(
        Scripted::new([(answered(10, 10), 1000), (answered(10, 10), 0)]),
        &budget,
    );
    let (big, small) = (request(2000), request(900));
    {
        let mut first = model.chat(&big);
        let mut waits = model.chat(&big);
        assert!(futures_util::poll!(&mut first).is_pending());
        assert!(futures_util::poll!(&mut waits).is_pending());
        drop(waits);
        drop(first);
    }
    let spent = budget.spent();
    assert_eq!((spent.calls, spent.assumed_tokens), (1, 2011));
    model.chat(&small).await.unwrap();
}

#[tokio::test]
async fn a_granted_turn_that_nobody_takes_goes_to_the_next() {
    let budget = Budget::new().tokens(2500);
    let model = budgeted(
        Scripted::new([(answered(1, 1), 0), (answered(1, 1), 0)]),
        &budget,
    );
    let big = request(2000);
    let held = budget
        .reserve(Need {
            nano: 0,
            tokens: 2000,
        })
        .await
        .unwrap();
    let mut second = model.chat(&big);
    let mut third = model.chat(&big);
    assert!(futures_util::poll!(&mut second).is_pending());
    assert!(futures_util::poll!(&mut third).is_pending());
    held.give_back();
    drop(second);
    third.await.unwrap();
    assert_eq!(budget.spent().tokens(), 2);
}

#[tokio::test]
async fn refusals_cost_nothing_and_broken_calls_what_is_likely() {
    let ends = [
        (answered(11, 100), 0),
        (broken("http://a: HTTP 503: no"), 0),
        (
            broken("http://a: connection refused; is the server running?"),
            0,
        ),
        (broken("http://a: no answer within 600s"), 0),
        (answered(0, 0), 0),
    ];
    let budget = Budget::new().tokens(1_000_000);
    let model = budgeted(Scripted::new(ends), &budget);
    for _ in 0..5 {
        let _ = model.chat(&request(2000)).await;
    }
    let spent = budget.spent();
    assert_eq!(spent.usage.completion_tokens, 100);
    assert_eq!(
        spent.calls, 3,
        "the answered, the one without an answer, the one without usage"
    );
    // A prompt of 9 tokens by the ratio learnt, with the mean answer of 100, and with the one word that was said.
    assert_eq!(spent.assumed_tokens, (9 + 100) + (9 + 1));
}

#[tokio::test]
async fn no_call_begins_after_the_deadline() {
    let budget = Budget::new().until(SystemTime::now() - Duration::from_secs(1));
    let model = budgeted(Scripted::new([]), &budget);
    let error = model.chat(&request(1)).await.unwrap_err();
    assert!(
        error.is_stop() && error.to_string().contains("deadline"),
        "{error}"
    );
    let later = Budget::new().until(SystemTime::now() + Duration::from_secs(3600));
    let model = budgeted(Scripted::new([(answered(3, 4), 0)]), &later);
    model.chat(&request(1)).await.unwrap();
    assert_eq!(
        later.spent().tokens(),
        7,
        "what is not limited is still added up"
    );
}

#[tokio::test]
async fn what_was_spent_before_counts_where_it_should() {
    let budget = Budget::new()
        .prices(a_dollar_a_million())
        .usd(0.01)
        .spent_before(9_990_000, 9990);
    let model = budgeted(Scripted::new([]), &budget);
    assert!(model.chat(&request(100)).await.unwrap_err().is_stop());
}

#[tokio::test]
async fn every_attempt_of_a_retried_call_is_paid() {
    let budget = Budget::new().tokens(10_000);
    let ends = [
        (broken("the connection broke off"), 0),
        (answered(10, 20), 0),
    ];
    let model = Retrying::new(budgeted(Scripted::new(ends), &budget)).base(Duration::ZERO);
    model.chat(&request(1000)).await.unwrap();
    assert_eq!(budget.spent().calls, 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever calls turn out to cost, as long as none costs more than it may, the limit holds at any concurrency, and with
    /// enough money everything is answered.
    #[test]
    fn the_limit_holds_under_concurrency(
        calls in proptest::collection::vec((1u32..3000, 0.0f64..=1.0, 0u64..3, 0u8..10), 1..40),
        limit in 1000u64..60_000,
        dollars in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let ends = calls.iter().map(|&(max_tokens, share, millis, fate)| {
                let answer = (f64::from(max_tokens) * share) as u64;
                let end = match fate {
                    0 => broken("the connection broke off"),
                    1 => broken("HTTP 500"),
                    _ => answered(8, answer),
                };
                (end, millis)
            });
            let budget = Budget::new().prices(a_dollar_a_million());
            let budget = if dollars { budget.usd(limit as f64 / 1e6) } else { budget.tokens(limit) };
            let scripted = Scripted::new(ends);
            let model = budgeted(&scripted, &budget);
            // The script is in the order of calls, so the largest may be what any of them gives.
            let largest = calls.iter().map(|call| call.0).max().unwrap();
            let request = request(largest);
            let results = join_all(calls.iter().map(|_| model.chat(&request))).await;
            let spent = budget.spent();
            prop_assert!(spent.tokens() <= limit, "{} of {limit}", spent.tokens());
            prop_assert!(spent.nano() <= limit * 1000);
            let stopped = results.iter().filter(|result| result.as_ref().is_err_and(ChatError::is_stop)).count();
            prop_assert_eq!(scripted.calls() as usize + stopped, calls.len());
            if stopped > 0 {
                prop_assert!(spent.tokens() + u64::from(largest) + 12 > limit, "stopped with enough left");
            }
            let ledger = budget.ledger.lock().unwrap();
            prop_assert!(ledger.is_idle());
            Ok(())
        })?;
    }
}
