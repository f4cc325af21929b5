//! The order of a tuning session.
//!
//! For each choice of widths: lower, search the workloads that are not finished ([`InContext`]), compare
//! winners and defaults in the whole network, keep what is faster, and measure the network as it ships. Then
//! the same measurement of a few random mixtures. Whatever is found goes to the log at once; what the log
//! holds already is not done again, so a session that was killed goes on where it was.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hawqc_codegen::Target;
use hawqc_quantize::PrecisionPlan;
use hawqc_runtime::{Pool, Tensor};
use hawqc_schedules::Schedule;
use hawqc_schedules::tuning::log::{Appender, Context, Log, Record, Row, Times};
use hawqc_schedules::tuning::table::MIXTURE;
use hawqc_schedules::tuning::{Budget, Event, Known, Prepared, Task, ranked, search};

use super::choices::Choice;
use super::context::Selected;
use super::whole::faster;
use super::{Choices, InContext, Structure, Whole};
use crate::error::Error;
use crate::fill;
use crate::pipeline::{Lowered, Precision, lower};
use crate::source::Source;
use crate::tensors::to_runtime;

/// Share of the time that the widths' searches and comparisons get; the rest is for mixtures.
const SEARCH_SHARE: f64 = 0.8;
/// Rounds of a comparison in the whole network, and of a mixture's measurement.
const ROUNDS: usize = 9;
const MIXTURE_ROUNDS: usize = 5;
/// Rounds that are run even if time is up.
const FEWEST_ROUNDS: usize = 3;
/// Mixtures that are measured even if time is up.
const FEWEST_MIXTURES: usize = 3;
/// Rounds of networks so small that all of them take less than this time.
const SHORT: Duration = Duration::from_millis(300);
const MOST_ROUNDS: usize = 300;

/// How long a measurement of whole networks goes on.
pub struct Rounds {
    wanted: usize,
    start: Instant,
    until: Instant,
}

impl Rounds {
    /// So many rounds, more of them if they are short, fewer if time is up.
    pub fn new(wanted: usize, until: Instant) -> Rounds {
        Rounds { wanted, start: Instant::now(), until }
    }

    /// Whether there is another round after `done`.
    pub fn more(&self, done: usize) -> bool {
        match done {
            _ if done < FEWEST_ROUNDS.min(self.wanted) => true,
            _ if done >= MOST_ROUNDS || Instant::now() > self.until => false,
            _ => done < self.wanted || self.wanted > 0 && self.start.elapsed() < SHORT,
        }
    }
}

/// What to tune.
pub struct Job<'a> {
    pub source: &'a Source,
    /// How a float network becomes integer; its plan is replaced. `None` if the network is quantised.
    pub precision: Option<&'a Precision>,
    pub structure: &'a Structure,
    /// Choices of widths, e.g. `w4a8`.
    pub widths: Vec<String>,
    pub target: Target,
    pub context: Context,
    pub limit: Limit,
    /// Tune part `i` of `n` of the workloads, and measure no whole network.
    pub shard: Option<(usize, usize)>,
    /// Random mixtures to measure for the latency table's seams.
    pub mixtures: usize,
    pub seed: u64,
}

/// How much may be spent.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    Time(Duration),
    /// Runs of the network for each choice of widths.
    Trials(usize),
}

/// What a session tells on the way.
pub enum Progress<'a> {
    /// What is being done, and the share of the whole that is done.
    Step {
        what: &'a str,
        done: f64,
    },
    Warning(String),
    Detail(String),
}

/// What tuning a choice of widths gave.
#[derive(Clone, Debug)]
pub struct Tuned {
    pub plan: String,
    pub workloads: usize,
    /// Workloads whose winner beat the default in the whole network.
    pub improved: usize,
    /// Median times of the whole network.
    pub default_ns: u64,
    pub tuned_ns: u64,
}

/// The default of a workload and the winner of its search.
struct Found {
    default: Choice,
    best: Choice,
}

type Report<'r> = &'r mut dyn FnMut(Progress);

/// The session's state.
struct Session<'a, 'j> {
    job: &'a Job<'j>,
    log: Log,
    file: Appender,
    pool: Option<Arc<Pool>>,
    start: Instant,
    /// The first choice of widths with default schedules, once it was needed.
    reference: Option<Whole>,
}

