use std::ops::Range;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::dropout::Dropout;
use super::gemm::{Mat, MatMut, multiply};
use super::gradients::Gradients;
use super::matrix::{Matrix, Param, Product, add_product, sum_of_products};
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
        let mut kept = Kept {
            low: self.low(pool, x, dropout)?,
            scaled: Vec::new(),
        };
        let mut results = Vec::with_capacity(self.all.len());
        for projection in &self.all {
            let low = kept.low.as_ref();
            let (result, scaled) = self.project(projection, pool, x, low, start)?;
            results.push(result);
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

    fn project(
        &self,
        projection: &Projection,
        pool: &Pool,
        x: &Tensor,
        low: Option<&Tensor>,
        start: Option<&Tensor>,
    ) -> Result<(Tensor, Option<Scaled>)> {
        let ((n, input), (out, _)) = (x.dims2()?, projection.weight.dims()?);
        let (x, low) = (view(x)?, low.map(view).transpose()?);
        let start = start.map(view).transpose()?;
        let start = start.as_deref().map(|start| Mat::new(start, n, out));
        let bias = projection.bias.as_ref().map(|bias| view(&bias.tensor));
        let bias = bias.transpose()?;
        let b = projection.lora.as_ref().map(|lora| view(&lora.b.tensor));
        let b = b.transpose()?;
        let ranks = self.ranks()?;
        let delta = match (&projection.lora, &low, &b) {
            (Some(lora), Some(low), Some(b)) => Some((
                Mat::new(low, n, ranks).in_cols(lora.rows.clone()),
                Mat::new(b, out, lora.rows.len()),
            )),
            _ => None,
        };
        let add_delta = |rows: &Range<usize>, cols: &Range<usize>, tile: &mut MatMut<'_>| {
            if let Some((low, b)) = delta {
                let b = b.in_rows(cols.clone()).t();
                multiply(tile, true, 1.0, low.in_rows(rows.clone()), b);
            }
        };
        let add_bias = |cols: &Range<usize>, tile: &mut MatMut<'_>| {
            if let Some(bias) = &bias {
                let bias = &bias[cols.clone()];
                (0..tile.rows).for_each(|row| add(tile.row(row), bias));
            }
        };
        let products = [Product {
            x: Mat::new(&x, n, input),
            weight: &projection.weight,
            transposed: true,
        }];
        let mut y = pool.take(n * out);
        let Some(magnitude) = projection
            .lora
            .as_ref()
            .and_then(|lora| lora.magnitude.as_ref())
        else {
            sum_of_products(
                MatMut::new(&mut y, n, out),
                start,
                &products,
                |rows, cols, tile| {
                    add_delta(&rows, &cols, tile);
                    add_bias(&cols, tile);
                },
            )?;
            return Ok((tensor(y, (n, out))?, None));
        };
        let factors = self.factors(projection, magnitude)?;
        let mut scaled = pool.take(n * out);
        sum_of_products(
            MatMut::new(&mut scaled, n, out),
            None,
            &products,
            |rows, cols, tile| {
                add_delta(&rows, &cols, tile);
                for row in 0..tile.rows {
                    let factors = &factors[cols.clone()];
                    tile.row(row)
                        .iter_mut()
                        .zip(factors)
                        .for_each(|(y, c)| *y *= c);
                }
            },
        )?;
        each_row(
            &mut y,
            out,
            #[inline(always)]
            |row, y| {
                y.copy_from_slice(&scaled[row * out..][..out]);
                if let Some(bias) = &bias {
                    add(y, bias);
                }
                if let Some(start) = start {
                    add(y, start.row(row));
                }
            },
        );
        Ok((
            tensor(y, (n, out))?,
            Some((factors, tensor(scaled, (n, out))?)),
        ))
    }

    /// DoRA's `c = m / ||W + s B A||`, row by row, from `||w||^2 + 2 s b (A w) + s^2 b (A A^T) b`: the adapted weight is
    /// never formed.
    fn factors(&self, projection: &Projection, magnitude: &Magnitude) -> Result<Vec<f32>> {
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
        sum_of_products(
            MatMut::new(&mut aw, rank, out),
            None,
            &[product],
            |_, _, _| {},
        )?;
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
        let mut g_mats = Vec::new();
        for (projection, g) in self.all.iter().zip(&views) {
            let out = projection.weight.dims()?.0;
            let g = Mat::new(g, n, out);
            if let Some(slot) = projection.weight.slot() {
                let into = MatMut::new(gradients.at(slot, out * input), out, input);
                add_product(into, 1.0, g.t(), x_mat);
            }
            g_mats.push(g);
        }
        let mut g_low = pool.take(n * ranks);
        if let (Some(a), Some(low)) = (&self.a, &kept.low) {
            let low = view(low)?;
            let low = Mat::new(&low, n, ranks);
            for (projection, &g) in self.all.iter().zip(&g_mats) {
                let Some(lora) = &projection.lora else {
                    continue;
                };
                let (out, rank) = (g.cols, lora.rows.len());
                let b = transposed(&view(&lora.b.tensor)?, rank);
                let into = MatMut::strided(&mut g_low[lora.rows.start..], n, rank, ranks);
                narrow_product(into, lora.scale, g, Mat::new(&b, rank, out));
                if let Some(slot) = lora.b.slot {
                    // The other way round its rows would be too short for the machine's registers.
                    let mut db = vec![0.0; rank * out];
                    let into = MatMut::new(&mut db, rank, out);
                    add_product(into, 1.0, low.in_cols(lora.rows.clone()).t(), g);
                    add(gradients.at(slot, out * rank), &transposed(&db, out));
                }
            }
            let g_low = Mat::new(&g_low, n, ranks);
            if let (Some(slot), None) = (a.slot, dropout) {
                let into = MatMut::new(gradients.at(slot, ranks * input), ranks, input);
                add_product(into, 1.0, g_low.t(), x_mat);
            } else if let (Some(slot), Some(dropout)) = (a.slot, dropout) {
                for (projection, lora) in self.adapted() {
                    let dropped = dropout.apply(pool, x, projection.site)?;
                    {
                        let (x, rank) = (view(&dropped)?, lora.rows.len());
                        let at = slot + lora.rows.start * input;
                        let into = MatMut::new(gradients.at(at, rank * input), rank, input);
                        let g_low = g_low.in_cols(lora.rows.clone()).t();
                        add_product(into, 1.0, g_low, Mat::new(&x, n, input));
                    }
                    pool.recycle(dropped)?;
                }
            }
        }
        let dx = match wants_input {
            true => Some(self.input_gradient(pool, (n, input), &g_mats, &g_low, dropout)?),
            false => None,
        };
        drop(g_mats);
        drop(views);
        pool.give(g_low);
        for scaled in scaled.into_iter().flatten() {
            pool.recycle(scaled)?;
        }
        Ok(dx)
    }

    fn input_gradient(
        &self,
        pool: &Pool,
        (n, input): (usize, usize),
        g: &[Mat<'_>],
        g_low: &[f32],
        dropout: Option<&Dropout>,
    ) -> Result<Tensor> {
        let ranks = self.ranks()?;
        let a = self.a.as_ref().map(|a| view(&a.tensor)).transpose()?;
        let a = a.as_deref().map(|a| Mat::new(a, ranks, input));
        let g_low = Mat::new(g_low, n, ranks);
        let products: Vec<Product<'_>> = self
            .all
            .iter()
            .zip(g)
            .map(|(projection, &x)| Product {
                x,
                weight: &projection.weight,
                transposed: false,
            })
            .collect();
        let mut dx = pool.take(n * input);
        sum_of_products(
            MatMut::new(&mut dx, n, input),
            None,
            &products,
            |rows, cols, tile| {
                if let (Some(a), None) = (a, dropout) {
                    multiply(tile, true, 1.0, g_low.in_rows(rows), a.in_cols(cols));
                }
            },
        )?;
        if let (Some(a), Some(dropout)) = (a, dropout) {
            let mut part = pool.take(n * input);
            for (projection, lora) in self.adapted() {
                let g_low = g_low.in_cols(lora.rows.clone());
                part.fill(0.0);
                add_product(
                    MatMut::new(&mut part, n, input),
                    1.0,
                    g_low,
                    a.in_rows(lora.rows.clone()),
                );
                each_row(
                    &mut dx,
                    input,
                    #[inline(always)]
                    |row, dx| {
                        let part = &part[row * input..][..input];
                        dropout.add_backward(row, projection.site, part, dx);
                    },
                );
            }
            pool.give(part);
        }
        tensor(dx, (n, input))
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
