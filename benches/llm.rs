//! What a call costs on our side: calls a second and CPU a call through every wrapper, against a server in a process of its
//! own, beside the bare HTTP client; and how fast answers come that are there already.
//!
//! ```sh
//! cargo bench -p because-benches --bench llm
//! cargo bench -p because-benches --bench llm -- --peers python3     # beside the Python clients; see benches/peers
//! ```
//!
//! `--calls N` (30,000) and `--rounds N` (3) say how long it takes. Every measurement is a process of its own, which reports
//! its own CPU time; what is compared takes turns.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a program that prints a table, and stops where it cannot"
)]

use std::convert::Infallible;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::middleware::ReqwestService;
use because::llm::{
    BoxFuture, ChatError, ChatModel, ChatRequest, ChatResponse, Message, ModelId, ModelStack,
    OpenAi, Stop, Store, drive,
};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// That of the `because` command.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const MODEL: &str = "served";

fn main() {
    let given: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| arg != "--bench")
        .collect();
    let given: Vec<&str> = given.iter().map(String::as_str).collect();
    match given[..] {
        ["serve"] => serve(),
        ["measure", what, concurrency, calls, url] => {
            let measured = measure(
                what,
                concurrency.parse().unwrap(),
                calls.parse().unwrap(),
                url,
            );
            println!("{}", serde_json::to_string(&measured).unwrap());
        }
        _ => compare(&given),
    }
}

// --- the questions and the answer

fn schema() -> Value {
    json!({"type": "object", "properties": {"summary": {"type": "string"}, "stars": {"type": "integer", "minimum": 1, "maximum": 5}},
           "required": ["summary", "stars"], "additionalProperties": false})
}

/// About 1.7 kB as a body of JSON, no two alike.
fn request(n: usize) -> ChatRequest {
    const SYSTEM: &str = "You write what a reader looks for in books. ";
    const USER: &str =
        "The last chapter lost me, but the map and the letters between the sisters did not. ";
    ChatRequest::new(vec![
        Message::system(SYSTEM.repeat(10)),
        Message::user(format!("Review {n}: {}", USER.repeat(9))),
    ])
    .schema("opinion", schema())
    .seed(7)
}

/// About 0.9 kB as a body of JSON.
fn completion() -> String {
    const SUMMARY: &str =
        "Likes maps and letters and slow beginnings; leaves when a plot turns on chance. ";
    let answer = json!({"summary": SUMMARY.repeat(7), "stars": 4}).to_string();
    json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1_700_000_000, "model": MODEL,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 330, "completion_tokens": 130, "total_tokens": 460}
    })
    .to_string()
}

// --- the server

/// Answers every POST alike, and a GET with the CPU time it has taken. Prints its URL; ends with its standard input.
fn serve() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    let body = Bytes::from(completion());
    runtime.block_on(async move {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("http://{}/v1", listener.local_addr().unwrap());
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let _ = stream.set_nodelay(true);
            let body = body.clone();
            tokio::spawn(async move {
                let answer = service_fn(move |request: Request<Incoming>| {
                    let body = body.clone();
                    async move {
                        let body = match *request.method() == hyper::Method::GET {
                            true => Bytes::from(cpu().as_secs_f64().to_string()),
                            false => {
                                let _ = request.into_body().collect().await;
                                body
                            }
                        };
                        let response = Response::builder()
                            .header("content-type", "application/json")
                            .body(Full::new(body));
                        Ok::<_, Infallible>(response.unwrap())
                    }
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), answer)
                    .await;
            });
        }
    });
}

struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start() -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg("serve")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut url = String::new();
        let out = child.stdout.as_mut().unwrap();
        BufReader::new(out).read_line(&mut url).unwrap();
        Self {
            child,
            url: url.trim().to_owned(),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// --- one measurement, in a process of its own

/// What so many calls took.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Measured {
    calls: usize,
    seconds: f64,
    cpu_seconds: f64,
    /// Of the server, over the same calls.
    #[serde(default)]
    server_cpu_seconds: f64,
}

impl Measured {
    fn per_second(&self) -> f64 {
        self.calls as f64 / self.seconds
    }

    fn cpu_micros(&self) -> f64 {
        self.cpu_seconds / self.calls as f64 * 1e6
    }
}

