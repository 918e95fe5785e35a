use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use crate::config::QwenConfig;
use crate::error::{Result, TuneError};
use crate::ops::{LaidOut, Mapped, Matrix, Param, bf16_to_f32, f16_to_f32, tensor};
use crate::params::Parameters;

/// The weights of a base by name, each of the shape its configuration asks for. Matrices stay where they lie in their
/// mapped files, in the precision they have there; norms and biases are in memory, in f32.
pub(crate) struct Weights {
    matrices: BTreeMap<String, Matrix>,
    vectors: BTreeMap<String, Param>,
}

impl Weights {
    /// Maps `model.safetensors`, or the shards that `model.safetensors.index.json` lists, of a folder. Every name and
    /// shape is checked.
    pub(crate) fn read(folder: &Path, config: &QwenConfig) -> Result<Self> {
        let maps = files(folder)?
            .iter()
            .map(|path| Ok(Arc::new(map(path)?)))
            .collect::<Result<Vec<_>>>()?;
        let mut present = BTreeMap::new();
        for map in &maps {
            let file =
                SafeTensors::deserialize(map).map_err(|error| fault(folder, error.to_string()))?;
            for (name, view) in file.tensors() {
                if present.contains_key(&name) {
                    let reason = format!("tensor {name} is in two of its files");
                    return Err(fault(folder, reason));
                }
                present.insert(name, (map, view));
            }
        }
        let wanted = config.tensors();
        check(&wanted, &present, config).map_err(|reason| fault(folder, reason))?;
        let mut weights = Self {
            matrices: BTreeMap::new(),
            vectors: BTreeMap::new(),
        };
        for (name, shape) in wanted {
            let (map, view) = &present[&name];
            if let [out, input] = shape[..] {
                let matrix = matrix(map, view, (out, input))
                    .ok_or_else(|| fault(folder, not_a_float(&name, view)))??;
                weights.matrices.insert(name, matrix);
            } else {
                let values = to_f32(view).ok_or_else(|| fault(folder, not_a_float(&name, view)))?;
                let param = Param::frozen(tensor(values, shape)?);
                weights.vectors.insert(name, param);
            }
        }
        Ok(weights)
    }

    /// Weights from elsewhere, by our names; every tensor of the configuration must be there.
    pub(crate) fn new(
        matrices: BTreeMap<String, Matrix>,
        vectors: BTreeMap<String, Param>,
    ) -> Self {
        Self { matrices, vectors }
    }

    /// Weights that are all parameters.
    pub(crate) fn from_parameters(parameters: &Parameters, learns: bool) -> Self {
        let mut weights = Self {
            matrices: BTreeMap::new(),
            vectors: BTreeMap::new(),
        };
        for (name, tensor) in parameters.iter() {
            let Some(param) = parameters.get(name, learns) else {
                continue;
            };
            if tensor.rank() == 2 {
                weights
                    .matrices
                    .insert(name.to_owned(), Matrix::Param(param));
            } else {
                weights.vectors.insert(name.to_owned(), param);
            }
        }
        weights
    }

    /// Hands a matrix over; the constructors saw to it that every tensor of the configuration is there.
    pub(crate) fn matrix(&mut self, name: &str) -> Matrix {
        self.matrices
            .remove(name)
            .unwrap_or_else(|| unreachable!("{name} was checked to be present"))
    }

    /// Hands a vector over.
    pub(crate) fn vector(&mut self, name: &str) -> Param {
        self.vectors
            .remove(name)
            .unwrap_or_else(|| unreachable!("{name} was checked to be present"))
    }
}

/// A matrix where it lies, or a copy of it where it does not lie as this machine needs it.
fn matrix(map: &Arc<Mmap>, view: &TensorView<'_>, dims: (usize, usize)) -> Option<Result<Matrix>> {
    let start = view.data().as_ptr().addr() - map.as_ptr().addr();
    let mapped = Mapped {
        file: Arc::clone(map),
        bytes: start..start + view.data().len(),
        dtype: view.dtype(),
        dims,
        laid_out: LaidOut::default(),
    };
    if mapped.is_usable() {
        return Some(Ok(Matrix::Mapped(mapped)));
    }
    let copy = tensor(to_f32(view)?, dims).map_err(TuneError::from);
    Some(copy.map(|copy| Matrix::Param(Param::frozen(copy))))
}

fn fault(path: &Path, reason: String) -> TuneError {
    TuneError::Weights {
        path: path.to_owned(),
        reason,
    }
}

