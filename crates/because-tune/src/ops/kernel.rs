use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, Layout, Result, Storage, Tensor, bail};
use rayon::prelude::*;

/// Rows are shared out among threads in pieces of at least this many numbers, below which a thread costs more than it
/// brings. The pieces do not depend on how many threads there are.
const PIECE: usize = 1 << 14;

/// A matrix inside a storage: `rows` by `cols`, seen through strides.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    storage: &'a CpuStorage,
    offset: usize,
    dims: (usize, usize),
    strides: (usize, usize),
}

impl<'a> Matrix<'a> {
    /// A row-major matrix at the beginning of a storage.
    pub(super) fn new(storage: &'a CpuStorage, rows: usize, cols: usize) -> Self {
        Self {
            storage,
            offset: 0,
            dims: (rows, cols),
            strides: (cols, 1),
        }
    }

    /// The same, `offset` numbers further on.
    pub(super) fn at(mut self, offset: usize) -> Self {
        self.offset += offset;
        self
    }

    pub(super) fn t(self) -> Self {
        let ((rows, cols), (down, right)) = (self.dims, self.strides);
        Self {
            dims: (cols, rows),
            strides: (right, down),
            ..self
        }
    }

    /// `self [m,k] x other [k,n] -> [m,n]`, row-major.
    pub(super) fn matmul(self, other: Matrix<'_>) -> Result<CpuStorage> {
        let ((m, k), n) = (self.dims, other.dims.1);
        self.storage
            .matmul(other.storage, (1, m, n, k), &self.layout(), &other.layout())
    }

    fn layout(&self) -> Layout {
        Layout::new(
            self.dims.into(),
            vec![self.strides.0, self.strides.1],
            self.offset,
        )
    }
}

/// The numbers of a storage made by this crate.
pub(super) fn numbers(storage: &CpuStorage) -> Result<&[f32]> {
    match storage {
        CpuStorage::F32(values) => Ok(values),
        _ => bail!("expected f32 on the CPU"),
    }
}

pub(super) fn into_numbers(storage: CpuStorage) -> Result<Vec<f32>> {
    match storage {
        CpuStorage::F32(values) => Ok(values),
        _ => bail!("expected f32 on the CPU"),
    }
}

/// The numbers an operation's argument covers.
pub(super) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&numbers(storage)?[start..end]),
        None => bail!("expected contiguous rows"),
    }
}

/// Lends the storage of a tensor that begins at its offset 0.
pub(super) fn with_storage<R>(
    tensor: &Tensor,
    work: impl FnOnce(&CpuStorage) -> Result<R>,
) -> Result<R> {
    let (guard, layout) = tensor.storage_and_layout();
    match (&*guard, layout.contiguous_offsets()) {
        (Storage::Cpu(storage), Some((0, _))) => work(storage),
        (Storage::Cpu(_), _) => bail!("expected a whole contiguous tensor"),
        _ => bail!("expected a tensor on the CPU"),
    }
}

/// Lends the numbers of a tensor.
pub(crate) fn with_slice<R>(tensor: &Tensor, work: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let (guard, layout) = tensor.storage_and_layout();
    match &*guard {
        Storage::Cpu(storage) => work(slice(storage, layout)?),
        _ => bail!("expected a tensor on the CPU"),
    }
}

/// A copy of a tensor's numbers, row-major.
pub(crate) fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    with_slice(tensor, |values| Ok(values.to_vec()))
}

/// Calls `work(row, out_row)` for each row of `out`, in pieces on all threads.
pub(super) fn each_row(out: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    let rows = (PIECE / width.max(1)).max(1);
    out.par_chunks_mut(rows * width)
        .enumerate()
        .for_each(|(piece, out)| {
            for (row, out) in out.chunks_mut(width).enumerate() {
                work(piece * rows + row, out);
            }
        });
}

/// The sum of each column of `[n, width]`, in an order that does not depend on the threads.
pub(super) fn column_sums(
    n: usize,
    width: usize,
    row: impl Fn(usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    const ROWS: usize = 64;
    let partial: Vec<Vec<f32>> = (0..n.div_ceil(ROWS))
        .into_par_iter()
        .map(|piece| {
            let mut sum = vec![0.0; width];
            (piece * ROWS..n.min((piece + 1) * ROWS)).for_each(|index| row(index, &mut sum));
            sum
        })
        .collect();
    let mut total = vec![0.0; width];
    for sum in &partial {
        add(&mut total, sum);
    }
    total
}

pub(super) fn add(into: &mut [f32], other: &[f32]) {
    into.iter_mut()
        .zip(other)
        .for_each(|(into, other)| *into += other);
}

const LANES: usize = 16;

/// `sum_i f(a_i, b_i)` over independent lanes, so that the compiler may use its widest registers.
fn lanes(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut sums = [0f32; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += f(a[lane], b[lane]);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(&a, &b)| f(a, b)).sum();
    sums.iter().sum::<f32>() + rest
}

pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    lanes(a, b, |a, b| a * b)
}

pub(super) fn max(values: &[f32]) -> f32 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut tops = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            tops[lane] = if chunk[lane] > tops[lane] {
                chunk[lane]
            } else {
                tops[lane]
            };
        }
    }
    tops.iter()
        .chain(rest)
        .fold(f32::NEG_INFINITY, |top, &value| top.max(value))
}

/// Replaces each value by `exp(value - shift)` and gives their sum.
pub(super) fn exp_in_place(values: &mut [f32], shift: f32) -> f32 {
    for value in values.iter_mut() {
        *value = exp(*value - shift);
    }
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut sums = [0f32; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            sums[lane] += chunk[lane];
        }
    }
    sums.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

pub(super) fn scale(values: &mut [f32], factor: f32) {
    values.iter_mut().for_each(|value| *value *= factor);
}

/// `e^x` within two units in the last place, without a branch or a call, so that a loop over it becomes vector code.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`; `e^r` by the minimax polynomial of the Cephes library; `2^n` by its bits.
pub(super) fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = if x > 88.0 { 88.0 } else { x };
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let power = p * r * r + r + 1.0;
    let exponent = shifted
        .to_bits()
        .wrapping_sub(ROUND.to_bits())
        .wrapping_add(127);
    power * f32::from_bits(exponent << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_to_a_few_units_in_the_last_place() {
        let mut worst = 0f64;
        for step in -86_000..88_000 {
            let x = step as f32 * 1e-3;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) / exact - 1.0).abs());
        }
        assert!(worst < 2.5e-7, "{worst:e}");
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan(), "a NaN must not turn into a number");
    }

    #[test]
    fn a_transposed_matrix_multiplies_as_one() {
        let a = CpuStorage::F32(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let b = CpuStorage::F32(vec![9.0, 1.0, 0.0, 2.0, 1.0, 1.0, 1.0]);
        let product = Matrix::new(&a, 2, 3)
            .matmul(Matrix::new(&b, 2, 3).at(1).t())
            .unwrap();
        assert_eq!(numbers(&product).unwrap(), [7.0, 6.0, 16.0, 15.0]);
    }
}
