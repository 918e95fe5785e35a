mod data;
mod llm;
mod measure;
#[cfg(feature = "tune")]
mod merge;
mod plan;
#[cfg(feature = "serve")]
mod serve;
mod stages;
#[cfg(feature = "tune")]
mod tune;

use std::sync::Arc;

use because::llm::Stop;
use because::{Pipeline, Plan, Result, StageReport};
use serde::Serialize;

use crate::args::{Calls, Command, Limits, Messages, Negatives};
use crate::output::Output;
use crate::progress::Progress;

pub(crate) async fn run(command: Command, output: &Output, stop: &Stop) -> Result<()> {
    match command {
        Command::Import(args) => data::import(*args, output),
        Command::Cold(args) => data::cold(args, output),
        Command::Graph(args) => data::graph(&args, output),
        Command::Plan(args) => plan::plan(*args, output),
        Command::Profile(args) => stages::profile(args, output, stop).await,
        Command::Contrast(args) => stages::contrast(args, output, stop).await,
        #[cfg(feature = "tune")]
        Command::Train(args) => tune::train(*args, output, stop).await,
        #[cfg(feature = "tune")]
        Command::Generate(args) => tune::generate(&args, output),
        #[cfg(feature = "tune")]
        Command::Merge(args) => merge::merge(&args, output, stop),
        #[cfg(feature = "tune")]
        Command::Explain(args) => tune::explain(args, output, stop).await,
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::serve(*args, output, stop).await,
        Command::Evaluate(args) => measure::evaluate(&args, output),
        Command::Llm(command) => llm::llm(command, output),
        Command::Report(args) => measure::report(args, output).await,
        #[cfg(feature = "tune")]
        Command::Run(args) => tune::run(*args, output, stop).await,
    }
}

/// A pipeline that obeys `stop` and is watched, with what its last stage left of the progress bar.
fn watched(pipeline: Pipeline, output: &Output, stop: &Stop) -> (Pipeline, Arc<Progress>) {
    let progress = Arc::new(Progress::new(output.shows_progress()));
    let shown = Arc::clone(&progress);
    (
        pipeline
            .stop(stop.clone())
            .on_event(move |event| shown.show(event)),
        progress,
    )
}

/// What a run of stages prints.
#[derive(Serialize)]
struct Stages<'a> {
    stages: &'a [StageReport],
    #[serde(skip_serializing_if = "Option::is_none")]
    llm: Option<serde_json::Value>,
    /// What the run was to take and what it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<Plan>,
}

fn print_stages(pipeline: &Pipeline, stages: &[StageReport], output: &Output) -> Result<()> {
    print_stages_and_plan(pipeline, stages, None, output)
}

fn print_stages_and_plan(
    pipeline: &Pipeline,
    stages: &[StageReport],
    plan: Option<Plan>,
    output: &Output,
) -> Result<()> {
    let llm = pipeline.llm_totals()?.and_then(|totals| {
        let mut shown = serde_json::to_value(&totals).ok()?;
        if let Some(share) = totals.usage.cached_share() {
            shown["cached_share"] = share.into();
        }
        Some(shown)
    });
    output.result(&Stages { stages, llm, plan }, || {
        stages
            .iter()
            .map(|stage| format!("{}: {}\n", stage.stage, said(&stage.detail)))
            .collect()
    });
    Ok(())
}

/// A stage's findings in a line.
fn said(detail: &serde_json::Value) -> String {
    match detail {
        serde_json::Value::Object(found) => found
            .iter()
            .map(|(name, value)| format!("{} {value}", name.replace('_', " ")))
            .collect::<Vec<_>>()
            .join(", "),
        serde_json::Value::Null => "nothing had changed".to_owned(),
        other => other.to_string(),
    }
}

impl Calls {
    fn apply(self, pipeline: &mut Pipeline) {
        let settings = pipeline.settings_mut();
        if let Some(model) = self.llm {
            settings.llm.model = model;
        }
        if let Some(reasoner) = self.reasoner {
            settings.llm.reasoner = Some(reasoner);
        }
        if let Some(record) = self.record {
            settings.llm.record = Some(record);
        }
        let llm = &mut settings.llm;
        set(&mut llm.concurrency, self.concurrency);
        llm.requests_per_minute = self.requests_per_minute.or(llm.requests_per_minute);
        llm.tokens_per_minute = self.tokens_per_minute.or(llm.tokens_per_minute);
        llm.batch |= self.batch;
        set(&mut llm.batch_rows, self.batch_rows);
        llm.batch_wait &= !self.batch_no_wait;
        set(&mut settings.seed, self.seed);
        let llm = &mut settings.llm;
        llm.budget_usd = self.budget_usd.or(llm.budget_usd);
        llm.budget_tokens = self.budget_tokens.or(llm.budget_tokens);
        llm.deadline = self.deadline.or(llm.deadline);
    }
}

impl Limits {
    fn apply(&self, pipeline: &mut Pipeline) {
        let contrast = &mut pipeline.settings_mut().contrast;
        set(&mut contrast.train_limit, self.train_limit);
        set(&mut contrast.valid_limit, self.valid_limit);
        set(&mut contrast.test_limit, self.test_limit);
    }
}

impl Messages {
    fn apply(&self, pipeline: &mut Pipeline) {
        let profile = &mut pipeline.settings_mut().profile;
        set(&mut profile.layers, self.layers);
        set(&mut profile.neighbors, self.neighbors);
        set(&mut profile.sampling, self.sampling);
    }
}

impl Negatives {
    fn apply(&self, pipeline: &mut Pipeline) {
        let contrast = &mut pipeline.settings_mut().contrast;
        set(&mut contrast.hard, self.hard);
        set(&mut contrast.random, self.random);
        set(&mut contrast.max_attempts, self.max_attempts);
    }
}

fn set<T>(setting: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *setting = given;
    }
}
