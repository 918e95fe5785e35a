//! The differentiable operations of the model, each with a backward written by hand.
//!
//! Candle's own fused norm, rotary embedding and softmax have no backward and cut the graph without a word; its plain
//! operations have one, but compute and keep gradients of frozen weights and every intermediate. What is here keeps only
//! its inputs, recomputes the rest, and asks of each argument whether anybody needs its gradient.
//!
//! All work on rows: `[n, d]`, the tokens of all sequences of a batch one after the other, without padding.

mod attention;
mod cross_entropy;
mod kernel;
mod linear;
mod norm;
#[cfg(test)]
mod reference;
mod rope;
mod swiglu;

pub(crate) use attention::{AttentionShape, LayerCache, Segment, attention, cached_attention};
pub(crate) use cross_entropy::cross_entropy;
pub(crate) use kernel::{values, with_slice};
pub(crate) use linear::{add_bias, frozen_linear, linear, lora_linear};
pub(crate) use norm::rms_norm;
pub(crate) use rope::Rope;
pub(crate) use swiglu::swiglu;
