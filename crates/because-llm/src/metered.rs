mod histogram;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tracing::field::Empty;
use tracing::{Instrument, Span};

use crate::audited::outcome;
use crate::{
    BoxFuture, ChatError, ChatModel, ChatRequest, ChatResponse, Handed, ModelId, Result, Usage,
};

use histogram::Histogram;

/// Counts the calls to the model inside, their tokens and how long they take, and puts a span of [`tracing`] around each.
///
/// The spans are named `chat`, at the level `info` and the target `because_llm::call`, with the attributes of OpenTelemetry's
/// conventions for generative AI: `gen_ai.operation.name`, `gen_ai.request.model`, `gen_ai.request.temperature`,
/// `gen_ai.request.max_tokens`, `gen_ai.response.model`, `gen_ai.response.finish_reasons`, `gen_ai.usage.input_tokens`,
/// `gen_ai.usage.output_tokens`, `server.address`, `error.type`. They never hold what was said, nor a key. Where nobody
/// listens to them, they cost nothing.
///
/// ```
/// use because_llm::{ChatModel, ChatRequest, Message, Metered, Offline};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), because_llm::ChatError> {
/// let model = Metered::new(Offline);
/// let metrics = model.metrics();
/// model.chat(&ChatRequest::new(vec![Message::user("Say something about sand.")])).await?;
/// let now = metrics.now();
/// assert_eq!((now.begun, now.in_flight(), now.ended["ok"]), (1, 0, 1));
/// assert!(metrics.latency(0.5).is_some());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Metered<M> {
    inner: M,
    metrics: Metrics,
}

/// The figures of a [`Metered`]. Cloning is cheap and shares them.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    figures: Figures,
    latency: Histogram,
}

/// What [`Metrics`] showed at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Figures {
    /// Calls that went out.
    pub begun: u64,
    /// Those that ended, by what became of them, in the words of [`StoreTotals::attempts`](crate::StoreTotals).
    pub ended: BTreeMap<&'static str, u64>,
    /// The tokens of all of them, good or bad.
    pub usage: Usage,
}

impl Figures {
    /// Calls under way.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.begun.saturating_sub(self.ended.values().sum())
    }

    /// Of the prompts' tokens, the share that came from the server's prefix cache; 0 where there were none.
    #[must_use]
    pub fn cached_share(&self) -> f64 {
        match self.usage.prompt_tokens {
            0 => 0.0,
            prompt => self.usage.cached_tokens as f64 / prompt as f64,
        }
    }
}

impl Metrics {
    /// The figures as they are.
    #[must_use]
    pub fn now(&self) -> Figures {
        self.lock().figures.clone()
    }

    /// So large a share of the calls that were answered took no longer than this, to within an eighth; `None` before the
    /// first.
    #[must_use]
    pub fn latency(&self, share: f64) -> Option<Duration> {
        self.lock().latency.quantile(share)
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M: ChatModel> Metered<M> {
    /// Counts the calls to `inner`.
    #[must_use]
    pub fn new(inner: M) -> Self {
        Self {
            inner,
            metrics: Metrics::default(),
        }
    }

    /// Counts into these figures, which other models may count into as well.
    #[must_use]
    pub fn count_into(mut self, metrics: Metrics) -> Self {
        self.metrics = metrics;
        self
    }

    /// The figures.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.metrics.clone()
    }

    fn span(&self, request: &ChatRequest) -> Span {
        let span = tracing::info_span!(
            target: "because_llm::call",
            "chat",
            "gen_ai.operation.name" = "chat",
            "gen_ai.request.model" = Empty,
            "gen_ai.request.temperature" = request.sampling.temperature,
            "gen_ai.request.max_tokens" = request.sampling.max_tokens,
            "gen_ai.response.model" = Empty,
            "gen_ai.response.finish_reasons" = Empty,
            "gen_ai.usage.input_tokens" = Empty,
            "gen_ai.usage.output_tokens" = Empty,
            "server.address" = Empty,
            "error.type" = Empty,
        );
        if !span.is_disabled() {
            let ModelId { model, endpoint } = self.inner.id();
            span.record("gen_ai.request.model", model);
            if !endpoint.is_empty() {
                span.record("server.address", endpoint);
            }
        }
        span
    }
}

impl<M: ChatModel> ChatModel for Metered<M> {
    fn chat<'a>(&'a self, request: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
        self.chat_with(request, Handed::default())
    }

    fn chat_with<'a>(
        &'a self,
        request: &'a ChatRequest,
        handed: Handed,
    ) -> BoxFuture<'a, Result<ChatResponse>> {
        let span = self.span(request);
        let metered = async move {
            let under_way = UnderWay::begin(&self.metrics);
            let result = self.inner.chat_with(request, handed).await;
            under_way.end(&result);
            result
        };
        if span.is_disabled() {
            return Box::pin(metered);
        }
        let own = span.clone();
        Box::pin(
            async move {
                let result = metered.await;
                describe(&own, &result);
                result
            }
            .instrument(span),
        )
    }

    fn id(&self) -> ModelId {
        self.inner.id()
    }
}

fn describe(span: &Span, result: &Result<ChatResponse>) {
    if let Some(response) = responded(result) {
        span.record("gen_ai.usage.input_tokens", response.usage.prompt_tokens);
        span.record(
            "gen_ai.usage.output_tokens",
            response.usage.completion_tokens,
        );
        if let Some(model) = &response.model {
            span.record("gen_ai.response.model", model.as_str());
        }
        if let Some(reason) = &response.finish_reason {
            span.record("gen_ai.response.finish_reasons", reason.as_str());
        }
    }
    if let Err(error) = result {
        span.record("error.type", outcome(error));
    }
}

