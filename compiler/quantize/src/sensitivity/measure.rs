//! Measuring one sample: a [`Record`] of traces, or of how far the outputs move.
//!
//! Traces are Hutchinson's: for random signs `v` the mean of `v'Hv` is the trace of H. There are two ways to it.
//!
//! * [`Estimator::Weights`]: signs over all weights, and exact Hessian-vector products. One vector moves all layers at once,
//!   and layer l takes `v_l'(Hv)_l`; what other layers add to it has mean zero. The signs of a layer are scaled by the
//!   root mean square of its weights (and the result scaled back), so that layers whose weights are small do not drown
//!   in the noise of those whose weights are large.
//! * [`Estimator::Scores`]: signs over the scores. Between kinks of clamps and maxima the scores are linear in the weights of
//!   any one layer, so that its block of the Hessian is exactly `J'AJ`: J the scores' derivative by the layer's weights, A that
//!   of the loss by the scores, twice: `diag(p) - pp'`, whatever the label. With `A = BB'`, `B = diag(sqrt p) - p sqrt(p)'`,
//!   the mean of `|J'Bu|^2` over signs u is the trace: one backward pass, no noise from other layers, never negative.

use hawqc_ir::{Graph, Tensor};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::derivative::{Keep, loss_adjoint, softmax};
use super::error::SensitivityError;
use super::file::{LayerSensitivity, Metric, choice_name, width_name};
use super::lanes::Lanes;
use super::network::Network;
use super::output::Perturbations;
use super::records::{Estimator, Record, RunHead, Task};
use super::scalar::Scalar;
use crate::calibrate::{Calibration, Method};
use crate::error::QuantizeError;
use crate::plan::{LayerBits, PrecisionPlan, RESIDUAL_BITS};
use crate::weights::weight_errors;

/// What is measured, and how.
#[derive(Clone, Debug)]
pub struct Settings<'a> {
    pub metric: Metric,
    /// Of [`Metric::Hessian`].
    pub estimator: Estimator,
    /// Width choices that costs are given for.
    pub choices: Vec<LayerBits>,
    pub seed: u64,
    /// Needed by [`Metric::Output`]: scales of activations, and how they are chosen.
    pub calibration: Option<(&'a Calibration, Method)>,
}

/// A network ready to be measured; samples may be measured in parallel.
pub struct Measurement {
    network: Network<f32>,
    layers: Vec<LayerSensitivity>,
    metric: Metric,
    estimator: Estimator,
    choices: Vec<String>,
    seed: u64,
    perturbations: Option<Perturbations>,
}

impl Measurement {
    /// Prepares a folded float graph.
    ///
    /// # Errors
    /// What has no derivative; no calibration where one is needed; no choices.
    pub fn new(graph: &Graph, settings: &Settings<'_>) -> Result<Measurement, SensitivityError> {
        let network = Network::new(graph)?;
        let mut choices: Vec<LayerBits> = Vec::new();
        settings.choices.iter().for_each(|c| {
            if !choices.contains(c) {
                choices.push(*c)
            }
        });
        if choices.is_empty() {
            return Err(SensitivityError::Choice(String::new()));
        }
        let layers = untouched_layers(graph, &network, &choices)?;
        let perturbations = match (settings.metric, settings.calibration) {
            (Metric::Output, Some((calibration, method))) => {
                Some(Perturbations::new(graph, &network, &choices, calibration, method)?)
            }
            (Metric::Output, None) => {
                let missing = QuantizeError::NotCalibrated { node: "network".into(), value: "any".into() };
                return Err(missing.into());
            }
            _ => None,
        };
        let choices = choices.into_iter().map(choice_name).collect();
        let &Settings { metric, estimator, seed, .. } = settings;
        Ok(Measurement { network, layers, metric, estimator, choices, seed, perturbations })
    }

