use candle_core::{Result, Tensor};

use super::gradients::Gradients;
use super::matrix::Matrix;
use super::pool::{Pool, tensor, view};

/// The vectors of tokens, `[n, d]`, from an embedding `[v, d]`.
pub(crate) fn embed(pool: &Pool, embedding: &Matrix, ids: &[u32]) -> Result<Tensor> {
    let d = embedding.dims()?.1;
    let mut x = pool.take(ids.len() * d);
    embedding.rows(ids.iter().copied(), |row, vector| {
        x[row * d..(row + 1) * d].copy_from_slice(vector);
    })?;
    tensor(x, (ids.len(), d))
}

/// Adds g `[n, d]`, the gradient of [`embed`]'s result, to that of an embedding that learns.
pub(crate) fn embed_backward(
    embedding: &Matrix,
    ids: &[u32],
    g: &Tensor,
    gradients: &mut Gradients,
) -> Result<()> {
    let (Some(slot), (v, d)) = (embedding.slot(), embedding.dims()?) else {
        return Ok(());
    };
    let into = gradients.at(slot, v * d);
    for (&id, g) in ids.iter().zip(view(g)?.chunks_exact(d)) {
        let into = &mut into[id as usize * d..][..d];
        into.iter_mut().zip(g).for_each(|(into, g)| *into += g);
    }
    Ok(())
}

/// Some rows of `[n, d]`.
pub(crate) fn gather(pool: &Pool, x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let (d, x) = (x.dims2()?.1, view(x)?);
    let mut some = pool.take(rows.len() * d);
    for (some, &row) in some.chunks_exact_mut(d).zip(rows) {
        some.copy_from_slice(&x[row as usize * d..][..d]);
    }
    tensor(some, (rows.len(), d))
}

/// The backward of [`gather`]: `[n, d]`, zero but for the given rows, which are added up.
pub(crate) fn scatter(pool: &Pool, some: Tensor, rows: &[u32], n: usize) -> Result<Tensor> {
    let d = some.dims2()?.1;
    let mut all = pool.zeros(n * d);
    for (some, &row) in view(&some)?.chunks_exact(d).zip(rows) {
        let into = &mut all[row as usize * d..][..d];
        into.iter_mut().zip(some).for_each(|(into, x)| *into += x);
    }
    pool.recycle(some)?;
    tensor(all, (n, d))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::values;

    #[test]
    fn what_is_gathered_twice_is_added_up_on_the_way_back() {
        let pool = Pool::default();
        let x = tensor(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], (3, 2)).unwrap();
        let some = gather(&pool, &x, &[2, 0, 2]).unwrap();
        assert_eq!(values(&some).unwrap(), [5.0, 6.0, 1.0, 2.0, 5.0, 6.0]);
        let back = scatter(&pool, some, &[2, 0, 2], 3).unwrap();
        assert_eq!(values(&back).unwrap(), [1.0, 2.0, 0.0, 0.0, 10.0, 12.0]);
    }
}
