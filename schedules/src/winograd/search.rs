//! Short programs for small integer matrices.
//!
//! Rows at points `p` and `-p` are the sum and difference of an even and an odd part; columns likewise.
//! With and without these pairings, a greedy search builds the rest: it keeps the vectors that are
//! available (inputs first), an estimate of what each missing row would still cost, and adds the
//! combination of two available vectors that lowers the total most. The cheapest of the results is
//! taken. The search is deterministic.

use std::collections::{BTreeMap, BTreeSet};

use super::matrix::{Matrix, gcd};
use super::program::{Op, Program};

pub(super) const ADD: u32 = 4;
pub(super) const MUL: u32 = 5;

type Vector = Vec<i64>;

pub(super) fn program(matrix: &Matrix) -> Program {
    let attempts = [(false, false), (false, true), (true, false), (true, true)];
    let programs = attempts.map(|(pair_columns, pair_rows)| attempt(matrix, pair_columns, pair_rows));
    let shortest = programs.into_iter().min_by_key(Program::cost);
    shortest.unwrap_or_else(|| attempt(matrix, false, false))
}

fn attempt(matrix: &Matrix, pair_columns: bool, pair_rows: bool) -> Program {
    let inputs = matrix.cols();
    let mut rows: Vec<Vector> = (0..matrix.rows()).map(|i| matrix.row(i).to_vec()).collect();
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

/// Half the sum and half the difference.
fn halves(a: &[i64], b: &[i64]) -> (Vector, Vector) {
    let half = |f: fn(i64, i64) -> i64| a.iter().zip(b).map(|(&a, &b)| f(a, b) / 2).collect();
    (half(|a, b| a + b), half(|a, b| a - b))
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
    /// Contents of the available multiples of primitive vectors.
    primitive: BTreeMap<Vector, BTreeSet<i64>>,
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
        let costs = targets.iter().map(|t| direct_cost(t)).collect();
        let factors = factors.into_iter().chain([1, 2, 4]).collect::<BTreeSet<_>>().into_iter().collect();
        let mut search =
            Search { inputs, ops, available: Vec::new(), primitive: BTreeMap::new(), targets, costs, factors };
        for (i, &value) in basis.iter().enumerate() {
            let unit = (0..basis.len()).map(|j| i64::from(i == j)).collect();
            search.add(unit, value);
        }
        search
    }

    fn add(&mut self, vector: Vector, value: usize) {
        let (primitive, content) = primitive(&vector);
        self.primitive.entry(primitive).or_default().insert(content);
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
        let mut seen = BTreeSet::new();
        self.candidates(&mut |candidate| {
            let vector = self.vector(candidate);
            if !self.useful(&vector) || !seen.insert(vector.clone()) {
                return;
            }
            let targets = self.targets.iter().zip(&self.costs);
            let left: u32 = targets.map(|(t, &cost)| cost.min(self.cost_through(t, &vector))).sum();
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

    /// Only vectors over inputs of one missing target, and not had already, can help.
    fn useful(&self, vector: &[i64]) -> bool {
        let within = |t: &Vector| t.iter().zip(vector).all(|(t, v)| *v == 0 || *t != 0);
        let wanted = self.targets.iter().zip(&self.costs).any(|(t, &cost)| cost != 0 && within(t));
        wanted && vector.iter().any(|&v| v != 0) && !self.available.iter().any(|(had, _)| had == vector)
    }

    fn vector(&self, candidate: Candidate) -> Vector {
        let v = self.available[candidate.v].0.iter().map(|v| v * candidate.factor);
        match candidate.u {
            Some((u, sign)) => self.available[u].0.iter().zip(v).map(|(u, v)| sign * u + v).collect(),
            None => v.collect(),
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
        let target = self.targets[i].clone();
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

    /// Estimate for `target` with one term `c * vector`, the rest term by term or available.
    fn cost_through(&self, target: &[i64], vector: &[i64]) -> u32 {
        if target == vector {
            return 0;
        }
        let ratios = target.iter().zip(vector).filter(|&(&t, &v)| v != 0 && t != 0 && t % v == 0).map(|(t, v)| t / v);
        let mut least = u32::MAX;
        let mut last = 0;
        for c in ratios {
            if c == last {
                continue;
            }
            last = c;
            let rest: Vector = target.iter().zip(vector).map(|(t, v)| t - c * v).collect();
            let cost = factor_cost(c.abs());
            least = least.min(if rest.iter().all(|&v| v == 0) {
                cost.max(if c < 0 { ADD } else { 0 })
            } else {
                let negative = c < 0 && rest.iter().all(|&v| v <= 0);
                cost + ADD + self.rest_cost(&rest) + if negative { ADD } else { 0 }
            });
        }
        least
    }

    fn rest_cost(&self, rest: &[i64]) -> u32 {
        let (vector, content) = primitive(rest);
        let multiples = self.primitive.get(&vector).into_iter().flatten();
        let had = multiples.filter(|&c| content % c == 0).map(|c| factor_cost((content / c).abs())).min();
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
fn term_cost(vector: &[i64]) -> u32 {
    let terms = vector.iter().filter(|&&v| v != 0).count() as u32;
    let magnitudes: BTreeSet<i64> = vector.iter().map(|v| v.abs()).filter(|&v| v != 0).collect();
    ADD * terms.saturating_sub(1) + magnitudes.into_iter().map(factor_cost).sum::<u32>()
}

fn direct_cost(vector: &[i64]) -> u32 {
    term_cost(vector) + if vector.iter().any(|&v| v > 0) { 0 } else { ADD }
}

/// The primitive vector whose first entry is positive, and the factor.
fn primitive(vector: &[i64]) -> (Vector, i64) {
    let content = vector.iter().fold(0, |acc, &v| gcd(acc, v)).max(1);
    let negative = vector.iter().find(|&&v| v != 0).is_some_and(|&v| v < 0);
    let content = if negative { -content } else { content };
    (vector.iter().map(|v| v / content).collect(), content)
}
