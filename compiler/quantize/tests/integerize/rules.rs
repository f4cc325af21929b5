//! One test for every rule of the lowering.

use hawqc_ir::{
    Add, AvgPool, Concat, Conv, Dyadic, Elem, Graph, MaxPool, Op, Pad, Quantize, Range, Real, Requant, Reshape,
    Rounding, Softmax, Tensor, TensorType, Transpose, ValueId, interp,
};
use hawqc_quantize::integerize::{IntegerizeOptions, integerize_with};

use crate::net::{
    Net, Q, Random, compare, compare_graphs, count, filled_inputs, lower, only, q, random_inputs, tensor,
};

/// Slack for reals that the float graph computes in f32.
const F32: f64 = 1e-3;

fn ints(graph: &Graph, id: ValueId) -> Vec<i64> {
    graph.tensor(id).unwrap().ints().unwrap()
}

fn same() -> Conv {
    Conv { pad: [1; 4], ..Conv::unit() }
}

#[test]
fn convolution_by_hand() {
    let mut net = Net::default();
    let x = net.input(&[1, 1, 1, 1], q(Elem::U8, 0.5, 3));
    let w = net.weights(Elem::I8, &[2, 1, 1, 1], &[2, -4], &[0.25, 0.5]);
    let b = net.floats(&[2], &[1.0, -0.5]);
    let y = net.conv(Conv::unit(), &[x, w, b]);
    let y = net.quantize(y, q(Elem::U8, 0.25, 100));
    let graph = net.output(y);
    let new = lower(&graph);
    let (conv, _) = only(&new, "conv");
    // bias / (sx sw) - zx * sum w: 1 / 0.125 - 3 * 2, -0.5 / 0.25 + 3 * 4.
    assert_eq!(ints(&new, new.args(conv)[2]), [2, 10]);
    let (requant, op) = only(&new, "requant");
    let Op::Requant(op) = op else { panic!() };
    let elem = Elem::U8;
    assert_eq!(*op, Requant { dst_zero: 100, ..Requant::to_range(Range::new(0, 255), elem) });
    let half = Dyadic::from_real(0.5).unwrap();
    assert_eq!(ints(&new, new.args(requant)[1]), [i64::from(half.mult), i64::from(Dyadic::ONE.mult)]);
    assert_eq!(ints(&new, new.args(requant)[2]), [i64::from(half.shift), i64::from(Dyadic::ONE.shift)]);
    // x = 3.5: 3.5 * 0.5 + 1 = 2.75 is 11 steps; 3.5 * -2 - 0.5 = -7.5 is -30 steps.
    let y = interp::run(&new, &[tensor(Elem::U8, &[1, 1, 1, 1], vec![10])]).unwrap();
    assert_eq!(y[0].ints().unwrap(), [111, 70]);
}

/// A 3x3 convolution with padding, of 5 channels to 4.
fn padded(src: Q, dst: Q, wei: impl FnMut() -> i64, relu: bool) -> Graph {
    let scales = [0.01, 0.02, 0.003, 0.04];
    let mut net = Net::default();
    let x = net.input(&[1, 6, 5, 5], src);
    let values: Vec<i64> = std::iter::repeat_with(wei).take(4 * 9 * 5).collect();
    let w = net.weights(Elem::I8, &[4, 3, 3, 5], &values, &scales);
    let b = net.bias(&[1000, -2000, 0, 77], &scales.map(|s| s * src.scale));
    let mut y = net.conv(same(), &[x, w, b]);
    if relu {
        y = net.relu(y);
    }
    let y = net.quantize(y, dst);
    net.output(y)
}

#[test]
fn padding_reads_the_zero_point() {
    let mut random = Random(1);
    for (zero, dst) in [(0, 0), (128, 128), (255, 3), (17, 250)] {
        let graph = padded(q(Elem::U8, 0.02, zero), q(Elem::U8, 0.7, dst), || random.int(-128, 127), false);
        let new = lower(&graph);
        let (_, Op::Conv(conv)) = only(&new, "conv") else { panic!() };
        assert_eq!(i64::from(conv.pad_value), zero);
        for _ in 0..20 {
            compare_graphs(&graph, &new, &random_inputs(&graph, &mut random), F32);
        }
    }
}

