use serde::{Deserialize, Serialize};

use crate::{ItemId, UserId};

/// One turn of a chat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// A turn of this role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
        }
    }
}

/// One row of `sft.{train,valid,test}.jsonl`: a chat whose last turn, the assistant's, is the explanation to learn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SftExample {
    /// System, user, assistant.
    pub messages: Vec<Message>,
    /// Whom the example is about; absent in files from elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserId>,
    /// What the example is about; absent in files from elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<ItemId>,
}

impl SftExample {
    /// The turns before the answer.
    #[must_use]
    pub fn prompt(&self) -> &[Message] {
        match self.messages.split_last() {
            Some((last, rest)) if last.role == "assistant" => rest,
            _ => &self.messages,
        }
    }

    /// The answer to learn: the last turn, where it is the assistant's.
    #[must_use]
    pub fn answer(&self) -> Option<&str> {
        self.messages
            .last()
            .filter(|last| last.role == "assistant")
            .map(|last| last.content.as_str())
    }
}

/// One row of `predictions.jsonl`: what a model wrote and what it is measured against. The two are fields, not
/// positions, because swapping them silently is the commonest fault in this field's evaluation code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prediction {
    /// Whom it is about; absent in files from elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserId>,
    /// What it is about; absent in files from elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<ItemId>,
    /// What the model wrote.
    pub prediction: String,
    /// What it is measured against.
    pub reference: String,
}
