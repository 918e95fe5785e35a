#![no_main]
//! Times, the markup of pages, and files of entries.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    because_graph::fuzzing::texts(bytes);
});
