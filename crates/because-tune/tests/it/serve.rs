//! The endpoint, as its clients see it.

use std::net::SocketAddr;
use std::time::Duration;

use because_llm::{ChatError, ChatModel, ChatRequest, Message, OpenAi, Sampling};
use because_tune::{ApiKey, Decoding, EngineSettings, ServeSettings, Served, Server, TunedModel};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::{base, settings as training, train};

/// A server on a thread of this runtime.
struct Running {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Served>,
}

fn settings() -> ServeSettings {
    ServeSettings {
        name: Some("base".into()),
        decoding: Decoding::greedy(24),
        ..ServeSettings::default()
    }
}

async fn serve_model(model: TunedModel, settings: ServeSettings) -> Running {
    let server = Server::bind(model, "127.0.0.1:0", settings).await.unwrap();
    let (stop, stopped) = oneshot::channel();
    Running {
        address: server.address(),
        stop,
        ended: tokio::spawn(server.run(async {
            let _ = stopped.await;
        })),
    }
}

async fn serve(settings: ServeSettings) -> Running {
    serve_model(TunedModel::load(base(), None).unwrap(), settings).await
}

impl Running {
    fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    async fn end(self) -> Served {
        let _ = self.stop.send(());
        tokio::time::timeout(Duration::from_secs(60), self.ended)
            .await
            .unwrap()
            .unwrap()
    }

    /// Sends these bytes and gives what comes until the other side closes.
    async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // It may have heard enough before the end.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        let _ = tokio::time::timeout(Duration::from_secs(60), read)
            .await
            .unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn request(&self, head: &str, body: &str) -> (u16, String) {
        let length = body.len();
        let request = format!(
            "{head}\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        let answer = self.raw(request.as_bytes()).await;
        let status = answer[9..12].parse().unwrap();
        (status, answer)
    }

    async fn post(&self, body: &Value) -> (u16, String) {
        let head = "POST /v1/chat/completions HTTP/1.1\r\nContent-Type: application/json";
        self.request(head, &body.to_string()).await
    }
}

/// The JSON behind the head of a response.
fn object(answer: &str) -> Value {
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"))
}

/// The events of a chunked stream.
fn events(answer: &str) -> Vec<String> {
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    let lines = body.lines().filter_map(|line| line.strip_prefix("data: "));
    lines.map(str::to_owned).collect()
}

fn chat(text: &str) -> Value {
    json!({ "messages": [{ "role": "user", "content": text }] })
}

/// A question whose answer has some thousand tokens, whatever the model is like.
fn endless() -> Value {
    let mut body = chat("Why?");
    body["response_format"] = json!({ "type": "json_schema", "json_schema": { "name": "long", "schema": {
        "type": "array", "items": { "type": "boolean" }, "minItems": 300
    }}});
    body
}

/// With its own types, as a program that knows nothing of ours.
#[tokio::test(flavor = "multi_thread")]
async fn async_openai_reads_answers_streams_and_documents() {
    use async_openai::types::chat::CreateChatCompletionRequest;
    use futures_util::StreamExt;

    let running = serve(settings()).await;
    let config = async_openai::config::OpenAIConfig::new()
        .with_api_base(running.url())
        .with_api_key("none");
    let client = async_openai::Client::with_config(config);
    let request = |body: &Value| -> CreateChatCompletionRequest {
        serde_json::from_value(body.clone()).unwrap()
    };
    let mut body = chat("Why live jazz?");
    body["model"] = "base".into();
    body["temperature"] = 1.0.into();
    body["seed"] = 3.into();
    let whole = client.chat().create(request(&body)).await.unwrap();
    let text = whole.choices[0].message.content.clone().unwrap();
    let usage = whole.usage.unwrap();
    assert!(!text.is_empty());

    body["stream"] = true.into();
    body["stream_options"] = json!({ "include_usage": true });
    let mut stream = client.chat().create_stream(request(&body)).await.unwrap();
    let (mut streamed, mut counted, mut reasons) = (String::new(), None, 0);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.unwrap();
        counted = chunk.usage.or(counted);
        for choice in chunk.choices {
            streamed.extend(choice.delta.content);
            reasons += usize::from(choice.finish_reason.is_some());
        }
    }
    assert_eq!((streamed, reasons), (text, 1));
    assert_eq!(
        counted.unwrap().completion_tokens,
        usage.completion_tokens,
        "the last chunk counts what the whole answer counts"
    );

