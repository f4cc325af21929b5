//! `hawqc targets`: what can be compiled for.

use hawqc_driver::{Error, TARGETS, Target};
use serde_json::json;

use crate::args::Targets;
use crate::console::{Console, table};
use crate::failure::Failure;

pub fn run(args: &Targets, console: &Console) -> Result<(), Failure> {
    let rows = TARGETS.iter().filter(|row| !args.host || row.name == "host");
    let mut found = Vec::new();
    for row in rows {
        match Target::parse(row.name) {
            Ok(target) => found.push((row, target)),
            Err(e) if args.host => return Err(Error::from(e).into()),
            Err(e) => console.warn(format!("{}: {e}", row.name)),
        }
    }
    let json: Vec<_> = found
        .iter()
        .map(|(row, t)| {
            json!({ "name": row.name, "arch": t.arch().name(), "description": row.description,
                    "features": t.feature_names(), "runs_here": t.runs_here() })
        })
        .collect();
    console.result(&json, || {
        let rows = found.iter().map(|(row, t)| {
            let here = if t.runs_here() { "yes" } else { "no" };
            vec![row.name.into(), here.into(), row.description.into(), t.feature_names().join(" ")]
        });
        table(&["target", "runs here", "machine", "features"], rows)
    })
}
