//! What `benches/linear.rs` reaches of the insides. No part of the public interface: it may change with any version.

use std::sync::Arc;

use candle_core::quantized::GgmlDType;
use candle_core::{Result, bail};
use memmap2::MmapMut;
use safetensors::Dtype;

use super::gemm::{Mat, MatMut};
use super::matrix::{LaidOut, Mapped, Matrix, Product, Sum, make};
use super::quantised::Quantised;
use super::{Linear, linear};

/// A weight `[out, in]` of numbers that mean nothing, often enough that each use reads it from memory, as in a model.
#[doc(hidden)]
#[derive(Debug)]
pub struct BenchWeight {
    copies: Vec<Matrix>,
    bytes: usize,
    next: usize,
}

impl BenchWeight {
    /// Of type `f32`, `f16`, `bf16`, or as a GGUF file calls it (`Q8_0`, `Q4_K`), in as many copies as fit so many bytes.
    ///
    /// # Errors
    ///
    /// If there is no such type, or rows of this width cannot be of it.
    pub fn new(kind: &str, (out, input): (usize, usize), room: usize) -> Result<Self> {
        let quantised = match kind {
            "f32" | "f16" | "bf16" => None,
            "Q4_0" => Some(GgmlDType::Q4_0),
            "Q4_1" => Some(GgmlDType::Q4_1),
            "Q5_0" => Some(GgmlDType::Q5_0),
            "Q5_1" => Some(GgmlDType::Q5_1),
            "Q8_0" => Some(GgmlDType::Q8_0),
            "Q4_K" => Some(GgmlDType::Q4K),
            "Q5_K" => Some(GgmlDType::Q5K),
            "Q6_K" => Some(GgmlDType::Q6K),
            _ => bail!("no weights of type {kind}"),
        };
        let bytes = match (quantised, kind) {
            (Some(kind), _) => out * input / kind.block_size() * kind.type_size(),
            (None, "f32") => out * input * 4,
            _ => out * input * 2,
        };
        let copies = (0..(room / bytes).clamp(1, 100)).map(|_| {
            let mut map = MmapMut::map_anon(bytes)?;
            // Read as any of these types, no number is large or small.
            for (at, byte) in map.iter_mut().enumerate() {
                let drawn = (at as u32).wrapping_mul(2_654_435_761);
                *byte = 0x18 | (drawn >> 29) as u8;
            }
            let file = Arc::new(map.make_read_only()?);
            let dims = (out, input);
            Ok(match quantised {
                Some(kind) => Matrix::Quantised(Quantised::new(file, 0..bytes, kind, dims)?),
                None => Matrix::Mapped(Mapped {
                    file,
                    bytes: 0..bytes,
                    dtype: match kind {
                        "f32" => Dtype::F32,
                        "f16" => Dtype::F16,
                        _ => Dtype::BF16,
                    },
                    dims,
                    laid_out: LaidOut::default(),
                }),
            })
        });
        Ok(Self {
            copies: copies.collect::<Result<_>>()?,
            bytes,
            next: 0,
        })
    }

    /// How large one copy is.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn next(&mut self) -> &Matrix {
        self.next = (self.next + 1) % self.copies.len();
        &self.copies[self.next]
    }

    /// Lays all copies out as generation does where there is memory.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn lay_out(&self) -> Result<()> {
        self.copies.iter().try_for_each(Matrix::lay_out)
    }

    /// `into = x W^T` as generation computes it.
    ///
    /// # Errors
    ///
    /// If shapes do not agree.
    pub fn linear(&mut self, x: &[f32], rows: usize, into: &mut [f32]) -> Result<()> {
        let job = Linear {
            weight: self.next(),
            into,
        };
        linear(x, rows, &mut [job])
    }

    /// The same as training computes it.
    ///
    /// # Errors
    ///
    /// If the weight is quantised.
    pub fn trained(&mut self, x: &[f32], rows: usize, into: &mut [f32]) -> Result<()> {
        let weight = self.next();
        let (out, input) = weight.dims()?;
        let product = Product {
            x: Mat::new(x, rows, input),
            weight,
            transposed: true,
        };
        make(vec![Sum::new(MatMut::new(into, rows, out), vec![product])])
    }
}
