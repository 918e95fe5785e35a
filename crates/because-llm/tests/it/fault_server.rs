//! A server on this machine that answers chats rightly, except where it is told what to do wrong, and counts what it gave.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use because_llm::{ChatRequest, JsonSchema, Message, ModelId, RequestKey, Sampling, Usage};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub(crate) const MODEL: &str = "served";

/// What the server does with one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Does {
    /// The right answer.
    Answers,
    /// 429 in OpenAI's own shape, and no header that says how long to wait.
    TooMany,
    /// 429 with `Retry-After` in seconds.
    TooManyForSeconds(u64),
    /// 429 with `Retry-After` as a date long past, which asks for no wait.
    TooManyUntilDate,
    /// 429 with `x-ratelimit-*`: nothing left, back in some milliseconds.
    TooManyWithLimits,
    /// 429 of a proxy, in words.
    TooManyInWords,
    /// 429 whose `code` is a number.
    TooManyWithNumber,
    /// 503 as a web page.
    Page,
    /// 500 with an empty body.
    Broken,
    /// 200 around an error.
    ErrorInside,
    /// The right answer with an ending nobody has heard of.
    UnknownEnding,
    /// The right answer, byte by byte as it were.
    Drips,
    /// Empty lines for a while, then the right answer.
    BlankLines,
    /// Half of the right answer, then a closed connection.
    Cut,
    /// A reset in place of an answer.
    Resets,
    /// Nothing, ever.
    Hangs,
    /// 200 with half of a JSON text, in full length.
    HalfJson,
    /// An answer in words where an object was asked for.
    Words,
    /// An object that does not fit the schema.
    Misfit,
    /// Thoughts and no answer.
    OnlyThoughts,
}

impl Does {
    /// Everything that can go wrong and still have a right answer later.
    pub(crate) const FAULTS: [Self; 19] = [
        Self::TooMany,
        Self::TooManyForSeconds(0),
        Self::TooManyUntilDate,
        Self::TooManyWithLimits,
        Self::TooManyInWords,
        Self::TooManyWithNumber,
        Self::Page,
        Self::Broken,
        Self::ErrorInside,
        Self::UnknownEnding,
        Self::Drips,
        Self::BlankLines,
        Self::Cut,
        Self::Resets,
        Self::Hangs,
        Self::HalfJson,
        Self::Words,
        Self::Misfit,
        Self::OnlyThoughts,
    ];

    /// Whether the client ends up with the right answer.
    pub(crate) fn answers(self) -> bool {
        matches!(
            self,
            Self::Answers | Self::UnknownEnding | Self::Drips | Self::BlankLines
        )
    }

    /// What the audit has to say about it.
    pub(crate) fn outcome(self) -> &'static str {
        match self {
            Self::Answers | Self::UnknownEnding | Self::Drips | Self::BlankLines => "ok",
            Self::TooMany
            | Self::TooManyForSeconds(_)
            | Self::TooManyUntilDate
            | Self::TooManyWithLimits
            | Self::TooManyInWords
            | Self::TooManyWithNumber
            | Self::Page
            | Self::ErrorInside => "overloaded",
            Self::Broken | Self::Cut | Self::Resets | Self::Hangs | Self::HalfJson => "transient",
            Self::Words | Self::Misfit | Self::OnlyThoughts => "invalid",
        }
    }

    /// The HTTP status that the audit has to show.
    pub(crate) fn status(self) -> Option<u16> {
        match self {
            Self::Page => Some(503),
            Self::Broken => Some(500),
            does if does.outcome() == "overloaded" => Some(429),
            _ => None,
        }
    }
}

/// One request that reached the server, and what it got.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) key: RequestKey,
    /// What its first turn says; a repair says there what the question it repairs said.
    pub(crate) about: String,
    /// What stands as `run` in the query of the URL: who asks.
    pub(crate) run: Option<u32>,
    pub(crate) does: Does,
    /// The tokens that the client was told of, all zero where the answer did not go out whole.
    pub(crate) usage: Usage,
}

/// Decides by the key of a request, and by how often it came before.
type Script = dyn Fn(&RequestKey, u32) -> Does + Send + Sync;

pub(crate) struct FaultServer {
    pub(crate) url: String,
    books: Arc<Mutex<Books>>,
}

#[derive(Default)]
struct Books {
    calls: Vec<Call>,
    seen: HashMap<RequestKey, u32>,
}

struct Serving {
    model: ModelId,
    script: Box<Script>,
    books: Arc<Mutex<Books>>,
}

