//! Output perturbation against a network that is rebuilt with one quantised layer and run by the executor.

use hawqc_ir::{Dequantize, Elem, Graph, Quantize, Tensor, ValueId};

use super::*;
use crate::calibrate::{Calibration, Calibrator, Method};
use crate::plan::{LayerBits, quantizable_layers};
use crate::sensitivity::{Estimator, Measurement, Metric, Settings, Task, parse_choice};
use crate::test_networks::{residual_network, tensor};
use crate::weights::QuantizedWeights;

fn calibrated(graph: &Graph) -> Calibration {
    let mut calibrator = Calibrator::new(graph).unwrap();
    (0..4).for_each(|seed| calibrator.observe(&[tensor(seed, &[1, 3, 12, 12])]).unwrap());
    calibrator.finish("m").unwrap()
}

/// `graph` with layer `id` at `bits`; its source is rounded with the largest magnitude seen.
fn quantized(graph: &Graph, calibration: &Calibration, id: ValueId, bits: LayerBits) -> Graph {
    let names = crate::calibrate::value_names(graph);
    graph
        .rebuild(|new, at, args| {
            if at != id {
                return new.copy(graph, at, args);
            }
            let source = graph.args(id)[0];
            let statistics = &calibration.values()[&names[source.index()]];
            let unsigned = statistics.min >= 0.0;
            let hi = (1i64 << (bits.activations - u8::from(!unsigned))) - 1;
            let lo = if unsigned { 0 } else { -hi - 1 };
            let scale = new.constant(Tensor::from_f32([1], vec![statistics.max_abs() / hi as f32]).unwrap());
            let elem = if unsigned { Elem::U8 } else { Elem::I8 };
            let zero = new.constant(Tensor::from_ints(elem, [1], [0]).unwrap());
            let src = new.add("q", Quantize { lo, hi, axis: 0, elem }, &[args[0], scale, zero]).unwrap();
            let src = new.add("d", Dequantize { axis: 0 }, &[src, scale, zero]).unwrap();
            let wei = graph.tensor(graph.args(id)[1]).unwrap();
            let channels = vec![0.0; wei.shape()[0]];
            let rounded = QuantizedWeights::new(wei.f32s().unwrap(), bits.weights, &channels).dequantized();
            let wei = new.constant(Tensor::from_f32(wei.shape(), rounded).unwrap());
            new.copy(graph, at, &[src, wei, args[2]])
        })
        .unwrap()
}

#[test]
fn divergence_is_that_of_a_network_with_one_quantised_layer() {
    let graph = crate::fold_batch_norm(&residual_network(1)).unwrap();
    let calibration = calibrated(&graph);
    let choices = ["w8a8", "w4a4", "w4a8"].map(|c| parse_choice(c).unwrap());
    let settings = Settings {
        metric: Metric::Output,
        estimator: Estimator::Scores,
        choices: choices.to_vec(),
        seed: 0,
        calibration: Some((&calibration, Method::MinMax)),
    };
    let measurement = Measurement::new(&graph, &settings).unwrap();
    let input = tensor(1, &[1, 3, 12, 12]);
    let run = measurement.run("m", "d", true, [1, 7]);
    assert_eq!((run.rounds, run.labelled), (1, false));
    let record = measurement.measure(Task { number: 0, sample: 0, round: 0 }, &input, None).unwrap();
    let scores = |graph: &Graph| -> Vec<f64> {
        let found = crate::execute(graph, std::slice::from_ref(&input), |_, _| {}).unwrap();
        found[0].f32s().unwrap().iter().map(|&v| v.into()).collect()
    };
    let probabilities = |scores: &[f64]| {
        let sum: f64 = scores.iter().map(|s| s.exp()).sum();
        scores.iter().map(|s| s.exp() / sum).collect::<Vec<f64>>()
    };
    let clean = scores(&graph);
    let p = probabilities(&clean);
    let layers = quantizable_layers(&graph);
    let pairs = layers.len() * choices.len();
    assert_eq!(record.values.len(), 2 * pairs + 1);
    for (index, (id, name)) in layers.iter().enumerate() {
        for (number, bits) in choices.iter().enumerate() {
            let moved = scores(&quantized(&graph, &calibration, *id, *bits));
            let q = probabilities(&moved);
            let divergence: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
            let noise: f64 = clean.iter().zip(&moved).map(|(c, m)| (c - m).powi(2)).sum();
            let at = index * choices.len() + number;
            // Scores are exact to about 1e-6, and 8 bits move them by about 1e-3: a relative error of 1e-2 in squares.
            let near = |found: f64, expected: f64| (found - expected).abs() <= 2e-2 * expected + 1e-9;
            assert!(near(record.values[at], divergence), "{name}: {} {divergence}", record.values[at]);
            assert!(near(record.values[pairs + at], noise), "{name}: {} {noise}", record.values[pairs + at]);
        }
    }
    let found = run.assemble(measurement.layers().to_vec(), &[record]).unwrap();
    for layer in &found.layers {
        assert!(layer.cost["w4a4"] > layer.cost["w8a8"] && layer.sqnr_db["w4a4"] < layer.sqnr_db["w8a8"]);
        assert!(layer.trace.is_none() && layer.cost_stderr.is_empty());
    }
}

#[test]
fn activations_need_a_calibration() {
    let graph = every_operator(1);
    let settings = Settings {
        metric: Metric::Output,
        estimator: Estimator::Scores,
        choices: vec![LayerBits::both(8)],
        seed: 0,
        calibration: None,
    };
    assert!(Measurement::new(&graph, &settings).err().unwrap().to_string().contains("calibrat"));
}
