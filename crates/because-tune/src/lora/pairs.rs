use super::modules::Modules;
use super::pattern::{Matcher, PatternMap, is_end_of};
use super::{LoraConfig, fault};
use crate::config::QwenConfig;
use crate::error::{Result, TuneError};
use crate::model::PROJECTIONS;

/// The adapter of one projection, before it has values.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LoraPair {
    pub(crate) layer: usize,
    /// Index into [`PROJECTIONS`].
    pub(crate) projection: usize,
    /// `model.layers.{i}.{block}.{name}`.
    pub(crate) path: String,
    pub(crate) input: usize,
    pub(crate) output: usize,
    pub(crate) rank: usize,
    /// What the low-rank part is multiplied by.
    pub(crate) scale: f64,
}

/// What the settings say, ready to be asked about a path.
pub(super) struct Selection<'a> {
    /// `None` for every linear layer.
    targets: Option<Matcher<'a>>,
    exclude: Option<Matcher<'a>>,
    ranks: PatternMap<usize>,
    alphas: PatternMap<f64>,
}

impl LoraConfig {
    pub(super) fn selection(&self) -> Result<Selection<'_>> {
        let exclude = self
            .exclude_modules
            .as_ref()
            .filter(|modules| !modules.is_empty());
        Ok(Selection {
            targets: match self.target_modules.is_all_linear() {
                true => None,
                false => Some(Matcher::new("target_modules", &self.target_modules)?),
            },
            exclude: exclude
                .map(|modules| Matcher::new("exclude_modules", modules))
                .transpose()?,
            ranks: PatternMap::sorted("rank_pattern", &self.rank_pattern)?,
            alphas: PatternMap::sorted("alpha_pattern", &self.alpha_pattern)?,
        })
    }

    /// The adapters this asks for on a model, layer by layer, each layer's in the order of [`PROJECTIONS`].
    ///
    /// # Errors
    /// When a setting is out of its range, when a target is something other than a projection, or when none is left.
    pub(crate) fn pairs(&self, config: &QwenConfig) -> Result<Vec<LoraPair>> {
        self.check()?;
        let selection = self.selection()?;
        if selection.targets.is_some() {
            for (path, layer) in other_modules(config) {
                if self.hits(&selection, &path, layer)? {
                    return Err(not_a_target(&path));
                }
            }
        }
        let mut pairs = Vec::new();
        for (layer, projection, path) in projections(config) {
            if !self.hits(&selection, &path, Some(layer))? {
                continue;
            }
            let (input, output) = width(config, projection);
            let rank = selection.ranks.first(&path)?.unwrap_or(self.rank);
            let alpha = selection.alphas.first(&path)?.unwrap_or(self.alpha);
            pairs.push(LoraPair {
                layer,
                projection,
                path,
                input,
                output,
                rank,
                scale: self.scale_of(rank, alpha),
            });
        }
        if pairs.is_empty() {
            let known = PROJECTIONS.map(|(_, name)| name).join(", ");
            let reason = format!(
                "no projection of this model is chosen, or all are left out again; there are {known}"
            );
            return Err(fault("target_modules", reason));
        }
        Ok(pairs)
    }

    /// PEFT's rule, step by step: what is excluded is out; a whole path is in; an end of one is in where its layer is.
    fn hits(&self, selection: &Selection<'_>, path: &str, layer: Option<usize>) -> Result<bool> {
        if let Some(exclude) = &selection.exclude
            && exclude.matches(path)?
        {
            return Ok(false);
        }
        let Some(targets) = &selection.targets else {
            return Ok(true);
        };
        if let Modules::Names(names) = &self.target_modules
            && names.iter().any(|name| name == path)
        {
            return Ok(true);
        }
        let in_layer = match self.layers_to_transform.as_deref() {
            None | Some([]) => true,
            Some(layers) => layer.is_some_and(|layer| layers.contains(&layer)),
        };
        Ok(in_layer && targets.matches(path)?)
    }

    /// # Errors
    /// When a name or a pattern fits nothing in the model.
    pub(super) fn check_all_used(&self, config: &QwenConfig, pairs: &[LoraPair]) -> Result<()> {
        let all: Vec<String> = projections(config).map(|(_, _, path)| path).collect();
        let others: Vec<String> = other_modules(config).map(|(path, _)| path).collect();
        let fits = |name: &String, paths: &[String]| paths.iter().any(|path| is_end_of(name, path));
        if let Modules::Names(names) = &self.target_modules
            && let Some(name) = names.iter().find(|name| !fits(name, &all))
        {
            let known = PROJECTIONS.map(|(_, name)| name).join(", ");
            let reason = format!("{name:?} is not a projection of this model; there are {known}");
            return Err(fault("target_modules", reason));
        }
        if let Some(Modules::Names(names)) = &self.exclude_modules
            && let Some(name) = names
                .iter()
                .find(|name| !fits(name, &all) && !fits(name, &others))
        {
            return Err(fault(
                "exclude_modules",
                format!("{name:?} is not in this model"),
            ));
        }
        let layers = self.layers_to_transform.iter().flatten();
        if let Some(layer) = layers
            .into_iter()
            .find(|&&layer| layer >= config.num_hidden_layers)
        {
            let reason = format!(
                "there is no layer {layer}, only 0 to {}",
                config.num_hidden_layers - 1
            );
            return Err(fault("layers_to_transform", reason));
        }
        let selection = self.selection()?;
        let paths: Vec<&str> = pairs.iter().map(|pair| pair.path.as_str()).collect();
        let idle = |field, pattern: Option<&str>| match pattern {
            Some(pattern) => Err(fault(
                field,
                format!("{pattern:?} fits no projection that gets an adapter"),
            )),
            None => Ok(()),
        };
        idle("rank_pattern", selection.ranks.idle(&paths)?)?;
        idle("alpha_pattern", selection.alphas.idle(&paths)?)
    }
}

