use async_lock::Semaphore;

use crate::{BoxFuture, ChatModel, ChatRequest, ChatResponse, ModelId, Result};

/// Lets at most so many calls be under way at once; the others wait their turn.
///
/// ```
/// use because_llm::{ChatModel, ChatRequest, Limited, Message, Offline};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), because_llm::ChatError> {
/// let model = Limited::new(Offline, 8);
/// model.chat(&ChatRequest::new(vec![Message::user("Say something about sand.")])).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Limited<M> {
    inner: M,
    permits: Semaphore,
}

impl<M: ChatModel> Limited<M> {
    /// Allows `calls` at once, and one if that is 0.
    #[must_use]
    pub fn new(inner: M, calls: usize) -> Self {
        Self {
            inner,
            permits: Semaphore::new(calls.max(1)),
        }
    }
}

impl<M: ChatModel> ChatModel for Limited<M> {
    fn chat<'a>(&'a self, request: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
        Box::pin(async move {
            let _permit = self.permits.acquire().await;
            self.inner.chat(request).await
        })
    }

    fn id(&self) -> ModelId {
        self.inner.id()
    }
}
