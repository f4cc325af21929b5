//! Targets, kernels in Cranelift IR, memory plan, object, JIT and link.
//!
//! In: a graph fused by the rewriter ([`compile`], [`jit`]). Out: an object file with its manifest, which
//! [`link`] makes a shared object, or a model that runs in this process.

mod asm;
mod compile;
pub mod disasm;
pub mod dot;
mod error;
mod in_place;
mod interface;
mod kernels;
pub mod limit;
pub mod link;
mod lower;
mod memory_plan;
pub mod object;
mod program;
mod resident;
pub mod target;
#[cfg(test)]
mod tests;
pub mod variants;

pub use compile::{Artifact, ModelInfo, compile, jit};
pub use error::{CodegenError, Unsupported};
pub use in_place::steps;
pub use link::LinkWith;
pub use lower::Listing;
pub use memory_plan::PlanError;
pub use program::{Options, machine};
pub use target::{ROWS as TARGETS, Target};
pub use variants::{Variant, Variants};
