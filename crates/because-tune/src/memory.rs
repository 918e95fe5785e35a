use serde::Serialize;

use crate::config::QwenConfig;
use crate::error::{Result, TuneError};
use crate::ops::rows_at_once;

/// Which layers' intermediate values are computed again in the backward pass in place of being kept: their inputs alone
/// stay in memory. It changes time and memory, never a result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Checkpointing {
    /// None: the fastest.
    #[default]
    None,
    /// One of every so many layers.
    Every(usize),
    /// All: the leanest, and half as much work again under LoRA.
    All,
}

/// What training holds at its peak, in bytes by part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Memory {
    /// The base, where it does not learn.
    pub weights: u64,
    /// What learns, its gradients and the optimiser's two running means.
    pub trainable: u64,
    /// What the backward pass needs of the forward pass, and the working set of one layer.
    pub activations: u64,
    /// The hidden states of the positions to learn and one block of logits.
    pub output: u64,
}

impl Memory {
    /// All of it.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.weights + self.trainable + self.activations + self.output
    }
}

impl Checkpointing {
    /// How many of so many layers are computed again.
    #[must_use]
    pub fn recomputed(self, layers: usize) -> usize {
        match self {
            Self::None => 0,
            Self::Every(every) => layers / every.max(1),
            Self::All => layers,
        }
    }

    /// Whether this layer, counted from zero, is: the last of every `k`, so that what is kept is kept from the start.
    pub(crate) fn recomputes(self, layer: usize) -> bool {
        match self {
            Self::None => false,
            Self::Every(every) => (layer + 1).is_multiple_of(every.max(1)),
            Self::All => true,
        }
    }
}

impl std::fmt::Display for Checkpointing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Every(every) => write!(f, "{every}"),
            Self::All => f.write_str("all"),
        }
    }
}

impl std::str::FromStr for Checkpointing {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("none", _) => Ok(Self::None),
            ("all", _) => Ok(Self::All),
            (_, Ok(1)) => Ok(Self::All),
            (_, Ok(every)) if every > 1 => Ok(Self::Every(every)),
            _ => Err(format!(
                "{text:?} is not auto, none, all or a number from 1"
            )),
        }
    }
}

impl Serialize for Checkpointing {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Every(every) => to.serialize_u64(*every as u64),
            named => to.collect_str(named),
        }
    }
}

/// The setting in a file: `"auto"`, `"none"`, `"all"`, or a number, as such or as a text.
pub(crate) mod setting {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Checkpointing;

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Given {
        Number(u64),
        Text(String),
    }

    pub(crate) fn serialize<S: Serializer>(
        setting: &Option<Checkpointing>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match setting {
            None => to.serialize_str("auto"),
            Some(said) => said.serialize(to),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Checkpointing>, D::Error> {
        let text = match Given::deserialize(from)? {
            Given::Number(every) => every.to_string(),
            Given::Text(text) => text,
        };
        match text.as_str() {
            "auto" => Ok(None),
            said => said.parse().map(Some).map_err(D::Error::custom),
        }
    }
}

/// What learns, as far as memory and time are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trainable {
    /// Numbers that learn.
    pub(crate) numbers: u64,
    /// The sum of the ranks of a layer's adapters, on average over the layers; 0 where all weights learn.
    pub(crate) ranks: usize,
    /// The widths of a layer's results that are kept beside what else is, as DoRA needs them, on average over the layers.
    pub(crate) scaled: usize,
    /// Bytes of the frozen base, which stays as it lies in its files; nothing where all weights learn.
    pub(crate) base: Option<u64>,
}

/// A micro-batch as large as there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Load {
    /// Tokens that are computed.
    pub(crate) tokens: usize,
    /// Of these the positions whose next token is to be learnt.
    pub(crate) supervised: usize,
}

