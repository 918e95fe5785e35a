use std::future::Future;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use because_llm::{
    Adaptive, Audited, BoxFuture, Cached, ChatError, ChatModel, ChatRequest, ChatResponse, Message,
    ModelStack, Replay, Result, SingleFlight, Store, Usage, Validated,
};
use futures_util::future::join_all;
use futures_util::task::noop_waker;
use serde_json::json;

/// Answers after a moment with what `says` makes of the number of the call, and counts.
struct Slow<F> {
    says: F,
    calls: AtomicUsize,
    under_way: AtomicUsize,
    most_under_way: AtomicUsize,
}

impl<F: Fn(usize) -> Result<String> + Send + Sync> Slow<F> {
    fn new(says: F) -> Self {
        Self {
            says,
            calls: AtomicUsize::new(0),
            under_way: AtomicUsize::new(0),
            most_under_way: AtomicUsize::new(0),
        }
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

impl<F: Fn(usize) -> Result<String> + Send + Sync> ChatModel for Slow<F> {
    fn chat<'a>(&'a self, _: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
        Box::pin(async move {
            let call = self.calls.fetch_add(1, Ordering::SeqCst);
            let now = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
            self.most_under_way.fetch_max(now, Ordering::SeqCst);
            futures_timer::Delay::new(Duration::from_millis(20)).await;
            self.under_way.fetch_sub(1, Ordering::SeqCst);
            (self.says)(call).map(|answer| ChatResponse {
                answer,
                usage: Usage {
                    prompt_tokens: 7,
                    completion_tokens: 2,
                    ..Usage::default()
                },
                ..ChatResponse::default()
            })
        })
    }
}

fn ask(n: usize) -> ChatRequest {
    ChatRequest::new(vec![Message::user(format!("question {n}"))])
}

fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("llm.sqlite")).unwrap();
    (folder, store)
}

#[tokio::test]
async fn identical_requests_at_once_are_one_call() {
    let (_folder, store) = store();
    let inner = Slow::new(|call| Ok(format!("answer {call}")));
    let model = SingleFlight::new(Cached::new(&inner, store.clone()));
    let request = ask(1);
    let answers = join_all((0..50).map(|_| model.chat(&request))).await;
    assert!(
        answers
            .iter()
            .all(|answer| answer.as_ref().unwrap().answer == "answer 0")
    );
    assert_eq!(inner.calls(), 1);
    assert_eq!(store.totals().unwrap().responses, 1);
}

#[tokio::test]
async fn when_the_first_of_many_goes_away_the_next_goes_on_and_what_it_finds_is_kept() {
    let (_folder, store) = store();
    let inner = Slow::new(|call| match call {
        1 => Err(ChatError::Transient {
            message: "reset".into(),
        }),
        call => Ok(format!("answer {call}")),
    });
    let model = SingleFlight::new(Cached::new(&inner, store));
    let request = ask(1);
    let mut first = model.chat(&request);
    assert!(poll(&mut first).is_pending());
    let others = join_all((0..3).map(|_| model.chat(&request)));
    drop(first);
    assert!(
        others.await.iter().all(Result::is_err),
        "an error is shared"
    );
    assert_eq!(inner.calls(), 2);
    let again = join_all((0..3).map(|_| model.chat(&request))).await;
    assert!(
        again
            .iter()
            .all(|result| result.as_ref().unwrap().answer == "answer 2")
    );
    assert_eq!(model.chat(&request).await.unwrap().answer, "answer 2");
    assert_eq!(inner.calls(), 3);
}

#[tokio::test]
async fn a_cache_alone_gives_everybody_the_answer_that_was_stored_first() {
    let (_folder, store) = store();
    let inner = Slow::new(|call| Ok(format!("answer {call}")));
    let model = Cached::new(&inner, store.clone());
    let request = ask(1);
    let answers = join_all((0..3).map(|_| model.chat(&request))).await;
    let first = answers[0].as_ref().unwrap();
    assert!(
        answers
            .iter()
            .all(|answer| answer.as_ref().unwrap() == first)
    );
    assert_eq!(store.totals().unwrap().responses, 1);
}

#[tokio::test]
async fn an_error_and_an_answer_that_does_not_fit_are_not_kept() {
    let (_folder, store) = store();
    let inner = Slow::new(|call| Ok(if call < 3 { "no JSON" } else { "{}" }.into()));
    let model = ModelStack::new(Audited::new(
        Shared(&*Box::leak(Box::new(inner))),
        store.clone(),
    ));
    let model = model.repairs(2).build().unwrap();
    let cached = Cached::new(model, store.clone());
    let request = ask(1).schema("any", json!({"type": "object"}));
    assert!(matches!(
        cached.chat(&request).await,
        Err(ChatError::Invalid { attempts: 3, .. })
    ));
    assert_eq!(store.totals().unwrap().responses, 0);
    assert_eq!(cached.chat(&request).await.unwrap().answer, "{}");
    assert_eq!(store.totals().unwrap().responses, 1);
}

