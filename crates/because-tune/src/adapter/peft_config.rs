use std::path::Path;

use serde_json::{Map, Value, json};

use super::fields::{Fields, whole_number};
use crate::config::QwenConfig;
use crate::hub::HubId;
use crate::lora::{LoraConfig, LoraPair, PatternMap};

/// What becomes of a field of `adapter_config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    /// Read into a [`LoraConfig`], or allowed one value only.
    Followed,
    /// Changes nothing about what the adapter computes.
    Harmless,
    /// Another method: refused unless switched off by null, false or emptiness.
    Refused,
    /// The same, where PEFT takes an empty value for switched on.
    RefusedIfSet,
}

/// Every field of `LoraConfig` in peft 0.21.2, and what is done with it; `None` for a field of another version.
fn field(name: &str) -> Option<Field> {
    Some(match name {
        "r"
        | "lora_alpha"
        | "lora_dropout"
        | "target_modules"
        | "exclude_modules"
        | "use_rslora"
        | "use_dora"
        | "rank_pattern"
        | "alpha_pattern"
        | "layers_to_transform"
        | "layers_pattern"
        | "peft_type"
        | "task_type"
        | "bias"
        | "init_lora_weights" => Field::Followed,
        // Where the adapter comes from and how it is held.
        "auto_mapping"
        | "base_model_name_or_path"
        | "revision"
        | "peft_version"
        | "inference_mode"
        | "runtime_config" => Field::Harmless,
        // Read by ways to begin that are refused under init_lora_weights, or that are over once there are weights.
        "loftq_config" | "eva_config" | "corda_config" | "lora_ga_config" => Field::Harmless,
        // PEFT turns it off over linear layers, which is all there is here.
        "fan_in_fan_out" => Field::Harmless,
        // Speaks of embedding and output projection, of which no adapter is read.
        "ensure_weight_tying" => Field::Harmless,
        // Of no effect without megatron_config and use_qalora.
        "megatron_core" | "qalora_group_size" => Field::Harmless,
        "modules_to_save"
        | "layer_replication"
        | "target_parameters"
        | "trainable_token_indices"
        | "megatron_config"
        | "lora_bias"
        | "use_qalora" => Field::Refused,
        "alora_invocation_tokens"
        | "arrow_config"
        | "kasa_config"
        | "monteclora_config"
        | "use_bdlora"
        | "velora_config" => Field::RefusedIfSet,
        _ => return None,
    })
}

impl Field {
    fn refuses(self, value: &Value) -> bool {
        let empty = match value {
            Value::Null => return false,
            Value::Bool(flag) => !flag,
            Value::Array(values) => values.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            _ => false,
        };
        match self {
            Self::Followed | Self::Harmless => false,
            Self::Refused => !empty,
            Self::RefusedIfSet => value != false,
        }
    }
}

/// The settings as PEFT spells them. What PEFT has beyond these is at its default, and left out, so that older versions,
/// which do not know it, need not warn of it.
pub(super) fn write(base: &str, lora: &LoraConfig) -> Value {
    // PEFT has a field of its own for what follows the @ of a hub id.
    let id = HubId::parse(Path::new(base)).filter(|_| !Path::new(base).exists());
    let revision = id.as_ref().and_then(HubId::said_revision);
    let base = match &id {
        Some(id) => id.repository(),
        None => base.to_owned(),
    };
    let alphas = lora.alpha_pattern.iter();
    let alphas: Map<String, Value> = alphas
        .map(|(pattern, &alpha)| (pattern.clone(), whole_if_whole(alpha)))
        .collect();
    json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "revision": revision,
        "r": lora.rank, "lora_alpha": whole_if_whole(lora.alpha), "lora_dropout": lora.dropout,
        "rank_pattern": lora.rank_pattern, "alpha_pattern": alphas,
        "target_modules": lora.target_modules, "exclude_modules": lora.exclude_modules,
        "layers_to_transform": lora.layers_to_transform, "layers_pattern": null,
        "use_rslora": lora.rslora, "use_dora": lora.dora,
        "bias": "none", "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true,
        "modules_to_save": null, "layer_replication": null
    })
}

/// PEFT annotates `lora_alpha` as an integer and writes it so.
fn whole_if_whole(number: f64) -> Value {
    if number.fract() == 0.0 && number.abs() < 1e15 {
        json!(number as i64)
    } else {
        json!(number)
    }
}

/// Reads the settings of an adapter for a model of this shape. Every one that would change what the adapter computes is
/// either followed or refused by name.
pub(super) fn read(config: &Value, model: &QwenConfig) -> Result<LoraConfig, String> {
    let lora = parse(config)?;
    let pairs = lora.pairs(model).map_err(|error| error.to_string())?;
    check_pattern_order(config, &pairs, &lora)?;
    Ok(lora)
}

