use std::time::{Duration, Instant};

use because_llm::{
    ChatError, ChatModel, ChatRequest, ChatResponse, Dialect, Message, ModelStack, OpenAi,
    OpenAiBuilder, Retrying, Sampling, Store,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::server::{Does, Server, completion, error, http, says};

const KEY: &str = "sk-very-secret-0123456789";

fn client(server: &Server) -> OpenAiBuilder {
    OpenAi::new("served").base_url(&server.url).api_key(KEY)
}

fn why() -> ChatRequest {
    ChatRequest::new(vec![Message::user("why?")])
}

fn rating() -> ChatRequest {
    let schema = json!({"type": "object", "properties": {"stars": {"type": "integer", "minimum": 1, "maximum": 5}},
                        "required": ["stars"], "additionalProperties": false});
    ChatRequest::new(vec![Message::system("Rate."), Message::user("Dune")]).schema("rating", schema)
}

/// Asks a server that does this once; gives the result and how often it was asked.
async fn once(does: Does) -> (Result<ChatResponse, ChatError>, usize) {
    let server = Server::run([does]).await;
    let result = client(&server)
        .timeout(Duration::from_secs(5))
        .build()
        .unwrap()
        .chat(&why())
        .await;
    if let Err(error) = &result {
        assert!(!format!("{error} {error:?}").contains(KEY), "{error}");
    }
    (result, server.count())
}

#[tokio::test]
async fn an_answer_is_read_with_its_usage() {
    let server = Server::run([says("because")]).await;
    let model = client(&server)
        .api_key(format!(" {KEY}\n"))
        .build()
        .unwrap();
    let response = model.chat(&why().seed(7)).await.unwrap();
    assert_eq!(response.answer, "because");
    assert_eq!(response.usage.prompt_tokens, 10);
    assert_eq!(response.usage.cached_tokens, 4);
    assert_eq!(response.model.as_deref(), Some("served"));
    let asked = &server.asked()[0];
    assert!(
        asked.head.starts_with("post /v1/chat/completions http/1.1"),
        "{}",
        asked.head
    );
    assert!(
        asked
            .head
            .contains(&format!("authorization: bearer {KEY}\r\n")),
        "{}",
        asked.head
    );
    assert_eq!(
        asked.body,
        json!({"model": "served", "messages": [{"role": "user", "content": "why?"}], "stream": false, "seed": 7})
    );
    assert_eq!(model.id().endpoint, server.url);
}

#[tokio::test]
async fn without_a_key_no_header_is_sent_and_a_query_in_the_url_is() {
    let server = Server::run([says("yes")]).await;
    let model = OpenAi::new("served")
        .base_url(format!("{}?version=2", server.url))
        .build()
        .unwrap();
    model.chat(&why()).await.unwrap();
    let head = &server.asked()[0].head;
    assert!(
        head.starts_with("post /v1/chat/completions?version=2 ") && !head.contains("authorization"),
        "{head}"
    );
    assert_eq!(model.id().endpoint, server.url);
}

#[tokio::test]
async fn every_refusal_is_sent_once_and_understood() {
    let transient: fn(&ChatError) -> bool = |error| matches!(error, ChatError::Transient { .. });
    let overloaded: fn(&ChatError) -> bool = |error| matches!(error, ChatError::Overloaded { .. });
    let permanent: fn(&ChatError) -> bool = |error| matches!(error, ChatError::Permanent { .. });
    let too_long: fn(&ChatError) -> bool =
        |error| matches!(error, ChatError::ContextTooLong { .. });
    let html = "<html><title>503 Service Temporarily Unavailable</title></html>";
    for (does, is, shown) in [
        (
            error(
                429,
                &json!({"error": {"message": "slow down", "type": "rate_limit", "param": null, "code": null}}),
            ),
            overloaded,
            "slow down",
        ),
        (http(429, "", "slow down, please"), overloaded, "HTTP 429"),
        (
            error(
                429,
                &json!({"error": {"code": 429, "message": "slow down"}}),
            ),
            overloaded,
            "slow down",
        ),
        (
            http(429, "content-type: text/html\r\n", html),
            overloaded,
            "503 Service Temporarily",
        ),
        (
            http(503, "content-type: text/html\r\n", html),
            overloaded,
            "HTTP 503",
        ),
        (
            http(500, "x-request-id: req-77\r\n", "oops"),
            transient,
            "req-77",
        ),
        (http(502, "", ""), transient, "HTTP 502"),
        (
            error(
                429,
                &json!({"error": {"code": "insufficient_quota", "message": "no quota"}}),
            ),
            permanent,
            "no balance",
        ),
        (
            error(402, &json!({"error": {"message": "Insufficient Balance"}})),
            permanent,
            "no balance",
        ),
        (
            error(
                401,
                &json!({"error": {"message": format!("bad key {KEY}")}}),
            ),
            permanent,
            "bad key ***; check OPENAI_API_KEY",
        ),
        (
            error(404, &json!({"error": "model not found"})),
            permanent,
            "\"served\"",
        ),
        (
            http(307, "location: https://elsewhere/v1\r\n", ""),
            permanent,
            "https://elsewhere/v1",
        ),
        (
            error(
                400,
                &json!({"error": {"code": 400, "message": "messages is required", "type": "invalid_request_error"}}),
            ),
            permanent,
            "HTTP 400",
        ),
        (
            error(
                400,
                &json!({"error": {"code": 400, "type": "exceed_context_size_error", "message": "too big", "n_prompt_tokens": 20000, "n_ctx": 16384}}),
            ),
            too_long,
            "prompt 20000 tokens, context 16384",
        ),
        (
            error(
                400,
                &json!({"error": {"code": "context_length_exceeded", "message": "maximum context length is 8192"}}),
            ),
            too_long,
            "8192",
        ),
        (
            error(
                200,
                &json!({"error": {"code": 429, "message": "slow down"}}),
            ),
            overloaded,
            "slow down",
        ),
        (
            error(200, &json!({"choices": []})),
            transient,
            "without a choice",
        ),
    ] {
        let (result, count) = once(does).await;
        let error = result.unwrap_err();
        assert!(is(&error) && error.to_string().contains(shown), "{error:?}");
        assert_eq!(count, 1, "{error}");
    }
}

#[tokio::test]
async fn the_server_says_how_long_to_wait() {
    for (headers, most, least) in [
        ("retry-after: 20\r\n", 20_000, 20_000),
        ("retry-after: 1\r\nretry-after-ms: 1500\r\n", 1_500, 1_500),
        (
            "retry-after: Fri, 31 Dec 9999 23:59:59 GMT\r\n",
            u128::MAX,
            1 << 40,
        ),
        ("retry-after: Sun, 06 Nov 1994 08:49:37 GMT\r\n", 0, 0),
    ] {
        let (result, _) = once(http(429, headers, "")).await;
        let Err(ChatError::Overloaded {
            retry_after: Some(wait),
            ..
        }) = result
        else {
            panic!("{headers}: {result:?}");
        };
        assert!(
            (least..=most).contains(&wait.as_millis()),
            "{headers}: {wait:?}"
        );
    }
}

#[tokio::test]
async fn what_the_server_says_of_its_limits_is_heard_with_an_answer_and_with_a_refusal() {
    let headers = "x-ratelimit-limit-requests: 500\r\nx-ratelimit-remaining-requests: 0\r\n\
                   x-ratelimit-reset-requests: 120ms\r\nx-ratelimit-remaining-tokens: 900\r\n";
    let answer = http(200, headers, &completion("because").to_string());
    let server = Server::run([says("yes"), answer, http(429, headers, "slow down")]).await;
    let model = client(&server).build().unwrap();
    assert_eq!(model.chat(&why()).await.unwrap().rate_limits, None);
    let told = model.chat(&why()).await.unwrap().rate_limits.unwrap();
    let requests = told.requests.unwrap();
    assert_eq!((requests.limit, requests.remaining), (Some(500), Some(0)));
    assert_eq!(requests.resets_in, Some(Duration::from_millis(120)));
    assert_eq!(told.tokens.unwrap().remaining, Some(900));
    let Err(ChatError::Overloaded { rate_limits, .. }) = model.chat(&why()).await else {
        panic!("not refused");
    };
    assert_eq!(*rate_limits.unwrap(), told);
}

#[tokio::test]
async fn a_transport_that_fails_may_be_asked_again_and_says_what_to_look_at() {
    let ok = completion("because").to_string();
    let cut = format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{}",
        ok.len(),
        &ok[..ok.len() / 2]
    );
    let cut_json = http(200, "", &ok[..ok.len() / 2]);
    for (does, shown) in [
        (Does::Sends(cut), "broke off"),
        (cut_json, "not the JSON"),
        (
            http(200, "content-type: text/html\r\n", "<html>log in</html>"),
            "log in",
        ),
        (http(200, "", ""), "not the JSON"),
        (Does::Resets, "broke off"),
        (Does::Sends(String::new()), "broke off"),
    ] {
        let (result, count) = once(does).await;
        let error = result.unwrap_err();
        assert!(
            error.is_retryable() && error.to_string().contains(shown),
            "{error:?}"
        );
        assert!(error.to_string().contains("http://127.0.0.1"), "{error}");
        assert_eq!(count, 1);
    }
}

