use std::sync::Arc;

use candle_core::{Device, Tensor};

use crate::config::QwenConfig;
use crate::error::Result;
use crate::ops::{
    self, AttentionShape, LayerCache, Rope, Segment, add_bias, frozen_linear, linear, lora_linear,
    rms_norm, swiglu,
};
use crate::weights::Weights;

/// The seven projections of a layer, in the order of the file, with the block each belongs to.
pub(crate) const PROJECTIONS: [(&str, &str); 7] = [
    ("self_attn", "q_proj"),
    ("self_attn", "k_proj"),
    ("self_attn", "v_proj"),
    ("self_attn", "o_proj"),
    ("mlp", "gate_proj"),
    ("mlp", "up_proj"),
    ("mlp", "down_proj"),
];

/// Qwen2.5 in f32. Whether a weight learns is a matter of the tensor it was given: one that belongs to a `Var` does.
pub(crate) struct Qwen {
    pub(crate) config: QwenConfig,
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    /// `[v, d]`; the embedding itself where the two are tied.
    head: Tensor,
    rope: Rope,
}

struct Layer {
    input_norm: Tensor,
    inner_norm: Tensor,
    projections: [Projection; 7],
}

/// `y = x W^T + bias (+ scale (x A^T) B^T)`.
struct Projection {
    weight: Tensor,
    bias: Option<Tensor>,
    lora: Option<(Tensor, Tensor, f32)>,
}

impl Projection {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let bias = self.bias.as_ref();
        match (&self.lora, bias) {
            (Some((a, b, scale)), _) => lora_linear(x, (a, b, *scale), &self.weight, bias),
            (None, _) if !self.weight.track_op() => frozen_linear(x, &self.weight, bias),
            (None, Some(bias)) => add_bias(&linear(x, &self.weight)?, bias),
            (None, None) => linear(x, &self.weight),
        }
    }
}

/// Sequences laid one after the other, without padding: a token never costs more than itself.
#[derive(Debug, Clone)]
pub(crate) struct Tokens {
    pub(crate) ids: Vec<u32>,
    pub(crate) segments: Arc<[Segment]>,
}

impl Tokens {
    pub(crate) fn new<'a>(sequences: impl IntoIterator<Item = &'a [u32]>) -> Self {
        Self::after(sequences.into_iter().map(|ids| (ids, 0)))
    }

    /// Sequences that continue ones of which so many tokens are cached.
    pub(crate) fn after<'a>(sequences: impl IntoIterator<Item = (&'a [u32], usize)>) -> Self {
        let mut ids = Vec::new();
        let segments = sequences
            .into_iter()
            .map(|(sequence, past)| {
                let start = ids.len();
                ids.extend_from_slice(sequence);
                Segment {
                    start,
                    len: sequence.len(),
                    past,
                }
            })
            .collect();
        Self { ids, segments }
    }

    fn reach(&self) -> usize {
        self.segments
            .iter()
            .map(|segment| segment.past + segment.len)
            .max()
            .unwrap_or(0)
    }
}

/// What generation remembers of a batch of sequences: keys and values of every layer.
#[derive(Debug)]
pub(crate) struct Cache {
    layers: Vec<LayerCache>,
    shape: AttentionShape,
}

impl Cache {
    pub(crate) fn new(sequences: usize, config: &QwenConfig) -> Self {
        let shape = attention_shape(config);
        let layers = (0..config.num_hidden_layers)
            .map(|_| LayerCache::new(sequences, shape))
            .collect();
        Self { layers, shape }
    }

    /// Forgets the sequences for which `keep` is false.
    pub(crate) fn retain(&mut self, keep: &[bool]) {
        self.layers
            .iter_mut()
            .for_each(|layer| layer.retain(keep, self.shape));
    }
}

fn attention_shape(config: &QwenConfig) -> AttentionShape {
    AttentionShape {
        heads: config.num_attention_heads,
        kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim(),
    }
}

