use because_core::{Project, Reference, Split, jsonl};

use super::edges::{Edges, shown};
use super::{CheckReport, Severity, Tally};
use crate::Result;

/// Reference explanations against the splits of their pairs, as the interactions have them and as the references themselves
/// tell.
pub(super) fn check(report: &mut CheckReport, project: &Project, edges: &Edges) -> Result<()> {
    let path = project.references_path();
    if !path.exists() {
        return Ok(());
    }
    let mut count = 0;
    let mut on_train = Tally::default();
    let mut on_valid = Tally::default();
    let mut on_hidden = Tally::default();
    let mut on_none = Tally::default();
    let mut otherwise = Tally::default();
    for reference in jsonl::read::<Reference>(&path)? {
        let reference = reference?;
        count += 1;
        let pair = (reference.user.to_string(), reference.item.to_string());
        let splits: Vec<Split> = edges.splits(&pair.0, &pair.1).collect();
        let told = reference.graph_split;
        if let Some(told) = told
            && !splits.is_empty()
            && !splits.contains(&told)
        {
            otherwise.add((pair.clone(), told, splits[0]));
        }
        let is = |split| splits.contains(&split);
        if is(Split::Train) || told == Some(Split::Train) {
            on_train.add((pair, is(Split::Train)));
        } else if is(Split::Hidden) {
            on_hidden.add(pair);
        } else if is(Split::Valid) || told == Some(Split::Valid) {
            on_valid.add(pair);
        } else if splits.is_empty() && told.is_none() {
            on_none.add(pair);
        }
    }
    let pair = |(user, item): (String, String)| shown((&user, &item));
    report.add_tally(
        "reference_on_train_edge",
        Severity::Leak,
        "a reference explanation to measure against lies on an interaction that was trained on",
        Some(count),
        on_train,
        |(of, in_graph)| match in_graph {
            true => pair(of),
            false => format!("{} (by its own graph_split)", pair(of)),
        },
    );
    report.add_tally(
        "reference_split_contradicts",
        Severity::Contradiction,
        "a reference explanation says that its pair is in another split than it is",
        Some(count),
        otherwise,
        |(of, told, is)| format!("{}: says {told}, is {is}", pair(of)),
    );
    for (name, meaning, found) in [
        (
            "reference_on_valid_edge",
            "a reference explanation lies on an interaction that settings are chosen by",
            on_valid,
        ),
        (
            "reference_on_hidden_edge",
            "a reference explanation lies on an interaction that was hidden to make a node cold; nothing is measured on it",
            on_hidden,
        ),
        (
            "reference_without_interaction",
            "a reference explanation is about a user and an item that have nothing to do with each other",
            on_none,
        ),
    ] {
        report.add_tally(name, Severity::Warning, meaning, Some(count), found, pair);
    }
    Ok(())
}
