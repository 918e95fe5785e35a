use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Module, Tensor};

use proptest::prelude::*;
use safetensors::Dtype;

use super::*;
use crate::ops::gemm::{Mat, MatMut};
use crate::ops::matrix::{LaidOut, Mapped, Param};
use crate::ops::matrix::{Product, Sum, make};
use crate::ops::pool::{tensor, values};

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
            laid_out: LaidOut::default(),
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

const KINDS: [GgmlDType; 10] = [
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q5_0,
    GgmlDType::Q5_1,
    GgmlDType::Q8_0,
    GgmlDType::Q4K,
    GgmlDType::Q5K,
    GgmlDType::Q6K,
    GgmlDType::Q2K,
    GgmlDType::Q3K,
];

/// A weight of this type, from the middle of a file, and candle's own of the same blocks.
fn quantised(kind: GgmlDType, out: usize, input: usize) -> (Matrix, QTensor) {
    let plain = tensor(wave(out * input, 0.7), (out, input)).unwrap();
    let theirs = QTensor::quantize(&plain, kind).unwrap();
    let data = theirs.data().unwrap();
    let mut map = memmap2::MmapMut::map_anon(data.len() + 64).unwrap();
    map[32..][..data.len()].copy_from_slice(&data);
    let file = Arc::new(map.make_read_only().unwrap());
    let ours = Quantised::new(file, 32..32 + data.len(), kind, (out, input)).unwrap();
    drop(data);
    (Matrix::Quantised(ours), theirs)
}

fn levels() -> Vec<Level> {
    let all = [
        Level::Portable,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2,
        #[cfg(target_arch = "x86_64")]
        Level::Avx512,
        #[cfg(target_arch = "x86_64")]
        Level::Vnni,
    ];
    all.into_iter()
        .filter(|&level| level <= Level::here())
        .collect()
}

