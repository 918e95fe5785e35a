use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorView};
use serde_json::{Map, Value, json};

use crate::config::QwenConfig;
use crate::error::{Result, TuneError};
use crate::merge::stage::Output;
use crate::merge::weight_type::WeightType;
use crate::weights::{files, to_f32};

pub(super) const INDEX: &str = "model.safetensors.index.json";
pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";
/// What the safetensors library allows a header to have.
const LONGEST_HEADER: u64 = 100_000_000;
/// Bytes copied at a time.
const BUFFER: u64 = 1 << 20;

/// A safetensors file, of which only the header is in memory. It is read and not mapped, so that a file larger than the
/// memory does not fill it.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) path: PathBuf,
    file: File,
    /// The file's own first bytes, with the length before them.
    header: Vec<u8>,
    /// In the order of their bytes.
    pub(super) tensors: Vec<Stored>,
}

/// Where a tensor lies in its file.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    dtype: Dtype,
    start: u64,
    len: u64,
}

impl Stored {
    /// The type it has; of those this crate computes with.
    pub(super) fn weight_type(&self) -> Option<WeightType> {
        match self.dtype {
            Dtype::F32 => Some(WeightType::F32),
            Dtype::F16 => Some(WeightType::F16),
            Dtype::BF16 => Some(WeightType::Bf16),
            _ => None,
        }
    }

    /// Whether it is of the model, and not a table that old programs stored beside it.
    pub(super) fn is_weight(&self) -> bool {
        self.weight_type().is_some() && !self.name.ends_with("inv_freq")
    }

    pub(super) fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Opens the weight files of a base and checks that together they hold what its configuration asks for, once.
pub(super) fn open_shards(folder: &Path, config: &QwenConfig) -> Result<Vec<Shard>> {
    let shards = files(folder)?
        .into_iter()
        .map(Shard::open)
        .collect::<Result<Vec<_>>>()?;
    check(&shards, config).map_err(|reason| TuneError::Weights {
        path: folder.to_owned(),
        reason,
    })?;
    Ok(shards)
}

fn check(shards: &[Shard], config: &QwenConfig) -> Result<(), String> {
    let mut present = BTreeMap::new();
    for tensor in shards.iter().flat_map(|shard| &shard.tensors) {
        if present.insert(tensor.name.as_str(), tensor).is_some() {
            return Err(format!("tensor {} is in two shards", tensor.name));
        }
    }
    let wanted = config.tensors();
    for (name, shape) in &wanted {
        let tensor = present
            .get(name.as_str())
            .ok_or_else(|| format!("tensor {name} is missing, config.json asks for {shape:?}"))?;
        if tensor.shape != *shape {
            let has = &tensor.shape;
            return Err(format!(
                "tensor {name} has shape {has:?}, config.json asks for {shape:?}"
            ));
        }
        if tensor.weight_type().is_none() {
            let has = tensor.dtype;
            return Err(format!(
                "tensor {name} is {has:?}; only F32, F16 and BF16 are read"
            ));
        }
    }
    let names: BTreeSet<&str> = wanted.iter().map(|(name, _)| name.as_str()).collect();
    let harmless = |name: &str| {
        name.ends_with("rotary_emb.inv_freq")
            || (config.tie_word_embeddings && name == "lm_head.weight")
    };
    match present
        .keys()
        .find(|name| !names.contains(*name) && !harmless(name))
    {
        Some(name) => Err(format!(
            "tensor {name} is not part of the model config.json describes"
        )),
        None => Ok(()),
    }
}

impl Shard {
    fn open(path: PathBuf) -> Result<Self> {
        let fault = |reason: String| TuneError::Weights {
            path: path.clone(),
            reason,
        };
        let fail = |error| TuneError::io("read", &path, error);
        let mut file = File::open(&path).map_err(|error| TuneError::io("open", &path, error))?;
        let size = file.metadata().map_err(fail)?.len();
        let short = || fault("is cut short or no safetensors file".into());
        let mut header = vec![0; 8];
        file.read_exact(&mut header).map_err(|_| short())?;
        let length = header
            .as_chunks::<8>()
            .0
            .iter()
            .map(|&bytes| u64::from_le_bytes(bytes))
            .sum::<u64>();
        if length > LONGEST_HEADER || length > size {
            return Err(short());
        }
        header.resize(8 + length as usize, 0);
        file.read_exact(&mut header[8..]).map_err(fail)?;
        let metadata: Metadata =
            serde_json::from_slice(&header[8..]).map_err(|error| fault(error.to_string()))?;
        let begin = header.len() as u64;
        if begin + metadata.data_len() as u64 != size {
            return Err(short());
        }
        let tensors = metadata
            .offset_keys()
            .into_iter()
            .filter_map(|name| metadata.info(&name).map(|info| (name, info)))
            .map(|(name, info)| Stored {
                name,
                shape: info.shape.clone(),
                dtype: info.dtype,
                start: begin + info.data_offsets.0 as u64,
                len: (info.data_offsets.1 - info.data_offsets.0) as u64,
            })
            .collect();
        Ok(Self {
            path,
            file,
            header,
            tensors,
        })
    }