impl FaultServer {
    pub(crate) async fn run(
        script: impl Fn(&RequestKey, u32) -> Does + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let books = Arc::new(Mutex::new(Books::default()));
        let serving = Arc::new(Serving {
            model: ModelId {
                model: MODEL.into(),
                endpoint: url.clone(),
            },
            script: Box::new(script),
            books: Arc::clone(&books),
        });
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let serving = Arc::clone(&serving);
                tokio::spawn(async move { serving.connection(stream).await });
            }
        });
        Self { url, books }
    }

    /// Does these things to whoever asks, in turn, and answers rightly from then on.
    pub(crate) async fn doing(faults: impl IntoIterator<Item = Does>) -> Self {
        let faults = Mutex::new(
            faults
                .into_iter()
                .collect::<std::collections::VecDeque<_>>(),
        );
        Self::run(move |_, _| {
            let next = faults.lock().unwrap().pop_front();
            next.unwrap_or(Does::Answers)
        })
        .await
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.books.lock().unwrap().calls.clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.books.lock().unwrap().calls.len()
    }
}

impl Serving {
    async fn connection(&self, mut stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let mut bytes = Vec::new();
        while let Some((run, body)) = receive(&mut stream, &mut bytes).await {
            let request = request(&body);
            let key = request.key(&self.model);
            let nth = {
                let mut books = self.books.lock().unwrap();
                let nth = books.seen.entry(key).or_default();
                *nth += 1;
                *nth - 1
            };
            let does = (self.script)(&key, nth);
            let (answer, usage) = right(&request);
            let told = match does {
                does if does.outcome() == "ok" || does.outcome() == "invalid" => usage,
                _ => Usage::default(),
            };
            // Before it goes out: whoever has the answer finds it in the books.
            self.books.lock().unwrap().calls.push(Call {
                key,
                about: request.messages[0].content.clone(),
                run,
                does,
                usage: told,
            });
            if play(&mut stream, does, &answer, usage).await.is_none() {
                return;
            }
        }
    }
}

/// The right answer to a request: what it asked, given back. In an object where there is a schema.
pub(crate) fn right(request: &ChatRequest) -> (String, Usage) {
    let asked = &request.messages[0].content;
    let answer = match request.schema {
        Some(_) => json!({ "about": asked }).to_string(),
        None => format!("about {asked}"),
    };
    let prompt: usize = request
        .messages
        .iter()
        .map(|message| message.content.len())
        .sum();
    let usage = Usage {
        prompt_tokens: prompt as u64,
        completion_tokens: answer.len() as u64,
        cached_tokens: prompt as u64 / 2,
        reasoning_tokens: 1,
    };
    (answer, usage)
}

/// A request about this, in free text or in the one shape that [`right`] answers in.
pub(crate) fn about(text: &str) -> ChatRequest {
    let schema = json!({"type": "object", "properties": {"about": {"type": "string"}},
                        "required": ["about"], "additionalProperties": false});
    ChatRequest::new(vec![Message::user(text)]).schema("about", schema)
}

/// The request that a body was made of.
fn request(body: &Value) -> ChatRequest {
    let format = &body["response_format"]["json_schema"];
    let mut request = ChatRequest::new(serde_json::from_value(body["messages"].clone()).unwrap())
        .sampling(Sampling {
            temperature: body["temperature"].as_f64(),
            top_p: body["top_p"].as_f64(),
            max_tokens: body["max_tokens"]
                .as_u64()
                .map(|tokens| u32::try_from(tokens).unwrap()),
        });
    request.seed = body["seed"].as_u64();
    request.schema = format["name"].as_str().map(|name| JsonSchema {
        name: name.to_owned(),
        schema: format["schema"].clone(),
    });
    request
}

