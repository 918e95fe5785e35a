//! A server of batches on this machine: files, batches and what they cost, with faults where a test wants them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::server::completion;

/// One kind of call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Upload,
    Create,
    Poll,
    Download,
    ListBatches,
    ListFiles,
    Delete,
}

/// What goes wrong with a call.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// It is never heard of, and the connection stays open.
    HangsBefore,
    /// It is done, and half of its answer, at most, comes back.
    HangsAfter,
    /// It is not done.
    Refused(u16, &'static str),
    /// It is done, and the answer says otherwise.
    DoneButSays(u16),
}

/// What becomes of a row.
#[derive(Debug, Clone)]
pub(crate) enum Fate {
    Answered(String),
    Refused(u16, Value),
    Expired,
    Missing,
    /// A line that is cut in the middle, which is paid for all the same.
    Malformed,
}

/// What becomes of a batch.
#[derive(Debug, Clone)]
pub(crate) enum End {
    Completed,
    Expired,
    Cancelled,
    Failed(Value),
}

type Fates = Box<dyn Fn(&str, usize) -> Fate + Send + Sync>;

pub(crate) struct BatchServer {
    pub(crate) url: String,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<Server>,
    fates: Fates,
    hung: Notify,
}

#[derive(Default)]
struct Server {
    files: Vec<File>,
    batches: Vec<Batch>,
    /// How often each request was paid for.
    billed: BTreeMap<String, u32>,
    calls: Vec<(Step, usize)>,
    faults: Vec<(Step, Fault)>,
    ends: Vec<End>,
    polls: usize,
}

struct File {
    id: String,
    name: String,
    content: String,
}

struct Batch {
    value: Value,
    end: End,
    polls: usize,
    content: Vec<(String, String)>,
}

impl BatchServer {
    /// Every batch is done at the second look, and every question answered with its own words.
    pub(crate) async fn run() -> Self {
        Self::with(|question, _| Fate::Answered(format!("re: {question}"))).await
    }

    /// The fate of each row by its question and the number of its batch, from zero.
    pub(crate) async fn with(fates: impl Fn(&str, usize) -> Fate + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            state: Mutex::new(Server {
                polls: 1,
                ..Server::default()
            }),
            fates: Box::new(fates),
            hung: Notify::new(),
        });
        let served = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&served)));
            }
        });
        Self { url, shared }
    }

    /// The next call of this kind goes wrong so.
    pub(crate) fn fault(self, step: Step, fault: Fault) -> Self {
        self.add_fault(step, fault);
        self
    }

    pub(crate) fn add_fault(&self, step: Step, fault: Fault) {
        self.shared.state.lock().unwrap().faults.push((step, fault));
    }

    /// The next batches end so, in this order; all others are completed.
    pub(crate) fn ends(self, ends: impl IntoIterator<Item = End>) -> Self {
        self.shared.state.lock().unwrap().ends = ends.into_iter().collect();
        self
    }

    /// A batch is done after so many looks.
    pub(crate) fn polls(self, polls: usize) -> Self {
        self.shared.state.lock().unwrap().polls = polls;
        self
    }

    /// All batches that are under way are done now.
    pub(crate) fn finish(&self) {
        let mut state = self.shared.state.lock().unwrap();
        state.polls = 0;
        for batch in &mut state.batches {
            batch.polls = 0;
        }
    }

    /// Resolves when a call hangs.
    pub(crate) async fn hung(&self) {
        self.shared.hung.notified().await;
    }

    pub(crate) fn count(&self, step: Step) -> usize {
        let state = self.shared.state.lock().unwrap();
        state.calls.iter().filter(|(own, _)| *own == step).count()
    }

    /// How many rows each batch had.
    pub(crate) fn rows(&self) -> Vec<usize> {
        let state = self.shared.state.lock().unwrap();
        state
            .calls
            .iter()
            .filter(|(step, _)| *step == Step::Create)
            .map(|(_, rows)| *rows)
            .collect()
    }

    /// How many requests were paid for, and how often the one that was paid for most often.
    pub(crate) fn billed(&self) -> (usize, u32) {
        let state = self.shared.state.lock().unwrap();
        let most = state.billed.values().copied().max();
        (state.billed.len(), most.unwrap_or_default())
    }

    /// The bodies of the rows of the last file.
    pub(crate) fn last_file(&self) -> Vec<Value> {
        let state = self.shared.state.lock().unwrap();
        let file = state.files.last().unwrap();
        file.content
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

async fn serve(mut stream: TcpStream, shared: Arc<Shared>) {
    let Some((head, body)) = receive(&mut stream).await else {
        return;
    };
    let mut words = head.split_whitespace();
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let path = target.split('?').next().unwrap();
    let parts: Vec<&str> = path.trim_start_matches("/v1/").split('/').collect();
    let step = match (method, parts.as_slice()) {
        ("POST", ["files"]) => Step::Upload,
        ("GET", ["files"]) => Step::ListFiles,
        ("DELETE", ["files", _]) => Step::Delete,
        ("GET", ["files", _, "content"]) => Step::Download,
        ("POST", ["batches"]) => Step::Create,
        ("GET", ["batches"]) => Step::ListBatches,
        ("GET", ["batches", _]) => Step::Poll,
        other => panic!("no such call: {other:?}"),
    };
    let fault = {
        let mut state = shared.state.lock().unwrap();
        let place = state.faults.iter().position(|(own, _)| *own == step);
        place.map(|place| state.faults.remove(place).1)
    };
    let hang = async || {
        shared.hung.notify_one();
        tokio::time::sleep(Duration::from_secs(60)).await;
    };
    match fault {
        Some(Fault::HangsBefore) => return hang().await,
        Some(Fault::Refused(status, said)) => {
            let headers = "retry-after: 0\r\n";
            respond(&mut stream, status, headers, said).await;
            return;
        }
        _ => {}
    }
    let (status, said) = shared.answer(step, &parts, &head, &body);
    match fault {
        Some(Fault::HangsAfter) => {
            let half = &said[..said.len() / 2];
            let begun = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{half}",
                said.len()
            );
            if step == Step::Download {
                let _ = stream.write_all(begun.as_bytes()).await;
            }
            hang().await;
        }
        Some(Fault::DoneButSays(status)) => respond(&mut stream, status, "", "oops").await,
        _ => respond(&mut stream, status, "", &said).await,
    }
}

