mod gguf;
mod shards;
mod stage;
mod update;
mod vocabulary;
mod weight_type;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::Serialize;

use crate::base::BaseFolder;
use crate::error::{Result, TuneError};
use crate::merge::gguf::{ALIGNMENT, Gguf};
use crate::merge::shards::{EMBEDDING, INDEX, Shard, Stored, open_shards};
use crate::merge::stage::{Output, Stage, companions, copy, rewrite};
use crate::merge::update::{Update, updates};
pub use crate::merge::weight_type::WeightType;

/// Numbers worked on at a time; what merging needs of memory, beside the adapter, is a few times this.
const CHUNK: usize = 1 << 20;

/// Adds an adapter into the weights of its base, so that programs that know nothing of adapters run the tuned model.
///
/// `W' = W + s B A`, or with a magnitude `m` (DoRA, arXiv 2402.09353) `W' = m / |W + s B A| (W + s B A)` with the norm of
/// each row, in f32 and rounded once to the type that is written. What has no adapter is copied byte for byte. In half
/// precision the base cannot be won back by subtraction: keep it. Nothing of the base is written to, and what is written
/// is whole or absent.
///
/// ```no_run
/// use because_tune::{Merge, WeightType};
/// use std::path::Path;
///
/// let merge = Merge::new("Qwen2.5-0.5B-Instruct").adapter("adapter");
/// merge.write_safetensors(Path::new("merged"), &mut |_| {})?;
/// let small = merge.weight_type(WeightType::Q8_0);
/// let written = small.write_gguf(Path::new("merged-q8_0.gguf"), &mut |_| {})?;
/// println!("{} bytes for llama.cpp", written.bytes);
/// # Ok::<(), because_tune::TuneError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Merge {
    base: PathBuf,
    adapter: Option<PathBuf>,
    weight_type: Option<WeightType>,
    cancel: Option<Arc<AtomicBool>>,
}

/// What a merge tells while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum MergeEvent<'a> {
    /// A tensor was written.
    Tensor {
        /// Its name in the base.
        name: &'a str,
        /// How many are written by now.
        done: usize,
        /// How many there are.
        total: usize,
    },
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct MergeSummary {
    /// The folder or file.
    pub out: PathBuf,
    /// `safetensors` or `gguf`.
    pub format: &'static str,
    /// The type of the matrices.
    #[serde(rename = "type")]
    pub weight_type: WeightType,
    /// Files written.
    pub files: usize,
    /// Tensors in them.
    pub tensors: usize,
    /// Tensors that an adapter changed.
    pub merged_tensors: usize,
    /// Bytes of all files.
    pub bytes: u64,
    /// How long it took.
    pub seconds: f64,
}

impl Merge {
    /// Starts from the folder of a base; without an adapter its weights are only written in another type or format.
    #[must_use]
    pub fn new(base: impl Into<PathBuf>) -> Self {
        Self {
            base: base.into(),
            adapter: None,
            weight_type: None,
            cancel: None,
        }
    }

    /// The folder of the adapter to add, in PEFT's format.
    #[must_use]
    pub fn adapter(mut self, folder: impl Into<PathBuf>) -> Self {
        self.adapter = Some(folder.into());
        self
    }

    /// The type to write; that of the base unless set.
    #[must_use]
    pub fn weight_type(mut self, weight_type: WeightType) -> Self {
        self.weight_type = Some(weight_type);
        self
    }

    /// Stops before the next tensor once the flag is set, with [`TuneError::Interrupted`], and leaves nothing behind.
    #[must_use]
    pub fn cancel(mut self, flag: Arc<AtomicBool>) -> Self {
        self.cancel = Some(flag);
        self
    }

