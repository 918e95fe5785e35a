//! Writing a base all of whose weights have learnt: a folder like the one it came from.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use because_core::jsonl::write_atomic;
use candle_core::Tensor;
use safetensors::{Dtype, View};
use serde_json::Value;

use crate::adapter::write_views;
use crate::base::BaseFolder;
use crate::error::{Result, TuneError};
use crate::ops::values;
use crate::params::Parameters;

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// What belongs to a base beside its weights, the file without which the folder is none last.
const BESIDE: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "config.json",
];

/// Writes a complete base folder: one weight file with every tensor in the type it has in `base`, and the files beside it
/// as they are there. Each file is whole or not there, `config.json` last.
///
/// # Errors
/// When `out` is the base itself or holds the shards of another model, or a file cannot be read or written.
pub(crate) fn write(out: &Path, base: &BaseFolder, parameters: &Parameters) -> Result<()> {
    check_place(out, base)?;
    std::fs::create_dir_all(out).map_err(|error| TuneError::io("create", out, error))?;
    let types = types(&base.path)?;
    let tensors = parameters.iter().map(|(name, variable)| {
        let dtype = types.get(name).copied().unwrap_or(Dtype::F32);
        (name, Stored { dtype, variable })
    });
    write_views(&out.join(WEIGHTS), tensors, [("format", "pt")])?;
    for name in BESIDE {
        let from = base.path.join(name);
        if from.is_file() {
            copy(&from, &out.join(name))?;
        }
    }
    Ok(())
}

/// # Errors
/// When a base may not be written here.
pub(crate) fn check_place(out: &Path, base: &BaseFolder) -> Result<()> {
    let fault = |reason: &str| {
        Err(TuneError::Base {
            path: out.to_owned(),
            reason: reason.to_owned(),
        })
    };
    if let (Ok(one), Ok(other)) = (out.canonicalize(), base.path.canonicalize())
        && one == other
    {
        return fault("is the base itself; write the new model into another folder");
    }
    if out.join(INDEX).exists() {
        return fault("holds the shards of another model; write the new one into another folder");
    }
    Ok(())
}

/// The files that [`write`] made in a folder, `config.json` last.
pub(crate) fn files(written: &Path) -> Vec<&'static str> {
    let all = std::iter::once(WEIGHTS).chain(BESIDE);
    all.filter(|name| written.join(name).is_file()).collect()
}

/// Copies a file, whole or not at all.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut file = std::fs::File::open(from).map_err(|error| TuneError::io("open", from, error))?;
    write_atomic(to, |mut out| std::io::copy(&mut file, &mut out).map(|_| ()))?;
    Ok(())
}

/// A tensor that becomes bytes when it is its turn.
struct Stored<'a> {
    dtype: Dtype,
    variable: &'a Tensor,
}

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        self.variable.dims()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let values = values(self.variable).expect("a parameter is a contiguous tensor of f32");
        let bytes: Vec<u8> = match self.dtype {
            Dtype::BF16 => values
                .iter()
                .flat_map(|&x| to_bf16(x).to_le_bytes())
                .collect(),
            Dtype::F16 => values
                .iter()
                .flat_map(|&x| to_f16(x).to_le_bytes())
                .collect(),
            _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        };
        bytes.into()
    }

    fn data_len(&self) -> usize {
        let width = match self.dtype {
            Dtype::BF16 | Dtype::F16 => 2,
            _ => 4,
        };
        self.variable.elem_count() * width
    }
}

