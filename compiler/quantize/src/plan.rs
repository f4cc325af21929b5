//! Precision plans: how many bits every quantisable layer gets.
//!
//! A quantisable layer is a convolution (a dense layer is a 1x1 convolution); a plan names each of them
//! once, in the graph's order. Its activation bits are those of the layer's *input*. The residual
//! stream, the values that meet in additions, has a width of its own.
//!
//! `bits.json` is written in full form, with schema, version and provenance; a plain object from
//! node name to bits is read as well: `{"conv1": 8, "fc": {"weights": 4, "activations": 8}}`.

use std::collections::BTreeMap;

use hawqc_ir::{Graph, Op, ValueId};
use serde::{Deserialize, Serialize};

use crate::calibrate::value_names;
use crate::error::QuantizeError;
use crate::hawq;
use crate::json::Pairs;

const SCHEMA: &str = "hawqc.bits";
const VERSION: u32 = 1;
const FILE: &str = "bits.json";

/// Widths a weight or activation may have.
pub const WIDTHS: std::ops::RangeInclusive<u8> = 2..=8;
/// Width of the residual stream unless told otherwise, as in HAWQ-V3.
pub const RESIDUAL_BITS: u8 = 16;

/// Bits of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerBits {
    /// Of the weights, 2 to 8.
    pub weights: u8,
    /// Of the layer's input, 2 to 8.
    pub activations: u8,
}

impl LayerBits {
    /// The same width for both.
    pub fn both(bits: u8) -> LayerBits {
        LayerBits { weights: bits, activations: bits }
    }
}

/// See the module's documentation. Widths are legal and names do not repeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrecisionPlan {
    layers: Vec<(String, LayerBits)>,
    residual_bits: u8,
    provenance: String,
}

/// The convolutions of a graph, in its order, with their stable names.
pub fn quantizable_layers(graph: &Graph) -> Vec<(ValueId, String)> {
    let live = graph.live();
    let names = value_names(graph);
    let convs = graph.values().filter(|id| live[id.index()] && matches!(graph.op(*id), Op::Conv(_)));
    convs.map(|id| (id, names[id.index()].clone())).collect()
}

impl PrecisionPlan {
    /// A plan from its parts; `provenance` says where it comes from, in words.
    ///
    /// # Errors
    /// A width outside 2..=8, a residual width other than 8 and 16, a repeated name.
    pub fn new(
        layers: Vec<(String, LayerBits)>,
        residual_bits: u8,
        provenance: impl Into<String>,
    ) -> Result<PrecisionPlan, QuantizeError> {
        if residual_bits != 8 && residual_bits != 16 {
            return Err(QuantizeError::Plan(format!("residual_bits is {residual_bits}; 8 and 16 are supported")));
        }
        let mut seen = BTreeMap::new();
        for (name, bits) in &layers {
            for (what, width) in [("weights", bits.weights), ("activations", bits.activations)] {
                if !WIDTHS.contains(&width) {
                    return Err(QuantizeError::Plan(format!(
                        "node `{name}`: {what} of {width} bits; 2 to 8 are supported"
                    )));
                }
            }
            if seen.insert(name, ()).is_some() {
                return Err(QuantizeError::Plan(format!("node `{name}` is given twice")));
            }
        }
        Ok(PrecisionPlan { layers, residual_bits, provenance: provenance.into() })
    }

    /// `weights` and `activations` bits everywhere, but at least 8 in the first layers (no convolution before
    /// them) and the last (none after them): HAWQ-V3's rule.
    pub fn uniform(graph: &Graph, weights: u8, activations: u8) -> Result<PrecisionPlan, QuantizeError> {
        let edges = edge_layers(graph);
        let bits = |id: ValueId| {
            if edges[id.index()] { LayerBits::both(8) } else { LayerBits { weights, activations } }
        };
        let layers = quantizable_layers(graph).into_iter().map(|(id, name)| (name, bits(id))).collect();
        PrecisionPlan::new(layers, RESIDUAL_BITS, format!("uniform w{weights}a{activations}"))
    }

    /// The same plan with another width of the residual stream.
    pub fn with_residual_bits(self, bits: u8) -> Result<PrecisionPlan, QuantizeError> {
        PrecisionPlan::new(self.layers, bits, self.provenance)
    }

    /// Layers in the graph's order.
    pub fn layers(&self) -> &[(String, LayerBits)] {
        &self.layers
    }

    pub fn residual_bits(&self) -> u8 {
        self.residual_bits
    }