#[allow(
    unsafe_code,
    reason = "a weight file is mapped, not read: a model is there at once, programs that use the same one share its pages, \
              and half-precision weights never exist twice. A file that another process cuts short meanwhile ends this one, \
              as it does with every reader that maps weights"
)]
pub(crate) fn map(path: &Path) -> Result<Mmap> {
    let io = |error| TuneError::io("map", path, error);
    let file = std::fs::File::open(path).map_err(io)?;
    // SAFETY: see the reason above; nothing of this process writes to the file.
    unsafe { Mmap::map(&file) }.map_err(io)
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Bytes of the weight files of a folder.
pub(crate) fn base_bytes(folder: &Path) -> Result<u64> {
    let size = |path: &PathBuf| {
        let found = std::fs::metadata(path).map_err(|error| TuneError::io("read", path, error))?;
        Ok(found.len())
    };
    files(folder)?.iter().map(size).sum()
}

pub(crate) fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let single = folder.join("model.safetensors");
    let index = folder.join("model.safetensors.index.json");
    if !index.is_file() {
        if single.is_file() {
            return Ok(vec![single]);
        }
        return Err(TuneError::Base {
            path: folder.to_owned(),
            reason: "no weights; put model.safetensors, or the shards with model.safetensors.index.json, into this \
                     folder"
                .into(),
        });
    }
    let text = std::fs::read(&index).map_err(|error| TuneError::io("read", &index, error))?;
    let shards: BTreeSet<String> = serde_json::from_slice::<Index>(&text)
        .map_err(|error| fault(&index, error.to_string()))?
        .weight_map
        .into_values()
        .collect();
    shards
        .into_iter()
        .map(|shard| {
            // A shard lies beside its index; anything else would let a downloaded file read elsewhere.
            if shard.contains(['/', '\\', '\0', ':']) || shard.starts_with('.') || shard.is_empty()
            {
                return Err(fault(
                    &index,
                    format!("weight_map: {shard:?} is not a plain file name"),
                ));
            }
            let path = folder.join(&shard);
            match path.is_file() {
                true => Ok(path),
                false => Err(fault(
                    &index,
                    format!("weight_map: shard {shard:?} is not in the folder"),
                )),
            }
        })
        .collect()
}

