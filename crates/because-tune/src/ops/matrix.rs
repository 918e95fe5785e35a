use std::cell::RefCell;
use std::ops::{Deref, Range};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::{Result, Tensor};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::Dtype;

use super::fixed::Panels;
use super::gemm::{Mat, MatMut, cuts, multiply};
use super::pool::view;
use super::quantised::Quantised;
use super::simd::{bf16_to_f32, dot, f16_to_f32, vectorized};

/// Numbers that take part in the arithmetic as f32 and may learn.
#[derive(Debug, Clone)]
pub(crate) struct Param {
    /// Contiguous f32.
    pub(crate) tensor: Tensor,
    /// Where its gradient goes in the flat buffer of gradients; nowhere if it is frozen.
    pub(crate) slot: Option<usize>,
}

impl Param {
    pub(crate) fn frozen(tensor: Tensor) -> Self {
        Self { tensor, slot: None }
    }
}

/// A weight matrix `[out, in]`.
#[derive(Debug, Clone)]
pub(crate) enum Matrix {
    /// In f32, in memory; it may learn.
    Param(Param),
    /// Where it lies in its file, in the file's precision; it is widened tile by tile as it is used.
    Mapped(Mapped),
    /// Where it lies in its file, in blocks of small integers; for generation alone.
    Quantised(Quantised),
}

/// A matrix in a mapped weight file.
#[derive(Debug, Clone)]
pub(crate) struct Mapped {
    pub(crate) file: Arc<Mmap>,
    /// Its bytes in the file, little-endian.
    pub(crate) bytes: Range<usize>,
    pub(crate) dtype: Dtype,
    pub(crate) dims: (usize, usize),
    pub(crate) laid_out: LaidOut,
}

/// A matrix as the kernels of generation want it, once it was laid out; shared by its clones.
#[derive(Debug, Clone, Default)]
pub(crate) struct LaidOut(Arc<Layout>);

#[derive(Debug, Default)]
struct Layout {
    panels: OnceLock<Panels>,
    /// Held while they are made, so that two models over one base do not make them twice.
    making: Mutex<()>,
}

impl LaidOut {
    fn get(&self) -> Option<&Panels> {
        self.0.panels.get()
    }
}

/// A matrix's numbers for as long as they are in use.
pub(super) enum Lent<'a> {
    Memory(Box<dyn Deref<Target = [f32]> + 'a>),
    File(Numbers<'a>),
}

/// They, in the precision they are stored in.
#[derive(Clone, Copy)]
pub(super) enum Numbers<'a> {
    F32(&'a [f32]),
    F16(&'a [u16]),
    BF16(&'a [u16]),
}

impl Lent<'_> {
    pub(super) fn numbers(&self) -> Numbers<'_> {
        match self {
            Self::Memory(view) => Numbers::F32(view),
            Self::File(numbers) => *numbers,
        }
    }
}

impl Numbers<'_> {
    /// Copies numbers `at..at + into.len()`, in f32.
    fn copy(self, at: usize, into: &mut [f32]) {
        let range = at..at + into.len();
        match self {
            Numbers::F32(all) => into.copy_from_slice(&all[range]),
            Numbers::F16(all) => widen_f16(&all[range], into),
            Numbers::BF16(all) => widen_bf16(&all[range], into),
        }
    }
}

fn widen_bf16(from: &[u16], into: &mut [f32]) {
    vectorized(
        #[inline(always)]
        || {
            for (into, &from) in into.iter_mut().zip(from) {
                *into = bf16_to_f32(from);
            }
        },
    );
}

fn widen_f16(from: &[u16], into: &mut [f32]) {
    vectorized(
        #[inline(always)]
        || {
            for (into, &from) in into.iter_mut().zip(from) {
                *into = f16_to_f32(from);
            }
        },
    );
}

impl Mapped {
    /// The numbers where they lie; `None` if they do not lie as this machine needs them.
    fn numbers(&self) -> Option<Numbers<'_>> {
        let bytes = &self.file[self.bytes.clone()];
        if cfg!(target_endian = "big") {
            return None;
        }
        match self.dtype {
            Dtype::F32 => bytemuck::try_cast_slice(bytes).ok().map(Numbers::F32),
            Dtype::BF16 => bytemuck::try_cast_slice(bytes).ok().map(Numbers::BF16),
            Dtype::F16 => bytemuck::try_cast_slice(bytes).ok().map(Numbers::F16),
            _ => None,
        }
    }

    /// Whether the matrix can be used where it lies.
    pub(crate) fn is_usable(&self) -> bool {
        self.numbers().is_some()
    }
}

