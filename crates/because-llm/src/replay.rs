use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

use crate::recording::{failure, read};
use crate::text::excerpt;
use crate::{
    BoxFuture, ChatError, ChatModel, ChatRequest, ChatResponse, ModelId, RequestKey, Result,
};

/// Answers from a file that [`Recording`](crate::Recording) wrote: the same requests, the same answers, no network.
///
/// Its id is that of the recorded model, so keys agree with those of the run that was recorded. A request that is not in
/// the file is [`ChatError::NotRecorded`], which shows it. See [`Recording`](crate::Recording) for an example.
#[derive(Clone)]
pub struct Replay {
    path: PathBuf,
    model: ModelId,
    responses: HashMap<RequestKey, ChatResponse>,
}

impl Replay {
    /// Reads a recording. Where a request occurs twice, the first answer counts.
    ///
    /// # Errors
    /// [`ChatError::Store`] when the file cannot be read, naming the line that is at fault, or when it holds no exchange.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let file = File::open(&path).map_err(|error| failure(&path, &error.to_string()))?;
        let exchanges = read(&path, &file)?.exchanges;
        let Some(model) = exchanges.first().map(|exchange| exchange.model.clone()) else {
            return Err(failure(&path, "holds no recorded exchange"));
        };
        let mut responses = HashMap::new();
        for exchange in exchanges {
            responses
                .entry(exchange.request.key(&model))
                .or_insert(exchange.response);
        }
        Ok(Self {
            path,
            model,
            responses,
        })
    }
}

impl ChatModel for Replay {
    fn chat<'a>(&'a self, request: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
        let key = request.key(&self.model);
        let response = self
            .responses
            .get(&key)
            .cloned()
            .ok_or_else(|| ChatError::NotRecorded {
                file: self.path.display().to_string(),
                key: key.to_string(),
                excerpt: request
                    .messages
                    .last()
                    .map_or_else(String::new, |turn| excerpt(&turn.content, 200)),
            });
        Box::pin(std::future::ready(response))
    }

    fn id(&self) -> ModelId {
        self.model.clone()
    }
}

impl fmt::Debug for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replay")
            .field("path", &self.path)
            .field("model", &self.model)
            .field("responses", &self.responses.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;
    use crate::{Message, Recording};

    /// Answers with the last turn, turned round.
    struct Mirror(&'static str);

    impl ChatModel for Mirror {
        fn chat<'a>(&'a self, request: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
            let answer = request
                .messages
                .last()
                .map(|turn| turn.content.chars().rev().collect());
            Box::pin(std::future::ready(Ok(ChatResponse {
                answer: answer.unwrap_or_default(),
                reasoning: Some("backwards".into()),
                ..ChatResponse::default()
            })))
        }

        fn id(&self) -> ModelId {
            ModelId {
                model: self.0.into(),
                endpoint: "http://mirror/v1".into(),
            }
        }
    }

    fn ask(text: &str) -> ChatRequest {
        ChatRequest::new(vec![Message::user(text)]).seed(7)
    }

    #[tokio::test]
    async fn what_was_recorded_is_given_back_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tape.jsonl");
        let recording = Recording::open(Mirror("m"), &path).unwrap();
        for text in ["one", "two", "one"] {
            recording.chat(&ask(text)).await.unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 2);

        let replay = Replay::open(&path).unwrap();
        assert_eq!(replay.id(), Mirror("m").id());
        assert_eq!(
            replay.chat(&ask("two")).await.unwrap(),
            Mirror("m").chat(&ask("two")).await.unwrap()
        );
        let error = replay.chat(&ask("three\nblind mice")).await.unwrap_err();
        let shown = error.to_string();
        assert!(
            shown.contains("tape.jsonl") && shown.contains("three blind mice"),
            "{shown}"
        );
        assert!(shown.contains(&ask("three\nblind mice").key(&replay.id()).to_string()));
        assert!(!error.is_retryable());
    }

    #[tokio::test]
    async fn a_recording_cut_off_by_a_kill_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tape.jsonl");
        Recording::open(Mirror("m"), &path)
            .unwrap()
            .chat(&ask("one"))
            .await
            .unwrap();
        let whole = fs::read(&path).unwrap();
        fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(&whole[..whole.len() / 2])
            .unwrap();

        let recording = Recording::open(Mirror("m"), &path).unwrap();
        recording.chat(&ask("two")).await.unwrap();
        let replay = Replay::open(&path).unwrap();
        assert_eq!(replay.responses.len(), 2);
    }

    #[tokio::test]
    async fn a_bad_line_an_empty_file_and_two_models_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tape.jsonl");
        Recording::open(Mirror("m"), &path)
            .unwrap()
            .chat(&ask("one"))
            .await
            .unwrap();
        let line = fs::read_to_string(&path).unwrap();
        let message = |error: ChatError| {
            error
                .to_string()
                .replace(folder.path().to_str().unwrap(), "")
        };

        let other = message(Recording::open(Mirror("n"), &path).map(drop).unwrap_err());
        let refused = ["", "{\"request\": 3}\n", &line.replace("\"m\"", "\"n\"")].map(|more| {
            let kept = if more.is_empty() { "" } else { &line };
            fs::write(&path, format!("{kept}\n{more}")).unwrap();
            message(Replay::open(&path).unwrap_err())
        });
        insta::assert_snapshot!(format!("{other}\n{}", refused.join("\n")), @r#"
        /tape.jsonl: a recording of m at http://mirror/v1, which cannot go on with n at http://mirror/v1; give another file
        /tape.jsonl: holds no recorded exchange
        /tape.jsonl: line 3: not a recorded exchange: invalid type: integer `3`, expected struct ChatRequest at line 1 column 13
        /tape.jsonl: line 3: an exchange with n at http://mirror/v1, but the first is with m at http://mirror/v1; one recording holds one model
        "#);
    }
}