impl Shared {
    fn answer(&self, step: Step, parts: &[&str], head: &str, body: &[u8]) -> (u16, String) {
        let mut state = self.state.lock().unwrap();
        let state = &mut *state;
        let mut rows = 0;
        let answer = match step {
            Step::Upload => {
                let (name, content) = multipart(head, body);
                let id = format!("file-{}", state.files.len());
                state.files.push(File {
                    id: id.clone(),
                    name,
                    content,
                });
                (200, json!({"id": id, "object": "file"}).to_string())
            }
            Step::ListFiles => {
                let data: Vec<Value> = state
                    .files
                    .iter()
                    .rev()
                    .map(|file| json!({"id": file.id, "filename": file.name}))
                    .collect();
                (200, json!({"data": data, "has_more": false}).to_string())
            }
            Step::Delete => {
                state.files.retain(|file| file.id != parts[1]);
                (200, "{}".to_owned())
            }
            Step::Download => {
                let content = state.batches.iter().flat_map(|batch| &batch.content);
                match content.into_iter().find(|(id, _)| id == parts[1]) {
                    Some((_, content)) => (200, content.clone()),
                    None => (404, "{}".to_owned()),
                }
            }
            Step::Create => {
                let asked: Value = serde_json::from_slice(body).unwrap();
                let file = state
                    .files
                    .iter()
                    .find(|file| asked["input_file_id"] == json!(file.id));
                match file.map(|file| file.content.clone()) {
                    Some(content) => {
                        rows = content.lines().count();
                        (200, self.create(state, &asked, &content).to_string())
                    }
                    None => (
                        400,
                        json!({"error": {"message": "no such file"}}).to_string(),
                    ),
                }
            }
            Step::ListBatches => {
                let data: Vec<&Value> = state
                    .batches
                    .iter()
                    .rev()
                    .map(|batch| &batch.value)
                    .collect();
                (200, json!({"data": data, "has_more": false}).to_string())
            }
            Step::Poll => {
                let batch = state
                    .batches
                    .iter_mut()
                    .find(|batch| batch.value["id"] == json!(parts[1]));
                match batch {
                    Some(batch) => (200, batch.look().to_string()),
                    None => (404, "{}".to_owned()),
                }
            }
        };
        state.calls.push((step, rows));
        answer
    }

