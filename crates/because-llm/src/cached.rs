use crate::{BoxFuture, ChatModel, ChatRequest, ChatResponse, Handed, ModelId, Result, Store};

/// Answers a request that was answered before from the [`Store`], and keeps every new answer there before it gives it out.
///
/// The key is the whole request and the model's id, so a finished run asked again costs nothing, and a broken one goes on
/// where it broke. Errors are not kept. An answer from the store carries the usage it had when it was paid for. Identical
/// requests under way at the same time are each asked, and the answer stored first is given to all of them;
/// [`SingleFlight`](crate::SingleFlight) outside makes one call of them.
///
/// Put it *outside* [`Validated`](crate::Validated), so that only answers that fit can satisfy a later request.
///
/// ```
/// use because_llm::{Cached, ChatModel, ChatRequest, Message, Offline, Store};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// let store = Store::open(folder.path().join("llm.sqlite"))?;
/// let model = Cached::new(Offline, store.clone());
/// let request = ChatRequest::new(vec![Message::user("Say something about sand.")]);
/// let first = model.chat(&request).await?;
/// assert_eq!(model.chat(&request).await?, first);
/// assert_eq!(store.totals()?.responses, 1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Cached<M> {
    inner: M,
    store: Store,
}

impl<M: ChatModel> Cached<M> {
    /// Keeps the answers of `inner` in `store`.
    #[must_use]
    pub fn new(inner: M, store: Store) -> Self {
        Self { inner, store }
    }
}

impl<M: ChatModel> ChatModel for Cached<M> {
    fn chat<'a>(&'a self, request: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
        self.chat_with(request, Handed::default())
    }

    fn chat_with<'a>(
        &'a self,
        request: &'a ChatRequest,
        handed: Handed,
    ) -> BoxFuture<'a, Result<ChatResponse>> {
        Box::pin(async move {
            let model = self.inner.id();
            let key = handed.key.unwrap_or_else(|| request.key(&model));
            if let Some(response) = self.store.at_hand(&key) {
                return Ok(response);
            }
            // Looked up under the claim: until then another process may be paying for it.
            let _claim = self.store.claim(&key).await;
            if let Some(response) = self.store.answer(&key)? {
                return Ok(response);
            }
            let response = self.inner.chat_with(request, handed.keyed(key)).await?;
            // Another caller may have stored its answer first; everybody goes on with that one.
            self.store.keep(&key, &model, response).await
        })
    }

    fn id(&self) -> ModelId {
        self.inner.id()
    }
}
