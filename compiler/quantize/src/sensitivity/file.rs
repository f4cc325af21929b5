//! `sens.json`: what quantising each layer costs.
//!
//! Every layer of [`quantizable_layers`](crate::plan::quantizable_layers) stands in it once, in the graph's order. A layer
//! can take the width choices that its `cost` lists, and no others. The file of a shard also carries what was
//! measured on every sample, so that merged shards equal the whole bit for bit.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::error::SensitivityError;
use super::records::{Record, RunHead};
use crate::plan::{LayerBits, WIDTHS};

/// The schema that the file names.
pub const SCHEMA: &str = "hawqc.sensitivity";
const VERSION: u32 = 1;
const FILE: &str = "sens.json";

/// What stands for the sensitivity of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Average trace of the Hessian of the loss, times the squared error of the weights (HAWQ-V3).
    Hessian,
    /// The same with the Fisher information in place of the Hessian: mean squared gradients.
    Fisher,
    /// How far the outputs move when the layer alone is quantised, its input included.
    Output,
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Metric::Hessian => "hessian",
            Metric::Fisher => "fisher",
            Metric::Output => "output",
        })
    }
}

/// See the module's documentation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sensitivities {
    schema: String,
    version: u32,
    /// Digest of the model, as the caller hashes it.
    pub model_hash: String,
    pub metric: Metric,
    /// Inputs that were measured.
    pub samples: u64,
    /// Measurements: pairs of an input and a random vector, or inputs where nothing is random.
    pub probes: u64,
    /// Where the numbers come from, in words.
    pub provenance: String,
    pub layers: Vec<LayerSensitivity>,
    /// Present in the file of one shard of several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<Shard>,
}

/// One layer's line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerSensitivity {
    pub name: String,
    /// Weights, biases not counted.
    pub parameters: u64,
    pub macs: u64,
    /// Average trace: trace / parameters. Absent for [`Metric::Output`] and where nothing was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<f64>,
    /// Standard error of `trace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_stderr: Option<f64>,
    /// ||Q_b(W) - W||^2 by `w{b}`.
    pub perturbation: BTreeMap<String, f64>,
    /// By width choice, `w{weights}a{activations}`: what the sum of is to be minimised. Never negative.
    pub cost: BTreeMap<String, f64>,
    /// Standard error of `cost`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub cost_stderr: BTreeMap<String, f64>,
    /// By width choice: signal to quantisation noise of the outputs, in dB.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sqnr_db: BTreeMap<String, f64>,
}

/// What a shard needs to be merged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    pub run: RunHead,
    pub records: Vec<Record>,
}

/// The text of a width choice.
pub fn choice_name(bits: LayerBits) -> String {
    format!("w{}a{}", bits.weights, bits.activations)
}

/// Reads the text of a width choice.
pub fn parse_choice(text: &str) -> Result<LayerBits, SensitivityError> {
    let widths = || {
        let (w, a) = text.strip_prefix('w')?.split_once('a')?;
        Some(LayerBits { weights: w.parse().ok()?, activations: a.parse().ok()? })
    };
    let legal =
        |b: &LayerBits| WIDTHS.contains(&b.weights) && WIDTHS.contains(&b.activations) && choice_name(*b) == text;
    widths().filter(legal).ok_or_else(|| SensitivityError::Choice(text.into()))
}

/// The key of a weight width in `perturbation`.
pub(super) fn width_name(bits: u8) -> String {
    format!("w{bits}")
}

impl Sensitivities {
    /// Sensitivities of whole measurements.
    pub fn new(
        model_hash: impl Into<String>,
        metric: Metric,
        [samples, probes]: [u64; 2],
        provenance: impl Into<String>,
        layers: Vec<LayerSensitivity>,
    ) -> Sensitivities {
        let (model_hash, provenance) = (model_hash.into(), provenance.into());
        let schema = SCHEMA.into();
        Sensitivities { schema, version: VERSION, model_hash, metric, samples, probes, provenance, layers, shard: None }
    }

    /// Fails if they are those of another model.
    pub fn check_model(&self, expected: &str) -> Result<(), SensitivityError> {
        if self.model_hash == expected {
            return Ok(());
        }
        Err(SensitivityError::OtherModel { expected: expected.into(), found: self.model_hash.clone() })
    }

