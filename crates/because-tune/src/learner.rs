use std::cell::RefCell;
use std::path::Path;

use crate::adapter::{self, read_tensors, write_tensors};
use crate::base::BaseFolder;
use crate::config::QwenConfig;
use crate::error::{Result, TuneError};
use crate::full;
use crate::lora::LoraConfig;
use crate::lora::layout::LoraTensor;
use crate::memory::{Trainable, weights};
use crate::model::Qwen;
use crate::ops::{row_squares, values};
use crate::params::Parameters;
use crate::weights::{Weights, base_bytes};

/// All parameters of a model in f32, as a checkpoint keeps them.
const PARAMETERS: &str = "parameters.safetensors";

/// What of a model learns: adapters, or all of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Learner {
    Lora(LoraConfig),
    All,
}

impl Learner {
    /// The parameters at the start of a run.
    pub(crate) fn initial(&self, folder: &BaseFolder, seed: u64) -> Result<Parameters> {
        match self {
            Self::Lora(lora) => {
                lora.check()?;
                let weights = RefCell::new(Weights::read(&folder.path, &folder.config)?);
                let norms = |path: &str| {
                    let weight = weights.borrow_mut().matrix(&format!("{path}.weight"));
                    let squares = row_squares(&weight)?;
                    Ok(squares.iter().map(|square| square.sqrt() as f32).collect())
                };
                lora.initial(&folder.config, seed, &norms)
            }
            Self::All => {
                let mut weights = Weights::read(&folder.path, &folder.config)?;
                let tensors = folder.config.tensors().into_iter().map(|(name, shape)| {
                    let values = match shape.len() {
                        2 => weights.matrix(&name).values()?,
                        _ => values(&weights.vector(&name).tensor)?,
                    };
                    Ok((name, shape, values))
                });
                Parameters::new(tensors.collect::<Result<Vec<_>>>()?)
            }
        }
    }

    /// The base with what learns in it.
    pub(crate) fn model(&self, folder: &BaseFolder, parameters: &Parameters) -> Result<Qwen> {
        match self {
            Self::Lora(lora) => {
                let mut model = folder.model()?;
                lora.attach(&mut model, parameters, true)?;
                Ok(model)
            }
            Self::All => Ok(all_learning(&folder.config, parameters)),
        }
    }

    /// Writes what a run is for: an adapter, or a base folder.
    pub(crate) fn write(
        &self,
        out: &Path,
        folder: &BaseFolder,
        parameters: &Parameters,
    ) -> Result<()> {
        match self {
            Self::Lora(lora) => adapter::write(out, &folder.named(), lora, parameters),
            Self::All => full::write(out, folder, parameters),
        }
    }

    /// The files that [`Learner::write`] makes in this folder, the one that makes it valid last.
    pub(crate) fn files(&self, written: &Path) -> Vec<&'static str> {
        match self {
            Self::Lora(_) => vec!["adapter_model.safetensors", "adapter_config.json"],
            Self::All => full::files(written),
        }
    }

    /// Keeps the parameters exactly.
    pub(crate) fn keep(
        &self,
        checkpoint: &Path,
        folder: &BaseFolder,
        parameters: &Parameters,
    ) -> Result<()> {
        match self {
            Self::Lora(_) => self.write(checkpoint, folder, parameters),
            Self::All => {
                let tensors = parameters
                    .iter()
                    .map(|(name, variable)| {
                        Ok((name.to_owned(), variable.dims().to_vec(), values(variable)?))
                    })
                    .collect::<Result<Vec<_>>>()?;
                write_tensors(&checkpoint.join(PARAMETERS), &tensors, [])
            }
        }
    }

    /// The parameters as they were kept.
    pub(crate) fn read(&self, checkpoint: &Path, config: &QwenConfig) -> Result<Parameters> {
        let Self::Lora(asked) = self else {
            let path = checkpoint.join(PARAMETERS);
            let mut tensors = read_tensors(&path)?;
            let take = |(name, shape): (String, Vec<usize>)| match tensors.remove(&name) {
                Some((is, values)) if is == shape => Ok((name, shape, values)),
                _ => Err(TuneError::Checkpoint {
                    path: path.clone(),
                    reason: format!("tensor {name} is missing or of another shape"),
                }),
            };
            let tensors: Vec<_> = config
                .tensors()
                .into_iter()
                .map(take)
                .collect::<Result<_>>()?;
            return Parameters::new(tensors);
        };
        let (found, parameters) = adapter::read(checkpoint, config)?;
        asked.check()?;
        check_same(asked, &found, config, checkpoint)?;
        Ok(parameters)
    }

    /// What learns, for an estimate.
    pub(crate) fn trainable(&self, folder: &BaseFolder) -> Result<Trainable> {
        let config = &folder.config;
        let Self::Lora(lora) = self else {
            return Ok(Trainable {
                numbers: weights(config),
                ranks: 0,
                scaled: 0,
                base: None,
            });
        };
        lora.check()?;
        let layout = lora.layout(config)?;
        let numbers = |tensor: &LoraTensor| tensor.shape.iter().product::<usize>();
        let pairs = lora.pairs(config)?;
        let ranks: usize = pairs.iter().map(|pair| pair.rank).sum();
        let scaled: usize = match lora.dora {
            true => pairs.iter().map(|pair| pair.output).sum(),
            false => 0,
        };
        let layers = config.num_hidden_layers;
        Ok(Trainable {
            numbers: layout.iter().map(numbers).sum::<usize>() as u64,
            ranks: ranks.div_ceil(layers),
            scaled: scaled.div_ceil(layers),
            base: Some(base_bytes(&folder.path)?),
        })
    }
}

/// A model all of whose weights learn.
pub(crate) fn all_learning(config: &QwenConfig, parameters: &Parameters) -> Qwen {
    Qwen::new(config.clone(), Weights::from_parameters(parameters, true))
}

/// # Errors
/// When an adapter was made with other settings than are asked for.
pub(crate) fn check_same(
    asked: &LoraConfig,
    found: &LoraConfig,
    config: &QwenConfig,
    path: &Path,
) -> Result<()> {
    if asked.agrees_with(found, config)? {
        return Ok(());
    }
    let reason = format!("was made with {found:?}, but {asked:?} is asked for");
    Err(TuneError::Adapter {
        path: path.to_owned(),
        reason,
    })
}
