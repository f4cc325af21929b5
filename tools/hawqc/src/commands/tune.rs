//! `hawqc tune`: the fastest schedules on this machine, by measurement.

use std::path::Path;

use hawqc_driver::tune::{self, Job, Limit, Progress, Structure, structure};
use hawqc_driver::{Precision, Source, Target};
use hawqc_runtime::pool::default_threads;
use hawqc_schedules::tuning::log::{Context, Log};
use serde_json::json;

use super::{precision, target, target_text};
use crate::args::{self, Global, Tune};
use crate::console::{Console, table, time};
use crate::failure::{Failure, Kind};

/// Units of the progress bar.
const PARTS: usize = 1000;

/// What tuning and the validation of its table start from.
pub struct Subject {
    pub source: Source,
    pub precision: Option<Precision>,
    pub structure: Structure,
    pub target: Target,
    pub context: Context,
    /// Choices of widths.
    pub widths: Vec<String>,
}

impl Subject {
    pub fn new(
        model: &Path,
        args: &args::Precision,
        target_args: &args::TargetArgs,
        global: &Global,
    ) -> Result<Subject, Failure> {
        let target = target(target_args)?;
        if !target.runs_here() {
            let missing: Vec<&str> = target.missing_here().iter().map(|f| f.name()).collect();
            let message = format!("target {target} cannot be measured here: this machine lacks {}", missing.join(" "));
            return Err(Failure::new(Kind::Cpu, message).hint("--target host"));
        }
        let source = Source::load(model, args.batch.map(|n| n as usize))?;
        let widths = widths(args.bits.as_deref(), source.is_quantized())?;
        let uniform = args::Precision { bits: args.bits.as_ref().map(|_| "8".to_owned()), ..args.clone() };
        let precision = precision(&uniform, &source)?;
        let structure = match &precision {
            Some(_) => Structure::of(&hawqc_driver::float_form(&source)?)?,
            None => Structure::of(&source.graph)?,
        };
        let threads = match global.threads {
            Some(threads) => threads as usize,
            None => default_threads().map_err(hawqc_runtime::Error::from)?,
        };
        let context = Context {
            machine: tune::fingerprint(),
            target: target_text(target_args),
            threads,
            model: source.hash.clone(),
        };
        Ok(Subject { source, precision, structure, target, context, widths })
    }

    /// As a job with a limit.
    pub fn job(&self, limit: Limit, seed: u64) -> Job<'_> {
        Job {
            source: &self.source,
            precision: self.precision.as_ref(),
            structure: &self.structure,
            widths: self.widths.clone(),
            target: self.target.clone(),
            context: self.context.clone(),
            limit,
            shard: None,
            mixtures: 0,
            seed,
        }
    }
}

/// The widths that a list names, as `w4a8`; a quantised network has its own.
fn widths(bits: Option<&str>, is_quantized: bool) -> Result<Vec<String>, Failure> {
    if is_quantized && bits.is_none() {
        return Ok(vec!["own".into()]);
    }
    let mut found = Vec::new();
    for text in bits.unwrap_or("8,4,w4a8").split(',') {
        let Some(bits) = structure::parse(text.trim()) else {
            let message = format!("`{text}` is not a width; `--bits` of tune is a list such as 8,4,w4a8");
            return Err(Failure::usage(message));
        };
        let width = format!("w{}a{}", bits.weights, bits.activations);
        if !found.contains(&width) {
            found.push(width);
        }
    }
    Ok(found)
}

/// Reads a tuning log and warns of lines that were dropped.
pub fn read_log(path: &Path, console: &Console) -> Result<Log, Failure> {
    let log = Log::read(path).map_err(|e| Failure::invalid(format!("{}: {e}", path.display())))?;
    for line in &log.torn {
        console.warn(format!("{}: line {line} is cut short; it was dropped", path.display()));
    }
    Ok(log)
}

pub fn run(args: &Tune, global: &Global, console: &Console) -> Result<(), Failure> {
    let start = std::time::Instant::now();
    super::check_output(&args.output, &args.model)?;
    if args.output.exists() && !args.resume {
        let message = format!("{} exists already", args.output.display());
        return Err(Failure::usage(message).hint("--resume goes on with it"));
    }
    let subject = Subject::new(&args.model, &args.precision, &args.target, global)?;
    if args.output.exists() {
        let log = read_log(&args.output, console)?;
        let machine = log.machine().map_err(|e| Failure::invalid(format!("{}: {e}", args.output.display())))?;
        if let Some(other) = machine.filter(|m| *m != subject.context.machine) {
            let message = format!(
                "{} was measured on another machine:\n  {other}\nthis one is\n  {}",
                args.output.display(),
                subject.context.machine
            );
            return Err(Failure::invalid(message).hint("write to another file"));
        }
    }
    let limit = args.trials.map_or(Limit::Time(args.time_budget), Limit::Trials);
    let job = Job { shard: args.shard, mixtures: args.mixtures, ..subject.job(limit, global.seed) };
    let bar = console.progress("tuning", PARTS);
    let results = tune::job::run(&job, &args.output, &mut |progress| match progress {
        Progress::Step { what, done } => {
            bar.set_message(what.to_owned());
            bar.set_position((done * PARTS as f64) as u64);
        }
        Progress::Warning(text) => bar.suspend(|| console.warn(text)),
        Progress::Detail(text) => bar.suspend(|| console.detail(|| text)),
    });
    bar.finish_and_clear();
    let results = results?;
    let json: Vec<_> = results
        .iter()
        .map(|r| {
            json!({ "plan": r.plan, "workloads": r.workloads, "improved": r.improved,
                    "default_ns": r.default_ns, "tuned_ns": r.tuned_ns })
        })
        .collect();
    let seconds = start.elapsed().as_secs_f64();
    let summary = json!({ "log": args.output, "seconds": seconds, "threads": job.context.threads, "widths": json });
    console.result(&summary, || {
        let ms = |ns: u64| time(std::time::Duration::from_nanos(ns));
        let row = |r: &tune::job::Tuned| {
            let gain = 100.0 * (1.0 - r.tuned_ns as f64 / r.default_ns.max(1) as f64);
            let improved = format!("{} of {}", r.improved, r.workloads);
            vec![r.plan.clone(), improved, ms(r.default_ns), ms(r.tuned_ns), format!("{gain:.1} %")]
        };
        let rows = table(&["widths", "workloads improved", "default", "tuned", "gain"], results.iter().map(row));
        format!("{rows}\n{}: {} threads, {}", args.output.display(), job.context.threads, time(start.elapsed()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_widths() {
        assert_eq!(widths(None, false).unwrap(), ["w8a8", "w4a4", "w4a8"]);
        assert_eq!(widths(Some("4, w4a8,4"), false).unwrap(), ["w4a4", "w4a8"]);
        assert_eq!(widths(None, true).unwrap(), ["own"]);
        for bad in ["", "9", "8,,4", "w8", "hawq:x"] {
            assert!(widths(Some(bad), false).is_err(), "{bad}");
        }
    }
}
