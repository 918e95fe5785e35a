use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use super::State;
use super::question::Question;
use super::refusal::Refusal;
use super::reply::{Reply, event_reply, json_reply};
use super::stream::Events;
use crate::engine::{Answering, Ask};
use crate::tuned::{Finish, Generation};

/// What every object of one answer begins with.
#[derive(Debug, Clone)]
pub(super) struct Label {
    state: Arc<State>,
    id: String,
    created: u64,
    /// As it was asked for.
    model: String,
}

impl Label {
    pub(super) fn object(&self, kind: &str, choices: &Value) -> Value {
        json!({
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.state.fingerprint,
            "choices": choices,
        })
    }

    /// How many of the tokens were thoughts.
    pub(super) fn thought_tokens(&self, text: &str) -> usize {
        let thought = because_llm::split_thinking(text).0;
        let ids = thought.and_then(|thought| self.state.model.tokenize(thought).ok());
        ids.map_or(0, |ids| ids.len())
    }
}

/// Answers a chat.
pub(super) async fn complete(state: &Arc<State>, body: &[u8]) -> Result<Response<Reply>, Refusal> {
    let question = Question::read(body, &state.settings.decoding)?;
    let (model, adapter) = state.model_named(question.model.as_deref())?;
    let number = state.asked.fetch_add(1, Ordering::Relaxed);
    let label = Label {
        state: Arc::clone(state),
        id: format!("chatcmpl-{:x}-{number:x}", state.created),
        created: now(),
        model,
    };
    let mut decoding = question.decoding;
    if !question.seeded {
        // Who draws again without a seed wants another answer.
        decoding.seed = decoding.seed.wrapping_add(number);
    }
    let mut ask = Ask::chat(question.messages, decoding);
    (ask.adapter, ask.schema) = (adapter, question.schema);
    let answering = submit(state, ask).await?;
    if question.stream {
        let events = Events::new(label, answering, question.counts);
        return Ok(event_reply(events));
    }
    let generation = answering.done().await?;
    Ok(json_reply(StatusCode::OK, &whole(&label, &generation)))
}

/// Turns the chat into tokens beside the connections, which go on meanwhile.
async fn submit(state: &Arc<State>, ask: Ask) -> Result<Answering, Refusal> {
    let engine = state.engine()?;
    let permit = Arc::clone(&state.preparing).acquire_owned().await;
    let work = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        engine.submit(ask)
    });
    match work.await {
        Ok(answering) => Ok(answering?),
        Err(_) => Err(Refusal::fault("the question could not be prepared")),
    }
}

fn whole(label: &Label, generation: &Generation) -> Value {
    let (thought, answer) = match because_llm::split_thinking(&generation.text) {
        (Some(thought), answer) => (Some(thought), answer),
        (None, answer) if generation.text.contains("</think>") => (None, answer),
        // As it was written, as in a stream.
        (None, _) => (None, generation.text.as_str()),
    };
    let mut message = json!({ "role": "assistant", "content": answer, "refusal": null });
    if let Some(thought) = thought {
        message["reasoning_content"] = thought.into();
    }
    let choice = json!([{
        "index": 0,
        "message": message,
        "logprobs": null,
        "finish_reason": finish_reason(generation),
    }]);
    let mut object = label.object("chat.completion", &choice);
    object["usage"] = usage(generation, label.thought_tokens(&generation.text));
    object
}

pub(super) fn finish_reason(generation: &Generation) -> &'static str {
    match generation.finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
    }
}

pub(super) fn usage(generation: &Generation, thought_tokens: usize) -> Value {
    let (prompt, answer) = (generation.prompt_tokens, generation.token_ids.len());
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": { "cached_tokens": generation.cached_tokens },
        "completion_tokens_details": { "reasoning_tokens": thought_tokens },
    })
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
