//! Sums of products of rows of eight-bit integers with quantised weights.
//!
//! A row is cut into blocks of 32 numbers, each written as integers of -127 to 127 times one f32. The products of a block are
//! summed exactly, as integers, and the blocks of a row one after the other, in f32: that order is the same for any number
//! of rows and on every machine.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::Level;
use crate::ops::gemm::{MatMut, cuts};
use crate::ops::quantised::{Layout, Quantised, Unpacked};
use crate::ops::simd::vectorized;

#[cfg(target_arch = "x86_64")]
mod x86;

/// Numbers of a row that share a scale.
const BLOCK: usize = 32;
/// Weights that are multiplied at once.
const PANEL: usize = 16;
/// Four numbers of each weight of a panel, as the instructions want them.
type Quad = [u8; 4 * PANEL];

/// Rows in integers.
pub(super) struct IntegerRows {
    blocks: usize,
    /// `[rows, blocks]`.
    all: Vec<Block>,
}

#[derive(Clone, Copy)]
struct Block {
    quants: [[i8; 16]; 2],
    scale: f32,
    /// The sum of each half's integers.
    sums: [i32; 2],
}

impl IntegerRows {
    /// Rounds each number to the nearest of its block's 255 steps. A block with a number that is not finite is not a number.
    pub(super) fn new(x: &[f32], input: usize) -> Self {
        let empty = Block {
            quants: [[0; 16]; 2],
            scale: 0.0,
            sums: [0; 2],
        };
        let mut all = vec![empty; x.len() / BLOCK];
        // Pieces large enough to be worth a thread.
        const PIECE: usize = 512;
        let pieces = all.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE * BLOCK));
        pieces.for_each(|(all, x)| {
            vectorized(
                #[inline(always)]
                || {
                    for (block, x) in all.iter_mut().zip(x.as_chunks::<BLOCK>().0) {
                        *block = Block::new(x);
                    }
                },
            );
        });
        Self {
            blocks: input / BLOCK,
            all,
        }
    }

    fn row(&self, row: usize) -> &[Block] {
        &self.all[row * self.blocks..][..self.blocks]
    }
}

impl Block {
    #[inline(always)]
    fn new(x: &[f32; BLOCK]) -> Self {
        // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
        const ROUND: f32 = 12_582_912.0;
        let (mut tops, mut poison) = ([0f32; 8], [0f32; 8]);
        for x in x.as_chunks::<8>().0 {
            for lane in 0..8 {
                let size = x[lane].abs();
                tops[lane] = if size > tops[lane] { size } else { tops[lane] };
                poison[lane] += x[lane] * 0.0;
            }
        }
        let top = tops
            .iter()
            .fold(0f32, |top, &x| if x > top { x } else { top });
        let poison: f32 = poison.iter().sum();
        // What is so small that its inverse is none is zero.
        let (scale, inverse) = if top > 1e-36 {
            (top / 127.0, 127.0 / top)
        } else {
            (0.0, 0.0)
        };
        let mut quants = [[0; 16]; 2];
        let mut sums = [0; 2];
        for ((quants, sum), x) in quants.iter_mut().zip(&mut sums).zip(x.as_chunks::<16>().0) {
            for (q, x) in quants.iter_mut().zip(x) {
                let rounded = (x * inverse + ROUND)
                    .to_bits()
                    .wrapping_sub(ROUND.to_bits()) as i8;
                *q = rounded;
                *sum += i32::from(rounded);
            }
        }
        Self {
            quants,
            scale: scale + poison,
            sums,
        }
    }
}

/// Sixteen weights, laid out for the kernel.
#[derive(Default)]
struct Panel {
    /// `[16, in]`, as they are unpacked.
    rows: Vec<u8>,
    /// `[in / 4]`.
    quads: Vec<Quad>,
    /// `[groups][16]`.
    scales: Vec<[f32; PANEL]>,
    mins: Vec<[f32; PANEL]>,
    scale: Vec<f32>,
    min: Vec<f32>,
}

const NO_QUAD: Quad = [0; 4 * PANEL];

thread_local! {
    static WORKED_ON: RefCell<Panel> = RefCell::default();
}

/// `into = x W^T` for some rows of x and of the weight, on this thread.
pub(super) fn tile(
    level: Level,
    x: &IntegerRows,
    rows: Range<usize>,
    (weight, layout): (&Quantised, Layout),
    cols: Range<usize>,
    into: &mut MatMut<'_>,
) {
    WORKED_ON.with_borrow_mut(|panel| {
        for col in cols.clone().step_by(PANEL) {
            let some = col..cols.end.min(col + PANEL);
            panel.fill(level, weight, layout, some.clone());
            let work = Work {
                x,
                rows: rows.clone(),
                panel,
                layout,
                at: col - cols.start,
                count: some.len(),
                into,
            };
            match level {
                Level::Portable => work.make::<[i32; 4], 1>(),
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 | Level::Avx512 => x86::avx2(work),
                #[cfg(target_arch = "x86_64")]
                Level::Vnni => x86::vnni(work),
            }
        }
    });
}

