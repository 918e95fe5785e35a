use candle_core::Tensor;

use crate::config::QwenConfig;
use crate::error::Result;
use crate::memory;
use crate::ops::{
    self, AttentionShape, Dropout, Kept, Matrix, Param, Pool, Projection, Projections, Rope,
    RopeTable, Segment, rms_norm, swiglu, view,
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

/// The same by what they read: those of a group have one input.
pub(crate) const GROUPS: [&[usize]; 4] = [&[0, 1, 2], &[3], &[4, 5], &[6]];

/// Qwen2.5. Whether a weight learns is a matter of the [`Param`] it was given.
pub(crate) struct Qwen {
    pub(crate) config: QwenConfig,
    pub(crate) embedding: Matrix,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Param,
    /// `[v, d]`; the embedding itself where the two are tied.
    pub(crate) head: Matrix,
    pub(crate) pool: Pool,
    pub(crate) rope: Rope,
}

#[derive(Clone)]
pub(crate) struct Layer {
    pub(crate) input_norm: Param,
    pub(crate) inner_norm: Param,
    /// By [`GROUPS`]: q, k and v; o; gate and up; down.
    pub(crate) groups: [Projections; 4],
}

impl Layer {
    /// Whether any of its parameters learns.
    pub(crate) fn learns(&self) -> bool {
        let norms = [&self.input_norm, &self.inner_norm];
        norms.iter().any(|norm| norm.slot.is_some()) || self.groups.iter().any(Projections::learn)
    }
}

/// Sequences laid one after the other, without padding: a token never costs more than itself.
#[derive(Debug, Clone)]
pub(crate) struct Tokens {
    pub(crate) ids: Vec<u32>,
    pub(crate) segments: Vec<Segment>,
    /// Tokens that all sequences begin with and that stand in the batch once, as a segment of their own before the others.
    shared: usize,
}

impl Tokens {
    pub(crate) fn new<'a>(sequences: impl IntoIterator<Item = &'a [u32]>) -> Self {
        Self::after(sequences.into_iter().map(|ids| (ids, 0)))
    }

    /// Sequences before which so many tokens are.
    fn after<'a>(sequences: impl IntoIterator<Item = (&'a [u32], usize)>) -> Self {
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
        Self {
            ids,
            segments,
            shared: 0,
        }
    }

    /// Sequences of which what all begin with is computed once. In a causal model a token sees what is before it and
    /// nothing else, so the first tokens of all of them have the same activations, and their gradients add up.
    pub(crate) fn sharing(sequences: &[&[u32]]) -> Self {
        /// What is saved must be worth another segment.
        const LEAST: usize = 8;
        let Some((first, others)) = sequences.split_first() else {
            return Self::new([]);
        };
        let alike = |other: &[u32]| first.iter().zip(other).take_while(|(a, b)| a == b).count();
        // Each sequence keeps a token of its own.
        let shared = others
            .iter()
            .map(|other| alike(other).min(other.len() - 1))
            .min()
            .map_or(0, |shared| shared.min(first.len() - 1));
        if shared < LEAST {
            return Self::new(sequences.iter().copied());
        }
        let rest = sequences.iter().map(|ids| (&ids[shared..], shared));
        Self {
            shared,
            ..Self::after(std::iter::once((&first[..shared], 0)).chain(rest))
        }
    }

    /// The row of the batch that holds position `at` of a sequence.
    pub(crate) fn row(&self, sequence: usize, at: usize) -> usize {
        match self.shared {
            0 => self.segments[sequence].start + at,
            shared if at < shared => at,
            shared => self.segments[sequence + 1].start + at - shared,
        }
    }

    fn reach(&self) -> usize {
        let ends = self.segments.iter().map(|one| one.past + one.len);
        ends.max().unwrap_or(0)
    }
}