    /// The head of a run over `samples` inputs with `rounds` random vectors each (one where nothing is random).
    pub fn run(&self, model_hash: &str, data: &str, labelled: bool, [samples, rounds]: [usize; 2]) -> RunHead {
        let (random, label_counts) = match (self.metric, self.estimator) {
            (Metric::Hessian, Estimator::Weights) => (true, true),
            (Metric::Hessian, Estimator::Scores) => (true, false),
            (Metric::Fisher, _) => (!labelled, true),
            (Metric::Output, _) => (false, false),
        };
        RunHead {
            model_hash: model_hash.into(),
            metric: self.metric,
            seed: self.seed,
            data: data.into(),
            estimator: (self.metric == Metric::Hessian).then_some(self.estimator),
            labelled: labelled && label_counts,
            samples,
            rounds: if random { rounds } else { 1 },
            choices: self.choices.clone(),
            layers: self.layers.len(),
            shard: [0, 1],
        }
    }

    /// The layers with what is known before measuring.
    pub fn layers(&self) -> &[LayerSensitivity] {
        &self.layers
    }

    /// Measures one sample.
    ///
    /// Without a label the loss is that of the class predicted; for the Fisher information that of a class drawn with the
    /// probabilities predicted.
    ///
    /// # Errors
    /// An input of another type, a label beyond the classes, values that are not finite.
    pub fn measure(&self, task: Task, input: &Tensor, label: Option<usize>) -> Result<Record, SensitivityError> {
        let input = self.checked_input(task, input)?;
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(task.number as u64);
        let values = match self.metric {
            Metric::Hessian if self.estimator == Estimator::Scores => {
                let signs: Vec<f64> =
                    (0..self.network.classes()).map(|_| if rng.random() { 1.0 } else { -1.0 }).collect();
                squared_products(&self.network, input, |scores| {
                    pick(task, scores, label)?;
                    Ok(curvature_factor(scores, &signs))
                })?
            }
            Metric::Hessian => {
                let (direction, scales) = direction(&self.network, &mut rng);
                let traces = hessian_traces(&self.network, input, &direction, |scores| pick(task, scores, label))?;
                traces.iter().zip(scales).map(|(t, scale)| t / (scale * scale)).collect()
            }
            Metric::Fisher => squared_products(&self.network, input, |scores| {
                let label = label.unwrap_or_else(|| draw(scores, &mut rng));
                let label = pick(task, scores, Some(label))?;
                Ok(loss_adjoint(&[scores.to_vec()], label))
            })?,
            Metric::Output => self.perturbations.as_ref().map_or_else(Vec::new, |p| p.measure(&self.network, input)),
        };
        match values.iter().find(|v| !v.is_finite()) {
            None => Ok(Record { task: task.number, values }),
            Some(&found) => Err(SensitivityError::NotFinite { sample: task.sample, what: "the sensitivity", found }),
        }
    }

    fn checked_input(&self, task: Task, input: &Tensor) -> Result<Vec<f32>, SensitivityError> {
        let values = input.f32s().map_err(|e| QuantizeError::at("input", "input", e))?;
        let expected = self.network.lengths[self.network.input];
        if values.len() != expected {
            let message = format!("expected {expected} values, found {}", values.len());
            return Err(QuantizeError::Unsupported { node: "input".into(), op: "input".into(), message }.into());
        }
        match values.iter().find(|v| !v.is_finite()) {
            None => Ok(values.to_vec()),
            Some(&v) => Err(SensitivityError::NotFinite { sample: task.sample, what: "the input", found: v.into() }),
        }
    }
}

/// Every layer with its size and the squared errors of its weights.
fn untouched_layers(
    graph: &Graph,
    network: &Network<f32>,
    choices: &[LayerBits],
) -> Result<Vec<LayerSensitivity>, SensitivityError> {
    let line = |layer: &super::network::Layer<f32>| LayerSensitivity {
        name: layer.name.clone(),
        parameters: layer.wei.len() as u64,
        macs: layer.macs,
        trace: None,
        trace_stderr: None,
        perturbation: Default::default(),
        cost: Default::default(),
        cost_stderr: Default::default(),
        sqnr_db: Default::default(),
    };
    let mut layers: Vec<LayerSensitivity> = network.layers.iter().map(line).collect();
    let mut widths: Vec<u8> = choices.iter().map(|c| c.weights).collect();
    widths.sort_unstable();
    widths.dedup();
    for bits in widths {
        let everywhere = layers.iter().map(|l| (l.name.clone(), LayerBits::both(bits))).collect();
        let plan = PrecisionPlan::new(everywhere, RESIDUAL_BITS, "")?;
        for (layer, error) in layers.iter_mut().zip(weight_errors(graph, &plan)?) {
            layer.perturbation.insert(width_name(bits), error);
        }
    }
    Ok(layers)
}