    body["stream"] = false.into();
    body["stream_options"] = Value::Null;
    body["response_format"] = json!({ "type": "json_schema", "json_schema": { "name": "verdict", "strict": true, "schema": {
        "type": "object", "properties": { "good": { "type": "boolean" } }, "required": ["good"], "additionalProperties": false,
    }}});
    let held = client.chat().create(request(&body)).await.unwrap();
    let verdict = held.choices[0].message.content.as_deref().unwrap();
    let verdict: Value = serde_json::from_str(verdict).unwrap();
    assert!(verdict["good"].is_boolean(), "{verdict}");
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_client_talks_to_it_as_to_any_other() {
    let model = TunedModel::load(base(), None)
        .unwrap()
        .decoding(Decoding::greedy(24));
    let key = ApiKey::new("s3cret");
    let running = serve(ServeSettings {
        api_key: key,
        ..settings()
    })
    .await;
    let client = |name: &str, key: &str| {
        let builder = OpenAi::new(name).base_url(running.url()).api_key(key);
        builder.build().unwrap()
    };
    let mine = client("base", "s3cret");

    let request = ChatRequest::new(vec![Message::user("Why late ramen?")]);
    let (heard, own) = (
        mine.chat(&request).await.unwrap(),
        model.chat(&request).await.unwrap(),
    );
    assert_eq!(heard.answer.trim(), own.answer);
    assert_eq!(
        (heard.finish_reason, heard.usage.prompt_tokens),
        (own.finish_reason, own.usage.prompt_tokens)
    );
    assert_eq!(heard.usage.completion_tokens, own.usage.completion_tokens);

    let schema = json!({
        "type": "object", "properties": { "good": { "type": "boolean" } }, "required": ["good"], "additionalProperties": false,
    });
    let held = mine
        .chat(&request.clone().schema("verdict", schema))
        .await
        .unwrap();
    let verdict: Value = serde_json::from_str(&held.answer).unwrap();
    assert!(verdict["good"].is_boolean(), "{verdict}");

    let long = ChatRequest::new(vec![Message::user("ramen ".repeat(20_000))]);
    let error = mine.chat(&long).await.unwrap_err();
    assert!(matches!(error, ChatError::ContextTooLong { .. }), "{error}");
    let error = client("base", "wrong").chat(&request).await.unwrap_err();
    assert!(
        matches!(
            error,
            ChatError::Permanent {
                status: Some(401),
                ..
            }
        ),
        "{error}"
    );
    assert!(!error.to_string().contains("s3cret"));
    let error = client("nobody", "s3cret").chat(&request).await.unwrap_err();
    assert!(
        matches!(
            error,
            ChatError::Permanent {
                status: Some(404),
                ..
            }
        ),
        "{error}"
    );

    let drawn = |seed| {
        let request = request.clone().seed(seed).sampling(Sampling {
            temperature: Some(1.0),
            ..Sampling::default()
        });
        let (mine, model) = (&mine, &model);
        async move {
            let heard = mine.chat(&request).await.unwrap();
            assert_eq!(
                heard.answer.trim(),
                model.chat(&request).await.unwrap().answer
            );
            heard.answer
        }
    };
    assert_ne!(drawn(1).await, drawn(2).await);
    assert_eq!(running.end().await.cut, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_says_who_speaks_what_why_it_ended_and_what_it_took() {
    let running = serve(settings()).await;
    let (status, whole) = running.post(&chat("Why live jazz?")).await;
    assert_eq!(status, 200, "{whole}");
    let whole = object(&whole);

    let mut question = chat("Why live jazz?");
    question["stream"] = true.into();
    question["stream_options"] = json!({ "include_usage": true });
    let (status, answer) = running.post(&question).await;
    assert_eq!(status, 200, "{answer}");
    assert!(
        answer
            .to_ascii_lowercase()
            .contains("content-type: text/event-stream"),
        "{answer}"
    );
    let mut all = events(&answer);
    assert_eq!(all.pop().unwrap(), "[DONE]");
    let chunks: Vec<Value> = all
        .iter()
        .map(|event| serde_json::from_str(event).unwrap())
        .collect();
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let text: String = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(text, whole["choices"][0]["message"]["content"]);
    let [.., why, took] = &chunks[..] else {
        panic!("{answer}")
    };
    assert_eq!(
        why["choices"][0]["finish_reason"],
        whole["choices"][0]["finish_reason"]
    );
    assert_eq!(
        (&why["usage"], &took["choices"]),
        (&Value::Null, &json!([]))
    );
    assert_eq!(
        took["usage"]["completion_tokens"],
        whole["usage"]["completion_tokens"]
    );
    // The same prompt was read before; a page of it may be shared.
    assert!(took["usage"]["prompt_tokens_details"]["cached_tokens"].is_u64());
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn adapters_are_models_by_their_names() {
    let folder = tempfile::tempdir().unwrap();
    let adapter = folder.path().join("explains");
    train(&because_tune::Trainer::new(training()), &adapter).unwrap();
    let model = TunedModel::load(base(), None).unwrap();
    model.add_adapter("explains", &adapter).unwrap();
    let running = serve_model(model, settings()).await;
    let (_, models) = running.request("GET /v1/models HTTP/1.1", "").await;
    let models = object(&models);
    let names: Vec<&str> = models["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["id"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["base", "explains"]);

    let tuned = TunedModel::load(base(), Some(&adapter)).unwrap();
    let turn = because_core::Message::new("user", "Why old bookshops?");
    let expected = tuned.generate(&[turn], &Decoding::greedy(24)).unwrap().text;
    let mut question = chat("Why old bookshops?");
    question["model"] = "explains".into();
    let (_, answer) = running.post(&question).await;
    assert_eq!(
        object(&answer)["choices"][0]["message"]["content"],
        expected
    );
    // Which of the two is not to be guessed.
    let (status, answer) = running.post(&chat("Why?")).await;
    assert_eq!(
        (status, &object(&answer)["error"]["param"]),
        (400, &json!("model"))
    );
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_answered_is_refused_in_openais_shape() {
    let running = serve(ServeSettings {
        max_body_bytes: 2000,
        allowed_hosts: vec!["proxy.example".into()],
        ..settings()
    })
    .await;
    let post = "POST /v1/chat/completions HTTP/1.1\r\nContent-Type: application/json";
    for (head, body, expected) in [
        ("GET /health HTTP/1.1", String::new(), 200),
        ("GET /v1/models HTTP/1.1", String::new(), 200),
        ("GET /models HTTP/1.1", String::new(), 200),
        ("GET /v1/models/base HTTP/1.1", String::new(), 200),
        ("GET /v1/models/b%61se HTTP/1.1", String::new(), 200),
        ("GET /v1/models/nobody HTTP/1.1", String::new(), 404),
        ("GET /v1models HTTP/1.1", String::new(), 404),
        ("GET /v2/models HTTP/1.1", String::new(), 404),
        ("GET /v1/chat/completions HTTP/1.1", String::new(), 405),
        ("DELETE /v1/models HTTP/1.1", String::new(), 405),
        ("POST /v1/chat/completions HTTP/1.1", "{}".into(), 415),
        (post, "{".into(), 400),
        (
            "POST /chat/completions HTTP/1.1\r\nContent-Type: application/json",
            "{".into(),
            400,
        ),
        (
            post,
            r#"{"messages":[{"role":"user","content":"a"}],"logprobs":true}"#.into(),
            400,
        ),
        (post, "[".repeat(1000), 400),
        (post, "\u{1}".into(), 400),
        (
            post,
            r#"{"messages":[{"role":"user","content":7}]}"#.into(),
            400,
        ),
        (
            post,
            r#"{"messages":[{"role":"user","content":"a"}],"temperature":-1}"#.into(),
            400,
        ),
        (
            post,
            r#"{"messages":[{"role":"user","content":"a"}],"model":"x"}"#.into(),
            404,
        ),
        (post, "x".repeat(2001), 413),
        (post, "x".repeat(1_000_000), 413),
    ] {
        let (status, answer) = running.request(head, &body).await;
        assert_eq!(status, expected, "{head} {answer}");
        if expected != 200 {
            let error = &object(&answer)["error"];
            assert!(
                error["message"]
                    .as_str()
                    .is_some_and(|said| !said.is_empty()),
                "{answer}"
            );
            assert!(
                error["type"].is_string()
                    && error.get("param").is_some()
                    && error.get("code").is_some()
            );
        }
        if expected == 405 {
            assert!(
                answer.to_ascii_lowercase().contains("\r\nallow: "),
                "{answer}"
            );
        }
    }
    // A page that leads a name of its own to this machine, and a proxy that is known.
    for (host, status) in [("evil.example:80", "403"), ("Proxy.example:80", "200")] {
        let head = format!("GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = running.raw(head.as_bytes()).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer}"
        );
    }
    let mut schema = chat("Why?");
    schema["response_format"] =
        json!({ "type": "json_schema", "json_schema": { "schema": { "type": "nothing" } } });
    let (status, answer) = running.post(&schema).await;
    assert_eq!(
        (status, &object(&answer)["error"]["param"]),
        (400, &json!("response_format"))
    );
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_said_and_a_client_that_goes_makes_room() {
    let engine = EngineSettings {
        max_rows: 1,
        queue: 0,
        ..EngineSettings::default()
    };
    let running = serve(ServeSettings {
        engine,
        decoding: Decoding::greedy(4000),
        ..settings()
    })
    .await;
    for stream in [false, true] {
        let mut question = endless();
        question["stream"] = stream.into();
        let body = question.to_string();
        let mut first = TcpStream::connect(running.address).await.unwrap();
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        first.write_all((head + &body).as_bytes()).await.unwrap();
        let under_way = async |wanted: u64| {
            for _ in 0..600 {
                let (_, health) = running.request("GET /health HTTP/1.1", "").await;
                if object(&health)["under_way"] == wanted {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            panic!("never {wanted} under way");
        };
        under_way(1).await;
        let mut short = chat("Why?");
        short["max_tokens"] = 1.into();
        let (status, answer) = running.post(&short).await;
        assert_eq!(status, 429, "{answer}");
        assert!(
            answer
                .to_ascii_lowercase()
                .contains("\r\nretry-after: 1\r\n"),
            "{answer}"
        );
        drop(first);
        under_way(0).await;
        assert_eq!(running.post(&short).await.0, 200);
    }
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_lets_answers_end_within_their_time_and_cuts_the_rest() {
    for (grace, cut) in [(Duration::from_secs(60), 0), (Duration::ZERO, 1)] {
        let running = serve(ServeSettings {
            grace,
            decoding: Decoding::greedy(4000),
            ..settings()
        })
        .await;
        let mut question = endless();
        question["stream"] = true.into();
        let body = question.to_string();
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).await.unwrap();
        let mut begun = [0; 400];
        assert!(stream.read(&mut begun).await.unwrap() > 0);
        let address = running.address;
        let served = tokio::spawn(running.end());
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        let ended = String::from_utf8_lossy(&rest).contains("[DONE]");
        let served = served.await.unwrap();
        assert_eq!(
            (served.cut, ended),
            (cut, cut == 0),
            "{}",
            String::from_utf8_lossy(&rest)
        );
        assert!(TcpStream::connect(address).await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_too_slow_is_not_waited_for() {
    let timeout = Duration::from_millis(200);
    let slow = ServeSettings {
        header_timeout: timeout,
        body_timeout: timeout,
        ..settings()
    };
    let running = serve(slow).await;
    assert_eq!(running.raw(b"GET /health HT").await, "");
    // A connection that stays idle after an answer.
    let idle = running
        .raw(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await;
    assert!(idle.starts_with("HTTP/1.1 200"), "{idle}");
    let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{";
    let answer = running.raw(head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_never_reads_is_given_up_with_the_answer() {
    let running = serve(ServeSettings {
        // Every event repeats it, so that an answer is more than the system keeps for who does not read.
        name: Some("b".repeat(60_000)),
        decoding: Decoding::greedy(4000),
        max_connections: Some(1),
        write_timeout: Duration::from_millis(300),
        ..settings()
    })
    .await;
    let mut question = endless();
    question["stream"] = true.into();
    let body = question.to_string();
    let mut deaf = TcpStream::connect(running.address).await.unwrap();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    deaf.write_all((head + &body).as_bytes()).await.unwrap();
    // There is room for one connection only.
    for _ in 0..600 {
        let (status, health) = running.request("GET /health HTTP/1.1", "").await;
        assert_eq!(status, 200);
        if object(&health)["under_way"] == 0 {
            drop(deaf);
            running.end().await;
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the answer goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_heard_after_the_whole_body() {
    let running = serve(ServeSettings {
        api_key: ApiKey::new("s3cret"),
        ..settings()
    })
    .await;
    let body = "x".repeat(3 << 20);
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    for _ in 0..2 {
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        // The connection lives on: the second is sent through it as well.
        stream.write_all((head + &body).as_bytes()).await.unwrap();
        let mut begun = [0; 1000];
        let read = stream.read(&mut begun).await.unwrap();
        assert!(begun[..read].starts_with(b"HTTP/1.1 401"));
    }
    drop(stream);
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_waits_says_that_it_lives() {
    let running = serve(ServeSettings {
        engine: EngineSettings {
            max_rows: 1,
            queue: usize::MAX,
            ..EngineSettings::default()
        },
        decoding: Decoding::greedy(4000),
        keep_alive: Duration::from_millis(5),
        ..settings()
    })
    .await;
    let (mut long, mut short) = (endless(), chat("Why?"));
    long["stream"] = true.into();
    short["stream"] = true.into();
    short["max_tokens"] = 1.into();
    let (long, short) = tokio::join!(running.post(&long), async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        running.post(&short).await
    });
    assert_eq!((long.0, short.0), (200, 200));
    assert!(short.1.contains("\n: keep-alive\n\n"), "{}", short.1);
    let head = short.1.to_ascii_lowercase();
    assert!(head.contains("\r\nx-accel-buffering: no\r\n"), "{head}");
    assert!(head.contains("\r\ncache-control: no-cache\r\n"), "{head}");
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thought_that_the_template_opens_is_one_whole_and_streamed() {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(base()).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    let template = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}\
        {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}";
    std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    let model = TunedModel::load(folder.path(), None).unwrap();
    let running = serve_model(model, settings()).await;
    let mut question = chat("Why live jazz?");
    // Greedily it writes white space alone.
    question["temperature"] = 1.0.into();
    question["seed"] = 3.into();
    let whole = object(&running.post(&question).await.1);
    let message = &whole["choices"][0]["message"];
    assert_eq!(message["content"], "", "{whole}");
    let thought = message["reasoning_content"].as_str().unwrap();
    let count = &whole["usage"]["completion_tokens_details"]["reasoning_tokens"];
    assert!(count.as_u64().unwrap() > 0, "{whole}");

    question["stream"] = true.into();
    let streamed: String = events(&running.post(&question).await.1)
        .iter()
        .filter_map(|event| serde_json::from_str::<Value>(event).ok())
        .filter_map(|chunk| {
            let delta = &chunk["choices"][0]["delta"];
            delta["reasoning_content"].as_str().map(str::to_owned)
        })
        .collect();
    assert_eq!(streamed, thought);

    // A document by schema is an answer.
    question["stream"] = false.into();
    question["response_format"] =
        json!({ "type": "json_schema", "json_schema": { "schema": { "enum": [1] } } });
    let held = object(&running.post(&question).await.1);
    assert_eq!(held["choices"][0]["message"]["content"], "1", "{held}");
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_adapter_that_a_model_was_loaded_with_is_not_another_model() {
    let folder = tempfile::tempdir().unwrap();
    let adapter = folder.path().join("explains");
    train(&because_tune::Trainer::new(training()), &adapter).unwrap();
    let model = TunedModel::load(base(), Some(&adapter)).unwrap();
    let server = Server::bind(model, "127.0.0.1:0", settings())
        .await
        .unwrap();
    assert_eq!(server.models(), ["base"]);
}

/// Numbers that look random, the same every time.
struct Draws(u64);

impl Draws {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_bytes_make_it_fall_or_hang() {
    let timeout = Duration::from_millis(100);
    let quick = ServeSettings {
        header_timeout: timeout,
        body_timeout: timeout,
        decoding: Decoding::greedy(2),
        ..settings()
    };
    let running = serve(quick).await;
    let mut question = chat("Why?");
    question["stop"] = json!(["x"]);
    question["response_format"] =
        json!({ "type": "json_schema", "json_schema": { "schema": { "enum": [1] } } });
    let body = question.to_string();
    let whole = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut draws = Draws(7);
    for turn in 0..300 {
        let mut bytes = whole.clone().into_bytes();
        for _ in 0..=draws.below(4) {
            let at = draws.below(bytes.len().max(1));
            match draws.below(4) {
                0 | 1 if bytes.is_empty() => {}
                0 => bytes[at] = draws.below(256) as u8,
                1 => drop(bytes.remove(at)),
                2 => bytes.insert(at, draws.below(256) as u8),
                _ => bytes.truncate(at.max(1)),
            }
        }
        if turn % 10 == 0 {
            bytes = (0..draws.below(400))
                .map(|_| draws.below(256) as u8)
                .collect();
        }
        let answer = running.raw(&bytes).await;
        assert!(
            !answer.contains("HTTP/1.1 500"),
            "{}\n{answer}",
            String::from_utf8_lossy(&bytes)
        );
    }
    assert_eq!(running.request("GET /health HTTP/1.1", "").await.0, 200);
    running.end().await;
}