pub(crate) fn attention_shape(config: &QwenConfig) -> AttentionShape {
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

/// What all layers of one pass over a batch have in common.
pub(crate) struct Pass<'a> {
    pub(crate) segments: &'a [Segment],
    pub(crate) rope: std::sync::Arc<RopeTable>,
    pub(crate) dropout: Option<&'a Dropout>,
    /// Rows whose final state is wanted, if not all: past its attention the last layer computes these alone.
    pub(crate) wanted: Option<&'a [u32]>,
}

/// The activations of a layer that its backward starts from. What is cheap to compute again is not among them: the two
/// normed inputs and the product of gate and up.
pub(crate) struct Activations {
    /// q and k turned by their positions.
    pub(crate) qkv: [Tensor; 3],
    /// What attention gave: of the wanted rows where there are such.
    pub(crate) mixed: Tensor,
    /// The residual stream between the two blocks.
    pub(crate) between: Tensor,
    pub(crate) gate_up: [Tensor; 2],
    pub(crate) kept: [Kept; 4],
}

impl Activations {
    pub(crate) fn recycle(self, pool: &Pool) -> Result<()> {
        let tensors = self.qkv.into_iter().chain(self.gate_up);
        for tensor in tensors.chain([self.mixed, self.between]) {
            pool.recycle(tensor)?;
        }
        for kept in self.kept {
            kept.recycle(pool)?;
        }
        Ok(())
    }
}

impl Qwen {
    /// Puts the model together from checked weights.
    pub(crate) fn new(config: QwenConfig, mut weights: Weights) -> Self {
        let embedding = weights.matrix("model.embed_tokens.weight");
        let layers = (0..config.num_hidden_layers)
            .map(|layer| {
                let name = |name: &str| format!("model.layers.{layer}.{name}");
                let mut projection = |index: usize| {
                    let (block, short) = PROJECTIONS[index];
                    let path = name(&format!("{block}.{short}"));
                    Projection {
                        weight: weights.matrix(&format!("{path}.weight")),
                        bias: matches!(short, "q_proj" | "k_proj" | "v_proj")
                            .then(|| weights.vector(&format!("{path}.bias"))),
                        lora: None,
                        site: (layer * PROJECTIONS.len() + index) as u32,
                    }
                };
                let groups = GROUPS.map(|group| Projections {
                    all: group.iter().map(|&index| projection(index)).collect(),
                    a: None,
                });
                Layer {
                    input_norm: weights.vector(&name("input_layernorm.weight")),
                    inner_norm: weights.vector(&name("post_attention_layernorm.weight")),
                    groups,
                }
            })
            .collect();
        let norm = weights.vector("model.norm.weight");
        let head = match config.tie_word_embeddings {
            true => embedding.clone(),
            false => weights.matrix("lm_head.weight"),
        };
        let rope = Rope::new(config.rope_theta, config.head_dim());
        Self {
            config,
            embedding,
            layers,
            norm,
            head,
            pool: Pool::default(),
            rope,
        }
    }

    /// Lays the weights out for generation, if they and `beside` bytes more fit the memory that is free; where the system does
    /// not say how much that is, if they take no more than a small model does. What is not laid out is used where it lies.
    #[allow(unsafe_code, reason = "the weights of a model lie in maps of files")]
    pub(crate) fn lay_out(&self, beside: u64) -> Result<()> {
        const SMALL: u64 = 4 << 30;
        let projections = self.layers.iter().flat_map(|layer| &layer.groups);
        let weights = projections
            .flat_map(|group| &group.all)
            .map(|projection| &projection.weight)
            .chain([&self.head]);
        let mut bytes: u64 = 0;
        for weight in weights.clone() {
            bytes = bytes.saturating_add(weight.laid_out_bytes()?);
        }
        let fits = match memory::available() {
            Some(free) => bytes.saturating_add(beside) <= free,
            None => bytes <= SMALL,
        };
        if !fits {
            tracing::info!(
                bytes,
                beside,
                "weights are used where they lie: memory is short"
            );
            return Ok(());
        }
        for weight in weights {
            if let Err(error) = weight.lay_out() {
                tracing::warn!("weights are used where they lie: {error}");
                return Ok(());
            }
            // SAFETY: what a model opens are files, of which all maps are.
            unsafe { weight.give_back() };
        }
        Ok(())
    }

