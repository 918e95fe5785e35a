use std::path::{Path, PathBuf};

use because::core::{Message, SftExample, Split, jsonl};
use because::llm::Stop;
use because::tune::{Decoding, TinyBase, TrainEvent, TrainPlan, TrainSet, Trainer, TunedModel};
use because::{Explained, ExplainedSplit, Pairs, Pipeline, PlanOptions, Result, training_event};

use super::plan::say_where_it_stopped;
use super::{print_stages_and_plan, said, set, watched};
use crate::args::{Explain, Generate, Run, Train, Tuning};
use crate::output::{Output, bytes, table};
use crate::progress::Progress;

pub(super) async fn run(args: Run, output: &Output, stop: &Stop) -> Result<()> {
    let (mut pipeline, progress) = watched(Pipeline::open(args.dir)?, output, stop);
    args.calls.apply(&mut pipeline);
    args.messages.apply(&mut pipeline);
    args.negatives.apply(&mut pipeline);
    args.tuning.apply(&mut pipeline);
    args.limits.apply(&mut pipeline);
    let stages = pipeline.run().await;
    progress.finish();
    let planned = PlanOptions::default();
    let stages = say_where_it_stopped(&pipeline, stages, &planned, output)?;
    let plan = output
        .is_json()
        .then(|| pipeline.plan(&planned))
        .transpose()?;
    print_stages_and_plan(&pipeline, &stages, plan, output)
}

pub(super) async fn train(args: Train, output: &Output, stop: &Stop) -> Result<()> {
    let is_project = args.data.is_dir();
    let root = if is_project {
        args.data.clone()
    } else {
        folder_of(&args.data)
    };
    let (mut pipeline, progress) = if is_project {
        watched(Pipeline::open(&root)?, output, stop)
    } else {
        watched(
            Pipeline::new(
                because::core::Project::new(&root),
                because::Settings::default(),
            ),
            output,
            stop,
        )
    };
    args.tuning.clone().apply(&mut pipeline);
    set(&mut pipeline.settings_mut().seed, args.seed);
    pipeline.settings_mut().contrast.include_rejected |= args.include_rejected;

    let mut base = PathBuf::from(&pipeline.settings().train.base);
    let is_tiny = base == Path::new("tiny");
    let data_path = if is_project {
        if pipeline.project().path("explanations.jsonl").exists() {
            pipeline.examples().await?;
        }
        pipeline.project().sft_path(Split::Train)
    } else {
        args.data.clone()
    };
    let data = TrainSet::read(&data_path)?;
    let name = if args.full { "model" } else { "adapter" };
    let out = args.out.clone().unwrap_or_else(|| root.join(name));
    // A dry run's stand-in for `tiny` is gone when it is over.
    let mut draft = None;
    if is_tiny && args.dry_run {
        let folder = tempfile::tempdir()
            .map_err(|error| because::core::Error::io("create", "a temporary folder", error))?;
        if is_project {
            pipeline.draft_base(folder.path())?;
        } else {
            tiny(&pipeline, &data_path, stop)?.steps(1).build(
                Vec::new(),
                folder.path(),
                &mut |_| {},
            )?;
        }
        base = folder.path().to_owned();
        draft = Some(folder);
    } else if is_tiny {
        base = if is_project {
            pipeline.tiny_base().await?;
            root.join("base.tiny")
        } else {
            let folder = out.with_file_name("base.tiny");
            let mut shown = shown("base", &progress);
            tiny(&pipeline, &data_path, stop)?
                .steps(pipeline.settings().train.tiny_steps)
                .build(Vec::new(), &folder, &mut shown)?;
            folder
        };
    }
    let trainer = trainer(&args, &pipeline, is_project)?.cancel(stop.flag());
    if args.dry_run {
        let plan = trainer.plan(&base, &data)?;
        progress.finish();
        output.result(&plan, || planned(&plan));
        drop(draft);
        return Ok(());
    }
    let summary = trainer.run(&base, &data, &out, &mut shown(name, &progress));
    progress.finish();
    let summary = serde_json::to_value(summary?).unwrap_or_default();
    output.result(&summary, || {
        format!("{}: {}", out.display(), said(&summary))
    });
    Ok(())
}

/// A `tiny` base made from a file of examples alone.
fn tiny(pipeline: &Pipeline, data: &Path, stop: &Stop) -> Result<TinyBase> {
    Ok(TinyBase::new()
        .seed(pipeline.settings().seed)
        .examples(jsonl::read_all::<SftExample>(data)?)
        .cancel(stop.flag()))
}

