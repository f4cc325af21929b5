//! Operators that keep every value: reshapes of all kinds, Identity, Dropout.

use crate::import::context::Context;
use crate::import::node::{Node, NodeError, Value, axis, invalid, unsupported};

pub fn identity(_: &mut Context, node: &Node) -> Result<Value, NodeError> {
    Ok(node.input(0)?.clone())
}

/// Does nothing at inference; training mode is an input since opset 12.
pub fn dropout(_: &mut Context, node: &Node) -> Result<Value, NodeError> {
    if let Some(training) = node.optional_constant(2, "training_mode")?
        && training.to_i64s()?.iter().any(|&v| v != 0)
    {
        return Err(unsupported("training_mode", "true", "false", "export the model for inference"));
    }
    Ok(node.input(0)?.clone())
}

pub fn flatten(cx: &mut Context, node: &Node) -> Result<Value, NodeError> {
    let dims = cx.dims(node.input(0)?);
    let value = node.int("axis")?.unwrap_or(1);
    let split = if value == dims.len() as i64 { dims.len() } else { axis(value, dims.len())? };
    to_dims(cx, node, &[dims[..split].iter().product(), dims[split..].iter().product()])
}

pub fn reshape(cx: &mut Context, node: &Node) -> Result<Value, NodeError> {
    let dims = cx.dims(node.input(0)?);
    let target = node.constant(1, "shape")?.to_i64s()?;
    let allow_zero = node.flag("allowzero", false)?;
    let wrong = || invalid(format!("{dims:?} cannot take the shape {target:?}"));
    let mut out = Vec::with_capacity(target.len());
    let mut inferred = None;
    for (i, &t) in target.iter().enumerate() {
        out.push(match t {
            0 if !allow_zero => *dims.get(i).ok_or_else(wrong)?,
            -1 if inferred.is_none() => {
                inferred = Some(i);
                1
            }
            _ => usize::try_from(t).map_err(|_| wrong())?,
        });
    }
    let product = |dims: &[usize]| dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or_else(wrong);
    if let Some(i) = inferred {
        let (total, known) = (product(&dims)?, product(&out)?);
        out[i] = total.checked_div(known).ok_or_else(wrong)?;
    }
    if product(&out)? != product(&dims)? {
        return Err(wrong());
    }
    to_dims(cx, node, &out)
}

/// Removes the axes given, or all of length 1.
pub fn squeeze(cx: &mut Context, node: &Node) -> Result<Value, NodeError> {
    let dims = cx.dims(node.input(0)?);
    let removed = match node.axes(13, 1)? {
        Some(axes) => axes.iter().map(|&a| axis(a, dims.len())).collect::<Result<Vec<_>, _>>()?,
        None => (0..dims.len()).filter(|&a| dims[a] == 1).collect(),
    };
    if let Some(&a) = removed.iter().find(|&&a| dims[a] != 1) {
        return Err(invalid(format!("axis {a} of {dims:?} is not of length 1")));
    }
    let out: Vec<usize> = (0..dims.len()).filter(|a| !removed.contains(a)).map(|a| dims[a]).collect();
    to_dims(cx, node, &out)
}

/// Inserts axes of length 1 at the given places of the result.
pub fn unsqueeze(cx: &mut Context, node: &Node) -> Result<Value, NodeError> {
    let dims = cx.dims(node.input(0)?);
    let axes = node.axes(13, 1)?.ok_or_else(|| invalid("axes are missing"))?;
    let rank = dims.len() + axes.len();
    let inserted = axes.iter().map(|&a| axis(a, rank)).collect::<Result<Vec<_>, _>>()?;
    let mut rest = dims.iter();
    let out: Vec<usize> =
        (0..rank).filter_map(|a| if inserted.contains(&a) { Some(1) } else { rest.next().copied() }).collect();
    if out.len() != rank || rest.next().is_some() {
        return Err(invalid(format!("axes {axes:?} repeat")));
    }
    to_dims(cx, node, &out)
}

/// Input 0 under other ONNX dimensions.
fn to_dims(cx: &mut Context, node: &Node, dims: &[usize]) -> Result<Value, NodeError> {
    if dims.len() > 16 {
        return Err(invalid(format!("rank {} is above 16", dims.len())));
    }
    match node.input(0)? {
        Value::Const(constant) => Ok(Value::Const(constant.reshaped(dims)?.into())),
        Value::Run(id) if cx.run_dims(*id) == dims => Ok(Value::Run(*id)),
        Value::Run(id) => {
            let linear = cx.in_onnx_order(node.name, *id)?;
            Ok(Value::Run(cx.shaped_as_in_onnx(node.name, linear, dims)?))
        }
    }
}