    pub fn provenance(&self) -> &str {
        &self.provenance
    }

    /// The bits of every convolution of `graph`, in its order.
    ///
    /// # Errors
    /// A name that no convolution has, with the nearest ones; convolutions without bits.
    pub fn resolve(&self, graph: &Graph) -> Result<Vec<(ValueId, LayerBits)>, QuantizeError> {
        let nodes = quantizable_layers(graph);
        let given: BTreeMap<&str, LayerBits> = self.layers.iter().map(|(n, b)| (n.as_str(), *b)).collect();
        let unknown = self.layers.iter().find(|(name, _)| nodes.iter().all(|(_, n)| n != name));
        if let Some((name, _)) = unknown {
            let near = nearest(name, nodes.iter().map(|(_, n)| n.as_str()));
            return Err(QuantizeError::Plan(format!("no convolution is named `{name}`; near are {near}")));
        }
        let missing: Vec<&str> = nodes.iter().map(|(_, n)| n.as_str()).filter(|n| !given.contains_key(n)).collect();
        if !missing.is_empty() {
            let named = quoted(missing.iter().take(5).copied());
            let message = format!("{} of {} convolutions have no bits: {named}", missing.len(), nodes.len());
            return Err(QuantizeError::Plan(message));
        }
        Ok(nodes.into_iter().map(|(id, name)| (id, given[name.as_str()])).collect())
    }

    /// Reads `bits.json` for a network: in full or plain form, or with the names of HAWQ's modules ([`hawq::apply`]).
    pub fn read(text: &str, graph: &Graph) -> Result<PrecisionPlan, QuantizeError> {
        if let Ok(Pairs(config)) = serde_json::from_str::<Pairs<u8>>(text)
            && hawq::names_modules(&config)
        {
            return hawq::apply(graph, &config, "given with HAWQ-V3's names");
        }
        let plan = PrecisionPlan::from_json(text)?;
        plan.resolve(graph)?;
        Ok(plan)
    }

    /// Reads `bits.json` in full or plain form. Names are checked against a graph by [`PrecisionPlan::resolve`].
    pub fn from_json(text: &str) -> Result<PrecisionPlan, QuantizeError> {
        let error = |message: String| QuantizeError::File { file: FILE, message };
        let value: serde_json::Value = serde_json::from_str(text).map_err(|e| error(e.to_string()))?;
        if value.get("schema").is_none() {
            let Pairs(pairs) = serde_json::from_str::<Pairs<PlainBits>>(text).map_err(|e| error(e.to_string()))?;
            let layers = pairs.into_iter().map(|(name, bits)| (name, bits.into())).collect();
            return PrecisionPlan::new(layers, RESIDUAL_BITS, "given as a plain list");
        }
        let file: PlanFile = serde_json::from_str(text).map_err(|e| error(e.to_string()))?;
        if file.schema != SCHEMA || file.version != VERSION {
            let found = format!("{} {}", file.schema, file.version);
            return Err(error(format!("schema is {found}; supported is {SCHEMA} {VERSION}")));
        }
        let layers =
            file.layers.into_iter().map(|l| (l.name, LayerBits { weights: l.weights, activations: l.activations }));
        PrecisionPlan::new(layers.collect(), file.residual_bits, file.provenance)
    }