fn measure(what: &str, concurrency: usize, calls: usize, url: &str) -> Measured {
    let (what, one_thread) = match what.strip_suffix("-1") {
        Some(what) => (what, true),
        None => (what, false),
    };
    let mut runtime = match one_thread {
        true => tokio::runtime::Builder::new_current_thread(),
        false => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = runtime.enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("llm.sqlite");
    runtime.block_on(async {
        match what {
            "bare" => {
                let model = Bare::new(url);
                timed(&model, concurrency, 500_000_000, 500).await;
                timed(&model, concurrency, 0, calls).await
            }
            "client" => {
                let model = OpenAi::new(MODEL).base_url(url).build().unwrap();
                timed(&model, concurrency, 500_000_000, 500).await;
                timed(&model, concurrency, 0, calls).await
            }
            "stack" => {
                let model = OpenAi::new(MODEL).base_url(url).build().unwrap();
                let store = Store::open(&file).unwrap();
                let model = stack(model, &store, concurrency);
                timed(&model, concurrency, 500_000_000, 500).await;
                let measured = timed(&model, concurrency, 0, calls).await;
                assert_eq!(store.totals().unwrap().responses, calls as u64 + 500);
                measured
            }
            "sqlite" | "memory" => {
                fill(&file, calls, concurrency).await;
                let store = Store::open(&file).unwrap();
                let model = stack(Never, &store, concurrency);
                let requests: Vec<ChatRequest> = (0..calls).map(request).collect();
                let from_file = asked(&model, concurrency, &requests).await;
                match what {
                    "sqlite" => from_file,
                    _ => asked(&model, concurrency, &requests).await,
                }
            }
            other => panic!("there is no measurement {other:?}"),
        }
    })
}

fn stack(
    model: impl ChatModel + 'static,
    store: &Store,
    concurrency: usize,
) -> because::llm::Stacked {
    let stack = ModelStack::new(model).store(store.clone());
    stack.concurrency(concurrency).build().unwrap()
}

/// Asks from `from` on, each question made when its turn comes.
async fn timed(model: &dyn ChatModel, concurrency: usize, from: usize, calls: usize) -> Measured {
    let jobs = (from..from + calls).map(|n| async move { model.chat(&request(n)).await });
    clocked(calls, drive(jobs, concurrency, &Stop::default(), check)).await
}

/// Asks what is there already.
async fn asked(model: &dyn ChatModel, concurrency: usize, requests: &[ChatRequest]) -> Measured {
    let jobs = requests.iter().map(|request| model.chat(request));
    clocked(
        requests.len(),
        drive(jobs, concurrency, &Stop::default(), check),
    )
    .await
}

async fn clocked<E: std::fmt::Debug>(
    calls: usize,
    work: impl Future<Output = Result<(), E>>,
) -> Measured {
    let (begun, cpu_before) = (Instant::now(), cpu());
    work.await.unwrap();
    Measured {
        calls,
        seconds: begun.elapsed().as_secs_f64(),
        cpu_seconds: (cpu() - cpu_before).as_secs_f64(),
        server_cpu_seconds: 0.0,
    }
}

#[allow(clippy::needless_pass_by_value, reason = "what `drive` hands over")]
fn check(response: ChatResponse) {
    assert!(response.answer.contains("\"stars\":4"));
}

async fn fill(file: &Path, calls: usize, concurrency: usize) {
    let store = Store::open(file).unwrap();
    let model = stack(Constant(completion()), &store, concurrency);
    timed(&model, concurrency, 0, calls).await;
    drop(model);
    store.close().unwrap();
}

/// Gives the server's answer without a server.
struct Constant(String);

impl ChatModel for Constant {
    fn chat<'a>(&'a self, _: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse, ChatError>> {
        let reply: Reply = serde_json::from_str(&self.0).unwrap();
        Box::pin(std::future::ready(Ok(reply.into_response())))
    }
}

/// Has nothing to say: whatever is answered comes from the store.
struct Never;

impl ChatModel for Never {
    fn chat<'a>(&'a self, _: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse, ChatError>> {
        panic!("everything is in the store");
    }
}

/// async-openai as it comes: its own JSON types out of the way, no repetition, no check.
struct Bare(Client<OpenAIConfig>);

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    messages: &'a [Message],
    stream: bool,
    seed: Option<u64>,
    response_format: Value,
}

#[derive(Deserialize)]
struct Reply {
    model: Option<String>,
    choices: Vec<Choice>,
    usage: Tokens,
}

#[derive(Deserialize)]
struct Choice {
    message: Said,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Said {
    content: String,
}

#[derive(Deserialize)]
struct Tokens {
    prompt_tokens: u64,
    completion_tokens: u64,
}

impl Reply {
    fn into_response(self) -> ChatResponse {
        let choice = self.choices.into_iter().next().unwrap();
        let mut response = ChatResponse {
            answer: choice.message.content,
            finish_reason: choice.finish_reason,
            model: self.model,
            ..ChatResponse::default()
        };
        response.usage.prompt_tokens = self.usage.prompt_tokens;
        response.usage.completion_tokens = self.usage.completion_tokens;
        response
    }
}

impl Bare {
    fn new(url: &str) -> Self {
        let http = reqwest::Client::builder()
            .http1_only()
            .timeout(Duration::from_secs(60))
            .no_proxy()
            .build()
            .unwrap();
        let config = OpenAIConfig::new().with_api_base(url).with_api_key("none");
        Self(Client::build(http.clone(), config).with_http_service(ReqwestService::new(http)))
    }
}

impl ChatModel for Bare {
    fn chat<'a>(
        &'a self,
        request: &'a ChatRequest,
    ) -> BoxFuture<'a, Result<ChatResponse, ChatError>> {
        Box::pin(async move {
            let schema = request.schema.as_ref().unwrap();
            let body = Body {
                model: MODEL,
                messages: &request.messages,
                stream: false,
                seed: request.seed,
                response_format: json!({"type": "json_schema",
                    "json_schema": {"name": schema.name, "schema": schema.schema, "strict": true}}),
            };
            let reply: Reply = self.0.chat().create_byot(&body).await.unwrap();
            Ok(reply.into_response())
        })
    }

    fn id(&self) -> ModelId {
        ModelId::default()
    }
}

