mod shape;

use std::sync::LazyLock;

use jsonschema::Validator;

use shape::{Validators, fitting};

use crate::ending::Ending;
use crate::instructions::instructions;
use crate::text::{excerpt, split_thinking};
use crate::{
    BoxFuture, ChatError, ChatModel, ChatRequest, ChatResponse, Handed, Message, ModelId,
    PromptTemplate, Result, Store, Usage, fence,
};

/// Gives out only answers that are what was asked for, and asks again, saying what is wrong, when one is not.
///
/// With a schema, the answer given out is compact JSON that fits it; a Markdown fence or words around the object are
/// passed over. Thoughts between `<think>` and `</think>` become the response's `reasoning`. An answer that ended at the
/// token limit is [`ChatError::Truncated`] and one stopped by a filter [`ChatError::Filtered`]: those are not asked again,
/// because the same end would be paid for. The usage given out is that of all attempts together.
///
/// A repair is another request (it holds the bad answer and the problem), so nothing cached for the first can answer it.
///
/// ```
/// use because_llm::{ChatModel, ChatRequest, Message, Offline, Validated};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let model = Validated::new(Offline).repairs(1);
/// let schema = serde_json::json!({
///     "type": "object",
///     "properties": {"summary": {"type": "string"}},
///     "required": ["summary"],
///     "additionalProperties": false
/// });
/// let request = ChatRequest::new(vec![Message::user("Sum up: sand, politics, worms.")]).schema("summary", schema);
/// let answer: serde_json::Value = serde_json::from_str(&model.chat(&request).await?.answer)?;
/// assert!(answer["summary"].is_string());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Validated<M> {
    inner: M,
    repairs: u32,
    store: Option<Store>,
    validators: Validators,
}

impl<M: ChatModel> Validated<M> {
    /// Repairs an answer twice at most.
    #[must_use]
    pub fn new(inner: M) -> Self {
        Self {
            inner,
            repairs: 2,
            store: None,
            validators: Validators::default(),
        }
    }

    /// At most this many repairs after the first answer.
    #[must_use]
    pub fn repairs(mut self, repairs: u32) -> Self {
        self.repairs = repairs;
        self
    }

    /// Marks the row of an answer that does not fit as `invalid`, in the store that [`Audited`](crate::Audited) inside
    /// writes to.
    #[must_use]
    pub fn audit(mut self, store: Store) -> Self {
        self.store = Some(store);
        self
    }

    async fn ask(&self, request: &ChatRequest, handed: Handed) -> Result<ChatResponse> {
        let validator = request
            .schema
            .as_ref()
            .map(|schema| self.validators.compile(schema))
            .transpose()?;
        let mut usage = Usage::default();
        let mut current = std::borrow::Cow::Borrowed(request);
        let mut handed = handed;
        let mut attempts = 1;
        loop {
            let mut response = self.inner.chat_with(&current, handed).await?;
            usage += response.usage;
            response.usage = usage;
            let problem = match check(response, validator.as_deref())? {
                Checked::Fits(response) => return Ok(response),
                Checked::Wrong(problem) => problem,
            };
            if let Some(store) = &self.store {
                let key = handed.key.unwrap_or_else(|| current.key(&self.inner.id()));
                store.mark_invalid(&key, &problem.reason);
            }
            if attempts > self.repairs {
                return Err(ChatError::Invalid {
                    reason: problem.reason,
                    excerpt: excerpt(&problem.answer, 200),
                    attempts,
                });
            }
            current = std::borrow::Cow::Owned(repair(request, &problem));
            handed.key = None;
            attempts += 1;
        }
    }
}

impl<M: ChatModel> ChatModel for Validated<M> {
    fn chat<'a>(&'a self, request: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
        self.chat_with(request, Handed::default())
    }

    fn chat_with<'a>(
        &'a self,
        request: &'a ChatRequest,
        handed: Handed,
    ) -> BoxFuture<'a, Result<ChatResponse>> {
        Box::pin(self.ask(request, handed))
    }

    fn id(&self) -> ModelId {
        self.inner.id()
    }
}

enum Checked {
    Fits(ChatResponse),
    Wrong(Problem),
}

struct Problem {
    reason: String,
    answer: String,
}

