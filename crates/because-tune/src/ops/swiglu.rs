use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::pool::{Pool, into_values, tensor, view};
use super::simd::{each_row, logistic, vectorized};

/// `y = silu(gate) * up` with `silu(x) = x s(x)`, `s` the logistic function (Shazeer 2020, arXiv 2002.05202); all
/// `[n, inner]`.
pub(crate) fn swiglu(pool: &Pool, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let (shape, gate, up) = (gate.dims2()?, view(gate)?, view(up)?);
    let mut y = pool.take(gate.len());
    each_row(
        &mut y,
        shape.1,
        #[inline(always)]
        |row, y| {
            let at = row * shape.1;
            let (gate, up) = (&gate[at..][..shape.1], &up[at..][..shape.1]);
            for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
                *y = gate * logistic(*gate) * up;
            }
        },
    );
    tensor(y, shape)
}

/// The same on plain numbers, with rows of `width`, where gate lies.
pub(crate) fn swiglu_in_place(gate: &mut [f32], up: &[f32], width: usize) {
    each_row(
        gate,
        width,
        #[inline(always)]
        |row, gate| {
            for (gate, up) in gate.iter_mut().zip(&up[row * width..][..width]) {
                *gate = *gate * logistic(*gate) * up;
            }
        },
    );
}

/// From `(gate, up, g)`, g the gradient of y: `[dgate, dup]` in the buffers of gate and up, with `dup = g silu(gate)` and
/// `dgate = g up s (1 + gate (1 - s))`.
pub(crate) fn swiglu_backward(
    pool: &Pool,
    gate: Tensor,
    up: Tensor,
    g: Tensor,
) -> Result<[Tensor; 2]> {
    const PIECE: usize = 1 << 14;
    let shape = gate.dims2()?;
    let (mut gate, mut up, g) = (into_values(gate)?, into_values(up)?, into_values(g)?);
    gate.par_chunks_mut(PIECE)
        .zip(up.par_chunks_mut(PIECE))
        .zip(g.par_chunks(PIECE))
        .for_each(|((gate, up), g)| {
            vectorized(
                #[inline(always)]
                || {
                    for ((gate, up), g) in gate.iter_mut().zip(up).zip(g) {
                        let (x, s) = (*gate, logistic(*gate));
                        *gate = g * *up * s * (1.0 + x * (1.0 - s));
                        *up = g * x * s;
                    }
                },
            );
        });
    pool.give(g);
    Ok([tensor(gate, shape)?, tensor(up, shape)?])
}
