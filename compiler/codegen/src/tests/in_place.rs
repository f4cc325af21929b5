//! Concatenations whose operands are written where they are joined: which these are, and that no value changes by it.

use std::collections::BTreeMap;
use std::sync::Arc;

use hawqc_ir::text::seeded;
use hawqc_ir::*;
use hawqc_runtime::{Entry, Session};

use super::harness::runnable_targets;
use super::model::buffer;
use crate::compile::{ModelInfo, jit};
use crate::in_place::{InPlace, steps};
use crate::interface::Interface;
use crate::kernels::Dst;
use crate::program::{Options, kernel_values};
use crate::target::Target;

/// A network of kernels over bytes.
#[derive(Default)]
struct Net {
    graph: Graph,
}

impl Net {
    fn input(&mut self, shape: impl Into<Vec<usize>>) -> ValueId {
        let name = format!("x{}", self.graph.len());
        self.graph.input(name, TensorType::new(Elem::U8, shape.into())).unwrap()
    }

    fn constant(&mut self, elem: Elem, shape: impl Into<Vec<usize>>, range: Range) -> ValueId {
        let seed = self.graph.len() as u64;
        self.graph.constant(seeded(&TensorType::new(elem, shape.into()), seed, range).unwrap())
    }

    fn kernel(&mut self, args: &[ValueId], body: Vec<(Op, Vec<Arg>)>) -> ValueId {
        let types = args.iter().map(|&arg| self.graph.ty(arg).clone()).collect();
        let spec = KernelSpec::new(types, body).unwrap();
        self.graph.add(format!("k{}", self.graph.len()), Op::Kernel(Arc::new(spec)), args).unwrap()
    }

    fn one(&mut self, op: impl Into<Op>, args: &[ValueId]) -> ValueId {
        let all = (0..args.len()).map(Arg::Operand).collect();
        self.kernel(args, vec![(op.into(), all)])
    }

    fn clamp(&mut self, src: ValueId) -> ValueId {
        self.one(Clamp { lo: 3, hi: 250, elem: Elem::U8 }, &[src])
    }

    fn conv(&mut self, src: ValueId, channels: usize) -> ValueId {
        let c = self.graph.ty(src).shape[3];
        let weights = self.constant(Elem::I8, [channels, 1, 1, c], Range::new(-128, 127));
        let mult = self.constant(Elem::I32, [channels], Range::new(1 << 30, i32::MAX.into()));
        let shift = self.constant(Elem::U8, [channels], Range::new(36, 40));
        let requant = Requant::to_range(Elem::U8.range().unwrap(), Elem::U8);
        let body = vec![
            (Conv::unit().into(), vec![Arg::Operand(0), Arg::Operand(1)]),
            (requant.into(), vec![Arg::Step(0), Arg::Operand(2), Arg::Operand(3)]),
        ];
        self.kernel(&[src, weights, mult, shift], body)
    }

    fn max_pool(&mut self, src: ValueId) -> ValueId {
        self.one(MaxPool { kernel: [3, 3], stride: [1, 1], pad: [1; 4], dilation: [1, 1] }, &[src])
    }

    /// Joins values, each of which the kernel has as one operand, however often it is joined.
    fn concat(&mut self, axis: usize, values: &[ValueId]) -> ValueId {
        let mut operands: Vec<ValueId> = Vec::new();
        let mut args = Vec::new();
        for &value in values {
            let known = operands.iter().position(|&operand| operand == value);
            args.push(Arg::Operand(known.unwrap_or(operands.len())));
            if known.is_none() {
                operands.push(value);
            }
        }
        self.kernel(&operands, vec![(Concat { axis }.into(), args)])
    }

    fn output(&mut self, value: ValueId) {
        let name = format!("y{}", self.graph.outputs().len());
        self.graph.output(name, value);
    }

    fn in_place(&self) -> InPlace {
        InPlace::new(&self.graph, &Interface::new(&self.graph).unwrap(), &kernel_values(&self.graph).unwrap())
    }

