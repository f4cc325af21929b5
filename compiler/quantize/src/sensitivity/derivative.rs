//! Derivatives of the loss by the weights: reverse mode on lanes.
//!
//! The loss is the cross-entropy of the scores with one class. With one lane, the backward pass gives its gradient. With a
//! second lane, the derivative along a direction `v` of the weights, everything computed is differentiated on the way:
//! lane 1 of the gradient is the Hessian times `v`, exactly (but for clamps and maxima, which are linear almost
//! everywhere and taken as linear).

use super::lanes::{Lanes, add_lanes};
use super::network::{Kind, Network, Step};
use super::scalar::Scalar;

/// The values of a forward pass that are kept, by index; the direction it was differentiated along.
pub(super) struct Tape<'v, T> {
    pub values: Vec<Option<Lanes<T>>>,
    direction: Option<&'v [Vec<T>]>,
}

/// Which values a forward pass keeps.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    All,
    /// What the backward pass looks at.
    ForBackward,
}

impl<T: Scalar> Network<T> {
    /// Runs the network on an input. `direction` has one tensor of weights for each layer.
    pub fn forward<'v>(&self, input: Vec<T>, direction: Option<&'v [Vec<T>]>, keep: Keep) -> Tape<'v, T> {
        let mut tape = Tape { values: vec![None; self.lengths.len()], direction };
        tape.values[self.input] = Some(vec![input]);
        let mut kept = vec![keep == Keep::All; self.lengths.len()];
        for step in &self.steps {
            let (sources, result) = match &step.kind {
                Kind::Conv { .. } => (true, false),
                Kind::Rule(rule) => (rule.needs_sources(), rule.needs_result()),
            };
            step.args.iter().for_each(|&a| kept[a] |= sources);
            kept[step.id] |= result;
        }
        for step in &self.steps {
            let value = self.value(step, |id| tape.values[id].as_ref(), |layer| tape.weights(self, layer));
            tape.values[step.id] = value;
            for &dead in step.dead.iter().filter(|&&dead| !kept[dead]) {
                tape.values[dead] = None;
            }
        }
        tape
    }

    /// The value of one step. `None` if an operand is missing.
    pub fn value<'a>(
        &'a self,
        step: &Step,
        operand: impl Fn(usize) -> Option<&'a Lanes<T>>,
        weights: impl Fn(usize) -> Vec<&'a [T]>,
    ) -> Option<Lanes<T>> {
        let args: Vec<&Lanes<T>> = step.args.iter().map(|&a| operand(a)).collect::<Option<_>>()?;
        Some(match &step.kind {
            Kind::Conv { shape, layer } => {
                let wei = weights(*layer);
                shape.forward(args[0], &wei, self.layers[*layer].bias.as_deref(), wei.len())
            }
            Kind::Rule(rule) => rule.forward(&args),
        })
    }

    /// Goes back from `adjoint`, that of the scores. `visit(layer, adjoint)` is given the last lane of the adjoint of each
    /// layer's weights.
    pub fn backward(&self, tape: &Tape<'_, T>, adjoint: Lanes<T>, mut visit: impl FnMut(usize, Vec<T>)) {
        let lanes = adjoint.len();
        let mut adjoints: Vec<Option<Lanes<T>>> = vec![None; self.lengths.len()];
        adjoints[self.logits] = Some(adjoint);
        let is_active: Vec<bool> = {
            let mut active = vec![false; self.lengths.len()];
            self.steps.iter().for_each(|s| active[s.id] = s.active);
            active
        };
        for step in self.steps.iter().rev() {
            let Some(adjoint) = adjoints[step.id].take() else {
                continue;
            };
            if let (Kind::Conv { shape, layer }, Some(src)) = (&step.kind, &tape.values[step.args[0]]) {
                visit(*layer, shape.adjoint_of_weights(&adjoint, src, lanes - 1));
            }
            for (position, &arg) in step.args.iter().enumerate().filter(|(_, arg)| is_active[**arg]) {
                let part = match &step.kind {
                    Kind::Conv { shape, layer } => {
                        shape.adjoint_of_source(&adjoint, &tape.weights(self, *layer), lanes)
                    }
                    Kind::Rule(rule) => {
                        let (source, result) = (tape.values[arg].as_ref(), tape.values[step.id].as_ref());
                        rule.adjoint(&adjoint, position, self.lengths[arg], source, result)
                    }
                };
                match &mut adjoints[arg] {
                    Some(sum) => add_lanes(sum, &part),
                    none => *none = Some(part),
                }
            }
        }
    }

    /// The scores of a forward pass.
    pub fn scores<'t>(&self, tape: &'t Tape<'_, T>) -> &'t [Vec<T>] {
        tape.values[self.logits].as_deref().unwrap_or_default()
    }
}

impl<'v, T: Scalar> Tape<'v, T> {
    /// The lanes of a layer's weights.
    fn weights<'a>(&self, network: &'a Network<T>, layer: usize) -> Vec<&'a [T]>
    where
        'v: 'a,
    {
        let direction = self.direction.map(|d| d[layer].as_slice());
        std::iter::once(network.layers[layer].wei.as_slice()).chain(direction).collect()
    }
}

/// Class probabilities of scores.
pub(super) fn softmax<T: Scalar>(scores: &[T]) -> Vec<f64> {
    let scores: Vec<f64> = scores.iter().map(|&s| s.into()).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exps: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.into_iter().map(|e| e / sum).collect()
}

/// The adjoint of the scores for the cross-entropy with class `label`, in as many lanes as the scores have.
pub(super) fn loss_adjoint<T: Scalar>(scores: &[Vec<T>], label: usize) -> Lanes<T> {
    let p = softmax(&scores[0]);
    let first = p.iter().enumerate().map(|(i, p)| T::from_f64(p - f64::from(u8::from(i == label))));
    let mut lanes = vec![first.collect()];
    if let Some(moved) = scores.get(1) {
        let moved: Vec<f64> = moved.iter().map(|&m| m.into()).collect();
        let mean: f64 = p.iter().zip(&moved).map(|(p, m)| p * m).sum();
        lanes.push(p.iter().zip(&moved).map(|(p, m)| T::from_f64(p * (m - mean))).collect());
    }
    lanes
}
