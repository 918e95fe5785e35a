//! The products of generation: what a row becomes does not depend on the rows beside it.
//!
//! Each result is summed in one order that follows from the width of the rows alone, so a row has the same bits alone, in a
//! batch of any size, after a prompt cut anywhere and on any number of threads. The kernels of training (`matrix`) give no such
//! promise: there the order follows from the shape of the whole product.
//!
//! Weights are used where they lie, in their own precision, and each is read from memory once for all rows of a batch.

mod dots;

use std::ops::Range;

use candle_core::{Result, bail};
use rayon::prelude::*;

use super::gemm::{Mat, MatMut};
use super::matrix::{Matrix, Numbers};
use dots::Level;

/// Columns of a result that one thread makes at a time: the weights for them stay in its second cache while rows meet them.
const COLS: usize = 64;
/// Rows that one thread makes at a time, so that there is work for every thread where there are few columns.
const ROWS: usize = 256;

/// One product of [`linear`]: `into = x W^T + bias`, with `into` `[rows, out]`, row-major.
pub(crate) struct Linear<'a> {
    pub(crate) weight: &'a Matrix,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) into: &'a mut [f32],
}

/// Makes products that share x `[rows, in]`, row-major: together, on all threads.
///
/// An error if shapes do not agree or a weight cannot be used where it lies.
pub(crate) fn linear(x: &[f32], rows: usize, jobs: &mut [Linear<'_>]) -> Result<()> {
    on(Level::here(), x, rows, jobs)
}

fn on(level: Level, x: &[f32], rows: usize, jobs: &mut [Linear<'_>]) -> Result<()> {
    let mut lent = Vec::new();
    for job in &*jobs {
        let (out, input) = job.weight.dims()?;
        if x.len() != rows * input || job.into.len() != rows * out {
            bail!(
                "{rows} rows of [{out}, {input}]: {} numbers in, {} out",
                x.len(),
                job.into.len()
            );
        }
        if job.bias.is_some_and(|bias| bias.len() != out) {
            bail!("a bias of other length than {out}");
        }
        lent.push((job.weight.lend()?, input));
    }
    let mut tiles = Vec::new();
    for (job, (lent, input)) in jobs.iter_mut().zip(&lent) {
        let work = Work {
            x: Mat::new(x, rows, *input),
            weight: lent.numbers(),
            bias: job.bias,
        };
        let out = job.into.len().checked_div(rows).unwrap_or_default();
        for (rows, cols, into) in MatMut::new(job.into, rows, out).tiles(ROWS, COLS) {
            tiles.push((work, rows, cols, into));
        }
    }
    tiles
        .into_par_iter()
        .with_max_len(1)
        .for_each(|(work, rows, cols, mut into)| work.tile(level, rows, cols, &mut into));
    Ok(())
}

#[derive(Clone, Copy)]
struct Work<'a> {
    x: Mat<'a>,
    weight: Numbers<'a>,
    bias: Option<&'a [f32]>,
}

impl Work<'_> {
    fn tile(self, level: Level, rows: Range<usize>, cols: Range<usize>, into: &mut MatMut<'_>) {
        let (x, input) = (self.x.in_rows(rows), self.x.cols);
        let part = cols.start * input..cols.end * input;
        match self.weight {
            Numbers::F32(all) => dots::f32(level, x, &all[part], into),
            Numbers::F16(all) => dots::f16(level, x, &all[part], into),
            Numbers::BF16(all) => dots::bf16(level, x, &all[part], into),
        }
        if let Some(bias) = self.bias {
            for row in 0..into.rows {
                let numbers = into.row(row).iter_mut().zip(&bias[cols.clone()]);
                numbers.for_each(|(y, bias)| *y += bias);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use safetensors::Dtype;

    use super::*;
    use crate::ops::matrix::{Mapped, Param};
    use crate::ops::pool::tensor;

    fn wave(count: usize, pace: f32) -> Vec<f32> {
        (0..count).map(|at| (at as f32 * pace).sin()).collect()
    }

    /// A weight in each precision.
    fn weights(out: usize, input: usize) -> Vec<Matrix> {
        let values = wave(out * input, 0.7);
        let mapped = |dtype, bits: &dyn Fn(f32) -> u16| {
            let bytes: Vec<u8> = values.iter().flat_map(|&x| bits(x).to_le_bytes()).collect();
            let mut map = memmap2::MmapMut::map_anon(bytes.len().max(1)).unwrap();
            map[..bytes.len()].copy_from_slice(&bytes);
            Matrix::Mapped(Mapped {
                file: Arc::new(map.make_read_only().unwrap()),
                bytes: 0..bytes.len(),
                dtype,
                dims: (out, input),
            })
        };
        let half = |x: f32| {
            let bits = x.to_bits();
            // Rounded towards zero; what is too small for a normal half is zero.
            let exponent = (bits >> 23 & 0xff) as i32 - 112;
            let magnitude = if exponent > 0 {
                (exponent as u32) << 10 | bits >> 13 & 0x3ff
            } else {
                0
            };
            ((bits >> 31) << 15 | magnitude) as u16
        };
        vec![
            Matrix::Param(Param::frozen(tensor(values.clone(), (out, input)).unwrap())),
            mapped(Dtype::BF16, &|x| (x.to_bits() >> 16) as u16),
            mapped(Dtype::F16, &half),
        ]
    }

    fn levels() -> Vec<Level> {
        let all = [
            Level::Portable,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512,
        ];
        all.into_iter()
            .filter(|&level| level <= Level::here())
            .collect()
    }

    fn made(
        level: Level,
        weight: &Matrix,
        bias: Option<&[f32]>,
        x: &[f32],
        rows: usize,
    ) -> Vec<f32> {
        let mut into = vec![9.0; rows * weight.dims().unwrap().0];
        let mut jobs = [Linear {
            weight,
            bias,
            into: &mut into,
        }];
        on(level, x, rows, &mut jobs).unwrap();
        into
    }

    fn threads(count: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new()
            .num_threads(count)
            .build()
            .unwrap()
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn results_are_the_sums() {
        for (rows, out, input) in [(1, 1, 1), (3, 7, 33), (13, 130, 1500), (300, 70, 1024)] {
            let (x, bias) = (wave(rows * input, 0.3), wave(out, 1.1));
            for weight in weights(out, input) {
                let numbers = weight.values().unwrap();
                for level in levels() {
                    let got = made(level, &weight, Some(&bias), &x, rows);
                    for (at, &got) in got.iter().enumerate() {
                        let (row, col) = (at / out, at % out);
                        let terms = (0..input).map(|k| {
                            f64::from(x[row * input + k]) * f64::from(numbers[col * input + k])
                        });
                        let size: f64 = terms.clone().map(f64::abs).sum();
                        let exact = terms.sum::<f64>() + f64::from(bias[col]);
                        assert!(
                            (f64::from(got) - exact).abs() <= 4e-7 * (size + 1.0),
                            "{level:?} {rows} {out} {input}: {got} for {exact}"
                        );
                    }
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn a_row_is_the_same_alone_and_among_others_on_any_machine(
            rows in 1usize..40,
            out in 1usize..150,
            input in 0usize..2200,
            seed in 0usize..1000,
        ) {
            let x = wave((rows + seed) * input, 0.3)[seed * input..].to_vec();
            for weight in weights(out, input) {
                let all = threads(3).install(|| made(Level::here(), &weight, None, &x, rows));
                for level in levels() {
                    let again = threads(1).install(|| made(level, &weight, None, &x, rows));
                    prop_assert_eq!(bits(&all), bits(&again));
                    for row in [0, rows / 2, rows - 1] {
                        let x = &x[row * input..][..input];
                        let alone = made(level, &weight, None, x, 1);
                        prop_assert_eq!(bits(&alone), bits(&all[row * out..][..out]));
                    }
                }
            }
        }
    }

    #[test]
    fn many_rows_are_cut_anywhere() {
        let (rows, out, input) = (600, 9, 1100);
        let x = wave(rows * input, 0.3);
        for weight in weights(out, input) {
            let all = made(Level::here(), &weight, None, &x, rows);
            for cut in [1, 7, 299, 512] {
                let (first, second) = x.split_at(cut * input);
                let mut parts = made(Level::here(), &weight, None, first, cut);
                parts.extend(made(Level::here(), &weight, None, second, rows - cut));
                assert!(bits(&parts) == bits(&all), "{cut}");
            }
        }
    }

    #[test]
    fn jobs_share_x_and_shapes_must_agree() {
        let (one, two) = (&weights(5, 32)[0], &weights(3, 32)[1]);
        let (x, bias) = (wave(64, 0.3), [1.0; 3]);
        let (mut a, mut b) = (vec![0.0; 10], vec![0.0; 6]);
        fn job<'a>(weight: &'a Matrix, bias: Option<&'a [f32]>, into: &'a mut [f32]) -> Linear<'a> {
            Linear { weight, bias, into }
        }
        linear(
            &x,
            2,
            &mut [
                job(one, None, &mut a[..]),
                job(two, Some(&bias[..]), &mut b[..]),
            ],
        )
        .unwrap();
        assert_eq!(a, made(Level::here(), one, None, &x, 2));
        assert_eq!(b, made(Level::here(), two, Some(&bias), &x, 2));
        assert!(linear(&x, 3, &mut [job(one, None, &mut a[..])]).is_err());
        assert!(linear(&x, 2, &mut [job(one, None, &mut a[..9])]).is_err());
        assert!(linear(&x, 2, &mut [job(one, Some(&bias), &mut a[..])]).is_err());
        assert!(linear(&[], 0, &mut [job(one, None, &mut [])]).is_ok());
    }
}