    /// Whether of every layer the standard error of the largest cost is at most `tolerance` of that cost, or of the mean
    /// such cost of all layers where that is more.
    pub fn within(&self, tolerance: f64) -> bool {
        let largest = |m: &BTreeMap<String, f64>| m.values().copied().fold(0.0, f64::max);
        let mean = self.layers.iter().map(|l| largest(&l.cost)).sum::<f64>() / self.layers.len().max(1) as f64;
        let known = |l: &LayerSensitivity| !l.cost_stderr.is_empty();
        self.layers.iter().all(|l| known(l) && largest(&l.cost_stderr) <= tolerance * largest(&l.cost).max(mean))
    }

    /// Equal sensitivities give equal bytes.
    pub fn to_json(&self) -> String {
        // Every number is finite and every key a string, which always serialises.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// Reads what [`Sensitivities::to_json`] writes.
    pub fn from_json(text: &str) -> Result<Sensitivities, SensitivityError> {
        let error = |message: String| SensitivityError::File { file: FILE, message };
        let read: Sensitivities = serde_json::from_str(text).map_err(|e| error(e.to_string()))?;
        if read.schema != SCHEMA || read.version != VERSION {
            let found = format!("{} {}", read.schema, read.version);
            return Err(error(format!("schema is {found}; supported is {SCHEMA} {VERSION}")));
        }
        let mut seen = BTreeSet::new();
        for layer in &read.layers {
            if !seen.insert(layer.name.as_str()) {
                return Err(error(format!("layer `{}` is given twice", layer.name)));
            }
            layer.check().map_err(|m| error(format!("layer `{}`: {m}", layer.name)))?;
        }
        if let Some(shard) = &read.shard {
            shard.run.check().map_err(error)?;
            if let Some(record) = shard.records.iter().find(|r| !shard.run.admits(r)) {
                return Err(error(format!("the record of task {} is not one of this shard", record.task)));
            }
        }
        Ok(read)
    }

    /// Joins all shards of one run, in any order: exactly what measuring it whole without early stop gives.
    ///
    /// # Errors
    /// Shards of different models, metrics, seeds, data or choices; a shard that is missing or given twice; a file
    /// that is no shard.
    pub fn merge(parts: Vec<Sensitivities>) -> Result<Sensitivities, SensitivityError> {
        let first = parts.first().ok_or(SensitivityError::NoRecords)?.clone();
        let mut records = Vec::new();
        let mut given = BTreeSet::new();
        let mut head: Option<RunHead> = None;
        for (position, part) in parts.into_iter().enumerate() {
            part.check_model(&first.model_hash)?;
            if part.metric != first.metric {
                return Err(SensitivityError::MixedMetrics { expected: first.metric, found: part.metric });
            }
            let shard = part.shard.ok_or(SensitivityError::NotAShard { position })?;
            let [index, count] = shard.run.shard;
            head.get_or_insert_with(|| shard.run.clone()).check_same_run(&shard.run)?;
            if !given.insert(index) {
                return Err(SensitivityError::RepeatedShard { index, count });
            }
            records.extend(shard.records);
        }
        let head = head.ok_or(SensitivityError::NoRecords)?;
        let missing: Vec<String> = (0..head.shard[1]).filter(|i| !given.contains(i)).map(|i| i.to_string()).collect();
        if !missing.is_empty() {
            return Err(SensitivityError::MissingShards { missing: missing.join(", "), count: head.shard[1] });
        }
        records.sort_by_key(|r| r.task);
        head.whole().assemble(first.layers, &records)
    }
}

impl LayerSensitivity {
    fn check(&self) -> Result<(), String> {
        let optional = self.trace.iter().chain(&self.trace_stderr);
        let maps = [&self.perturbation, &self.cost, &self.cost_stderr, &self.sqnr_db];
        if !optional.chain(maps.iter().flat_map(|m| m.values())).all(|v| v.is_finite()) {
            return Err("numbers must be finite".into());
        }
        if self.cost.is_empty() {
            return Err("`cost` lists no width choice".into());
        }
        if let Some((choice, cost)) = self.cost.iter().find(|(_, cost)| **cost < 0.0) {
            return Err(format!("the cost of {choice} is {cost}; costs are not negative"));
        }
        let choices = [&self.cost, &self.cost_stderr, &self.sqnr_db].into_iter().flat_map(|m| m.keys());
        choices.map(|c| parse_choice(c)).collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?;
        Ok(())
    }
}
