//! Sums of products of rows of eight-bit integers with quantised weights.
//!
//! A row is cut into blocks of 32 numbers, each written as integers of -127 to 127 times one f32. The products of a block are
//! summed exactly, as integers, and the blocks of a row one after the other, in f32: that order is the same for any number
//! of rows and on every machine.

use std::cell::RefCell;
use std::ops::Range;

use candle_core::Result;
use rayon::prelude::*;

use super::Level;
use super::panels::Store;
use crate::ops::gemm::MatMut;
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

/// How many bytes of a weight before they are needed memory is asked for them.
const AHEAD: usize = 4096;

/// Rows that are multiplied at once: as many as there are registers for their sums.
fn rows_at_once(level: Level) -> usize {
    match level {
        Level::Portable => 1,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::Avx512 => 4,
        #[cfg(target_arch = "x86_64")]
        Level::Vnni => 12,
    }
}

/// Rows in integers, `[n, in]`, so many at once beside each other: `[in / BLOCK, rows at once]`; the last may be fewer.
pub(super) struct IntegerRows {
    rows: usize,
    blocks: usize,
    at_once: usize,
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
    pub(super) fn new(level: Level, x: &[f32], rows: usize, input: usize) -> Self {
        let (at_once, blocks) = (rows_at_once(level), input / BLOCK);
        let empty = Block {
            quants: [[0; 16]; 2],
            scale: 0.0,
            sums: [0; 2],
        };
        let mut all = vec![empty; rows * blocks];
        // Pieces large enough to be worth a thread.
        const PIECE: usize = 512;
        if blocks > 0 {
            let groups = all.par_chunks_mut(at_once * blocks).enumerate();
            groups.for_each(|(group, all)| {
                let count = all.len() / blocks;
                let x = &x[group * at_once * input..][..count * input];
                let some = PIECE.div_ceil(count);
                let pieces = all.par_chunks_mut(some * count).enumerate();
                pieces.for_each(|(piece, all)| {
                    let from = piece * some * BLOCK;
                    vectorized(
                        #[inline(always)]
                        || {
                            // Loops, not closures: those would not be compiled for the wide registers.
                            for (row, x) in x.chunks_exact(input).enumerate() {
                                let x = x[from..].as_chunks::<BLOCK>().0;
                                for (block, x) in all[row..].iter_mut().step_by(count).zip(x) {
                                    *block = Block::new(x);
                                }
                            }
                        },
                    );
                });
            });
        }
        Self {
            rows,
            blocks,
            at_once,
            all,
        }
    }

    /// Where each group of these rows begins among them, how many it has, and its blocks. The first is the first of a group.
    fn of(&self, rows: &Range<usize>) -> impl Iterator<Item = (usize, usize, &[Block])> {
        rows.clone().step_by(self.at_once).map(|row| {
            let count = self.at_once.min(self.rows - row);
            let all = &self.all[row * self.blocks..][..count * self.blocks];
            (row - rows.start, count, all)
        })
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
        let mut steps = [0i32; BLOCK];
        for at in 0..BLOCK {
            let rounded = (x[at] * inverse + ROUND).to_bits();
            steps[at] = rounded.wrapping_sub(ROUND.to_bits()) as i32;
        }
        // What is not finite gives any steps; a byte holds them all the same.
        let mut quants = [[0; 16]; 2];
        let mut sums = [0; 2];
        for half in 0..2 {
            for at in 0..16 {
                quants[half][at] = steps[half * 16 + at] as i8;
                sums[half] += i32::from(steps[half * 16 + at] as i8);
            }
        }
        Self {
            quants,
            scale: scale + poison,
            sums,
        }
    }
}

/// Weights laid out for the kernel, in panels of sixteen columns.
#[derive(Debug)]
pub(in crate::ops) struct IntegerPanels {
    layout: Layout,
    input: usize,
    /// `[panels, in / 4]`.
    quads: Store<Quad>,
    /// `[panels, groups]`.
    scales: Store<[f32; PANEL]>,
    /// As many, or one that is not used.
    mins: Store<[f32; PANEL]>,
}

