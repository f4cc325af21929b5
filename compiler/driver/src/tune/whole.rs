//! Whole networks, compiled and measured as they would ship.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use hawqc_codegen::{Target, steps};
use hawqc_ir::{Graph, KernelSpec, Op, ValueId};
use hawqc_runtime::{Entry, Pool, RunError, Session, Tensor, TensorMut, TensorRef};
use hawqc_schedules::Schedule;
use hawqc_schedules::tuning::log::{LayerTimes, Network, Times};
use hawqc_schedules::tuning::workload;

use super::choices::with_available;
use crate::compile::load_tuned;
use crate::error::Error;
use crate::pipeline::Lowered;

/// A network in memory, and the times of its runs.
pub struct Whole {
    session: Session,
    /// The kernel of each step.
    steps: Vec<ValueId>,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    /// Whole runs, unobserved.
    totals: Vec<u64>,
    /// Observed runs, each with the time of every step.
    observed: Vec<Vec<u64>>,
}

impl Whole {
    /// Compiles a lowered network with schedules for some of its kernels.
    pub fn new(
        lowered: &Lowered,
        target: &Target,
        schedules: BTreeMap<KernelSpec, Schedule>,
        pool: Option<&Arc<Pool>>,
        inputs: Vec<Tensor>,
    ) -> Result<Whole, Error> {
        let model = with_available(schedules, |schedules| load_tuned(lowered, target, schedules))?;
        let model = Arc::new(model);
        let session = match pool {
            Some(pool) => Session::with_pool(model, Arc::clone(pool))?,
            None => Session::new(model, Some(1))?,
        };
        let outputs = session.new_outputs(Entry::Border).map_err(hawqc_runtime::Error::from)?;
        let steps = steps(lowered.kernels())?;
        Ok(Whole { session, steps, inputs, outputs, totals: Vec::new(), observed: Vec::new() })
    }

    /// Whether two compiled networks consist of the same kernels under the same schedules.
    pub fn is_same(&self, other: &Whole) -> bool {
        let kernels = |whole: &Whole| -> Vec<String> {
            whole.session.model().manifest().steps.iter().map(|step| step.kernel.clone()).collect()
        };
        kernels(self) == kernels(other)
    }

    /// Takes over the times of another that is the same.
    pub fn copy_times(&mut self, other: &Whole) {
        self.totals.clone_from(&other.totals);
        self.observed.clone_from(&other.observed);
    }

    /// Drops all times.
    pub fn forget(&mut self) {
        self.totals.clear();
        self.observed.clear();
    }

    /// One run that does not count, one observed and one whole.
    pub fn round(&mut self) -> Result<(), Error> {
        self.round_of_runs().map_err(|e| hawqc_runtime::Error::from(e).into())
    }

    fn round_of_runs(&mut self) -> Result<(), RunError> {
        let views: Vec<TensorRef> = self.inputs.iter().map(Tensor::view).collect();
        let mut into: Vec<TensorMut> = self.outputs.iter_mut().map(Tensor::view_mut).collect();
        let count = self.session.model().manifest().steps.len();
        self.session.run_into(Entry::Border, &views, &mut into)?;
        let start = Instant::now();
        self.session.run_into(Entry::Border, &views, &mut into)?;
        self.totals.push(start.elapsed().as_nanos() as u64);
        let mut marks = Vec::with_capacity(count + 1);
        self.session.run_observed(Entry::Border, &views, &mut into, &mut |_| marks.push(Instant::now()))?;
        self.observed.push(marks.windows(2).map(|pair| (pair[1] - pair[0]).as_nanos() as u64).collect());
        Ok(())
    }

    /// Times of whole runs.
    pub fn total(&self) -> Times {
        Times::of(&self.totals)
    }

