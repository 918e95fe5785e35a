mod batch;
mod dialect;
mod endpoint;
mod http_date;
mod rate_limits;
mod refusal;
mod transport;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::traits::RequestOptionsBuilder;

use crate::{
    BoxFuture, ChatError, ChatModel, ChatRequest, ChatResponse, Dialect, ModelId, Result,
    StructuredOutput,
};

pub use batch::{OpenAiBatch, OpenAiBatchBuilder};
use dialect::Spoken;
use endpoint::{ApiKey, BaseUrl, Endpoint};
use transport::{Bottom, LatestLimits};
use wire::{Answer, Question};

/// A model behind any server that speaks OpenAI's chat protocol: OpenAI, DeepSeek, vLLM, llama.cpp, Ollama, a gateway.
///
/// It asks once: repeating, waiting, checking and keeping are the [wrappers'](crate::ModelStack) work. Servers that call
/// themselves compatible differ, so it reads their answers forgivingly (unknown fields and endings pass), takes the status
/// and the reason from any kind of error page, and learns what a server cannot do: one that refuses a JSON Schema is asked
/// for a JSON object, and one that refuses that is only told in the prompt. It learns once per client; nothing is paid for
/// a request that is refused so.
///
/// The call has to be made inside a Tokio runtime with its time and network drivers on, which the HTTP client needs.
///
/// ```no_run
/// use because_llm::{ChatModel, ChatRequest, Message, OpenAi};
///
/// # async fn example() -> Result<(), because_llm::ChatError> {
/// let model = OpenAi::new("qwen2.5").base_url("http://127.0.0.1:8080/v1").build()?;
/// let response = model.chat(&ChatRequest::new(vec![Message::user("Why is the sky blue?")])).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct OpenAi {
    model: String,
    endpoint: Endpoint,
    dialect: Arc<Spoken>,
    timeout: Duration,
    client: Client<OpenAIConfig>,
    rate_limits: LatestLimits,
}

/// The settings of an [`OpenAi`], until they are checked. Its `Debug` shows neither the key nor what is secret in the URL.
#[derive(Debug, Clone)]
pub struct OpenAiBuilder {
    model: String,
    base_url: BaseUrl,
    api_key: ApiKey,
    organization: String,
    project: String,
    timeout: Duration,
    dialect: Dialect,
}

impl OpenAi {
    /// This model at OpenAI's own address, without a key. Reads nothing from the environment.
    #[allow(
        clippy::new_ret_no_self,
        reason = "what is checked in `build` is not an `OpenAi` yet"
    )]
    #[must_use]
    pub fn new(model: impl Into<String>) -> OpenAiBuilder {
        OpenAiBuilder {
            model: model.into(),
            base_url: BaseUrl("https://api.openai.com/v1".into()),
            api_key: ApiKey::default(),
            organization: String::new(),
            project: String::new(),
            timeout: Duration::from_secs(600),
            dialect: Dialect::default(),
        }
    }

    /// As [`new`](Self::new), with `OPENAI_BASE_URL`, `OPENAI_API_KEY`, `OPENAI_ORG_ID` and `OPENAI_PROJECT_ID` from the
    /// environment, where they are set and not empty.
    #[must_use]
    pub fn from_env(model: impl Into<String>) -> OpenAiBuilder {
        let set = |name: &str| {
            std::env::var(name)
                .ok()
                .filter(|value| !value.trim().is_empty())
        };
        let mut builder = Self::new(model);
        if let Some(url) = set("OPENAI_BASE_URL") {
            builder.base_url = BaseUrl(url);
        }
        builder.api_key = ApiKey::new(set("OPENAI_API_KEY").unwrap_or_default());
        builder.organization = set("OPENAI_ORG_ID").unwrap_or_default();
        builder.project = set("OPENAI_PROJECT_ID").unwrap_or_default();
        builder
    }

    async fn ask(&self, request: &ChatRequest) -> Result<ChatResponse> {
        loop {
            let sent = self.dialect.now();
            let question = Question::new(&self.model, request, sent);
            let mut group = self.client.chat();
            if !self.endpoint.query.is_empty() {
                group = group
                    .query(&self.endpoint.query)
                    .map_err(|error| self.fault(&error.to_string()))?;
            }
            let heard = group.create_byot::<_, Answer>(&question).await;
            let error = match heard.or_else(transport::answer) {
                Ok(answer) => {
                    let mut response = answer
                        .into_response()
                        .map_err(|refusal| self.refused(&refusal))?;
                    response.rate_limits = self.rate_limits.get();
                    self.endpoint.key.redact_answer(&mut response);
                    self.dialect
                        .check(request, &response.usage, &self.endpoint.label);
                    return Ok(response);
                }
                Err(error) => error,
            };
            let refusal = match transport::refusal(error) {
                Ok(refusal) => refusal,
                Err(failure) => return Err(failure.explain(&self.endpoint, self.timeout)),
            };
            if !self.dialect.learns(&refusal, sent, request) {
                return Err(self.refused(&refusal));
            }
            tracing::warn!(
                model = self.model,
                endpoint = self.endpoint.label,
                "refused, asking differently: {}",
                self.refused(&refusal)
            );
        }
    }

    fn refused(&self, refusal: &refusal::Refusal) -> ChatError {
        refusal.explain(&self.endpoint, &self.model)
    }

    fn fault(&self, message: &str) -> ChatError {
        ChatError::Permanent {
            status: None,
            message: format!("{}: {message}", self.endpoint.label),
        }
    }
}