    /// The block, the offset and the distance of pixels of a value in it.
    fn home(&self, value: ValueId) -> (ValueId, usize, usize) {
        let home = self.in_place().home(&self.graph, value);
        (home.whole, home.offset_bytes, home.dst.pitch)
    }

    fn is_apart(&self, value: ValueId) -> bool {
        self.home(value).0 != value
    }

    fn has_step(&self, value: ValueId) -> bool {
        steps(&self.graph).unwrap().contains(&value)
    }

    /// Compiles and runs the network, also with every value kept, and compares all there is with the interpreter.
    fn check(&self, target: &Target) {
        let inputs: Vec<Tensor> = self.graph.inputs().iter().enumerate().map(|(i, &id)| self.random(id, i)).collect();
        let mut kernels = Vec::new();
        let expected = interp::run_observed(&self.graph, &inputs, |id, tensor| {
            if matches!(self.graph.op(id), Op::Kernel(_) | Op::Second(_)) {
                kernels.push(tensor.clone());
            }
        });
        let expected = expected.unwrap();
        for keep_values in [false, true] {
            let options = Options { keep_values, ..Options::new(target.clone()) };
            let model = Arc::new(jit(&self.graph, &ModelInfo::default(), &options).unwrap());
            assert_eq!(model.manifest().steps.len(), steps(&self.graph).unwrap().len());
            let mut session = Session::new(model, Some(2)).unwrap();
            let given: Vec<_> = inputs.iter().map(buffer).collect();
            let views: Vec<_> = given.iter().map(hawqc_runtime::Tensor::view).collect();
            // Twice, the second time over what the first has left.
            for _ in 0..2 {
                let found = session.run_entry(Entry::Border, &views).unwrap();
                for (found, expected) in found.iter().zip(&expected) {
                    assert_eq!(found.bytes(), expected.to_bytes(), "{target}:\n{}", text::print(&self.graph));
                }
            }
            let kept = session.model().manifest().values.len();
            assert_eq!(kept, if keep_values { kernels.len() } else { 0 });
            for (index, kernel) in kernels.iter().enumerate().take(kept) {
                let found = session.kept_value(index).unwrap();
                assert_eq!(found.bytes(), kernel.to_bytes(), "{index} on {target}:\n{}", text::print(&self.graph));
            }
        }
    }

    fn random(&self, input: ValueId, seed: usize) -> Tensor {
        seeded(self.graph.ty(input), seed as u64, Range::new(0, 255)).unwrap()
    }

    fn check_everywhere(&self) {
        runnable_targets().iter().filter(|target| target.runs_here()).for_each(|target| self.check(target));
    }
}

#[test]
fn concatenations_in_concatenations() {
    let mut net = Net::default();
    let x = net.input([2, 3, 4, 8]);
    let a = net.conv(x, 5);
    let b = net.conv(x, 16);
    let inner = net.concat(3, &[a, b]);
    let c = net.max_pool(x);
    let d = net.clamp(x);
    let outer = net.concat(3, &[c, inner, d]);
    let y = net.conv(outer, 8);
    net.output(y);
    assert_eq!(net.home(c), (outer, 0, 37));
    assert_eq!(net.home(inner), (outer, 8, 37));
    assert_eq!(net.home(a), (outer, 8, 37));
    assert_eq!(net.home(b), (outer, 13, 37));
    assert_eq!(net.home(d), (outer, 29, 37));
    assert_eq!(net.home(outer), (outer, 0, 37));
    assert!(!net.has_step(inner) && !net.has_step(outer));
    net.check_everywhere();
}

#[test]
fn what_is_read_elsewhere_is_copied() {
    let mut net = Net::default();
    let x = net.input([1, 3, 4, 8]);
    let [free, twice, read, shown, flat] = [3, 8, 9, 16, 4].map(|channels| net.conv(x, channels));
    let constant = net.constant(Elem::U8, [1, 3, 4, 2], Range::new(0, 255));
    let reshaped = net.graph.add("flat", Reshape { shape: vec![1, 3, 4, 4] }, &[flat]).unwrap();
    let joined = net.concat(3, &[twice, x, free, twice, constant, read, shown, reshaped]);
    let reader = net.max_pool(read);
    [joined, reader, shown].into_iter().for_each(|value| net.output(value));
    for value in [twice, read, shown, flat] {
        assert!(!net.is_apart(value));
    }
    assert_eq!(net.home(free), (joined, 16, 58));
    assert!(net.has_step(joined));
    net.check_everywhere();
}

