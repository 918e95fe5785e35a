use because::llm::Stop;
use because::{Pairs, Pipeline, PlanOptions, Result};

use super::plan::say_where_it_stopped;
use super::{print_stages, watched};
use crate::args::{Contrast, Profile};
use crate::output::Output;

pub(super) async fn profile(args: Profile, output: &Output, stop: &Stop) -> Result<()> {
    let (mut pipeline, progress) = watched(Pipeline::open(args.dir)?, output, stop);
    args.messages.apply(&mut pipeline);
    args.calls.apply(&mut pipeline);
    let stages = pipeline.profile().await;
    progress.finish();
    let mut planned = PlanOptions::default();
    planned.explanations = false;
    let stages = say_where_it_stopped(&pipeline, stages, &planned, output)?;
    print_stages(&pipeline, &stages, output)
}

pub(super) async fn contrast(args: Contrast, output: &Output, stop: &Stop) -> Result<()> {
    let (mut pipeline, progress) = watched(Pipeline::open(args.dir)?, output, stop);
    args.negatives.apply(&mut pipeline);
    args.calls.apply(&mut pipeline);
    let pairs = Pairs {
        split: args.split,
        limit: args.limit,
    };
    let stage = pipeline.contrast(pairs).await;
    progress.finish();
    let mut planned = PlanOptions::default();
    planned.profiles = false;
    planned.pairs = Some(vec![pairs]);
    let stage = say_where_it_stopped(&pipeline, stage, &planned, output)?;
    print_stages(&pipeline, &[stage], output)
}
