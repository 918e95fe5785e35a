use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::error::Result;
use crate::ops::Param;

/// The parameters that learn, by name, in a fixed order, one after the other in one flat f32 tensor: what a model holds are
/// views of it, and an optimiser passes over it once.
#[derive(Debug)]
pub(crate) struct Parameters {
    flat: Tensor,
    views: Vec<View>,
}

#[derive(Debug)]
struct View {
    name: String,
    slot: usize,
    tensor: Tensor,
}

impl Parameters {
    /// Lays named tensors of numbers one after the other.
    pub(crate) fn new(
        tensors: impl IntoIterator<Item = (String, Vec<usize>, Vec<f32>)>,
    ) -> Result<Self> {
        let (mut all, mut named) = (Vec::new(), Vec::new());
        for (name, shape, values) in tensors {
            named.push((name, shape, all.len()));
            all.extend(values);
        }
        let count = all.len();
        let flat = Tensor::from_vec(all, count, &Device::Cpu)?;
        let views = named
            .into_iter()
            .map(|(name, shape, slot)| {
                let tensor = flat
                    .narrow(0, slot, shape.iter().product())?
                    .reshape(shape)?;
                Ok(View { name, slot, tensor })
            })
            .collect::<Result<_>>()?;
        Ok(Self { flat, views })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.views
            .iter()
            .map(|view| (view.name.as_str(), &view.tensor))
    }

    /// Names, where each begins in the flat buffer, and how many numbers it has.
    pub(crate) fn slots(&self) -> impl Iterator<Item = (&str, usize, usize)> {
        self.views
            .iter()
            .map(|view| (view.name.as_str(), view.slot, view.tensor.elem_count()))
    }

    /// A parameter by name, as a model takes it: with a gradient if it `learns`.
    pub(crate) fn get(&self, name: &str, learns: bool) -> Option<Param> {
        let view = self.views.iter().find(|view| view.name == name)?;
        Some(Param {
            tensor: view.tensor.clone(),
            slot: learns.then_some(view.slot),
        })
    }

    /// `rows` rows of numbers, whatever their names, from the beginning of a named parameter on.
    pub(crate) fn span(&self, from: &str, rows: usize, learns: bool) -> Result<Option<Param>> {
        let Some(view) = self.views.iter().find(|view| view.name == from) else {
            return Ok(None);
        };
        let width = view.tensor.dims2()?.1;
        let tensor = self
            .flat
            .narrow(0, view.slot, rows * width)?
            .reshape((rows, width))?;
        Ok(Some(Param {
            tensor,
            slot: learns.then_some(view.slot),
        }))
    }

    /// All numbers together.
    pub(crate) fn flat(&self) -> &Tensor {
        &self.flat
    }

    /// How many numbers there are.
    pub(crate) fn elements(&self) -> u64 {
        self.flat.elem_count() as u64
    }
}

/// A generator of its own for each tensor, so that its values do not depend on which others there are.
pub(crate) fn generator(seed: u64, name: &str) -> ChaCha8Rng {
    // FNV-1a: stable for ever, and the cipher behind the seed does the mixing.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&hash.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

/// `count` draws from a normal distribution of this deviation (Box and Muller).
pub(crate) fn normal(rng: &mut impl Rng, count: usize, deviation: f64) -> Vec<f32> {
    let draw = || {
        let (radius, turn): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
        (deviation * (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * turn).cos()) as f32
    };
    std::iter::repeat_with(draw).take(count).collect()
}

/// `count` draws from `U(-bound, bound)`.
pub(crate) fn uniform(rng: &mut impl Rng, count: usize, bound: f64) -> Vec<f32> {
    let draw = || ((rng.random::<f64>() * 2.0 - 1.0) * bound) as f32;
    std::iter::repeat_with(draw).take(count).collect()
}

/// The numbers `0..n` in an order that depends on the seed and the round only (Fisher and Yates).
pub(crate) fn permutation(n: usize, seed: u64, round: u64) -> Vec<usize> {
    let mut rng = generator(seed, &format!("permutation {round}"));
    let mut order: Vec<usize> = (0..n).collect();
    for last in (1..n).rev() {
        // The product of a 64-bit draw with the bound, its upper half: even to one part in 2^64 / n.
        let draw = (u128::from(rng.random::<u64>()) * (last as u128 + 1)) >> 64;
        order.swap(last, draw as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_round_has_its_own_order_of_the_same_rows() {
        let (one, two) = (permutation(50, 7, 0), permutation(50, 7, 1));
        assert_ne!(one, two);
        assert_eq!(one, permutation(50, 7, 0));
        let mut sorted = two;
        sorted.sort_unstable();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
    }

    #[test]
    fn normal_draws_have_the_deviation_asked_for() {
        let draws = normal(&mut generator(1, "x"), 20_000, 0.02);
        let square: f64 = draws.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / 2e4;
        assert!((square.sqrt() - 0.02).abs() < 4e-4, "{}", square.sqrt());
    }
}
