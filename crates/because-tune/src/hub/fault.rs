use std::path::PathBuf;

/// Why a model could not be taken from the hub. No message holds the token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HubFault {
    /// The cache does not hold the model, and this program may not or cannot ask for it.
    #[error("no such folder, and {looked}; {why}; {advice}", looked = no_model_in(looked))]
    Offline {
        /// The folder of the cache where the model would be.
        looked: PathBuf,
        /// What keeps the program from asking.
        why: String,
        /// What to put where.
        advice: String,
    },
    /// Nobody answers at the hub, or where it keeps large files.
    #[error("{endpoint} cannot be reached: {reason}; {advice}")]
    Unreachable {
        /// The address that was tried.
        endpoint: String,
        /// What the connection failed with.
        reason: String,
        /// What to do about it.
        advice: String,
    },
    /// The hub wants to know who asks, or does not let them.
    #[error("{endpoint} refuses it (status {status}{}): {advice}", said(message))]
    Denied {
        /// The hub.
        endpoint: String,
        /// 401 or 403.
        status: u16,
        /// What the hub said.
        message: String,
        /// What to do about it.
        advice: &'static str,
    },
    /// There is no such repository, or none that the token may see.
    #[error(
        "no such folder, and no such model on {endpoint} (status {status}{}); check the name, and for a private model put a \
         token that may read it into HF_TOKEN",
        said(message)
    )]
    NoRepository {
        /// The hub.
        endpoint: String,
        /// 404, or 401 where the hub does not tell strangers what it has.
        status: u16,
        /// What the hub said.
        message: String,
    },
    /// The repository has no such branch, tag or commit.
    #[error(
        "the model has no revision {revision:?}; a branch, a tag or a whole commit goes behind the @"
    )]
    NoRevision {
        /// What was asked for.
        revision: String,
    },
    /// The repository lacks a file that a base consists of.
    #[error("the repository has no {file}; {needed}")]
    NoFile {
        /// The file.
        file: String,
        /// What a base consists of.
        needed: &'static str,
    },
    /// Too many requests.
    #[error("{endpoint} takes no more requests for now (status 429){}; a token in HF_TOKEN raises the limit", after(*seconds))]
    RateLimited {
        /// The hub.
        endpoint: String,
        /// How long to wait, if the hub said so.
        seconds: Option<u64>,
    },
    /// A server on the way failed; it may do better later.
    #[error(
        "{server} failed (status {status}{}); try again later, what has come is kept",
        said(message)
    )]
    Server {
        /// Which, without what is secret in its address.
        server: String,
        /// The status.
        status: u16,
        /// What it said.
        message: String,
    },
    /// The connection ended before the file did.
    #[error(
        "{file}: {have} of {size} bytes came ({reason}); they are kept, and the same command goes on from there"
    )]
    Cut {
        /// The file.
        file: String,
        /// How many bytes are here.
        have: u64,
        /// How many there are, or `?`.
        size: String,
        /// What the connection failed with.
        reason: String,
    },
    /// What came is not what the hub says the file is. It is thrown away.
    #[error("{file} came damaged: {reason}; it was thrown away, run the same command again")]
    Damaged {
        /// The file.
        file: String,
        /// Which sizes or digests differ.
        reason: String,
    },
    /// The address does not answer as a hub does.
    #[error("{endpoint} does not answer as a hub does: {reason}; check HF_ENDPOINT")]
    NotAHub {
        /// The address.
        endpoint: String,
        /// What is wrong with the answer.
        reason: String,
    },
}

impl HubFault {
    /// Whether the same command may do better later, with nothing changed.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::RateLimited { .. }
                | Self::Server { .. }
                | Self::Cut { .. }
                | Self::Damaged { .. }
        )
    }
}

pub(super) fn no_model_in(folder: &std::path::Path) -> String {
    format!(
        "no whole model in {} (config.json, tokenizer.json and model.safetensors, or its shards with \
         model.safetensors.index.json)",
        folder.display()
    )
}

fn said(message: &str) -> String {
    match message {
        "" => String::new(),
        message => format!(", {message:?}"),
    }
}

fn after(seconds: Option<u64>) -> String {
    seconds.map_or_else(String::new, |seconds| format!(", try again in {seconds} s"))
}