    /// From here on the batch runs, and is paid for, whoever hears of it.
    fn create(&self, state: &mut Server, asked: &Value, content: &str) -> Value {
        let number = state.batches.len();
        let end = match state.ends.is_empty() {
            true => End::Completed,
            false => state.ends.remove(0),
        };
        let (mut output, mut errors) = (Vec::new(), String::new());
        if !matches!(end, End::Failed(_)) {
            for line in content.lines() {
                let line: Value = serde_json::from_str(line).unwrap();
                let key = line["custom_id"].as_str().unwrap();
                let messages = line["body"]["messages"].as_array().unwrap();
                let question = messages.last().unwrap()["content"].as_str().unwrap();
                let fate = (self.fates)(question, number);
                if matches!(fate, Fate::Answered(_) | Fate::Malformed) {
                    *state.billed.entry(key.to_owned()).or_default() += 1;
                }
                match fate {
                    Fate::Answered(answer) => {
                        let line = json!({"id": "r", "custom_id": key, "error": null,
                            "response": {"status_code": 200, "request_id": "q", "body": completion(&answer)}});
                        output.push(line.to_string());
                    }
                    Fate::Refused(status, body) => {
                        let line = json!({"custom_id": key, "error": null,
                            "response": {"status_code": status, "request_id": "q", "body": body}});
                        errors += &format!("{line}\n");
                    }
                    Fate::Expired => {
                        let line = json!({"custom_id": key, "response": null,
                            "error": {"code": "batch_expired", "message": "no time left"}});
                        errors += &format!("{line}\n");
                    }
                    Fate::Missing => {}
                    Fate::Malformed => output.push(format!("{{\"custom_id\": \"{key}\", \"respon")),
                }
            }
        }
        let value = json!({"id": format!("batch_{number}"), "object": "batch", "status": "validating",
            "input_file_id": asked["input_file_id"], "metadata": asked["metadata"]});
        let mut files = Vec::new();
        // The last one first: the order of an output file means nothing.
        output.reverse();
        let output = output.join("\n");
        for (kind, content) in [("output", output), ("error", errors)] {
            if !content.is_empty() {
                files.push((format!("{kind}-{number}"), content));
            }
        }
        state.batches.push(Batch {
            value: value.clone(),
            end,
            polls: state.polls,
            content: files,
        });
        value
    }
}

impl Batch {
    fn look(&mut self) -> Value {
        if self.polls > 0 {
            self.polls -= 1;
            self.value["status"] = json!("in_progress");
            return self.value.clone();
        }
        self.value["status"] = match &self.end {
            End::Completed => json!("completed"),
            End::Expired => json!("expired"),
            End::Cancelled => json!("cancelled"),
            End::Failed(errors) => {
                self.value["errors"] = json!({"object": "list", "data": errors});
                json!("failed")
            }
        };
        for (id, _) in &self.content {
            let kind = id.split('-').next().unwrap();
            self.value[format!("{kind}_file_id")] = json!(id);
        }
        self.value.clone()
    }
}

async fn receive(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 65536];
    loop {
        let read = stream.read(&mut buffer).await.ok()?;
        if read == 0 {
            return None;
        }
        bytes.extend_from_slice(&buffer[..read]);
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let length: usize = head
            .lines()
            .find_map(|line| {
                line.to_lowercase()
                    .strip_prefix("content-length: ")?
                    .parse()
                    .ok()
            })
            .unwrap_or(0);
        if bytes.len() >= end + 4 + length {
            return Some((head, bytes[end + 4..].to_vec()));
        }
    }
}

/// The name and the content of the file in a form.
fn multipart(head: &str, body: &[u8]) -> (String, String) {
    let boundary = head.split("boundary=").nth(1).unwrap();
    let boundary = format!("--{}", boundary.lines().next().unwrap());
    let body = String::from_utf8_lossy(body).into_owned();
    assert!(body.contains("name=\"purpose\"\r\n\r\nbatch\r\n"), "{body}");
    let part = body
        .split(&boundary)
        .find(|part| part.contains("filename="))
        .unwrap();
    let name = part.split("filename=\"").nth(1).unwrap();
    let (_, content) = part.split_once("\r\n\r\n").unwrap();
    (
        name.split('"').next().unwrap().to_owned(),
        content.trim_end_matches("\r\n").to_owned(),
    )
}

async fn respond(stream: &mut TcpStream, status: u16, headers: &str, body: &str) {
    let whole = format!(
        "HTTP/1.1 {status} Whatever\r\ncontent-length: {}\r\nconnection: close\r\n{headers}\r\n{body}",
        body.len()
    );
    let _ = stream.write_all(whole.as_bytes()).await;
}
