use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use because_core::jsonl::write_atomic;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use crate::config::QwenConfig;
use crate::error::{Result, TuneError};
use crate::hub::HubId;
use crate::lora::LoraConfig;
use crate::model::PROJECTIONS;
use crate::ops::values;
use crate::params::Parameters;
use crate::weights::to_f32;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// What PEFT puts before the path of a module: its own wrapper and the one of the task.
const PREFIX: &str = "base_model.model.";

/// Writes a folder that PEFT, vLLM and [`read`] load: `adapter_config.json` and `adapter_model.safetensors`, each whole or
/// not at all, the configuration last.
pub(crate) fn write(
    folder: &Path,
    base: &str,
    lora: &LoraConfig,
    parameters: &Parameters,
) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|error| TuneError::io("create", folder, error))?;
    let tensors = parameters
        .iter()
        .map(|(name, variable)| {
            Ok((
                format!("{PREFIX}{name}"),
                variable.dims().to_vec(),
                values(variable)?,
            ))
        })
        .collect::<Result<Vec<_>>>()?;
    write_tensors(&folder.join(WEIGHTS), &tensors, [("format", "pt")])?;
    let config =
        serde_json::to_vec_pretty(&peft_config(base, lora)).expect("a JSON value is serialisable");
    write_atomic(&folder.join(CONFIG), |out| out.write_all(&config))?;
    Ok(())
}

/// Writes a safetensors file of f32 tensors, whole or not at all; the same tensors give the same bytes.
pub(crate) fn write_tensors<'a>(
    path: &Path,
    tensors: &[(String, Vec<usize>, Vec<f32>)],
    metadata: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<()> {
    let fault = |error: safetensors::SafeTensorError| TuneError::Weights {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, _, values)| {
            values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect()
        })
        .collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, shape, _), bytes)| {
            Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?))
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(fault)?;
    let metadata = metadata
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let file = safetensors::serialize(views, Some(metadata)).map_err(fault)?;
    write_atomic(path, |out| out.write_all(&file))?;
    Ok(())
}

fn peft_config(base: &str, lora: &LoraConfig) -> Value {
    // PEFT has a field of its own for what follows the @ of a hub id.
    let id = HubId::parse(Path::new(base)).filter(|_| !Path::new(base).exists());
    let revision = id.as_ref().and_then(HubId::said_revision);
    let base = match &id {
        Some(id) => id.repository(),
        None => base.to_owned(),
    };
    json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base,
        "r": lora.rank, "lora_alpha": whole_if_whole(lora.alpha), "lora_dropout": lora.dropout,
        "target_modules": lora.target_modules, "bias": "none", "fan_in_fan_out": false,
        "use_rslora": lora.rslora, "use_dora": false, "inference_mode": true, "init_lora_weights": true,
        "modules_to_save": null, "exclude_modules": null, "layers_to_transform": null, "layers_pattern": null,
        "layer_replication": null, "rank_pattern": {}, "alpha_pattern": {}, "revision": revision
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

/// Reads an adapter for a model of this shape. Every setting that would change what the adapter computes is either
/// followed or refused by name, and the file's keys must be exactly the ones the settings call for.
pub(crate) fn read(folder: &Path, model: &QwenConfig) -> Result<(LoraConfig, Parameters)> {
    let lora = read_config(&folder.join(CONFIG))?;
    let path = folder.join(WEIGHTS);
    let tensors = read_tensors(&path)?;
    let parameters =
        parameters(&lora, model, tensors).map_err(|reason| TuneError::Adapter { path, reason })?;
    Ok((lora, Parameters::new(parameters)?))
}

/// Shape and values by name.
pub(crate) type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// All tensors of a safetensors file, as f32.
pub(crate) fn read_tensors(path: &Path) -> Result<Tensors> {
    let fault = |reason: String| TuneError::Adapter {
        path: path.to_owned(),
        reason,
    };
    let bytes = std::fs::read(path).map_err(|error| TuneError::io("read", path, error))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| fault(error.to_string()))?;
    file.tensors()
        .into_iter()
        .map(|(name, view)| {
            let values = to_f32(&view)
                .ok_or_else(|| fault(format!("tensor {name} is {:?}", view.dtype())))?;
            Ok((name, (view.shape().to_vec(), values)))
        })
        .collect()
}

type Named = (String, Vec<usize>, Vec<f32>);

fn parameters(
    lora: &LoraConfig,
    model: &QwenConfig,
    mut tensors: Tensors,
) -> Result<Vec<Named>, String> {
    let mut found = Vec::new();
    for pair in lora.pairs(model) {
        for (part, shape) in [
            ("lora_A", [lora.rank, pair.input]),
            ("lora_B", [pair.output, lora.rank]),
        ] {
            let name = format!("{}.{part}.weight", pair.path);
            let (is, values) = tensors
                .remove(&format!("{PREFIX}{name}"))
                .ok_or_else(|| format!("tensor {PREFIX}{name} is missing"))?;
            if is != shape {
                return Err(format!(
                    "tensor {PREFIX}{name} has shape {is:?}, base and settings ask for {shape:?}"
                ));
            }
            found.push((name, is, values));
        }
    }
    match tensors.keys().next() {
        Some(name) => Err(format!("tensor {name} has no place in the base")),
        None => Ok(found),
    }
}

