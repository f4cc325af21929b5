//! What a term costs: an estimate of memory moved and work done, in byte-like units.
//!
//! Fusion comes later, so what will be materialised is foreseen: operators that read their operands from
//! memory (convolution, pooling, concat, pad, transpose, reshape, the borders) pay for one write and one
//! read of every byte of their data operands. Pointwise operators are expected to run in registers and pay for
//! arithmetic only, except behind a concat, pad, transpose or reshape, with which nothing is fused; and of
//! the two branches of an addition one comes from memory, and the narrower is chosen. Every application costs at least 1, which extraction needs to exclude cycles.

use hawqc_ir::{Graph, Op, TensorType, ValueId};

use crate::forms::data_operands;
use crate::language::{Fact, Term, Terms};

/// Multiply, add, shift and two comparisons.
const REQUANT: u64 = 4;
/// Two comparisons, or one addition.
const SIMPLE: u64 = 1;
/// A term that is not well typed: more than any real one, and sums of it do not overflow.
const UNTYPED: u64 = u64::MAX >> 32;
/// A division or a conversion at the border.
const BORDER: u64 = 4;

/// The cost of a term; 0 for leaves.
pub(crate) fn cost(terms: &Terms, id: egg::Id, term: &Term) -> u64 {
    let Term::Apply(_, children) = term else {
        return 0;
    };
    let Some((Fact::Attributes(op), operands)) = children.split_first().map(|(a, rest)| (&terms[*a].data, rest)) else {
        return UNTYPED;
    };
    let moved =
        |&c: &egg::Id| terms[c].iter().any(|term| matches!(term, Term::Apply(name, _) if MOVEMENT.contains(name)));
    let types = operands.iter().filter_map(|c| Some((terms[*c].data.ty()?, moved(c))));
    match terms[id].data.ty() {
        Some(out) => application(op, &types.collect::<Vec<_>>(), out),
        None => UNTYPED,
    }
}

/// Operators that make a kernel alone, or none.
const MOVEMENT: [&str; 4] = ["concat", "pad", "reshape", "transpose"];

/// The cost of an operator of a graph.
pub(crate) fn cost_in(graph: &Graph, id: ValueId) -> u64 {
    let args = graph.args(id);
    let moved = |&a: &ValueId| (graph.ty(a), MOVEMENT.contains(&graph.op(a).name()));
    application(graph.op(id), &args.iter().map(moved).collect::<Vec<_>>(), graph.ty(id))
}

/// The cost of an operator with its operands' types, and whether each was moved, and its result's type.
fn application(op: &Op, operands: &[(&TensorType, bool)], out: &TensorType) -> u64 {
    let elements = out.elements() as u64;
    let bytes = |operand: &(&TensorType, bool)| operand.0.bytes() as u64;
    let data = &operands[..data_operands(op, operands.len())];
    let read = || 2 * data.iter().map(bytes).sum::<u64>();
    let read_moved = || 2 * data.iter().filter(|operand| operand.1).map(bytes).sum::<u64>();
    let cost = match op {
        Op::Requant(_) => REQUANT * elements + read_moved(),
        Op::Clamp(_) | Op::ClampReal(_) => SIMPLE * elements + read_moved(),
        Op::Add(_) => SIMPLE * elements + 2 * operands.iter().map(bytes).min().unwrap_or(0),
        Op::MaxPool(pool) => read() + taps(pool.kernel) * elements * out.elem.bytes() as u64,
        Op::SumPool(pool) => read() + taps(pool.kernel) * elements * SIMPLE,
        Op::AvgPool(pool) => read() + taps(pool.kernel) * elements * BORDER,
        Op::Quantize(_) | Op::Dequantize(_) | Op::Softmax(_) => read() + BORDER * elements,
        // The multiplications are the same in every alternative.
        Op::Conv(_) => read() + elements,
        Op::Concat(_) | Op::Pad(_) | Op::Transpose(_) => read() + elements * out.elem.bytes() as u64,
        Op::Reshape(_) | Op::Kernel(_) | Op::Second(_) => read(),
        Op::Input(_) | Op::Const(_) => 0,
    };
    cost.max(1)
}

fn taps(kernel: [usize; 2]) -> u64 {
    (kernel[0] * kernel[1]) as u64
}