/// Runs a session, appending to the log at `path`.
pub fn run(job: &Job, path: &Path, report: Report) -> Result<Vec<Tuned>, Error> {
    let log = if path.exists() { Log::read(path)? } else { Log::default() };
    let pool = match job.context.threads {
        1 => None,
        threads => Some(Arc::new(Pool::new(threads).map_err(hawqc_runtime::Error::from)?)),
    };
    let mut session = Session { job, log, file: Appender::open(path)?, pool, start: Instant::now(), reference: None };
    session.describe_model()?;
    let mut results = Vec::new();
    for index in 0..job.widths.len() {
        results.extend(session.width(index, report)?);
    }
    if job.shard.is_none() && job.widths.len() > 1 {
        for seed in 1..=job.mixtures {
            let over = matches!(job.limit, Limit::Time(time) if session.start.elapsed() > time);
            if over && seed > FEWEST_MIXTURES {
                let text =
                    format!("time is up after {} of {} mixtures; --resume measures the others", seed - 1, job.mixtures);
                report(Progress::Warning(text));
                break;
            }
            let done = SEARCH_SHARE + (1.0 - SEARCH_SHARE) * (seed - 1) as f64 / job.mixtures as f64;
            report(Progress::Step { what: "mixtures", done });
            session.mixture(seed as u64)?;
        }
    }
    report(Progress::Step { what: "done", done: 1.0 });
    Ok(results)
}

/// The network at given choices of widths, as the log's choices of schedules ship it.
pub fn compile_mixture(
    job: &Job,
    log: &Log,
    choices: &[String],
    pool: Option<&Arc<Pool>>,
) -> Result<(Lowered, Whole), Error> {
    let lowered = lower_choices(job, choices, MIXTURE)?;
    let known = Choices::from_log(log, &job.context.target, Some(job.context.threads));
    let (schedules, _) = known.schedules(lowered.kernels(), &job.target);
    let whole = Whole::new(&lowered, &job.target, schedules, pool, inputs(&lowered, job.seed)?)?;
    Ok((lowered, whole))
}

/// Measures two networks anew, in turns.
pub fn beside(a: &mut Whole, b: &mut Whole) -> Result<(), Error> {
    alternate(&mut [a, b], ROUNDS, Instant::now() + Duration::from_secs(86_400))
}

/// Random inputs of a lowered network.
fn inputs(lowered: &Lowered, seed: u64) -> Result<Vec<Tensor>, Error> {
    fill::inputs(lowered.kernels(), seed)?.iter().map(to_runtime).collect()
}

fn lower_choices(job: &Job, choices: &[String], label: &str) -> Result<Lowered, Error> {
    let Some(precision) = job.precision else {
        return lower(job.source, None);
    };
    let plan: PrecisionPlan = job.structure.plan(choices, precision.plan.residual_bits(), label)?;
    lower(job.source, Some(&Precision { plan, ..precision.clone() }))
}

impl Session<'_, '_> {
    fn append(&mut self, record: Record) -> Result<(), Error> {
        let row = Row::new(&self.job.context, record);
        self.file.append(&row)?;
        self.log.rows.push(row);
        Ok(())
    }

    fn has(&self, matches: impl Fn(&Record) -> bool) -> bool {
        self.log.rows.iter().any(|row| row.context == self.job.context && matches(&row.record))
    }

    fn describe_model(&mut self) -> Result<(), Error> {
        if self.has(|record| matches!(record, Record::Model { .. })) {
            return Ok(());
        }
        let Structure { layers, feeds, siblings, .. } = self.job.structure;
        self.append(Record::Model { layers: layers.clone(), feeds: feeds.clone(), siblings: siblings.clone() })
    }

