use std::ops::Range;

use rayon::prelude::*;

use crate::error::Result;
use crate::model::{Layer, Qwen, attention_shape};
use crate::ops::{
    Linear, PAGE, PagedLayer, Projections, RopeTable, Span, linear, rms_norm_into, swiglu_in_place,
    view,
};
use crate::overlay::{LowRank, Overlay};

/// Keys and values of all layers, in pages that rows share out among themselves.
#[derive(Debug)]
pub(crate) struct KeyValues {
    layers: Vec<PagedLayer>,
}

impl KeyValues {
    pub(crate) fn new(model: &Qwen, pages: usize) -> Self {
        let shape = attention_shape(&model.config);
        let layer = |_| PagedLayer::new(pages, shape);
        Self {
            layers: (0..model.layers.len()).map(layer).collect(),
        }
    }

    /// Bytes of one page, of all layers.
    pub(crate) fn page_bytes(model: &Qwen) -> u64 {
        PagedLayer::page_bytes(attention_shape(&model.config)) * model.layers.len() as u64
    }
}

/// Tokens of one row, to be computed.
#[derive(Debug)]
pub(crate) struct Piece<'a> {
    pub(crate) tokens: &'a [u32],
    /// Positions before them, whose keys and values are there.
    pub(crate) past: usize,
    /// The pages of positions `0..past + tokens.len()`.
    pub(crate) pages: &'a [u32],
    pub(crate) overlay: Option<&'a Overlay>,
    pub(crate) wants: Wants,
}

/// After which of its tokens a piece wants logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wants {
    Nothing,
    Last,
    All,
}

/// Rows of a step that one adapter lies over.
type Adapted<'a> = (Range<usize>, &'a Overlay);

/// The forward pass of generation, on plain f32 numbers in buffers that are used again from step to step.
///
/// What a row gets depends on its own tokens alone: every sum is made in an order that follows from its length, so it is the
/// same bits beside other rows, after a prompt that came in pieces, and over keys and values that another row computed.
///
/// Shapes: `[n, d]` with n the tokens of all pieces one after the other.
#[derive(Debug, Default)]
pub(crate) struct Inference {
    x: Vec<f32>,
    normed: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    by_head: Vec<f32>,
    mixed: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    low: Vec<f32>,
    delta: Vec<f32>,
    logits: Vec<f32>,
}

