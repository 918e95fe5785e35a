use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp3, Device, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::kernel::{
    Matrix, add, dot, exp_in_place, into_numbers, max, numbers, scale, slice, with_slice,
};
use super::rope::RopeTable;

/// The rows one sequence occupies in a batch, and how many of its tokens came before (in a cache).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) start: usize,
    pub(crate) len: usize,
    pub(crate) past: usize,
}

/// The heads of an attention layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionShape {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl AttentionShape {
    /// Query heads that share a key head.
    fn group(self) -> usize {
        self.heads / self.kv_heads
    }

    fn scale(self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Positions handled at once, so that a block of scores stays in cache whatever the length.
    fn block(self) -> usize {
        (128 / self.group()).max(1)
    }
}

/// Causal attention inside each segment, with rotary positions: `softmax(R(q) R(k)^T / sqrt(d_head)) v`.
///
/// Shapes: q `[n, heads d_head]`, k and v `[n, kv_heads d_head]`, result as q. Probabilities are recomputed in the
/// backward: `dv = P^T g`, `dS = P (g v^T - rowsum(P g v^T))`, `dq = R^-1 (dS k)`, `dk = R^-1 (dS^T q)`.
pub(crate) fn attention(
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    shape: AttentionShape,
    segments: &Arc<[Segment]>,
    rope: &Arc<RopeTable>,
) -> Result<Tensor> {
    q.apply_op3(
        k,
        v,
        Attention {
            shape,
            segments: Arc::clone(segments),
            rope: Arc::clone(rope),
        },
    )
}

struct Attention {
    shape: AttentionShape,
    segments: Arc<[Segment]>,
    rope: Arc<RopeTable>,
}

impl Attention {
    /// One piece of work for each segment and key head: no two write the same numbers.
    fn pieces(&self) -> Vec<(Segment, usize)> {
        pieces(&self.segments, self.shape)
    }
}

fn pieces(segments: &[Segment], shape: AttentionShape) -> Vec<(Segment, usize)> {
    segments
        .iter()
        .flat_map(|&segment| (0..shape.kv_heads).map(move |head| (segment, head)))
        .collect()
}

/// Copies columns `[from, from + width)` of the rows of a segment: `[len, width]`.
fn columns(values: &[f32], stride: usize, segment: Segment, from: usize, width: usize) -> Vec<f32> {
    values[segment.start * stride..(segment.start + segment.len) * stride]
        .chunks_exact(stride)
        .flat_map(|row| &row[from..from + width])
        .copied()
        .collect()
}

/// Puts `[len, width]` back where [`columns`] took it.
fn put_columns(
    into: &mut [f32],
    stride: usize,
    segment: Segment,
    from: usize,
    part: &[f32],
    width: usize,
) {
    into[segment.start * stride..(segment.start + segment.len) * stride]
        .chunks_exact_mut(stride)
        .zip(part.chunks_exact(width))
        .for_each(|(row, part)| row[from..from + width].copy_from_slice(part));
}

fn rotate(values: &mut [f32], heads: usize, head_dim: usize, past: usize, rope: &RopeTable) {
    for (index, head) in values.chunks_exact_mut(head_dim).enumerate() {
        rope.rotate(head, past + index / heads);
    }
}

fn unrotate(values: &mut [f32], heads: usize, head_dim: usize, rope: &RopeTable) {
    for (index, head) in values.chunks_exact_mut(head_dim).enumerate() {
        rope.unrotate(head, index / heads);
    }
}

/// Turns scores into probabilities, each row over the positions up to its own; the rest becomes zero.
/// `first` is the position of the first row; `group` rows share a position.
fn causal_softmax(scores: &mut [f32], width: usize, first: usize, group: usize, factor: f32) {
    for (row, scores) in scores.chunks_exact_mut(width).enumerate() {
        let (seen, unseen) = scores.split_at_mut(first + row / group + 1);
        scale(seen, factor);
        let top = max(seen);
        let sum = exp_in_place(seen, top);
        scale(seen, 1.0 / sum);
        unseen.fill(0.0);
    }
}

