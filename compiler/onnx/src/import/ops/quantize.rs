//! QuantizeLinear, DequantizeLinear, and the fused QLinear operators, which are a float operator between the two.

use hawqc_ir::{Dequantize, Elem, Op, Quantize, Range, Tensor, ValueId};

use super::{conv, dense};
use crate::import::constant::{Constant, Payload, Quant, data_type_name, elem_of};
use crate::import::context::Context;
use crate::import::node::{Node, NodeError, Value, axis, invalid, unsupported};

const ELEMENTS: &str = "int8, uint8, int16, int4, uint4 (int32 for biases)";

/// Scale and zero point of a node, and the element they quantise to.
struct Parameters {
    quant: Quant,
    elem: Elem,
}

pub fn quantize_linear(cx: &mut Context, node: &Node) -> Result<Value, NodeError> {
    let input = node.input(0)?;
    refuse_precision(node)?;
    let dims = cx.dims(input);
    let declared = match node.int("output_dtype")?.filter(|&t| t != 0) {
        Some(t) => Some(known_elem(t)?),
        None => None,
    };
    let parameters = parameters(node, &dims, 1, 2, declared.unwrap_or(Elem::U8))?;
    if declared.is_some_and(|d| d != parameters.elem) {
        return Err(invalid("attribute `output_dtype` and the zero point differ"));
    }
    match input {
        Value::Run(_) => {
            let src = cx.floats(node.name, input)?;
            Ok(Value::Run(quantize(cx, node.name, src, &parameters)?))
        }
        Value::Const(constant) => quantize_constant(constant, parameters),
    }
}

pub fn dequantize_linear(cx: &mut Context, node: &Node) -> Result<Value, NodeError> {
    if let Some(t) = node.int("output_dtype")?
        && t != 0
        && elem_of(i32::try_from(t).unwrap_or(0)) != Some(Elem::F32)
    {
        return Err(unsupported("output_dtype", data_type_name(i32::try_from(t).unwrap_or(0)), "float", ""));
    }
    let input = node.input(0)?;
    let dims = cx.dims(input);
    let elem = match input {
        Value::Run(id) => cx.graph.ty(*id).elem,
        Value::Const(constant) => match (&*constant.payload, &constant.quant) {
            (Payload::Int(elem, _), None) => *elem,
            _ => return Err(invalid(format!("input 0 is {}; expected integers", constant.type_name()))),
        },
    };
    let parameters = parameters(node, &dims, 1, 2, elem)?;
    if elem == Elem::F32 || parameters.elem != elem {
        return Err(invalid(format!("input 0 is {elem}, the zero point {}", parameters.elem)));
    }
    match input {
        Value::Run(id) => Ok(Value::Run(dequantize(cx, node.name, *id, &parameters)?)),
        Value::Const(constant) => {
            Ok(Value::Const(Constant { quant: Some(parameters.quant), ..(**constant).clone() }.into()))
        }
    }
}

/// Inputs: x, its scale and zero; w, its scale and zero; the scale and zero of y; an optional int32 bias.
pub fn qlinear_conv(cx: &mut Context, node: &Node) -> Result<Value, NodeError> {
    let src = dequantized_input(cx, node)?;
    let weights = dequantized_constant(node, 3, "w", 0)?;
    let bias = match node.optional_constant(8, "B")? {
        None => None,
        Some(bias) => Some(bias_of(node, bias, &weights)?),
    };
    let y = conv::convolve(cx, node, src, &weights, bias.as_ref())?;
    let dims = cx.run_dims(y);
    let out = parameters(node, &dims, 6, 7, Elem::U8)?;
    Ok(Value::Run(quantize(cx, node.name, y, &out)?))
}

