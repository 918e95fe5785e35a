pub(crate) mod layout;
mod modules;
mod pairs;
mod pattern;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use self::modules::Modules;
pub(crate) use self::pairs::LoraPair;
pub(crate) use self::pattern::PatternMap;
use crate::config::QwenConfig;
use crate::error::{Result, TuneError};
use crate::model::PROJECTIONS;

/// How the low-rank adapters look (Hu et al. 2021, arXiv 2106.09685).
///
/// A projection becomes `y = x W^T + bias + s (x A^T) B^T` with A `[r, in]` drawn from the seed, B `[out, r]` zero at the
/// start, and `s = alpha / r`, or `alpha / sqrt(r)` with `rslora` (arXiv 2312.03732). With `dora` (arXiv 2402.09353) the
/// rows of `W + s B A` are scaled to lengths `m` `[out]` of their own, which learn too: `y = x V^T + bias`,
/// `V = diag(m / |W + s B A|) (W + s B A)`.
///
/// What other programs make of the adapter that comes out:
///
/// | setting | PEFT, and what builds on it (LLaMA-Factory, axolotl) | vLLM |
/// |---|---|---|
/// | `rank`, `alpha`, `rslora`, any choice of modules and layers | yes | yes, up to its `--max-lora-rank` (16 unless set) |
/// | `rank_pattern`, `alpha_pattern` | yes | **not read**: it scales every layer by the one `alpha / rank` and does not say so, so serve the merged model |
/// | `dora` | yes | refused; serve the merged model |
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// `r`: 8, the rank of the LoRA paper's language experiments and of PEFT's default.
    pub rank: usize,
    /// 16, twice the rank, as common recipes have it.
    pub alpha: f64,
    /// The share of inputs dropped on the way into A while training, from 0 to below 1; 0 unless said otherwise.
    pub dropout: f64,
    /// Which projections get an adapter; all seven unless said otherwise.
    pub target_modules: Modules,
    /// Which of them get none after all.
    pub exclude_modules: Option<Modules>,
    /// The layers that get adapters, counted from zero; all unless said. Goes with names, not with a pattern, and a target
    /// named by its whole path is one whatever its layer.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Other ranks for some projections: a regular expression in Python's syntax for the end of the path, from a dot on,
    /// `down_proj` or `layers\.[0-3]\.mlp\..*`. Where several fit, the first in the order of the alphabet counts.
    pub rank_pattern: BTreeMap<String, usize>,
    /// Other values of `alpha`, in the same way.
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Scale by `alpha / sqrt(r)` in place of `alpha / r`.
    pub rslora: bool,
    /// Learn the length of each row apart from its direction.
    pub dora: bool,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 16.0,
            dropout: 0.0,
            target_modules: PROJECTIONS.map(|(_, name)| name).into(),
            exclude_modules: None,
            layers_to_transform: None,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            rslora: false,
            dora: false,
        }
    }
}

impl LoraConfig {
    /// What the low-rank part is multiplied by where no pattern says otherwise.
    #[must_use]
    pub fn scale(&self) -> f64 {
        self.scale_of(self.rank, self.alpha)
    }

    fn scale_of(&self, rank: usize, alpha: f64) -> f64 {
        let rank = rank as f64;
        alpha / if self.rslora { rank.sqrt() } else { rank }
    }

    /// # Errors
    /// Names the first setting that is out of its range, whatever the model.
    pub(crate) fn check(&self) -> Result<()> {
        let ranks = self
            .rank_pattern
            .values()
            .map(|&rank| ("rank_pattern", rank));
        for (field, rank) in ranks.chain([("rank", self.rank)]) {
            if !(1..=4096).contains(&rank) {
                return Err(fault(field, format!("{rank} is not between 1 and 4096")));
            }
        }
        let alphas = self
            .alpha_pattern
            .values()
            .map(|&alpha| ("alpha_pattern", alpha));
        for (field, alpha) in alphas.chain([("alpha", self.alpha)]) {
            if !(alpha.is_finite() && alpha > 0.0) {
                return Err(fault(field, format!("{alpha} is not a positive number")));
            }
        }
        if !(0.0..1.0).contains(&self.dropout) {
            let reason = format!("{} is not from 0 to below 1", self.dropout);
            return Err(fault("dropout", reason));
        }
        if self.target_modules.is_empty() {
            return Err(fault("target_modules", "names no projection"));
        }
        if self.layers_to_transform.is_some() && matches!(self.target_modules, Modules::Pattern(_))
        {
            let reason =
                "does not go with a pattern in target_modules, which can name the layers itself";
            return Err(fault("layers_to_transform", reason));
        }
        self.selection().map(drop)
    }

    /// Whether both make the same adapters of a model, however they say it.
    ///
    /// # Errors
    /// As [`LoraConfig::pairs`].
    pub(crate) fn agrees_with(&self, other: &Self, config: &QwenConfig) -> Result<bool> {
        let (own, others) = (self.pairs(config)?, other.pairs(config)?);
        // A number that went through a text may come back a last place off.
        let close = |one: f64, other: f64| (one - other).abs() <= 1e-12 * one.abs();
        let same = |(one, other): (&LoraPair, &LoraPair)| {
            (&one.path, one.rank) == (&other.path, other.rank) && close(one.scale, other.scale)
        };
        Ok(self.dora == other.dora
            && close(self.dropout, other.dropout)
            && own.len() == others.len()
            && own.iter().zip(&others).all(same))
    }
}

fn fault(field: &'static str, reason: impl Into<String>) -> TuneError {
    TuneError::Setting {
        field,
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Three layers, 4 heads, 2 of them with keys and values.
    pub(super) fn model() -> QwenConfig {
        let config = r#"{"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}"#;
        QwenConfig::parse(config, Path::new("config.json")).unwrap()
    }

    #[test]
    fn the_scale_follows_the_two_papers() {
        let config = LoraConfig {
            rank: 16,
            alpha: 32.0,
            ..LoraConfig::default()
        };
        assert_eq!(config.scale(), 2.0);
        let stable = LoraConfig {
            rslora: true,
            ..config
        };
        assert_eq!(stable.scale(), 8.0);
    }

    #[test]
    fn two_ways_to_say_the_same_agree() {
        let (default, model) = (LoraConfig::default(), model());
        let linear = LoraConfig {
            target_modules: Modules::Pattern("all-linear".into()),
            rank_pattern: [("q_proj".to_owned(), 8)].into(),
            ..default.clone()
        };
        assert!(default.agrees_with(&linear, &model).unwrap());
        let changes: [fn(&mut LoraConfig); 4] = [
            |config| config.dora = true,
            |config| config.rslora = true,
            |config| config.dropout = 0.1,
            |config| config.layers_to_transform = Some(vec![0]),
        ];
        for change in changes {
            let mut other = default.clone();
            change(&mut other);
            assert!(!default.agrees_with(&other, &model).unwrap());
        }
    }

    #[test]
    fn settings_go_through_a_file() {
        let config: LoraConfig = serde_json::from_str(
            r#"{"target_modules": ".*_proj", "exclude_modules": ["q_proj"], "rank_pattern": {"k_proj": 2}}"#,
        )
        .unwrap();
        assert_eq!(config.target_modules, Modules::Pattern(".*_proj".into()));
        assert_eq!(config.exclude_modules, Some(["q_proj"].into()));
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<LoraConfig>(&text).unwrap(), config);
    }
}
