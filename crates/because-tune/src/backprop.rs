use candle_core::Tensor;

use crate::data::Sample;
use crate::error::Result;
use crate::memory::Checkpointing;
use crate::model::{Activations, Layer, Pass, Qwen, Tokens, attention_shape};
use crate::ops::{
    Dropout, Gradients, Param, attention_backward, cross_entropy, embed_backward,
    rms_norm_backward, scatter, swiglu, swiglu_backward,
};

/// Rows that go through the model together, and what is to be learnt from them.
#[derive(Debug)]
pub(crate) struct Batch {
    tokens: Tokens,
    /// Rows of the batch that a token is predicted from, in rising order.
    wanted: Vec<u32>,
    /// For each supervised position its place in `wanted` and the token that should follow.
    targets: Vec<(u32, u32)>,
    /// For dropout: a key for each row of the batch.
    dropout: Option<Dropout>,
}

/// How a backward pass is to be made.
pub(crate) struct Learn<'a> {
    /// What the sum of the losses is divided by.
    pub(crate) denominator: f64,
    pub(crate) checkpointing: Checkpointing,
    pub(crate) gradients: &'a mut Gradients,
}

impl Batch {
    /// Samples one after the other, what all begin with only once.
    pub(crate) fn new(samples: &[&Sample]) -> Self {
        let ids: Vec<&[u32]> = samples.iter().map(|one| one.ids.as_slice()).collect();
        Self::of(Tokens::sharing(&ids), samples)
    }

    /// The same with dropout at this rate, drawn from a key for each sample. Nothing is shared: each row draws for itself.
    pub(crate) fn with_dropout(samples: &[&Sample], rate: f64, keys: &[u64]) -> Self {
        let tokens = Tokens::new(samples.iter().map(|one| one.ids.as_slice()));
        let rows = samples.iter().zip(keys).flat_map(|(sample, key)| {
            (0..sample.ids.len() as u64)
                .map(move |at| key.wrapping_add(at.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
        });
        Self {
            dropout: Some(Dropout::new(rate, rows)),
            ..Self::of(tokens, samples)
        }
    }

    fn of(tokens: Tokens, samples: &[&Sample]) -> Self {
        let positions: Vec<(u32, u32)> = samples
            .iter()
            .enumerate()
            .flat_map(|(index, sample)| {
                let row = |at: u32| tokens.row(index, at as usize) as u32;
                sample
                    .targets
                    .iter()
                    .map(move |&(at, id)| (row(at), id))
                    .collect::<Vec<_>>()
            })
            .collect();
        let mut wanted: Vec<u32> = positions.iter().map(|&(row, _)| row).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let place = |row: u32| wanted.binary_search(&row).unwrap_or_default() as u32;
        let targets = positions
            .iter()
            .map(|&(row, id)| (place(row), id))
            .collect();
        Self {
            targets,
            wanted,
            tokens,
            dropout: None,
        }
    }
}

impl Qwen {
    /// The summed cross-entropy of a batch, in nats, without learning from it.
    pub(crate) fn loss(&self, batch: &Batch) -> Result<f64> {
        let pass = self.pass(batch);
        let mut x = self.embed(&batch.tokens.ids)?;
        for index in 0..self.layers.len() {
            let (next, activations) = self.layer(index, &x, &pass)?;
            activations.recycle(&self.pool)?;
            self.pool.recycle(std::mem::replace(&mut x, next))?;
        }
        let (loss, _) = self.head(batch, x, None)?;
        Ok(loss)
    }

    /// The same, and adds the gradients of everything that learns to the flat buffer.
    ///
    /// A checkpointed layer keeps its input alone and is computed again when its turn comes (Chen et al. 2016,
    /// arXiv 1604.06174).
    pub(crate) fn learn(&self, batch: &Batch, learn: &mut Learn<'_>) -> Result<f64> {
        let pass = self.pass(batch);
        let mut x = self.embed(&batch.tokens.ids)?;
        let embedding = self.embedding.slot();
        // Below the lowest layer that learns nothing needs a gradient.
        let first = match embedding {
            Some(_) => 0,
            None => self.layers.iter().position(Layer::learns).unwrap_or(0),
        };
        let mut inputs: Vec<(Tensor, Option<Activations>)> = Vec::new();
        for index in 0..self.layers.len() {
            let (next, activations) = self.layer(index, &x, &pass)?;
            let input = std::mem::replace(&mut x, next);
            if index < first {
                activations.recycle(&self.pool)?;
                self.pool.recycle(input)?;
                continue;
            }
            // The last layer's turn comes at once: to drop what it has would save nothing.
            let last = index + 1 == self.layers.len();
            let kept = if learn.checkpointing.recomputes(index) && !last {
                activations.recycle(&self.pool)?;
                None
            } else {
                Some(activations)
            };
            inputs.push((input, kept));
        }
        let (loss, g) = self.head(batch, x, Some(learn))?;
        let Some(mut g) = g else {
            return Ok(loss);
        };
        while let Some((x, kept)) = inputs.pop() {
            let index = first + inputs.len();
            let activations = match kept {
                Some(kept) => kept,
                None => {
                    let (out, activations) = self.layer(index, &x, &pass)?;
                    self.pool.recycle(out)?;
                    activations
                }
            };
            let wants_input = index > first || embedding.is_some();
            match self.layer_backward(index, x, activations, g, &pass, learn, wants_input)? {
                Some(next) => g = next,
                None => return Ok(loss),
            }
        }
        embed_backward(&self.embedding, &batch.tokens.ids, &g, learn.gradients)?;
        self.pool.recycle(g)?;
        Ok(loss)
    }

    fn pass<'a>(&self, batch: &'a Batch) -> Pass<'a> {
        let all = batch.wanted.len() == batch.tokens.ids.len();
        Pass {
            segments: &batch.tokens.segments,
            rope: self.rope(&batch.tokens),
            dropout: batch.dropout.as_ref(),
            wanted: (!all).then_some(batch.wanted.as_slice()),
        }
    }

