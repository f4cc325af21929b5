//! `hawqc explain`: which kernels a model consists of.

use std::collections::BTreeMap;
use std::time::Duration;

use hawqc_driver::{CompileOptions, Source, Target, compile, limit, lower, stage_names};
use hawqc_ir::Op;
use hawqc_runtime::manifest::StepDesc;
use hawqc_runtime::{Manifest, Model};
use hawqc_schedules::Schedule;
use hawqc_schedules::tuning::log::{Log, Record, Times};
use hawqc_schedules::tuning::workload;
use serde::Serialize;
use serde_json::json;

use super::tune::read_log;
use super::{is_compiled, precision, target, target_text};
use crate::args::Explain;
use crate::console::{Console, table, time, write_stdout};
use crate::failure::Failure;

pub fn run(args: &Explain, console: &Console) -> Result<(), Failure> {
    let Some(path) = args.model.as_ref().filter(|_| !args.stages) else {
        return write_stdout(&stage_names().join("\n"));
    };
    let mut known = Vec::new();
    let (manifest, report) = if is_compiled(path) {
        if args.tuning.is_some() {
            return Err(Failure::usage("`--tuning` explains a network (.onnx), whose kernels it can name"));
        }
        (Model::read_manifest(path).map_err(hawqc_runtime::Error::from)?, None)
    } else {
        let source = Source::load(path, args.precision.batch.map(|n| n as usize))?;
        let precision = precision(&args.precision, &source)?;
        let lowered = lower(&source, precision.as_ref())?;
        let report = lowered.report.to_string();
        if let (Some(log), Some(node)) = (&args.tuning, &args.node) {
            let graph = lowered.kernels();
            let of_node = graph.values().filter(|&id| graph.name(id) == node);
            let kernel = |id| if let Op::Kernel(spec) = graph.op(id) { Some(workload::text(spec)) } else { None };
            let workloads: Vec<String> = of_node.filter_map(kernel).collect();
            known = measured(&read_log(log, console)?, &target_text(&args.target), &workloads);
        }
        let target = target(&args.target)?;
        let manifest = compile(lowered, &CompileOptions::new(target.clone()))?.artifact.manifest;
        let macs = manifest.steps.iter().find(|s| Some(&s.name) == args.node.as_ref()).map_or(0, |s| s.macs);
        compare_with_limit(&mut known, macs, &target)?;
        (manifest, Some(report))
    };
    match &args.node {
        Some(node) => one(&manifest, node, &known, console),
        None => all(&manifest, report, console),
    }
}

fn all(manifest: &Manifest, report: Option<String>, console: &Console) -> Result<(), Failure> {
    let json = json!({ "target": manifest.target, "steps": manifest.steps, "rewriting": report });
    console.result(&json, || {
        let row = |(i, s): (usize, &StepDesc)| {
            vec![i.to_string(), s.name.clone(), s.kernel.clone(), format!("{:.2}", s.macs as f64 / 1e6)]
        };
        let table = table(&["step", "node", "kernel", "M MAC"], manifest.steps.iter().enumerate().map(row));
        format!("{table}{}", report.map(|r| format!("\n{r}")).unwrap_or_default())
    })
}

fn one(manifest: &Manifest, node: &str, measured: &[Measured], console: &Console) -> Result<(), Failure> {
    let steps: Vec<&StepDesc> = manifest.steps.iter().filter(|s| s.name == node).collect();
    if steps.is_empty() {
        return Err(Failure::invalid(format!("no step is named `{node}`")).hint("hawqc explain MODEL lists the steps"));
    }
    console.result(&json!({ "steps": steps, "measured": measured }), || {
        let text = |s: &&StepDesc| {
            let notes: String = s.notes.iter().map(|note| format!("  {note}\n")).collect();
            format!("{}: {}, {:.2} M MAC\n{notes}{}", s.name, s.kernel, s.macs as f64 / 1e6, s.spec)
        };
        let steps = steps.iter().map(text).collect::<Vec<_>>().join("\n");
        if measured.is_empty() { steps } else { format!("{steps}\n{}", comparison(measured)) }
    })
}

/// What a tuning log knows of a schedule of one kernel.
#[derive(Serialize)]
struct Measured {
    workload: String,
    schedule: String,
    /// Nothing for a schedule that the weights rule out.
    median_ns: Option<u64>,
    /// Multiply-accumulates per second over the most that a core of this machine reaches by direct products.
    of_limit: Option<f64>,
    /// Why it was refused, or that it was chosen.
    remark: String,
}

/// What the log has of a node's kernels, the fastest schedule first; of all rows of a schedule the last counts.
fn measured(log: &Log, target: &str, workloads: &[String]) -> Vec<Measured> {
    let mut found: BTreeMap<(&str, &str), (Option<u64>, String)> = BTreeMap::new();
    let rows = || log.rows.iter().filter(|row| row.context.target == target);
    for row in rows() {
        match &row.record {
            Record::Kernel { workload, schedule, times_ns, .. } => {
                found.insert((workload, schedule), (Some(Times::of(times_ns).median_ns), String::new()));
            }
            Record::Refused { workload, schedule, reason } => {
                found.insert((workload, schedule), (None, reason.clone()));
            }
            _ => {}
        }
    }
    for row in rows() {
        if let Record::Choice { workload, schedule, .. } = &row.record
            && let Some((Some(_), remark)) = found.get_mut(&(workload.as_str(), schedule.as_str()))
        {
            *remark = "chosen".into();
        }
    }
    let of_node = found.into_iter().filter(|((workload, _), _)| workloads.iter().any(|w| w == workload));
    let mut all: Vec<Measured> = of_node
        .map(|((workload, schedule), (median_ns, remark))| Measured {
            workload: workload.to_owned(),
            schedule: schedule.to_owned(),
            median_ns,
            of_limit: None,
            remark,
        })
        .collect();
    all.sort_by_key(|m| (m.workload.clone(), m.median_ns.unwrap_or(u64::MAX)));
    all
}

/// Fills in [`Measured::of_limit`] where this machine can tell the limit.
fn compare_with_limit(measured: &mut [Measured], macs: u64, target: &Target) -> Result<(), Failure> {
    let mut limits = limit::Limits::new(target);
    for row in measured.iter_mut().filter(|_| target.runs_here()) {
        if let (Ok(schedule), Some(ns)) = (row.schedule.parse::<Schedule>(), row.median_ns) {
            row.of_limit = limits.share(schedule, macs, ns).map_err(hawqc_driver::Error::from)?;
        }
    }
    Ok(())
}

fn comparison(measured: &[Measured]) -> String {
    let row = |m: &Measured| {
        let best = measured.iter().filter(|o| o.workload == m.workload).filter_map(|o| o.median_ns).min();
        let ratio = m.median_ns.zip(best).map(|(ns, best)| format!("{:.2}", ns as f64 / best.max(1) as f64));
        let time = m.median_ns.map(|ns| time(Duration::from_nanos(ns)));
        let of_limit = m.of_limit.map(|share| format!("{:.0} %", 100.0 * share)).unwrap_or_default();
        vec![m.schedule.clone(), time.unwrap_or_default(), ratio.unwrap_or_default(), of_limit, m.remark.clone()]
    };
    table(&["schedule", "measured", "to the best", "of limit", ""], measured.iter().map(row))
}
