//! Short programs for small integer matrices.
//!
//! Rows at points `p` and `-p` are the sum and difference of an even and an odd part; columns likewise,
//! and both are taken apart first. A greedy search builds the rest: it keeps the vectors that are
//! available (inputs first), an estimate of what each missing row would still cost, and adds the
//! combination of two available vectors that lowers the total most. The search is deterministic.

use std::array;
use std::collections::{BTreeSet, HashSet};

use super::matrix::{Matrix, gcd};
use super::program::{Op, Program};
use super::transform::MAX_N;

pub(super) const ADD: u32 = 4;
pub(super) const MUL: u32 = 5;

/// Over the basis; entries beyond it are zero.
type Vector = [i64; MAX_N];

pub(super) fn program(matrix: &Matrix) -> Program {
    let rows: Vec<Vector> = (0..matrix.rows()).map(|i| padded(matrix.row(i))).collect();
    let pairs = (!column_pairs(&rows, matrix.cols()).is_empty(), !row_pairs(&rows).is_empty());
    let shorter = |a: Program, b: Program| if b.cost() < a.cost() { b } else { a };
    match pairs {
        (true, true) => shorter(attempt(matrix, true, true), attempt(matrix, true, false)),
        (columns, rows) => attempt(matrix, columns, rows),
    }
}

fn attempt(matrix: &Matrix, pair_columns: bool, pair_rows: bool) -> Program {
    let inputs = matrix.cols();
    let mut rows: Vec<Vector> = (0..matrix.rows()).map(|i| padded(matrix.row(i))).collect();
    let mut ops = Vec::new();
    let mut basis: Vec<usize> = (0..inputs).collect();
    if pair_columns {
        for (i, j) in column_pairs(&rows, inputs) {
            for row in &mut rows {
                (row[i], row[j]) = if row[i] == row[j] { (row[i], 0) } else { (0, row[i]) };
            }
            (basis[i], basis[j]) = (inputs + ops.len(), inputs + ops.len() + 1);
            ops.extend([Op::Add(i, j), Op::Sub(i, j)]);
        }
    }
    let pairs = if pair_rows { row_pairs(&rows) } else { Vec::new() };
    for pair in &pairs {
        (rows[pair.0], rows[pair.1]) = halves(&rows[pair.0], &rows[pair.1]);
    }
    let mut search = Search::new(inputs, ops, &basis, rows);
    search.run();
    let (mut ops, mut outputs) = search.finish();
    for (i, j) in pairs {
        let (even, odd) = (outputs[i], outputs[j]);
        (outputs[i], outputs[j]) = (inputs + ops.len(), inputs + ops.len() + 1);
        ops.extend([Op::Add(even, odd), Op::Sub(even, odd)]);
    }
    Program { inputs, ops, outputs }
}

fn padded(row: &[i64]) -> Vector {
    array::from_fn(|i| row.get(i).copied().unwrap_or(0))
}

/// Half the sum and half the difference.
fn halves(a: &Vector, b: &Vector) -> (Vector, Vector) {
    (array::from_fn(|i| (a[i] + b[i]) / 2), array::from_fn(|i| (a[i] - b[i]) / 2))
}

/// Rows whose half sum and half difference share no input.
fn row_pairs(rows: &[Vector]) -> Vec<(usize, usize)> {
    disjoint_pairs(rows.len(), |i, j| {
        let same = rows[i].iter().zip(&rows[j]).all(|(a, b)| a.abs() == b.abs());
        let agrees = |sign: i64| rows[i].iter().zip(&rows[j]).any(|(a, b)| *a != 0 && *a == sign * b);
        same && agrees(1) && agrees(-1)
    })
}

/// Columns that are equal or opposite in every row.
fn column_pairs(rows: &[Vector], cols: usize) -> Vec<(usize, usize)> {
    disjoint_pairs(cols, |i, j| {
        let same = rows.iter().all(|row| row[i].abs() == row[j].abs());
        let agrees = |sign: i64| rows.iter().any(|row| row[i] != 0 && row[i] == sign * row[j]);
        same && agrees(1) && agrees(-1)
    })
}

fn disjoint_pairs(count: usize, fits: impl Fn(usize, usize) -> bool) -> Vec<(usize, usize)> {
    let mut taken = vec![false; count];
    let mut pairs = Vec::new();
    for i in 0..count {
        let partner = (i + 1..count).find(|&j| !taken[i] && !taken[j] && fits(i, j));
        if let Some(j) = partner {
            (taken[i], taken[j]) = (true, true);
            pairs.push((i, j));
        }
    }
    pairs
}