    /// A number that differs where the weights do: of adapters, norms and biases all values, of every matrix some rows.
    /// `layers` are the model's own or those with an adapter over them.
    pub(crate) fn fingerprint(&self, layers: &[Layer]) -> Result<u64> {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut eat = |values: &[f32]| {
            for value in values {
                hash = (hash ^ u64::from(value.to_bits())).wrapping_mul(0x0100_0000_01b3);
            }
        };
        let mut sample = |matrix: &Matrix| -> Result<()> {
            const ROWS: u32 = 4;
            let rows = matrix.dims()?.0 as u32;
            let some = (0..rows).step_by(rows.div_ceil(ROWS) as usize);
            Ok(matrix.rows(some, |_, row| eat(row))?)
        };
        sample(&self.embedding)?;
        sample(&self.head)?;
        let groups = || layers.iter().flat_map(|layer| &layer.groups);
        for projection in groups().flat_map(|group| &group.all) {
            sample(&projection.weight)?;
        }
        let norms = layers
            .iter()
            .flat_map(|one| [&one.input_norm, &one.inner_norm]);
        let biases = groups()
            .flat_map(|group| &group.all)
            .filter_map(|one| one.bias.as_ref());
        for vector in norms.chain(biases).chain([&self.norm]) {
            eat(&view(&vector.tensor)?);
        }
        for group in groups() {
            if let Some(a) = &group.a {
                eat(&view(&a.tensor)?);
            }
            for lora in group.all.iter().filter_map(|one| one.lora.as_ref()) {
                eat(&[lora.scale]);
                eat(&view(&lora.b.tensor)?);
                if let Some(magnitude) = &lora.magnitude {
                    eat(&view(&magnitude.m.tensor)?);
                }
            }
        }
        Ok(hash)
    }

    /// Logits `[n, v]` of the given rows of hidden states.
    #[cfg(test)]
    pub(crate) fn logits(&self, hidden: &Tensor, rows: &[u32]) -> Result<Tensor> {
        let head = Projections {
            all: vec![Projection {
                weight: self.head.clone(),
                bias: None,
                lora: None,
                site: 0,
            }],
            a: None,
        };
        let some = self.gather(hidden, rows)?;
        let (logits, _) = head.forward(&self.pool, &some, None, None)?;
        self.pool.recycle(some)?;
        Ok(one(logits))
    }

    /// The final hidden states, `[n, d]`.
    #[cfg(test)]
    pub(crate) fn hidden(&self, tokens: &Tokens) -> Result<Tensor> {
        let pass = Pass {
            segments: &tokens.segments,
            rope: self.rope(tokens),
            dropout: None,
            wanted: None,
        };
        let mut x = self.embed(&tokens.ids)?;
        for index in 0..self.layers.len() {
            let (next, activations) = self.layer(index, &x, &pass)?;
            activations.recycle(&self.pool)?;
            self.pool.recycle(std::mem::replace(&mut x, next))?;
        }
        let hidden = self.normed(&x, &self.norm)?;
        self.pool.recycle(x)?;
        Ok(hidden)
    }

    pub(crate) fn rope(&self, tokens: &Tokens) -> std::sync::Arc<RopeTable> {
        self.rope.table(tokens.reach())
    }

