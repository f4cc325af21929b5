//! Gradients and Hessian-vector products against central differences, in f64.

use hawqc_ir::{AvgPool, ClampReal, Concat, Conv, Graph, MaxPool, Op, Pad, Real, Reshape, Transpose, ValueId, interp};

use super::*;
use crate::test_networks::{Net, padded, relative_difference, residual_network, tensor};

/// Third derivatives of these networks are below 1e3, so differences are exact to 1e-7.
const TOLERANCE: f64 = 1e-6;

fn check(graph: &Graph, seed: u64) {
    let network = Network::<f64>::new(graph).unwrap();
    let input = doubles(seed, network.lengths[network.input]);
    let label = seed as usize % network.classes();
    let direction = directions(&network, 100 * seed);
    let (up, down) = (moved(graph, &direction, STEP), moved(graph, &direction, -STEP));
    let gradient = derivative(&network, &input, label, None);
    let slope: f64 = gradient.iter().flatten().zip(direction.iter().flatten()).map(|(g, d)| g * d).sum();
    let expected = (loss(&up, &input, label) - loss(&down, &input, label)) / (2.0 * STEP);
    assert!((slope - expected).abs() <= TOLERANCE * (1.0 + expected.abs()), "slope {slope}, differences {expected}");
    let product = derivative(&network, &input, label, Some(&direction));
    let (above, below) = (derivative(&up, &input, label, None), derivative(&down, &input, label, None));
    let mut largest: f64 = 0.0;
    for layer in 0..network.layers.len() {
        assert_eq!(product[layer].len(), network.layers[layer].wei.len(), "{}", network.layers[layer].name);
        for at in 0..product[layer].len() {
            let expected = (above[layer][at] - below[layer][at]) / (2.0 * STEP);
            let found = product[layer][at];
            largest = largest.max(found.abs());
            let name = &network.layers[layer].name;
            assert!(
                (found - expected).abs() <= TOLERANCE * (1.0 + expected.abs()),
                "{name}[{at}]: {found}, {expected}"
            );
        }
    }
    assert!(largest > 1e-3, "all products vanish");
}

#[test]
fn products_of_all_operators_equal_differences() {
    (1..6).for_each(|seed| check(&every_operator(seed), seed));
    check(&crate::fold_batch_norm(&residual_network(2)).unwrap(), 3);
}

/// One operator between two convolutions.
fn between(op: impl Into<Op>, seed: u64) -> Graph {
    surrounded(seed, |net, x, _| net.graph.add("op", op, &[x]).unwrap())
}

/// Whatever `build` makes of two convolutions' results `[1,5,6,4]`, with a dense layer behind.
fn surrounded(seed: u64, build: impl FnOnce(&mut Net, ValueId, ValueId) -> ValueId) -> Graph {
    let mut net = Net::new(seed);
    let image = net.input(&[1, 5, 6, 2]);
    let x = net.conv("before", image, 4, 3, padded(1));
    let y = net.conv("beside", image, 4, 1, Conv::unit());
    let x = build(&mut net, x, y);
    let size = net.graph.ty(x).elements();
    let x = net.graph.add("flat", Reshape { shape: vec![1, 1, 1, size] }, &[x]).unwrap();
    let x = net.conv("after", x, 4, 1, Conv::unit());
    net.output(x);
    net.graph
}

#[test]
fn each_operator_equals_differences() {
    let clamp = |lo, hi| ClampReal { lo: Real::new(lo), hi: Real::new(hi) };
    let mean = |count_include_pad| AvgPool { kernel: [3, 2], stride: [2, 1], pad: [1, 0, 2, 1], count_include_pad };
    for seed in 1..4 {
        check(&between(ClampReal::relu(), seed), seed);
        check(&between(clamp(-0.3, 0.2), seed), seed);
        check(&between(MaxPool { kernel: [3, 2], stride: [2, 1], pad: [1, 0, 1, 1], dilation: [1, 2] }, seed), seed);
        check(&between(mean(false), seed), seed);
        check(&between(mean(true), seed), seed);
        check(&between(Pad { pad: [1, 2, 0, 1], value: Real::new(-0.5) }, seed), seed);
        check(&between(Transpose { perm: vec![0, 3, 1, 2] }, seed), seed);
        check(&surrounded(seed, |net, x, y| net.add("sum", x, y)), seed);
        check(&surrounded(seed, |net, x, _| net.add("twice", x, x)), seed);
        for axis in 1..4 {
            check(&surrounded(seed, |net, x, y| net.graph.add("join", Concat { axis }, &[y, x, y]).unwrap()), seed);
        }
    }
}

#[test]
fn each_kind_of_convolution_equals_differences() {
    let kinds = [
        (4, 1, Conv::unit()),
        (4, 3, padded(2)),
        (6, 2, Conv { groups: 2, pad: [1, 0, 2, 1], stride: [1, 2], ..Conv::unit() }),
        (6, 2, Conv { dilation: [2, 3], pad: [1; 4], ..Conv::unit() }),
        (4, 3, Conv { groups: 4, dilation: [1, 2], stride: [2, 1], pad: [2, 1, 0, 1], ..Conv::unit() }),
        (8, 1, Conv { groups: 4, ..Conv::unit() }),
        (4, 1, Conv { groups: 4, ..Conv::unit() }),
        (4, 1, Conv { stride: [2; 2], ..Conv::unit() }),
    ];
    for (k, size, conv) in kinds {
        check(&surrounded(7, |net, x, _| net.conv("inner", x, k, size, conv)), 7);
    }
}

#[test]
fn scores_equal_the_interpreters() {
    let mut graph = every_operator(4);
    let network = Network::<f32>::new(&graph).unwrap();
    let input = tensor(3, &[1, 3, 8, 8]);
    let tape = network.forward(input.f32s().unwrap().to_vec(), None, Keep::All);
    let found = hawqc_ir::Tensor::from_f32([1, 5], network.scores(&tape)[0].clone()).unwrap();
    let logits = graph.values().find(|id| id.index() == network.logits).unwrap();
    graph.output("logits", logits);
    let expected = interp::run(&graph, &[input]).unwrap();
    assert!(relative_difference(&expected[1], &found) < 1e-5);
}

#[test]
fn what_has_no_derivative_is_named() {
    let refused = |graph: &Graph| Network::<f32>::new(graph).err().expect("accepted").to_string();
    let softmax = surrounded(1, |net, x, _| net.graph.add("inner", hawqc_ir::Softmax {}, &[x]).unwrap());
    assert!(refused(&softmax).contains("`inner` (softmax)"), "{}", refused(&softmax));
    let constant = surrounded(1, |net, x, _| {
        let shift = net.constant(&[1, 5, 6, 4], 1.0);
        net.add("shift", x, shift)
    });
    assert!(refused(&constant).contains("`shift` (add): a constant activation"), "{}", refused(&constant));
    let mut net = Net::new(1);
    let x = net.input(&[1, 4, 4, 2]);
    let x = net.conv("image", x, 3, 1, Conv::unit());
    net.output(x);
    assert!(refused(&net.graph).contains("one vector of class scores"), "{}", refused(&net.graph));
}
