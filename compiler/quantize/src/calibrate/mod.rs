//! Calibration: what values every activation of a float graph takes.
//!
//! In: a folded float graph and a stream of inputs, one after the other; nothing of a sample is
//! kept. Out: a [`Calibration`], per value the extremes and a histogram, and per convolution the mean of
//! what each weight is multiplied with (for bias correction). The statistics are the same whatever
//! the order of the samples, up to the rounding of means.
//!
//! Values are known by their stable names, see [`value_names`].

mod histogram;
mod taps;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use hawqc_ir::{Graph, Tensor, ValueId};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::QuantizeError;
use crate::execute::Executor;
use crate::insert::is_fused_clamp;
pub use histogram::{Histogram, Method};
use taps::TapSums;

const SCHEMA: &str = "hawqc.calibration";
const VERSION: u32 = 1;
const FILE: &str = "calib.json";
/// Clipping points are at least this, so that scales derived from them stay normal numbers.
const SMALLEST_POINT: f32 = 1e-30;

/// Statistics of a network's values, by stable name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    schema: String,
    version: u32,
    /// Identity of the model, as the caller hashes it.
    model: String,
    /// Inputs seen.
    samples: u64,
    values: BTreeMap<String, Statistics>,
    /// See [`Calibration::tap_means`].
    taps: BTreeMap<String, Vec<f32>>,
}

/// Statistics of one value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statistics {
    pub min: f32,
    pub max: f32,
    pub histogram: Histogram,
}

/// A name for every value of a graph, by index; no name occurs twice.
///
/// The name of the node, or that of its operator if the node has none; the second value of the same
/// name, in the graph's order, gets `#2` behind it, and so on. It stays the same as long as the
/// model and the passes before stay the same.
pub fn value_names(graph: &Graph) -> Vec<String> {
    let mut used = BTreeSet::new();
    let mut next: BTreeMap<&str, usize> = BTreeMap::new();
    let mut names = Vec::with_capacity(graph.len());
    for id in graph.values() {
        let base = if graph.name(id).is_empty() { graph.op(id).name() } else { graph.name(id) };
        let count = next.entry(base).or_insert(0);
        let name = loop {
            *count += 1;
            let name = if *count == 1 { base.to_string() } else { format!("{base}#{count}") };
            if used.insert(name.clone()) {
                break name;
            }
        };
        names.push(name);
    }
    names
}

impl Calibration {
    /// Inputs seen.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// All statistics by name.
    pub fn values(&self) -> &BTreeMap<String, Statistics> {
        &self.values
    }

    /// Fails if the statistics are those of another model.
    pub fn check_model(&self, expected: &str) -> Result<(), QuantizeError> {
        if self.model == expected {
            return Ok(());
        }
        Err(QuantizeError::OtherModel { expected: expected.into(), found: self.model.clone() })
    }

    /// The statistics of `value`, which the quantisation of `node` needs.
    pub fn get(&self, node: &str, value: &str) -> Result<&Statistics, QuantizeError> {
        let missing = || QuantizeError::NotCalibrated { node: node.into(), value: value.into() };
        self.values.get(value).ok_or_else(missing)
    }

    /// For convolution `node`, `[KH, KW, C]`: the mean over output positions of what each tap reads of each
    /// channel of the source, zero in the padding.
    pub fn tap_means(&self, node: &str) -> Result<&[f32], QuantizeError> {
        let missing = || QuantizeError::NotCalibrated { node: node.into(), value: format!("{node} (source)") };
        self.taps.get(node).map(Vec::as_slice).ok_or_else(missing)
    }

    /// Equal statistics give equal bytes.
    pub fn to_json(&self) -> String {
        // Every number is finite and every key a string, which always serialises.
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }

    /// Reads what [`Calibration::to_json`] writes.
    pub fn from_json(text: &str) -> Result<Calibration, QuantizeError> {
        let error = |message: String| QuantizeError::File { file: FILE, message };
        let read: Calibration = serde_json::from_str(text).map_err(|e| error(e.to_string()))?;
        if read.schema != SCHEMA || read.version != VERSION {
            let found = format!("{} {}", read.schema, read.version);
            return Err(error(format!("schema is {found}; supported is {SCHEMA} {VERSION}")));
        }
        for (name, value) in &read.values {
            value.check().map_err(|m| error(format!("value `{name}`: {m}")))?;
        }
        if let Some((name, _)) = read.taps.iter().find(|(_, means)| means.iter().any(|m| !m.is_finite())) {
            return Err(error(format!("taps of `{name}`: means must be finite")));
        }
        Ok(read)
    }
}

impl Statistics {
    /// Largest magnitude.
    pub fn max_abs(&self) -> f32 {
        self.max.abs().max(self.min.abs())
    }

    fn check(&self) -> Result<(), String> {
        if !self.min.is_finite() || !self.max.is_finite() || self.min > self.max {
            return Err("min and max must be finite and min at most max".into());
        }
        self.histogram.check()
    }
}

