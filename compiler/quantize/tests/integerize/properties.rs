//! Random parameters: integer and float graph agree up to ties.

use hawqc_ir::{Add, AvgPool, Concat, Conv, Elem, Graph, interp};
use proptest::prelude::*;

use crate::net::{Net, Q, Random, compare_graphs, filled_inputs, lower, random_inputs};

/// Any zero point, or those at the ends of the range.
fn quantisation(elems: &'static [Elem], scales: std::ops::Range<f32>) -> impl Strategy<Value = Q> {
    (proptest::sample::select(elems), scales, 0.0..1.0f64, 0..4).prop_map(|(elem, scale, at, edge)| {
        let range = elem.range().unwrap();
        let zero = match edge {
            0 => range.lo,
            1 => range.hi,
            _ => range.lo + ((range.hi - range.lo) as f64 * at) as i64,
        };
        Q { elem, scale, zero }
    })
}

const NARROW: &[Elem] = &[Elem::U4, Elem::I4, Elem::U8, Elem::I8];
const ANY: &[Elem] = &[Elem::U4, Elem::I4, Elem::U8, Elem::I8, Elem::I16];

#[derive(Clone, Debug)]
struct Layer {
    size: [usize; 2],
    groups: usize,
    channels: [usize; 2],
    kernel: [usize; 2],
    stride: [usize; 2],
    pad: [usize; 4],
    wei: Elem,
    activation: Option<(f32, f32)>,
    float_bias: bool,
    src: Q,
    dst: Q,
    seed: u64,
}

fn layer() -> impl Strategy<Value = Layer> {
    let geometry = ([3..7usize, 3..7usize], 1..3usize, [1..4usize, 1..4usize], [1..4usize, 1..4usize]);
    let window = ([1..3usize, 1..3usize], [0..3usize, 0..3usize, 0..3usize, 0..3usize]);
    let activation =
        proptest::option::of(prop_oneof![Just((0.0, f32::INFINITY)), Just((0.0, 6.0)), (-4.0..0.0f32, 0.0..4.0f32)]);
    let numbers = (
        proptest::sample::select(&[Elem::I4, Elem::I8][..]),
        activation,
        any::<bool>(),
        quantisation(NARROW, 0.001..0.2),
        quantisation(ANY, 0.001..2.0),
        any::<u64>(),
    );
    (geometry, window, numbers).prop_map(|(geometry, window, numbers)| {
        let (size, groups, channels, kernel) = geometry;
        let (stride, pad) = window;
        let (wei, activation, float_bias, src, dst, seed) = numbers;
        Layer { size, groups, channels, kernel, stride, pad, wei, activation, float_bias, src, dst, seed }
    })
}

impl Layer {
    /// The graph, and half a unit of the coarsest accumulator in steps of the output.
    fn graph(&self) -> (Graph, f64) {
        let mut random = Random(self.seed);
        let [c, k] = self.channels.map(|c| c * self.groups);
        let [h, w] = self.size;
        let shape = [k, self.kernel[0], self.kernel[1], self.channels[0]];
        let range = self.wei.range().unwrap();
        let values = match self.seed % 4 {
            0 => vec![range.lo; shape.iter().product()],
            1 => vec![range.hi; shape.iter().product()],
            _ => random.ints(shape.iter().product(), range.lo, range.hi),
        };
        let scales: Vec<f32> = (0..k).map(|_| random.real(0.0005, 0.05)).collect();
        let mut net = Net::default();
        let x = net.input(&[1, h, w, c], self.src);
        let wei = net.weights(self.wei, &shape, &values, &scales);
        let bias = if self.float_bias {
            let values: Vec<f32> = (0..k).map(|_| random.real(-2.0, 2.0)).collect();
            net.floats(&[k], &values)
        } else {
            let scales: Vec<f32> = scales.iter().map(|s| s * self.src.scale).collect();
            net.bias(&random.ints(k, -5000, 5000), &scales)
        };
        let conv = Conv { stride: self.stride, pad: self.pad, groups: self.groups, ..Conv::unit() };
        let mut y = net.conv(conv, &[x, wei, bias]);
        if let Some((lo, hi)) = self.activation {
            y = net.clamp(y, lo, hi);
        }
        let y = net.quantize(y, self.dst);
        let coarsest = scales.iter().fold(0f32, |a, &b| a.max(b)) * self.src.scale;
        let half = if self.float_bias { 0.5 * f64::from(coarsest) / f64::from(self.dst.scale) } else { 0.0 };
        (net.output(y), half)
    }
}

