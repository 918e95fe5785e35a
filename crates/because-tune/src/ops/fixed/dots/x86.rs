#![allow(
    unsafe_code,
    reason = "vector instructions that the machine was asked for, on arrays of known length"
)]

use std::arch::x86_64::*;

use super::{COLS, LANES, Number, Register, Tile};

/// Must be called on a machine with AVX2, FMA and F16C, which [`super::Level`] asks for.
pub(super) fn avx2<N: Number>(tile: Tile<'_, '_, N>) {
    #[target_feature(enable = "avx2,fma,f16c")]
    fn make<N: Number>(tile: Tile<'_, '_, N>) {
        tile.make::<__m256, 3>();
    }
    // SAFETY: the level was chosen because the machine has these.
    unsafe { make(tile) }
}

/// Must be called on a machine with AVX-512.
pub(super) fn avx512<N: Number>(tile: Tile<'_, '_, N>) {
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl")]
    fn make<N: Number>(tile: Tile<'_, '_, N>) {
        tile.make::<__m512, 6>();
    }
    // SAFETY: the level was chosen because the machine has these.
    unsafe { make(tile) }
}

// SAFETY, of all blocks below: the methods are inlined into the two functions above, and loads and stores stay inside of the
// array they are given, since `part * WIDTH + WIDTH <= LANES`.
impl Register for __m256 {
    const WIDTH: usize = 8;

    #[inline(always)]
    fn zero() -> Self {
        // SAFETY: as above.
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    fn load(from: &[f32; LANES], part: usize) -> Self {
        // SAFETY: as above.
        unsafe { _mm256_loadu_ps(from[part * 8..][..8].as_ptr()) }
    }

    #[inline(always)]
    fn load_f16(from: &[u16; LANES], part: usize) -> Self {
        // SAFETY: as above.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from[part * 8..][..8].as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_bf16(from: &[u16; LANES], part: usize) -> Self {
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
    fn store(self, into: &mut [f32; LANES], part: usize) {
        // SAFETY: as above.
        unsafe { _mm256_storeu_ps(into[part * 8..][..8].as_mut_ptr(), self) }
    }

    #[inline(always)]
    fn fold(sums: &[[f32; LANES]; COLS]) -> [f32; COLS] {
        // SAFETY: as above.
        unsafe {
            let halves = |at: usize| {
                let eight = _mm256_add_ps(Self::load(&sums[at], 0), Self::load(&sums[at], 1));
                let high = _mm256_extractf128_ps::<1>(eight);
                _mm_add_ps(_mm256_castps256_ps128(eight), high)
            };
            fold_fours(halves(0), halves(1), halves(2), halves(3))
        }
    }
}

/// The sum of each four, by halves: `(0 + 2) + (1 + 3)`.
#[inline(always)]
fn fold_fours(a: __m128, b: __m128, c: __m128, d: __m128) -> [f32; COLS] {
    // SAFETY: as above.
    unsafe {
        let ab = _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a));
        let cd = _mm_add_ps(_mm_movelh_ps(c, d), _mm_movehl_ps(d, c));
        let even = _mm_shuffle_ps::<0b10_00_10_00>(ab, cd);
        let odd = _mm_shuffle_ps::<0b11_01_11_01>(ab, cd);
        let mut folded = [0.0; COLS];
        _mm_storeu_ps(folded.as_mut_ptr(), _mm_add_ps(even, odd));
        folded
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
    fn load(from: &[f32; LANES], _: usize) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn load_f16(from: &[u16; LANES], _: usize) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_bf16(from: &[u16; LANES], _: usize) -> Self {
        // SAFETY: as above.
        unsafe {
            let bits = _mm256_loadu_si256(from.as_ptr().cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
        }
    }

    #[inline(always)]
    fn fused(self, a: Self, b: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(a, b, self) }
    }

    #[inline(always)]
    fn store(self, into: &mut [f32; LANES], _: usize) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(into.as_mut_ptr(), self) }
    }

    #[inline(always)]
    fn fold(sums: &[[f32; LANES]; COLS]) -> [f32; COLS] {
        // SAFETY: as above.
        unsafe {
            let halves = |at: usize| {
                let eight = _mm256_add_ps(
                    _mm256_loadu_ps(sums[at].as_ptr()),
                    _mm256_loadu_ps(sums[at][8..].as_ptr()),
                );
                let high = _mm256_extractf128_ps::<1>(eight);
                _mm_add_ps(_mm256_castps256_ps128(eight), high)
            };
            fold_fours(halves(0), halves(1), halves(2), halves(3))
        }
    }
}
