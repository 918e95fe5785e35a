//! No secret in anything that is written, shown or given back, whatever goes wrong and whatever a server says.
//!
//! The calls run in a process of their own that logs everything it can; then everything it wrote is searched.

use std::fmt::Debug;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use because_llm::{
    ChatError, ChatModel, ChatRequest, ChatResponse, Message, ModelSpec, ModelStack, OpenAi,
    OpenAiBuilder, Store,
};
use serde_json::json;

use crate::fault_server::{self, FaultServer, about};
use crate::server::{Does, Server, completion, error, http};

const FOLDER: &str = "BECAUSE_LLM_KEYS_FOLDER";

// Each in letters that encodings change.
const KEY: &str = "sk-+Q7/very=secret&0123456789abcdefXYZ";
const PASSWORD: &str = "hush+word/never=said&0987654321qwertz";
const SIGNATURE: &str = "sig+nature/of=somebody&5647382910asdfgh";

#[test]
fn no_secret_is_in_anything_that_a_run_leaves_behind() {
    let folder = tempfile::tempdir().unwrap();
    let run = Command::new(std::env::current_exe().unwrap())
        .args([
            "keys::everything_that_can_go_wrong",
            "--exact",
            "--nocapture",
        ])
        .env(FOLDER, folder.path())
        .env("RUST_BACKTRACE", "0")
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(run.status.success(), "{shown}");
    let mut texts = vec![
        ("standard output".to_owned(), run.stdout),
        ("the log".to_owned(), run.stderr),
    ];
    for path in files(folder.path()) {
        texts.push((path.display().to_string(), std::fs::read(&path).unwrap()));
    }
    assert!(
        texts.len() >= 5,
        "a store, a recording, and what goes with them"
    );
    // That there is something to search, down to the lowest level of the log.
    let log = String::from_utf8_lossy(&texts[1].1);
    assert!(
        log.contains("TRACE") && log.contains("asking again"),
        "{log}"
    );
    assert!(texts[0].1.len() > 10_000);
    for (name, bytes) in &texts {
        if let Some(found) = found(bytes) {
            panic!("{found:?} is in {name}");
        }
    }
}

#[test]
fn the_search_finds_a_secret_in_any_form() {
    for text in [
        format!("Authorization: Bearer {KEY}"),
        format!("https://h/v1?key={}", percent(KEY, true)),
        format!("https://h/v1?key={}", percent(KEY, false)),
        base64(format!("Bearer {KEY}").as_bytes()),
        base64(format!("me:{PASSWORD}").as_bytes()),
        base64(format!("any:{PASSWORD}").as_bytes()),
        format!("cut off {}...", &KEY[..16]),
        format!("... {}", &SIGNATURE[SIGNATURE.len() - 16..]),
        KEY.replace('/', "\\/"),
    ] {
        assert!(found(text.as_bytes()).is_some(), "{text}");
    }
    assert!(
        found(b"https://h/v1: HTTP 401 Unauthorized: Incorrect API key provided: ***").is_none()
    );
}

/// Asks in every way that fails, shows all there is to show, and searches nothing. Does nothing on its own.
#[tokio::test]
async fn everything_that_can_go_wrong() {
    let Ok(folder) = std::env::var(FOLDER) else {
        return;
    };
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    let run = Run {
        store: Store::open(Path::new(&folder).join("llm.sqlite")).unwrap(),
        folder: folder.into(),
    };
    for does in fault_server::Does::FAULTS {
        let server = FaultServer::run(move |_, nth| match nth {
            0 => does,
            _ => fault_server::Does::Answers,
        })
        .await;
        run.ask(&server.url, Who::Key).await;
    }
    for who in [Who::Key, Who::User] {
        for script in echoes(who) {
            let server = Server::run([script]).await;
            run.ask(&server.url, who).await;
            let basic = base64(format!("me:{PASSWORD}").as_bytes());
            let secret = match who {
                Who::Key => KEY,
                Who::User => &basic,
            };
            for sent in [secret, &percent(SIGNATURE, true)] {
                let sent = sent.to_lowercase();
                assert!(
                    server
                        .asked()
                        .iter()
                        .all(|asked| asked.head.contains(&sent)),
                    "the secrets do go to the server"
                );
            }
        }
    }
    // A server that points elsewhere does not take the key along.
    let elsewhere = Server::run([http(200, "", "")]).await;
    for status in [301, 302, 303, 307, 308] {
        let location = format!(
            "location: {}/chat/completions?key={}\r\n",
            elsewhere.url,
            percent(KEY, true)
        );
        let server = Server::run([http(status, &location, "")]).await;
        run.ask(&server.url, Who::Key).await;
    }
    assert_eq!(elsewhere.count(), 0);
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = closed.local_addr().unwrap();
    let plain = Server::run([http(400, "", "")]).await;
    for url in [
        format!("http://{closed}/v1"),
        "http://no-such-host.invalid/v1".to_owned(),
        plain.url.replace("http://", "https://"),
    ] {
        run.ask(&url, Who::Key).await;
        run.ask(&url, Who::User).await;
    }
    // What cannot even be built, with secrets in every place.
    for url in [
        KEY.to_owned(),
        format!("ftp://me:{PASSWORD}@host/v1"),
        format!("http://me:{PASSWORD}@/v1"),
        format!("http://me:{PASSWORD}@host:port/v1"),
        format!("me:{PASSWORD}@host/v1"),
        format!("http://[{KEY}]/v1"),
    ] {
        show(&OpenAi::new("m").base_url(url).api_key(KEY).build());
    }
    show(&OpenAi::new("m").api_key(format!("{KEY}\n{KEY}")).build());
    for password in [PASSWORD, &percent(PASSWORD, true)] {
        show(&format!("openai:m@http://me:{password}@host/v1").parse::<ModelSpec>());
    }
    run.store.flush().unwrap();
    show(&run.store.totals());
    show_table(run.store.path());
}

