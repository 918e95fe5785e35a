use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Bytes;
use serde_json::{Value, json};
use tokio::time::{Instant, Sleep};

use super::completion::{Label, finish_reason, usage};
use super::refusal::Refusal;
use super::thoughts::{Parted, Thoughts};
use crate::engine::{Answering, Piece};
use crate::tuned::Generation;

/// An answer as server-sent events: who speaks, what they say as it comes, why it ended, and `[DONE]`. Dropping it, as the
/// end of its connection does, cancels the answer.
#[derive(Debug)]
pub(super) struct Events {
    label: Label,
    answering: Answering,
    thoughts: Thoughts,
    /// Whether an event with the token counts is wanted.
    counts: bool,
    ready: VecDeque<Bytes>,
    ended: bool,
    keep_alive: Duration,
    /// Until a sign of life is due.
    silence: Pin<Box<Sleep>>,
}

impl Events {
    pub(super) fn new(
        label: Label,
        answering: Answering,
        counts: bool,
        keep_alive: Duration,
    ) -> Self {
        let thoughts = Thoughts::new(label.opening);
        let mut events = Self {
            label,
            answering,
            thoughts,
            counts,
            ready: VecDeque::new(),
            ended: false,
            keep_alive,
            silence: Box::pin(tokio::time::sleep(keep_alive)),
        };
        events.delta(&json!({ "role": "assistant", "content": "" }), None);
        events
    }

    pub(super) fn is_ended(&self) -> bool {
        self.ended && self.ready.is_empty()
    }

    pub(super) fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                self.restart_silence();
                return Poll::Ready(Some(event));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match self.answering.poll_next(context) {
                Poll::Pending => {
                    if self.silence.as_mut().poll(context).is_pending() {
                        return Poll::Pending;
                    }
                    self.ready
                        .push_back(Bytes::from_static(b": keep-alive\n\n"));
                }
                Poll::Ready(Some(Piece::Text(text))) => {
                    let parted = self.thoughts.push(&text);
                    self.say(&parted);
                }
                Poll::Ready(Some(Piece::Done(generation))) => self.end(&generation),
                Poll::Ready(Some(Piece::Failed(error))) => {
                    self.event(&Refusal::from(error).body());
                    self.ended = true;
                }
                Poll::Ready(None) => self.ended = true,
            }
        }
    }

    fn restart_silence(&mut self) {
        // A time beyond all clocks is never.
        if let Some(due) = Instant::now().checked_add(self.keep_alive) {
            self.silence.as_mut().reset(due);
        }
    }

    fn say(&mut self, parted: &Parted) {
        if !parted.thought.is_empty() {
            self.delta(&json!({ "reasoning_content": parted.thought }), None);
        }
        if !parted.answer.is_empty() {
            self.delta(&json!({ "content": parted.answer }), None);
        }
    }

    fn end(&mut self, generation: &Generation) {
        let rest = self.thoughts.finish();
        self.say(&rest);
        self.delta(&json!({}), Some(finish_reason(generation)));
        if self.counts {
            let mut chunk = self.label.object("chat.completion.chunk", &json!([]));
            chunk["usage"] = usage(generation, self.label.thought_tokens(&generation.text));
            self.event(&chunk);
        }
        self.ready
            .push_back(Bytes::from_static(b"data: [DONE]\n\n"));
        self.ended = true;
    }

    fn delta(&mut self, delta: &Value, finish: Option<&str>) {
        let choice =
            json!([{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish }]);
        let mut chunk = self.label.object("chat.completion.chunk", &choice);
        if self.counts {
            chunk["usage"] = Value::Null;
        }
        self.event(&chunk);
    }

    fn event(&mut self, value: &Value) {
        // JSON has no line break outside of its texts, where it is escaped.
        self.ready.push_back(format!("data: {value}\n\n").into());
    }
}
