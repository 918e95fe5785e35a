use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::gemm::{Mat, MatMut, cuts};

/// `into = factor x a^T` for an `a` of a few rows: `into [n, r]`, `x [n, k]`, `a [r, k]`, all row-major.
///
/// A general product would copy x into another order first, which for so few results costs more than the sums. Here each
/// result is a sum over the rows as they lie; the order of its terms depends on the width of the machine's registers alone.
pub(super) fn narrow_product(into: MatMut<'_>, factor: f32, x: Mat<'_>, a: Mat<'_>) {
    assert!(
        into.rows == x.rows && into.cols == a.rows && x.cols == a.cols,
        "[{}, {}] is not [{}, {}] x [{}, {}]^T",
        into.rows,
        into.cols,
        x.rows,
        x.cols,
        a.rows,
        a.cols
    );
    let cols = into.cols;
    let down = cuts(into.rows, 128, 1);
    into.tiles(&down, cols.max(1))
        .into_par_iter()
        .for_each(|(rows, _, into)| {
            Arch::new().dispatch(Tile {
                into,
                factor,
                x: x.in_rows(rows),
                a,
            });
        });
}

/// The product of some rows, on one thread.
struct Tile<'a> {
    into: MatMut<'a>,
    factor: f32,
    x: Mat<'a>,
    a: Mat<'a>,
}

impl WithSimd for Tile<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        // As many sums at once as registers hold, beside the vectors they are made of.
        if S::REGISTER_COUNT >= 32 {
            self.rows::<S, 6, 4>(simd);
        } else {
            self.rows::<S, 3, 4>(simd);
        }
    }
}

impl Tile<'_> {
    #[inline(always)]
    fn rows<S: Simd, const ROWS: usize, const COLS: usize>(&mut self, simd: S) {
        let mut row = 0;
        while row + ROWS <= self.x.rows {
            self.cols::<S, ROWS, COLS>(simd, row);
            row += ROWS;
        }
        while row < self.x.rows {
            self.cols::<S, 1, COLS>(simd, row);
            row += 1;
        }
    }

    #[inline(always)]
    fn cols<S: Simd, const ROWS: usize, const COLS: usize>(&mut self, simd: S, row: usize) {
        let mut col = 0;
        while col + COLS <= self.a.rows {
            self.block::<S, ROWS, COLS>(simd, row, col);
            col += COLS;
        }
        while col < self.a.rows {
            self.block::<S, ROWS, 1>(simd, row, col);
            col += 1;
        }
    }

    #[inline(always)]
    fn block<S: Simd, const ROWS: usize, const COLS: usize>(
        &mut self,
        simd: S,
        row: usize,
        col: usize,
    ) {
        let x: [_; ROWS] = std::array::from_fn(|at| S::as_simd_f32s(self.x.row(row + at)));
        let a: [_; COLS] = std::array::from_fn(|at| S::as_simd_f32s(self.a.row(col + at)));
        let whole = x[0].0.len();
        // Slices of one known length, so that the loop checks no bounds.
        let these: [_; ROWS] = std::array::from_fn(|at| &x[at].0[..whole]);
        let those: [_; COLS] = std::array::from_fn(|at| &a[at].0[..whole]);
        let mut sums = [[simd.splat_f32s(0.0); COLS]; ROWS];
        for at in 0..whole {
            let a: [_; COLS] = std::array::from_fn(
                #[inline(always)]
                |col| those[col][at],
            );
            for (sums, x) in sums.iter_mut().zip(&these) {
                let x = x[at];
                for (sum, a) in sums.iter_mut().zip(a) {
                    *sum = simd.mul_add_f32s(x, a, *sum);
                }
            }
        }
        for (at, (sums, (_, x))) in sums.iter().zip(&x).enumerate() {
            let into = &mut self.into.row(row + at)[col..col + COLS];
            for ((into, sum), (_, a)) in into.iter_mut().zip(sums).zip(&a) {
                let rest: f32 = x.iter().zip(*a).map(|(x, a)| x * a).sum();
                *into = self.factor * (simd.reduce_sum_f32s(*sum) + rest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_of_every_side_gives_the_sums() {
        let wave = |count: usize, pace: f32| -> Vec<f32> {
            (0..count).map(|at| (at as f32 * pace).sin()).collect()
        };
        for (n, k, r) in [
            (1, 1, 1),
            (7, 33, 3),
            (12, 16, 8),
            (131, 100, 24),
            (5, 0, 4),
            (4, 64, 0),
        ] {
            let (x, a) = (wave(n * k, 0.3), wave(r * k, 0.7));
            // The results stand in a wider matrix, whose other columns stay as they are.
            let mut into = vec![9.0; n * (r + 2)];
            let out = MatMut::strided(&mut into, n, r, r + 2);
            narrow_product(out, 0.5, Mat::new(&x, n, k), Mat::new(&a, r, k));
            for (row, into) in into.chunks_exact(r + 2).enumerate() {
                for (col, &got) in into[..r].iter().enumerate() {
                    let exact: f64 = (0..k)
                        .map(|at| f64::from(x[row * k + at]) * f64::from(a[col * k + at]))
                        .sum();
                    assert!(
                        (f64::from(got) - 0.5 * exact).abs() < 1e-5,
                        "{n} {k} {r}: {row}, {col}"
                    );
                }
                assert_eq!(into[r..], [9.0, 9.0]);
            }
        }
    }
}
