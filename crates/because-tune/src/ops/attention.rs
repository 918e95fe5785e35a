use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::gemm::{Mat, MatMut, multiply};
use super::pool::{Pool, tensor, view};
use super::simd::{add, dot, exp_in_place, max, scale, vectorized};

/// The rows one sequence occupies in a batch, and how many tokens came before them as the first rows of the batch, which
/// several sequences may share.
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
    pub(super) fn group(self) -> usize {
        self.heads / self.kv_heads
    }

    pub(super) fn scale(self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Positions handled at once, which bounds the rows of a block of scores: its memory grows with the length, not with
    /// its square.
    fn block(self) -> usize {
        (256 / self.group()).max(1)
    }
}

/// One piece of work for each segment and key head: no two write the same rows.
fn pieces(segments: &[Segment], shape: AttentionShape) -> Vec<(Segment, usize)> {
    segments
        .iter()
        .flat_map(|&segment| (0..shape.kv_heads).map(move |head| (segment, head)))
        .collect()
}

/// Copies columns `[from, from + width)` of `rows` rows from row `start` on to the end of `into`.
fn push_columns(
    into: &mut Vec<f32>,
    values: &[f32],
    (start, rows): (usize, usize),
    stride: usize,
    (from, width): (usize, usize),
) {
    for row in values[start * stride..(start + rows) * stride].chunks_exact(stride) {
        into.extend_from_slice(&row[from..from + width]);
    }
}

/// Puts `[len, width]` back where [`push_columns`] took it.
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

/// Turns scores into probabilities but for the sum of each row, which it gives: each row over the positions up to its own, the
/// rest becomes zero. `first` is the position of the first row; `group` rows share a position. Whoever reads the scores next
/// divides by the sums on the way.
fn causal_exponentials(scores: &mut [f32], width: usize, first: usize, group: usize) -> Vec<f32> {
    let mut sums = vec![0.0; scores.len() / width.max(1)];
    vectorized(
        #[inline(always)]
        || {
            let rows = scores.chunks_exact_mut(width).zip(&mut sums);
            for (row, (scores, sum)) in rows.enumerate() {
                let (seen, unseen) = scores.split_at_mut(first + row / group + 1);
                let top = max(seen);
                *sum = exp_in_place(seen, top);
                unseen.fill(0.0);
            }
        },
    );
    sums
}

/// What the query heads of one key head see: q `[len * group, d_head]`, k and v `[past + len, d_head]`.
fn attend(q: &[f32], k: &[f32], v: &[f32], segment: Segment, shape: AttentionShape) -> Vec<f32> {
    let (d, group) = (shape.head_dim, shape.group());
    let mut out = vec![0.0; segment.len * group * d];
    let mut scores = Vec::new();
    for from in (0..segment.len).step_by(shape.block()) {
        let to = segment.len.min(from + shape.block());
        let (rows, seen) = ((to - from) * group, segment.past + to);
        let block = from * group * d..to * group * d;
        let [k, v] = [k, v].map(|all| Mat::new(all, seen, d));
        scores.resize(rows * seen, 0.0);
        let into = &mut MatMut::new(&mut scores, rows, seen);
        multiply(
            into,
            false,
            shape.scale(),
            Mat::new(&q[block.clone()], rows, d),
            k.t(),
        );
        let sums = causal_exponentials(&mut scores, seen, segment.past + from, group);
        let into = &mut MatMut::new(&mut out[block.clone()], rows, d);
        multiply(into, false, 1.0, Mat::new(&scores, rows, seen), v);
        for (out, sum) in out[block].chunks_exact_mut(d).zip(sums) {
            scale(out, 1.0 / sum);
        }
    }
    out
}

/// The queries, keys and values of a batch, or a gradient of as many numbers, lent.
struct Columns<'a> {
    shape: AttentionShape,
    wide: usize,
    narrow: usize,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
}

impl Columns<'_> {
    fn queries(&self, values: &[f32], segment: Segment, head: usize) -> Vec<f32> {
        let width = self.shape.group() * self.shape.head_dim;
        let mut out = Vec::with_capacity(segment.len * width);
        let rows = (segment.start, segment.len);
        push_columns(&mut out, values, rows, self.wide, (head * width, width));
        out
    }

    /// Those of the rows before the segment, then its own.
    fn keys(&self, values: &[f32], segment: Segment, head: usize) -> Vec<f32> {
        let d = self.shape.head_dim;
        let mut out = Vec::with_capacity((segment.past + segment.len) * d);
        for rows in [(0, segment.past), (segment.start, segment.len)] {
            push_columns(&mut out, values, rows, self.narrow, (head * d, d));
        }
        out
    }
}

/// Causal attention inside each segment and to the rows before it: `softmax(q k^T / sqrt(d_head)) v`.
///
/// Shapes: q `[n, heads d_head]`, k and v `[n, kv_heads d_head]`, q and k turned by their positions; result as q.
pub(crate) fn attention(
    pool: &Pool,
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    shape: AttentionShape,
    segments: &[Segment],
) -> Result<Tensor> {
    let (dims, width) = (q.dims2()?, shape.group() * shape.head_dim);
    let (q, k, v) = (view(q)?, view(k)?, view(v)?);
    let columns = columns(shape, (&q, &k, &v));
    let pieces = pieces(segments, shape);
    let parts: Vec<Vec<f32>> = pieces
        .par_iter()
        .map(|&(segment, head)| {
            let q = columns.queries(columns.q, segment, head);
            let k = columns.keys(columns.k, segment, head);
            let v = columns.keys(columns.v, segment, head);
            attend(&q, &k, &v, segment, shape)
        })
        .collect();
    let mut out = pool.take(q.len());
    for ((segment, head), part) in pieces.into_iter().zip(&parts) {
        put_columns(&mut out, dims.1, segment, head * width, part, width);
    }
    tensor(out, dims)
}

