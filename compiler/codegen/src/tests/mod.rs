//! Compiled kernels against the interpreter, bit for bit.

mod assembly;
mod border;
pub(crate) mod conv;
mod depthwise;
mod grouped;
pub(crate) mod harness;
mod leaves;
mod model;
mod movement;
mod pointwise;
mod pool;
mod second;
mod variants;
