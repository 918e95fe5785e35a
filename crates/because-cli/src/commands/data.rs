use std::path::Path;

use because::core::Project;
use because::graph::{
    BipartiteGraph, Check, CheckReport, ColdStart, Filter, Format, GraphStats, ImportSummary,
    SplitStrategy,
};
use because::{Error, ImportSettings, Result, Settings};
use serde_json::json;

use crate::args::{Cold, ColdNodes, Filters, Graph, Import};
use crate::output::{Output, columns, table};

pub(super) fn import(args: Import, output: &Output) -> Result<()> {
    let (mut settings, mut out) = match &args.from_config {
        Some(file) => written_down(file)?,
        None => (ImportSettings::new(Format::Jsonl, Vec::new()), "".into()),
    };
    if let Some(format) = args.format {
        settings.format = format;
    }
    if !args.paths.is_empty() {
        settings.paths = args.paths;
        settings.resolve(Path::new("."))?;
    }
    if let Some(folder) = args.out {
        out = folder;
    }
    args.filter.apply(&mut settings.filter);
    args.cold.apply(&mut settings.cold);
    settings.split = args.split.or(settings.split);
    settings.ratio = args.ratio.unwrap_or(settings.ratio);
    settings.seed = args.seed.unwrap_or(settings.seed);
    run(&settings, &Project::new(out), None, output)
}

/// A cold project is an import of another project's own files with the splits they have.
pub(super) fn cold(args: Cold, output: &Output) -> Result<()> {
    let project = Project::new(&args.dir);
    let out = Project::new(&args.out);
    let mut paths = vec![project.interactions_path()];
    let known = [
        project.users_path(),
        project.items_path(),
        project.references_path(),
    ];
    paths.extend(known.into_iter().filter(|path| path.exists()));
    let mut settings = ImportSettings::new(Format::Jsonl, paths);
    settings.resolve(Path::new("."))?;
    settings.split = Some(SplitStrategy::Rows);
    settings.seed = args.seed;
    args.nodes.apply(&mut settings.cold);
    if settings.cold.is_nobody() {
        return Err(Error::Empty {
            stage: "cold",
            reason: "nobody is to be made cold; say how many with --cold-users or --cold-items"
                .into(),
        });
    }
    let rest = Some(project.path("because.toml")).filter(|path| path.exists());
    run(&settings, &out, rest.as_deref(), output)
}

/// Imports and writes down how; `rest` is where the other settings of a new project come from.
fn run(
    settings: &ImportSettings,
    out: &Project,
    rest: Option<&Path>,
    output: &Output,
) -> Result<()> {
    let file = out.path("because.toml");
    for known in rest.into_iter().chain(file.exists().then_some(&*file)) {
        // What cannot be written at the end had better be known at the beginning.
        Settings::load(known)?;
    }
    let summary = settings.import().run(out)?;
    if let Some(rest) = rest.filter(|_| !file.exists()) {
        std::fs::copy(rest, &file)
            .map_err(|source| because::core::Error::io("copy", rest, source))?;
    }
    settings.save(&file)?;
    let object = serde_json::to_value(&summary).unwrap_or_default();
    output.result(&object, || said(&summary, &object));
    Ok(())
}

/// The `[import]` of a file of settings, and the folder of that file.
fn written_down(file: &Path) -> Result<(ImportSettings, std::path::PathBuf)> {
    let Some(mut settings) = Settings::load(file)?.import else {
        return Err(Error::Empty {
            stage: "import",
            reason: format!(
                "{} has no [import]; `because import FORMAT PATHS --out DIR` writes one",
                file.display()
            ),
        });
    };
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    settings.resolve(folder)?;
    Ok((settings, folder.to_owned()))
}

impl Filters {
    fn apply(self, filter: &mut Filter) {
        filter.from = self.from.or(filter.from);
        filter.to = self.to.or(filter.to);
        filter.min_rating = self.min_rating.or(filter.min_rating);
        filter.sample_users = self.sample_users.or(filter.sample_users);
        filter.max_per_user = self.max_per_user.or(filter.max_per_user);
        let bounds = [self.k_core_users, self.k_core_items].map(|bound| bound.or(self.k_core));
        filter.k_core_users = bounds[0].or(filter.k_core_users);
        filter.k_core_items = bounds[1].or(filter.k_core_items);
    }
}