struct Run {
    store: Store,
    folder: PathBuf,
}

impl Run {
    /// Asks this server bare and through everything.
    async fn ask(&self, url: &str, who: Who) {
        let signed = format!("{url}?version=2&sig={}", percent(SIGNATURE, true));
        let user = format!("://me:{}@", percent(PASSWORD, true));
        let client = OpenAi::new(fault_server::MODEL);
        let client = match who {
            Who::Key => client.base_url(signed).api_key(KEY),
            Who::User => client.base_url(signed.replace("://", &user)),
        };
        let free = ChatRequest::new(vec![Message::user("sand")]);
        let bare = built(client.clone());
        for request in [&about("sand"), &free] {
            show_result(&bare.chat(request).await);
        }
        let recording = url.replace(|c: char| !c.is_alphanumeric(), "-");
        let stack = ModelStack::new(built(client))
            .store(self.store.clone())
            .backoff(Duration::from_millis(1))
            .retries(2)
            .repairs(1)
            .record(self.folder.join(recording + ".jsonl"));
        show(&stack);
        let stack = stack.build().unwrap();
        for request in [&about("sand"), &free] {
            show_result(&stack.chat(request).await);
            show(&self.store.get(&request.key(&stack.id())));
        }
    }
}

/// How a client says who it is.
#[derive(Debug, Clone, Copy)]
enum Who {
    /// With a key.
    Key,
    /// With a user and a password in the URL.
    User,
}

fn built(builder: OpenAiBuilder) -> OpenAi {
    let builder = builder.timeout(Duration::from_millis(250));
    show(&builder);
    let model = builder.build().unwrap();
    show(&model);
    show(&model.id());
    model
}

fn show(shown: &impl Debug) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{shown:?}\n{shown:#?}").unwrap();
}

fn show_result(result: &Result<ChatResponse, ChatError>) {
    show(result);
    if let Err(error) = result {
        let mut next: Option<&dyn std::error::Error> = Some(error);
        while let Some(error) = next {
            show(&error.to_string());
            next = error.source();
        }
    }
}

/// Every column of the audit and of the answers, as text.
fn show_table(path: &Path) {
    let reader = rusqlite::Connection::open(path).unwrap();
    for table in ["attempts", "responses", "meta"] {
        let mut rows = reader.prepare(&format!("SELECT * FROM {table}")).unwrap();
        let columns = rows.column_count();
        let mut rows = rows.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            for column in 0..columns {
                show(&row.get::<_, rusqlite::types::Value>(column).unwrap());
            }
        }
    }
}