fn not_a_target(path: &str) -> TuneError {
    let why = match path {
        "lm_head" | "model.embed_tokens" => {
            "which gets no adapter here: where the two are tied, it would change both"
        }
        _ => "which is not a linear layer",
    };
    fault("target_modules", format!("asks for {path}, {why}"))
}

/// Layer, index and path of every projection.
fn projections(config: &QwenConfig) -> impl Iterator<Item = (usize, usize, String)> {
    (0..config.num_hidden_layers).flat_map(|layer| {
        PROJECTIONS
            .into_iter()
            .enumerate()
            .map(move |(index, (block, name))| {
                (layer, index, format!("model.layers.{layer}.{block}.{name}"))
            })
    })
}

/// Paths of all other modules of the model, as transformers names them, with their layer: a pattern must not fit them.
fn other_modules(config: &QwenConfig) -> impl Iterator<Item = (String, Option<usize>)> {
    let outer = [
        "lm_head",
        "model",
        "model.embed_tokens",
        "model.layers",
        "model.norm",
        "model.rotary_emb",
    ];
    let outer = outer.into_iter().map(|path| (path.to_owned(), None));
    let inner = (0..config.num_hidden_layers).flat_map(|layer| {
        let parts = [
            "self_attn",
            "mlp",
            "mlp.act_fn",
            "input_layernorm",
            "post_attention_layernorm",
        ];
        let path = format!("model.layers.{layer}");
        let parts = parts.map(|part| (format!("{path}.{part}"), Some(layer)));
        std::iter::once((path, None)).chain(parts)
    });
    outer.chain(inner)
}

/// Numbers into and out of a projection.
fn width(config: &QwenConfig, projection: usize) -> (usize, usize) {
    let (d, inner) = (config.hidden_size, config.intermediate_size);
    match PROJECTIONS[projection].1 {
        "k_proj" | "v_proj" => (d, config.num_key_value_heads * config.head_dim()),
        "gate_proj" | "up_proj" => (d, inner),
        "down_proj" => (inner, d),
        _ => (d, d),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::model;
    use super::*;

    /// Layer and short name of every adapter.
    fn chosen(config: &LoraConfig) -> Vec<String> {
        let pairs = config.pairs(&model()).unwrap();
        let short = |pair: &LoraPair| format!("{}.{}", pair.layer, PROJECTIONS[pair.projection].1);
        pairs.iter().map(short).collect()
    }

    #[test]
    fn the_first_pattern_that_fits_gives_rank_and_scale() {
        let config = LoraConfig {
            target_modules: ["q_proj", "down_proj"].into(),
            rank_pattern: [(r"layers\.1\..*".to_owned(), 4), ("q_proj".to_owned(), 2)].into(),
            alpha_pattern: [("mlp.down_proj".to_owned(), 4.0)].into(),
            rslora: true,
            ..LoraConfig::default()
        };
        let pairs = config.pairs(&model()).unwrap();
        let found: Vec<_> = pairs.iter().map(|pair| (pair.rank, pair.scale)).collect();
        let (q, down) = (16.0 / 2f64.sqrt(), 4.0 / 8f64.sqrt());
        assert_eq!(
            found,
            [(2, q), (8, down), (4, 8.0), (4, 2.0), (2, q), (8, down)]
        );
    }

    #[test]
    fn modules_are_chosen_as_peft_chooses_them() {
        let choose = |config: LoraConfig| chosen(&config);
        let default = LoraConfig::default;
        assert_eq!(choose(default()).len(), 21);
        let all = LoraConfig {
            target_modules: Modules::Pattern("all-linear".into()),
            exclude_modules: Some(["self_attn.q_proj", "layers.0.mlp.up_proj"].into()),
            ..default()
        };
        assert_eq!(choose(all).len(), 17);
        let listed = LoraConfig {
            target_modules: ["self_attn.o_proj", "layers.2.mlp.up_proj"].into(),
            ..default()
        };
        assert_eq!(
            choose(listed),
            ["0.o_proj", "1.o_proj", "2.o_proj", "2.up_proj"]
        );
        let pattern = LoraConfig {
            target_modules: Modules::Pattern(r"model\.layers\.(?!1)\d+\..*(q|up)_proj".into()),
            exclude_modules: Some(Modules::Pattern(r".*\.2\.mlp.*".into())),
            ..default()
        };
        assert_eq!(choose(pattern), ["0.q_proj", "0.up_proj", "2.q_proj"]);
        let layers = LoraConfig {
            target_modules: ["v_proj", "model.layers.0.self_attn.k_proj"].into(),
            layers_to_transform: Some(vec![2]),
            ..default()
        };
        assert_eq!(choose(layers), ["0.k_proj", "2.v_proj"]);
    }
}
