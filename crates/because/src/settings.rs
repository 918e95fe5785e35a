mod import;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use because_contrast::Contrast;
use because_core::jsonl;
use because_graph::Sampling;
use because_llm::{Deadline, Dialect, ModelSpec, PriceTable, TokenCounter};
use serde::{Deserialize, Serialize};

pub use self::import::ImportSettings;
use crate::{Error, Result};

/// Every setting of an experiment: what `because.toml` holds. A file may leave out whatever it does not change.
///
/// ```
/// let settings: because::Settings = "[profile]\nlayers = 1".parse()?;
/// assert_eq!((settings.profile.layers, settings.contrast.hard), (1, 2));
/// # Ok::<(), because::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Settings {
    /// Where everything that is drawn begins: samples, splits, orders, weights.
    pub seed: u64,
    /// Where the interactions came from; written by `because import`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub import: Option<ImportSettings>,
    /// The chat models and how they are called.
    pub llm: LlmSettings,
    /// PGHIS.
    pub profile: ProfileSettings,
    /// CPEG.
    pub contrast: ContrastSettings,
    /// The small model and its training.
    pub train: TrainSettings,
    /// What is explained and measured at the end.
    pub evaluate: EvaluateSettings,
}

/// The chat models and how they are called.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct LlmSettings {
    /// Writes the profiles.
    pub model: ModelSpec,
    /// Explains; the same model where it is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoner: Option<ModelSpec>,
    /// At most this many calls in flight; below that, as many as the server bears.
    pub concurrency: usize,
    /// At most this many requests in any minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u64>,
    /// At most this many tokens in any minute, those of prompts and answers together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u64>,
    /// How often a call that failed in a way that may pass is repeated before the run stops. Waits double from half a second
    /// up to a minute, so eight ride out about a minute of a bad network.
    pub retries: u32,
    /// How often an answer that does not fit is asked again with the fault named.
    pub repairs: u32,
    /// How long one call may take.
    pub timeout_secs: u64,
    /// After so long a silence a call is asked a second time, and the first answer is taken; both may have to be paid for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hedge_after_secs: Option<u64>,
    /// Where every exchange is written for a later `replay:`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<PathBuf>,
    /// US dollars that a run may spend on calls; every model then needs a price.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_usd: Option<f64>,
    /// Tokens that a run may spend on calls, those of prompts and of answers together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_tokens: Option<u64>,
    /// What both are for: one `run`, or the whole `project` with everything that `llm.sqlite` holds already.
    pub budget_for: BudgetFor,
    /// Until when calls may begin: so long after the run has begun (`2h30m`), or a moment (`2026-11-24T08:00:00Z`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Deadline>,
    /// What a plan counts tokens with: a Hugging Face `tokenizer.json`, where the model is none of OpenAI's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// A file of prices in the form that LiteLLM publishes, for models that `prices` below lacks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prices_file: Option<PathBuf>,
    /// What models cost, in US dollars for a million tokens, by name.
    #[serde(skip_serializing_if = "PriceTable::is_empty")]
    pub prices: PriceTable,
    /// Asks through the server's Batch API: half the price, answers within a day, and a run that may be stopped and gone on
    /// with in between. Only for `openai:` models.
    pub batch: bool,
    /// Requests of a batch at most, which are also those in flight; OpenAI takes 50,000.
    pub batch_rows: usize,
    /// Whether a run waits for its batches. If not, it ends as stopped (exit code 3) as soon as the server has them, and the
    /// same command collects them another day.
    pub batch_wait: bool,
    /// What is known beforehand of how the servers want to be asked.
    #[serde(skip_serializing_if = "is_unsaid")]
    pub dialect: Dialect,
    /// The same for single servers, by the beginning of their base URL; the longest that fits is taken, whole.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub dialects: BTreeMap<String, Dialect>,
}

/// What a budget is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BudgetFor {
    /// What this run spends, whatever was spent before.
    #[default]
    Run,
    /// What all runs of the project spend together.
    Project,
}