#[test]
fn extremes() {
    for zero in [0, 128, 255] {
        for wei in [-128, 127] {
            for (elem, lo) in [(Elem::U8, 0), (Elem::I16, 0)] {
                let graph = padded(q(Elem::U8, 0.02, zero), q(elem, 0.05, lo), || wei, false);
                for pick in [|r: Range| r.lo, |r: Range| r.hi] {
                    compare(&graph, &filled_inputs(&graph, pick), F32);
                }
            }
        }
    }
}

#[test]
fn relu_is_a_bound_of_the_requant() {
    let mut random = Random(2);
    let graph = padded(q(Elem::I8, 0.02, -5), q(Elem::U8, 0.3, 40), || random.int(-128, 127), true);
    let new = lower(&graph);
    assert_eq!(count(&new, "clamp"), 0);
    let (_, Op::Requant(requant)) = only(&new, "requant") else { panic!() };
    assert_eq!((requant.lo, requant.hi), (40, 255));
    compare(&graph, &random_inputs(&graph, &mut random), F32);
}

#[test]
fn relu6_is_the_image_of_6() {
    let mut net = Net::default();
    let x = net.input(&[1, 4, 4, 2], q(Elem::I16, 0.001, 0));
    let y = net.clamp(x, 0.0, 6.0);
    let y = net.quantize(y, q(Elem::U8, 0.07, 9));
    let graph = net.output(y);
    let new = lower(&graph);
    let (_, Op::Requant(requant)) = only(&new, "requant") else { panic!() };
    // 6 / 0.07 = 85.7.
    assert_eq!((requant.lo, requant.hi), (9, 95));
    let mut random = Random(3);
    for _ in 0..20 {
        compare(&graph, &random_inputs(&graph, &mut random), F32);
    }
}

#[test]
fn clamps_compose_in_order() {
    for (first, second) in [
        ((0.0, 6.0), (-1.0, 3.0)),
        ((0.0, 6.0), (7.0, 9.0)),
        ((2.0, 6.0), (-9.0, 1.0)),
        ((-3.0, 3.0), (0.0, f32::INFINITY)),
    ] {
        let mut net = Net::default();
        let x = net.input(&[1, 1, 256, 1], q(Elem::I8, 0.1, 7));
        let y = net.clamp(x, first.0, first.1);
        let y = net.clamp(y, second.0, second.1);
        let y = net.quantize(y, q(Elem::I8, 0.09, -11));
        let graph = net.output(y);
        let x = tensor(Elem::I8, &[1, 1, 256, 1], (-128..128).collect());
        compare(&graph, &[x], F32);
    }
}

#[test]
fn weights_are_stored_less_their_zero_points() {
    let mut random = Random(4);
    // Declared element, values, zero points, stored element.
    let cases = [
        (Elem::I4, (-8, 7), vec![0], Elem::I4),
        (Elem::I4, (-8, 7), vec![-3], Elem::I8),
        (Elem::U4, (1, 15), vec![8], Elem::I4),
        (Elem::U4, (0, 15), vec![0], Elem::I8),
        (Elem::I8, (-8, 7), vec![0], Elem::I8),
        (Elem::U8, (0, 255), vec![128], Elem::I8),
        (Elem::U8, (0, 255), vec![100, 128, 3], Elem::I16),
    ];
    for (declared, (lo, hi), zeros, stored) in cases {
        let mut net = Net::default();
        let x = net.input(&[1, 4, 4, 6], q(Elem::U8, 0.02, 30));
        let mut values = random.ints(3 * 6, lo, hi);
        (values[0], values[17]) = (lo, hi);
        let w = net.ints(declared, &[3, 1, 1, 6], &values);
        let scales = [0.011, 0.07, 0.13];
        let w = net.dequantize_axis(w, &scales[..zeros.len()], &zeros, 0);
        let y = net.conv(Conv::unit(), &[x, w]);
        let y = net.quantize(y, q(Elem::I16, 0.01, 0));
        let graph = net.output(y);
        let new = lower(&graph);
        let (conv, _) = only(&new, "conv");
        assert_eq!(new.ty(new.args(conv)[1]).elem, stored, "{declared} less {zeros:?}");
        compare(&graph, &random_inputs(&graph, &mut random), F32);
    }
}

