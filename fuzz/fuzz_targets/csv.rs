#![no_main]
//! Cells in quotes under a header.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    use because_graph::{Format, fuzzing::rows};
    rows(Format::Csv, "ratings.csv", bytes);
    rows(Format::Csv, "ratings.tsv", bytes);
    rows(Format::MovieLens, "movies.csv", bytes);
});