fn is_unsaid(dialect: &Dialect) -> bool {
    *dialect == Dialect::default()
}

impl LlmSettings {
    /// The prices given, those of `prices_file` included, less the discount in batch mode; a relative path is one in `folder`.
    ///
    /// # Errors
    /// When the file cannot be read or holds no prices.
    pub fn price_table(&self, folder: &Path) -> Result<PriceTable> {
        let mut prices = self.prices.clone();
        if let Some(file) = &self.prices_file {
            prices.fill_from(PriceTable::read(&folder.join(file))?);
        }
        if self.batch {
            prices = prices.in_batch();
        }
        Ok(prices)
    }

    /// What counts the tokens of this model; a relative path to a tokenizer is one in `folder`.
    ///
    /// # Errors
    /// When the tokenizer cannot be read, or this build reads none.
    pub fn token_counter(&self, model: &str, folder: &Path) -> Result<TokenCounter> {
        let Some(file) = &self.tokenizer else {
            return Ok(TokenCounter::for_model(model));
        };
        let path = folder.join(file);
        #[cfg(feature = "tune")]
        return TokenCounter::from_file(&path).map_err(|error| Error::Limit {
            field: "tokenizer",
            reason: error.to_string(),
        });
        #[cfg(not(feature = "tune"))]
        Err(Error::Feature {
            what: path.display().to_string(),
            feature: "tune",
        })
    }

    /// How many calls may be in flight: those of a whole batch, where there are batches.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        match self.batch {
            true => self.batch_rows,
            false => self.concurrency,
        }
    }

    /// How the server at this base URL wants to be asked.
    #[must_use]
    pub fn dialect_at(&self, url: &str) -> Dialect {
        self.dialects
            .iter()
            .filter(|(at, _)| url.starts_with(at.as_str()))
            .max_by_key(|(at, _)| at.len())
            .map_or(self.dialect, |(_, dialect)| *dialect)
    }
}

impl Default for LlmSettings {
    fn default() -> Self {
        Self {
            model: ModelSpec::Offline,
            reasoner: None,
            concurrency: 64,
            requests_per_minute: None,
            tokens_per_minute: None,
            retries: 8,
            repairs: 2,
            timeout_secs: 600,
            hedge_after_secs: None,
            record: None,
            budget_usd: None,
            budget_tokens: None,
            budget_for: BudgetFor::Run,
            deadline: None,
            tokenizer: None,
            prices_file: None,
            prices: PriceTable::default(),
            batch: false,
            batch_rows: 20_000,
            batch_wait: true,
            dialect: Dialect::default(),
            dialects: BTreeMap::new(),
        }
    }
}

/// PGHIS: how profiles are written and passed on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ProfileSettings {
    /// Rounds of messages after the initial profiles. The paper does not state its number; text networks near it use 2.
    pub layers: usize,
    /// Neighbours read by a node at each layer. The paper does not state its number.
    pub neighbors: usize,
    /// Interactions read for an initial profile; RLMRec's examples show six.
    pub interactions: usize,
    /// Which neighbours are read. `relevance` goes by the texts of the data for initial profiles, and by the initial
    /// profiles after that; a plan made before these are written goes by the data in their place.
    pub sampling: Sampling,
    /// The length of a profile, in words.
    pub words: usize,
    /// The length of what neighbours share, in words.
    pub shared_words: usize,
}

impl Default for ProfileSettings {
    fn default() -> Self {
        let words = because_propagate::WordLimits::default();
        Self {
            layers: 2,
            neighbors: 8,
            interactions: 8,
            sampling: Sampling::Uniform,
            words: words.profile,
            shared_words: words.shared,
        }
    }
}

