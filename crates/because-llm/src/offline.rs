mod answer;
mod candidates;
mod chunks;
mod cleaning;
mod compose;
mod data;
mod explain;
mod lexicon;
mod phrases;
mod rank;
mod words;

use crate::{BoxFuture, ChatModel, ChatRequest, ChatResponse, ModelId, Result, Usage};

/// A model without weights, network or key: it answers from the words of the request alone.
///
/// It reads the [`fence`](crate::fence)d blocks of a request and fills in the request's schema by counting, ranking and
/// quoting: key phrases and central sentences for texts, BM25 for a choice among numbered objects. The same request has
/// the same answer, byte for byte.
///
/// It is for trying the whole path before a model is at hand, for tests, for dry runs, and as a floor that a language
/// model should beat. It is no language model: it understands nothing, infers nothing, and cannot say what the texts do
/// not say in so many words. It knows English function words; texts in other languages are answered, but roughly.
/// `pattern` and `format` in a schema are not looked at.
///
/// Everything it returns names it: [`id`](ChatModel::id) and the response say `offline-extractive-1`. Tokens are counted
/// as words between spaces. [`Sampling::max_tokens`](crate::Sampling) bounds a free text; an answer to a schema is never cut.
///
/// ```
/// use because_llm::{ChatModel, ChatRequest, Message, Offline, fence};
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let reviews = fence("reviews", &["Great ramen in a cozy room.", "Rich ramen, friendly staff."]);
/// let request = ChatRequest::new(vec![Message::user(format!("Sum up.\n{reviews}"))]);
/// let answer = Offline.chat(&request).await?.answer;
/// assert!(answer.contains("ramen"), "{answer}");
/// # Ok::<(), because_llm::ChatError>(())
/// # }).unwrap();
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offline;

impl Offline {
    /// The model; it has nothing to set.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }
}

const MODEL: &str = "offline-extractive-1";

impl ChatModel for Offline {
    fn chat<'a>(&'a self, request: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
        Box::pin(std::future::ready(Ok(respond(request))))
    }

    fn id(&self) -> ModelId {
        ModelId {
            model: MODEL.to_owned(),
            endpoint: String::new(),
        }
    }
}

fn respond(request: &ChatRequest) -> ChatResponse {
    let data = data::Data::of(request);
    let answer = match &request.schema {
        Some(schema) => answer::structured(&data, &schema.schema, request.seed),
        None => {
            let most = request.sampling.max_tokens;
            answer::free(&data, most.map(|tokens| tokens as usize))
        }
    };
    let prompt: usize = request
        .messages
        .iter()
        .map(|message| words::word_count(&message.content))
        .sum();
    ChatResponse {
        usage: Usage {
            prompt_tokens: prompt as u64,
            completion_tokens: words::word_count(&answer) as u64,
            ..Usage::default()
        },
        answer,
        finish_reason: Some("stop".to_owned()),
        model: Some(MODEL.to_owned()),
        ..ChatResponse::default()
    }
}

#[cfg(test)]
mod tests;
