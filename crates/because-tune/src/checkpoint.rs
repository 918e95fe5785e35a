use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::adapter::{read_tensors, write_tensors};
use crate::error::{Result, TuneError};
use crate::evaluation::{History, exact};
use crate::full::copy;
use crate::lora::LoraConfig;
use crate::optim::AdamW;
use crate::params::Parameters;
use crate::train_config::TrainConfig;

const STATE: &str = "trainer_state.json";
const MOMENTS: &str = "optimizer.safetensors";
const PREFIX: &str = "checkpoint-";
const BEST: &str = "checkpoint-best-";

/// What a checkpoint holds beside the parameters and the optimiser's running means.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) step: u64,
    /// Steps of the whole run, on which the learning rate depends.
    pub(crate) steps: u64,
    pub(crate) config: TrainConfig,
    /// How the adapters look; nothing where all weights learn.
    pub(crate) lora: Option<LoraConfig>,
    /// Of the rows as they are trained on, so that a run does not go on with other data.
    pub(crate) data: String,
    /// The same of the validation set.
    pub(crate) valid: Option<String>,
    /// How batches are cut, which the order of sums depends on, whatever memory there is when the run goes on.
    pub(crate) micro_tokens: Option<usize>,
    pub(crate) evaluations: History,
    pub(crate) totals: Totals,
}

/// Sums over the steps done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Totals {
    pub(crate) tokens: u64,
    pub(crate) unpadded_tokens: u64,
    pub(crate) supervised_tokens: u64,
    pub(crate) seconds: f64,
    #[serde(with = "exact")]
    pub(crate) first_loss: f64,
    #[serde(with = "exact")]
    pub(crate) last_loss: f64,
}

/// The checkpoints of a run: the newest ones, and what the run has been at its best so far.
///
/// Whatever lies in the folder and belongs to another run goes when the first checkpoint of this one is there.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    folder: PathBuf,
    keep: usize,
    /// Steps of this run's checkpoints, in their order.
    steps: Vec<u64>,
    /// The best step that the newest checkpoint knows of: a run that is killed goes on from there, so that its best must
    /// stay until a newer checkpoint has a better one.
    settled: Option<u64>,
}

impl Checkpoints {
    /// Those of a run that begins.
    pub(crate) fn new(folder: &Path, keep: usize) -> Self {
        Self {
            folder: folder.to_owned(),
            keep,
            steps: Vec::new(),
            settled: None,
        }
    }

    /// Those of a run that goes on from this state.
    pub(crate) fn resumed(folder: &Path, keep: usize, state: &State) -> Result<Self> {
        let mut steps: Vec<u64> = all(folder)?.into_iter().map(|(step, _)| step).collect();
        steps.retain(|&step| step <= state.step);
        steps.sort_unstable();
        Ok(Self {
            steps,
            settled: state.evaluations.best().map(|best| best.step),
            ..Self::new(folder, keep)
        })
    }

    /// Writes a checkpoint whose parameters `keep` writes, and then removes those that are no longer wanted.
    pub(crate) fn write(
        &mut self,
        state: &State,
        parameters: &Parameters,
        optimizer: &AdamW,
        keep: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let place = self.folder.join(format!("{PREFIX}{:08}", state.step));
        self.place(&place, |draft| {
            keep(draft)?;
            write_optimizer(&draft.join(MOMENTS), parameters, optimizer)?;
            let text = serde_json::to_vec_pretty(state).expect("a plain struct is serialisable");
            because_core::jsonl::write_atomic(&draft.join(STATE), |out| out.write_all(&text))?;
            Ok(())
        })?;
        self.steps.retain(|&step| step != state.step);
        self.steps.push(state.step);
        self.settled = state.evaluations.best().map(|best| best.step);
        let newest = self.steps.len().saturating_sub(self.keep);
        self.steps.drain(..newest);
        for (step, path) in all(&self.folder)? {
            if !self.steps.contains(&step) {
                remove(&path)?;
            }
        }
        self.remove_bests(|step| Some(step) == self.settled)?;
        Ok(place)
    }

    /// Keeps what the run is after this step, its best so far.
    pub(crate) fn write_best(
        &mut self,
        step: u64,
        write: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        self.place(&self.best(step), write)?;
        self.remove_bests(|kept| kept == step || Some(kept) == self.settled)
    }

    /// Copies the best into the folder of the result: these files of it, in this order.
    pub(crate) fn restore_best(
        &self,
        step: u64,
        files: impl FnOnce(&Path) -> Vec<&'static str>,
    ) -> Result<()> {
        let best = self.best(step);
        if !best.is_dir() {
            return Err(TuneError::Checkpoint {
                path: best,
                reason: "is gone, and it was the best of this run; train anew".into(),
            });
        }
        files(&best)
            .into_iter()
            .try_for_each(|name| copy(&best.join(name), &self.folder.join(name)))
    }

