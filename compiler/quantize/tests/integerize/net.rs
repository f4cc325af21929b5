//! Building small QDQ graphs, and comparing them with their integer graphs.

use std::collections::BTreeMap;

use hawqc_ir::{
    ClampReal, Conv, Dequantize, Elem, Graph, Op, Quantize, Range, Real, Tensor, TensorType, ValueId, interp, verify,
};
use hawqc_quantize::integerize::integerize;

/// A deterministic stream of numbers.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    pub fn int(&mut self, lo: i64, hi: i64) -> i64 {
        lo + (self.next() % (hi - lo + 1) as u64) as i64
    }

    pub fn ints(&mut self, count: usize, lo: i64, hi: i64) -> Vec<i64> {
        (0..count).map(|_| self.int(lo, hi)).collect()
    }

    /// Between `lo` and `hi`.
    pub fn real(&mut self, lo: f32, hi: f32) -> f32 {
        lo + (hi - lo) * (self.next() % (1 << 24)) as f32 / (1 << 24) as f32
    }
}

/// Element, scale and zero point of a quantised tensor.
#[derive(Clone, Copy, Debug)]
pub struct Q {
    pub elem: Elem,
    pub scale: f32,
    pub zero: i64,
}

pub fn q(elem: Elem, scale: f32, zero: i64) -> Q {
    Q { elem, scale, zero }
}

/// A graph under construction; operators without a name are called after their position.
#[derive(Default)]
pub struct Net {
    pub graph: Graph,
}

impl Net {
    pub fn op(&mut self, op: impl Into<Op>, args: &[ValueId]) -> ValueId {
        let op = op.into();
        let name = format!("{}{}", op.name(), self.graph.len());
        self.graph.add(name, op, args).unwrap()
    }

    pub fn ints(&mut self, elem: Elem, shape: &[usize], values: &[i64]) -> ValueId {
        self.graph.constant(Tensor::from_ints(elem, shape, values.iter().copied()).unwrap())
    }

    pub fn floats(&mut self, shape: &[usize], values: &[f32]) -> ValueId {
        self.graph.constant(Tensor::from_f32(shape, values.to_vec()).unwrap())
    }

    /// An integer input under a dequantize.
    pub fn input(&mut self, shape: &[usize], q: Q) -> ValueId {
        let name = format!("x{}", self.graph.inputs().len());
        let input = self.graph.input(name, TensorType::new(q.elem, shape)).unwrap();
        self.dequantize(input, q)
    }

    pub fn dequantize(&mut self, src: ValueId, q: Q) -> ValueId {
        let scale = self.floats(&[1], &[q.scale]);
        let zero = self.ints(q.elem, &[1], &[q.zero]);
        self.op(Dequantize { axis: 0 }, &[src, scale, zero])
    }

    pub fn dequantize_axis(&mut self, src: ValueId, scales: &[f32], zeros: &[i64], axis: usize) -> ValueId {
        let scale = self.floats(&[scales.len()], scales);
        let zero = self.ints(Elem::I32, &[zeros.len()], zeros);
        self.op(Dequantize { axis }, &[src, scale, zero])
    }

    pub fn quantize(&mut self, src: ValueId, q: Q) -> ValueId {
        let scale = self.floats(&[1], &[q.scale]);
        let zero = self.ints(q.elem, &[1], &[q.zero]);
        let Range { lo, hi } = q.elem.range().unwrap();
        self.op(Quantize { lo, hi, axis: 0, elem: q.elem }, &[src, scale, zero])
    }

    pub fn relu(&mut self, src: ValueId) -> ValueId {
        self.op(ClampReal::relu(), &[src])
    }

    pub fn clamp(&mut self, src: ValueId, lo: f32, hi: f32) -> ValueId {
        self.op(ClampReal { lo: Real::new(lo), hi: Real::new(hi) }, &[src])
    }

    /// Weights `[K, KH, KW, C]` with one scale per output channel.
    pub fn weights(&mut self, elem: Elem, shape: &[usize; 4], values: &[i64], scales: &[f32]) -> ValueId {
        let values = self.ints(elem, shape, values);
        self.dequantize_axis(values, scales, &vec![0; scales.len()], 0)
    }