#[test]
fn weights_quantised_in_the_graph_become_constants() {
    let mut net = Net::default();
    let x = net.input(&[1, 1, 2, 3], q(Elem::U4, 0.5, 0));
    let w = net.floats(&[1, 1, 1, 3], &[0.3, -9.0, 0.66]);
    let (scale, zero) = (net.floats(&[1], &[0.1]), net.ints(Elem::I8, &[1], &[0]));
    let w = net.op(Quantize { lo: -7, hi: 7, axis: 0, elem: Elem::I8 }, &[w, scale, zero]);
    let w = net.dequantize(w, q(Elem::I8, 0.1, 0));
    let w = net.op(Reshape { shape: vec![3, 1, 1, 1] }, &[w]);
    let w = net.op(Transpose { perm: vec![1, 2, 3, 0] }, &[w]);
    let y = net.conv(Conv::unit(), &[x, w]);
    let y = net.quantize(y, q(Elem::I8, 0.2, 0));
    let graph = net.output(y);
    let new = lower(&graph);
    let (conv, _) = only(&new, "conv");
    let wei = new.args(conv)[1];
    assert_eq!((ints(&new, wei), new.ty(wei).elem), (vec![3, -7, 7], Elem::I4));
    assert_eq!((count(&new, "quantize"), count(&new, "reshape"), count(&new, "transpose")), (0, 0, 0));
    compare(&graph, &random_inputs(&graph, &mut Random(5)), F32);
}

#[test]
fn float_bias_is_rounded_to_the_accumulator() {
    let mut random = Random(6);
    let mut net = Net::default();
    let x = net.input(&[1, 5, 5, 8], q(Elem::U8, 0.03, 12));
    let w = net.ints(Elem::I8, &[8, 1, 1, 1], &random.ints(8, -128, 127));
    let w = net.dequantize(w, q(Elem::I8, 0.02, 0));
    let bias: Vec<f32> = (0..8).map(|_| random.real(-3.0, 3.0)).collect();
    let b = net.floats(&[8], &bias);
    let y = net.conv(Conv { groups: 8, ..Conv::unit() }, &[x, w, b]);
    let y = net.quantize(y, q(Elem::I8, 0.05, 1));
    let graph = net.output(y);
    // Half a unit of the accumulator, in steps of the output.
    compare(&graph, &random_inputs(&graph, &mut random), F32 + 0.5 * 0.03 * 0.02 / 0.05);
    let (conv, _) = only(&lower(&graph), "conv");
    let new = lower(&graph);
    let wei = ints(&new, new.args(conv)[1]);
    for (k, b) in ints(&new, new.args(conv)[2]).into_iter().enumerate() {
        let exact = f64::from(bias[k]) / (f64::from(0.03f32) * f64::from(0.02f32));
        assert_eq!(b, exact.round_ties_even() as i64 - 12 * wei[k]);
    }
}

#[test]
fn quantised_bias_of_another_scale_is_rescaled() {
    let mut net = Net::default();
    let x = net.input(&[1, 1, 1, 1], q(Elem::U8, 1.0, 0));
    let w = net.weights(Elem::I8, &[2, 1, 1, 1], &[1, 1], &[0.5, 0.25]);
    let b = net.bias(&[3, 5], &[0.75, 0.75]);
    let y = net.conv(Conv::unit(), &[x, w, b]);
    let y = net.quantize(y, q(Elem::I8, 0.5, 0));
    let new = lower(&net.output(y));
    let (conv, _) = only(&new, "conv");
    // 2.25 / 0.5 = 4.5 to even, 3.75 / 0.25 = 15.
    assert_eq!(ints(&new, new.args(conv)[2]), [4, 15]);
}

/// `floor(v + 1/2)`, and whether `v` is too near a tie to tell.
fn nearest(v: f64) -> (i64, bool) {
    ((v + 0.5).floor() as i64, (v - v.floor() - 0.5).abs() < 1e-6)
}

