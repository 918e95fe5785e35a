//! What a call costs before and beside the model: rendering a prompt, hashing the request, the offline model's answer, and
//! an answer that comes from the store.
//!
//! `cargo bench -p because-benches --bench prompts`

use because::core::Side;
use because::llm::{ChatModel, ChatRequest, ModelId, ModelStack, Offline, Store};
use because::propagate::{Prompts, WordLimits, aggregate_request};
use divan::{Bencher, black_box};

fn main() {
    divan::main();
}

const PROFILE: &str = "Suits people who like quiet trading games with a map that fills up slowly, wooden pieces and rules that \
    fit on one page, and who do not mind that the last round decides more than the ones before it; those who want conflict \
    at the table will find the market too polite, and three players are better than five.";

fn request(prompts: &Prompts) -> ChatRequest {
    aggregate_request(
        prompts,
        WordLimits::default(),
        Side::User,
        Some(PROFILE),
        &[PROFILE; 8],
    )
}

#[divan::bench]
fn render_an_aggregation_of_eight(bencher: Bencher<'_, '_>) {
    let prompts = Prompts::default();
    bencher.bench(|| request(black_box(&prompts)));
}

#[divan::bench]
fn key_of_a_request(bencher: Bencher<'_, '_>) {
    let (request, model) = (request(&Prompts::default()), ModelId::default());
    bencher.bench(|| black_box(&request).key(&model));
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime of one thread")
}

#[divan::bench]
fn the_offline_models_answer(bencher: Bencher<'_, '_>) {
    let (runtime, request, model) = (runtime(), request(&Prompts::default()), Offline::new());
    bencher.bench_local(|| runtime.block_on(model.chat(&request)));
}

#[divan::bench]
fn an_answer_from_the_store(bencher: Bencher<'_, '_>) {
    let (runtime, request) = (runtime(), request(&Prompts::default()));
    let path = std::env::temp_dir().join(format!("because-bench-{}.sqlite", std::process::id()));
    let store = Store::open(&path).expect("the temporary folder can be written");
    let model = ModelStack::new(Offline::new())
        .store(store)
        .build()
        .expect("nothing is recorded");
    runtime
        .block_on(model.chat(&request))
        .expect("offline answers");
    bencher.bench_local(|| runtime.block_on(model.chat(&request)));
    let _ = std::fs::remove_file(path);
}
