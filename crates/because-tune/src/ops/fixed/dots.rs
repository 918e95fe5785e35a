//! Sums of products of f32 rows with weights in f32, f16 or bf16.

use std::cell::RefCell;
use std::ops::Range;

use super::Level;
use crate::ops::gemm::{Mat, MatMut, cuts};
use crate::ops::simd::{bf16_to_f32, f16_to_f32};

#[cfg(target_arch = "x86_64")]
mod x86;

/// Sums that run side by side for one result: number `k` of a row goes to sum `k % 16`.
const LANES: usize = 16;
/// Numbers of a row that are summed before the sixteen sums become one, which is added to the result: what a few rows and
/// weights have of it fits the first cache.
const DEPTH: usize = 1024;
/// Up to so many rows a weight is read row by row and meets them all; for more it is laid out in the second cache first.
const FEW: usize = 12;

/// `into = x W^T` for f32 weights `[cols, in]`, on this thread.
pub(super) fn f32(level: Level, x: Mat<'_>, weights: &[f32], into: &mut MatMut<'_>) {
    run::<F32>(level, x, weights, into);
}

/// The same for f16 weights.
pub(super) fn f16(level: Level, x: Mat<'_>, weights: &[u16], into: &mut MatMut<'_>) {
    run::<F16>(level, x, weights, into);
}

/// The same for bf16 weights.
pub(super) fn bf16(level: Level, x: Mat<'_>, weights: &[u16], into: &mut MatMut<'_>) {
    run::<BF16>(level, x, weights, into);
}

fn run<N: Number>(level: Level, x: Mat<'_>, weights: &[N::Bits], into: &mut MatMut<'_>) {
    let tile = Tile::<N> { x, weights, into };
    match level {
        Level::Portable => tile.make::<[f32; 4], 3>(),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => x86::avx2(tile),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Vnni => x86::avx512(tile),
    }
}

/// Some of the sixteen sums: a register of the machine.
trait Register: Copy {
    /// How many; it divides sixteen.
    const WIDTH: usize;

    fn zero() -> Self;
    /// Numbers `part * WIDTH..` of these.
    fn load(from: &[f32; LANES], part: usize) -> Self;
    fn load_f16(from: &[u16; LANES], part: usize) -> Self;
    fn load_bf16(from: &[u16; LANES], part: usize) -> Self;
    /// `a b + self`, rounded once.
    fn fused(self, a: Self, b: Self) -> Self;
    fn store(self, into: &mut [f32; LANES], part: usize);
    /// The sum of each sixteen, by halves.
    fn fold(sums: &[[f32; LANES]; COLS]) -> [f32; COLS];
}

/// How a weight is written.
trait Number {
    type Bits: Copy + Default;

    fn load<R: Register>(from: &[Self::Bits; LANES], part: usize) -> R;
    fn widen(bits: Self::Bits) -> f32;
    /// Whether a weight that meets many rows is widened once, before it meets them.
    const WIDENED: bool = true;
}

struct F32;
struct F16;
struct BF16;

impl Number for F32 {
    type Bits = f32;
    const WIDENED: bool = false;

    #[inline(always)]
    fn load<R: Register>(from: &[f32; LANES], part: usize) -> R {
        R::load(from, part)
    }

    #[inline(always)]
    fn widen(bits: f32) -> f32 {
        bits
    }
}

impl Number for F16 {
    type Bits = u16;

    #[inline(always)]
    fn load<R: Register>(from: &[u16; LANES], part: usize) -> R {
        R::load_f16(from, part)
    }

    #[inline(always)]
    fn widen(bits: u16) -> f32 {
        f16_to_f32(bits)
    }
}

impl Number for BF16 {
    type Bits = u16;

    #[inline(always)]
    fn load<R: Register>(from: &[u16; LANES], part: usize) -> R {
        R::load_bf16(from, part)
    }

    #[inline(always)]
    fn widen(bits: u16) -> f32 {
        bf16_to_f32(bits)
    }
}

/// Four sums are an SSE or NEON register.
impl Register for [f32; 4] {
    const WIDTH: usize = 4;

    #[inline(always)]
    fn zero() -> Self {
        [0.0; 4]
    }

    #[inline(always)]
    fn load(from: &[f32; LANES], part: usize) -> Self {
        std::array::from_fn(
            #[inline(always)]
            |lane| from[part * 4 + lane],
        )
    }

