use std::ops::{Deref, Range};

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::dropout::Dropout;
use super::gemm::{Mat, MatMut, multiply};
use super::gradients::Gradients;
use super::matrix::{Matrix, Param, Product, Start, Sum, make};
use super::narrow::narrow_product;
use super::pool::{Pool, tensor, view};
use super::simd::{add, add_column_sums, dot, each_row, vectorized};

/// Projections that read the same input: `y_j = x W_j^T + s_j (x A_j^T) B_j^T + bias_j`, with DoRA
/// `y_j = c_j (x W_j^T + s_j (x A_j^T) B_j^T) + bias_j` (Liu et al. 2024, arXiv 2402.09353).
///
/// Their A lie one below the other in one matrix, so that the input is read once for all: a product with a few columns is
/// bound by reading its factors.
#[derive(Debug, Clone)]
pub(crate) struct Projections {
    pub(crate) all: Vec<Projection>,
    /// `[sum of ranks, in]`, if any of them has an adapter.
    pub(crate) a: Option<Param>,
}

#[derive(Debug, Clone)]
pub(crate) struct Projection {
    /// `[out, in]`.
    pub(crate) weight: Matrix,
    /// `[out]`.
    pub(crate) bias: Option<Param>,
    pub(crate) lora: Option<Lora>,
    /// Numbers the projections of the model, for [`Dropout`].
    pub(crate) site: u32,
}

/// A projection's share in an adapter.
#[derive(Debug, Clone)]
pub(crate) struct Lora {
    /// Its rows of the group's A.
    pub(crate) rows: Range<usize>,
    /// `[out, r]`.
    pub(crate) b: Param,
    pub(crate) scale: f32,
    pub(crate) magnitude: Option<Magnitude>,
}

/// DoRA's magnitude `m`, `[out]`, and the squared norms of the frozen weight's rows.
#[derive(Debug, Clone)]
pub(crate) struct Magnitude {
    pub(crate) m: Param,
    pub(crate) squares: Vec<f64>,
}

/// Of a projection with DoRA its factors c, and its result before the bias.
type Scaled = (Vec<f32>, Tensor);

/// What a projection's tiles are finished with.
struct Lent<V> {
    bias: Option<V>,
    b: Option<V>,
    /// DoRA's.
    factors: Option<Vec<f32>>,
}

/// What a backward needs beside the input.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// `s_j x A_j^T` side by side, `[n, sum of ranks]`.
    low: Option<Tensor>,
    scaled: Vec<Option<Scaled>>,
}

impl Kept {
    pub(crate) fn recycle(self, pool: &Pool) -> Result<()> {
        if let Some(low) = self.low {
            pool.recycle(low)?;
        }
        let mut results = self.scaled.into_iter().flatten();
        results.try_for_each(|(_, result)| pool.recycle(result))
    }
}

impl Projections {
    /// Whether any of their parameters learns.
    pub(crate) fn learn(&self) -> bool {
        let param = |param: &Option<Param>| param.as_ref().is_some_and(|one| one.slot.is_some());
        let lora = |lora: &Lora| {
            let magnitude = lora.magnitude.as_ref();
            lora.b.slot.is_some() || magnitude.is_some_and(|one| one.m.slot.is_some())
        };
        param(&self.a)
            || self.all.iter().any(|one| {
                one.weight.slot().is_some()
                    || param(&one.bias)
                    || one.lora.as_ref().is_some_and(lora)
            })
    }

    fn ranks(&self) -> Result<usize> {
        self.a.as_ref().map_or(Ok(0), |a| a.tensor.dim(0))
    }

