//! Sensitivity: what quantising each layer costs the network, layer by layer.

mod error;
mod file;
mod records;

pub use error::SensitivityError;
pub use file::{LayerSensitivity, Metric, Sensitivities, Shard, choice_name, parse_choice};
pub use records::{
    Checkpoint, DECISION_STEP, Record, RunHead, Task, checkpoint_head, checkpoint_line, read_checkpoint,
};
