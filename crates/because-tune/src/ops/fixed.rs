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

use super::gemm::{MatMut, cuts};
use super::matrix::{Lent, Matrix, Numbers};
use super::quantised::{Layout, Quantised};
use dots::{BF16, F16, F32, PANEL, RowBlocks, Weights};
use integers::{IntegerRows, Integers};
use level::Level;
use panels::NumberPanels;
pub(super) use panels::Panels;

/// Columns of a result that one thread makes at a time where rows are few: the weights for them stay in its second cache while
/// rows meet them.
const COLS: usize = 64;
/// The same where rows are many, and there is work for all threads: each number of x that is fetched then meets more weights.
const WIDE: usize = 256;
/// Rows that one thread makes at a time, so that there is work for every thread where there are few columns.
const ROWS: usize = 264;
/// Whatever the machine, so many rows are whole blocks of those that its kernels multiply at once.
const UNIT: usize = 12;

/// One product of [`linear`]: `into = x W^T`, with `into` `[rows, out]`, row-major.
pub(crate) struct Linear<'a> {
    pub(crate) weight: &'a Matrix,
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
        lent.push((Weight::of(job.weight)?, input));
    }
    // All have one x, and so one width; those of a kind share how it is laid out.
    let input = lent.first().map_or(0, |(_, input)| *input);
    let is_quantised = |weight: &Weight<'_>| matches!(weight, Weight::Integers(_));
    let integers = lent
        .iter()
        .any(|(weight, _)| is_quantised(weight))
        .then(|| IntegerRows::new(level, x, rows, input));
    let floats = lent
        .iter()
        .any(|(weight, _)| !is_quantised(weight))
        .then(|| RowBlocks::new(level, x, rows, input));
    let mut tiles = Vec::new();
    for (job, (lent, input)) in jobs.iter_mut().zip(&lent) {
        let factors = match (lent, &integers, &floats) {
            (Weight::Integers(weight), Some(x), _) => Factors::Integers(*weight, x),
            (Weight::Plain(lent), _, Some(x)) => Factors::Rows(lent.numbers(), x),
            (Weight::Panels(all), _, Some(x)) => Factors::Panels(all, x),
            (Weight::Widened(weight), _, Some(x)) => Factors::Widened(weight, x),
            _ => bail!("x is not laid out for this weight"),
        };
        let work = Work {
            input: *input,
            factors,
        };
        let out = job.into.len().checked_div(rows).unwrap_or_default();
        let enough = 4 * rayon::current_num_threads();
        let cols = match rows.div_ceil(ROWS) * out.div_ceil(WIDE) {
            tiles if rows >= dots::MANY && tiles >= enough => WIDE,
            _ => COLS,
        };
        let down = cuts(rows, ROWS, UNIT);
        for (rows, cols, into) in MatMut::new(job.into, rows, out).tiles(&down, cols) {
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
    Rows(Numbers<'a>, &'a RowBlocks),
    Panels(&'a NumberPanels, &'a RowBlocks),
    /// With x in integers.
    Integers(Integers<'a>, &'a IntegerRows),
    Widened(&'a Quantised, &'a RowBlocks),
}

#[derive(Clone, Copy)]
struct Work<'a> {
    input: usize,
    factors: Factors<'a>,
}

impl Work<'_> {
    fn tile(
        self,
        level: Level,
        rows: Range<usize>,
        cols: Range<usize>,
        into: &mut MatMut<'_>,
    ) -> Result<()> {
        let input = self.input;
        let part = cols.start * input..cols.end * input;
        // Tiles begin where panels do.
        let panels = cols.start / PANEL * input..cols.end.div_ceil(PANEL) * input;
        match self.factors {
            Factors::Rows(Numbers::F32(all), x) => {
                dots::tile::<F32>(level, x, rows, Weights::Rows(&all[part]), into);
            }
            Factors::Rows(Numbers::F16(all), x) => {
                dots::tile::<F16>(level, x, rows, Weights::Rows(&all[part]), into);
            }
            Factors::Rows(Numbers::BF16(all), x) => {
                dots::tile::<BF16>(level, x, rows, Weights::Rows(&all[part]), into);
            }
            Factors::Panels(NumberPanels::F32(all), x) => {
                dots::tile::<F32>(level, x, rows, Weights::Panels(&all[panels]), into);
            }
            Factors::Panels(NumberPanels::F16(all), x) => {
                dots::tile::<F16>(level, x, rows, Weights::Panels(&all[panels]), into);
            }
            Factors::Panels(NumberPanels::BF16(all), x) => {
                dots::tile::<BF16>(level, x, rows, Weights::Panels(&all[panels]), into);
            }
            Factors::Integers(weight, x) => integers::tile(level, x, &rows, weight, cols, into),
            Factors::Widened(weight, x) => {
                let numbers = weight.dequantised(cols)?;
                dots::tile::<F32>(level, x, rows, Weights::Rows(&numbers), into);
            }
        }
        Ok(())
    }
}