/// Inputs: a, its scale and zero; b, its scale and zero; the scale and zero of y.
pub fn qlinear_matmul(cx: &mut Context, node: &Node) -> Result<Value, NodeError> {
    let src = dequantized_input(cx, node)?;
    let weights = dequantized_constant(node, 3, "b", 1)?;
    let y = dense::product(cx, node.name, src, &weights)?;
    let dims = cx.run_dims(y);
    let out = parameters(node, &dims, 6, 7, Elem::U8)?;
    Ok(Value::Run(quantize(cx, node.name, y, &out)?))
}

fn dequantized_input(cx: &mut Context, node: &Node) -> Result<ValueId, NodeError> {
    let id = cx.value(node.name, node.input(0)?)?;
    let dims = cx.run_dims(id);
    let x = parameters(node, &dims, 1, 2, Elem::U8)?;
    if cx.graph.ty(id).elem != x.elem {
        return Err(invalid(format!("input 0 is {}, its zero point {}", cx.graph.ty(id).elem, x.elem)));
    }
    dequantize(cx, node.name, id, &x)
}

/// Constant input `index` under the scale and zero point that follow it; `axis` is that of per-channel scales.
fn dequantized_constant(node: &Node, index: usize, what: &str, axis: usize) -> Result<Constant, NodeError> {
    let constant = node.constant(index, what)?;
    let Payload::Int(elem, _) = *constant.payload else {
        return Err(invalid(format!("`{what}` is {}; expected integers", constant.type_name())));
    };
    let mut read = parameters(node, &constant.dims, index + 1, index + 2, elem)?;
    read.quant.axis = axis;
    if read.elem != elem || (read.quant.scale.len() > 1 && constant.dims.get(axis) != Some(&read.quant.scale.len())) {
        return Err(invalid(format!("scale and zero point of `{what}` do not match it")));
    }
    Ok(Constant { quant: Some(read.quant), ..(**constant).clone() })
}

/// An int32 bias at scale x_scale * w_scale.
fn bias_of(node: &Node, bias: &Constant, weights: &Constant) -> Result<Constant, NodeError> {
    let (Payload::Int(Elem::I32, _), Some(w)) = (&*bias.payload, &weights.quant) else {
        return Err(invalid(format!("the bias is {}; expected int32", bias.type_name())));
    };
    let x_scale = node.constant(1, "x_scale")?.scalar()?;
    let scale: Vec<f32> = w.scale.iter().map(|s| s * x_scale).collect();
    let zero = vec![0; scale.len()];
    if bias.dims.len() != 1 || (scale.len() > 1 && bias.dims != [scale.len()]) {
        return Err(invalid(format!("the bias has dimensions {:?}", bias.dims)));
    }
    Ok(Constant { quant: Some(Quant { scale, zero, axis: 0 }), ..bias.clone() })
}

fn quantize(cx: &mut Context, name: &str, src: ValueId, parameters: &Parameters) -> Result<ValueId, NodeError> {
    let Parameters { quant, elem } = parameters;
    let Range { lo, hi } = full_range(*elem)?;
    let axis = graph_axis(cx, src, quant);
    let (scale, zero) = cx.parameters(*elem, &quant.scale, &quant.zero)?;
    Ok(cx.graph.add(name, Quantize { lo, hi, axis, elem: *elem }, &[src, scale, zero])?)
}

fn dequantize(cx: &mut Context, name: &str, src: ValueId, parameters: &Parameters) -> Result<ValueId, NodeError> {
    let axis = graph_axis(cx, src, &parameters.quant);
    let (scale, zero) = cx.parameters(parameters.elem, &parameters.quant.scale, &parameters.quant.zero)?;
    Ok(cx.graph.add(name, Dequantize { axis }, &[src, scale, zero])?)
}

/// The axis in the graph; 0 where one scale serves all, so that equal operators compare equal.
fn graph_axis(cx: &Context, src: ValueId, quant: &Quant) -> usize {
    if quant.scale.len() == 1 { 0 } else { Context::graph_axis(cx.graph.ty(src).rank(), quant.axis) }
}

