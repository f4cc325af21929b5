//! Every row, on random instances of its left side: both sides interpreted, bit for bit.

#[path = "../../tests/networks/mod.rs"]
mod networks;

use std::collections::{BTreeMap, BTreeSet};

use egg::{Id, Runner, SimpleScheduler};
use hawqc_ir::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Row, compile, expand, rows};
use crate::extract::{Extraction, extract};
use crate::language::{Fact, Term, Terms, Types};
use crate::region::Region;
use crate::saturate::lower;
use networks::random_inputs;

/// Instances on which a row has to fire, and instances tried for that.
const FIRED: usize = 250;
const TRIED: usize = 400_000;

#[test]
fn every_row_keeps_every_bit() {
    for row in rows() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let mut fired = 0;
        for seed in 0..TRIED as u64 {
            let Some(graph) = instance(row, &mut rng) else { continue };
            fired += usize::from(check(row, &graph, seed));
            if fired == FIRED {
                break;
            }
        }
        assert_eq!(fired, FIRED, "`{}` fired too rarely for its test to mean anything", row.name);
    }
}

#[test]
fn names_are_unique_and_kebab_case() {
    let names: Vec<&str> = rows().map(|row| row.name).collect();
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
    assert!(names.iter().all(|n| n.chars().all(|c| c.is_ascii_lowercase() || c == '-')));
    assert!(rows().all(|row| !row.because.is_empty()));
}

/// Two requants that both round are different from any single one, so they stay two.
#[test]
fn rounding_twice_is_never_merged() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for _ in 0..200 {
        let mut graph = Graph::new();
        let x = graph.input("x", TensorType::new(Elem::I32, [1, 1, 1, 4])).unwrap();
        let mut value = x;
        for lo in [-32768, -128] {
            // An odd multiplier is never exactly one or a power of two.
            let mult = rng.random_range(1 << 29..1 << 30) * 2 + 1;
            let mult = graph.constant(Tensor::from_ints(Elem::I32, [1], [mult]).unwrap());
            let shift = graph.constant(Tensor::from_ints(Elem::U8, [1], [rng.random_range(32..40)]).unwrap());
            let requant = Requant::to_range(Range::new(lo, -lo - 1), Elem::I32);
            value = graph.add("r", requant, &[value, mult, shift]).unwrap();
        }
        graph.output("y", value);
        let (rewritten, _) = crate::rewrite(&graph).unwrap();
        let requants = rewritten.values().filter(|&id| matches!(rewritten.op(id), Op::Requant(_))).count();
        assert_eq!(requants, 2);
    }
}

/// Applies a row once to a graph; whether it fired. Every term it made equal to the output must be.
fn check(row: &'static Row, graph: &Graph, seed: u64) -> bool {
    let leaf = |id: &ValueId| matches!(graph.op(*id), Op::Input(_) | Op::Const(_));
    let region = Region { values: graph.values().filter(|id| !leaf(id)).collect() };
    let lowered = lower(graph, &region);
    let runner = Runner::<Term, Types, ()>::new(Types::default())
        .with_egraph(lowered.terms)
        .with_scheduler(SimpleScheduler)
        .with_iter_limit(1)
        .run(&compile(row).unwrap());
    if runner.iterations[0].applied.is_empty() {
        return false;
    }
    let terms = runner.egraph;
    assert_eq!(terms.analysis.conflict, None, "`{}` on\n{}", row.name, text::print(graph));
    let root = graph.outputs()[0].1;
    let class = terms.find(lowered.ids[&root]);
    let mut extraction = extract(&terms, &[class], &BTreeMap::new());
    for term in terms[class].nodes.clone() {
        extraction.chosen.insert(class, term);
        let Some(other) = build(graph, &terms, &extraction, class) else { continue };
        compare(row, graph, &other, seed);
    }
    true
}

fn compare(row: &Row, graph: &Graph, other: &Graph, seed: u64) {
    let context = || format!("`{}`:\n{}\nagainst\n{}", row.name, text::print(graph), text::print(other));
    let (left, right) = (graph.ty(graph.outputs()[0].1), other.ty(other.outputs()[0].1));
    assert_eq!((left.elem, &left.shape), (right.elem, &right.shape), "{}", context());
    assert!(left.range.zip(right.range).is_none_or(|(l, r)| l.contains(r)), "{}", context());
    for i in 0..6 {
        let inputs = random_inputs(graph, seed * 8 + i);
        let (left, right) = (interp::run(graph, &inputs).unwrap(), interp::run(other, &inputs).unwrap());
        assert_eq!(left, right, "{}\non {inputs:?}", context());
    }
}