impl Matrix {
    /// `(out, in)`.
    pub(crate) fn dims(&self) -> Result<(usize, usize)> {
        match self {
            Self::Param(param) => param.tensor.dims2(),
            Self::Mapped(mapped) => Ok(mapped.dims),
            Self::Quantised(quantised) => Ok(quantised.dims()),
        }
    }

    /// Where its gradient goes, if it learns.
    pub(crate) fn slot(&self) -> Option<usize> {
        match self {
            Self::Param(param) => param.slot,
            Self::Mapped(_) | Self::Quantised(_) => None,
        }
    }

    /// Calls `each` with some rows, in f32, in the order asked for.
    pub(crate) fn rows(
        &self,
        rows: impl IntoIterator<Item = u32>,
        mut each: impl FnMut(usize, &[f32]),
    ) -> Result<()> {
        if let Self::Quantised(quantised) = self {
            return quantised.rows(rows, each);
        }
        let ((_, width), lent) = (self.dims()?, self.lend()?);
        let mut buffer = vec![0.0; width];
        for (index, row) in rows.into_iter().enumerate() {
            lent.numbers().copy(row as usize * width, &mut buffer);
            each(index, &buffer);
        }
        Ok(())
    }

    /// All numbers, in f32.
    pub(crate) fn values(&self) -> Result<Vec<f32>> {
        if let Self::Quantised(quantised) = self {
            return quantised.values();
        }
        let (rows, cols) = self.dims()?;
        let mut all = vec![0.0; rows * cols];
        self.lend()?.numbers().copy(0, &mut all);
        Ok(all)
    }

    /// Lays the matrix out for generation, in memory of its own. One in memory stays as it is.
    pub(crate) fn lay_out(&self) -> Result<()> {
        if let Some(laid_out) = self.laid_out() {
            let _making = laid_out
                .0
                .making
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if laid_out.get().is_none()
                && let Some(panels) = Panels::new(self)?
            {
                let _ = laid_out.0.panels.set(panels);
            }
        }
        Ok(())
    }

    /// Takes the bytes of one that is laid out from this process's memory: they are read from the file again when something
    /// else needs them.
    ///
    /// # Safety
    /// The matrix must lie in a map of a file, which anonymous memory is not: what is dropped there is lost.
    #[allow(
        unsafe_code,
        reason = "advice of which the caller knows that it loses nothing"
    )]
    pub(crate) unsafe fn give_back(&self) {
        let (file, bytes) = match self {
            _ if self.panels().is_none() => return,
            Self::Param(_) => return,
            Self::Mapped(mapped) => (&mapped.file, &mapped.bytes),
            Self::Quantised(quantised) => quantised.place(),
        };
        #[cfg(unix)]
        {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: the map is read-only and of a file, by the caller's promise. A wish: without it there is less memory left.
            let _ = unsafe { file.unchecked_advise_range(advice, bytes.start, bytes.len()) };
        }
        #[cfg(not(unix))]
        let _ = (file, bytes);
    }

    fn laid_out(&self) -> Option<&LaidOut> {
        match self {
            Self::Param(_) => None,
            Self::Mapped(mapped) => Some(&mapped.laid_out),
            Self::Quantised(quantised) => Some(quantised.laid_out()),
        }
    }

    /// Bytes that laying it out takes.
    pub(crate) fn laid_out_bytes(&self) -> Result<u64> {
        match self {
            Self::Param(_) => Ok(0),
            _ if self.panels().is_some() => Ok(0),
            _ => Panels::bytes_of(self),
        }
    }

    pub(super) fn panels(&self) -> Option<&Panels> {
        self.laid_out()?.get()
    }

    pub(super) fn lend(&self) -> Result<Lent<'_>> {
        match self {
            Self::Param(param) => Ok(Lent::Memory(Box::new(view(&param.tensor)?))),
            Self::Mapped(mapped) => match mapped.numbers() {
                Some(numbers) => Ok(Lent::File(numbers)),
                None => candle_core::bail!("weights that cannot be used where they lie"),
            },
            Self::Quantised(quantised) => candle_core::bail!(
                "{:?} weights generate, but do not train or merge: take the base they were made from",
                quantised.kind()
            ),
        }
    }
}

