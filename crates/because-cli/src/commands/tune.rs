use std::path::{Path, PathBuf};

use because::core::{Message, SftExample, Split, jsonl};
use because::llm::Stop;
use because::tune::{Decoding, TinyBase, TrainEvent, TrainSet, Trainer, TunedModel};
use because::{Event, Pipeline, Result};

use super::{print_stages, said, set, watched};
use crate::args::{Explain, Generate, Run, Train, Tuning};
use crate::output::Output;
use crate::progress::Progress;

pub(super) async fn run(args: Run, output: &Output, stop: &Stop) -> Result<()> {
    let (mut pipeline, progress) = watched(Pipeline::open(args.dir)?, output, stop);
    args.calls.apply(&mut pipeline);
    args.messages.apply(&mut pipeline);
    args.negatives.apply(&mut pipeline);
    args.tuning.apply(&mut pipeline);
    let contrast = &mut pipeline.settings_mut().contrast;
    set(&mut contrast.train_limit, args.train_limit);
    set(&mut contrast.valid_limit, args.valid_limit);
    set(&mut contrast.test_limit, args.test_limit);
    let stages = pipeline.run().await;
    progress.finish();
    print_stages(&pipeline, &stages?, output)
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
    args.tuning.apply(&mut pipeline);
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
    let out = args.out.clone().unwrap_or_else(|| root.join("adapter"));
    if is_tiny {
        base = if is_project {
            pipeline.tiny_base().await?;
            root.join("base.tiny")
        } else {
            let folder = out.with_file_name("base.tiny");
            let settings = pipeline.settings();
            let mut shown = shown("base", &progress);
            TinyBase::new()
                .seed(settings.seed)
                .steps(settings.train.tiny_steps)
                .examples(jsonl::read_all::<SftExample>(&data_path)?)
                .cancel(stop.flag())
                .build(Vec::new(), &folder, &mut shown)?;
            folder
        };
    }
    let settings = &pipeline.settings().train;
    let mut config = settings.config(pipeline.settings().seed);
    config.shuffle = !args.no_shuffle;
    let mut trainer = Trainer::new(config).resume(args.resume).cancel(stop.flag());
    trainer = match args.init_adapter {
        Some(adapter) => trainer.init_adapter(adapter),
        None => trainer.lora(settings.lora()),
    };
    if let Some(log) = args.log {
        trainer = trainer.log(log);
    }
    let summary = trainer.run(&base, &data, &out, &mut shown("adapter", &progress));
    progress.finish();
    let summary = serde_json::to_value(summary?).unwrap_or_default();
    output.result(&summary, || {
        format!("{}: {}", out.display(), said(&summary))
    });
    Ok(())
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

pub(super) fn explain(args: Explain, output: &Output) -> Result<()> {
    let mut pipeline = Pipeline::open(args.dir)?;
    set(
        &mut pipeline.settings_mut().evaluate.max_tokens,
        args.max_tokens,
    );
    let base = args
        .base
        .map(|name| base(&name, args.adapter.as_deref()))
        .transpose()?;
    let explained = pipeline.explain(
        &args.user.into(),
        &args.item.into(),
        base.as_deref(),
        args.adapter.as_deref(),
    )?;
    output.result(&explained, || {
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
    });
    Ok(())
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
    move |event| match event {
        TrainEvent::Started { steps, .. } => total = *steps as usize,
        TrainEvent::Step(record) => {
            progress.show(&Event::Loss {
                what,
                step: record.step as usize,
                total,
                loss: record.loss,
            });
        }
        _ => {}
    }
}

impl Tuning {
    fn apply(self, pipeline: &mut Pipeline) {
        let train = &mut pipeline.settings_mut().train;
        set(&mut train.base, self.base);
        train.max_steps = self.max_steps.or(train.max_steps);
        set(&mut train.epochs, self.epochs);
        set(&mut train.batch_size, self.batch_size);
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
