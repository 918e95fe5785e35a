use std::fmt;
use std::str::FromStr;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::error::TuneError;

/// Numbers that q8_0 packs together.
const BLOCK: usize = 32;

/// How a weight is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WeightType {
    /// 32 bits.
    F32,
    /// IEEE half precision: 11 bits of precision, up to 65,504.
    F16,
    /// The upper half of an f32: 8 bits of precision, the range of f32. What Qwen2.5 is published in.
    Bf16,
    /// Blocks of 32 numbers of 8 bits with one half-precision scale: 8.5 bits a number. GGUF only.
    Q8_0,
}

impl WeightType {
    const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Bf16, Self::Q8_0];

    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
        }
    }

    /// Bytes that so many numbers take.
    pub(crate) fn bytes(self, elements: usize) -> u64 {
        let elements = elements as u64;
        match self {
            Self::F32 => elements * 4,
            Self::F16 | Self::Bf16 => elements * 2,
            Self::Q8_0 => elements / BLOCK as u64 * 34,
        }
    }

    /// Whether rows of this length can be written in it.
    pub(crate) fn fits(self, width: usize) -> bool {
        self != Self::Q8_0 || width.is_multiple_of(BLOCK)
    }

    /// The dtype of safetensors; packed types have none.
    pub(crate) fn dtype(self) -> Option<&'static str> {
        match self {
            Self::F32 => Some("F32"),
            Self::F16 => Some("F16"),
            Self::Bf16 => Some("BF16"),
            Self::Q8_0 => None,
        }
    }

    /// Puts the type into a model's `config.json`, under the name it has there.
    pub(crate) fn declare(self, config: &mut Value) {
        let name = match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 | Self::Q8_0 => "bfloat16",
        };
        let Some(fields) = config.as_object_mut() else {
            return;
        };
        let field = match fields.contains_key("dtype") {
            true => "dtype",
            false => "torch_dtype",
        };
        fields.insert(field.to_owned(), name.into());
    }

    /// Appends numbers, each rounded once to the nearest of the type (ties to even).
    ///
    /// What is no number or does not fit is an error that shows it: it would spoil every answer of the model.
    pub(crate) fn encode(self, values: &[f32], out: &mut Vec<u8>) -> Result<(), String> {
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            return Err(format!("{value} in it, which is no number"));
        }
        let too_large =
            |value: f32| format!("{value} in it is beyond the range of {self}; take f32 or bf16");
        match self {
            Self::F32 => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            Self::F16 | Self::Bf16 => {
                let (round, infinite): (fn(f32) -> u16, _) = match self {
                    Self::F16 => (to_f16, 0x7c00),
                    _ => (to_bf16, 0x7f80),
                };
                let mut beyond = None;
                out.extend(values.iter().flat_map(|&value| {
                    let bits = round(value);
                    if bits & 0x7fff == infinite {
                        beyond = Some(value);
                    }
                    bits.to_le_bytes()
                }));
                if let Some(value) = beyond {
                    return Err(too_large(value));
                }
            }
            Self::Q8_0 => {
                // The scale of a block is a half: its largest number over 127.
                if let Some(&value) = values.iter().find(|value| value.abs() > 8e6) {
                    return Err(too_large(value));
                }
                let packed = Tensor::from_slice(values, values.len(), &Device::Cpu)
                    .and_then(|values| QTensor::quantize(&values, GgmlDType::Q8_0))
                    .map_err(|error| error.to_string())?;
                out.extend_from_slice(&packed.data().map_err(|error| error.to_string())?);
            }
        }
        Ok(())
    }
}

impl fmt::Display for WeightType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for WeightType {
    type Err = TuneError;

    fn from_str(text: &str) -> Result<Self, TuneError> {
        let named = |one: &Self| one.name().eq_ignore_ascii_case(text);
        Self::ALL
            .into_iter()
            .find(named)
            .ok_or_else(|| TuneError::Setting {
                field: "type",
                reason: format!(
                    "{text:?} is none of {}",
                    Self::ALL.map(Self::name).join(", ")
                ),
            })
    }
}

impl Serialize for WeightType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// To the nearest bfloat16, ties to even; of a finite number.
fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    // The carry of the rounding runs into the exponent, which is where it belongs.
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// To the nearest half, ties to even; of a finite number.
fn to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let (sign, magnitude) = ((bits >> 16) as u16 & 0x8000, bits & 0x7fff_ffff);
    let half = match magnitude {
        0x4780_0000.. => 0x7c00,
        // Below 2^-14 halves lie 2^-24 apart, as singles do just above 1/2: the sum does the rounding.
        ..0x3880_0000 => ((f32::from_bits(magnitude) + 0.5).to_bits() - 0.5f32.to_bits()) as u16,
        _ => {
            let rounded = (magnitude + 0xfff + ((magnitude >> 13) & 1)) >> 13;
            (rounded - ((127 - 15) << 10)) as u16
        }
    };
    sign | half
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;
    use safetensors::tensor::TensorView;

    use super::*;
    use crate::weights::to_f32;

    fn widened(dtype: Dtype, bits: u16) -> f32 {
        let bytes = bits.to_le_bytes();
        to_f32(&TensorView::new(dtype, vec![1], &bytes).unwrap()).unwrap()[0]
    }

    /// The nearest of two neighbours by distance, the even one of two as near.
    #[test]
    fn halves_are_the_nearest_and_even_between_two() {
        for (dtype, round, last) in [
            (Dtype::F16, to_f16 as fn(f32) -> u16, 0x7bff_u16),
            (Dtype::BF16, to_bf16, 0x7f7f),
        ] {
            for low in 0..last {
                let (a, b) = (widened(dtype, low), widened(dtype, low + 1));
                let middle = ((f64::from(a) + f64::from(b)) / 2.0) as f32;
                let even = low + (low & 1);
                assert_eq!(round(a), low);
                assert_eq!(round(-a), low | 0x8000);
                assert_eq!(round(middle), even, "{middle}");
                assert_eq!(round(middle.next_down()), low, "below {middle}");
                assert_eq!(round(middle.next_up()), low + 1, "above {middle}");
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_shown() {
        let said =
            |one: WeightType, value: f32| one.encode(&[value; 32], &mut Vec::new()).unwrap_err();
        assert!(said(WeightType::F16, 65_520.0).contains("65520"));
        assert!(said(WeightType::Bf16, f32::MAX).contains("range of bf16"));
        assert!(said(WeightType::Q8_0, 1e9).contains("range of q8_0"));
        assert!(said(WeightType::F32, f32::NAN).contains("NaN"));
        assert!(WeightType::F16.encode(&[65_519.0], &mut Vec::new()).is_ok());
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for one in WeightType::ALL {
            assert_eq!(one.to_string().parse::<WeightType>().unwrap(), one);
        }
        let said = "q4_k".parse::<WeightType>().unwrap_err().to_string();
        assert!(said.contains("f32, f16, bf16, q8_0"), "{said}");
    }
}