struct Search {
    inputs: usize,
    ops: Vec<Op>,
    /// Vectors over the basis, and the values that hold them.
    available: Vec<(Vector, usize)>,
    /// The available vectors as primitive ones and factors.
    primitive: Vec<(Vector, i64)>,
    targets: Vec<Vector>,
    /// What each target is estimated to cost still.
    costs: Vec<u32>,
    /// Magnitudes that multiply.
    factors: Vec<i64>,
}

/// A new vector as `u + factor * v`, or `factor * v` alone.
#[derive(Clone, Copy)]
struct Candidate {
    u: Option<(usize, i64)>,
    v: usize,
    factor: i64,
}

impl Search {
    fn new(inputs: usize, ops: Vec<Op>, basis: &[usize], targets: Vec<Vector>) -> Search {
        let factors: BTreeSet<i64> = targets.iter().flatten().map(|v| v.abs()).filter(|&v| v != 0).collect();
        let costs = targets.iter().map(direct_cost).collect();
        let factors = factors.into_iter().chain([1, 2, 4]).collect::<BTreeSet<_>>().into_iter().collect();
        let mut search = Search { inputs, ops, available: Vec::new(), primitive: Vec::new(), targets, costs, factors };
        for (i, &value) in basis.iter().enumerate() {
            let unit = array::from_fn(|j| i64::from(i == j));
            search.add(unit, value);
        }
        search
    }

    fn add(&mut self, vector: Vector, value: usize) {
        self.primitive.push(primitive(&vector));
        for i in 0..self.targets.len() {
            self.costs[i] = self.costs[i].min(self.cost_through(&self.targets[i], &vector));
        }
        self.available.push((vector, value));
    }

    fn run(&mut self) {
        while self.costs.iter().any(|&c| c != 0) {
            match self.best() {
                Some(candidate) => {
                    self.emit(candidate);
                }
                None => self.emit_first(),
            }
        }
    }

    /// The candidate that lowers the total most, if any lowers what is missing.
    fn best(&self) -> Option<Candidate> {
        let mut best: Option<(u32, Candidate)> = None;
        let missing: u32 = self.costs.iter().sum();
        let mut seen = HashSet::new();
        self.candidates(&mut |candidate| {
            let vector = self.vector(candidate);
            if !self.useful(&vector) || !seen.insert(vector) {
                return;
            }
            let targets = self.targets.iter().zip(&self.costs);
            let left: u32 = targets.map(|(t, &cost)| self.cost_with(t, cost, &vector)).sum();
            let total = left + candidate.cost();
            if left < missing && best.is_none_or(|(least, _)| total < least) {
                best = Some((total, candidate));
            }
        });
        best.map(|(_, candidate)| candidate)
    }

    fn candidates(&self, visit: &mut impl FnMut(Candidate)) {
        let count = self.available.len();
        for v in 0..count {
            for factor in self.factors.iter().flat_map(|&f| [f, -f]).filter(|&f| f != 1) {
                visit(Candidate { u: None, v, factor });
            }
            for u in (0..count).filter(|&u| u != v) {
                for &factor in &self.factors {
                    visit(Candidate { u: Some((u, 1)), v, factor });
                    visit(Candidate { u: Some((u, 1)), v, factor: -factor });
                    visit(Candidate { u: Some((u, -1)), v, factor });
                }
            }
        }
    }

    /// Only new vectors over inputs of one missing target can help. Of the multiples of a vector the
    /// primitive one serves, unless another is a target.
    fn useful(&self, vector: &Vector) -> bool {
        let within = |t: &Vector| t.iter().zip(vector).all(|(t, v)| *v == 0 || *t != 0);
        let mut wanted = self.targets.iter().zip(&self.costs).filter(|&(t, &cost)| cost != 0 && within(t)).peekable();
        wanted.peek().is_some()
            && (primitive(vector).1 == 1 || wanted.any(|(t, _)| t == vector))
            && !self.available.iter().any(|(had, _)| had == vector)
    }

    fn vector(&self, candidate: Candidate) -> Vector {
        let v = &self.available[candidate.v].0;
        match candidate.u {
            Some((u, sign)) => array::from_fn(|i| sign * self.available[u].0[i] + candidate.factor * v[i]),
            None => v.map(|v| v * candidate.factor),
        }
    }

    fn push(&mut self, op: Op) -> usize {
        self.ops.push(op);
        self.inputs + self.ops.len() - 1
    }

    fn scaled(&mut self, value: usize, factor: i64) -> usize {
        match factor {
            1 => value,
            -1 => self.push(Op::Neg(value)),
            f if f > 0 && f.count_ones() == 1 => self.push(Op::Shl(value, f.trailing_zeros())),
            f => self.push(Op::Mul(value, f)),
        }
    }

