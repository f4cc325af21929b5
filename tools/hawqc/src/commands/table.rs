//! `hawqc table`: from a tuning log to a latency table, and how well that predicts.

use std::sync::Arc;
use std::time::Duration;

use hawqc_driver::tune::job::{Limit, beside, compile_mixture};
use hawqc_driver::write_file;
use hawqc_runtime::Pool;
use hawqc_schedules::latency::LatencyTable;
use hawqc_schedules::tuning::log::Log;
use hawqc_schedules::tuning::table::table as make_table;
use serde::Serialize;
use serde_json::json;

use super::tune::{Subject, read_log};
use crate::args::{Global, Table};
use crate::console::{Console, table, time};
use crate::failure::Failure;

/// Seeds of the mixtures that a table is checked with; those it is fitted to count from 1.
const FIRST_SEED: u64 = 1_000_000;

pub fn run(args: &Table, global: &Global, console: &Console) -> Result<(), Failure> {
    let log = read_log(&args.log, console)?;
    let invalid = |e: String| Failure::invalid(format!("{}: {e}", args.log.display()));
    let made = make_table(&log).map_err(|e| invalid(e.to_string()))?;
    made.check().map_err(|e| invalid(e.to_string()))?;
    let checks = match args.validate {
        Some(count) => validate(args, count, global, &log, &made, console)?,
        None => Vec::new(),
    };
    if let Some(output) = &args.output {
        write_file(output, made.to_json().as_bytes())?;
    }
    let [median, worst] = summary(&checks, |c| c.error);
    let json = json!({
        "written": args.output, "layers": made.layers.len(), "seams": made.seams.len(), "fixed_ns": made.fixed_ns,
        "checks": checks, "median_error": median, "worst_error": worst,
    });
    console.result(&json, || {
        let written = args.output.as_ref().map(|path| format!("{}: ", path.display())).unwrap_or_default();
        let counts = format!("{written}{} layers, {} seams", made.layers.len(), made.seams.len());
        if checks.is_empty() { counts } else { format!("{}\n{counts}", describe(&checks, median, worst)) }
    })
}

/// A mixture, predicted and measured.
#[derive(Serialize)]
struct Check {
    seed: u64,
    predicted_ns: f64,
    measured_ns: f64,
    /// Of the prediction, relative to what was measured.
    error: f64,
    /// The same without seams.
    error_without_seams: f64,
    /// The same of the ratio to a network of one width measured in turns with the mixture: what is left of the error
    /// if the machine as a whole became faster or slower since the table was measured.
    error_of_ratio: f64,
}

fn describe(checks: &[Check], median: Option<f64>, worst: Option<f64>) -> String {
    let ms = |ns: f64| time(Duration::from_nanos(ns as u64));
    let percent = |x: f64| format!("{:.1} %", 100.0 * x);
    let row = |c: &Check| {
        let errors = [c.error, c.error_without_seams, c.error_of_ratio].map(percent);
        [vec![c.seed.to_string(), ms(c.predicted_ns), ms(c.measured_ns)], errors.into()].concat()
    };
    let rows =
        table(&["mixture", "predicted", "measured", "error", "without seams", "of ratio"], checks.iter().map(row));
    let text = |[median, worst]: [Option<f64>; 2]| {
        let [median, worst] = [median, worst].map(|x| percent(x.unwrap_or(0.0)));
        format!("median {median}, worst {worst}")
    };
    format!(
        "{rows}\nerror over {} mixtures: {}; without seams {}; of the ratio to one width {}",
        checks.len(),
        text([median, worst]),
        text(summary(checks, |c| c.error_without_seams)),
        text(summary(checks, |c| c.error_of_ratio))
    )
}

/// Median and largest magnitude of an error.
fn summary(checks: &[Check], error: impl Fn(&Check) -> f64) -> [Option<f64>; 2] {
    let mut errors: Vec<f64> = checks.iter().map(|c| error(c).abs()).collect();
    errors.sort_by(f64::total_cmp);
    [errors.get(errors.len() / 2).copied(), errors.last().copied()]
}

fn validate(
    args: &Table,
    count: usize,
    global: &Global,
    log: &Log,
    made: &LatencyTable,
    console: &Console,
) -> Result<Vec<Check>, Failure> {
    let Some(network) = &args.network else {
        return Ok(Vec::new());
    };
    // By default on as many threads as the table was measured on.
    let global = &Global { threads: global.threads.or(u32::try_from(made.threads).ok()), ..global.clone() };
    let mut subject = Subject::new(network, &args.precision, &args.target, global)?;
    let context = &subject.context;
    for (what, table, here) in [
        ("network", &made.model_hash, &context.model),
        ("machine", &made.machine, &context.machine),
        ("target", &made.target, &context.target),
        ("number of threads", &made.threads.to_string(), &context.threads.to_string()),
    ] {
        if table != here {
            let message = format!("{}: measured for another {what}: {table}; here it is {here}", args.log.display());
            return Err(Failure::invalid(message));
        }
    }
    // Of the widths that every inner layer was measured at.
    let inner = || made.layers.iter().zip(&subject.structure.edges).filter(|(_, edge)| !**edge).map(|(layer, _)| layer);
    let widths = inner().next().map(|layer| layer.choices.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
    subject.widths = widths.into_iter().filter(|w| inner().all(|layer| layer.choices.contains_key(w))).collect();
    if subject.widths.len() < 2 {
        return Err(Failure::invalid(format!("{}: fewer than two widths, so nothing mixes", args.log.display())));
    }
    let pool = match subject.context.threads {
        1 => None,
        threads => Some(Arc::new(Pool::new(threads).map_err(hawqc_runtime::Error::from)?)),
    };
    let job = subject.job(Limit::Trials(0), global.seed);
    let bare = LatencyTable { seams: Vec::new(), ..made.clone() };
    let uniform = subject.structure.uniform(&subject.widths[0]);
    let named = |choices: Vec<String>| subject.structure.layers.iter().cloned().zip(choices).collect();
    let predict = |table: &LatencyTable, choices: Vec<String>| {
        table.predict(&named(choices)).map_err(|e| Failure::invalid(e.to_string()))
    };
    let reference_ns = predict(made, uniform.clone())?;
    let (_, mut reference) = compile_mixture(&job, log, &uniform, pool.as_ref())?;
    let bar = console.progress("measuring", count);
    let mut checks = Vec::new();
    for seed in FIRST_SEED..FIRST_SEED + count as u64 {
        let choices = subject.structure.mixture(&subject.widths, seed);
        let (_, mut whole) = compile_mixture(&job, log, &choices, pool.as_ref())?;
        beside(&mut reference, &mut whole)?;
        let (predicted_ns, bare_ns) = (predict(made, choices.clone())?, predict(&bare, choices)?);
        let measured_ns = whole.total().median_ns as f64;
        let drift = reference.total().median_ns as f64 / reference_ns;
        let error = |ns: f64| ns / measured_ns - 1.0;
        let [error, error_without_seams, error_of_ratio] = [predicted_ns, bare_ns, predicted_ns * drift].map(error);
        checks.push(Check { seed, predicted_ns, measured_ns, error, error_without_seams, error_of_ratio });
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(checks)
}
