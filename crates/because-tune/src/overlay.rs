use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::adapter;
use crate::error::Result;
use crate::model::{Layer, Qwen};
use crate::ops::{Matrix, Param, Projections, tensor, values, view};

/// An adapter over a base that stays as it is: several may lie over one, and each row of a batch says which it takes.
#[derive(Debug)]
pub(crate) struct Overlay {
    /// Unlike that of any other in this process: keys and values made with one adapter serve no other.
    pub(crate) id: u64,
    layers: Vec<[Vec<Option<LowRank>>; 4]>,
}

/// `y + s (x A^T) B^T` of one projection, with DoRA `c (y + s (x A^T) B^T)`.
#[derive(Debug)]
pub(crate) struct LowRank {
    /// `[r, in]`.
    pub(crate) a: Matrix,
    /// `[out, r]`.
    pub(crate) b: Matrix,
    pub(crate) rank: usize,
    pub(crate) scale: f32,
    /// DoRA's c, `[out]`.
    pub(crate) factors: Option<Vec<f32>>,
}

impl Overlay {
    /// Reads an adapter of this base; with it the base's layers as they are with the adapter over them.
    pub(crate) fn read(folder: &Path, base: &Qwen) -> Result<(Self, Vec<Layer>)> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let (lora, parameters) = adapter::read(&adapter::check_folder(folder)?, &base.config)?;
        let mut layers = base.layers.clone();
        lora.attach_to(&base.config, &mut layers, &parameters, false)?;
        let overlay = Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            layers: layers
                .iter()
                .map(|layer| {
                    let [qkv, o, gate_up, down] = &layer.groups;
                    Ok([
                        low_ranks(qkv)?,
                        low_ranks(o)?,
                        low_ranks(gate_up)?,
                        low_ranks(down)?,
                    ])
                })
                .collect::<Result<_>>()?,
        };
        Ok((overlay, layers))
    }

    /// What it adds to the projections of a group of a layer, in their order; nothing at all where it has none there.
    pub(crate) fn group(&self, layer: usize, group: usize) -> &[Option<LowRank>] {
        &self.layers[layer][group]
    }
}

fn low_ranks(group: &Projections) -> Result<Vec<Option<LowRank>>> {
    let Some(a) = &group.a else {
        return Ok(Vec::new());
    };
    let (input, a) = (a.tensor.dim(1)?, view(&a.tensor)?);
    group
        .all
        .iter()
        .map(|projection| {
            let Some(lora) = &projection.lora else {
                return Ok(None);
            };
            let own = a[lora.rows.start * input..lora.rows.end * input].to_vec();
            let shape = lora.b.tensor.dims2()?;
            let magnitude = lora.magnitude.as_ref();
            let factors = magnitude.map(|magnitude| group.factors(projection, magnitude));
            Ok(Some(LowRank {
                a: matrix(own, (lora.rows.len(), input))?,
                b: matrix(values(&lora.b.tensor)?, shape)?,
                rank: lora.rows.len(),
                scale: lora.scale,
                factors: factors.transpose()?,
            }))
        })
        .collect()
}

fn matrix(values: Vec<f32>, shape: (usize, usize)) -> Result<Matrix> {
    Ok(Matrix::Param(Param::frozen(tensor(values, shape)?)))
}
