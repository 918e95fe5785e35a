//! The wrappers together, and the client against a server that misbehaves on purpose.
#![allow(clippy::unwrap_used, reason = "a test may")]

#[cfg(feature = "openai")]
mod batch;
#[cfg(feature = "openai")]
mod batch_server;
mod kill;
#[cfg(feature = "openai")]
mod openai;
#[cfg(feature = "openai")]
mod server;
mod stack;
mod store;
