//! How far the outputs move when one layer alone is quantised: its weights, and what it reads.
//!
//! Everything else stays float, so that only what depends on the layer is computed again. Biases are not corrected.

use hawqc_ir::Graph;
use rayon::prelude::*;

use super::derivative::{Keep, softmax};
use super::error::SensitivityError;
use super::lanes::Lanes;
use super::network::{Kind, Network};
use crate::calibrate::{Calibration, Method};
use crate::insert::{ActivationGrid, activation_grids};
use crate::plan::LayerBits;
use crate::weights::QuantizedWeights;

/// The quantised forms of all layers.
pub(super) struct Perturbations {
    choices: Vec<LayerBits>,
    /// Weight widths, each once.
    widths: Vec<u8>,
    /// By layer, then weight width: the weights that the integers stand for.
    weights: Vec<Vec<Vec<f32>>>,
    /// By layer, then choice: the form of what it reads.
    grids: Vec<Vec<ActivationGrid>>,
}

impl Perturbations {
    pub fn new(
        graph: &Graph,
        network: &Network<f32>,
        choices: &[LayerBits],
        calibration: &Calibration,
        method: Method,
    ) -> Result<Perturbations, SensitivityError> {
        let mut widths: Vec<u8> = choices.iter().map(|c| c.weights).collect();
        widths.sort_unstable();
        widths.dedup();
        let weights = network.layers.iter().map(|layer| {
            let channels = vec![0.0; graph.ty(layer.id).shape[3]];
            widths.iter().map(|&b| QuantizedWeights::new(&layer.wei, b, &channels).dequantized()).collect()
        });
        let weights = weights.collect();
        let sources: Vec<_> = network.layers.iter().map(|l| l.src).collect();
        let of_choice = |c: &LayerBits| activation_grids(graph, calibration, &sources, c.activations, method);
        let by_choice = choices.par_iter().map(of_choice).collect::<Result<Vec<_>, _>>()?;
        let grids = (0..sources.len()).map(|l| by_choice.iter().map(|grids| grids[l]).collect()).collect();
        Ok(Perturbations { choices: choices.to_vec(), widths, weights, grids })
    }

    /// The values of a record, see [`Record`](super::records::Record).
    pub fn measure(&self, network: &Network<f32>, input: Vec<f32>) -> Vec<f64> {
        let tape = network.forward(input, None, Keep::All);
        let clean = &network.scores(&tape)[0];
        let mut divergences = Vec::new();
        let mut noises = Vec::new();
        for layer in 0..network.layers.len() {
            for choice in 0..self.choices.len() {
                let moved = self.scores_with(network, &tape.values, layer, choice);
                let moved = moved.as_deref().unwrap_or(clean);
                divergences.push(divergence(&softmax(clean), &softmax(moved)));
                noises.push(clean.iter().zip(moved).map(|(c, m)| f64::from(c - m).powi(2)).sum());
            }
        }
        let signal: f64 = clean.iter().map(|&c| f64::from(c).powi(2)).sum();
        divergences.into_iter().chain(noises).chain([signal]).collect()
    }

    /// The scores with one layer quantised; `None` if they do not depend on it.
    fn scores_with(
        &self,
        network: &Network<f32>,
        clean: &[Option<Lanes<f32>>],
        layer: usize,
        choice: usize,
    ) -> Option<Vec<f32>> {
        let width = self.widths.iter().position(|&w| w == self.choices[choice].weights)?;
        let mut moved: Vec<Option<Lanes<f32>>> = vec![None; clean.len()];
        for step in &network.steps {
            let own = matches!(&step.kind, Kind::Conv { layer: l, .. } if *l == layer);
            if own {
                let grid = self.grids[layer][choice];
                let source: Lanes<f32> = clean[step.args[0]].as_ref()?.iter().map(|l| grid.rounded(l)).collect();
                let (wei, source) = (&self.weights[layer][width], &source);
                moved[step.id] = match &step.kind {
                    Kind::Conv { shape, .. } => {
                        Some(shape.forward(source, &[wei], network.layers[layer].bias.as_deref(), 1))
                    }
                    Kind::Rule(_) => None,
                };
            } else if step.args.iter().any(|&a| moved[a].is_some()) {
                let operand = |id: usize| moved[id].as_ref().or(clean[id].as_ref());
                let value = network.value(step, operand, |l| vec![&network.layers[l].wei]);
                moved[step.id] = value;
            }
            step.dead.iter().for_each(|&dead| {
                if dead != network.logits {
                    moved[dead] = None
                }
            });
        }
        moved[network.logits].take()?.into_iter().next()
    }
}

/// Kullback-Leibler divergence of `q` from `p`, in nats.
fn divergence(p: &[f64], q: &[f64]) -> f64 {
    let term = |(&p, &q): (&f64, &f64)| if p > 0.0 { p * (p / q.max(f64::MIN_POSITIVE)).ln() } else { 0.0 };
    p.iter().zip(q).map(term).sum::<f64>().max(0.0)
}
