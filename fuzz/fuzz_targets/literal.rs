#![no_main]
//! Python literals alone and as the rows of Steam and Amazon.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    use because_graph::{Format, fuzzing};
    fuzzing::python(bytes);
    fuzzing::rows(Format::Steam, "steam_reviews.json", bytes);
    fuzzing::rows(Format::Amazon2014, "meta_books.json", bytes);
});