/// The run that was asked for.
fn trainer(args: &Train, pipeline: &Pipeline, is_project: bool) -> Result<Trainer> {
    let settings = &pipeline.settings().train;
    let mut config = settings.config(pipeline.settings().seed)?;
    config.shuffle = !args.no_shuffle;
    if args.full {
        config.learning_rate = settings.full_learning_rate();
    }
    let valid = match &args.eval_data {
        Some(path) => Some(TrainSet::read(path)?),
        None if is_project => pipeline.valid_set()?,
        None => None,
    };
    let mut trainer = Trainer::new(config).resume(args.resume);
    trainer = match &args.init_adapter {
        _ if args.full => trainer.full(),
        Some(adapter) => trainer.init_adapter(adapter),
        None => trainer.lora(settings.lora()),
    };
    if let Some(valid) = valid {
        trainer = trainer.valid(valid);
    }
    if let Some(log) = &args.log {
        trainer = trainer.log(log);
    }
    Ok(trainer)
}

/// A dry run for a person.
fn planned(plan: &TrainPlan) -> String {
    let mut rows = vec![
        ("examples", plan.rows.to_string()),
        ("left out", plan.skipped.len().to_string()),
        (
            "shortened",
            format!("{} ({} in their answers)", plan.truncated, plan.answers_cut),
        ),
    ];
    if let Some(valid) = plan.valid_rows {
        rows.push(("validation examples", valid.to_string()));
    }
    let cut = plan.micro_batch_tokens.map_or_else(String::new, |tokens| {
        format!(", batches in parts of {tokens} tokens")
    });
    let memory = plan.memory;
    rows.extend([
        ("longest example", format!("{} tokens", plan.longest_row)),
        ("steps", plan.steps.to_string()),
        (
            "tokens",
            format!(
                "{} ({} with padding, which is not computed)",
                plan.unpadded_tokens, plan.tokens
            ),
        ),
        ("tokens to learn", plan.supervised_tokens.to_string()),
        (
            "trainable parameters",
            plan.trainable_parameters.to_string(),
        ),
        ("checkpointing", format!("{}{cut}", plan.checkpointing)),
        (
            "memory",
            format!(
                "{} (weights {}, trainable {}, activations {}, output {}){}",
                bytes(plan.memory_bytes),
                bytes(memory.weights),
                bytes(memory.trainable),
                bytes(memory.activations),
                bytes(memory.output),
                plan.memory_limit
                    .map_or_else(String::new, |limit| format!(" of {}", bytes(limit)))
            ),
        ),
        (
            "time",
            format!(
                "{} to {} (this machine multiplies matrices at {:.0} GFLOP/s)",
                duration(plan.seconds_low),
                duration(plan.seconds_high),
                plan.measured_flops_per_second / 1e9
            ),
        ),
    ]);
    let mut text = table(&rows);
    for row in &plan.skipped {
        text += &format!("line {} is left out: {}\n", row.line, row.reason);
    }
    text
}

fn duration(seconds: f64) -> String {
    match seconds {
        ..90.0 => format!("{seconds:.0} s"),
        90.0..5400.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.1} h", seconds / 3600.0),
    }
}

pub(super) fn generate(args: &Generate, output: &Output) -> Result<()> {
    let model = TunedModel::load(
        &base(&args.base, args.adapter.as_deref())?,
        args.adapter.as_deref(),
    )?;
    let prompts: Vec<Vec<Message>> = match (&args.prompt, &args.data) {
        (Some(prompt), _) => vec![vec![Message::new("user", prompt)]],
        (None, Some(data)) => {
            let examples: Vec<SftExample> = jsonl::read_all(data)?;
            examples
                .iter()
                .map(|example| example.prompt().to_vec())
                .collect()
        }
        (None, None) => Vec::new(),
    };
    let mut decoding = Decoding::greedy(args.max_tokens);
    if !args.greedy {
        decoding.temperature = args.temperature;
        decoding.seed = args.seed;
    }
    let generations = model.generate_batch(&prompts, &decoding)?;
    let texts = || {
        generations
            .outputs
            .iter()
            .map(|output| output.text.clone() + "\n")
            .collect()
    };
    output.result(&generations, texts);
    Ok(())
}