    /// Tunes one choice of widths, as far as the log does not hold it already.
    fn width(&mut self, index: usize, report: Report) -> Result<Option<Tuned>, Error> {
        let job = self.job;
        let plan = job.widths[index].as_str();
        let share = SEARCH_SHARE / job.widths.len() as f64;
        report(Progress::Step { what: plan, done: share * index as f64 });
        let lowered = lower_choices(job, &job.structure.uniform(plan), plan)?;
        let graph = lowered.kernels();
        let mut network = InContext::new(graph, &job.target, self.pool.clone(), inputs(&lowered, job.seed)?)?;
        let mut choices = Choices::from_log(&self.log, &job.context.target, Some(job.context.threads));
        let open = self.open_workloads(&mut network, &mut choices, report)?;
        let tasks: Vec<Task> = open.iter().map(|&w| self.task(&network, w, report)).collect();
        let end = match job.limit {
            Limit::Trials(_) => Instant::now() + Duration::from_secs(86_400),
            Limit::Time(time) => self.start + time.mul_f64(share * (index + 1) as f64),
        };
        let best = self.search(&mut network, &open, &tasks, end, plan, [share * index as f64, share], report)?;
        if job.shard.is_some() {
            return Ok(None);
        }
        let complete = |r: &Record| matches!(r, Record::Network(n) if n.plan == plan);
        if open.is_empty() && self.has(complete) {
            return Ok(None);
        }
        report(Progress::Step { what: "comparing", done: share * (index as f64 + 0.8) });
        let mut found = BTreeMap::new();
        for ((&workload, task), best) in open.iter().zip(&tasks).zip(best) {
            let mut choice = |schedule| match network.kernel(workload, schedule)? {
                Prepared::Ready(kernel) => Ok(Some(Choice { schedule, kernel })),
                Prepared::Refused(_) => Ok::<_, Error>(None),
            };
            if let (Some(default), Some(best)) = (choice(task.candidates[0])?, choice(best)?) {
                found.insert(task.workload.clone(), Found { default, best });
            }
        }
        drop(network);
        self.compare(&lowered, plan, choices, found, end).map(Some)
    }

    /// Positions of the workloads to tune: those of this shard that the log has no valid choice for.
    fn open_workloads(
        &self,
        network: &mut InContext,
        choices: &mut Choices,
        report: Report,
    ) -> Result<Vec<usize>, Error> {
        let mut open = Vec::new();
        for index in 0..network.workloads().len() {
            if self.job.shard.is_some_and(|(part, parts)| index % parts != part) {
                continue;
            }
            let text = network.workloads()[index].text.clone();
            if let Some(choice) = choices.get(&text) {
                let (schedule, kernel) = (choice.schedule, choice.kernel.clone());
                if network.kernel(index, schedule)? == Prepared::Ready(kernel) {
                    continue;
                }
                report(Progress::Warning(format!("stale: the kernel `{schedule}` has changed; {text} is tuned again")));
                choices.remove(&text);
            }
            open.push(index);
        }
        Ok(open)
    }

    /// A workload as a task, with what the log knows of it.
    fn task(&self, network: &InContext, index: usize, report: Report) -> Task {
        let workload = &network.workloads()[index];
        let context = &self.job.context;
        let same =
            |c: &Context| (&c.machine, &c.target, c.threads) == (&context.machine, &context.target, context.threads);
        let mut known: BTreeMap<Schedule, Known> = BTreeMap::new();
        let mut refused = BTreeSet::new();
        for row in self.log.rows.iter().filter(|row| same(&row.context)) {
            match &row.record {
                Record::Kernel { workload: text, schedule, kernel, times_ns, .. } if *text == workload.text => {
                    let Ok(schedule) = schedule.parse() else {
                        continue;
                    };
                    let entry = known.entry(schedule).or_default();
                    // Times of machine code that has changed since do not mix with later ones.
                    if entry.kernel != *kernel {
                        *entry = Known { kernel: kernel.clone(), times: Vec::new() };
                    }
                    entry.times.extend(times_ns);
                }
                Record::Refused { workload: text, schedule, .. }
                    if *text == workload.text && row.context.model == context.model =>
                {
                    refused.extend(schedule.parse::<Schedule>());
                }
                _ => {}
            }
        }
        let candidates: Vec<Schedule> = workload.candidates.iter().copied().filter(|s| !refused.contains(s)).collect();
        let (candidates, from) = ranked(&workload.text, &candidates, &self.log.rows);
        if let Some(from) = from.filter(|from| *from != workload.text) {
            report(Progress::Detail(format!("{}: candidates in the order of {from}", workload.text)));
        }
        Task { workload: workload.text.clone(), candidates, known }
    }

