mod fields;
mod peft_config;
#[cfg(test)]
mod peft_made;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use because_core::jsonl::write_atomic;
use safetensors::{Dtype, SafeTensors, View};
use serde_json::Value;

use crate::config::QwenConfig;
use crate::error::{Result, TuneError};
use crate::lora::LoraConfig;
use crate::lora::layout::LoraTensor;
use crate::ops::values;
use crate::params::Parameters;
use crate::weights::to_f32;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// What PEFT puts before the path of a module: its own wrapper and the one of the task.
const PREFIX: &str = "base_model.model.";

/// Writes a folder that PEFT, vLLM and [`read`] load: `adapter_config.json` and `adapter_model.safetensors`, each whole or
/// not at all, the configuration last.
pub(crate) fn write(
    folder: &Path,
    base: &str,
    lora: &LoraConfig,
    parameters: &Parameters,
) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|error| TuneError::io("create", folder, error))?;
    let tensors = parameters
        .iter()
        .map(|(name, variable)| {
            Ok((
                format!("{PREFIX}{name}"),
                variable.dims().to_vec(),
                values(variable)?,
            ))
        })
        .collect::<Result<Vec<_>>>()?;
    write_tensors(&folder.join(WEIGHTS), &tensors, [("format", "pt")])?;
    let config = serde_json::to_vec_pretty(&peft_config::write(base, lora))
        .expect("a JSON value is serialisable");
    write_atomic(&folder.join(CONFIG), |out| out.write_all(&config))?;
    Ok(())
}

/// Writes a safetensors file of f32 tensors, whole or not at all; the same tensors give the same bytes.
pub(crate) fn write_tensors<'a, V: AsRef<[f32]>>(
    path: &Path,
    tensors: &[(String, Vec<usize>, V)],
    metadata: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<()> {
    let views = tensors.iter().map(|(name, shape, values)| {
        let values = values.as_ref();
        (name, Lent { shape, values })
    });
    write_views(path, views, metadata)
}

/// The same of anything that becomes bytes when it is its turn: those of all tensors may not fit into memory beside what they
/// are made from.
pub(crate) fn write_views<'a, N: AsRef<str> + Ord + std::fmt::Display, V: View>(
    path: &Path,
    tensors: impl IntoIterator<Item = (N, V)>,
    metadata: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let io = |error| TuneError::io("write", path, error);
    let draft = tempfile::Builder::new()
        .prefix(".because-")
        .tempdir_in(folder)
        .map_err(io)?;
    let file = draft.path().join("draft");
    let metadata: HashMap<String, String> = metadata
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    safetensors::serialize_to_file(tensors, Some(metadata), &file).map_err(|error| {
        TuneError::Weights {
            path: path.to_owned(),
            reason: error.to_string(),
        }
    })?;
    let written = std::fs::File::open(&file).map_err(io)?;
    written.sync_all().map_err(io)?;
    std::fs::rename(&file, path).map_err(io)
}

/// Numbers of a tensor that lie in memory.
struct Lent<'a> {
    shape: &'a [usize],
    values: &'a [f32],
}

impl View for Lent<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let bytes: Vec<u8> = self
            .values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        bytes.into()
    }

    fn data_len(&self) -> usize {
        size_of_val(self.values)
    }
}

/// Reads an adapter for a model of this shape. Every setting that would change what the adapter computes is either
/// followed or refused by name, and the file's keys must be exactly the ones the settings call for.
pub(crate) fn read(folder: &Path, model: &QwenConfig) -> Result<(LoraConfig, Parameters)> {
    let lora = read_config(&folder.join(CONFIG), model)?;
    let path = folder.join(WEIGHTS);
    let tensors = read_tensors(&path)?;
    let parameters =
        parameters(&lora, model, tensors).map_err(|reason| TuneError::Adapter { path, reason })?;
    Ok((lora, Parameters::new(parameters)?))
}

/// Shape and values by name.
pub(crate) type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// All tensors of a safetensors file, as f32.
pub(crate) fn read_tensors(path: &Path) -> Result<Tensors> {
    let fault = |reason: String| TuneError::Adapter {
        path: path.to_owned(),
        reason,
    };
    let bytes = std::fs::read(path).map_err(|error| TuneError::io("read", path, error))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| fault(error.to_string()))?;
    file.tensors()
        .into_iter()
        .map(|(name, view)| {
            let values = to_f32(&view)
                .ok_or_else(|| fault(format!("tensor {name} is {:?}", view.dtype())))?;
            Ok((name, (view.shape().to_vec(), values)))
        })
        .collect()
}

type Named = (String, Vec<usize>, Vec<f32>);

fn parameters(
    lora: &LoraConfig,
    model: &QwenConfig,
    mut tensors: Tensors,
) -> Result<Vec<Named>, String> {
    let layout = lora.layout(model).map_err(|error| error.to_string())?;
    let mut found = Vec::with_capacity(layout.len());
    for LoraTensor { name, shape, .. } in layout {
        let (is, values) = tensors
            .remove(&format!("{PREFIX}{name}"))
            .ok_or_else(|| format!("tensor {PREFIX}{name} is missing"))?;
        if is != shape {
            return Err(format!(
                "tensor {PREFIX}{name} has shape {is:?}, base and settings ask for {shape:?}"
            ));
        }
        found.push((name, is, values));
    }
    match tensors.keys().next() {
        Some(name) => Err(format!(
            "tensor {name} is not one that base and settings ask for"
        )),
        None => Ok(found),
    }
}

fn read_config(path: &Path, model: &QwenConfig) -> Result<LoraConfig> {
    let fault = |reason: String| TuneError::Adapter {
        path: path.to_owned(),
        reason,
    };
    let text = std::fs::read(path).map_err(|error| TuneError::io("read", path, error))?;
    let config: Value = serde_json::from_slice(&text).map_err(|error| fault(error.to_string()))?;
    peft_config::read(&config, model).map_err(fault)
}

/// Whether a folder looks like an adapter, for messages.
pub(crate) fn check_folder(folder: &Path) -> Result<PathBuf> {
    match folder.join(CONFIG).is_file() && folder.join(WEIGHTS).is_file() {
        true => Ok(folder.to_owned()),
        false => Err(TuneError::Adapter {
            path: folder.to_owned(),
            reason: format!("no adapter here; a folder with {CONFIG} and {WEIGHTS} is asked for"),
        }),
    }
}
