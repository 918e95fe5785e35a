use candle_core::quantized::GgmlDType;
use safetensors::Dtype;

/// A type of tensor, by ggml's numbers and names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GgmlType {
    pub(super) name: &'static str,
    pub(super) storage: Storage,
}

/// How its numbers lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Storage {
    Plain(Dtype),
    /// In blocks that share a scale.
    Packed(GgmlDType),
}

impl GgmlType {
    /// The type of a number; the fault names what cannot be used.
    pub(super) fn new(number: u32) -> Result<Self, String> {
        use Storage::{Packed, Plain};
        let (name, storage) = match number {
            0 => ("F32", Plain(Dtype::F32)),
            1 => ("F16", Plain(Dtype::F16)),
            2 => ("Q4_0", Packed(GgmlDType::Q4_0)),
            3 => ("Q4_1", Packed(GgmlDType::Q4_1)),
            6 => ("Q5_0", Packed(GgmlDType::Q5_0)),
            7 => ("Q5_1", Packed(GgmlDType::Q5_1)),
            8 => ("Q8_0", Packed(GgmlDType::Q8_0)),
            10 => ("Q2_K", Packed(GgmlDType::Q2K)),
            11 => ("Q3_K", Packed(GgmlDType::Q3K)),
            12 => ("Q4_K", Packed(GgmlDType::Q4K)),
            13 => ("Q5_K", Packed(GgmlDType::Q5K)),
            14 => ("Q6_K", Packed(GgmlDType::Q6K)),
            30 => ("BF16", Plain(Dtype::BF16)),
            _ => {
                let other = other(number);
                return Err(format!(
                    "is {other}, which is not read here; take a file of Q4_K_M, Q6_K, Q8_0 or F16"
                ));
            }
        };
        Ok(Self { name, storage })
    }

    /// Numbers in a block, and its bytes.
    pub(super) fn block(self) -> (usize, usize) {
        match self.storage {
            Storage::Plain(dtype) => (1, dtype.bitsize() / 8),
            Storage::Packed(kind) => (kind.block_size(), kind.type_size()),
        }
    }
}

/// The name of a type that is not read.
fn other(number: u32) -> String {
    let name = match number {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("of type {number}"),
    };
    name.to_owned()
}