impl IntegerPanels {
    pub(super) fn new(weight: &Quantised, layout: Layout) -> Result<Self> {
        let (out, input) = weight.dims();
        let panels = out.div_ceil(PANEL);
        let sizes = Sizes::new(layout, input);
        let mut all = Self {
            layout,
            input,
            quads: Store::new(panels * sizes.quads)?,
            scales: Store::new(panels * sizes.scales)?,
            mins: Store::new(panels * sizes.mins)?,
        };
        if input > 0 {
            let quads = all.quads.par_chunks_exact_mut(sizes.quads);
            let scales = all.scales.par_chunks_exact_mut(sizes.scales);
            let mins = all.mins.par_chunks_exact_mut(sizes.mins);
            let panels = quads.zip(scales).zip(mins).enumerate();
            panels.for_each(|(panel, ((quads, scales), mins))| {
                let rows = panel * PANEL..out.min((panel + 1) * PANEL);
                lay_out(Level::here(), weight, layout, rows, quads, scales, mins);
            });
        }
        Ok(all)
    }

    /// Bytes that a weight takes.
    pub(super) fn bytes_of(layout: Layout, (out, input): (usize, usize)) -> u64 {
        let sizes = Sizes::new(layout, input);
        let floats = (sizes.scales + sizes.mins) * size_of::<[f32; PANEL]>();
        (out.div_ceil(PANEL) * (sizes.quads * size_of::<Quad>() + floats)) as u64
    }

    pub(super) fn layout(&self) -> Layout {
        self.layout
    }

    fn panel(&self, index: usize) -> Panel<'_> {
        let sizes = Sizes::new(self.layout, self.input);
        let next = (index + 1) * sizes.quads;
        Panel {
            quads: &self.quads[index * sizes.quads..next],
            scales: &self.scales[index * sizes.scales..][..sizes.scales],
            mins: &self.mins[index * sizes.mins..][..sizes.mins],
            next: self.quads.as_ptr().wrapping_add(next),
        }
    }
}

/// How much of what a panel has.
struct Sizes {
    quads: usize,
    scales: usize,
    mins: usize,
}

impl Sizes {
    fn new(layout: Layout, input: usize) -> Self {
        let groups = input / layout.group;
        Self {
            quads: input / 4,
            scales: groups,
            mins: if layout.mins { groups } else { 1 },
        }
    }
}

/// Sixteen columns.
#[derive(Clone, Copy)]
struct Panel<'a> {
    /// `[in / 4]`.
    quads: &'a [Quad],
    /// `[groups]`.
    scales: &'a [[f32; PANEL]],
    mins: &'a [[f32; PANEL]],
    /// What is wanted after it.
    next: *const Quad,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
    static UNPACKED: RefCell<Rows> = RefCell::default();
}

/// Where a thread lays out a panel of a weight that is in its file alone.
#[derive(Default)]
struct Scratch {
    quads: Vec<Quad>,
    scales: Vec<[f32; PANEL]>,
    mins: Vec<[f32; PANEL]>,
}

/// Where a thread unpacks the rows of a panel.
#[derive(Default)]
struct Rows {
    /// `[PANEL, in]`.
    quants: Vec<u8>,
    scale: Vec<f32>,
    min: Vec<f32>,
}

/// Where the weights of a product are.
#[derive(Clone, Copy)]
pub(super) enum Integers<'a> {
    InFile(&'a Quantised, Layout),
    LaidOut(&'a IntegerPanels),
}

/// `into = x W^T` for some rows of x and of the weight, on this thread.
pub(super) fn tile(
    level: Level,
    x: &IntegerRows,
    rows: &Range<usize>,
    weight: Integers<'_>,
    cols: Range<usize>,
    into: &mut MatMut<'_>,
) {
    let mut scratch = SCRATCH.take();
    for col in cols.clone().step_by(PANEL) {
        let some = col..cols.end.min(col + PANEL);
        let count = some.len();
        let (panel, layout) = match weight {
            Integers::InFile(weight, layout) => (scratch.fill(level, weight, layout, some), layout),
            Integers::LaidOut(all) => (all.panel(col / PANEL), all.layout()),
        };
        let work = Work {
            x,
            rows,
            panel,
            layout,
            at: col - cols.start,
            count,
            into,
        };
        match level {
            Level::Portable => work.make::<[i32; 4]>(),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 | Level::Avx512 => x86::avx2(work),
            #[cfg(target_arch = "x86_64")]
            Level::Vnni => x86::vnni(work),
        }
    }
    SCRATCH.set(scratch);
}

impl Scratch {
    fn fill(
        &mut self,
        level: Level,
        weight: &Quantised,
        layout: Layout,
        rows: Range<usize>,
    ) -> Panel<'_> {
        let sizes = Sizes::new(layout, weight.dims().1);
        self.quads.resize(sizes.quads, [0; 4 * PANEL]);
        self.scales.resize(sizes.scales, [0.0; PANEL]);
        self.mins.resize(sizes.mins, [0.0; PANEL]);
        let (quads, scales, mins) = (&mut self.quads, &mut self.scales, &mut self.mins);
        lay_out(level, weight, layout, rows, quads, scales, mins);
        Panel {
            quads,
            scales,
            mins,
            next: std::ptr::null(),
        }
    }
}