fn parse(config: &Value) -> Result<LoraConfig, String> {
    let Value::Object(fields) = config else {
        return Err("not a JSON object".into());
    };
    for (name, value) in fields {
        match field(name) {
            Some(decision) if decision.refuses(value) => {
                return Err(format!("{name}: {value} is not supported"));
            }
            None if !value.is_null() => {
                tracing::warn!(field = %name, "adapter_config.json has a field that is not known and not followed");
            }
            _ => {}
        }
    }
    let fields = Fields(fields);
    fields.only("peft_type", &["LORA"])?;
    fields.only("task_type", &["CAUSAL_LM"])?;
    fields.only("bias", &["none"])?;
    fields.plain_start()?;
    let layers_to_transform = fields.layers()?;
    if layers_to_transform.is_some() {
        fields.layers_pattern()?;
    }
    let lora = LoraConfig {
        rank: fields.rank()?,
        alpha: fields.number("lora_alpha")?.ok_or("lora_alpha: missing")?,
        dropout: fields.number("lora_dropout")?.unwrap_or(0.0),
        target_modules: fields
            .modules("target_modules")?
            .ok_or("target_modules: missing")?,
        exclude_modules: fields.modules("exclude_modules")?,
        layers_to_transform,
        rank_pattern: fields.patterns("rank_pattern", whole_number)?,
        alpha_pattern: fields.patterns("alpha_pattern", |value| value.as_f64())?,
        rslora: fields.flag("use_rslora")?,
        dora: fields.flag("use_dora")?,
    };
    lora.check().map_err(|error| error.to_string())?;
    Ok(lora)
}

