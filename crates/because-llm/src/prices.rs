use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Usage;

/// What a model asks for a million tokens, in US dollars. It is the user's own data: no price stands in this crate.
///
/// ```
/// use because_llm::{Price, Usage};
///
/// let price = Price::per_million(0.15, 0.60)?.cached_input(0.075)?;
/// let usage = Usage { prompt_tokens: 1000, cached_tokens: 400, completion_tokens: 100, ..Usage::default() };
/// assert_eq!(price.cost(&usage), 600 * 150 + 400 * 75 + 100 * 600, "in nano-dollars");
/// # Ok::<(), because_llm::PriceError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Price {
    written: Written,
    /// Pico-dollars a token: a price with six decimals a million is a whole number here.
    input: u64,
    cached_input: u64,
    output: u64,
}

/// A price as a person writes it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    input: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cached_input: Option<f64>,
    output: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    batch_discount: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    as_of: Option<String>,
}

/// A price that cannot be one, or that nobody has given.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PriceError {
    /// A number that no price is.
    #[error("{field} = {value}: a price is 0 to 100000 dollars a million tokens")]
    Absurd {
        /// Which number.
        field: &'static str,
        /// What was given.
        value: f64,
    },
    /// A discount that is not a share.
    #[error("batch_discount = {0}: it is the share taken off, from 0 to 1")]
    Discount(f64),
    /// A budget in dollars was asked for and nobody has said what the model costs.
    #[error(
        "a budget in dollars needs the price of {model:?}; add to because.toml, in dollars a million tokens:\n\
         [llm.prices.{model:?}]\ninput = ...\noutput = ...\n(a model that costs nothing has 0 in both)"
    )]
    Unknown {
        /// The model.
        model: String,
    },
    /// A file of prices that cannot be read.
    #[error("{file}: {message}")]
    File {
        /// The file.
        file: String,
        /// What is wrong with it.
        message: String,
    },
}

impl Price {
    /// Dollars for a million tokens of prompt, and of answer (reasoning included). Cached tokens of a prompt cost as much as
    /// the others until [`cached_input`](Self::cached_input) says less.
    ///
    /// # Errors
    /// [`PriceError::Absurd`] for what is negative, not a number, or more than 100,000.
    pub fn per_million(input: f64, output: f64) -> Result<Self, PriceError> {
        Written {
            input,
            output,
            ..Written::default()
        }
        .try_into()
    }

    /// Dollars for a million tokens of prompt that came from the server's prefix cache.
    ///
    /// # Errors
    /// As [`per_million`](Self::per_million).
    pub fn cached_input(self, dollars: f64) -> Result<Self, PriceError> {
        Written {
            cached_input: Some(dollars),
            ..self.written
        }
        .try_into()
    }

    /// The share that a batch takes off: 0.5 for half the price.
    ///
    /// # Errors
    /// [`PriceError::Discount`] outside of 0 to 1.
    pub fn batch_discount(self, share: f64) -> Result<Self, PriceError> {
        Written {
            batch_discount: Some(share),
            ..self.written
        }
        .try_into()
    }

    /// The price of a model that costs nothing: one on this machine, a recording.
    #[must_use]
    pub fn free() -> Self {
        Self {
            written: Written::default(),
            input: 0,
            cached_input: 0,
            output: 0,
        }
    }

    /// The same in a batch: what [`batch_discount`](Self::batch_discount) leaves of it.
    #[must_use]
    pub fn in_batch(&self) -> Self {
        let left = 1.0 - self.written.batch_discount.unwrap_or(0.0);
        let written = Written {
            input: self.written.input * left,
            cached_input: self.written.cached_input.map(|dollars| dollars * left),
            output: self.written.output * left,
            batch_discount: None,
            as_of: self.written.as_of.clone(),
        };
        Self::of(written)
    }

    /// What these tokens cost, in nano-dollars, rounded up.
    #[must_use]
    pub fn cost(&self, usage: &Usage) -> u64 {
        // A server that counts more cached tokens than it read does not pay us back.
        let cached = usage.cached_tokens.min(usage.prompt_tokens);
        let pico = u128::from(usage.prompt_tokens - cached) * u128::from(self.input)
            + u128::from(cached) * u128::from(self.cached_input)
            + u128::from(usage.completion_tokens) * u128::from(self.output);
        u64::try_from(pico.div_ceil(1000)).unwrap_or(u64::MAX)
    }