impl std::fmt::Debug for Qwen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Qwen")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Qwen {
    /// Puts the model together from checked weights.
    pub(crate) fn new(config: QwenConfig, mut weights: Weights) -> Self {
        let embedding = weights.take("model.embed_tokens.weight");
        let layers = (0..config.num_hidden_layers)
            .map(|layer| {
                let mut take = |name: &str| weights.take(&format!("model.layers.{layer}.{name}"));
                Layer {
                    input_norm: take("input_layernorm.weight"),
                    inner_norm: take("post_attention_layernorm.weight"),
                    projections: PROJECTIONS.map(|(block, name)| Projection {
                        weight: take(&format!("{block}.{name}.weight")),
                        bias: matches!(name, "q_proj" | "k_proj" | "v_proj")
                            .then(|| take(&format!("{block}.{name}.bias"))),
                        lora: None,
                    }),
                }
            })
            .collect();
        let norm = weights.take("model.norm.weight");
        let head = match config.tie_word_embeddings {
            true => embedding.clone(),
            false => weights.take("lm_head.weight"),
        };
        let rope = Rope::new(config.rope_theta, config.head_dim());
        Self {
            config,
            embedding,
            layers,
            norm,
            head,
            rope,
        }
    }

    /// Lays a low-rank pair over a projection, by the projection's index in [`PROJECTIONS`].
    pub(crate) fn adapt(
        &mut self,
        layer: usize,
        projection: usize,
        a: Tensor,
        b: Tensor,
        scale: f32,
    ) {
        self.layers[layer].projections[projection].lora = Some((a, b, scale));
    }

    /// A number that differs where the weights do: of every adapter all values, of every other tensor a sample.
    pub(crate) fn fingerprint(&self) -> Result<u64> {
        const SAMPLE: usize = 4096;
        let projections = || self.layers.iter().flat_map(|layer| &layer.projections);
        let weights = [&self.embedding, &self.norm, &self.head].into_iter();
        let weights = weights.chain(projections().map(|projection| &projection.weight));
        let adapters = projections().filter_map(|projection| projection.lora.as_ref());
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut eat =
            |value: f32| hash = (hash ^ u64::from(value.to_bits())).wrapping_mul(0x0100_0000_01b3);
        for weight in weights {
            ops::with_slice(weight, |values| {
                values
                    .iter()
                    .step_by(values.len().div_ceil(SAMPLE))
                    .for_each(|&value| eat(value));
                Ok(())
            })?;
        }
        for (a, b, scale) in adapters {
            eat(*scale);
            for tensor in [a, b] {
                ops::with_slice(tensor, |values| {
                    values.iter().for_each(|&value| eat(value));
                    Ok(())
                })?;
            }
        }
        Ok(hash)
    }

    /// The final hidden states, `[n, d]`.
    pub(crate) fn hidden(&self, tokens: &Tokens) -> Result<Tensor> {
        self.run(tokens, None)
    }

    /// The final hidden states of tokens that continue what the cache holds.
    pub(crate) fn hidden_cached(&self, tokens: &Tokens, cache: &mut Cache) -> Result<Tensor> {
        self.run(tokens, Some(cache))
    }

    /// Summed cross-entropy of the rows' next tokens over `denominator`: `targets` are pairs of a row of `tokens` and the
    /// token that should follow it. Only these rows meet the output projection.
    pub(crate) fn loss(
        &self,
        tokens: &Tokens,
        targets: &[(u32, u32)],
        denominator: f64,
    ) -> Result<Tensor> {
        let (rows, classes): (Vec<u32>, Vec<u32>) = targets.iter().copied().unzip();
        let hidden = self.hidden(tokens)?;
        let rows = Tensor::from_vec(rows, targets.len(), &Device::Cpu)?;
        let hidden = hidden.index_select(&rows, 0)?;
        Ok(ops::cross_entropy(
            &hidden,
            &self.head,
            classes,
            denominator,
        )?)
    }

    /// Logits `[n, v]` of the given rows of hidden states.
    pub(crate) fn logits(&self, hidden: &Tensor, rows: &[u32]) -> Result<Tensor> {
        let rows = Tensor::new(rows, &Device::Cpu)?;
        Ok(frozen_linear(
            &hidden.index_select(&rows, 0)?,
            &self.head,
            None,
        )?)
    }

    fn run(&self, tokens: &Tokens, mut cache: Option<&mut Cache>) -> Result<Tensor> {
        let shape = attention_shape(&self.config);
        let rope = self.rope.table(tokens.reach());
        let ids = Tensor::new(tokens.ids.as_slice(), &Device::Cpu)?;
        let mut x = self.embedding.index_select(&ids, 0)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let [q, k, v, o, gate, up, down] = &layer.projections;
            let normed = self.normed(&x, &layer.input_norm)?;
            let (q, k, v) = (
                q.forward(&normed)?,
                k.forward(&normed)?,
                v.forward(&normed)?,
            );
            let mixed = match &mut cache {
                None => ops::attention((&q, &k, &v), shape, &tokens.segments, &rope)?,
                Some(cache) => {
                    let cache = &mut cache.layers[index];
                    ops::cached_attention((&q, &k, &v), shape, &tokens.segments, &rope, cache)?
                }
            };
            x = (x + o.forward(&mixed)?)?;
            let normed = self.normed(&x, &layer.inner_norm)?;
            let inner = swiglu(&gate.forward(&normed)?, &up.forward(&normed)?)?;
            x = (x + down.forward(&inner)?)?;
        }
        self.normed(&x, &self.norm)
    }

    fn normed(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        Ok(rms_norm(x, weight, self.config.rms_norm_eps)?)
    }
}