fn read_config(path: &Path) -> Result<LoraConfig> {
    let fault = |reason: String| TuneError::Adapter {
        path: path.to_owned(),
        reason,
    };
    let text = std::fs::read(path).map_err(|error| TuneError::io("read", path, error))?;
    let config: Value = serde_json::from_slice(&text).map_err(|error| fault(error.to_string()))?;
    parse_config(&config).map_err(fault)
}

fn parse_config(config: &Value) -> Result<LoraConfig, String> {
    let get = |name: &str| config.get(name).filter(|value| !value.is_null());
    if let Some(kind) = get("peft_type").filter(|&kind| kind != "LORA") {
        return Err(format!("peft_type: {kind} is not supported, only \"LORA\""));
    }
    if let Some(bias) = get("bias").filter(|&bias| bias != "none") {
        return Err(format!("bias: {bias} is not supported, only \"none\""));
    }
    let empty = |value: &Value| match value {
        Value::Bool(flag) => !flag,
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    };
    const REFUSED: [&str; 19] = [
        "use_dora",
        "use_qalora",
        "modules_to_save",
        "rank_pattern",
        "alpha_pattern",
        "layer_replication",
        "fan_in_fan_out",
        "layers_to_transform",
        "exclude_modules",
        "target_parameters",
        "trainable_token_indices",
        "lora_bias",
        "megatron_config",
        "use_bdlora",
        "alora_invocation_tokens",
        "arrow_config",
        "kasa_config",
        "monteclora_config",
        "velora_config",
    ];
    if let Some(name) = REFUSED
        .into_iter()
        .find(|name| get(name).is_some_and(|value| !empty(value)))
    {
        return Err(format!("{name}: {} is not supported", config[name]));
    }
    let rank = get("r")
        .and_then(Value::as_u64)
        .ok_or("r: missing or not a number")?;
    let alpha = get("lora_alpha")
        .and_then(Value::as_f64)
        .ok_or("lora_alpha: missing or not a number")?;
    let lora = LoraConfig {
        rank: usize::try_from(rank).map_err(|error| format!("r: {error}"))?,
        alpha,
        // Dropout acts while its author trains; what is read here is past that.
        dropout: 0.0,
        target_modules: targets(get("target_modules"))?,
        rslora: get("use_rslora").and_then(Value::as_bool).unwrap_or(false),
    };
    lora.check().map_err(|error| error.to_string())?;
    Ok(lora)
}

/// A list of suffixes, or `"all-linear"`; sorted as the projections are, since PEFT writes a set.
fn targets(value: Option<&Value>) -> Result<Vec<String>, String> {
    let all = || PROJECTIONS.iter().map(|&(_, name)| name.to_owned());
    let names: BTreeSet<&str> = match value {
        Some(Value::String(name)) if name == "all-linear" => return Ok(all().collect()),
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        other => {
            let said = other.map_or_else(|| "missing".into(), Value::to_string);
            return Err(format!(
                "target_modules: {said}: a list of names or \"all-linear\" is read, no pattern"
            ));
        }
    };
    // A name may come with the block before it: `self_attn.q_proj`.
    let short = |name: &str| name.rsplit('.').next().unwrap_or(name).to_owned();
    let named: BTreeSet<String> = names.into_iter().map(short).collect();
    match named
        .iter()
        .find(|name| !all().any(|known| known == **name))
    {
        Some(name) => Err(format!(
            "target_modules: {name:?} is not a projection of this model"
        )),
        None => Ok(all().filter(|name| named.contains(name)).collect()),
    }
}

/// Whether a folder looks like an adapter, for messages.
pub(crate) fn check_folder(folder: &Path) -> Result<PathBuf> {
    match folder.join(CONFIG).is_file() && folder.join(WEIGHTS).is_file() {
        true => Ok(folder.to_owned()),
        false => Err(TuneError::Adapter {
            path: folder.to_owned(),
            reason: format!("no adapter here; a folder with {CONFIG} and {WEIGHTS} is asked for"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_implemented_is_refused_by_name() {
        let good = peft_config("base", &LoraConfig::default());
        assert_eq!(parse_config(&good).unwrap(), LoraConfig::default());
        for (name, value) in [
            ("use_dora", json!(true)),
            ("modules_to_save", json!(["lm_head"])),
            ("bias", json!("all")),
            ("rank_pattern", json!({"q_proj": 4})),
            ("alpha_pattern", json!({"q_proj": 4})),
            ("layer_replication", json!([[0, 2]])),
            ("peft_type", json!("IA3")),
            ("target_modules", json!(".*_proj")),
            ("target_modules", json!(["lm_head"])),
            ("r", json!(0)),
        ] {
            let mut config = good.clone();
            config[name] = value;
            let error = parse_config(&config).unwrap_err();
            assert!(
                error.contains(if name == "r" { "rank" } else { name }),
                "{name}: {error}"
            );
        }
    }

    #[test]
    fn targets_are_read_as_peft_writes_them() {
        let read = |value: Value| targets(Some(&value)).unwrap();
        assert_eq!(
            read(json!(["v_proj", "self_attn.q_proj"])),
            ["q_proj", "v_proj"]
        );
        assert_eq!(read(json!("all-linear")).len(), 7);
    }
}
