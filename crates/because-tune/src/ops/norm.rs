use candle_core::{Result, Tensor};

use super::gradients::Gradients;
use super::matrix::Param;
use super::pool::{Pool, into_values, tensor, view};
use super::simd::{add_column_sums, dot, dot3, each_row};

/// `y = w * x / sqrt(mean(x^2) + eps)`, row by row (Zhang and Sennrich 2019, arXiv 1910.07467).
///
/// Shapes: x `[n, d]`, w `[d]`.
pub(crate) fn rms_norm(pool: &Pool, x: &Tensor, weight: &Param, eps: f64) -> Result<Tensor> {
    let ((n, d), x, w) = (x.dims2()?, view(x)?, view(&weight.tensor)?);
    let mut y = pool.take(n * d);
    rms_norm_into(&mut y, &x, &w, eps);
    tensor(y, (n, d))
}

/// [`rms_norm`] on plain numbers.
pub(crate) fn rms_norm_into(y: &mut [f32], x: &[f32], w: &[f32], eps: f64) {
    let d = w.len();
    each_row(
        y,
        d,
        #[inline(always)]
        |row, y| {
            let x = &x[row * d..][..d];
            let q = inverse(x, eps);
            for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                *y = w * (x * q);
            }
        },
    );
}

/// With `q = 1 / sqrt(mean(x^2) + eps)` and g the gradient of y: adds `dx = q (w g - x q^2 mean(w g x))` to `into`, and
/// `dw = sum_n g x q` to the flat gradients if w learns.
pub(crate) fn rms_norm_backward(
    (x, weight, eps): (&Tensor, &Param, f64),
    g: &Tensor,
    into: Tensor,
    gradients: &mut Gradients,
) -> Result<Tensor> {
    let shape = x.dims2()?;
    let (d, x, w, g) = (shape.1, view(x)?, view(&weight.tensor)?, view(g)?);
    let mut dx = into_values(into)?;
    each_row(
        &mut dx,
        d,
        #[inline(always)]
        |row, dx| {
            let (x, g) = (&x[row * d..][..d], &g[row * d..][..d]);
            let q = inverse(x, eps);
            let pull = q * q * dot3(x, g, &w) / d as f32;
            for (((dx, x), g), w) in dx.iter_mut().zip(x).zip(g).zip(&*w) {
                *dx += q * (g * w - x * pull);
            }
        },
    );
    if let Some(slot) = weight.slot {
        add_column_sums(
            gradients.at(slot, d),
            shape.0,
            #[inline(always)]
            |row, sum| {
                let (x, g) = (&x[row * d..][..d], &g[row * d..][..d]);
                let q = inverse(x, eps);
                for ((sum, x), g) in sum.iter_mut().zip(x).zip(g) {
                    *sum += g * (x * q);
                }
            },
        );
    }
    tensor(dx, shape)
}

#[inline(always)]
fn inverse(x: &[f32], eps: f64) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + eps as f32).sqrt()
}