    /// Searches the open workloads until `end`; the best schedule of each.
    #[allow(clippy::too_many_arguments, reason = "one call, from `width`")]
    fn search(
        &mut self,
        network: &mut InContext,
        open: &[usize],
        tasks: &[Task],
        end: Instant,
        plan: &str,
        progress: [f64; 2],
        report: Report,
    ) -> Result<Vec<Schedule>, Error> {
        if tasks.is_empty() {
            return Ok(Vec::new());
        }
        let run = network.typical()?;
        let (runs, stop) = match self.job.limit {
            Limit::Trials(trials) => (trials, None),
            Limit::Time(time) => {
                // A comparison compiles the network a few times and runs it for two sets of rounds.
                let compiling = network.preparing * (4 * network.steps()) as u32;
                let compare = (compiling + run * (2 * 2 * 3 * ROUNDS) as u32).min(time / 8);
                let stop = end.checked_sub(compare).unwrap_or(end);
                let left = stop.saturating_duration_since(Instant::now());
                let candidates: usize = tasks.iter().map(|t| t.candidates.len()).sum();
                let left = left.saturating_sub((network.preparing * candidates as u32).min(left / 2));
                ((left.as_secs_f64() / run.as_secs_f64().max(1e-6)) as usize, Some(stop))
            }
        };
        report(Progress::Detail(format!(
            "{plan}: {} workloads, {} candidates, {runs} runs of {:.1} ms fit",
            tasks.len(),
            tasks.iter().map(|t| t.candidates.len()).sum::<usize>(),
            run.as_secs_f64() * 1e3
        )));
        let began = Instant::now();
        let what = format!("{plan}: {} workloads", tasks.len());
        let nodes: Vec<String> = open.iter().map(|&w| network.node(w).to_owned()).collect();
        let (context, file, log) = (&self.job.context, &mut self.file, &mut self.log);
        let mut failure = None;
        let mut stale = 0;
        let mut on_event = |event: Event| {
            let record = match event {
                Event::Measured { task, schedule, kernel, times } => Record::Kernel {
                    workload: tasks[task].workload.clone(),
                    schedule: schedule.to_string(),
                    kernel: kernel.to_owned(),
                    node: nodes[task].clone(),
                    plan: plan.to_owned(),
                    times_ns: times.to_vec(),
                },
                Event::Refused { task, schedule, reason } => Record::Refused {
                    workload: tasks[task].workload.clone(),
                    schedule: schedule.to_string(),
                    reason: reason.to_owned(),
                },
                Event::Stale { .. } => {
                    stale += 1;
                    return;
                }
            };
            let row = Row::new(context, record);
            if let Err(error) = file.append(&row) {
                failure.get_or_insert(error);
            }
            log.rows.push(row);
        };
        let mut more = |done: usize| {
            let share = match stop {
                Some(stop) => began.elapsed().as_secs_f64() / (stop - began.min(stop)).as_secs_f64().max(1e-6),
                None => done as f64 / runs.max(1) as f64,
            };
            report(Progress::Step { what: &what, done: progress[0] + progress[1] * 0.8 * share.min(1.0) });
            stop.map_or(done < runs, |stop| Instant::now() < stop)
        };
        let mut selected = Selected { network, workloads: open.to_vec() };
        let outcome = search(tasks, &mut selected, &mut Budget { runs, more: &mut more }, &mut on_event)?;
        if let Some(error) = failure {
            return Err(error.into());
        }
        if stale > 0 {
            let text = format!("{stale} measurements in the log are stale: their kernels have changed; measured anew");
            report(Progress::Warning(text));
        }
        report(Progress::Detail(format!(
            "{plan}: {} runs, {} candidates tried, {}",
            outcome.runs,
            outcome.tried.iter().sum::<usize>(),
            if outcome.complete { "search complete" } else { "budget used up" }
        )));
        Ok(outcome.best)
    }

