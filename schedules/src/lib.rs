//! What a schedule is, what is legal for a kernel spec on a target, and the default choice.
//!
//! In: a [`KernelSpec`] and the [`Machine`] facts of a target. Out: a [`Schedule`]. A schedule changes
//! how fast a kernel runs, never a bit of its result; it is legal or not for a spec on a machine
//! ([`Schedule::legal`]), and its text form reads back. [`tuning`] chooses schedules by
//! measuring them; [`latency`] holds what was measured.

mod assembled;
mod cells;
mod conv;
mod cost;
mod depthwise;
pub mod latency;
mod sections;
pub mod strassen;
mod strassen_schedule;
pub mod tuning;
mod units;
mod wide;
pub mod winograd;
mod winograd_schedule;

use std::fmt;
use std::str::FromStr;

use hawqc_ir::KernelSpec;
use thiserror::Error;

pub use cells::CellAxis;
pub use conv::{ConvGeometry, ConvSchedule};
pub use cost::{OVERLAP_STEPS, unpacks_beside};
pub use depthwise::{CELL_BYTES, DepthwiseGeometry, DepthwiseSchedule};
pub use sections::{Sections, Spread};
pub use strassen_schedule::StrassenSchedule;
pub use units::{DEPTHWISE_MACS_PER_WORK, DIRECT_MACS_PER_WORK, Parts, TASK_WORK, Units};
pub use wide::{Multiply, WideSchedule, unsigned_offset};
pub use winograd_schedule::WinogradSchedule;

/// What a schedule needs to know of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// 128-bit vector registers the code generator can use: 16 on x86-64, 32 on aarch64.
    pub vector_registers: usize,
    /// Whether one instruction forms four 8-bit products per lane.
    pub quad_dot: bool,
    /// Vectors beyond 128 bits that kernels are assembled for, the widest first.
    pub wide: [Option<WideMachine>; 2],
}

/// Vectors beyond 128 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WideMachine {
    /// Lanes of 32 bits.
    pub lanes: usize,
    pub registers: usize,
    /// Whether one instruction forms four 8-bit products per lane.
    pub dot: bool,
    /// Whether it is one of AVX-512.
    pub evex: bool,
}

impl Machine {
    /// The widest vectors beyond 128 bits that a number of channels fills.
    pub fn wide_for(self, channels: usize) -> Option<WideMachine> {
        self.wide.into_iter().flatten().find(|wide| channels.is_multiple_of(wide.lanes))
    }
}

/// How a kernel is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Schedule {
    /// The only way there is for the kernel's form in portable instructions.
    Default,
    /// The only way there is for the kernel's form in assembled inner kernels.
    Assembled,
    /// Portable convolution in register tiles.
    Conv(ConvSchedule),
    /// Convolution with assembled inner kernels.
    Wide(WideSchedule),
    /// Convolution with fewer multiplications, where the weights allow it.
    Winograd(WinogradSchedule),
    /// 1x1 convolution with fewer multiplications, where the operands' ranges allow it.
    Strassen(StrassenSchedule),
    /// Depthwise convolution with assembled inner kernels.
    Depthwise(DepthwiseSchedule),
}

/// Why a schedule cannot be had.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ScheduleError {
    #[error(
        "`{0}` is not a schedule: write `default`, `assembled`, `conv mr=3 nr=4 tiles=16 blocks=4`, \
         `wide mul=i16 mr=4 nr=3 rows=8 blocks=2`, `winograd mul=i16 m=4x4 mr=6 nr=2 rows=2 blocks=4`, \
         `strassen levels=1 mr=6 nr=4 tiles=32 blocks=4` or `depthwise mr=7 rows=14 vectors=4`"
    )]
    Syntax(String),
    #[error("schedule `{schedule}` is not legal here: {reason}")]
    Illegal { schedule: Schedule, reason: String },
}

impl Schedule {
    /// The schedule used where nothing has been measured.
    pub fn default_for(spec: &KernelSpec, machine: Machine) -> Schedule {
        Schedule::preferred(spec, machine).swap_remove(0)
    }

    /// Schedules in the order in which they should be used where nothing has been measured. A kernel's constants may
    /// rule out all but the last.
    pub fn preferred(spec: &KernelSpec, machine: Machine) -> Vec<Schedule> {
        let geometry = ConvGeometry::of(spec);
        let wide = geometry.as_ref().and_then(|g| WideSchedule::default_for(g, machine));
        let direct = geometry.as_ref().zip(wide.as_ref());
        let winograd = direct.map(|(g, wide)| WinogradSchedule::defaults_for(g, machine, wide));
        let winograd = winograd.into_iter().flatten().map(Schedule::Winograd);
        let depthwise = DepthwiseGeometry::of(spec).and_then(|g| DepthwiseSchedule::default_for(&g, machine));
        let strassen = geometry.as_ref().and_then(|g| StrassenSchedule::default_for(g, machine));
        let assembled = winograd.chain(strassen.map(Schedule::Strassen)).chain(wide.map(Schedule::Wide));
        let only = assembled::legal(spec, machine).ok().map(|()| Schedule::Assembled);
        let assembled = assembled.chain(depthwise.map(Schedule::Depthwise)).chain(only);
        assembled.chain([Schedule::portable_for(spec, machine)]).collect()
    }

