//! `hawqc bench`: latency of a compiled model.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hawqc_driver::{limit, target_of, write_file};
use hawqc_runtime::pool::{Pool, default_threads};
use hawqc_runtime::{Entry, Manifest, Model, Session, Tensor, TensorMut, TensorRef};
use hawqc_schedules::{Multiply, Schedule};
use serde::Serialize;

use super::run::make_inputs;
use crate::args::{Bench, Fill, Global};
use crate::console::{Console, table, time};
use crate::failure::Failure;

/// Order statistics of a set of times, in nanoseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    pub median_ns: u64,
    pub p10_ns: u64,
    pub p90_ns: u64,
    pub runs: usize,
    pub threads: usize,
}

/// What `--json` says.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    latency: Latency,
    /// How long threads take to begin and end a step together, where each has a CPU.
    meeting_ns: Option<u64>,
}

#[derive(Serialize)]
struct Step {
    name: String,
    kernel: String,
    macs: u64,
    median_ns: u64,
    /// Multiply-accumulates per second over the most that the cores reach by direct products.
    of_limit: Option<f64>,
}

pub fn run(args: &Bench, global: &Global, console: &Console) -> Result<(), Failure> {
    let model = Arc::new(Model::open(&args.model).map_err(hawqc_runtime::Error::from)?);
    let threads =
        global.threads.map_or_else(default_threads, |n| Ok(n as usize)).map_err(hawqc_runtime::Error::from)?;
    let pool = Arc::new(Pool::new(threads).map_err(hawqc_runtime::Error::from)?);
    let mut session = Session::with_pool(Arc::clone(&model), Arc::clone(&pool))?;
    let inputs = make_inputs(&model, Entry::Border, Fill::Random, global.seed)?;
    let limit = Limit { warmup: args.warmup, iterations: args.iters, duration: args.duration };
    let latency = measure(&mut session, &inputs, limit)?;
    let meeting_ns = pool.meeting_time().map(|time| time.as_nanos() as u64);
    let report = Report { latency, meeting_ns };
    if !args.profile {
        return console.result(&report, || describe(&report));
    }
    let mut steps = profile(&mut session, &inputs, limit)?;
    let limits = compare_with_limit(&mut steps, model.manifest(), session.threads())?;
    if let Some(path) = &args.trace {
        write_file(path, trace(&steps).to_string().as_bytes())?;
    }
    let total: u64 = steps.iter().map(|s| s.median_ns).sum();
    console.result(&serde_json::json!({ "latency": report, "limits": limits, "steps": steps }), || {
        let row = |s: &Step| {
            let share = 100.0 * s.median_ns as f64 / total.max(1) as f64;
            let rate = s.macs as f64 / s.median_ns.max(1) as f64;
            let time = time(Duration::from_nanos(s.median_ns));
            let of_limit = s.of_limit.map(|share| format!("{:.0} %", 100.0 * share)).unwrap_or_default();
            vec![s.name.clone(), s.kernel.clone(), time, format!("{share:.1} %"), format!("{rate:.1}"), of_limit]
        };
        let table = table(&["step", "kernel", "median", "share", "GMAC/s", "of limit"], steps.iter().map(row));
        let rates: Vec<String> =
            limits.iter().map(|l| format!("{:.1} GMAC/s by `{}`", l.macs_per_second / 1e9, l.multiply)).collect();
        let limits = if rates.is_empty() { String::new() } else { format!("limit of a core: {}\n", rates.join(", ")) };
        format!("{table}\n{limits}{}", describe(&report))
    })
}

/// What a core reaches by one kind of products.
#[derive(Serialize)]
struct CoreLimit {
    multiply: &'static str,
    macs_per_second: f64,
}

/// Fills in [`Step::of_limit`], and returns the limits, measured here and now.
fn compare_with_limit(steps: &mut [Step], manifest: &Manifest, threads: usize) -> Result<Vec<CoreLimit>, Failure> {
    let target = target_of(manifest)?;
    let mut limits = limit::Limits::new(&target);
    for step in steps {
        let Some(schedule) = step.kernel.split_once(' ').and_then(|(_, schedule)| schedule.parse::<Schedule>().ok())
        else {
            continue;
        };
        let of_one = limits.share(schedule, step.macs, step.median_ns).map_err(hawqc_driver::Error::from)?;
        step.of_limit = of_one.map(|share| share / threads as f64);
    }
    let limit =
        |&(multiply, macs_per_second): &(Multiply, f64)| CoreLimit { multiply: multiply.name(), macs_per_second };
    Ok(limits.measured().iter().map(limit).collect())
}

