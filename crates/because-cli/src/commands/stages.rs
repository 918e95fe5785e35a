use because::llm::Stop;
use because::{Pairs, Pipeline, Result};

use super::{print_stages, watched};
use crate::args::{Contrast, Profile};
use crate::output::Output;

pub(super) async fn profile(args: Profile, output: &Output, stop: &Stop) -> Result<()> {
    let (mut pipeline, progress) = watched(Pipeline::open(args.dir)?, output, stop);
    args.messages.apply(&mut pipeline);
    args.calls.apply(&mut pipeline);
    let stages = pipeline.profile().await;
    progress.finish();
    print_stages(&pipeline, &stages?, output)
}

pub(super) async fn contrast(args: Contrast, output: &Output, stop: &Stop) -> Result<()> {
    let (mut pipeline, progress) = watched(Pipeline::open(args.dir)?, output, stop);
    args.negatives.apply(&mut pipeline);
    args.calls.apply(&mut pipeline);
    let stage = pipeline
        .contrast(Pairs {
            split: args.split,
            limit: args.limit,
        })
        .await;
    progress.finish();
    print_stages(&pipeline, &[stage?], output)
}