/// CPEG: which pairs are explained, and against what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ContrastSettings {
    /// Hard negatives a pair: the paper's k = 2.
    pub hard: usize,
    /// Random negatives a pair: the paper's m = 5.
    pub random: usize,
    /// Answers asked for before a pair is given up.
    pub max_attempts: usize,
    /// Train pairs explained at most, drawn by seed: what the small model learns from.
    pub train_limit: usize,
    /// Valid pairs explained at most.
    pub valid_limit: usize,
    /// Test pairs explained at most, where the data brings no references of its own.
    pub test_limit: usize,
    /// Whether explanations of pairs that the model never found are learnt from too.
    pub include_rejected: bool,
}

impl Default for ContrastSettings {
    fn default() -> Self {
        let Contrast {
            hard,
            random,
            max_attempts,
            ..
        } = Contrast::default();
        Self {
            hard,
            random,
            max_attempts,
            train_limit: 1000,
            valid_limit: 50,
            test_limit: 200,
            include_rejected: false,
        }
    }
}

/// The small model and its training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct TrainSettings {
    /// A folder with a Qwen2.5 checkpoint, a hub id, or `tiny`: a small model of that architecture made from the project's own
    /// texts.
    pub base: String,
    /// Optimiser steps of LoRA; as many as the epochs have where it is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<u64>,
    /// Times that every example is seen, where `max_steps` does not say otherwise.
    pub epochs: u32,
    /// Examples at once.
    pub batch_size: usize,
    /// Tokens at once, in place of a number of examples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_tokens: Option<usize>,
    /// Batches at a time within which examples are sorted by length, so that those of like length come together; 0 for none.
    pub bucketing: usize,
    /// Batches whose gradients are added up before a step.
    pub accumulation: usize,
    /// The highest learning rate, reached after the warm-up. Where it is not said: 2e-4, common for LoRA on Qwen2.5, or 3e-3
    /// for `tiny`, whose adapters have far fewer numbers to move.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Steps over which the learning rate rises; 3 % of all, and at least 2, where it is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_steps: Option<u64>,
    /// The rank of the adapter.
    pub rank: usize,
    /// The scale of the adapter times its rank.
    pub alpha: f64,
    /// The linear layers that get an adapter.
    pub target_modules: Vec<String>,
    /// The share of inputs dropped on the way into an adapter while training.
    pub dropout: f64,
    /// Learn the length of each row of a weight apart from its direction (DoRA).
    pub dora: bool,
    /// Scale by the root of the rank in place of the rank (rsLoRA).
    pub rslora: bool,
    /// Tokens of an example at most: the end of the longest text of its prompt goes first, its answer last.
    pub max_length: usize,
    /// Steps between two evaluations on `sft.valid.jsonl`; with 0 at the end of each epoch. What was best there is kept.
    pub evaluate_every: u64,
    /// Ends training after so many evaluations in a row without an improvement; never where it is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience: Option<u32>,
    /// What the loss must be lower by to be an improvement.
    pub min_delta: f64,
    /// Which layers are computed again in the backward pass to save memory: `auto`, `none`, `all`, or one of every so many.
    #[serde(deserialize_with = "word_or_number")]
    pub checkpointing: String,
    /// Bytes that training may take; 80 % of what is left where it is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<u64>,
    /// Steps between two checkpoints from which a run that was killed goes on.
    pub checkpoint_every: u64,
    /// How many of the newest checkpoints stay while training goes on.
    pub keep_checkpoints: usize,
    /// Steps in which `tiny`'s own weights are made; not used with another base.
    pub tiny_steps: u64,
    /// Other ranks for some layers, by their names.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rank_pattern: BTreeMap<String, usize>,
    /// Other values of `alpha` for some layers, by their names.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub alpha_pattern: BTreeMap<String, f64>,
}

/// A setting that is a word or a number, as a text.
fn word_or_number<'de, D: serde::Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Given {
        Number(u64),
        Word(String),
    }
    Ok(match Given::deserialize(from)? {
        Given::Number(number) => number.to_string(),
        Given::Word(word) => word,
    })
}