#[tokio::test]
async fn empty_lines_before_the_answer_are_waited_out_but_not_for_ever() {
    let ok = completion("because").to_string();
    let head =
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/json\r\n\r\n".to_owned();
    let mut pieces = vec![head, "\n".into(), "\n\n".into(), "\r\n".into(), ok];
    let (result, _) = once(Does::Drips(pieces.clone())).await;
    assert_eq!(result.unwrap().answer, "because");

    pieces.pop();
    pieces.extend(std::iter::repeat_n("\n".to_owned(), 500));
    let server = Server::run([Does::Drips(pieces)]).await;
    let begun = Instant::now();
    let error = client(&server)
        .timeout(Duration::from_millis(300))
        .build()
        .unwrap()
        .chat(&why())
        .await
        .unwrap_err();
    assert!(
        error.is_retryable() && error.to_string().contains("no answer within 300ms"),
        "{error}"
    );
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_server_that_hangs_is_given_up() {
    let server = Server::run([Does::Hangs]).await;
    let model = client(&server)
        .timeout(Duration::from_millis(200))
        .build()
        .unwrap();
    let error = model.chat(&why()).await.unwrap_err();
    assert!(
        error.is_retryable() && error.to_string().contains("no answer within 200ms"),
        "{error}"
    );
}

#[tokio::test]
async fn no_server_no_name_and_no_tls_say_so() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", closed.local_addr().unwrap());
    drop(closed);
    let refused = OpenAi::new("m")
        .base_url(&url)
        .build()
        .unwrap()
        .chat(&why())
        .await
        .unwrap_err();
    assert_eq!(
        refused.to_string(),
        format!("{url}: connection refused; is the server running?")
    );
    assert!(refused.is_retryable());

    let nowhere = OpenAi::new("m")
        .base_url("http://no-such-host.invalid/v1")
        .build()
        .unwrap();
    let error = nowhere.chat(&why()).await.unwrap_err();
    // Without a network, a resolver may take longer to say so than a connection may take.
    let said = [
        "the name of the host cannot be resolved",
        "no connection in time",
    ]
    .map(|said| format!("http://no-such-host.invalid/v1: {said}"));
    assert!(
        error.is_retryable() && said.iter().any(|said| error.to_string().starts_with(said)),
        "{error}"
    );

    // What a web server says to TLS on its plain port.
    let plain = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/v1", plain.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = plain.accept().await {
            let _ = stream.read(&mut [0; 16]).await;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let error = OpenAi::new("m")
        .base_url(url)
        .build()
        .unwrap()
        .chat(&why())
        .await
        .unwrap_err();
    assert!(
        !error.is_retryable() && error.to_string().contains("whether it is http or https"),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_server_without_json_schema_is_asked_differently_once_and_for_all() {
    let unavailable = |what: &str| {
        error(
            400,
            &json!({"error": {"message": format!("response_format.type {what} is unavailable now"), "code": "invalid_request_error"}}),
        )
    };
    let server = Server::run([
        unavailable("json_schema"),
        unavailable("json_object"),
        says(r#"{"stars": 4}"#),
    ])
    .await;
    let model = client(&server).build().unwrap();
    model.chat(&rating()).await.unwrap();
    model.chat(&rating().seed(2)).await.unwrap();

    let asked = server.asked();
    let formats: Vec<&Value> = asked
        .iter()
        .map(|asked| &asked.body["response_format"]["type"])
        .collect();
    assert_eq!(
        formats,
        [
            &json!("json_schema"),
            &json!("json_object"),
            &Value::Null,
            &Value::Null
        ]
    );
    let system = |n: usize| asked[n].body["messages"][0]["content"].as_str().unwrap();
    assert_eq!(system(0), "Rate.");
    for n in 1..4 {
        assert!(
            system(n).starts_with("Rate.\n\nAnswer with one JSON object")
                && system(n).contains("\"stars\"")
        );
    }
    // A refusal that has nothing to do with the schema teaches nothing.
    let server = Server::run([error(
        400,
        &json!({"error": {"message": "messages is required"}}),
    )])
    .await;
    assert!(
        client(&server)
            .build()
            .unwrap()
            .chat(&rating())
            .await
            .is_err()
    );
    assert_eq!(server.count(), 1);
}

#[tokio::test]
async fn a_known_server_is_asked_in_its_own_way_at_once() {
    // DeepSeek's models, here behind a gateway: no probe with a schema, no seed.
    let server = Server::run([says(""), says(r#"{"stars": 4}"#)]).await;
    let model = OpenAi::new("deepseek-chat")
        .base_url(&server.url)
        .build()
        .unwrap();
    let model = ModelStack::new(model).build().unwrap();
    let request = rating().seed(3).prefix_group("ratings");
    let response = model.chat(&request).await.unwrap();
    assert_eq!(response.answer, r#"{"stars":4}"#);
    let asked = server.asked();
    assert_eq!(asked.len(), 2, "an empty answer is asked again");
    for asked in &asked {
        assert_eq!(
            asked.body["response_format"],
            json!({"type": "json_object"})
        );
        assert_eq!(asked.body.get("seed"), None);
        assert_eq!(asked.body.get("prompt_cache_key"), None);
    }

    // The settings come before the table, and a server may turn a field down.
    let turned_down = error(
        400,
        &json!({"error": {"message": "Unknown parameter: 'prompt_cache_key'."}}),
    );
    let server = Server::run([turned_down, says(r#"{"stars": 4}"#)]).await;
    let dialect: Dialect =
        serde_json::from_value(json!({"prompt_cache_key": true, "seed": true})).unwrap();
    let model = OpenAi::new("deepseek-chat")
        .base_url(&server.url)
        .dialect(dialect)
        .build()
        .unwrap();
    model.chat(&request).await.unwrap();
    let asked = server.asked();
    let key = asked[0].body["prompt_cache_key"].as_str().unwrap();
    assert!(key.len() <= 64 && !key.contains("ratings"), "{key}");
    assert_eq!(asked[0].body["seed"], json!(3));
    assert_eq!(asked[1].body.get("prompt_cache_key"), None);
}

#[tokio::test]
async fn a_thought_is_kept_apart_from_its_answer_wherever_it_stands() {
    let answer = r#"{"stars": 4}"#;
    let messages = [
        json!({"content": answer, "reasoning_content": "hm"}),
        json!({"content": answer, "reasoning": "hm"}),
        json!({"content": answer, "reasoning": "hm", "reasoning_content": ""}),
        json!({"content": format!("<think>hm</think>\n{answer}")}),
        json!({"content": format!("hm\n</think>\n{answer}"), "reasoning_content": null}),
    ];
    for message in messages {
        let mut body = completion("");
        body["choices"][0]["message"] = message.clone();
        let server = Server::run([error(200, &body)]).await;
        let model = ModelStack::new(client(&server).build().unwrap())
            .build()
            .unwrap();
        let response = model.chat(&rating()).await.unwrap();
        assert_eq!(response.answer, r#"{"stars":4}"#, "{message}");
        assert_eq!(response.reasoning.as_deref(), Some("hm"), "{message}");
        assert_eq!(server.count(), 1);
    }
}

#[tokio::test]
async fn a_model_that_renamed_the_limit_is_asked_with_the_other_name() {
    let limited = why().sampling(Sampling {
        max_tokens: Some(50),
        temperature: Some(0.2),
        ..Sampling::default()
    });
    let server = Server::run([
        error(400, &json!({"error": {"message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."}})),
        error(400, &json!({"error": {"message": "Unsupported value: 'temperature' does not support 0.2 with this model."}})),
        says("yes"),
    ])
    .await;
    client(&server)
        .build()
        .unwrap()
        .chat(&limited)
        .await
        .unwrap();
    let sent: Vec<[bool; 3]> = server
        .asked()
        .iter()
        .map(|asked| {
            ["max_tokens", "max_completion_tokens", "temperature"]
                .map(|name| asked.body.get(name).is_some())
        })
        .collect();
    assert_eq!(
        sent,
        [
            [true, false, true],
            [false, true, true],
            [false, true, false]
        ]
    );
}

#[tokio::test]
async fn what_passes_is_asked_again_and_every_call_has_its_row() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("llm.sqlite")).unwrap();
    let thinking_only = {
        let mut body = completion("");
        body["choices"][0]["message"] =
            json!({"role": "assistant", "content": null, "reasoning_content": "hm"});
        error(200, &body)
    };
    let server = Server::run([
        http(429, "retry-after: 0\r\n", "slow"),
        Does::Resets,
        http(500, "", ""),
        says("four stars, I would say"),
        says(r#"{"stars": 9}"#),
        http(503, "", ""),
        says("```json\n{\"stars\": 4}\n```"),
        thinking_only,
        says(r#"{"stars": 3}"#),
    ])
    .await;
    let model = ModelStack::new(client(&server).build().unwrap())
        .store(store.clone())
        .backoff(Duration::from_millis(1))
        .build()
        .unwrap();
    let response = model.chat(&rating()).await.unwrap();
    assert_eq!(response.answer, r#"{"stars":4}"#);
    assert_eq!(
        response.usage.prompt_tokens, 30,
        "two that did not fit, and the one that did"
    );
    assert_eq!(server.count(), 7);

    assert_eq!(
        model.chat(&rating().seed(1)).await.unwrap().answer,
        r#"{"stars":3}"#
    );
    assert_eq!(
        model.chat(&rating()).await.unwrap(),
        response,
        "from the store"
    );
    store.flush().unwrap();
    let totals = store.totals().unwrap();
    assert_eq!(totals.attempts.values().sum::<u64>(), server.count() as u64);
    insta::assert_json_snapshot!(totals, @r#"
    {
      "responses": 2,
      "attempts": {
        "invalid": 3,
        "ok": 2,
        "overloaded": 2,
        "transient": 2
      },
      "usage": {
        "prompt_tokens": 50,
        "completion_tokens": 25,
        "cached_tokens": 20,
        "reasoning_tokens": 0
      },
      "models": {
        "served": {
          "attempts": 9,
          "usage": {
            "prompt_tokens": 50,
            "completion_tokens": 25,
            "cached_tokens": 20,
            "reasoning_tokens": 0
          }
        }
      }
    }
    "#);
    let mut statuses = std::collections::BTreeSet::new();
    let reader = rusqlite::Connection::open(store.path()).unwrap();
    let mut rows = reader
        .prepare("SELECT status FROM attempts WHERE status IS NOT NULL")
        .unwrap();
    for status in rows.query_map([], |row| row.get::<_, u16>(0)).unwrap() {
        statuses.insert(status.unwrap());
    }
    assert_eq!(statuses, [429, 500, 503].into());
    let file = std::fs::read(store.path()).unwrap();
    assert!(
        !file.windows(KEY.len()).any(|bytes| bytes == KEY.as_bytes()),
        "the key is nowhere in the file"
    );
}

#[tokio::test]
async fn an_answer_cut_at_the_limit_is_paid_once_and_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("llm.sqlite")).unwrap();
    let mut body = completion(r#"{"stars": 4"#);
    body["choices"][0]["finish_reason"] = json!("length");
    let server = Server::run([error(200, &body)]).await;
    let model = ModelStack::new(client(&server).build().unwrap())
        .store(store.clone())
        .build()
        .unwrap();
    let error = model.chat(&rating()).await.unwrap_err();
    assert!(matches!(error, ChatError::Truncated { .. }), "{error:?}");
    assert_eq!(server.count(), 1);
    store.flush().unwrap();
    let totals = store.totals().unwrap();
    assert_eq!(
        (
            totals.responses,
            totals.attempts["truncated"],
            totals.usage.completion_tokens
        ),
        (0, 1, 5)
    );
}

#[tokio::test]
async fn unknown_endings_and_tiers_lose_no_answer() {
    for ending in [
        json!("insufficient_system_resource"),
        json!("eos_token"),
        json!("abort"),
        json!(""),
        json!(null),
        json!(3),
    ] {
        let mut body = completion("because");
        body["choices"][0]["finish_reason"] = ending;
        body["service_tier"] = json!("on_demand");
        body["usage"]["completion_tokens_details"] = json!({"reasoning_tokens": 3});
        let (result, _) = once(error(200, &body)).await;
        let response = result.unwrap();
        assert_eq!(
            (response.answer.as_str(), response.usage.reasoning_tokens),
            ("because", 3)
        );
    }
}

#[tokio::test]
async fn a_key_is_checked_before_anything_is_sent_and_shown_nowhere() {
    let error = OpenAi::new("m")
        .api_key("sk-one\nsk-two")
        .build()
        .unwrap_err();
    assert!(
        error.to_string().contains("OPENAI_API_KEY") && !error.to_string().contains("sk-"),
        "{error}"
    );
    let builder = OpenAi::new("m")
        .api_key(KEY)
        .base_url(format!("http://me:{KEY}@localhost/v1"));
    let model = builder.build().unwrap();
    assert!(!format!("{model:?}").contains(KEY), "{model:?}");
    assert_eq!(model.id().endpoint, "http://localhost/v1");
    assert!(!format!("{:?}", OpenAi::new("m").api_key(KEY)).contains(KEY));
    assert!(OpenAi::new(" ").build().is_err());
    assert!(
        OpenAi::new("m")
            .base_url("localhost:8080/v1")
            .build()
            .is_err()
    );
}

#[tokio::test]
async fn a_refused_server_is_tried_no_more_often_than_said() {
    let server = Server::run([http(503, "retry-after: 0\r\n", "busy")]).await;
    let model = Retrying::new(client(&server).build().unwrap())
        .attempts(3)
        .base(Duration::from_millis(1));
    let error = model.chat(&why()).await.unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("busy; given up after 3 attempts"),
        "{error}"
    );
    assert_eq!(server.count(), 3);
}
