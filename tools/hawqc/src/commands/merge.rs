//! `hawqc merge`: joins files that were made in parts.

use std::path::{Path, PathBuf};

use hawqc_driver::write_file;
use hawqc_quantize::sensitivity::{SCHEMA as SENSITIVITY, Sensitivities};
use hawqc_schedules::tuning::log::{Log, SCHEMA as TUNING};
use serde_json::{Value, json};

use super::tune::read_log;
use crate::args::Merge;
use crate::console::Console;
use crate::failure::{Failure, io};

pub fn run(args: &Merge, console: &Console) -> Result<(), Failure> {
    let mut schemas = Vec::new();
    for path in &args.files {
        schemas.push(schema(path)?);
    }
    if let Some(index) = schemas.iter().position(|schema| *schema != schemas[0]) {
        let (first, other) = (args.files[0].display(), args.files[index].display());
        let message = format!("{first} holds {} and {other} holds {}", schemas[0], schemas[index]);
        return Err(Failure::invalid(message).hint("merge files of one kind"));
    }
    match schemas[0].as_str() {
        TUNING => tuning_logs(&args.files, &args.output, console),
        SENSITIVITY => sensitivities(&args.files, &args.output, console),
        other => Err(Failure::invalid(format!(
            "files of schema {other} cannot be merged; supported are {TUNING} and {SENSITIVITY}"
        ))),
    }
}

/// The schema of a JSON file, or of the first line that is JSON.
fn schema(path: &Path) -> Result<String, Failure> {
    let bytes = std::fs::read(path).map_err(io(path))?;
    let named = |text: &[u8]| {
        let value: Value = serde_json::from_slice(text).ok()?;
        value["schema"].as_str().map(str::to_owned)
    };
    let found = named(&bytes).or_else(|| bytes.split(|&b| b == b'\n').find_map(named));
    found.ok_or_else(|| Failure::invalid(format!("{}: no JSON with a schema", path.display())))
}

fn tuning_logs(files: &[PathBuf], output: &Path, console: &Console) -> Result<(), Failure> {
    let logs = files.iter().map(|path| read_log(path, console)).collect::<Result<Vec<_>, _>>()?;
    let merged = Log::merge(logs).map_err(|e| Failure::invalid(e.to_string()))?;
    write_file(output, merged.text().as_bytes())?;
    let count = merged.rows.len();
    console.result(&json!({ "written": output, "rows": count }), || format!("{}: {count} rows", output.display()))
}

fn sensitivities(files: &[PathBuf], output: &Path, console: &Console) -> Result<(), Failure> {
    let invalid = |path: &Path, error: &dyn std::fmt::Display| Failure::invalid(format!("{}: {error}", path.display()));
    let mut parts = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(path).map_err(io(path))?;
        parts.push(Sensitivities::from_json(&text).map_err(|e| invalid(path, &e))?);
    }
    let merged = Sensitivities::merge(parts).map_err(|e| Failure::invalid(e.to_string()))?;
    write_file(output, merged.to_json().as_bytes())?;
    let count = merged.layers.len();
    console.result(&json!({ "written": output, "layers": count }), || format!("{}: {count} layers", output.display()))
}