/// Rows and columns of the result that are made at once. They follow from its shape alone: in other tiles the same sum is
/// rounded otherwise, and a result must not depend on how many threads there are.
fn tile(cols: usize, widened: bool) -> (usize, usize) {
    match cols {
        // Few rows where there are few columns, so that there is work for every core.
        0..512 => (256, 256),
        // A weight is widened, and laid out for the kernel, once for each block of rows.
        _ if widened => (1024, 256),
        512..1024 => (512, 256),
        _ => (1024, 256),
    }
}

/// Products that are summed at once where the weight must be widened first, which bounds the widened part.
const DEPTH: usize = 1024;
/// Up to so many rows a weight is read once and multiplied row by row: then reading it is all the work.
const FEW: usize = 8;

thread_local! {
    /// Where a thread widens its part of a weight.
    static WIDENED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// One product of a [`Sum`]: `x W^T` with x `[n, in]`, or `x W` with x `[n, out]`.
pub(super) struct Product<'a> {
    pub(super) x: Mat<'a>,
    pub(super) weight: &'a Matrix,
    pub(super) transposed: bool,
}

/// What a [`Sum`] begins with.
#[derive(Clone, Copy)]
pub(super) enum Start<'a> {
    Zero,
    Values(Mat<'a>),
    /// What is there.
    Itself,
}

/// Called with the rows and columns of a tile, and the tile.
type Finish<'a> = Box<dyn Fn(Range<usize>, Range<usize>, &mut MatMut<'_>) + Sync + 'a>;

/// `into = start + sum of products`, the last of them a product of two plain matrices; `finish` is given each tile while it
/// is at hand.
pub(super) struct Sum<'a> {
    into: MatMut<'a>,
    start: Start<'a>,
    products: Vec<Product<'a>>,
    plain: Option<(Mat<'a>, Mat<'a>)>,
    finish: Option<Finish<'a>>,
}

impl<'a> Sum<'a> {
    pub(super) fn new(into: MatMut<'a>, products: Vec<Product<'a>>) -> Self {
        Self {
            into,
            start: Start::Zero,
            products,
            plain: None,
            finish: None,
        }
    }

    /// `into += a b`.
    pub(super) fn add(into: MatMut<'a>, a: Mat<'a>, b: Mat<'a>) -> Self {
        Self {
            start: Start::Itself,
            ..Self::new(into, Vec::new()).plus(a, b)
        }
    }

    /// One more product, of two plain matrices.
    pub(super) fn plus(self, a: Mat<'a>, b: Mat<'a>) -> Self {
        Self {
            plain: Some((a, b)),
            ..self
        }
    }

    pub(super) fn start(self, start: Start<'a>) -> Self {
        Self { start, ..self }
    }

    pub(super) fn finish(
        self,
        finish: impl Fn(Range<usize>, Range<usize>, &mut MatMut<'_>) + Sync + 'a,
    ) -> Self {
        Self {
            finish: Some(Box::new(finish)),
            ..self
        }
    }
}

/// A [`Sum`] whose weights are lent.
struct Work<'a> {
    /// x, the weight and its shape, and whether it is transposed.
    products: Vec<(Mat<'a>, Numbers<'a>, (usize, usize), bool)>,
    few: bool,
    start: Start<'a>,
    plain: Option<(Mat<'a>, Mat<'a>)>,
    finish: Option<Finish<'a>>,
}

impl Work<'_> {
    fn tile(&self, rows: Range<usize>, cols: Range<usize>, tile: &mut MatMut<'_>) {
        let mut add = !matches!(self.start, Start::Zero);
        if let Start::Values(start) = self.start {
            let start = start.part(rows.clone(), cols.clone());
            (0..tile.rows).for_each(|row| tile.row(row).copy_from_slice(start.row(row)));
        }
        for &(x, weight, dims, transposed) in &self.products {
            let x = x.in_rows(rows.clone());
            if transposed && self.few {
                dots(tile, add, x, weight, dims.1, cols.clone());
            } else {
                product(tile, add, x, weight, dims, cols.clone(), transposed);
            }
            add = true;
        }
        if let Some((a, b)) = self.plain {
            let (a, b) = (a.in_rows(rows.clone()), b.in_cols(cols.clone()));
            multiply(tile, add, 1.0, a, b);
        }
        if let Some(finish) = &self.finish {
            finish(rows, cols, tile);
        }
    }
}

