//! The operations of the model, forward and backward, each written by hand.
//!
//! Candle's own fused norm, rotary embedding and softmax have no backward and cut the graph without a word; its plain
//! operations have one, but compute and keep gradients of frozen weights, keep every intermediate, and fill each gradient
//! with zeros before adding to it. Here a forward says what its backward needs, a backward adds to one flat buffer of
//! gradients, and a frozen weight has none. The plain Candle version of each stands in `reference` and is what the tests
//! compare with.
//!
//! All work on rows: `[n, d]`, the tokens of all sequences of a batch one after the other, without padding. This module is
//! the seam where other devices come in: what goes through it are Candle tensors, whose storage says where they live, the
//! weights as they lie in their files, and the flat gradients. Today there are kernels for the CPU.

mod attention;
mod bench;
mod cross_entropy;
mod dropout;
mod fixed;
mod gemm;
mod gradients;
mod linear;
mod matrix;
mod narrow;
mod norm;
mod paged;
mod pool;
mod quantised;
#[cfg(test)]
mod reference;
mod rope;
mod rows;
mod simd;
mod swiglu;

pub(crate) use attention::{AttentionShape, Segment, attention, attention_backward};
pub use bench::BenchWeight;
pub(crate) use cross_entropy::{cross_entropy, rows_at_once};
pub(crate) use dropout::Dropout;
pub(crate) use fixed::{Linear, linear};
pub(crate) use gradients::Gradients;
pub(crate) use linear::{Kept, Lora, Magnitude, Projection, Projections, row_squares};
pub(crate) use matrix::{LaidOut, Mapped, Matrix, Param};
pub(crate) use norm::{rms_norm, rms_norm_backward, rms_norm_into};
pub(crate) use paged::{PAGE, PagedLayer, Span};
pub(crate) use pool::{Pool, tensor, values, view};
pub(crate) use quantised::Quantised;
pub(crate) use rope::{Rope, RopeTable};
pub(crate) use rows::{embed, embed_backward, gather, scatter};
pub(crate) use simd::{bf16_to_f32, boltzmann, f16_to_f32, highest};
pub(crate) use swiglu::{swiglu, swiglu_backward, swiglu_in_place};
