use serde::Serialize;

use super::TextSection;
use crate::{Interval, TextMetrics};

/// One metric under the model and under both controls.
#[derive(Serialize)]
pub(super) struct Line {
    /// The heading above it, where it is the first of its group.
    heading: Option<&'static str>,
    name: &'static str,
    /// The settings it was computed under, shown when pointed at.
    signature: Option<String>,
    model: String,
    pub(super) interval: Option<String>,
    shuffled: String,
    item_profile: String,
    /// Whether it lies above every control there is; a length or a variety has no such order.
    beats_controls: bool,
}

/// Every metric in the order of the page.
pub(super) fn table(section: &TextSection) -> Vec<Line> {
    let controls = [
        &section.controls.shuffled.metrics,
        &section.controls.item_profile.metrics,
    ];
    METRICS
        .iter()
        .enumerate()
        .map(|(at, &(group, name, signature, decimals, read))| {
            let figure = read(&section.metrics);
            let beside = controls.map(|control| control.as_ref().map(read));
            let show = |figure: Option<f64>| {
                figure.map_or_else(|| "–".into(), |figure| format!("{figure:.decimals$}"))
            };
            let is_score = group != "Variety and length";
            Line {
                heading: (at == 0 || METRICS[at - 1].0 != group).then_some(group),
                name,
                signature: section.metrics.signatures.get(signature).cloned(),
                model: show(Some(figure)),
                interval: interval_of(section, group, name)
                    .map(|interval| between(interval, decimals)),
                shuffled: show(beside[0]),
                item_profile: show(beside[1]),
                beats_controls: is_score
                    && beside.iter().any(Option::is_some)
                    && beside.iter().flatten().all(|control| figure > *control),
            }
        })
        .collect()
}

fn interval_of(section: &TextSection, group: &str, name: &str) -> Option<Interval> {
    match (group, name) {
        (_, "BLEU-4 (13a)") => Some(section.intervals.bleu4_13a),
        ("ROUGE F, 0 to 1", "ROUGE-L") => Some(section.intervals.rouge_l),
        (_, "chrF2") => Some(section.intervals.chrf),
        _ => None,
    }
}

fn between(interval: Interval, decimals: usize) -> String {
    format!(
        "{:.decimals$} to {:.decimals$}",
        interval.low, interval.high
    )
}

/// How a metric is read off, which group it is in, and with how many decimals it is shown.
type Metric = (
    &'static str,
    &'static str,
    &'static str,
    usize,
    fn(&TextMetrics) -> f64,
);

const METRICS: &[Metric] = &[
    ("BLEU, 0 to 100", "BLEU-1 (13a)", "bleu1.13a", 2, |m| {
        m.bleu.tok_13a.bleu1
    }),
    ("BLEU, 0 to 100", "BLEU-2 (13a)", "bleu2.13a", 2, |m| {
        m.bleu.tok_13a.bleu2
    }),
    ("BLEU, 0 to 100", "BLEU-3 (13a)", "bleu3.13a", 2, |m| {
        m.bleu.tok_13a.bleu3
    }),
    ("BLEU, 0 to 100", "BLEU-4 (13a)", "bleu4.13a", 2, |m| {
        m.bleu.tok_13a.bleu4
    }),
    (
        "BLEU, 0 to 100",
        "BLEU-1 (white space)",
        "bleu1.none",
        2,
        |m| m.bleu.tok_none.bleu1,
    ),
    (
        "BLEU, 0 to 100",
        "BLEU-4 (white space)",
        "bleu4.none",
        2,
        |m| m.bleu.tok_none.bleu4,
    ),
    ("ROUGE F, 0 to 1", "ROUGE-1", "rouge", 4, |m| {
        m.rouge.rouge1.fmeasure
    }),
    ("ROUGE F, 0 to 1", "ROUGE-2", "rouge", 4, |m| {
        m.rouge.rouge2.fmeasure
    }),
    ("ROUGE F, 0 to 1", "ROUGE-L", "rouge", 4, |m| {
        m.rouge.rouge_l.fmeasure
    }),
    ("ROUGE F, 0 to 1", "ROUGE-Lsum", "rouge", 4, |m| {
        m.rouge.rouge_lsum.fmeasure
    }),
    (
        "ROUGE F on stems, 0 to 1",
        "ROUGE-1",
        "rouge_stemmed",
        4,
        |m| m.rouge_stemmed.rouge1.fmeasure,
    ),
    (
        "ROUGE F on stems, 0 to 1",
        "ROUGE-2",
        "rouge_stemmed",
        4,
        |m| m.rouge_stemmed.rouge2.fmeasure,
    ),
    (
        "ROUGE F on stems, 0 to 1",
        "ROUGE-L",
        "rouge_stemmed",
        4,
        |m| m.rouge_stemmed.rouge_l.fmeasure,
    ),
    ("chrF, 0 to 100", "chrF2", "chrf", 2, |m| m.chrf),
    ("Variety and length", "distinct-1", "distinct", 4, |m| {
        m.distinct.distinct1
    }),
    ("Variety and length", "distinct-2", "distinct", 4, |m| {
        m.distinct.distinct2
    }),
    (
        "Variety and length",
        "unique sentences",
        "unique_sentence_ratio",
        4,
        |m| m.unique_sentence_ratio,
    ),
    (
        "Variety and length",
        "words a prediction",
        "mean_tokens",
        1,
        |m| m.mean_tokens.prediction,
    ),
    (
        "Variety and length",
        "words a reference",
        "mean_tokens",
        1,
        |m| m.mean_tokens.reference,
    ),
];
