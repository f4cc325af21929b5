//! Traces against exact ones: from differences of all entries, from all unit vectors, from all signs.

use hawqc_ir::Tensor;

use super::*;
use crate::plan::LayerBits;
use crate::sensitivity::measure::{curvature_factor, hessian_traces, squared_products};
use crate::sensitivity::{Estimator, Measurement, Metric, Settings, Task};
use crate::test_networks::tensor;

const LABEL: usize = 1;

fn traces_along(network: &Network<f64>, input: &[f64], direction: &[Vec<f64>]) -> Vec<f64> {
    hessian_traces(network, input.to_vec(), direction, |_| Ok(LABEL)).unwrap()
}

fn close(found: &[f64], expected: &[f64]) {
    for (f, e) in found.iter().zip(expected) {
        assert!((f - e).abs() <= 1e-7 * (1.0 + e.abs()), "found {found:?}, expected {expected:?}");
    }
    assert!(expected.iter().all(|e| e.abs() > 1e-3), "{expected:?} tells nothing");
}

#[test]
fn unit_vectors_give_the_exact_trace() {
    let graph = every_operator(3);
    let network = Network::<f64>::new(&graph).unwrap();
    let input = doubles(5, network.lengths[network.input]);
    let mut traces = vec![0.0; network.layers.len()];
    for layer in 0..network.layers.len() {
        for at in 0..network.layers[layer].wei.len() {
            let mut unit: Vec<Vec<f64>> = network.layers.iter().map(|l| vec![0.0; l.wei.len()]).collect();
            unit[layer][at] = 1.0;
            traces[layer] += traces_along(&network, &input, &unit)[layer];
        }
    }
    close(&traces, &exact_traces(&graph, &input, LABEL));
}

/// Over all 2^10 signs of all 10 weights at once, what layers add to each other cancels.
#[test]
fn all_signs_together_give_the_exact_trace() {
    let graph = tiny(3);
    let network = Network::<f64>::new(&graph).unwrap();
    let input = doubles(8, 4);
    let weights: Vec<usize> = network.layers.iter().map(|l| l.wei.len()).collect();
    assert_eq!(weights, [8, 6]);
    let count = 1u32 << (weights[0] + weights[1]);
    let mut traces = vec![0.0; 2];
    for signs in 0..count {
        let sign = |at: usize| if signs >> at & 1 == 1 { 1.0 } else { -1.0 };
        let direction = [(0..8).map(sign).collect(), (8..14).map(sign).collect()];
        let part = traces_along(&network, &input, &direction);
        traces.iter_mut().zip(part).for_each(|(t, p)| *t += p / f64::from(count));
    }
    close(&traces, &exact_traces(&graph, &input, LABEL));
}

/// The same over all 2^5 signs of the scores, of a network with every operator: its layers' blocks of the Hessian have no other
/// part, whatever the label.
#[test]
fn all_signs_of_the_scores_give_the_exact_trace() {
    let graph = every_operator(3);
    let network = Network::<f64>::new(&graph).unwrap();
    let input = doubles(5, network.lengths[network.input]);
    let mut traces = vec![0.0; network.layers.len()];
    for signs in 0..32u32 {
        let signs: Vec<f64> = (0..5).map(|at| if signs >> at & 1 == 1 { 1.0 } else { -1.0 }).collect();
        let part = squared_products(&network, input.clone(), |scores| Ok(curvature_factor(scores, &signs))).unwrap();
        traces.iter_mut().zip(part).for_each(|(t, p)| *t += p / 32.0);
    }
    close(&traces, &exact_traces(&graph, &input, LABEL));
    close(&traces, &exact_traces(&graph, &input, LABEL + 1));
}

fn gradient_squares(network: &Network<f64>, input: &[f64], label: usize) -> Vec<f64> {
    squared_products(network, input.to_vec(), |scores| Ok(loss_adjoint(&[scores.to_vec()], label))).unwrap()
}

fn settings(metric: Metric, estimator: Estimator) -> Settings<'static> {
    let choices = vec![LayerBits::both(8), LayerBits::both(4)];
    Settings { metric, estimator, choices, seed: 11, calibration: None }
}

