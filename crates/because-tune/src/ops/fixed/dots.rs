//! Sums of products of f32 rows with weights in f32, f16 or bf16.
//!
//! A result is the sum over its row in rising order, in parts of [`DEPTH`] that are added up: one number after the other, so
//! that the lanes of a vector are columns of the result and never meet. Weights are met in panels of [`PANEL`] columns,
//! number `k` of all columns side by side, which a [`Panels`](super::panels::Panels) holds or a thread makes of rows; and rows
//! of x in blocks, number `k` of all rows side by side ([`RowBlocks`]). A step of the innermost loop then reads two arrays of
//! known length, and all its sums stay in registers.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::Level;
use crate::ops::gemm::MatMut;
use crate::ops::simd::{bf16_to_f32, f16_to_f32};

#[cfg(target_arch = "x86_64")]
mod x86;

/// Columns of the result that lie side by side.
pub(super) const PANEL: usize = 32;
/// Numbers of a row that are summed before their sum is added to the result: what a panel has of them comes from the second
/// cache for every block of rows, and longer parts would leave less of that to x.
const DEPTH: usize = 512;
/// Numbers of a row that are turned at once, so that what is written stays in the first cache until it is whole.
const TURNED: usize = 128;
/// How many bytes of a weight before they are needed memory is asked for them.
const AHEAD: usize = 4096;
/// From so many rows on it is x that is to stay in the second cache, and no longer the weight that is read from its beginning
/// to its end.
pub(super) const MANY: usize = 64;

/// Rows that are multiplied at once: as many as there are registers for the sums of two vectors of columns.
fn rows_at_once(level: Level) -> usize {
    match level {
        Level::Portable => 4,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => 6,
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Vnni => 12,
    }
}

thread_local! {
    static LAID_OUT: RefCell<Vec<f32>> = RefCell::default();
}

/// Rows of x, `[n, in]`, in blocks of `[in, rows at once]`; the last may have fewer rows.
pub(super) struct RowBlocks {
    rows: usize,
    input: usize,
    at_once: usize,
    all: Vec<f32>,
}

impl RowBlocks {
    pub(super) fn new(level: Level, x: &[f32], rows: usize, input: usize) -> Self {
        let at_once = rows_at_once(level);
        // The memory of the last ones: a page that the system gives is cleared first.
        let mut all = LAID_OUT.take();
        all.resize(x.len(), 0.0);
        if input > 0 {
            all.par_chunks_mut(at_once * input)
                .zip(x.par_chunks(at_once * input))
                .for_each(|(block, x)| beside(x, input, block));
        }
        Self {
            rows,
            input,
            at_once,
            all,
        }
    }

    /// The blocks of these rows, of which the first is the first of a block.
    fn of(&self, rows: Range<usize>) -> impl Iterator<Item = Block<'_>> {
        rows.clone().step_by(self.at_once).map(move |row| {
            let count = self.at_once.min(self.rows - row);
            Block {
                row: row - rows.start,
                count,
                numbers: &self.all[row * self.input..][..count * self.input],
            }
        })
    }
}

impl Drop for RowBlocks {
    fn drop(&mut self) {
        LAID_OUT.set(std::mem::take(&mut self.all));
    }
}

/// Puts numbers `k` of some rows side by side.
fn beside(x: &[f32], input: usize, into: &mut [f32]) {
    let count = x.len() / input;
    for (part, into) in into.chunks_mut(TURNED * count).enumerate() {
        for (row, x) in x.chunks_exact(input).enumerate() {
            let into = into[row..].iter_mut().step_by(count);
            for (into, &x) in into.zip(&x[part * TURNED..]) {
                *into = x;
            }
        }
    }
}

/// Some rows of x, side by side.
struct Block<'a> {
    /// The first of them in the result.
    row: usize,
    count: usize,
    /// `[in, count]`.
    numbers: &'a [f32],
}

