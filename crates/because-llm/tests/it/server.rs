//! A server on this machine that answers each request with the next line of a script, byte for byte.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What the server does with one request.
#[derive(Debug, Clone)]
pub(crate) enum Does {
    /// Sends these bytes and closes.
    Sends(String),
    /// Sends these, a little apart, and closes.
    Drips(Vec<String>),
    /// Closes with a reset, without a word.
    Resets,
    /// Keeps the connection and says nothing.
    Hangs,
}

#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) head: String,
    pub(crate) body: Value,
}

#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    /// Follows the script, and repeats its last line when it is through.
    pub(crate) async fn run(script: impl IntoIterator<Item = Does>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let script = Arc::new(Mutex::new(script.into_iter().collect::<VecDeque<_>>()));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let server = Self {
            url,
            asked: Arc::clone(&asked),
        };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&script), Arc::clone(&asked)));
            }
        });
        server
    }

    pub(crate) fn count(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

async fn serve(
    mut stream: TcpStream,
    script: Arc<Mutex<VecDeque<Does>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
) {
    let Some(request) = receive(&mut stream).await else {
        return;
    };
    asked.lock().unwrap().push(request);
    let does = {
        let mut script = script.lock().unwrap();
        let next = script.pop_front().unwrap();
        if script.is_empty() {
            script.push_back(next.clone());
        }
        next
    };
    match does {
        Does::Sends(bytes) => {
            let _ = stream.write_all(bytes.as_bytes()).await;
        }
        Does::Drips(pieces) => {
            for piece in pieces {
                let _ = stream.write_all(piece.as_bytes()).await;
                let _ = stream.flush().await;
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        }
        Does::Resets => {
            #[allow(deprecated, reason = "no linger is what makes the close a reset")]
            let _ = stream.set_linger(Some(Duration::ZERO));
        }
        Does::Hangs => tokio::time::sleep(Duration::from_secs(60)).await,
    }
}

async fn receive(stream: &mut TcpStream) -> Option<Asked> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 8192];
    loop {
        let read = stream
            .read(&mut buffer)
            .await
            .ok()
            .filter(|read| *read > 0)?;
        bytes.extend_from_slice(&buffer[..read]);
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let head = head.to_lowercase();
        let length: usize = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))?
            .parse()
            .ok()?;
        if body.len() >= length {
            return Some(Asked {
                body: serde_json::from_str(body).unwrap(),
                head,
            });
        }
    }
}

pub(crate) fn http(status: u16, headers: &str, body: &str) -> Does {
    Does::Sends(format!(
        "HTTP/1.1 {status} Whatever\r\ncontent-length: {}\r\nconnection: close\r\n{headers}\r\n{body}",
        body.len()
    ))
}

pub(crate) fn error(status: u16, body: &Value) -> Does {
    http(
        status,
        "content-type: application/json\r\n",
        &body.to_string(),
    )
}

pub(crate) fn says(answer: &str) -> Does {
    http(
        200,
        "content-type: application/json\r\n",
        &completion(answer).to_string(),
    )
}

pub(crate) fn completion(answer: &str) -> Value {
    json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "served",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15, "prompt_tokens_details": {"cached_tokens": 4}}
    })
}