/// Makes sums that do not depend on each other, tile by tile on all threads: together, so that no thread waits for the end of
/// each. The results do not depend on how many threads there are.
pub(super) fn make(sums: Vec<Sum<'_>>) -> Result<()> {
    let lent = sums
        .iter()
        .map(|sum| {
            sum.products
                .iter()
                .map(|product| product.weight.lend())
                .collect()
        })
        .collect::<Result<Vec<Vec<_>>>>()?;
    let (mut all, mut tiles) = (Vec::new(), Vec::new());
    for (sum, lent) in sums.into_iter().zip(&lent) {
        let products = sum
            .products
            .iter()
            .zip(lent)
            .map(|(product, lent)| {
                let dims = product.weight.dims()?;
                Ok((product.x, lent.numbers(), dims, product.transposed))
            })
            .collect::<Result<Vec<_>>>()?;
        let few = sum.into.rows <= FEW && sum.plain.is_none();
        let widened = products
            .iter()
            .any(|(_, numbers, ..)| !matches!(numbers, Numbers::F32(_)));
        let (height, width) = match few {
            true => (FEW, 64),
            false => tile(sum.into.cols, widened),
        };
        let down = cuts(sum.into.rows, height, 1);
        for (rows, cols, tile) in sum.into.tiles(&down, width) {
            tiles.push((all.len(), rows, cols, tile));
        }
        all.push(Work {
            products,
            few,
            start: sum.start,
            plain: sum.plain,
            finish: sum.finish,
        });
    }
    tiles
        .into_par_iter()
        .with_max_len(1)
        .for_each(|(work, rows, cols, mut tile)| all[work].tile(rows, cols, &mut tile));
    Ok(())
}

/// Adds one product to a tile whose columns are the weight's rows (`transposed`) or columns.
fn product(
    tile: &mut MatMut<'_>,
    add: bool,
    x: Mat<'_>,
    weight: Numbers<'_>,
    (out, input): (usize, usize),
    cols: Range<usize>,
    transposed: bool,
) {
    if let Numbers::F32(all) = weight {
        let all = Mat::new(all, out, input);
        let part = if transposed {
            all.in_rows(cols).t()
        } else {
            all.in_cols(cols)
        };
        return multiply(tile, add, 1.0, x, part);
    }
    let depths = cuts(if transposed { input } else { out }, DEPTH, 16);
    WIDENED.with_borrow_mut(|buffer| {
        for (index, depth) in depths.into_iter().enumerate() {
            let (rows, across) = if transposed {
                (cols.clone(), depth.clone())
            } else {
                (depth.clone(), cols.clone())
            };
            buffer.resize(rows.len() * across.len(), 0.0);
            for (row, into) in rows.clone().zip(buffer.chunks_exact_mut(across.len())) {
                weight.copy(row * input + across.start, into);
            }
            let part = Mat::new(buffer, rows.len(), across.len());
            let part = if transposed { part.t() } else { part };
            multiply(tile, add || index > 0, 1.0, x.in_cols(depth.clone()), part);
        }
    });
}