impl Default for TrainSettings {
    fn default() -> Self {
        Self {
            base: "tiny".into(),
            max_steps: None,
            epochs: 3,
            batch_size: 8,
            batch_tokens: None,
            bucketing: 0,
            accumulation: 1,
            learning_rate: None,
            warmup_steps: None,
            rank: 8,
            alpha: 16.0,
            target_modules: [
                "q_proj",
                "k_proj",
                "v_proj",
                "o_proj",
                "gate_proj",
                "up_proj",
                "down_proj",
            ]
            .map(str::to_owned)
            .to_vec(),
            dropout: 0.0,
            dora: false,
            rslora: false,
            max_length: 1024,
            evaluate_every: 0,
            patience: None,
            min_delta: 0.0,
            checkpointing: "auto".into(),
            memory_limit: None,
            checkpoint_every: 50,
            keep_checkpoints: 1,
            tiny_steps: 300,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
        }
    }
}

impl TrainSettings {
    /// The learning rate that was said, or the one for this base.
    #[must_use]
    pub fn learning_rate(&self) -> f64 {
        self.learning_rate
            .unwrap_or(if self.base == "tiny" { 3e-3 } else { 2e-4 })
    }

    /// The same where all weights learn, which bear far less: 1e-5, or 1e-3 for `tiny`.
    #[must_use]
    pub fn full_learning_rate(&self) -> f64 {
        self.learning_rate
            .unwrap_or(if self.base == "tiny" { 1e-3 } else { 1e-5 })
    }
}

#[cfg(feature = "tune")]
impl EvaluateSettings {
    /// How explanations are written: the likeliest token every time, repeats held down.
    #[must_use]
    pub fn decoding(&self) -> because_tune::Decoding {
        because_tune::Decoding {
            repetition_penalty: self.repetition_penalty,
            ..because_tune::Decoding::greedy(self.max_tokens)
        }
    }
}

#[cfg(feature = "tune")]
impl TrainSettings {
    /// The trainer's own settings.
    ///
    /// # Errors
    /// When `checkpointing` is none of what it may be.
    pub fn config(&self, seed: u64) -> Result<because_tune::TrainConfig> {
        let checkpointing = match self.checkpointing.as_str() {
            "auto" => None,
            said => Some(
                said.parse()
                    .map_err(|reason| because_tune::TuneError::Setting {
                        field: "checkpointing",
                        reason,
                    })?,
            ),
        };
        Ok(because_tune::TrainConfig {
            epochs: self.epochs,
            max_steps: self.max_steps,
            batch_size: self.batch_size,
            batch_tokens: self.batch_tokens,
            bucketing: self.bucketing,
            evaluate_every: self.evaluate_every,
            patience: self.patience,
            min_delta: self.min_delta,
            checkpointing,
            memory_limit: self.memory_limit,
            keep_checkpoints: self.keep_checkpoints,
            accumulation: self.accumulation,
            learning_rate: self.learning_rate(),
            warmup_steps: self.warmup_steps,
            max_length: self.max_length,
            checkpoint_every: self.checkpoint_every,
            seed,
            ..because_tune::TrainConfig::default()
        })
    }

    /// How the adapter looks.
    #[must_use]
    pub fn lora(&self) -> because_tune::LoraConfig {
        because_tune::LoraConfig {
            rank: self.rank,
            alpha: self.alpha,
            target_modules: self.target_modules.clone().into(),
            dropout: self.dropout,
            rslora: self.rslora,
            dora: self.dora,
            rank_pattern: self.rank_pattern.clone(),
            alpha_pattern: self.alpha_pattern.clone(),
            ..because_tune::LoraConfig::default()
        }
    }
}

/// What is explained and measured at the end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct EvaluateSettings {
    /// Tokens of one explanation at most.
    pub max_tokens: usize,
    /// How much less likely a token becomes that was written already: 1 for not at all; Qwen2.5 ships with 1.05 to 1.1.
    pub repetition_penalty: f64,
    /// Explanations shown in the report.
    pub samples: usize,
}

impl Default for EvaluateSettings {
    fn default() -> Self {
        Self {
            max_tokens: 128,
            repetition_penalty: 1.1,
            samples: 6,
        }
    }
}

