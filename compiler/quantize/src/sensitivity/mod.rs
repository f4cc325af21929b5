//! Sensitivity: what quantising each layer costs the network, so that bits go where they matter.
//!
//! In: a folded float graph and samples, one at a time. Out: [`Sensitivities`], one line a layer, with the cost of every
//! width choice. Three metrics:
//! * [`Metric::Hessian`]: average trace of the Hessian of the loss by the layer's weights, times ||Q(W) - W||^2, as in
//!   HAWQ-V3. Traces are Hutchinson's, with standard errors, by one of two ways ([`Estimator`]): exact Hessian-vector
//!   products, forward over reverse; or products with a factor of each layer's block of the Hessian, which need fewer samples.
//! * [`Metric::Fisher`]: the same with squared gradients. Both depend on the weights' width only.
//! * [`Metric::Output`]: the layer alone is quantised, its input included; the cost is the divergence of the outputs.
//!
//! A [`Measurement`] gives one [`Record`] a sample, in any order and in parallel; a [`RunHead`] turns records into
//! sensitivities. HAWQ's published traces are imported by [`published`].

mod conv;
mod derivative;
mod error;
mod file;
mod lanes;
mod measure;
mod network;
mod output;
pub mod published;
mod records;
mod rules;
mod scalar;
#[cfg(test)]
mod tests;

pub use error::SensitivityError;
pub use file::{LayerSensitivity, Metric, SCHEMA, Sensitivities, Shard, choice_name, parse_choice};
pub use measure::{Measurement, Settings};
pub use records::{
    Checkpoint, DECISION_STEP, Estimator, Record, RunHead, Task, checkpoint_head, checkpoint_line, read_checkpoint,
};
