use std::collections::BTreeMap;

use rayon::prelude::*;

const PIECE: usize = 1 << 14;

/// The gradients of one step, summed over its micro-batches: one flat f32 buffer that lies as the parameters do.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gradients {
    flat: Vec<f32>,
    /// Which parts a backward has written to, by where they start: end of each.
    written: BTreeMap<usize, usize>,
}

impl Gradients {
    pub(crate) fn zeros(len: usize) -> Self {
        Self {
            flat: vec![0.0; len],
            written: BTreeMap::new(),
        }
    }

    pub(crate) fn clear(&mut self) {
        self.flat
            .par_chunks_mut(PIECE)
            .for_each(|part| part.fill(0.0));
        self.written.clear();
    }

    /// The gradient of the parameter that begins at `slot`, to be added to.
    pub(crate) fn at(&mut self, slot: usize, len: usize) -> &mut [f32] {
        let end = self.written.entry(slot).or_insert(0);
        *end = (*end).max(slot + len);
        &mut self.flat[slot..slot + len]
    }

    /// Whether all of a parameter has been written to.
    pub(crate) fn covers(&self, slot: usize, len: usize) -> bool {
        let before = self.written.range(..=slot).next_back();
        let mut reach = before.map_or(0, |(_, &end)| end);
        for (&start, &end) in self.written.range(slot + 1..slot + len) {
            if start > reach {
                return false;
            }
            reach = reach.max(end);
        }
        reach >= slot + len
    }

    pub(crate) fn flat(&self) -> &[f32] {
        &self.flat
    }

    /// The Euclidean norm over all parameters together.
    pub(crate) fn norm(&self) -> f64 {
        let square = |part: &[f32]| -> f64 { part.iter().map(|&g| f64::from(g).powi(2)).sum() };
        // Collected in order: a sum must not depend on which thread was first.
        let squares: Vec<f64> = self.flat.par_chunks(PIECE).map(square).collect();
        squares.iter().sum::<f64>().sqrt()
    }

    /// Scales down to a norm of at most `most` (0 for no bound) and gives the norm before, as `clip_grad_norm_` does.
    pub(crate) fn clip(&mut self, most: f64) -> f64 {
        let norm = self.norm();
        let factor = most / (norm + 1e-6);
        if most > 0.0 && factor < 1.0 {
            self.flat
                .par_chunks_mut(PIECE)
                .for_each(|part| part.iter_mut().for_each(|g| *g *= factor as f32));
        }
        norm
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clipping_keeps_the_direction() {
        let mut gradients = Gradients::zeros(2);
        gradients.at(0, 2).copy_from_slice(&[3.0, 4.0]);
        assert_eq!(gradients.clip(0.0), 5.0);
        assert_eq!(gradients.flat(), [3.0, 4.0]);
        assert_eq!(gradients.clip(1.0), 5.0);
        assert!((gradients.flat()[0] - 0.6).abs() < 1e-6);
        assert!((gradients.flat()[1] - 0.8).abs() < 1e-6);
    }

    #[test]
    fn a_part_nobody_wrote_to_is_known() {
        let mut gradients = Gradients::zeros(10);
        gradients.at(2, 6);
        assert!(gradients.covers(2, 3) && gradients.covers(5, 3));
        assert!(!gradients.covers(0, 2) && !gradients.covers(7, 2));
        gradients.clear();
        assert!(!gradients.covers(2, 3));
    }
}
