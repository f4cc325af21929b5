//! `--rescore K`: the K best plans compiled and run on data, the most accurate taken.

use std::cmp::Ordering;
use std::sync::Arc;

use hawqc_driver::{CompileOptions, Precision, Target, compile, lower};
use hawqc_ir::Tensor;
use hawqc_quantize::search::{Report, Resource};
use hawqc_quantize::sensitivity::choice_name;
use hawqc_quantize::{Calibration, Executor, LayerBits, Options};
use hawqc_runtime::{Session, TensorRef};
use serde::Serialize;

use super::super::calibrate::single_input;
use super::super::read_text;
use super::{Job, quantity};
use crate::args::{Global, Search};
use crate::console::{Console, table};
use crate::data::Dataset;
use crate::failure::Failure;

/// A plan and how it did.
#[derive(Serialize)]
pub struct Rescored {
    /// By cost, from 1.
    pub rank: usize,
    pub cost: f64,
    /// Share of samples whose label came first; absent without labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top1_percent: Option<f64>,
    /// Share of samples where the first class is that of the float network.
    pub agreement_percent: f64,
    /// Mean Kullback-Leibler divergence from the float network's distribution, in nats.
    pub divergence: f64,
    pub resources: Vec<(&'static str, f64)>,
    /// Layers by widths.
    pub layers: String,
    pub chosen: bool,
}

impl Rescored {
    /// What the plans are ordered by.
    pub fn measure(&self) -> &'static str {
        if self.top1_percent.is_some() { "top-1" } else { "agreement with the float network" }
    }

    fn score(&self) -> f64 {
        self.top1_percent.unwrap_or(self.agreement_percent)
    }

    /// Better plans first: by score, then without labels by divergence, then by cost.
    fn compare(&self, other: &Rescored) -> Ordering {
        let divergence = match self.top1_percent {
            Some(_) => Ordering::Equal,
            None => self.divergence.total_cmp(&other.divergence),
        };
        other.score().total_cmp(&self.score()).then(divergence).then(self.cost.total_cmp(&other.cost))
    }
}

/// Compiles and evaluates every plan.
pub fn rescore(
    job: &Job,
    plans: &[Vec<LayerBits>],
    report: &Report,
    args: &Search,
    global: &Global,
    console: &Console,
) -> Result<Vec<Rescored>, Failure> {
    // The command line lets neither be missing.
    let (Some(calib), Some(data)) = (&args.calib, &args.data) else { return Ok(Vec::new()) };
    let calibration = Calibration::from_json(&read_text(calib)?)
        .map_err(|e| Failure::invalid(format!("{}: {e}", calib.display())))?;
    calibration.check_model(&job.source.hash)?;
    let shape = single_input(&job.graph)?;
    let data = Dataset::open(data, &shape)?;
    let reference = float_scores(job, &data, &shape, console)?;
    let target = Target::parse("host").map_err(hawqc_driver::Error::from)?;
    let options = CompileOptions::new(target);
    let mut rescored = Vec::new();
    for (index, bits) in plans.iter().enumerate() {
        let plan = job.network.plan(bits, String::new())?;
        let precision = Precision { calibration: calibration.clone(), plan, options: Options::default() };
        let model = compile(lower(&job.source, Some(&precision))?, &options)?.load()?;
        let mut session = Session::new(Arc::new(model), global.threads.map(|n| n as usize))?;
        let mut tally = Tally::default();
        let bar = console.progress(&format!("plan {} of {}", index + 1, plans.len()), data.len());
        for (sample, reference) in reference.iter().enumerate() {
            let label = data.labels().ok().map(|labels| labels[sample]);
            tally.record(&scores(&mut session, &data.sample(sample)?, &shape)?, reference, label);
            bar.inc(1);
        }
        bar.finish_and_clear();
        rescored.push(tally.line(job, index + 1, report.best[index].cost, bits, data.labels().is_ok()));
    }
    let best = (0..rescored.len()).min_by(|&a, &b| rescored[a].compare(&rescored[b]));
    if let Some(best) = best {
        rescored[best].chosen = true;
    }
    Ok(rescored)
}