    pub(super) fn file_name(&self) -> &std::ffi::OsStr {
        self.path.file_name().unwrap_or_default()
    }

    /// The header with the length before it: the file's own, unless a tensor gets another type.
    pub(super) fn header(&self, types: &[Option<WeightType>]) -> Vec<u8> {
        let keeps = |(tensor, one): (&Stored, &Option<WeightType>)| {
            one.is_none() || *one == tensor.weight_type()
        };
        if self.tensors.iter().zip(types).all(keeps) {
            return self.header.clone();
        }
        let own: Map<String, Value> = serde_json::from_slice(&self.header[8..])
            .expect("the header was read as JSON when the file was opened");
        let mut fields = Map::new();
        fields.extend(
            own.get_key_value("__metadata__")
                .map(|(k, v)| (k.clone(), v.clone())),
        );
        let mut end = 0;
        for (tensor, one) in self.tensors.iter().zip(types) {
            let dtype = one.and_then(WeightType::dtype).map(Value::from);
            let start = end;
            end += one.map_or(tensor.len, |one| one.bytes(tensor.elements()));
            let mut field = own[&tensor.name].clone();
            field["dtype"] = dtype.unwrap_or_else(|| field["dtype"].clone());
            field["data_offsets"] = json!([start, end]);
            fields.insert(tensor.name.clone(), field);
        }
        let mut text = Value::Object(fields).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        [&(text.len() as u64).to_le_bytes()[..], &text].concat()
    }

    /// Copies the bytes of a tensor.
    pub(super) fn copy(&self, tensor: &Stored, out: &mut Output) -> Result<()> {
        let mut bytes = Vec::new();
        for start in (0..tensor.len).step_by(BUFFER as usize) {
            let end = tensor.len.min(start + BUFFER);
            self.read(tensor.start + start..tensor.start + end, &mut bytes)?;
            out.put(&bytes)?;
        }
        Ok(())
    }

    /// Some of a tensor's numbers, by their places, as f32.
    pub(super) fn values(&self, tensor: &Stored, range: Range<usize>) -> Result<Vec<f32>> {
        let fault = |reason: String| TuneError::Weights {
            path: self.path.clone(),
            reason: format!("tensor {}: {reason}", tensor.name),
        };
        let size = (tensor.dtype.bitsize() / 8) as u64;
        let (start, end) = (range.start as u64 * size, range.end as u64 * size);
        let mut bytes = Vec::new();
        self.read(tensor.start + start..tensor.start + end, &mut bytes)?;
        let view = TensorView::new(tensor.dtype, vec![range.len()], &bytes)
            .map_err(|error| fault(error.to_string()))?;
        to_f32(&view).ok_or_else(|| fault(format!("is {:?}", tensor.dtype)))
    }

    fn read(&self, range: Range<u64>, bytes: &mut Vec<u8>) -> Result<()> {
        bytes.resize((range.end - range.start) as usize, 0);
        let mut file = &self.file;
        file.seek(SeekFrom::Start(range.start))
            .and_then(|_| file.read_exact(bytes))
            .map_err(|error| TuneError::io("read", &self.path, error))
    }
}
