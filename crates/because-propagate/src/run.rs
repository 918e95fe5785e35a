use std::collections::BTreeMap;
use std::future::Future;

use because_core::{Node, ProfileRecord, Profiles};
use because_llm::{ChatError, ChatModel, ChatRequest, Stop, drive};

use crate::{Error, Result};

/// How far a layer has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// What is being written: "layer-0 items", "layer-1 profiles".
    pub stage: &'a str,
    /// How many nodes are done.
    pub done: usize,
    /// How many there are.
    pub total: usize,
}

/// A node whose calls failed for a reason of its own (the answer never fitted, was cut off or filtered), so that it kept
/// the text of the layer below.
#[derive(Debug, Clone)]
pub struct Fallback {
    /// The node.
    pub node: Node,
    /// Why.
    pub error: ChatError,
}

/// The profiles of one layer, and what could not be written.
#[derive(Debug, Clone)]
pub struct Written {
    /// A record for every node of the graph.
    pub profiles: Profiles,
    /// The nodes that kept the text of the layer below, by node.
    pub fallbacks: Vec<Fallback>,
}

type Watcher<'a> = Box<dyn Fn(Progress<'_>) + Send + Sync + 'a>;

/// How every run of calls here is bounded and watched.
pub(crate) struct Run<'a> {
    pub(crate) concurrency: usize,
    pub(crate) stop: Stop,
    pub(crate) progress: Option<Watcher<'a>>,
}

impl Default for Run<'_> {
    fn default() -> Self {
        Self {
            concurrency: 16,
            stop: Stop::default(),
            progress: None,
        }
    }
}

impl std::fmt::Debug for Run<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run")
            .field("concurrency", &self.concurrency)
            .finish_non_exhaustive()
    }
}

impl Run<'_> {
    /// Runs one job a node and gathers what was written; a job that failed for a reason of its own node takes
    /// `fallback`'s record.
    pub(crate) async fn nodes<F>(
        &self,
        stage: &str,
        written: &mut Written,
        total: usize,
        jobs: impl Iterator<Item = F>,
        fallback: impl Fn(&Node) -> ProfileRecord,
    ) -> Result<()>
    where
        F: Future<Output = (Node, Result<ProfileRecord, ChatError>)>,
    {
        let mut done = 0;
        let mut failed = BTreeMap::new();
        let jobs = jobs.map(|job| async move {
            match job.await {
                (node, Err(error)) if error.is_fatal() || error.is_retryable() => {
                    tracing::debug!(%node, %error, "the run cannot go on");
                    Err(error)
                }
                done => Ok(done),
            }
        });
        self.report(stage, 0, total);
        let profiles = &mut written.profiles;
        let ended = drive(jobs, self.concurrency, &self.stop, |(node, record)| {
            done += 1;
            match record {
                Ok(record) => profiles.insert(record),
                Err(error) => {
                    tracing::warn!(%node, %error, "kept the text of the layer below");
                    profiles.insert(fallback(&node));
                    failed.insert(node, error);
                }
            }
            self.report(stage, done, total);
        })
        .await;
        written.fallbacks.extend(
            failed
                .into_iter()
                .map(|(node, error)| Fallback { node, error }),
        );
        ended.map_err(|halted| Error::halted(stage, done, total, halted))
    }

    fn report(&self, stage: &str, done: usize, total: usize) {
        if let Some(progress) = &self.progress {
            progress(Progress { stage, done, total });
        }
    }
}

/// Asks once and reads the answer; one that cannot be read counts as invalid, as if a validating wrapper had refused it.
pub(crate) async fn ask<T>(
    model: &dyn ChatModel,
    request: ChatRequest,
    read: fn(&str) -> Result<T, String>,
) -> Result<T, ChatError> {
    let response = model.chat(&request).await?;
    read(&response.answer).map_err(|reason| ChatError::Invalid {
        reason,
        excerpt: because_core::text::excerpt(&response.answer, 120),
        attempts: 1,
    })
}