pub(super) async fn explain(args: Explain, output: &Output, stop: &Stop) -> Result<()> {
    let (mut pipeline, progress) = watched(Pipeline::open(&args.dir)?, output, stop);
    set(
        &mut pipeline.settings_mut().evaluate.max_tokens,
        args.max_tokens,
    );
    let base = args.base.as_deref();
    let base = base.map(|name| self::base(name, args.adapter.as_deref()));
    let (base, adapter) = (base.transpose()?, args.adapter.as_deref());
    if let Some(split) = args.split {
        let limit = args.limit;
        let out = args.out.unwrap_or_else(|| {
            let name = format!("explained.{split}.jsonl");
            pipeline.project().path(&name)
        });
        let explained = pipeline
            .explain_split(Pairs { split, limit }, &out, base.as_deref(), adapter)
            .await;
        progress.finish();
        let explained = explained?;
        output.result(&explained, || about_split(&explained));
        return Ok(());
    }
    // One of the two is there, as the arguments are read.
    let (user, item) = args.user.zip(args.item).unwrap_or_default();
    let explained = pipeline.explain(&user.into(), &item.into(), base.as_deref(), adapter)?;
    output.result(&explained, || about_pair(&explained));
    Ok(())
}

fn about_split(explained: &ExplainedSplit) -> String {
    let ExplainedSplit {
        out,
        pairs,
        explanations,
        kept,
        failed,
        tokens_per_second,
        cached_share,
        first_token_seconds,
        seconds,
        ..
    } = explained;
    let failures = match failed {
        0 => String::new(),
        failed => format!("{failed} pairs could not be explained\n"),
    };
    let pairs = format!(
        "{}: {pairs} pairs, {kept} of them explained before\n{failures}",
        out.display()
    );
    if *explanations == 0 {
        return pairs;
    }
    format!(
        "{pairs}{explanations} explanations in {seconds:.1} s: {tokens_per_second:.0} tokens/s, {:.0} % of the prompts shared, \
         half of the first tokens after {first_token_seconds:.2} s\n",
        cached_share * 100.0
    )
}

fn about_pair(explained: &Explained) -> String {
    let mut text = format!("{}\n", explained.explanation);
    for evidence in &explained.evidence {
        text += &format!(
            "\n  {}\n    you:  {}\n    item: {}\n",
            evidence.sentence,
            evidence.user.join(" | "),
            evidence.item.join(" | ")
        );
    }
    text
}

/// The folder of a base; for `tiny`, the one that the adapter was trained on.
pub(super) fn base(name: &str, adapter: Option<&Path>) -> Result<PathBuf> {
    match (name, adapter) {
        ("tiny", Some(adapter)) => because::base_of(adapter),
        _ => Ok(PathBuf::from(name)),
    }
}

fn folder_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Shows training on the progress bar.
fn shown<'a>(what: &'a str, progress: &'a Progress) -> impl FnMut(&TrainEvent) + 'a {
    let mut total = 0;
    move |event| {
        if let TrainEvent::Started { steps, .. } = event {
            total = *steps as usize;
        }
        if let Some(event) = training_event(what, total, event) {
            progress.show(&event);
        }
    }
}

impl Tuning {
    fn apply(self, pipeline: &mut Pipeline) {
        let train = &mut pipeline.settings_mut().train;
        set(&mut train.base, self.base);
        train.max_steps = self.max_steps.or(train.max_steps);
        set(&mut train.epochs, self.epochs);
        set(&mut train.batch_size, self.batch_size);
        train.batch_tokens = self.batch_tokens.or(train.batch_tokens);
        set(&mut train.bucketing, self.bucketing);
        set(&mut train.dropout, self.dropout);
        train.dora |= self.dora;
        train.rslora |= self.rslora;
        train.rank_pattern.extend(self.rank_pattern);
        train.alpha_pattern.extend(self.alpha_pattern);
        set(&mut train.evaluate_every, self.evaluate_every);
        train.patience = self.patience.or(train.patience);
        set(&mut train.min_delta, self.min_delta);
        set(&mut train.checkpointing, self.checkpointing);
        train.memory_limit = self.memory_limit.or(train.memory_limit);
        set(&mut train.checkpoint_every, self.checkpoint_every);
        set(&mut train.keep_checkpoints, self.keep_checkpoints);
        set(&mut train.accumulation, self.accumulation);
        train.learning_rate = self.learning_rate.or(train.learning_rate);
        train.warmup_steps = self.warmup_steps.or(train.warmup_steps);
        set(&mut train.rank, self.rank);
        set(&mut train.alpha, self.alpha);
        set(&mut train.target_modules, self.target_modules);
        set(&mut train.max_length, self.max_length);
        set(&mut train.tiny_steps, self.tiny_steps);
    }
}