/// The graph of the chosen terms; `None` where the root's term needs the root.
fn build(graph: &Graph, terms: &Terms, extraction: &Extraction, root: Id) -> Option<Graph> {
    let mut new = Graph::new();
    let mut inputs = BTreeMap::new();
    for &id in graph.inputs() {
        inputs.insert(id, new.input(graph.name(id), graph.ty(id).clone()).unwrap());
    }
    let mut values: BTreeMap<Id, ValueId> = BTreeMap::new();
    for id in extraction.needed(terms, [root]).ok()? {
        let value = match &extraction.chosen[&id] {
            Term::Outer(value) => inputs[value],
            Term::Constant(constant) => new.constant(terms.analysis.constants[constant].clone()),
            Term::Attributes(_) => continue,
            Term::Apply(_, children) => {
                let Fact::Attributes(op) = &terms[children[0]].data else { panic!("no attributes") };
                let args: Vec<ValueId> = children[1..].iter().map(|&c| values[&terms.find(c)]).collect();
                new.add("", op.clone(), &args).unwrap()
            }
        };
        values.insert(id, value);
    }
    new.output("y", values[&root]);
    Some(new)
}

/// A random instance of a row's left side; `None` where what was drawn does not fit together.
fn instance(row: &Row, rng: &mut ChaCha8Rng) -> Option<Graph> {
    let text = expand(row.left, rng.random_range(2..4));
    let pattern: egg::Pattern<Term> = text.parse().unwrap();
    let shape = vec![rng.random_range(1..3), rng.random_range(1..5), rng.random_range(1..5), rng.random_range(1..4)];
    let elem = pick(rng, &[Elem::U4, Elem::I4, Elem::U8, Elem::I8, Elem::I16, Elem::I32]);
    let mut draw = Draw {
        rng,
        pattern: &pattern.ast,
        graph: Graph::new(),
        attributes: BTreeMap::new(),
        values: BTreeMap::new(),
        shape,
        elem,
        scales: None,
    };
    let root = draw.value(draw.pattern.len() - 1)?;
    draw.graph.output("y", root);
    (draw.graph.ty(root).elements() <= 4096).then_some(draw.graph)
}

fn pick<T: Clone>(rng: &mut ChaCha8Rng, from: &[T]) -> T {
    from[rng.random_range(0..from.len())].clone()
}

struct Draw<'a> {
    rng: &'a mut ChaCha8Rng,
    pattern: &'a [egg::ENodeOrVar<Term>],
    graph: Graph,
    attributes: BTreeMap<egg::Var, Op>,
    values: BTreeMap<egg::Var, ValueId>,
    /// Shape and element of new operands.
    shape: Vec<usize>,
    elem: Elem,
    /// The last mult and shift, to be drawn again.
    scales: Option<(Tensor, Tensor)>,
}

