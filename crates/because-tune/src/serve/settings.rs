use std::fmt;
use std::time::Duration;

use subtle::ConstantTimeEq;

use crate::decoding::Decoding;
use crate::engine::EngineSettings;
use crate::error::{Result, TuneError};

/// What a [`Server`](crate::Server) takes on, and how it answers where a request leaves it open.
#[derive(Debug, Clone)]
pub struct ServeSettings {
    /// The name under which the model is asked for; that of its folder where it is not said.
    pub name: Option<String>,
    /// What is used where a request says nothing. An answer never has more tokens than its `max_tokens`; its seed is the
    /// first of those that requests without one draw from.
    pub decoding: Decoding,
    /// Rows at once, the queue, and the memory for keys and values.
    pub engine: EngineSettings,
    /// The body of a request at most.
    pub max_body_bytes: usize,
    /// Connections at once; others wait in the system's own queue. Without a number 64 more than the engine has rows and places
    /// in its queue.
    pub max_connections: Option<usize>,
    /// How long the head of a request may take to arrive, and an idle connection stays open.
    pub header_timeout: Duration,
    /// How long its body may take.
    pub body_timeout: Duration,
    /// How long a client may read nothing of what is ready for it before its connection is cut and its answer cancelled.
    pub write_timeout: Duration,
    /// After how long without anything to say a stream says that it lives, with a comment that clients pass over.
    pub keep_alive: Duration,
    /// How long answers that are under way may take when the server is to stop.
    pub grace: Duration,
    /// What a request must bring as `Authorization: Bearer`. Without one everybody who reaches the address is answered.
    pub api_key: Option<ApiKey>,
    /// Names that the header `Host` may have, beside those of this machine itself, where it listens on a loopback address
    /// without a key: as behind a proxy that passes its own on.
    pub allowed_hosts: Vec<String>,
}

impl ServeSettings {
    /// Whether each setting is in its range, as [`Server::bind`](crate::Server::bind) asks too: here before a model is loaded.
    ///
    /// # Errors
    /// When one is not.
    pub fn check(&self) -> Result<()> {
        self.decoding.check()?;
        self.engine.check()?;
        let zero = [
            ("max_body_bytes", self.max_body_bytes == 0),
            ("max_connections", self.max_connections == Some(0)),
            ("header_timeout", self.header_timeout.is_zero()),
            ("body_timeout", self.body_timeout.is_zero()),
            ("write_timeout", self.write_timeout.is_zero()),
            ("keep_alive", self.keep_alive.is_zero()),
        ];
        match zero.into_iter().find(|&(_, is_zero)| is_zero) {
            Some((field, _)) => Err(TuneError::Setting {
                field,
                reason: "is 0".into(),
            }),
            None => Ok(()),
        }
    }

    pub(super) fn connections(&self) -> usize {
        let asks = self.engine.max_rows.saturating_add(self.engine.queue);
        self.max_connections.unwrap_or(asks.saturating_add(64))
    }
}

impl Default for ServeSettings {
    fn default() -> Self {
        let engine = EngineSettings {
            queue: 256,
            ..EngineSettings::default()
        };
        Self {
            name: None,
            decoding: Decoding::greedy(4096),
            max_connections: None,
            engine,
            max_body_bytes: 1 << 20,
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(10),
            grace: Duration::from_secs(30),
            api_key: None,
            allowed_hosts: Vec::new(),
        }
    }
}

/// A key that is compared in a time that tells nothing of it, and never printed.
#[derive(Clone)]
pub struct ApiKey(String);

impl ApiKey {
    /// `None` for a key that cannot stand in a header: an empty one, or one with blanks or control characters.
    #[must_use]
    pub fn new(key: impl Into<String>) -> Option<Self> {
        let key = key.into();
        let fits = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic());
        fits.then_some(Self(key))
    }

    pub(super) fn is(&self, given: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(given).into()
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(..)")
    }
}
