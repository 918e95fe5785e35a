mod cache;
#[cfg(feature = "hub")]
mod client;
#[cfg(feature = "hub")]
mod download;
mod fault;
mod id;
#[cfg(all(test, feature = "hub"))]
mod server;
#[cfg(test)]
mod tests;
mod token;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Result, TuneError};

use cache::Repository;
pub(crate) use cache::Snapshot;
pub use fault::HubFault;
pub(crate) use id::HubId;
use token::Token;

/// Where models are taken from by name: the cache on this machine that all of the hub's clients share and, with the feature
/// `hub`, the hub itself for what the cache lacks.
///
/// A model that is whole in the cache is used with no request at all. Of one that is not, the configuration, the tokenizer's
/// files and the safetensors weights are downloaded and nothing else. A download that was ended goes on where it was; a
/// file appears in its place only when it is whole and has the size, and for weights the digest, that the hub says.
///
/// ```no_run
/// use because_tune::Hub;
/// use std::path::Path;
///
/// let folder = Hub::from_env().folder(Path::new("Qwen/Qwen2.5-0.5B-Instruct@main"))?;
/// # Ok::<(), because_tune::TuneError>(())
/// ```
///
/// The token goes to the endpoint and to no other host, whatever is redirected where. `Debug` does not show it.
#[derive(Debug, Clone)]
pub struct Hub {
    cache: PathBuf,
    endpoint: String,
    token: Token,
    offline: bool,
    #[cfg_attr(
        not(feature = "hub"),
        allow(dead_code, reason = "nothing is requested")
    )]
    patience: Patience,
}

/// How often a request that may do better later is made before it is given up, and the first pause between two.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(
    not(feature = "hub"),
    allow(dead_code, reason = "nothing is requested")
)]
struct Patience {
    tries: u32,
    pause: Duration,
    /// How long a connection may be silent.
    silence: Duration,
}