impl Settings {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, is not TOML, or has a setting of another name or type; the message has the line.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| because_core::Error::io("read", path, source))?;
        toml::from_str(&text).map_err(|source| Error::Settings {
            path: path.to_owned(),
            source: Box::new(source),
        })
    }

    /// Writes every setting, also those at their default.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut whole = self.clone();
        whole.train.learning_rate = Some(whole.train.learning_rate());
        let text = toml::to_string_pretty(&whole).map_err(|error| {
            because_core::Error::io(
                "write",
                path,
                std::io::Error::new(std::io::ErrorKind::InvalidData, error),
            )
        })?;
        jsonl::write_atomic(path, |out| out.write_all(text.as_bytes()))?;
        Ok(())
    }

    /// Copies a file of settings to where there is none, comments included. Paths that are taken from the folder of the file
    /// are written whole, so that they name the same files as before.
    ///
    /// # Errors
    /// When the file cannot be read, holds no settings, or the copy cannot be written.
    pub fn copy(from: &Path, to: &Path) -> Result<()> {
        let mut settings = Self::load(from)?;
        let text = std::fs::read_to_string(from)
            .map_err(|source| because_core::Error::io("read", from, source))?;
        let folder = from.parent().unwrap_or(Path::new(""));
        let folder = std::path::absolute(folder.join("."))
            .map_err(|source| because_core::Error::io("find", folder, source))?;
        let llm = &mut settings.llm;
        let paths = [
            ("tokenizer", &mut llm.tokenizer),
            ("prices_file", &mut llm.prices_file),
        ];
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        for (name, path) in paths {
            let Some(path) = path.as_mut().filter(|path| path.is_relative()) else {
                continue;
            };
            *path = folder.join(&*path);
            let value = toml::Value::String(path.to_string_lossy().into_owned());
            let sets = |line: &&mut String| {
                let said = line.trim_start().strip_prefix(name);
                said.is_some_and(|said| said.trim_start().starts_with('='))
            };
            if let Some(line) = lines.iter_mut().find(sets) {
                *line = format!("{name} = {value}");
            }
        }
        let text = lines.join("\n") + "\n";
        // Where a path was not written as one line of its own, every setting is written anew.
        if toml::from_str::<Self>(&text).ok().as_ref() != Some(&settings) {
            return settings.save(to);
        }
        jsonl::write_atomic(to, |out| out.write_all(text.as_bytes()))?;
        Ok(())
    }

    pub(crate) fn reasoner(&self) -> &ModelSpec {
        self.llm.reasoner.as_ref().unwrap_or(&self.llm.model)
    }
}