fn check(mut response: ChatResponse, validator: Option<&Validator>) -> Result<Checked> {
    let (thought, answer) = split_thinking(&response.answer);
    let (thought, answer) = (thought.map(str::to_owned), answer.to_owned());
    response.reasoning = response.reasoning.or(thought);
    response.answer = answer;
    match response.ending() {
        Ending::Complete => {}
        Ending::Truncated => {
            return Err(ChatError::Truncated {
                response: Box::new(response),
            });
        }
        Ending::Filtered => {
            let said = match response.answer.as_str() {
                "" => "the server gave no reason".to_owned(),
                answer => excerpt(answer, 300),
            };
            return Err(ChatError::Filtered { message: said });
        }
    }
    let wrong = |reason: String, answer: String| Ok(Checked::Wrong(Problem { reason, answer }));
    if response.answer.is_empty() {
        let reason = match response.reasoning {
            Some(_) => "the answer is empty: there is reasoning, but nothing after it",
            None => "the answer is empty",
        };
        return wrong(reason.into(), String::new());
    }
    let Some(validator) = validator else {
        return Ok(Checked::Fits(response));
    };
    match fitting(&response.answer, validator) {
        Ok(value) => {
            response.answer = value.to_string();
            Ok(Checked::Fits(response))
        }
        Err(reason) => wrong(reason, response.answer),
    }
}

/// The request again, with the answer that does not fit and what is wrong with it.
fn repair(request: &ChatRequest, problem: &Problem) -> ChatRequest {
    static PROMPT: LazyLock<PromptTemplate> = LazyLock::new(|| {
        PromptTemplate::new(include_str!("../prompts/repair.md"), &["problem", "form"])
            .expect("the file beside us names what we fill in")
    });
    let mut repaired = request.clone();
    // Some chat templates refuse an empty turn, and two of the same speaker in a row.
    let said = match problem.answer.as_str() {
        "" => "(no answer)".to_owned(),
        answer => excerpt_lines(answer, 4000),
    };
    repaired.messages.push(Message::assistant(said));
    let problem = fence("problem", &problem.reason);
    // A server may take the schema and not show it to the model; now the model sees it.
    let form = match &request.schema {
        Some(schema) => instructions(schema),
        None => "Answer the question again, and nothing but that.".to_owned(),
    };
    repaired.messages.push(Message::user(
        PROMPT.render(&[("problem", &problem), ("form", &form)]),
    ));
    repaired
}