/// PEFT takes the first pattern that fits in the order of the file, and writes them in that of the alphabet, which is the
/// order here. A file in another order, in which it is another one that fits first, is refused.
fn check_pattern_order(
    config: &Value,
    pairs: &[LoraPair],
    lora: &LoraConfig,
) -> Result<(), String> {
    let said = |name: &'static str| -> Result<PatternMap<f64>, String> {
        let patterns = config
            .get(name)
            .and_then(Value::as_object)
            .into_iter()
            .flatten();
        let numbers =
            patterns.filter_map(|(pattern, value)| Some((pattern.as_str(), value.as_f64()?)));
        PatternMap::new(name, numbers).map_err(|error| error.to_string())
    };
    let (ranks, alphas) = (said("rank_pattern")?, said("alpha_pattern")?);
    for pair in pairs {
        let first =
            |map: &PatternMap<f64>| map.first(&pair.path).map_err(|error| error.to_string());
        let rank = first(&ranks)?.unwrap_or(lora.rank as f64);
        let alpha = first(&alphas)?.unwrap_or(lora.alpha);
        let own = pair.scale * if lora.rslora { rank.sqrt() } else { rank };
        let name = match (
            rank == pair.rank as f64,
            (own - alpha).abs() <= 1e-9 * alpha,
        ) {
            (false, _) => "rank_pattern",
            (true, false) => "alpha_pattern",
            (true, true) => continue,
        };
        return Err(format!(
            "{name}: several patterns fit {}, and which one counts depends on their order; sort them so that the one \
             meant is first in the alphabet, or make them exclude each other",
            pair.path
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::lora::Modules;

    fn model() -> QwenConfig {
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/parity/base");
        QwenConfig::read(&base.join("config.json")).unwrap()
    }

    fn changed(name: &str, value: Value) -> Result<LoraConfig, String> {
        let mut config = write("base", &LoraConfig::default());
        config[name] = value;
        read(&config, &model())
    }

    #[test]
    fn what_is_written_is_read_back() {
        let config = LoraConfig {
            rank: 4,
            alpha: 2.5,
            dropout: 0.1,
            target_modules: Modules::Pattern(r".*\.(?:q|down)_proj".into()),
            exclude_modules: Some(["layers.0.mlp.down_proj"].into()),
            rank_pattern: [("down_proj".to_owned(), 2)].into(),
            alpha_pattern: [("q_proj".to_owned(), 0.5), ("down_proj".to_owned(), 3.0)].into(),
            rslora: true,
            dora: true,
            ..LoraConfig::default()
        };
        let layers = LoraConfig {
            layers_to_transform: Some(vec![1]),
            ..LoraConfig::default()
        };
        for config in [LoraConfig::default(), config, layers] {
            assert_eq!(read(&write("base", &config), &model()).unwrap(), config);
        }
    }

    #[test]
    fn what_is_not_implemented_is_refused_by_name() {
        for (name, value) in [
            ("modules_to_save", json!(["lm_head"])),
            ("layer_replication", json!([[0, 2]])),
            ("target_parameters", json!(["mlp.experts"])),
            ("trainable_token_indices", json!([1])),
            ("megatron_config", json!({"a": 1})),
            ("lora_bias", json!(true)),
            ("use_qalora", json!(true)),
            ("alora_invocation_tokens", json!([])),
            ("arrow_config", json!({})),
            ("kasa_config", json!({})),
            ("monteclora_config", json!({})),
            ("use_bdlora", json!({})),
            ("velora_config", json!({})),
            ("bias", json!("all")),
            ("peft_type", json!("IA3")),
            ("task_type", json!("SEQ_CLS")),
            ("init_lora_weights", json!("pissa_niter_4")),
            ("init_lora_weights", json!("mica")),
            ("target_modules", json!(null)),
            ("target_modules", json!([1])),
            ("target_modules", json!(["lm_head"])),
            ("target_modules", json!("(")),
            ("exclude_modules", json!({})),
            ("rank_pattern", json!({"q_proj": 0})),
            ("rank_pattern", json!({"q_proj": 1.5})),
            ("rank_pattern", json!(["q_proj"])),
            ("alpha_pattern", json!({"q_proj": "2"})),
            ("layers_to_transform", json!([-1])),
            ("use_dora", json!(1)),
            ("lora_dropout", json!(1.0)),
            ("r", json!(0)),
            ("lora_alpha", json!(null)),
        ] {
            let error = changed(name, value).unwrap_err();
            let name = match name {
                "r" => "rank",
                "lora_dropout" => "dropout",
                name => name,
            };
            assert!(error.contains(name), "{name}: {error}");
        }
    }

    #[test]
    fn what_changes_nothing_is_passed_over() {
        for (name, value) in [
            ("modules_to_save", json!([])),
            ("lora_bias", json!(false)),
            ("megatron_config", json!({})),
            ("fan_in_fan_out", json!(true)),
            ("eva_config", json!({"rho": 2.0})),
            ("init_lora_weights", json!("gaussian")),
            ("task_type", json!(null)),
            ("layers_pattern", json!("layers")),
            ("a_field_of_tomorrow", json!(3)),
        ] {
            assert_eq!(
                changed(name, value).unwrap(),
                LoraConfig::default(),
                "{name}"
            );
        }
    }

    #[test]
    fn modules_and_layers_are_read_as_peft_writes_them() {
        let targets = |value: Value| changed("target_modules", value).unwrap().target_modules;
        assert_eq!(
            targets(json!([
                "v_proj",
                "self_attn.q_proj",
                "v_proj",
                "q_proj",
                "lost"
            ])),
            ["q_proj", "v_proj", "lost", "self_attn.q_proj"].into()
        );
        let linear = changed("target_modules", json!("all-linear")).unwrap();
        assert_eq!(linear.pairs(&model()).unwrap().len(), 14);
        let layers = changed("layers_to_transform", json!(1)).unwrap();
        assert_eq!(layers.layers_to_transform, Some(vec![1]));
        let mut config = write("base", &layers);
        config["layers_pattern"] = json!(["h"]);
        let error = read(&config, &model()).unwrap_err();
        assert!(error.starts_with("layers_pattern: [\"h\"]"), "{error}");
    }

    #[test]
    fn patterns_whose_order_matters_are_refused_out_of_order() {
        let both = |first: (&str, f64), second: (&str, f64)| {
            let mut patterns = Map::new();
            patterns.insert(first.0.into(), json!(first.1));
            patterns.insert(second.0.into(), json!(second.1));
            changed("alpha_pattern", Value::Object(patterns))
        };
        assert!(both((".*_proj", 1.0), ("q_proj", 2.0)).is_ok());
        assert!(both(("q_proj", 2.0), ("k_proj", 1.0)).is_ok());
        let error = both(("q_proj", 2.0), (".*_proj", 1.0)).unwrap_err();
        assert!(
            error
                .starts_with("alpha_pattern: several patterns fit model.layers.0.self_attn.q_proj"),
            "{error}"
        );
        let error = changed("rank_pattern", json!({"q_proj": 2, ".*_proj": 1})).unwrap_err();
        assert!(error.starts_with("rank_pattern: several"), "{error}");
    }

    #[test]
    fn every_field_peft_writes_is_decided_on() {
        let made = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/data/adapters/plain/adapter_config.json");
        let made: Value = serde_json::from_slice(&std::fs::read(made).unwrap()).unwrap();
        let made = made.as_object().unwrap();
        assert_eq!(made.len(), 41);
        for name in made.keys() {
            assert!(field(name).is_some(), "{name}");
        }
        // What is left out of a file written here is, in PEFT's, at a default that switches nothing on.
        let written = write("base", &LoraConfig::default());
        for (name, value) in made.iter().filter(|(name, _)| written.get(name).is_none()) {
            let idle = field(name) == Some(Field::Harmless)
                || matches!(value, Value::Null | Value::Bool(false));
            assert!(idle, "{name}: {value}");
        }
        for name in written.as_object().unwrap().keys() {
            assert!(made.contains_key(name), "{name}");
        }
    }
}
