//! Derivatives against finite differences, traces against exact ones, runs against their parts.

mod derivatives;
mod outputs;
mod runs;
mod traces;

use hawqc_ir::{AvgPool, ClampReal, Concat, Conv, Graph, MaxPool, Pad, Real, Reshape, Softmax, Transpose};

use super::derivative::{Keep, loss_adjoint};
use super::network::Network;
use crate::test_networks::{Net, padded, random};

/// Every operator, and every kind of convolution: strided, padded unevenly, dilated, grouped, depthwise.
pub(super) fn every_operator(seed: u64) -> Graph {
    let mut net = Net::new(seed);
    let image = net.input(&[1, 3, 8, 8]);
    let x = net.graph.add("image", Transpose::to_nhwc(), &[image]).unwrap();
    let uneven = Conv { stride: [2, 1], pad: [1, 0, 2, 1], ..Conv::unit() };
    let x = net.conv("conv1", x, 4, 3, uneven);
    let clamp = |lo, hi| ClampReal { lo: Real::new(lo), hi: Real::new(hi) };
    let x = net.graph.add("relu6", clamp(-0.5, 0.6), &[x]).unwrap();
    let pool = MaxPool { kernel: [3, 2], stride: [1; 2], pad: [1, 1, 1, 0], dilation: [1; 2] };
    let x = net.graph.add("max", pool, &[x]).unwrap();
    let y = net.conv("grouped", x, 6, 3, Conv { groups: 2, ..padded(1) });
    let y = net.conv("depthwise", y, 6, 3, Conv { groups: 6, stride: [1, 1], ..padded(1) });
    let y = net.relu("relu", y);
    let z = net.conv("dilated", x, 6, 2, Conv { dilation: [2, 1], pad: [1, 0, 1, 1], ..Conv::unit() });
    let sum = net.add("sum", y, z);
    let pool = AvgPool { kernel: [2; 2], stride: [2; 2], pad: [1, 0, 0, 1], count_include_pad: false };
    let a = net.graph.add("mean", pool, &[sum]).unwrap();
    let pool = AvgPool { kernel: [2; 2], stride: [2; 2], pad: [1, 0, 0, 1], count_include_pad: true };
    let b = net.graph.add("mean of padded", pool, &[sum]).unwrap();
    let b = net.conv("pointwise", b, 3, 1, Conv::unit());
    let x = net.graph.add("join", Concat { axis: 3 }, &[a, b]).unwrap();
    let x = net.graph.add("border", Pad { pad: [0, 1, 1, 0], value: Real::new(0.25) }, &[x]).unwrap();
    let size = net.graph.ty(x).elements();
    let x = net.graph.add("flatten", Transpose::to_nchw(), &[x]).unwrap();
    let x = net.graph.add("flatten", Reshape { shape: vec![1, 1, 1, size] }, &[x]).unwrap();
    let x = net.conv("fc", x, 5, 1, Conv::unit());
    let x = net.graph.add("flat", Reshape { shape: vec![1, 5] }, &[x]).unwrap();
    let x = net.graph.add("softmax", Softmax {}, &[x]).unwrap();
    net.output(x);
    net.graph
}

/// Two convolutions of 4 and 6 weights with a clamp between.
pub(super) fn tiny(seed: u64) -> Graph {
    let mut net = Net::new(seed);
    let x = net.input(&[1, 2, 2, 1]);
    let x = net.conv("a", x, 2, 2, Conv { pad: [0, 0, 0, 1], ..Conv::unit() });
    let x = net.relu("relu", x);
    let x =
        net.graph.add("mean", AvgPool { kernel: [1, 2], stride: [1; 2], pad: [0; 4], count_include_pad: true }, &[x]);
    let x = net.conv("b", x.unwrap(), 3, 1, Conv::unit());
    let x = net.graph.add("flat", Reshape { shape: vec![1, 3] }, &[x]).unwrap();
    net.output(x);
    net.graph
}

pub(super) fn doubles(seed: u64, count: usize) -> Vec<f64> {
    random(seed, count).into_iter().map(f64::from).collect()
}

/// A direction for every weight.
pub(super) fn directions(network: &Network<f64>, seed: u64) -> Vec<Vec<f64>> {
    network.layers.iter().enumerate().map(|(i, l)| doubles(seed + i as u64, l.wei.len())).collect()
}

pub(super) fn loss(network: &Network<f64>, input: &[f64], label: usize) -> f64 {
    let tape = network.forward(input.to_vec(), None, Keep::ForBackward);
    -super::derivative::softmax(&network.scores(&tape)[0])[label].ln()
}

/// The gradient, or with a direction the product of the Hessian and it.
pub(super) fn derivative(
    network: &Network<f64>,
    input: &[f64],
    label: usize,
    direction: Option<&[Vec<f64>]>,
) -> Vec<Vec<f64>> {
    let mut found: Vec<Vec<f64>> = vec![Vec::new(); network.layers.len()];
    let tape = network.forward(input.to_vec(), direction, Keep::ForBackward);
    let adjoint = loss_adjoint(network.scores(&tape), label);
    network.backward(&tape, adjoint, |layer, values| found[layer] = values);
    found
}

/// The network with its weights moved.
pub(super) fn moved(graph: &Graph, direction: &[Vec<f64>], step: f64) -> Network<f64> {
    let mut network = Network::<f64>::new(graph).unwrap();
    for (layer, direction) in network.layers.iter_mut().zip(direction) {
        layer.wei.iter_mut().zip(direction).for_each(|(w, d)| *w += step * d);
    }
    network
}

/// The Hessian's trace of every layer from finite differences of all diagonal entries.
pub(super) fn exact_traces(graph: &Graph, input: &[f64], label: usize) -> Vec<f64> {
    let network = Network::<f64>::new(graph).unwrap();
    let mut traces = vec![0.0; network.layers.len()];
    for layer in 0..network.layers.len() {
        for at in 0..network.layers[layer].wei.len() {
            let mut unit: Vec<Vec<f64>> = network.layers.iter().map(|l| vec![0.0; l.wei.len()]).collect();
            unit[layer][at] = 1.0;
            let gradient = |step| derivative(&moved(graph, &unit, step), input, label, None)[layer][at];
            traces[layer] += (gradient(STEP) - gradient(-STEP)) / (2.0 * STEP);
        }
    }
    traces
}

/// Of central differences: their error is about STEP^2 = 1e-10 times a third derivative, and 1e-16 / STEP = 1e-11 of
/// rounding.
pub(super) const STEP: f64 = 1e-5;
