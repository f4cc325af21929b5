//! Errors of code generation.

use hawqc_ir::{IrError, TypeError};
use hawqc_runtime::manifest::ManifestError;
use hawqc_schedules::ScheduleError;
use thiserror::Error;

use crate::memory_plan::PlanError;
use crate::object::ObjectError;
use crate::target::TargetError;

/// What a kernel asks for that no code generator offers. The lowering adds the node's name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Unsupported(String);

impl Unsupported {
    pub fn new(what: impl Into<String>) -> Unsupported {
        Unsupported(what.into())
    }
}

impl From<TypeError> for Unsupported {
    fn from(error: TypeError) -> Unsupported {
        Unsupported(error.to_string())
    }
}

/// Why a graph cannot be compiled.
#[derive(Debug, Error)]
pub enum CodegenError {
    #[error(
        "node `{node}`: {reason} is not supported by the code generator; supported are convolution and pooling \
         with pointwise steps, pointwise steps alone, one of concat, pad, transpose, and quantize, \
         dequantize, softmax at the border:\n{spec}"
    )]
    Unsupported {
        node: String,
        /// What was found.
        reason: Unsupported,
        /// The kernel's text.
        spec: String,
    },
    #[error("node `{node}` ({op}): only kernels, reshapes, constants and inputs are compiled; fuse the graph first")]
    NotFused { node: String, op: String },
    #[error(transparent)]
    Ir(#[from] IrError),
    #[error("node `{node}`: {source}")]
    Schedule { node: String, source: ScheduleError },
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Object(#[from] ObjectError),
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(
        "constants take {bytes} bytes without any transformed weights, more than the limit of {limit}; use fewer bits"
    )]
    Resident { bytes: usize, limit: usize },
    #[error("internal error of the code generator: {0}")]
    Internal(String),
}
