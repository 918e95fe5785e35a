use because_core::text::excerpt;
use minijinja::{Environment, Value as Shown, context};
use serde::Serialize;
use serde_json::{Map, Value};

use super::table::table;
use super::{Report, Sample, TextSection, TrainingSummary, curve};
use crate::ContrastSummary;

/// The longest text of a sample on the page; `report.json` has the whole.
const SAMPLE_CHARS: usize = 1200;

/// Fills in the page. The template is named `.html`, which is what makes minijinja escape every value.
pub(super) fn render(report: &Report) -> Result<String, minijinja::Error> {
    let mut pages = Environment::new();
    pages.add_template("report.html", include_str!("../../templates/report.html"))?;
    let settings = serde_json::to_value(&report.settings).unwrap_or_default();
    pages.get_template("report.html")?.render(context! {
        title => report.title,
        version => env!("CARGO_PKG_VERSION"),
        lead => report.text.as_ref().map(lead),
        settings => rows(&settings),
        graph => report.graph.as_ref().map(rows),
        profiles => report.profiles.iter().map(|layer| context! {
            layer => layer.layer,
            users => grouped(layer.users),
            items => grouped(layer.items),
            unknown => grouped(layer.unknown),
            mean_words => format!("{:.1}", layer.mean_words),
            models => layer.models.iter().map(|(model, n)| format!("{model} ({})", grouped(*n))).collect::<Vec<_>>().join(", "),
        }).collect::<Vec<_>>(),
        contrast => report.contrast.as_ref().map(contrast),
        training => report.training.as_ref().map(training),
        text => report.text.as_ref().map(text),
        samples => report.samples.iter().map(sample).collect::<Vec<_>>(),
        notes => report.notes,
    })
}

/// One line of a table of names and values.
#[derive(Serialize)]
struct Row {
    name: String,
    value: String,
}

/// An object as rows, objects inside it under dotted names.
fn rows(value: &Value) -> Vec<Row> {
    let mut rows = Vec::new();
    match value {
        Value::Object(fields) => flatten(fields, "", &mut rows),
        Value::Null => {}
        other => rows.push(Row {
            name: "value".into(),
            value: shown(other),
        }),
    }
    rows
}

fn flatten(fields: &Map<String, Value>, before: &str, rows: &mut Vec<Row>) {
    for (name, value) in fields {
        let name = format!("{before}{}", name.replace('_', " "));
        match value {
            Value::Object(inner) => flatten(inner, &format!("{name} · "), rows),
            value => rows.push(Row {
                name,
                value: shown(value),
            }),
        }
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "–".into(),
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(shown).collect::<Vec<_>>().join(", "),
        Value::Number(number) if number.is_f64() => trimmed(number.as_f64().unwrap_or(f64::NAN)),
        other => other.to_string(),
    }
}

