#![no_main]
//! Cells without quotes or header, in Latin-1.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    use because_graph::{Format, fuzzing::rows};
    rows(Format::MovieLens, "ratings.dat", bytes);
    rows(Format::MovieLens, "movies.dat", bytes);
    rows(Format::MovieLens, "users.dat", bytes);
    rows(Format::MovieLens, "u.item", bytes);
    rows(Format::MovieLens, "u.data", bytes);
});
