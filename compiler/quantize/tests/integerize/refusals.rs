//! What cannot be lowered is named, all of it at once.

use hawqc_ir::{Add, AvgPool, Concat, Conv, Elem, Graph, MaxPool, Pad, Real, Reshape, Softmax, TensorType};
use hawqc_quantize::integerize::{IntegerizeError, Problem, integerize};

use crate::net::{Net, q};

fn problems(graph: &Graph) -> Vec<Problem> {
    match integerize(graph) {
        Err(IntegerizeError::Nodes(problems)) => problems,
        other => panic!("{other:?}"),
    }
}

/// The only problem, which concerns a node of the given operator and mentions `text`.
#[track_caller]
fn refused(graph: &Graph, op: &str, text: &str) {
    let problems = problems(graph);
    assert_eq!(problems.len(), 1, "{problems:?}");
    let Problem { node, op: found, .. } = &problems[0];
    assert_eq!(found, op);
    assert!(!node.is_empty());
    assert!(problems[0].to_string().contains(text), "{}", problems[0]);
}

#[test]
fn every_problem_is_listed_once() {
    let mut net = Net::default();
    let x = net.graph.input("x", TensorType::new(Elem::F32, [1, 2, 2, 2])).unwrap();
    let a = net.relu(x);
    let a = net.relu(a);
    let a = net.quantize(a, q(Elem::U8, 0.1, 0));
    let a = net.dequantize(a, q(Elem::U8, 0.1, 0));
    let w = net.floats(&[1, 1, 1, 2], &[1.0, 2.0]);
    let b = net.conv(Conv::unit(), &[a, w]);
    let b = net.quantize(b, q(Elem::I16, 0.1, 0));
    let b = net.dequantize(b, q(Elem::I16, 0.1, 0));
    let w = net.weights(Elem::I8, &[1, 1, 1, 1], &[3], &[0.1]);
    let c = net.conv(Conv::unit(), &[b, w]);
    let graph = net.output(c);
    let found = problems(&graph);
    let ops: Vec<&str> = found.iter().map(|p| p.op.as_str()).collect();
    assert_eq!(ops, ["clamp_real", "conv", "conv"]);
    let text = integerize(&graph).unwrap_err().to_string();
    assert_eq!(text.lines().count(), 4, "{text}");
    assert!(text.contains("a constant as weights") && text.contains("i16 as source"), "{text}");
}

#[test]
fn unquantised_input() {
    let mut net = Net::default();
    let x = net.graph.input("x", TensorType::new(Elem::F32, [1, 1, 1, 1])).unwrap();
    let w = net.weights(Elem::I8, &[1, 1, 1, 1], &[3], &[0.1]);
    let y = net.conv(Conv::unit(), &[x, w]);
    refused(&net.output(y), "conv", "no quantize has yet");
}

#[test]
fn accumulator_overflow() {
    let mut net = Net::default();
    let x = net.input(&[1, 1, 1, 70000], q(Elem::U8, 0.1, 0));
    let w = net.weights(Elem::I8, &[1, 1, 1, 70000], &vec![-128; 70000], &[0.1]);
    let y = net.conv(Conv::unit(), &[x, w]);
    let y = net.quantize(y, q(Elem::U8, 0.1, 0));
    refused(&net.output(y), "conv", "2284800000 in output channel 0");
}

#[test]
fn bias_overflow() {
    let mut net = Net::default();
    let x = net.input(&[1, 1, 1, 1], q(Elem::U8, 0.1, 0));
    let w = net.weights(Elem::I8, &[2, 1, 1, 1], &[1, 1], &[0.1, 1e-12]);
    let b = net.floats(&[2], &[1.0, 1.0]);
    let y = net.conv(Conv::unit(), &[x, w, b]);
    let y = net.quantize(y, q(Elem::U8, 0.1, 0));
    refused(&net.output(y), "conv", "output channel 1");
}

#[test]
fn bias_not_a_number() {
    let mut net = Net::default();
    let x = net.input(&[1, 1, 1, 1], q(Elem::U8, 0.1, 0));
    let w = net.weights(Elem::I8, &[1, 1, 1, 1], &[1], &[0.1]);
    let b = net.floats(&[1], &[f32::NAN]);
    let y = net.conv(Conv::unit(), &[x, w, b]);
    refused(&net.output(y), "conv", "NaN");
}

#[test]
fn illegal_scales() {
    for scale in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e-40] {
        let mut net = Net::default();
        let x = net.input(&[1, 1], q(Elem::U8, scale, 0));
        refused(&net.output(x), "dequantize", "scale");
    }
}

