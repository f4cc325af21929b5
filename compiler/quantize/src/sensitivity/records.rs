//! What is measured sample by sample, and what follows from it.
//!
//! A run is a list of tasks, numbered from 0: every sample with its first random vector, then every sample with its
//! second, and so on. A task's [`Record`] depends on the run's head and the task's number only, never on what
//! ran before it. So a run may be interrupted, resumed and split into shards, and its result stays the same.
//!
//! A *checkpoint* is a text of one JSON value a line: the head of the run, then records in any order.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::error::SensitivityError;
use super::file::{LayerSensitivity, Metric, Sensitivities, Shard, parse_choice, width_name};

/// Early stop is decided after every so many tasks.
pub const DECISION_STEP: usize = 8;
const FILE: &str = "checkpoint";
/// Where the outputs do not change at all, their signal to noise ratio is given as this, in dB.
const CLEAN_DB: f64 = 300.0;

/// Over what the random signs of Hutchinson's estimate of the Hessian's trace are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Estimator {
    /// The scores of the classes.
    Scores,
    /// All weights.
    Weights,
}

/// What identifies a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunHead {
    pub model_hash: String,
    pub metric: Metric,
    /// Of [`Metric::Hessian`].
    pub estimator: Option<Estimator>,
    pub seed: u64,
    /// Identity of the data, as the caller makes it.
    pub data: String,
    /// Whether the loss is that of given labels; else of the model's own predictions.
    pub labelled: bool,
    /// Samples in use.
    pub samples: usize,
    /// Random vectors for each sample.
    pub rounds: usize,
    /// Width choices, each once.
    pub choices: Vec<String>,
    /// Layers of the network.
    pub layers: usize,
    /// `[i, n]`: tasks whose number leaves i when divided by n.
    pub shard: [usize; 2],
}

/// What one task gave.
///
/// [`Metric::Hessian`], [`Metric::Fisher`]: a trace for each layer (not divided by the parameters). [`Metric::Output`]: for each layer
/// and choice the divergence of the class probabilities, then for each layer and choice the squared error of the
/// outputs, then the sum of squares of the outputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub task: usize,
    pub values: Vec<f64>,
}

/// A sample and which of its random vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    pub number: usize,
    pub sample: usize,
    pub round: usize,
}

impl RunHead {
    /// The tasks of this run or shard, in order.
    pub fn tasks(&self) -> impl Iterator<Item = Task> + use<> {
        let samples = self.samples;
        let [index, count] = self.shard;
        (index..samples * self.rounds).step_by(count).map(move |number| Task {
            number,
            sample: number % samples,
            round: number / samples,
        })
    }

    /// The run that this is a shard of.
    pub fn whole(&self) -> RunHead {
        RunHead { shard: [0, 1], ..self.clone() }
    }

    pub(super) fn check(&self) -> Result<(), String> {
        if self.shard[0] >= self.shard[1] {
            return Err(format!("there is no shard {}/{}", self.shard[0], self.shard[1]));
        }
        if self.samples.checked_mul(self.rounds).is_none() {
            return Err("too many samples".into());
        }
        self.choices.iter().try_for_each(|c| parse_choice(c).map(drop)).map_err(|e| e.to_string())
    }

    /// Whether a record is one of this run's tasks and whole.
    pub(super) fn admits(&self, record: &Record) -> bool {
        record.task < self.samples * self.rounds
            && record.task % self.shard[1] == self.shard[0]
            && record.values.len() == self.record_length()
            && record.values.iter().all(|v| v.is_finite())
    }

    fn record_length(&self) -> usize {
        match self.metric {
            Metric::Hessian | Metric::Fisher => self.layers,
            Metric::Output => 2 * self.layers * self.choices.len() + 1,
        }
    }

