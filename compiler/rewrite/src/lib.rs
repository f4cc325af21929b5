//! Bit-preserving egg rules, extraction, and fusion into kernel specs.
//!
//! In: an integer graph, floats at its borders only. [`rewrite`] gives a cheaper graph with the same
//! outputs bit for bit, by equality saturation over [`rules`]; [`fuse`] turns that into a graph of kernels.
//! Precision is not a rewrite: no rule knows of scales or bit widths other than those the graph has.

mod cost;
mod error;
mod extract;
mod forms;
mod fuse;
mod language;
mod region;
mod report;
mod rewrite;
pub mod rules;
mod saturate;

pub use error::RewriteError;
pub use forms::{Form, check_fused};
pub use fuse::fuse;
pub use report::{Change, RegionReport, Report, Stop};
pub use rewrite::rewrite;
