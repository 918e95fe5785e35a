use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result, Shape, Tensor};

use super::kernel::{each_row, exp, slice, with_slice};

/// `y = silu(gate) * up` with `silu(x) = x s(x)`, `s` the logistic function (Shazeer 2020, arXiv 2002.05202).
///
/// All `[n, inner]`. Backward: `dup = g silu(gate)`, `dgate = g up s (1 + gate (1 - s))`.
pub(crate) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.apply_op2(up, SwiGlu)
}

struct SwiGlu;

fn logistic(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (slice(gate, gate_layout)?, slice(up, up_layout)?);
        let width = gate_layout.shape().dims2()?.1;
        let mut y = vec![0.0; gate.len()];
        each_row(&mut y, width, |row, y| {
            let (gate, up) = (&gate[row * width..][..width], &up[row * width..][..width]);
            for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
                *y = gate * logistic(*gate) * up;
            }
        });
        Ok((CpuStorage::F32(y), gate_layout.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let width = gate.dims2()?.1;
        let (dgate, dup) = with_slice(gate, |gates| {
            with_slice(up, |ups| {
                with_slice(g, |gs| {
                    let (mut dgate, mut dup) = (vec![0.0; gs.len()], vec![0.0; gs.len()]);
                    each_row(&mut dgate, width, |row, dgate| {
                        let at = row * width;
                        let (gate, up, g) = (
                            &gates[at..][..width],
                            &ups[at..][..width],
                            &gs[at..][..width],
                        );
                        for (((d, gate), up), g) in dgate.iter_mut().zip(gate).zip(up).zip(g) {
                            let s = logistic(*gate);
                            *d = g * up * s * (1.0 + gate * (1.0 - s));
                        }
                    });
                    each_row(&mut dup, width, |row, dup| {
                        let (gate, g) =
                            (&gates[row * width..][..width], &gs[row * width..][..width]);
                        for ((d, gate), g) in dup.iter_mut().zip(gate).zip(g) {
                            *d = g * gate * logistic(*gate);
                        }
                    });
                    Ok((dgate, dup))
                })
            })
        })?;
        Ok((
            Some(Tensor::from_vec(dgate, gate.shape(), &Device::Cpu)?),
            Some(Tensor::from_vec(dup, up.shape(), &Device::Cpu)?),
        ))
    }
}