/// The formula's constants, all in one place: what the compute core keeps, in numbers of f32.
mod costs {
    /// Bytes of a number that learns: itself, its gradient and two running means, all f32.
    pub(super) const TRAINABLE_BYTES: u64 = 16;
    /// Vectors of the model's width kept for each token of a layer: its input, the queries, what attention gives, and the
    /// residual stream between the two blocks.
    pub(super) const WIDE: usize = 4;
    /// Vectors of the keys' width: keys and values.
    pub(super) const KEYS: usize = 2;
    /// Vectors of the inner width: gate and up.
    pub(super) const INNER: usize = 2;
    /// Vectors of the model's width for each token outside of the layers: the embedding, and the last norm's input, output
    /// and gradient.
    pub(super) const OUTSIDE: usize = 4;
    /// Gradients in flight in the backward of one layer, as a share of what a layer keeps.
    pub(super) const WORKING: f64 = 1.0;
    /// Vectors of the model's width for each supervised position: its hidden state and the gradient of it.
    pub(super) const HEAD: usize = 2;
}

/// The numbers of a model's weights.
pub(crate) fn weights(config: &QwenConfig) -> u64 {
    let count = |(_, shape): (String, Vec<usize>)| shape.iter().product::<usize>() as u64;
    config.tensors().into_iter().map(count).sum()
}

/// What training holds at its peak.
pub(crate) fn estimate(
    config: &QwenConfig,
    trainable: Trainable,
    load: Load,
    checkpointing: Checkpointing,
) -> Memory {
    let (d, layers) = (config.hidden_size, config.num_hidden_layers);
    let kv = config.num_key_value_heads * config.head_dim();
    let kept = costs::WIDE * d
        + costs::KEYS * kv
        + costs::INNER * config.intermediate_size
        + trainable.ranks
        + trainable.scaled;
    let recomputed = checkpointing.recomputed(layers);
    let whole = (layers - recomputed) + usize::from(recomputed > 0);
    let working = (costs::WORKING * kept as f64) as usize;
    let numbers = whole * kept + recomputed * d + working + costs::OUTSIDE * d;
    let rows = load.supervised.min(rows_at_once(config.vocab_size));
    let logits = 4 * (rows * config.vocab_size) as u64;
    Memory {
        weights: trainable.base.unwrap_or(0),
        trainable: costs::TRAINABLE_BYTES * trainable.numbers,
        activations: 4 * (load.tokens * numbers) as u64,
        output: 4 * (load.supervised * costs::HEAD * d) as u64 + logits,
    }
}

/// How a run is fitted into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fit {
    pub(crate) checkpointing: Checkpointing,
    /// Tokens of a part of a batch at most, where a whole batch does not fit.
    pub(crate) micro_tokens: Option<usize>,
    pub(crate) memory: Memory,
}

/// Below so many tokens the cores are no longer kept busy: rather computes layers twice than cuts a batch finer.
const ENOUGH_TOKENS: usize = 512;

/// Fits a run into so many bytes: first by cutting batches, as long as the parts keep the cores busy, which costs next to
/// nothing; then by the least recomputation; then by cutting down to single rows.
///
/// `batch` and `row` are the largest batch and the largest row there is; `asked` the checkpointing that was asked for.
///
/// # Errors
/// When not even one row fits with everything recomputed; the error says how much it takes.
pub(crate) fn fit(
    config: &QwenConfig,
    trainable: Trainable,
    (batch, row): (Load, Load),
    asked: Option<Checkpointing>,
    limit: Option<u64>,
) -> Result<Fit> {
    let at = |tokens: usize, checkpointing| {
        let load = Load {
            tokens,
            supervised: batch.supervised.min(tokens),
        };
        let memory = estimate(config, trainable, load, checkpointing);
        Fit {
            checkpointing,
            micro_tokens: (tokens < batch.tokens).then_some(tokens),
            memory,
        }
    };
    let least = row.tokens;
    let halves = |from: usize, to: usize| {
        std::iter::successors(Some(from), move |tokens| Some((tokens / 2).max(to))).scan(
            false,
            move |ended, tokens| {
                let give = !*ended;
                *ended = tokens <= to;
                give.then_some(tokens)
            },
        )
    };
    let enough = least.max(ENOUGH_TOKENS).min(batch.tokens);
    let choices = match asked {
        Some(asked) => vec![asked],
        None => candidates(config.num_hidden_layers),
    };
    let Some(limit) = limit else {
        return Ok(at(batch.tokens, choices[0]));
    };
    let fits = |fit: &Fit| fit.memory.total() <= limit;
    let cut = choices
        .iter()
        .flat_map(|&checkpointing| {
            halves(batch.tokens, enough).map(move |tokens| (tokens, checkpointing))
        })
        .map(|(tokens, checkpointing)| at(tokens, checkpointing))
        .find(fits);
    if let Some(fit) = cut {
        return Ok(fit);
    }
    let last = choices[choices.len() - 1];
    let mut finer = halves(enough, least).map(|tokens| at(tokens, last));
    if let Some(fit) = finer.find(fits) {
        return Ok(fit);
    }
    let needed = at(least, last).memory;
    let way_out = match asked {
        Some(Checkpointing::All) | None => "shorten the rows (max_length), or take a smaller model",
        Some(_) => {
            "allow checkpointing (\"auto\"), shorten the rows (max_length), or take a smaller model"
        }
    };
    Err(TuneError::Setting {
        field: "memory_limit",
        reason: format!(
            "one row of {least} tokens with checkpointing {last} needs {} ({} of them weights and optimiser), and {} \
             may be taken; {way_out}",
            bytes(needed.total()),
            bytes(needed.weights + needed.trainable),
            bytes(limit),
        ),
    })
}

