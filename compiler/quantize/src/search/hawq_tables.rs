//! HAWQ-V3's published tables: Hessian traces, rounding errors and latencies, per layer of ResNet-18 and ResNet-50.
//!
//! The bundled file (`data/hawq_ilp_tables.json`, MIT License, (c) Zhen Dong) has the form that
//! [`HawqTables::from_json`] reads, so that other tables can be given in it.

use std::collections::BTreeMap;

use hawqc_ir::Graph;
use hawqc_schedules::latency::{LatencyTable, LayerLatency, Timing};
use serde::Deserialize;

use super::problem::{Choice, Layer, Limit, Problem};
use super::tables::Costs;
use crate::error::QuantizeError;
use crate::hawq;
use crate::plan::quantizable_layers;

const DATA: &str = include_str!("../../data/hawq_ilp_tables.json");
const FILE: &str = "HAWQ tables";

/// Tables by network.
#[derive(Clone, Debug, Deserialize)]
pub struct HawqTables {
    pub networks: BTreeMap<String, HawqNetwork>,
}

/// The tables of one network. The first convolution and the classifier are not among the layers.
#[derive(Clone, Debug, Deserialize)]
pub struct HawqNetwork {
    pub layers: Vec<HawqLayer>,
    /// Layers that must have the same width, by name.
    #[serde(default)]
    pub equal_bits: Vec<[String; 2]>,
    /// Published weight bits by setting, such as `bops_0.5`, in the order of the layers.
    #[serde(default)]
    pub configurations: BTreeMap<String, Vec<u8>>,
}

/// What HAWQ publishes of one layer.
#[derive(Clone, Debug, Deserialize)]
pub struct HawqLayer {
    /// Name of the module, such as `stage1.unit1.quant_convbn1`.
    pub name: String,
    /// Trace divided by the number of parameters.
    pub hessian_trace: f64,
    /// Squared norm of the rounding error of the weights.
    pub delta_w8_sq: f64,
    pub delta_w4_sq: f64,
    pub parameters: u64,
    pub macs: u64,
    pub latency_int8_ms: f64,
    pub latency_int4_ms: f64,
}

/// What HAWQ limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HawqLimit {
    ModelSize,
    Bops,
    Latency,
}

impl HawqLayer {
    fn cost(&self, bits: u8) -> f64 {
        self.hessian_trace * if bits == 8 { self.delta_w8_sq } else { self.delta_w4_sq }
    }

    fn ms(&self, bits: u8) -> f64 {
        if bits == 8 { self.latency_int8_ms } else { self.latency_int4_ms }
    }

    fn used(&self, limit: HawqLimit, bits: u8) -> f64 {
        let width = f64::from(bits);
        match limit {
            HawqLimit::ModelSize => self.parameters as f64 * width / 8.0,
            HawqLimit::Bops => self.macs as f64 * width * width,
            HawqLimit::Latency => self.ms(bits),
        }
    }
}

impl HawqTables {
    pub fn from_json(text: &str) -> Result<HawqTables, QuantizeError> {
        serde_json::from_str(text).map_err(|e| QuantizeError::File { file: FILE, message: e.to_string() })
    }

    /// The published tables, of `resnet18` and `resnet50`.
    pub fn published() -> Result<HawqTables, QuantizeError> {
        HawqTables::from_json(DATA)
    }

    /// The tables of the one network that has a counterpart for every layer of `graph`, and those names.
    ///
    /// # Errors
    /// None of the networks fits.
    pub fn of<'t>(&'t self, graph: &Graph) -> Result<Fitted<'t>, QuantizeError> {
        let inner = quantizable_layers(graph).len().saturating_sub(2);
        let fit = |network: &'t HawqNetwork| {
            let modules: Vec<&str> = network.layers.iter().map(|l| l.name.as_str()).collect();
            let names = hawq::layers_of(graph, &modules).ok().filter(|names| names.len() == inner)?;
            Some(Fitted { network, names })
        };
        self.networks.values().find_map(fit).ok_or_else(|| {
            let known: Vec<&str> = self.networks.keys().map(String::as_str).collect();
            let message = format!("none of the networks {} has this network's structure", known.join(", "));
            QuantizeError::File { file: FILE, message }
        })
    }
}

/// Tables with the names of a network's own layers.
pub struct Fitted<'t> {
    network: &'t HawqNetwork,
    names: Vec<String>,
}

