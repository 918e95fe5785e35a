use because::core::{Prediction, jsonl};
use because::eval::TextMetrics;
use because::{Error, Pipeline, Result};

use crate::args::{Dir, Evaluate};
use crate::output::Output;

pub(super) fn evaluate(args: &Evaluate, output: &Output) -> Result<()> {
    let Evaluate::Text(args) = args;
    let pairs: Vec<Prediction> = jsonl::read_all(&args.pairs)?;
    if pairs.is_empty() {
        let reason = format!("{} holds no pair", args.pairs.display());
        return Err(Error::Empty {
            stage: "evaluate text",
            reason,
        });
    }
    let metrics = serde_json::to_value(TextMetrics::of(&pairs)).unwrap_or_default();
    output.result(&metrics, || {
        serde_json::to_string_pretty(&metrics).unwrap_or_default()
    });
    Ok(())
}

pub(super) async fn report(args: Dir, output: &Output) -> Result<()> {
    let pipeline = Pipeline::open(args.dir)?;
    pipeline.report().await?;
    let project = pipeline.project();
    let written = serde_json::json!({
        "report_json": project.path("report.json"),
        "report_html": project.path("report.html"),
    });
    output.result(&written, || {
        format!("{}", project.path("report.html").display())
    });
    Ok(())
}
