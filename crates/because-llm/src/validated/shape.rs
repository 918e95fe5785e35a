//! Whether a text holds JSON that fits a schema.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use jsonschema::Validator;
use serde_json::Value;

use crate::text::excerpt;
use crate::{ChatError, JsonSchema, Result};

/// Compiled schemas. Some stages name the candidates of a call in its schema, so there is a bound.
#[derive(Debug, Default)]
pub(super) struct Validators(Mutex<Compiled>);

#[derive(Debug, Default)]
struct Compiled {
    /// Most stages ask for one form only, and to compare costs less than to hash.
    last: Option<(Value, Arc<Validator>)>,
    all: HashMap<blake3::Hash, Arc<Validator>>,
}

impl Validators {
    pub(super) fn compile(&self, schema: &JsonSchema) -> Result<Arc<Validator>> {
        let mut compiled = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &compiled.last {
            Some((last, validator)) if *last == schema.schema => return Ok(Arc::clone(validator)),
            _ => {}
        }
        let validator = compiled.of(schema)?;
        compiled.last = Some((schema.schema.clone(), Arc::clone(&validator)));
        Ok(validator)
    }
}

impl Compiled {
    fn of(&mut self, schema: &JsonSchema) -> Result<Arc<Validator>> {
        const MOST: usize = 64;
        let key = blake3::hash(schema.schema.to_string().as_bytes());
        if let Some(validator) = self.all.get(&key) {
            return Ok(Arc::clone(validator));
        }
        let validator =
            jsonschema::validator_for(&schema.schema).map_err(|error| ChatError::Permanent {
                status: None,
                message: format!(
                    "schema {:?} is not a JSON Schema: {}",
                    schema.name,
                    excerpt(&error.to_string(), 300)
                ),
            })?;
        if self.all.len() >= MOST {
            self.all.clear();
        }
        let validator = Arc::new(validator);
        self.all.insert(key, Arc::clone(&validator));
        Ok(validator)
    }
}

/// The first JSON value in the answer that fits, or what is wrong with the first one there is.
pub(super) fn fitting(answer: &str, validator: &Validator) -> Result<Value, String> {
    const MOST_TRIED: usize = 32;
    let mut first_problem = None;
    for value in candidates(answer).take(MOST_TRIED) {
        let Some(error) = validator.iter_errors(&value).next() else {
            return Ok(value);
        };
        let place = match error.instance_path().to_string() {
            place if place.is_empty() => "at the top".to_owned(),
            place => format!("at {place}"),
        };
        first_problem
            .get_or_insert_with(|| format!("{place}: {}", excerpt(&error.to_string(), 300)));
    }
    Err(
        first_problem.unwrap_or_else(|| match serde_json::from_str::<Value>(answer) {
            Err(error) if answer.starts_with('{') => format!("not JSON: {error}"),
            _ => "there is no JSON object in the answer".into(),
        }),
    )
}

/// The answer as a whole, if it is JSON; else the objects in it, from left to right.
fn candidates(answer: &str) -> Box<dyn Iterator<Item = Value> + '_> {
    if let Ok(value) = serde_json::from_str(answer) {
        return Box::new(std::iter::once(value));
    }
    let mut rest = answer;
    Box::new(std::iter::from_fn(move || {
        loop {
            rest = &rest[rest.find('{')?..];
            let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
            if let Some(Ok(value)) = values.next() {
                rest = &rest[values.byte_offset()..];
                return Some(value);
            }
            rest = &rest[1..];
        }
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn endless_braces_end() {
        let validator =
            jsonschema::validator_for(&json!({"type": "object", "required": ["a"]})).unwrap();
        for text in [
            "{".repeat(200_000),
            "{\"a\":".repeat(40_000),
            "{}".repeat(100_000),
        ] {
            assert!(fitting(&text, &validator).is_err());
        }
    }
}