/// The CPU time of this process so far, in user and kernel mode.
#[cfg(unix)]
fn cpu() -> Duration {
    use nix::sys::resource::{UsageWho, getrusage};
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let time = |time: nix::sys::time::TimeVal| {
        Duration::new(time.tv_sec().unsigned_abs(), 0)
            + Duration::from_micros(time.tv_usec().unsigned_abs())
    };
    time(usage.user_time()) + time(usage.system_time())
}

#[cfg(not(unix))]
fn cpu() -> Duration {
    Duration::ZERO
}

// --- the table

fn compare(given: &[&str]) {
    let option = |name: &str| {
        let at = given.iter().position(|given| *given == name)?;
        Some(
            *given
                .get(at + 1)
                .unwrap_or_else(|| panic!("{name} lacks its value")),
        )
    };
    let number = |name: &str, default: usize| {
        option(name).map_or(default, |text| {
            text.parse()
                .unwrap_or_else(|_| panic!("{name} takes a number"))
        })
    };
    let (calls, rounds) = (number("--calls", 30_000), number("--rounds", 3));
    let server = Server::start();
    println!("| what | concurrency | calls/s | CPU us a call | over bare | server us a call |");
    println!("|---|---|---|---|---|---|");
    for concurrency in [64, 256] {
        for threads in ["", "-1"] {
            let kinds = ["bare", "client", "stack"].map(|kind| format!("{kind}{threads}"));
            let mut measured = vec![Vec::new(); kinds.len()];
            for _ in 0..rounds {
                for (kind, measured) in kinds.iter().zip(&mut measured) {
                    measured.push(child(&server, kind, concurrency, calls));
                }
            }
            let bare = median(measured[0].iter().map(Measured::cpu_micros));
            for (kind, measured) in kinds.iter().zip(&measured) {
                let cpu = median(measured.iter().map(Measured::cpu_micros));
                println!(
                    "| {kind} | {concurrency} | {:.0} | {cpu:.1} | {:+.1} | {:.1} |",
                    median(measured.iter().map(Measured::per_second)),
                    cpu - bare,
                    median(
                        measured
                            .iter()
                            .map(|m| m.server_cpu_seconds / m.calls as f64 * 1e6)
                    ),
                );
            }
        }
    }
    println!("\n| warm, from | requests/s | CPU us a request |\n|---|---|---|");
    for kind in ["sqlite", "memory"] {
        let measured: Vec<Measured> = (0..rounds)
            .map(|_| child(&server, kind, 64, calls))
            .collect();
        println!(
            "| {kind} | {:.0} | {:.1} |",
            median(measured.iter().map(Measured::per_second)),
            median(measured.iter().map(Measured::cpu_micros))
        );
    }
    if let Some(python) = option("--peers") {
        peers(&server, python, calls / 10);
    }
}

/// The same calls by Python's clients, at concurrency 64, beside ours in the same minute.
fn peers(server: &Server, python: &str, calls: usize) {
    let ours = child(server, "stack", 64, calls * 5).cpu_micros();
    println!(
        "\n| client | calls/s | CPU us a call | ratio to ours ({ours:.1} us) |\n|---|---|---|---|"
    );
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/llm.py");
    let sample = serde_json::to_string(&request(0)).unwrap();
    for client in ["openai", "litellm"] {
        let out = Command::new(python)
            .args([
                script,
                client,
                &server.url,
                "64",
                &calls.to_string(),
                &sample,
            ])
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(out.status.success(), "{script} {client}: {}", out.status);
        let measured: Measured = serde_json::from_slice(&out.stdout).unwrap();
        println!(
            "| Python {client} | {:.0} | {:.0} | {:.0} |",
            measured.per_second(),
            measured.cpu_micros(),
            measured.cpu_micros() / ours
        );
    }
}

fn child(server: &Server, kind: &str, concurrency: usize, calls: usize) -> Measured {
    let before = server_cpu(server);
    let out = Command::new(std::env::current_exe().unwrap())
        .args([
            "measure",
            kind,
            &concurrency.to_string(),
            &calls.to_string(),
            &server.url,
        ])
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(out.status.success(), "{kind}: {}", out.status);
    let mut measured: Measured = serde_json::from_slice(&out.stdout).unwrap();
    measured.server_cpu_seconds = server_cpu(server) - before;
    measured
}

fn server_cpu(server: &Server) -> f64 {
    use std::io::{Read, Write};
    let address = server
        .url
        .trim_start_matches("http://")
        .trim_end_matches("/v1");
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text.rsplit("\r\n").next().unwrap().parse().unwrap()
}

fn median(numbers: impl Iterator<Item = f64>) -> f64 {
    let mut numbers: Vec<f64> = numbers.collect();
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}