    /// Results `[n, out_j]` of input `[n, in]`. `start` is added to the result of a group of one.
    pub(crate) fn forward(
        &self,
        pool: &Pool,
        x: &Tensor,
        start: Option<&Tensor>,
        dropout: Option<&Dropout>,
    ) -> Result<(Vec<Tensor>, Kept)> {
        let ((n, input), ranks) = (x.dims2()?, self.ranks()?);
        let low = self.low(pool, x, dropout)?;
        let mut made = Vec::with_capacity(self.all.len());
        let factors: Vec<Option<Vec<f32>>> = {
            let (x, low) = (view(x)?, low.as_ref().map(view).transpose()?);
            let x = Mat::new(&x, n, input);
            let low = low.as_deref().map(|low| Mat::new(low, n, ranks));
            let start = start.map(view).transpose()?;
            let lent = self.all.iter().map(|projection| self.lend(projection));
            let lent = lent.collect::<Result<Vec<_>>>()?;
            for projection in &self.all {
                made.push(pool.take(n * projection.weight.dims()?.0));
            }
            let mut sums = Vec::with_capacity(self.all.len());
            for ((projection, lent), y) in self.all.iter().zip(&lent).zip(&mut made) {
                let (out, _) = projection.weight.dims()?;
                let delta = match (&projection.lora, low, &lent.b) {
                    (Some(lora), Some(low), Some(b)) => Some((
                        low.in_cols(lora.rows.clone()),
                        Mat::new(b, out, lora.rows.len()),
                    )),
                    _ => None,
                };
                let product = Product {
                    x,
                    weight: &projection.weight,
                    transposed: true,
                };
                let start = match &start {
                    // With DoRA it is added after the result was scaled.
                    Some(start) if lent.factors.is_none() => Start::Values(Mat::new(start, n, out)),
                    _ => Start::Zero,
                };
                let sum = Sum::new(MatMut::new(y, n, out), vec![product]).start(start);
                sums.push(sum.finish(move |rows, cols, tile| {
                    if let Some((low, b)) = delta {
                        let b = b.in_rows(cols.clone()).t();
                        multiply(tile, true, 1.0, low.in_rows(rows), b);
                    }
                    match (&lent.factors, &lent.bias) {
                        (Some(factors), _) => scale_columns(tile, &factors[cols]),
                        (None, Some(bias)) => {
                            let bias = &bias[cols];
                            (0..tile.rows).for_each(|row| add(tile.row(row), bias));
                        }
                        (None, None) => {}
                    }
                }));
            }
            make(sums)?;
            lent.into_iter().map(|lent| lent.factors).collect()
        };
        let mut kept = Kept {
            low,
            scaled: Vec::new(),
        };
        let mut results = Vec::with_capacity(self.all.len());
        for ((projection, made), factors) in self.all.iter().zip(made).zip(factors) {
            let (result, scaled) = self.shift(projection, pool, made, factors, start)?;
            results.push(tensor(result, (n, projection.weight.dims()?.0))?);
            kept.scaled.push(scaled);
        }
        Ok((results, kept))
    }

    /// `s_j x A_j^T` side by side.
    fn low(&self, pool: &Pool, x: &Tensor, dropout: Option<&Dropout>) -> Result<Option<Tensor>> {
        let Some(a) = &self.a else {
            return Ok(None);
        };
        let ((n, input), ranks) = (x.dims2()?, self.ranks()?);
        let a = view(&a.tensor)?;
        let a = Mat::new(&a, ranks, input);
        let mut low = pool.take(n * ranks);
        if let Some(dropout) = dropout {
            for (projection, lora) in self.adapted() {
                let x = dropout.apply(pool, x, projection.site)?;
                {
                    let x = view(&x)?;
                    let into =
                        MatMut::strided(&mut low[lora.rows.start..], n, lora.rows.len(), ranks);
                    let a = a.in_rows(lora.rows.clone());
                    narrow_product(into, lora.scale, Mat::new(&x, n, input), a);
                }
                pool.recycle(x)?;
            }
        } else {
            let x = view(x)?;
            let into = MatMut::new(&mut low, n, ranks);
            narrow_product(into, 1.0, Mat::new(&x, n, input), a);
            let mut scales = vec![0.0; ranks];
            for (_, lora) in self.adapted() {
                scales[lora.rows.clone()].fill(lora.scale);
            }
            each_row(
                &mut low,
                ranks,
                #[inline(always)]
                |_, low| {
                    low.iter_mut().zip(&scales).for_each(|(low, s)| *low *= s);
                },
            );
        }
        Ok(Some(tensor(low, (n, ranks))?))
    }

    fn adapted(&self) -> impl Iterator<Item = (&Projection, &Lora)> {
        self.all
            .iter()
            .filter_map(|projection| Some((projection, projection.lora.as_ref()?)))
    }

