//! The figures against the Python references, the laws they obey, and the report they end in.
#![allow(clippy::unwrap_used, reason = "a test may")]

mod laws;
mod reference;
mod report;
mod speed;