#[test]
fn ratio_out_of_range() {
    let mut net = Net::default();
    let x = net.input(&[1, 1], q(Elem::U8, 1e10, 0));
    let y = net.quantize(x, q(Elem::U8, 1e-10, 0));
    refused(&net.output(y), "quantize", "ratio");
}

#[test]
fn zero_points_per_channel() {
    let mut net = Net::default();
    let x = net.graph.input("x", TensorType::new(Elem::U8, [1, 2])).unwrap();
    let x = net.dequantize_axis(x, &[0.1, 0.1], &[1, 2], 1);
    refused(&net.output(x), "dequantize", "zero points");
}

#[test]
fn sums_need_a_quantize() {
    let sum = |net: &mut Net| {
        let (a, b) = (net.input(&[1, 2, 2, 1], q(Elem::U8, 0.1, 0)), net.input(&[1, 2, 2, 1], q(Elem::U8, 0.2, 0)));
        net.op(Add {}, &[a, b])
    };
    let mut net = Net::default();
    let x = sum(&mut net);
    refused(&net.output(x), "add", "sum of 2");
    let mut net = Net::default();
    let x = sum(&mut net);
    let y = net.op(MaxPool { kernel: [2, 2], stride: [1, 1], pad: [0; 4], dilation: [1, 1] }, &[x]);
    refused(&net.output(y), "max_pool", "sum of 2");
    let mut net = Net::default();
    let x = sum(&mut net);
    let x = net.relu(x);
    let y = net.op(Add {}, &[x, x]);
    refused(&net.output(y), "add", "sum of 2");
}

#[test]
fn concatenation_needs_a_quantize() {
    let mut net = Net::default();
    let (a, b) = (net.input(&[1, 2, 2, 1], q(Elem::U8, 0.1, 0)), net.input(&[1, 2, 2, 1], q(Elem::U8, 0.2, 0)));
    let c = net.op(Concat { axis: 3 }, &[a, b]);
    refused(&net.output(c), "concat", "different scales");
}

#[test]
fn scales_that_lose_their_axis() {
    let mut net = Net::default();
    let x = net.input(&[1, 2, 3, 2], q(Elem::U8, 0.5, 0));
    let w = net.weights(Elem::I8, &[2, 1, 1, 2], &[1, 2, 3, 4], &[0.5, 0.25]);
    let y = net.conv(Conv::unit(), &[x, w]);
    let y = net.op(Reshape { shape: vec![1, 12] }, &[y]);
    let y = net.quantize(y, q(Elem::U8, 0.5, 0));
    refused(&net.output(y), "reshape", "does not keep");
}

#[test]
fn relu6_on_channels_of_different_scale_before_an_addition() {
    let mut net = Net::default();
    let x = net.input(&[1, 1, 1, 2], q(Elem::U8, 0.5, 0));
    let w = net.weights(Elem::I8, &[2, 1, 1, 2], &[1, 2, 3, 4], &[0.5, 0.25]);
    let y = net.conv(Conv::unit(), &[x, w]);
    let y = net.clamp(y, 0.0, 6.0);
    let y = net.op(Add {}, &[x, y]);
    refused(&net.output(y), "add", "bound 6");
}

#[test]
fn padding_off_the_grid() {
    for value in [0.3, f32::NEG_INFINITY] {
        let mut net = Net::default();
        let x = net.input(&[1, 2, 2, 1], q(Elem::U8, 0.25, 0));
        let y = net.op(Pad { pad: [1; 4], value: Real::new(value) }, &[x]);
        refused(&net.output(y), "pad", "multiple of the scale");
    }
}

#[test]
fn pixels_of_different_scale_cannot_be_convolved_or_leave() {
    let mut net = Net::default();
    let x = net.input(&[1, 4, 4, 1], q(Elem::U8, 0.25, 0));
    let y = net.op(AvgPool { kernel: [3, 3], stride: [1, 1], pad: [1; 4], count_include_pad: false }, &[x]);
    refused(&net.output(y), "avg_pool", "per pixel");
}

#[test]
fn softmax_inside() {
    let mut net = Net::default();
    let x = net.input(&[1, 4], q(Elem::U8, 0.25, 0));
    let y = net.op(Softmax {}, &[x]);
    let y = net.quantize(y, q(Elem::U8, 0.25, 0));
    refused(&net.output(y), "softmax", "inside");
}
