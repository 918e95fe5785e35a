use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::error::{Result, TuneError};
use crate::merge::setting;
use crate::merge::shards::INDEX;

/// Where a result is written until it is whole: in a hidden folder beside the place it is to have, so that the last step
/// is a renaming. What is dropped before that is gone.
pub(super) struct Stage {
    pub(super) path: PathBuf,
    target: PathBuf,
    _folder: TempDir,
}

impl Stage {
    pub(super) fn file(target: &Path) -> Result<Self> {
        refuse_what_exists(target)?;
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let fail = |error| TuneError::io("create", parent, error);
        std::fs::create_dir_all(parent).map_err(fail)?;
        let folder = tempfile::Builder::new()
            .prefix(".because-")
            .tempdir_in(parent)
            .map_err(fail)?;
        Ok(Self {
            path: folder.path().join("merged"),
            target: target.to_owned(),
            _folder: folder,
        })
    }

    pub(super) fn folder(target: &Path) -> Result<Self> {
        let stage = Self::file(target)?;
        std::fs::create_dir(&stage.path)
            .map_err(|error| TuneError::io("create", &stage.path, error))?;
        Ok(stage)
    }

    /// Gives what was written its place.
    pub(super) fn finish(self) -> Result<()> {
        refuse_what_exists(&self.target)?;
        std::fs::rename(&self.path, &self.target)
            .map_err(|error| TuneError::io("write", &self.target, error))
    }
}

fn refuse_what_exists(target: &Path) -> Result<()> {
    match target.symlink_metadata() {
        Ok(_) => Err(setting(
            "out",
            format!(
                "{} exists; remove it or name another place",
                target.display()
            ),
        )),
        Err(_) => Ok(()),
    }
}

/// A file being written, with the count of its bytes.
pub(super) struct Output {
    file: File,
    path: PathBuf,
    pub(super) bytes: u64,
}

impl Output {
    pub(super) fn create(path: &Path) -> Result<Self> {
        Ok(Self {
            file: File::create_new(path).map_err(|error| TuneError::io("create", path, error))?,
            path: path.to_owned(),
            bytes: 0,
        })
    }

    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes += bytes.len() as u64;
        self.file
            .write_all(bytes)
            .map_err(|error| TuneError::io("write", &self.path, error))
    }

    /// Fills up with zeros to a multiple of `alignment` bytes.
    pub(super) fn pad(&mut self, alignment: u64) -> Result<()> {
        let missing = self.bytes.next_multiple_of(alignment) - self.bytes;
        self.put(&vec![0; missing as usize])
    }

    /// Sees to it that the bytes are on the disk, and counts them.
    pub(super) fn finish(self) -> Result<u64> {
        self.file
            .sync_all()
            .map_err(|error| TuneError::io("write", &self.path, error))?;
        Ok(self.bytes)
    }
}

/// The files of a base that belong to the model beside its weights, by name.
pub(super) fn companions(base: &Path) -> Result<Vec<String>> {
    const WHOLE: [&str; 8] = [
        "config.json",
        "generation_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "configuration.json",
        INDEX,
    ];
    const BEGINNINGS: [&str; 6] = [
        "tokenizer",
        "chat_template",
        "license",
        "licence",
        "notice",
        "readme",
    ];
    let fail = |error| TuneError::io("read", base, error);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(base).map_err(fail)? {
        let Ok(name) = entry.map_err(fail)?.file_name().into_string() else {
            continue;
        };
        let lower = name.to_ascii_lowercase();
        let belongs = WHOLE.contains(&name.as_str())
            || BEGINNINGS
                .iter()
                .any(|beginning| lower.starts_with(beginning));
        // A cache of the hub holds links; what they lead to is meant.
        if belongs && base.join(&name).is_file() {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

pub(super) fn copy(from: &Path, to: &Path) -> Result<u64> {
    let bytes = std::fs::read(from).map_err(|error| TuneError::io("read", from, error))?;
    write(to, &bytes)
}

/// Copies a JSON file with a change in it, its fields in their order.
pub(super) fn rewrite(from: &Path, to: &Path, change: impl FnOnce(&mut Value)) -> Result<u64> {
    let text = std::fs::read(from).map_err(|error| TuneError::io("read", from, error))?;
    let mut value = serde_json::from_slice(&text).map_err(|error| TuneError::Base {
        path: from.to_owned(),
        reason: error.to_string(),
    })?;
    change(&mut value);
    let text = serde_json::to_vec_pretty(&value).expect("a JSON value is serialisable");
    write(to, &text)
}

fn write(path: &Path, bytes: &[u8]) -> Result<u64> {
    let mut file = Output::create(path)?;
    file.put(bytes)?;
    file.finish()
}
