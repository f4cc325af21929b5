//! Gemm and MatMul by a constant, as 1x1 convolutions over `[M, 1, 1, K]`.

use hawqc_ir::{Add, Conv, Op, ValueId};

use crate::import::constant::{Constant, Payload, Quant};
use crate::import::context::{Context, NCHW};
use crate::import::node::{Node, NodeError, Value, invalid, unsupported};

/// alpha * A' * B' + beta * C.
pub fn gemm(cx: &mut Context, node: &Node) -> Result<Value, NodeError> {
    let mut x = cx.floats(node.name, node.input(0)?)?;
    let b = node.constant(1, "B")?;
    if b.dims.len() != 2 || cx.graph.ty(x).rank() != 2 {
        return Err(invalid(format!("operands of dimensions {:?} and {:?}", cx.run_dims(x), b.dims)));
    }
    if node.flag("transA", false)? {
        x = cx.transpose(node.name, x, &[1, 0])?;
    }
    let weights = if node.flag("transB", false)? { (**b).clone() } else { b.permuted(&[1, 0]) };
    let weights = scaled(weights, node.float("alpha")?.unwrap_or(1.0), "alpha")?;
    let outputs = weights.dims[0];
    let beta = node.float("beta")?.unwrap_or(1.0);
    let c = match node.optional_constant(2, "C")? {
        Some(c) if beta != 0.0 => Some(scaled((**c).clone(), beta, "beta")?),
        _ => None,
    };
    let (bias, addend) = match c {
        Some(c) if c.len() == outputs && c.dims.last() == Some(&outputs) => (Some(c.reshaped(&[outputs])?), None),
        Some(c) if c.len() == 1 => (Some(Constant::f32s(vec![outputs], vec![c.scalar()?; outputs])), None),
        other => (None, other),
    };
    let y = dense(cx, node.name, x, &weights, bias.as_ref())?;
    let Some(c) = addend else { return Ok(Value::Run(y)) };
    let rows = cx.graph.ty(y).shape[0];
    let values = c.to_f32s()?;
    let matrix = match c.dims.as_slice() {
        &[r, n] if r == rows && n == outputs => values.into_owned(),
        &[r, 1] if r == rows => values.iter().flat_map(|&v| std::iter::repeat_n(v, outputs)).collect(),
        other => return Err(invalid(format!("C has dimensions {other:?}, the product [{rows}, {outputs}]"))),
    };
    let c = cx.constant(node.name, &Constant::f32s(vec![rows, outputs], matrix))?;
    Ok(Value::Run(cx.graph.add(node.name, Add {}, &[y, c])?))
}

pub fn matmul(cx: &mut Context, node: &Node) -> Result<Value, NodeError> {
    let weights = node.constant(1, "B")?;
    if let Value::Const(_) = node.input(0)? {
        return Err(unsupported("A", "a constant", "a run-time value", ""));
    }
    let x = cx.floats(node.name, node.input(0)?)?;
    Ok(Value::Run(product(cx, node.name, x, weights)?))
}

/// `x * weights` with weights `[K, N]` and any leading dimensions of `x`.
pub fn product(cx: &mut Context, name: &str, x: ValueId, weights: &Constant) -> Result<ValueId, NodeError> {
    let &[k, n] = weights.dims.as_slice() else {
        return Err(unsupported("rank of B", format!("{:?}", weights.dims), "rank 2 [K,N]", ""));
    };
    let mut dims = cx.run_dims(x);
    if dims.last() != Some(&k) {
        return Err(invalid(format!("operands of dimensions {dims:?} and {:?}", weights.dims)));
    }
    let rows = cx.graph.ty(x).elements() / k;
    let linear = cx.in_onnx_order(name, x)?;
    let matrix = cx.reshape(name, linear, &[rows, k])?;
    let y = dense(cx, name, matrix, &weights.permuted(&[1, 0]), None)?;
    if let Some(last) = dims.last_mut() {
        *last = n;
    }
    cx.shaped_as_in_onnx(name, y, &dims)
}