    /// A bias quantised at the scale of the accumulator, as exporters do.
    pub fn bias(&mut self, values: &[i64], scales: &[f32]) -> ValueId {
        let bias = self.ints(Elem::I32, &[values.len()], values);
        self.dequantize_axis(bias, scales, &vec![0; scales.len()], 0)
    }

    pub fn conv(&mut self, conv: Conv, args: &[ValueId]) -> ValueId {
        self.op(conv, args)
    }

    pub fn output(mut self, value: ValueId) -> Graph {
        self.graph.output("y", value);
        self.graph
    }
}

pub fn tensor(elem: Elem, shape: &[usize], values: Vec<i64>) -> Tensor {
    Tensor::from_ints(elem, shape, values).unwrap()
}

pub fn lower(graph: &Graph) -> Graph {
    let new = integerize(graph).unwrap();
    verify::check_integer(&new).unwrap();
    assert_eq!(new.inputs().len(), graph.inputs().len());
    for ((name, old), (new_name, id)) in graph.outputs().iter().zip(new.outputs()) {
        assert_eq!(name, new_name);
        assert_eq!((graph.ty(*old).elem, &graph.ty(*old).shape), (new.ty(*id).elem, &new.ty(*id).shape));
    }
    new
}

/// Random values over the whole range of every input.
pub fn random_inputs(graph: &Graph, random: &mut Random) -> Vec<Tensor> {
    filled_inputs(graph, |range| random.int(range.lo, range.hi))
}

pub fn filled_inputs(graph: &Graph, mut value: impl FnMut(Range) -> i64) -> Vec<Tensor> {
    let fill = |&id: &ValueId| {
        let ty = graph.ty(id);
        let values = (0..ty.elements()).map(|_| value(ty.range.unwrap())).collect();
        tensor(ty.elem, &ty.shape, values)
    };
    graph.inputs().iter().map(fill).collect()
}

/// Every output, a `quantize` of the float graph, within one step of the integer graph, and equal
/// unless the real value lies within `slack` steps of a rounding boundary. Returns how many of how
/// many elements differ.
pub fn compare(graph: &Graph, inputs: &[Tensor], slack: f64) -> (usize, usize) {
    compare_graphs(graph, &lower(graph), inputs, slack)
}

pub fn compare_graphs(graph: &Graph, integer: &Graph, inputs: &[Tensor], slack: f64) -> (usize, usize) {
    let mut observed: BTreeMap<ValueId, Tensor> = BTreeMap::new();
    let expected = interp::run_observed(graph, inputs, |id, t| {
        observed.insert(id, t.clone());
    })
    .unwrap();
    let found = interp::run(integer, inputs).unwrap();
    let (mut differing, mut total) = (0, 0);
    for (((_, id), expected), found) in graph.outputs().iter().zip(&expected).zip(&found) {
        let args = graph.args(*id);
        let scale = f64::from(graph.tensor(args[1]).unwrap().f32s().unwrap()[0]);
        let reals = observed[&args[0]].f32s().unwrap();
        for ((e, f), real) in expected.ints().unwrap().iter().zip(found.ints().unwrap()).zip(reals) {
            total += 1;
            let steps = f64::from(*real) / scale;
            let to_boundary = (steps - steps.floor() - 0.5).abs();
            if *e != f {
                differing += 1;
                assert!((e - f).abs() <= 1, "float {e}, integer {f}, real {steps} steps");
                assert!(to_boundary <= slack, "float {e}, integer {f}, real {steps} steps");
            }
        }
    }
    (differing, total)
}

/// How many live nodes of each operator.
pub fn count(graph: &Graph, name: &str) -> usize {
    let live = graph.live();
    graph.values().filter(|id| live[id.index()] && graph.op(*id).name() == name).count()
}

/// The only node of an operator.
pub fn only<'a>(graph: &'a Graph, name: &str) -> (ValueId, &'a Op) {
    let mut found = graph.values().filter(|id| graph.op(*id).name() == name);
    let id = found.next().unwrap_or_else(|| panic!("no {name}"));
    assert!(found.next().is_none(), "several {name}");
    (id, graph.op(id))
}