impl ColdNodes {
    fn apply(self, cold: &mut ColdStart) {
        cold.users = self.cold_users.or(cold.users);
        cold.items = self.cold_items.or(cold.items);
        if let Some(keep) = self.cold_keep {
            cold.keep = keep;
        }
    }
}

/// The summary for people: its figures, then what each filter took.
fn said(summary: &ImportSummary, object: &serde_json::Value) -> String {
    let mut figures = object.clone();
    if let Some(fields) = figures.as_object_mut() {
        fields.remove("before");
        fields.remove("steps");
        if summary.conflicts.count == 0 {
            fields.insert("conflicts".to_owned(), 0.into());
        }
    }
    let mut text = lines(&figures);
    if summary.merged > 0 {
        text += &format!(
            "\n{} rows are no line of their own: they completed the line of a user or item that an earlier row began (merged)\n",
            summary.merged
        );
    }
    if summary.conflicts.count > 0 {
        text += &format!(
            "{} values of theirs contradict an earlier row and stand in conflicts.jsonl\n",
            summary.conflicts.count
        );
    }
    if summary.steps.is_empty() {
        return text;
    }
    let before = summary.before;
    let first = [before.interactions, before.users, before.items].map(|count| count.to_string());
    let first = [["read".to_owned(), String::new()].to_vec(), first.to_vec()].concat();
    let steps = summary.steps.iter().map(|step| {
        let (removed, left) = (step.removed, step.left);
        let after = |removed: u64, left: u64| format!("{left} (-{removed})");
        vec![
            step.filter.replace('_', " "),
            step.setting.clone(),
            after(removed.interactions, left.interactions),
            after(removed.users, left.users),
            after(removed.items, left.items),
        ]
    });
    text.push('\n');
    text += &columns(
        &["filter", "set to", "interactions", "users", "items"],
        std::iter::once(first).chain(steps),
    );
    text
}

/// The figures of a graph for people; those of each split are for programs.
fn shown(stats: &serde_json::Value) -> serde_json::Value {
    let mut shown = stats.clone();
    if let Some(fields) = shown.as_object_mut() {
        fields.shift_remove("splits");
    }
    shown
}

pub(super) fn graph(args: &Graph, output: &Output) -> Result<()> {
    let project = Project::new(&args.dir);
    let stats = || -> Result<serde_json::Value> {
        let graph = BipartiteGraph::from_project(&project)?;
        Ok(serde_json::to_value(GraphStats::of(&graph)).unwrap_or_default())
    };
    if !args.check {
        let stats = stats()?;
        output.result(&stats, || lines(&shown(&stats)));
        return Ok(());
    }
    let file = project.path("because.toml");
    let mut check = Check::default();
    if file.exists() {
        let import = Settings::load(&file)?.import;
        check.promised = import.and_then(|import| import.split);
    }
    let report = check.run(&project)?;
    // A project that makes no graph (a pair in two splits) is just what a check is for.
    let stats = stats().unwrap_or_else(|error| json!({ "error": error.to_string() }));
    output.result(&json!({ "graph": stats, "check": report }), || {
        format!("{}\n{}", lines(&shown(&stats)), findings(&report))
    });
    if args.strict && report.leaks() > 0 {
        return Err(Error::Leaks {
            count: report.leaks(),
        });
    }
    Ok(())
}

/// What was found, for people: each with what it means and the first few.
fn findings(report: &CheckReport) -> String {
    let mut text: String = report
        .findings
        .iter()
        .map(|finding| {
            let of = finding.of.map(|of| format!(" of {of}")).unwrap_or_default();
            let examples: String = finding
                .examples
                .iter()
                .map(|example| format!("    {}\n", example.replace(['\n', '\r'], " ")))
                .collect();
            let more = finding.count > finding.examples.len();
            let rest = if more { "    ...\n" } else { "" };
            let (severity, name, count) = (finding.severity, finding.name, finding.count);
            format!(
                "{severity}: {name}, {count}{of}\n  {}\n{examples}{rest}",
                finding.meaning
            )
        })
        .collect();
    text += &format!("found nothing: {}\n", report.passed.join(", "));
    text
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
