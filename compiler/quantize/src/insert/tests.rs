use hawqc_ir::{AvgPool, ClampReal, Concat, Graph, MaxPool, Real, Softmax, interp, text, verify};

use super::*;
use crate::calibrate::Calibrator;
use crate::fold::fold_batch_norm;
use crate::integerize::integerize;
use crate::test_networks::{Net, padded, relative_difference, residual_network, tensor};

fn calibrated(graph: &Graph) -> Calibration {
    let mut calibrator = Calibrator::new(graph).unwrap();
    let shape = graph.ty(graph.inputs()[0]).shape.clone();
    for seed in 0..16 {
        calibrator.observe(&[tensor(100 + seed, &shape)]).unwrap();
    }
    calibrator.finish("m").unwrap()
}

fn inserted(graph: &Graph, plan: &PrecisionPlan, options: Options) -> Graph {
    let qdq = insert(graph, &calibrated(graph), plan, options).unwrap();
    verify::check(&qdq).unwrap();
    qdq
}

/// Formats of all quantisers, by the name of the value, in graph order.
fn quantizers(qdq: &Graph) -> Vec<(String, Elem, i64)> {
    let quantizer = |id: ValueId| match qdq.op(id) {
        Op::Quantize(q) => Some((qdq.name(id).to_string(), q.elem, q.hi)),
        _ => None,
    };
    qdq.values().filter_map(quantizer).collect()
}

fn names(qdq: &Graph) -> Vec<(String, Elem)> {
    quantizers(qdq).into_iter().map(|(name, elem, _)| (name, elem)).collect()
}

fn named(list: &[(&str, Elem)]) -> Vec<(String, Elem)> {
    list.iter().map(|(name, elem)| (name.to_string(), *elem)).collect()
}

#[test]
fn residual_network_is_quantised_where_it_should_be() {
    let graph = fold_batch_norm(&residual_network(3)).unwrap();
    let plan = PrecisionPlan::uniform(&graph, 8, 8).unwrap();
    let qdq = inserted(&graph, &plan, Options::default());
    let expected = named(&[
        ("image", Elem::I8),
        // Storage of the stem at 16 bits for the block's addition, before the pool; then 8 bits for the convolution.
        ("relu1", Elem::I16),
        ("pool1", Elem::U8),
        ("block1.relu1", Elem::U8),
        ("block1.relu2", Elem::U8),
        ("block2.relu1", Elem::U8),
        ("block2.short", Elem::I16),
        ("block2.relu2", Elem::U8),
        ("left.relu", Elem::U8),
        ("right.relu", Elem::U8),
        ("avgpool", Elem::U8),
    ]);
    assert_eq!(names(&qdq), expected, "{}", text::print(&qdq));
}

/// A stream of 16 bits passes its additions without a product; one of 8 bits keeps a scale for each value.
#[test]
fn a_residual_stream_has_one_scale() {
    let mut net = Net::new(4);
    let x = net.input(&[1, 3, 6, 6]);
    let x = net.graph.add("image", hawqc_ir::Transpose::to_nhwc(), &[x]).unwrap();
    let mut stream = net.conv("stem", x, 4, 3, padded(1));
    for block in 0..3 {
        let y = net.conv(&format!("conv{block}"), stream, 4, 3, padded(1));
        let y = net.add(&format!("add{block}"), y, stream);
        stream = net.relu(&format!("relu{block}"), y);
    }
    let last = net.conv("last", stream, 4, 1, Conv::unit());
    net.output(last);
    let plan = PrecisionPlan::uniform(&net.graph, 8, 8).unwrap();
    // The last sum is read by a convolution only.
    for (bits, streams, scales) in [(16, 3, 1), (8, 3, 3)] {
        let qdq = inserted(&net.graph, &plan.clone().with_residual_bits(bits).unwrap(), Options::default());
        let stored = |id: &ValueId| matches!(qdq.name(*id), "stem" | "relu0" | "relu1") && is_quantizer(&qdq, *id);
        let scale = |id: ValueId| qdq.tensor(qdq.args(id)[1]).unwrap().f32s().unwrap()[0];
        let elem = if bits == 16 { Elem::I16 } else { Elem::I8 };
        let is_stream = |id: &ValueId| bits == 8 || qdq.ty(*id).elem == elem;
        let mut found: Vec<f32> = qdq.values().filter(stored).filter(is_stream).map(scale).collect();
        assert_eq!(found.len(), streams, "{}", text::print(&qdq));
        found.dedup();
        assert_eq!(found.len(), scales, "{}", text::print(&qdq));
        let integer = integerize(&qdq).unwrap();
        let unscaled = |id: &ValueId| integer.args(*id).iter().any(|&arg| integer.ty(arg).elem == Elem::I16);
        let adds: Vec<ValueId> = integer.values().filter(|&id| matches!(integer.op(id), Op::Add(_))).collect();
        let expected = if bits == 16 { 2 } else { 0 };
        assert_eq!(adds.iter().filter(|id| unscaled(id)).count(), expected, "{}", text::print(&integer));
    }
}