proptest! {
    #[test]
    fn convolution(layer in layer()) {
        let (graph, half_unit) = layer.graph();
        let new = lower(&graph);
        // f32 is exact to 2^-24 of the largest intermediate, a few thousand steps at most here.
        prop_assume!(half_unit < 0.4);
        let slack = 4e-3 + half_unit;
        let mut random = Random(layer.seed);
        compare_graphs(&graph, &new, &random_inputs(&graph, &mut random), slack);
        compare_graphs(&graph, &new, &filled_inputs(&graph, |r| r.lo), slack);
        compare_graphs(&graph, &new, &filled_inputs(&graph, |r| r.hi), slack);
    }

    #[test]
    fn requantisation(src in quantisation(ANY, 0.001..1.0), dst in quantisation(ANY, 0.001..1.0), seed: u64) {
        let mut net = Net::default();
        let x = net.input(&[1, 8, 8, 4], src);
        let y = net.quantize(x, dst);
        let graph = net.output(y);
        let mut random = Random(seed);
        compare_graphs(&graph, &lower(&graph), &random_inputs(&graph, &mut random), 8e-3);
    }

    #[test]
    fn average(
        src in quantisation(NARROW, 0.01..0.1), dst in quantisation(NARROW, 0.01..0.1),
        kernel in [2..4usize, 2..4usize], stride in [1..3usize, 1..3usize],
        pad in [0..2usize, 0..2usize, 0..2usize, 0..2usize], count_include_pad: bool, seed: u64,
    ) {
        let mut net = Net::default();
        let x = net.input(&[2, 5, 6, 3], src);
        let y = net.op(AvgPool { kernel, stride, pad, count_include_pad }, &[x]);
        let y = net.quantize(y, dst);
        let graph = net.output(y);
        let mut random = Random(seed);
        compare_graphs(&graph, &lower(&graph), &random_inputs(&graph, &mut random), 1e-3);
    }

    #[test]
    fn concatenation(
        a in quantisation(NARROW, 0.01..0.1), b in quantisation(NARROW, 0.01..0.1),
        dst in quantisation(ANY, 0.01..0.1), axis in 1..4usize, seed: u64,
    ) {
        let mut net = Net::default();
        let (xa, xb) = (net.input(&[1, 3, 3, 3], a), net.input(&[1, 3, 3, 3], b));
        let y = net.op(Concat { axis }, &[xa, xb]);
        let y = net.quantize(y, dst);
        let graph = net.output(y);
        let mut random = Random(seed);
        compare_graphs(&graph, &lower(&graph), &random_inputs(&graph, &mut random), 1e-3);
    }

    /// Each branch rounds to within half a step, so the sum is within one step of the real.
    #[test]
    fn addition(
        a in quantisation(ANY, 0.01..0.1), b in quantisation(ANY, 0.01..0.1),
        dst in quantisation(ANY, 0.01..0.1), relu: bool, seed: u64,
    ) {
        let mut net = Net::default();
        let (xa, xb) = (net.input(&[1, 3, 3, 3], a), net.input(&[1, 3, 3, 3], b));
        let mut sum = net.op(Add {}, &[xa, xb]);
        if relu {
            sum = net.relu(sum);
        }
        let y = net.quantize(sum, dst);
        let graph = net.output(y);
        let inputs = random_inputs(&graph, &mut Random(seed));
        let found = interp::run(&lower(&graph), &inputs).unwrap()[0].ints().unwrap();
        let [xa, xb] = [&inputs[0], &inputs[1]].map(|t| t.ints().unwrap());
        let range = dst.elem.range().unwrap();
        let lo = if relu { dst.zero.max(range.lo) } else { range.lo };
        for i in 0..found.len() {
            let ratio = |q: Q| f64::from(q.scale) / f64::from(dst.scale);
            let [va, vb] = [(xa[i] - a.zero) as f64 * ratio(a), (xb[i] - b.zero) as f64 * ratio(b)];
            let near_tie = |v: f64| (v - v.floor() - 0.5).abs() < 1e-3;
            let expected = (va + 0.5).floor() as i64 + (vb + 0.5).floor() as i64 + dst.zero;
            prop_assert!(near_tie(va) || near_tie(vb) || found[i] == expected.clamp(lo, range.hi));
            let exact = (va + vb + dst.zero as f64).clamp(lo as f64, range.hi as f64);
            prop_assert!((found[i] as f64 - exact).abs() <= 1.0 + 1e-3);
        }
    }
}