#[test]
fn residual_addition_rounds_each_branch() {
    let mut random = Random(7);
    let (a, b, y) = (q(Elem::I16, 0.0017, 0), q(Elem::U8, 0.031, 77), q(Elem::U8, 0.05, 20));
    let mut net = Net::default();
    let shape = [1, 8, 8, 16];
    let (xa, xb) = (net.input(&shape, a), net.input(&shape, b));
    let sum = net.op(Add {}, &[xa, xb]);
    let sum = net.relu(sum);
    let sum = net.quantize(sum, y);
    let graph = net.output(sum);
    let new = lower(&graph);
    assert_eq!((count(&new, "requant"), count(&new, "add"), count(&new, "clamp")), (2, 1, 1));
    // Values of the 16-bit branch as they occur in a stream that does not saturate.
    let xs = [random.ints(1024, -9000, 9000), random.ints(1024, 0, 255)];
    let inputs = [tensor(a.elem, &shape, xs[0].clone()), tensor(b.elem, &shape, xs[1].clone())];
    let found = interp::run(&new, &inputs).unwrap()[0].ints().unwrap();
    let float = interp::run(&graph, &inputs).unwrap()[0].ints().unwrap();
    let ratio = |q: Q| f64::from(q.scale) / f64::from(y.scale);
    let mut equal = 0;
    for i in 0..1024 {
        let (ra, tie_a) = nearest(xs[0][i] as f64 * ratio(a));
        let (rb, tie_b) = nearest((xs[1][i] - b.zero) as f64 * ratio(b));
        assert!(tie_a || tie_b || found[i] == (ra + rb + 20).clamp(20, 255));
        assert!((found[i] - float[i]).abs() <= 1);
        equal += usize::from(found[i] == float[i]);
    }
    assert!(equal > 700, "{equal} of 1024");
}

#[test]
fn sum_of_three_stays_within_i32() {
    let mut net = Net::default();
    let shape = [1, 1, 1, 4];
    let inputs = [(); 3].map(|()| net.input(&shape, q(Elem::I32, 1e3, 0)));
    let sum = net.op(Add {}, &inputs[..2]);
    let sum = net.op(Add {}, &[sum, inputs[2]]);
    let y = net.quantize(sum, q(Elem::I16, 1.0, 0));
    let graph = net.output(y);
    let values = [i32::MAX, i32::MIN, 3, -1].map(i64::from).to_vec();
    let inputs = [(); 3].map(|()| tensor(Elem::I32, &shape, values.clone()));
    let y = interp::run(&lower(&graph), &inputs).unwrap();
    assert_eq!(y[0].ints().unwrap(), [32767, -32768, 9000, -3000]);
}

#[test]
fn relu_before_an_addition_is_applied_to_the_integers() {
    let mut random = Random(8);
    let mut net = Net::default();
    let a = net.input(&[1, 4, 4, 3], q(Elem::U8, 0.02, 100));
    let a = net.relu(a);
    let w = net.weights(Elem::I8, &[3, 1, 1, 3], &random.ints(9, -128, 127), &[0.1, 0.2, 0.3]);
    let b = net.input(&[1, 4, 4, 3], q(Elem::U8, 0.01, 90));
    let b = net.conv(Conv::unit(), &[b, w]);
    let b = net.relu(b);
    let y = net.op(Add {}, &[a, b]);
    let y = net.quantize(y, q(Elem::I16, 0.0003, 0));
    let graph = net.output(y);
    let new = lower(&graph);
    // Two for the limits, one after the addition.
    assert_eq!(count(&new, "clamp"), 3);
    for _ in 0..10 {
        compare(&graph, &random_inputs(&graph, &mut random), 1.0);
    }
}

#[test]
fn the_stream_of_16_bits_feeds_8_and_4_bits() {
    let mut random = Random(9);
    let mut net = Net::default();
    let x = net.graph.input("x", TensorType::new(Elem::I16, [1, 4, 4, 8])).unwrap();
    for dst in [q(Elem::U4, 3.0, 0), q(Elem::I8, 0.4, -3), q(Elem::I16, 0.0021, 5)] {
        let real = net.dequantize(x, q(Elem::I16, 0.0021, 0));
        let real = net.relu(real);
        let y = net.quantize(real, dst);
        net.graph.output(format!("y{}", dst.elem), y);
    }
    let inputs = random_inputs(&net.graph, &mut random);
    compare(&net.graph, &inputs, F32);
}

#[test]
fn repeated_quantisation_vanishes() {
    let mut net = Net::default();
    let src = q(Elem::U8, 0.1, 4);
    let x = net.input(&[1, 2, 2, 1], src);
    let y = net.quantize(x, src);
    let y = net.dequantize(y, src);
    let y = net.quantize(y, src);
    let graph = net.output(y);
    assert_eq!(lower(&graph).len(), 1);
}