    /// The name and the specification of each step's kernel.
    fn kernels<'g>(&self, graph: &'g Graph) -> Vec<(&'g str, &'g KernelSpec)> {
        let kernel = |&id: &ValueId| match graph.op(id) {
            Op::Kernel(spec) => Some((graph.name(id), spec.as_ref())),
            _ => None,
        };
        self.steps.iter().filter_map(kernel).collect()
    }

    /// For each workload the time of its steps in each observed run; a concatenation that is written in place has no step and
    /// takes no time.
    pub fn by_workload(&self, lowered: &Lowered) -> BTreeMap<String, Vec<u64>> {
        let mut found: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for (step, (_, spec)) in self.kernels(lowered.kernels()).into_iter().enumerate() {
            let sums = found.entry(workload::text(spec)).or_insert_with(|| vec![0; self.observed.len()]);
            for (sum, run) in sums.iter_mut().zip(&self.observed) {
                *sum += run.get(step).copied().unwrap_or(0);
            }
        }
        found
    }

    /// What the log says of this network: the times of the steps of each layer, and of all others.
    pub fn network(&self, lowered: &Lowered, layers: &[String], plan: &str, choices: Vec<String>) -> Network {
        let steps = layer_steps(&self.kernels(lowered.kernels()), layers);
        let manifest = self.session.model().manifest();
        let layer = |step: &Option<usize>| {
            let times: Vec<u64> = step.map_or(vec![], |s| self.observed.iter().map(|run| run[s]).collect());
            let kernel = step.and_then(|s| manifest.steps.get(s)).map(|s| s.kernel.as_str());
            // `kernel.3.conv conv mr=2 ...`: the kernel's name, then the schedule.
            let schedule = kernel.and_then(|k| k.split_once(' ')).map_or("", |(_, schedule)| schedule);
            LayerTimes { schedule: schedule.to_owned(), times: Times::of(&times) }
        };
        let own: Vec<usize> = steps.iter().flatten().copied().collect();
        let rest = |run: &Vec<u64>| -> u64 {
            run.iter().enumerate().filter(|(step, _)| !own.contains(step)).map(|(_, ns)| ns).sum()
        };
        Network {
            plan: plan.to_owned(),
            choices,
            total: self.total(),
            default_total: None,
            reference: None,
            layers: steps.iter().map(layer).collect(),
            other: Times::of(&self.observed.iter().map(rest).collect::<Vec<u64>>()),
        }
    }
}

/// The step of each layer: the kernel that begins with a convolution and has the layer's name. Layers of one
/// name, told apart by `#2` and so on, come in order.
fn layer_steps(kernels: &[(&str, &KernelSpec)], layers: &[String]) -> Vec<Option<usize>> {
    let mut by_name: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (step, (name, spec)) in kernels.iter().enumerate().rev() {
        if matches!(spec.steps().first().map(|s| &s.op), Some(hawqc_ir::Op::Conv(_))) {
            by_name.entry(name).or_default().push(step);
        }
    }
    let mut step = |layer: &String| {
        let name = match layer.rsplit_once('#') {
            Some((name, _)) if !by_name.contains_key(layer.as_str()) => name,
            _ => layer,
        };
        by_name.get_mut(name)?.pop()
    };
    layers.iter().map(&mut step).collect()
}

/// How much less the lower quartile and the median must be for one set of times to count as faster.
const CLEARLY: f64 = 0.995;

/// Whether `a` is clearly faster than `b`, by lower quartile and by median.
pub fn faster(a: &[u64], b: &[u64]) -> bool {
    let at = |times: &[u64], quarter: usize| {
        let mut sorted = times.to_vec();
        sorted.sort_unstable();
        sorted.get(sorted.len().saturating_sub(1) * quarter / 4).copied().unwrap_or(0) as f64
    };
    [1, 2].into_iter().all(|quarter| at(a, quarter) < CLEARLY * at(b, quarter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faster_means_clearly() {
        let base = [1000, 1010, 1020, 1030, 5000];
        let less = |by: u64| base.map(|t| t - by);
        assert!(faster(&less(50), &base));
        assert!(!faster(&base, &base) && !faster(&base, &less(50)) && !faster(&less(2), &base));
        // A better median with a worse quartile does not count.
        assert!(!faster(&[900, 1020, 900, 1015, 1014], &[1000, 1000, 1030, 1031, 1040].map(|t| t - 100)));
    }
}
