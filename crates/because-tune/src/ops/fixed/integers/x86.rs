#![allow(
    unsafe_code,
    reason = "vector instructions that the machine was asked for, on arrays of known length"
)]

use std::arch::x86_64::*;

use super::{Block, PANEL, Quad, Register, Work};

/// Must be called on a machine with AVX2 and FMA, which [`super::Level`] asks for.
pub(super) fn avx2(work: Work<'_, '_>) {
    #[target_feature(enable = "avx2,fma")]
    fn make(work: Work<'_, '_>) {
        work.make::<__m256i>();
    }
    // SAFETY: the level was chosen because the machine has these.
    unsafe { make(work) }
}

/// Must be called on a machine with AVX-512 and its instructions for neural networks.
pub(super) fn vnni(work: Work<'_, '_>) {
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
    fn make(work: Work<'_, '_>) {
        work.make::<__m512i>();
    }
    // SAFETY: the level was chosen because the machine has these.
    unsafe { make(work) }
}

/// Must be called on a machine with AVX2. Rows are of a multiple of 32 bytes.
pub(super) fn transpose(rows: &[u8], input: usize, quads: &mut [Quad]) {
    assert!(
        rows.len() == PANEL * input && input.is_multiple_of(32) && quads.len() * 4 == input,
        "a panel of other size"
    );
    // SAFETY: the level was chosen because the machine has AVX2, and the lengths were just looked at.
    unsafe { transpose_eights(rows.as_ptr(), input, quads.as_mut_ptr().cast()) }
}

/// Eight quads of eight rows at a time.
#[target_feature(enable = "avx2")]
unsafe fn transpose_eights(rows: *const u8, input: usize, quads: *mut u8) {
    for at in (0..input).step_by(32) {
        for eight in [0, 8] {
            // SAFETY: rows `eight..eight + 8` have 32 bytes at `at`, by what the caller has looked at; so have the quads.
            unsafe {
                let from = rows.add(eight * input + at);
                // The first half of a row beside the first half of the row four below it, and so the second halves.
                let pair = |row: usize, half: usize| {
                    let low = _mm_loadu_si128(from.add(row * input + half * 16).cast());
                    let high = _mm_loadu_si128(from.add((row + 4) * input + half * 16).cast());
                    _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high)
                };
                for half in 0..2 {
                    let (a, b) = (pair(0, half), pair(1, half));
                    let (c, d) = (pair(2, half), pair(3, half));
                    let (ab, ab_high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
                    let (cd, cd_high) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
                    let columns = [
                        _mm256_unpacklo_epi64(ab, cd),
                        _mm256_unpackhi_epi64(ab, cd),
                        _mm256_unpacklo_epi64(ab_high, cd_high),
                        _mm256_unpackhi_epi64(ab_high, cd_high),
                    ];
                    for (index, column) in columns.into_iter().enumerate() {
                        let quad = at / 4 + half * 4 + index;
                        let into = quads.add(quad * 4 * PANEL + eight * 4);
                        _mm256_storeu_si256(into.cast(), column);
                    }
                }
            }
        }
    }
}

/// The sums of the products of sixteen numbers with each of eight weights. Must be called on a machine with AVX2, from a
/// function that is compiled for it.
#[inline(always)]
fn products<const BITS: u32>(weights: &[Quad; 4], x: &[i8; 16], part: usize) -> __m256i {
    // SAFETY: as below.
    unsafe {
        let ones = _mm256_set1_epi16(1);
        let load = |at: usize| _mm256_loadu_si256(weights[at][part * 32..][..32].as_ptr().cast());
        let x = |at: usize| _mm256_set1_epi32(quad_of(x, at));
        if BITS == 8 {
            // Both factors are signed: the sign of the weight goes to x. Pairs reach 2 * 128 * 127, within 16 bits.
            let product = |at: usize| {
                let weight = _mm256_xor_si256(load(at), _mm256_set1_epi8(-128));
                let signed = _mm256_sign_epi8(x(at), weight);
                let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weight), signed);
                _mm256_madd_epi16(pairs, ones)
            };
            let first = _mm256_add_epi32(product(0), product(1));
            let second = _mm256_add_epi32(product(2), product(3));
            return _mm256_add_epi32(first, second);
        }
        let pairs = |at: usize| _mm256_maddubs_epi16(load(at), x(at));
        let first = _mm256_add_epi16(pairs(0), pairs(1));
        let second = _mm256_add_epi16(pairs(2), pairs(3));
        if BITS == 6 {
            // Two pairs reach 4 * 63 * 127 = 32004, more do not fit 16 bits.
            let first = _mm256_madd_epi16(first, ones);
            let second = _mm256_madd_epi16(second, ones);
            return _mm256_add_epi32(first, second);
        }
        // Four pairs of five bits reach 8 * 31 * 127 = 31496.
        _mm256_madd_epi16(_mm256_add_epi16(first, second), ones)
    }
}

