//! Transpose.

use crate::import::context::{Context, NCHW, NHWC};
use crate::import::node::{Node, NodeError, Value, invalid};

pub fn transpose(cx: &mut Context, node: &Node) -> Result<Value, NodeError> {
    let input = node.input(0)?;
    let rank = cx.dims(input).len();
    let perm = match node.ints("perm")? {
        None => (0..rank).rev().collect(),
        Some(perm) => checked(perm, rank)?,
    };
    match input {
        Value::Const(constant) => Ok(Value::Const(constant.permuted(&perm).into())),
        Value::Run(id) if rank == 4 => {
            // Graph axis j of the result is its ONNX axis NHWC[j], hence ONNX axis perm[NHWC[j]] of the source.
            let graph_perm = NHWC.map(|onnx| NCHW[perm[onnx]]);
            Ok(Value::Run(cx.transpose(node.name, *id, &graph_perm)?))
        }
        Value::Run(id) => Ok(Value::Run(cx.transpose(node.name, *id, &perm)?)),
    }
}

fn checked(perm: &[i64], rank: usize) -> Result<Vec<usize>, NodeError> {
    let wrong = || invalid(format!("attribute `perm` is {perm:?}, not a permutation of {rank} axes"));
    let axes: Vec<usize> = perm.iter().map(|&p| usize::try_from(p).map_err(|_| wrong())).collect::<Result<_, _>>()?;
    let mut sorted = axes.clone();
    sorted.sort_unstable();
    if sorted.into_iter().eq(0..rank) { Ok(axes) } else { Err(wrong()) }
}