/// Servers that say back what they were sent, wherever a text can stand.
fn echoes(who: Who) -> Vec<Does> {
    let basic = base64(format!("me:{PASSWORD}").as_bytes());
    let (secret, header) = match who {
        Who::Key => (KEY, format!("Authorization: Bearer {KEY}")),
        Who::User => (PASSWORD, format!("Authorization: Basic {basic}")),
    };
    let said = [
        format!("Incorrect API key provided: {secret}"),
        header,
        format!(
            "GET /v1?version=2&sig={} ({SIGNATURE})",
            percent(SIGNATURE, true)
        ),
        format!(
            "?key={}&key={}",
            percent(secret, true),
            percent(secret, false)
        ),
        format!("{} as JSON", secret.replace('/', "\\/")),
    ];
    let mut echoes = Vec::new();
    for said in &said {
        for status in [400, 401, 404, 429, 500] {
            echoes.push(error(
                status,
                &json!({"error": {"message": said, "code": said, "type": said}}),
            ));
            echoes.push(http(status, "content-type: text/plain\r\n", said));
        }
        let page = format!("<html><body><h1>{said}</h1></body></html>");
        echoes.push(http(502, "content-type: text/html\r\n", &page));
        echoes.push(http(200, "content-type: text/html\r\n", &page));
        echoes.push(http(200, "", said));
        echoes.push(http(200, "", &json!(said).to_string()));
        echoes.push(error(
            200,
            &json!({"error": {"message": said, "code": 503}}),
        ));
        echoes.push(error(200, &json!({"error": said})));
        echoes.push(error(200, &json!({"headers": said, "choices": []})));
        // Asked differently from now on, and said so in the log.
        let lesson = format!("response_format json_schema is not supported ({said})");
        echoes.push(error(400, &json!({"error": {"message": lesson}})));
        for name in [
            "x-request-id",
            "request-id",
            "cf-ray",
            "retry-after",
            "location",
            "www-authenticate",
        ] {
            for status in [302, 429] {
                echoes.push(http(status, &format!("{name}: {said}\r\n"), "no"));
            }
        }
        for place in ["content", "reasoning_content", "refusal"] {
            let mut body = completion("{}");
            body["choices"][0]["message"][place] = json!(said);
            echoes.push(error(200, &body));
            let quoted = json!({"about": said}).to_string();
            body["choices"][0]["message"][place] = json!(quoted);
            echoes.push(error(200, &body));
        }
        let mut body = completion("{\"about\": 3}");
        body["model"] = json!(said);
        body["choices"][0]["finish_reason"] = json!(said);
        echoes.push(error(200, &body));
        let mut body = completion("{\"about\": \"sand\"}");
        body["model"] = json!(said);
        body["choices"][0]["finish_reason"] = json!(said);
        echoes.push(error(200, &body));
    }
    // Wherever an excerpt is cut, no half of it stays.
    for before in (180..310).step_by(7) {
        let said = format!("{}{secret}", "x".repeat(before));
        echoes.push(http(401, "", &said));
        echoes.push(http(200, "", &said));
        let mut body = completion("");
        body["choices"][0]["message"]["content"] = json!(said);
        body["choices"][0]["finish_reason"] = json!("content_filter");
        echoes.push(error(200, &body));
    }
    echoes
}

fn files(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect()
}

/// The secret, or a telling part of it, in any form that we know of.
fn found(bytes: &[u8]) -> Option<String> {
    needles()
        .into_iter()
        .find(|needle| memchr(bytes, needle.as_bytes()))
}

fn memchr(bytes: &[u8], needle: &[u8]) -> bool {
    let first = needle[0];
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| *byte == first) {
        if rest[at..].starts_with(needle) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

fn needles() -> Vec<String> {
    const PART: usize = 14;
    let mut needles = Vec::new();
    for secret in [KEY, PASSWORD, SIGNATURE] {
        for part in [&secret[..PART], &secret[secret.len() - PART..]] {
            needles.extend([
                part.to_owned(),
                percent(part, true),
                percent(part, false),
                part.replace('/', "\\/"),
            ]);
        }
        // Base64 looks different by what stands before: three ways, without the letters that a neighbour has a share in.
        for before in 0..3 {
            let mut bytes = vec![b'-'; before];
            bytes.extend_from_slice(secret.as_bytes());
            let encoded = base64(&bytes);
            let encoded = &encoded[4..24];
            needles.push(encoded.to_owned());
            needles.push(encoded.replace('+', "-").replace('/', "_"));
        }
    }
    needles
}

fn percent(text: &str, upper: bool) -> String {
    text.bytes()
        .map(|byte| match byte {
            byte if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => {
                char::from(byte).to_string()
            }
            byte if upper => format!("%{byte:02X}"),
            byte => format!("%{byte:02x}"),
        })
        .collect()
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = three
            .iter()
            .chain([&0; 2])
            .take(3)
            .fold(0_usize, |bits, byte| bits << 8 | usize::from(*byte));
        for place in 0..4 {
            text.push(match place <= three.len() {
                true => char::from(LETTERS[bits >> (18 - 6 * place) & 63]),
                false => '=',
            });
        }
    }
    text
}
