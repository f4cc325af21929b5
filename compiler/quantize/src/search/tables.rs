//! What a choice of widths costs each layer: as `sens.json` has it, or from the rounding of weights alone.

use std::collections::BTreeMap;

use hawqc_ir::Graph;

use crate::error::QuantizeError;
use crate::plan::{LayerBits, PrecisionPlan, quantizable_layers};
use crate::sensitivity::{Sensitivities, choice_name};
use crate::weights::weight_errors;

/// Costs by layer and choice of widths.
#[derive(Clone, Debug, PartialEq)]
pub struct Costs {
    /// What the costs measure.
    pub metric: String,
    pub layers: BTreeMap<String, BTreeMap<String, f64>>,
}

impl From<Sensitivities> for Costs {
    fn from(found: Sensitivities) -> Costs {
        let layers = found.layers.into_iter().map(|l| (l.name, l.cost)).collect();
        Costs { metric: found.metric.to_string(), layers }
    }
}

impl Costs {
    /// Squared rounding error of the weights at each of the choices, which knows neither data nor activations.
    pub fn of_weights(graph: &Graph, choices: &[LayerBits]) -> Result<Costs, QuantizeError> {
        let names: Vec<String> = quantizable_layers(graph).into_iter().map(|(_, name)| name).collect();
        let mut layers: BTreeMap<String, BTreeMap<String, f64>> =
            names.iter().map(|n| (n.clone(), BTreeMap::new())).collect();
        for &bits in choices {
            let uniform = names.iter().map(|n| (n.clone(), bits)).collect();
            let errors = weight_errors(graph, &PrecisionPlan::new(uniform, 16, "")?)?;
            for (name, error) in names.iter().zip(errors) {
                layers.entry(name.clone()).or_default().insert(choice_name(bits), error);
            }
        }
        Ok(Costs { metric: "weights".into(), layers })
    }
}
