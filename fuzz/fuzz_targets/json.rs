#![no_main]
//! JSON Lines under every format that is made of them.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    use because_graph::{Format, fuzzing::rows};
    rows(Format::Jsonl, "interactions.jsonl", bytes);
    rows(Format::Amazon2023, "books.jsonl", bytes);
    rows(Format::Amazon2023, "meta_books.jsonl", bytes);
    rows(Format::Yelp, "business.json", bytes);
    rows(Format::XRec, "item_profile.json", bytes);
});