fn check(
    wanted: &[(String, Vec<usize>)],
    present: &BTreeMap<String, (&Arc<Mmap>, TensorView<'_>)>,
    config: &QwenConfig,
) -> Result<(), String> {
    for (name, shape) in wanted {
        let (_, view) = present
            .get(name)
            .ok_or_else(|| format!("tensor {name} is missing, config.json asks for {shape:?}"))?;
        if view.shape() != shape {
            let has = view.shape();
            return Err(format!(
                "tensor {name} has shape {has:?}, config.json asks for {shape:?}"
            ));
        }
        if !matches!(view.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(not_a_float(name, view));
        }
    }
    let names: BTreeSet<&str> = wanted.iter().map(|(name, _)| name.as_str()).collect();
    let harmless = |name: &str| {
        name.ends_with("rotary_emb.inv_freq")
            || (config.tie_word_embeddings && name == "lm_head.weight")
    };
    match present
        .keys()
        .find(|name| !names.contains(name.as_str()) && !harmless(name))
    {
        Some(name) => Err(format!(
            "tensor {name} is not part of the model config.json describes"
        )),
        None => Ok(()),
    }
}

fn not_a_float(name: &str, view: &TensorView<'_>) -> String {
    format!(
        "tensor {name} is {:?}; only F32, F16 and BF16 are read",
        view.dtype()
    )
}

/// The values of a float tensor as f32; `None` for other types.
pub(crate) fn to_f32(view: &TensorView<'_>) -> Option<Vec<f32>> {
    floats(view.dtype(), view.data())
}

/// Little-endian floats of a type as f32; `None` for other types.
pub(crate) fn floats(dtype: Dtype, data: &[u8]) -> Option<Vec<f32>> {
    let halves = |widen: fn(u16) -> f32| {
        data.as_chunks::<2>()
            .0
            .iter()
            .map(|&bytes| widen(u16::from_le_bytes(bytes)))
            .collect()
    };
    match dtype {
        Dtype::F32 => Some(
            data.as_chunks::<4>()
                .0
                .iter()
                .map(|&bytes| f32::from_le_bytes(bytes))
                .collect(),
        ),
        Dtype::BF16 => Some(halves(bf16_to_f32)),
        Dtype::F16 => Some(halves(f16_to_f32)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_outside_the_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["../x.safetensors", "/etc/x", "a\\b", ""] {
            let index = serde_json::json!({"weight_map": {"model.norm.weight": name}});
            std::fs::write(
                folder.path().join("model.safetensors.index.json"),
                index.to_string(),
            )
            .unwrap();
            let error = files(folder.path()).unwrap_err().to_string();
            assert!(error.contains("is not a plain file name"), "{error}");
        }
    }

    #[test]
    fn shards_of_bf16_give_the_values_of_one_file_of_f32() {
        use crate::adapter::{read_tensors, write_tensors};

        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/parity/base");
        let config = QwenConfig::read(&base.join("config.json")).unwrap();
        let all = read_tensors(&base.join("model.safetensors")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut map = BTreeMap::new();
        for shard in [0, 1] {
            let name = format!("model-{shard}.safetensors");
            let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = all
                .iter()
                .skip(shard)
                .step_by(2)
                .map(|(name, (shape, values))| {
                    let halves = values
                        .iter()
                        .flat_map(|value| ((value.to_bits() >> 16) as u16).to_le_bytes());
                    (name.clone(), shape.clone(), halves.collect())
                })
                .collect();
            let views = bytes.iter().map(|(name, shape, bytes)| {
                (
                    name,
                    TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap(),
                )
            });
            let file = safetensors::serialize(views, None).unwrap();
            std::fs::write(folder.path().join(&name), file).unwrap();
            map.extend(
                bytes
                    .into_iter()
                    .map(|(tensor, _, _)| (tensor, name.clone())),
            );
        }
        let index = serde_json::json!({"metadata": {}, "weight_map": map}).to_string();
        std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
        let mut read = Weights::read(folder.path(), &config).unwrap();
        for (name, (_, values)) in &all {
            let rounded: Vec<f32> = values
                .iter()
                .map(|v| f32::from_bits(v.to_bits() & 0xffff_0000))
                .collect();
            let is = match read.matrices.remove(name) {
                Some(matrix) => matrix.values().unwrap(),
                None => crate::ops::values(&read.vector(name).tensor).unwrap(),
            };
            assert_eq!(is, rounded, "{name}");
        }
        // Nothing says which of two is meant.
        let twice = folder.path().join("model-0.safetensors");
        std::fs::copy(twice, folder.path().join("model-1.safetensors")).unwrap();
        let error = Weights::read(folder.path(), &config)
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("is in two of its files"), "{error}");
        // A file that lacks one tensor names it.
        let but_one = all.iter().filter(|(name, _)| *name != "model.norm.weight");
        let but_one: Vec<_> = but_one
            .map(|(name, (shape, values))| (name.clone(), shape.clone(), values.clone()))
            .collect();
        let other = tempfile::tempdir().unwrap();
        write_tensors(&other.path().join("model.safetensors"), &but_one, []).unwrap();
        let error = Weights::read(other.path(), &config)
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains("tensor model.norm.weight is missing"),
            "{error}"
        );
    }

    /// Puts blanks behind the header of a weight file: its data begin that many bytes later.
    fn shifted(file: &[u8], blanks: usize) -> Vec<u8> {
        let (length, rest) = file.split_at(8);
        let length = u64::from_le_bytes(length.try_into().unwrap());
        let (header, data) = rest.split_at(length as usize);
        let length = (length + blanks as u64).to_le_bytes();
        [&length, header, &vec![b' '; blanks], data].concat()
    }

    #[test]
    fn matrices_are_read_wherever_they_begin() {
        for (name, dtype) in [
            ("parity", Dtype::F32),
            ("parity-tied", Dtype::F16),
            ("parity-odd", Dtype::BF16),
        ] {
            let base = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("tests/data")
                .join(name)
                .join("base");
            let config = QwenConfig::read(&base.join("config.json")).unwrap();
            let width = dtype.bitsize() / 8;
            let mut expected = BTreeMap::new();
            for path in files(&base).unwrap() {
                let file = std::fs::read(path).unwrap();
                for (name, view) in SafeTensors::deserialize(&file).unwrap().tensors() {
                    assert_eq!(view.dtype(), dtype);
                    expected.insert(name, to_f32(&view).unwrap());
                }
            }
            for blanks in 0..4 {
                let folder = tempfile::tempdir().unwrap();
                for entry in std::fs::read_dir(&base).unwrap() {
                    let path = entry.unwrap().path();
                    let mut file = std::fs::read(&path).unwrap();
                    if path.extension().is_some_and(|kind| kind == "safetensors") {
                        file = shifted(&file, blanks);
                        let begin = 8 + u64::from_le_bytes(file[..8].try_into().unwrap());
                        assert_eq!(begin % 4, blanks as u64, "the data begin there");
                    }
                    std::fs::write(folder.path().join(path.file_name().unwrap()), file).unwrap();
                }
                let mut read = Weights::read(folder.path(), &config).unwrap();
                for (tensor, shape) in config.tensors() {
                    let what = format!("{name}: {blanks}: {tensor}");
                    let is = if let [out, input] = shape[..] {
                        let matrix = read.matrix(&tensor);
                        // Used where they lie as long as that is possible, and copied only then.
                        let mapped = matches!(matrix, Matrix::Mapped(_));
                        assert_eq!(mapped, blanks.is_multiple_of(width), "{what}");
                        assert_eq!(
                            (matrix.dims().unwrap(), matrix.slot()),
                            ((out, input), None)
                        );
                        matrix.values().unwrap()
                    } else {
                        crate::ops::values(&read.vector(&tensor).tensor).unwrap()
                    };
                    assert_eq!(is, expected[&tensor], "{what}");
                }
                assert!(read.matrices.is_empty() && read.vectors.is_empty());
            }
        }
    }
}
