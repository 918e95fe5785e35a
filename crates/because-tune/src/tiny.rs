use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use because_core::SftExample;
use because_core::jsonl::write_atomic;
use serde::Serialize;
use serde_json::json;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

use crate::adapter::write_tensors;
use crate::chat::Chat;
use crate::config::QwenConfig;
use crate::data::Sample;
use crate::error::{Result, TuneError};
use crate::learner::all_learning;
use crate::ops::values;
use crate::params::{Parameters, generator, normal, permutation};
use crate::session::{End, Plan, Session};
use crate::template::CHATML;
use crate::tokens::Vocabulary;
use crate::train_log::TrainEvent;

/// How Qwen2.5 cuts a text into words before its byte pairs are merged, digits one by one.
pub(crate) const WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const END_OF_TEXT: &str = "<|endoftext|>";
const SPECIALS: [&str; 3] = [END_OF_TEXT, "<|im_start|>", "<|im_end|>"];
/// Tokens of a training window.
const WINDOW: usize = 256;
const CONTEXT: usize = 2048;

/// Makes a small base of the Qwen2.5 architecture from nothing but a project's own texts: its own byte-level BPE, and
/// weights that are all trained on the texts as a language model (4 layers of width 128).
///
/// It makes the whole path real without a download. What it writes after so little reading is not good prose, and a
/// report that rests on it says so. The same texts, settings and seed give the same files.
///
/// ```no_run
/// use because_tune::TinyBase;
/// use std::path::Path;
///
/// let profiles = ["Enjoys quiet jazz bars.", "Looks for ramen late at night."].map(String::from);
/// let made = TinyBase::new().seed(7).steps(50).build(profiles, Path::new("tiny"), &mut |_| {})?;
/// assert!(made.last_loss < made.first_loss);
/// # Ok::<(), because_tune::TuneError>(())
/// ```
#[derive(Debug, Clone)]
pub struct TinyBase {
    seed: u64,
    steps: u64,
    vocab_size: Option<usize>,
    examples: Vec<SftExample>,
    cancel: Option<Arc<AtomicBool>>,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TinySummary {
    /// Tokens of the tokenizer.
    pub vocab_size: usize,
    /// Numbers in the model.
    pub parameters: u64,
    /// Texts and chats read.
    pub documents: usize,
    /// Tokens they have.
    pub tokens: u64,
    /// Steps trained.
    pub steps: u64,
    /// Loss of the first step, close to the logarithm of the vocabulary's size.
    pub first_loss: f64,
    /// Loss of the last step.
    pub last_loss: f64,
    /// Time of all steps together.
    pub seconds: f64,
}

impl Default for TinyBase {
    fn default() -> Self {
        Self {
            seed: 0,
            steps: 300,
            vocab_size: None,
            examples: Vec::new(),
            cancel: None,
        }
    }
}

impl TinyBase {
    /// 300 steps from seed 0, which two cores do in about a minute.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What the weights' start and the order of the texts are drawn from.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Steps of 1,024 tokens; the time does not depend on how much text there is.
    #[must_use]
    pub fn steps(mut self, steps: u64) -> Self {
        self.steps = steps;
        self
    }

    /// Entries of the tokenizer at most; else between 512 and 4096, by the amount of text.
    #[must_use]
    pub fn vocab_size(mut self, vocab_size: usize) -> Self {
        self.vocab_size = Some(vocab_size);
        self
    }

    /// Chats to read beside the texts, so that the base knows how a chat looks.
    #[must_use]
    pub fn examples(mut self, examples: impl IntoIterator<Item = SftExample>) -> Self {
        self.examples = examples.into_iter().collect();
        self
    }

    /// Stops before the next step once the flag is set, with [`TuneError::Cancelled`].
    #[must_use]
    pub fn cancel(mut self, flag: Arc<AtomicBool>) -> Self {
        self.cancel = Some(flag);
        self
    }

    /// Makes the base and writes it into `out`, `config.json` last: without it the folder is no base.
    ///
    /// # Errors
    /// When there is too little text, the caller stopped it, or a file cannot be written.
    pub fn build(
        &self,
        texts: impl IntoIterator<Item = String>,
        out: &Path,
        on_event: &mut dyn FnMut(&TrainEvent),
    ) -> Result<TinySummary> {
        let texts: Vec<String> = texts
            .into_iter()
            .filter(|text| !text.trim().is_empty())
            .collect();
        if self.steps == 0 {
            return Err(TuneError::Setting {
                field: "steps",
                reason: "is 0".into(),
            });
        }
        std::fs::create_dir_all(out).map_err(|error| TuneError::io("create", out, error))?;
        let config_file = out.join("config.json");
        if config_file.exists() {
            std::fs::remove_file(&config_file)
                .map_err(|error| TuneError::io("replace", &config_file, error))?;
        }
        let vocabulary = self.tokenizer(&texts, out)?;
        let config = config(&vocabulary);
        let chat = Chat::read(out, &config)?;
        let documents = self.documents(&texts, &chat)?;
        let (samples, tokens) = windows(&documents, self.seed);
        if samples.is_empty() {
            let reason = "no text to make a base from".to_owned();
            return Err(TuneError::Setting {
                field: "texts",
                reason,
            });
        }
        let (parameters, summary) = self.train(&config, &samples, out, on_event)?;
        let tensors = parameters
            .iter()
            .map(|(name, variable)| {
                Ok((name.to_owned(), variable.dims().to_vec(), values(variable)?))
            })
            .collect::<Result<Vec<_>>>()?;
        write_tensors(&out.join("model.safetensors"), &tensors, [("format", "pt")])?;
        write_json(&config_file, &described(&config))?;
        Ok(TinySummary {
            documents: documents.len(),
            tokens,
            vocab_size: vocabulary.size(),
            ..summary
        })
    }

