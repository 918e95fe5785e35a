//! A hub on this machine: one repository, whose large files lie on a second port, and faults on demand.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};

pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What goes wrong with one request.
#[derive(Debug, Clone)]
pub(super) enum Fault {
    /// This status, these headers, this body.
    Answers(u16, String, String),
    /// The body ends after so many bytes.
    Cut(usize),
    /// A byte of the body is another one.
    Flip,
    /// The whole file comes, whatever part was asked for.
    IgnoresRange,
    /// Nothing comes after the head.
    Stalls,
    /// Nothing at all comes.
    Drops,
    /// The headers that only a hub has are missing.
    Plain,
}

#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) path: String,
    pub(super) range: Option<String>,
    pub(super) authorization: Option<String>,
    pub(super) on_storage: bool,
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    /// By method and end of the path.
    faults: Vec<(&'static str, String, VecDeque<Fault>)>,
    asked: Vec<Asked>,
    storage: String,
    knows_head: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Server {
    pub(super) url: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    pub(super) fn run(files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        let state = State {
            files: files.into_iter().collect(),
            knows_head: true,
            ..State::default()
        };
        let state = Arc::new(Mutex::new(state));
        let storage = listen(&state, true);
        state.lock().unwrap().storage = storage;
        Self {
            url: listen(&state, false),
            state,
        }
    }

    /// These faults befall the next requests of this method for paths with this end.
    pub(super) fn fails(
        &self,
        method: &'static str,
        end: &str,
        faults: impl IntoIterator<Item = Fault>,
    ) {
        let mut state = self.state.lock().unwrap();
        let faults = faults.into_iter().collect();
        state.faults.push((method, end.to_owned(), faults));
    }

    pub(super) fn heals(&self) {
        self.state.lock().unwrap().faults.clear();
    }

    pub(super) fn knows_no_head(&self) {
        self.state.lock().unwrap().knows_head = false;
    }

    /// What was asked since the last call.
    pub(super) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state.lock().unwrap().asked)
    }
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    let digest = digest(&SHA256, bytes);
    digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

fn listen(state: &Arc<Mutex<State>>, is_storage: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let state = Arc::clone(state);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let state = Arc::clone(&state);
            std::thread::spawn(move || serve(stream, &state, is_storage));
        }
    });
    url
}

fn serve(mut stream: TcpStream, state: &Mutex<State>, is_storage: bool) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut head = String::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? <= 2 {
            break;
        }
        head.push_str(&line);
    }
    let mut words = head.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let header = |name: &str| {
        head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then(|| value.to_owned())
        })
    };
    let asked = Asked {
        path: path.clone(),
        range: header("range"),
        authorization: header("authorization"),
        on_storage: is_storage,
    };
    let (fault, files, storage, knows_head) = {
        let mut state = state.lock().unwrap();
        state.asked.push(asked);
        let plain = path.split('?').next()?;
        let fault = state
            .faults
            .iter_mut()
            .find(|(of, end, faults)| {
                *of == method && plain.ends_with(end.as_str()) && !faults.is_empty()
            })
            .and_then(|(_, _, faults)| faults.pop_front());
        let storage = state.storage.clone();
        (fault, state.files.clone(), storage, state.knows_head)
    };
    let mut send = |status: u16, headers: &str, length: usize, body: &[u8]| {
        let body = if method == "HEAD" { &[] } else { body };
        let head = format!(
            "HTTP/1.1 {status} Whatever\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n"
        );
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.write_all(body);
        let _ = stream.flush();
        // The client closes first, so that nothing of the answer is lost to a reset.
        let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read(&mut [0]);
    };
    match &fault {
        Some(Fault::Drops) => return None,
        Some(Fault::Answers(status, headers, body)) => {
            send(*status, headers, body.len(), body.as_bytes());
            return None;
        }
        _ => {}
    }
    if method == "HEAD" && !knows_head {
        send(405, "", 0, b"");
        return None;
    }
    let name = path.split('?').next()?.rsplit('/').next()?;
    let Some(content) = files.get(name) else {
        send(404, "x-error-code: EntryNotFound\r\n", 0, b"");
        return None;
    };
    let is_large = name.ends_with(".safetensors");
    let identity = match (&fault, is_large) {
        (Some(Fault::Plain), _) => String::new(),
        (_, true) => format!(
            "x-repo-commit: {COMMIT}\r\nx-linked-etag: \"{}\"\r\nx-linked-size: {}\r\netag: \"other\"\r\n",
            sha256(content),
            content.len()
        ),
        (_, false) => format!(
            "x-repo-commit: {COMMIT}\r\netag: W/\"{:040x}\"\r\n",
            content.len()
        ),
    };
    if is_large && !is_storage {
        let location = format!("location: {storage}/blob/{name}?signature=sesame\r\n");
        send(302, &format!("{identity}{location}"), 0, b"");
        return None;
    }
    let from = header("range")
        .filter(|_| !matches!(fault, Some(Fault::IgnoresRange)))
        .and_then(|range| {
            let from = range.strip_prefix("bytes=")?.split('-').next()?;
            from.parse::<usize>().ok()
        });
    let mut body = content[from.unwrap_or(0).min(content.len())..].to_vec();
    let length = body.len();
    match fault {
        Some(Fault::Cut(after)) => body.truncate(after),
        Some(Fault::Flip) => body[length / 2] ^= 1,
        Some(Fault::Stalls) => {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n{identity}\r\n");
            let _ = stream.write_all(head.as_bytes());
            std::thread::sleep(Duration::from_secs(60));
            return None;
        }
        _ => {}
    }
    match from {
        Some(from) => {
            let (last, size) = (content.len().saturating_sub(1), content.len());
            let range = format!("content-range: bytes {from}-{last}/{size}\r\n");
            send(206, &format!("{identity}{range}"), length, &body);
        }
        None => send(200, &identity, length, &body),
    }
    Some(())
}
