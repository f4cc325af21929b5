//! A transform as a straight line of cheap operations.

use super::matrix::Matrix;
use super::search;

/// One operation on values before it. Values are the inputs, then one per operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    Add(usize, usize),
    Sub(usize, usize),
    /// Times a power of two.
    Shl(usize, u32),
    Mul(usize, i64),
    Neg(usize),
}

impl Op {
    fn operands(self) -> impl Iterator<Item = usize> {
        let (first, second) = match self {
            Op::Add(a, b) | Op::Sub(a, b) => (a, Some(b)),
            Op::Shl(a, _) | Op::Mul(a, _) | Op::Neg(a) => (a, None),
        };
        std::iter::once(first).chain(second)
    }

    fn renamed(self, name: impl Fn(usize) -> usize) -> Op {
        match self {
            Op::Add(a, b) => Op::Add(name(a), name(b)),
            Op::Sub(a, b) => Op::Sub(name(a), name(b)),
            Op::Shl(a, by) => Op::Shl(name(a), by),
            Op::Mul(a, by) => Op::Mul(name(a), by),
            Op::Neg(a) => Op::Neg(name(a)),
        }
    }
}

/// Equal to a matrix product over any ring of integers modulo a power of two: every operation is one of
/// the ring, so intermediates may wrap in lanes of any width.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Program {
    pub inputs: usize,
    pub ops: Vec<Op>,
    /// Values, one per row of the matrix.
    pub outputs: Vec<usize>,
}

impl Program {
    /// A short program for a matrix without rows of zeros.
    pub fn of(matrix: &Matrix) -> Program {
        search::program(matrix)
    }

    /// The program of some of the outputs.
    pub fn restricted(&self, outputs: std::ops::Range<usize>) -> Program {
        let outputs = &self.outputs[outputs];
        let mut needed = vec![false; self.inputs + self.ops.len()];
        outputs.iter().for_each(|&value| needed[value] = true);
        for (index, op) in self.ops.iter().enumerate().rev() {
            if needed[self.inputs + index] {
                op.operands().for_each(|operand| needed[operand] = true);
            }
        }
        // Inputs keep their numbers.
        let mut renamed: Vec<usize> = (0..self.inputs).collect();
        let mut ops = Vec::new();
        for (value, op) in (self.inputs..).zip(&self.ops) {
            renamed.push(self.inputs + ops.len());
            if needed[value] {
                ops.push(op.renamed(|operand| renamed[operand]));
            }
        }
        Program { inputs: self.inputs, ops, outputs: outputs.iter().map(|&value| renamed[value]).collect() }
    }

    /// Runs the program in signed lanes of `bits` (at most 64) that wrap.
    pub fn eval(&self, inputs: &[i64], bits: u32) -> Vec<i64> {
        let wrap = |v: i64| v << (64 - bits) >> (64 - bits);
        let mut values: Vec<i64> = inputs.iter().map(|&v| wrap(v)).collect();
        for &op in &self.ops {
            values.push(wrap(match op {
                Op::Add(a, b) => values[a].wrapping_add(values[b]),
                Op::Sub(a, b) => values[a].wrapping_sub(values[b]),
                Op::Shl(a, by) => values[a].wrapping_shl(by),
                Op::Mul(a, by) => values[a].wrapping_mul(by),
                Op::Neg(a) => values[a].wrapping_neg(),
            }));
        }
        self.outputs.iter().map(|&i| values[i]).collect()
    }

    /// What the search minimises: a multiplication weighs a quarter more than the others.
    pub fn cost(&self) -> u32 {
        self.ops.iter().map(|op| if let Op::Mul(..) = op { search::MUL } else { search::ADD }).sum()
    }
}
