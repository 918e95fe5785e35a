use std::io::Write;
use std::sync::Mutex;

use because::{Event, StageStatus};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::bytes;

/// Shows a run on standard error: a bar for what is being counted, a line for each stage that has ended.
pub(crate) struct Progress {
    shown: bool,
    bar: ProgressBar,
    counted: Mutex<String>,
    /// The last validation loss, beside the one of the step.
    valid: Mutex<String>,
}

impl Progress {
    pub(crate) fn new(shown: bool) -> Self {
        let target = if shown {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(
            ProgressStyle::with_template("{spinner} {prefix} {wide_bar} {pos}/{len} {msg} {eta}")
                .unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        Self {
            shown,
            bar,
            counted: Mutex::new(String::new()),
            valid: Mutex::new(String::new()),
        }
    }

    pub(crate) fn show(&self, event: &Event<'_>) {
        match event {
            Event::Begin { stage } => {
                self.count(stage, 0, 0);
            }
            Event::Progress { what, done, total } => {
                self.count(what, *done, *total);
                self.bar.set_message("");
            }
            Event::Loss {
                what,
                step,
                total,
                loss,
                tokens_per_second,
            } => {
                self.count(what, *step, *total);
                let valid = self.valid.lock().map(|valid| valid.clone());
                self.bar.set_message(format!(
                    "loss {loss:.3}{}, {tokens_per_second:.0} tokens/s",
                    valid.unwrap_or_default()
                ));
            }
            Event::Evaluated {
                what,
                step,
                loss,
                best,
            } => {
                if let Ok(mut valid) = self.valid.lock() {
                    *valid = format!(" (valid {loss:.3})");
                }
                let best = if *best { ", the lowest so far" } else { "" };
                self.line(&format!(
                    "{what}: step {step}: validation loss {loss:.4}{best}"
                ));
            }
            Event::Note { what, text } => self.line(&format!("{what}: {text}")),
            Event::End(report) => {
                let kept = match report.status {
                    StageStatus::Done => "",
                    StageStatus::Kept => "  (kept from the last run)",
                };
                let memory = report.peak_rss_bytes.map(bytes).unwrap_or_default();
                self.line(&format!(
                    "{:<18} {:>8.1} s  {memory:>10}{kept}",
                    report.stage, report.seconds
                ));
            }
            _ => {}
        }
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn count(&self, what: &str, done: usize, total: usize) {
        if let Ok(mut counted) = self.counted.lock()
            && *counted != what
        {
            what.clone_into(&mut counted);
            if let Ok(mut valid) = self.valid.lock() {
                valid.clear();
            }
            self.bar.reset();
            self.bar.set_prefix(what.to_owned());
        }
        self.bar.set_length(total as u64);
        self.bar.set_position(done as u64);
    }

    fn line(&self, text: &str) {
        if self.shown {
            self.bar.suspend(|| {
                // Standard error may be closed; a run does not end for that.
                let _ = writeln!(std::io::stderr(), "{text}");
            });
        }
    }
}