fn columns<'a>(shape: AttentionShape, (q, k, v): (&'a [f32], &'a [f32], &'a [f32])) -> Columns<'a> {
    let (wide, narrow) = (
        shape.heads * shape.head_dim,
        shape.kv_heads * shape.head_dim,
    );
    Columns {
        shape,
        wide,
        narrow,
        q,
        k,
        v,
    }
}

/// `(dq, dk, dv)` from the result y and its gradient g. Probabilities are computed again: `dv = P^T g`,
/// `dS = P (g v^T - rowsum(P g v^T))`, `dq = dS k`, `dk = dS^T q`; the sum of a row is `g y^T`, which is shorter (Dao et al.
/// 2022, arXiv 2205.14135, appendix B.2).
pub(crate) fn attention_backward(
    pool: &Pool,
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    (y, g): (&Tensor, &Tensor),
    shape: AttentionShape,
    segments: &[Segment],
) -> Result<(Tensor, Tensor, Tensor)> {
    let (wide, narrow, d) = (q.dims2()?, k.dims2()?, shape.head_dim);
    let width = shape.group() * d;
    let (q, k, v, y, g) = (view(q)?, view(k)?, view(v)?, view(y)?, view(g)?);
    let columns = columns(shape, (&q, &k, &v));
    let pieces = pieces(segments, shape);
    let parts: Vec<[Vec<f32>; 3]> = pieces
        .par_iter()
        .map(|&(segment, head)| {
            let [q, y, g] = [columns.q, &y, &g].map(|all| columns.queries(all, segment, head));
            let [k, v] = [columns.k, columns.v].map(|all| columns.keys(all, segment, head));
            gradients(shape, segment, [&q, &k, &v, &y, &g])
        })
        .collect();
    let mut dq = pool.take(q.len());
    let (mut dk, mut dv) = (pool.zeros(k.len()), pool.zeros(v.len()));
    for ((segment, head), [q, k, v]) in pieces.into_iter().zip(&parts) {
        put_columns(&mut dq, wide.1, segment, head * width, q, width);
        for (into, part) in [(&mut dk, k), (&mut dv, v)] {
            let rows = (0..segment.past).chain(segment.start..segment.start + segment.len);
            for (row, part) in rows.zip(part.chunks_exact(d)) {
                add(&mut into[row * narrow.1 + head * d..][..d], part);
            }
        }
    }
    Ok((tensor(dq, wide)?, tensor(dk, narrow)?, tensor(dv, narrow)?))
}

/// `[dq, dk, dv]` of one segment and key head.
fn gradients(
    shape: AttentionShape,
    segment: Segment,
    [q, k, v, y, g]: [&[f32]; 5],
) -> [Vec<f32>; 3] {
    let (d, group, factor) = (shape.head_dim, shape.group(), shape.scale());
    let mut dq = vec![0.0; q.len()];
    let (mut dk, mut dv) = (vec![0.0; k.len()], vec![0.0; v.len()]);
    let (mut weights, mut slopes) = (Vec::new(), Vec::new());
    for from in (0..segment.len).step_by(shape.block()) {
        let to = segment.len.min(from + shape.block());
        let (rows, seen) = ((to - from) * group, segment.past + to);
        let block = from * group * d..to * group * d;
        let (y, first) = (&y[block.clone()], segment.past + from);
        let [q, g] = [q, g].map(|all| Mat::new(&all[block.clone()], rows, d));
        let [k, v] = [k, v].map(|all| Mat::new(all, seen, d));
        weights.resize(rows * seen, 0.0);
        slopes.resize(rows * seen, 0.0);
        multiply(
            &mut MatMut::new(&mut weights, rows, seen),
            false,
            factor,
            q,
            k.t(),
        );
        let sums = causal_exponentials(&mut weights, seen, first, group);
        multiply(
            &mut MatMut::new(&mut slopes, rows, seen),
            false,
            1.0,
            g,
            v.t(),
        );
        vectorized(
            #[inline(always)]
            || {
                let rows = weights
                    .chunks_exact_mut(seen)
                    .zip(slopes.chunks_exact_mut(seen));
                for (row, (weights, slopes)) in rows.enumerate() {
                    let mean = dot(g.row(row), &y[row * d..][..d]);
                    let whole = 1.0 / sums[row];
                    let (slopes, unseen) = slopes.split_at_mut(first + row / group + 1);
                    for (slope, weight) in slopes.iter_mut().zip(weights) {
                        *weight *= whole;
                        *slope = *weight * (*slope - mean) * factor;
                    }
                    unseen.fill(0.0);
                }
            },
        );
        let (weights, slopes) = (
            Mat::new(&weights, rows, seen),
            Mat::new(&slopes, rows, seen),
        );
        multiply(
            &mut MatMut::new(&mut dv, seen, d),
            true,
            1.0,
            weights.t(),
            g,
        );
        multiply(&mut MatMut::new(&mut dk, seen, d), true, 1.0, slopes.t(), q);
        multiply(
            &mut MatMut::new(&mut dq[block], rows, d),
            false,
            1.0,
            slopes,
            k,
        );
    }
    [dq, dk, dv]
}