    /// The last norm and the output projection, of the wanted rows: the loss, and the gradient of `x`.
    fn head(
        &self,
        batch: &Batch,
        x: Tensor,
        learn: Option<&mut Learn<'_>>,
    ) -> Result<(f64, Option<Tensor>)> {
        let pool = &self.pool;
        let (places, classes): (Vec<u32>, Vec<u32>) = batch.targets.iter().copied().unzip();
        let h = self.normed(&x, &self.norm)?;
        // A row that several samples share may be asked for several tokens.
        let once = places.iter().copied().eq(0..batch.wanted.len() as u32);
        let each = if once {
            None
        } else {
            Some(self.gather(&h, &places)?)
        };
        let rows = each.as_ref().unwrap_or(&h);
        let Some(learn) = learn else {
            let (loss, _) = cross_entropy(pool, rows, &self.head, &classes, None)?;
            for tensor in each.into_iter().chain([h, x]) {
                pool.recycle(tensor)?;
            }
            return Ok((loss, None));
        };
        let how = Some((learn.denominator, &mut *learn.gradients));
        let (loss, dh) = cross_entropy(pool, rows, &self.head, &classes, how)?;
        let Some(mut dh) = dh else {
            return Ok((loss, None));
        };
        if let Some(each) = each {
            pool.recycle(each)?;
            dh = scatter(pool, dh, &places, batch.wanted.len())?;
        }
        let g = self.norm_backward(&x, &self.norm, dh, None, learn.gradients)?;
        pool.recycle(h)?;
        pool.recycle(x)?;
        Ok((loss, Some(g)))
    }

