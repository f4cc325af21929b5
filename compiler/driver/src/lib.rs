//! The pipeline as one readable list, from a model file to an artifact.
//!
//! [`Source`] is a model, read. [`lower`] takes it through the passes of [`pipeline`](crate::lower) to
//! kernels; [`compile`] makes an object, which [`Compiled::emit`] links or shows, or [`Compiled::load`]
//! runs in this process. [`verify`] compares compiled code with the reference interpreter; [`tune`] measures.

mod compile;
pub mod dot;
mod error;
pub mod fill;
mod form;
mod pipeline;
mod source;
pub mod tensors;
pub mod tune;
pub mod verify;

pub use compile::{CompileOptions, Compiled, audit, compile, compile_tuned, stage_names, target_of};
pub use error::{Class, Error};
pub use form::Form;
pub use hawqc_codegen::{LinkWith, TARGETS, Target, limit};
pub use pipeline::{Lowered, Precision, Stage, float_form, lower, lower_integer, pass_names, quantize};
pub use source::Source;

use std::io::Write;
use std::path::Path;

/// Writes a file whole or not at all: under a temporary name first, then renamed.
pub fn write_file(path: &Path, content: &[u8]) -> Result<(), Error> {
    hawqc_runtime::whole_file::replace(path, |file| file.write_all(content))
        .map_err(|source| Error::Io { path: path.into(), source })
}
