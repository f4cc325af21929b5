//! Concat.

use std::rc::Rc;

use hawqc_ir::Concat;

use crate::import::constant::Constant;
use crate::import::context::Context;
use crate::import::node::{Node, NodeError, Value, axis, invalid, unsupported};

/// Joins run-time values, or vectors of indices.
pub fn concat(cx: &mut Context, node: &Node) -> Result<Value, NodeError> {
    let value = node.int("axis")?.ok_or_else(|| invalid("attribute `axis` is missing"))?;
    let inputs = (0..node.inputs.len()).map(|i| node.input(i)).collect::<Result<Vec<_>, _>>()?;
    let first = inputs.first().ok_or_else(|| invalid("no inputs"))?;
    let rank = cx.dims(first).len();
    let onnx_axis = axis(value, rank)?;
    let constants: Option<Vec<&Rc<Constant>>> =
        inputs.iter().map(|v| if let Value::Const(c) = v { Some(c) } else { None }).collect();
    if let Some(constants) = constants
        && constants.iter().all(|c| c.dims.len() == 1)
    {
        let parts = constants.iter().map(|c| c.to_i64s()).collect::<Result<Vec<_>, _>>()?;
        let joined = parts.concat();
        return Ok(Value::Const(Constant::i64s(vec![joined.len()], joined).into()));
    }
    let mut args = Vec::with_capacity(inputs.len());
    for input in inputs {
        let id = cx.value(node.name, input)?;
        if cx.graph.ty(id).rank() != rank {
            return Err(invalid(format!("operands of ranks {rank} and {}", cx.graph.ty(id).rank())));
        }
        args.push(id);
    }
    let elem = cx.graph.ty(args[0]).elem;
    if let Some(&other) = args.iter().find(|&&a| cx.graph.ty(a).elem != elem) {
        let found = format!("{elem} and {}", cx.graph.ty(other).elem);
        return Err(unsupported("elements of the operands", found, "equal elements", ""));
    }
    Ok(Value::Run(cx.graph.add(node.name, Concat { axis: Context::graph_axis(rank, onnx_axis) }, &args)?))
}
