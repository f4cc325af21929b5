//! Targets, kernels in Cranelift IR, memory plan, object, JIT and link.

pub mod disasm;
pub mod dot;
pub mod link;
pub mod object;
pub mod target;
