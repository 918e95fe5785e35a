//! The products of generation: what a row becomes does not depend on the rows beside it.
//!
//! Each result is summed in one order that follows from the width of the rows alone, so a row has the same bits alone, in a
//! batch of any size, after a prompt cut anywhere and on any number of threads. The kernels of training (`matrix`) give no such
//! promise: there the order follows from the shape of the whole product.
//!
//! Weights are used in their own precision, laid out for the kernels ([`Matrix::lay_out`]) or where they lie, with the same
//! results, and each is read from memory once for all rows of a batch.

mod dots;
mod integers;
mod level;
mod panels;
#[cfg(test)]
mod tests;

use std::ops::Range;

use candle_core::{Result, bail};
use rayon::prelude::*;

use super::gemm::{Mat, MatMut};
use super::matrix::{Lent, Matrix, Numbers};
use super::quantised::{Layout, Quantised};
use dots::{BF16, F16, F32, PANEL, Weights};
use integers::{IntegerRows, Integers};
use level::Level;
use panels::NumberPanels;
pub(super) use panels::Panels;

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
        lent.push((Weight::of(job.weight)?, input));
    }
    // All that are quantised are multiplied with the same integers.
    let whole = lent
        .iter()
        .find(|(weight, _)| matches!(weight, Weight::Integers(_)));
    let integers = whole.map(|&(_, input)| IntegerRows::new(x, input));
    let mut tiles = Vec::new();
    for (job, (lent, input)) in jobs.iter_mut().zip(&lent) {
        let factors = match (lent, &integers) {
            (Weight::Integers(weight), Some(x)) => Factors::Integers(*weight, x),
            (Weight::Plain(lent), _) => Factors::Rows(lent.numbers()),
            (Weight::Panels(all), _) => Factors::Panels(all),
            (Weight::Widened(weight), _) => Factors::Widened(weight),
            (Weight::Integers(_), None) => bail!("integers without a row in integers"),
        };
        let work = Work {
            x: Mat::new(x, rows, *input),
            factors,
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
    /// Where it lies.
    Plain(Lent<'a>),
    Panels(&'a NumberPanels),
    Integers(Integers<'a>),
    /// Of types that are rarely seen; in f32.
    Widened(&'a Quantised),
}

impl<'a> Weight<'a> {
    fn of(matrix: &'a Matrix) -> Result<Self> {
        Ok(match (matrix.panels(), matrix) {
            (Some(Panels::Numbers(all)), _) => Self::Panels(all),
            (Some(Panels::Integers(all)), _) => Self::Integers(Integers::LaidOut(all)),
            (None, Matrix::Quantised(weight)) => match Layout::of(weight.kind()) {
                Some(layout) => Self::Integers(Integers::InFile(weight, layout)),
                None => Self::Widened(weight),
            },
            (None, plain) => Self::Plain(plain.lend()?),
        })
    }
}

/// How a weight meets x.
#[derive(Clone, Copy)]
enum Factors<'a> {
    Rows(Numbers<'a>),
    Panels(&'a NumberPanels),
    /// With x in integers.
    Integers(Integers<'a>, &'a IntegerRows),
    Widened(&'a Quantised),
}

#[derive(Clone, Copy)]
struct Work<'a> {
    x: Mat<'a>,
    factors: Factors<'a>,
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
        // Tiles begin where panels do.
        let panels = cols.start / PANEL * input..cols.end.div_ceil(PANEL) * input;
        match self.factors {
            Factors::Rows(Numbers::F32(all)) => {
                dots::tile::<F32>(level, x, Weights::Rows(&all[part]), into);
            }
            Factors::Rows(Numbers::F16(all)) => {
                dots::tile::<F16>(level, x, Weights::Rows(&all[part]), into);
            }
            Factors::Rows(Numbers::BF16(all)) => {
                dots::tile::<BF16>(level, x, Weights::Rows(&all[part]), into);
            }
            Factors::Panels(NumberPanels::F32(all)) => {
                dots::tile::<F32>(level, x, Weights::Panels(&all[panels]), into);
            }
            Factors::Panels(NumberPanels::F16(all)) => {
                dots::tile::<F16>(level, x, Weights::Panels(&all[panels]), into);
            }
            Factors::Panels(NumberPanels::BF16(all)) => {
                dots::tile::<BF16>(level, x, Weights::Panels(&all[panels]), into);
            }
            Factors::Integers(weight, x) => {
                integers::tile(level, x, rows, weight, cols.clone(), into);
            }
            Factors::Widened(weight) => {
                let numbers = weight.dequantised(cols.clone())?;
                dots::tile::<F32>(level, x, Weights::Rows(&numbers), into);
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
