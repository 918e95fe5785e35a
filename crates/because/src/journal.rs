use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

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
}
