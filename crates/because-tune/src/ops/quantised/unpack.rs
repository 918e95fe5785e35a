//! The blocks of each type as plain unsigned integers with their scales: `w = scale (q - offset) + min`.
//!
//! Layouts as in llama.cpp's `ggml-common.h`.

use candle_core::quantized::GgmlDType;

use crate::ops::simd::f16_to_f32;

/// How the integers of a type are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ops) struct Layout {
    kind: GgmlDType,
    /// What each integer is too large by.
    pub(in crate::ops) offset: i32,
    /// Bits of an integer.
    pub(in crate::ops) bits: u32,
    /// How many numbers share a scale: 16 or 32.
    pub(in crate::ops) group: usize,
    /// Whether each group has a number that is added.
    pub(in crate::ops) mins: bool,
}

/// The integers of one row.
pub(in crate::ops) struct Unpacked<'a> {
    pub(in crate::ops) quants: &'a mut [u8],
    /// One for each group.
    pub(in crate::ops) scales: &'a mut [f32],
    /// As many, or none.
    pub(in crate::ops) mins: &'a mut [f32],
}

impl Layout {
    /// `None` for types that are multiplied as f32.
    pub(in crate::ops) fn of(kind: GgmlDType) -> Option<Self> {
        let (offset, bits, group, mins) = match kind {
            GgmlDType::Q4_0 => (8, 4, 32, false),
            GgmlDType::Q4_1 | GgmlDType::Q4K => (0, 4, 32, true),
            GgmlDType::Q5_0 => (16, 5, 32, false),
            GgmlDType::Q5_1 | GgmlDType::Q5K => (0, 5, 32, true),
            GgmlDType::Q6K => (32, 6, 16, false),
            GgmlDType::Q8_0 => (128, 8, 32, false),
            _ => return None,
        };
        Some(Self {
            kind,
            offset,
            bits,
            group,
            mins,
        })
    }

    /// Reads the blocks of one row.
    #[inline(always)]
    pub(in crate::ops) fn unpack(self, blocks: &[u8], into: &mut Unpacked<'_>) {
        match self.kind {
            GgmlDType::Q4_0 => {
                scales::<18>(blocks, 0, into.scales);
                each::<18, 32>(
                    blocks,
                    into.quants,
                    #[inline(always)]
                    |block, q| nibbles(&block[2..18], q),
                );
            }
            GgmlDType::Q4_1 => {
                scales::<20>(blocks, 0, into.scales);
                scales::<20>(blocks, 2, into.mins);
                each::<20, 32>(
                    blocks,
                    into.quants,
                    #[inline(always)]
                    |block, q| nibbles(&block[4..20], q),
                );
            }
            GgmlDType::Q5_0 => {
                scales::<22>(blocks, 0, into.scales);
                each::<22, 32>(
                    blocks,
                    into.quants,
                    #[inline(always)]
                    |block, q| {
                        nibbles(&block[6..22], q);
                        fifth_bits(&block[2..6], q);
                    },
                );
            }
            GgmlDType::Q5_1 => {
                scales::<24>(blocks, 0, into.scales);
                scales::<24>(blocks, 2, into.mins);
                each::<24, 32>(
                    blocks,
                    into.quants,
                    #[inline(always)]
                    |block, q| {
                        nibbles(&block[8..24], q);
                        fifth_bits(&block[4..8], q);
                    },
                );
            }
            GgmlDType::Q8_0 => {
                scales::<34>(blocks, 0, into.scales);
                each::<34, 32>(
                    blocks,
                    into.quants,
                    #[inline(always)]
                    |block, q| {
                        for (q, &byte) in q.iter_mut().zip(&block[2..34]) {
                            *q = byte ^ 0x80;
                        }
                    },
                );
            }
            GgmlDType::Q4K => {
                k_scales::<144>(blocks, into);
                each::<144, 256>(
                    blocks,
                    into.quants,
                    #[inline(always)]
                    |block, q| {
                        for (q, low) in q
                            .as_chunks_mut::<64>()
                            .0
                            .iter_mut()
                            .zip(block[16..].as_chunks::<32>().0)
                        {
                            for at in 0..32 {
                                q[at] = low[at] & 15;
                                q[at + 32] = low[at] >> 4;
                            }
                        }
                    },
                );
            }
            GgmlDType::Q5K => {
                k_scales::<176>(blocks, into);
                each::<176, 256>(
                    blocks,
                    into.quants,
                    #[inline(always)]
                    |block, q| {
                        let high: &[u8; 32] = block[16..48].try_into().unwrap_or(&[0; 32]);
                        let pairs = q
                            .as_chunks_mut::<64>()
                            .0
                            .iter_mut()
                            .zip(block[48..].as_chunks::<32>().0);
                        for (pair, (q, low)) in pairs.enumerate() {
                            for at in 0..32 {
                                q[at] = low[at] & 15 | (high[at] >> (2 * pair) & 1) << 4;
                                q[at + 32] = low[at] >> 4 | (high[at] >> (2 * pair + 1) & 1) << 4;
                            }
                        }
                    },
                );
            }
            GgmlDType::Q6K => {
                for (block, scales) in blocks
                    .as_chunks::<210>()
                    .0
                    .iter()
                    .zip(into.scales.as_chunks_mut::<16>().0)
                {
                    let d = half(block, 208);
                    for (scale, &byte) in scales.iter_mut().zip(&block[192..208]) {
                        *scale = d * f32::from(byte as i8);
                    }
                }
                each::<210, 256>(
                    blocks,
                    into.quants,
                    #[inline(always)]
                    |block, q| {
                        let low = block[..128].as_chunks::<64>().0;
                        let high = block[128..192].as_chunks::<32>().0;
                        for ((q, low), high) in
                            q.as_chunks_mut::<128>().0.iter_mut().zip(low).zip(high)
                        {
                            for at in 0..32 {
                                q[at] = low[at] & 15 | (high[at] & 3) << 4;
                                q[at + 32] = low[at + 32] & 15 | (high[at] >> 2 & 3) << 4;
                                q[at + 64] = low[at] >> 4 | (high[at] >> 4 & 3) << 4;
                                q[at + 96] = low[at + 32] >> 4 | (high[at] >> 6) << 4;
                            }
                        }
                    },
                );
            }
            // `of` gives no layout of another type.
            _ => {}
        }
    }
}

