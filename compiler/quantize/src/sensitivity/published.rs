//! HAWQ-V3's published sensitivities, for a network of the same structure.
//!
//! A table names modules as HAWQ does (`stage1.unit1.quant_convbn1`), each with its average Hessian trace and the
//! squared errors of its weights at 8 and at 4 bits; modules are placed as [`crate::hawq`] describes. Numbers are taken
//! as they are. The first convolution and the classifier are not in the tables: HAWQ keeps them at 8 bits, and so
//! w8a8, at no cost, is the only choice they get.

use std::collections::BTreeMap;

use hawqc_ir::Graph;
use serde::Deserialize;

use super::error::SensitivityError;
use super::file::{LayerSensitivity, Metric, Sensitivities, choice_name, width_name};
use super::network::{Layer, Network};
use crate::hawq;
use crate::plan::LayerBits;

/// The published tables (MIT License, (c) Zhen Dong).
pub const TABLES: &str = include_str!("../../data/hawq_traces.json");
/// The published widths; w4a8 costs what w4a4 does, for the cost is the weights'.
const CHOICES: [LayerBits; 3] = [
    LayerBits { weights: 8, activations: 8 },
    LayerBits { weights: 4, activations: 4 },
    LayerBits { weights: 4, activations: 8 },
];

/// A file of tables: fields beyond these are ignored.
#[derive(Deserialize)]
struct Tables {
    nets: BTreeMap<String, Table>,
}

#[derive(Deserialize)]
struct Table {
    layers: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    name: String,
    hessian_trace_avg: f64,
    delta_w8_sq: f64,
    delta_w4_sq: f64,
    params: u64,
}

/// The sensitivities that the one of the tables gives which fits the network.
///
/// # Errors
/// A text that is no such table; a network that none fits, with the reason for each.
pub fn import(text: &str, graph: &Graph, model_hash: &str) -> Result<Sensitivities, SensitivityError> {
    let error = |e: serde_json::Error| SensitivityError::Published(e.to_string());
    let tables: Tables = serde_json::from_str(text).map_err(error)?;
    let network = Network::<f32>::new(graph)?;
    let mut reasons = Vec::new();
    for (name, table) in &tables.nets {
        match layers(graph, &network.layers, &table.layers) {
            Ok(layers) => {
                let provenance = format!("HAWQ-V3's published table of {name}");
                return Ok(Sensitivities::new(model_hash, Metric::Hessian, [0, 0], provenance, layers));
            }
            Err(reason) => reasons.push(format!("{name}: {reason}")),
        }
    }
    Err(SensitivityError::Published(format!("none fits the network ({})", reasons.join("; "))))
}

fn layers(graph: &Graph, layers: &[Layer<f32>], rows: &[Row]) -> Result<Vec<LayerSensitivity>, String> {
    let names: Vec<&str> = rows.iter().map(|r| r.name.as_str()).collect();
    let matched = hawq::match_modules(graph, &names).map_err(|e| e.to_string())?;
    layers.iter().zip(matched).map(|(layer, row)| line(layer, row.map(|r| &rows[r]))).collect()
}

fn line(layer: &Layer<f32>, row: Option<&Row>) -> Result<LayerSensitivity, String> {
    let parameters = layer.wei.len() as u64;
    let mut line = LayerSensitivity {
        name: layer.name.clone(),
        parameters,
        macs: layer.macs,
        trace: None,
        trace_stderr: None,
        perturbation: BTreeMap::new(),
        cost: BTreeMap::from([(choice_name(LayerBits::both(8)), 0.0)]),
        cost_stderr: BTreeMap::new(),
        sqnr_db: BTreeMap::new(),
    };
    let Some(row) = row else {
        return Ok(line);
    };
    if row.params != parameters {
        return Err(format!("`{}` has {parameters} weights, `{}` {}", layer.name, row.name, row.params));
    }
    let trace = row.hessian_trace_avg;
    let errors = BTreeMap::from([(width_name(8), row.delta_w8_sq), (width_name(4), row.delta_w4_sq)]);
    if !(trace.is_finite() && errors.values().all(|&e| e >= 0.0 && e.is_finite())) {
        return Err(format!("`{}`: numbers must be finite and errors not negative", row.name));
    }
    let cost = |bits: LayerBits| (choice_name(bits), trace.max(0.0) * errors[&width_name(bits.weights)]);
    line.cost = CHOICES.into_iter().map(cost).collect();
    line.trace = Some(trace);
    line.perturbation = errors;
    Ok(line)
}