impl Inference {
    /// Computes pieces, puts their keys and values into their pages, and gives the logits they want, `[wanted, v]`, in the
    /// order of the pieces. Pieces with one adapter should lie side by side.
    pub(crate) fn forward(
        &mut self,
        model: &Qwen,
        cache: &mut KeyValues,
        pieces: &[Piece<'_>],
    ) -> Result<&mut [f32]> {
        let (config, shape) = (&model.config, attention_shape(&model.config));
        let (d, inner) = (config.hidden_size, config.intermediate_size);
        let narrow = shape.kv_heads * shape.head_dim;
        let step = Step::new(pieces);
        let mut n = step.positions.len();
        let rope = model.rope.table(step.reach());
        self.embed(model, pieces, n)?;
        for (index, (layer, cache)) in model.layers.iter().zip(&mut cache.layers).enumerate() {
            let [qkv, o, gate_up, down] = &layer.groups;
            let mut adapted = &step.adapted;
            self.norm(n * d, layer, Norm::Input, config.rms_norm_eps)?;
            let [q, k, v] = [
                sized(&mut self.q, n * d),
                sized(&mut self.k, n * narrow),
                sized(&mut self.v, n * narrow),
            ];
            let mut low = (&mut self.low, &mut self.delta);
            let into = &mut [&mut *q, &mut *k, &mut *v];
            project(&self.normed, qkv, (index, 0), adapted, &mut low, into)?;
            turn(&rope, &step.positions, q, k, (d, narrow));
            cache.write(&step.spans, k, v);
            let mixed = sized(&mut self.mixed, n * d);
            cache.attend(&step.spans, q, &mut self.by_head, mixed);
            if index + 1 == model.layers.len() {
                // What follows only the logits need.
                n = step.wanted.len();
                keep(&mut self.x, &step.wanted, d);
                keep(&mut self.mixed, &step.wanted, d);
                adapted = &step.adapted_wanted;
                if n == 0 {
                    return Ok(&mut []);
                }
            }
            let out = sized(&mut self.normed, n * d);
            project(
                &self.mixed[..n * d],
                o,
                (index, 1),
                adapted,
                &mut low,
                &mut [out],
            )?;
            add(&mut self.x[..n * d], &self.normed);
            self.norm(n * d, layer, Norm::Inner, config.rms_norm_eps)?;
            let [gate, up] = [
                sized(&mut self.gate, n * inner),
                sized(&mut self.up, n * inner),
            ];
            let mut low = (&mut self.low, &mut self.delta);
            let into = &mut [&mut *gate, &mut *up];
            project(&self.normed, gate_up, (index, 2), adapted, &mut low, into)?;
            swiglu_in_place(gate, up, inner);
            let out = sized(&mut self.normed, n * d);
            project(gate, down, (index, 3), adapted, &mut low, &mut [out])?;
            add(&mut self.x[..n * d], &self.normed);
        }
        let logits = sized(&mut self.logits, n * config.vocab_size);
        let normed = sized(&mut self.normed, n * d);
        rms_norm_into(
            normed,
            &self.x,
            &view(&model.norm.tensor)?,
            config.rms_norm_eps,
        );
        let job = Linear {
            weight: &model.head,
            into: &mut *logits,
        };
        linear(normed, n, &mut [job])?;
        Ok(logits)
    }

    fn embed(&mut self, model: &Qwen, pieces: &[Piece<'_>], n: usize) -> Result<()> {
        let d = model.config.hidden_size;
        let x = sized(&mut self.x, n * d);
        let tokens = pieces.iter().flat_map(|piece| piece.tokens).copied();
        model.embedding.rows(tokens, |row, vector| {
            x[row * d..(row + 1) * d].copy_from_slice(vector);
        })?;
        Ok(())
    }

    fn norm(&mut self, count: usize, layer: &Layer, norm: Norm, eps: f64) -> Result<()> {
        let weight = match norm {
            Norm::Input => &layer.input_norm,
            Norm::Inner => &layer.inner_norm,
        };
        let normed = sized(&mut self.normed, count);
        rms_norm_into(normed, &self.x, &view(&weight.tensor)?, eps);
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Norm {
    Input,
    Inner,
}

/// Where the pieces of a step lie in it.
struct Step<'a> {
    spans: Vec<Span<'a>>,
    positions: Vec<usize>,
    /// Rows that want logits.
    wanted: Vec<usize>,
    adapted: Vec<Adapted<'a>>,
    /// The same among the wanted rows.
    adapted_wanted: Vec<Adapted<'a>>,
}

impl<'a> Step<'a> {
    fn new(pieces: &[Piece<'a>]) -> Self {
        let mut step = Self {
            spans: Vec::with_capacity(pieces.len()),
            positions: Vec::new(),
            wanted: Vec::new(),
            adapted: Vec::new(),
            adapted_wanted: Vec::new(),
        };
        for piece in pieces {
            let (start, len) = (step.positions.len(), piece.tokens.len());
            step.spans.push(Span {
                start,
                len,
                past: piece.past,
                pages: &piece.pages[..(piece.past + len).div_ceil(PAGE)],
            });
            step.positions.extend(piece.past..piece.past + len);
            let before = step.wanted.len();
            match piece.wants {
                Wants::Nothing => {}
                Wants::Last => step.wanted.push(start + len - 1),
                Wants::All => step.wanted.extend(start..start + len),
            }
            if let Some(overlay) = piece.overlay {
                push(&mut step.adapted, start..start + len, overlay);
                push(&mut step.adapted_wanted, before..step.wanted.len(), overlay);
            }
        }
        step
    }

    fn reach(&self) -> usize {
        self.positions.iter().max().map_or(0, |last| last + 1)
    }
}

/// Rows of one adapter that lie side by side are one.
fn push<'a>(all: &mut Vec<Adapted<'a>>, rows: Range<usize>, overlay: &'a Overlay) {
    match all.last_mut() {
        Some((last, same)) if same.id == overlay.id && last.end == rows.start => {
            last.end = rows.end
        }
        _ if rows.is_empty() => {}
        _ => all.push((rows, overlay)),
    }
}

/// A buffer of this length, whatever is in it.
fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    buffer.resize(len, 0.0);
    buffer
}

/// Keeps some rows, in rising order.
fn keep(x: &mut Vec<f32>, rows: &[usize], width: usize) {
    for (to, &row) in rows.iter().enumerate() {
        x.copy_within(row * width..(row + 1) * width, to * width);
    }
    x.truncate(rows.len() * width);
}

fn add(x: &mut [f32], other: &[f32]) {
    const PIECE: usize = 1 << 14;
    x.par_chunks_mut(PIECE)
        .zip(other.par_chunks(PIECE))
        .for_each(|(x, other)| x.iter_mut().zip(other).for_each(|(x, other)| *x += other));
}

fn turn(
    rope: &RopeTable,
    positions: &[usize],
    q: &mut [f32],
    k: &mut [f32],
    (wide, narrow): (usize, usize),
) {
    rope.rotate_in_place(q, wide, positions);
    rope.rotate_in_place(k, narrow, positions);
}

/// The projections of a group, with the adapters of the rows they lie over, and bias.
fn project(
    x: &[f32],
    group: &Projections,
    (layer, index): (usize, usize),
    adapted: &[Adapted<'_>],
    (low, delta): &mut (&mut Vec<f32>, &mut Vec<f32>),
    into: &mut [&mut [f32]],
) -> Result<()> {
    let input = group.all[0].weight.dims()?.1;
    let rows = x.len() / input;
    let mut jobs: Vec<Linear<'_>> = group
        .all
        .iter()
        .zip(into.iter_mut())
        .map(|(projection, into)| Linear {
            weight: &projection.weight,
            into,
        })
        .collect();
    linear(x, rows, &mut jobs)?;
    for (range, overlay) in adapted {
        let low_ranks = overlay.group(layer, index);
        let x = &x[range.start * input..range.end * input];
        add_low_rank(x, range, low_ranks, (low, delta), into)?;
    }
    for (projection, into) in group.all.iter().zip(into) {
        if let Some(bias) = &projection.bias {
            let bias = view(&bias.tensor)?;
            into.chunks_exact_mut(bias.len()).for_each(|row| {
                row.iter_mut().zip(&*bias).for_each(|(y, bias)| *y += bias);
            });
        }
    }
    Ok(())
}

fn add_low_rank(
    x: &[f32],
    range: &Range<usize>,
    low_ranks: &[Option<LowRank>],
    (low, delta): (&mut Vec<f32>, &mut Vec<f32>),
    into: &mut [&mut [f32]],
) -> Result<()> {
    let rows = range.len();
    let ranks: usize = low_ranks.iter().flatten().map(|one| one.rank).sum();
    let mut rest = sized(low, rows * ranks);
    let mut jobs = Vec::with_capacity(low_ranks.len());
    for one in low_ranks.iter().flatten() {
        let (own, others) = rest.split_at_mut(rows * one.rank);
        jobs.push(Linear {
            weight: &one.a,
            into: own,
        });
        rest = others;
    }
    if jobs.is_empty() {
        return Ok(());
    }
    linear(x, rows, &mut jobs)?;
    let mut from = 0;
    for (one, into) in low_ranks.iter().zip(into) {
        let Some(one) = one else {
            continue;
        };
        let out = one.b.dims()?.0;
        let delta = sized(delta, rows * out);
        let job = Linear {
            weight: &one.b,
            into: &mut *delta,
        };
        linear(&low[from..from + rows * one.rank], rows, &mut [job])?;
        from += rows * one.rank;
        let rows = into[range.start * out..range.end * out].par_chunks_exact_mut(out);
        rows.zip(delta.par_chunks_exact(out))
            .for_each(|(y, delta)| {
                y.iter_mut()
                    .zip(delta)
                    .for_each(|(y, delta)| *y += one.scale * delta);
                if let Some(factors) = &one.factors {
                    y.iter_mut().zip(factors).for_each(|(y, c)| *y *= c);
                }
            });
    }
    Ok(())
}