    /// The full form; equal plans give equal bytes.
    pub fn to_json(&self) -> String {
        let layer = |(name, bits): &(String, LayerBits)| LayerLine {
            name: name.clone(),
            weights: bits.weights,
            activations: bits.activations,
        };
        let file = PlanFile {
            schema: SCHEMA.into(),
            version: VERSION,
            provenance: self.provenance.clone(),
            residual_bits: self.residual_bits,
            layers: self.layers.iter().map(layer).collect(),
        };
        // Plain strings and integers always serialise.
        serde_json::to_string_pretty(&file).unwrap_or_default() + "\n"
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanFile {
    schema: String,
    version: u32,
    #[serde(default)]
    provenance: String,
    residual_bits: u8,
    layers: Vec<LayerLine>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LayerLine {
    name: String,
    weights: u8,
    activations: u8,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum PlainBits {
    Both(u8),
    Each(LayerBits),
}

impl From<PlainBits> for LayerBits {
    fn from(bits: PlainBits) -> LayerBits {
        match bits {
            PlainBits::Both(bits) => LayerBits::both(bits),
            PlainBits::Each(bits) => bits,
        }
    }
}

/// For every value whether it is a convolution with none before it or none after it.
fn edge_layers(graph: &Graph) -> Vec<bool> {
    let live = graph.live();
    let (mut after, mut before) = (vec![false; graph.len()], vec![false; graph.len()]);
    let is_conv = |id: ValueId| matches!(graph.op(id), Op::Conv(_));
    let ids: Vec<ValueId> = graph.values().filter(|id| live[id.index()]).collect();
    for &id in &ids {
        after[id.index()] = graph.args(id).into_iter().any(|a| is_conv(a) || after[a.index()]);
    }
    for &id in ids.iter().rev() {
        let users = graph.users(id).into_iter().filter(|u| live[u.index()]);
        before[id.index()] = users.into_iter().any(|u| is_conv(u) || before[u.index()]);
    }
    graph.values().map(|id| is_conv(id) && !(after[id.index()] && before[id.index()])).collect()
}

/// The three names nearest to `name` by edit distance, quoted.
fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> String {
    let mut ranked: Vec<(usize, &str)> = names.map(|n| (edit_distance(name, n), n)).collect();
    ranked.sort();
    quoted(ranked.into_iter().take(3).map(|(_, n)| n))
}

fn quoted<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")
}

/// Insertions, deletions and replacements of characters between two names (Levenshtein).
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fold::fold_batch_norm;
    use crate::test_networks::residual_network;

    fn graph() -> Graph {
        fold_batch_norm(&residual_network(1)).unwrap()
    }

    #[test]
    fn uniform_spares_first_and_last() {
        let plan = PrecisionPlan::uniform(&graph(), 4, 6).unwrap();
        let (name, bits): (Vec<&str>, Vec<LayerBits>) = plan.layers().iter().map(|(n, b)| (n.as_str(), *b)).unzip();
        assert_eq!(
            name,
            [
                "conv1",
                "block1.conv1",
                "block1.conv2",
                "block2.conv1",
                "block2.conv2",
                "block2.short",
                "left",
                "right",
                "fc"
            ]
        );
        assert_eq!((bits[0], bits[8]), (LayerBits::both(8), LayerBits::both(8)));
        assert!(bits[1..8].iter().all(|&b| b == LayerBits { weights: 4, activations: 6 }));
        assert_eq!(plan.residual_bits(), 16);
        assert_eq!(plan.resolve(&graph()).unwrap().len(), 9);
    }

    #[test]
    fn files_read_back() {
        let plan = PrecisionPlan::uniform(&graph(), 4, 8).unwrap().with_residual_bits(8).unwrap();
        let text = plan.to_json();
        assert_eq!(PrecisionPlan::from_json(&text).unwrap(), plan);
        let plain = r#"{"b": 4, "a": {"weights": 3, "activations": 8}}"#;
        let plan = PrecisionPlan::from_json(plain).unwrap();
        let expected =
            [("b".to_string(), LayerBits::both(4)), ("a".to_string(), LayerBits { weights: 3, activations: 8 })];
        assert_eq!(plan.layers(), expected);
    }

    #[test]
    fn bad_plans_are_refused() {
        for (text, message) in [
            (r#"{"a": 4, "a": 8}"#, "given twice"),
            (r#"{"a": 9}"#, "2 to 8"),
            (r#"{"a": 1}"#, "2 to 8"),
            (r#"{"a": {"weights": 4}}"#, "bits.json"),
            (r#"[4]"#, "bits.json"),
            (r#"{"schema": "hawqc.bits", "version": 9, "residual_bits": 16, "layers": []}"#, "hawqc.bits 9"),
            (r#"{"schema": "hawqc.bits", "version": 1, "residual_bits": 12, "layers": []}"#, "8 and 16"),
            ("{", "bits.json"),
        ] {
            let error = PrecisionPlan::from_json(text).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn every_layer_is_named_once() {
        let graph = graph();
        let mut layers = PrecisionPlan::uniform(&graph, 8, 8).unwrap().layers().to_vec();
        layers[1].0 = "block1.conv9".into();
        let resolve = |layers| PrecisionPlan::new(layers, 16, "").unwrap().resolve(&graph).unwrap_err().to_string();
        let error = resolve(layers.clone());
        assert!(error.contains("`block1.conv9`; near are `block1.conv1`, `block1.conv2`"), "{error}");
        layers.remove(1);
        let error = resolve(layers);
        assert!(error.contains("1 of 9 convolutions have no bits: `block1.conv1`"), "{error}");
    }
}
