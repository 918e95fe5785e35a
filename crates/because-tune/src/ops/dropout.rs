use candle_core::{Result, Tensor};

use super::pool::{Pool, tensor, view};
use super::simd::each_row;

/// Which inputs of an adapter are dropped: drawn for each projection, position and feature from a key, so that a layer
/// that is computed again drops the same, and so does a batch that is cut otherwise.
#[derive(Debug, Clone)]
pub(crate) struct Dropout {
    rate: f64,
    /// A key for each row of the batch.
    rows: Vec<u32>,
}

impl Dropout {
    /// `keys` has one number for each row; equal keys drop alike.
    pub(crate) fn new(rate: f64, keys: impl IntoIterator<Item = u64>) -> Self {
        let fold = |key: u64| mix((key ^ (key >> 32)) as u32);
        Self {
            rate,
            rows: keys.into_iter().map(fold).collect(),
        }
    }

    /// The same for some of the rows.
    pub(crate) fn of_rows(&self, rows: &[u32]) -> Self {
        Self {
            rate: self.rate,
            rows: rows.iter().map(|&row| self.rows[row as usize]).collect(),
        }
    }

    /// `x / (1 - rate)` where it is kept, else 0; `site` numbers the projections of the model.
    pub(super) fn apply(&self, pool: &Pool, x: &Tensor, site: u32) -> Result<Tensor> {
        let (shape, x) = (x.dims2()?, view(x)?);
        let mut out = pool.take(x.len());
        each_row(
            &mut out,
            shape.1,
            #[inline(always)]
            |row, out| {
                let x = &x[row * shape.1..][..shape.1];
                self.each(row, site, x, out, |out, x| *out = x);
            },
        );
        tensor(out, shape)
    }

    /// `into += mask * g / (1 - rate)`, the backward of [`Self::apply`]; `row` is the row of the batch.
    #[inline(always)]
    pub(super) fn add_backward(&self, row: usize, site: u32, g: &[f32], into: &mut [f32]) {
        self.each(row, site, g, into, |into, g| *into += g);
    }

    #[inline(always)]
    fn each(&self, row: usize, site: u32, x: &[f32], out: &mut [f32], put: impl Fn(&mut f32, f32)) {
        let key = mix(self.rows[row] ^ mix(site));
        let (bound, scale) = (
            (self.rate * f64::from(u32::MAX)) as u32,
            (1.0 / (1.0 - self.rate)) as f32,
        );
        for (column, (out, x)) in out.iter_mut().zip(x).enumerate() {
            let draw = mix(key.wrapping_add((column as u32).wrapping_mul(0x9e37_79b9)));
            put(out, if draw >= bound { x * scale } else { 0.0 });
        }
    }
}

/// A bijection of 32 bits in which every bit of the input moves every bit of the output about half of the time (the
/// multipliers are those of Chris Wellons' search, 2018).
#[inline(always)]
fn mix(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_are_dropped_as_asked_and_the_mean_stays() {
        let (pool, ones) = (
            Pool::default(),
            tensor(vec![1.0; 40_000], (400, 100)).unwrap(),
        );
        let dropout = Dropout::new(0.3, 0..400);
        let dropped = dropout.apply(&pool, &ones, 5).unwrap();
        let values = view(&dropped).unwrap();
        let zeros = values.iter().filter(|&&x| x == 0.0).count();
        assert!((zeros as f64 / 4e4 - 0.3).abs() < 0.01, "{zeros}");
        let mean = values.iter().sum::<f32>() / 4e4;
        assert!((mean - 1.0).abs() < 0.01, "{mean}");
        let again = dropout.apply(&pool, &ones, 5).unwrap();
        assert_eq!(*values, *view(&again).unwrap());
        let other = dropout.apply(&pool, &ones, 6).unwrap();
        assert_ne!(*values, *view(&other).unwrap());
        let mut back = vec![0.0; 100];
        dropout.add_backward(7, 5, &[1.0; 100], &mut back);
        assert_eq!(back, values[700..800]);
    }
}
