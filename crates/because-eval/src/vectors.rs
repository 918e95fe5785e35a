//! Expected values for the tests: our own small set, and the larger shared one where it is checked out beside us.

use std::io::Write;
use std::path::Path;

use serde_json::Value;

/// A file of `tests/data`.
pub(crate) fn ours(name: &str) -> Vec<Value> {
    read(
        &Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/data")
            .join(name),
    )
}

/// A file of the shared vectors; nothing, and a loud line, where they are absent.
pub(crate) fn shared(name: &str) -> Vec<Value> {
    let path = Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../../shared/data/metric-vectors"
    ))
    .join(name);
    if path.exists() {
        return read(&path);
    }
    // Past the test harness, which would swallow it when the test passes.
    let mut stderr = std::io::stderr();
    writeln!(
        stderr,
        "SKIPPED: {} is absent, only our own cases are checked",
        path.display()
    )
    .unwrap();
    Vec::new()
}

fn read(path: &Path) -> Vec<Value> {
    because_core::jsonl::read_all(path).unwrap()
}

pub(crate) fn strings(value: &Value) -> Vec<&str> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|token| token.as_str().unwrap())
        .collect()
}