fn made(level: Level, weight: &Matrix, x: &[f32], rows: usize) -> Vec<f32> {
    let mut into = vec![9.0; rows * weight.dims().unwrap().0];
    let mut jobs = [Linear {
        weight,
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
        let x = wave(rows * input, 0.3);
        for weight in weights(out, input) {
            let numbers = weight.values().unwrap();
            for level in levels() {
                let got = made(level, &weight, &x, rows);
                for (at, &got) in got.iter().enumerate() {
                    let (row, col) = (at / out, at % out);
                    let terms = (0..input).map(|k| {
                        f64::from(x[row * input + k]) * f64::from(numbers[col * input + k])
                    });
                    let size: f64 = terms.clone().map(f64::abs).sum();
                    let exact = terms.sum::<f64>();
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
            let all = threads(3).install(|| made(Level::here(), &weight, &x, rows));
            for laid_out in [false, true] {
                if laid_out {
                    weight.lay_out().unwrap();
                }
                for level in levels() {
                    let again = threads(1).install(|| made(level, &weight, &x, rows));
                    prop_assert_eq!(bits(&all), bits(&again));
                    for row in [0, rows / 2, rows - 1] {
                        let x = &x[row * input..][..input];
                        let alone = made(level, &weight, x, 1);
                        prop_assert_eq!(bits(&alone), bits(&all[row * out..][..out]));
                    }
                }
            }
        }
    }
}

/// Wide enough for tiles of every shape, with a panel that is not full.
#[test]
fn many_rows_are_cut_anywhere() {
    let (rows, out, input) = (600, 2069, 96);
    let x = wave(rows * input, 0.3);
    let (quantised, _) = quantised(GgmlDType::Q8_0, out, input);
    for weight in weights(out, input).into_iter().chain([quantised]) {
        let all = made(Level::here(), &weight, &x, rows);
        weight.lay_out().unwrap();
        for level in levels() {
            for cut in [1, 7, 299, 600] {
                let (first, second) = x.split_at(cut * input);
                let mut parts = made(level, &weight, first, cut);
                parts.extend(made(level, &weight, second, rows - cut));
                assert!(bits(&parts) == bits(&all), "{level:?} {cut}");
            }
        }
    }
}

#[test]
fn bytes_of_what_is_laid_out_are_told_before() {
    for weight in weights(70, 96).into_iter().skip(1) {
        assert!(weight.laid_out_bytes().unwrap() >= 96 * 96 * 2);
        weight.lay_out().unwrap();
        assert_eq!(weight.laid_out_bytes().unwrap(), 0);
    }
    assert_eq!(weights(70, 96)[0].laid_out_bytes().unwrap(), 0, "in memory");
}

#[test]
fn jobs_share_x_and_shapes_must_agree() {
    let (one, two) = (&weights(5, 32)[0], &weights(3, 32)[1]);
    let x = wave(64, 0.3);
    let (mut a, mut b) = (vec![0.0; 10], vec![0.0; 6]);
    fn job<'a>(weight: &'a Matrix, into: &'a mut [f32]) -> Linear<'a> {
        Linear { weight, into }
    }
    linear(&x, 2, &mut [job(one, &mut a), job(two, &mut b)]).unwrap();
    assert_eq!(a, made(Level::here(), one, &x, 2));
    assert_eq!(b, made(Level::here(), two, &x, 2));
    assert!(linear(&x, 3, &mut [job(one, &mut a)]).is_err());
    assert!(linear(&x, 2, &mut [job(one, &mut a[..9])]).is_err());
    assert!(linear(&[], 0, &mut [job(one, &mut [])]).is_ok());
}

#[test]
fn quantised_numbers_are_candles() {
    for kind in KINDS {
        let (out, input) = (19, 512);
        let (ours, theirs) = quantised(kind, out, input);
        let numbers = theirs.dequantize(&Device::Cpu).unwrap();
        let numbers = values(&numbers).unwrap();
        assert!(ours.values().unwrap() == numbers, "{kind:?}");
        ours.rows([7, 18, 7], |index, row| {
            let at = [7, 18, 7][index] * input;
            assert!(row == &numbers[at..at + input], "{kind:?}");
        })
        .unwrap();
        // Rows that are zero but for one number, which is 127 steps.
        let mut x = vec![0.0; input * input];
        (0..input).for_each(|at| x[at * input + at] = 127.0);
        for level in levels() {
            let got = made(level, &ours, &x, input);
            for (at, got) in got.iter().enumerate() {
                let number = numbers[at % out * input + at / out];
                let close = (got / 127.0 - number).abs() <= 1e-6 * (number.abs() + 1.0);
                assert!(
                    close,
                    "{kind:?} {level:?} {at}: {} for {number}",
                    got / 127.0
                );
            }
        }
    }
}

#[test]
fn quantised_products_are_within_the_error_of_rounding_x() {
    for kind in KINDS {
        let (rows, out, input) = (5, 21, 1024);
        let (ours, theirs) = quantised(kind, out, input);
        let (x, numbers) = (wave(rows * input, 0.3), ours.values().unwrap());
        let got = made(Level::here(), &ours, &x, rows);
        let row = Tensor::from_slice(&x, (rows, input), &Device::Cpu).unwrap();
        let candles = QMatMul::from_qtensor(theirs)
            .unwrap()
            .forward(&row)
            .unwrap();
        let candles = values(&candles).unwrap();
        let (mut apart, mut all) = (0.0, 0.0);
        for at in 0..rows * out {
            let (x, w) = (
                &x[at / out * input..][..input],
                &numbers[at % out * input..][..input],
            );
            let (mut exact, mut error, mut square) = (0.0, 1e-5, 0.0);
            for (x, w) in x.chunks(32).zip(w.chunks(32)) {
                let top = x.iter().fold(0f32, |top, x| top.max(x.abs()));
                for (x, w) in x.iter().zip(w) {
                    exact += f64::from(*x) * f64::from(*w);
                    error += f64::from(w.abs() * top) / 254.0;
                    square += f64::from(x * w).powi(2);
                }
            }
            let (got, candles) = (f64::from(got[at]), f64::from(candles[at]));
            assert!((got - exact).abs() <= error, "{kind:?}: {got} for {exact}");
            (apart, all) = (apart + (got - candles).powi(2), all + square);
            // Candle rounds x for as many numbers as its blocks have, and the step to f16.
            assert!(
                (got - candles).abs() <= 3.0 * error,
                "{kind:?}: {got} and {candles}"
            );
        }
        // Candle's kernels are llama.cpp's, whose tests let two backends lie so far apart (`test-backend-ops.cpp`): a share of what
        // a sum of terms without order has.
        assert!(apart <= 5e-4 * all, "{kind:?}: {}", apart / all);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn quantised_rows_are_the_same_alone_and_among_others_on_any_machine(
        rows in 1usize..30,
        out in 1usize..150,
        blocks in 1usize..40,
        seed in 0usize..1000,
    ) {
        for kind in KINDS {
            let input = blocks.div_ceil(kind.block_size() / 32) * kind.block_size();
            let x = wave((rows + seed) * input, 0.3)[seed * input..].to_vec();
            let (weight, _) = quantised(kind, out, input);
            let all = threads(3).install(|| made(Level::here(), &weight, &x, rows));
            for laid_out in [false, true] {
                if laid_out {
                    weight.lay_out().unwrap();
                }
                for level in levels() {
                    let again = threads(1).install(|| made(level, &weight, &x, rows));
                    prop_assert_eq!(bits(&all), bits(&again));
                    for row in [0, rows / 2, rows - 1] {
                        let x = &x[row * input..][..input];
                        let alone = made(level, &weight, x, 1);
                        prop_assert_eq!(bits(&alone), bits(&all[row * out..][..out]));
                    }
                }
            }
        }
    }
}

#[test]
fn the_largest_integers_do_not_overflow() {
    // All bits set: the largest integers of each type, or the smallest with a sign.
    for kind in KINDS {
        for byte in [0xff, 0x80, 0x7f, 0x00] {
            let size = kind.type_size() * (256 / kind.block_size());
            let mut map = memmap2::MmapMut::map_anon(size).unwrap();
            map.fill(byte);
            // Scales that are numbers.
            for block in map.chunks_mut(kind.type_size()) {
                let half = 0x3c00u16.to_le_bytes();
                let ends = [GgmlDType::Q6K, GgmlDType::Q2K, GgmlDType::Q3K];
                let at = if ends.contains(&kind) {
                    block.len() - 2
                } else {
                    0
                };
                block[at..at + 2].copy_from_slice(&half);
                match kind {
                    GgmlDType::Q2K => block[at - 2..at].copy_from_slice(&half),
                    GgmlDType::Q4_1 | GgmlDType::Q5_1 | GgmlDType::Q4K | GgmlDType::Q5K => {
                        block[2..4].copy_from_slice(&half);
                    }
                    _ => {}
                }
            }
            let file = Arc::new(map.make_read_only().unwrap());
            let weight = Quantised::new(file, 0..size, kind, (1, 256)).unwrap();
            let weight = Matrix::Quantised(weight);
            for sign in [1.0, -1.0] {
                let x = vec![sign; 256];
                let exact: f32 = weight.values().unwrap().iter().sum::<f32>() * sign;
                for level in levels() {
                    let got = made(level, &weight, &x, 1)[0];
                    let close = (got - exact).abs() <= 1e-4 * (exact.abs() + 1.0);
                    assert!(close, "{kind:?} {byte:x} {level:?}: {got} for {exact}");
                }
            }
        }
    }
}

#[test]
fn what_is_no_number_stays_none() {
    let (weight, _) = quantised(GgmlDType::Q8_0, 3, 64);
    for bad in [f32::NAN, f32::INFINITY] {
        let mut x = wave(128, 0.3);
        x[70] = bad;
        let got = made(Level::here(), &weight, &x, 2);
        assert!(got[..3].iter().all(|y| y.is_finite()) && got[3..].iter().all(|y| y.is_nan()));
    }
}

#[test]
fn quantised_weights_of_other_length_and_other_uses_are_refused() {
    let map = memmap2::MmapMut::map_anon(4096).unwrap();
    let file = Arc::new(map.make_read_only().unwrap());
    let made = |bytes, kind, dims| {
        let refused = Quantised::new(file.clone(), bytes, kind, dims);
        refused.map_err(|error| error.to_string())
    };
    assert!(made(0..136, GgmlDType::Q8_0, (2, 64)).is_ok());
    for (bytes, kind, dims, part) in [
        (
            0..135,
            GgmlDType::Q8_0,
            (2, 64),
            "135 bytes for Q8_0 [2, 64]",
        ),
        (
            0..136,
            GgmlDType::Q8_0,
            (2, 65),
            "no whole number of Q8_0 blocks of 32",
        ),
        (0..136, GgmlDType::Q8_0, (usize::MAX, 64), "136 bytes"),
        (4000..4136, GgmlDType::Q8_0, (2, 64), "of a file of 4096"),
        (1..137, GgmlDType::Q8_0, (2, 64), "odd byte"),
        (
            0..896 * 144 / 256,
            GgmlDType::Q4K,
            (1, 896),
            "blocks of 256",
        ),
        (0..256, GgmlDType::F32, (1, 64), "not quantised"),
        (0..292, GgmlDType::Q8K, (1, 256), "type of activations"),
    ] {
        let error = made(bytes, kind, dims).unwrap_err();
        assert!(error.contains(part), "{error}");
    }
    let weight = Matrix::Quantised(made(0..136, GgmlDType::Q8_0, (2, 64)).unwrap());
    let (x, mut into) = (wave(64, 0.3), [0.0; 2]);
    let product = Product {
        x: Mat::new(&x, 1, 64),
        weight: &weight,
        transposed: true,
    };
    let sum = Sum::new(MatMut::new(&mut into, 1, 2), vec![product]);
    let error = make(vec![sum]).unwrap_err().to_string();
    assert!(error.contains("do not train or merge"), "{error}");
    assert!(weight.rows([2], |_, _| {}).is_err());
}
