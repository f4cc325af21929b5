//! The problem in plain numbers, and what can be said about it.

use thiserror::Error;

/// One way to run a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// What the choice is called; tied layers agree on it.
    pub label: String,
    /// What it adds to the objective.
    pub cost: f64,
    /// What it adds to each limited sum, in the order of [`Problem::limits`].
    pub uses: Vec<f64>,
}

/// A layer and its choices.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    pub name: String,
    pub choices: Vec<Choice>,
}

/// A sum that must not exceed `most`.
#[derive(Clone, Debug, PartialEq)]
pub struct Limit {
    pub name: String,
    /// Part of the sum that no choice changes.
    pub fixed: f64,
    pub most: f64,
}

/// What two choices, made together, add to a limited sum.
#[derive(Clone, Debug, PartialEq)]
pub struct SeamCost {
    /// Two different layers, by index.
    pub layers: [usize; 2],
    /// The choices of these layers, by index.
    pub choices: [usize; 2],
    /// Which limited sum.
    pub limit: usize,
    pub extra: f64,
}

/// One choice for each layer, so that the sum of costs is least and every limit is met.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Problem {
    pub layers: Vec<Layer>,
    pub limits: Vec<Limit>,
    /// Pairs of layers that must make the choice of the same label.
    pub ties: Vec<[usize; 2]>,
    pub seams: Vec<SeamCost>,
}

/// An assignment that meets every limit.
#[derive(Clone, Debug, PartialEq)]
pub struct Solution {
    /// For every layer the index of its choice.
    pub choices: Vec<usize>,
    pub cost: f64,
    /// The limited sums, the fixed part included.
    pub uses: Vec<f64>,
}

/// Why no assignment was found.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum SearchError {
    /// Layers that are tied have no choice in common.
    #[error("tied layers {} have no choice in common", quoted(layers))]
    NoCommonChoice { layers: Vec<String> },
    /// Something in the problem is not a number or points nowhere.
    #[error("{0}")]
    Malformed(String),
    /// The limits cannot be met.
    #[error("{0}")]
    Infeasible(Infeasible),
    /// Neither an assignment nor a proof that there is none was found within the number of steps.
    #[error("no plan found in {steps} steps, and no proof that there is none; relax a limit")]
    Unsettled { steps: u64 },
}

/// Which limit cannot be met, and what could be reached.
#[derive(Clone, Debug, PartialEq)]
pub struct Infeasible {
    /// The limit, by name.
    pub limit: String,
    /// What it asks for.
    pub most: f64,
    /// The least value that the sum takes while the limits of `with` are kept.
    pub least: f64,
    /// The other limits without which this one could be met; empty if it cannot be met at all.
    pub with: Vec<String>,
}

impl std::fmt::Display for Infeasible {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Infeasible { limit, most, least, with } = self;
        write!(f, "limit `{limit}` of {most} cannot be met: the least reachable is {least}")?;
        if with.is_empty() { Ok(()) } else { write!(f, " under the limits {}", quoted(with)) }
    }
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")
}

impl Problem {
    /// Costs and limited sums of an assignment.
    pub fn evaluate(&self, choices: &[usize]) -> Solution {
        let chosen = |layer: usize| &self.layers[layer].choices[choices[layer]];
        let cost = (0..self.layers.len()).map(|l| chosen(l).cost).sum();
        let sum = |(d, limit): (usize, &Limit)| {
            let layers: f64 = (0..self.layers.len()).map(|l| chosen(l).uses[d]).sum();
            let holds = |s: &&SeamCost| s.limit == d && (0..2).all(|i| choices[s.layers[i]] == s.choices[i]);
            limit.fixed + layers + self.seams.iter().filter(holds).map(|s| s.extra).sum::<f64>()
        };
        let uses = self.limits.iter().enumerate().map(sum).collect();
        Solution { choices: choices.to_vec(), cost, uses }
    }

    /// Checks that numbers are finite and indices in range.
    pub(super) fn check(&self) -> Result<(), SearchError> {
        let malformed = |message: String| Err(SearchError::Malformed(message));
        for layer in &self.layers {
            let name = &layer.name;
            if layer.choices.is_empty() {
                return malformed(format!("layer `{name}` has no choice"));
            }
            for choice in &layer.choices {
                if choice.uses.len() != self.limits.len() {
                    return malformed(format!("layer `{name}`, {}: a use for each limit is needed", choice.label));
                }
                if !choice.cost.is_finite() || choice.uses.iter().any(|u| !u.is_finite()) {
                    return malformed(format!("layer `{name}`, {}: a number is not finite", choice.label));
                }
            }
        }
        if let Some(limit) = self.limits.iter().find(|l| !l.fixed.is_finite() || l.most.is_nan()) {
            return malformed(format!("limit `{}` is not a number", limit.name));
        }
        let known = |layer: usize, choice: usize| self.layers.get(layer).is_some_and(|l| choice < l.choices.len());
        if self.ties.iter().flatten().any(|&l| l >= self.layers.len()) {
            return malformed("a tie names a layer that there is none of".into());
        }
        let sound = |s: &SeamCost| {
            let ends = (0..2).all(|i| known(s.layers[i], s.choices[i])) && s.layers[0] != s.layers[1];
            ends && s.limit < self.limits.len() && s.extra.is_finite()
        };
        if self.seams.iter().all(sound) { Ok(()) } else { malformed("a seam is malformed".into()) }
    }
}
