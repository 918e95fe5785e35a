//! A tuned model behind an endpoint that speaks OpenAI's protocol: chat completions, whole and streamed, held to a JSON schema
//! where one is given; the models there are; and whether it is well.

mod completion;
mod patient;
mod question;
mod refusal;
mod reply;
mod route;
mod settings;
mod stream;
mod thoughts;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use because_llm::ChatModel;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream, ToSocketAddrs};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use self::patient::Patient;
use self::refusal::Refusal;
pub use self::settings::{ApiKey, ServeSettings};
use crate::engine::Engine;
use crate::error::{Result, TuneError};
use crate::tuned::TunedModel;

/// An OpenAI-compatible endpoint for a [`TunedModel`] and its adapters, over HTTP/1.1, in a Tokio runtime.
///
/// `POST /v1/chat/completions`, `GET /v1/models`, `GET /v1/models/NAME` and `GET /health`; everything that is asked at a time is one batch. `model`
/// in a request chooses the adapter by its name, those included that are added to the model while it is served. A client that
/// goes away, or no longer reads, ends its answer.
///
/// ```no_run
/// use std::path::Path;
///
/// use because_tune::{Server, ServeSettings, TunedModel};
///
/// # async fn serve() -> Result<(), because_tune::TuneError> {
/// let model = TunedModel::load(Path::new("Qwen2.5-0.5B-Instruct"), None)?;
/// model.add_adapter("explains", Path::new("adapter"))?;
/// let server = Server::bind(model, "127.0.0.1:8080", ServeSettings::default()).await?;
/// println!("http://{}/v1", server.address());
/// server.run(async { tokio::signal::ctrl_c().await.unwrap_or(()) }).await;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    state: Arc<State>,
}

/// How a [`Server`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Served {
    /// Chats it was asked to complete.
    pub asked: u64,
    /// Connections that were cut because their answers were not ended within the grace time.
    pub cut: usize,
}

/// What all connections share.
#[derive(Debug)]
struct State {
    model: Arc<TunedModel>,
    /// The name of the model as it was loaded.
    name: String,
    /// The weights, in a few digits.
    fingerprint: String,
    settings: ServeSettings,
    /// Whether only this machine reaches it.
    local: bool,
    engine: Mutex<Engine>,
    /// Chats so far.
    asked: AtomicU64,
    /// Seconds since 1970 when it began.
    created: u64,
    preparing: Preparing,
}

/// How many questions are made ready for the engine at once.
#[derive(Debug)]
struct Preparing {
    chats: Arc<Semaphore>,
    /// Compiling a schema can take long, and no chat is to wait behind it.
    schemas: Arc<Semaphore>,
}

impl Preparing {
    /// For as many threads as compute.
    fn new(threads: usize) -> Self {
        Self {
            chats: Arc::new(Semaphore::new(threads.max(1))),
            schemas: Arc::new(Semaphore::new((threads / 2).max(1))),
        }
    }

    async fn permit(&self, has_schema: bool) -> Option<OwnedSemaphorePermit> {
        let permits = match has_schema {
            true => &self.schemas,
            false => &self.chats,
        };
        // They are never closed.
        Arc::clone(permits).acquire_owned().await.ok()
    }
}