/// Four decimals at most, more where the number is small, without a tail of zeros.
fn trimmed(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-3 {
        return format!("{value:.2e}");
    }
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// The three figures the page opens with.
fn lead(section: &TextSection) -> Vec<Shown> {
    table(section)
        .into_iter()
        .filter(|line| line.interval.is_some())
        .map(|line| context! { line => line })
        .collect()
}

fn text(section: &TextSection) -> Shown {
    let controls = &section.controls;
    context! {
        pairs => grouped(section.metrics.pairs),
        lines => table(section),
        level => format!("{:.0} %", section.intervals.level * 100.0),
        samples => section.intervals.samples,
        seed => section.intervals.seed.to_string(),
        shuffled => controls.shuffled.made_by,
        shuffled_missing => controls.shuffled.unavailable,
        item_profile => controls.item_profile.made_by,
        item_profile_missing => controls.item_profile.unavailable,
        signatures => section.metrics.signatures.iter().map(|(name, value)| Row { name: name.clone(), value: value.clone() }).collect::<Vec<_>>(),
    }
}

fn contrast(summary: &ContrastSummary) -> Shown {
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    let most = summary.attempts.values().copied().max().unwrap_or(0).max(1);
    let width = |n: usize, most: f64| format!("{:.1}", (n as f64 / most * 100.0).clamp(0.0, 100.0));
    let tallest = summary
        .positions
        .iter()
        .chain(&summary.picked_positions)
        .copied()
        .max()
        .unwrap_or(0)
        .max(1) as f64;
    context! {
        pairs => grouped(summary.pairs),
        accepted => grouped(summary.accepted),
        accepted_share => percent(summary.accepted as f64 / summary.pairs.max(1) as f64),
        answer_shown => grouped(summary.answer_shown),
        first_try => percent(summary.first_try_accuracy),
        first_try_interval => format!("{} to {}", percent(summary.first_try_interval.low), percent(summary.first_try_interval.high)),
        chance => percent(summary.chance),
        attempts => summary.attempts.iter().map(|(attempts, n)| context! {
            attempts => attempts, pairs => grouped(*n), width => width(*n, most as f64),
        }).collect::<Vec<_>>(),
        positions => summary.positions.iter().zip(&summary.expected_positions).zip(&summary.picked_positions).enumerate().map(|(at, ((seen, expected), picked))| context! {
            place => at + 1,
            seen => grouped(*seen),
            expected => format!("{expected:.1}"),
            picked => grouped(*picked),
            width => width(*seen, tallest),
            picked_width => width(*picked, tallest),
        }).collect::<Vec<_>>(),
        chi_square => format!("{:.2}", summary.chi_square),
        degrees_of_freedom => summary.degrees_of_freedom,
        models => summary.models.iter().map(|(model, n)| format!("{model} ({})", grouped(*n))).collect::<Vec<_>>().join(", "),
    }
}

fn training(summary: &TrainingSummary) -> Shown {
    let mut rows = Vec::new();
    let mut row = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            rows.push(Row {
                name: name.into(),
                value,
            });
        }
    };
    let loss = |points: &[super::LossPoint], last: bool| {
        let point = if last { points.last() } else { points.first() };
        point.map(|point| format!("{:.4} at step {}", point.loss, point.step))
    };
    let count = |n: u64| grouped(usize::try_from(n).unwrap_or(usize::MAX));
    row("examples", summary.examples.map(grouped));
    row(
        "trainable parameters",
        summary.trainable_parameters.map(count),
    );
    row("parameters", summary.total_parameters.map(count));
    row("first loss", loss(&summary.losses, false));
    row("last loss", loss(&summary.losses, true));
    row(
        "first loss on held-out examples",
        loss(&summary.valid_losses, false),
    );
    row(
        "last loss on held-out examples",
        loss(&summary.valid_losses, true),
    );
    context! {
        rows => rows,
        has_valid => !summary.valid_losses.is_empty(),
        // Numbers only: nothing of anybody's text is in it.
        curve => curve::svg(&summary.losses, &summary.valid_losses).map(Shown::from_safe_string),
    }
}

fn sample(sample: &Sample) -> Shown {
    context! {
        user => sample.user.as_ref().map(ToString::to_string),
        item => sample.item.as_ref().map(ToString::to_string),
        item_title => sample.item_title.as_deref().map(|title| excerpt(title, 200)),
        explanation => excerpt(&sample.explanation, SAMPLE_CHARS),
        reference => sample.reference.as_deref().map(|reference| excerpt(reference, SAMPLE_CHARS)),
        accepted => sample.accepted,
        attempts => sample.attempts,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_become_dotted_rows() {
        let rows = rows(
            &json!({"users": 12, "degree": {"mean": 2.5, "by_side": {"item": [1, 2]}}, "seed": null}),
        );
        let lines: Vec<String> = rows
            .iter()
            .map(|row| format!("{} = {}", row.name, row.value))
            .collect();
        assert_eq!(
            lines,
            [
                "users = 12",
                "degree · mean = 2.5",
                "degree · by side · item = 1, 2",
                "seed = –"
            ]
        );
    }

    #[test]
    fn numbers_are_shown_short() {
        assert_eq!(
            (
                trimmed(0.5).as_str(),
                trimmed(0.000_012).as_str(),
                trimmed(3.0).as_str()
            ),
            ("0.5", "1.20e-5", "3")
        );
        assert_eq!(grouped(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!(grouped(123), "123");
    }
}
