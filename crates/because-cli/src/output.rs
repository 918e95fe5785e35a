use std::error::Error;
use std::io::Write;

use because::core::text::for_terminal;
use serde::Serialize;

/// Where results go: one JSON object on standard output, or lines for people. Texts of data are stripped of what could
/// drive a terminal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
    quiet: bool,
}

impl Output {
    pub(crate) fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet }
    }

    /// Whether standard output is for one JSON object.
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// Whether a person may watch progress.
    pub(crate) fn shows_progress(self) -> bool {
        !self.quiet
    }

    /// Where a run stands that goes on another time: the object with `--json` on standard output, and in any case what `text`
    /// writes of it on standard error.
    pub(crate) fn standstill(self, object: &impl Serialize, text: &str) {
        if self.json {
            self.result(object, String::new);
        }
        let _ = writeln!(std::io::stderr(), "{}", for_terminal(text.trim_end()));
    }

    /// The result of a command: the object with `--json`, else what `text` writes of it.
    pub(crate) fn result(self, object: &impl Serialize, text: impl FnOnce() -> String) {
        let printed = if self.json {
            serde_json::to_string(object)
                .unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
        } else {
            for_terminal(text().trim_end())
        };
        // A closed pipe is the reader's wish to hear no more.
        let _ = writeln!(std::io::stdout(), "{printed}");
    }

    /// An error with everything behind it, on standard error.
    pub(crate) fn failure(self, error: &dyn Error) {
        let mut message = format!("because: {error}");
        let mut cause = error.source();
        while let Some(source) = cause {
            let said = source.to_string();
            if !message.contains(&said) {
                message.push_str(": ");
                message.push_str(&said);
            }
            cause = source.source();
        }
        let _ = writeln!(std::io::stderr(), "{}", for_terminal(&message));
    }
}

/// Two columns: names on the left, values on the right.
pub(crate) fn table<N: AsRef<str>>(rows: &[(N, String)]) -> String {
    let width = rows
        .iter()
        .map(|(name, _)| name.as_ref().chars().count())
        .max()
        .unwrap_or(0);
    rows.iter()
        .map(|(name, value)| format!("{:<width$}  {value}\n", name.as_ref()))
        .collect()
}

/// Rows under a header, with columns as wide as they need to be. What breaks a line in a text is a blank here.
pub(crate) fn columns(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let one_line = |cell: String| {
        let blank = |c: char| if c.is_whitespace() { ' ' } else { c };
        for_terminal(&cell.chars().map(blank).collect::<String>())
    };
    let header = header.iter().map(|&name| name.to_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(header)
        .chain(rows)
        .map(|row: Vec<String>| row.into_iter().map(one_line).collect())
        .collect();
    let mut widths = vec![0; rows[0].len()];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths);
        let line: String = cells
            .map(|(cell, width)| format!("{cell:<width$}  "))
            .collect();
        format!("{}\n", line.trim_end())
    };
    rows.iter().map(line).collect()
}

/// `1536` as `1.5 KiB`.
pub(crate) fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "KiB", "MiB"] {
        if value < 1024.0 {
            return format!("{value:.0} {unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.2} GiB")
}