/// The steps as complete events of the Trace Event Format, in microseconds.
fn trace(steps: &[Step]) -> serde_json::Value {
    let mut start = 0.0;
    let mut event = |step: &Step| {
        let duration = step.median_ns as f64 / 1e3;
        let event = serde_json::json!({
            "name": step.name, "cat": "step", "ph": "X", "pid": 0, "tid": 0, "ts": start, "dur": duration,
            "args": { "kernel": step.kernel, "macs": step.macs },
        });
        start += duration;
        event
    };
    serde_json::json!({ "displayTimeUnit": "ms", "traceEvents": steps.iter().map(&mut event).collect::<Vec<_>>() })
}

fn describe(Report { latency, meeting_ns }: &Report) -> String {
    let [median, p10, p90] =
        [latency.median_ns, latency.p10_ns, latency.p90_ns].map(|ns| time(Duration::from_nanos(ns)));
    let meeting = meeting_ns.map(|ns| format!(", which meet within {}", time(Duration::from_nanos(ns))));
    let meeting = meeting.unwrap_or_default();
    format!("median {median}, p10 {p10}, p90 {p90} over {} runs on {} threads{meeting}", latency.runs, latency.threads)
}

/// When to stop measuring.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    pub warmup: usize,
    pub iterations: Option<usize>,
    pub duration: Duration,
}

impl Limit {
    fn reached(&self, runs: usize, start: Instant) -> bool {
        self.iterations.map_or_else(|| runs > 0 && start.elapsed() >= self.duration, |n| runs >= n.max(1))
    }
}

/// Latency of whole runs; nothing is allocated while the clock runs.
pub fn measure(session: &mut Session, inputs: &[Tensor], limit: Limit) -> Result<Latency, Failure> {
    let mut outputs = session.new_outputs(Entry::Border).map_err(hawqc_runtime::Error::from)?;
    let mut once = |session: &mut Session| {
        let views: Vec<TensorRef> = inputs.iter().map(Tensor::view).collect();
        let mut into: Vec<TensorMut> = outputs.iter_mut().map(Tensor::view_mut).collect();
        let start = Instant::now();
        let result = session.run_into(Entry::Border, &views, &mut into);
        let elapsed = start.elapsed();
        result.map(|()| elapsed).map_err(hawqc_runtime::Error::from)
    };
    for _ in 0..limit.warmup {
        once(session)?;
    }
    let mut times = Vec::new();
    let start = Instant::now();
    while !limit.reached(times.len(), start) {
        times.push(once(session)?.as_nanos() as u64);
    }
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    Ok(Latency { median_ns: at(50), p10_ns: at(10), p90_ns: at(90), runs: times.len(), threads: session.threads() })
}

/// Median time of each step.
fn profile(session: &mut Session, inputs: &[Tensor], limit: Limit) -> Result<Vec<Step>, Failure> {
    let model = Arc::clone(session.model());
    let count = model.manifest().steps.len();
    let mut outputs = session.new_outputs(Entry::Border).map_err(hawqc_runtime::Error::from)?;
    let mut times: Vec<Vec<u64>> = vec![Vec::new(); count];
    let start = Instant::now();
    let mut runs = 0;
    while !limit.reached(runs, start) {
        let views: Vec<TensorRef> = inputs.iter().map(Tensor::view).collect();
        let mut into: Vec<TensorMut> = outputs.iter_mut().map(Tensor::view_mut).collect();
        let mut last = Instant::now();
        let mut on_step = |step: usize| {
            let now = Instant::now();
            if let Some(times) = step.checked_sub(1).and_then(|s| times.get_mut(s)) {
                times.push((now - last).as_nanos() as u64);
            }
            last = now;
        };
        session.run_observed(Entry::Border, &views, &mut into, &mut on_step).map_err(hawqc_runtime::Error::from)?;
        runs += 1;
    }
    let median = |times: &mut Vec<u64>| {
        times.sort_unstable();
        times.get(times.len() / 2).copied().unwrap_or(0)
    };
    let medians: Vec<u64> = times.iter_mut().map(median).collect();
    let step = |(step, median_ns): (&hawqc_runtime::manifest::StepDesc, u64)| Step {
        name: step.name.clone(),
        kernel: step.kernel.clone(),
        macs: step.macs,
        median_ns,
        of_limit: None,
    };
    Ok(model.manifest().steps.iter().zip(medians).map(step).collect())
}
