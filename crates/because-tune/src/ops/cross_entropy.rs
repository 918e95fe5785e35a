use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::gemm::{Mat, MatMut};
use super::gradients::Gradients;
use super::matrix::{Matrix, Product, Sum, make};
use super::pool::{Pool, tensor, view};
use super::simd::{exp_in_place, max, scale, vectorized};

/// A block of logits holds about this many numbers (128 MB), whatever the vocabulary, and 16 rows at least. Of a small
/// vocabulary it holds fewer: past some hundred rows the weight is read seldom enough, and a smaller block stays in cache.
const LOGITS: usize = 1 << 25;

/// How many rows' logits are made at once.
pub(crate) fn rows_at_once(vocabulary: usize) -> usize {
    (LOGITS / vocabulary).clamp(16, 512)
}

/// `sum_i (log sum_j exp(z_ij) - z_i,target(i))` with `z = h W^T`: output projection and cross-entropy in one, block by
/// block, so that `[n, v]` never exists. With `learn` also the gradient of h of this sum over the denominator.
///
/// Shapes: h `[n, d]` (supervised rows only), W `[v, d]`. As the loss is a scalar its gradients
/// `dz = (softmax(z) - onehot) / denominator`, `dh = dz W`, `dW = dz^T h` are formed on the way forward, while a block is
/// at hand; dW only if W learns.
pub(crate) fn cross_entropy(
    pool: &Pool,
    h: &Tensor,
    weight: &Matrix,
    targets: &[u32],
    learn: Option<(f64, &mut Gradients)>,
) -> Result<(f64, Option<Tensor>)> {
    let ((n, d), (v, _)) = (h.dims2()?, weight.dims()?);
    if n != targets.len() || targets.iter().any(|&target| target as usize >= v) {
        bail!("{n} rows, {} targets, {v} classes", targets.len());
    }
    let h = view(h)?;
    let (rows, mut total) = (rows_at_once(v), 0.0);
    let (factor, mut gradients) = match learn {
        Some((denominator, gradients)) => ((1.0 / denominator) as f32, Some(gradients)),
        None => (0.0, None),
    };
    let mut dh = gradients.as_ref().map(|_| pool.take(n * d));
    let mut logits = pool.take(n.min(rows) * v);
    for (block, targets) in targets.chunks(rows).enumerate() {
        let (from, count) = (block * rows, targets.len());
        let logits = &mut logits[..count * v];
        let h = Mat::new(&h[from * d..], count, d);
        let product = Product {
            x: h,
            weight,
            transposed: true,
        };
        make(vec![Sum::new(MatMut::new(logits, count, v), vec![product])])?;
        total += differentiate(logits, v, targets, factor);
        if let (Some(dh), Some(gradients)) = (&mut dh, &mut gradients) {
            let dz = Mat::new(logits, count, v);
            let product = Product {
                x: dz,
                weight,
                transposed: false,
            };
            let into = MatMut::new(&mut dh[from * d..(from + count) * d], count, d);
            let mut sums = vec![Sum::new(into, vec![product])];
            if let Some(slot) = weight.slot() {
                let into = MatMut::new(gradients.at(slot, v * d), v, d);
                sums.push(Sum::add(into, dz.t(), h));
            }
            make(sums)?;
        }
    }
    pool.give(logits);
    Ok((total, dh.map(|dh| tensor(dh, (n, d))).transpose()?))
}

/// Turns a block of logits into `dz` and gives the summed loss.
fn differentiate(logits: &mut [f32], v: usize, targets: &[u32], factor: f32) -> f64 {
    let losses: Vec<f64> = logits
        .par_chunks_exact_mut(v)
        .zip(targets)
        .map(|(row, &target)| {
            let hit = row[target as usize];
            let (top, sum) = vectorized(
                #[inline(always)]
                || {
                    let top = max(row);
                    let sum = exp_in_place(row, top);
                    scale(row, factor / sum);
                    (top, sum)
                },
            );
            row[target as usize] -= factor;
            f64::from(sum).ln() + f64::from(top) - f64::from(hit)
        })
        .collect();
    losses.iter().sum()
}
