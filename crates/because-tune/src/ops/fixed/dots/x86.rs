#![allow(
    unsafe_code,
    reason = "vector instructions that the machine was asked for, on arrays of known length"
)]

use std::arch::x86_64::*;

use super::super::Level;
use super::{Number, PANEL, Register, Tile};

/// Must be called on a machine with AVX2, FMA and F16C, which [`Level`] asks for.
pub(super) fn avx2<N: Number>(tile: Tile<'_, '_, N>) {
    #[target_feature(enable = "avx2,fma,f16c")]
    fn make<N: Number>(tile: Tile<'_, '_, N>) {
        tile.make::<__m256, 2>(Level::Avx2);
    }
    // SAFETY: the level was chosen because the machine has these.
    unsafe { make(tile) }
}

/// Must be called on a machine with AVX-512.
pub(super) fn avx512<N: Number>(tile: Tile<'_, '_, N>) {
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl")]
    fn make<N: Number>(tile: Tile<'_, '_, N>) {
        tile.make::<__m512, 2>(Level::Avx512);
    }
    // SAFETY: the level was chosen because the machine has these.
    unsafe { make(tile) }
}

/// Numbers `start..` of [`PANEL`] rows, side by side. Must be called on a machine with AVX2.
pub(super) fn turn(rows: &[f32], input: usize, start: usize, into: &mut [[f32; PANEL]]) {
    assert!(
        rows.len() == PANEL * input && start + into.len() <= input,
        "a panel of other size"
    );
    let (fours, rest) = into.as_chunks_mut::<4>();
    for (index, four) in fours.iter_mut().enumerate() {
        // SAFETY: the level was chosen because the machine has AVX2, and the lengths were just looked at.
        unsafe { turn_four(rows.as_ptr().add(start + index * 4), input, four) }
    }
    let start = start + fours.len() * 4;
    super::turn(rows, input, start, rest);
}

/// Four numbers of [`PANEL`] rows, `input` apart.
#[target_feature(enable = "avx2")]
unsafe fn turn_four(rows: *const f32, input: usize, into: &mut [[f32; PANEL]; 4]) {
    for eight in (0..PANEL).step_by(8) {
        // A row beside that four below it.
        let pair = |row: usize| {
            // SAFETY: the caller has looked that all rows have four numbers there.
            unsafe {
                let low = _mm_loadu_ps(rows.add((eight + row) * input));
                let high = _mm_loadu_ps(rows.add((eight + row + 4) * input));
                _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(low), high)
            }
        };
        let (a, b, c, d) = (pair(0), pair(1), pair(2), pair(3));
        let double = _mm256_castps_pd;
        let (ab, ab_high) = (
            double(_mm256_unpacklo_ps(a, b)),
            double(_mm256_unpackhi_ps(a, b)),
        );
        let (cd, cd_high) = (
            double(_mm256_unpacklo_ps(c, d)),
            double(_mm256_unpackhi_ps(c, d)),
        );
        let columns = [
            _mm256_unpacklo_pd(ab, cd),
            _mm256_unpackhi_pd(ab, cd),
            _mm256_unpacklo_pd(ab_high, cd_high),
            _mm256_unpackhi_pd(ab_high, cd_high),
        ];
        for (into, column) in into.iter_mut().zip(columns) {
            // SAFETY: eight numbers of an array of thirty-two.
            unsafe { _mm256_storeu_ps(into[eight..][..8].as_mut_ptr(), _mm256_castpd_ps(column)) }
        }
    }
}

// SAFETY, of all blocks below: the methods are inlined into the two functions above, and loads and stores stay inside of the
// array they are given, since `part * WIDTH + WIDTH <= PANEL`.
impl Register for __m256 {
    const WIDTH: usize = 8;

    #[inline(always)]
    fn zero() -> Self {
        // SAFETY: as above.
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    fn splat(number: f32) -> Self {
        // SAFETY: as above.
        unsafe { _mm256_set1_ps(number) }
    }

    #[inline(always)]
    fn load(from: &[f32; PANEL], part: usize) -> Self {
        // SAFETY: as above.
        unsafe { _mm256_loadu_ps(from[part * 8..][..8].as_ptr()) }
    }

    #[inline(always)]
    fn load_f16(from: &[u16; PANEL], part: usize) -> Self {
        // SAFETY: as above.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from[part * 8..][..8].as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_bf16(from: &[u16; PANEL], part: usize) -> Self {
        // SAFETY: as above.
        unsafe {
            let bits = _mm_loadu_si128(from[part * 8..][..8].as_ptr().cast());
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits)))
        }
    }

    #[inline(always)]
    fn fused(self, a: Self, b: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm256_fmadd_ps(a, b, self) }
    }

    #[inline(always)]
    fn prefetch<T>(from: *const T) {
        // SAFETY: it reads nothing, wherever that points.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }

    #[inline(always)]
    fn prefetch_far<T>(from: *const T) {
        // SAFETY: it reads nothing, wherever that points.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
    }

    #[inline(always)]
    fn store(self, into: &mut [f32; PANEL], part: usize) {
        // SAFETY: as above.
        unsafe { _mm256_storeu_ps(into[part * 8..][..8].as_mut_ptr(), self) }
    }
}

impl Register for __m512 {
    const WIDTH: usize = 16;

    #[inline(always)]
    fn zero() -> Self {
        // SAFETY: as above.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    fn splat(number: f32) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_set1_ps(number) }
    }

    #[inline(always)]
    fn load(from: &[f32; PANEL], part: usize) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_loadu_ps(from[part * 16..][..16].as_ptr()) }
    }

    #[inline(always)]
    fn load_f16(from: &[u16; PANEL], part: usize) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from[part * 16..][..16].as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_bf16(from: &[u16; PANEL], part: usize) -> Self {
        // SAFETY: as above.
        unsafe {
            let bits = _mm256_loadu_si256(from[part * 16..][..16].as_ptr().cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
        }
    }

    #[inline(always)]
    fn fused(self, a: Self, b: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(a, b, self) }
    }

    #[inline(always)]
    fn prefetch<T>(from: *const T) {
        // SAFETY: it reads nothing, wherever that points.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }

    #[inline(always)]
    fn prefetch_far<T>(from: *const T) {
        // SAFETY: it reads nothing, wherever that points.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
    }

    #[inline(always)]
    fn store(self, into: &mut [f32; PANEL], part: usize) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(into[part * 16..][..16].as_mut_ptr(), self) }
    }
}