#[test]
fn equal_scales_alone_are_not_a_repetition() {
    let x = tensor(Elem::U8, &[1, 256], (0..256).collect());
    let src = q(Elem::U8, 0.1, 100);
    // Another zero point, a limit, another element.
    for (dst, relu) in [(q(Elem::U8, 0.1, 120), false), (src, true), (q(Elem::I16, 0.1, 100), false)] {
        let mut net = Net::default();
        let mut y = net.input(&[1, 256], src);
        if relu {
            y = net.relu(y);
        }
        let y = net.quantize(y, dst);
        let graph = net.output(y);
        assert_eq!(compare(&graph, std::slice::from_ref(&x), 0.0), (0, 256));
    }
}

#[test]
fn max_pool_keeps_scale_and_limit() {
    let mut random = Random(10);
    let mut net = Net::default();
    let x = net.input(&[1, 7, 7, 3], q(Elem::U8, 0.02, 50));
    let w = net.weights(Elem::I8, &[3, 1, 1, 3], &random.ints(9, -128, 127), &[0.1, 0.02, 0.3]);
    let y = net.conv(Conv::unit(), &[x, w]);
    let y = net.relu(y);
    let y = net.op(MaxPool { kernel: [3, 2], stride: [2, 2], pad: [1, 0, 1, 1], dilation: [1, 1] }, &[y]);
    let y = net.quantize(y, q(Elem::I8, 1.3, -30));
    let graph = net.output(y);
    assert_eq!(count(&lower(&graph), "clamp"), 0);
    compare(&graph, &random_inputs(&graph, &mut random), F32);
}

#[test]
fn average_pools() {
    let mut random = Random(11);
    // Kernel, stride, padding, count_include_pad, shape of the multipliers.
    let cases = [
        ([7, 7], [1, 1], [0; 4], false, vec![1]),
        ([3, 3], [1, 1], [1; 4], true, vec![1]),
        ([3, 3], [1, 1], [1; 4], false, vec![7, 7, 1]),
        ([3, 2], [2, 3], [1, 0, 1, 1], false, vec![4, 3, 1]),
        ([1, 3], [1, 2], [0, 1, 0, 1], false, vec![7, 4, 1]),
        ([2, 2], [2, 2], [0; 4], false, vec![1]),
    ];
    for (kernel, stride, pad, count_include_pad, shape) in cases {
        for relu in [false, true] {
            let mut net = Net::default();
            let x = net.input(&[2, 7, 7, 3], q(Elem::U8, 0.02, 100));
            let x = if relu { net.relu(x) } else { x };
            let y = net.op(AvgPool { kernel, stride, pad, count_include_pad }, &[x]);
            let y = net.quantize(y, q(Elem::U8, 0.0173, 80));
            let graph = net.output(y);
            let new = lower(&graph);
            let (requant, _) = only(&new, "requant");
            assert_eq!(new.ty(new.args(requant)[1]).shape, shape);
            compare(&graph, &random_inputs(&graph, &mut random), F32);
            compare(&graph, &filled_inputs(&graph, |r| r.hi), F32);
            compare(&graph, &filled_inputs(&graph, |r| r.lo), F32);
        }
    }
}

#[test]
fn concatenation_requantises_each_branch() {
    let mut random = Random(12);
    let mut net = Net::default();
    let a = net.input(&[1, 3, 3, 2], q(Elem::U8, 0.02, 10));
    let b = net.input(&[1, 3, 3, 3], q(Elem::I8, 0.05, -10));
    let b = net.relu(b);
    let c = net.op(Concat { axis: 3 }, &[a, b]);
    let c = net.op(Concat { axis: 3 }, &[c, a]);
    let c = net.clamp(c, -f32::INFINITY, 4.0);
    let y = net.quantize(c, q(Elem::U8, 0.03, 33));
    let graph = net.output(y);
    assert_eq!(count(&lower(&graph), "requant"), 3);
    for _ in 0..10 {
        compare(&graph, &random_inputs(&graph, &mut random), F32);
    }
}