/// Gathers statistics, one input after the other.
pub struct Calibrator<'g> {
    graph: &'g Graph,
    executor: Executor<'g>,
    names: Vec<String>,
    values: Vec<Option<Gathered>>,
    taps: Vec<TapSums<'g>>,
    samples: u64,
}

struct Gathered {
    min: f32,
    max: f32,
    histogram: Histogram,
}

impl<'g> Calibrator<'g> {
    /// Watches the float values of `graph` that depend on its inputs, except those that only a clamp
    /// reads: they are never quantised.
    pub fn new(graph: &'g Graph) -> Result<Calibrator<'g>, QuantizeError> {
        let live = graph.live();
        let watch = |id: ValueId| {
            let users = graph.users(id);
            let only_clamped = users.iter().any(|&u| is_fused_clamp(graph, u));
            (live[id.index()] && graph.ty(id).is_float() && !only_clamped).then(Gathered::new)
        };
        let values = graph.values().map(watch).collect();
        let convs = graph.values().filter(|id| live[id.index()]);
        let taps = convs.filter_map(|id| TapSums::new(graph, id)).collect();
        let (executor, names) = (Executor::new(graph)?, value_names(graph));
        Ok(Calibrator { graph, executor, names, values, taps, samples: 0 })
    }

    /// Runs the graph on one set of inputs and adds what it sees.
    ///
    /// # Errors
    /// Inputs of the wrong type; a value that is NaN or infinite.
    pub fn observe(&mut self, inputs: &[Tensor]) -> Result<(), QuantizeError> {
        let (values, taps, mut failure) = (&mut self.values, &mut self.taps, None);
        let (names, sample) = (&self.names, self.samples);
        self.executor.run(inputs, |id, tensor| {
            if let (Some(gathered), Ok(data), None) = (&mut values[id.index()], tensor.f32s(), &failure)
                && let Err(found) = gathered.add(data)
            {
                failure = Some(QuantizeError::NotFinite { value: names[id.index()].clone(), found, sample });
            }
            if let Ok(data) = tensor.f32s() {
                taps.par_iter_mut().filter(|t| t.source == id).for_each(|t| t.add(data));
            }
        })?;
        self.samples += 1;
        failure.map_or(Ok(()), Err)
    }

    /// The statistics so far. `model` identifies the model, see [`Calibration::check_model`].
    ///
    /// # Errors
    /// [`QuantizeError::NoSamples`].
    pub fn finish(self, model: impl Into<String>) -> Result<Calibration, QuantizeError> {
        if self.samples == 0 {
            return Err(QuantizeError::NoSamples);
        }
        let mut values = BTreeMap::new();
        for (id, gathered) in self.graph.values().zip(self.values) {
            // Values that depend on constants only are never shown.
            if let Some(gathered) = gathered.filter(|g| g.histogram.count() > 0) {
                values.insert(self.names[id.index()].clone(), gathered.finish());
            }
        }
        let means = |t: TapSums| (self.names[t.conv.index()].clone(), t.means(self.samples));
        let taps = self.taps.into_iter().map(means).collect();
        let (schema, samples) = (SCHEMA.into(), self.samples);
        Ok(Calibration { schema, version: VERSION, model: model.into(), samples, values, taps })
    }
}

impl Gathered {
    fn new() -> Gathered {
        Gathered { min: f32::INFINITY, max: f32::NEG_INFINITY, histogram: Histogram::new() }
    }

    /// Adds values; the first that is not finite is the error, and then nothing is added.
    fn add(&mut self, data: &[f32]) -> Result<(), f32> {
        if let Some(&found) = data.iter().find(|v| !v.is_finite()) {
            return Err(found);
        }
        self.min = data.iter().copied().fold(self.min, f32::min);
        self.max = data.iter().copied().fold(self.max, f32::max);
        self.histogram.add(data, self.max.abs().max(self.min.abs()));
        Ok(())
    }

    fn finish(self) -> Statistics {
        // Zeros of either sign are one value.
        Statistics { min: self.min + 0.0, max: self.max + 0.0, histogram: self.histogram.trimmed() }
    }
}

impl Statistics {
    /// The clipping point of the value for integers `[lo, hi]` without zero point: magnitudes up to
    /// it are represented. Positive; 1 for a value that is always 0.
    pub fn clipping_point(&self, method: Method, lo: i64, hi: i64) -> f32 {
        let max_abs = f64::from(self.max_abs());
        if max_abs == 0.0 {
            return 1.0;
        }
        let point = match method {
            Method::MinMax => max_abs,
            Method::Percentile(percent) => self.histogram.percentile(percent).min(max_abs),
            Method::Mse => self.histogram.least_squares(max_abs, lo, hi),
        };
        (point as f32).max(SMALLEST_POINT)
    }
}
