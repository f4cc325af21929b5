//! Relu and Clip.

use hawqc_ir::{Clamp, ClampReal, Elem, Op, Quantize, Range, Real, Tensor, ValueId};

use crate::import::constant::{Constant, Payload};
use crate::import::context::Context;
use crate::import::node::{Node, NodeError, Value, invalid};

pub fn relu(cx: &mut Context, node: &Node) -> Result<Value, NodeError> {
    let src = cx.floats(node.name, node.input(0)?)?;
    Ok(Value::Run(cx.graph.add(node.name, ClampReal::relu(), &[src])?))
}

/// Bounds are attributes up to opset 10, constant inputs since. On integers it narrows their range.
pub fn clip(cx: &mut Context, node: &Node) -> Result<Value, NodeError> {
    let integer = match node.input(0)? {
        Value::Const(constant) => match (&*constant.payload, &constant.quant) {
            (Payload::Int(elem, _), None) => {
                let (lo, hi) = integer_bounds(node, *elem)?;
                return clip_constant(constant, *elem, lo, hi);
            }
            _ => None,
        },
        Value::Run(id) => cx.graph.ty(*id).range.map(|_| *id),
    };
    if let Some(id) = integer {
        let (lo, hi) = integer_bounds(node, cx.graph.ty(id).elem)?;
        return Ok(Value::Run(clip_integers(cx, node.name, id, lo, hi)?));
    }
    let src = cx.floats(node.name, node.input(0)?)?;
    let (lo, hi) = real_bounds(node)?;
    Ok(Value::Run(cx.graph.add(node.name, ClampReal { lo: Real::new(lo), hi: Real::new(hi) }, &[src])?))
}

fn real_bounds(node: &Node) -> Result<(f32, f32), NodeError> {
    let (lo, hi) = if node.opset < 11 {
        (node.float("min")?, node.float("max")?)
    } else {
        let bound = |i, what| node.optional_constant(i, what)?.map(|c| c.scalar()).transpose();
        (bound(1, "min")?, bound(2, "max")?)
    };
    let (lo, hi) = (lo.unwrap_or(f32::NEG_INFINITY), hi.unwrap_or(f32::INFINITY));
    if lo <= hi { Ok((lo, hi)) } else { Err(invalid(format!("bounds [{lo}, {hi}]"))) }
}

fn integer_bounds(node: &Node, elem: Elem) -> Result<(i64, i64), NodeError> {
    let full = elem.range().unwrap_or(Range::new(0, 0));
    let bound = |i, what, default| match node.optional_constant(i, what)? {
        None => Ok(default),
        Some(constant) => match constant.tensor()?.ints()?.as_slice() {
            &[v] => Ok(v),
            _ => Err(invalid(format!("`{what}` is not a scalar"))),
        },
    };
    let (lo, hi) = (bound(1, "min", full.lo)?, bound(2, "max", full.hi)?);
    if lo <= hi { Ok((lo, hi)) } else { Err(invalid(format!("bounds [{lo}, {hi}]"))) }
}

fn clip_constant(constant: &Constant, elem: Elem, lo: i64, hi: i64) -> Result<Value, NodeError> {
    let values = constant.tensor()?.ints()?.into_iter().map(|v| v.clamp(lo, hi));
    let clipped = Tensor::from_ints(elem, constant.dims.clone(), values)?;
    let payload = Payload::Int(elem, clipped.data().clone());
    Ok(Value::Const(Constant::new(constant.dims.clone(), payload).into()))
}

/// A clamp after a quantisation is the quantisation with the narrower range: both clamp the same rounded value.
fn clip_integers(cx: &mut Context, name: &str, id: ValueId, lo: i64, hi: i64) -> Result<ValueId, NodeError> {
    let elem = cx.graph.ty(id).elem;
    if let Op::Quantize(q) = cx.graph.op(id)
        && lo <= q.hi
        && hi >= q.lo
    {
        let narrowed = Quantize { lo: q.lo.max(lo), hi: q.hi.min(hi), ..q.clone() };
        let args = cx.graph.args(id);
        return Ok(cx.graph.add(name, narrowed, &args)?);
    }
    Ok(cx.graph.add(name, Clamp { lo, hi, elem }, &[id])?)
}
