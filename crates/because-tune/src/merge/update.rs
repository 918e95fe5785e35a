use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;

use crate::adapter;
use crate::config::QwenConfig;
use crate::error::Result;
use crate::lora::LoraConfig;
use crate::ops::values;
use crate::params::Parameters;

/// What an adapter adds to one weight.
pub(super) struct Update {
    /// `s`.
    scale: f32,
    /// `[r, in]`
    a: Tensor,
    /// `[out, r]`
    b: Tensor,
    /// `[out]`, where the adapter gives every row its length.
    magnitude: Option<Vec<f32>>,
}

impl Update {
    /// Changes rows of the weight, `[rows, in]` from row `first` on: `W + s B A`, then each row to its length.
    pub(super) fn apply(&self, first: usize, weight: &mut [f32]) -> Result<()> {
        let width = self.a.dim(1)?;
        let rows = self.b.narrow(0, first, weight.len() / width)?;
        let product = values(&rows.contiguous()?.matmul(&self.a)?)?;
        for (weight, product) in weight.iter_mut().zip(product) {
            *weight += self.scale * product;
        }
        if let Some(magnitude) = &self.magnitude {
            for (row, &length) in weight.chunks_exact_mut(width).zip(&magnitude[first..]) {
                let square: f64 = row.iter().map(|&value| f64::from(value).powi(2)).sum();
                let norm = square.sqrt() as f32;
                // A row of zeros has no direction and stays.
                if norm > 0.0 {
                    let factor = length / norm;
                    row.iter_mut().for_each(|value| *value *= factor);
                }
            }
        }
        Ok(())
    }
}

/// The updates of an adapter by the name of the weight; it must fit the model in every name and shape.
pub(super) fn updates(folder: &Path, config: &QwenConfig) -> Result<BTreeMap<String, Update>> {
    let (lora, parameters) = adapter::read(&adapter::check_folder(folder)?, config)?;
    of_parameters(&lora, &parameters, config)
}

fn of_parameters(
    lora: &LoraConfig,
    parameters: &Parameters,
    config: &QwenConfig,
) -> Result<BTreeMap<String, Update>> {
    let mut tensors: BTreeMap<&str, Tensor> = parameters
        .iter()
        .map(|(name, tensor)| (name, tensor.clone()))
        .collect();
    let mut updates = BTreeMap::new();
    for pair in lora.pairs(config)? {
        let path = &pair.path;
        let (a, b) = (
            tensors.remove(format!("{path}.lora_A.weight").as_str()),
            tensors.remove(format!("{path}.lora_B.weight").as_str()),
        );
        let (Some(a), Some(b)) = (a, b) else {
            unreachable!("{path}: the adapter was checked to hold every pair of its settings");
        };
        let magnitude = tensors
            .remove(format!("{path}.lora_magnitude_vector").as_str())
            .map(|tensor| values(&tensor))
            .transpose()?;
        let update = Update {
            scale: pair.scale as f32,
            a,
            b,
            magnitude,
        };
        updates.insert(format!("{path}.weight"), update);
    }
    Ok(updates)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn update(magnitude: Option<Vec<f32>>) -> Update {
        let a = Tensor::new(&[[1f32, 0.0, 2.0], [0.0, 1.0, -1.0]], &Device::Cpu).unwrap();
        let b = Tensor::new(&[[1f32, 1.0], [0.0, 2.0], [-1.0, 0.0]], &Device::Cpu).unwrap();
        Update {
            scale: 0.5,
            a,
            b,
            magnitude,
        }
    }

    #[test]
    fn rows_in_parts_are_the_rows_of_the_whole() {
        // W = [[0,0,0],[1,1,1],[2,2,2]]; B A = [[1,1,1],[0,2,-2],[-1,0,-2]].
        let expected = [0.5, 0.5, 0.5, 1.0, 2.0, 0.0, 1.5, 2.0, 1.0];
        let mut whole = [0f32, 0.0, 0.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0];
        let (mut top, mut rest) = (whole[..3].to_vec(), whole[3..].to_vec());
        update(None).apply(0, &mut whole).unwrap();
        update(None).apply(0, &mut top).unwrap();
        update(None).apply(1, &mut rest).unwrap();
        assert_eq!(whole, expected);
        assert_eq!([top, rest].concat(), expected);
    }

    #[test]
    fn with_magnitudes_every_row_has_its_length() {
        let lengths = [3f32, 5.0, 0.5];
        let mut plain = [0f32, 0.0, 0.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0];
        let mut whole = plain;
        update(None).apply(0, &mut plain).unwrap();
        update(Some(lengths.to_vec())).apply(0, &mut whole).unwrap();
        for ((row, plain), length) in whole.chunks(3).zip(plain.chunks(3)).zip(lengths) {
            let norm = plain.iter().map(|x| x * x).sum::<f32>().sqrt();
            for (is, plain) in row.iter().zip(plain) {
                assert!((is - length * plain / norm).abs() < 1e-6, "{is}");
            }
        }
        let mut last = [2f32; 3];
        update(Some(lengths.to_vec())).apply(2, &mut last).unwrap();
        assert_eq!(last, whole[6..]);
    }
}
