use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::Deserialize;

use crate::config::QwenConfig;
use crate::error::{Result, TuneError};

/// The weights of a base by name, all in f32, each of the shape its configuration asks for.
pub(crate) struct Weights(BTreeMap<String, Tensor>);

impl Weights {
    /// Reads `model.safetensors`, or the shards that `model.safetensors.index.json` lists, from a folder.
    ///
    /// Every name and shape is checked before the first tensor is allocated.
    pub(crate) fn read(folder: &Path, config: &QwenConfig) -> Result<Self> {
        let files = files(folder)?;
        let mapped = map(&files).map_err(|error| fault(folder, error.to_string()))?;
        let wanted = config.tensors();
        let present: BTreeMap<String, TensorView<'_>> = mapped.tensors().into_iter().collect();
        check(&wanted, &present, config).map_err(|reason| fault(folder, reason))?;
        let mut weights = BTreeMap::new();
        for (name, shape) in wanted {
            let values = to_f32(&present[&name])
                .ok_or_else(|| fault(folder, not_a_float(&name, &present[&name])))?;
            weights.insert(name, Tensor::from_vec(values, shape, &Device::Cpu)?);
        }
        Ok(Self(weights))
    }

    pub(crate) fn from_tensors(tensors: impl IntoIterator<Item = (String, Tensor)>) -> Self {
        Self(tensors.into_iter().collect())
    }

    /// Hands a tensor over; the constructors saw to it that every tensor of the configuration is there.
    pub(crate) fn take(&mut self, name: &str) -> Tensor {
        self.0
            .remove(name)
            .unwrap_or_else(|| unreachable!("{name} was checked to be present"))
    }
}

fn fault(path: &Path, reason: String) -> TuneError {
    TuneError::Weights {
        path: path.to_owned(),
        reason,
    }
}

#[allow(
    unsafe_code,
    reason = "a weight file is mapped, not read, so that loading does not need its size twice; the mapping lives only \
              while the tensors are copied out of it, and a file that another process cuts short meanwhile is outside \
              of what a reader can guard against"
)]
fn map(files: &[PathBuf]) -> candle_core::Result<candle_core::safetensors::MmapedSafetensors> {
    // SAFETY: see the reason above; nothing of this process writes to the files.
    unsafe { candle_core::safetensors::MmapedSafetensors::multi(files) }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
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
    present: &BTreeMap<String, TensorView<'_>>,
    config: &QwenConfig,
) -> Result<(), String> {
    for (name, shape) in wanted {
        let view = present
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
    let data = view.data();
    let halves = |widen: fn(u16) -> f32| {
        data.as_chunks::<2>()
            .0
            .iter()
            .map(|&bytes| widen(u16::from_le_bytes(bytes)))
            .collect()
    };
    match view.dtype() {
        Dtype::F32 => Some(
            data.as_chunks::<4>()
                .0
                .iter()
                .map(|&bytes| f32::from_le_bytes(bytes))
                .collect(),
        ),
        Dtype::BF16 => Some(halves(|bits| f32::from_bits(u32::from(bits) << 16))),
        Dtype::F16 => Some(halves(f16_to_f32)),
        _ => None,
    }
}

/// IEEE half to single: exact for every value, subnormals, infinities and NaN included.
fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff);
    if magnitude >= 0x7c00 {
        return f32::from_bits(sign | 0x7f80_0000 | ((magnitude & 0x3ff) << 13));
    }
    // Read with a single's exponent the value is too small by 2^112, and a product with a power of two is exact.
    let scaled = f32::from_bits(magnitude << 13) * f32::from_bits((127 + 112) << 23);
    f32::from_bits(scaled.to_bits() | sign)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_widen_exactly() {
        for (bits, value) in [
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x0001, 2f32.powi(-24)),
            (0x7bff, 65504.0),
            (0x8000, -0.0),
            (0x7c00, f32::INFINITY),
            (0x3555, 0.333_251_95),
        ] {
            assert_eq!(f16_to_f32(bits).to_bits(), value.to_bits(), "{bits:x}");
        }
        assert!(f16_to_f32(0x7e00).is_nan());
    }

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
            assert_eq!(
                crate::ops::values(&read.take(name)).unwrap(),
                rounded,
                "{name}"
            );
        }
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
}