fn float_scores(job: &Job, data: &Dataset, shape: &[usize], console: &Console) -> Result<Vec<Vec<f32>>, Failure> {
    let executor = Executor::new(&job.graph)?;
    let bar = console.progress("float", data.len());
    let mut all = Vec::with_capacity(data.len());
    for index in 0..data.len() {
        let input = Tensor::from_f32(shape, data.sample(index)?).map_err(hawqc_driver::Error::from)?;
        let outputs = executor.run(&[input], |_, _| {})?;
        let scores = outputs.first().and_then(|o| o.f32s().ok()).map(<[f32]>::to_vec);
        all.push(scores.ok_or_else(|| Failure::invalid("the network's first output is not f32"))?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(all)
}

fn scores(session: &mut Session, image: &[f32], shape: &[usize]) -> Result<Vec<f32>, Failure> {
    let input = TensorRef::new(shape, image).map_err(hawqc_runtime::Error::from)?;
    let outputs = session.run(&[input]).map_err(hawqc_runtime::Error::from)?;
    let scores = outputs.first().and_then(|o| o.as_slice::<f32>()).map(<[f32]>::to_vec);
    scores.ok_or_else(|| Failure::invalid("the model's first output is not f32"))
}

#[derive(Default)]
struct Tally {
    samples: usize,
    right: usize,
    agreeing: usize,
    divergence: f64,
}

impl Tally {
    fn record(&mut self, scores: &[f32], reference: &[f32], label: Option<usize>) {
        self.samples += 1;
        self.right += usize::from(label == first(scores));
        self.agreeing += usize::from(first(scores) == first(reference));
        let pairs = distribution(reference).into_iter().zip(distribution(scores));
        self.divergence += pairs.map(|(p, q)| if p > 0.0 { p * (p / q.max(1e-12)).ln() } else { 0.0 }).sum::<f64>();
    }

    fn line(&self, job: &Job, rank: usize, cost: f64, bits: &[LayerBits], labelled: bool) -> Rescored {
        let percent = |count: usize| 100.0 * count as f64 / self.samples.max(1) as f64;
        let totals = job.network.totals(bits);
        let narrow = bits.iter().filter(|b| **b != LayerBits::both(8)).count();
        let kinds: std::collections::BTreeSet<String> = bits.iter().map(|b| choice_name(*b)).collect();
        Rescored {
            rank,
            cost,
            top1_percent: labelled.then(|| percent(self.right)),
            agreement_percent: percent(self.agreeing),
            divergence: self.divergence / self.samples.max(1) as f64,
            resources: Resource::ALL.into_iter().filter_map(|r| Some((r.name(), totals.get(r)?))).collect(),
            layers: format!(
                "{narrow} of {} below w8a8 ({})",
                bits.len(),
                kinds.into_iter().collect::<Vec<_>>().join(", ")
            ),
            chosen: false,
        }
    }
}

/// The first of the largest scores.
fn first(scores: &[f32]) -> Option<usize> {
    (0..scores.len()).reduce(|best, i| if scores[i] > scores[best] { i } else { best })
}

/// Scores as probabilities: as they are if they are probabilities, else their softmax.
fn distribution(scores: &[f32]) -> Vec<f64> {
    let sum: f64 = scores.iter().map(|&s| f64::from(s)).sum();
    if scores.iter().all(|&s| s >= 0.0) && (sum - 1.0).abs() < 1e-3 {
        return scores.iter().map(|&s| f64::from(s) / sum).collect();
    }
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = scores.iter().map(|&s| f64::from(s - most).exp()).collect();
    let total: f64 = powers.iter().sum();
    powers.into_iter().map(|p| p / total).collect()
}

/// The table of all plans, the chosen one marked.
pub fn table_of(rescored: &[Rescored]) -> String {
    let row = |r: &Rescored| {
        let top1 = r.top1_percent.map_or("-".into(), |p| format!("{p:.2} %"));
        let used = |(name, value): &(&'static str, f64)| Resource::named(name).map(|r| quantity(r, *value));
        let used = r.resources.iter().filter_map(used).collect::<Vec<_>>().join(", ");
        let mark = if r.chosen { "chosen" } else { "" };
        let agreement = format!("{:.2} %", r.agreement_percent);
        let (cost, divergence) = (format!("{:.6e}", r.cost), format!("{:.3e}", r.divergence));
        vec![r.rank.to_string(), cost, top1, agreement, divergence, used, r.layers.clone(), mark.into()]
    };
    let header = ["rank", "cost", "top-1", "agrees with float", "divergence", "uses", "layers", ""];
    table(&header, rescored.iter().map(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tallies() {
        let mut tally = Tally::default();
        tally.record(&[0.0, 2.0, 2.0], &[0.0, 2.0, 2.0], Some(1));
        assert_eq!((tally.right, tally.agreeing, tally.divergence), (1, 1, 0.0));
        tally.record(&[3.0, 2.0, 0.0], &[0.0, 2.0, 0.0], Some(2));
        assert_eq!((tally.samples, tally.right, tally.agreeing), (2, 1, 1));
        assert!(tally.divergence > 0.5);
        assert_eq!(distribution(&[0.25, 0.75]), [0.25, 0.75]);
        assert_eq!(distribution(&[1.0, 1.0]), [0.5, 0.5]);
    }
}