    fn tokenizer(&self, texts: &[String], out: &Path) -> Result<Vocabulary> {
        let contents = self
            .examples
            .iter()
            .flat_map(|example| &example.messages)
            .map(|message| &message.content);
        let all: Vec<&str> = texts.iter().chain(contents).map(String::as_str).collect();
        let bytes: usize = all.iter().map(|text| text.len()).sum();
        let size = self.vocab_size.unwrap_or((bytes / 64).clamp(512, 4096));
        if size < 256 + SPECIALS.len() {
            let reason = format!(
                "{size} is below the {} a byte-level tokenizer needs",
                256 + SPECIALS.len()
            );
            return Err(TuneError::Setting {
                field: "vocab_size",
                reason,
            });
        }
        let path = out.join("tokenizer.json");
        let fault = |reason: String| TuneError::Tokenizer {
            path: path.clone(),
            reason,
        };
        let text = train_tokenizer(&all, size).map_err(|error| fault(error.to_string()))?;
        write_atomic(&path, |file| file.write_all(text.as_bytes()))?;
        let settings = json!({
            "tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": END_OF_TEXT, "bos_token": null,
            "unk_token": null, "model_max_length": CONTEXT, "chat_template": CHATML,
        });
        write_json(&out.join("tokenizer_config.json"), &settings)?;
        Vocabulary::parse(text.as_bytes()).map_err(fault)
    }

    /// Each text and each chat as tokens, closed by the token that ends a text.
    fn documents(&self, texts: &[String], chat: &Chat) -> Result<Vec<Vec<u32>>> {
        let end = chat.vocabulary.special(END_OF_TEXT);
        let plain = texts.iter().map(|text| chat.vocabulary.encode(text));
        let chats = self
            .examples
            .iter()
            .map(|example| chat.whole(&example.messages));
        plain
            .chain(chats)
            .map(|ids| {
                let mut ids = ids?;
                ids.extend(end);
                Ok(ids)
            })
            .collect()
    }

    fn train(
        &self,
        config: &QwenConfig,
        samples: &[Sample],
        out: &Path,
        on_event: &mut dyn FnMut(&TrainEvent),
    ) -> Result<(Parameters, TinySummary)> {
        let parameters = initial(config, self.seed)?;
        let model = all_learning(config, &parameters);
        let plan = Plan {
            steps: self.steps,
            warmup: (self.steps / 20).max(1),
            rate: 3e-3,
            decay: 0.01,
            clip: 1.0,
            batch: 4,
            accumulation: 1,
            shuffle: true,
            seed: self.seed,
            ..Plan::default()
        };
        let mut summary = TinySummary {
            vocab_size: 0,
            parameters: parameters.elements(),
            documents: 0,
            tokens: 0,
            steps: self.steps,
            first_loss: 0.0,
            last_loss: 0.0,
            seconds: 0.0,
        };
        on_event(&TrainEvent::Started {
            rows: samples.len(),
            skipped: 0,
            truncated: 0,
            steps: self.steps,
            trainable_parameters: summary.parameters,
        });
        let begun = Instant::now();
        let mut session = Session::new(plan, &model, &parameters, self.cancel.clone());
        let end = session.run(samples, |_, record| {
            if record.step == 1 {
                summary.first_loss = record.loss;
            }
            summary.last_loss = record.loss;
            on_event(&TrainEvent::Step(record));
            Ok(())
        })?;
        if end == End::Cancelled {
            tracing::info!(folder = %out.display(), "no base was made");
            return Err(TuneError::Cancelled {
                step: session.optimizer.step,
                checkpoint: None,
            });
        }
        summary.seconds = begun.elapsed().as_secs_f64();
        Ok((parameters, summary))
    }
}

/// The texts in an order drawn from the seed, one after the other, cut into windows that overlap by the one token that is
/// the last to be predicted here and the first to predict from there.
fn windows(documents: &[Vec<u32>], seed: u64) -> (Vec<Sample>, u64) {
    let stream: Vec<u32> = permutation(documents.len(), seed, u64::MAX)
        .into_iter()
        .flat_map(|index| &documents[index])
        .copied()
        .collect();
    let starts = (0..stream.len().saturating_sub(1)).step_by(WINDOW);
    let window = |start: usize| stream[start..stream.len().min(start + WINDOW + 1)].to_vec();
    (
        starts
            .map(|start| Sample::new(window(start), |_| true))
            .collect(),
        stream.len() as u64,
    )
}

fn config(vocabulary: &Vocabulary) -> QwenConfig {
    QwenConfig {
        // A round number of rows; those past the tokenizer's are never drawn.
        vocab_size: vocabulary.size().next_multiple_of(64),
        hidden_size: 128,
        intermediate_size: 352,
        num_hidden_layers: 4,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        max_position_embeddings: CONTEXT,
        rms_norm_eps: 1e-6,
        rope_theta: 1e4,
        tie_word_embeddings: true,
        eos_token_ids: ["<|im_end|>", END_OF_TEXT]
            .iter()
            .filter_map(|name| vocabulary.special(name))
            .collect(),
    }
}

/// The configuration with the fields other programs expect beside ours.
fn described(config: &QwenConfig) -> serde_json::Value {
    let mut fields = json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "torch_dtype": "float32",
        "attention_dropout": 0.0, "initializer_range": 0.02, "use_cache": true, "use_sliding_window": false,
    });
    let own = serde_json::to_value(config).expect("a plain struct is serialisable");
    if let (Some(fields), Some(own)) = (fields.as_object_mut(), own.as_object()) {
        fields.extend(own.clone());
    }
    fields
}