fn is_quantizer(qdq: &Graph, id: ValueId) -> bool {
    matches!(qdq.op(id), Op::Quantize(_))
}

#[test]
fn simulated_and_integer_networks_stay_near_the_float_one() {
    for seed in 0..4 {
        let graph = fold_batch_norm(&residual_network(seed)).unwrap();
        // Ties and the two-branch rounding of additions move single integers, of which 4 bits have few.
        for (weights, activations, tolerance, ties) in [(8, 8, 0.05, 0.02), (4, 8, 0.5, 0.02), (4, 4, 0.8, 0.15)] {
            let plan = PrecisionPlan::uniform(&graph, weights, activations).unwrap();
            let qdq = inserted(&graph, &plan, Options::default());
            let integer = integerize(&qdq).unwrap();
            verify::check_integer(&integer).unwrap();
            let input = [tensor(500, &[1, 3, 12, 12])];
            let run = |g: &Graph| interp::run(g, &input).unwrap().remove(0);
            let (float, simulated, integer) = (run(&graph), run(&qdq), run(&integer));
            assert!(relative_difference(&float, &simulated) < tolerance, "w{weights}a{activations}");
            assert!(relative_difference(&simulated, &integer) < ties, "w{weights}a{activations}");
        }
    }
}

#[test]
fn inputs_that_are_never_negative_are_unsigned() {
    let mut net = Net::new(1);
    let x = net.input(&[1, 4, 4, 2]);
    let x = net.conv("conv", x, 3, 3, padded(1));
    net.output(x);
    let mut calibrator = Calibrator::new(&net.graph).unwrap();
    let image = tensor(3, &[1, 4, 4, 2]).f32s().unwrap().iter().map(|v| v.abs()).collect();
    calibrator.observe(&[Tensor::from_f32([1, 4, 4, 2], image).unwrap()]).unwrap();
    let plan = PrecisionPlan::uniform(&net.graph, 8, 8).unwrap();
    let qdq = insert(&net.graph, &calibrator.finish("m").unwrap(), &plan, Options::default()).unwrap();
    assert_eq!(quantizers(&qdq), [("image".to_string(), Elem::U8, 255)]);
}

#[test]
fn users_of_several_widths_read_copies_of_the_widest() {
    let mut net = Net::new(1);
    let x = net.input(&[1, 6, 6, 3]);
    let x = net.conv("stem", x, 4, 3, padded(1));
    let x = net.relu("relu", x);
    let branches: Vec<ValueId> = (0..3).map(|i| net.conv(&format!("branch{i}"), x, 4, 1, Conv::unit())).collect();
    branches.into_iter().for_each(|b| net.graph.output(format!("out{}", b.index()), b));
    let bits = [("stem", 8), ("branch0", 4), ("branch1", 6), ("branch2", 4)];
    let layers = bits.map(|(name, bits)| (name.to_string(), LayerBits::both(bits)));
    let plan = PrecisionPlan::new(layers.into(), 16, "test").unwrap();
    let qdq = inserted(&net.graph, &plan, Options::default());
    let relu = |elem, hi| ("relu".to_string(), elem, hi);
    assert_eq!(quantizers(&qdq)[1..], [relu(Elem::U8, 63), relu(Elem::U4, 15)]);
    integerize(&qdq).unwrap();
}

