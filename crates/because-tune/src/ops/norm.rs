use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result, Shape, Tensor};

use super::kernel::{column_sums, dot, each_row, slice, with_slice};

/// `y = w * x / sqrt(mean(x^2) + eps)`, row by row (Zhang and Sennrich 2019, arXiv 1910.07467).
///
/// Shapes: x `[n, d]`, w `[d]`. With `q = 1 / sqrt(mean(x^2) + eps)` the backward is
/// `dx = q (w g - x q^2 mean(w g x))` and `dw = sum_n g x q`.
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    x.apply_op2(weight, RmsNorm { eps: eps as f32 })
}

struct RmsNorm {
    eps: f32,
}

impl RmsNorm {
    fn inverse(&self, x: &[f32]) -> f32 {
        1.0 / (dot(x, x) / x.len() as f32 + self.eps).sqrt()
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (slice(x, x_layout)?, slice(w, w_layout)?);
        let d = w.len();
        let mut y = vec![0.0; x.len()];
        each_row(&mut y, d, |row, y| {
            let x = &x[row * d..(row + 1) * d];
            let q = self.inverse(x);
            for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                *y = w * (x * q);
            }
        });
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let d = w.elem_count();
        with_slice(x, |xs| {
            with_slice(w, |ws| {
                with_slice(g, |gs| {
                    let dx = if x.track_op() {
                        let mut dx = vec![0.0; xs.len()];
                        each_row(&mut dx, d, |row, dx| {
                            let (x, g) = (&xs[row * d..(row + 1) * d], &gs[row * d..(row + 1) * d]);
                            let q = self.inverse(x);
                            for ((dx, g), w) in dx.iter_mut().zip(g).zip(ws) {
                                *dx = g * w;
                            }
                            let pull = q * q * dot(dx, x) / d as f32;
                            for (dx, x) in dx.iter_mut().zip(x) {
                                *dx = q * (*dx - x * pull);
                            }
                        });
                        Some(Tensor::from_vec(dx, x.shape(), &Device::Cpu)?)
                    } else {
                        None
                    };
                    let dw = if w.track_op() {
                        let dw = column_sums(xs.len() / d, d, |row, sum| {
                            let (x, g) = (&xs[row * d..(row + 1) * d], &gs[row * d..(row + 1) * d]);
                            let q = self.inverse(x);
                            for ((sum, x), g) in sum.iter_mut().zip(x).zip(g) {
                                *sum += g * (x * q);
                            }
                        });
                        Some(Tensor::from_vec(dw, w.shape(), &Device::Cpu)?)
                    } else {
                        None
                    };
                    Ok((dx, dw))
                })
            })
        })
    }
}
