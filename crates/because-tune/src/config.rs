use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Result, TuneError};

/// The shape of a Qwen2.5 model, as its `config.json` gives it.
///
/// Both spellings are read: the one of the published checkpoints (`rope_theta`, `torch_dtype`) and the one
/// transformers 5 writes (`rope_parameters`, `dtype`, a null `sliding_window`). It is written in the first.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct QwenConfig {
    /// Rows of the embedding, `v`; the tokenizer may have fewer entries.
    pub vocab_size: usize,
    /// Width of a token's vector, `d`.
    pub hidden_size: usize,
    /// Width inside the feed-forward block.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; each serves `num_attention_heads / num_key_value_heads` query heads.
    pub num_key_value_heads: usize,
    /// The longest sequence.
    pub max_position_embeddings: usize,
    /// Added to the mean square before its root is taken.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Whether the embedding is also the output projection.
    pub tie_word_embeddings: bool,
    /// Tokens that end an answer.
    #[serde(rename = "eos_token_id")]
    pub eos_token_ids: Vec<u32>,
}

impl QwenConfig {
    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// When the file cannot be read, is not the configuration of a Qwen2 model, contradicts itself, or asks for
    /// something not implemented (rope scaling, a sliding window, another activation); the error names the field.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).map_err(|error| TuneError::io("read", path, error))?;
        Self::parse(&text, path)
    }

    pub(crate) fn parse(text: &str, path: &Path) -> Result<Self> {
        let fields = serde_json::from_str::<Value>(text)
            .map_err(|error| error.to_string())
            .and_then(|value| match value {
                Value::Object(fields) => Ok(fields),
                _ => Err("not a JSON object".to_owned()),
            })
            .map_err(|reason| TuneError::Base {
                path: path.to_owned(),
                reason,
            })?;
        Fields {
            path: path.to_owned(),
            fields,
        }
        .config()
    }

    /// Width of one head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// Whether its numbers go together; else the field at fault, and why.
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        let (d, heads) = (self.hidden_size, self.num_attention_heads);
        if !d.is_multiple_of(heads) || !(d / heads).is_multiple_of(2) {
            let reason = format!("{heads} heads do not divide hidden_size {d} into even parts");
            return Err(("num_attention_heads", reason));
        }
        let kv_heads = self.num_key_value_heads;
        if !heads.is_multiple_of(kv_heads) {
            let reason = format!("{kv_heads} does not divide num_attention_heads {heads}");
            return Err(("num_key_value_heads", reason));
        }
        let mut stops = self.eos_token_ids.iter();
        match stops.find(|&&id| id as usize >= self.vocab_size) {
            Some(id) => {
                let reason = format!("{id} is not below vocab_size {}", self.vocab_size);
                Err(("eos_token_id", reason))
            }
            None => Ok(()),
        }
    }

    /// Every tensor the model has, with its shape, in the order of the layers.
    #[must_use]
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (d, inner) = (self.hidden_size, self.intermediate_size);
        let kv = self.num_key_value_heads * self.head_dim();
        let mut all = vec![(
            "model.embed_tokens.weight".to_owned(),
            vec![self.vocab_size, d],
        )];
        for layer in 0..self.num_hidden_layers {
            let shapes = [
                ("input_layernorm.weight", vec![d]),
                ("self_attn.q_proj.weight", vec![d, d]),
                ("self_attn.q_proj.bias", vec![d]),
                ("self_attn.k_proj.weight", vec![kv, d]),
                ("self_attn.k_proj.bias", vec![kv]),
                ("self_attn.v_proj.weight", vec![kv, d]),
                ("self_attn.v_proj.bias", vec![kv]),
                ("self_attn.o_proj.weight", vec![d, d]),
                ("post_attention_layernorm.weight", vec![d]),
                ("mlp.gate_proj.weight", vec![inner, d]),
                ("mlp.up_proj.weight", vec![inner, d]),
                ("mlp.down_proj.weight", vec![d, inner]),
            ];
            all.extend(shapes.map(|(name, shape)| (format!("model.layers.{layer}.{name}"), shape)));
        }
        all.push(("model.norm.weight".to_owned(), vec![d]));
        if !self.tie_word_embeddings {
            all.push(("lm_head.weight".to_owned(), vec![self.vocab_size, d]));
        }
        all
    }
}

