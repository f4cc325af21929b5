//! What a choice of widths costs each layer: read from `sens.json`, or from the rounding of weights alone.

use std::collections::BTreeMap;

use hawqc_ir::Graph;
use serde::Deserialize;

use crate::error::QuantizeError;
use crate::plan::{LayerBits, PrecisionPlan, WIDTHS, quantizable_layers};
use crate::weights::weight_errors;

const FILE: &str = "sens.json";
const SCHEMA: &str = "hawqc.sensitivity";
const VERSION: u32 = 1;

/// Costs by layer and choice of widths.
#[derive(Clone, Debug, PartialEq)]
pub struct Costs {
    /// What the costs measure.
    pub metric: String,
    /// Digest of the network they belong to, if they name one.
    pub model_hash: Option<String>,
    pub layers: BTreeMap<String, BTreeMap<String, f64>>,
}

#[derive(Deserialize)]
struct SensitivityFile {
    schema: String,
    version: u32,
    model_hash: String,
    metric: String,
    layers: Vec<SensitivityLayer>,
}

#[derive(Deserialize)]
struct SensitivityLayer {
    name: String,
    cost: BTreeMap<String, f64>,
}

impl Costs {
    /// Reads `sens.json`.
    pub fn from_json(text: &str) -> Result<Costs, QuantizeError> {
        let error = |message: String| QuantizeError::File { file: FILE, message };
        let file: SensitivityFile = serde_json::from_str(text).map_err(|e| error(e.to_string()))?;
        if file.schema != SCHEMA || file.version != VERSION {
            let found = format!("{} {}", file.schema, file.version);
            return Err(error(format!("schema is {found}; supported is {SCHEMA} {VERSION}")));
        }
        let mut layers = BTreeMap::new();
        for layer in file.layers {
            let bad = layer.cost.iter().find(|(key, cost)| parse_widths(key).is_none() || !cost.is_finite());
            if let Some((key, cost)) = bad {
                return Err(error(format!("layer `{}`: `{key}` of cost {cost} is not a choice of widths", layer.name)));
            }
            if layers.insert(layer.name.clone(), layer.cost).is_some() {
                return Err(error(format!("layer `{}` is given twice", layer.name)));
            }
        }
        Ok(Costs { metric: file.metric, model_hash: Some(file.model_hash), layers })
    }

    /// Squared rounding error of the weights at each of the choices, which knows neither data nor activations.
    pub fn of_weights(graph: &Graph, choices: &[LayerBits]) -> Result<Costs, QuantizeError> {
        let names: Vec<String> = quantizable_layers(graph).into_iter().map(|(_, name)| name).collect();
        let mut layers: BTreeMap<String, BTreeMap<String, f64>> =
            names.iter().map(|n| (n.clone(), BTreeMap::new())).collect();
        for &bits in choices {
            let uniform = names.iter().map(|n| (n.clone(), bits)).collect();
            let errors = weight_errors(graph, &PrecisionPlan::new(uniform, 16, "")?)?;
            for (name, error) in names.iter().zip(errors) {
                layers.entry(name.clone()).or_default().insert(widths(bits), error);
            }
        }
        Ok(Costs { metric: "weights".into(), model_hash: None, layers })
    }

    /// Refuses costs of another network.
    pub fn check_model(&self, expected: &str) -> Result<(), QuantizeError> {
        match &self.model_hash {
            Some(found) if found != expected => {
                let message =
                    format!("belongs to model {found}, this is model {expected}; measure this model's sensitivity");
                Err(QuantizeError::File { file: FILE, message })
            }
            _ => Ok(()),
        }
    }
}

/// `w4a8`.
pub fn widths(bits: LayerBits) -> String {
    format!("w{}a{}", bits.weights, bits.activations)
}

/// Reads `w4a8`.
pub fn parse_widths(text: &str) -> Option<LayerBits> {
    let (weights, activations) = text.strip_prefix('w')?.split_once('a')?;
    let number = |t: &str| t.parse::<u8>().ok().filter(|b| WIDTHS.contains(b) && t.len() == 1);
    Some(LayerBits { weights: number(weights)?, activations: number(activations)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_and_checked() {
        let text = r#"{"schema": "hawqc.sensitivity", "version": 1, "model_hash": "ab", "metric": "fisher", "samples": 8,
            "layers": [{"name": "a", "parameters": 3, "cost": {"w8a8": 0.5, "w4a4": 2}}]}"#;
        let costs = Costs::from_json(text).unwrap();
        assert_eq!((costs.metric.as_str(), costs.layers["a"]["w4a4"]), ("fisher", 2.0));
        assert!(costs.check_model("ab").is_ok());
        assert!(costs.check_model("cd").unwrap_err().to_string().contains("belongs to model ab"));
        for (from, to, message) in [
            ("hawqc.sensitivity", "hawqc.latency", "schema is hawqc.latency 1"),
            ("\"w4a4\"", "\"w9a4\"", "layer `a`: `w9a4`"),
            ("\"layers\": [", "\"layers\": [{\"name\": \"a\", \"cost\": {}},", "given twice"),
            ("\"metric\"", "\"metrics\"", "metric"),
        ] {
            let error = Costs::from_json(&text.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