    /// The vectors of tokens, `[n, d]`.
    pub(crate) fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        Ok(ops::embed(&self.pool, &self.embedding, ids)?)
    }

    /// One layer: what it gives, `[n, d]` or the wanted rows of it if it is the last, and what a backward needs.
    pub(crate) fn layer(
        &self,
        index: usize,
        x: &Tensor,
        pass: &Pass<'_>,
    ) -> Result<(Tensor, Activations)> {
        let (pool, layer, shape) = (
            &self.pool,
            &self.layers[index],
            attention_shape(&self.config),
        );
        let [qkv, o, gate_up, down] = &layer.groups;
        let wanted = self.wanted(index, pass);

        let normed = self.normed(x, &layer.input_norm)?;
        let (projected, kept_qkv) = qkv.forward(pool, &normed, None, pass.dropout)?;
        pool.recycle(normed)?;
        let [q, k, v] = three(projected);
        let q = pass.rope.rotate(q, pass.segments)?;
        let k = pass.rope.rotate(k, pass.segments)?;
        let mut mixed = ops::attention(pool, (&q, &k, &v), shape, pass.segments)?;
        let dropout = pass.dropout.map(|dropout| match wanted {
            Some(rows) => dropout.of_rows(rows),
            None => dropout.clone(),
        });
        let dropout = dropout.as_ref();
        let some = wanted.map(|rows| self.gather(x, rows)).transpose()?;
        if let Some(rows) = wanted {
            let some = self.gather(&mixed, rows)?;
            let all = std::mem::replace(&mut mixed, some);
            pool.recycle(all)?;
        }
        let (between, kept_o) =
            o.forward(pool, &mixed, Some(some.as_ref().unwrap_or(x)), dropout)?;
        let between = one(between);
        some.map(|some| pool.recycle(some)).transpose()?;

        let normed = self.normed(&between, &layer.inner_norm)?;
        let (projected, kept_gate_up) = gate_up.forward(pool, &normed, None, dropout)?;
        pool.recycle(normed)?;
        let [gate, up] = two(projected);
        let inner = swiglu(pool, &gate, &up)?;
        let (out, kept_down) = down.forward(pool, &inner, Some(&between), dropout)?;
        pool.recycle(inner)?;
        let activations = Activations {
            qkv: [q, k, v],
            mixed,
            between,
            gate_up: [gate, up],
            kept: [kept_qkv, kept_o, kept_gate_up, kept_down],
        };
        Ok((one(out), activations))
    }

    /// The rows a layer computes after its attention, if not all.
    pub(crate) fn wanted<'a>(&self, layer: usize, pass: &Pass<'a>) -> Option<&'a [u32]> {
        pass.wanted.filter(|_| layer + 1 == self.layers.len())
    }

    pub(crate) fn normed(&self, x: &Tensor, weight: &Param) -> Result<Tensor> {
        Ok(rms_norm(&self.pool, x, weight, self.config.rms_norm_eps)?)
    }

    /// Some rows of `[n, d]`.
    pub(crate) fn gather(&self, x: &Tensor, rows: &[u32]) -> Result<Tensor> {
        Ok(ops::gather(&self.pool, x, rows)?)
    }
}

fn one(mut tensors: Vec<Tensor>) -> Tensor {
    tensors.swap_remove(0)
}

fn two(tensors: Vec<Tensor>) -> [Tensor; 2] {
    <[Tensor; 2]>::try_from(tensors).expect("a group of two gives two")
}

fn three(tensors: Vec<Tensor>) -> [Tensor; 3] {
    <[Tensor; 3]>::try_from(tensors).expect("a group of three gives three")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_sequences_begin_with_stands_in_the_batch_once() {
        let head: Vec<u32> = (0..10).collect();
        let row = |tail: &[u32]| [&head, tail].concat();
        let rows = [row(&[20, 21]), row(&[22]), row(&[20, 23, 24])];
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let tokens = Tokens::sharing(&rows);
        assert_eq!(tokens.ids.len(), 10 + 2 + 1 + 3);
        for (sequence, ids) in rows.iter().enumerate() {
            for (at, &id) in ids.iter().enumerate() {
                assert_eq!(tokens.ids[tokens.row(sequence, at)], id);
            }
        }
        // The same sequence twice: each keeps a token of its own.
        let tokens = Tokens::sharing(&[rows[0], rows[0]]);
        assert_eq!((tokens.shared, tokens.ids.len()), (11, 13));
        // Too little to share.
        assert_eq!(
            Tokens::sharing(&[&rows[0][..3], &rows[1][..3]]).ids.len(),
            6
        );
        assert_eq!(Tokens::sharing(&[rows[0]]).ids.len(), 12);
    }
}