/// A fully connected layer on `x` `[M, K]` with weights `[N, K]` and bias `[N]`. Where `x` is a flattened image,
/// the columns of the weights take the image's order in memory, which spares a transpose at run time.
fn dense(
    cx: &mut Context,
    name: &str,
    x: ValueId,
    weights: &Constant,
    bias: Option<&Constant>,
) -> Result<ValueId, NodeError> {
    let (&[m, k], &[n, wk]) = (cx.graph.ty(x).shape.as_slice(), weights.dims.as_slice()) else {
        return Err(invalid("operands of a matrix product must be matrices"));
    };
    if k != wk {
        return Err(invalid(format!("a product of [{m}, {k}] and [{wk}, {n}]")));
    }
    let along_rows = weights.quant.as_ref().is_some_and(|q| q.scale.len() > 1 && q.axis == 1);
    let image = if along_rows { None } else { unflattened(cx, name, x)? };
    let (src, weights) = match image {
        Some(image) => {
            let [_, h, w, c] = cx.graph.ty(image).nhwc()?;
            (image, weights.reshaped(&[n, c, h, w])?.permuted(&[0, 2, 3, 1]))
        }
        None => (x, weights.clone()),
    };
    let src = cx.reshape(name, src, &[m, 1, 1, k])?;
    let mut args = vec![src, cx.constant(name, &weights.reshaped(&[n, 1, 1, k])?)?];
    if let Some(bias) = bias {
        args.push(cx.constant(name, bias)?);
    }
    let y = cx.graph.add(name, Conv::unit(), &args)?;
    cx.reshape(name, y, &[m, n])
}

/// The image `[N, H, W, C]` that `x` `[N, C*H*W]` flattens in ONNX order, found through elementwise operators, which
/// are then repeated on the image.
fn unflattened(cx: &mut Context, name: &str, x: ValueId) -> Result<Option<ValueId>, NodeError> {
    let mut chain = Vec::new();
    let mut at = x;
    let image = loop {
        let args = cx.graph.args(at);
        match cx.graph.op(at) {
            Op::ClampReal(_) | Op::Clamp(_) => chain.push(at),
            Op::Quantize(_) | Op::Dequantize(_) if cx.graph.ty(args[1]).elements() == 1 => chain.push(at),
            Op::Reshape(_) => match cx.graph.op(args[0]) {
                Op::Transpose(t) if t.perm == NCHW => break cx.graph.args(args[0])[0],
                _ => return Ok(None),
            },
            _ => return Ok(None),
        }
        at = args[0];
    };
    if cx.graph.ty(image).shape[0] != cx.graph.ty(x).shape[0] {
        return Ok(None);
    }
    let mut y = image;
    for old in chain.into_iter().rev() {
        let op = match cx.graph.op(old).clone() {
            Op::Quantize(q) => Op::Quantize(hawqc_ir::Quantize { axis: 0, ..q }),
            Op::Dequantize(_) => Op::Dequantize(hawqc_ir::Dequantize { axis: 0 }),
            other => other,
        };
        let mut args = cx.graph.args(old);
        args[0] = y;
        let old_name = cx.graph.name(old).to_string();
        y = cx.graph.add(if old_name.is_empty() { name } else { &old_name }, op, &args)?;
    }
    Ok(Some(y))
}

/// The constant times a factor; of a quantised one, the scale is multiplied.
fn scaled(constant: Constant, factor: f32, what: &str) -> Result<Constant, NodeError> {
    if factor == 1.0 {
        return Ok(constant);
    }
    match (&*constant.payload, constant.quant) {
        (Payload::F32(values), None) => Ok(Constant::f32s(constant.dims, values.iter().map(|v| v * factor).collect())),
        (_, Some(quant)) if factor > 0.0 && factor.is_finite() => {
            let scale = quant.scale.iter().map(|s| s * factor).collect();
            Ok(Constant { dims: constant.dims, payload: constant.payload, quant: Some(Quant { scale, ..quant }) })
        }
        _ => Err(unsupported(what, factor.to_string(), "1, or a positive factor of dequantised values", "")),
    }
}
