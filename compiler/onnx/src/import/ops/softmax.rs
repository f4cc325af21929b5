//! Softmax.

use hawqc_ir::Softmax;

use crate::import::context::Context;
use crate::import::node::{Node, NodeError, Value, axis};

/// Since opset 13 along one axis; before, over all axes from `axis` on taken as one.
pub fn softmax(cx: &mut Context, node: &Node) -> Result<Value, NodeError> {
    let x = cx.floats(node.name, node.input(0)?)?;
    let dims = cx.run_dims(x);
    let rank = dims.len();
    if node.opset < 13 {
        let axis = axis(node.int("axis")?.unwrap_or(1), rank)?;
        let rows: usize = dims[..axis].iter().product();
        let linear = cx.in_onnx_order(node.name, x)?;
        let matrix = cx.reshape(node.name, linear, &[rows, dims[axis..].iter().product()])?;
        let y = cx.graph.add(node.name, Softmax {}, &[matrix])?;
        return Ok(Value::Run(cx.shaped_as_in_onnx(node.name, y, &dims)?));
    }
    let onnx_axis = axis(node.int("axis")?.unwrap_or(-1), rank)?;
    let along = Context::graph_axis(rank, onnx_axis);
    let mut swap: Vec<usize> = (0..rank).collect();
    swap.swap(along, rank - 1);
    let last = cx.transpose(node.name, x, &swap)?;
    let y = cx.graph.add(node.name, Softmax {}, &[last])?;
    Ok(Value::Run(cx.transpose(node.name, y, &swap)?))
}
