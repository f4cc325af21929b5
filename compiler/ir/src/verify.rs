//! The invariants of a graph, checked between passes.
//!
//! Every graph ([`check`]):
//! 1. operands exist before their users, and each operator accepts its operands' types;
//! 2. the stored type of every node is the inferred one;
//! 3. constants have data; `mult` and `shift` of a requant are constants;
//! 4. there is at least one output, and the names of inputs and of outputs are unique;
//! 5. a second result is one of the kernel that its first operand is the result of, and of the same other operands.
//!
//! Every integer graph ([`check_integer`]), in addition:
//! 6. floats exist at the border only: before a `quantize` nothing but inputs and data movement,
//!    after a `dequantize` nothing but data movement and softmax;
//! 7. every accumulator is proved: for each output channel of a convolution, from the actual weights
//!    and the range of the source, `sum |w| * max|x| + |bias| < 2^31`.

use std::collections::BTreeSet;

use crate::error::{IrError, TypeError};
use crate::graph::{Graph, ValueId};
use crate::ops::{Conv, Op};
use crate::types::TensorType;

/// Checks invariants 1 to 5.
pub fn check(graph: &Graph) -> Result<(), IrError> {
    for id in graph.values() {
        let args = graph.args(id);
        if args.iter().any(|a| a.index() >= id.index()) {
            return Err(graph.invariant(id, "an operand comes after its user"));
        }
        check_type(graph, id, &args)?;
        if let Op::Requant(_) = graph.op(id)
            && args[1..].iter().any(|&a| graph.tensor(a).is_none())
        {
            return Err(graph.invariant(id, "mult and shift must be constants"));
        }
        if let Op::Second(spec) = graph.op(id)
            && !matches!(graph.op(args[0]), Op::Kernel(kernel) if kernel.second() == Some(spec)
                && graph.args(args[0])[kernel.second_operands()..] == args[1..])
        {
            return Err(graph.invariant(id, "a second result of a kernel that has none like it"));
        }
    }
    check_names(graph)
}

fn check_type(graph: &Graph, id: ValueId, args: &[ValueId]) -> Result<(), IrError> {
    let inferred = match graph.op(id) {
        Op::Const(_) => match graph.tensor(id) {
            Some(tensor) => tensor.ty(),
            None => return Err(graph.invariant(id, "a constant without data")),
        },
        op => {
            let types: Vec<&TensorType> = args.iter().map(|&a| graph.ty(a)).collect();
            op.infer(&types).map_err(|e| graph.type_error(id, e))?
        }
    };
    if inferred != *graph.ty(id) {
        return Err(graph.invariant(id, format!("declared {}, inferred {inferred}", graph.ty(id))));
    }
    Ok(())
}

fn check_names(graph: &Graph) -> Result<(), IrError> {
    let message = |m: &str| IrError::Invariant { node: "graph".into(), message: m.into() };
    if graph.outputs().is_empty() {
        return Err(message("there is no output"));
    }
    let inputs: BTreeSet<&str> = graph.inputs().iter().map(|&id| graph.name(id)).collect();
    let outputs: BTreeSet<&str> = graph.outputs().iter().map(|(name, _)| name.as_str()).collect();
    if inputs.len() != graph.inputs().len() || outputs.len() != graph.outputs().len() {
        return Err(message("names of inputs or outputs repeat"));
    }
    Ok(())
}

/// Checks all invariants of an integer graph.
pub fn check_integer(graph: &Graph) -> Result<(), IrError> {
    check(graph)?;
    let live = graph.live();
    for id in graph.values().filter(|id| live[id.index()]) {
        check_border(graph, id)?;
        if let Op::Conv(conv) = graph.op(id) {
            prove_accumulator(graph, id, conv)?;
        }
    }
    Ok(())
}

/// Invariant 6: a float value must be moved only, up to a `quantize` or down from a `dequantize`.
fn check_border(graph: &Graph, id: ValueId) -> Result<(), IrError> {
    let is_float_op = match graph.op(id) {
        Op::Kernel(_) | Op::Second(_) | Op::Input(_) | Op::Const(_) | Op::Quantize(_) | Op::Dequantize(_) => false,
        Op::Reshape(_) | Op::Transpose(_) | Op::Concat(_) | Op::Pad(_) => false,
        Op::Softmax(_) => !graph.users(id).iter().all(|&u| moves_only(graph.op(u))),
        _ => graph.ty(id).is_float(),
    };
    let requantised = matches!(graph.op(id), Op::Quantize(_))
        && graph.args(id).first().is_some_and(|&src| comes_from_dequantize(graph, src));
    if is_float_op || requantised {
        return Err(graph.invariant(id, format!("`{}` computes in floats between the borders", graph.op(id).name())));
    }
    Ok(())
}

fn moves_only(op: &Op) -> bool {
    matches!(op, Op::Reshape(_) | Op::Transpose(_))
}

fn comes_from_dequantize(graph: &Graph, id: ValueId) -> bool {
    matches!(graph.op(id), Op::Dequantize(_))
        || graph.ty(id).is_float() && graph.args(id).into_iter().any(|a| comes_from_dequantize(graph, a))
}

/// Invariant 7. Weights that are not constant are bounded by their type.
fn prove_accumulator(graph: &Graph, id: ValueId, conv: &Conv) -> Result<(), IrError> {
    let args = graph.args(id);
    let Some(src) = graph.ty(args[0]).range else {
        return Ok(());
    };
    let magnitude = src.magnitude().max(i64::from(conv.pad_value).abs());
    let wei = graph.ty(args[1]);
    let row = wei.elements() / wei.shape[0];
    let ints = |a: ValueId| graph.tensor(a).map(|t| t.ints()).transpose().map_err(|e| graph.type_error(id, e));
    let sums: Vec<i64> = match ints(args[1])? {
        Some(values) => values.chunks(row).map(|r| r.iter().map(|w| w.abs()).sum()).collect(),
        None => vec![row as i64 * wei.range.map_or(0, |r| r.magnitude()); wei.shape[0]],
    };
    let bias = match args.get(2) {
        None => vec![0; sums.len()],
        Some(&b) => match ints(b)? {
            Some(values) => values,
            None => vec![graph.ty(b).range.map_or(0, |r| r.magnitude()); sums.len()],
        },
    };
    for (channel, (sum, bias)) in sums.iter().zip(&bias).enumerate() {
        let bound = sum.saturating_mul(magnitude).saturating_add(bias.abs());
        if bound > i64::from(i32::MAX) {
            let message = format!("the accumulator of output channel {channel} may reach {bound}, beyond 2^31 - 1");
            return Err(graph.type_error(id, TypeError::new(message)));
        }
    }
    Ok(())
}
