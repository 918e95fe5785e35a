use super::{LoraConfig, LoraPair};
use crate::config::QwenConfig;
use crate::error::Result;
use crate::model::{GROUPS, Layer, Qwen};
use crate::ops::{Lora, Magnitude, row_squares};
use crate::params::{Parameters, generator, uniform};

/// Which tensor of an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// `[r, in]`.
    A,
    /// `[out, r]`.
    B,
    /// `[out]`, with DoRA.
    Magnitude,
}

/// One tensor of the adapters, in its place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LoraTensor {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    /// Index into what [`LoraConfig::pairs`] gives.
    pub(crate) pair: usize,
    pub(crate) part: Part,
}

/// Which of [`GROUPS`] a projection is in.
fn group_of(projection: usize) -> usize {
    let found = GROUPS.iter().position(|group| group.contains(&projection));
    found.expect("every projection is in a group")
}

impl LoraConfig {
    /// Every tensor of the adapters, in the one order in which they lie in [`Parameters`]: layer by layer, and in a layer
    /// for each group of projections with the same input ([q, k, v], [o], [gate, up], [down]) all A, then all B, then all
    /// magnitudes. So the A of a group are neighbours, and one product serves them all.
    ///
    /// # Errors
    /// As [`LoraConfig::pairs`].
    pub(crate) fn layout(&self, config: &QwenConfig) -> Result<Vec<LoraTensor>> {
        let pairs: Vec<(usize, LoraPair)> = self.pairs(config)?.into_iter().enumerate().collect();
        let parts: &[Part] = match self.dora {
            true => &[Part::A, Part::B, Part::Magnitude],
            false => &[Part::A, Part::B],
        };
        let group = |pair: &LoraPair| (pair.layer, group_of(pair.projection));
        let mut tensors = Vec::with_capacity(pairs.len() * parts.len());
        for group in pairs.chunk_by(|(_, one), (_, other)| group(one) == group(other)) {
            for &part in parts {
                tensors.extend(group.iter().map(|(index, pair)| {
                    let (name, shape) = match part {
                        Part::A => ("lora_A.weight", vec![pair.rank, pair.input]),
                        Part::B => ("lora_B.weight", vec![pair.output, pair.rank]),
                        Part::Magnitude => ("lora_magnitude_vector", vec![pair.output]),
                    };
                    LoraTensor {
                        name: format!("{}.{name}", pair.path),
                        shape,
                        pair: *index,
                        part,
                    }
                }));
            }
        }
        Ok(tensors)
    }

    /// Adapters at their start: A from `U(-1/sqrt(in), 1/sqrt(in))` (Kaiming's uniform with `a = sqrt 5`), B zero, the
    /// magnitudes the lengths of the rows of W, so that the model answers as it did before.
    ///
    /// `row_norms` gives those of the weight of a projection by its path; it is asked with `dora` only.
    ///
    /// # Errors
    /// As [`LoraConfig::pairs`], and when a name or a pattern fits nothing in the model: PEFT would take it in silence, but
    /// who trains meant something by it.
    pub(crate) fn initial(
        &self,
        config: &QwenConfig,
        seed: u64,
        row_norms: &dyn Fn(&str) -> Result<Vec<f32>>,
    ) -> Result<Parameters> {
        let pairs = self.pairs(config)?;
        self.check_all_used(config, &pairs)?;
        let tensors = self.layout(config)?.into_iter().map(|tensor| {
            let (pair, count) = (&pairs[tensor.pair], tensor.shape.iter().product());
            let values = match tensor.part {
                Part::A => {
                    let mut rng = generator(seed, &tensor.name);
                    uniform(&mut rng, count, 1.0 / (pair.input as f64).sqrt())
                }
                Part::B => vec![0.0; count],
                Part::Magnitude => row_norms(&pair.path)?,
            };
            Ok((tensor.name, tensor.shape, values))
        });
        Parameters::new(tensors.collect::<Result<Vec<_>>>()?)
    }

    /// Lays adapters over a model; with gradients if they are to learn.
    ///
    /// # Errors
    /// As [`LoraConfig::pairs`].
    pub(crate) fn attach(
        &self,
        model: &mut Qwen,
        parameters: &Parameters,
        learns: bool,
    ) -> Result<()> {
        let Qwen { config, layers, .. } = model;
        self.attach_to(config, layers, parameters, learns)
    }

