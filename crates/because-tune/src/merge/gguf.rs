use std::path::Path;

use crate::base::BaseFolder;
use crate::config::QwenConfig;
use crate::error::Result;
use crate::gguf::gguf_name;
use crate::merge::vocabulary::GgufVocabulary;
use crate::merge::weight_type::WeightType;

/// Where tensors begin: at multiples of this many bytes.
pub(super) const ALIGNMENT: u64 = 32;

/// What stands before the numbers in a GGUF file: how the model is made, its tokenizer, and where each tensor lies.
/// The numbers themselves are written by the caller, in the order of `tensors`, each filled up to the alignment.
pub(super) struct Gguf {
    metadata: Vec<(String, Value)>,
    pub(super) tensors: Vec<GgufTensor>,
}

/// A tensor by its names in both worlds.
pub(super) struct GgufTensor {
    /// In the base.
    pub(super) source: String,
    name: String,
    shape: Vec<usize>,
    pub(super) weight_type: WeightType,
}

/// The kinds of metadata that are needed here.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
}

impl Gguf {
    pub(super) fn plan(
        base: &BaseFolder,
        adapter: Option<&Path>,
        weight_type: WeightType,
    ) -> Result<Self> {
        let vocabulary = GgufVocabulary::read(&base.path, base.config.vocab_size)?;
        let own_name = adapter.and_then(|path| path.canonicalize().ok());
        let own_name = own_name.as_deref().and_then(Path::file_name);
        let name = match own_name {
            Some(own) => format!("{}+{}", base.name(), own.to_string_lossy()),
            None => base.name(),
        };
        let mut metadata = described(&base.config, name, weight_type);
        metadata.extend(vocabulary.metadata());
        let tensors = base.config.tensors().into_iter().map(|(source, shape)| {
            let weight_type = match shape[..] {
                [_, width] if weight_type.fits(width) => weight_type,
                [_, _] => WeightType::F16,
                _ => WeightType::F32,
            };
            GgufTensor {
                name: gguf_name(&source),
                source,
                shape,
                weight_type,
            }
        });
        Ok(Self {
            metadata,
            tensors: tensors.collect(),
        })
    }

    /// Everything before the numbers, filled up to the alignment.
    pub(super) fn header(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            put_text(key, &mut out);
            value.put(&mut out);
        }
        let mut offset = 0u64;
        for tensor in &self.tensors {
            put_text(&tensor.name, &mut out);
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            // The innermost dimension comes first.
            for &size in tensor.shape.iter().rev() {
                out.extend((size as u64).to_le_bytes());
            }
            out.extend(number(tensor.weight_type).to_le_bytes());
            out.extend(offset.to_le_bytes());
            let elements = tensor.shape.iter().product();
            offset += tensor
                .weight_type
                .bytes(elements)
                .next_multiple_of(ALIGNMENT);
        }
        out.resize(out.len().next_multiple_of(ALIGNMENT as usize), 0);
        out
    }
}

/// The number of a type of tensor.
fn number(weight_type: WeightType) -> u32 {
    match weight_type {
        WeightType::F32 => 0,
        WeightType::F16 => 1,
        WeightType::Q8_0 => 8,
        WeightType::Bf16 => 30,
    }
}

/// The number of a file whose matrices are mostly of this type.
fn file_type(weight_type: WeightType) -> u32 {
    match weight_type {
        WeightType::F32 => 0,
        WeightType::F16 => 1,
        WeightType::Q8_0 => 7,
        WeightType::Bf16 => 32,
    }
}

fn described(config: &QwenConfig, name: String, weight_type: WeightType) -> Vec<(String, Value)> {
    let size = |size: usize| Value::U32(size as u32);
    let own = [
        ("context_length", size(config.max_position_embeddings)),
        ("embedding_length", size(config.hidden_size)),
        ("block_count", size(config.num_hidden_layers)),
        ("feed_forward_length", size(config.intermediate_size)),
        ("attention.head_count", size(config.num_attention_heads)),
        ("attention.head_count_kv", size(config.num_key_value_heads)),
        (
            "attention.layer_norm_rms_epsilon",
            Value::F32(config.rms_norm_eps as f32),
        ),
        ("rope.freq_base", Value::F32(config.rope_theta as f32)),
    ];
    let general = [
        ("architecture", Value::Text("qwen2".into())),
        ("type", Value::Text("model".into())),
        ("name", Value::Text(name)),
        ("file_type", Value::U32(file_type(weight_type))),
        ("quantization_version", Value::U32(2)),
    ];
    let prefixed = |prefix: &'static str| {
        move |(key, value): (&str, Value)| (format!("{prefix}.{key}"), value)
    };
    general
        .into_iter()
        .map(prefixed("general"))
        .chain(own.into_iter().map(prefixed("qwen2")))
        .collect()
}

impl Value {
    fn put(&self, out: &mut Vec<u8>) {
        let kind = |out: &mut Vec<u8>, kind: u32| out.extend(kind.to_le_bytes());
        let array = |out: &mut Vec<u8>, of: u32, length: usize| {
            kind(out, 9);
            kind(out, of);
            out.extend((length as u64).to_le_bytes());
        };
        match self {
            Self::U32(value) => {
                kind(out, 4);
                out.extend(value.to_le_bytes());
            }
            Self::F32(value) => {
                kind(out, 6);
                out.extend(value.to_le_bytes());
            }
            Self::Bool(value) => {
                kind(out, 7);
                out.push(u8::from(*value));
            }
            Self::Text(text) => {
                kind(out, 8);
                put_text(text, out);
            }
            Self::Texts(texts) => {
                array(out, 8, texts.len());
                texts.iter().for_each(|text| put_text(text, out));
            }
            Self::I32s(values) => {
                array(out, 5, values.len());
                out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
        }
    }
}

fn put_text(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}
