//! `hawqc compile`: from a network to a shared object, or to any stage on the way.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hawqc_driver::tune::Choices;
use hawqc_driver::{CompileOptions, Compiled, LinkWith, Lowered, Source, Target, compile_tuned, lower, write_file};
use hawqc_ir::KernelSpec;
use hawqc_schedules::Schedule;
use serde_json::json;

use super::tune::read_log;
use super::{check_output, precision, target, target_text};
use crate::args::{Compile, Global};
use crate::console::{Console, bytes, time};
use crate::failure::Failure;

pub fn run(args: &Compile, global: &Global, console: &Console) -> Result<(), Failure> {
    let start = std::time::Instant::now();
    let base = args.output.clone().unwrap_or_else(|| args.model.with_extension("so"));
    check_output(&base, &args.model)?;
    let source = Source::load(&args.model, args.precision.batch.map(|n| n as usize))?;
    let precision = precision(&args.precision, &source)?;
    let target = target(&args.target)?;
    let lowered = lower(&source, precision.as_ref())?;
    for stage in lowered.stages() {
        console.detail(|| format!("{:>12} {} values in {}", stage.name, stage.graph.len(), time(stage.elapsed)));
    }
    let schedules = match &args.tuning {
        Some(log) => tuned(log, args, global, &lowered, &target, console)?,
        None => BTreeMap::new(),
    };
    let options = CompileOptions { target, keep_values: args.keep_values, max_resident: args.max_resident };
    let compiled = compile_tuned(lowered, &options, schedules)?;
    let with = if args.link_with_cc { LinkWith::Cc { command: "cc".into() } } else { LinkWith::Own };
    let written = emit(&compiled, &args.emit, &base, &with)?;
    let manifest = &compiled.artifact.manifest;
    let summary = json!({
        "written": written, "target": manifest.target, "steps": manifest.steps.len(),
        "weight_bytes": manifest.weight_bytes, "constant_bytes": manifest.constant_bytes,
        "arena_bytes": manifest.arena_bytes, "seconds": start.elapsed().as_secs_f64(),
    });
    console.result(&summary, || {
        format!(
            "{}: {} steps for {}, weights {}, arena {}, in {}",
            written.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "),
            manifest.steps.len(),
            manifest.target,
            bytes(manifest.weight_bytes),
            bytes(manifest.arena_bytes),
            time(start.elapsed())
        )
    })
}

/// The schedules that a tuning log has for the network's kernels; what it does not know or what has changed since
/// is said.
fn tuned(
    path: &Path,
    args: &Compile,
    global: &Global,
    lowered: &Lowered,
    target: &Target,
    console: &Console,
) -> Result<BTreeMap<KernelSpec, Schedule>, Failure> {
    let log = read_log(path, console)?;
    let name = target_text(&args.target);
    let mut choices = Choices::from_log(&log, &name, global.threads.map(|n| n as usize));
    if choices.is_empty() {
        let message = format!("{} chooses no schedule for target {name}", path.display());
        return Err(Failure::invalid(message).hint(format!("hawqc tune MODEL --target {name} -o tune.jsonl")));
    }
    let machine = log.machine().ok().flatten();
    if target.runs_here() && machine.is_some_and(|m| m != hawqc_driver::tune::fingerprint()) {
        console.warn(format!("{} was measured on another machine: {}", path.display(), machine.unwrap_or_default()));
    }
    for workload in
        choices.drop_stale(lowered.kernels(), &lowered.model_hash, target).map_err(hawqc_driver::Error::from)?
    {
        console.warn(format!("stale: the kernel measured for {workload} is no longer the one emitted; tune again"));
    }
    let (schedules, used) = choices.schedules(lowered.kernels(), target);
    console.note(format!(
        "schedules: {} tuned, {} of the nearest tuned workload, {} default",
        used.exact, used.nearest, used.default
    ));
    Ok(schedules)
}

/// Writes everything asked for: all of it is made before the first file appears.
fn emit(compiled: &Compiled, what: &[String], base: &Path, with: &LinkWith) -> Result<Vec<PathBuf>, Failure> {
    let soname = base.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let mut files = Vec::new();
    for stage in what {
        let path = if stage == "so" { base.to_path_buf() } else { base.with_extension(extension(stage)) };
        files.push((path, compiled.emit(stage, &soname, with)?));
    }
    for (path, content) in &files {
        write_file(path, content)?;
    }
    Ok(files.into_iter().map(|(path, _)| path).collect())
}

/// The ending of an emitted file: `graph@fuse` stands in `m.graph-fuse.hwq`.
fn extension(stage: &str) -> String {
    match stage {
        "obj" => "o".into(),
        "header" => "h".into(),
        "asm" => "s".into(),
        "clif" => "clif".into(),
        other => format!("{}.hwq", other.replace('@', "-")),
    }
}
