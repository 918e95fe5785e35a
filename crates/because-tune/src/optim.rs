use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::error::{Result, TuneError};
use crate::ops::values;
use crate::params::Parameters;

/// How the learning rate moves: a straight rise from 0 over `warmup` steps, then half a cosine down to 0 at `total`, as
/// transformers' `get_cosine_schedule_with_warmup` does. `step` counts from 0, so a first step of a warm-up has rate 0.
pub(crate) fn cosine_with_warmup(step: u64, warmup: u64, total: u64) -> f64 {
    if step < warmup {
        return step as f64 / warmup.max(1) as f64;
    }
    let progress = (step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
    (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0)
}

/// The gradients of one step, summed over its micro-batches: one flat f32 buffer for each parameter.
#[derive(Debug)]
pub(crate) struct Gradients(pub(crate) Vec<Vec<f32>>);

impl Gradients {
    pub(crate) fn zeros(parameters: &Parameters) -> Self {
        Self(
            parameters
                .iter()
                .map(|(_, variable)| vec![0.0; variable.elem_count()])
                .collect(),
        )
    }

    pub(crate) fn clear(&mut self) {
        self.0.iter_mut().for_each(|gradient| gradient.fill(0.0));
    }

    /// Adds what a backward gave. A parameter without a gradient means that the graph is cut, and that is never let
    /// pass: training on would leave it as it is, without a word.
    pub(crate) fn accumulate(
        &mut self,
        parameters: &Parameters,
        mut store: candle_core::backprop::GradStore,
        step: u64,
    ) -> Result<()> {
        for ((name, variable), into) in parameters.iter().zip(&mut self.0) {
            let gradient = store
                .remove(variable)
                .ok_or_else(|| TuneError::NoGradient {
                    parameter: name.to_owned(),
                    step,
                })?;
            let new = values(&gradient)?;
            into.iter_mut()
                .zip(&new)
                .for_each(|(into, new)| *into += new);
        }
        Ok(())
    }

    /// The Euclidean norm over all parameters together.
    pub(crate) fn norm(&self) -> f64 {
        let square = |gradient: &Vec<f32>| {
            gradient
                .iter()
                .map(|&g| f64::from(g) * f64::from(g))
                .sum::<f64>()
        };
        self.0.iter().map(square).sum::<f64>().sqrt()
    }

    /// Scales down to a norm of at most `most` (0 for no bound) and gives the norm before, as `clip_grad_norm_` does.
    pub(crate) fn clip(&mut self, most: f64) -> f64 {
        let norm = self.norm();
        let factor = most / (norm + 1e-6);
        if most > 0.0 && factor < 1.0 {
            self.0
                .iter_mut()
                .flatten()
                .for_each(|g| *g *= factor as f32);
        }
        norm
    }
}

/// AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) with `beta = (0.9, 0.999)` and `eps = 1e-8`, in PyTorch's order
/// of operations:
///
/// `p -= lr decay p`, `m += (1 - b1)(g - m)`, `v = b2 v + (1 - b2) g^2`,
/// `p -= lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)`.
#[derive(Debug)]
pub(crate) struct AdamW {
    pub(crate) decay: f64,
    /// Steps done.
    pub(crate) step: u64,
    /// The two running means of each parameter.
    pub(crate) moments: Vec<(Vec<f32>, Vec<f32>)>,
}

impl AdamW {
    pub(crate) fn new(parameters: &Parameters, decay: f64) -> Self {
        let zeros = |count| vec![0.0; count];
        let moments = parameters
            .iter()
            .map(|(_, variable)| (zeros(variable.elem_count()), zeros(variable.elem_count())))
            .collect();
        Self {
            decay,
            step: 0,
            moments,
        }
    }

    /// Moves every parameter once.
    pub(crate) fn step(
        &mut self,
        parameters: &Parameters,
        gradients: &Gradients,
        rate: f64,
    ) -> Result<()> {
        const BETA: (f64, f64) = (0.9, 0.999);
        self.step += 1;
        let corrected = |beta: f64| 1.0 - beta.powf(self.step as f64);
        let size = (rate / corrected(BETA.0)) as f32;
        let root = corrected(BETA.1).sqrt() as f32;
        let keep = (1.0 - rate * self.decay) as f32;
        let new = [(1.0 - BETA.0) as f32, (1.0 - BETA.1) as f32];
        let moved: Vec<Result<Vec<f32>>> = parameters
            .iter()
            .zip(&mut self.moments)
            .zip(&gradients.0)
            .collect::<Vec<_>>()
            .into_par_iter()
            .map(|(((_, variable), (m, v)), g)| {
                let mut p = values(variable)?;
                for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
                    *m += new[0] * (g - *m);
                    *v = *v * BETA.1 as f32 + new[1] * g * g;
                    *p = *p * keep - size * *m / (v.sqrt() / root + 1e-8);
                }
                Ok(p)
            })
            .collect();
        for ((_, variable), moved) in parameters.iter().zip(moved) {
            variable.set(&Tensor::from_vec(moved?, variable.shape(), &Device::Cpu)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let parameters = Parameters::new([("p".into(), vec![2], vec![1.0, -2.0])]).unwrap();
        let mut adam = AdamW::new(&parameters, 0.1);
        adam.step(&parameters, &Gradients(vec![vec![0.5, -3.0]]), 0.01)
            .unwrap();
        let p = values(&parameters.tracked()[0]).unwrap();
        assert!(
            (p[0] - (0.999 - 0.01)).abs() < 1e-6 && (p[1] - (-1.998 + 0.01)).abs() < 1e-6,
            "{p:?}"
        );
    }

    #[test]
    fn clipping_keeps_the_direction() {
        let mut gradients = Gradients(vec![vec![3.0], vec![4.0]]);
        assert_eq!(gradients.clip(0.0), 5.0);
        assert_eq!(gradients.0, [[3.0], [4.0]]);
        assert_eq!(gradients.clip(1.0), 5.0);
        assert!((gradients.0[0][0] - 0.6).abs() < 1e-6 && (gradients.0[1][0] - 0.8).abs() < 1e-6);
    }

    #[test]
    fn a_parameter_outside_of_the_graph_is_an_error_that_names_it() {
        let parameters = Parameters::new([
            ("in".into(), vec![1], vec![1.0]),
            ("out".into(), vec![1], vec![1.0]),
        ])
        .unwrap();
        let store = parameters.tracked()[0].sqr().unwrap().backward().unwrap();
        let error = Gradients::zeros(&parameters)
            .accumulate(&parameters, store, 3)
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "step 3: parameter out received no gradient"
        );
    }
}
