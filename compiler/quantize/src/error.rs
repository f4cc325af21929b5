//! Errors of quantisation.

use hawqc_ir::{IrError, TypeError};
use thiserror::Error;

/// Why a network could not be calibrated, planned or quantised. Every variant names what it is about.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum QuantizeError {
    #[error(transparent)]
    Ir(#[from] IrError),
    /// The operator has no place in a network to be quantised.
    #[error("node `{node}` ({op}): {message}")]
    Unsupported { node: String, op: String, message: String },
    /// An activation is NaN or infinite.
    #[error(
        "value `{value}` holds {found} in calibration sample {sample}; \
         check the weights and that the inputs are scaled as in training"
    )]
    NotFinite { value: String, found: f32, sample: u64 },
    /// Weights or a bias are NaN or infinite.
    #[error("node `{node}`: the {operand} hold {found}; only finite weights can be quantised")]
    WeightNotFinite { node: String, operand: &'static str, found: f32 },
    /// Calibration does not know a value that needs a scale.
    #[error("node `{node}`: no calibration for value `{value}`; calibrate this model again")]
    NotCalibrated { node: String, value: String },
    /// Calibration saw no sample.
    #[error("calibration saw no sample; give at least one input")]
    NoSamples,
    /// Statistics of another model.
    #[error("calibration belongs to model {found}, this is model {expected}; calibrate this model")]
    OtherModel { expected: String, found: String },
    /// A file is not what it should be.
    #[error("{file}: {message}")]
    File { file: &'static str, message: String },
    /// A plan does not fit the network.
    #[error("precision plan: {0}")]
    Plan(String),
}

impl QuantizeError {
    /// A type error at a node, in the form of the graph's own.
    pub(crate) fn at(node: &str, op: &str, source: TypeError) -> QuantizeError {
        QuantizeError::Ir(IrError::Type { node: node.into(), op: op.into(), source })
    }
}