#[test]
fn concatenation_has_one_scale_and_shares_it_with_a_lone_pool() {
    let mut net = Net::new(1);
    let x = net.input(&[1, 6, 6, 3]);
    let x = net.conv("stem", x, 4, 3, padded(1));
    let a = net.conv("a", x, 4, 1, Conv::unit());
    let b = net.conv("b", x, 4, 3, padded(1));
    let b = net.relu("b.relu", b);
    let pool = |size| MaxPool { kernel: [size; 2], stride: [1; 2], pad: [size / 2; 4], dilation: [1; 2] };
    let b = net.graph.add("b.pool", pool(3), &[b]).unwrap();
    let c = net.graph.add("c.pool", pool(3), &[x]).unwrap();
    let x = net.graph.add("join", Concat { axis: 3 }, &[a, b, c]).unwrap();
    let x = net.conv("last", x, 4, 1, Conv::unit());
    net.output(x);
    let plan = PrecisionPlan::uniform(&net.graph, 8, 8).unwrap();
    let qdq = inserted(&net.graph, &plan, Options::default());
    let expected = named(&[
        ("image", Elem::I8),
        ("stem", Elem::I8),
        ("a", Elem::I8),
        ("b.relu", Elem::I8),
        // The stem is read by others too, in its own scale: its pool is requantised.
        ("c.pool", Elem::I8),
    ]);
    assert_eq!(names(&qdq), expected);
    let scale = |name: &str| {
        let id = qdq.values().find(|&id| qdq.name(id) == name && matches!(qdq.op(id), Op::Quantize(_))).unwrap();
        qdq.args(id)[1]
    };
    assert_eq!(scale("a"), scale("b.relu"));
    assert_eq!(scale("a"), scale("c.pool"));
    assert_ne!(scale("a"), scale("stem"));
    integerize(&qdq).unwrap();
}

#[test]
fn what_a_concatenation_shares_with_others_keeps_its_scale() {
    let mut net = Net::new(3);
    let x = net.input(&[1, 6, 6, 3]);
    let a = net.conv("a", x, 4, 1, Conv::unit());
    // A hundred times larger than `a`, so that the common scale would leave nothing of it.
    let wei = net.constant(&[4, 1, 1, 4], 100.0);
    let b = net.graph.add("b", Conv::unit(), &[a, wei]).unwrap();
    let x = net.graph.add("join", Concat { axis: 3 }, &[a, b]).unwrap();
    let x = net.conv("last", x, 4, 1, Conv::unit());
    net.output(x);
    let plan = PrecisionPlan::uniform(&net.graph, 8, 8).unwrap();
    let qdq = inserted(&net.graph, &plan, Options::default());
    let scales: Vec<f32> = qdq
        .values()
        .filter(|&id| qdq.name(id) == "a" && matches!(qdq.op(id), Op::Quantize(_)))
        .map(|id| qdq.tensor(qdq.args(id)[1]).unwrap().f32s().unwrap()[0])
        .collect();
    assert_eq!(scales.len(), 2, "one for `b`, one for the concatenation");
    assert!(scales[1] > 10.0 * scales[0], "{scales:?}");
    integerize(&qdq).unwrap();
}

#[test]
fn relu6_limits_the_scale_and_global_pool_is_quantised_on_both_sides() {
    let mut net = Net::new(1);
    let x = net.input(&[1, 6, 6, 3]);
    let x = net.conv("stem", x, 4, 3, padded(1));
    let relu6 = ClampReal { lo: Real::new(0.0), hi: Real::new(0.125) };
    let x = net.graph.add("relu6", relu6, &[x]).unwrap();
    let pool = AvgPool { kernel: [6; 2], stride: [1; 2], pad: [0; 4], count_include_pad: true };
    let x = net.graph.add("pool", pool, &[x]).unwrap();
    let x = net.conv("last", x, 4, 1, Conv::unit());
    let x = net.graph.add("softmax", Softmax {}, &[x]).unwrap();
    net.output(x);
    let plan = PrecisionPlan::uniform(&net.graph, 8, 8).unwrap();
    let qdq = inserted(&net.graph, &plan, Options { method: Method::MinMax, ..Options::default() });
    assert_eq!(names(&qdq), named(&[("image", Elem::I8), ("relu6", Elem::U8), ("pool", Elem::U8)]));
    let clipped = qdq.constants().any(|(_, t)| t.f32s().is_ok_and(|v| v == [0.125f32 / 255.0]));
    assert!(clipped);
    integerize(&qdq).unwrap();
}

