//! Errors of sensitivity analysis.

use hawqc_ir::IrError;
use thiserror::Error;

use super::file::Metric;
use crate::error::QuantizeError;

/// Why sensitivities could not be computed, read or merged.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum SensitivityError {
    #[error(transparent)]
    Quantize(#[from] QuantizeError),
    /// The loss of a sample, or a derivative of it, is NaN or infinite.
    #[error("sample {sample}: {what} is {found}; check the weights and that the inputs are scaled as in training")]
    NotFinite { sample: usize, what: &'static str, found: f64 },
    #[error("sample {sample}: label {label} is beyond the network's {classes} classes")]
    Label { sample: usize, label: usize, classes: usize },
    #[error("no sample was measured; give at least one")]
    NoRecords,
    /// A file is not what it should be.
    #[error("{file}: {message}")]
    File { file: &'static str, message: String },
    #[error("sensitivities belong to model {found}, this is model {expected}; measure this model")]
    OtherModel { expected: String, found: String },
    #[error("`{0}` is not a width choice such as w8a8 or w4a8; 2 to 8 bits are supported")]
    Choice(String),
    #[error("shard {index}/{count} holds {what} {found}, the first file {expected}; merge shards of one run only")]
    MixedShards { index: usize, count: usize, what: &'static str, expected: String, found: String },
    #[error("metric {found} where {expected} was measured first; merge shards of one metric only")]
    MixedMetrics { expected: Metric, found: Metric },
    #[error("file {position} is not a shard (it was measured whole, merged, or imported); only shards are merged")]
    NotAShard { position: usize },
    #[error("shard {index}/{count} is given twice")]
    RepeatedShard { index: usize, count: usize },
    #[error("shards are missing: {missing} of {count}; merge all shards of a run at once")]
    MissingShards { missing: String, count: usize },
    #[error("published tables: {0}")]
    Published(String),
}

impl From<IrError> for SensitivityError {
    fn from(error: IrError) -> SensitivityError {
        SensitivityError::Quantize(error.into())
    }
}
