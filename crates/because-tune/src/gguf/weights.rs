use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use safetensors::Dtype;

use crate::config::QwenConfig;
use crate::error::{Result, TuneError};
use crate::gguf::file::{GgufFile, Stored};
use crate::gguf::ggml_type::{GgmlType, Storage};
use crate::gguf::names::gguf_name;
use crate::ops::{LaidOut, Mapped, Matrix, Param, Quantised, tensor};
use crate::weights::{Weights, floats};

/// The weights of a GGUF file. Matrices stay where they lie, in the type they have there; norms and biases are in memory,
/// in f32.
///
/// Queries and keys are as in a checkpoint of transformers: llama.cpp turns them by halves (its `LLAMA_ROPE_TYPE_NEOX`) for
/// this architecture, so its converter leaves their rows in order.
pub(super) fn weights(file: &GgufFile, config: &QwenConfig) -> Result<Weights> {
    let mut stored: BTreeMap<&str, Stored<'_>> = BTreeMap::new();
    for (name, one) in file.tensors() {
        if let Some(other) = stored.insert(name, one) {
            let reason = format!("is in {} too", other.path.display());
            return Err(fault(&one, name, &reason));
        }
    }
    let wanted: Vec<_> = config
        .tensors()
        .into_iter()
        .map(|(own, shape)| (gguf_name(&own), own, shape))
        .collect();
    let names: BTreeSet<&str> = wanted.iter().map(|(name, ..)| name.as_str()).collect();
    if let Some((name, one)) = stored.iter().find(|(name, _)| !names.contains(*name)) {
        let reason = "is not part of the model its metadata describe";
        return Err(fault(one, name, reason));
    }
    let mut found = Vec::with_capacity(wanted.len());
    for (name, own, shape) in &wanted {
        let Some(one) = stored.get(name.as_str()) else {
            return Err(TuneError::Weights {
                path: file.path.clone(),
                reason: format!("tensor {name} is missing, the metadata ask for {shape:?}"),
            });
        };
        let wrong = |reason: String| fault(one, name, &reason);
        if one.tensor.shape != *shape {
            let has = &one.tensor.shape;
            return Err(wrong(format!(
                "has shape {has:?}, the metadata ask for {shape:?}"
            )));
        }
        let kind = GgmlType::new(one.tensor.ggml_type).map_err(wrong)?;
        let bytes = place(one, kind).map_err(wrong)?;
        found.push((name, own, shape, one, kind, bytes));
    }
    let places = found
        .iter()
        .map(|(name, _, _, one, _, bytes)| (*one, name.as_str(), bytes.clone()));
    refuse_overlaps(places.collect())?;
    let (mut matrices, mut vectors) = (BTreeMap::new(), BTreeMap::new());
    for (name, own, shape, one, kind, bytes) in found {
        if let [out, input] = shape[..] {
            let matrix = matrix(one, bytes, kind, (out, input))?;
            matrices.insert(own.clone(), matrix);
        } else {
            let Storage::Plain(dtype) = kind.storage else {
                let reason = format!(
                    "is {}; norms and biases are read in F32, F16 and BF16",
                    kind.name
                );
                return Err(fault(one, name, &reason));
            };
            let values = floats(dtype, &one.map[bytes]).unwrap_or_default();
            vectors.insert(own.clone(), Param::frozen(tensor(values, shape.clone())?));
        }
    }
    Ok(Weights::new(matrices, vectors))
}

/// Tensors that share bytes would make a small file ask for any amount of memory, where they are copied.
fn refuse_overlaps(mut places: Vec<(&Stored<'_>, &str, Range<usize>)>) -> Result<()> {
    places.sort_unstable_by_key(|(one, _, bytes)| (one.path, bytes.start, bytes.end));
    for pair in places.windows(2) {
        let ((first, name, bytes), (one, other, next)) = (&pair[0], &pair[1]);
        if first.path == one.path && next.start < bytes.end && !next.is_empty() {
            let reason = format!("begins within tensor {name}");
            return Err(fault(one, other, &reason));
        }
    }
    Ok(())
}

fn fault(one: &Stored<'_>, name: &str, reason: &str) -> TuneError {
    TuneError::Weights {
        path: one.path.to_owned(),
        reason: format!("tensor {name} {reason}"),
    }
}

/// Where a tensor of a type lies, all of it within the file.
fn place(one: &Stored<'_>, kind: GgmlType) -> Result<Range<usize>, String> {
    let width = one.tensor.shape.last().copied().unwrap_or(0);
    let (block, bytes) = kind.block();
    if !width.is_multiple_of(block) {
        return Err(format!(
            "is {}, whose blocks of {block} do not divide its rows of {width}",
            kind.name
        ));
    }
    if block > 1 && !one.tensor.start.is_multiple_of(2) {
        return Err(format!("begins at the odd byte {}", one.tensor.start));
    }
    // No product of two sizes overflows: each is below 2^31.
    let elements: usize = one.tensor.shape.iter().product();
    let start = one.tensor.start;
    let end = (elements / block)
        .checked_mul(bytes)
        .and_then(|length| start.checked_add(length));
    match end {
        Some(end) if end <= one.map.len() => Ok(start..end),
        _ => Err(format!(
            "reaches past the end of the file, which has {} bytes; it was cut short",
            one.map.len()
        )),
    }
}

fn matrix(
    one: &Stored<'_>,
    bytes: Range<usize>,
    kind: GgmlType,
    dims: (usize, usize),
) -> Result<Matrix> {
    match kind.storage {
        Storage::Plain(dtype) => plain(one, bytes, dtype, dims),
        Storage::Packed(packed) => {
            let quantised = Quantised::new(Arc::clone(one.map), bytes, packed, dims)?;
            Ok(Matrix::Quantised(quantised))
        }
    }
}

/// A matrix of floats where it lies, or a copy where it does not lie as this machine needs it.
fn plain(
    one: &Stored<'_>,
    bytes: Range<usize>,
    dtype: Dtype,
    dims: (usize, usize),
) -> Result<Matrix> {
    let mapped = Mapped {
        file: Arc::clone(one.map),
        bytes: bytes.clone(),
        dtype,
        dims,
        laid_out: LaidOut::default(),
    };
    if mapped.is_usable() {
        return Ok(Matrix::Mapped(mapped));
    }
    let values = floats(dtype, &one.map[bytes]).unwrap_or_default();
    Ok(Matrix::Param(Param::frozen(tensor(values, dims)?)))
}