impl OpenAiBuilder {
    /// The address below which the server has `/chat/completions`. A query in it is sent along with every call.
    #[must_use]
    pub fn base_url(mut self, url: impl Into<String>) -> Self {
        self.base_url = BaseUrl(url.into());
        self
    }

    /// The address as it is set now. It may hold a secret: not to be printed.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.base_url.0
    }

    /// The key. Never printed, stored, or given away in an error.
    #[must_use]
    pub fn api_key(mut self, secret: impl Into<String>) -> Self {
        self.api_key = ApiKey::new(secret.into());
        self
    }

    /// How long one call may take, from connecting to the last byte (10 minutes unless said otherwise). Connecting alone
    /// may take 10 seconds.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// What to ask of the server first when an answer needs a shape, for one that takes a schema and then ignores it.
    #[must_use]
    pub fn structured(mut self, structured: StructuredOutput) -> Self {
        self.dialect.structured = Some(structured);
        self
    }

    /// What is known beforehand of how this server wants to be asked.
    #[must_use]
    pub fn dialect(mut self, dialect: Dialect) -> Self {
        self.dialect = dialect;
        self
    }

    /// Checks the settings; connects to nothing.
    ///
    /// # Errors
    /// [`ChatError::Permanent`] when the model's name is empty, the URL is none, or the key cannot stand in a header.
    pub fn build(self) -> Result<OpenAi> {
        let fault = |message: String| ChatError::Permanent {
            status: None,
            message,
        };
        let model = self.model.trim().to_owned();
        if model.is_empty() {
            return Err(fault("the model's name is empty".into()));
        }
        let endpoint = Endpoint::parse(&self.base_url.0, self.api_key).map_err(fault)?;
        let http = endpoint.client(self.timeout).map_err(fault)?;
        for (name, value) in [
            ("OPENAI_ORG_ID", &self.organization),
            ("OPENAI_PROJECT_ID", &self.project),
        ] {
            reqwest::header::HeaderValue::from_str(value.trim()).map_err(|_| {
                fault(format!(
                    "{name} holds a line break or another character that no header may hold"
                ))
            })?;
        }
        // Every field is set, because what is left out is read from the environment.
        let config = OpenAIConfig::new()
            .with_api_base(endpoint.base.as_str())
            .with_api_key(endpoint.key.reveal())
            .with_org_id(self.organization.trim())
            .with_project_id(self.project.trim());
        let rate_limits = LatestLimits::default();
        let dialect = Arc::new(Spoken::of(
            &model,
            &endpoint.host,
            endpoint.port,
            self.dialect,
        ));
        let bottom = Bottom::new(
            http.clone(),
            endpoint.authorization.clone(),
            rate_limits.clone(),
            Arc::clone(&dialect),
        );
        Ok(OpenAi {
            client: Client::build(http, config).with_http_service(bottom),
            rate_limits,
            dialect,
            timeout: self.timeout,
            endpoint,
            model,
        })
    }
}

impl ChatModel for OpenAi {
    fn chat<'a>(&'a self, request: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
        Box::pin(self.ask(request))
    }

    fn id(&self) -> ModelId {
        ModelId {
            model: self.model.clone(),
            endpoint: self.endpoint.label.clone(),
        }
    }
}
