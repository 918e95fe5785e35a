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
use super::thoughts::{Opening, Parted};
use crate::engine::{Answering, Ask, Prompt};
use crate::error::TuneError;
use crate::tuned::{Finish, Generation};

/// What all objects of one answer have in common.
#[derive(Debug, Clone)]
pub(super) struct Label {
    state: Arc<State>,
    id: String,
    created: u64,
    /// As it was asked for.
    model: String,
    /// What its text begins with.
    pub(super) opening: Opening,
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
        self.tokens(&Parted::whole(self.opening, text).thought)
    }

    fn tokens(&self, text: &str) -> usize {
        let ids = self.state.model.tokenize(text);
        ids.map_or(0, |ids| ids.len())
    }
}

/// Answers a chat.
pub(super) async fn complete(state: &Arc<State>, body: &[u8]) -> Result<Response<Reply>, Refusal> {
    let question = Question::read(body, &state.settings.decoding)?;
    let (model, adapter) = state.model_named(question.model.as_deref())?;
    let number = state.asked.fetch_add(1, Ordering::Relaxed);
    let mut decoding = question.decoding;
    if !question.seeded {
        // Who draws again without a seed wants another answer.
        decoding.seed = decoding.seed.wrapping_add(number);
    }
    let mut ask = Ask::chat(question.messages, decoding);
    (ask.adapter, ask.schema) = (adapter, question.schema);
    let (opening, answering) = submit(state, ask).await?;
    let label = Label {
        state: Arc::clone(state),
        id: format!("chatcmpl-{:x}-{number:x}", state.created),
        created: now(),
        model,
        opening,
    };
    if question.stream {
        let keep_alive = state.settings.keep_alive;
        let events = Events::new(label, answering, question.counts, keep_alive);
        return Ok(event_reply(events));
    }
    let generation = answering.done().await?;
    Ok(json_reply(StatusCode::OK, &whole(&label, &generation)))
}

/// Turns the chat into tokens beside the connections, which go on meanwhile.
async fn submit(state: &Arc<State>, ask: Ask) -> Result<(Opening, Answering), Refusal> {
    let engine = state.engine()?;
    let model = Arc::clone(&state.model);
    let permit = state.preparing.permit(ask.schema.is_some()).await;
    let work = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let opening = match &ask.prompt {
            // Who is held to a schema has no room for thoughts.
            Prompt::Chat(messages) if ask.schema.is_none() && model.opens_thought(messages)? => {
                Opening::Thought
            }
            _ => Opening::Answer,
        };
        Ok::<_, TuneError>((opening, engine.submit(ask)?))
    });
    match work.await {
        Ok(submitted) => Ok(submitted?),
        Err(_) => Err(Refusal::fault("the question could not be prepared")),
    }
}

fn whole(label: &Label, generation: &Generation) -> Value {
    let Parted { thought, answer } = Parted::whole(label.opening, &generation.text);
    let thought_tokens = label.tokens(&thought);
    let mut message = json!({ "role": "assistant", "content": answer, "refusal": null });
    if !thought.is_empty() {
        message["reasoning_content"] = thought.into();
    }
    let choice = json!([{
        "index": 0,
        "message": message,
        "logprobs": null,
        "finish_reason": finish_reason(generation),
    }]);
    let mut object = label.object("chat.completion", &choice);
    object["usage"] = usage(generation, thought_tokens);
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
