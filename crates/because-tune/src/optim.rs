use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor};
use rayon::prelude::*;

use crate::error::Result;

/// How the learning rate moves: a straight rise from 0 over `warmup` steps, then half a cosine down to 0 at `total`, as
/// transformers' `get_cosine_schedule_with_warmup` does. `step` counts from 0, so a first step of a warm-up has rate 0.
pub(crate) fn cosine_with_warmup(step: u64, warmup: u64, total: u64) -> f64 {
    if step < warmup {
        return step as f64 / warmup.max(1) as f64;
    }
    let progress = (step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
    (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0)
}

/// AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) with `beta = (0.9, 0.999)` and `eps = 1e-8`, in PyTorch's order
/// of operations:
///
/// `p -= lr decay p`, `m += (1 - b1)(g - m)`, `v = b2 v + (1 - b2) g^2`,
/// `p -= lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)`.
#[derive(Debug, Clone)]
pub(crate) struct AdamW {
    pub(crate) decay: f64,
    /// Steps done.
    pub(crate) step: u64,
    /// The running mean of the gradients, flat as the parameters are.
    pub(crate) mean: Vec<f32>,
    /// The running mean of their squares.
    pub(crate) square: Vec<f32>,
}

impl AdamW {
    pub(crate) fn new(parameters: usize, decay: f64) -> Self {
        Self {
            decay,
            step: 0,
            mean: vec![0.0; parameters],
            square: vec![0.0; parameters],
        }
    }

    /// Moves every parameter once, in one pass over the flat buffers.
    pub(crate) fn step(&mut self, parameters: &Tensor, gradients: &[f32], rate: f64) -> Result<()> {
        const BETA: (f64, f64) = (0.9, 0.999);
        self.step += 1;
        let corrected = |beta: f64| 1.0 - beta.powf(self.step as f64);
        let step = Step {
            size: (rate / corrected(BETA.0)) as f32,
            root: corrected(BETA.1).sqrt() as f32,
            keep: (1.0 - rate * self.decay) as f32,
            fresh: ((1.0 - BETA.0) as f32, (1.0 - BETA.1) as f32),
            old_square: BETA.1 as f32,
            gradients,
            moments: Mutex::new((&mut self.mean, &mut self.square)),
        };
        parameters.inplace_op1(&step)?;
        Ok(())
    }
}

struct Step<'a> {
    size: f32,
    root: f32,
    keep: f32,
    fresh: (f32, f32),
    old_square: f32,
    gradients: &'a [f32],
    moments: Mutex<(&'a mut [f32], &'a mut [f32])>,
}

impl InplaceOp1 for Step<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        const PIECE: usize = 1 << 14;
        let CpuStorage::F32(parameters) = storage else {
            candle_core::bail!("expected f32");
        };
        if layout.contiguous_offsets() != Some((0, self.gradients.len())) {
            candle_core::bail!("expected as many parameters as gradients");
        }
        let mut moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        let (mean, square) = &mut *moments;
        parameters
            .par_chunks_mut(PIECE)
            .zip(mean.par_chunks_mut(PIECE))
            .zip(square.par_chunks_mut(PIECE))
            .zip(self.gradients.par_chunks(PIECE))
            .for_each(|(((p, m), v), g)| {
                for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
                    *m += self.fresh.0 * (g - *m);
                    *v = *v * self.old_square + self.fresh.1 * g * g;
                    *p = *p * self.keep - self.size * *m / (v.sqrt() / self.root + 1e-8);
                }
            });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{tensor, values};

    #[test]
    fn the_schedule_is_the_reference_one() {
        // get_cosine_schedule_with_warmup(num_warmup_steps=2, num_training_steps=10), evaluated by hand.
        let rates: Vec<f64> = [0, 1, 2, 6, 10]
            .map(|step| cosine_with_warmup(step, 2, 10))
            .to_vec();
        for (rate, expected) in rates.iter().zip([0.0, 0.5, 1.0, 0.5, 0.0]) {
            assert!((rate - expected).abs() < 1e-12, "{rates:?}");
        }
        assert_eq!(cosine_with_warmup(0, 0, 5), 1.0);
    }

    #[test]
    fn the_first_step_moves_by_the_rate_whatever_the_gradient() {
        // After one step m / (1 - b1) = g and v / (1 - b2) = g^2, so p moves by lr g / |g|, after its decay.
        let parameters = tensor(vec![1.0, -2.0], 2).unwrap();
        let mut adam = AdamW::new(2, 0.1);
        adam.step(&parameters, &[0.5, -3.0], 0.01).unwrap();
        let p = values(&parameters).unwrap();
        assert!(
            (p[0] - (0.999 - 0.01)).abs() < 1e-6 && (p[1] - (-1.998 + 0.01)).abs() < 1e-6,
            "{p:?}"
        );
    }
}
