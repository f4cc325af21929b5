//! Arithmetic with constants, batch normalisation, and the sum of two values.

use hawqc_ir::{Add, Conv, Op, ValueId};

use super::fold;
use crate::import::constant::Constant;
use crate::import::context::Context;
use crate::import::node::{Node, NodeError, Value, invalid, unsupported};

/// Most elements of a constant that is not one value per channel.
const MAX_EXPANDED: usize = 1 << 24;

pub fn add(cx: &mut Context, node: &Node) -> Result<Value, NodeError> {
    match (node.input(0)?, node.input(1)?) {
        (Value::Const(a), Value::Const(b)) => fold::arithmetic(a, b, i64::checked_add, |a, b| a + b),
        (Value::Const(c), Value::Run(x)) | (Value::Run(x), Value::Const(c)) => shifted(cx, node, *x, c, 1.0),
        (Value::Run(a), Value::Run(b)) => sum_of(cx, node, *a, *b),
    }
}

pub fn sub(cx: &mut Context, node: &Node) -> Result<Value, NodeError> {
    match (node.input(0)?, node.input(1)?) {
        (Value::Const(a), Value::Const(b)) => fold::arithmetic(a, b, i64::checked_sub, |a, b| a - b),
        (Value::Run(x), Value::Const(c)) => {
            let values = c.to_f32s()?.iter().map(|v| -v).collect();
            shifted(cx, node, *x, &Constant::f32s(c.dims.clone(), values), 1.0)
        }
        (Value::Const(c), Value::Run(x)) => shifted(cx, node, *x, c, -1.0),
        (Value::Run(_), Value::Run(_)) => Err(two_run_time_values()),
    }
}

pub fn mul(cx: &mut Context, node: &Node) -> Result<Value, NodeError> {
    match (node.input(0)?, node.input(1)?) {
        (Value::Const(a), Value::Const(b)) => fold::arithmetic(a, b, i64::checked_mul, |a, b| a * b),
        (Value::Const(c), Value::Run(x)) | (Value::Run(x), Value::Const(c)) => scaled(cx, node, *x, c, |v| v),
        (Value::Run(_), Value::Run(_)) => Err(two_run_time_values()),
    }
}

pub fn div(cx: &mut Context, node: &Node) -> Result<Value, NodeError> {
    match (node.input(0)?, node.input(1)?) {
        (Value::Const(a), Value::Const(b)) => fold::arithmetic(a, b, i64::checked_div, |a, b| a / b),
        (Value::Run(x), Value::Const(c)) => scaled(cx, node, *x, c, |v| (1.0 / f64::from(v)) as f32),
        (_, Value::Run(_)) => Err(two_run_time_values()),
    }
}

pub fn sum(cx: &mut Context, node: &Node) -> Result<Value, NodeError> {
    let mut total = cx.value(node.name, node.input(0)?)?;
    for index in 1..node.inputs.len() {
        let next = cx.value(node.name, node.input(index)?)?;
        let Value::Run(sum) = sum_of(cx, node, total, next)? else { return Err(invalid("a sum of constants")) };
        total = sum;
    }
    Ok(Value::Run(total))
}

/// y = scale * (x - mean) / sqrt(var + epsilon) + bias, per channel.
pub fn batch_normalization(cx: &mut Context, node: &Node) -> Result<Value, NodeError> {
    if node.flag("training_mode", false)? {
        return Err(unsupported("training_mode", "1", "0", "export the model for inference"));
    }
    let epsilon = f64::from(node.float("epsilon")?.unwrap_or(1e-5));
    let x = cx.floats(node.name, node.input(0)?)?;
    let rank = cx.graph.ty(x).rank();
    if rank != 4 && rank != 2 {
        return Err(unsupported("rank of input 0", format!("{:?}", cx.run_dims(x)), "rank 4 or 2", ""));
    }
    let channels = cx.graph.ty(x).shape[rank - 1];
    let part = |index, what: &str| {
        let constant = node.constant(index, what)?;
        if constant.dims != [channels] {
            return Err(invalid(format!("{what} has dimensions {:?}, expected [{channels}]", constant.dims)));
        }
        Ok(constant.to_f32s()?.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>())
    };
    let (scale, bias) = (part(1, "scale")?, part(2, "bias")?);
    let (mean, var) = (part(3, "mean")?, part(4, "variance")?);
    let factor: Vec<f64> = scale.iter().zip(&var).map(|(s, v)| s / (v + epsilon).sqrt()).collect();
    let shift: Vec<f32> = (0..channels).map(|c| (bias[c] - mean[c] * factor[c]) as f32).collect();
    let factor: Vec<f32> = factor.iter().map(|&f| f as f32).collect();
    Ok(Value::Run(cx.scale_channels(node.name, x, &factor, &shift)?))
}

fn two_run_time_values() -> NodeError {
    unsupported("operands", "two run-time values, or a division by one", "one operand constant per channel", "")
}

fn sum_of(cx: &mut Context, node: &Node, a: ValueId, b: ValueId) -> Result<Value, NodeError> {
    let (da, db) = (cx.run_dims(a), cx.run_dims(b));
    if da != db {
        let found = format!("{da:?} and {db:?}");
        return Err(unsupported("shapes of the operands", found, "equal shapes", "broadcasting is for constants only"));
    }
    for id in [a, b] {
        cx.floats(node.name, &Value::Run(id))?;
    }
    Ok(Value::Run(cx.graph.add(node.name, Add {}, &[a, b])?))
}

