//! The wrappers together, and the client against a server that misbehaves on purpose.
#![allow(clippy::unwrap_used, reason = "a test may")]

#[cfg(feature = "openai")]
mod batch;
#[cfg(feature = "openai")]
mod batch_server;
#[cfg(feature = "openai")]
mod fault_server;
#[cfg(feature = "openai")]
mod faults;
#[cfg(feature = "openai")]
mod keys;
mod kill;
#[cfg(feature = "openai")]
mod openai;
#[cfg(feature = "openai")]
mod real;
#[cfg(feature = "openai")]
mod server;
#[cfg(feature = "openai")]
mod soak;
mod stack;
mod store;
