use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::id::{HubId, is_plain};

pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// What no base goes without, beside its weights.
pub(super) const REQUIRED: [&str; 2] = ["config.json", "tokenizer.json"];
/// What nearly every checkpoint has, and answers differ without: the chat template and the tokens that end an answer.
pub(super) const EXPECTED: [&str; 2] = ["tokenizer_config.json", "generation_config.json"];

/// One repository's part of the cache that all of the hub's clients share: `blobs` by digest, `snapshots` by commit with
/// links into them, `refs` from branches to commits, `.no_exist` for files that a commit is known to lack.
#[derive(Debug)]
pub(super) struct Repository {
    cache: PathBuf,
    name: String,
}

/// The files of one commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) path: PathBuf,
    pub(crate) commit: String,
}

impl Repository {
    pub(super) fn new(cache: &Path, id: &HubId) -> Self {
        Self {
            cache: cache.to_owned(),
            name: id.folder(),
        }
    }

    pub(super) fn folder(&self) -> PathBuf {
        self.cache.join(&self.name)
    }

    /// The commit that a revision was when it was last looked up, as far as the cache knows.
    pub(super) fn find(&self, revision: &str) -> Option<Snapshot> {
        let commit = match std::fs::read_to_string(self.reference(revision)) {
            Ok(commit) => commit.trim().to_owned(),
            Err(_) => revision.to_owned(),
        };
        let snapshot = self.snapshot(&commit)?;
        snapshot.path.is_dir().then_some(snapshot)
    }

    /// Where a commit's files lie; `None` for what is no commit.
    pub(super) fn snapshot(&self, commit: &str) -> Option<Snapshot> {
        is_plain(commit).then(|| Snapshot {
            path: self.folder().join("snapshots").join(commit),
            commit: commit.to_owned(),
        })
    }

    pub(super) fn reference(&self, revision: &str) -> PathBuf {
        self.folder().join("refs").join(revision)
    }

    /// Left where a commit is known to lack a file, so that nobody asks for it again.
    pub(super) fn absence(&self, snapshot: &Snapshot, file: &str) -> PathBuf {
        let folder = self.folder().join(".no_exist");
        folder.join(&snapshot.commit).join(file)
    }

    /// Whether nothing of the snapshot is left to ask for.
    pub(super) fn is_settled(&self, snapshot: &Snapshot) -> bool {
        snapshot.is_base() && self.unsettled(snapshot).is_empty()
    }

    /// Which of the expected files are neither here nor known to be nowhere.
    pub(super) fn unsettled(&self, snapshot: &Snapshot) -> Vec<&'static str> {
        EXPECTED
            .into_iter()
            .filter(|file| {
                !snapshot.path.join(file).is_file() && !self.absence(snapshot, file).exists()
            })
            .collect()
    }
}

#[cfg(feature = "hub")]
impl Repository {
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.folder().join("blobs").join(etag)
    }

    /// What has come of a blob so far.
    pub(super) fn partial(&self, etag: &str) -> PathBuf {
        self.blob(&format!("{etag}.incomplete"))
    }

    pub(super) fn lock(&self, etag: &str) -> PathBuf {
        let locks = self.cache.join(".locks").join(&self.name);
        locks.join(format!("{etag}.lock"))
    }
}

impl Snapshot {
    /// Whether everything is here that a base cannot go without.
    pub(super) fn is_base(&self) -> bool {
        let here = |file: &str| self.path.join(file).is_file();
        let weights = match here(INDEX) {
            true => shards(&self.path.join(INDEX))
                .is_ok_and(|shards| shards.iter().all(|shard| here(shard))),
            false => here(SINGLE),
        };
        weights && REQUIRED.iter().all(|file| here(file))
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The files that an index of shards names, each a plain name.
pub(super) fn shards(index: &Path) -> Result<BTreeSet<String>, String> {
    let text = std::fs::read(index).map_err(|error| error.to_string())?;
    let index: Index = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    // A name that leads elsewhere would let a downloaded file choose what is written where.
    match shards
        .iter()
        .find(|shard| !is_plain(shard) || !shard.ends_with(".safetensors"))
    {
        Some(shard) => Err(format!(
            "weight_map: {shard:?} is not the plain name of a safetensors file"
        )),
        None => Ok(shards),
    }
}