#[inline(always)]
fn each<const BYTES: usize, const NUMBERS: usize>(
    blocks: &[u8],
    quants: &mut [u8],
    read: impl Fn(&[u8; BYTES], &mut [u8; NUMBERS]),
) {
    let blocks = blocks.as_chunks::<BYTES>().0;
    for (block, q) in blocks.iter().zip(quants.as_chunks_mut::<NUMBERS>().0) {
        read(block, q);
    }
}

/// The f16 at this byte of each block.
#[inline(always)]
fn scales<const BYTES: usize>(blocks: &[u8], at: usize, into: &mut [f32]) {
    // First all as they are, so that widening is one vector loop.
    for (block, into) in blocks.as_chunks::<BYTES>().0.iter().zip(into.iter_mut()) {
        *into = f32::from_bits(u32::from(u16::from_le_bytes([block[at], block[at + 1]])));
    }
    for scale in into {
        *scale = f16_to_f32(scale.to_bits() as u16);
    }
}

#[inline(always)]
fn half<const BYTES: usize>(block: &[u8; BYTES], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([block[at], block[at + 1]]))
}

/// Low halves of the bytes, then high halves.
#[inline(always)]
fn nibbles(bytes: &[u8], q: &mut [u8; 32]) {
    for (at, &byte) in bytes[..16].iter().enumerate() {
        q[at] = byte & 15;
        q[at + 16] = byte >> 4;
    }
}

/// Bit `at` of the four bytes is bit 4 of number `at`.
#[inline(always)]
fn fifth_bits(bits: &[u8], q: &mut [u8; 32]) {
    for (&byte, q) in bits.iter().zip(q.as_chunks_mut::<8>().0) {
        for (at, q) in q.iter_mut().enumerate() {
            *q |= (byte >> at & 1) << 4;
        }
    }
}

/// The eight six-bit scales and minima of a block of 256 in twelve bytes, times the block's own two numbers.
#[inline(always)]
fn k_scales<const BYTES: usize>(blocks: &[u8], into: &mut Unpacked<'_>) {
    let groups = into
        .scales
        .as_chunks_mut::<8>()
        .0
        .iter_mut()
        .zip(into.mins.as_chunks_mut::<8>().0);
    for (block, (scales, mins)) in blocks.as_chunks::<BYTES>().0.iter().zip(groups) {
        let (d, dmin, packed) = (half(block, 0), half(block, 2), &block[4..16]);
        for at in 0..4 {
            let (low, high, last) = (packed[at], packed[at + 4], packed[at + 8]);
            scales[at] = d * f32::from(low & 63);
            mins[at] = -dmin * f32::from(high & 63);
            scales[at + 4] = d * f32::from(last & 15 | low >> 6 << 4);
            mins[at + 4] = -dmin * f32::from(last >> 4 | high >> 6 << 4);
        }
    }
}