/// Some columns of a weight.
#[derive(Clone, Copy)]
pub(super) enum Weights<'a, T> {
    /// `[cols, in]`.
    Rows(&'a [T]),
    /// `[cols / PANEL, in]`, rounded up.
    Panels(&'a [[T; PANEL]]),
}

/// How a weight is written.
pub(super) trait Number {
    type Bits: Copy + Default + bytemuck::Pod + Send + Sync;

    fn load<R: Register>(from: &[Self::Bits; PANEL], part: usize) -> R;
    /// These as they are, if they are f32.
    fn wide(_: &[Self::Bits]) -> Option<&[f32]> {
        None
    }
    /// Number after number, from `start` on, of rows of `input` numbers, side by side.
    fn turn(
        _: Level,
        rows: &[Self::Bits],
        input: usize,
        start: usize,
        into: &mut [[Self::Bits; PANEL]],
    ) {
        turn(rows, input, start, into);
    }
}

/// Some columns of a panel: a register of the machine.
pub(super) trait Register: Copy {
    /// How many; it divides [`PANEL`].
    const WIDTH: usize;

    fn zero() -> Self;
    fn splat(number: f32) -> Self;
    /// Numbers `part * WIDTH..` of these.
    fn load(from: &[f32; PANEL], part: usize) -> Self;
    fn load_f16(from: &[u16; PANEL], part: usize) -> Self;
    fn load_bf16(from: &[u16; PANEL], part: usize) -> Self;
    /// `a b + self`, rounded once.
    fn fused(self, a: Self, b: Self) -> Self;
    fn store(self, into: &mut [f32; PANEL], part: usize);
    /// Asks memory for what lies there, if anything does.
    fn prefetch<T>(from: *const T);
    /// The same, as far as the second cache.
    fn prefetch_far<T>(from: *const T);
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct BF16;

impl Number for F32 {
    type Bits = f32;

    #[inline(always)]
    fn load<R: Register>(from: &[f32; PANEL], part: usize) -> R {
        R::load(from, part)
    }

    #[inline(always)]
    fn wide(numbers: &[f32]) -> Option<&[f32]> {
        Some(numbers)
    }

    fn turn(level: Level, rows: &[f32], input: usize, start: usize, into: &mut [[f32; PANEL]]) {
        #[cfg(target_arch = "x86_64")]
        if level > Level::Portable && rows.len() == PANEL * input {
            return x86::turn(rows, input, start, into);
        }
        let _ = level;
        turn(rows, input, start, into);
    }
}

impl Number for F16 {
    type Bits = u16;

    #[inline(always)]
    fn load<R: Register>(from: &[u16; PANEL], part: usize) -> R {
        R::load_f16(from, part)
    }
}

impl Number for BF16 {
    type Bits = u16;

    #[inline(always)]
    fn load<R: Register>(from: &[u16; PANEL], part: usize) -> R {
        R::load_bf16(from, part)
    }
}

/// Four columns are an SSE or NEON register.
impl Register for [f32; 4] {
    const WIDTH: usize = 4;

    #[inline(always)]
    fn zero() -> Self {
        [0.0; 4]
    }

    #[inline(always)]
    fn splat(number: f32) -> Self {
        [number; 4]
    }

    #[inline(always)]
    fn load(from: &[f32; PANEL], part: usize) -> Self {
        std::array::from_fn(
            #[inline(always)]
            |lane| from[part * 4 + lane],
        )
    }

    #[inline(always)]
    fn load_f16(from: &[u16; PANEL], part: usize) -> Self {
        std::array::from_fn(
            #[inline(always)]
            |lane| f16_to_f32(from[part * 4 + lane]),
        )
    }

    #[inline(always)]
    fn load_bf16(from: &[u16; PANEL], part: usize) -> Self {
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
    fn store(self, into: &mut [f32; PANEL], part: usize) {
        into[part * 4..][..4].copy_from_slice(&self);
    }

    #[inline(always)]
    fn prefetch<T>(_: *const T) {}

    #[inline(always)]
    fn prefetch_far<T>(_: *const T) {}
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Where a thread lays out what it has of a weight.
#[derive(Default)]
struct Scratch {
    panel: Vec<[f32; PANEL]>,
    /// `[PANEL, DEPTH]`, widened.
    rows: Vec<f32>,
}

/// `into = x W^T` for some rows of x and some columns of W, on this thread.
pub(super) fn tile<N: Number>(
    level: Level,
    x: &RowBlocks,
    rows: Range<usize>,
    weights: Weights<'_, N::Bits>,
    into: &mut MatMut<'_>,
) {
    if x.input == 0 {
        (0..into.rows).for_each(|row| into.row(row).fill(0.0));
        return;
    }
    // Taken, not borrowed: what a closure does is not compiled for the registers of the functions below.
    let mut scratch = SCRATCH.take();
    scratch.panel.resize(DEPTH, [0.0; PANEL]);
    let tile = Tile::<N> {
        x,
        rows,
        weights,
        into,
        scratch: &mut scratch,
    };
    match level {
        Level::Portable => tile.make::<[f32; 4], 4>(level),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => x86::avx2(tile),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Vnni => x86::avx512(tile),
    }
    SCRATCH.set(scratch);
}

/// Lays out the rows of a panel, `[PANEL or fewer, in]`; what is missing of them stays as it is.
pub(super) fn lay_out<N: Number>(rows: &[N::Bits], input: usize, panel: &mut [[N::Bits; PANEL]]) {
    for at in (0..input).step_by(TURNED) {
        let depth = at..input.min(at + TURNED);
        N::turn(
            Level::here(),
            rows,
            input,
            depth.start,
            &mut panel[depth.clone()],
        );
    }
}

fn turn<T: Copy>(rows: &[T], input: usize, start: usize, into: &mut [[T; PANEL]]) {
    for (row, numbers) in rows.chunks_exact(input).enumerate() {
        for (into, &number) in into.iter_mut().zip(&numbers[start..]) {
            into[row] = number;
        }
    }
}

/// A part of a product, on one thread.
struct Tile<'a, 'b, N: Number> {
    x: &'a RowBlocks,
    rows: Range<usize>,
    weights: Weights<'a, N::Bits>,
    into: &'a mut MatMut<'b>,
    scratch: &'a mut Scratch,
}

impl<N: Number> Tile<'_, '_, N> {
    /// With registers `R`, of which there are enough for `REGISTERS` sums of each row of a block.
    #[inline(always)]
    fn make<R: Register, const REGISTERS: usize>(self, level: Level) {
        let Self {
            x,
            rows,
            weights,
            into,
            scratch,
        } = self;
        let input = x.input;
        let blocks = rows.len().div_ceil(x.at_once);
        let parts = parts(rows.len(), input, into.cols);
        for (index, (panel, depth)) in parts.iter().enumerate() {
            let place = Place {
                depth: depth.clone(),
                col: panel * PANEL,
            };
            let mut ahead = Ahead {
                from: std::ptr::null(),
                step: 0,
                near: false,
            };
            let rows = rows.clone();
            match weights {
                Weights::Panels(all) => {
                    let laid = &all[panel * input..][depth.clone()];
                    let step = size_of::<[N::Bits; PANEL]>();
                    ahead = if blocks == 1 {
                        Ahead {
                            from: laid.as_ptr().cast::<u8>().wrapping_add(AHEAD),
                            step,
                            near: true,
                        }
                    } else {
                        // After the last part of a tile comes another tile's first, as a rule.
                        let next = parts.get(index + 1);
                        let next = next.map_or((panel + 1) * input, |(panel, depth)| {
                            panel * input + depth.start
                        });
                        Ahead {
                            from: all.as_ptr().wrapping_add(next).cast(),
                            step: step / blocks,
                            near: false,
                        }
                    };
                    // One block meets weights of sixteen bits as they are; for more these are widened first, once for all.
                    if blocks == 1 || N::wide(&[]).is_some() {
                        place.sums::<R, N, REGISTERS>(x, rows, laid, ahead, into);
                        continue;
                    }
                    for (into, from) in scratch.panel.iter_mut().zip(laid) {
                        for part in 0..PANEL / R::WIDTH {
                            N::load::<R>(from, part).store(into, part);
                        }
                    }
                }
                Weights::Rows(all) => {
                    let cols = place.col..into.cols.min(place.col + PANEL);
                    let some = &all[cols.start * input..cols.end * input];
                    scratch.turn::<R, N>(level, some, input, depth.clone());
                }
            }
            let panel = &scratch.panel[..depth.len()];
            place.sums::<R, F32, REGISTERS>(x, rows, panel, ahead, into);
        }
    }
}

/// The panels of a tile and the parts of their depth, in the order they are met.
fn parts(rows: usize, input: usize, cols: usize) -> Vec<(usize, Range<usize>)> {
    let panels = 0..cols.div_ceil(PANEL);
    let depths = (0..input)
        .step_by(DEPTH)
        .map(|at| at..input.min(at + DEPTH));
    if rows >= MANY {
        depths
            .flat_map(|depth| panels.clone().map(move |panel| (panel, depth.clone())))
            .collect()
    } else {
        panels
            .flat_map(|panel| depths.clone().map(move |depth| (panel, depth)))
            .collect()
    }
}

impl Scratch {
    /// Lays out this depth of some rows of a weight.
    #[inline(always)]
    fn turn<R: Register, N: Number>(
        &mut self,
        level: Level,
        rows: &[N::Bits],
        input: usize,
        depth: Range<usize>,
    ) {
        let (start, width) = (depth.start, depth.len());
        let panel = &mut self.panel[..width];
        if let Some(rows) = N::wide(rows) {
            return F32::turn(level, rows, input, start, panel);
        }
        let count = rows.len() / input;
        self.rows.resize(count * width, 0.0);
        for (row, wide) in rows
            .chunks_exact(input)
            .zip(self.rows.chunks_exact_mut(width))
        {
            let (whole, rest) = row[depth.clone()].as_chunks::<PANEL>();
            let (wide, last) = wide.as_chunks_mut::<PANEL>();
            for (from, into) in whole.iter().zip(wide) {
                for part in 0..PANEL / R::WIDTH {
                    N::load::<R>(from, part).store(into, part);
                }
            }
            let (mut from, mut into) = ([N::Bits::default(); PANEL], [0.0; PANEL]);
            from[..rest.len()].copy_from_slice(rest);
            for part in 0..PANEL / R::WIDTH {
                N::load::<R>(&from, part).store(&mut into, part);
            }
            last.copy_from_slice(&into[..rest.len()]);
        }
        F32::turn(level, &self.rows, width, 0, panel);
    }
}

/// Which part of a product is made: these numbers of each row, and a panel's columns from this one on.
struct Place {
    depth: Range<usize>,
    col: usize,
}

/// What memory is asked for while something else is computed: so many bytes on with each number of a row.
#[derive(Clone, Copy)]
struct Ahead {
    from: *const u8,
    step: usize,
    /// Whether the first cache has room for it.
    near: bool,
}

impl Place {
    #[inline(always)]
    fn sums<R: Register, N: Number, const REGISTERS: usize>(
        &self,
        x: &RowBlocks,
        rows: Range<usize>,
        panel: &[[N::Bits; PANEL]],
        ahead: Ahead,
        into: &mut MatMut<'_>,
    ) {
        for (index, block) in x.of(rows).enumerate() {
            // Each block asks for its share.
            let ahead = Ahead {
                from: ahead.from.wrapping_add(index * panel.len() * ahead.step),
                ..ahead
            };
            let (from, to) = (self.depth.start, self.depth.end);
            let numbers = &block.numbers[from * block.count..to * block.count];
            macro_rules! with_rows {
                ($($count:literal)*) => {
                    match block.count {
                        $($count => self.block::<R, N, $count, REGISTERS>(
                            numbers.as_chunks().0,
                            panel,
                            ahead,
                            block.row,
                            into,
                        ),)*
                        _ => {}
                    }
                };
            }
            with_rows!(1 2 3 4 5 6 7 8 9 10 11 12);
        }
    }

    /// The sums for `ROWS` rows and the columns of a panel, stored or added to what the depths before gave.
    #[inline(always)]
    fn block<R: Register, N: Number, const ROWS: usize, const REGISTERS: usize>(
        &self,
        x: &[[f32; ROWS]],
        panel: &[[N::Bits; PANEL]],
        ahead: Ahead,
        row: usize,
        into: &mut MatMut<'_>,
    ) {
        for part in (0..PANEL / R::WIDTH).step_by(REGISTERS) {
            if self.col + part * R::WIDTH >= into.cols {
                break;
            }
            let mut sums = [[R::zero(); REGISTERS]; ROWS];
            let mut next = ahead.from;
            for (x, weights) in x.iter().zip(panel) {
                if part == 0 {
                    if ahead.near {
                        R::prefetch(next);
                        R::prefetch(next.wrapping_add(64));
                    } else {
                        R::prefetch_far(next);
                    }
                    next = next.wrapping_add(ahead.step);
                }
                let mut some = [R::zero(); REGISTERS];
                for (index, weight) in some.iter_mut().enumerate() {
                    *weight = N::load(weights, part + index);
                }
                for (sums, &x) in sums.iter_mut().zip(x) {
                    let x = R::splat(x);
                    for (sum, &weight) in sums.iter_mut().zip(&some) {
                        *sum = sum.fused(x, weight);
                    }
                }
            }
            // By way of memory, in loops of known length: a sum that is looked up is none that stays in its register.
            let mut made = [[0.0; PANEL]; ROWS];
            for (sums, made) in sums.iter().zip(&mut made) {
                for (index, sum) in sums.iter().enumerate() {
                    sum.store(made, part + index);
                }
            }
            let cols = part * R::WIDTH..(part + REGISTERS) * R::WIDTH;
            for (at, made) in made.iter().enumerate() {
                let into = &mut into.row(row + at)[self.col..];
                if let Some(into) = into.first_chunk_mut() {
                    self.put(made, cols.clone(), into);
                } else {
                    let mut some = [0.0; PANEL];
                    some[..into.len()].copy_from_slice(into);
                    self.put(made, cols.clone(), &mut some);
                    into.copy_from_slice(&some[..into.len()]);
                }
            }
        }
    }

    /// Stores some columns of a row, or adds them to what the depths before gave.
    #[inline(always)]
    fn put(&self, made: &[f32; PANEL], cols: Range<usize>, into: &mut [f32; PANEL]) {
        if self.depth.start == 0 {
            for col in cols {
                into[col] = made[col];
            }
        } else {
            for col in cols {
                into[col] += made[col];
            }
        }
    }
}