    /// Compares what was found with the defaults in the whole network, logs what each workload ships with, and
    /// the network's times.
    fn compare(
        &mut self,
        lowered: &Lowered,
        plan: &str,
        mut choices: Choices,
        found: BTreeMap<String, Found>,
        until: Instant,
    ) -> Result<Tuned, Error> {
        let (job, pool) = (self.job, self.pool.clone());
        let make = |choices: &Choices| {
            let (schedules, _) = choices.schedules(lowered.kernels(), &job.target);
            Whole::new(lowered, &job.target, schedules, pool.as_ref(), inputs(lowered, job.seed)?)
        };
        for (text, found) in &found {
            choices.insert(text.clone(), found.best.clone());
        }
        let mut default = make(&Choices::default())?;
        let mut shipped = make(&choices)?;
        if !shipped.is_same(&default) {
            alternate(&mut [&mut default, &mut shipped], ROUNDS, until)?;
        }
        let (before, after) = (default.by_workload(lowered), shipped.by_workload(lowered));
        let mut rows = Vec::new();
        let mut improved = Vec::new();
        let mut reverted = false;
        for (text, Found { default, best }) in &found {
            let [a, b] = [&after, &before].map(|times| times.get(text).map_or(&[][..], Vec::as_slice));
            let [tuned_ns, default_ns] = [a, b].map(|times| Times::of(times).median_ns);
            let wins = best.schedule != default.schedule && faster(a, b);
            if wins {
                improved.push(text);
            } else if best.schedule != default.schedule {
                choices.insert(text.clone(), default.clone());
                reverted = true;
            }
            rows.push((text.clone(), default_ns, if wins { tuned_ns } else { default_ns }));
        }
        if reverted {
            shipped = make(&choices)?;
        }
        let mut reference = self.reference(Some((plan, lowered)))?;
        let mut settle = |default: &mut Whole, shipped: &mut Whole| {
            if !shipped.is_same(default) {
                return alternate(&mut [&mut reference, default, shipped], ROUNDS, until);
            }
            // One and the same network has one time.
            alternate(&mut [&mut reference, default], ROUNDS, until)?;
            shipped.copy_times(default);
            Ok(())
        };
        settle(&mut default, &mut shipped)?;
        if shipped.total().median_ns >= default.total().median_ns && !improved.is_empty() {
            for text in improved.drain(..) {
                choices.insert(text.clone(), found[text].default.clone());
            }
            shipped = make(&choices)?;
            settle(&mut default, &mut shipped)?;
        }
        for (workload, default_ns, tuned_ns) in rows {
            if let Some(Choice { schedule, kernel }) = choices.get(&workload).cloned() {
                let (schedule, plan) = (schedule.to_string(), plan.to_owned());
                self.append(Record::Choice { workload, schedule, kernel, plan, default_ns, tuned_ns })?;
            }
        }
        let mut network = shipped.network(lowered, &job.structure.layers, plan, job.structure.uniform(plan));
        network.default_total = Some(default.total());
        network.reference = Some(reference.total());
        self.reference = Some(reference);
        let (default_ns, tuned_ns) = (default.total().median_ns, network.total.median_ns);
        self.append(Record::Network(network))?;
        let (workloads, improved) = (found.len(), improved.len());
        Ok(Tuned { plan: plan.to_owned(), workloads, improved, default_ns, tuned_ns })
    }

    /// The reference network; compiled from `lowered` if that is of its widths.
    fn reference(&mut self, lowered: Option<(&str, &Lowered)>) -> Result<Whole, Error> {
        if let Some(reference) = self.reference.take() {
            return Ok(reference);
        }
        let (job, pool) = (self.job, self.pool.as_ref());
        let make =
            |lowered: &Lowered| Whole::new(lowered, &job.target, BTreeMap::new(), pool, inputs(lowered, job.seed)?);
        let first = job.widths[0].as_str();
        match lowered {
            Some((plan, lowered)) if plan == first => make(lowered),
            _ => make(&lower_choices(job, &job.structure.uniform(first), first)?),
        }
    }

    fn mixture(&mut self, seed: u64) -> Result<(), Error> {
        let plan = format!("{MIXTURE} {seed}");
        if self.has(|record| matches!(record, Record::Network(n) if n.plan == plan)) {
            return Ok(());
        }
        let choices = self.job.structure.mixture(&self.job.widths, seed);
        let share = SEARCH_SHARE + (1.0 - SEARCH_SHARE) * seed as f64 / self.job.mixtures.max(1) as f64;
        let until = match self.job.limit {
            Limit::Time(time) => self.start + time.mul_f64(share),
            Limit::Trials(_) => Instant::now() + Duration::from_secs(86_400),
        };
        let mut reference = self.reference(None)?;
        let (lowered, mut whole) = compile_mixture(self.job, &self.log, &choices, self.pool.as_ref())?;
        alternate(&mut [&mut reference, &mut whole], MIXTURE_ROUNDS, until)?;
        let mut network = whole.network(&lowered, &self.job.structure.layers, &plan, choices);
        network.reference = Some(reference.total());
        self.reference = Some(reference);
        self.append(Record::Network(network))
    }
}

/// Measures networks anew, in turns, until a time if that leaves enough rounds.
fn alternate(networks: &mut [&mut Whole], wanted: usize, until: Instant) -> Result<(), Error> {
    networks.iter_mut().for_each(|network| network.forget());
    let rounds = Rounds::new(wanted, until);
    let mut done = 0;
    while rounds.more(done) {
        for network in networks.iter_mut() {
            network.round()?;
        }
        done += 1;
    }
    Ok(())
}