    /// Appends the operations of a candidate; the place of its vector among the available ones.
    fn emit(&mut self, candidate: Candidate) -> usize {
        let vector = self.vector(candidate);
        let v = self.available[candidate.v].1;
        let value = match candidate.u {
            None => self.scaled(v, candidate.factor),
            Some((u, sign)) => {
                let u = self.available[u].1;
                let scaled = self.scaled(v, candidate.factor.abs());
                self.push(match (sign, candidate.factor) {
                    (1, 1..) => Op::Add(u, scaled),
                    (1, _) => Op::Sub(u, scaled),
                    _ => Op::Sub(scaled, u),
                })
            }
        };
        self.add(vector, value);
        self.available.len() - 1
    }

    /// Builds the first missing target term by term.
    fn emit_first(&mut self) {
        let Some(i) = self.costs.iter().position(|&c| c != 0) else {
            return;
        };
        let target = self.targets[i];
        let mut sum: Option<usize> = None;
        for (v, &factor) in target.iter().enumerate().filter(|(_, f)| **f != 0) {
            let u = sum.map(|u| (u, 1));
            sum = Some(if u.is_none() && factor == 1 { v } else { self.emit(Candidate { u, v, factor }) });
        }
        self.costs[i] = 0;
    }

    /// Operations, and the value of each target.
    fn finish(self) -> (Vec<Op>, Vec<usize>) {
        let find = |t: &Vector| self.available.iter().find(|(v, _)| v == t).map_or(0, |&(_, value)| value);
        let outputs = self.targets.iter().map(find).collect();
        (self.ops, outputs)
    }

    /// Estimate for `target`, that costs `cost` so far, once `vector` is available.
    fn cost_with(&self, target: &Vector, cost: u32, vector: &Vector) -> u32 {
        if target == vector {
            return 0;
        }
        // One operation is the least, and terms that would have to be taken out again do not help.
        let within = || target.iter().zip(vector).all(|(t, v)| *v == 0 || *t != 0);
        if cost <= ADD || !within() { cost } else { cost.min(self.cost_through(target, vector)) }
    }

    /// Estimate for `target` with one term `c * vector`, the rest term by term or available.
    fn cost_through(&self, target: &Vector, vector: &Vector) -> u32 {
        if target == vector {
            return 0;
        }
        let ratio = |i: usize| if vector[i] != 0 && target[i] % vector[i] == 0 { target[i] / vector[i] } else { 0 };
        let ratios: Vector = array::from_fn(ratio);
        let new = |i: &usize| ratios[*i] != 0 && !ratios[..*i].contains(&ratios[*i]);
        let costs = (0..MAX_N).filter(new).map(|i| {
            let c = ratios[i];
            let rest: Vector = array::from_fn(|i| target[i] - c * vector[i]);
            let cost = factor_cost(c.abs());
            if rest == [0; MAX_N] {
                return cost.max(if c < 0 { ADD } else { 0 });
            }
            let negative = c < 0 && rest.iter().all(|&v| v <= 0);
            cost + ADD + self.rest_cost(&rest) + if negative { ADD } else { 0 }
        });
        costs.min().unwrap_or(u32::MAX)
    }

    fn rest_cost(&self, rest: &Vector) -> u32 {
        let (vector, content) = primitive(rest);
        let multiples = self.primitive.iter().filter(|&&(had, factor)| content % factor == 0 && had == vector);
        let had = multiples.map(|&(_, factor)| factor_cost((content / factor).abs())).min();
        had.unwrap_or(u32::MAX).min(term_cost(rest))
    }
}

impl Candidate {
    fn cost(self) -> u32 {
        let scale = factor_cost(self.factor.abs());
        if self.u.is_some() { ADD + scale } else { scale.max(ADD) }
    }
}

fn factor_cost(factor: i64) -> u32 {
    match factor {
        1 => 0,
        f if f.count_ones() == 1 => ADD,
        _ => MUL,
    }
}

/// Terms of one magnitude are added before they are multiplied.
fn term_cost(vector: &Vector) -> u32 {
    let magnitudes = vector.map(i64::abs);
    let terms = magnitudes.iter().filter(|&&v| v != 0).count() as u32;
    let distinct = (0..MAX_N).filter(|&i| magnitudes[i] != 0 && !magnitudes[..i].contains(&magnitudes[i]));
    ADD * terms.saturating_sub(1) + distinct.map(|i| factor_cost(magnitudes[i])).sum::<u32>()
}

fn direct_cost(vector: &Vector) -> u32 {
    term_cost(vector) + if vector.iter().any(|&v| v > 0) { 0 } else { ADD }
}

/// The primitive vector whose first entry is positive, and the factor.
fn primitive(vector: &Vector) -> (Vector, i64) {
    let content = vector.iter().fold(0, |acc, &v| gcd(acc, v)).max(1);
    let negative = vector.iter().find(|&&v| v != 0).is_some_and(|&v| v < 0);
    let content = if negative { -content } else { content };
    (vector.map(|v| v / content), content)
}