    fn lend<'a>(
        &self,
        projection: &'a Projection,
    ) -> Result<Lent<impl Deref<Target = [f32]> + 'a>> {
        let bias = projection.bias.as_ref().map(|bias| view(&bias.tensor));
        let b = projection.lora.as_ref().map(|lora| view(&lora.b.tensor));
        let magnitude = projection
            .lora
            .as_ref()
            .and_then(|lora| lora.magnitude.as_ref());
        let factors = magnitude.map(|magnitude| self.factors(projection, magnitude));
        Ok(Lent {
            bias: bias.transpose()?,
            b: b.transpose()?,
            factors: factors.transpose()?,
        })
    }

    /// With DoRA, adds the bias and `start` to a copy of the scaled result, which is kept.
    fn shift(
        &self,
        projection: &Projection,
        pool: &Pool,
        scaled: Vec<f32>,
        factors: Option<Vec<f32>>,
        start: Option<&Tensor>,
    ) -> Result<(Vec<f32>, Option<Scaled>)> {
        let Some(factors) = factors else {
            return Ok((scaled, None));
        };
        let out = factors.len();
        let start = start.map(view).transpose()?;
        let bias = projection.bias.as_ref().map(|bias| view(&bias.tensor));
        let bias = bias.transpose()?;
        let mut y = pool.take(scaled.len());
        each_row(
            &mut y,
            out,
            #[inline(always)]
            |row, y| {
                y.copy_from_slice(&scaled[row * out..][..out]);
                if let Some(bias) = &bias {
                    add(y, bias);
                }
                if let Some(start) = &start {
                    add(y, &start[row * out..][..out]);
                }
            },
        );
        let rows = scaled.len() / out;
        Ok((y, Some((factors, tensor(scaled, (rows, out))?))))
    }

    /// DoRA's `c = m / ||W + s B A||`, row by row, from `||w||^2 + 2 s b (A w) + s^2 b (A A^T) b`: the adapted weight is
    /// never formed.
    pub(crate) fn factors(
        &self,
        projection: &Projection,
        magnitude: &Magnitude,
    ) -> Result<Vec<f32>> {
        let (Some(lora), Some(a)) = (&projection.lora, &self.a) else {
            return Ok(Vec::new());
        };
        let (out, input) = projection.weight.dims()?;
        let (a, b, m) = (
            view(&a.tensor)?,
            view(&lora.b.tensor)?,
            view(&magnitude.m.tensor)?,
        );
        let rank = lora.rows.len();
        let a = Mat::new(&a, self.ranks()?, input).in_rows(lora.rows.clone());
        let (mut aw, mut aa) = (vec![0.0; rank * out], vec![0.0; rank * rank]);
        let product = Product {
            x: a,
            weight: &projection.weight,
            transposed: true,
        };
        make(vec![Sum::new(
            MatMut::new(&mut aw, rank, out),
            vec![product],
        )])?;
        multiply(&mut MatMut::new(&mut aa, rank, rank), false, 1.0, a, a.t());
        let scale = f64::from(lora.scale);
        let factor = |row: usize| {
            let b = &b[row * rank..][..rank];
            let (mut cross, mut square) = (0.0, 0.0);
            for (i, &left) in b.iter().enumerate() {
                cross += f64::from(left) * f64::from(aw[i * out + row]);
                for (j, &right) in b.iter().enumerate() {
                    square += f64::from(left) * f64::from(right) * f64::from(aa[i * rank + j]);
                }
            }
            let norm = magnitude.squares[row] + scale * (2.0 * cross + scale * square);
            m[row] / norm.max(0.0).sqrt() as f32
        };
        Ok((0..out).into_par_iter().map(factor).collect())
    }

    /// Adds the gradients of everything that learns, from g `[n, out_j]`, and gives that of the input if it is wanted.
    ///
    /// `dx = sum_j g_j W_j + s_j (g_j B_j) A_j`, `dA_j = s_j (g_j B_j)^T x`, `dB_j = g_j^T (s_j x A_j^T)`,
    /// `dW_j = g_j^T x`, `dbias_j = sum_n g_j`; with DoRA g_j stands for `c_j g_j` except in `dbias_j`, and
    /// `dm_j = sum_n g_j y_j / m_j` with y before the bias (the norm counts as a constant, as in PEFT).
    pub(crate) fn backward(
        &self,
        pool: &Pool,
        (x, kept): (&Tensor, &Kept),
        g: &[Tensor],
        dropout: Option<&Dropout>,
        gradients: &mut Gradients,
        wants_input: bool,
    ) -> Result<Option<Tensor>> {
        let ((n, input), ranks) = (x.dims2()?, self.ranks()?);
        let x_view = view(x)?;
        let x_mat = Mat::new(&x_view, n, input);
        let mut scaled = Vec::new();
        for ((projection, g), kept) in self.all.iter().zip(g).zip(&kept.scaled) {
            if let Some(slot) = projection.bias.as_ref().and_then(|bias| bias.slot) {
                let (out, g) = (g.dim(1)?, view(g)?);
                add_column_sums(
                    gradients.at(slot, out),
                    n,
                    #[inline(always)]
                    |row, sum| {
                        add(sum, &g[row * out..][..out]);
                    },
                );
            }
            scaled.push(match kept {
                Some((factors, result)) => {
                    Some(self.unscale(projection, pool, g, (factors, result), gradients)?)
                }
                None => None,
            });
        }
        let g: Vec<&Tensor> = scaled
            .iter()
            .zip(g)
            .map(|(scaled, g)| scaled.as_ref().unwrap_or(g))
            .collect();
        let views = g.iter().map(|g| view(g)).collect::<Result<Vec<_>>>()?;
        let mats = self.all.iter().zip(&views).map(|(projection, g)| {
            let (out, _) = projection.weight.dims()?;
            Ok(Mat::new(g, n, out))
        });
        let g_mats = mats.collect::<Result<Vec<_>>>()?;
        for (projection, g) in self.all.iter().zip(&g_mats) {
            if let Some(slot) = projection.weight.slot() {
                let into = MatMut::new(gradients.at(slot, g.cols * input), g.cols, input);
                make(vec![Sum::add(into, g.t(), x_mat)])?;
            }
        }
        let g_low = self.low_gradient(pool, &g_mats)?;
        let mut dx = wants_input.then(|| pool.take(n * input));
        let mut db = Vec::new();
        for lora in self.all.iter().map(|projection| projection.lora.as_ref()) {
            db.push(lora.map(|lora| vec![0.0; lora.b.tensor.elem_count()]));
        }
        {
            let low = kept.low.as_ref().map(view).transpose()?;
            let low = low.as_deref().map(|low| Mat::new(low, n, ranks));
            let g_low = Mat::new(&g_low, n, ranks);
            let a = self.a.as_ref().map(|a| view(&a.tensor)).transpose()?;
            let a = a.as_deref().map(|a| Mat::new(a, ranks, input));
            let mut sums = Vec::new();
            if let Some(dx) = &mut dx {
                let products = self
                    .all
                    .iter()
                    .zip(&g_mats)
                    .map(|(projection, &x)| Product {
                        x,
                        weight: &projection.weight,
                        transposed: false,
                    });
                let sum = Sum::new(MatMut::new(dx, n, input), products.collect());
                sums.push(match (a, dropout) {
                    (Some(a), None) => sum.plus(g_low, a),
                    _ => sum,
                });
            }
            for ((projection, &g), db) in self.all.iter().zip(&g_mats).zip(&mut db) {
                if let (Some(lora), Some(low), Some(db)) = (&projection.lora, low, db) {
                    // The other way round the rows of dB would be too short for the machine's registers.
                    let into = MatMut::new(db, lora.rows.len(), g.cols);
                    sums.push(Sum::add(into, low.in_cols(lora.rows.clone()).t(), g));
                }
            }
            if let (Some(slot), None) = (self.a.as_ref().and_then(|a| a.slot), dropout) {
                let into = MatMut::new(gradients.at(slot, ranks * input), ranks, input);
                sums.push(Sum::add(into, g_low.t(), x_mat));
            }
            make(sums)?;
            if let (Some(a), Some(dropout)) = (a, dropout) {
                self.dropout_backward(pool, x, g_low, a, dropout, gradients, dx.as_deref_mut())?;
            }
        }
        for (projection, db) in self.all.iter().zip(db) {
            if let (Some(lora), Some(db)) = (&projection.lora, db)
                && let Some(slot) = lora.b.slot
            {
                let out = db.len() / lora.rows.len();
                add(gradients.at(slot, db.len()), &transposed(&db, out));
            }
        }
        drop(g_mats);
        drop(views);
        pool.give(g_low);
        for scaled in scaled.into_iter().flatten() {
            pool.recycle(scaled)?;
        }
        dx.map(|dx| tensor(dx, (n, input))).transpose()
    }

    /// `s_j g_j B_j` side by side.
    fn low_gradient(&self, pool: &Pool, g: &[Mat<'_>]) -> Result<Vec<f32>> {
        let (n, ranks) = (g.first().map_or(0, |g| g.rows), self.ranks()?);
        let mut low = pool.take(n * ranks);
        for (projection, &g) in self.all.iter().zip(g) {
            if let Some(lora) = &projection.lora {
                let rank = lora.rows.len();
                let b = transposed(&view(&lora.b.tensor)?, rank);
                let into = MatMut::strided(&mut low[lora.rows.start..], n, rank, ranks);
                narrow_product(into, lora.scale, g, Mat::new(&b, rank, g.cols));
            }
        }
        Ok(low)
    }

    /// The gradients of A, and what reaches the input through it, where each projection saw an input with other numbers
    /// dropped.
    #[allow(
        clippy::too_many_arguments,
        reason = "what the backward has at hand, in one use"
    )]
    fn dropout_backward(
        &self,
        pool: &Pool,
        x: &Tensor,
        g_low: Mat<'_>,
        a: Mat<'_>,
        dropout: &Dropout,
        gradients: &mut Gradients,
        mut dx: Option<&mut [f32]>,
    ) -> Result<()> {
        let (n, input) = x.dims2()?;
        let slot = self.a.as_ref().and_then(|a| a.slot);
        for (projection, lora) in self.adapted() {
            let g_low = g_low.in_cols(lora.rows.clone());
            if let Some(slot) = slot {
                let dropped = dropout.apply(pool, x, projection.site)?;
                {
                    let (x, rank) = (view(&dropped)?, lora.rows.len());
                    let at = slot + lora.rows.start * input;
                    let into = MatMut::new(gradients.at(at, rank * input), rank, input);
                    make(vec![Sum::add(into, g_low.t(), Mat::new(&x, n, input))])?;
                }
                pool.recycle(dropped)?;
            }
            if let Some(dx) = dx.as_deref_mut() {
                let mut part = pool.take(n * input);
                let into = MatMut::new(&mut part, n, input);
                let a = a.in_rows(lora.rows.clone());
                make(vec![Sum::new(into, Vec::new()).plus(g_low, a)])?;
                each_row(
                    dx,
                    input,
                    #[inline(always)]
                    |row, dx| {
                        let part = &part[row * input..][..input];
                        dropout.add_backward(row, projection.site, part, dx);
                    },
                );
                pool.give(part);
            }
        }
        Ok(())
    }

    /// Adds the gradient of DoRA's magnitude and gives `c g`.
    fn unscale(
        &self,
        projection: &Projection,
        pool: &Pool,
        g: &Tensor,
        (factors, result): (&[f32], &Tensor),
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let ((n, out), g, result) = (g.dims2()?, view(g)?, view(result)?);
        let magnitude = projection
            .lora
            .as_ref()
            .and_then(|lora| lora.magnitude.as_ref());
        if let Some(magnitude) = magnitude
            && let Some(slot) = magnitude.m.slot
        {
            let m = view(&magnitude.m.tensor)?;
            let mut sums = vec![0.0; out];
            add_column_sums(
                &mut sums,
                n,
                #[inline(always)]
                |row, sum| {
                    let (g, y) = (&g[row * out..][..out], &result[row * out..][..out]);
                    for ((sum, g), y) in sum.iter_mut().zip(g).zip(y) {
                        *sum += g * y;
                    }
                },
            );
            for ((into, sum), m) in gradients.at(slot, out).iter_mut().zip(&sums).zip(&*m) {
                *into += sum / m;
            }
        }
        let mut scaled = pool.take(n * out);
        each_row(
            &mut scaled,
            out,
            #[inline(always)]
            |row, scaled| {
                let g = &g[row * out..][..out];
                for ((scaled, g), c) in scaled.iter_mut().zip(g).zip(factors) {
                    *scaled = g * c;
                }
            },
        );
        tensor(scaled, (n, out))
    }
}

fn scale_columns(tile: &mut MatMut<'_>, factors: &[f32]) {
    for row in 0..tile.rows {
        let numbers = tile.row(row).iter_mut().zip(factors);
        numbers.for_each(|(y, factor)| *y *= factor);
    }
}

/// The transpose of a matrix with rows of this width.
fn transposed(values: &[f32], width: usize) -> Vec<f32> {
    (0..width)
        .flat_map(|col| values[col..].iter().step_by(width).copied())
        .collect()
}

/// The squared norms of a weight's rows.
pub(crate) fn row_squares(weight: &Matrix) -> Result<Vec<f64>> {
    let mut squares = Vec::new();
    weight.rows(0..weight.dims()?.0 as u32, |_, row| {
        let square: f64 = row
            .chunks(256)
            .map(|part| f64::from(vectorized(|| dot(part, part))))
            .sum();
        squares.push(square);
    })?;
    Ok(squares)
}
