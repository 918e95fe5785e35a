#![no_main]
//! Cells with typed columns.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    use because_graph::{Format, fuzzing::rows};
    rows(Format::RecBole, "a.inter", bytes);
    rows(Format::RecBole, "a.item", bytes);
    rows(Format::RecBole, "a.user", bytes);
});
