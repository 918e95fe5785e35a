mod unpack;

use std::ops::Range;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, ggml_file::qtensor_from_ggml};
use candle_core::{Device, Result, bail};
use memmap2::Mmap;

use super::matrix::LaidOut;

pub(super) use unpack::{Layout, Unpacked};

/// A weight matrix `[out, in]` in a mapped GGUF file, in blocks of small integers that share a scale. It is used where it
/// lies, or as it was laid out for the kernels.
#[derive(Debug, Clone)]
pub(crate) struct Quantised {
    file: Arc<Mmap>,
    bytes: Range<usize>,
    kind: GgmlDType,
    dims: (usize, usize),
    laid_out: LaidOut,
}

impl Quantised {
    /// The matrix in these bytes of the file. An error if they lie outside of it, a row is no whole number of blocks, or they
    /// are not as many as the matrix has.
    pub(crate) fn new(
        file: Arc<Mmap>,
        bytes: Range<usize>,
        kind: GgmlDType,
        dims: (usize, usize),
    ) -> Result<Self> {
        let (out, input) = dims;
        if matches!(kind, GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16) {
            bail!("{kind:?} is not quantised");
        }
        if matches!(kind, GgmlDType::Q8_1 | GgmlDType::Q8K) {
            bail!("{kind:?} is a type of activations, not of weights");
        }
        // Blocks begin with, or end in, a number of two bytes.
        if !bytes.start.is_multiple_of(2) {
            bail!("{kind:?} blocks at the odd byte {}", bytes.start);
        }
        if file.get(bytes.clone()).is_none() {
            bail!(
                "bytes {}..{} of a file of {}",
                bytes.start,
                bytes.end,
                file.len()
            );
        }
        if input % kind.block_size() != 0 {
            bail!(
                "rows of {input} numbers are no whole number of {kind:?} blocks of {}",
                kind.block_size()
            );
        }
        let row = input / kind.block_size() * kind.type_size();
        if out.checked_mul(row) != Some(bytes.len()) {
            bail!("{} bytes for {kind:?} [{out}, {input}]", bytes.len());
        }
        Ok(Self {
            file,
            bytes,
            kind,
            dims,
            laid_out: LaidOut::default(),
        })
    }

    pub(crate) fn kind(&self) -> GgmlDType {
        self.kind
    }

    /// `(out, in)`.
    pub(crate) fn dims(&self) -> (usize, usize) {
        self.dims
    }

    /// Its other form, once there is one.
    pub(super) fn laid_out(&self) -> &LaidOut {
        &self.laid_out
    }

    /// Where it lies.
    pub(super) fn place(&self) -> (&Arc<Mmap>, &Range<usize>) {
        (&self.file, &self.bytes)
    }

    /// The blocks of these rows.
    pub(super) fn blocks(&self, rows: Range<usize>) -> &[u8] {
        let row = self.bytes.len().checked_div(self.dims.0).unwrap_or(0);
        &self.file[self.bytes.clone()][rows.start * row..rows.end * row]
    }

    /// Calls `each` with some rows, in f32, in the order asked for.
    pub(super) fn rows(
        &self,
        rows: impl IntoIterator<Item = u32>,
        mut each: impl FnMut(usize, &[f32]),
    ) -> Result<()> {
        for (index, row) in rows.into_iter().enumerate() {
            let row = row as usize;
            if row >= self.dims.0 {
                bail!("row {row} of {}", self.dims.0);
            }
            each(index, &self.dequantised(row..row + 1)?);
        }
        Ok(())
    }

    /// All numbers, in f32.
    pub(super) fn values(&self) -> Result<Vec<f32>> {
        self.dequantised(0..self.dims.0)
    }

    /// These rows, in f32.
    pub(super) fn dequantised(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        let dims = vec![rows.len(), self.dims.1];
        let blocks = qtensor_from_ggml(self.kind, self.blocks(rows), dims, &Device::Cpu)?;
        blocks.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1()
    }
}
