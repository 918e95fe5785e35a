use std::ops::Deref;
use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Result, Shape, Storage, Tensor, bail};

/// Buffers of activations that are used again, layer after layer and step after step.
///
/// An allocator gives large blocks back to the system when they are freed and gets them anew, page by page and zeroed,
/// when they are asked for: in a training step that is as much memory traffic as the arithmetic itself.
#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<Vec<Vec<f32>>>);

impl Pool {
    /// `len` numbers of any value.
    pub(crate) fn take(&self, len: usize) -> Vec<f32> {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A buffer much too large is left to those who need it.
        let fits = |capacity: usize| (len..=4 * len + (1 << 16)).contains(&capacity);
        let best = (0..free.len())
            .filter(|&at| fits(free[at].capacity()))
            .min_by_key(|&at| free[at].capacity());
        let below = |at: usize| free[at].capacity() < len;
        let next_smaller = (0..free.len()).max_by_key(|&at| {
            let capacity = free[at].capacity();
            // The largest that is too small, else the smallest that is much too large.
            (
                below(at),
                if below(at) {
                    capacity
                } else {
                    usize::MAX - capacity
                },
            )
        });
        match best {
            Some(at) => {
                let mut buffer = free.swap_remove(at);
                buffer.resize(len, 0.0);
                buffer
            }
            None => {
                // The one that grows takes the place of one that was too small, so that the pool holds no more than was
                // once in use together.
                if let Some(at) = next_smaller {
                    free.swap_remove(at);
                }
                drop(free);
                vec![0.0; len]
            }
        }
    }

    /// `len` zeros.
    pub(crate) fn zeros(&self, len: usize) -> Vec<f32> {
        let mut buffer = self.take(len);
        buffer.fill(0.0);
        buffer
    }

    /// Takes a buffer back.
    pub(crate) fn give(&self, buffer: Vec<f32>) {
        if buffer.capacity() > 0 {
            let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            free.push(buffer);
        }
    }

    /// Takes the numbers of a tensor back that nobody else holds.
    pub(crate) fn recycle(&self, tensor: Tensor) -> Result<()> {
        self.give(into_values(tensor)?);
        Ok(())
    }
}

/// The numbers of a tensor, moved out of it. Its storage must not be shared: a view of it would be left empty.
#[allow(
    clippy::needless_pass_by_value,
    reason = "what is left of the tensor is empty and must not be used again"
)]
pub(crate) fn into_values(tensor: Tensor) -> Result<Vec<f32>> {
    struct Take(Mutex<Vec<f32>>);

    impl InplaceOp1 for Take {
        fn name(&self) -> &'static str {
            "take"
        }

        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
            let CpuStorage::F32(values) = storage else {
                bail!("expected f32");
            };
            if layout.contiguous_offsets() != Some((0, values.len())) {
                bail!("expected a whole contiguous tensor");
            }
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = std::mem::take(values);
            Ok(())
        }
    }

    let take = Take(Mutex::default());
    tensor.inplace_op1(&take)?;
    Ok(take.0.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// A tensor of numbers that were just made.
pub(crate) fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// The numbers of a contiguous f32 tensor in memory, lent.
pub(crate) fn view(tensor: &Tensor) -> Result<impl Deref<Target = [f32]> + '_> {
    struct View<G>(G, usize, usize);

    impl<G: Deref<Target = Storage>> Deref for View<G> {
        type Target = [f32];

        fn deref(&self) -> &[f32] {
            match &*self.0 {
                Storage::Cpu(CpuStorage::F32(values)) => &values[self.1..self.2],
                _ => &[],
            }
        }
    }

    let (guard, layout) = tensor.storage_and_layout();
    match (&*guard, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(_)), Some((from, to))) => Ok(View(guard, from, to)),
        (Storage::Cpu(_), _) => bail!("expected contiguous rows of f32"),
        _ => bail!("no kernels for {:?} yet", tensor.device().location()),
    }
}

/// A copy of a tensor's numbers, row-major.
pub(crate) fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(view(tensor)?.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_and_no_more_are_kept_than_were_used_together() {
        let pool = Pool::default();
        let first = tensor(pool.take(100), (10, 10)).unwrap();
        pool.recycle(first).unwrap();
        let again = pool.take(80);
        assert!(again.capacity() >= 100);
        pool.give(again);
        pool.give(pool.take(200));
        assert_eq!(pool.0.lock().unwrap().len(), 1);
        assert!(pool.zeros(150).iter().all(|&x| x == 0.0));
    }

    #[test]
    fn part_of_a_tensor_is_not_taken_out_of_it() {
        let whole = tensor(vec![1.0, 2.0, 3.0], 3).unwrap();
        assert!(into_values(whole.narrow(0, 1, 2).unwrap()).is_err());
        assert_eq!(*view(&whole.narrow(0, 1, 2).unwrap()).unwrap(), [2.0, 3.0]);
        assert_eq!(into_values(whole).unwrap(), [1.0, 2.0, 3.0]);
    }
}