impl Draw<'_> {
    fn value(&mut self, node: usize) -> Option<ValueId> {
        match &self.pattern[node] {
            egg::ENodeOrVar::Var(var) => match self.values.get(var) {
                Some(&value) => Some(value),
                None => {
                    let value = self.operand()?;
                    self.values.insert(*var, value);
                    Some(value)
                }
            },
            egg::ENodeOrVar::ENode(Term::Apply(name, children)) => {
                let children: Vec<usize> = children.iter().map(|&c| usize::from(c)).collect();
                self.application(name, &children)
            }
            egg::ENodeOrVar::ENode(_) => None,
        }
    }

    fn operand(&mut self) -> Option<ValueId> {
        let elem = if self.rng.random_bool(0.8) {
            self.elem
        } else {
            pick(self.rng, &[Elem::U4, Elem::I4, Elem::U8, Elem::I8, Elem::I16, Elem::I32])
        };
        let full = elem.range()?;
        let near = Range::new(full.lo.max(-300), full.hi.min(300));
        let range = match self.rng.random_range(0..4) {
            0 => full,
            1 => near,
            2 => self.subrange(full),
            _ => self.subrange(near),
        };
        let ty = TensorType::with_range(elem, self.shape.clone(), range).ok()?;
        let name = format!("x{}", self.graph.inputs().len());
        self.graph.input(name, ty).ok()
    }

    fn subrange(&mut self, range: Range) -> Range {
        let (a, b) = (self.rng.random_range(range.lo..=range.hi), self.rng.random_range(range.lo..=range.hi));
        Range::new(a.min(b), a.max(b))
    }

    fn application(&mut self, name: &str, children: &[usize]) -> Option<ValueId> {
        let egg::ENodeOrVar::Var(attribute) = self.pattern[children[0]] else { return None };
        let args = match name {
            "concat" => return self.concat(attribute, &children[1..]),
            "requant" => {
                let src = self.value(children[1])?;
                let (mult, shift) = self.scales(src)?;
                vec![src, self.constant(children[2], mult)?, self.constant(children[3], shift)?]
            }
            "conv" => {
                let src = self.value(children[1])?;
                let channels = *self.graph.ty(src).shape.last()?;
                let groups = pick(self.rng, &[1, channels]);
                let filters = groups * self.rng.random_range(1..3);
                self.attributes.entry(attribute).or_insert(Op::Conv(Conv { groups, ..Conv::unit() }));
                let shape = [filters, self.rng.random_range(1..4), self.rng.random_range(1..4), channels / groups];
                let weights = self.random(Elem::I8, &shape, Range::new(-127, 127));
                let mut args = vec![src, self.constant(children[2], weights?)?];
                if let Some(&bias) = children.get(3) {
                    let tensor = self.random(Elem::I32, &[filters], Range::new(-9999, 9999))?;
                    args.push(self.constant(bias, tensor)?);
                }
                args
            }
            _ => children[1..].iter().map(|&c| self.value(c)).collect::<Option<Vec<_>>>()?,
        };
        let types: Vec<TensorType> = args.iter().map(|&a| self.graph.ty(a).clone()).collect();
        let op = match self.attributes.get(&attribute) {
            Some(Op::Conv(conv)) => self.conv(conv.groups),
            Some(op) => op.clone(),
            None => self.op(name, &types)?,
        };
        self.attributes.insert(attribute, op.clone());
        self.graph.add("", op, &args).ok()
    }

    fn random(&mut self, elem: Elem, shape: &[usize], range: Range) -> Option<Tensor> {
        text::seeded(&TensorType::new(elem, shape), self.rng.random(), range).ok()
    }

    /// Operands that agree but for the axis.
    fn concat(&mut self, attribute: egg::Var, children: &[usize]) -> Option<ValueId> {
        let axis = self.rng.random_range(0..4);
        let whole = self.shape.clone();
        let mut args = Vec::new();
        for &child in children {
            self.shape[axis] = self.rng.random_range(1..4);
            args.push(self.value(child)?);
        }
        self.shape = whole;
        self.attributes.insert(attribute, Concat { axis }.into());
        self.graph.add("", Concat { axis }, &args).ok()
    }

    fn constant(&mut self, node: usize, tensor: Tensor) -> Option<ValueId> {
        let egg::ENodeOrVar::Var(var) = self.pattern[node] else { return None };
        let value = self.graph.constant(tensor);
        Some(*self.values.entry(var).or_insert(value))
    }

    fn scales(&mut self, src: ValueId) -> Option<(Tensor, Tensor)> {
        let (mult, shift) = match (self.rng.random_range(0..5), self.scales.clone()) {
            (0 | 1, Some(scales)) => return Some(scales),
            // The same mult with other shifts.
            (2, Some((mult, _))) => {
                let shifts = (0..mult.len()).map(|_| self.rng.random_range(28..42));
                let shift = Tensor::from_ints(Elem::U8, mult.shape(), shifts).ok()?;
                (mult, shift)
            }
            _ => self.new_scales(src)?,
        };
        self.scales = Some((mult.clone(), shift.clone()));
        Some((mult, shift))
    }

    fn new_scales(&mut self, src: ValueId) -> Option<(Tensor, Tensor)> {
        let shape = self.graph.ty(src).shape.clone();
        let shape = match self.rng.random_range(0..6) {
            0 | 1 => vec![1],
            2..4 => vec![*shape.last()?],
            // Any trailing axes, each whole or one.
            4 => {
                let rank = self.rng.random_range(1..=shape.len());
                let axes = shape[shape.len() - rank..].iter();
                axes.map(|&d| if self.rng.random_bool(0.5) { d } else { 1 }).collect()
            }
            _ => vec![1; shape.len()],
        };
        let count: usize = shape.iter().product();
        let mode = self.rng.random_range(0..6);
        let first = self.scale(mode);
        let scales: Vec<(i64, i64)> = (0..count).map(|_| if mode >= 4 { self.scale(mode) } else { first }).collect();
        let mult = Tensor::from_ints(Elem::I32, shape.clone(), scales.iter().map(|s| s.0)).ok()?;
        let shift = Tensor::from_ints(Elem::U8, shape, scales.iter().map(|s| s.1)).ok()?;
        Some((mult, shift))
    }

    fn scale(&mut self, mode: u32) -> (i64, i64) {
        match mode {
            0 => {
                let shift = self.rng.random_range(1..31);
                (1 << shift, shift)
            }
            1 => (1 << self.rng.random_range(0..31), self.rng.random_range(1..63)),
            2 => (pick(self.rng, &[0, 1, i32::MAX.into()]), pick(self.rng, &[1, 31, 62])),
            _ => (self.rng.random_range(1 << 30..1 << 31), self.rng.random_range(28..42)),
        }
    }

    fn conv(&mut self, groups: usize) -> Op {
        let pad = self.padding();
        let pad_value = pick(self.rng, &[0, -1, 3]);
        let (stride, dilation) = (self.pair(), self.pair());
        Op::Conv(Conv { stride, pad, dilation, groups, pad_value })
    }

    fn pair(&mut self) -> [usize; 2] {
        [self.rng.random_range(1..3), self.rng.random_range(1..3)]
    }

    fn padding(&mut self) -> Padding {
        if self.rng.random_bool(0.4) {
            return [0; 4];
        }
        [0; 4].map(|_: usize| self.rng.random_range(0..3))
    }

    fn op(&mut self, name: &str, types: &[TensorType]) -> Option<Op> {
        let src = types.first()?;
        let range = src.range?;
        Some(match name {
            "add" => Add {}.into(),
            "clamp" => {
                let (lo, hi, elem) = self.bounds(src.elem, range)?;
                Clamp { lo, hi, elem }.into()
            }
            "requant" => {
                let (lo, hi, elem) = self.bounds(src.elem, Range::new(-128, 127))?;
                let zeros: [i32; 3] = [0, 0, self.rng.random_range(-130..130)];
                let (src_zero, dst_zero) = (pick(self.rng, &zeros), pick(self.rng, &zeros));
                let round = pick(self.rng, &[&Rounding::ALL[..], &[Rounding::Floor]].concat());
                Requant { src_zero, dst_zero, lo, hi, round, elem }.into()
            }
            "max_pool" => {
                let [kernel, stride, dilation] = [self.pair(), self.pair(), self.pair()];
                let [top, left] = kernel.map(|k| self.rng.random_range(0..k));
                // Half of the pools keep the size of the image.
                let same = MaxPool {
                    kernel,
                    stride: [1, 1],
                    pad: [top, left, kernel[0] - 1 - top, kernel[1] - 1 - left],
                    dilation: [1, 1],
                };
                let other = MaxPool { kernel, stride, pad: self.padding(), dilation };
                pick(self.rng, &[same, other]).into()
            }
            "sum_pool" => {
                let (kernel, stride, pad) = (self.pair(), self.pair(), self.padding());
                SumPool { kernel, stride, pad, zero: pick(self.rng, &[0, -1, 3]) }.into()
            }
            "pad" => {
                let value = pick(self.rng, &[0.0, -1.0, 3.0, range.lo.max(-99) as f32]);
                Pad { pad: self.padding(), value: Real::new(value) }.into()
            }
            "reshape" => Reshape { shape: self.other_shape(src) }.into(),
            "transpose" => {
                let mut perm: Vec<usize> = (0..src.rank()).collect();
                for i in 1..perm.len() {
                    perm.swap(i, self.rng.random_range(0..=i));
                }
                Transpose { perm }.into()
            }
            _ => return None,
        })
    }

    /// Bounds at, inside and around a range, and an element to store them.
    fn bounds(&mut self, elem: Elem, range: Range) -> Option<(i64, i64, Elem)> {
        let elem = pick(self.rng, &[elem, elem, Elem::U4, Elem::U8, Elem::I8, Elem::I16, Elem::I32]);
        let full = elem.range()?;
        let inside = self.rng.random_range(range.lo..=range.hi);
        let choice = [0, inside, range.lo, range.hi, full.lo, full.hi, i64::from(i32::MAX)];
        let (a, b) = (pick(self.rng, &choice), pick(self.rng, &choice));
        Some((a.min(b), a.max(b), elem))
    }

    fn other_shape(&mut self, ty: &TensorType) -> Vec<usize> {
        let (all, last) = (ty.elements(), ty.shape.last().copied().unwrap_or(1));
        let mut reversed = ty.shape.clone();
        reversed.reverse();
        pick(self.rng, &[ty.shape.clone(), vec![all], vec![all / last, last], vec![1, 1, all / last, last], reversed])
    }
}