/// The class whose loss is meant: the label, or the one of the highest score.
fn pick<T: Scalar>(task: Task, scores: &[T], label: Option<usize>) -> Result<usize, SensitivityError> {
    let (sample, classes) = (task.sample, scores.len());
    if let Some(found) = scores.iter().map(|&s| s.into()).find(|s: &f64| !s.is_finite()) {
        return Err(SensitivityError::NotFinite { sample, what: "a score", found });
    }
    match label {
        Some(label) if label < classes => Ok(label),
        Some(label) => Err(SensitivityError::Label { sample, label, classes }),
        None => Ok((1..classes).fold(0, |best, i| if scores[i] > scores[best] { i } else { best })),
    }
}

/// A class with the probabilities of the scores.
fn draw(scores: &[f32], rng: &mut impl Rng) -> usize {
    let p = softmax(scores);
    let mut left: f64 = rng.random();
    p.iter()
        .position(|p| {
            left -= p;
            left < 0.0
        })
        .unwrap_or(p.len().saturating_sub(1))
}

/// Random signs for every weight, and the scale of each layer's.
fn direction(network: &Network<f32>, rng: &mut impl Rng) -> (Vec<Vec<f32>>, Vec<f64>) {
    let mut scales = Vec::with_capacity(network.layers.len());
    let mut signs = Vec::with_capacity(network.layers.len());
    for layer in &network.layers {
        let squares: f64 = layer.wei.iter().map(|&w| f64::from(w).powi(2)).sum();
        let scale = match (squares / layer.wei.len() as f64).sqrt() as f32 {
            s if s > f32::MIN_POSITIVE => s,
            _ => 1.0,
        };
        let mut of_layer = Vec::with_capacity(layer.wei.len());
        while of_layer.len() < layer.wei.len() {
            let bits = rng.next_u64();
            let count = (layer.wei.len() - of_layer.len()).min(64);
            of_layer.extend((0..count).map(|i| if bits >> i & 1 == 1 { scale } else { -scale }));
        }
        scales.push(f64::from(scale));
        signs.push(of_layer);
    }
    (signs, scales)
}

/// For each layer `v_l'(Hv)_l`.
pub(super) fn hessian_traces<T: Scalar>(
    network: &Network<T>,
    input: Vec<T>,
    direction: &[Vec<T>],
    label: impl FnOnce(&[T]) -> Result<usize, SensitivityError>,
) -> Result<Vec<f64>, SensitivityError> {
    let mut traces = vec![0.0; network.layers.len()];
    let tape = network.forward(input, Some(direction), Keep::ForBackward);
    let scores = network.scores(&tape);
    let adjoint = loss_adjoint(scores, label(&scores[0])?);
    network.backward(&tape, adjoint, |layer, product| traces[layer] = dot(&direction[layer], &product));
    Ok(traces)
}

/// For each layer the squared norm of what `adjoint` of the scores means for its weights: of the gradient, if it is that of
/// the loss.
pub(super) fn squared_products<T: Scalar>(
    network: &Network<T>,
    input: Vec<T>,
    adjoint: impl FnOnce(&[T]) -> Result<Lanes<T>, SensitivityError>,
) -> Result<Vec<f64>, SensitivityError> {
    let mut squares = vec![0.0; network.layers.len()];
    let tape = network.forward(input, None, Keep::ForBackward);
    let adjoint = adjoint(&network.scores(&tape)[0])?;
    network.backward(&tape, adjoint, |layer, product| squares[layer] = dot(&product, &product));
    Ok(squares)
}

/// `Bu` for signs u, see the module's documentation.
pub(super) fn curvature_factor<T: Scalar>(scores: &[T], signs: &[f64]) -> Lanes<T> {
    let p = softmax(scores);
    let mean: f64 = p.iter().zip(signs).map(|(p, u)| p.sqrt() * u).sum();
    vec![p.iter().zip(signs).map(|(p, u)| T::from_f64(p.sqrt() * u - p * mean)).collect()]
}

fn dot<T: Scalar>(a: &[T], b: &[T]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| -> f64 { a.into() * b.into() }).sum()
}
