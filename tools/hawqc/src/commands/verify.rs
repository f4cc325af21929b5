//! `hawqc verify`: a compiled model against the reference, or against the rule of integers only.

use std::path::Path;
use std::sync::Arc;

use hawqc_driver::verify::{self, Difference};
use hawqc_driver::{CompileOptions, Lowered, Source, audit, compile, fill, lower, tensors};
use hawqc_ir::{Graph, Tensor};
use hawqc_runtime::npy::Npz;
use hawqc_runtime::{Model, Session};
use serde_json::json;

use super::{precision, run::read_inputs};
use crate::args::{Global, Verify};
use crate::console::{Console, table};
use crate::failure::{Failure, Kind, io};

pub fn run(args: &Verify, global: &Global, console: &Console) -> Result<(), Failure> {
    let Some(model) = args.files.last() else { return Err(Failure::usage("give a compiled model")) };
    if args.integer_only {
        integer_only(model, console)?;
    }
    match args.files.as_slice() {
        [network, model] => compare(args, network, model, global, console),
        _ if args.integer_only => Ok(()),
        _ => Err(Failure::usage("give the network and the model compiled from it, or --integer-only")),
    }
}

/// Disassembles all code between the borders.
fn integer_only(path: &Path, console: &Console) -> Result<(), Failure> {
    let bytes = std::fs::read(path).map_err(io(path))?;
    let report = audit(&bytes)?;
    if !report.findings.is_empty() {
        let lines: Vec<String> = report.findings.iter().take(20).map(ToString::to_string).collect();
        let message = format!("{} instructions break the rule:\n  {}", report.findings.len(), lines.join("\n  "));
        return Err(Failure::new(Kind::Mismatch, message));
    }
    console.result(&json!({ "functions": report.functions, "instructions": report.instructions }), || {
        format!(
            "integer only: {} instructions in {} functions between the borders, no floating point, no division",
            report.instructions, report.functions
        )
    })
}

fn compare(args: &Verify, network: &Path, model: &Path, global: &Global, console: &Console) -> Result<(), Failure> {
    let source = Source::load(network, args.precision.batch.map(|n| n as usize))?;
    let loaded = Arc::new(Model::open(model).map_err(hawqc_runtime::Error::from)?);
    if loaded.manifest().model_hash != source.hash {
        return Err(Failure::invalid(format!("{} was not compiled from {}", model.display(), network.display())));
    }
    let precision = precision(&args.precision, &source)?;
    let lowered = lower(&source, precision.as_ref())?;
    let threads = global.threads.map(|n| n as usize);
    let inputs = inputs(args, lowered.integer(), &loaded, global.seed)?;
    let mut session = Session::new(Arc::clone(&loaded), threads)?;
    match args.against.as_str() {
        "interp" => {
            if args.per_layer {
                let (mut session, lowered) = keeping_values(lowered.clone(), &loaded, threads)?;
                judge(args, &inputs, console, |x| Ok(verify::per_layer(lowered.kernels(), &mut session, x)?))?;
            }
            judge(args, &inputs, console, |x| Ok(verify::outputs(lowered.integer(), &mut session, x)?))
        }
        "float" => signal_to_noise(&source.graph, &mut session, &inputs, console),
        file => {
            let expected = expected(Path::new(file), &loaded)?;
            judge(args, &inputs[..1.min(inputs.len())], console, |x| {
                let found = verify::run(&mut session, x)?;
                let names = loaded.manifest().outputs.iter().map(|o| &o.name);
                let pairs = names.zip(expected.iter().zip(&found));
                let compare = |(name, (e, f))| {
                    let found = tensors::to_ir_same(f)?;
                    Ok(Difference::between(name, e, &found).map_err(hawqc_driver::Error::from)?)
                };
                pairs.map(compare).collect()
            })
        }
    }
}