#[tokio::test]
async fn a_run_killed_at_any_moment_pays_for_nothing_twice() {
    let (folder, store) = store();
    let path = store.path().to_owned();
    drop(store);
    let calls = Mutex::new(vec![0; 20]);
    // Killed after 1, 2, 3 ... polls: wherever that is, what was answered is there for the next run.
    for polls in 0.. {
        let store = Store::open(&path).unwrap();
        let inner = Counting(&calls);
        let model = Cached::new(
            Validated::new(Adaptive::fixed(Audited::new(inner, store.clone()), 3)),
            store.clone(),
        );
        let requests: Vec<ChatRequest> = (0..20).map(ask).collect();
        let mut run = join_all(requests.iter().map(|request| model.chat(request)));
        let mut done = false;
        for _ in 0..polls {
            std::thread::sleep(Duration::from_millis(1));
            if poll(&mut run).is_ready() {
                done = true;
                break;
            }
        }
        drop(run);
        if done {
            break;
        }
    }
    assert!(
        calls.lock().unwrap().iter().all(|calls| *calls == 1),
        "{:?}",
        calls.lock().unwrap()
    );
    let totals = Store::open(&path).unwrap().totals().unwrap();
    assert_eq!(totals.responses, 20);
    assert_eq!(totals.attempts["ok"], 20);
    assert!(!totals.attempts.contains_key("sent"));
    drop(folder);
}

#[tokio::test]
async fn no_more_calls_are_under_way_than_said_and_every_one_has_its_row() {
    let (_folder, store) = store();
    let inner = Slow::new(|call| match call % 4 {
        0 => Err(ChatError::Overloaded {
            message: "busy".into(),
            retry_after: None,
            rate_limits: None,
        }),
        _ => Ok("yes".into()),
    });
    let inner = &*Box::leak(Box::new(inner));
    let model = ModelStack::new(Shared(inner))
        .store(store.clone())
        .concurrency(5)
        .min(5)
        .backoff(Duration::from_millis(1))
        .build()
        .unwrap();
    let requests: Vec<ChatRequest> = (0..40).map(ask).collect();
    for answer in join_all(requests.iter().map(|request| model.chat(request))).await {
        answer.unwrap();
    }
    assert_eq!(inner.most_under_way.load(Ordering::SeqCst), 5);
    store.flush().unwrap();
    let totals = store.totals().unwrap();
    assert_eq!(totals.attempts.values().sum::<u64>(), inner.calls() as u64);
    assert_eq!(totals.attempts["ok"], 40);
    assert_eq!(totals.usage.prompt_tokens, 40 * 7);
    assert_eq!(totals.models["unnamed"].attempts, inner.calls() as u64);
}

#[tokio::test]
async fn one_place_alone_repeats_a_call() {
    let (_folder, store) = store();
    let overloaded = ChatError::Overloaded {
        message: "busy".into(),
        retry_after: None,
        rate_limits: None,
    };
    let permanent = ChatError::Permanent {
        status: Some(400),
        message: "no".into(),
    };
    let transient = ChatError::Transient {
        message: "reset".into(),
    };
    for (n, (error, calls)) in [(overloaded, 4), (transient, 4), (permanent, 1)]
        .into_iter()
        .enumerate()
    {
        let inner = &*Box::leak(Box::new(Slow::new(move |_| Err(error.clone()))));
        let model = ModelStack::new(Shared(inner))
            .store(store.clone())
            .retries(3)
            .backoff(Duration::ZERO)
            .hedge_after(Duration::from_secs(5))
            .build()
            .unwrap();
        assert!(model.chat(&ask(n)).await.is_err());
        assert_eq!(inner.calls(), calls);
        let figures = model.metrics().now();
        assert_eq!(figures.begun, calls as u64);
        assert_eq!(figures.ended.values().sum::<u64>(), calls as u64);
        assert_eq!(model.concurrency().in_flight(), 0);
    }
}

#[tokio::test]
async fn a_stack_recorded_is_a_stack_replayed() {
    let (folder, store) = store();
    let tape = folder.path().join("tape.jsonl");
    let build = || {
        let inner = Slow::new(|call| {
            Ok(if call == 0 {
                "no".into()
            } else {
                format!("{{\"n\": {call}}}")
            })
        });
        ModelStack::new(inner)
            .store(store.clone())
            .record(&tape)
            .build()
            .unwrap()
    };
    let request = ask(1).schema("n", json!({"type": "object", "required": ["n"]}));
    let recorded = build().chat(&request).await.unwrap();
    // A second run is answered from the store, and its line is there already.
    assert_eq!(build().chat(&request).await.unwrap(), recorded);
    assert_eq!(std::fs::read_to_string(&tape).unwrap().lines().count(), 1);

    let replay = ModelStack::new(Replay::open(&tape).unwrap())
        .build()
        .unwrap();
    assert_eq!(replay.chat(&request).await.unwrap(), recorded);
    assert!(matches!(
        replay.chat(&ask(2)).await,
        Err(ChatError::NotRecorded { .. })
    ));
}

struct Shared<F: 'static>(&'static Slow<F>);

impl<F: Fn(usize) -> Result<String> + Send + Sync> ChatModel for Shared<F> {
    fn chat<'a>(&'a self, request: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
        self.0.chat(request)
    }
}

/// Answers on its second poll, and counts an answer when it is given: that is when it is paid for.
struct Counting<'a>(&'a Mutex<Vec<u32>>);

impl ChatModel for Counting<'_> {
    fn chat<'a>(&'a self, request: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
        let text = request.messages[0].content.clone();
        let n: usize = text.split(' ').next_back().unwrap().parse().unwrap();
        let mut polled = false;
        Box::pin(std::future::poll_fn(move |context| {
            if !polled {
                polled = true;
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            self.0.lock().unwrap()[n] += 1;
            Poll::Ready(Ok(ChatResponse {
                answer: "yes".into(),
                ..ChatResponse::default()
            }))
        }))
    }
}

fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    std::pin::Pin::new(future).poll(&mut Context::from_waker(&noop_waker()))
}
