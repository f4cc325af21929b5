//! Bit-preserving egg rules, extraction, and fusion into kernel specs.

mod error;
mod forms;
mod fuse;

pub use error::RewriteError;
pub use forms::{Form, check_fused};
pub use fuse::fuse;