    #[inline(always)]
    fn load_f16(from: &[u16; LANES], part: usize) -> Self {
        std::array::from_fn(
            #[inline(always)]
            |lane| f16_to_f32(from[part * 4 + lane]),
        )
    }

    #[inline(always)]
    fn load_bf16(from: &[u16; LANES], part: usize) -> Self {
        std::array::from_fn(
            #[inline(always)]
            |lane| bf16_to_f32(from[part * 4 + lane]),
        )
    }

    #[inline(always)]
    fn fused(self, a: Self, b: Self) -> Self {
        std::array::from_fn(
            #[inline(always)]
            |lane| a[lane].mul_add(b[lane], self[lane]),
        )
    }

    #[inline(always)]
    fn store(self, into: &mut [f32; LANES], part: usize) {
        into[part * 4..][..4].copy_from_slice(&self);
    }

    #[inline(always)]
    fn fold(sums: &[[f32; LANES]; COLS]) -> [f32; COLS] {
        sums.map(|mut sums| {
            for width in [8, 4, 2, 1] {
                for lane in 0..width {
                    sums[lane] += sums[lane + width];
                }
            }
            sums[0]
        })
    }
}

/// Weights, that is columns of the result, that are multiplied at once.
const COLS: usize = 4;

/// A part of a product, on one thread.
struct Tile<'a, 'b, N: Number> {
    x: Mat<'a>,
    /// `[into.cols, x.cols]`.
    weights: &'a [N::Bits],
    into: &'a mut MatMut<'b>,
}