fn excerpt_lines(text: &str, max_chars: usize) -> String {
    match text.char_indices().nth(max_chars) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use serde_json::json;

    use super::*;

    /// Says these things in turn and remembers what it was asked.
    struct Scripted {
        says: Mutex<VecDeque<ChatResponse>>,
        asked: Mutex<Vec<ChatRequest>>,
    }

    impl Scripted {
        fn new(says: &[&str]) -> Self {
            Self::of(says.iter().map(|answer| ChatResponse {
                answer: (*answer).to_owned(),
                finish_reason: Some("stop".into()),
                usage: Usage {
                    prompt_tokens: 10,
                    completion_tokens: 1,
                    ..Usage::default()
                },
                ..ChatResponse::default()
            }))
        }

        fn of(says: impl IntoIterator<Item = ChatResponse>) -> Self {
            Self {
                says: Mutex::new(says.into_iter().collect()),
                asked: Mutex::default(),
            }
        }
    }

    impl ChatModel for Scripted {
        fn chat<'a>(&'a self, request: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
            self.asked.lock().unwrap().push(request.clone());
            Box::pin(std::future::ready(Ok(self
                .says
                .lock()
                .unwrap()
                .pop_front()
                .unwrap())))
        }
    }

    fn request() -> ChatRequest {
        ChatRequest::new(vec![Message::user("rate")]).schema(
            "rating",
            json!({"type": "object", "properties": {"stars": {"type": "integer", "minimum": 1, "maximum": 5}},
                   "required": ["stars"], "additionalProperties": false}),
        )
    }

    #[tokio::test]
    async fn what_stands_around_the_object_is_passed_over() {
        for said in [
            r#"{"stars": 4}"#,
            "```json\n{\"stars\": 4}\n```",
            "Sure! {as you wish} Here it is: {\"stars\": 4} {\"stars\": 5}",
            "I would say {\"reason\": \"nice\"}, so {\"stars\": 4}.",
            "<think>{\"stars\": 9}</think>{\"stars\": 4}",
            "so many stars\n</think>\n\n{\"stars\":4}",
        ] {
            let response = Validated::new(Scripted::new(&[said]))
                .chat(&request())
                .await
                .unwrap();
            assert_eq!(response.answer, r#"{"stars":4}"#, "{said}");
            assert_eq!(response.reasoning.is_some(), said.contains("</think>"));
        }
    }

    #[tokio::test]
    async fn a_repair_says_what_is_wrong_and_all_attempts_are_counted() {
        let inner = Scripted::new(&["four stars", r#"{"stars": 7}"#, r#"{"stars": 4}"#]);
        let response = Validated::new(&inner).chat(&request()).await.unwrap();
        assert_eq!(response.usage.prompt_tokens, 30);
        assert_eq!(response.usage.completion_tokens, 3);
        let asked = inner.asked.lock().unwrap();
        insta::assert_json_snapshot!(asked[2].messages, @r#"
        [
          {
            "role": "user",
            "content": "rate"
          },
          {
            "role": "assistant",
            "content": "{\"stars\": 7}"
          },
          {
            "role": "user",
            "content": "Your last answer cannot be used. What is wrong with it:\n\n<data name=\"problem\">\n\"at /stars: 7 is greater than the maximum of 5\"\n</data>\n\nAnswer with one JSON object and nothing else: no Markdown, no words before or after it. The object has to fit this JSON\nSchema:\n\n{\"type\":\"object\",\"properties\":{\"stars\":{\"type\":\"integer\",\"minimum\":1,\"maximum\":5}},\"required\":[\"stars\"],\"additionalProperties\":false}"
          }
        ]
        "#);
        assert_ne!(
            asked[0].key(&ModelId::default()),
            asked[1].key(&ModelId::default())
        );
    }

    #[tokio::test]
    async fn after_the_last_repair_the_error_shows_the_last_answer() {
        let inner = Scripted::new(&["a", "b", "{\"stars\": \"c\"}"]);
        let error = Validated::new(&inner).chat(&request()).await.unwrap_err();
        insta::assert_snapshot!(error, @r#"answer does not fit after 3 attempts: at /stars: "c" is not of type "integer"; it begins "{\"stars\": \"c\"}""#);
    }

    #[tokio::test]
    async fn reasoning_without_an_answer_is_asked_again() {
        let thought = ChatResponse {
            reasoning: Some("hm".into()),
            ..ChatResponse::default()
        };
        let spoken = ChatResponse {
            answer: "yes".into(),
            ..ChatResponse::default()
        };
        for first in [
            thought,
            ChatResponse {
                answer: "<think>hm".into(),
                ..ChatResponse::default()
            },
        ] {
            let inner = Scripted::of([first, spoken.clone()]);
            let free_text = ChatRequest::new(vec![Message::user("?")]);
            assert_eq!(
                Validated::new(&inner)
                    .chat(&free_text)
                    .await
                    .unwrap()
                    .answer,
                "yes"
            );
            assert!(
                inner.asked.lock().unwrap()[1].messages[2]
                    .content
                    .contains("nothing after it")
            );
        }
    }

    #[tokio::test]
    async fn a_cut_or_filtered_answer_is_not_asked_again() {
        let ending = |word: &str| ChatResponse {
            answer: r#"{"stars": 4}"#.into(),
            finish_reason: Some(word.into()),
            usage: Usage {
                completion_tokens: 9,
                ..Usage::default()
            },
            ..ChatResponse::default()
        };
        let error = Validated::new(Scripted::of([ending("length")]))
            .chat(&request())
            .await
            .unwrap_err();
        assert!(
            matches!(error, ChatError::Truncated { response } if response.usage.completion_tokens == 9)
        );
        let error = Validated::new(Scripted::of([ending("content_filter")]))
            .chat(&request())
            .await
            .unwrap_err();
        assert!(matches!(error, ChatError::Filtered { .. }));
        for word in [
            "eos_token",
            "",
            "insufficient_system_resource",
            "tool_calls",
        ] {
            Validated::new(Scripted::of([ending(word)]))
                .chat(&request())
                .await
                .unwrap();
        }
    }

    #[tokio::test]
    async fn a_schema_that_is_none_is_an_error_before_anything_is_paid() {
        let inner = Scripted::new(&[]);
        let bad = ChatRequest::default().schema("bad", json!({"type": "objekt"}));
        let error = Validated::new(&inner).chat(&bad).await.unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("schema \"bad\" is not a JSON Schema"),
            "{error}"
        );
    }
}
