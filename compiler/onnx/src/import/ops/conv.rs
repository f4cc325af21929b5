//! Conv.

use hawqc_ir::{Conv, ValueId};

use super::window;
use crate::import::constant::Constant;
use crate::import::context::{Context, NHWC};
use crate::import::node::{Node, NodeError, Value, invalid, unsupported};

pub fn conv(cx: &mut Context, node: &Node) -> Result<Value, NodeError> {
    let src = cx.image(node.name, node.input(0)?)?;
    let weights = node.constant(1, "weight")?;
    let bias = node.optional_constant(2, "bias")?;
    Ok(Value::Run(convolve(cx, node, src, weights, bias.map(|b| &**b))?))
}

/// The convolution of `src` by the node's attributes, with weights `[K, C/groups, KH, KW]` and a bias `[K]`.
pub fn convolve(
    cx: &mut Context,
    node: &Node,
    src: ValueId,
    weights: &Constant,
    bias: Option<&Constant>,
) -> Result<ValueId, NodeError> {
    let &[_, _, kh, kw] = weights.dims.as_slice() else {
        return Err(unsupported("rank of the weight", format!("{:?}", weights.dims), "rank 4 [K,C/groups,KH,KW]", ""));
    };
    require_float(weights, "weight")?;
    if let Some(kernel) = window::pair(node, "kernel_shape", 1)?
        && kernel != [kh, kw]
    {
        return Err(invalid(format!("attribute `kernel_shape` is {kernel:?}, the weight has {:?}", weights.dims)));
    }
    let [_, h, w, _] = cx.graph.ty(src).nhwc()?;
    let window = window::window(node, [h, w], [kh, kw])?;
    let groups = node.int("group")?.unwrap_or(1);
    let groups = usize::try_from(groups).map_err(|_| invalid(format!("attribute `group` is {groups}")))?;
    let op = Conv { stride: window.stride, pad: window.pad, dilation: window.dilation, groups, pad_value: 0 };
    let mut args = vec![src, cx.constant(node.name, &weights.permuted(&NHWC))?];
    if let Some(bias) = bias {
        require_float(bias, "bias")?;
        args.push(cx.constant(node.name, bias)?);
    }
    Ok(cx.graph.add(node.name, op, &args)?)
}

fn require_float(constant: &Constant, what: &str) -> Result<(), NodeError> {
    if constant.is_float() {
        return Ok(());
    }
    Err(invalid(format!("the {what} is {} and not dequantised; expected f32", constant.type_name())))
}
