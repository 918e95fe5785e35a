use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use because::Result;
use because::core::text::for_terminal;
use because::core::{Error as Files, Project, jsonl};
use because::llm::{
    Attempt, CallStats, ChatError, Prune, Pruned, Quantiles, RowFilter, Store, StoreStats,
};
use clap::CommandFactory;
use clap::error::ErrorKind;
use serde::Serialize;
use serde_json::json;

use crate::args::{Cli, Llm, LlmAudit, LlmExport, LlmPrune, LlmRows};
use crate::moment::shown;
use crate::output::{Output, bytes, columns, table};

pub(super) fn llm(command: Llm, output: &Output) -> Result<()> {
    match command {
        Llm::Stats(args) => stats(&args.dir, output),
        Llm::Audit(args) => audit(args, output),
        Llm::Export(args) => export(args, output),
        Llm::Prune(args) => prune(args, output),
    }
}

fn stats(dir: &Path, output: &Output) -> Result<()> {
    let stats = open(dir)?.stats()?;
    output.result(&stats, || said(&stats));
    Ok(())
}

fn audit(args: LlmAudit, output: &Output) -> Result<()> {
    let store = open(&args.dir)?;
    let attempts: Vec<Attempt> = store
        .attempts(&filter(args.rows).last(args.limit))?
        .collect::<Result<_, _>>()?;
    output.result(&json!({ "attempts": attempts }), || listed(&attempts));
    Ok(())
}

fn export(args: LlmExport, output: &Output) -> Result<()> {
    if output.is_json() && args.out.is_none() {
        let message =
            "--json prints one object on standard output, where the rows would go; say --out FILE";
        Cli::command()
            .error(ErrorKind::ArgumentConflict, message)
            .exit();
    }
    let store = open(&args.dir)?;
    let rows = filter(args.rows);
    if args.responses {
        written(store.answers(&rows)?, args.out, "answers", output)
    } else {
        written(store.attempts(&rows)?, args.out, "calls", output)
    }
}

/// Writes the rows one by one: a million of them take no more memory than one.
fn written<T: Serialize>(
    rows: impl Iterator<Item = Result<T, ChatError>>,
    out: Option<PathBuf>,
    what: &str,
    output: &Output,
) -> Result<()> {
    let Some(path) = out else {
        return printed(rows);
    };
    let (mut count, mut failed) = (0_u64, None);
    let filled = jsonl::write_atomic(&path, |out| {
        for row in rows {
            // Said as it is, and not as a fault of the file that is written.
            let row = row.map_err(|error| {
                failed = Some(error);
                std::io::Error::other("the rows cannot be read")
            })?;
            serde_json::to_writer(&mut *out, &row)?;
            out.write_all(b"\n")?;
            count += 1;
        }
        Ok(())
    });
    if let Some(error) = failed {
        return Err(error.into());
    }
    filled?;
    output.result(&json!({ "rows": count, "out": path }), || {
        format!("{count} {what} in {}", path.display())
    });
    Ok(())
}

fn printed<T: Serialize>(rows: impl Iterator<Item = Result<T, ChatError>>) -> Result<()> {
    let stdout = std::io::stdout();
    let shown = stdout.is_terminal();
    let mut out = std::io::BufWriter::with_capacity(1 << 16, stdout.lock());
    let mut line = Vec::new();
    for row in rows {
        line.clear();
        serde_json::to_writer(&mut line, &row?)
            .map_err(|error| Files::io("write", "standard output", error.into()))?;
        if shown {
            line = for_terminal(&String::from_utf8_lossy(&line)).into_bytes();
        }
        line.push(b'\n');
        if let Err(error) = out.write_all(&line) {
            return unheard(error);
        }
    }
    out.flush().or_else(unheard)
}

/// A closed pipe is the reader's wish to hear no more.
fn unheard(error: std::io::Error) -> Result<()> {
    match error.kind() {
        std::io::ErrorKind::BrokenPipe => Ok(()),
        _ => Err(Files::io("write", "standard output", error).into()),
    }
}

fn prune(args: LlmPrune, output: &Output) -> Result<()> {
    let path = existing(&args.dir)?;
    let mut filter = RowFilter::default();
    if let Some(age) = args.older_than {
        let now = SystemTime::now();
        filter = filter.before(now.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH));
    }
    if let Some(outcome) = args.outcome {
        filter = filter.outcome(outcome);
    }
    if let Some(model) = args.model {
        filter = filter.model(model);
    }
    let mut prune = Prune::default().dry_run(args.dry_run);
    if args.attempts {
        prune = prune.attempts(filter.clone());
    }
    if args.responses {
        prune = prune.answers(filter);
    }
    let pruned = prune.run(&path)?;
    let object = json!({ "dry_run": args.dry_run, "removed": pruned });
    output.result(&object, || removed(&pruned, args.dry_run));
    Ok(())
}

fn open(dir: &Path) -> Result<Store> {
    Ok(Store::open(existing(dir)?)?)
}

/// The file, which must be there: looking at it must not make one.
fn existing(dir: &Path) -> Result<PathBuf> {
    let path = Project::new(dir).llm_path();
    if path.is_file() {
        return Ok(path);
    }
    let hint =
        "it is written by the first command that asks a model: because profile, contrast or run";
    Err(Files::Missing { path, hint }.into())
}

fn filter(rows: LlmRows) -> RowFilter {
    let mut filter = RowFilter::default();
    if let Some(outcome) = rows.outcome {
        filter = filter.outcome(outcome);
    }
    if let Some(model) = rows.model {
        filter = filter.model(model);
    }
    if let Some(since) = rows.since {
        filter = filter.since(since);
    }
    filter
}