impl std::str::FromStr for Settings {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let path = PathBuf::from("because.toml");
        toml::from_str(text).map_err(|source| Error::Settings {
            path,
            source: Box::new(source),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_of_training_comes_back_from_its_file() {
        let text = "[train]\nbatch_tokens = 4096\nbucketing = 8\ncheckpointing = 4\npatience = 3\n\
                    memory_limit = 8000000000\n[train.rank_pattern]\ndown_proj = 16\n";
        let settings: Settings = text.parse().unwrap();
        assert_eq!(settings.train.checkpointing, "4");
        assert_eq!(settings.train.rank_pattern["down_proj"], 16);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("because.toml");
        settings.save(&path).unwrap();
        let mut read = Settings::load(&path).unwrap();
        read.train.learning_rate = None;
        assert_eq!(read, settings);
    }

    #[test]
    fn prices_and_limits_come_back_from_their_file() {
        let text = "[llm]\nbudget_usd = 200.0\nbudget_for = \"project\"\ndeadline = \"2h30m\"\n\
                    [llm.prices.\"gpt-4o-mini\"]\ninput = 0.15\ncached_input = 0.075\noutput = 0.60\n\
                    batch_discount = 0.5\nas_of = \"2026-11-20\"\n[profile]\nlayers = 1\n";
        let settings: Settings = text.parse().unwrap();
        assert_eq!(settings.llm.budget_for, BudgetFor::Project);
        let price = settings.llm.prices.get("gpt-4o-mini").unwrap();
        assert_eq!(price.as_of(), Some("2026-11-20"));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("because.toml");
        settings.save(&path).unwrap();
        assert_eq!(Settings::load(&path).unwrap().llm, settings.llm);
    }

    #[test]
    fn a_copy_elsewhere_names_the_same_files() {
        let folder = tempfile::tempdir().unwrap();
        let [from, to] = ["a", "b"].map(|name| folder.path().join(name).join("because.toml"));
        for path in [&from, &to] {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        }
        for text in [
            "# why\n[llm]\ntokenizer = \"tok/tokenizer.json\" # ours\n prices_file=\"p.json\"\n[profile]\nlayers = 1\n",
            "llm = { tokenizer = \"tok/tokenizer.json\", prices_file = \"p.json\" }\n[profile]\nlayers = 1\n",
        ] {
            std::fs::write(&from, text).unwrap();
            Settings::copy(&from, &to).unwrap();
            let copied = Settings::load(&to).unwrap();
            let beside = |name: &str| Some(folder.path().join("a").join(name));
            assert_eq!(copied.llm.tokenizer, beside("tok/tokenizer.json"));
            assert_eq!(copied.llm.prices_file, beside("p.json"));
            assert_eq!(copied.profile.layers, 1);
            let written = std::fs::read_to_string(&to).unwrap();
            assert_eq!(written.contains("# why"), text.contains("# why"));
        }
    }

    #[test]
    fn a_price_that_cannot_be_is_refused_with_its_line() {
        let of = |line: &str| {
            let text = format!("[llm.prices.m]\noutput = 1.0\n{line}\n");
            let error = text.parse::<Settings>().unwrap_err();
            std::error::Error::source(&error).unwrap().to_string()
        };
        let said = of("input = -1.0");
        assert!(
            said.contains("input = -1") && said.contains("line"),
            "{said}"
        );
        let said = of("inputs = 1.0");
        assert!(said.contains("inputs") && said.contains("line"), "{said}");
    }

    #[test]
    fn a_server_is_asked_as_the_settings_say() {
        let text = "[llm]\nbatch = true\nbatch_rows = 500\n[llm.dialect]\nseed = false\n\
                    [llm.dialects.\"http://127.0.0.1:9000\"]\nserver = \"llama-cpp\"\nstructured = \"json_object\"\n\
                    token_limit = \"max_completion_tokens\"\n[profile]\nlayers = 1\n";
        let settings: Settings = text.parse().unwrap();
        assert_eq!(settings.llm.in_flight(), 500);
        let local = settings.llm.dialect_at("http://127.0.0.1:9000/v1");
        assert_eq!(
            local.structured,
            Some(because_llm::StructuredOutput::JsonObject)
        );
        assert_eq!(local.seed, None, "one server's dialect is taken whole");
        assert_eq!(settings.llm.dialect_at("https://b/v1").seed, Some(false));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("because.toml");
        settings.save(&path).unwrap();
        assert_eq!(Settings::load(&path).unwrap().llm, settings.llm);
        assert!("[llm.dialect]\nsede = true".parse::<Settings>().is_err());
    }

    #[cfg(feature = "tune")]
    #[test]
    fn checkpointing_is_one_of_its_words_or_a_number() {
        let of = |text: &str| {
            let settings: Settings = format!("[train]\ncheckpointing = {text}").parse().unwrap();
            settings.train.config(0).map(|config| config.checkpointing)
        };
        assert_eq!(of("\"auto\"").unwrap(), None);
        assert_eq!(
            of("3").unwrap(),
            Some(because_tune::Checkpointing::Every(3))
        );
        assert!(
            of("\"some\"")
                .unwrap_err()
                .to_string()
                .contains("checkpointing: \"some\"")
        );
    }
}
