//! What the answer store costs a call: the key of a request, a look-up that finds nothing, an answer from SQLite and from
//! memory, and the whole cycle of a call that goes out (look-up, a row before, its outcome, the answer kept).
//!
//! `cargo bench -p because-benches --bench store`

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use because::llm::{
    Audited, BoxFuture, Cached, ChatModel, ChatRequest, ChatResponse, Message, ModelId, Result,
    Store,
};
use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use futures_util::{FutureExt, StreamExt, stream};

fn main() {
    divan::main();
    let _ = std::fs::remove_dir_all(folder());
}

const CORES: [usize; 2] = [1, 2];

/// Answers kept in the file that is read.
const KEPT: usize = 50_000;

const TEXT: &str = "Suits people who like quiet trading games with a map that fills up slowly, wooden pieces and rules that \
    fit on one page, and who do not mind that the last round decides more than the ones before it; those who want conflict \
    at the table will find the market too polite, and three players are better than five. ";

/// About 1.7 kB as JSON.
fn request(number: usize) -> ChatRequest {
    ChatRequest::new(vec![
        Message::system(TEXT),
        Message::user(format!("{number}\n{}", TEXT.repeat(4))),
    ])
    .schema(
        "summary",
        serde_json::json!({"type": "object", "properties": {"summary": {"type": "string"}, "reasoning": {"type": "string"}},
            "required": ["summary", "reasoning"], "additionalProperties": false}),
    )
    .seed(number as u64)
}

/// Answers at once, with about 0.9 kB made before.
struct AtOnce(Vec<String>);

impl AtOnce {
    fn new() -> Self {
        let answer = |number: usize| {
            let mut words: Vec<&str> = TEXT.split(' ').collect();
            words.rotate_left(number % 40);
            let (first, second) = (words.join(" "), &TEXT[number % 50..][..250]);
            format!(
                "{{\"reasoning\":\"{first} number {number}\",\"summary\":\"{second} and so on\"}}"
            )
        };
        Self((0..64).map(answer).collect())
    }
}

impl ChatModel for AtOnce {
    fn chat<'a>(&'a self, request: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
        let mut response = ChatResponse::default();
        response
            .answer
            .clone_from(&self.0[request.seed.unwrap_or_default() as usize % 64]);
        response.finish_reason = Some("stop".into());
        response.usage.prompt_tokens = 400;
        response.usage.completion_tokens = 180;
        Box::pin(std::future::ready(Ok(response)))
    }
}

fn folder() -> PathBuf {
    std::env::temp_dir().join(format!("because-bench-{}", std::process::id()))
}

fn open(name: &str) -> Store {
    std::fs::create_dir_all(folder()).expect("the temporary folder can be written");
    Store::open(folder().join(name)).expect("the temporary folder can be written")
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .expect("a runtime of two threads")
}

/// A store that holds the answers to the first [`KEPT`] requests.
fn filled() -> Store {
    let store = open("filled.sqlite");
    if store.totals().expect("a new file").responses < KEPT as u64 {
        let model = Cached::new(AtOnce::new(), store.clone());
        for begin in (0..KEPT).step_by(1000) {
            runtime().block_on(ask(&model, &requests(begin..begin + 1000)));
        }
    }
    store
}

fn requests(numbers: std::ops::Range<usize>) -> Vec<ChatRequest> {
    numbers.map(request).collect()
}

/// Asks for all of these, 64 at once.
async fn ask(model: &(impl ChatModel + ?Sized), requests: &[ChatRequest]) {
    stream::iter(requests)
        .for_each_concurrent(64, |request| async {
            model.chat(request).await.expect("it answers");
        })
        .await;
}

#[divan::bench]
fn key_of_a_request(bencher: Bencher<'_, '_>) {
    let (request, model) = (request(1), ModelId::default());
    bencher.bench(|| black_box(&request).key(&model));
}

#[divan::bench(threads = CORES)]
fn missing(bencher: Bencher<'_, '_>) {
    let store = filled();
    let key = request(KEPT + 1).key(&ModelId::default());
    bencher
        .counter(ItemsCount::new(1usize))
        .bench(|| store.get(black_box(&key)));
}

/// A request of a finished run asked again, key and all.
#[divan::bench(threads = CORES)]
fn answered_from_sqlite(bencher: Bencher<'_, '_>) {
    answered(
        bencher,
        &Cached::new(AtOnce::new(), filled().memory(0)),
        KEPT,
    );
}

/// The same where this process has had the answer before.
#[divan::bench(threads = CORES)]
fn answered_from_memory(bencher: Bencher<'_, '_>) {
    answered(bencher, &Cached::new(AtOnce::new(), filled()), 2000);
}

fn answered(bencher: Bencher<'_, '_>, model: &(impl ChatModel + ?Sized), kept: usize) {
    let asked = requests(0..kept);
    runtime().block_on(ask(model, &asked));
    let next = AtomicUsize::new(0);
    // Many at a time, or the clock would show.
    bencher.counter(ItemsCount::new(100usize)).bench(|| {
        for _ in 0..100 {
            let number = next.fetch_add(7919, Ordering::Relaxed) % kept;
            model
                .chat(&asked[number])
                .now_or_never()
                .expect("nothing to wait for")
                .expect("it answers");
        }
    });
}

const CALLS: usize = 20_000;

#[divan::bench(sample_count = 10, sample_size = 1)]
fn calls_that_go_out_20000(bencher: Bencher<'_, '_>) {
    let runtime = runtime();
    let store = open("written.sqlite");
    let model = Cached::new(Audited::new(AtOnce::new(), store.clone()), store.clone());
    let mut begun = 0;
    bencher
        .counter(ItemsCount::new(CALLS))
        .with_inputs(|| {
            begun += CALLS;
            requests(begun - CALLS..begun)
        })
        .bench_local_refs(|requests| runtime.block_on(ask(&model, requests)));
}
