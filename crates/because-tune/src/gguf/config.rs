use crate::config::QwenConfig;
use crate::error::Result;
use crate::gguf::file::GgufFile;

/// The one architecture that can be run.
const ARCHITECTURE: &str = "qwen2";

/// The shape of the model in a GGUF file, from the keys `qwen2.*`.
pub(super) fn config(file: &GgufFile) -> Result<QwenConfig> {
    const NAME: &str = "general.architecture";
    match file.text(NAME)? {
        Some(ARCHITECTURE) => {}
        Some(other) => {
            let reason = format!("{other:?} is not supported, only {ARCHITECTURE:?}");
            return Err(file.field_fault(NAME, reason));
        }
        None => return Err(file.field_fault(NAME, "missing")),
    }
    let keys = Keys { file };
    keys.refuse_what_is_not_implemented()?;
    let heads = keys.size("attention.head_count")?;
    let tokens = "tokenizer.ggml.tokens";
    let vocab_size = match file.count(tokens)? {
        None => {
            let reason = "missing; a GGUF file has its tokenizer in it";
            return Err(file.field_fault(tokens, reason));
        }
        Some(count @ 1..=0x7fff_ffff) => count,
        Some(count) => {
            let reason = format!("{count} tokens are none or too many");
            return Err(file.field_fault(tokens, reason));
        }
    };
    let config = QwenConfig {
        vocab_size,
        hidden_size: keys.size("embedding_length")?,
        intermediate_size: keys.size("feed_forward_length")?,
        num_hidden_layers: keys.size("block_count")?,
        num_attention_heads: heads,
        num_key_value_heads: match file.size(&own("attention.head_count_kv"))? {
            None => heads,
            Some(_) => keys.size("attention.head_count_kv")?,
        },
        max_position_embeddings: keys.size("context_length")?,
        rms_norm_eps: keys.number("attention.layer_norm_rms_epsilon", None)?,
        rope_theta: keys.number("rope.freq_base", Some(1e4))?,
        tie_word_embeddings: !file.has_tensor("output.weight"),
        eos_token_ids: stops(file, vocab_size)?,
    };
    config
        .check()
        .map_err(|(field, reason)| file.field_fault(&key_of(field), reason))?;
    // A layer has twelve tensors: no file makes us list more than it has.
    let layers = config.num_hidden_layers;
    if layers > file.tensors().count() {
        let reason = format!("{layers} layers are more than the file's tensors");
        return Err(file.field_fault(&own("block_count"), reason));
    }
    let head_dim = config.head_dim();
    for key in [
        "attention.key_length",
        "attention.value_length",
        "rope.dimension_count",
    ] {
        if let Some(said) = file.size(&own(key))?
            && said != head_dim
        {
            let reason =
                format!("{said} is not embedding_length / attention.head_count, {head_dim}");
            return Err(file.field_fault(&own(key), reason));
        }
    }
    Ok(config)
}

/// Tokens that end a text or a turn.
fn stops(file: &GgufFile, vocab_size: usize) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for key in ["eos", "eot"].map(|name| format!("tokenizer.ggml.{name}_token_id")) {
        match file.size(&key)? {
            None => {}
            Some(id) if id < vocab_size => ids.push(id as u32),
            Some(id) => {
                let reason = format!("{id} is not below the {vocab_size} tokens");
                return Err(file.field_fault(&key, reason));
            }
        }
    }
    Ok(ids)
}

fn own(key: &str) -> String {
    format!("{ARCHITECTURE}.{key}")
}

/// Where a field of the configuration stands in the file.
fn key_of(field: &str) -> String {
    match field {
        "num_attention_heads" => own("attention.head_count"),
        "num_key_value_heads" => own("attention.head_count_kv"),
        other => other.into(),
    }
}

/// The keys of the architecture.
struct Keys<'a> {
    file: &'a GgufFile,
}

impl Keys<'_> {
    /// A size that must be there and cannot be nothing.
    fn size(&self, key: &str) -> Result<usize> {
        let key = own(key);
        match self.file.size(&key)? {
            None => Err(self.file.field_fault(&key, "missing")),
            Some(0) => Err(self.file.field_fault(&key, "is 0")),
            Some(size) => Ok(size),
        }
    }

    fn number(&self, key: &str, default: Option<f64>) -> Result<f64> {
        let key = own(key);
        match self.file.number(&key)?.or(default) {
            None => Err(self.file.field_fault(&key, "missing")),
            // Configurations have it in decimal; the nearest 32-bit number to 1e-6 is not 1e-6.
            Some(number) if number > 0.0 && number.is_finite() => Ok(shortest(number)),
            Some(number) => {
                let reason = format!("{number} is not a positive number");
                Err(self.file.field_fault(&key, reason))
            }
        }
    }

    fn refuse_what_is_not_implemented(&self) -> Result<()> {
        let scaling = own("rope.scaling.type");
        if let Some(kind) = self.file.text(&scaling)?
            && kind != "none"
        {
            let reason = format!("{kind:?}: scaled rotary embeddings are not supported");
            return Err(self.file.field_fault(&scaling, reason));
        }
        for key in ["rope.scale_linear", "rope.scaling.factor"].map(own) {
            if let Some(factor) = self.file.number(&key)?
                && factor != 0.0
                && factor != 1.0
            {
                let reason = "scaled rotary embeddings are not supported";
                return Err(self.file.field_fault(&key, reason));
            }
        }
        let causal = own("attention.causal");
        match self.file.flag(&causal)? {
            Some(false) => Err(self
                .file
                .field_fault(&causal, "a model that sees what follows writes no text")),
            _ => Ok(()),
        }
    }
}

/// The number that a decimal fraction was before it was rounded to 32 bits.
fn shortest(number: f64) -> f64 {
    let narrow = number as f32;
    match f64::from(narrow) == number {
        true => narrow.to_string().parse().unwrap_or(number),
        false => number,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fraction_is_what_it_was_before_it_was_rounded() {
        assert_eq!(shortest(f64::from(1e-6_f32)), 1e-6);
        assert_eq!(shortest(f64::from(1e6_f32)), 1e6);
        assert_eq!(shortest(1e-6), 1e-6);
    }
}
