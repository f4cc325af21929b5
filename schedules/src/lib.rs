//! What a schedule is, what is legal for a kernel spec on a target, and the default choice.
//!
//! In: a [`KernelSpec`] and the [`Machine`] facts of a target. Out: a [`Schedule`]. A schedule changes
//! how fast a kernel runs, never a bit of its result; it is legal or not for a spec on a machine
//! ([`Schedule::legal`]), and its text form reads back. [`tuning`] chooses schedules by
//! measuring them; [`latency`] holds what was measured.

mod conv;
pub mod latency;
pub mod tuning;

use std::fmt;
use std::str::FromStr;

use hawqc_ir::KernelSpec;
use thiserror::Error;

pub use conv::{ConvGeometry, ConvSchedule};

/// What a schedule needs to know of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// 128-bit vector registers the code generator can use: 16 on x86-64, 32 on aarch64.
    pub vector_registers: usize,
    /// Whether one instruction forms four 8-bit products per lane.
    pub quad_dot: bool,
}

/// How a kernel is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Schedule {
    /// The only way there is for the kernel's form.
    Default,
    /// Portable convolution in register tiles.
    Conv(ConvSchedule),
}

/// Why a schedule cannot be had.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ScheduleError {
    #[error("`{0}` is not a schedule: write `default` or `conv mr=3 nr=4 tiles=16 blocks=4`")]
    Syntax(String),
    #[error("schedule `{schedule}` is not legal here: {reason}")]
    Illegal { schedule: Schedule, reason: String },
}

impl Schedule {
    /// The schedule used where nothing has been measured.
    pub fn default_for(spec: &KernelSpec, machine: Machine) -> Schedule {
        match ConvGeometry::of(spec) {
            Some(geometry) => Schedule::Conv(ConvSchedule::default_for(&geometry, machine)),
            None => Schedule::Default,
        }
    }

    /// Every legal schedule worth trying, the default one first, none twice.
    pub fn candidates(spec: &KernelSpec, machine: Machine) -> Vec<Schedule> {
        let first = Schedule::default_for(spec, machine);
        let mut all = vec![first];
        if let Some(geometry) = ConvGeometry::of(spec) {
            let others = ConvSchedule::candidates(&geometry, machine).into_iter().map(Schedule::Conv);
            all.extend(others.filter(|&s| s != first));
        }
        all
    }

    /// Whether the schedule can run `spec` on `machine`; the error says why not.
    pub fn legal(self, spec: &KernelSpec, machine: Machine) -> Result<(), ScheduleError> {
        let reason = match (self, ConvGeometry::of(spec)) {
            (Schedule::Default, None) => return Ok(()),
            (Schedule::Conv(schedule), Some(geometry)) => match schedule.legal(&geometry, machine) {
                Ok(()) => return Ok(()),
                Err(reason) => reason,
            },
            (Schedule::Default, Some(_)) => "a dense convolution needs a tile".to_owned(),
            (Schedule::Conv(_), None) => "the kernel is not a dense convolution".to_owned(),
        };
        Err(ScheduleError::Illegal { schedule: self, reason })
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Schedule::Default => f.write_str("default"),
            Schedule::Conv(schedule) => schedule.fmt(f),
        }
    }
}

impl FromStr for Schedule {
    type Err = ScheduleError;
    fn from_str(text: &str) -> Result<Schedule, ScheduleError> {
        if text == "default" {
            return Ok(Schedule::Default);
        }
        text.parse().map(Schedule::Conv).map_err(|()| ScheduleError::Syntax(text.to_owned()))
    }
}

#[cfg(test)]
mod tests;
