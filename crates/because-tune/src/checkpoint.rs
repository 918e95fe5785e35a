use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::adapter::{self, read_tensors, write_tensors};
use crate::error::{Result, TuneError};
use crate::lora::LoraConfig;
use crate::optim::AdamW;
use crate::params::Parameters;
use crate::train_config::TrainConfig;

const STATE: &str = "trainer_state.json";
const MOMENTS: &str = "optimizer.safetensors";
const PREFIX: &str = "checkpoint-";

/// What a checkpoint holds beside the adapter and the optimiser's running means.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) step: u64,
    /// Steps of the whole run, on which the learning rate depends.
    pub(crate) steps: u64,
    pub(crate) config: TrainConfig,
    pub(crate) lora: LoraConfig,
    /// Of the rows as they are trained on, so that a run does not go on with other data.
    pub(crate) data: String,
    pub(crate) totals: Totals,
}

/// Sums over the steps done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Totals {
    pub(crate) tokens: u64,
    pub(crate) unpadded_tokens: u64,
    pub(crate) supervised_tokens: u64,
    pub(crate) seconds: f64,
    pub(crate) first_loss: f64,
    pub(crate) last_loss: f64,
}

/// Writes `checkpoint-{step}` into a folder, whole or not at all, and then removes older ones.
pub(crate) fn write(
    folder: &Path,
    base: &str,
    state: &State,
    parameters: &Parameters,
    optimizer: &AdamW,
) -> Result<PathBuf> {
    let io = |path: &Path, error| TuneError::io("write", path, error);
    std::fs::create_dir_all(folder).map_err(|error| io(folder, error))?;
    let draft = tempfile::Builder::new()
        .prefix(".because-")
        .tempdir_in(folder)
        .map_err(|error| io(folder, error))?;
    adapter::write(draft.path(), base, &state.lora, parameters)?;
    let moments: Vec<_> = parameters
        .iter()
        .zip(parameters.slots())
        .flat_map(|((name, tensor), (_, slot, len))| {
            let part = |all: &[f32]| all[slot..slot + len].to_vec();
            let shape = tensor.dims().to_vec();
            [
                (format!("m.{name}"), shape.clone(), part(&optimizer.mean)),
                (format!("v.{name}"), shape, part(&optimizer.square)),
            ]
        })
        .collect();
    write_tensors(&draft.path().join(MOMENTS), &moments, [])?;
    let text = serde_json::to_vec_pretty(state).expect("a plain struct is serialisable");
    because_core::jsonl::write_atomic(&draft.path().join(STATE), |out| out.write_all(&text))?;
    let place = folder.join(format!("{PREFIX}{:08}", state.step));
    if place.exists() {
        std::fs::remove_dir_all(&place).map_err(|error| io(&place, error))?;
    }
    let draft = draft.keep();
    std::fs::rename(&draft, &place).map_err(|error| io(&place, error))?;
    readable_by_all(&place).map_err(|error| io(&place, error))?;
    for (_, older) in all(folder)?
        .into_iter()
        .filter(|(step, _)| *step != state.step)
    {
        std::fs::remove_dir_all(&older).map_err(|error| io(&older, error))?;
    }
    Ok(place)
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
    if !folder.is_dir() {
        return Ok(None);
    }
    Ok(all(folder)?.into_iter().max().map(|(_, path)| path))
}

fn all(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let io = |error| TuneError::io("read", folder, error);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let step = path
            .file_name()
            .and_then(|name| name.to_str()?.strip_prefix(PREFIX)?.parse().ok());
        if let Some(step) = step.filter(|_| path.join(STATE).is_file()) {
            found.push((step, path));
        }
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

/// The optimiser as it was; the parameters are read by [`adapter::read`].
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