/// Lays out a panel of rows, sixteen or fewer.
fn lay_out(
    level: Level,
    weight: &Quantised,
    layout: Layout,
    rows: Range<usize>,
    quads: &mut [Quad],
    scales: &mut [[f32; PANEL]],
    mins: &mut [[f32; PANEL]],
) {
    let (_, input) = weight.dims();
    let sizes = Sizes::new(layout, input);
    let mut unpacked = UNPACKED.take();
    unpacked.quants.resize(PANEL * input, 0);
    unpacked.scale.resize(sizes.scales, 0.0);
    unpacked.min.resize(sizes.mins, 0.0);
    vectorized(
        #[inline(always)]
        || {
            for (at, row) in rows.enumerate() {
                layout.unpack(
                    weight.blocks(row..row + 1),
                    &mut Unpacked {
                        quants: &mut unpacked.quants[at * input..][..input],
                        scales: &mut unpacked.scale,
                        mins: &mut unpacked.min,
                    },
                );
                for (into, &scale) in scales.iter_mut().zip(&unpacked.scale) {
                    into[at] = scale;
                }
                for (into, &min) in mins.iter_mut().zip(&unpacked.min) {
                    into[at] = min;
                }
            }
        },
    );
    match level {
        Level::Portable => transpose(&unpacked.quants, input, quads),
        #[cfg(target_arch = "x86_64")]
        _ => x86::transpose(&unpacked.quants, input, quads),
    }
    UNPACKED.set(unpacked);
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
    /// Adds to the sums of some rows the products of sixteen numbers of each with those of weights `part * WIDTH..`, which have
    /// `BITS` bits.
    ///
    /// For `BITS` of 8 the weights are counted from -128: products are those with `w - 128`.
    fn add<const BITS: u32, const ROWS: usize>(
        sums: &mut [Self; ROWS],
        weights: &[Quad; 4],
        x: &[Block; ROWS],
        half: usize,
        part: usize,
    );
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
    /// Asks memory for what lies there, if anything does.
    fn prefetch<T>(from: *const T);
    /// The same, as far as the second cache.
    fn prefetch_far<T>(from: *const T);
}

/// The product of some rows with a panel.
struct Work<'a, 'b> {
    x: &'a IntegerRows,
    rows: &'a Range<usize>,
    panel: Panel<'a>,
    layout: Layout,
    /// Where the panel's columns begin in the result, and how many there are.
    at: usize,
    count: usize,
    into: &'a mut MatMut<'b>,
}

impl Work<'_, '_> {
    #[inline(always)]
    fn make<R: Register>(self) {
        match (self.layout.bits, self.layout.mins) {
            (4, false) => self.typed::<R, 4, false>(),
            (4, true) => self.typed::<R, 4, true>(),
            (5, false) => self.typed::<R, 5, false>(),
            (5, true) => self.typed::<R, 5, true>(),
            (6, _) => self.typed::<R, 6, false>(),
            _ => self.typed::<R, 8, false>(),
        }
    }

    #[inline(always)]
    fn typed<R: Register, const BITS: u32, const MINS: bool>(mut self) {
        let groups = self.rows.len().div_ceil(self.x.at_once);
        let ahead = match (self.panel.next.is_null(), groups) {
            (true, _) => Ahead::NOTHING,
            // What is next is near.
            (_, 1) => Ahead {
                from: self.panel.quads.as_ptr().cast::<u8>().wrapping_add(AHEAD),
                lines: BLOCK / 4,
                near: true,
            },
            // Each group asks for its share of the next panel.
            _ => Ahead {
                from: self.panel.next.cast(),
                lines: (BLOCK / 4).div_ceil(groups),
                near: false,
            },
        };
        let x = self.x;
        for (index, (row, count, all)) in x.of(self.rows).enumerate() {
            let ahead = Ahead {
                from: ahead
                    .from
                    .wrapping_add(index * ahead.lines * x.blocks * LINE),
                ..ahead
            };
            macro_rules! with_rows {
                ($($count:literal)*) => {
                    match count {
                        $($count => {
                            self.group::<R, $count, BITS, MINS>(all.as_chunks().0, row, ahead);
                        })*
                        _ => {}
                    }
                };
            }
            with_rows!(1 2 3 4 5 6 7 8 9 10 11 12);
        }
    }