    /// Fails if `other` is not a shard of the same run.
    pub(super) fn check_same_run(&self, other: &RunHead) -> Result<(), SensitivityError> {
        let fields = |h: &RunHead| {
            [
                ("model", h.model_hash.clone()),
                ("metric", h.metric.to_string()),
                ("random signs over", format!("{:?}", h.estimator)),
                ("seed", h.seed.to_string()),
                ("data", h.data.clone()),
                ("labels", if h.labelled { "given" } else { "of the model's own" }.into()),
                ("samples", h.samples.to_string()),
                ("probes", h.rounds.to_string()),
                ("choices", h.choices.join(",")),
                ("layers", h.layers.to_string()),
                ("a division into", h.shard[1].to_string()),
            ]
        };
        let [index, count] = other.shard;
        for ((what, expected), (_, found)) in fields(self).into_iter().zip(fields(other)) {
            if expected != found {
                return Err(SensitivityError::MixedShards { index, count, what, expected, found });
            }
        }
        Ok(())
    }

    /// The sensitivities that `records`, in the order of their tasks, give. Of `layers`, what does not depend on records
    /// is kept.
    ///
    /// # Errors
    /// [`SensitivityError::NoRecords`].
    pub fn assemble(
        &self,
        mut layers: Vec<LayerSensitivity>,
        records: &[Record],
    ) -> Result<Sensitivities, SensitivityError> {
        if records.is_empty() {
            return Err(SensitivityError::NoRecords);
        }
        match self.metric {
            Metric::Hessian | Metric::Fisher => self.fill_traces(&mut layers, records),
            Metric::Output => self.fill_divergences(&mut layers, records),
        }
        let samples = records.len().min(self.samples) as u64;
        let loss = match (self.metric, self.estimator, self.labelled) {
            (Metric::Output, ..) => "divergence of the class probabilities",
            (_, Some(Estimator::Scores), _) => "cross-entropy whatever the label, signs over the scores",
            (_, Some(Estimator::Weights), true) => "cross-entropy of given labels, signs over the weights",
            (_, Some(Estimator::Weights), false) => "cross-entropy of predicted labels, signs over the weights",
            (_, None, true) => "cross-entropy of given labels",
            (_, None, false) => "cross-entropy of labels drawn as predicted",
        };
        let provenance = format!("{}: {loss}; data {}, seed {}", self.metric, self.data, self.seed);
        let counts = [samples, records.len() as u64];
        let mut whole = Sensitivities::new(&self.model_hash, self.metric, counts, provenance, layers);
        if self.shard[1] > 1 {
            whole.shard = Some(Shard { run: self.clone(), records: records.to_vec() });
        }
        Ok(whole)
    }

    fn fill_traces(&self, layers: &mut [LayerSensitivity], records: &[Record]) {
        for (index, layer) in layers.iter_mut().enumerate() {
            let estimate = Estimate::of(records.iter().map(|r| r.values[index]));
            let parameters = layer.parameters as f64;
            let (trace, stderr) = (estimate.mean / parameters, estimate.stderr.map(|s| s / parameters));
            layer.trace = Some(trace);
            layer.trace_stderr = stderr;
            let errors = |bits: u8| layer.perturbation.get(&width_name(bits)).copied().unwrap_or(0.0);
            let scaled = |factor: f64| -> BTreeMap<String, f64> {
                let choices = self.choices.iter().filter_map(|c| Some((c.clone(), parse_choice(c).ok()?)));
                choices.map(|(name, bits)| (name, factor * errors(bits.weights))).collect()
            };
            // An estimate below zero says that the trace is not known to differ from zero.
            (layer.cost, layer.cost_stderr) = (scaled(trace.max(0.0)), stderr.map(scaled).unwrap_or_default());
        }
    }

    fn fill_divergences(&self, layers: &mut [LayerSensitivity], records: &[Record]) {
        let pairs = layers.len() * self.choices.len();
        let sum = |at: usize| records.iter().map(|r| r.values[at]).sum::<f64>();
        for (index, layer) in layers.iter_mut().enumerate() {
            for (number, choice) in self.choices.iter().enumerate() {
                let at = index * self.choices.len() + number;
                let estimate = Estimate::of(records.iter().map(|r| r.values[at]));
                layer.cost.insert(choice.clone(), estimate.mean.max(0.0));
                if let Some(stderr) = estimate.stderr {
                    layer.cost_stderr.insert(choice.clone(), stderr);
                }
                let (noise, signal) = (sum(pairs + at), sum(2 * pairs));
                let ratio = if noise > 0.0 { 10.0 * (signal / noise).log10() } else { CLEAN_DB };
                layer.sqnr_db.insert(choice.clone(), ratio.clamp(-CLEAN_DB, CLEAN_DB));
            }
        }
    }

