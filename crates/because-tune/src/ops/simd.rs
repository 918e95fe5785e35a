use pulp::Arch;
use rayon::prelude::*;

/// Rows are shared out among threads in pieces of at least this many numbers, below which a thread costs more than it
/// brings. The pieces do not depend on how many threads there are.
const PIECE: usize = 1 << 14;

/// Runs a loop compiled for the widest registers this machine has. What the loop calls must be `inline(always)`.
///
/// The order of operations is the source's at every width, so such a loop gives the same result on every machine.
#[inline(always)]
pub(super) fn vectorized<R>(work: impl FnOnce() -> R) -> R {
    Arch::new().dispatch(work)
}

/// Calls `work(row, out_row)` for each row of `out`, in pieces on all threads.
pub(super) fn each_row(out: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    let rows = (PIECE / width.max(1)).max(1);
    out.par_chunks_mut(rows * width)
        .enumerate()
        .for_each(|(piece, out)| {
            vectorized(
                #[inline(always)]
                || {
                    for (row, out) in out.chunks_exact_mut(width).enumerate() {
                        work(piece * rows + row, out);
                    }
                },
            );
        });
}

/// The sum of each column of `[n, width]`, in an order that does not depend on the threads, added to `into`.
pub(super) fn add_column_sums(into: &mut [f32], n: usize, row: impl Fn(usize, &mut [f32]) + Sync) {
    const ROWS: usize = 64;
    let width = into.len();
    let partial: Vec<Vec<f32>> = (0..n.div_ceil(ROWS))
        .into_par_iter()
        .map(|piece| {
            let mut sum = vec![0.0; width];
            vectorized(
                #[inline(always)]
                || (piece * ROWS..n.min((piece + 1) * ROWS)).for_each(|at| row(at, &mut sum)),
            );
            sum
        })
        .collect();
    for sum in &partial {
        add(into, sum);
    }
}

#[inline(always)]
pub(super) fn add(into: &mut [f32], other: &[f32]) {
    into.iter_mut()
        .zip(other)
        .for_each(|(into, other)| *into += other);
}

const LANES: usize = 32;

/// `sum_i f(a_i, b_i)` over independent lanes, so that the compiler may use its widest registers.
#[inline(always)]
fn lanes(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut sums = [0f32; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += f(a[lane], b[lane]);
        }
    }
    let mut total = 0.0;
    for (&a, &b) in a_rest.iter().zip(b_rest) {
        total += f(a, b);
    }
    fold(sums) + total
}

/// Sums the lanes by halves, which vector units do in five steps and a running sum in thirty-two.
#[inline(always)]
fn fold(mut sums: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    lanes(
        a,
        b,
        #[inline(always)]
        |a, b| a * b,
    )
}

/// `sum_i a_i b_i c_i`.
#[inline(always)]
pub(super) fn dot3(a: &[f32], b: &[f32], c: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let (c, c_rest) = c.as_chunks::<LANES>();
    for ((a, b), c) in a.iter().zip(b).zip(c) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane] * c[lane];
        }
    }
    let mut total = 0.0;
    for ((a, b), c) in a_rest.iter().zip(b_rest).zip(c_rest) {
        total += a * b * c;
    }
    fold(sums) + total
}

#[inline(always)]
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
#[inline(always)]
pub(super) fn exp_in_place(values: &mut [f32], shift: f32) -> f32 {
    let (chunks, rest) = values.as_chunks_mut::<LANES>();
    let mut sums = [0f32; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            chunk[lane] = exp(chunk[lane] - shift);
            sums[lane] += chunk[lane];
        }
    }
    let mut total = 0.0;
    for value in rest {
        *value = exp(*value - shift);
        total += *value;
    }
    fold(sums) + total
}

#[inline(always)]
pub(super) fn scale(values: &mut [f32], factor: f32) {
    values.iter_mut().for_each(|value| *value *= factor);
}

/// The highest of some values; those that are no numbers are passed over.
pub(crate) fn highest(values: &[f32]) -> f32 {
    vectorized(
        #[inline(always)]
        || max(values),
    )
}

/// `e^((x - top) / temperature)` of each value, and the sum. What is below `e^-80` is nothing.
pub(crate) fn boltzmann(values: &[f32], top: f32, temperature: f64, into: &mut Vec<f32>) -> f64 {
    const SUMS: usize = 8;
    into.resize(values.len(), 0.0);
    vectorized(
        #[inline(always)]
        || {
            for (into, value) in into.iter_mut().zip(values) {
                let x = ((f64::from(*value) - f64::from(top)) / temperature) as f32;
                // In this way round a NaN stays one.
                *into = if x < -80.0 { 0.0 } else { exp(x) };
            }
            let (chunks, rest) = into.as_chunks::<SUMS>();
            let mut sums = [0f64; SUMS];
            for chunk in chunks {
                for lane in 0..SUMS {
                    sums[lane] += f64::from(chunk[lane]);
                }
            }
            let rest = rest.iter().map(|&weight| f64::from(weight));
            sums.into_iter().chain(rest).sum()
        },
    )
}

/// The logistic function `1 / (1 + e^-x)`.
#[inline(always)]
pub(super) fn logistic(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `e^x` within two units in the last place, without a branch or a call, so that a loop over it becomes vector code.
///
/// Products and sums are fused, which every machine rounds alike and those with such an instruction do in one step.
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`; `e^r` by the minimax polynomial of the Cephes library; `2^n` by its bits.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = if x > 88.0 { 88.0 } else { x };
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, x));
    let mut p = 1.987_569_1e-4f32;
    p = p.mul_add(r, 1.398_2e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_5e-1);
    p = p.mul_add(r, 0.5);
    let power = p.mul_add(r * r, r) + 1.0;
    let exponent = shifted
        .to_bits()
        .wrapping_sub(ROUND.to_bits())
        .wrapping_add(127);
    power * f32::from_bits(exponent << 23)
}

/// IEEE half to single: exact for every value, subnormals, infinities and NaN included.
#[inline(always)]
pub(crate) fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff);
    // Read with a single's exponent the value is too small by 2^112, and a product with a power of two is exact.
    let scaled = f32::from_bits(magnitude << 13) * f32::from_bits((127 + 112) << 23);
    let special = 0x7f80_0000 | ((magnitude & 0x3ff) << 13);
    let value = if magnitude >= 0x7c00 {
        special
    } else {
        scaled.to_bits()
    };
    f32::from_bits(value | sign)
}

/// The upper half of a single is a bfloat16.
#[inline(always)]
pub(crate) fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
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
    fn halves_widen_exactly() {
        for (bits, value) in [
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x0001, 2f32.powi(-24)),
            (0x7bff, 65504.0),
            (0x8000, -0.0),
            (0x7c00, f32::INFINITY),
            (0x3555, 0.333_251_95),
        ] {
            assert_eq!(f16_to_f32(bits).to_bits(), value.to_bits(), "{bits:x}");
        }
        assert!(f16_to_f32(0x7e00).is_nan());
    }

    #[test]
    fn wide_registers_change_no_bit() {
        let values: Vec<f32> = (0..1003).map(|i| (i as f32 * 0.37).sin() * 5.0).collect();
        let (mut here, mut wide) = (values.clone(), values.clone());
        let sum = exp_in_place(&mut here, 1.5);
        let wide_sum = vectorized(|| exp_in_place(&mut wide, 1.5));
        assert_eq!(sum.to_bits(), wide_sum.to_bits());
        assert_eq!(here, wide);
        let wide = vectorized(|| dot(&values, &here));
        assert_eq!(dot(&values, &here).to_bits(), wide.to_bits());
    }
}