/// The type of every tensor of a base, from the heads of its weight files.
fn types(folder: &Path) -> Result<BTreeMap<String, Dtype>> {
    let index = folder.join(INDEX);
    let files: BTreeSet<PathBuf> = match std::fs::read(&index) {
        Ok(text) => {
            let index: Value = serde_json::from_slice(&text).unwrap_or_default();
            let shards = index["weight_map"].as_object().into_iter().flatten();
            shards
                .filter_map(|(_, shard)| Some(folder.join(shard.as_str()?)))
                .collect()
        }
        Err(_) => [folder.join(WEIGHTS)].into(),
    };
    let mut types = BTreeMap::new();
    for path in files {
        let io = |error| TuneError::io("read", &path, error);
        let mut file = std::fs::File::open(&path).map_err(io)?;
        let mut head = vec![0; 8];
        file.read_exact(&mut head).map_err(io)?;
        let length = u64::from_le_bytes(head[..8].try_into().unwrap_or_default());
        file.take(length).read_to_end(&mut head).map_err(io)?;
        let head: BTreeMap<String, Value> =
            serde_json::from_slice(&head[8..]).map_err(|error| TuneError::Weights {
                path: path.clone(),
                reason: error.to_string(),
            })?;
        types.extend(head.into_iter().filter_map(|(name, tensor)| {
            let dtype = match tensor["dtype"].as_str()? {
                "BF16" => Dtype::BF16,
                "F16" => Dtype::F16,
                _ => Dtype::F32,
            };
            Some((name, dtype))
        }));
    }
    Ok(types)
}

/// The nearest bfloat16, of two equally near the even one.
fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    let half = 0x7fff + (bits >> 16 & 1);
    ((bits + half) >> 16) as u16
}

/// The nearest IEEE half, of two equally near the even one; what is too large becomes infinite.
fn to_f16(x: f32) -> u16 {
    let sign = (x.to_bits() >> 16 & 0x8000) as u16;
    if x.is_nan() {
        return sign | 0x7e00;
    }
    let size = x.abs();
    if size >= 65520.0 {
        return sign | 0x7c00;
    }
    // Adding a number whose last place is the half's makes the processor round there.
    let exponent = ((size.to_bits() >> 23) as i32 - 127).max(-14);
    let place = f32::from_bits(((exponent - 10 + 127) as u32) << 23);
    let steps = (size / place).round_ties_even() as u32;
    // `steps` counts from zero in subnormals and from 1024 in normal numbers; a carry goes into the exponent by itself.
    sign | (((exponent + 14) as u32) * 1024 + steps) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn widen(dtype: Dtype, bits: u16) -> f32 {
        let bytes = bits.to_le_bytes();
        let view = safetensors::tensor::TensorView::new(dtype, vec![1], &bytes).unwrap();
        crate::weights::to_f32(&view).unwrap()[0]
    }

    #[test]
    fn every_half_comes_back_as_it_was() {
        for (dtype, narrow) in [
            (Dtype::BF16, to_bf16 as fn(f32) -> u16),
            (Dtype::F16, to_f16),
        ] {
            for bits in 0..=u16::MAX {
                let wide = widen(dtype, bits);
                if wide.is_nan() {
                    assert!(widen(dtype, narrow(wide)).is_nan());
                } else {
                    assert_eq!(narrow(wide), bits, "{dtype:?} {bits:04x}");
                }
            }
        }
    }

    #[test]
    fn what_lies_between_goes_to_the_nearer_and_a_tie_to_the_even_one() {
        for (dtype, narrow) in [
            (Dtype::BF16, to_bf16 as fn(f32) -> u16),
            (Dtype::F16, to_f16),
        ] {
            let top = if dtype == Dtype::F16 { 0x7bff } else { 0x7f7f };
            for bits in 0..top {
                let (low, high) = (widen(dtype, bits), widen(dtype, bits + 1));
                let middle = (f64::from(low) + f64::from(high)) / 2.0;
                let middle = middle as f32;
                assert_eq!(narrow(middle), bits + (bits & 1), "{dtype:?} {bits:04x}");
                assert_eq!(narrow(middle.next_down()), bits, "{dtype:?} {bits:04x}");
                assert_eq!(narrow(middle.next_up()), bits + 1, "{dtype:?} {bits:04x}");
            }
        }
        assert_eq!(to_f16(65519.0), 0x7bff);
        assert_eq!(to_f16(65520.0), 0x7c00);
        assert_eq!(to_bf16(f32::MAX), 0x7f80);
    }
}
