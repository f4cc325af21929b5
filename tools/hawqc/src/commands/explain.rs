//! `hawqc explain`: which kernels a model consists of.

use hawqc_driver::{CompileOptions, Source, compile, lower, stage_names};
use hawqc_runtime::manifest::StepDesc;
use hawqc_runtime::{Manifest, Model};
use serde_json::json;

use super::{is_compiled, precision, target};
use crate::args::Explain;
use crate::console::{Console, table, write_stdout};
use crate::failure::Failure;

pub fn run(args: &Explain, console: &Console) -> Result<(), Failure> {
    let Some(path) = args.model.as_ref().filter(|_| !args.stages) else {
        return write_stdout(&stage_names().join("\n"));
    };
    let (manifest, report) = if is_compiled(path) {
        (Model::read_manifest(path).map_err(hawqc_runtime::Error::from)?, None)
    } else {
        let source = Source::load(path, args.precision.batch.map(|n| n as usize))?;
        let precision = precision(&args.precision, &source)?;
        let lowered = lower(&source, precision.as_ref())?;
        let report = lowered.report.to_string();
        let options = CompileOptions { target: target(&args.target)?, keep_values: false };
        (compile(lowered, &options)?.artifact.manifest, Some(report))
    };
    match &args.node {
        Some(node) => one(&manifest, node, console),
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
        format!("{table}\n{}{}", report.map(|r| r + "\n").unwrap_or_default(), note(manifest))
    })
}

fn one(manifest: &Manifest, node: &str, console: &Console) -> Result<(), Failure> {
    let steps: Vec<&StepDesc> = manifest.steps.iter().filter(|s| s.name == node).collect();
    if steps.is_empty() {
        return Err(Failure::invalid(format!("no step is named `{node}`")).hint("hawqc explain MODEL lists the steps"));
    }
    console.result(&steps, || {
        let text = |s: &&StepDesc| format!("{}: {}, {:.2} M MAC\n{}", s.name, s.kernel, s.macs as f64 / 1e6, s.spec);
        steps.iter().map(text).collect::<Vec<_>>().join("\n") + &note(manifest)
    })
}

/// What a reader of the table has to know about the target.
fn note(manifest: &Manifest) -> String {
    let wide = manifest.features.iter().any(|f| f.starts_with("avx2") || f.starts_with("avx512"));
    let text = "kernels are the portable 128-bit ones: this target has wider vectors, which no kernel uses yet";
    if wide { text.into() } else { String::new() }
}
