//! The grid that a convolution's source is rounded to, by itself.

use hawqc_ir::{Graph, ValueId};

use super::format::{Format, Span};
use super::known_bounds;
use super::needs::border_values;
use crate::calibrate::{Calibration, Method, value_names};
use crate::error::QuantizeError;

/// Values that an activation can take once quantised: `scale` times the integers in `[lo, hi]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ActivationGrid {
    scale: f32,
    lo: f32,
    hi: f32,
}

impl ActivationGrid {
    /// The nearest value of the grid, for each.
    pub fn rounded(&self, values: &[f32]) -> Vec<f32> {
        values.iter().map(|v| (v / self.scale).round_ties_even().clamp(self.lo, self.hi) * self.scale).collect()
    }
}

/// The grids at `bits` of values that convolutions read, as [`insert`](super::insert) chooses them.
///
/// # Errors
/// A value without calibration.
pub(crate) fn activation_grids(
    graph: &Graph,
    calibration: &Calibration,
    sources: &[ValueId],
    bits: u8,
    method: Method,
) -> Result<Vec<ActivationGrid>, QuantizeError> {
    let (names, border) = (value_names(graph), border_values(graph));
    let known = known_bounds(graph, calibration)?;
    let grid = |&id: &ValueId| {
        let statistics = calibration.get(graph.name(id), &names[id.index()])?;
        let bounds = known[id.index()];
        let method = if border[id.index()] { Method::MinMax } else { method };
        let span = Span { statistics, non_negative: bounds.non_negative, upper: bounds.upper };
        let format = Format::new(&span, bits, method);
        Ok(ActivationGrid { scale: format.scale, lo: format.lo as f32, hi: format.hi as f32 })
    };
    sources.iter().map(grid).collect()
}