/// `sign * x + constant`.
fn shifted(cx: &mut Context, node: &Node, x: ValueId, constant: &Constant, sign: f32) -> Result<Value, NodeError> {
    let x = cx.floats(node.name, &Value::Run(x))?;
    let dims = cx.run_dims(x);
    if sign == 1.0
        && let Some(biased) = biased(cx, node.name, x, constant)?
    {
        return Ok(Value::Run(biased));
    }
    if let Some(values) = per_channel(constant, &dims)? {
        return Ok(Value::Run(cx.scale_channels(node.name, x, &[sign], &values)?));
    }
    let expanded = expand(constant, &dims)?;
    let other = cx.value(node.name, &Value::Const(expanded.into()))?;
    let x = if sign == 1.0 { x } else { cx.scale_channels(node.name, x, &[sign], &[0.0])? };
    Ok(Value::Run(cx.graph.add(node.name, Add {}, &[x, other])?))
}

fn scaled(
    cx: &mut Context,
    node: &Node,
    x: ValueId,
    constant: &Constant,
    factor: impl Fn(f32) -> f32,
) -> Result<Value, NodeError> {
    let x = cx.floats(node.name, &Value::Run(x))?;
    let dims = cx.run_dims(x);
    let Some(values) = per_channel(constant, &dims)? else {
        let found = format!("{:?} against {dims:?}", constant.dims);
        return Err(unsupported("shape of the constant", found, "a scalar or one value per channel", ""));
    };
    let factors: Vec<f32> = values.into_iter().map(factor).collect();
    Ok(Value::Run(cx.scale_channels(node.name, x, &factors, &[0.0])?))
}

/// The constant as one value, or one per channel, if it broadcasts to `dims` that way.
fn per_channel(constant: &Constant, dims: &[usize]) -> Result<Option<Vec<f32>>, NodeError> {
    let rank = dims.len();
    if constant.len() == 1 {
        let fits = constant.dims.len() <= rank;
        return Ok(fits.then_some(constant.to_f32s()?.into_owned()));
    }
    let Some(missing) = rank.checked_sub(constant.dims.len()) else { return Ok(None) };
    let channel = if rank == 4 { 1 } else { rank - 1 };
    let only_channel = constant
        .dims
        .iter()
        .enumerate()
        .all(|(i, &d)| if missing + i == channel { d == dims[channel] } else { d == 1 });
    Ok(if only_channel { Some(constant.to_f32s()?.into_owned()) } else { None })
}

/// The constant repeated to `dims` by ONNX's broadcasting.
fn expand(constant: &Constant, dims: &[usize]) -> Result<Constant, NodeError> {
    let rank = dims.len();
    let total = dims.iter().product::<usize>();
    let found = || format!("{:?} against {dims:?}", constant.dims);
    let missing = rank.checked_sub(constant.dims.len()).filter(|_| total <= MAX_EXPANDED);
    let missing = missing
        .ok_or_else(|| unsupported("shape of the constant", found(), "one that broadcasts to the operand's", ""))?;
    let mut strides = vec![0; rank];
    let mut step = 1;
    for (i, &d) in constant.dims.iter().enumerate().rev() {
        if d != 1 && d != dims[missing + i] {
            return Err(unsupported("shape of the constant", found(), "one that broadcasts to the operand's", ""));
        }
        strides[missing + i] = if d == 1 { 0 } else { step };
        step *= d;
    }
    let values = constant.to_f32s()?;
    let source = |mut index: usize| {
        let mut from = 0;
        for axis in (0..rank).rev() {
            from += index % dims[axis] * strides[axis];
            index /= dims[axis];
        }
        values[from]
    };
    Ok(Constant::f32s(dims.to_vec(), (0..total).map(source).collect()))
}

/// The convolution or fully connected layer that computes `x`, with `constant` as its bias, if it has none yet and the
/// constant is one value per channel. A quantised bias stays quantised that way.
fn biased(cx: &mut Context, name: &str, x: ValueId, constant: &Constant) -> Result<Option<ValueId>, NodeError> {
    let shape = cx.graph.ty(x).shape.clone();
    let (image, dense) = match cx.graph.op(x) {
        Op::Reshape(_) => (cx.graph.args(x)[0], true),
        _ => (x, false),
    };
    let args = cx.graph.args(image);
    let (Op::Conv(op), [src, wei]) = (cx.graph.op(image).clone(), args.as_slice()) else { return Ok(None) };
    let channels = cx.graph.ty(image).shape[3];
    let one_per_channel =
        constant.is_float() && constant.len() == channels && per_channel(constant, &cx.run_dims(x))?.is_some();
    let as_dense = op == Conv::unit() && shape.last() == Some(&channels);
    if !one_per_channel || (dense && !as_dense) || (!dense && shape.len() != 4) {
        return Ok(None);
    }
    let bias = cx.constant(name, &constant.reshaped(&[channels])?)?;
    let image = cx.graph.add(name, op, &[*src, *wei, bias])?;
    Ok(Some(cx.reshape(name, image, &shape)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_broadcast_to_channels() {
        let c = |dims: &[usize]| Constant::f32s(dims.to_vec(), vec![1.0; dims.iter().product()]);
        let per = |dims: &[usize], x: &[usize]| per_channel(&c(dims), x).unwrap().map(|v| v.len());
        assert_eq!(per(&[3, 1, 1], &[2, 3, 4, 4]), Some(3));
        assert_eq!(per(&[1, 3, 1, 1], &[2, 3, 4, 4]), Some(3));
        assert_eq!(per(&[], &[2, 3, 4, 4]), Some(1));
        assert_eq!(per(&[4], &[2, 3, 4, 4]), None);
        assert_eq!(per(&[5], &[2, 5]), Some(5));
        assert_eq!(per(&[2, 1], &[2, 5]), None);
    }
}