    /// The results of some rows that lie beside each other.
    #[inline(always)]
    fn group<R: Register, const ROWS: usize, const BITS: u32, const MINS: bool>(
        &mut self,
        x: &[[Block; ROWS]],
        row: usize,
        ahead: Ahead,
    ) {
        let blocks = x.len();
        let quads = &self.panel.quads.as_chunks::<4>().0.as_chunks::<2>().0[..blocks];
        let per_block = if BITS == 6 { 2 } else { 1 };
        let scales = &self.panel.scales[..blocks * per_block];
        let mins = &self.panel.mins[..if MINS { blocks } else { 0 }];
        let offset = match BITS {
            8 if R::SIGNED => 0,
            _ => self.layout.offset,
        };
        let mut done = [[0.0; PANEL]; ROWS];
        for part in 0..PANEL / R::WIDTH {
            let mut sums = [R::zero(); ROWS];
            let mut next = ahead.from;
            for (at, (x, quads)) in x.iter().zip(quads).enumerate() {
                if part == 0 {
                    for _ in 0..ahead.lines {
                        match ahead.near {
                            true => R::prefetch(next),
                            false => R::prefetch_far(next),
                        }
                        next = next.wrapping_add(LINE);
                    }
                }
                let mut ints = [R::splat(0); ROWS];
                if BITS == 6 {
                    for half in 0..2 {
                        for row in 0..ROWS {
                            ints[row] = R::splat(-offset * x[row].sums[half]);
                        }
                        R::add::<BITS, ROWS>(&mut ints, &quads[half], x, half, part);
                        for row in 0..ROWS {
                            let scales = &scales[at * 2 + half];
                            sums[row] = ints[row].scaled(sums[row], scales, x[row].scale, part);
                        }
                    }
                    continue;
                }
                for row in 0..ROWS {
                    ints[row] = R::splat(-offset * (x[row].sums[0] + x[row].sums[1]));
                }
                R::add::<BITS, ROWS>(&mut ints, &quads[0], x, 0, part);
                R::add::<BITS, ROWS>(&mut ints, &quads[1], x, 1, part);
                for row in 0..ROWS {
                    sums[row] = ints[row].scaled(sums[row], &scales[at], x[row].scale, part);
                    if MINS {
                        let total = x[row].sums[0] + x[row].sums[1];
                        sums[row] =
                            R::fused(sums[row], &mins[at], x[row].scale * total as f32, part);
                    }
                }
            }
            for row in 0..ROWS {
                R::store(sums[row], &mut done[row], part);
            }
        }
        for (at, done) in done.iter().enumerate() {
            let into = &mut self.into.row(row + at)[self.at..];
            match into.first_chunk_mut() {
                Some(into) if self.count == PANEL => *into = *done,
                _ => put_some(&done[..self.count], into),
            }
        }
    }
}

/// Apart from the way a whole panel goes, which is no call for these few bytes.
#[cold]
#[inline(never)]
fn put_some(done: &[f32], into: &mut [f32]) {
    into[..done.len()].copy_from_slice(done);
}

/// Bytes that memory gives at once.
const LINE: usize = 64;

/// What memory is asked for while something else is computed: so many lines with each block.
#[derive(Clone, Copy)]
struct Ahead {
    from: *const u8,
    lines: usize,
    /// Whether the first cache has room for it.
    near: bool,
}

impl Ahead {
    const NOTHING: Self = Self {
        from: std::ptr::null(),
        lines: 0,
        near: false,
    };
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
    fn add<const BITS: u32, const ROWS: usize>(
        sums: &mut [Self; ROWS],
        weights: &[Quad; 4],
        x: &[Block; ROWS],
        half: usize,
        part: usize,
    ) {
        for (sums, x) in sums.iter_mut().zip(x) {
            for (quad, x) in weights.iter().zip(x.quants[half].as_chunks::<4>().0) {
                let quad = quad[part * 16..][..16].as_chunks::<4>().0;
                for (sum, weights) in sums.iter_mut().zip(quad) {
                    for (&weight, &x) in weights.iter().zip(x) {
                        *sum += i32::from(weight) * i32::from(x);
                    }
                }
            }
        }
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

    #[inline(always)]
    fn prefetch<T>(_: *const T) {}

    #[inline(always)]
    fn prefetch_far<T>(_: *const T) {}
}