/// From the least recomputation to the most.
fn candidates(layers: usize) -> Vec<Checkpointing> {
    let every = (2..=layers / 2).rev().map(Checkpointing::Every);
    let mut all: Vec<_> = std::iter::once(Checkpointing::None).chain(every).collect();
    all.push(Checkpointing::All);
    // Two values of `k` may come to the same layers; the first of them will do.
    all.dedup_by_key(|choice| choice.recomputed(layers));
    all
}

/// `1536` as `1.5 KiB`.
pub(crate) fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "KiB", "MiB"] {
        if value < 1024.0 {
            return format!("{value:.0} {unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.2} GiB")
}

/// What a process may still take: what the machine has left, or its control group where that is less. Nothing where the
/// system does not tell.
pub(crate) fn available() -> Option<u64> {
    let machine = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| field(&text, "MemAvailable:").map(|kib| kib * 1024));
    let group = std::fs::read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|text| text.lines().filter_map(group_left).min());
    [machine, group].into_iter().flatten().min()
}

/// What a control group and those above it leave, by a line of `/proc/self/cgroup`: `0::/path` (version 2) or
/// `4:memory:/path` (version 1). Inside a container the path may not be there; then the mounted root is the group.
fn group_left(line: &str) -> Option<u64> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?);
    let (root, files) = match controllers {
        "" => (
            "/sys/fs/cgroup",
            ["memory.max", "memory.current", "inactive_file"],
        ),
        list if list.split(',').any(|name| name == "memory") => (
            "/sys/fs/cgroup/memory",
            [
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            ],
        ),
        _ => return None,
    };
    let root = std::path::Path::new(root);
    let group = root.join(path.trim_start_matches('/'));
    group
        .ancestors()
        .take_while(|folder| folder.starts_with(root))
        .filter_map(|folder| {
            let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
            // "max" is no number, and no limit.
            let limit: u64 = read(files[0])?.trim().parse().ok()?;
            let used: u64 = read(files[1])?.trim().parse().ok()?;
            // Pages of files that nobody has touched for a while are given back when they are needed.
            let idle = read("memory.stat").and_then(|text| field(&text, files[2]));
            Some(limit.saturating_sub(used.saturating_sub(idle.unwrap_or(0))))
        })
        .min()
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(name)).then(|| words.next()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small_qwen() -> QwenConfig {
        QwenConfig {
            vocab_size: 151_936,
            hidden_size: 896,
            intermediate_size: 4864,
            num_hidden_layers: 24,
            num_attention_heads: 14,
            num_key_value_heads: 2,
            max_position_embeddings: 32768,
            rms_norm_eps: 1e-6,
            rope_theta: 1e6,
            tie_word_embeddings: true,
            eos_token_ids: vec![151_645],
        }
    }

    fn lora() -> Trainable {
        Trainable {
            numbers: 4_399_104,
            ranks: 56,
            scaled: 0,
            base: Some(2 * 494_032_768),
        }
    }

    const BATCH: Load = Load {
        tokens: 1400,
        supervised: 200,
    };
    const ROW: Load = Load {
        tokens: 350,
        supervised: 50,
    };

    fn fitted(asked: Option<Checkpointing>, limit: u64) -> Result<Fit> {
        fit(&small_qwen(), lora(), (BATCH, ROW), asked, Some(limit))
    }

    #[test]
    fn the_parts_are_those_of_the_formula() {
        let memory = estimate(&small_qwen(), lora(), BATCH, Checkpointing::None);
        assert_eq!(memory.weights, 2 * 494_032_768);
        assert_eq!(memory.trainable, 16 * 4_399_104);
        // 200 rows of 151,936 f32 would be 122 MB, which is below the block.
        assert_eq!(memory.output, 4 * 200 * 151_936 + 4 * 200 * 2 * 896);
        let layer = 4 * 896 + 2 * 128 + 2 * 4864 + 56;
        assert_eq!(memory.activations, 4 * 1400 * (25 * layer + 4 * 896));
        let all = estimate(&small_qwen(), lora(), BATCH, Checkpointing::All);
        assert_eq!(all.activations, 4 * 1400 * (2 * layer + 24 * 896 + 4 * 896));
    }

    #[test]
    fn the_less_memory_the_more_is_cut_and_then_recomputed() {
        let none = estimate(&small_qwen(), lora(), BATCH, Checkpointing::None).total();
        let roomy = fitted(None, none).unwrap();
        assert_eq!(
            (roomy.checkpointing, roomy.micro_tokens),
            (Checkpointing::None, None)
        );
        let less = fitted(None, none - 1).unwrap();
        assert_eq!(
            (less.checkpointing, less.micro_tokens),
            (Checkpointing::None, Some(700))
        );
        let mut recomputed = 0;
        let mut limit = none;
        let needed = loop {
            match fitted(None, limit) {
                Ok(fit) => {
                    assert!(fit.memory.total() <= limit);
                    let now = fit.checkpointing.recomputed(24);
                    assert!(now >= recomputed, "{fit:?} after {recomputed}");
                    recomputed = now;
                    limit -= 20 << 20;
                }
                Err(error) => break error,
            }
        };
        assert_eq!(recomputed, 24, "in the end everything is");
        assert!(needed.is_bad_input());
        let said = needed.to_string();
        assert!(
            said.starts_with(
                "memory_limit: one row of 350 tokens with checkpointing all needs 1.17 GiB"
            ),
            "{said}"
        );
    }

    #[test]
    fn what_was_asked_for_is_not_changed() {
        let none = estimate(&small_qwen(), lora(), BATCH, Checkpointing::None).total();
        let asked = Some(Checkpointing::Every(3));
        assert_eq!(
            fitted(asked, none).unwrap().checkpointing,
            Checkpointing::Every(3)
        );
        let said = fitted(Some(Checkpointing::None), 1 << 30)
            .unwrap_err()
            .to_string();
        assert!(said.contains("allow checkpointing"), "{said}");
    }

    #[test]
    fn the_setting_is_a_word_or_a_number() {
        #[derive(serde::Deserialize)]
        struct File(#[serde(with = "setting")] Option<Checkpointing>);
        let read = |text: &str| serde_json::from_str::<File>(text).map(|file| file.0);
        for (text, setting) in [
            ("\"auto\"", None),
            ("\"none\"", Some(Checkpointing::None)),
            ("\"all\"", Some(Checkpointing::All)),
            ("1", Some(Checkpointing::All)),
            ("4", Some(Checkpointing::Every(4))),
            ("\"4\"", Some(Checkpointing::Every(4))),
        ] {
            assert_eq!(read(text).unwrap(), setting, "{text}");
        }
        for text in ["0", "\"some\"", "-1"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn layers_that_are_recomputed_are_as_many_as_counted() {
        for checkpointing in candidates(24) {
            let asked = (0..24)
                .filter(|&layer| checkpointing.recomputes(layer))
                .count();
            assert_eq!(asked, checkpointing.recomputed(24), "{checkpointing}");
        }
    }

    #[test]
    fn a_line_of_meminfo_is_read() {
        assert_eq!(
            field(
                "MemFree: 1 kB\nMemAvailable:   23496836 kB\n",
                "MemAvailable:"
            ),
            Some(23_496_836)
        );
    }
}