impl Hub {
    /// The public hub with this cache folder and without a token. Reads nothing from the environment.
    #[must_use]
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Self {
            cache: cache.into(),
            endpoint: "https://huggingface.co".to_owned(),
            token: Token::default(),
            offline: false,
            patience: Patience {
                tries: 5,
                pause: Duration::from_secs(1),
                silence: Duration::from_secs(60),
            },
        }
    }

    /// As the environment says, with the names that all of the hub's clients know: `HF_HUB_CACHE`, or `hub` in `HF_HOME`,
    /// or `~/.cache/huggingface/hub`; `HF_ENDPOINT`; `HF_TOKEN`, or the file at `HF_TOKEN_PATH`, or `token` in
    /// `HF_HOME`; `HF_HUB_OFFLINE`.
    #[must_use]
    pub fn from_env() -> Self {
        Self::from_variables(|name| std::env::var_os(name))
    }

    fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let home = std::env::home_dir().unwrap_or_default();
        let path = |name: &str| {
            let path = PathBuf::from(set(name)?);
            Some(match path.strip_prefix("~") {
                Ok(rest) => home.join(rest),
                Err(_) => path,
            })
        };
        let shared = path("HF_HOME").unwrap_or_else(|| {
            path("XDG_CACHE_HOME")
                .unwrap_or_else(|| home.join(".cache"))
                .join("huggingface")
        });
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let mut hub = Self::new(cache.unwrap_or_else(|| shared.join("hub")));
        let text = |name: &str| set(name).and_then(|value| value.into_string().ok());
        if let Some(endpoint) = text("HF_ENDPOINT") {
            hub = hub.endpoint(endpoint);
        }
        hub.token = match text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN")) {
            Some(token) => Token::new(&token),
            None => Token::read(&path("HF_TOKEN_PATH").unwrap_or_else(|| shared.join("token"))),
        };
        let is_on = |value: String| ["1", "on", "yes", "true"].contains(&&*value.to_lowercase());
        hub.offline = text("HF_HUB_OFFLINE").is_some_and(is_on);
        hub
    }

    /// Another hub: a mirror, or one within a company.
    #[must_use]
    pub fn endpoint(mut self, url: impl Into<String>) -> Self {
        self.endpoint = url.into().trim().trim_end_matches('/').to_owned();
        self
    }

    /// Who asks. Never printed, stored, or given away in an error.
    #[must_use]
    pub fn token(mut self, secret: impl AsRef<str>) -> Self {
        self.token = Token::new(secret.as_ref());
        self
    }

    /// Whether to keep to the cache.
    #[must_use]
    pub fn offline(mut self, offline: bool) -> Self {
        self.offline = offline;
        self
    }

    /// The folder of a base: `base` itself where that is a folder, or where it is no hub id; else the model's folder in the
    /// cache, filled by a download if it has to be. The work is blocking.
    ///
    /// # Errors
    /// [`TuneError::Hub`] when the model is neither in the cache nor to be had.
    pub fn folder(&self, base: &Path) -> Result<PathBuf> {
        match HubId::parse(base) {
            Some(id) if !base.exists() => Ok(self.fetch(&id)?.path),
            _ => Ok(base.to_owned()),
        }
    }

    /// A snapshot with everything that a base needs.
    pub(crate) fn fetch(&self, id: &HubId) -> Result<Snapshot> {
        let repository = Repository::new(&self.cache, id);
        let found = repository.find(id.revision());
        if let Some(snapshot) = &found
            && repository.is_settled(snapshot)
        {
            return Ok(snapshot.clone());
        }
        let error = match self.download(id, &repository) {
            Ok(snapshot) => return Ok(snapshot),
            Err(error) => error,
        };
        // A cache that may not be written to, or a hub that has no time, is no reason to stop.
        match found.filter(Snapshot::is_base) {
            Some(snapshot) => {
                let without = repository.unsettled(&snapshot).join(" and ");
                tracing::warn!(
                    "the cache holds {id} without {without}; it is used as it is ({error})"
                );
                Ok(snapshot)
            }
            None => Err(error),
        }
    }

    #[cfg(feature = "hub")]
    fn download(&self, id: &HubId, repository: &Repository) -> Result<Snapshot> {
        if self.offline {
            return Err(self.not_here(id, repository, "HF_HUB_OFFLINE is set"));
        }
        // `demo/base.tiny` whose folder was removed is no question for a stranger's server.
        if id.said_revision().is_none() && Path::new(id.owner()).is_dir() {
            let why = format!(
                "there is a folder {} here, so the hub was not asked; {id}@main would ask it",
                id.owner()
            );
            return Err(self.not_here(id, repository, &why));
        }
        download::run(self, id, repository)
    }

    #[cfg(not(feature = "hub"))]
    fn download(&self, id: &HubId, repository: &Repository) -> Result<Snapshot> {
        let why = "nothing is downloaded, because this program was built without the feature `hub`";
        Err(self.not_here(id, repository, why))
    }

    fn not_here(&self, id: &HubId, repository: &Repository, why: &str) -> TuneError {
        TuneError::Hub {
            id: id.to_string(),
            fault: HubFault::Offline {
                looked: repository.folder(),
                why: why.to_owned(),
                advice: self.advice(id, repository),
            },
        }
    }

    /// What to do on a machine that cannot ask the hub.
    fn advice(&self, id: &HubId, repository: &Repository) -> String {
        let revision = match id.revision() {
            "main" => String::new(),
            revision => format!(" --revision {revision}"),
        };
        format!(
            "on a machine that can, run `hf download {}{revision} --include \"*.json\" \"*.jinja\" \"*.safetensors\" \
             --local-dir {}`, copy that folder here and give its path, or copy the folder {} from that machine's cache to {}",
            id.repository(),
            id.name(),
            id.folder(),
            repository.folder().display()
        )
    }
}