/// Weights from `N(0, 0.02)`, those that write into the residual stream smaller by the root of how many do so; norms 1,
/// biases 0.
fn initial(config: &QwenConfig, seed: u64) -> Result<Parameters> {
    let writers = (2.0 * config.num_hidden_layers as f64).sqrt();
    Parameters::new(config.tensors().into_iter().map(|(name, shape)| {
        let count = shape.iter().product();
        let values = if name.contains("norm") {
            vec![1.0; count]
        } else if name.ends_with("bias") {
            vec![0.0; count]
        } else {
            let writes = name.contains("o_proj") || name.contains("down_proj");
            normal(
                &mut generator(seed, &name),
                count,
                0.02 / if writes { writers } else { 1.0 },
            )
        };
        (name, shape, values)
    }))
}

pub(crate) fn train_tokenizer(texts: &[&str], size: usize) -> tokenizers::Result<String> {
    let split = Split::new(
        SplitPattern::Regex(WORDS.into()),
        SplitDelimiterBehavior::Isolated,
        false,
    )?;
    let bytes = || ByteLevel::new(false, false, false);
    let steps: Vec<PreTokenizerWrapper> = vec![split.into(), bytes().into()];
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_normalizer(Some(NFC))?;
    tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
    tokenizer.with_post_processor(Some(bytes()));
    tokenizer.with_decoder(Some(bytes()));
    let trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(size)
        .min_frequency(2)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(
            SPECIALS
                .map(|text| AddedToken::from(text, true).normalized(false))
                .into(),
        )
        .build();
    tokenizer.train(&mut TrainerWrapper::BpeTrainer(trainer), texts.iter())?;
    tokenizer.to_string(true)
}

fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    let text = serde_json::to_vec_pretty(value).expect("a JSON value is serialisable");
    write_atomic(path, |file| file.write_all(&text))?;
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A chat over a tokenizer made from a few words.
    pub(crate) fn chat() -> Chat {
        let folder = tempfile::tempdir().unwrap();
        let texts =
            ["be kind word word why this one it fits system user assistant word".to_owned()];
        let vocabulary = TinyBase::new()
            .vocab_size(400)
            .tokenizer(&texts, folder.path())
            .unwrap();
        Chat::read(folder.path(), &config(&vocabulary)).unwrap()
    }

    /// Writes a tokenizer and its settings, and gives how many tokens it has.
    pub(crate) fn tokenizer_files(folder: &Path) -> usize {
        let texts = ["be kind word word why this one it fits system user word".to_owned()];
        let made = TinyBase::new().vocab_size(300).tokenizer(&texts, folder);
        made.unwrap().size()
    }

    #[test]
    fn windows_predict_every_token_but_the_first_once() {
        let documents = vec![(0..300).collect::<Vec<u32>>(), (300..700).collect()];
        let (samples, tokens) = windows(&documents, 1);
        assert_eq!(tokens, 700);
        let mut learnt: Vec<u32> = samples
            .iter()
            .flat_map(|sample| sample.targets.iter().map(|&(_, token)| token))
            .collect();
        assert_eq!(learnt.len(), 699);
        learnt.sort_unstable();
        learnt.dedup();
        assert_eq!(learnt.len(), 699);
    }

    #[test]
    fn what_looks_like_a_special_token_in_a_text_is_not_one() {
        let folder = tempfile::tempdir().unwrap();
        let vocabulary = TinyBase::new()
            .tokenizer(&["a b a b a b".into()], folder.path())
            .unwrap();
        let ids = vocabulary.encode("x<|im_end|>").unwrap();
        assert!(!ids.contains(&vocabulary.special("<|im_end|>").unwrap()));
        assert_eq!(vocabulary.decode(&ids).unwrap(), "x<|im_end|>");
    }
}