/// The same model compiled in memory with every value kept, for the target of the file.
fn keeping_values(lowered: Lowered, loaded: &Model, threads: Option<usize>) -> Result<(Session, Lowered), Failure> {
    let target = hawqc_driver::target_of(loaded.manifest())?;
    let compiled = compile(lowered, &CompileOptions { keep_values: true, ..CompileOptions::new(target) })?;
    let session = Session::new(Arc::new(compiled.load()?), threads)?;
    Ok((session, compiled.lowered))
}

fn inputs(args: &Verify, graph: &Graph, model: &Model, seed: u64) -> Result<Vec<Vec<Tensor>>, Failure> {
    if let Some(path) = &args.input {
        let given = read_inputs(path, &model.manifest().inputs)?;
        let given: Result<Vec<Tensor>, _> = given.iter().map(tensors::to_ir_same).collect();
        return Ok(vec![given?]);
    }
    let sample = |index: usize| Ok(fill::inputs(graph, seed.wrapping_add(index as u64))?);
    (0..args.samples as usize).map(sample).collect()
}

fn expected(path: &Path, model: &Model) -> Result<Vec<Tensor>, Failure> {
    let mut archive = Npz::open(path)?;
    let outputs = model.manifest().outputs.iter();
    outputs.map(|o| Ok(tensors::to_ir_same(&archive.read(&o.name)?)?)).collect()
}

/// Sums the differences over all samples, shows them, and fails if one is beyond `--max-lsb`.
fn judge(
    args: &Verify,
    samples: &[Vec<Tensor>],
    console: &Console,
    mut differences: impl FnMut(&[Tensor]) -> Result<Vec<Difference>, Failure>,
) -> Result<(), Failure> {
    let mut total: Vec<Difference> = Vec::new();
    let bar = console.progress("verifying", samples.len());
    for sample in samples {
        let found = differences(sample)?;
        if total.is_empty() {
            total = found;
        } else {
            total.iter_mut().zip(found).for_each(|(t, d)| t.merge(d));
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let json: Vec<_> = total
        .iter()
        .map(|d| json!({ "value": d.value, "elements": d.elements, "max_lsb": d.max_lsb(), "histogram": d.histogram }))
        .collect();
    console.result(&json, || {
        let row = |d: &Difference| {
            let off: usize = d.histogram.values().sum();
            vec![d.value.clone(), d.elements.to_string(), off.to_string(), d.max_lsb().to_string()]
        };
        table(&["value", "elements", "different", "max lsb"], total.iter().map(row))
    })?;
    match total.iter().find(|d| d.max_lsb() > args.max_lsb) {
        None => Ok(()),
        Some(d) => {
            let first = d.first.map_or(String::new(), |(i, e, f)| format!(", first at {i}: expected {e}, found {f}"));
            let message = format!("`{}` differs by up to {} in the last place{first}", d.value, d.max_lsb());
            Err(Failure::new(Kind::Mismatch, message))
        }
    }
}

/// How close the quantised model comes to the float network: a report, not a test.
fn signal_to_noise(
    graph: &Graph,
    session: &mut Session,
    samples: &[Vec<Tensor>],
    console: &Console,
) -> Result<(), Failure> {
    let (mut signal, mut noise) = (0f64, 0f64);
    for sample in samples {
        let expected = hawqc_quantize::execute(graph, sample, |_, _| {})?;
        for (e, f) in expected.iter().zip(verify::run(session, sample)?) {
            let pairs =
                e.f32s().ok().zip(f.as_slice::<f32>()).ok_or_else(|| Failure::invalid("an output is not f32"))?;
            for (&e, &f) in pairs.0.iter().zip(pairs.1) {
                signal += f64::from(e).powi(2);
                noise += f64::from(e - f).powi(2);
            }
        }
    }
    let decibel = 10.0 * (signal / noise.max(f64::MIN_POSITIVE)).log10();
    console.result(&json!({ "sqnr_db": decibel }), || format!("signal to quantisation noise: {decibel:.1} dB"))
}
