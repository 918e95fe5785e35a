use std::collections::BTreeMap;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::config::QwenConfig;
use crate::error::{Result, TuneError};
use crate::model::{PROJECTIONS, Qwen};
use crate::params::{Parameters, generator, uniform};

/// How the low-rank adapters look (Hu et al. 2021, arXiv 2106.09685).
///
/// A projection becomes `y = x W^T + bias + s (x A^T) B^T` with A `[r, in]` drawn from the seed, B `[out, r]` zero at the
/// start, and `s = alpha / r`, or `alpha / sqrt(r)` with `rslora` (arXiv 2312.03732).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// `r`: 8, the rank of the LoRA paper's language experiments and of PEFT's default.
    pub rank: usize,
    /// 16, twice the rank, as common recipes have it.
    pub alpha: f64,
    /// The share of inputs dropped on the way into A while training. Only 0 is implemented: anything else is refused.
    pub dropout: f64,
    /// Which projections get an adapter, by their short names; all seven unless said otherwise.
    pub target_modules: Vec<String>,
    /// Scale by `alpha / sqrt(r)` in place of `alpha / r`.
    pub rslora: bool,
    /// Learn the length of each row apart from its direction.
    #[serde(default)]
    pub dora: bool,
    /// Other ranks for some projections.
    #[serde(default)]
    pub rank_pattern: BTreeMap<String, usize>,
    /// Other values of `alpha` for some projections.
    #[serde(default)]
    pub alpha_pattern: BTreeMap<String, f64>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 16.0,
            dropout: 0.0,
            target_modules: PROJECTIONS
                .iter()
                .map(|&(_, name)| name.to_owned())
                .collect(),
            rslora: false,
            dora: false,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
        }
    }
}

/// What a projection's adapter consists of, before it has values.
pub(crate) struct LoraPair {
    pub(crate) layer: usize,
    /// Index into [`PROJECTIONS`].
    pub(crate) projection: usize,
    /// `model.layers.{i}.{block}.{name}`.
    pub(crate) path: String,
    pub(crate) input: usize,
    pub(crate) output: usize,
}

impl LoraConfig {
    /// What the low-rank part is multiplied by.
    #[must_use]
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.rslora { rank.sqrt() } else { rank }
    }

    /// # Errors
    /// Names the first setting that is out of its range.
    pub(crate) fn check(&self) -> Result<()> {
        let fault = |field, reason: String| Err(TuneError::Setting { field, reason });
        if !(1..=4096).contains(&self.rank) {
            return fault("rank", format!("{} is not between 1 and 4096", self.rank));
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            return fault("alpha", format!("{} is not a positive number", self.alpha));
        }
        if self.dropout != 0.0 {
            return fault(
                "dropout",
                format!("{} is not supported, only 0", self.dropout),
            );
        }
        if self.target_modules.is_empty() {
            return fault("target_modules", "names no projection".into());
        }
        let known = |name: &String| PROJECTIONS.iter().any(|(_, known)| known == name);
        match self.target_modules.iter().find(|name| !known(name)) {
            Some(name) => {
                let all = PROJECTIONS.map(|(_, name)| name).join(", ");
                fault(
                    "target_modules",
                    format!("{name:?} is not a projection; there are {all}"),
                )
            }
            None => Ok(()),
        }
    }

    /// The adapters this asks for on a model, layer by layer.
    pub(crate) fn pairs(&self, config: &QwenConfig) -> Vec<LoraPair> {
        let (d, inner) = (config.hidden_size, config.intermediate_size);
        let kv = config.num_key_value_heads * config.head_dim();
        let mut pairs = Vec::new();
        for layer in 0..config.num_hidden_layers {
            for (projection, (block, name)) in PROJECTIONS.into_iter().enumerate() {
                if !self.target_modules.iter().any(|target| target == name) {
                    continue;
                }
                let (input, output) = match name {
                    "k_proj" | "v_proj" => (d, kv),
                    "gate_proj" | "up_proj" => (d, inner),
                    "down_proj" => (inner, d),
                    _ => (d, d),
                };
                let path = format!("model.layers.{layer}.{block}.{name}");
                pairs.push(LoraPair {
                    layer,
                    projection,
                    path,
                    input,
                    output,
                });
            }
        }
        pairs
    }

    /// Adapters at their start: A from `U(-1/sqrt(in), 1/sqrt(in))` (Kaiming's uniform with `a = sqrt 5`), B zero, so that
    /// the model answers as it did before.
    pub(crate) fn initial(&self, config: &QwenConfig, seed: u64) -> Result<Parameters> {
        let pairs = self.pairs(config);
        Parameters::new(pairs.iter().flat_map(|pair| {
            let a = format!("{}.lora_A.weight", pair.path);
            let mut rng = generator(seed, &a);
            let values = uniform(
                &mut rng,
                self.rank * pair.input,
                1.0 / (pair.input as f64).sqrt(),
            );
            let b = format!("{}.lora_B.weight", pair.path);
            [
                (a, vec![self.rank, pair.input], values),
                (
                    b,
                    vec![pair.output, self.rank],
                    vec![0.0; pair.output * self.rank],
                ),
            ]
        }))
    }

    /// Lays adapters, in the order of [`LoraConfig::pairs`], over a model.
    pub(crate) fn attach(&self, model: &mut Qwen, tensors: &[Tensor]) {
        let pairs = self.pairs(&model.config);
        for (pair, tensors) in pairs.iter().zip(tensors.chunks_exact(2)) {
            let [a, b] = [&tensors[0], &tensors[1]].map(Tensor::clone);
            model.adapt(pair.layer, pair.projection, a, b, self.scale() as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_follows_the_two_papers() {
        let config = LoraConfig {
            rank: 16,
            alpha: 32.0,
            ..LoraConfig::default()
        };
        assert_eq!(config.scale(), 2.0);
        assert_eq!(
            LoraConfig {
                rslora: true,
                ..config
            }
            .scale(),
            8.0
        );
    }

    #[test]
    fn settings_out_of_range_are_named() {
        for (config, said) in [
            (
                LoraConfig {
                    rank: 0,
                    ..LoraConfig::default()
                },
                "rank: 0",
            ),
            (
                LoraConfig {
                    dropout: 0.1,
                    ..LoraConfig::default()
                },
                "dropout: 0.1 is not supported",
            ),
            (
                LoraConfig {
                    target_modules: vec!["lm_head".into()],
                    ..LoraConfig::default()
                },
                "\"lm_head\"",
            ),
        ] {
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