    /// When somebody looked it up, in their own words.
    #[must_use]
    pub fn as_of(&self) -> Option<&str> {
        self.written.as_of.as_deref()
    }

    fn of(written: Written) -> Self {
        let pico = |dollars: f64| (dollars * 1e6).round() as u64;
        Self {
            input: pico(written.input),
            cached_input: pico(written.cached_input.unwrap_or(written.input)),
            output: pico(written.output),
            written,
        }
    }
}

impl TryFrom<Written> for Price {
    type Error = PriceError;

    fn try_from(written: Written) -> Result<Self, PriceError> {
        for (field, dollars) in [
            ("input", Some(written.input)),
            ("cached_input", written.cached_input),
            ("output", Some(written.output)),
        ] {
            // Whoever writes the price of a token instead of a million gets far less than any model asks, and is not caught
            // here; the other way round is.
            if let Some(value) = dollars.filter(|dollars| !(0.0..=100_000.0).contains(dollars)) {
                return Err(PriceError::Absurd { field, value });
            }
        }
        if let Some(share) = written
            .batch_discount
            .filter(|share| !(0.0..=1.0).contains(share))
        {
            return Err(PriceError::Discount(share));
        }
        Ok(Self::of(written))
    }
}

impl From<Price> for Written {
    fn from(price: Price) -> Self {
        price.written
    }
}

/// The prices that a user has given, by model.
///
/// A name is looked up as it stands and then without what is before its last slash, so that `openai/gpt-4o-mini` is found as
/// `gpt-4o-mini`.
///
/// ```
/// use because_llm::{Price, PriceTable};
///
/// let mut prices = PriceTable::default();
/// prices.insert("gpt-4o-mini", Price::per_million(0.15, 0.60)?);
/// assert!(prices.get("openai/gpt-4o-mini").is_some());
/// assert!(prices.get("gpt-4o").is_none());
/// # Ok::<(), because_llm::PriceError>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PriceTable(BTreeMap<String, Price>);

impl PriceTable {
    /// Adds or replaces the price of a model.
    pub fn insert(&mut self, model: impl Into<String>, price: Price) {
        self.0.insert(model.into(), price);
    }

    /// What a model asks, if somebody has said.
    #[must_use]
    pub fn get(&self, model: &str) -> Option<&Price> {
        let bare = || self.0.get(model.rsplit('/').next()?);
        self.0.get(model).or_else(bare)
    }

    /// Whether there are no prices.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The models and their prices, by name.
    #[must_use]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Price)> {
        self.0.iter().map(|(model, price)| (model.as_str(), price))
    }

    /// The same prices in a batch.
    #[must_use]
    pub fn in_batch(&self) -> Self {
        let batch = self.0.iter();
        Self(
            batch
                .map(|(model, price)| (model.clone(), price.in_batch()))
                .collect(),
        )
    }

    /// Takes the models of `other` that this table lacks.
    pub fn fill_from(&mut self, other: Self) {
        for (model, price) in other.0 {
            if let Entry::Vacant(lacking) = self.0.entry(model) {
                lacking.insert(price);
            }
        }
    }

    /// Reads the file of prices that LiteLLM publishes and others copy: a JSON object of models, each with
    /// `input_cost_per_token`, `output_cost_per_token` and, where there are, `cache_read_input_token_cost` and
    /// `input_cost_per_token_batches`. Models priced otherwise (by picture, by second) are left out.
    ///
    /// # Errors
    /// [`PriceError::File`] when it cannot be read, is not such an object, or has a price that cannot be one.
    pub fn read(path: &Path) -> Result<Self, PriceError> {
        let fault = |message: String| PriceError::File {
            file: path.display().to_string(),
            message,
        };
        let text = std::fs::read_to_string(path).map_err(|error| fault(error.to_string()))?;
        let models: BTreeMap<String, Value> =
            serde_json::from_str(&text).map_err(|error| fault(error.to_string()))?;
        let mut table = Self::default();
        for (model, row) in models {
            if model == "sample_spec" {
                continue;
            }
            let million = |field: &str| Some(in_millions(row.get(field)?.as_f64()?));
            let (Some(input), Some(output)) = (
                million("input_cost_per_token"),
                million("output_cost_per_token"),
            ) else {
                continue;
            };
            let batch = million("input_cost_per_token_batches").filter(|_| input > 0.0);
            let written = Written {
                input,
                output,
                cached_input: million("cache_read_input_token_cost"),
                batch_discount: batch.map(|batch| (1.0 - batch / input).clamp(0.0, 1.0)),
                as_of: None,
            };
            let price = Price::try_from(written)
                .map_err(|error| fault(format!("model {model:?}: {error}")))?;
            table.insert(model, price);
        }
        if table.is_empty() {
            return Err(fault(
                "no model in it has input_cost_per_token and output_cost_per_token".into(),
            ));
        }
        Ok(table)
    }
}

