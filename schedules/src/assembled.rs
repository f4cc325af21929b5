//! Kernels whose assembled form has no parameters: pools, pointwise steps, images that are quantised.

use hawqc_ir::{Elem, KernelSpec, Op};

use crate::conv::plain_rounding;
use crate::{Machine, WideMachine};

/// Rows of a window: their addresses are in registers.
const MAX_ROWS: usize = 8;

/// Most channels of an image: they share a lane of 32 bits.
const MAX_IMAGE_CHANNELS: usize = 4;
/// Most values of an image: planes lie at constant distances, which have 31 bits.
const MAX_IMAGE_VALUES: usize = 1 << 28;

/// Whether the kernel has an assembled form; the error says why not. Its constants may rule it out still.
pub(crate) fn legal(spec: &KernelSpec, machine: Machine) -> Result<(), String> {
    if let [first, second] = spec.steps()
        && let (Op::Transpose(transpose), Op::Quantize(quantize)) = (&first.op, &second.op)
    {
        return image(&transpose.perm, quantize.elem, spec, machine);
    }
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

/// Planes of floats that become pixels of bytes.
fn image(perm: &[usize], elem: Elem, spec: &KernelSpec, machine: Machine) -> Result<(), String> {
    let &[_, height, width, channels] = spec.result().shape.as_slice() else {
        return Err("an assembled image has four dimensions".to_owned());
    };
    if perm != [0, 2, 3, 1] || !(1..=MAX_IMAGE_CHANNELS).contains(&channels) || elem.bytes() != 1 {
        return Err(format!(
            "an assembled image goes from NCHW to NHWC, at most {MAX_IMAGE_CHANNELS} channels of bytes"
        ));
    }
    let fits = |wide: WideMachine| height * width >= wide.lanes && channels * height * width <= MAX_IMAGE_VALUES;
    if !machine.wide.into_iter().flatten().any(fits) {
        return Err("the target has no vectors of 256 bits that an image of this size fills".to_owned());
    }
    Ok(())
}
