//! Against a server that really runs a model (see CONTRIBUTING.md). Which answers it gives is its own affair; that they are
//! read, counted, checked and kept, and that its errors are understood, is ours.

use because_llm::{
    ChatError, ChatModel, ChatRequest, Message, ModelStack, OpenAi, OpenAiBuilder, Sampling, Store,
};
use serde_json::{Value, json};

fn server(name: &str) -> OpenAiBuilder {
    let set = |name: &str| std::env::var(name).ok();
    let url = set(name).unwrap_or_else(|| panic!("{name} has to name the server's base URL"));
    OpenAi::new(set("BECAUSE_LLM_SERVER_MODEL").unwrap_or_else(|| "served".into()))
        .base_url(url)
        .api_key(set("BECAUSE_LLM_SERVER_KEY").unwrap_or_default())
}

fn chat() -> OpenAiBuilder {
    server("BECAUSE_LLM_SERVER")
}

fn ask(max_tokens: u32) -> ChatRequest {
    ChatRequest::new(vec![
        Message::system("Answer in a few words."),
        Message::user("Why do people like sand?"),
    ])
    .sampling(Sampling {
        temperature: Some(0.8),
        max_tokens: Some(max_tokens),
        ..Sampling::default()
    })
}

fn opinion() -> Value {
    json!({"type": "object", "properties": {
            "summary": {"type": "string", "maxLength": 60},
            "reasons": {"type": "array", "items": {"type": "string", "maxLength": 30}, "minItems": 1, "maxItems": 3},
            "stars": {"type": "integer", "minimum": 1, "maximum": 5}},
           "required": ["summary", "reasons", "stars"], "additionalProperties": false})
}

fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("llm.sqlite")).unwrap();
    (folder, store)
}

#[tokio::test]
#[ignore = "needs a server in BECAUSE_LLM_SERVER"]
async fn a_chat_is_answered_counted_and_kept() {
    let (_folder, store) = store();
    let model = ModelStack::new(chat().build().unwrap())
        .store(store.clone())
        .build()
        .unwrap();
    for seed in 0..5 {
        let request = ask(400).seed(seed);
        let response = model.chat(&request).await.unwrap();
        assert!(!response.answer.is_empty());
        assert_eq!(response.finish_reason.as_deref(), Some("stop"));
        assert!(response.usage.prompt_tokens > 10 && response.usage.completion_tokens > 0);
        assert_eq!(model.chat(&request).await.unwrap(), response);
    }
    store.flush().unwrap();
    let totals = store.totals().unwrap();
    assert_eq!((totals.responses, totals.attempts["ok"]), (5, 5));
    assert!(
        totals.usage.cached_tokens > 0,
        "the prefix is the same each time"
    );
}

#[tokio::test]
#[ignore = "needs a server in BECAUSE_LLM_SERVER"]
async fn a_schema_is_kept_to() {
    let model = ModelStack::new(chat().build().unwrap()).build().unwrap();
    for seed in 0..10 {
        let request = ask(600).schema("opinion", opinion()).seed(seed);
        let response = model.chat(&request).await.unwrap();
        let answer: Value = serde_json::from_str(&response.answer).unwrap();
        assert!((1..=5).contains(&answer["stars"].as_u64().unwrap()));
    }
}

#[tokio::test]
#[ignore = "needs a server in BECAUSE_LLM_REASONER"]
async fn a_reasoner_thinks_first_with_and_without_a_schema() {
    let model = ModelStack::new(server("BECAUSE_LLM_REASONER").build().unwrap())
        .build()
        .unwrap();
    for seed in 0..5 {
        for request in [
            ask(600).seed(seed),
            ask(900).schema("opinion", opinion()).seed(seed),
        ] {
            let response = model.chat(&request).await.unwrap();
            let reasoning = response.reasoning.unwrap();
            assert!(!reasoning.trim().is_empty() && !response.answer.is_empty());
            assert!(!response.answer.contains("think>") && !reasoning.contains("think>"));
        }
    }
}

#[tokio::test]
#[ignore = "needs a server in BECAUSE_LLM_SERVER"]
async fn the_same_seed_says_the_same_and_another_something_else() {
    let model = chat().build().unwrap();
    let mut said = std::collections::HashSet::new();
    for seed in 0..4 {
        let request = ask(400).seed(seed);
        let first = model.chat(&request).await.unwrap().answer;
        assert_eq!(model.chat(&request).await.unwrap().answer, first);
        said.insert(first);
    }
    assert!(said.len() > 1);
}

#[tokio::test]
#[ignore = "needs a server in BECAUSE_LLM_SERVER"]
async fn a_prompt_past_the_context_is_said_to_be_so_and_not_repeated() {
    let (_folder, store) = store();
    let model = ModelStack::new(chat().build().unwrap())
        .store(store.clone())
        .build()
        .unwrap();
    let long = ChatRequest::new(vec![Message::user("0123456789 ".repeat(40_000))]);
    let error = model.chat(&long).await.unwrap_err();
    assert!(
        matches!(error, ChatError::ContextTooLong { .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains("tokens, context"), "{error}");
    store.flush().unwrap();
    let attempts = store.totals().unwrap().attempts;
    assert_eq!(attempts.values().sum::<u64>(), 1, "{attempts:?}");
}

#[tokio::test]
#[ignore = "needs a server in BECAUSE_LLM_SERVER"]
async fn an_answer_cut_off_is_paid_once_and_never_kept() {
    let (_folder, store) = store();
    let model = ModelStack::new(chat().build().unwrap())
        .store(store.clone())
        .build()
        .unwrap();
    for request in [ask(3).seed(1), ask(12).schema("opinion", opinion()).seed(1)] {
        let error = model.chat(&request).await.unwrap_err();
        let ChatError::Truncated { response } = error else {
            panic!("{error:?}");
        };
        let limit = u64::from(request.sampling.max_tokens.unwrap());
        assert_eq!(response.usage.completion_tokens, limit);
    }
    store.flush().unwrap();
    let totals = store.totals().unwrap();
    assert_eq!((totals.responses, totals.attempts["truncated"]), (0, 2));
    assert_eq!(totals.usage.completion_tokens, 15);
}

#[tokio::test]
#[ignore = "needs a server in BECAUSE_LLM_SERVER that asks for the key in BECAUSE_LLM_SERVER_KEY"]
async fn a_wrong_key_ends_the_run_and_is_not_shown() {
    assert!(std::env::var("BECAUSE_LLM_SERVER_KEY").is_ok());
    const WRONG: &str = "sk-this-is-the-wrong-one";
    let model = ModelStack::new(chat().api_key(WRONG).build().unwrap())
        .build()
        .unwrap();
    let error = model.chat(&ask(50)).await.unwrap_err();
    assert!(error.is_fatal() && !error.is_retryable(), "{error:?}");
    assert!(
        matches!(
            error,
            ChatError::Permanent {
                status: Some(401),
                ..
            }
        ),
        "{error:?}"
    );
    assert!(!format!("{error} {error:?}").contains(WRONG), "{error}");
    chat().build().unwrap().chat(&ask(400)).await.unwrap();
}