fn responded(result: &Result<ChatResponse>) -> Option<&ChatResponse> {
    match result {
        Ok(response) => Some(response),
        Err(ChatError::Truncated { response }) => Some(response),
        Err(_) => None,
    }
}

/// A call that has to be counted as ended, whatever happens to it.
struct UnderWay<'a> {
    metrics: &'a Metrics,
    since: Instant,
    ended: bool,
}

impl<'a> UnderWay<'a> {
    fn begin(metrics: &'a Metrics) -> Self {
        metrics.lock().figures.begun += 1;
        Self {
            metrics,
            since: Instant::now(),
            ended: false,
        }
    }

    fn end(mut self, result: &Result<ChatResponse>) {
        self.ended = true;
        let word = match result {
            Ok(response) => response.ending().outcome(),
            Err(error) => outcome(error),
        };
        let took = self.since.elapsed();
        let mut counts = self.metrics.lock();
        *counts.figures.ended.entry(word).or_default() += 1;
        if let Some(response) = responded(result) {
            counts.figures.usage += response.usage;
            counts.latency.add(took);
        }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let mut counts = self.metrics.lock();
            *counts.figures.ended.entry("interrupted").or_default() += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt;
    use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

    use tracing::field::{Field, Visit};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Metadata, Subscriber};

    use super::*;
    use crate::{Message, Sampling};

    /// Answers, is cut off, fails, and hangs, in turn.
    #[derive(Default)]
    struct Turns(AtomicU32);

    impl ChatModel for Turns {
        fn chat<'a>(&'a self, _: &'a ChatRequest) -> BoxFuture<'a, Result<ChatResponse>> {
            let turn = self.0.fetch_add(1, Ordering::Relaxed);
            let response = ChatResponse {
                answer: "sand".into(),
                finish_reason: Some(if turn == 1 { "length" } else { "stop" }.into()),
                model: Some("served".into()),
                usage: Usage {
                    prompt_tokens: 100,
                    completion_tokens: 20,
                    cached_tokens: 64,
                    reasoning_tokens: 5,
                },
                ..ChatResponse::default()
            };
            match turn {
                0 | 1 => Box::pin(std::future::ready(Ok(response))),
                2 => Box::pin(std::future::ready(Err(ChatError::Transient {
                    message: "reset".into(),
                }))),
                _ => Box::pin(std::future::pending()),
            }
        }

        fn id(&self) -> ModelId {
            ModelId {
                model: "asked".into(),
                endpoint: "http://host/v1".into(),
            }
        }
    }

    fn ask() -> ChatRequest {
        ChatRequest::new(vec![Message::user("a secret question")]).sampling(Sampling {
            temperature: Some(0.5),
            ..Sampling::default()
        })
    }

    #[tokio::test]
    async fn every_call_is_counted_by_what_became_of_it() {
        let model = Metered::new(Turns::default());
        let (metrics, request) = (model.metrics(), ask());
        for _ in 0..3 {
            let _ = model.chat(&request).await;
        }
        let mut hanging = model.chat(&request);
        assert!(futures_util::poll!(&mut hanging).is_pending());
        assert_eq!(metrics.now().in_flight(), 1);
        drop(hanging);
        let now = metrics.now();
        let ended: Vec<_> = now
            .ended
            .iter()
            .map(|(word, count)| (*word, *count))
            .collect();
        assert_eq!(
            ended,
            [
                ("interrupted", 1),
                ("ok", 1),
                ("transient", 1),
                ("truncated", 1)
            ]
        );
        assert_eq!((now.begun, now.in_flight()), (4, 0));
        assert_eq!(
            (now.usage.prompt_tokens, now.usage.reasoning_tokens),
            (200, 10)
        );
        assert!((now.cached_share() - 0.64).abs() < 1e-9);
        assert!(metrics.latency(0.99).is_some());
    }

    /// Keeps all fields of all spans.
    #[derive(Clone, Default)]
    struct Fields(Arc<Mutex<BTreeMap<String, String>>>, Arc<AtomicU64>);

    impl Visit for Fields {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            let value = format!("{value:?}");
            self.0.lock().unwrap().insert(field.name().into(), value);
        }
    }

    impl Subscriber for Fields {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            metadata.target() == "because_llm::call"
        }

        fn new_span(&self, attributes: &Attributes<'_>) -> Id {
            attributes.record(&mut self.clone());
            Id::from_u64(self.1.fetch_add(1, Ordering::Relaxed) + 1)
        }

        fn record(&self, _: &Id, values: &Record<'_>) {
            values.record(&mut self.clone());
        }

        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, _: &Event<'_>) {}
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    #[tokio::test]
    async fn a_span_has_the_agreed_names_and_nothing_that_was_said() {
        let fields = Fields::default();
        let _guard = tracing::subscriber::set_default(fields.clone());
        let model = Metered::new(Turns::default());
        let request = ask();
        for _ in 0..3 {
            let _ = model.chat(&request).await;
        }
        let fields = fields.0.lock().unwrap();
        let said: Vec<String> = fields
            .iter()
            .map(|(name, value)| format!("{name} = {value}"))
            .collect();
        insta::assert_snapshot!(said.join("\n"), @r#"
        error.type = "transient"
        gen_ai.operation.name = "chat"
        gen_ai.request.model = "asked"
        gen_ai.request.temperature = 0.5
        gen_ai.response.finish_reasons = "length"
        gen_ai.response.model = "served"
        gen_ai.usage.input_tokens = 100
        gen_ai.usage.output_tokens = 20
        server.address = "http://host/v1"
        "#);
        assert!(!said.join(" ").contains("secret"));
    }
}