/// A part that lies in one piece may come from any kernel; other axes with several pieces are copied.
#[test]
fn other_axes() {
    let mut net = Net::default();
    let x = net.input([1, 3, 4, 8]);
    let (a, b) = (net.max_pool(x), net.one(Pad { pad: [1, 0, 0, 0], value: Real::new(7.0) }, &[x]));
    let lower = [b, net.clamp(x)];
    let lower = net.concat(1, &lower);
    let rows = net.concat(1, &[a, lower]);
    let c = net.max_pool(rows);
    let columns = [net.clamp(c), net.conv(c, 8)];
    let columns = net.concat(2, &columns);
    let pixel = net.one(SumPool { kernel: [10, 8], stride: [1, 1], pad: [0; 4], zero: 0 }, &[columns]);
    let turned = net.one(Transpose { perm: vec![0, 1, 2, 3] }, &[pixel]);
    let other = net.one(SumPool { kernel: [10, 4], stride: [1, 1], pad: [0; 4], zero: 0 }, &[c]);
    let channels = net.concat(3, &[other, turned]);
    net.output(channels);
    assert_eq!(net.home(a), (rows, 0, 8));
    assert_eq!(net.home(b), (rows, 3 * 4 * 8, 8));
    assert_eq!(net.home(lower), (rows, 3 * 4 * 8, 8));
    assert_eq!(net.home(turned), (channels, 8 * 4, 8));
    assert!(!net.has_step(lower) && !net.has_step(rows) && net.has_step(columns) && !net.has_step(channels));
    net.check_everywhere();
}

/// What cannot write pixels that lie apart is copied, and a concatenation along rows is such a kernel.
#[test]
fn kernels_that_cannot() {
    let mut net = Net::default();
    let x = net.input([1, 3, 4, 8]);
    let padded = net.one(Pad { pad: [0, 1, 0, 0], value: Real::new(0.0) }, &[x]);
    let pieces = [net.clamp(x), net.max_pool(x)];
    let piece = net.concat(1, &pieces);
    let wide = net.max_pool(padded);
    let taller = net.one(Pad { pad: [0, 0, 3, 0], value: Real::new(1.0) }, &[x]);
    let part = net.clamp(taller);
    let joined = net.concat(3, &[piece, part]);
    let row = net.concat(3, &[padded, wide]);
    net.output(joined);
    net.output(row);
    assert_eq!(net.home(pieces[1]), (piece, 3 * 4 * 8, 8));
    assert!(!net.is_apart(piece) && !net.is_apart(padded) && net.is_apart(part));
    assert!(net.has_step(joined) && net.has_step(row) && !net.has_step(piece));
    net.check_everywhere();
}

/// A kernel with two results writes neither into a concatenation.
#[test]
fn second_results() {
    let mut net = Net::default();
    let x = net.input([1, 3, 4, 8]);
    let conv = net.conv(x, 16);
    let Op::Kernel(spec) = net.graph.op(conv).clone() else { unreachable!() };
    let clamp: Op = Clamp { lo: 9, hi: 99, elem: Elem::U8 }.into();
    let second = KernelSpec::new(vec![spec.result().clone()], vec![(clamp, vec![Arg::Operand(0)])]).unwrap();
    let second = Arc::new(second);
    let both = KernelSpec::clone(&spec).with_second(Arc::clone(&second)).unwrap();
    let args = net.graph.args(conv);
    let first = net.graph.add("first", Op::Kernel(Arc::new(both)), &args).unwrap();
    let second = net.graph.add("second", Op::Second(second), &[first]).unwrap();
    let part = net.clamp(x);
    let joined = net.concat(3, &[second, part, first]);
    net.output(joined);
    assert!(!net.is_apart(first) && !net.is_apart(second) && net.is_apart(part) && net.has_step(joined));
    net.check_everywhere();
}

