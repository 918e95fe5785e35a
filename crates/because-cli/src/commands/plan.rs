use because::{Amounts, Interval, Pipeline, PlanOptions, Result, Stopped, Taken};
use serde::Serialize;

use crate::args::Plan;
use crate::output::Output;

pub(super) fn plan(args: Plan, output: &Output) -> Result<()> {
    let mut pipeline = Pipeline::open(args.dir)?;
    args.messages.apply(&mut pipeline);
    args.negatives.apply(&mut pipeline);
    args.limits.apply(&mut pipeline);
    args.calls.apply(&mut pipeline);
    let mut options = PlanOptions::default();
    options.sample = args.sample;
    options.latency_secs = args.latency;
    let plan = pipeline.plan(&options)?;
    output.result(&plan, || lines(&plan));
    Ok(())
}

/// Passes a result on; of a run that stopped and did not fail, it first says how far it got and what is left.
pub(super) fn say_where_it_stopped<T>(
    pipeline: &Pipeline,
    result: Result<T>,
    planned: &PlanOptions,
    output: &Output,
) -> Result<T> {
    #[derive(Serialize)]
    struct Standstill<'a> {
        stopped: &'a Stopped,
    }
    if let Err(error) = &result
        && let Some(stopped) = pipeline.stopped(error, planned)
    {
        output.standstill(&Standstill { stopped: &stopped }, &standstill(&stopped));
    }
    result
}

fn standstill(stopped: &Stopped) -> String {
    let mut lines: Vec<String> = stopped
        .reached
        .iter()
        .map(|reached| format!("{}: {} of {}", reached.what, reached.done, reached.total))
        .collect();
    let spent = &stopped.spent;
    let money = stopped.spent_usd.map(usd).unwrap_or_default();
    lines.push(format!(
        "spent in this run: {} calls, {} tokens of prompts, {} of answers{money}",
        spent.calls, spent.usage.prompt_tokens, spent.usage.completion_tokens
    ));
    if spent.assumed_tokens > 0 {
        lines.push(format!(
            "with {} tokens assumed for calls that broke off",
            spent.assumed_tokens
        ));
    }
    if let Some(rest) = stopped.rest.filter(|rest| rest.calls.high > 0.0) {
        lines.push(format!("the rest would take {}", said(&rest)));
    }
    lines.join("\n")
}

fn said(amounts: &Amounts) -> String {
    let Amounts {
        calls,
        prompt_tokens,
        completion_tokens,
        hours,
        ..
    } = amounts;
    format!(
        "{} calls, {} tokens of prompts, {} of answers{}, {} h",
        count(*calls),
        count(*prompt_tokens),
        count(*completion_tokens),
        amounts
            .usd
            .map(|dollars| format!(", {} USD", span(dollars, money)))
            .unwrap_or_default(),
        span(*hours, time),
    )
}

/// The plan as columns, then what it rests on.
fn lines(plan: &because::Plan) -> String {
    let mut rows = vec![
        [
            "",
            "calls",
            "left",
            "prompt tokens",
            "answer tokens",
            "USD",
            "hours",
        ]
        .map(str::to_owned),
    ];
    let total = [("total", &plan.whole, &plan.left)];
    let stages = plan
        .stages
        .iter()
        .map(|stage| (stage.stage.as_str(), &stage.whole, &stage.left));
    for (name, whole, left) in stages.chain(total) {
        rows.push([
            name.to_owned(),
            count(whole.calls),
            count(left.calls),
            count(left.prompt_tokens),
            count(left.completion_tokens),
            left.usd
                .map_or_else(|| "?".to_owned(), |dollars| span(dollars, money)),
            span(left.hours, time),
        ]);
    }
    let mut text = columns(&rows);
    text.push_str("(tokens, dollars and hours are those of the calls that are left)\n");
    if let Some(taken) = &plan.taken {
        text.push_str(&format!("\ntaken so far: {}\n", took(taken)));
        if let Some(other) = plan
            .taken_elsewhere
            .as_ref()
            .filter(|other| other.calls > 0)
        {
            text.push_str(&format!(
                "of that for repairs and other settings: {}\n",
                took(other)
            ));
        }
        if let Some(forecast) = &plan.forecast {
            text.push_str(&format!("foreseen for the whole: {}\n", said(forecast)));
        }
    }
    text.push('\n');
    for note in &plan.notes {
        text.push_str(&format!("- {note}\n"));
    }
    for stage in plan.stages.iter().filter(|stage| stage.sampled.is_some()) {
        if let Some([looked, all]) = stage.sampled {
            text.push_str(&format!("- {}: {looked} of {all} looked at\n", stage.stage));
        }
    }
    text
}

fn took(taken: &Taken) -> String {
    format!(
        "{} calls, {} tokens of prompts ({} cached), {} of answers{}",
        taken.calls,
        taken.usage.prompt_tokens,
        taken.usage.cached_tokens,
        taken.usage.completion_tokens,
        taken.usd.map(usd).unwrap_or_default()
    )
}

fn usd(dollars: f64) -> String {
    format!(", {} USD", money(dollars))
}

fn money(dollars: f64) -> String {
    match dollars {
        0.0 => "0".to_owned(),
        dollars if dollars < 1.0 => format!("{dollars:.4}"),
        dollars => format!("{dollars:.2}"),
    }
}

fn time(hours: f64) -> String {
    let decimals = if hours < 0.1 { 3 } else { 2 };
    format!("{hours:.decimals$}")
}

fn count(interval: Interval) -> String {
    span(interval, |number| format!("{number:.0}"))
}

/// `12`, or `12 (10-15)` where it is not known better.
fn span(interval: Interval, write: impl Fn(f64) -> String) -> String {
    let [low, expected, high] = [interval.low, interval.expected, interval.high].map(write);
    if low == expected && high == expected {
        expected
    } else {
        format!("{expected} ({low}-{high})")
    }
}

fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(widths).enumerate();
        for (place, (cell, width)) in cells {
            if place == 0 {
                text.push_str(&format!("{cell:<width$}"));
            } else {
                text.push_str(&format!("  {cell:>width$}"));
            }
        }
        text.push('\n');
    }
    text
}
