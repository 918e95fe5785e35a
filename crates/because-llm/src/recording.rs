use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::{
    BoxFuture, ChatError, ChatModel, ChatRequest, ChatResponse, Handed, ModelId, RequestKey, Result,
};

/// Writes every exchange that succeeds to a JSON Lines file that [`Replay`](crate::Replay) answers from.
///
/// One line is `{"key","model","endpoint","request","response"}`, on disk before the answer is given out; each request is
/// written once, in the order in which the answers came. A file that is already there is continued; if its last line was
/// cut off by a kill, that line goes. Put it outside of everything, so that what is recorded is what the caller got.
///
/// ```
/// use because_llm::{ChatModel, ChatRequest, Message, Offline, Recording, Replay};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("exchanges.jsonl");
/// let request = ChatRequest::new(vec![Message::user("Say something about sand.")]);
/// let said = Recording::open(Offline, &path)?.chat(&request).await?;
/// assert_eq!(Replay::open(&path)?.chat(&request).await?, said);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Recording<M> {
    inner: M,
    path: PathBuf,
    tape: Mutex<Tape>,
}

#[derive(Debug)]
struct Tape {
    file: File,
    recorded: HashSet<RequestKey>,
}

/// A line of a recording.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Exchange {
    /// For people and their tools; a reader reckons it anew.
    #[serde(default)]
    key: String,
    #[serde(flatten)]
    pub(crate) model: ModelId,
    pub(crate) request: ChatRequest,
    pub(crate) response: ChatResponse,
}

impl<M: ChatModel> Recording<M> {
    /// Records the exchanges with `inner` in this file.
    ///
    /// # Errors
    /// [`ChatError::Store`] when the file cannot be opened, a line of it cannot be read, or it is a recording of another
    /// model.
    pub fn open(inner: M, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let failed = |error: std::io::Error| failure(&path, &error.to_string());
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        let read = read(&path, &file)?;
        if let Some(exchange) = read.exchanges.first()
            && exchange.model != inner.id()
        {
            return Err(failure(
                &path,
                &format!(
                    "a recording of {}, which cannot go on with {}; give another file",
                    name(&exchange.model),
                    name(&inner.id())
                ),
            ));
        }
        file.set_len(read.whole_bytes).map_err(failed)?;
        file.seek(SeekFrom::End(0)).map_err(failed)?;
        if read.lacks_newline {
            file.write_all(b"\n").map_err(failed)?;
        }
        let recorded = read
            .exchanges
            .iter()
            .map(|exchange| exchange.request.key(&exchange.model));
        let tape = Tape {
            recorded: recorded.collect(),
            file,
        };
        Ok(Self {
            inner,
            tape: Mutex::new(tape),
            path,
        })
    }

    fn record(&self, request: &ChatRequest, response: &ChatResponse) -> Result<()> {
        let model = self.inner.id();
        let key = request.key(&model);
        let mut tape = self.tape.lock().unwrap_or_else(PoisonError::into_inner);
        if tape.recorded.contains(&key) {
            return Ok(());
        }
        let exchange = Exchange {
            key: key.to_string(),
            model,
            request: request.clone(),
            response: response.clone(),
        };
        let mut line = serde_json::to_vec(&exchange)
            .map_err(|error| failure(&self.path, &error.to_string()))?;
        line.push(b'\n');
        let end = tape.file.stream_position();
        let written = tape.file.write_all(&line).and_then(|()| tape.file.flush());
        if let Err(error) = written {
            // A half line in the middle would make the rest unreadable.
            if let Ok(end) = end {
                let _ = tape
                    .file
                    .set_len(end)
                    .and_then(|()| tape.file.seek(SeekFrom::Start(end)));
            }
            return Err(failure(&self.path, &error.to_string()));
        }
        tape.recorded.insert(key);
        Ok(())
    }
}

impl<M: ChatModel> ChatModel for Recording<M> {
    fn chat<'a>(&'a self, request: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
        self.chat_with(request, Handed::default())
    }

    fn chat_with<'a>(
        &'a self,
        request: &'a ChatRequest,
        handed: Handed,
    ) -> BoxFuture<'a, Result<ChatResponse>> {
        Box::pin(async move {
            let response = self.inner.chat_with(request, handed).await?;
            self.record(request, &response)?;
            Ok(response)
        })
    }

    fn id(&self) -> ModelId {
        self.inner.id()
    }
}

/// What a recording holds, and how many of its bytes are whole lines.
pub(crate) struct Read {
    pub(crate) exchanges: Vec<Exchange>,
    pub(crate) whole_bytes: u64,
    lacks_newline: bool,
}

pub(crate) fn read(path: &Path, file: &File) -> Result<Read> {
    let mut lines = BufReader::new(file);
    let mut read = Read {
        exchanges: Vec::new(),
        whole_bytes: 0,
        lacks_newline: false,
    };
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let length = lines
            .read_until(b'\n', &mut line)
            .map_err(|error| failure(path, &error.to_string()))?;
        if length == 0 {
            break;
        }
        read.lacks_newline = line.last() != Some(&b'\n');
        if line.iter().all(u8::is_ascii_whitespace) {
            read.whole_bytes += length as u64;
            continue;
        }
        let exchange: Exchange = match serde_json::from_slice(&line) {
            Ok(exchange) => exchange,
            // A kill in the middle of writing leaves this, and only at the end.
            Err(error) if read.lacks_newline && error.is_eof() => {
                read.lacks_newline = false;
                break;
            }
            Err(error) => {
                return Err(failure(
                    path,
                    &format!("line {number}: not a recorded exchange: {error}"),
                ));
            }
        };
        read.whole_bytes += length as u64;
        if let Some(first) = read.exchanges.first()
            && first.model != exchange.model
        {
            return Err(failure(
                path,
                &format!(
                    "line {number}: an exchange with {}, but the first is with {}; one recording holds one model",
                    name(&exchange.model),
                    name(&first.model)
                ),
            ));
        }
        read.exchanges.push(exchange);
    }
    Ok(read)
}

pub(crate) fn failure(path: &Path, message: &str) -> ChatError {
    ChatError::Store {
        file: path.display().to_string(),
        message: message.to_owned(),
    }
}

fn name(model: &ModelId) -> String {
    match model.endpoint.as_str() {
        "" => model.model.clone(),
        endpoint => format!("{} at {endpoint}", model.model),
    }
}
