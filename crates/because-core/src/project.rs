use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::{
    Error, Explanation, Interaction, Item, ProfileRecord, Profiles, Reference, Result, Split, User,
    jsonl,
};

/// A directory that holds one experiment: where each file is, and how it is read. It keeps nothing in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    root: PathBuf,
}

impl Project {
    /// The project in this directory; nothing is read or made yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A file or folder in it.
    #[must_use]
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.join(name)
    }

    /// `interactions.jsonl`, or its packed twin where only that exists.
    #[must_use]
    pub fn interactions_path(&self) -> PathBuf {
        self.plain_or_packed("interactions.jsonl")
    }

    /// `users.jsonl`, or its packed twin where only that exists.
    #[must_use]
    pub fn users_path(&self) -> PathBuf {
        self.plain_or_packed("users.jsonl")
    }

    /// `items.jsonl`, or its packed twin where only that exists.
    #[must_use]
    pub fn items_path(&self) -> PathBuf {
        self.plain_or_packed("items.jsonl")
    }

    /// `references.jsonl`, or its packed twin where only that exists.
    #[must_use]
    pub fn references_path(&self) -> PathBuf {
        self.plain_or_packed("references.jsonl")
    }

    /// `profiles.layer{L}.jsonl`.
    #[must_use]
    pub fn profiles_path(&self, layer: usize) -> PathBuf {
        self.path(format!("profiles.layer{layer}.jsonl"))
    }

    /// `sft.{train,valid,test}.jsonl`.
    #[must_use]
    pub fn sft_path(&self, split: Split) -> PathBuf {
        self.path(format!("sft.{split}.jsonl"))
    }

    /// `llm.sqlite`.
    #[must_use]
    pub fn llm_path(&self) -> PathBuf {
        self.path("llm.sqlite")
    }

    /// Every interaction.
    ///
    /// # Errors
    /// When the file is missing or a line is not an interaction.
    pub fn interactions(&self) -> Result<Vec<Interaction>> {
        self.required(&self.interactions_path(), "make it with `because import`")
    }

    /// Every user row; none where the file is absent, since the graph names the users.
    ///
    /// # Errors
    /// When a line is not a user.
    pub fn users(&self) -> Result<Vec<User>> {
        optional(&self.users_path())
    }

    /// Every item row; none where the file is absent, since the graph names the items.
    ///
    /// # Errors
    /// When a line is not an item.
    pub fn items(&self) -> Result<Vec<Item>> {
        optional(&self.items_path())
    }

    /// The profiles of one layer.
    ///
    /// # Errors
    /// When the file is missing or a line is not a profile.
    pub fn profiles(&self, layer: usize) -> Result<Profiles> {
        let records = self.required::<ProfileRecord>(
            &self.profiles_path(layer),
            "make it with `because profile`",
        )?;
        Ok(Profiles::from_records(layer, records))
    }

    /// The highest layer whose profiles are on disk.
    #[must_use]
    pub fn last_layer(&self) -> Option<usize> {
        (0..)
            .take_while(|&layer| self.profiles_path(layer).exists())
            .last()
    }

    /// Every explanation of `explanations.jsonl`.
    ///
    /// # Errors
    /// When the file is missing or a line is not an explanation.
    pub fn explanations(&self) -> Result<Vec<Explanation>> {
        self.required(
            &self.path("explanations.jsonl"),
            "make it with `because contrast`",
        )
    }

    /// Every reference explanation that the data brought; none where the file is absent.
    ///
    /// # Errors
    /// When a line is not a reference.
    pub fn references(&self) -> Result<Vec<Reference>> {
        optional(&self.references_path())
    }

    fn plain_or_packed(&self, name: &str) -> PathBuf {
        ["", ".gz", ".zst"]
            .iter()
            .map(|packed| self.path(format!("{name}{packed}")))
            .find(|path| path.exists())
            .unwrap_or_else(|| self.path(name))
    }

    fn required<T: DeserializeOwned>(&self, path: &Path, hint: &'static str) -> Result<Vec<T>> {
        if !path.exists() {
            return Err(Error::Missing {
                path: path.to_owned(),
                hint,
            });
        }
        jsonl::read_all(path)
    }
}

fn optional<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    if path.exists() {
        jsonl::read_all(path)
    } else {
        Ok(Vec::new())
    }
}

/// The BLAKE3 of a file's bytes in hexadecimal; `"absent"` where there is no such file.
///
/// # Errors
/// When the file is there and cannot be read.
pub fn file_digest(path: &Path) -> Result<String> {
    let mut file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok("absent".into()),
        Err(error) => return Err(Error::io("open", path, error)),
    };
    let mut hasher = blake3::Hasher::new();
    std::io::copy(&mut file, &mut hasher).map_err(|error| Error::io("read", path, error))?;
    Ok(hasher.finalize().to_hex().to_string())
}