impl Fitted<'_> {
    /// Trace times squared rounding error. The layers that HAWQ leaves out, the first and the last, cost nothing.
    pub fn costs(&self, graph: &Graph) -> Costs {
        let eight_only = |(_, name)| (name, [("w8a8".to_string(), 0.0)].into());
        let mut layers: BTreeMap<String, BTreeMap<String, f64>> =
            quantizable_layers(graph).into_iter().map(eight_only).collect();
        for (name, layer) in self.names.iter().zip(&self.network.layers) {
            let costs = [8, 4].map(|bits| (format!("w{bits}a{bits}"), layer.cost(bits)));
            layers.insert(name.clone(), costs.into());
        }
        Costs { metric: "hessian".into(), layers }
    }

    /// The latencies on the T4; the first and the last layer take no time.
    pub fn latencies(&self, graph: &Graph) -> LatencyTable {
        let time = |name: &String| match self.names.iter().position(|n| n == name) {
            Some(i) => {
                let layer = &self.network.layers[i];
                [8, 4].map(|bits| (format!("w{bits}a{bits}"), Timing::given(layer.ms(bits) * 1e6))).into()
            }
            None => [("w8a8".to_string(), Timing::given(0.0))].into(),
        };
        let layers = quantizable_layers(graph).into_iter();
        LatencyTable {
            machine: "NVIDIA T4".into(),
            target: "as published by HAWQ".into(),
            threads: 1,
            model_hash: String::new(),
            fixed_ns: 0.0,
            layers: layers.map(|(_, name)| LayerLatency { choices: time(&name), name }).collect(),
            seams: Vec::new(),
        }
    }

    /// Layers that must have the same width.
    pub fn ties(&self) -> Vec<[String; 2]> {
        let index = |name: &String| self.network.layers.iter().position(|l| l.name == *name);
        let named = |name: &String| index(name).map(|i| self.names[i].clone());
        self.network.equal_bits.iter().filter_map(|[a, b]| Some([named(a)?, named(b)?])).collect()
    }
}

impl HawqNetwork {
    /// HAWQ's own problem: layers at 8 or 4 bits, ties, and one limit at `share` of the way from all 4 to all 8 bits.
    pub fn problem(&self, limit: HawqLimit, share: f64) -> Problem {
        let all = |bits: u8| self.layers.iter().map(|l| l.used(limit, bits)).sum::<f64>();
        let choice = |layer: &HawqLayer, bits: u8| Choice {
            label: format!("w{bits}a{bits}"),
            cost: layer.cost(bits),
            uses: vec![layer.used(limit, bits)],
        };
        let layer = |l: &HawqLayer| Layer { name: l.name.clone(), choices: [8, 4].map(|bits| choice(l, bits)).into() };
        let index = |name: &String| self.layers.iter().position(|l| l.name == *name);
        let most = all(4) + share * (all(8) - all(4));
        Problem {
            layers: self.layers.iter().map(layer).collect(),
            limits: vec![Limit { name: format!("{limit:?}"), fixed: 0.0, most }],
            ties: self.equal_bits.iter().filter_map(|[a, b]| Some([index(a)?, index(b)?])).collect(),
            seams: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::{SearchOptions, solve};

    /// HAWQ publishes the optimum in 17 of 18 settings; ResNet-50 at size 0.25 could keep one more layer at 8 bits.
    #[test]
    fn published_configurations_are_reproduced() {
        let tables = HawqTables::published().unwrap();
        let mut settings = 0;
        let mut others = Vec::new();
        for (name, network) in &tables.networks {
            for (limit, key) in
                [(HawqLimit::ModelSize, "modelsize"), (HawqLimit::Bops, "bops"), (HawqLimit::Latency, "latency")]
            {
                for share in [0.75, 0.5, 0.25] {
                    settings += 1;
                    let problem = network.problem(limit, share);
                    let report = solve(&problem, SearchOptions::default()).unwrap();
                    assert!(report.proven && report.relaxed <= report.best[0].cost);
                    let bits = |choices: &[usize]| choices.iter().map(|&c| [8, 4][c]).collect::<Vec<u8>>();
                    let published = &network.configurations[&format!("{key}_{share}")];
                    let found = bits(&report.best[0].choices);
                    if found != *published {
                        let choices: Vec<usize> = published.iter().map(|&b| usize::from(b == 4)).collect();
                        let theirs = problem.evaluate(&choices);
                        assert!(theirs.uses[0] <= problem.limits[0].most);
                        assert!(report.best[0].cost < theirs.cost);
                        let differing = (0..found.len()).filter(|&i| found[i] != published[i]);
                        let named = differing.map(|i| (network.layers[i].name.as_str(), found[i])).collect::<Vec<_>>();
                        others.push((format!("{name} {key} {share}"), named));
                    }
                }
            }
        }
        assert_eq!(settings, 18);
        assert_eq!(others, [("resnet50 modelsize 0.25".to_string(), vec![("stage3.unit6.quant_convbn1", 8)])]);
    }
}
