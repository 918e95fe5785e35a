//! Finds leaks and contradictions in a project directory.

mod edges;
mod near;
mod nodes;
mod quotes;
mod references;
#[cfg(test)]
mod tests;
mod words;

use std::collections::BTreeSet;
use std::fmt;

use because_core::Project;
use serde::Serialize;

use self::edges::Edges;
use self::quotes::Quotes;
use crate::{Result, SplitStrategy};

/// How many examples a finding shows.
const EXAMPLES: usize = 5;

/// What a finding means for the figures of an experiment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Held-out answers can be seen in training: the figures flatter.
    Leak,
    /// The files disagree with themselves; a later stage will refuse them.
    Contradiction,
    /// Some figures cannot be had, or stand on little.
    Warning,
    /// Good to know.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Leak => "leak",
            Self::Contradiction => "contradiction",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// Its name, the same in every version: `reference_on_train_edge`.
    pub name: &'static str,
    /// What it means.
    pub severity: Severity,
    /// How often it was found.
    pub count: usize,
    /// How often it could have been found, where that is a number: references, users, reviews looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of: Option<usize>,
    /// The first few.
    pub examples: Vec<String>,
    /// What it means in words.
    pub meaning: &'static str,
}

/// What [`check()`] found, the worst first, and what it looked for in vain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CheckReport {
    /// What was found at least once.
    pub findings: Vec<Finding>,
    /// The names of the checks that found nothing. A check that has nothing to look at (no reviews, no times) is not among them.
    pub passed: Vec<&'static str>,
}

impl CheckReport {
    /// How many leaks were found, over all findings of [`Severity::Leak`]; zero is what one wants.
    #[must_use]
    pub fn leaks(&self) -> usize {
        self.of(Severity::Leak).map(|finding| finding.count).sum()
    }

    /// The findings of one severity.
    pub fn of(&self, severity: Severity) -> impl Iterator<Item = &Finding> {
        self.findings
            .iter()
            .filter(move |finding| finding.severity == severity)
    }

    /// A finding by its name; `None` where the check found nothing.
    #[must_use]
    pub fn finding(&self, name: &str) -> Option<&Finding> {
        self.findings.iter().find(|finding| finding.name == name)
    }

    fn add<T: Ord>(
        &mut self,
        name: &'static str,
        severity: Severity,
        meaning: &'static str,
        found: impl IntoIterator<Item = T>,
        shown: impl Fn(T) -> String,
    ) {
        let mut tally = Tally::default();
        found.into_iter().for_each(|example| tally.add(example));
        self.add_tally(name, severity, meaning, None, tally, shown);
    }

    fn add_tally<T: Ord>(
        &mut self,
        name: &'static str,
        severity: Severity,
        meaning: &'static str,
        of: Option<usize>,
        tally: Tally<T>,
        shown: impl Fn(T) -> String,
    ) {
        if tally.count == 0 {
            self.passed.push(name);
            return;
        }
        self.findings.push(Finding {
            name,
            severity,
            count: tally.count,
            of,
            examples: tally.first.into_iter().map(shown).collect(),
            meaning,
        });
    }
}

/// Counts what is found and keeps the first few in their own order, so that neither memory nor the examples depend on how
/// much there is and in which order it comes.
struct Tally<T> {
    count: usize,
    first: BTreeSet<T>,
}

impl<T: Ord> Tally<T> {
    fn add(&mut self, found: T) {
        self.count += 1;
        if self.first.len() < EXAMPLES || self.first.last().is_some_and(|last| found < *last) {
            self.first.insert(found);
            if self.first.len() > EXAMPLES {
                self.first.pop_last();
            }
        }
    }
}

impl<T> Default for Tally<T> {
    fn default() -> Self {
        Self {
            count: 0,
            first: BTreeSet::new(),
        }
    }
}

/// Looks through a project directory for whatever makes its figures say more than they should, and for what later stages
/// would stumble over.
///
/// ```no_run
/// use because_core::Project;
/// use because_graph::{Check, Severity, SplitStrategy};
///
/// let mut check = Check::default();
/// check.promised = Some(SplitStrategy::UserDisjoint);
/// let report = check.run(&Project::new("books"))?;
/// for leak in report.of(Severity::Leak) {
///     println!("{}: {} ({})", leak.name, leak.count, leak.meaning);
/// }
/// # Ok::<(), because_graph::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Check {
    /// What the split was meant to be. Where it promises something (no user in two splits, no future in train), breaking the
    /// promise is a leak, and what follows from it (test users unseen in train) is no warning any more.
    pub promised: Option<SplitStrategy>,
}

impl Check {
    /// Reads the project twice at most; reviews pass by and are not held in memory.
    ///
    /// # Errors
    /// When `interactions.jsonl` is missing, or a line of a file is not the record it should be.
    pub fn run(&self, project: &Project) -> Result<CheckReport> {
        let mut report = CheckReport::default();
        let mut quotes = Quotes::of_texts(project)?;
        let edges = Edges::read(project, |row, line| quotes.see_first(row, line))?;
        edges.check_pairs(&mut report);
        references::check(&mut report, project, &edges)?;
        quotes.check(&mut report, project, &edges)?;
        edges.check_splits(&mut report, self.promised);
        edges.check_promise(&mut report, self.promised);
        nodes::check(&mut report, project, &edges)?;
        nodes::check_profiles(&mut report, project, &edges)?;
        nodes::check_cold(&mut report, project, &edges)?;
        near::check(&mut report, project, &edges, self.promised)?;
        report.findings.sort_by_key(|finding| finding.severity);
        Ok(report)
    }
}

/// [`Check::run`] for a project of whose split nothing was promised.
///
/// # Errors
/// When `interactions.jsonl` is missing, or a line of a file is not the record it should be.
pub fn check(project: &Project) -> Result<CheckReport> {
    Check::default().run(project)
}