#[inline(always)]
fn quad_of(x: &[i8; 16], at: usize) -> i32 {
    let x = &x[at * 4..][..4];
    i32::from_le_bytes([x[0] as u8, x[1] as u8, x[2] as u8, x[3] as u8])
}

// SAFETY, of all blocks below: the methods are inlined into the functions above, and loads and stores stay inside of the array
// they are given, since `part * WIDTH + WIDTH <= PANEL`.
impl Register for __m256i {
    const WIDTH: usize = 8;
    const SIGNED: bool = true;
    type Floats = __m256;

    #[inline(always)]
    fn splat(value: i32) -> Self {
        // SAFETY: as above.
        unsafe { _mm256_set1_epi32(value) }
    }

    #[inline(always)]
    fn add<const BITS: u32, const ROWS: usize>(
        sums: &mut [Self; ROWS],
        weights: &[Quad; 4],
        x: &[Block; ROWS],
        half: usize,
        part: usize,
    ) {
        for row in 0..ROWS {
            let more = products::<BITS>(weights, &x[row].quants[half], part);
            // SAFETY: as above.
            sums[row] = unsafe { _mm256_add_epi32(sums[row], more) };
        }
    }

    #[inline(always)]
    fn zero() -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    fn scaled(self, sums: __m256, weights: &[f32; PANEL], x: f32, part: usize) -> __m256 {
        // SAFETY: as above.
        unsafe {
            let weights = _mm256_loadu_ps(weights[part * 8..][..8].as_ptr());
            let scale = _mm256_mul_ps(weights, _mm256_set1_ps(x));
            _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(self), sums)
        }
    }

    #[inline(always)]
    fn fused(sums: __m256, weights: &[f32; PANEL], x: f32, part: usize) -> __m256 {
        // SAFETY: as above.
        unsafe {
            let weights = _mm256_loadu_ps(weights[part * 8..][..8].as_ptr());
            _mm256_fmadd_ps(weights, _mm256_set1_ps(x), sums)
        }
    }

    #[inline(always)]
    fn store(sums: __m256, into: &mut [f32; PANEL], part: usize) {
        // SAFETY: as above.
        unsafe { _mm256_storeu_ps(into[part * 8..][..8].as_mut_ptr(), sums) }
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
}

impl Register for __m512i {
    const WIDTH: usize = 16;
    const SIGNED: bool = false;
    type Floats = __m512;

    #[inline(always)]
    fn splat(value: i32) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_set1_epi32(value) }
    }

    #[inline(always)]
    fn add<const BITS: u32, const ROWS: usize>(
        sums: &mut [Self; ROWS],
        weights: &[Quad; 4],
        x: &[Block; ROWS],
        half: usize,
        _: usize,
    ) {
        for (at, quad) in weights.iter().enumerate() {
            // SAFETY: as above.
            unsafe {
                let quad = _mm512_loadu_si512(quad.as_ptr().cast());
                for row in 0..ROWS {
                    let x = _mm512_set1_epi32(quad_of(&x[row].quants[half], at));
                    sums[row] = _mm512_dpbusd_epi32(sums[row], quad, x);
                }
            }
        }
    }

    #[inline(always)]
    fn zero() -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    fn scaled(self, sums: __m512, weights: &[f32; PANEL], x: f32, _: usize) -> __m512 {
        // SAFETY: as above.
        unsafe {
            let scale = _mm512_mul_ps(_mm512_loadu_ps(weights.as_ptr()), _mm512_set1_ps(x));
            _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(self), sums)
        }
    }

    #[inline(always)]
    fn fused(sums: __m512, weights: &[f32; PANEL], x: f32, _: usize) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(_mm512_loadu_ps(weights.as_ptr()), _mm512_set1_ps(x), sums) }
    }

    #[inline(always)]
    fn store(sums: __m512, into: &mut [f32; PANEL], _: usize) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(into.as_mut_ptr(), sums) }
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
}