    /// The same over the layers of a model of this shape.
    ///
    /// # Errors
    /// As [`LoraConfig::pairs`].
    pub(crate) fn attach_to(
        &self,
        config: &QwenConfig,
        layers: &mut [Layer],
        parameters: &Parameters,
        learns: bool,
    ) -> Result<()> {
        let pairs = self.pairs(config)?;
        let get = |pair: &LoraPair, part: &str| {
            let name = format!("{}.{part}", pair.path);
            let found = parameters.get(&name, learns);
            found.unwrap_or_else(|| unreachable!("{name} was checked to be present"))
        };
        let group = |pair: &LoraPair| (pair.layer, group_of(pair.projection));
        for pairs in pairs.chunk_by(|one, other| group(one) == group(other)) {
            let (layer, index) = group(&pairs[0]);
            let projections = &mut layers[layer].groups[index];
            let ranks = pairs.iter().map(|pair| pair.rank).sum();
            let first = format!("{}.lora_A.weight", pairs[0].path);
            projections.a = parameters.span(&first, ranks, learns)?;
            let mut row = 0;
            for pair in pairs {
                let place = GROUPS[index].iter().position(|&one| one == pair.projection);
                let place = place.expect("a group was found by its member");
                let projection = &mut projections.all[place];
                let magnitude = match self.dora {
                    true => Some(Magnitude {
                        m: get(pair, "lora_magnitude_vector"),
                        squares: row_squares(&projection.weight)?,
                    }),
                    false => None,
                };
                projection.lora = Some(Lora {
                    rows: row..row + pair.rank,
                    b: get(pair, "lora_B.weight"),
                    scale: pair.scale as f32,
                    magnitude,
                });
                row += pair.rank;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Modules;
    use super::super::tests::model;
    use super::*;

    fn no_norms(_: &str) -> Result<Vec<f32>> {
        unreachable!("only DoRA asks for norms")
    }

    #[test]
    fn the_a_of_projections_with_one_input_are_neighbours() {
        let config = LoraConfig {
            dora: true,
            target_modules: ["v_proj", "q_proj", "o_proj", "up_proj", "gate_proj"].into(),
            layers_to_transform: Some(vec![1]),
            ..LoraConfig::default()
        };
        let layout = config.layout(&model()).unwrap();
        let short = |tensor: &LoraTensor| tensor.name.rsplit("_proj").next().map(str::to_owned);
        let parts: Vec<_> = layout
            .iter()
            .map(|tensor| (tensor.pair, tensor.part))
            .collect();
        let part =
            |part, pairs: &[usize]| pairs.iter().map(|&pair| (pair, part)).collect::<Vec<_>>();
        let expected = [[0, 1].as_slice(), &[2], &[3, 4]].map(|group| {
            [Part::A, Part::B, Part::Magnitude]
                .map(|one| part(one, group))
                .concat()
        });
        assert_eq!(parts, expected.concat());
        assert_eq!(short(&layout[0]).unwrap(), ".lora_A.weight");
        assert_eq!(
            layout[4].name,
            "model.layers.1.self_attn.q_proj.lora_magnitude_vector"
        );
        assert_eq!(
            (&layout[3].shape, &layout[4].shape),
            (&vec![16, 8], &vec![32])
        );
        let parameters = config
            .initial(&model(), 1, &|path| {
                let pair = config.pairs(&model()).unwrap();
                Ok(vec![
                    1.5;
                    pair.iter()
                        .find(|pair| pair.path == path)
                        .unwrap()
                        .output
                ])
            })
            .unwrap();
        assert!(
            parameters
                .iter()
                .map(|(name, _)| name)
                .eq(layout.iter().map(|tensor| &tensor.name))
        );
    }

    #[test]
    fn settings_that_cannot_be_followed_are_named() {
        let names = |name: &str| Modules::Names(vec![name.into()]);
        let pattern = |pattern: &str| Modules::Pattern(pattern.into());
        type Change = fn(&mut LoraConfig);
        let faults: [(Change, &str); 8] = [
            (|config| config.rank = 0, "rank: 0"),
            (|config| config.dropout = 1.0, "dropout: 1 is not"),
            (|config| config.dropout = f64::NAN, "dropout: NaN"),
            (|config| config.alpha = -1.0, "alpha: -1"),
            (
                |config| config.rank_pattern = [("q_proj".into(), 0)].into(),
                "rank_pattern: 0",
            ),
            (
                |config| config.alpha_pattern = [("(".into(), 1.0)].into(),
                "alpha_pattern: pattern \"(\"",
            ),
            (
                |config| config.rank_pattern = [("q".into(), 1)].into(),
                "rank_pattern: \"q\" fits no",
            ),
            (
                |config| config.layers_to_transform = Some(vec![0, 3]),
                "no layer 3, only 0 to 2",
            ),
        ];
        let fault = |config: &LoraConfig| {
            config
                .initial(&model(), 0, &no_norms)
                .unwrap_err()
                .to_string()
        };
        for (change, said) in faults {
            let mut config = LoraConfig::default();
            change(&mut config);
            let error = fault(&config);
            assert!(error.contains(said), "{said}: {error}");
        }
        for (targets, said) in [
            (names("lm_head"), "asks for lm_head"),
            (names("embed_tokens"), "asks for model.embed_tokens"),
            (pattern(".*"), "asks for lm_head"),
            (
                pattern(".*attn.*"),
                "asks for model.layers.0.self_attn, which is not",
            ),
            (pattern("q_proj"), "no projection of this model is chosen"),
            (names("proj"), "no projection of this model is chosen"),
            (
                Modules::Names(vec!["q_proj".into(), "c_attn".into()]),
                "\"c_attn\" is not a projection",
            ),
            (Modules::Names(vec![]), "names no projection"),
        ] {
            let config = LoraConfig {
                target_modules: targets,
                ..LoraConfig::default()
            };
            let error = fault(&config);
            assert!(
                error.starts_with("target_modules: ") && error.contains(said),
                "{error}"
            );
        }
        let both = LoraConfig {
            target_modules: pattern(r".*\.q_proj"),
            layers_to_transform: Some(vec![0]),
            ..LoraConfig::default()
        };
        assert!(fault(&both).contains("does not go with a pattern"));
        let excluded = LoraConfig {
            exclude_modules: Some(names("q")),
            ..LoraConfig::default()
        };
        assert!(fault(&excluded).contains("exclude_modules: \"q\" is not in this model"));
    }
}