    /// Removes the best of a run that has ended and left no checkpoint to end it from again.
    pub(crate) fn end(&self) -> Result<()> {
        match self.steps.is_empty() {
            true => self.remove_bests(|_| false),
            false => Ok(()),
        }
    }

    fn best(&self, step: u64) -> PathBuf {
        self.folder.join(format!("{BEST}{step:08}"))
    }

    fn remove_bests(&self, keep: impl Fn(u64) -> bool) -> Result<()> {
        for (step, path) in numbered(&self.folder, BEST)? {
            if !keep(step) {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// Makes a folder, whole or not at all.
    fn place(&self, place: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let io = |path: &Path, error| TuneError::io("write", path, error);
        std::fs::create_dir_all(&self.folder).map_err(|error| io(&self.folder, error))?;
        let draft = tempfile::Builder::new()
            .prefix(".because-")
            .tempdir_in(&self.folder)
            .map_err(|error| io(&self.folder, error))?;
        fill(draft.path())?;
        if place.exists() {
            remove(place)?;
        }
        let draft = draft.keep();
        std::fs::rename(&draft, place).map_err(|error| io(place, error))?;
        readable_by_all(place).map_err(|error| io(place, error))
    }
}

fn remove(folder: &Path) -> Result<()> {
    std::fs::remove_dir_all(folder).map_err(|error| TuneError::io("remove", folder, error))
}

fn write_optimizer(path: &Path, parameters: &Parameters, optimizer: &AdamW) -> Result<()> {
    let moments: Vec<_> = parameters
        .iter()
        .zip(parameters.slots())
        .flat_map(|((name, tensor), (_, slot, len))| {
            let (range, shape) = (slot..slot + len, tensor.dims().to_vec());
            let mean = &optimizer.mean[range.clone()];
            let square = &optimizer.square[range];
            [
                (format!("m.{name}"), shape.clone(), mean),
                (format!("v.{name}"), shape, square),
            ]
        })
        .collect();
    write_tensors(path, &moments, [])
}

/// The temporary folder was private; what it has become is as readable as any folder the user makes.
#[cfg(unix)]
fn readable_by_all(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
}

#[cfg(not(unix))]
fn readable_by_all(_: &Path) -> std::io::Result<()> {
    Ok(())
}

/// The newest checkpoint of a folder, if there is one.
pub(crate) fn newest(folder: &Path) -> Result<Option<PathBuf>> {
    Ok(all(folder)?.into_iter().max().map(|(_, path)| path))
}

fn all(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut all = numbered(folder, PREFIX)?;
    all.retain(|(_, path)| path.join(STATE).is_file());
    Ok(all)
}

fn numbered(folder: &Path, prefix: &str) -> Result<Vec<(u64, PathBuf)>> {
    let io = |error| TuneError::io("read", folder, error);
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let step = path
            .file_name()
            .and_then(|name| name.to_str()?.strip_prefix(prefix)?.parse().ok());
        found.extend(step.map(|step| (step, path)));
    }
    Ok(found)
}

pub(crate) fn read_state(folder: &Path) -> Result<State> {
    let path = folder.join(STATE);
    let text = std::fs::read(&path).map_err(|error| TuneError::io("read", &path, error))?;
    serde_json::from_slice(&text).map_err(|error| TuneError::Checkpoint {
        path,
        reason: error.to_string(),
    })
}

/// The optimiser as it was; the parameters are read by [`crate::learner::Learner::read`].
pub(crate) fn read_optimizer(
    folder: &Path,
    parameters: &Parameters,
    step: u64,
    decay: f64,
) -> Result<AdamW> {
    let path = folder.join(MOMENTS);
    let mut tensors = read_tensors(&path)?;
    let mut take = |name: String, count: usize| match tensors.remove(&name) {
        Some((_, values)) if values.len() == count => Ok(values),
        _ => Err(TuneError::Checkpoint {
            path: path.clone(),
            reason: format!("tensor {name} is missing or cut"),
        }),
    };
    let mut optimizer = AdamW::new(parameters.elements() as usize, decay);
    optimizer.step = step;
    for (name, slot, count) in parameters.slots() {
        let range = slot..slot + count;
        optimizer.mean[range.clone()].copy_from_slice(&take(format!("m.{name}"), count)?);
        optimizer.square[range].copy_from_slice(&take(format!("v.{name}"), count)?);
    }
    Ok(optimizer)
}
