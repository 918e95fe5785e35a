use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::lora::Modules;
use crate::model::PROJECTIONS;

/// The fields of `adapter_config.json`; each reader's error begins with the field's name.
pub(super) struct Fields<'a>(pub(super) &'a Map<String, Value>);

impl<'a> Fields<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    pub(super) fn only(&self, name: &str, allowed: &[&str]) -> Result<(), String> {
        match self.get(name) {
            Some(value) if !allowed.iter().any(|one| value == one) => Err(format!(
                "{name}: {value} is not supported, only {allowed:?}"
            )),
            _ => Ok(()),
        }
    }

    /// Some ways to begin take something out of the base's weights, each time an adapter is laid over it, or freeze a part.
    pub(super) fn plain_start(&self) -> Result<(), String> {
        match self.get("init_lora_weights") {
            None | Some(Value::Bool(_)) => Ok(()),
            Some(Value::String(name))
                if ["gaussian", "eva", "orthogonal"].contains(&name.as_str()) =>
            {
                Ok(())
            }
            Some(other) => Err(format!(
                "init_lora_weights: {other} is not supported: with it the adapter does not go with the base as it is; save \
                 it from PEFT as a plain one (path_initial_model_for_weight_conversion)"
            )),
        }
    }

    pub(super) fn rank(&self) -> Result<usize, String> {
        let value = self.get("r").ok_or("r: missing")?;
        whole_number(value).ok_or_else(|| format!("r: {value} is not a whole number"))
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<f64>, String> {
        self.get(name)
            .map(|value| {
                value
                    .as_f64()
                    .ok_or_else(|| format!("{name}: {value} is not a number"))
            })
            .transpose()
    }

    pub(super) fn flag(&self, name: &str) -> Result<bool, String> {
        match self.get(name) {
            None => Ok(false),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| format!("{name}: {value} is neither true nor false")),
        }
    }

    /// Names in the order of the projections, and then of the alphabet: PEFT writes a set, in any order.
    pub(super) fn modules(&self, name: &str) -> Result<Option<Modules>, String> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let modules: Modules = serde_json::from_value(value.clone())
            .map_err(|_| format!("{name}: {value} is neither a list of names nor a pattern"))?;
        Ok(Some(match modules {
            Modules::Names(mut names) => {
                let place = |name: &str| PROJECTIONS.iter().position(|&(_, known)| known == name);
                names.sort_by_cached_key(|name| {
                    (place(name).unwrap_or(PROJECTIONS.len()), name.clone())
                });
                names.dedup();
                Modules::Names(names)
            }
            pattern => pattern,
        }))
    }

    pub(super) fn layers(&self) -> Result<Option<Vec<usize>>, String> {
        let Some(value) = self.get("layers_to_transform") else {
            return Ok(None);
        };
        let layers = match value {
            Value::Array(layers) => layers.iter().map(whole_number).collect(),
            one => whole_number(one).map(|layer| vec![layer]),
        };
        match layers {
            Some(layers) => Ok(Some(layers)),
            None => Err(format!(
                "layers_to_transform: {value} is neither a layer nor a list of them"
            )),
        }
    }

    /// The name of the list of layers, of which a model of this kind has one.
    pub(super) fn layers_pattern(&self) -> Result<(), String> {
        let all_layers = |value: &Value| value == "layers" || value == "";
        let fine = match self.get("layers_pattern") {
            None => true,
            Some(Value::Array(patterns)) => patterns.iter().all(all_layers),
            Some(pattern) => all_layers(pattern),
        };
        match fine {
            true => Ok(()),
            false => Err(format!(
                "layers_pattern: {} is not supported, only \"layers\"",
                self.0["layers_pattern"]
            )),
        }
    }

    pub(super) fn patterns<T>(
        &self,
        name: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<BTreeMap<String, T>, String> {
        let Some(value) = self.get(name) else {
            return Ok(BTreeMap::new());
        };
        let fields = value
            .as_object()
            .ok_or_else(|| format!("{name}: {value} is not a JSON object"))?;
        let entries = fields.iter().map(|(pattern, value)| match read(value) {
            Some(number) => Ok((pattern.clone(), number)),
            None => Err(format!(
                "{name}: {pattern:?}: {value} is not a fitting number"
            )),
        });
        entries.collect()
    }
}

pub(super) fn whole_number(value: &Value) -> Option<usize> {
    value
        .as_u64()
        .and_then(|number| usize::try_from(number).ok())
}
