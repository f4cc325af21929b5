//! `hawqc compile`: from a network to a shared object, or to any stage on the way.

use std::path::{Path, PathBuf};

use hawqc_driver::{CompileOptions, Compiled, LinkWith, Source, compile, lower, write_file};
use serde_json::json;

use super::{check_output, precision, target};
use crate::args::Compile;
use crate::console::{Console, bytes, time};
use crate::failure::Failure;

pub fn run(args: &Compile, console: &Console) -> Result<(), Failure> {
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
    let options = CompileOptions { target, keep_values: args.keep_values };
    let compiled = compile(lowered, &options)?;
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