    /// How many of `records`, which are the run's first in order, reach the tolerance, see [`Sensitivities::within`]: the
    /// fewest, of those numbers at which it is decided. `None` if all are not enough.
    pub fn enough(&self, layers: &[LayerSensitivity], records: &[Record], tolerance: f64) -> Option<usize> {
        let mut tried = (1..=records.len() / DECISION_STEP).map(|n| n * DECISION_STEP);
        tried.find(|&n| self.assemble(layers.to_vec(), &records[..n]).is_ok_and(|found| found.within(tolerance)))
    }
}

/// A mean with its standard error, which two values or more have.
struct Estimate {
    mean: f64,
    stderr: Option<f64>,
}

impl Estimate {
    fn of(values: impl Iterator<Item = f64> + Clone) -> Estimate {
        let n = values.clone().count() as f64;
        let mean = values.clone().sum::<f64>() / n;
        let squares: f64 = values.map(|v| (v - mean).powi(2)).sum();
        Estimate { mean, stderr: (n > 1.0).then(|| (squares / (n - 1.0) / n).sqrt()) }
    }
}

/// The first line of a checkpoint.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckpointHead {
    schema: String,
    version: u32,
    run: RunHead,
}

const SCHEMA: &str = "hawqc.sensitivity.checkpoint";
const VERSION: u32 = 1;

/// What a checkpoint holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// In the order of their tasks, each once.
    pub records: Vec<Record>,
    /// Bytes of whole lines; behind them is a torn one, if any.
    pub whole_bytes: usize,
}

/// The first line of a run's checkpoint.
pub fn checkpoint_head(run: &RunHead) -> String {
    let head = CheckpointHead { schema: SCHEMA.into(), version: VERSION, run: run.clone() };
    serde_json::to_string(&head).unwrap_or_default() + "\n"
}

/// The line of a record.
pub fn checkpoint_line(record: &Record) -> String {
    serde_json::to_string(record).unwrap_or_default() + "\n"
}

/// Reads the checkpoint of a run. What follows the last line break is a line torn by an interruption and left out.
///
/// # Errors
/// A checkpoint of another run; a whole line that is no record of this run.
pub fn read_checkpoint(text: &[u8], run: &RunHead) -> Result<Checkpoint, SensitivityError> {
    let error = |message: String| SensitivityError::File { file: FILE, message };
    let whole_bytes = text.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
    let text = std::str::from_utf8(&text[..whole_bytes]).map_err(|e| error(e.to_string()))?;
    let mut lines = text.lines().enumerate();
    let Some((_, first)) = lines.next() else {
        return Ok(Checkpoint { records: Vec::new(), whole_bytes });
    };
    let head: CheckpointHead = serde_json::from_str(first).map_err(|e| error(format!("line 1: {e}")))?;
    if head.schema != SCHEMA || head.version != VERSION {
        return Err(error(format!("schema is {} {}; supported is {SCHEMA} {VERSION}", head.schema, head.version)));
    }
    run.check_same_run(&head.run)?;
    if head.run != *run {
        return Err(error(format!("it is of shard {}/{}", head.run.shard[0], head.run.shard[1])));
    }
    let mut records = BTreeMap::new();
    for (index, line) in lines {
        let record: Record = serde_json::from_str(line).map_err(|e| error(format!("line {}: {e}", index + 1)))?;
        if !run.admits(&record) {
            return Err(error(format!("line {}: task {} is not one of this run", index + 1, record.task)));
        }
        records.insert(record.task, record);
    }
    Ok(Checkpoint { records: records.into_values().collect(), whole_bytes })
}
