//! The products of generation: what a row becomes does not depend on the rows beside it.
//!
//! Each result is summed in one order that follows from the width of the rows alone, so a row has the same bits alone, in a
//! batch of any size, after a prompt cut anywhere and on any number of threads. The kernels of training (`matrix`) give no such
//! promise: there the order follows from the shape of the whole product.
//!
//! Weights are used where they lie, in their own precision, and each is read from memory once for all rows of a batch.

mod dots;
mod integers;
mod level;
#[cfg(test)]
mod tests;

use std::ops::Range;

use candle_core::{Result, bail};
use rayon::prelude::*;

use super::gemm::{Mat, MatMut};
use super::matrix::{Lent, Matrix, Numbers};
use super::quantised::{Layout, Quantised};
use integers::IntegerRows;
use level::Level;

/// Columns of a result that one thread makes at a time: the weights for them stay in its second cache while rows meet them.
const COLS: usize = 64;
/// Rows that one thread makes at a time, so that there is work for every thread where there are few columns.
const ROWS: usize = 256;

/// One product of [`linear`]: `into = x W^T + bias`, with `into` `[rows, out]`, row-major.
pub(crate) struct Linear<'a> {
    pub(crate) weight: &'a Matrix,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) into: &'a mut [f32],
}

/// Makes products that share x `[rows, in]`, row-major: together, on all threads.
///
/// An error if shapes do not agree or a weight cannot be used where it lies.
pub(crate) fn linear(x: &[f32], rows: usize, jobs: &mut [Linear<'_>]) -> Result<()> {
    on(Level::here(), x, rows, jobs)
}

fn on(level: Level, x: &[f32], rows: usize, jobs: &mut [Linear<'_>]) -> Result<()> {
    let mut lent = Vec::new();
    for job in &*jobs {
        let (out, input) = job.weight.dims()?;
        if x.len() != rows * input || job.into.len() != rows * out {
            bail!(
                "{rows} rows of [{out}, {input}]: {} numbers in, {} out",
                x.len(),
                job.into.len()
            );
        }
        if job.bias.is_some_and(|bias| bias.len() != out) {
            bail!("a bias of other length than {out}");
        }
        let weight = match job.weight {
            Matrix::Quantised(quantised) => Weight::Quantised(quantised),
            plain => Weight::Plain(plain.lend()?),
        };
        lent.push((weight, input));
    }
    // All that are quantised are multiplied with the same integers.
    let whole = lent.iter().find(|(weight, _)| weight.layout().is_some());
    let integers = whole.map(|&(_, input)| IntegerRows::new(x, input));
    let mut tiles = Vec::new();
    for (job, (lent, input)) in jobs.iter_mut().zip(&lent) {
        let weight = match (lent, &integers) {
            (Weight::Plain(lent), _) => Factors::Plain(lent.numbers()),
            (Weight::Quantised(weight), x) => match (lent.layout(), x) {
                (Some(layout), Some(x)) => Factors::Integers(weight, layout, x),
                _ => Factors::Widened(weight),
            },
        };
        let work = Work {
            x: Mat::new(x, rows, *input),
            weight,
            bias: job.bias,
        };
        let out = job.into.len().checked_div(rows).unwrap_or_default();
        for (rows, cols, into) in MatMut::new(job.into, rows, out).tiles(ROWS, COLS) {
            tiles.push((work, rows, cols, into));
        }
    }
    tiles
        .into_par_iter()
        .with_max_len(1)
        .try_for_each(|(work, rows, cols, mut into)| work.tile(level, rows, cols, &mut into))
}

/// A weight for as long as it is in use.
enum Weight<'a> {
    Plain(Lent<'a>),
    Quantised(&'a Quantised),
}

impl Weight<'_> {
    fn layout(&self) -> Option<Layout> {
        match self {
            Self::Plain(_) => None,
            Self::Quantised(quantised) => Layout::of(quantised.kind()),
        }
    }
}

/// How a weight meets x.
#[derive(Clone, Copy)]
enum Factors<'a> {
    Plain(Numbers<'a>),
    /// Integers with x in integers.
    Integers(&'a Quantised, Layout, &'a IntegerRows),
    /// In f32: for types that are rarely seen.
    Widened(&'a Quantised),
}

#[derive(Clone, Copy)]
struct Work<'a> {
    x: Mat<'a>,
    weight: Factors<'a>,
    bias: Option<&'a [f32]>,
}

impl Work<'_> {
    fn tile(
        self,
        level: Level,
        rows: Range<usize>,
        cols: Range<usize>,
        into: &mut MatMut<'_>,
    ) -> Result<()> {
        let (x, input) = (self.x.in_rows(rows.clone()), self.x.cols);
        let part = cols.start * input..cols.end * input;
        match self.weight {
            Factors::Plain(Numbers::F32(all)) => dots::f32(level, x, &all[part], into),
            Factors::Plain(Numbers::F16(all)) => dots::f16(level, x, &all[part], into),
            Factors::Plain(Numbers::BF16(all)) => dots::bf16(level, x, &all[part], into),
            Factors::Integers(weight, layout, x) => {
                integers::tile(level, x, rows, (weight, layout), cols.clone(), into);
            }
            Factors::Widened(weight) => {
                dots::f32(level, x, &weight.dequantised(cols.clone())?, into);
            }
        }
        if let Some(bias) = self.bias {
            for row in 0..into.rows {
                let numbers = into.row(row).iter_mut().zip(&bias[cols.clone()]);
                numbers.for_each(|(y, bias)| *y += bias);
            }
        }
        Ok(())
    }
}
