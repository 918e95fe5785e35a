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

/// Answers at once, with about 0.9 kB.
struct AtOnce;

impl ChatModel for AtOnce {
    fn chat<'a>(&'a self, request: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
        let mut words: Vec<&str> = TEXT.split(' ').collect();
        words.rotate_left(request.seed.unwrap_or_default() as usize % 40);
        let summary = words.join(" ");
        let mut response = ChatResponse::default();
        response.answer = format!(
            "{{\"reasoning\":\"{summary} number {:?}\",\"summary\":\"{} and so on, for those who know what they look for\"}}",
            request.seed,
            &TEXT[..250]
        );
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
        runtime().block_on(ask(&Cached::new(AtOnce, store.clone()), 0..KEPT));
    }
    store
}

/// Asks for all of these, 64 at once.
async fn ask(model: &(impl ChatModel + ?Sized), numbers: std::ops::Range<usize>) {
    use futures_util::{StreamExt, stream};
    stream::iter(numbers)
        .for_each_concurrent(64, |number| async move {
            model.chat(&request(number)).await.expect("it answers");
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

#[divan::bench(threads = CORES)]
fn kept_in_sqlite(bencher: Bencher<'_, '_>) {
    let store = filled();
    let keys: Vec<_> = (0..KEPT).map(|n| request(n).key(&ModelId::default())).collect();
    let next = AtomicUsize::new(0);
    bencher.counter(ItemsCount::new(1usize)).bench(|| {
        let number = next.fetch_add(7919, Ordering::Relaxed) % KEPT;
        store.get(&keys[number])
    });
}

#[divan::bench(sample_count = 10, sample_size = 1)]
fn calls_that_go_out_20000(bencher: Bencher<'_, '_>) {
    const CALLS: usize = 20_000;
    let runtime = runtime();
    let store = open("written.sqlite");
    let model = Cached::new(Audited::new(AtOnce, store.clone()), store.clone());
    let mut begun = 0;
    bencher.counter(ItemsCount::new(CALLS)).bench_local(|| {
        runtime.block_on(ask(&model, begun..begun + CALLS));
        begun += CALLS;
    });
}
