use std::sync::{Arc, Mutex, PoisonError};

/// Rotary position embedding (Su et al. 2021, arXiv 2104.09864), the two halves of a head as the coordinates of a plane,
/// as the published Qwen2.5 code does. Angles are always f32: half precision would merge positions past 256.
#[derive(Debug)]
pub(crate) struct Rope {
    frequencies: Vec<f32>,
    table: Mutex<Arc<RopeTable>>,
}

/// `(cos, sin)` of each position and frequency.
#[derive(Debug, Default)]
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
            let angles = (0..positions.next_multiple_of(256))
                .flat_map(|position| {
                    self.frequencies.iter().map(move |frequency| {
                        let angle = position as f32 * frequency;
                        (angle.cos(), angle.sin())
                    })
                })
                .collect();
            *kept = Arc::new(RopeTable { half, angles });
        }
        Arc::clone(&kept)
    }
}

impl RopeTable {
    /// Turns one head `[d]` by its position.
    pub(super) fn rotate(&self, head: &mut [f32], position: usize) {
        self.turn(head, position, 1.0);
    }

    /// Turns it back, which is also the backward of [`Self::rotate`].
    pub(super) fn unrotate(&self, head: &mut [f32], position: usize) {
        self.turn(head, position, -1.0);
    }

    fn turn(&self, head: &mut [f32], position: usize, sign: f32) {
        let angles = &self.angles[position * self.half..(position + 1) * self.half];
        let (first, second) = head.split_at_mut(self.half);
        for ((x, y), (cos, sin)) in first.iter_mut().zip(second).zip(angles) {
            let sin = sin * sign;
            (*x, *y) = (*x * cos - *y * sin, *y * cos + *x * sin);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turning_back_undoes_the_turn_and_position_zero_is_none() {
        let rope = Rope::new(1e4, 4).table(300);
        let mut head = [1.0, 2.0, 3.0, 4.0];
        rope.rotate(&mut head, 0);
        assert_eq!(head, [1.0, 2.0, 3.0, 4.0]);
        rope.rotate(&mut head, 299);
        assert!((head[0] - 1.0).abs() > 1e-3);
        rope.unrotate(&mut head, 299);
        for (is, was) in head.iter().zip([1.0, 2.0, 3.0, 4.0]) {
            assert!((is - was).abs() < 1e-5);
        }
    }
}