    /// Whether the kernel's weights are transformed when it is compiled, into more bytes.
    pub fn transforms_weights(self) -> bool {
        matches!(self, Schedule::Winograd(_) | Schedule::Strassen(_))
    }

    /// The default among schedules without assembled kernels, which every kernel has.
    pub fn portable_for(spec: &KernelSpec, machine: Machine) -> Schedule {
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
            let wide = WideSchedule::candidates(&geometry, machine).into_iter().map(Schedule::Wide);
            let portable = ConvSchedule::candidates(&geometry, machine).into_iter().map(Schedule::Conv);
            let winograd = WinogradSchedule::candidates(&geometry, machine).into_iter().map(Schedule::Winograd);
            let strassen = StrassenSchedule::candidates(&geometry, machine).into_iter().map(Schedule::Strassen);
            all.extend(winograd.chain(strassen).chain(wide).chain(portable).filter(|&s| s != first));
        }
        if let Some(geometry) = DepthwiseGeometry::of(spec) {
            let depthwise = DepthwiseSchedule::candidates(&geometry, machine).into_iter().map(Schedule::Depthwise);
            all.extend(depthwise.chain([Schedule::Default]).filter(|&s| s != first));
        }
        if first == Schedule::Assembled {
            all.push(Schedule::Default);
        }
        all
    }

    /// Nanoseconds that the schedule is expected to take on one thread, if there is an estimate.
    pub fn estimated_ns(self, spec: &KernelSpec, machine: Machine) -> Option<f64> {
        let geometry = ConvGeometry::of(spec)?;
        let wide = geometry.wide_machine(machine)?;
        match self {
            Schedule::Wide(schedule) => Some(schedule.estimated_ns(&geometry, wide)),
            Schedule::Winograd(schedule) => Some(schedule.estimated_ns(&geometry, wide)),
            _ => None,
        }
    }

    /// Whether the schedule can run `spec` on `machine`; the error says why not.
    pub fn legal(self, spec: &KernelSpec, machine: Machine) -> Result<(), ScheduleError> {
        self.check(spec, machine).map_err(|reason| ScheduleError::Illegal { schedule: self, reason })
    }

    fn check(self, spec: &KernelSpec, machine: Machine) -> Result<(), String> {
        let dense = || ConvGeometry::of(spec).ok_or("the kernel is not a dense convolution");
        match self {
            Schedule::Default if dense().is_ok() => Err("a dense convolution needs a tile".to_owned()),
            Schedule::Default => Ok(()),
            Schedule::Assembled => assembled::legal(spec, machine),
            Schedule::Conv(schedule) => schedule.legal(&dense()?, machine),
            Schedule::Wide(schedule) => schedule.legal(&dense()?, machine),
            Schedule::Winograd(schedule) => schedule.legal(&dense()?, machine),
            Schedule::Strassen(schedule) => schedule.legal(&dense()?, machine),
            Schedule::Depthwise(schedule) => {
                let geometry = DepthwiseGeometry::of(spec).ok_or("the kernel is not a depthwise convolution")?;
                schedule.legal(&geometry, machine)
            }
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Schedule::Default => f.write_str("default"),
            Schedule::Assembled => f.write_str("assembled"),
            Schedule::Conv(schedule) => schedule.fmt(f),
            Schedule::Wide(schedule) => schedule.fmt(f),
            Schedule::Winograd(schedule) => schedule.fmt(f),
            Schedule::Strassen(schedule) => schedule.fmt(f),
            Schedule::Depthwise(schedule) => schedule.fmt(f),
        }
    }
}

impl FromStr for Schedule {
    type Err = ScheduleError;
    fn from_str(text: &str) -> Result<Schedule, ScheduleError> {
        match text {
            "default" => return Ok(Schedule::Default),
            "assembled" => return Ok(Schedule::Assembled),
            _ => {}
        }
        let conv = text.parse().map(Schedule::Conv);
        let wide = conv.or_else(|()| text.parse().map(Schedule::Wide));
        let winograd = wide.or_else(|()| text.parse().map(Schedule::Winograd));
        let strassen = winograd.or_else(|()| text.parse().map(Schedule::Strassen));
        let depthwise = strassen.or_else(|()| text.parse().map(Schedule::Depthwise));
        depthwise.map_err(|()| ScheduleError::Syntax(text.to_owned()))
    }
}

/// The number of `key=number`, in the spelling that printing gives.
fn number(word: &str, key: &str) -> Result<usize, ()> {
    let digits = word.strip_prefix(key).and_then(|w| w.strip_prefix('=')).ok_or(())?;
    digits.parse::<usize>().ok().filter(|n| n.to_string() == digits).ok_or(())
}

#[cfg(test)]
mod tests;