/// What the query heads of one key head see: q `[len * group, d_head]` (rotated), k and v `[past + len, d_head]`.
fn attend(
    q: &CpuStorage,
    k: &CpuStorage,
    v: &CpuStorage,
    segment: Segment,
    shape: AttentionShape,
) -> Result<Vec<f32>> {
    let (d, group) = (shape.head_dim, shape.group());
    let mut out = Vec::with_capacity(segment.len * group * d);
    for from in (0..segment.len).step_by(shape.block()) {
        let to = segment.len.min(from + shape.block());
        let (rows, seen) = ((to - from) * group, segment.past + to);
        let q = Matrix::new(q, rows, d).at(from * group * d);
        let mut scores = into_numbers(q.matmul(Matrix::new(k, seen, d).t())?)?;
        causal_softmax(&mut scores, seen, segment.past + from, group, shape.scale());
        let weights = CpuStorage::F32(scores);
        let block = Matrix::new(&weights, rows, seen).matmul(Matrix::new(v, seen, d))?;
        out.extend_from_slice(numbers(&block)?);
    }
    Ok(out)
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "rope-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, k, v) = (
            slice(q, q_layout)?,
            slice(k, k_layout)?,
            slice(v, v_layout)?,
        );
        let (shape, d, group) = (self.shape, self.shape.head_dim, self.shape.group());
        let (wide, narrow) = (shape.heads * d, shape.kv_heads * d);
        let pieces = self.pieces();
        let parts: Vec<Result<Vec<f32>>> = pieces
            .par_iter()
            .map(|&(segment, head)| {
                let mut q = columns(q, wide, segment, head * group * d, group * d);
                let mut k = columns(k, narrow, segment, head * d, d);
                rotate(&mut q, group, d, 0, &self.rope);
                rotate(&mut k, 1, d, 0, &self.rope);
                let v = columns(v, narrow, segment, head * d, d);
                attend(
                    &CpuStorage::F32(q),
                    &CpuStorage::F32(k),
                    &CpuStorage::F32(v),
                    segment,
                    shape,
                )
            })
            .collect();
        let mut out = vec![0.0; q.len()];
        for ((segment, head), part) in pieces.into_iter().zip(parts) {
            put_columns(&mut out, wide, segment, head * group * d, &part?, group * d);
        }
        Ok((CpuStorage::F32(out), q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _out: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (d, group) = (self.shape.head_dim, self.shape.group());
        let (wide, narrow) = (self.shape.heads * d, self.shape.kv_heads * d);
        let pieces = self.pieces();
        let parts: Vec<Result<[Vec<f32>; 3]>> = with_slice(q, |q| {
            with_slice(k, |k| {
                with_slice(v, |v| {
                    with_slice(g, |g| {
                        Ok(pieces
                            .par_iter()
                            .map(|&(segment, head)| {
                                let q = columns(q, wide, segment, head * group * d, group * d);
                                let g = columns(g, wide, segment, head * group * d, group * d);
                                let k = columns(k, narrow, segment, head * d, d);
                                let v = columns(v, narrow, segment, head * d, d);
                                self.gradients(segment, [q, k, v, g])
                            })
                            .collect())
                    })
                })
            })
        })?;
        let mut dq = vec![0.0; q.elem_count()];
        let (mut dk, mut dv) = (vec![0.0; k.elem_count()], vec![0.0; v.elem_count()]);
        for ((segment, head), part) in pieces.into_iter().zip(parts) {
            let [q, k, v] = part?;
            put_columns(&mut dq, wide, segment, head * group * d, &q, group * d);
            put_columns(&mut dk, narrow, segment, head * d, &k, d);
            put_columns(&mut dv, narrow, segment, head * d, &v, d);
        }
        let tensor =
            |values, like: &Tensor| Tensor::from_vec(values, like.shape(), &Device::Cpu).map(Some);
        Ok((tensor(dq, q)?, tensor(dk, k)?, tensor(dv, v)?))
    }
}

