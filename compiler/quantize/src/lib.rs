//! From a float network to an integer one.
//!
//! In the order in which they are used:
//! * [`fold_batch_norm`]: merges affine steps, paddings and clamps into convolutions; floats stay floats.
//! * [`Executor`]: runs a float graph fast, for calibration and as the float yardstick.
//! * [`calibrate`]: what values every activation takes, from a stream of inputs; `calib.json`.
//! * [`plan`]: how many bits each layer gets; `bits.json`. [`hawq`]: HAWQ-V3's published choices by name.
//! * [`sensitivity`]: what each layer's error costs the network; `sens.json`.
//! * [`insert`]: float graph, statistics and plan to a graph with `quantize`/`dequantize` pairs ("QDQ").
//! * [`integerize()`]: a QDQ graph, ours or imported, to integer arithmetic.
//! * [`weight_errors`]: what rounding the weights alone costs, per layer.
//!
//! Precision is decided here and nowhere else; what follows keeps every bit of the result.

mod bias;
pub mod calibrate;
mod error;
mod execute;
mod fold;
pub mod hawq;
pub mod insert;
pub mod integerize;
mod json;
pub mod plan;
pub mod search;
pub mod sensitivity;
#[cfg(test)]
mod test_networks;
mod weights;

pub use calibrate::{Calibration, Calibrator, Method};
pub use error::QuantizeError;
pub use execute::{Executor, execute};
pub use fold::fold_batch_norm;
pub use insert::{BiasCorrection, Options, insert};
pub use integerize::{IntegerizeError, IntegerizeOptions, integerize, integerize_with};
pub use plan::{LayerBits, PrecisionPlan};
pub use weights::weight_errors;
