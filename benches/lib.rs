//! Benchmarks of what users wait for; each file in this folder is one.