#[test]
fn concatenation_of_one_scale_is_free() {
    let mut net = Net::default();
    let src = q(Elem::U8, 0.02, 10);
    let (a, b) = (net.input(&[1, 3, 3, 2], src), net.input(&[1, 3, 3, 3], src));
    let c = net.op(Concat { axis: 3 }, &[a, b]);
    let y = net.quantize(c, src);
    let graph = net.output(y);
    assert_eq!(count(&lower(&graph), "requant"), 0);
    compare(&graph, &random_inputs(&graph, &mut Random(13)), 0.0);
}

#[test]
fn concatenation_of_one_scale_heeds_zero_points_and_limits() {
    let mut random = Random(19);
    let src = q(Elem::U8, 0.02, 100);
    for (zero, limits) in [(110, [false, false]), (100, [true, false]), (100, [false, true]), (100, [true, true])] {
        let mut net = Net::default();
        let inputs = [net.input(&[1, 5, 3, 2], src), net.input(&[1, 4, 3, 2], Q { zero, ..src })];
        let args: Vec<ValueId> =
            inputs.into_iter().zip(limits).map(|(x, limit)| if limit { net.clamp(x, -0.5, 0.5) } else { x }).collect();
        let c = net.op(Concat { axis: 1 }, &args);
        let y = net.quantize(c, q(Elem::I8, 0.03, -3));
        let graph = net.output(y);
        // One limit for both is kept until after the concatenation.
        let one = zero == 100 && limits[0] == limits[1];
        assert_eq!(count(&lower(&graph), "requant"), if one { 1 } else { 2 });
        compare(&graph, &random_inputs(&graph, &mut random), F32);
    }
}

#[test]
fn movement_happens_on_integers() {
    let mut random = Random(14);
    let mut net = Net::default();
    let x = net.input(&[1, 4, 4, 2], q(Elem::U8, 0.02, 10));
    let x = net.op(Pad { pad: [1, 2, 0, 1], value: Real::new(0.0) }, &[x]);
    let w = net.weights(Elem::I8, &[6, 5, 7, 2], &random.ints(420, -128, 127), &[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]);
    let y = net.conv(Conv::unit(), &[x, w]);
    // [1,1,1,6] to NCHW, flattened: the scales stay with their channels.
    let y = net.op(Transpose::to_nchw(), &[y]);
    let y = net.op(Reshape { shape: vec![1, 6] }, &[y]);
    let y = net.relu(y);
    let y = net.quantize(y, q(Elem::U8, 0.9, 3));
    let graph = net.output(y);
    let new = lower(&graph);
    let (_, Op::Pad(pad)) = only(&new, "pad") else { panic!() };
    assert_eq!(pad.value.get(), 10.0);
    for _ in 0..10 {
        compare(&graph, &random_inputs(&graph, &mut random), F32);
    }
}

#[test]
fn padding_with_a_multiple_of_the_scale() {
    let mut net = Net::default();
    let x = net.input(&[1, 2, 2, 1], q(Elem::U8, 0.25, 10));
    let x = net.relu(x);
    let x = net.op(Pad { pad: [1; 4], value: Real::new(-1.5) }, &[x]);
    let y = net.quantize(x, q(Elem::I8, 0.125, 0));
    let graph = net.output(y);
    let new = lower(&graph);
    let (_, Op::Pad(pad)) = only(&new, "pad") else { panic!() };
    assert_eq!(pad.value.get(), 4.0);
    compare(&graph, &random_inputs(&graph, &mut Random(15)), 0.0);
}

#[test]
fn the_border_keeps_its_floats() {
    let mut random = Random(16);
    let mut net = Net::default();
    let x = net.graph.input("image", TensorType::new(Elem::F32, [1, 3, 4, 4])).unwrap();
    let x = net.op(Transpose::to_nhwc(), &[x]);
    let x = net.quantize(x, q(Elem::U8, 0.02, 110));
    let x = net.dequantize(x, q(Elem::U8, 0.02, 110));
    let w = net.weights(Elem::I8, &[5, 4, 4, 3], &random.ints(240, -128, 127), &[0.01, 0.02, 0.03, 0.04, 0.05]);
    let y = net.conv(Conv::unit(), &[x, w]);
    let y = net.relu(y);
    let y = net.op(Reshape { shape: vec![1, 5] }, &[y]);
    let y = net.op(Softmax {}, &[y]);
    let graph = net.output(y);
    let new = lower(&graph);
    let order: Vec<&str> = new.values().map(|id| new.op(id).name()).filter(|n| *n != "const").collect();
    assert_eq!(order, ["input", "transpose", "quantize", "conv", "reshape", "clamp", "dequantize", "softmax"]);
    let image = Tensor::from_f32([1, 3, 4, 4], (0..48).map(|_| random.real(-2.5, 2.5)).collect()).unwrap();
    let (a, b) = (interp::run(&graph, std::slice::from_ref(&image)).unwrap(), interp::run(&new, &[image]).unwrap());
    for (a, b) in a[0].f32s().unwrap().iter().zip(b[0].f32s().unwrap()) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
}

