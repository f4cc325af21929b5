//! What a term costs: an estimate of memory moved and work done, in byte-like units.
//!
//! Fusion comes later, so what will be materialised is foreseen: operators that read their operands from
//! memory (convolution, pooling, concat, pad, transpose, reshape, the borders) pay for one write and one
//! read of every byte of their data operands. Pointwise operators are expected to run in registers and pay for
//! arithmetic only; but of the two branches of an addition one comes from memory, and the narrower is
//! chosen. Every application costs at least 1, which extraction needs to exclude cycles.

use hawqc_ir::{Op, TensorType};

use crate::forms::data_operands;
use crate::language::{Fact, Term, Terms};

/// Multiply, add, shift and two comparisons.
const REQUANT: u64 = 4;
/// Two comparisons, or one addition.
const SIMPLE: u64 = 1;
/// A division or a conversion at the border.
const BORDER: u64 = 4;

/// The cost of a term; 0 for leaves.
pub(crate) fn cost(terms: &Terms, id: egg::Id, term: &Term) -> u64 {
    let Term::Apply(_, children) = term else {
        return 0;
    };
    let Some((Fact::Attributes(op), operands)) = children.split_first().map(|(a, rest)| (&terms[*a].data, rest)) else {
        return u64::MAX >> 32;
    };
    let types: Vec<&TensorType> = operands.iter().filter_map(|&c| terms[c].data.ty()).collect();
    match terms[id].data.ty() {
        Some(out) => application(op, &types, out),
        None => u64::MAX >> 32,
    }
}

/// The cost of an operator with its operands' types and its result's.
pub(crate) fn application(op: &Op, operands: &[&TensorType], out: &TensorType) -> u64 {
    let elements = out.elements() as u64;
    let bytes = |ty: &&TensorType| ty.bytes() as u64;
    let read = || 2 * operands[..data_operands(op, operands.len())].iter().map(bytes).sum::<u64>();
    let cost = match op {
        Op::Requant(_) => REQUANT * elements,
        Op::Clamp(_) | Op::ClampReal(_) => SIMPLE * elements,
        Op::Add(_) => SIMPLE * elements + 2 * operands.iter().map(bytes).min().unwrap_or(0),
        Op::MaxPool(pool) => read() + taps(pool.kernel) * elements * out.elem.bytes() as u64,
        Op::SumPool(pool) => read() + taps(pool.kernel) * elements * SIMPLE,
        Op::AvgPool(pool) => read() + taps(pool.kernel) * elements * BORDER,
        Op::Quantize(_) | Op::Dequantize(_) | Op::Softmax(_) => read() + BORDER * elements,
        // The multiplications are the same in every alternative.
        Op::Conv(_) => read() + elements,
        Op::Concat(_) | Op::Pad(_) | Op::Transpose(_) => read() + elements * out.elem.bytes() as u64,
        Op::Reshape(_) | Op::Kernel(_) => read(),
        Op::Input(_) | Op::Const(_) => 0,
    };
    cost.max(1)
}

fn taps(kernel: [usize; 2]) -> u64 {
    (kernel[0] * kernel[1]) as u64
}
