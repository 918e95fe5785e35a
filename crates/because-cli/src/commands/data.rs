use because::core::Project;
use because::graph::{BipartiteGraph, GraphStats, check};
use because::{Error, Result};
use serde_json::json;

use crate::args::{Graph, Import};
use crate::output::{Output, table};

pub(super) fn import(args: Import, output: &Output) -> Result<()> {
    let import = because::graph::Import::new(args.format, args.paths)
        .min_rating(args.min_rating)
        .k_core(args.k_core)
        .split(args.split)
        .ratio(args.ratio)
        .seed(args.seed);
    let summary = import.run(&Project::new(args.out))?;
    let object = serde_json::to_value(&summary).unwrap_or_default();
    output.result(&object, || lines(&object));
    Ok(())
}

pub(super) fn graph(args: &Graph, output: &Output) -> Result<()> {
    let project = Project::new(&args.dir);
    let graph = BipartiteGraph::from_project(&project)?;
    let stats = serde_json::to_value(GraphStats::of(&graph)).unwrap_or_default();
    // Split by split it is a figure for `--json`; people are shown the whole.
    let mut shown = stats.clone();
    if let Some(fields) = shown.as_object_mut() {
        fields.shift_remove("splits");
    }
    if !args.check {
        output.result(&stats, || lines(&shown));
        return Ok(());
    }
    let report = check(&project)?;
    let found = serde_json::to_value(&report).unwrap_or_default();
    output.result(&json!({ "graph": stats, "check": found }), || {
        format!("{}\n{}", lines(&shown), lines(&found))
    });
    if args.strict && report.leaks() > 0 {
        return Err(Error::Leaks {
            count: report.leaks(),
        });
    }
    Ok(())
}

/// An object as two columns, nested names joined by a blank.
fn lines(object: &serde_json::Value) -> String {
    fn flatten(name: String, value: &serde_json::Value, rows: &mut Vec<(String, String)>) {
        let join = |inner: &str| {
            if name.is_empty() {
                inner.to_owned()
            } else {
                format!("{name} {inner}")
            }
        };
        match value {
            serde_json::Value::Object(fields) => {
                for (field, value) in fields {
                    flatten(join(&field.replace('_', " ")), value, rows);
                }
            }
            serde_json::Value::Array(list) if list.iter().any(serde_json::Value::is_object) => {
                for (place, value) in list.iter().enumerate() {
                    flatten(join(&format!("{}", place + 1)), value, rows);
                }
            }
            serde_json::Value::String(text) => rows.push((name, text.clone())),
            other => rows.push((name, other.to_string())),
        }
    }
    let mut rows = Vec::new();
    flatten(String::new(), object, &mut rows);
    table(&rows)
}