#[test]
fn channels_leave_before_they_move() {
    let mut net = Net::default();
    let x = net.input(&[1, 2, 2, 2], q(Elem::U8, 0.5, 0));
    let w = net.weights(Elem::I8, &[2, 1, 1, 2], &[1, 2, 3, 4], &[0.5, 0.25]);
    let y = net.conv(Conv::unit(), &[x, w]);
    let y = net.op(Transpose::to_nchw(), &[y]);
    let graph = net.output(y);
    let new = lower(&graph);
    let order: Vec<&str> = new.values().map(|id| new.op(id).name()).filter(|n| *n != "const").collect();
    assert_eq!(order, ["input", "conv", "dequantize", "transpose"]);
    let inputs = random_inputs(&graph, &mut Random(17));
    assert_eq!(interp::run(&graph, &inputs).unwrap(), interp::run(&new, &inputs).unwrap());
}

#[test]
fn a_quantised_output_is_dequantised_as_it_is() {
    let mut net = Net::default();
    let x = net.input(&[1, 2], q(Elem::U8, 0.5, 0));
    let y = net.quantize(x, q(Elem::I8, 0.25, -7));
    let y = net.dequantize(y, q(Elem::I8, 0.25, -7));
    let graph = net.output(y);
    let inputs = random_inputs(&graph, &mut Random(18));
    let new = lower(&graph);
    assert_eq!(interp::run(&graph, &inputs).unwrap(), interp::run(&new, &inputs).unwrap());
    // Integer graphs are fixed points.
    let again = lower(&new);
    assert_eq!(interp::run(&again, &inputs).unwrap(), interp::run(&new, &inputs).unwrap());
    assert_eq!(again.len(), new.len());
}

#[test]
fn rounding_is_an_option() {
    let mut net = Net::default();
    let x = net.input(&[1, 4], q(Elem::I8, 0.5, 0));
    let y = net.quantize(x, q(Elem::I8, 1.0, 0));
    let graph = net.output(y);
    let x = tensor(Elem::I8, &[1, 4], vec![1, 3, -1, -3]);
    let run = |rounding| {
        let new = integerize_with(&graph, IntegerizeOptions { rounding }).unwrap();
        interp::run(&new, std::slice::from_ref(&x)).unwrap()[0].ints().unwrap()
    };
    assert_eq!(run(Rounding::HalfUp), [1, 2, 0, -1]);
    assert_eq!(run(Rounding::HalfEven), interp::run(&graph, std::slice::from_ref(&x)).unwrap()[0].ints().unwrap());
}

#[test]
fn channels_that_are_not_last_are_requantised_per_pixel() {
    let mut net = Net::default();
    let x = net.input(&[1, 2, 3, 2], q(Elem::U8, 0.5, 0));
    let w = net.weights(Elem::I8, &[2, 1, 1, 2], &[1, 2, 3, -4], &[0.5, 0.3]);
    let y = net.conv(Conv::unit(), &[x, w]);
    let y = net.op(Transpose::to_nchw(), &[y]);
    let y = net.quantize(y, q(Elem::I8, 0.7, 0));
    let graph = net.output(y);
    let new = lower(&graph);
    let (requant, _) = only(&new, "requant");
    // [N,C,H,W] = [1,2,2,3] taken as [N,H,W,C].
    assert_eq!(new.ty(new.args(requant)[1]).shape, [2, 2, 1]);
    for seed in 0..10 {
        compare_graphs(&graph, &new, &random_inputs(&graph, &mut Random(seed)), F32);
    }
}
