use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use because_core::{Project, Result, file_digest, jsonl};
use serde::{Deserialize, Serialize};

/// Which stages of a project are done, from what, and what they wrote: the file `.because/stages.json`. A stage whose
/// settings and inputs are those of last time, and whose outputs are still what it wrote, is not done again.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    stages: BTreeMap<String, Entry>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    fingerprint: String,
    /// What was written, by its digest; `None` while the stage is at work.
    outputs: Option<BTreeMap<String, String>>,
}

impl Journal {
    /// The journal of a project. One that cannot be read is taken for empty: doing a stage again is safe, since finished
    /// calls are in the answer store.
    pub(crate) fn open(project: &Project) -> Result<Self> {
        let folder = project.path(".because");
        std::fs::create_dir_all(&folder)
            .map_err(|source| because_core::Error::io("create", &folder, source))?;
        let path = folder.join("stages.json");
        let stages = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), %error, "unreadable; every stage is checked again");
                BTreeMap::new()
            }),
            Err(_) => BTreeMap::new(),
        };
        Ok(Self { path, stages })
    }

    /// Whether `stage` was done with this fingerprint and its outputs are untouched.
    pub(crate) fn is_done(
        &self,
        project: &Project,
        stage: &str,
        fingerprint: &str,
    ) -> Result<bool> {
        let Some(entry) = self
            .stages
            .get(stage)
            .filter(|entry| entry.fingerprint == fingerprint)
        else {
            return Ok(false);
        };
        let Some(outputs) = &entry.outputs else {
            return Ok(false);
        };
        for (file, digest) in outputs {
            if file_digest(&project.path(file))? != *digest {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Notes that `stage` begins, and tells whether it had begun with the same fingerprint before, so that what it left
    /// half done belongs to it.
    pub(crate) fn begin(&mut self, stage: &str, fingerprint: &str) -> Result<bool> {
        let entry = Entry {
            fingerprint: fingerprint.to_owned(),
            outputs: None,
        };
        let before = self.stages.insert(stage.to_owned(), entry);
        self.save()?;
        if let Some(root) = self.path.parent().and_then(Path::parent) {
            remove_old_drafts(root);
        }
        Ok(before.is_some_and(|before| before.fingerprint == fingerprint))
    }

    /// Notes that `stage` is done and what it wrote (paths in the project).
    pub(crate) fn done(
        &mut self,
        project: &Project,
        stage: &str,
        fingerprint: String,
        outputs: &[PathBuf],
    ) -> Result<()> {
        let mut digests = BTreeMap::new();
        for output in outputs {
            let name = output.strip_prefix(project.root()).unwrap_or(output);
            digests.insert(name.to_string_lossy().into_owned(), file_digest(output)?);
        }
        self.stages.insert(
            stage.to_owned(),
            Entry {
                fingerprint,
                outputs: Some(digests),
            },
        );
        self.save()
    }

    fn save(&self) -> Result<()> {
        jsonl::write_atomic(&self.path, |out| {
            serde_json::to_writer_pretty(&mut *out, &self.stages)?;
            out.write_all(b"\n")
        })
    }
}

/// Files are written beside their place and moved there. What a killed run left of that is taken away once it is too old to be
/// somebody's work; whatever cannot be looked at stays.
fn remove_old_drafts(root: &Path) {
    const AN_HOUR: Duration = Duration::from_secs(3600);
    let entries = |folder: &Path| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let top = entries(root);
    let below = top
        .iter()
        .filter(|path| path.is_dir() && !path.is_symlink());
    let below: Vec<_> = below.flat_map(|folder| entries(folder)).collect();
    for path in top.iter().chain(&below) {
        let named = |name: &str| name.starts_with(".because-");
        let is_draft = path
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(named);
        let age = || {
            std::fs::symlink_metadata(path)
                .ok()?
                .modified()
                .ok()?
                .elapsed()
                .ok()
        };
        if is_draft && age().is_some_and(|age| age > AN_HOUR) {
            let removed = match path.is_dir() && !path.is_symlink() {
                true => std::fs::remove_dir_all(path),
                false => std::fs::remove_file(path),
            };
            if let Err(error) = removed {
                tracing::debug!(path = %path.display(), %error, "an old draft stays");
            }
        }
    }
}

/// What a stage depends on, in one string: its name, its settings and the bytes of its inputs.
pub(crate) fn fingerprint(
    stage: &str,
    settings: &impl Serialize,
    inputs: &[&Path],
) -> Result<String> {
    let digests = inputs
        .iter()
        .map(|input| file_digest(input))
        .collect::<Result<Vec<_>>>()?;
    let whole = serde_json::json!([stage, settings, digests]).to_string();
    Ok(blake3::hash(whole.as_bytes()).to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_done_until_its_settings_inputs_or_outputs_change() -> Result<()> {
        let folder = tempfile::tempdir()
            .map_err(|source| because_core::Error::io("create", "temporary", source))?;
        let project = Project::new(folder.path());
        let [input, output] = ["in", "out"].map(|name| project.path(name));
        let write = |path: &Path, text: &str| {
            std::fs::write(path, text)
                .map_err(|source| because_core::Error::io("write", path, source))
        };
        write(&input, "1")?;
        write(&output, "a")?;
        let first = fingerprint("stage", &7, &[&input])?;
        Journal::open(&project)?.done(
            &project,
            "stage",
            first.clone(),
            std::slice::from_ref(&output),
        )?;

        let journal = Journal::open(&project)?;
        assert!(journal.is_done(&project, "stage", &first)?);
        assert_ne!(first, fingerprint("stage", &8, &[&input])?);
        write(&input, "2")?;
        assert_ne!(first, fingerprint("stage", &7, &[&input])?);
        write(&output, "b")?;
        assert!(!journal.is_done(&project, "stage", &first)?);
        Ok(())
    }

    #[test]
    fn only_old_drafts_are_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        let project = Project::new(folder.path());
        std::fs::create_dir_all(project.path("adapter/.because-old")).unwrap();
        let long_ago = std::time::SystemTime::now() - Duration::from_secs(7200);
        let names = [
            "adapter/.because-old/draft",
            ".because-old",
            ".because-new",
            "items.jsonl",
        ];
        for name in names {
            std::fs::write(project.path(name), "1").unwrap();
        }
        for name in ["adapter/.because-old", ".because-old", "items.jsonl"] {
            let file = std::fs::File::open(project.path(name)).unwrap();
            file.set_modified(long_ago).unwrap();
        }
        Journal::open(&project)
            .unwrap()
            .begin("stage", "1")
            .unwrap();
        let left = names.map(|name| project.path(name).exists());
        assert_eq!(left, [false, false, true, true]);
        assert!(project.path(".because/stages.json").exists());
    }
}