    /// Adds the gradient that goes through a norm to the one that goes past it.
    fn norm_backward(
        &self,
        x: &Tensor,
        weight: &Param,
        g: Tensor,
        past: Option<Tensor>,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let past = match past {
            Some(past) => past,
            None => {
                let zeros = self.pool.zeros(g.elem_count());
                crate::ops::tensor(zeros, g.shape())?
            }
        };
        let eps = self.config.rms_norm_eps;
        let dx = rms_norm_backward((x, weight, eps), &g, past, gradients)?;
        self.pool.recycle(g)?;
        Ok(dx)
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "what a layer was given, what it kept, and what is asked"
    )]
    fn layer_backward(
        &self,
        index: usize,
        x: Tensor,
        activations: Activations,
        g: Tensor,
        pass: &Pass<'_>,
        learn: &mut Learn<'_>,
        wants_input: bool,
    ) -> Result<Option<Tensor>> {
        let (pool, layer) = (&self.pool, &self.layers[index]);
        let gradients = &mut *learn.gradients;
        let [qkv, o, gate_up, down] = &layer.groups;
        let Activations {
            qkv: [q, k, v],
            mixed,
            between,
            gate_up: [gate, up],
            kept,
        } = activations;
        let wanted = self.wanted(index, pass);
        let dropout = pass.dropout.map(|dropout| match wanted {
            Some(rows) => dropout.of_rows(rows),
            None => dropout.clone(),
        });
        let dropout = dropout.as_ref();
        let alone = std::slice::from_ref;

        let inner = swiglu(pool, &gate, &up)?;
        let d_inner = down.backward(
            pool,
            (&inner, &kept[3]),
            alone(&g),
            dropout,
            gradients,
            true,
        )?;
        pool.recycle(inner)?;
        let d_inner = d_inner.expect("the gradient of the input was asked for");
        let gate_up_g = swiglu_backward(pool, gate, up, d_inner)?;
        let normed = self.normed(&between, &layer.inner_norm)?;
        let through = gate_up.backward(
            pool,
            (&normed, &kept[2]),
            &gate_up_g,
            dropout,
            gradients,
            true,
        )?;
        for tensor in gate_up_g.into_iter().chain([normed]) {
            pool.recycle(tensor)?;
        }
        let through = through.expect("the gradient of the input was asked for");
        let mut g = self.norm_backward(&between, &layer.inner_norm, through, Some(g), gradients)?;
        pool.recycle(between)?;

        let d_mixed = o.backward(
            pool,
            (&mixed, &kept[1]),
            alone(&g),
            dropout,
            gradients,
            true,
        )?;
        let mut d_mixed = d_mixed.expect("the gradient of the input was asked for");
        let mut mixed = mixed;
        if let Some(rows) = wanted {
            let n = x.dim(0)?;
            // A row without a gradient needs no result.
            mixed = scatter(pool, mixed, rows, n)?;
            d_mixed = scatter(pool, d_mixed, rows, n)?;
            g = scatter(pool, g, rows, n)?;
        }
        let shape = attention_shape(&self.config);
        let result = (&mixed, &d_mixed);
        let (dq, dk, dv) = attention_backward(pool, (&q, &k, &v), result, shape, pass.segments)?;
        for tensor in [q, k, v, mixed, d_mixed] {
            pool.recycle(tensor)?;
        }
        let dq = pass.rope.unrotate(dq, pass.segments)?;
        let dk = pass.rope.unrotate(dk, pass.segments)?;
        let qkv_g = [dq, dk, dv];
        let normed = self.normed(&x, &layer.input_norm)?;
        let wants_input = wants_input || layer.input_norm.slot.is_some();
        let through = qkv.backward(
            pool,
            (&normed, &kept[0]),
            &qkv_g,
            pass.dropout,
            gradients,
            wants_input,
        )?;
        for tensor in qkv_g.into_iter().chain([normed]) {
            pool.recycle(tensor)?;
        }
        for kept in kept {
            kept.recycle(pool)?;
        }
        let dx = match through {
            Some(through) => {
                Some(self.norm_backward(&x, &layer.input_norm, through, Some(g), gradients)?)
            }
            None => {
                pool.recycle(g)?;
                None
            }
        };
        pool.recycle(x)?;
        Ok(dx)
    }
}
