//! Compiled kernels against the interpreter, bit for bit.

mod conv;
mod harness;
