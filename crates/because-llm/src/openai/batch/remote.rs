use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap};
use reqwest::multipart::{Form, Part};
use reqwest::{Method, RequestBuilder, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::super::endpoint::Endpoint;
use super::super::refusal::Refusal;
use super::super::transport::{self, Failure};
use super::super::wire::lenient;
use crate::{ChatError, Result};

/// The server's side of batch mode: files and batches, each call sent once.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) endpoint: Endpoint,
    pub(super) model: String,
    pub(super) timeout: Duration,
    pub(super) client: reqwest::Client,
    /// The organization and the project, where there are any.
    pub(super) headers: HeaderMap,
}

/// A batch as the server describes it; whatever it leaves out or names anew is as good as absent.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RemoteBatch {
    #[serde(deserialize_with = "lenient")]
    pub(super) id: Option<String>,
    #[serde(deserialize_with = "lenient")]
    status: Option<String>,
    #[serde(deserialize_with = "lenient")]
    created_at: Option<i64>,
    #[serde(deserialize_with = "lenient")]
    input_file_id: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub(super) output_file_id: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub(super) error_file_id: Option<String>,
    #[serde(deserialize_with = "lenient")]
    metadata: Option<Value>,
    #[serde(deserialize_with = "lenient")]
    errors: Option<Faults>,
    #[serde(deserialize_with = "lenient")]
    request_counts: Option<Counts>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Faults {
    #[serde(deserialize_with = "lenient")]
    data: Option<Vec<Fault>>,
}

/// Why a batch was not run.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Fault {
    #[serde(deserialize_with = "lenient")]
    pub(super) code: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub(super) message: Option<String>,
    /// The line at fault, from one.
    #[serde(deserialize_with = "lenient")]
    pub(super) line: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Counts {
    #[serde(deserialize_with = "lenient")]
    completed: Option<u64>,
}

/// How a batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// At work, or a word that we do not know: it will be asked again.
    UnderWay,
    Completed,
    Expired,
    Cancelled,
    /// It was not run at all.
    Failed,
}

impl RemoteBatch {
    pub(super) fn status(&self) -> Status {
        match self.status.as_deref().unwrap_or_default() {
            "completed" => Status::Completed,
            "expired" => Status::Expired,
            "cancelled" | "canceled" => Status::Cancelled,
            "failed" => Status::Failed,
            _ => Status::UnderWay,
        }
    }

    /// How it is and how far, for a person.
    pub(super) fn said(&self) -> String {
        let status = self.status.as_deref().unwrap_or("without a status");
        match &self.request_counts {
            Some(Counts {
                completed: Some(done),
            }) => format!("{status}, {done} answered"),
            _ => status.to_owned(),
        }
    }

    pub(super) fn faults(self) -> Vec<Fault> {
        self.errors
            .and_then(|errors| errors.data)
            .unwrap_or_default()
    }

    /// Whether it is this one of ours: by what we called it, or by its file where a server keeps no metadata.
    fn is(&self, label: &str, file_id: Option<&str>) -> bool {
        let called = self
            .metadata
            .as_ref()
            .and_then(|metadata| metadata.get(GROUP))
            .and_then(Value::as_str);
        called == Some(label) || (file_id.is_some() && self.input_file_id.as_deref() == file_id)
    }
}