impl Attention {
    /// `[dq, dk, dv]` of one segment and key head from its `[q, k, v, g]`.
    fn gradients(
        &self,
        segment: Segment,
        [mut q, mut k, v, g]: [Vec<f32>; 4],
    ) -> Result<[Vec<f32>; 3]> {
        let (d, group, factor) = (self.shape.head_dim, self.shape.group(), self.shape.scale());
        rotate(&mut q, group, d, 0, &self.rope);
        rotate(&mut k, 1, d, 0, &self.rope);
        let mut dq = Vec::with_capacity(q.len());
        let (mut dk, mut dv) = (vec![0.0; k.len()], vec![0.0; v.len()]);
        let [q, k, v, g] = [q, k, v, g].map(CpuStorage::F32);
        for from in (0..segment.len).step_by(self.shape.block()) {
            let seen = segment.len.min(from + self.shape.block());
            let rows = (seen - from) * group;
            let [q, g] = [&q, &g].map(|all| Matrix::new(all, rows, d).at(from * group * d));
            let [k, v] = [&k, &v].map(|all| Matrix::new(all, seen, d));
            let mut weights = into_numbers(q.matmul(k.t())?)?;
            causal_softmax(&mut weights, seen, from, group, factor);
            let mut slopes = into_numbers(g.matmul(v.t())?)?;
            for (slopes, weights) in slopes
                .chunks_exact_mut(seen)
                .zip(weights.chunks_exact(seen))
            {
                let mean = dot(slopes, weights);
                for (slope, weight) in slopes.iter_mut().zip(weights) {
                    *slope = weight * (*slope - mean) * factor;
                }
            }
            let (weights, slopes) = (CpuStorage::F32(weights), CpuStorage::F32(slopes));
            let slopes = Matrix::new(&slopes, rows, seen);
            add(
                &mut dv,
                numbers(&Matrix::new(&weights, rows, seen).t().matmul(g)?)?,
            );
            add(&mut dk, numbers(&slopes.t().matmul(q)?)?);
            dq.extend_from_slice(numbers(&slopes.matmul(k)?)?);
        }
        unrotate(&mut dq, group, d, &self.rope);
        unrotate(&mut dk, 1, d, &self.rope);
        Ok([dq, dk, dv])
    }
}

/// The keys (rotated) and values one layer has seen: for each sequence and key head two growing `[t, d_head]`.
#[derive(Debug, Default)]
pub(crate) struct LayerCache {
    heads: Vec<(CpuStorage, CpuStorage)>,
}

impl LayerCache {
    pub(crate) fn new(sequences: usize, shape: AttentionShape) -> Self {
        let empty = || (CpuStorage::F32(Vec::new()), CpuStorage::F32(Vec::new()));
        Self {
            heads: std::iter::repeat_with(empty)
                .take(sequences * shape.kv_heads)
                .collect(),
        }
    }

    /// Keeps only the sequences for which `keep` holds.
    pub(crate) fn retain(&mut self, keep: &[bool], shape: AttentionShape) {
        let mut index = 0;
        self.heads.retain(|_| {
            index += 1;
            keep[(index - 1) / shape.kv_heads]
        });
    }
}

fn push(storage: &mut CpuStorage, new: &[f32]) {
    if let CpuStorage::F32(values) = storage {
        values.extend_from_slice(new);
    }
}

/// [`attention`] without a backward whose keys and values go into a cache and are read from it; segment `i` is
/// sequence `i` of the cache.
pub(crate) fn cached_attention(
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    shape: AttentionShape,
    segments: &[Segment],
    rope: &RopeTable,
    cache: &mut LayerCache,
) -> Result<Tensor> {
    let (d, group) = (shape.head_dim, shape.group());
    let (wide, narrow) = (shape.heads * d, shape.kv_heads * d);
    let pieces = pieces(segments, shape);
    let parts: Vec<Result<Vec<f32>>> = with_slice(q, |q| {
        with_slice(k, |k| {
            with_slice(v, |v| {
                Ok(pieces
                    .par_iter()
                    .zip(&mut cache.heads)
                    .map(|(&(segment, head), (keys, vals))| {
                        let mut q = columns(q, wide, segment, head * group * d, group * d);
                        rotate(&mut q, group, d, segment.past, rope);
                        let mut k = columns(k, narrow, segment, head * d, d);
                        rotate(&mut k, 1, d, segment.past, rope);
                        push(keys, &k);
                        push(vals, &columns(v, narrow, segment, head * d, d));
                        attend(&CpuStorage::F32(q), keys, vals, segment, shape)
                    })
                    .collect())
            })
        })
    })?;
    let mut out = vec![0.0; q.elem_count()];
    for ((segment, head), part) in pieces.into_iter().zip(parts) {
        put_columns(&mut out, wide, segment, head * group * d, &part?, group * d);
    }
    Tensor::from_vec(out, q.shape(), &Device::Cpu)
}