#[test]
fn values_that_leave_are_accumulators_or_16_bits() {
    let mut net = Net::new(1);
    let x = net.input(&[1, 6, 6, 3]);
    let a = net.conv("a", x, 3, 3, padded(1));
    let sum = net.add("sum", a, x);
    let b = net.conv("b", sum, 3, 1, Conv::unit());
    net.graph.output("sum", sum);
    net.graph.output("b", b);
    let plan = PrecisionPlan::uniform(&net.graph, 8, 8).unwrap();
    let qdq = inserted(&net.graph, &plan, Options::default());
    let expected = named(&[("image", Elem::I16), ("image", Elem::I8), ("sum", Elem::I16), ("sum", Elem::I8)]);
    assert_eq!(names(&qdq), expected);
    integerize(&qdq).unwrap();
}

#[test]
fn bias_correction_keeps_the_mean() {
    let graph = fold_batch_norm(&residual_network(2)).unwrap();
    let plan = PrecisionPlan::uniform(&graph, 2, 8).unwrap();
    let error = |bias_correction| {
        let qdq = inserted(&graph, &plan, Options { method: Method::MinMax, bias_correction });
        // Mean over samples of block1.conv2's output, channel by channel.
        let mean = |g: &Graph| {
            let mut sums = [0f64; 8];
            for seed in 0..16 {
                let input = [tensor(100 + seed, &[1, 3, 12, 12])];
                interp::run_observed(g, &input, |id, t| {
                    if g.name(id) == "block1.conv1" && matches!(g.op(id), Op::Conv(_)) {
                        t.f32s().unwrap().iter().enumerate().for_each(|(i, &v)| sums[i % 8] += f64::from(v));
                    }
                })
                .unwrap();
            }
            sums
        };
        let (float, quantized) = (mean(&graph), mean(&qdq));
        float.iter().zip(quantized).map(|(f, q)| (f - q).powi(2)).sum::<f64>()
    };
    let (without, with) = (error(BiasCorrection::None), error(BiasCorrection::All));
    assert!(with < 0.2 * without, "{with} against {without}");
}

#[test]
fn zero_and_tiny_weights_are_quantised() {
    let mut net = Net::new(1);
    let x = net.input(&[1, 2, 2, 2]);
    let wei = net.graph.constant(Tensor::from_f32([3, 1, 1, 2], vec![0.0, 0.0, 1e-30, 2e-30, 0.5, -1.0]).unwrap());
    let bias = net.graph.constant(Tensor::from_f32([3], vec![0.75, -3.0, 0.0]).unwrap());
    let x = net.graph.add("conv", Conv::unit(), &[x, wei, bias]).unwrap();
    net.output(x);
    let plan = PrecisionPlan::uniform(&net.graph, 8, 8).unwrap();
    let integer = integerize(&inserted(&net.graph, &plan, Options::default())).unwrap();
    let input = [tensor(100, &[1, 2, 2, 2])];
    let (float, found) = (interp::run(&net.graph, &input).unwrap(), interp::run(&integer, &input).unwrap());
    assert!(relative_difference(&float[0], &found[0]) < 0.01);
}

#[test]
fn what_cannot_be_quantised_is_named() {
    let graph = fold_batch_norm(&residual_network(3)).unwrap();
    let plan = PrecisionPlan::uniform(&graph, 8, 8).unwrap();
    let calibration = calibrated(&graph);

    let qdq = inserted(&graph, &plan, Options::default());
    let error = insert(&qdq, &calibration, &plan, Options::default()).unwrap_err();
    assert!(error.to_string().contains("quantised already"), "{error}");

    let text = calibration.to_json().replace("\"block1.relu1\"", "\"other\"");
    let error = insert(&graph, &Calibration::from_json(&text).unwrap(), &plan, Options::default()).unwrap_err();
    assert!(matches!(error, QuantizeError::NotCalibrated { .. }), "{error}");
    assert!(error.to_string().contains("block1.relu1"), "{error}");

    let mut net = Net::new(1);
    let x = net.input(&[1, 2, 2, 2]);
    let wei = net.graph.constant(Tensor::from_f32([1, 1, 1, 2], vec![0.0, f32::NAN]).unwrap());
    let x = net.graph.add("broken", Conv::unit(), &[x, wei]).unwrap();
    net.output(x);
    let error = Calibrator::new(&net.graph).unwrap().observe(&[tensor(1, &[1, 2, 2, 2])]).unwrap_err();
    assert!(matches!(&error, QuantizeError::NotFinite { value, .. } if value == "broken"), "{error}");
}
