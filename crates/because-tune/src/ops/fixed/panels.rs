//! Weights laid out as the kernels want them, which is done once where there is memory for it.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;
use candle_core::{Error, Result};
use memmap2::MmapMut;
use rayon::prelude::*;

use super::dots::{self, BF16, F16, F32, Number, PANEL};
use super::integers::IntegerPanels;
use crate::ops::matrix::{Matrix, Numbers};
use crate::ops::quantised::Layout;

/// A weight matrix laid out in memory.
#[derive(Debug)]
pub(in crate::ops) enum Panels {
    Numbers(NumberPanels),
    Integers(IntegerPanels),
}

/// `[cols / PANEL, in]`, rounded up.
#[derive(Debug)]
pub(in crate::ops) enum NumberPanels {
    F32(Store<[f32; PANEL]>),
    F16(Store<[u16; PANEL]>),
    BF16(Store<[u16; PANEL]>),
}

impl Panels {
    /// Lays out a matrix; `None` if its type has no kernel of its own.
    pub(in crate::ops) fn new(matrix: &Matrix) -> Result<Option<Self>> {
        let (out, input) = matrix.dims()?;
        if let Matrix::Quantised(quantised) = matrix {
            return match Layout::of(quantised.kind()) {
                Some(layout) => {
                    IntegerPanels::new(quantised, layout).map(|all| Some(Self::Integers(all)))
                }
                None => Ok(None),
            };
        }
        let lent = matrix.lend()?;
        let panels = match lent.numbers() {
            Numbers::F32(all) => NumberPanels::F32(laid_out::<F32>(all, out, input)?),
            Numbers::F16(all) => NumberPanels::F16(laid_out::<F16>(all, out, input)?),
            Numbers::BF16(all) => NumberPanels::BF16(laid_out::<BF16>(all, out, input)?),
        };
        Ok(Some(Self::Numbers(panels)))
    }

    /// Bytes that laying out a matrix takes.
    pub(in crate::ops) fn bytes_of(matrix: &Matrix) -> Result<u64> {
        let (out, input) = matrix.dims()?;
        if let Matrix::Quantised(quantised) = matrix {
            let layout = Layout::of(quantised.kind());
            return Ok(layout.map_or(0, |layout| IntegerPanels::bytes_of(layout, (out, input))));
        }
        let size = match matrix.lend()?.numbers() {
            Numbers::F32(_) => 4,
            Numbers::F16(_) | Numbers::BF16(_) => 2,
        };
        Ok((out.next_multiple_of(PANEL) * input * size) as u64)
    }
}

fn laid_out<N: Number>(
    all: &[N::Bits],
    out: usize,
    input: usize,
) -> Result<Store<[N::Bits; PANEL]>> {
    let mut store = Store::new(out.div_ceil(PANEL) * input)?;
    if input > 0 {
        let panels = store.par_chunks_exact_mut(input);
        panels
            .zip(all.par_chunks(input * PANEL))
            .for_each(|(panel, rows)| dots::lay_out::<N>(rows, input, panel));
    }
    Ok(store)
}

/// Values in memory of their own, in large pages where the system has such: a weight is read from its beginning to its end, and
/// a page is looked up for each part of it.
#[derive(Debug)]
pub(in crate::ops) struct Store<T> {
    memory: MmapMut,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Pod> Store<T> {
    /// All zero.
    pub(super) fn new(len: usize) -> Result<Self> {
        let memory = MmapMut::map_anon((len * size_of::<T>()).max(1)).map_err(Error::wrap)?;
        #[cfg(target_os = "linux")]
        {
            // A wish: without it pages are small.
            let _ = memory.advise(memmap2::Advice::HugePage);
        }
        Ok(Self {
            memory,
            len,
            of: PhantomData,
        })
    }
}

impl<T: Pod> Deref for Store<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        bytemuck::cast_slice(&self.memory[..self.len * size_of::<T>()])
    }
}

impl<T: Pod> DerefMut for Store<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.memory[..self.len * size_of::<T>()])
    }
}