fn quantize_constant(constant: &Constant, parameters: Parameters) -> Result<Value, NodeError> {
    let Parameters { quant, elem } = parameters;
    let Range { lo, hi } = full_range(elem)?;
    let src = Tensor::from_f32(constant.dims.clone(), constant.to_f32s()?.into_owned())?;
    if src.f32s()?.iter().any(|v| !v.is_finite()) {
        return Err(invalid("a constant holds NaN or infinity"));
    }
    let scale = Tensor::from_f32(vec![quant.scale.len()], quant.scale)?;
    let zero = Tensor::from_ints(elem, vec![quant.zero.len()], quant.zero)?;
    let op = Op::from(Quantize { lo, hi, axis: quant.axis, elem });
    let ty = op.infer(&[&src.ty(), &scale.ty(), &zero.ty()])?;
    let values = op.eval(&[&src, &scale, &zero], &ty)?;
    let payload = Payload::Int(elem, values.data().clone());
    Ok(Value::Const(Constant::new(constant.dims.clone(), payload).into()))
}

fn full_range(elem: Elem) -> Result<Range, NodeError> {
    elem.range().ok_or_else(|| invalid("the zero point is a float"))
}

fn known_elem(data_type: i64) -> Result<Elem, NodeError> {
    let data_type = i32::try_from(data_type).unwrap_or(0);
    elem_of(data_type)
        .filter(|e| !e.is_float())
        .ok_or_else(|| unsupported("output_dtype", data_type_name(data_type), ELEMENTS, ""))
}

fn refuse_precision(node: &Node) -> Result<(), NodeError> {
    match node.int("precision")? {
        Some(t) if t != 0 && t != 1 => {
            Err(unsupported("precision", data_type_name(i32::try_from(t).unwrap_or(0)), "float", ""))
        }
        _ => Ok(()),
    }
}

/// Reads scale and zero point from two inputs. One scale for all, or one per index of the node's axis; blocked scales
/// are refused.
fn parameters(
    node: &Node,
    dims: &[usize],
    scale_at: usize,
    zero_at: usize,
    default: Elem,
) -> Result<Parameters, NodeError> {
    if let Some(size) = node.int("block_size")?.filter(|&b| b != 0) {
        return Err(unsupported(
            "block_size",
            size.to_string(),
            "0 (one scale per tensor or per channel)",
            "quantise per channel",
        ));
    }
    let scale = node.constant(scale_at, "scale")?;
    if scale.dims.len() > 1 {
        let supported = "a scalar or one scale per channel";
        return Err(unsupported("shape of the scale", format!("{:?}", scale.dims), supported, "quantise per channel"));
    }
    let values = scale.to_f32s()?.into_owned();
    if let Some(bad) = values.iter().find(|s| !(s.is_finite() && **s > 0.0)) {
        return Err(invalid(format!("a scale is {bad}; scales must be positive and finite")));
    }
    let axis = if values.len() == 1 { 0 } else { axis(node.int("axis")?.unwrap_or(1), dims.len())? };
    // The QLinear operators have no axis attribute; their callers check the length.
    let has_axis = node.proto.op_type.ends_with("izeLinear");
    if values.is_empty() || (has_axis && values.len() > 1 && dims[axis] != values.len()) {
        return Err(invalid(format!("{} scales along axis {axis} of {dims:?}", values.len())));
    }
    let (elem, zero) = match node.optional_constant(zero_at, "zero point")? {
        None => (default, vec![0; values.len()]),
        Some(zero) => match (&*zero.payload, &zero.quant) {
            (Payload::Int(elem, _), None) => (*elem, zero.tensor()?.ints()?),
            _ => return Err(unsupported("element of the zero point", zero.type_name(), ELEMENTS, "")),
        },
    };
    if zero.len() != values.len() {
        return Err(invalid(format!("{} scales and {} zero points", values.len(), zero.len())));
    }
    if elem == Elem::I32 && zero.iter().any(|&z| z != 0) {
        return Err(unsupported("zero point of int32", "not 0", "0", ""));
    }
    Ok(Parameters { quant: Quant { scale: values, zero, axis }, elem })
}