    /// Writes a checkpoint folder as transformers, vLLM and this crate load it: the shards and the index under the base's
    /// own names, its configuration, tokenizer, chat template, licence and readme.
    ///
    /// # Errors
    /// When the base or the adapter cannot be read or do not fit, there is nothing to change, the type is one that a
    /// checkpoint cannot have, a value does not fit into the type, `out` exists, or the disk is full.
    pub fn write_safetensors(
        &self,
        out: &Path,
        on_event: &mut dyn FnMut(&MergeEvent<'_>),
    ) -> Result<MergeSummary> {
        if self.weight_type == Some(WeightType::Q8_0) {
            return Err(setting("type", "q8_0 is written into GGUF files only"));
        }
        if self.adapter.is_none() && self.weight_type.is_none() {
            return Err(setting(
                "adapter",
                "missing: without one and without another type the base would only be copied",
            ));
        }
        if is_named(out, "safetensors") {
            let reason = "a checkpoint is a folder; name one without .safetensors at its end";
            return Err(setting("out", reason));
        }
        let (mut run, shards) = Run::open(self, on_event)?;
        let stage = Stage::folder(out)?;
        let mut bytes = 0;
        for shard in &shards {
            let file = Output::create(&stage.path.join(shard.file_name()))?;
            bytes += run.write_shard(shard, file)?;
        }
        let mut files = shards.len();
        for name in companions(&self.base)? {
            let (from, to) = (self.base.join(&name), stage.path.join(&name));
            bytes += match (name.as_str(), self.weight_type) {
                ("config.json", Some(one)) => rewrite(&from, &to, |config| one.declare(config))?,
                (INDEX, Some(_)) => rewrite(&from, &to, |index| {
                    if let Some(size) = index.pointer_mut("/metadata/total_size") {
                        *size = run.tensor_bytes.into();
                    }
                })?,
                _ => copy(&from, &to)?,
            };
            files += 1;
        }
        stage.finish()?;
        Ok(run.summary(out, "safetensors", files, bytes))
    }

    /// Writes one GGUF file (version 3) for llama.cpp, with the tokenizer and the chat template in it.
    ///
    /// Norms and biases are f32. Where the length of a row is not a multiple of the 32 that q8_0 packs together, a matrix
    /// is f16, as in llama.cpp's own converter.
    ///
    /// # Errors
    /// As [`Merge::write_safetensors`], and when the tokenizer is not one that llama.cpp knows how to run.
    pub fn write_gguf(
        &self,
        out: &Path,
        on_event: &mut dyn FnMut(&MergeEvent<'_>),
    ) -> Result<MergeSummary> {
        let (mut run, shards) = Run::open(self, on_event)?;
        let gguf = Gguf::plan(&run.base, self.adapter.as_deref(), run.weight_type)?;
        let stored: BTreeMap<&str, (&Shard, &Stored)> = shards
            .iter()
            .flat_map(|shard| shard.tensors.iter().map(move |one| (shard, one)))
            .map(|(shard, one)| (one.name.as_str(), (shard, one)))
            .collect();
        run.total = gguf.tensors.len();
        let stage = Stage::file(out)?;
        let mut file = Output::create(&stage.path)?;
        file.put(&gguf.header())?;
        for tensor in &gguf.tensors {
            let (shard, one) = stored[tensor.source.as_str()];
            run.write_tensor(shard, one, Some(tensor.weight_type), &mut file)?;
            file.pad(ALIGNMENT)?;
        }
        let bytes = file.finish()?;
        stage.finish()?;
        Ok(run.summary(out, "gguf", 1, bytes))
    }
}

/// A merge under way: what was opened, and what is counted.
struct Run<'a> {
    merge: &'a Merge,
    base: BaseFolder,
    /// By the name of the weight.
    updates: BTreeMap<String, Update>,
    weight_type: WeightType,
    on_event: &'a mut dyn FnMut(&MergeEvent<'_>),
    begun: Instant,
    done: usize,
    total: usize,
    merged: usize,
    /// Bytes of tensors, without what stands around them.
    tensor_bytes: u64,
}

