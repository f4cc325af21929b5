//! From a tuning log to the schedules of a network's kernels.

use std::collections::{BTreeMap, BTreeSet};

use hawqc_codegen::{CodegenError, Target, machine, variants::KernelHashes};
use hawqc_ir::{Graph, KernelSpec, Op, text};
use hawqc_schedules::Schedule;
use hawqc_schedules::tuning::log::{Log, Record};
use hawqc_schedules::tuning::workload;

/// Beyond this distance a workload says nothing about another: dimensions differ by a factor of 8 in all.
const FAR: f64 = 2.08;

/// What each tuned workload ships with.
#[derive(Clone, Debug, Default)]
pub struct Choices {
    by_workload: BTreeMap<String, Choice>,
    /// Networks (by digest) and nodes where kernels of a workload were measured.
    places: BTreeMap<String, BTreeSet<(String, String)>>,
}

#[derive(Clone, Debug)]
pub struct Choice {
    pub schedule: Schedule,
    /// Digest of the machine code that was measured.
    pub kernel: String,
}

/// What became of a log's choices in a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Used {
    pub exact: usize,
    pub nearest: usize,
    /// Kernels with a default schedule for want of a workload near enough.
    pub default: usize,
}

impl Choices {
    /// The last choice for each workload among the rows of a target; those measured on `threads` threads, where
    /// there are such, win over others.
    pub fn from_log(log: &Log, target: &str, threads: Option<usize>) -> Choices {
        let mut choices = Choices::default();
        for own in [false, true] {
            let rows = log.rows.iter().filter(|row| row.context.target == target);
            for row in rows.filter(|row| !own || Some(row.context.threads) == threads) {
                match &row.record {
                    Record::Choice { workload, schedule, kernel, .. } => {
                        if let Ok(schedule) = schedule.parse() {
                            choices.insert(workload.clone(), Choice { schedule, kernel: kernel.clone() });
                        }
                    }
                    Record::Kernel { workload, node, .. } => {
                        let place = (row.context.model.clone(), node.clone());
                        choices.places.entry(workload.clone()).or_default().insert(place);
                    }
                    _ => {}
                }
            }
        }
        choices
    }

    pub fn insert(&mut self, workload: String, choice: Choice) {
        self.by_workload.insert(workload, choice);
    }

    pub fn remove(&mut self, workload: &str) {
        self.by_workload.remove(workload);
    }

    pub fn get(&self, workload: &str) -> Option<&Choice> {
        self.by_workload.get(workload)
    }

    pub fn len(&self) -> usize {
        self.by_workload.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_workload.is_empty()
    }

    /// The schedule for a kernel, of its own workload or the nearest whose schedule is legal here.
    fn schedule(&self, spec: &KernelSpec, target: &Target) -> Option<(Schedule, bool)> {
        let machine = machine(target);
        if Schedule::candidates(spec, machine).len() < 2 {
            return None;
        }
        let text = workload::text(spec);
        let near = |(other, choice): (&String, &Choice)| {
            let distance = workload::distance(&text, other);
            let fits = distance <= FAR && choice.schedule.legal(spec, machine).is_ok();
            fits.then_some((distance, choice.schedule))
        };
        let found = self.by_workload.iter().filter_map(near).min_by(|a, b| a.0.total_cmp(&b.0));
        found.map(|(distance, schedule)| (schedule, distance == 0.0))
    }

    /// The schedules of a fused graph's kernels.
    pub fn schedules(&self, graph: &Graph, target: &Target) -> (BTreeMap<KernelSpec, Schedule>, Used) {
        let mut schedules = BTreeMap::new();
        let mut used = Used::default();
        let live = graph.live();
        for id in graph.values().filter(|id| live[id.index()]) {
            let Op::Kernel(spec) = graph.op(id) else { continue };
            match self.schedule(spec, target) {
                Some((schedule, exact)) => {
                    *(if exact { &mut used.exact } else { &mut used.nearest }) += 1;
                    schedules.insert(spec.as_ref().clone(), schedule);
                }
                None => used.default += 1,
            }
        }
        (schedules, used)
    }

    /// Forgets choices for workloads of this graph, the network `model`, whose kernel is no longer the one that was
    /// measured, and returns their texts.
    ///
    /// What a layer's constants ask of the code differs from layer to layer; so code that differs tells something only
    /// where it was measured, and code that does not differ anywhere.
    pub fn drop_stale(&mut self, graph: &Graph, model: &str, target: &Target) -> Result<Vec<String>, CodegenError> {
        let hashes = KernelHashes::new(graph, target)?;
        let mut current: BTreeMap<String, bool> = BTreeMap::new();
        for (position, (node, spec, _)) in hashes.steps().enumerate() {
            let text = workload::text(spec);
            let Some(choice) = self.by_workload.get(&text) else { continue };
            let place = (model.to_owned(), node.to_owned());
            let same = hashes.hash(position, choice.schedule).is_ok_and(|hash| hash == choice.kernel);
            if same || self.places.get(&text).is_none_or(|places| places.contains(&place)) {
                *current.entry(text).or_default() |= same;
            }
        }
        let stale: Vec<String> = current.into_iter().filter(|(_, same)| !same).map(|(text, _)| text).collect();
        stale.iter().for_each(|text| self.remove(text));
        Ok(stale)
    }
}

/// Calls `make` with the schedules, leaving out one after the other those that a kernel's weights refuse.
pub fn with_available<T>(
    mut schedules: BTreeMap<KernelSpec, Schedule>,
    mut make: impl FnMut(BTreeMap<KernelSpec, Schedule>) -> Result<T, CodegenError>,
) -> Result<T, CodegenError> {
    loop {
        let before = schedules.len();
        match make(schedules.clone()) {
            Err(CodegenError::Unsupported { node, reason, spec }) => {
                schedules.retain(|kernel, _| text::print_spec(kernel) != spec);
                if schedules.len() == before {
                    return Err(CodegenError::Unsupported { node, reason, spec });
                }
            }
            made => return made,
        }
    }
}
