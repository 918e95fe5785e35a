use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::kernel::{Matrix, add, exp_in_place, into_numbers, max, numbers, scale};

/// A block of logits holds at most this many numbers (64 MB), however large the vocabulary.
const BLOCK: usize = 1 << 24;

/// `sum_i (log sum_j exp(z_ij) - z_i,target(i)) / denominator` with `z = h W^T`: output projection and cross-entropy in
/// one, block by block, so that `[n, v]` never exists.
///
/// Shapes: h `[n, d]` (supervised rows only), W `[v, d]`. As the loss is a scalar its gradients
/// `dz = (softmax(z) - onehot) / denominator`, `dh = dz W`, `dW = dz^T h` are formed on the way forward, while a block is
/// at hand; dW only if W learns.
pub(crate) fn cross_entropy(
    h: &Tensor,
    weight: &Tensor,
    targets: Vec<u32>,
    denominator: f64,
) -> Result<Tensor> {
    let op = CrossEntropy {
        targets,
        scale: (1.0 / denominator) as f32,
        denominator,
        wanted: (h.track_op(), weight.track_op()),
        gradients: Mutex::default(),
    };
    h.apply_op2(weight, op)
}

struct CrossEntropy {
    targets: Vec<u32>,
    scale: f32,
    denominator: f64,
    wanted: (bool, bool),
    gradients: Mutex<(Vec<f32>, Vec<f32>)>,
}

impl CrossEntropy {
    /// Turns a block of logits into `dz` and gives the summed loss.
    fn differentiate(&self, logits: &mut [f32], v: usize, targets: &[u32]) -> f64 {
        let losses: Vec<f64> = logits
            .par_chunks_exact_mut(v)
            .zip(targets)
            .map(|(row, &target)| {
                let target = target as usize;
                let (top, hit) = (max(row), row[target]);
                let sum = exp_in_place(row, top);
                scale(row, self.scale / sum);
                row[target] -= self.scale;
                f64::from(sum).ln() + f64::from(top) - f64::from(hit)
            })
            .collect();
        losses.iter().sum()
    }
}

impl CustomOp2 for CrossEntropy {
    fn name(&self) -> &'static str {
        "linear-cross-entropy"
    }

    fn cpu_fwd(
        &self,
        h: &CpuStorage,
        h_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ((n, d), v) = (h_layout.shape().dims2()?, w_layout.shape().dims2()?.0);
        if n != self.targets.len() || self.targets.iter().any(|&target| target as usize >= v) {
            bail!("{n} rows, {} targets, {v} classes", self.targets.len());
        }
        let w = Matrix::new(w, v, d).at(w_layout.start_offset());
        let rows = (BLOCK / v).clamp(16, 1024);
        let mut total = 0.0;
        let (mut dh, mut dw) = (Vec::new(), Vec::new());
        for (index, targets) in self.targets.chunks(rows).enumerate() {
            let h = Matrix::new(h, targets.len(), d).at(h_layout.start_offset() + index * rows * d);
            let mut logits = into_numbers(h.matmul(w.t())?)?;
            total += self.differentiate(&mut logits, v, targets);
            let logits = CpuStorage::F32(logits);
            let dz = Matrix::new(&logits, targets.len(), v);
            if self.wanted.0 {
                dh.extend_from_slice(numbers(&dz.matmul(w)?)?);
            }
            if self.wanted.1 {
                let block = into_numbers(dz.t().matmul(h)?)?;
                if dw.is_empty() {
                    dw = block;
                } else {
                    add(&mut dw, &block);
                }
            }
        }
        *self
            .gradients
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = (dh, dw);
        let loss = (total / self.denominator) as f32;
        Ok((CpuStorage::F32(vec![loss]), Shape::from(())))
    }

    /// The loss is the end of the graph, so the incoming gradient is 1; the stored gradients are handed over.
    fn bwd(
        &self,
        h: &Tensor,
        w: &Tensor,
        _loss: &Tensor,
        _g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dh, dw) = std::mem::take(
            &mut *self
                .gradients
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        let tensor = |wanted: bool, values: Vec<f32>, like: &Tensor| {
            wanted
                .then(|| Tensor::from_vec(values, like.shape(), &Device::Cpu))
                .transpose()
        };
        Ok((tensor(self.wanted.0, dh, h)?, tensor(self.wanted.1, dw, w)?))
    }
}
