use because::llm::Stop;
use because::tune::{Merge, MergeEvent};
use because::{Event, Result};

use super::tune::base;
use crate::args::{Merge as Args, MergeFormat};
use crate::output::{Output, bytes};
use crate::progress::Progress;

pub(super) fn merge(args: &Args, output: &Output, stop: &Stop) -> Result<()> {
    let mut merge = Merge::new(base(&args.base, args.adapter.as_deref())?).cancel(stop.flag());
    if let Some(adapter) = &args.adapter {
        merge = merge.adapter(adapter);
    }
    if let Some(one) = args.weight_type {
        merge = merge.weight_type(one);
    }
    let is_gguf = args
        .out
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    let by_name = match is_gguf {
        true => MergeFormat::Gguf,
        false => MergeFormat::Safetensors,
    };
    let progress = Progress::new(output.shows_progress());
    let mut shown = |event: &MergeEvent<'_>| {
        if let MergeEvent::Tensor { done, total, .. } = *event {
            let what = "tensors";
            progress.show(&Event::Progress { what, done, total });
        }
    };
    let written = match args.format.unwrap_or(by_name) {
        MergeFormat::Safetensors => merge.write_safetensors(&args.out, &mut shown),
        MergeFormat::Gguf => merge.write_gguf(&args.out, &mut shown),
    };
    progress.finish();
    let written = written?;
    output.result(&written, || {
        format!(
            "{}: {} of {} tensors merged, {} in {}, {:.1} s",
            written.out.display(),
            written.merged_tensors,
            written.tensors,
            bytes(written.bytes),
            written.weight_type,
            written.seconds
        )
    });
    Ok(())
}