/// The entry of a batch's metadata that says which of ours it is.
const GROUP: &str = "because_group";

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Page {
    #[serde(deserialize_with = "lenient")]
    data: Option<Vec<Value>>,
    #[serde(deserialize_with = "lenient")]
    has_more: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RemoteFile {
    #[serde(deserialize_with = "lenient")]
    id: Option<String>,
    #[serde(deserialize_with = "lenient")]
    filename: Option<String>,
    #[serde(deserialize_with = "lenient")]
    created_at: Option<i64>,
}

/// What the file of a group is called.
fn file_name(label: &str) -> String {
    format!("because-{label}.jsonl")
}

impl Remote {
    /// Puts the lines of a group on the server; gives the file's id.
    pub(super) async fn upload(&self, label: &str, lines: &[u8]) -> Result<String> {
        let part = Part::bytes(lines.to_vec())
            .file_name(file_name(label))
            .mime_str("application/jsonl")
            .map_err(|error| self.failed(&Failure::Http(error)))?;
        let form = Form::new().text("purpose", "batch").part("file", part);
        let request = self.request(Method::POST, "/files").multipart(form);
        let file: RemoteFile = self.json(request).await.map_err(no_batches)?;
        file.id.ok_or_else(|| self.odd("the file has no id"))
    }

    /// Has a file run.
    pub(super) async fn create(&self, label: &str, file_id: &str) -> Result<String> {
        let body = json!({
            "input_file_id": file_id,
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {GROUP: label},
        });
        let request = self.request(Method::POST, "/batches").json(&body);
        let batch: RemoteBatch = self.json(request).await.map_err(no_batches)?;
        batch.id.ok_or_else(|| self.odd("the batch has no id"))
    }

    pub(super) async fn batch(&self, batch_id: &str) -> Result<RemoteBatch> {
        self.json(self.request(Method::GET, &format!("/batches/{batch_id}")))
            .await
    }

    /// The newest batch of a group, if there is one.
    pub(super) async fn find_batch(
        &self,
        label: &str,
        file_id: Option<&str>,
        since_unix: i64,
    ) -> Result<Option<String>> {
        self.search("/batches", since_unix, |value| {
            let batch: RemoteBatch = serde_json::from_value(value.clone()).unwrap_or_default();
            let id = batch.is(label, file_id).then(|| batch.id.clone()).flatten();
            (id, batch.created_at)
        })
        .await
        .map(|found| found.into_iter().next())
    }

    /// The files of a group: one, or more if an upload was repeated.
    pub(super) async fn find_files(&self, label: &str, since_unix: i64) -> Result<Vec<String>> {
        let name = file_name(label);
        self.search("/files", since_unix, |value| {
            let file: RemoteFile = serde_json::from_value(value.clone()).unwrap_or_default();
            let is = file.filename.as_deref() == Some(&name);
            (is.then_some(file.id).flatten(), file.created_at)
        })
        .await
    }

    /// Takes a file away, so that no batch of it can begin. One that is gone already is well, too.
    pub(super) async fn delete(&self, file_id: &str) -> Result<()> {
        let request = self.request(Method::DELETE, &format!("/files/{file_id}"));
        match self.send(request).await {
            Ok(_) => Ok(()),
            Err(ChatError::Permanent {
                status: Some(404), ..
            }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Reads a file line by line, whatever its size. A last line without an end is read too.
    pub(super) async fn lines(
        &self,
        file_id: &str,
        mut each: impl FnMut(&str) -> Result<()>,
    ) -> Result<()> {
        let request = self.request(Method::GET, &format!("/files/{file_id}/content"));
        let mut response = self.send(request).await?;
        let mut rest: Vec<u8> = Vec::new();
        loop {
            let chunk = response
                .chunk()
                .await
                .map_err(|error| self.failed(&Failure::Http(error.without_url())))?;
            let Some(chunk) = chunk else { break };
            rest.extend_from_slice(&chunk);
            let Some(end) = rest.iter().rposition(|byte| *byte == b'\n') else {
                continue;
            };
            let after = rest.split_off(end + 1);
            for line in rest.split(|byte| *byte == b'\n') {
                whole(line, &mut each)?;
            }
            rest = after;
        }
        whole(&rest, &mut each)
    }

    /// Walks through a list from its newest entry to the first one that is clearly older than what is looked for.
    async fn search(
        &self,
        path: &str,
        since_unix: i64,
        matches: impl Fn(&Value) -> (Option<String>, Option<i64>),
    ) -> Result<Vec<String>> {
        const MOST_PAGES: usize = 200;
        // Clocks differ.
        let oldest = since_unix - 24 * 3600;
        let mut found = Vec::new();
        let mut after: Option<String> = None;
        for _ in 0..MOST_PAGES {
            let mut request = self.request(Method::GET, path).query(&[("limit", "100")]);
            if path == "/files" {
                request = request.query(&[("purpose", "batch")]);
            }
            if let Some(after) = &after {
                request = request.query(&[("after", after)]);
            }
            let page: Page = self.json(request).await?;
            let entries = page
                .data
                .ok_or_else(|| self.odd(&format!("{path} has no list")))?;
            let mut past = false;
            for entry in &entries {
                let (id, created) = matches(entry);
                found.extend(id);
                past |= created.is_some_and(|created| created < oldest);
            }
            let last = entries
                .last()
                .and_then(|entry| entry.get("id"))
                .and_then(Value::as_str)
                .map(str::to_owned);
            if past || page.has_more != Some(true) || last.is_none() || last == after {
                break;
            }
            after = last;
        }
        Ok(found)
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let mut request = self
            .client
            .request(method, format!("{}{path}", self.endpoint.base))
            .headers(self.headers.clone())
            .header(ACCEPT, "application/json, */*");
        if !self.endpoint.query.is_empty() {
            request = request.query(&self.endpoint.query);
        }
        match &self.endpoint.authorization {
            Some(header) => request.header(AUTHORIZATION, header.clone()),
            None => request,
        }
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response> {
        let response = request
            .send()
            .await
            .map_err(|error| self.failed(&Failure::Http(error.without_url())))?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(self.refused(&transport::read(response).await))
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T> {
        let response = self.send(request).await?;
        let text = response
            .text()
            .await
            .map_err(|error| self.failed(&Failure::Http(error.without_url())))?;
        serde_json::from_str(&text).map_err(|problem| {
            self.failed(&Failure::NotJson {
                problem: problem.to_string(),
                body: text,
            })
        })
    }

    pub(super) fn refused(&self, refusal: &Refusal) -> ChatError {
        refusal.explain(&self.endpoint, &self.model)
    }

    fn failed(&self, failure: &Failure) -> ChatError {
        failure.explain(&self.endpoint, self.timeout)
    }

    /// It may have done what it was asked and not said so; whoever asked finds out by looking.
    fn odd(&self, what: &str) -> ChatError {
        ChatError::Transient {
            message: format!("{}: {what}", self.endpoint.label),
        }
    }
}

fn whole(line: &[u8], each: &mut impl FnMut(&str) -> Result<()>) -> Result<()> {
    let text = String::from_utf8_lossy(line);
    match text.trim() {
        "" => Ok(()),
        text => each(text),
    }
}

/// A server that does not know these routes has no batches at all, which every other call would find too.
fn no_batches(error: ChatError) -> ChatError {
    match error {
        ChatError::Permanent {
            status: Some(404 | 405 | 501),
            message,
        } => ChatError::Permanent {
            status: Some(404),
            message: format!("{message}; has this server a Batch API? leave --batch out if not"),
        },
        other => other,
    }
}