/// Networks at random, of kernels of every kind, concatenations along any axis of any values among them.
#[test]
fn random_networks() {
    let mut seen = BTreeMap::new();
    for seed in 0..300 {
        let net = random(seed);
        for (value, spec) in kernel_values(&net.graph).unwrap() {
            if let [Step { op: Op::Concat(concat), .. }] = spec.steps() {
                let home = net.in_place().home(&net.graph, value);
                let kind = match (net.has_step(value), home.whole != value) {
                    (true, _) if net.in_place().placement(&net.graph, value).written.is_empty() => "copied",
                    (true, true) => "copied in part, nested",
                    (true, false) => "copied in part",
                    (false, true) if home.dst != Dst::dense(net.graph.ty(value)) => "in place, nested, apart",
                    (false, true) => "in place, nested",
                    (false, false) => "in place",
                };
                *seen.entry((kind, concat.axis == 3)).or_insert(0) += 1;
            }
        }
        net.check(&Target::host().unwrap());
    }
    let of_channels = ["copied", "copied in part", "copied in part, nested", "in place", "in place, nested, apart"];
    assert!(of_channels.iter().all(|&kind| seen.get(&(kind, true)).is_some_and(|&n| n > 4)), "{seen:?}");
    let of_rows = ["copied", "copied in part", "in place"];
    assert!(of_rows.iter().all(|&kind| seen.get(&(kind, false)).is_some_and(|&n| n > 4)), "{seen:?}");
}

fn random(seed: u64) -> Net {
    let mut state = seed;
    let mut below = move |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    let mut net = Net::default();
    let batch = 1 + usize::from(below(4) == 0);
    let mut values = vec![net.input([batch, 3, 4, 1 + below(9)]), net.input([batch, 3, 4, 8])];
    for _ in 0..8 + below(10) {
        let pick = |net: &Net, below: &mut dyn FnMut(usize) -> usize, axis: usize, like: Option<ValueId>| {
            let others = |shape: &[usize]| (0..4).filter(|&a| a != axis).map(|a| shape[a]).collect::<Vec<_>>();
            let fits = |value: &&ValueId| {
                like.is_none_or(|like| others(&net.graph.ty(like).shape) == others(&net.graph.ty(**value).shape))
            };
            let fitting: Vec<ValueId> = values.iter().filter(fits).copied().collect();
            // Mostly of those that nothing reads yet.
            let new: Vec<ValueId> = fitting.iter().copied().filter(|&v| net.graph.users(v).is_empty()).collect();
            let from = if new.is_empty() || below(6) == 0 { fitting } else { new };
            from[below(from.len())]
        };
        let src = pick(&net, &mut below, 4, None);
        let value = match below(9) {
            0 => net.clamp(src),
            1 => net.max_pool(src),
            2 | 3 => net.conv(src, [1, 3, 8, 16, 24][below(5)]),
            4 => net.one(Pad { pad: [0, 0, 1, 0], value: Real::new(2.0) }, &[src]),
            5 => {
                let shape = net.graph.ty(src).shape.clone();
                net.constant(Elem::U8, shape, Range::new(0, 255))
            }
            _ => {
                let axis = if below(3) == 0 { 1 + below(2) } else { 3 };
                let mut joined = vec![src];
                for _ in 0..below(4) {
                    joined.push(pick(&net, &mut below, axis, Some(src)));
                }
                for value in &mut joined {
                    // A value of its own, which nothing else will read.
                    *value = match below(4) {
                        0 => net.clamp(*value),
                        1 => net.max_pool(*value),
                        _ => *value,
                    };
                }
                net.concat(axis, &joined)
            }
        };
        values.push(value);
    }
    for &value in &values[2..] {
        if net.graph.users(value).is_empty() || below(10) == 0 {
            net.output(value);
        }
    }
    net
}