/// Dollars a token as dollars a million, without the dust of `1.5e-07 × 1e6`.
fn in_millions(dollars: f64) -> f64 {
    (dollars * 1e12).round() / 1e6
}

/// Nano-dollars as dollars.
pub(crate) fn dollars(nano: u64) -> f64 {
    nano as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(prompt_tokens: u64, cached_tokens: u64, completion_tokens: u64) -> Usage {
        Usage {
            prompt_tokens,
            cached_tokens,
            completion_tokens,
            ..Usage::default()
        }
    }

    #[test]
    fn a_cost_is_exact_to_the_nano_dollar() {
        let price = Price::per_million(0.15, 0.60)
            .unwrap()
            .cached_input(0.075)
            .unwrap()
            .batch_discount(0.5)
            .unwrap();
        assert_eq!(
            price.cost(&usage(1_000_000, 0, 1_000_000)),
            750_000_000,
            "75 cents"
        );
        assert_eq!(price.cost(&usage(10, 10, 0)), 750);
        assert_eq!(
            price.cost(&usage(10, 99, 0)),
            750,
            "not more cached than read"
        );
        assert_eq!(price.in_batch().cost(&usage(1_000_000, 0, 0)), 75_000_000);
        let fine = Price::per_million(0.0125, 0.0).unwrap();
        assert_eq!(
            fine.cost(&usage(1, 0, 0)),
            13,
            "12.5 nano-dollars, rounded up"
        );
        assert_eq!(fine.cost(&usage(2, 0, 0)), 25);
        assert_eq!(Price::free().cost(&usage(9, 0, 9)), 0);
    }

    #[test]
    fn prices_that_cannot_be_are_refused_with_the_field() {
        for (input, output, said) in [
            (-1.0, 1.0, "input = -1"),
            (f64::NAN, 1.0, "input = NaN"),
            (1.0, 1e9, "output = 1000000000"),
        ] {
            let error = Price::per_million(input, output).unwrap_err().to_string();
            assert!(error.starts_with(said), "{error}");
        }
        assert!(Price::free().batch_discount(1.5).is_err());
        let read = |text: &str| serde_json::from_str::<Price>(text);
        assert!(read(r#"{"input": 1, "output": 2}"#).is_ok());
        let error = read(r#"{"input": 1, "output": 2, "outpt": 3}"#).unwrap_err();
        assert!(error.to_string().contains("outpt"), "{error}");
        let error = read(r#"{"input": 1}"#).unwrap_err();
        assert!(error.to_string().contains("output"), "{error}");
    }

    #[test]
    fn litellms_file_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prices.json");
        let text = r#"{
            "sample_spec": {"input_cost_per_token": 0, "output_cost_per_token": 0, "note": "x"},
            "m": {"input_cost_per_token": 1.5e-07, "output_cost_per_token": 6e-07, "cache_read_input_token_cost": 7.5e-08,
                  "input_cost_per_token_batches": 7.5e-08, "max_tokens": 16384, "litellm_provider": "p"},
            "pictures": {"output_cost_per_image": 0.02}
        }"#;
        std::fs::write(&path, text).unwrap();
        let table = PriceTable::read(&path).unwrap();
        assert_eq!(table.iter().count(), 1);
        let expected = Price::per_million(0.15, 0.60)
            .unwrap()
            .cached_input(0.075)
            .unwrap();
        assert_eq!(
            table.get("x/m"),
            Some(&expected.batch_discount(0.5).unwrap())
        );
        std::fs::write(
            &path,
            r#"{"m": {"input_cost_per_token": -1, "output_cost_per_token": 1}}"#,
        )
        .unwrap();
        let error = PriceTable::read(&path).unwrap_err().to_string();
        assert!(
            error.contains("prices.json") && error.contains("\"m\""),
            "{error}"
        );
    }
}