/// Sends it; `None` where the connection is not to be used again.
async fn play(stream: &mut TcpStream, does: Does, answer: &str, usage: Usage) -> Option<()> {
    const JSON: &str = "content-type: application/json\r\n";
    let whole = completion(answer, "stop", usage);
    let busy =
        r#"{"error":{"message":"slow down","type":"rate_limit_error","param":null,"code":null}}"#;
    let sent = match does {
        Does::Answers => http(200, JSON, &whole),
        Does::TooMany => http(429, JSON, busy),
        Does::TooManyForSeconds(seconds) => {
            http(429, &format!("{JSON}retry-after: {seconds}\r\n"), busy)
        }
        Does::TooManyUntilDate => http(
            429,
            &format!("{JSON}retry-after: Sun, 06 Nov 1994 08:49:37 GMT\r\n"),
            busy,
        ),
        Does::TooManyWithLimits => http(
            429,
            &format!(
                "{JSON}x-ratelimit-limit-requests: 5000\r\nx-ratelimit-remaining-requests: 0\r\nx-ratelimit-reset-requests: 12ms\r\n\
                 x-ratelimit-limit-tokens: 4000000\r\nx-ratelimit-remaining-tokens: 0\r\nx-ratelimit-reset-tokens: 6ms\r\n"
            ),
            busy,
        ),
        Does::TooManyInWords => http(
            429,
            "content-type: text/plain\r\n",
            "Too many requests, slow down",
        ),
        Does::TooManyWithNumber => {
            http(429, JSON, r#"{"error":{"message":"slow down","code":429}}"#)
        }
        Does::Page => http(
            503,
            "content-type: text/html\r\n",
            "<html><head><title>503 Service Temporarily Unavailable</title></head><body><h1>nginx</h1></body></html>",
        ),
        Does::Broken => http(500, "", ""),
        Does::ErrorInside => http(200, JSON, r#"{"error":{"message":"slow down","code":429}}"#),
        Does::UnknownEnding => http(
            200,
            JSON,
            &completion(answer, "insufficient_system_resource", usage),
        ),
        Does::HalfJson => http(200, JSON, &whole[..whole.len() / 2]),
        Does::Words => http(200, JSON, &completion("Well, let me see.", "stop", usage)),
        Does::Misfit => http(200, JSON, &completion(r#"{"about": 7}"#, "stop", usage)),
        Does::OnlyThoughts => http(200, JSON, &thoughts(usage)),
        Does::Drips => {
            let sent = http(200, JSON, &whole);
            for piece in sent.as_bytes().chunks(sent.len() / 8) {
                write(stream, piece).await?;
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            return Some(());
        }
        Does::BlankLines => {
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
            write(stream, head.as_bytes()).await?;
            for _ in 0..4 {
                write(stream, b"2\r\n\r\n\r\n").await?;
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            format!("{:x}\r\n{whole}\r\n0\r\n\r\n", whole.len())
        }
        Does::Cut => {
            let sent = http(200, JSON, &whole);
            write(stream, &sent.as_bytes()[..sent.len() - whole.len() / 2]).await?;
            return None;
        }
        Does::Resets => {
            #[allow(deprecated, reason = "no linger is what makes the close a reset")]
            let _ = stream.set_linger(Some(Duration::ZERO));
            return None;
        }
        Does::Hangs => {
            // Until the client goes away.
            let _ = stream.read(&mut [0; 16]).await;
            return None;
        }
    };
    write(stream, sent.as_bytes()).await
}

async fn write(stream: &mut TcpStream, bytes: &[u8]) -> Option<()> {
    stream.write_all(bytes).await.ok()
}

fn http(status: u16, headers: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} Whatever\r\ncontent-length: {}\r\n{headers}\r\n{body}",
        body.len()
    )
}

fn completion(answer: &str, ending: &str, usage: Usage) -> String {
    message(
        &json!({"role": "assistant", "content": answer}),
        ending,
        usage,
    )
}

fn thoughts(usage: Usage) -> String {
    message(
        &json!({"role": "assistant", "content": "", "reasoning_content": "hm, let me think"}),
        "stop",
        usage,
    )
}

fn message(message: &Value, ending: &str, usage: Usage) -> String {
    json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": ending}],
        "usage": {
            "prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens}
        }
    })
    .to_string()
}

/// Who asks, and the body of the next request on this connection; what was read beyond it stays in `bytes`.
async fn receive(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<(Option<u32>, Value)> {
    let mut buffer = [0; 8192];
    loop {
        if let Some(end) = bytes.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            let length: usize = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))?
                .trim()
                .parse()
                .ok()?;
            let body = end + 4..end + 4 + length;
            if bytes.len() >= body.end {
                let json = serde_json::from_slice(&bytes[body.clone()]).ok()?;
                bytes.drain(..body.end);
                let run = head
                    .split_once("?run=")
                    .and_then(|(_, rest)| rest.split_once(' ')?.0.parse().ok());
                return Some((run, json));
            }
        }
        let read = stream.read(&mut buffer).await.ok()?;
        if read == 0 {
            return None;
        }
        bytes.extend_from_slice(&buffer[..read]);
    }
}
