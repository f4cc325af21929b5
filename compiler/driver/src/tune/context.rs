//! Candidates measured inside their network.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hawqc_codegen::{CodegenError, Target, Variants, machine};
use hawqc_ir::Graph;
use hawqc_runtime::{Pool, Tensor, TensorRef};
use hawqc_schedules::Schedule;
use hawqc_schedules::tuning::{Measure, Prepared, workload};

use crate::error::Error;

/// A network whose workloads can be run under any schedule. Each workload is represented by the first step
/// that has it.
pub struct InContext<'g> {
    variants: Variants<'g>,
    pool: Option<Arc<Pool>>,
    inputs: Vec<Tensor>,
    workloads: Vec<Workload>,
    /// Position of the variant of a workload under a schedule.
    ready: BTreeMap<(usize, Schedule), usize>,
    /// Time it took to make each step ready, on average.
    pub preparing: Duration,
}

/// A workload with something to choose.
pub struct Workload {
    pub text: String,
    pub step: usize,
    /// The default first.
    pub candidates: Vec<Schedule>,
}

impl<'g> InContext<'g> {
    /// Of a fused graph; `inputs` are of its types.
    pub fn new(
        graph: &'g Graph,
        target: &Target,
        pool: Option<Arc<Pool>>,
        inputs: Vec<Tensor>,
    ) -> Result<InContext<'g>, Error> {
        let start = Instant::now();
        let variants = Variants::new(graph, target)?;
        // Each step was lowered twice, for the plan of memory and as code.
        let preparing = start.elapsed() / (2 * variants.len().max(1)) as u32;
        let mut workloads: Vec<Workload> = Vec::new();
        for step in 0..variants.len() {
            let Some(spec) = variants.spec(step) else {
                continue;
            };
            let default = variants.default_schedule(step);
            let others = Schedule::candidates(spec, machine(target)).into_iter().filter(|&s| s != default);
            let candidates: Vec<Schedule> = std::iter::once(default).chain(others).collect();
            let text = workload::text(spec);
            if candidates.len() > 1 && workloads.iter().all(|w| w.text != text) {
                workloads.push(Workload { text, step, candidates });
            }
        }
        Ok(InContext { variants, pool, inputs, workloads, ready: BTreeMap::new(), preparing })
    }

    pub fn workloads(&self) -> &[Workload] {
        &self.workloads
    }

    /// Number of steps of the network.
    pub fn steps(&self) -> usize {
        self.variants.len()
    }

    /// The node that represents a workload.
    pub fn node(&self, workload: usize) -> &str {
        self.variants.name(self.workloads[workload].step)
    }

    /// Digest of the machine code of a workload under a schedule, or why there is none.
    pub fn kernel(&mut self, workload: usize, schedule: Schedule) -> Result<Prepared, Error> {
        let step = self.workloads[workload].step;
        let position = match (self.ready.get(&(workload, schedule)), self.workloads[workload].candidates.first()) {
            (Some(&position), _) => position,
            (None, Some(&default)) if schedule == default => 0,
            _ => match self.variants.add(step, schedule) {
                Ok(position) => position,
                Err(error @ (CodegenError::Unsupported { .. } | CodegenError::Schedule { .. })) => {
                    // The first line says what is refused; the kernel's text follows.
                    let reason = error.to_string();
                    return Ok(Prepared::Refused(reason.lines().next().unwrap_or_default().to_owned()));
                }
                Err(error) => return Err(error.into()),
            },
        };
        self.ready.insert((workload, schedule), position);
        let hash = self.variants.variant(step, position).map(|v| v.hash().to_owned());
        Ok(hash.map_or_else(|| Prepared::Refused("it was removed".into()), Prepared::Ready))
    }

    /// Lets a workload run under a schedule that is ready, wherever nothing else is asked for.
    fn choose(&mut self, workload: usize, schedule: Schedule) {
        let position = self.ready.get(&(workload, schedule)).copied().unwrap_or(0);
        self.variants.choose(self.workloads[workload].step, position);
    }

    /// One run as things are; the nanoseconds of every step.
    fn once(&mut self) -> Result<Vec<u64>, Error> {
        let views: Vec<TensorRef> = self.inputs.iter().map(Tensor::view).collect();
        let mut times = Vec::new();
        self.variants.run(&views, self.pool.as_deref(), &mut times)?;
        Ok(times)
    }

    /// The time of a run under the default schedules: the shortest of a few.
    pub fn typical(&mut self) -> Result<Duration, Error> {
        let mut best = u64::MAX;
        for _ in 0..4 {
            best = best.min(self.once()?.iter().sum());
        }
        Ok(Duration::from_nanos(best))
    }
}

/// Some of a network's workloads, as tasks of a search.
pub struct Selected<'a, 'g> {
    pub network: &'a mut InContext<'g>,
    /// Positions of the workloads among the network's.
    pub workloads: Vec<usize>,
}

impl Measure for Selected<'_, '_> {
    type Error = Error;

    fn prepare(&mut self, task: usize, schedule: Schedule) -> Result<Prepared, Error> {
        self.network.kernel(self.workloads[task], schedule)
    }

    fn discard(&mut self, task: usize, schedule: Schedule) {
        let workload = self.workloads[task];
        if let Some(position) = self.network.ready.remove(&(workload, schedule)) {
            self.network.variants.remove(self.network.workloads[workload].step, position);
        }
    }

    fn run(&mut self, chosen: &[Schedule]) -> Result<Vec<u64>, Error> {
        for (&workload, &schedule) in self.workloads.iter().zip(chosen) {
            self.network.choose(workload, schedule);
        }
        let times = self.network.once()?;
        let time = |&w: &usize| times.get(self.network.workloads[w].step).copied().unwrap_or(0);
        Ok(self.workloads.iter().map(time).collect())
    }
}
