//! What a store tells of its calls, gives out, and removes.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use because_llm::{
    BoxFuture, Cached, ChatError, ChatModel, ChatRequest, ChatResponse, Message, ModelId,
    ModelStack, Prune, Result, RowFilter, Store, Usage,
};
use serde_json::json;

/// Does these things in turn, under this name.
struct Scripted {
    name: &'static str,
    does: Mutex<VecDeque<Result<String>>>,
}

impl Scripted {
    fn new(name: &'static str, does: impl IntoIterator<Item = Result<String>>) -> Self {
        Self {
            name,
            does: Mutex::new(does.into_iter().collect()),
        }
    }
}

impl ChatModel for Scripted {
    fn chat<'a>(&'a self, _: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
        let does = self.does.lock().unwrap().pop_front().unwrap();
        Box::pin(std::future::ready(does.map(|answer| ChatResponse {
            answer,
            usage: Usage {
                prompt_tokens: 100,
                completion_tokens: 10,
                cached_tokens: 25,
                reasoning_tokens: 4,
            },
            ..ChatResponse::default()
        })))
    }

    fn id(&self) -> ModelId {
        ModelId {
            model: self.name.into(),
            endpoint: "https://a.example/v1".into(),
        }
    }
}

fn says(answer: &str) -> Result<String> {
    Ok(answer.to_owned())
}

fn ask(n: usize) -> ChatRequest {
    ChatRequest::new(vec![Message::user(format!("question {n}"))])
}

fn rating(n: usize) -> ChatRequest {
    ask(n).schema(
        "rating",
        json!({"type": "object", "properties": {"stars": {"type": "integer"}}, "required": ["stars"],
               "additionalProperties": false}),
    )
}

fn folder() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("llm.sqlite");
    (folder, path)
}

#[tokio::test]
async fn the_figures_are_those_of_the_calls() {
    let (_folder, path) = folder();
    let store = Store::open(&path).unwrap();
    let model = ModelStack::new(Scripted::new(
        "m",
        [
            says("plain"),
            says("five stars"),
            says(r#"{"stars":5}"#),
            Err(ChatError::Transient {
                message: "http://a: HTTP 503 no".into(),
            }),
            says("again"),
        ],
    ))
    .store(store.clone())
    .backoff(Duration::ZERO)
    .build()
    .unwrap();
    for request in [ask(0), rating(1), ask(2), ask(0), ask(0)] {
        model.chat(&request).await.unwrap();
    }
    store.flush().unwrap();
    let stats = store.stats().unwrap();
    let outcomes = |names: &[(&str, u64)]| -> std::collections::BTreeMap<String, u64> {
        names
            .iter()
            .map(|(name, n)| ((*name).to_owned(), *n))
            .collect()
    };
    assert_eq!(
        stats.calls.outcomes,
        outcomes(&[("invalid", 1), ("ok", 3), ("transient", 1)])
    );
    assert_eq!(stats.responses, 3);
    assert_eq!(stats.repaired, 1);
    assert_eq!(stats.from_store, 2);
    assert_eq!(stats.calls.attempts, 5);
    assert_eq!(stats.calls.usage.prompt_tokens, 400);
    assert_eq!(stats.calls.cached_share, Some(0.25));
    assert_eq!(stats.calls.invalid_share, Some(0.25));
    assert_eq!(stats.calls.cost_nano, None);
    assert_eq!(stats.calls.unpriced, 4);
    assert!(stats.calls.latency_ms.is_some() && stats.first_unix <= stats.last_unix);
    assert_eq!(stats.models.len(), 1);
    assert_eq!(stats.models[0].endpoint, "https://a.example/v1");
    assert_eq!(stats.models[0].calls, stats.calls);

    let failed: Vec<_> = store
        .attempts(&RowFilter::default().outcome("transient"))
        .unwrap()
        .collect::<Result<_>>()
        .unwrap();
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0].status, Some(503));
    assert_eq!(failed[0].key, ask(2).key(&model.id()).to_string());
}

#[tokio::test]
async fn rows_come_in_order_page_by_page_and_by_what_is_asked_for() {
    let (_folder, path) = folder();
    let store = Store::open(&path).unwrap();
    let model = |name| {
        let answers = (0..700).map(|n| says(&format!("answer {n} ").repeat(n % 40)));
        ModelStack::new(Scripted::new(name, answers)).store(store.clone())
    };
    let (a, b) = (model("a").build().unwrap(), model("b").build().unwrap());
    for n in 0..600 {
        // An empty answer is asked for again.
        let _ = a.chat(&ask(n)).await;
        let _ = b.chat(&ask(n)).await;
    }
    let all = RowFilter::default();
    let ids = |filter: &RowFilter| -> Vec<i64> {
        let rows = store.attempts(filter).unwrap();
        rows.map(|row| row.unwrap().id).collect()
    };
    let attempts = ids(&all);
    assert!(attempts.len() > 1200);
    assert!(attempts.is_sorted());
    assert_eq!(
        ids(&all.clone().last(3)),
        attempts[attempts.len() - 3..].to_vec()
    );
    assert_eq!(ids(&all.clone().last(0)), Vec::<i64>::new());
    assert_eq!(ids(&all.clone().last(u64::MAX)), attempts);
    assert_eq!(ids(&all.clone().model("c")), Vec::<i64>::new());
    let both = ids(&all.clone().model("a")).len() + ids(&all.clone().model("b")).len();
    assert_eq!(both, attempts.len());
    let now = SystemTime::now();
    let (hour_ago, soon) = (
        now - Duration::from_secs(3600),
        now + Duration::from_secs(60),
    );
    assert_eq!(ids(&all.clone().since(soon)), Vec::<i64>::new());
    assert_eq!(ids(&all.clone().before(hour_ago)), Vec::<i64>::new());
    assert_eq!(ids(&all.clone().since(hour_ago).before(soon)), attempts);

    // While somebody reads, others write; what they write is not read.
    let mut rows = store.attempts(&all).unwrap();
    rows.next();
    a.chat(&ask(1000)).await.unwrap();
    assert_eq!(rows.count(), attempts.len() - 1);

    let kept: Vec<_> = store
        .answers(&all.clone().model("b"))
        .unwrap()
        .collect::<Result<_>>()
        .unwrap();
    assert_eq!(kept.len(), 600);
    for answer in &kept {
        assert_eq!(answer.key.len(), 64);
        assert!(answer.response.answer.starts_with("answer"));
    }
    assert_eq!(store.answers(&all.outcome("ok")).unwrap().count(), 0);
}

