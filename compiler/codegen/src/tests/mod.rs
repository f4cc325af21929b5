//! Compiled kernels against the interpreter, bit for bit.

mod assembly;
mod border;
mod conv;
mod depthwise;
mod harness;
mod model;
mod movement;
mod pointwise;
mod pool;
mod variants;
