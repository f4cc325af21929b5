//! Pad.

use hawqc_ir::{Concat, Data, Elem, Pad, Real, Tensor, ValueId};

use crate::import::constant::Payload;
use crate::import::context::Context;
use crate::import::node::{Node, NodeError, Value, axis, invalid, unsupported};

/// Most elements of a constant block joined to the channels.
const MAX_BLOCK: usize = 1 << 24;
/// Most pixels on one side.
const MAX_PAD: usize = 4096;

/// Amounts and value are attributes up to opset 10, inputs since; since opset 18 axes may be listed. Space is padded by
/// the IR's Pad, channels by joining a constant block.
pub fn pad(cx: &mut Context, node: &Node) -> Result<Value, NodeError> {
    let mode = node.string("mode")?.unwrap_or("constant");
    if mode != "constant" {
        return Err(unsupported("mode", mode, "constant", ""));
    }
    let src = cx.value(node.name, node.input(0)?)?;
    let rank = cx.graph.ty(src).rank();
    if rank != 4 {
        return Err(unsupported("rank of input 0", format!("{:?}", cx.run_dims(src)), "rank 4 [N,C,H,W]", ""));
    }
    let [before, after] = amounts(node)?;
    let value = fill(node, cx.graph.ty(src).elem)?;
    if before[0] + after[0] > 0 {
        return Err(unsupported("pads", "padding of the batch", "padding of channels, height and width", ""));
    }
    let mut y = src;
    let spatial = [before[2], before[3], after[2], after[3]];
    if spatial != [0; 4] {
        y = cx.graph.add(node.name, Pad { pad: spatial, value: Real::new(value) }, &[y])?;
    }
    if before[1] + after[1] > 0 {
        y = pad_channels(cx, node, y, [before[1], after[1]], value)?;
    }
    Ok(Value::Run(y))
}

/// Amounts before and after each of the four axes.
fn amounts(node: &Node) -> Result<[[usize; 4]; 2], NodeError> {
    let pads = if node.opset < 11 {
        node.ints("pads")?.map(<[i64]>::to_vec).ok_or_else(|| invalid("attribute `pads` is missing"))?
    } else {
        node.constant(1, "pads")?.to_i64s()?
    };
    let axes = match if node.opset >= 18 { node.optional_constant(3, "axes")? } else { None } {
        Some(axes) => axes.to_i64s()?.iter().map(|&a| axis(a, 4)).collect::<Result<Vec<_>, _>>()?,
        None => (0..4).collect(),
    };
    if pads.len() != 2 * axes.len() {
        return Err(invalid(format!("{} pads for {} axes", pads.len(), axes.len())));
    }
    let mut out = [[0; 4]; 2];
    for (i, &p) in pads.iter().enumerate() {
        let amount = usize::try_from(p).ok().filter(|&p| p <= MAX_PAD);
        out[i / axes.len()][axes[i % axes.len()]] =
            amount.ok_or_else(|| unsupported("pads", format!("{pads:?}"), "amounts from 0 to 4096", ""))?;
    }
    Ok(out)
}

/// The value of the border: 0 unless given.
fn fill(node: &Node, elem: Elem) -> Result<f32, NodeError> {
    if node.opset < 11 {
        return Ok(node.float("value")?.unwrap_or(0.0));
    }
    let Some(constant) = node.optional_constant(2, "constant_value")? else { return Ok(0.0) };
    let value = match (&*constant.payload, elem.is_float()) {
        (Payload::Int(..), false) if constant.len() == 1 => constant.tensor()?.ints()?[0] as f32,
        _ => constant.scalar()?,
    };
    if value.is_nan() { Err(invalid("the value of the border is NaN")) } else { Ok(value) }
}

fn pad_channels(
    cx: &mut Context,
    node: &Node,
    y: ValueId,
    amount: [usize; 2],
    value: f32,
) -> Result<ValueId, NodeError> {
    let elem = cx.graph.ty(y).elem;
    let [n, h, w, _] = cx.graph.ty(y).nhwc()?;
    let mut parts = [None, Some(y), None];
    for (slot, count) in [(0, amount[0]), (2, amount[1])] {
        let elements = n.saturating_mul(h).saturating_mul(w).saturating_mul(count);
        if elements > MAX_BLOCK {
            return Err(unsupported("pads", format!("{elements} values beside the channels"), "at most 2^24", ""));
        }
        if count > 0 {
            let shape = vec![n, h, w, count];
            let block = match elem {
                Elem::F32 => Tensor::new(elem, shape, Data::F32(vec![value; elements]))?,
                _ => Tensor::from_ints(elem, shape, std::iter::repeat_n(value as i64, elements))?,
            };
            parts[slot] = Some(cx.graph.constant(block));
        }
    }
    let args: Vec<ValueId> = parts.into_iter().flatten().collect();
    Ok(cx.graph.add(node.name, Concat { axis: 3 }, &args)?)
}