impl<'a> Run<'a> {
    fn open(
        merge: &'a Merge,
        on_event: &'a mut dyn FnMut(&MergeEvent<'_>),
    ) -> Result<(Self, Vec<Shard>)> {
        let begun = Instant::now();
        let base = BaseFolder::open(&merge.base)?;
        let shards = open_shards(&base.path, &base.config)?;
        let updates = match &merge.adapter {
            Some(folder) => updates(folder, &base.config)?,
            None => BTreeMap::new(),
        };
        let own = shards
            .iter()
            .flat_map(|shard| &shard.tensors)
            .find(|tensor| tensor.name == EMBEDDING)
            .and_then(Stored::weight_type);
        let run = Self {
            merge,
            base,
            updates,
            weight_type: merge.weight_type.or(own).unwrap_or(WeightType::F32),
            on_event,
            begun,
            done: 0,
            total: shards.iter().map(|shard| shard.tensors.len()).sum(),
            merged: 0,
            tensor_bytes: 0,
        };
        Ok((run, shards))
    }

    fn write_shard(&mut self, shard: &Shard, mut file: Output) -> Result<u64> {
        let target = |tensor: &Stored| match self.merge.weight_type {
            Some(one) if tensor.is_weight() => Some(one),
            _ => None,
        };
        let targets: Vec<_> = shard.tensors.iter().map(target).collect();
        file.put(&shard.header(&targets))?;
        for (tensor, target) in shard.tensors.iter().zip(targets) {
            self.write_tensor(shard, tensor, target, &mut file)?;
        }
        file.finish()
    }

    /// Writes the numbers of one tensor, in its own type unless told another.
    fn write_tensor(
        &mut self,
        shard: &Shard,
        tensor: &Stored,
        target: Option<WeightType>,
        file: &mut Output,
    ) -> Result<()> {
        let cancelled = |flag: &Arc<AtomicBool>| flag.load(Ordering::Relaxed);
        if self.merge.cancel.as_ref().is_some_and(cancelled) {
            return Err(TuneError::Interrupted {
                base: self.base.path.clone(),
            });
        }
        let update = self.updates.get(&tensor.name);
        let before = file.bytes;
        match target.or(tensor.weight_type()) {
            Some(target) if update.is_some() || tensor.weight_type() != Some(target) => {
                self.encode(shard, tensor, target, update, file)?;
            }
            _ => shard.copy(tensor, file)?,
        }
        self.tensor_bytes += file.bytes - before;
        self.merged += usize::from(update.is_some());
        self.done += 1;
        (self.on_event)(&MergeEvent::Tensor {
            name: &tensor.name,
            done: self.done,
            total: self.total,
        });
        Ok(())
    }

    /// Some rows at a time: reads, adds, rounds, writes.
    fn encode(
        &self,
        shard: &Shard,
        tensor: &Stored,
        target: WeightType,
        update: Option<&Update>,
        file: &mut Output,
    ) -> Result<()> {
        let fault = |reason: String| TuneError::Weights {
            path: shard.path.clone(),
            reason: format!("tensor {}: {reason}", tensor.name),
        };
        let width = tensor.shape.last().copied().unwrap_or(1).max(1);
        let rows = tensor.elements() / width;
        let step = (CHUNK / width).max(1);
        let mut bytes = Vec::new();
        for first in (0..rows).step_by(step) {
            let range = first * width..rows.min(first + step) * width;
            let mut values = shard.values(tensor, range)?;
            if let Some(update) = update {
                update.apply(first, &mut values)?;
            }
            bytes.clear();
            target.encode(&values, &mut bytes).map_err(fault)?;
            file.put(&bytes)?;
        }
        Ok(())
    }

    fn summary(self, out: &Path, format: &'static str, files: usize, bytes: u64) -> MergeSummary {
        MergeSummary {
            out: out.to_owned(),
            format,
            weight_type: self.weight_type,
            files,
            tensors: self.done,
            merged_tensors: self.merged,
            bytes,
            seconds: self.begun.elapsed().as_secs_f64(),
        }
    }
}

fn setting(field: &'static str, reason: impl Into<String>) -> TuneError {
    TuneError::Setting {
        field,
        reason: reason.into(),
    }
}

fn is_named(path: &Path, extension: &str) -> bool {
    path.extension()
        .is_some_and(|own| own.eq_ignore_ascii_case(extension))
}

#[cfg(test)]
mod tests;