fn said(stats: &StoreStats) -> String {
    let calls = &stats.calls;
    let mut rows = vec![
        ("file", bytes(stats.file_bytes)),
        ("answers kept", stats.responses.to_string()),
        ("answered without a call", stats.from_store.to_string()),
        ("kept after a repair", stats.repaired.to_string()),
        ("calls", calls.attempts.to_string()),
    ];
    if let (Some(first), Some(last)) = (stats.first_unix, stats.last_unix) {
        rows.push(("first", format!("{} UTC", shown(first))));
        rows.push(("last", format!("{} UTC", shown(last))));
    }
    let outcomes = calls.outcomes.iter();
    let outcomes: Vec<String> = outcomes.map(|(name, n)| format!("{n} {name}")).collect();
    rows.push(("outcomes", outcomes.join(", ")));
    let usage = calls.usage;
    rows.push((
        "tokens in",
        format!(
            "{} ({} from the server's cache)",
            usage.prompt_tokens,
            share(calls.cached_share)
        ),
    ));
    rows.push((
        "tokens out",
        format!(
            "{} ({} of reasoning)",
            usage.completion_tokens, usage.reasoning_tokens
        ),
    ));
    rows.push(("answers that did not fit", share(calls.invalid_share)));
    let unpriced = match calls.unpriced {
        0 => String::new(),
        calls => format!(" ({calls} calls have no price)"),
    };
    rows.push(("cost", format!("{}{unpriced}", usd(calls.cost_nano))));
    rows.push(("latency", quantiles(calls.latency_ms)));
    if calls.queued_ms.is_some() {
        rows.push(("waited before", quantiles(calls.queued_ms)));
    }
    let mut text = table(&rows);
    if !stats.models.is_empty() {
        let header = [
            "model", "endpoint", "calls", "ok", "in", "cached", "out", "cost", "p50 ms", "p90 ms",
            "p99 ms",
        ];
        let models = stats
            .models
            .iter()
            .map(|model| by_model(&model.model, &model.endpoint, &model.calls));
        text.push('\n');
        text.push_str(&columns(&header, models));
    }
    text
}

fn by_model(model: &str, endpoint: &str, calls: &CallStats) -> Vec<String> {
    let latency = calls
        .latency_ms
        .map(|found| [found.p50, found.p90, found.p99]);
    let mut row = vec![
        model.to_owned(),
        match endpoint {
            "" => "in process".to_owned(),
            endpoint => endpoint.to_owned(),
        },
        calls.attempts.to_string(),
        calls.outcomes.get("ok").copied().unwrap_or(0).to_string(),
        calls.usage.prompt_tokens.to_string(),
        share(calls.cached_share),
        calls.usage.completion_tokens.to_string(),
        usd(calls.cost_nano),
    ];
    row.extend((0..3).map(|at| latency.map_or("-".to_owned(), |found| found[at].to_string())));
    row
}

fn listed(attempts: &[Attempt]) -> String {
    let header = [
        "id",
        "when (UTC)",
        "model",
        "outcome",
        "http",
        "in",
        "cached",
        "out",
        "ms",
        "cost",
        "why",
    ];
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    let rows = attempts.iter().map(|attempt| {
        let why = attempt.error.as_ref().or(attempt.finish_reason.as_ref());
        vec![
            attempt.id.to_string(),
            shown(attempt.created_unix),
            attempt.model.clone(),
            attempt.outcome.clone(),
            or_dash(attempt.status.map(|status| status.to_string())),
            attempt.usage.prompt_tokens.to_string(),
            attempt.usage.cached_tokens.to_string(),
            attempt.usage.completion_tokens.to_string(),
            or_dash(attempt.latency_ms.map(|ms| ms.to_string())),
            usd(attempt.cost_nano),
            or_dash(why.map(|why| because::core::text::excerpt(why, 80))),
        ]
    });
    match attempts.len() {
        0 => "no call fits".to_owned(),
        _ => columns(&header, rows),
    }
}

fn removed(pruned: &Pruned, dry_run: bool) -> String {
    let usage = pruned.usage;
    let mut rows = vec![
        ("calls", pruned.attempts.to_string()),
        ("answers", pruned.answers.to_string()),
    ];
    if pruned.attempts > 0 {
        rows.push((
            "what those calls took",
            format!(
                "{} tokens in, {} out, {}",
                usage.prompt_tokens,
                usage.completion_tokens,
                usd(pruned.cost_nano)
            ),
        ));
    }
    let (before, after) = (bytes(pruned.bytes_before), bytes(pruned.bytes_after));
    if dry_run {
        rows.push(("file", before));
        return format!("would be removed:\n{}", table(&rows));
    }
    rows.push(("file", format!("{before}, now {after}")));
    format!("removed:\n{}", table(&rows))
}

fn share(share: Option<f64>) -> String {
    share.map_or("-".into(), |share| format!("{:.1} %", share * 100.0))
}

/// Whole cents hide what one call costs.
fn usd(nano: Option<u64>) -> String {
    nano.map_or("-".into(), |nano| {
        let usd = nano as f64 / 1e9;
        format!("{usd:.*} USD", if usd < 1.0 { 6 } else { 2 })
    })
}

fn quantiles(found: Option<Quantiles>) -> String {
    found.map_or("-".into(), |found| {
        format!(
            "{} ms for half, {} for 90 %, {} for 99 %, {} at most",
            found.p50, found.p90, found.p99, found.max
        )
    })
}
