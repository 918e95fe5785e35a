use candle_core::Result;
use rayon::prelude::*;

use super::matrix::Matrix;
use super::simd::{dot, vectorized};

/// One of several products with the same left factor.
pub(crate) struct Linear<'a> {
    /// `[out, in]`.
    pub(crate) weight: &'a Matrix,
    /// `[out]`.
    pub(crate) bias: Option<&'a [f32]>,
    /// `[rows, out]`, row-major.
    pub(crate) into: &'a mut [f32],
}

/// `into = x W^T + bias` of each job, x `[rows, in]`, each number summed in an order that depends on `in` alone.
pub(crate) fn linear(x: &[f32], rows: usize, jobs: &mut [Linear<'_>]) -> Result<()> {
    for job in jobs {
        let (out, input) = job.weight.dims()?;
        let weights = job.weight.values()?;
        job.into.par_chunks_mut(out).take(rows).enumerate().for_each(|(row, into)| {
            let x = &x[row * input..][..input];
            vectorized(
                #[inline(always)]
                || {
                    for (at, (into, weight)) in into.iter_mut().zip(weights.chunks_exact(input)).enumerate() {
                        *into = dot(x, weight) + job.bias.map_or(0.0, |bias| bias[at]);
                    }
                },
            );
        });
    }
    Ok(())
}