thread_local! {
    /// Where a thread widens its part of a weight.
    static WIDENED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl<N: Number> Tile<'_, '_, N> {
    /// With registers `R`, of which there are enough for `ROWS x 4` sums, and `ROWS <= 6`.
    #[inline(always)]
    fn make<R: Register, const ROWS: usize>(self) {
        let Self { x, weights, into } = self;
        let input = x.cols;
        let rows = cuts(x.rows, ROWS, 1);
        if input == 0 {
            (0..into.rows).for_each(|row| into.row(row).fill(0.0));
        }
        if x.rows <= FEW {
            // A weight is read once, from its beginning to its end.
            for col in (0..into.cols).step_by(COLS) {
                for depth in cuts_of_depth(input) {
                    let weights = part(weights, input, depth.clone(), col, into.cols);
                    for rows in rows.iter().cloned() {
                        group::<R, N>(x, rows, depth.clone(), &weights, into, col);
                    }
                }
            }
            return;
        }
        // A few rows of x stay in the first cache while all weights of the tile, in the second, meet them.
        // Taken, not borrowed: what a closure does is not compiled for the registers of this function.
        let mut widened = WIDENED.take();
        for depth in cuts_of_depth(input) {
            if N::WIDENED {
                widened.resize(into.cols * depth.len(), 0.0);
                let widened = widened.chunks_exact_mut(depth.len());
                for (row, widened) in weights.chunks_exact(input).zip(widened) {
                    for (into, &bits) in widened.iter_mut().zip(&row[depth.clone()]) {
                        *into = N::widen(bits);
                    }
                }
            }
            for rows in &rows {
                for col in (0..into.cols).step_by(COLS) {
                    let (rows, depth) = (rows.clone(), depth.clone());
                    if N::WIDENED {
                        let weights = part(&widened, depth.len(), 0..depth.len(), col, into.cols);
                        group::<R, F32>(x, rows, depth, &weights, into, col);
                    } else {
                        let weights = part(weights, input, depth.clone(), col, into.cols);
                        group::<R, N>(x, rows, depth, &weights, into, col);
                    }
                }
            }
        }
        WIDENED.set(widened);
    }
}

/// This depth of the weights of four columns; of the last column again where there are fewer.
#[inline(always)]
fn part<T>(
    weights: &[T],
    width: usize,
    depth: Range<usize>,
    col: usize,
    cols: usize,
) -> [&[T]; COLS] {
    std::array::from_fn(
        #[inline(always)]
        |at| {
            let row = (col + at).min(cols - 1) * width;
            &weights[row + depth.start..row + depth.end]
        },
    )
}

fn cuts_of_depth(input: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    (0..input)
        .step_by(DEPTH)
        .map(move |at| at..input.min(at + DEPTH))
}

#[inline(always)]
fn group<R: Register, N: Number>(
    x: Mat<'_>,
    rows: Range<usize>,
    depth: Range<usize>,
    weights: &[&[N::Bits]; COLS],
    into: &mut MatMut<'_>,
    col: usize,
) {
    match rows.len() {
        1 => block::<R, N, 1>(x, rows.start, depth, weights, into, col),
        2 => block::<R, N, 2>(x, rows.start, depth, weights, into, col),
        3 => block::<R, N, 3>(x, rows.start, depth, weights, into, col),
        4 => block::<R, N, 4>(x, rows.start, depth, weights, into, col),
        5 => block::<R, N, 5>(x, rows.start, depth, weights, into, col),
        _ => block::<R, N, 6>(x, rows.start, depth, weights, into, col),
    }
}

/// The sums of one depth for `ROWS` rows and four weights, stored or added to what the depths before gave.
#[inline(always)]
fn block<R: Register, N: Number, const ROWS: usize>(
    x: Mat<'_>,
    row: usize,
    depth: Range<usize>,
    weights: &[&[N::Bits]; COLS],
    into: &mut MatMut<'_>,
    col: usize,
) {
    let x: [_; ROWS] = std::array::from_fn(
        #[inline(always)]
        |at| {
            let row = &x.row(row + at)[depth.clone()];
            row.as_chunks::<LANES>()
        },
    );
    let weights: [_; COLS] = std::array::from_fn(
        #[inline(always)]
        |at| weights[at].as_chunks::<LANES>(),
    );
    let whole = x[0].0.len();
    // Slices of one known length, so that the loop checks no bounds.
    let these: [_; ROWS] = std::array::from_fn(
        #[inline(always)]
        |at| &x[at].0[..whole],
    );
    let those: [_; COLS] = std::array::from_fn(
        #[inline(always)]
        |at| &weights[at].0[..whole],
    );
    let rest = x[0].1.len();
    let mut lanes = [[[0.0; LANES]; COLS]; ROWS];
    for part in 0..LANES / R::WIDTH {
        let mut sums = [[R::zero(); COLS]; ROWS];
        #[allow(
            clippy::needless_range_loop,
            reason = "it walks several slices at once"
        )]
        for at in 0..whole {
            let weights: [R; COLS] = std::array::from_fn(
                #[inline(always)]
                |col| N::load(&those[col][at], part),
            );
            step(&mut sums, &weights, &these, at, part);
        }
        if rest > 0 {
            let padded: [[f32; LANES]; ROWS] = std::array::from_fn(
                #[inline(always)]
                |at| padded(x[at].1),
            );
            let weights: [R; COLS] = std::array::from_fn(
                #[inline(always)]
                |col| N::load(&self::padded(weights[col].1), part),
            );
            let padded: [&[[f32; LANES]]; ROWS] = std::array::from_fn(
                #[inline(always)]
                |at| std::slice::from_ref(&padded[at]),
            );
            step(&mut sums, &weights, &padded, 0, part);
        }
        for (lanes, sums) in lanes.iter_mut().zip(&sums) {
            for (lanes, sums) in lanes.iter_mut().zip(sums) {
                sums.store(lanes, part);
            }
        }
    }
    let count = COLS.min(into.cols - col);
    for (at, lanes) in lanes.iter().enumerate() {
        let sums = R::fold(lanes);
        let into = &mut into.row(row + at)[col..col + count];
        for (into, sum) in into.iter_mut().zip(sums) {
            *into = if depth.start > 0 { *into + sum } else { sum };
        }
    }
}

#[inline(always)]
fn step<R: Register, const ROWS: usize>(
    sums: &mut [[R; COLS]; ROWS],
    weights: &[R; COLS],
    x: &[&[[f32; LANES]]; ROWS],
    at: usize,
    part: usize,
) {
    for (sums, x) in sums.iter_mut().zip(x) {
        let x = R::load(&x[at], part);
        for (sum, weight) in sums.iter_mut().zip(weights) {
            *sum = sum.fused(x, *weight);
        }
    }
}

/// What is left of a row, with zeros after it.
fn padded<T: Copy + Default>(rest: &[T]) -> [T; LANES] {
    let mut padded = [T::default(); LANES];
    padded[..rest.len()].copy_from_slice(rest);
    padded
}