impl Panel {
    fn fill(&mut self, level: Level, weight: &Quantised, layout: Layout, rows: Range<usize>) {
        let (_, input) = weight.dims();
        let groups = input / layout.group;
        let mins = if layout.mins { groups } else { 0 };
        self.rows.resize(PANEL * input, 0);
        self.quads.resize(input / 4, NO_QUAD);
        self.scales.resize(groups, [0.0; PANEL]);
        self.mins.resize(mins, [0.0; PANEL]);
        self.scale.resize(groups, 0.0);
        self.min.resize(mins, 0.0);
        let Self {
            rows: bytes,
            scales,
            mins,
            scale,
            min,
            ..
        } = self;
        vectorized(
            #[inline(always)]
            || {
                for (at, row) in rows.clone().enumerate() {
                    layout.unpack(
                        weight.blocks(row..row + 1),
                        &mut Unpacked {
                            quants: &mut bytes[at * input..][..input],
                            scales: scale,
                            mins: min,
                        },
                    );
                    for (into, &scale) in scales.iter_mut().zip(&*scale) {
                        into[at] = scale;
                    }
                    for (into, &min) in mins.iter_mut().zip(&*min) {
                        into[at] = min;
                    }
                }
            },
        );
        match level {
            Level::Portable => transpose(&self.rows, input, &mut self.quads),
            #[cfg(target_arch = "x86_64")]
            _ => x86::transpose(&self.rows, input, &mut self.quads),
        }
    }
}

/// Four bytes of each of sixteen rows side by side, then the next four.
fn transpose(rows: &[u8], input: usize, quads: &mut [Quad]) {
    for (row, bytes) in rows.chunks_exact(input.max(1)).enumerate() {
        for (quad, bytes) in quads.iter_mut().zip(bytes.as_chunks::<4>().0) {
            quad[row * 4..][..4].copy_from_slice(bytes);
        }
    }
}

/// Sums of some weights of a panel: a register of the machine.
trait Register: Copy {
    /// How many; it divides sixteen.
    const WIDTH: usize;
    type Floats: Copy;

    fn splat(value: i32) -> Self;
    /// Adds the products of sixteen numbers of a row with those of weights `part * WIDTH..`, which have `BITS` bits.
    ///
    /// For `BITS` of 8 the weights are counted from -128: products are those with `w - 128`.
    fn add<const BITS: u32>(self, weights: &[Quad; 4], x: &[i8; 16], part: usize) -> Self;
    /// Whether [`Register::add`] takes 128 off each weight of eight bits itself.
    const SIGNED: bool;

    fn zero() -> Self::Floats;
    /// `sums + weights[part] x self`, rounded after `weights[part] x` and at the end.
    fn scaled(
        self,
        sums: Self::Floats,
        weights: &[f32; PANEL],
        x: f32,
        part: usize,
    ) -> Self::Floats;
    /// `sums + weights[part] x`, rounded once.
    fn fused(sums: Self::Floats, weights: &[f32; PANEL], x: f32, part: usize) -> Self::Floats;
    fn store(sums: Self::Floats, into: &mut [f32; PANEL], part: usize);
}

/// The product of some rows with a panel.
struct Work<'a, 'b> {
    x: &'a IntegerRows,
    rows: Range<usize>,
    panel: &'a Panel,
    layout: Layout,
    /// Where the panel's columns begin in the result, and how many there are.
    at: usize,
    count: usize,
    into: &'a mut MatMut<'b>,
}

impl Work<'_, '_> {
    /// With registers for the sums of `ROWS <= 6` rows.
    #[inline(always)]
    fn make<R: Register, const ROWS: usize>(self) {
        match (self.layout.bits, self.layout.group, self.layout.mins) {
            (4, _, false) => self.typed::<R, ROWS, 4, false>(),
            (4, _, true) => self.typed::<R, ROWS, 4, true>(),
            (5, _, false) => self.typed::<R, ROWS, 5, false>(),
            (5, _, true) => self.typed::<R, ROWS, 5, true>(),
            (6, ..) => self.typed::<R, ROWS, 6, false>(),
            _ => self.typed::<R, ROWS, 8, false>(),
        }
    }