/// Computes everything in this program on so many threads, in place of one for each core.
///
/// # Errors
/// When something was computed already, or it is 0.
pub fn limit_threads(threads: usize) -> Result<()> {
    let fault = |reason: String| TuneError::Setting {
        field: "threads",
        reason,
    };
    if threads == 0 {
        return Err(fault("is 0".into()));
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    pool.build_global()
        .map_err(|error| fault(error.to_string()))
}

impl Server {
    /// Listens at an address; port 0 is any free one. Nobody is answered before [`Server::run`].
    ///
    /// # Errors
    /// When the address cannot be had, or a setting is out of its range.
    pub async fn bind(
        model: impl Into<Arc<TunedModel>>,
        address: impl ToSocketAddrs + std::fmt::Debug,
        settings: ServeSettings,
    ) -> Result<Self> {
        let model = model.into();
        settings.check()?;
        let id = model.id();
        let own = id.model.strip_prefix("qwen:").unwrap_or(&id.model);
        let name = settings.name.clone().unwrap_or_else(|| own.to_owned());
        let engine = model.engine(settings.engine.clone())?;
        let fault = |source| TuneError::Listen {
            address: format!("{address:?}").trim_matches('"').to_owned(),
            source,
        };
        let listener = TcpListener::bind(&address).await.map_err(fault)?;
        let address = listener.local_addr().map_err(fault)?;
        let state = State {
            fingerprint: id.endpoint.replacen("local:", "fp_", 1),
            name,
            model,
            settings,
            local: address.ip().is_loopback(),
            engine: Mutex::new(engine),
            asked: AtomicU64::new(0),
            created: completion::now(),
            preparing: Preparing::new(rayon::current_num_threads()),
        };
        Ok(Self {
            listener,
            address,
            state: Arc::new(state),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The names that `model` in a request may have, the first for the model as it was loaded.
    #[must_use]
    pub fn models(&self) -> Vec<String> {
        self.state.models()
    }

    /// Answers until `stop` is ready. Then nobody new is let in, what is under way may end within the grace time, and what has
    /// not is cut.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Served {
        let most = self.state.settings.connections();
        let permits = Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
        let (closing, closed) = watch::channel(false);
        let mut connections = JoinSet::new();
        tokio::pin!(stop);
        loop {
            tokio::select! {
                biased;
                () = &mut stop => break,
                Some(_) = connections.join_next() => {}
                (stream, permit) = accept(&self.listener, &permits) => {
                    let connection = connection(stream, Arc::clone(&self.state), closed.clone());
                    connections.spawn(async move {
                        connection.await;
                        drop(permit);
                    });
                }
            }
        }
        drop(self.listener);
        // Fails only where there is no connection.
        let _ = closing.send(true);
        let all = async { while connections.join_next().await.is_some() {} };
        let ended = tokio::time::timeout(self.state.settings.grace, all).await;
        let cut = match ended {
            Ok(()) => 0,
            Err(_) => connections.len(),
        };
        connections.shutdown().await;
        Served {
            asked: self.state.asked.load(Ordering::Relaxed),
            cut,
        }
    }
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> (TcpStream, Option<OwnedSemaphorePermit>) {
    // The semaphore is never closed.
    let permit = Arc::clone(permits).acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, permit),
            Err(error) => {
                // As when there are no more file handles: it passes.
                tracing::warn!("a connection could not be accepted: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, state: Arc<State>, mut closed: watch::Receiver<bool>) {
    // Tokens are small and wanted at once.
    let _ = stream.set_nodelay(true);
    let header_timeout = state.settings.header_timeout;
    let stream = Patient::new(stream, state.settings.write_timeout);
    let service = service_fn(move |request| route::answer(Arc::clone(&state), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let stopped = async {
        // An error means that the server is gone, as by a stop.
        let _ = closed.wait_for(|closed| *closed).await;
    };
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = stopped => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!("a connection ended early: {error}");
    }
}

impl State {
    /// The engine, started anew where a fault has ended it.
    fn running(&self) -> Result<Engine> {
        let mut engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
        if engine.has_ended() {
            tracing::error!("the engine has ended and is started again");
            *engine = self.model.engine(self.settings.engine.clone())?;
        }
        Ok(engine.clone())
    }

    /// The same, while there is room for one more.
    fn engine(&self) -> Result<Engine, Refusal> {
        let engine = self.running()?;
        let (most, now) = (&self.settings.engine, engine.under_way());
        if now >= most.max_rows.saturating_add(most.queue) {
            return Err(Refusal::busy(now));
        }
        Ok(engine)
    }

    fn models(&self) -> Vec<String> {
        let mut models = vec![self.name.clone()];
        let mut adapters = self.model.adapters();
        // The one it was loaded with answers under the first name already.
        adapters.retain(|name| *name != self.name && !self.is_own(name));
        models.extend(adapters);
        models
    }

    fn is_own(&self, adapter: &str) -> bool {
        self.model.own_adapter() == Some(adapter)
    }

    /// The model's name in full, and the adapter that it stands for. Without a name it is the only one there is.
    fn model_named(&self, name: Option<&str>) -> Result<(String, Option<String>), Refusal> {
        let models = self.models();
        let name = match (name, models.as_slice()) {
            (Some(name), _) => name.to_owned(),
            (None, [only]) => only.clone(),
            (None, all) => {
                let reason = format!("is missing; there are {}", all.join(", "));
                return Err(Refusal::field("model", &reason));
            }
        };
        if name == self.name || self.is_own(&name) {
            return Ok((name, None));
        }
        match models.contains(&name) {
            true => Ok((name.clone(), Some(name))),
            false => Err(Refusal::unknown_model(&name, &models)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_chat_does_not_wait_behind_schemas() {
        let preparing = Preparing::new(1);
        let _compiling = preparing.permit(true).await;
        assert_eq!(preparing.schemas.available_permits(), 0);
        assert!(preparing.permit(false).await.is_some());
    }
}
