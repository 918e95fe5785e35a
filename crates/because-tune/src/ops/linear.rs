use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, Device, Layout, Result, Shape, Tensor,
};

use super::kernel::{
    Matrix, add, column_sums, each_row, into_numbers, numbers, scale, slice, with_slice,
    with_storage,
};

/// `y = x W^T + bias` with a weight that never learns: the backward gives `dx = g W` and nothing else.
///
/// Shapes: x `[n, in]`, W `[out, in]`, bias `[out]`, y `[n, out]`.
pub(crate) fn frozen_linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    x.apply_op1(FrozenLinear {
        weight: weight.clone(),
        bias: bias.cloned(),
    })
}

/// `y = x W^T` where both may learn.
pub(crate) fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    x.apply_op2(weight, Linear)
}

/// `y = x + bias`, row by row.
pub(crate) fn add_bias(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    x.apply_op2(bias, AddBias)
}

/// `y = x W^T + bias + scale (x A^T) B^T`, W and bias frozen.
///
/// Shapes: A `[r, in]`, B `[out, r]`. Backward: `dx = g W + scale (g B) A`, `dA = scale (g B)^T x`,
/// `dB = scale g^T (x A^T)`.
pub(crate) fn lora_linear(
    x: &Tensor,
    (a, b, scale): (&Tensor, &Tensor, f32),
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let frozen = FrozenLinear {
        weight: weight.clone(),
        bias: bias.cloned(),
    };
    x.apply_op3(a, b, LoraLinear { frozen, scale })
}

struct FrozenLinear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl FrozenLinear {
    fn forward(&self, x: &CpuStorage, layout: &Layout) -> Result<Vec<f32>> {
        let (out, input) = self.weight.dims2()?;
        let n = layout.shape().elem_count() / input;
        let x = Matrix::new(x, n, input).at(layout.start_offset());
        let mut y = with_storage(&self.weight, |w| {
            into_numbers(x.matmul(Matrix::new(w, out, input).t())?)
        })?;
        if let Some(bias) = &self.bias {
            with_slice(bias, |bias| {
                each_row(&mut y, out, |_, y| add(y, bias));
                Ok(())
            })?;
        }
        Ok(y)
    }

    fn input_gradient(&self, g: &Tensor) -> Result<Vec<f32>> {
        let (out, input) = self.weight.dims2()?;
        let n = g.elem_count() / out;
        with_storage(g, |g| {
            with_storage(&self.weight, |w| {
                into_numbers(Matrix::new(g, n, out).matmul(Matrix::new(w, out, input))?)
            })
        })
    }
}

fn rows_by(width: usize, values: usize) -> Shape {
    Shape::from((values / width, width))
}

impl CustomOp1 for FrozenLinear {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = self.forward(x, layout)?;
        let shape = rows_by(self.weight.dim(0)?, y.len());
        Ok((CpuStorage::F32(y), shape))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(Tensor::from_vec(
            self.input_gradient(g)?,
            x.shape(),
            &Device::Cpu,
        )?))
    }
}

struct LoraLinear {
    frozen: FrozenLinear,
    scale: f32,
}

impl CustomOp3 for LoraLinear {
    fn name(&self) -> &'static str {
        "lora-linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rank, input) = a_layout.shape().dims2()?;
        let out = b_layout.shape().dims2()?.0;
        let mut y = self.frozen.forward(x, x_layout)?;
        let n = y.len() / out;
        let x = Matrix::new(x, n, input).at(x_layout.start_offset());
        let mut low =
            into_numbers(x.matmul(Matrix::new(a, rank, input).at(a_layout.start_offset()).t())?)?;
        scale(&mut low, self.scale);
        let low = CpuStorage::F32(low);
        let b = Matrix::new(b, out, rank).at(b_layout.start_offset());
        let delta = Matrix::new(&low, n, rank).matmul(b.t())?;
        let delta = numbers(&delta)?;
        each_row(&mut y, out, |row, y| {
            add(y, &delta[row * out..(row + 1) * out])
        });
        Ok((CpuStorage::F32(y), Shape::from((n, out))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let ((rank, input), (out, _)) = (a.dims2()?, b.dims2()?);
        let n = g.elem_count() / out;
        let (dx, da, db) = with_storage(g, |g| {
            with_storage(x, |x| {
                with_storage(a, |a| {
                    with_storage(b, |b| {
                        let (g, x) = (Matrix::new(g, n, out), Matrix::new(x, n, input));
                        let mut low = into_numbers(x.matmul(Matrix::new(a, rank, input).t())?)?;
                        scale(&mut low, self.scale);
                        let low = CpuStorage::F32(low);
                        let db = g.t().matmul(Matrix::new(&low, n, rank))?;
                        let mut g_low = into_numbers(g.matmul(Matrix::new(b, out, rank))?)?;
                        scale(&mut g_low, self.scale);
                        let g_low = CpuStorage::F32(g_low);
                        let g_low = Matrix::new(&g_low, n, rank);
                        let da = g_low.t().matmul(x)?;
                        Ok((g_low.matmul(Matrix::new(a, rank, input))?, da, db))
                    })
                })
            })
        })?;
        let dx = if x.track_op() {
            let mut total = self.frozen.input_gradient(g)?;
            let low = numbers(&dx)?;
            each_row(&mut total, input, |row, total| {
                add(total, &low[row * input..(row + 1) * input])
            });
            Some(Tensor::from_vec(total, x.shape(), &Device::Cpu)?)
        } else {
            None
        };
        Ok((
            dx,
            Some(Tensor::from_vec(
                into_numbers(da)?,
                (rank, input),
                &Device::Cpu,
            )?),
            Some(Tensor::from_vec(
                into_numbers(db)?,
                (out, rank),
                &Device::Cpu,
            )?),
        ))
    }
}

struct Linear;

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (out, input) = w_layout.shape().dims2()?;
        let n = x_layout.shape().elem_count() / input;
        let x = Matrix::new(x, n, input).at(x_layout.start_offset());
        let y = x.matmul(Matrix::new(w, out, input).at(w_layout.start_offset()).t())?;
        Ok((y, Shape::from((n, out))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (out, input) = w.dims2()?;
        let n = g.elem_count() / out;
        let (dx, dw) = with_storage(g, |g| {
            let g = Matrix::new(g, n, out);
            let dx = if x.track_op() {
                Some(with_storage(w, |w| g.matmul(Matrix::new(w, out, input)))?)
            } else {
                None
            };
            let dw = if w.track_op() {
                Some(with_storage(x, |x| g.t().matmul(Matrix::new(x, n, input)))?)
            } else {
                None
            };
            Ok((dx, dw))
        })?;
        let tensor = |values: Option<CpuStorage>, like: &Tensor| {
            values
                .map(|values| Tensor::from_vec(into_numbers(values)?, like.shape(), &Device::Cpu))
                .transpose()
        };
        Ok((tensor(dx, x)?, tensor(dw, w)?))
    }
}

struct AddBias;

impl CustomOp2 for AddBias {
    fn name(&self) -> &'static str {
        "add-bias"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let bias = slice(bias, bias_layout)?;
        let mut y = slice(x, x_layout)?.to_vec();
        each_row(&mut y, bias.len(), |_, y| add(y, bias));
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        _x: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let out = bias.elem_count();
        let db = with_slice(g, |values| {
            Ok(column_sums(values.len() / out, out, |row, sum| {
                add(sum, &values[row * out..(row + 1) * out]);
            }))
        })?;
        Ok((
            Some(g.clone()),
            Some(Tensor::from_vec(db, bias.shape(), &Device::Cpu)?),
        ))
    }
}