/// One number or a list of them.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

/// Token ids of a field that may be absent, null, a number or a list.
pub(crate) fn token_ids(value: Option<&Value>) -> Option<Vec<u32>> {
    match value {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(value) => match OneOrMany::deserialize(value).ok()? {
            OneOrMany::One(id) => Some(vec![id]),
            OneOrMany::Many(ids) => Some(ids),
        },
    }
}

struct Fields {
    path: PathBuf,
    fields: serde_json::Map<String, Value>,
}

impl Fields {
    fn config(&self) -> Result<QwenConfig> {
        self.refuse_what_is_not_implemented()?;
        let heads = self.size("num_attention_heads")?;
        let config = QwenConfig {
            vocab_size: self.size("vocab_size")?,
            hidden_size: self.size("hidden_size")?,
            intermediate_size: self.size("intermediate_size")?,
            num_hidden_layers: self.size("num_hidden_layers")?,
            num_attention_heads: heads,
            num_key_value_heads: match self.get("num_key_value_heads") {
                None => heads,
                Some(_) => self.size("num_key_value_heads")?,
            },
            max_position_embeddings: self.size("max_position_embeddings")?,
            rms_norm_eps: self.number(self.get("rms_norm_eps"), "rms_norm_eps", 1e-6)?,
            rope_theta: self.rope_theta()?,
            tie_word_embeddings: self.flag("tie_word_embeddings")?,
            eos_token_ids: token_ids(self.get("eos_token_id")).ok_or_else(|| {
                self.fault("eos_token_id", "neither a token id nor a list of them")
            })?,
        };
        self.check(&config)?;
        Ok(config)
    }

    fn check(&self, config: &QwenConfig) -> Result<()> {
        config
            .check()
            .map_err(|(field, reason)| self.fault(field, reason))?;
        if let Some(head_dim) = self.get("head_dim")
            && head_dim.as_u64() != Some(config.head_dim() as u64)
        {
            let reason = format!("{head_dim} is not hidden_size / num_attention_heads");
            return Err(self.fault("head_dim", reason));
        }
        Ok(())
    }

    fn refuse_what_is_not_implemented(&self) -> Result<()> {
        if let Some(kind) = self.get("model_type")
            && kind != "qwen2"
        {
            return Err(self.fault(
                "model_type",
                format!("{kind} is not supported, only \"qwen2\""),
            ));
        }
        if let Some(act) = self.get("hidden_act")
            && act != "silu"
        {
            return Err(self.fault(
                "hidden_act",
                format!("{act} is not supported, only \"silu\""),
            ));
        }
        if self
            .get("rope_scaling")
            .is_some_and(|scaling| !is_plain_rope(scaling))
        {
            return Err(self.fault("rope_scaling", "scaled rotary embeddings are not supported"));
        }
        if self.flag("use_sliding_window")? {
            return Err(self.fault(
                "use_sliding_window",
                "sliding-window attention is not supported",
            ));
        }
        if self.get("quantization_config").is_some() {
            let reason = "quantised weights are not supported; take the full-precision checkpoint";
            return Err(self.fault("quantization_config", reason));
        }
        let other = self
            .get("layer_types")
            .and_then(Value::as_array)
            .and_then(|types| types.iter().find(|kind| *kind != "full_attention"));
        match other {
            Some(kind) => Err(self.fault("layer_types", format!("{kind} is not supported"))),
            None => Ok(()),
        }
    }

    fn rope_theta(&self) -> Result<f64> {
        if let Some(rope) = self.get("rope_parameters") {
            if !is_plain_rope(rope) {
                let reason = "scaled rotary embeddings are not supported";
                return Err(self.fault("rope_parameters", reason));
            }
            if rope.get("rope_theta").is_some() {
                return self.number(rope.get("rope_theta"), "rope_parameters.rope_theta", 1e4);
            }
        }
        self.number(self.get("rope_theta"), "rope_theta", 1e4)
    }

    fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    fn size(&self, field: &'static str) -> Result<usize> {
        let value = self
            .get(field)
            .ok_or_else(|| self.fault(field, "missing"))?;
        // An upper bound keeps products of two sizes far from overflow, whatever the file says.
        match value.as_u64() {
            Some(size @ 1..=0x7fff_ffff) => Ok(size as usize),
            _ => Err(self.fault(field, format!("{value} is not a size"))),
        }
    }

    fn number(&self, value: Option<&Value>, field: &str, default: f64) -> Result<f64> {
        let Some(value) = value else {
            return Ok(default);
        };
        match value.as_f64() {
            Some(number) if number > 0.0 && number.is_finite() => Ok(number),
            _ => Err(self.fault(field, format!("{value} is not a positive number"))),
        }
    }

    fn flag(&self, field: &'static str) -> Result<bool> {
        match self.get(field) {
            None => Ok(false),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| self.fault(field, format!("{value} is neither true nor false"))),
        }
    }

    fn fault(&self, field: &str, reason: impl Into<String>) -> TuneError {
        TuneError::ModelConfig {
            path: self.path.clone(),
            field: field.to_owned(),
            reason: reason.into(),
        }
    }
}

fn is_plain_rope(rope: &Value) -> bool {
    ["rope_type", "type"]
        .into_iter()
        .filter_map(|name| rope.get(name))
        .all(|kind| kind.is_null() || kind == "default")
        && rope.get("factor").is_none_or(Value::is_null)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub() -> Value {
        serde_json::json!({
            "model_type": "qwen2", "hidden_act": "silu", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
            "rms_norm_eps": 1e-6, "rope_theta": 1e6, "sliding_window": 128, "use_sliding_window": false,
            "tie_word_embeddings": true, "torch_dtype": "bfloat16", "eos_token_id": 3
        })
    }

    fn parse(value: &Value) -> Result<QwenConfig> {
        QwenConfig::parse(&value.to_string(), Path::new("config.json"))
    }

    #[test]
    fn both_spellings_give_the_same_config() {
        let mut five = hub();
        let fields = five.as_object_mut().unwrap();
        fields.remove("rope_theta");
        fields.remove("torch_dtype");
        fields.insert("dtype".into(), "bfloat16".into());
        fields.insert("sliding_window".into(), Value::Null);
        fields.insert("eos_token_id".into(), serde_json::json!([3]));
        fields.insert(
            "layer_types".into(),
            serde_json::json!(["full_attention", "full_attention"]),
        );
        fields.insert(
            "rope_parameters".into(),
            serde_json::json!({"rope_type": "default", "rope_theta": 1e6}),
        );
        assert_eq!(parse(&five).unwrap(), parse(&hub()).unwrap());
    }

    #[test]
    fn what_cannot_be_run_is_refused_by_name() {
        for (field, value, said) in [
            (
                "num_attention_heads",
                serde_json::json!(5),
                "5 heads do not divide hidden_size 32",
            ),
            (
                "num_key_value_heads",
                serde_json::json!(3),
                "3 does not divide num_attention_heads 4",
            ),
            (
                "rope_scaling",
                serde_json::json!({"type": "yarn", "factor": 4.0}),
                "rope_scaling: scaled",
            ),
            (
                "hidden_act",
                serde_json::json!("gelu"),
                "hidden_act: \"gelu\" is not supported",
            ),
            (
                "model_type",
                serde_json::json!("llama"),
                "model_type: \"llama\"",
            ),
            (
                "use_sliding_window",
                serde_json::json!(true),
                "use_sliding_window: sliding",
            ),
            (
                "hidden_size",
                serde_json::json!(-1),
                "hidden_size: -1 is not a size",
            ),
            ("vocab_size", Value::Null, "vocab_size: missing"),
            (
                "eos_token_id",
                serde_json::json!(64),
                "eos_token_id: 64 is not below vocab_size 64",
            ),
        ] {
            let mut config = hub();
            config[field] = value;
            let error = parse(&config).unwrap_err();
            assert!(error.to_string().contains(said), "{error}");
            assert!(error.is_bad_input());
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let config = parse(&hub()).unwrap();
        assert_eq!(
            parse(&serde_json::to_value(&config).unwrap()).unwrap(),
            config
        );
    }
}