/// The same for a few rows: each row of the weight is read once and meets them all.
fn dots(
    tile: &mut MatMut<'_>,
    add: bool,
    x: Mat<'_>,
    weight: Numbers<'_>,
    input: usize,
    cols: Range<usize>,
) {
    WIDENED.with_borrow_mut(|buffer| {
        buffer.resize(input, 0.0);
        for (col, row) in cols.enumerate() {
            let at = row * input;
            let weight = match weight {
                Numbers::F32(all) => &all[at..at + input],
                half => {
                    half.copy(at, buffer);
                    &buffer[..]
                }
            };
            for row in 0..tile.rows {
                let sum = vectorized(
                    #[inline(always)]
                    || dot(x.row(row), weight),
                );
                let into = &mut tile.row(row)[col];
                *into = if add { *into + sum } else { sum };
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::pool::tensor;

    fn wave(count: usize, pace: f32) -> Vec<f32> {
        (0..count).map(|at| (at as f32 * pace).sin()).collect()
    }

    /// A weight in a file, in bf16, and the same numbers in memory.
    fn both(out: usize, input: usize) -> (Matrix, Matrix) {
        let values: Vec<f32> = wave(out * input, 0.7)
            .iter()
            .map(|x| f32::from_bits(x.to_bits() & 0xffff_0000))
            .collect();
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes())
            .collect();
        let mut map = memmap2::MmapMut::map_anon(bytes.len()).unwrap();
        map.copy_from_slice(&bytes);
        let mapped = Matrix::Mapped(Mapped {
            file: Arc::new(map.make_read_only().unwrap()),
            bytes: 0..bytes.len(),
            dtype: Dtype::BF16,
            dims: (out, input),
            laid_out: LaidOut::default(),
        });
        let plain = Matrix::Param(Param::frozen(tensor(values, (out, input)).unwrap()));
        (mapped, plain)
    }

    #[test]
    fn a_half_precision_weight_multiplies_as_its_numbers_do() {
        let (mapped, plain) = both(300, 1100);
        let weights = plain.values().unwrap();
        assert_eq!(mapped.values().unwrap(), weights);
        for n in [1, 3, 40] {
            for transposed in [true, false] {
                let (depth, width) = if transposed { (1100, 300) } else { (300, 1100) };
                let x = wave(n * depth, 0.3);
                for weight in [&mapped, &plain] {
                    let mut out = vec![9.0; n * width];
                    let product = Product {
                        x: Mat::new(&x, n, depth),
                        weight,
                        transposed,
                    };
                    make(vec![Sum::new(
                        MatMut::new(&mut out, n, width),
                        vec![product],
                    )])
                    .unwrap();
                    for at in [0, width - 1, n * width - 1, n * width / 2] {
                        let (row, col) = (at / width, at % width);
                        let exact: f64 = (0..depth)
                            .map(|k| {
                                let w = weights[if transposed {
                                    col * 1100 + k
                                } else {
                                    k * 1100 + col
                                }];
                                f64::from(x[row * depth + k]) * f64::from(w)
                            })
                            .sum();
                        assert!(
                            (f64::from(out[at]) - exact).abs() < 1e-4,
                            "{n} {transposed} {at}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let (weight, _) = both(700, 300);
        let x = wave(600 * 300, 0.3);
        let made = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            let mut out = vec![0.0; 600 * 700];
            let x = Mat::new(&x, 600, 300);
            let product = Product {
                x,
                weight: &weight,
                transposed: true,
            };
            let into = MatMut::new(&mut out, 600, 700);
            pool.install(|| make(vec![Sum::new(into, vec![product])]))
                .unwrap();
            out
        };
        assert!(made(1) == made(3));
    }

    #[test]
    fn a_sum_starts_where_it_is_told_and_tiles_are_finished_once() {
        let (weight, _) = both(20, 12);
        let (x, start) = (wave(120, 0.2), vec![5.0; 200]);
        let mut out = vec![0.0; 200];
        let products = || {
            let x = Mat::new(&x, 10, 12);
            Product {
                x,
                weight: &weight,
                transposed: true,
            }
        };
        let finish = |_: Range<usize>, _: Range<usize>, tile: &mut MatMut<'_>| {
            (0..tile.rows).for_each(|row| tile.row(row).iter_mut().for_each(|x| *x += 1.0));
        };
        let (mut once, mut itself) = (vec![0.0; 200], vec![2.0; 200]);
        let sum = |into| Sum::new(MatMut::new(into, 10, 20), vec![products()]);
        make(vec![
            sum(&mut out)
                .start(Start::Values(Mat::new(&start, 10, 20)))
                .finish(finish),
            sum(&mut once),
            sum(&mut itself).start(Start::Itself),
        ])
        .unwrap();
        for ((out, once), itself) in out.iter().zip(&once).zip(&itself) {
            assert!((out - once - 6.0).abs() < 1e-5 && (itself - once - 2.0).abs() < 1e-5);
        }
    }
}