/// Random signs, in f32, as users meet them: within five standard errors, and these are a tenth of all traces at most.
#[test]
fn estimates_agree_with_the_exact_trace_within_their_errors() {
    let graph = every_operator(3);
    let input = tensor(5, &[1, 3, 8, 8]);
    let doubles: Vec<f64> = input.f32s().unwrap().iter().map(|&v| v.into()).collect();
    let exact = exact_traces(&graph, &doubles, LABEL);
    let total: f64 = exact.iter().sum();
    for (estimator, rounds) in [(Estimator::Weights, 3000), (Estimator::Scores, 300)] {
        let measurement = Measurement::new(&graph, &settings(Metric::Hessian, estimator)).unwrap();
        let run = measurement.run("m", "d", true, [1, rounds]);
        let records: Vec<_> = run.tasks().map(|task| measurement.measure(task, &input, Some(LABEL)).unwrap()).collect();
        let found = run.assemble(measurement.layers().to_vec(), &records).unwrap();
        assert_eq!((found.samples, found.probes), (1, rounds as u64));
        for (layer, exact) in found.layers.iter().zip(&exact) {
            let parameters = layer.parameters as f64;
            let (trace, stderr) = (layer.trace.unwrap() * parameters, layer.trace_stderr.unwrap() * parameters);
            assert!((trace - exact).abs() <= 5.0 * stderr, "{}: {trace} +- {stderr}, exact {exact}", layer.name);
            assert!(stderr < 0.1 * total, "{}: {trace} +- {stderr}", layer.name);
            assert_eq!(layer.cost["w4a4"], layer.trace.unwrap().max(0.0) * layer.perturbation["w4"]);
        }
    }
}

#[test]
fn fisher_is_the_squared_gradient() {
    let graph = every_operator(3);
    let network = Network::<f64>::new(&graph).unwrap();
    let input = doubles(5, network.lengths[network.input]);
    let squares = gradient_squares(&network, &input, LABEL);
    for (layer, square) in squares.iter().enumerate() {
        let mut expected = 0.0;
        for at in 0..network.layers[layer].wei.len() {
            let mut unit: Vec<Vec<f64>> = network.layers.iter().map(|l| vec![0.0; l.wei.len()]).collect();
            unit[layer][at] = 1.0;
            let at_step = |step| loss(&moved(&graph, &unit, step), &input, LABEL);
            expected += ((at_step(STEP) - at_step(-STEP)) / (2.0 * STEP)).powi(2);
        }
        assert!((square - expected).abs() <= 1e-6 * expected, "{square}, {expected}");
    }
}

/// Drawn labels make the mean of squared gradients the trace of the Fisher information: sum_c p_c |g_c|^2.
#[test]
fn without_labels_fisher_draws_them() {
    let graph = tiny(2);
    let input = tensor(4, &[1, 2, 2, 1]);
    let network = Network::<f64>::new(&graph).unwrap();
    let doubles: Vec<f64> = input.f32s().unwrap().iter().map(|&v| v.into()).collect();
    let probability = |label| (-loss(&network, &doubles, label)).exp();
    let expected = (0..3).fold([0.0; 2], |sum: [f64; 2], label| {
        let squares = gradient_squares(&network, &doubles, label);
        [0, 1].map(|l| sum[l] + probability(label) * squares[l])
    });
    let measurement = Measurement::new(&graph, &settings(Metric::Fisher, Estimator::Scores)).unwrap();
    let run = measurement.run("m", "d", false, [1, 2000]);
    let records: Vec<_> = run.tasks().map(|task| measurement.measure(task, &input, None).unwrap()).collect();
    let found = run.assemble(measurement.layers().to_vec(), &records).unwrap();
    for (layer, expected) in found.layers.iter().zip(expected) {
        let parameters = layer.parameters as f64;
        let (trace, stderr) = (layer.trace.unwrap() * parameters, layer.trace_stderr.unwrap() * parameters);
        assert!((trace - expected).abs() <= 5.0 * stderr && stderr < 0.1 * expected, "{trace} +- {stderr}, {expected}");
    }
}

#[test]
fn bad_samples_are_named() {
    let measurement = Measurement::new(&every_operator(3), &settings(Metric::Hessian, Estimator::Weights)).unwrap();
    let task = Task { number: 4, sample: 4, round: 0 };
    let refused = |input: &Tensor, label| measurement.measure(task, input, label).unwrap_err().to_string();
    let input = tensor(5, &[1, 3, 8, 8]);
    assert!(refused(&input, Some(5)).contains("sample 4: label 5 is beyond the network's 5 classes"));
    assert!(refused(&tensor(5, &[1, 3, 8, 7]), None).contains("expected 192 values, found 168"));
    let mut values = input.f32s().unwrap().to_vec();
    values[7] = f32::NAN;
    let message = refused(&Tensor::from_f32([1, 3, 8, 8], values).unwrap(), None);
    assert!(message.contains("sample 4: the input is NaN"), "{message}");
    let mut net = Net::new(1);
    let x = net.input(&[1, 1, 1, 4]);
    let wei = net.constant(&[3, 1, 1, 4], 1e3);
    let x = net.graph.add("fc", Conv::unit(), &[x, wei]).unwrap();
    net.output(x);
    let overflowing = Measurement::new(&net.graph, &settings(Metric::Hessian, Estimator::Weights)).unwrap();
    let huge = Tensor::from_f32([1, 1, 1, 4], vec![f32::MAX; 4]).unwrap();
    let message = overflowing.measure(task, &huge, None).unwrap_err().to_string();
    assert!(message.contains("sample 4: a score is "), "{message}");
}
