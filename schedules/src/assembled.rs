//! Kernels whose assembled form has no parameters: pools and pointwise steps.

use hawqc_ir::{KernelSpec, Op};

use crate::Machine;
use crate::conv::plain_rounding;

/// Rows of a window: their addresses are in registers.
const MAX_ROWS: usize = 8;

/// Whether the kernel has an assembled form; the error says why not. Its constants may rule it out still.
pub(crate) fn legal(spec: &KernelSpec, machine: Machine) -> Result<(), String> {
    let rows = match spec.steps().first().map(|step| &step.op) {
        Some(Op::MaxPool(pool)) => pool.kernel[0],
        Some(Op::SumPool(pool)) => pool.kernel[0],
        Some(Op::Requant(_) | Op::Add(_) | Op::Clamp(_)) => 1,
        _ => return Err("the kernel is neither a pool nor pointwise".to_owned()),
    };
    if machine.wide == [None, None] {
        return Err("the target has no vectors of 256 bits".to_owned());
    }
    let channels = spec.result().shape.last().copied().unwrap_or(1);
    if machine.wide_for(channels).is_none() {
        return Err(format!("an assembled kernel takes channels in eights, not {channels}"));
    }
    if !plain_rounding(spec) {
        return Err("an assembled kernel rounds half up or down to the floor".to_owned());
    }
    if rows > MAX_ROWS {
        return Err(format!("an assembled pool takes windows of at most {MAX_ROWS} rows, not {rows}"));
    }
    Ok(())
}
