use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Result, Tensor};

use super::attention::Segment;
use super::pool::{into_values, tensor};
use super::simd::each_row;

/// Rotary position embedding (Su et al. 2021, arXiv 2104.09864), the two halves of a head as the coordinates of a plane,
/// as the published Qwen2.5 code does. Angles are always f32: half precision would merge positions past 256.
#[derive(Debug)]
pub(crate) struct Rope {
    frequencies: Vec<f32>,
    table: Mutex<Arc<RopeTable>>,
}

/// `(cos, sin)` of each position and frequency.
#[derive(Debug, Default, Clone)]
pub(crate) struct RopeTable {
    half: usize,
    angles: Vec<(f32, f32)>,
}

impl Rope {
    pub(crate) fn new(theta: f64, head_dim: usize) -> Self {
        // In f32 throughout, as the reference computes them: at a late position a last-place difference shows.
        let frequency = |i: usize| 1.0 / (theta as f32).powf((2 * i) as f32 / head_dim as f32);
        Self {
            frequencies: (0..head_dim / 2).map(frequency).collect(),
            table: Mutex::default(),
        }
    }

    /// A table that reaches `positions` at least; it grows as it is needed and is kept.
    pub(crate) fn table(&self, positions: usize) -> Arc<RopeTable> {
        let mut kept = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let half = self.frequencies.len();
        if kept.angles.len() < positions * half {
            let known = kept.angles.len() / half;
            let table = Arc::make_mut(&mut kept);
            table.half = half;
            let more = (known..positions.next_multiple_of(256)).flat_map(|position| {
                self.frequencies.iter().map(move |frequency| {
                    let angle = position as f32 * frequency;
                    (angle.cos(), angle.sin())
                })
            });
            table.angles.extend(more);
        }
        Arc::clone(&kept)
    }
}

impl RopeTable {
    /// Turns each head of `[n, heads d_head]` by the position of its row.
    pub(crate) fn rotate(&self, x: Tensor, segments: &[Segment]) -> Result<Tensor> {
        self.turn(x, segments, 1.0)
    }

    /// Turns it back, which is also the backward of [`Self::rotate`].
    pub(crate) fn unrotate(&self, x: Tensor, segments: &[Segment]) -> Result<Tensor> {
        self.turn(x, segments, -1.0)
    }

    fn turn(&self, x: Tensor, segments: &[Segment], sign: f32) -> Result<Tensor> {
        let shape = x.dims2()?;
        let mut positions = vec![0; shape.0];
        for segment in segments {
            for at in 0..segment.len {
                positions[segment.start + at] = segment.past + at;
            }
        }
        let mut x = into_values(x)?;
        self.turn_in_place(&mut x, shape.1, &positions, sign);
        tensor(x, shape)
    }

    /// [`Self::rotate`] on plain numbers: rows of `width`, each at its position.
    pub(crate) fn rotate_in_place(&self, x: &mut [f32], width: usize, positions: &[usize]) {
        self.turn_in_place(x, width, positions, 1.0);
    }

    fn turn_in_place(&self, x: &mut [f32], width: usize, positions: &[usize], sign: f32) {
        let half = self.half;
        each_row(
            x,
            width,
            #[inline(always)]
            |row, x| {
                let position = positions[row];
                let angles = &self.angles[position * half..(position + 1) * half];
                for head in x.chunks_exact_mut(2 * half) {
                    let (first, second) = head.split_at_mut(half);
                    for ((x, y), (cos, sin)) in first.iter_mut().zip(second).zip(angles) {
                        let sin = sin * sign;
                        (*x, *y) = (*x * cos - *y * sin, *y * cos + *x * sin);
                    }
                }
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::values;

    #[test]
    fn a_table_that_grew_is_the_one_made_at_once() {
        let rope = Rope::new(1e4, 4);
        let first = rope.table(1);
        assert_eq!(first.angles.len(), 2 * 256);
        let grown = rope.table(700);
        assert_eq!(grown.angles, Rope::new(1e4, 4).table(700).angles);
        assert_eq!(first.angles[..], grown.angles[..2 * 256]);
    }

    #[test]
    fn turning_back_undoes_the_turn_and_position_zero_is_none() {
        let rope = Rope::new(1e4, 4).table(300);
        let numbers = vec![1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0];
        let segments = [
            Segment {
                start: 0,
                len: 1,
                past: 0,
            },
            Segment {
                start: 1,
                len: 1,
                past: 299,
            },
        ];
        let turned = rope
            .rotate(tensor(numbers.clone(), (2, 4)).unwrap(), &segments)
            .unwrap();
        let there = values(&turned).unwrap();
        assert_eq!(there[..4], numbers[..4]);
        assert!((there[4] - 1.0).abs() > 1e-3);
        let back = values(&rope.unrotate(turned, &segments).unwrap()).unwrap();
        for (is, was) in back.iter().zip(&numbers) {
            assert!((is - was).abs() < 1e-5);
        }
    }
}