    #[inline(always)]
    fn typed<R: Register, const ROWS: usize, const BITS: u32, const MINS: bool>(mut self) {
        for rows in cuts(self.rows.len(), ROWS, 1) {
            match rows.len() {
                1 => self.block::<R, 1, BITS, MINS>(rows.start),
                2 => self.block::<R, 2, BITS, MINS>(rows.start),
                3 => self.block::<R, 3, BITS, MINS>(rows.start),
                4 => self.block::<R, 4, BITS, MINS>(rows.start),
                5 => self.block::<R, 5, BITS, MINS>(rows.start),
                _ => self.block::<R, 6, BITS, MINS>(rows.start),
            }
        }
    }

    #[inline(always)]
    fn block<R: Register, const ROWS: usize, const BITS: u32, const MINS: bool>(
        &mut self,
        row: usize,
    ) {
        let blocks = self.x.blocks;
        let x: [&[Block]; ROWS] = std::array::from_fn(
            #[inline(always)]
            |at| &self.x.row(self.rows.start + row + at)[..blocks],
        );
        let quads = &self.panel.quads.as_chunks::<4>().0.as_chunks::<2>().0[..blocks];
        let per_block = if BITS == 6 { 2 } else { 1 };
        let scales = &self.panel.scales[..blocks * per_block];
        let mins = &self.panel.mins[..if MINS { blocks } else { 0 }];
        let offset = match BITS {
            8 if R::SIGNED => 0,
            8 => 128,
            _ => self.layout.offset,
        };
        let mut done = [[0.0; PANEL]; ROWS];
        for part in 0..PANEL / R::WIDTH {
            let mut sums = [R::zero(); ROWS];
            for at in 0..blocks {
                if BITS == 6 {
                    for half in 0..2 {
                        let scales = &scales[at * 2 + half];
                        for (sum, x) in sums.iter_mut().zip(&x) {
                            let x = &x[at];
                            let ints = R::splat(-offset * x.sums[half]);
                            let ints = ints.add::<BITS>(&quads[at][half], &x.quants[half], part);
                            *sum = ints.scaled(*sum, scales, x.scale, part);
                        }
                    }
                    continue;
                }
                for (sum, x) in sums.iter_mut().zip(&x) {
                    let x = &x[at];
                    let total = x.sums[0] + x.sums[1];
                    let ints = R::splat(-offset * total);
                    let ints = ints.add::<BITS>(&quads[at][0], &x.quants[0], part);
                    let ints = ints.add::<BITS>(&quads[at][1], &x.quants[1], part);
                    *sum = ints.scaled(*sum, &scales[at], x.scale, part);
                    if MINS {
                        *sum = R::fused(*sum, &mins[at], x.scale * total as f32, part);
                    }
                }
            }
            for (done, sums) in done.iter_mut().zip(sums) {
                R::store(sums, done, part);
            }
        }
        for (at, done) in done.iter().enumerate() {
            self.into.row(row + at)[self.at..][..self.count].copy_from_slice(&done[..self.count]);
        }
    }
}

impl Register for [i32; 4] {
    const WIDTH: usize = 4;
    const SIGNED: bool = false;
    type Floats = [f32; 4];

    #[inline(always)]
    fn splat(value: i32) -> Self {
        [value; 4]
    }

    #[inline(always)]
    fn add<const BITS: u32>(mut self, weights: &[Quad; 4], x: &[i8; 16], part: usize) -> Self {
        for (quad, x) in weights.iter().zip(x.as_chunks::<4>().0) {
            let quad = quad[part * 16..][..16].as_chunks::<4>().0;
            for (sum, weights) in self.iter_mut().zip(quad) {
                for (&weight, &x) in weights.iter().zip(x) {
                    *sum += i32::from(weight) * i32::from(x);
                }
            }
        }
        self
    }

    #[inline(always)]
    fn zero() -> [f32; 4] {
        [0.0; 4]
    }

    #[inline(always)]
    fn scaled(self, sums: [f32; 4], weights: &[f32; PANEL], x: f32, part: usize) -> [f32; 4] {
        std::array::from_fn(
            #[inline(always)]
            |at| (weights[part * 4 + at] * x).mul_add(self[at] as f32, sums[at]),
        )
    }

    #[inline(always)]
    fn fused(sums: [f32; 4], weights: &[f32; PANEL], x: f32, part: usize) -> [f32; 4] {
        std::array::from_fn(
            #[inline(always)]
            |at| weights[part * 4 + at].mul_add(x, sums[at]),
        )
    }

    #[inline(always)]
    fn store(sums: [f32; 4], into: &mut [f32; PANEL], part: usize) {
        into[part * 4..][..4].copy_from_slice(&sums);
    }
}