#[tokio::test]
async fn the_first_answer_stays_also_in_the_memory_of_another() {
    let (_folder, path) = folder();
    let (first, second) = (Store::open(&path).unwrap(), Store::open(&path).unwrap());
    let (a, b) = (
        Cached::new(Scripted::new("m", [says("first")]), first.clone()),
        Cached::new(Scripted::new("m", [says("second")]), second.clone()),
    );
    // Both look before either has an answer.
    assert_eq!(second.get(&ask(0).key(&b.id())).unwrap(), None);
    assert_eq!(a.chat(&ask(0)).await.unwrap().answer, "first");
    let key = ask(0).key(&b.id());
    let late = ChatResponse {
        answer: "late".into(),
        ..ChatResponse::default()
    };
    second.put(&key, &b.id(), &late).await.unwrap();
    assert_eq!(second.get(&key).unwrap().unwrap().answer, "first");
    assert_eq!(b.chat(&ask(0)).await.unwrap().answer, "first");
}

#[tokio::test]
async fn what_is_removed_is_what_was_said_before() {
    let (_folder, path) = folder();
    let store = Store::open(&path).unwrap();
    for name in ["a", "b"] {
        let long = |n: usize| says(&format!("{n} {}", "many words about it ".repeat(n % 60)));
        let model = ModelStack::new(Scripted::new(name, (0..300).map(long)))
            .store(store.clone())
            .build()
            .unwrap();
        for n in 0..300 {
            model.chat(&ask(n)).await.unwrap();
        }
    }
    let only_a = RowFilter::default().model("a");
    let prune = Prune::default().attempts(only_a.clone());
    let error = prune.run(&path).unwrap_err().to_string();
    assert!(
        error.contains("in use") && error.contains("llm.sqlite"),
        "{error}"
    );
    let would = prune.clone().dry_run(true).run(&path).unwrap();
    drop(store);
    let did = prune.run(&path).unwrap();
    assert_eq!((would.attempts, would.answers), (300, 0));
    assert_eq!((did.attempts, did.answers), (300, 0));
    assert_eq!(did.usage.prompt_tokens, 30_000);
    assert_eq!(did.usage, would.usage);

    let store = Store::open(&path).unwrap();
    let totals = store.totals().unwrap();
    assert_eq!((totals.responses, totals.attempts["ok"]), (600, 300));
    drop(store);
    let did = Prune::default()
        .attempts(RowFilter::default())
        .answers(only_a)
        .run(&path)
        .unwrap();
    assert_eq!((did.attempts, did.answers), (300, 300));
    assert!(did.bytes_after < did.bytes_before, "{did:?}");
    let store = Store::open(&path).unwrap();
    assert_eq!(store.totals().unwrap().responses, 300);
    // And the file is as good as ever.
    let model = ModelStack::new(Scripted::new("a", [says("anew")]))
        .store(store.clone())
        .build()
        .unwrap();
    assert_eq!(model.chat(&ask(0)).await.unwrap().answer, "anew");
    assert_eq!(store.totals().unwrap().responses, 301);
}

#[cfg(feature = "openai")]
#[tokio::test]
async fn no_key_is_in_the_file() {
    use crate::server::{Server, error, says};
    const KEY: &str = "sk-very-secret-9876543210";
    let (_folder, path) = folder();
    let refusal = json!({"error": {"message": format!("Incorrect API key provided: {KEY}."), "code": "invalid_api_key"}});
    let server = Server::run([error(401, &refusal), says(&"an answer ".repeat(60))]).await;
    let store = Store::open(&path).unwrap();
    let model = because_llm::OpenAi::new("served")
        .base_url(server.url.replace("http://", "http://somebody:pass-word@"))
        .api_key(KEY)
        .build()
        .unwrap();
    let model = ModelStack::new(model).store(store.clone()).build().unwrap();
    model.chat(&ask(0)).await.unwrap_err();
    model.chat(&ask(1)).await.unwrap();
    store.flush().unwrap();
    let rows = |rows: Vec<serde_json::Value>| serde_json::to_string(&rows).unwrap();
    let all = RowFilter::default();
    let mut shown = rows(
        store
            .attempts(&all)
            .unwrap()
            .map(|row| json!(row.unwrap()))
            .collect(),
    );
    shown += &rows(
        store
            .answers(&all)
            .unwrap()
            .map(|row| json!(row.unwrap()))
            .collect(),
    );
    shown += &json!(store.stats().unwrap()).to_string();
    assert!(shown.contains("an answer") && shown.contains("permanent"));
    let mut files = vec![shown.into_bytes()];
    for ending in ["", "-wal", "-shm", "-lock"] {
        files.push(std::fs::read(path.with_file_name(format!("llm.sqlite{ending}"))).unwrap());
    }
    for bytes in files {
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains(KEY) && !text.contains("pass-word"));
    }
}
