//! `hawqc inspect`: what a network or a compiled model contains.

use std::collections::BTreeMap;
use std::path::Path;

use hawqc_driver::{Class, Error, Precision, Source, dot, fill, float_form, lower, write_file};
use hawqc_ir::{Graph, Op, ValueId};
use hawqc_onnx::ImportError;
use hawqc_quantize::{Calibrator, Options, PrecisionPlan};
use hawqc_runtime::Model;
use serde::Serialize;

use super::is_compiled;
use crate::args::Inspect;
use crate::console::{Console, bytes, table};
use crate::failure::{Failure, Kind};

pub fn run(args: &Inspect, console: &Console) -> Result<(), Failure> {
    if is_compiled(&args.model) {
        return compiled(&args.model, console);
    }
    let source = match Source::load(&args.model, None) {
        Err(Error::Import(ImportError::Unsupported(_))) | Ok(_) if args.unsupported => {
            return unsupported(args, console);
        }
        other => other?,
    };
    if let Some(path) = &args.dot {
        write_file(path, dot::print(&source.graph).as_bytes())?;
    }
    if let Some(path) = &args.svg {
        write_file(path, draw(&dot::print(&source.graph))?.as_bytes())?;
    }
    let summary = summarise(&source);
    console.result(&summary, || summary.to_text())
}

/// A graph in Graphviz's language as a picture.
fn draw(text: &str) -> Result<String, Failure> {
    let graph = layout::gv::DotParser::new(text).process();
    let graph = graph.map_err(|e| Failure::new(Kind::Internal, format!("the drawn graph cannot be read back: {e}")))?;
    let mut builder = layout::gv::GraphBuilder::new();
    builder.visit_graph(&graph);
    let mut svg = layout::backends::svg::SVGWriter::new();
    builder.get().do_it(false, false, false, &mut svg);
    Ok(svg.finalize())
}

/// Lists what cannot be compiled; finding something is the answer, not a failure.
fn unsupported(args: &Inspect, console: &Console) -> Result<(), Failure> {
    let found = match Source::load(&args.model, None).and_then(|source| try_lowering(&source)) {
        Ok(()) => Vec::new(),
        Err(Error::Import(ImportError::Unsupported(list))) => list.iter().map(ToString::to_string).collect(),
        Err(refusal) if refusal.class() == Class::Unsupported => vec![refusal.to_string()],
        Err(other) => return Err(other.into()),
    };
    console.result(&found, || if found.is_empty() { "everything can be compiled".into() } else { found.join("\n") })
}

/// Lowers the network at 8 bits, a float one with the ranges that a random input shows.
fn try_lowering(source: &Source) -> Result<(), Error> {
    if source.is_quantized() {
        return lower(source, None).map(|_| ());
    }
    let float = float_form(source)?;
    let mut calibrator = Calibrator::new(&float)?;
    calibrator.observe(&fill::inputs(&float, 0)?)?;
    let calibration = calibrator.finish(&source.hash)?;
    let plan = PrecisionPlan::uniform(&float, 8, 8)?;
    lower(source, Some(&Precision { calibration, plan, options: Options::default() })).map(|_| ())
}

#[derive(Serialize)]
struct Summary {
    hash: String,
    quantized: bool,
    inputs: Vec<(String, String)>,
    outputs: Vec<(String, String)>,
    operators: BTreeMap<&'static str, usize>,
    parameters: usize,
    macs: u64,
}

fn summarise(source: &Source) -> Summary {
    let graph = &source.graph;
    let live = graph.live();
    let alive = || graph.values().filter(|id| live[id.index()]);
    let mut operators = BTreeMap::new();
    for id in alive().filter(|&id| !matches!(graph.op(id), Op::Const(_) | Op::Input(_))) {
        *operators.entry(graph.op(id).name()).or_default() += 1;
    }
    let describe = |name: &str, id: ValueId| (name.to_string(), graph.ty(id).to_string());
    Summary {
        hash: source.hash.clone(),
        quantized: source.is_quantized(),
        inputs: graph.inputs().iter().map(|&id| describe(graph.name(id), id)).collect(),
        outputs: graph.outputs().iter().map(|(name, id)| describe(name, *id)).collect(),
        operators,
        parameters: alive().filter(|&id| matches!(graph.op(id), Op::Const(_))).map(|id| graph.ty(id).elements()).sum(),
        macs: alive().map(|id| macs(graph, id)).sum(),
    }
}

/// Multiply-accumulate operations of a convolution.
fn macs(graph: &Graph, id: ValueId) -> u64 {
    match graph.op(id) {
        Op::Conv(_) => {
            let wei = graph.ty(graph.args(id)[1]);
            (graph.ty(id).elements() * wei.elements() / wei.shape[0]) as u64
        }
        _ => 0,
    }
}

impl Summary {
    fn to_text(&self) -> String {
        let named =
            |list: &[(String, String)]| list.iter().map(|(n, t)| format!("{n}: {t}")).collect::<Vec<_>>().join(", ");
        let rows = [
            vec!["hash".to_string(), self.hash.clone()],
            vec!["form".into(), if self.quantized { "quantised".into() } else { "float".into() }],
            vec!["inputs".into(), named(&self.inputs)],
            vec!["outputs".into(), named(&self.outputs)],
            vec![
                "operators".into(),
                self.operators.iter().map(|(n, c)| format!("{n} {c}")).collect::<Vec<_>>().join(", "),
            ],
            vec!["parameters".into(), self.parameters.to_string()],
            vec!["multiplications".into(), format!("{:.3} G", self.macs as f64 / 1e9)],
        ];
        table(&["property", "value"], rows)
    }
}

fn compiled(path: &Path, console: &Console) -> Result<(), Failure> {
    let manifest = Model::read_manifest(path).map_err(hawqc_runtime::Error::from)?;
    console.result(&manifest, || {
        let tensors = |list: &[hawqc_runtime::manifest::TensorDesc]| {
            list.iter().map(|t| format!("{}: {}{:?}", t.name, t.elem, t.shape)).collect::<Vec<_>>().join(", ")
        };
        let mut widths: BTreeMap<(u32, u32), usize> = BTreeMap::new();
        manifest.layers.iter().for_each(|l| *widths.entry((l.weight_bits, l.activation_bits)).or_default() += 1);
        let widths: Vec<String> = widths.iter().map(|((w, a), n)| format!("{n} x W{w}A{a}")).collect();
        let rows = [
            vec!["compiler".to_string(), manifest.compiler.clone()],
            vec!["target".into(), format!("{} ({}: {})", manifest.target, manifest.arch, manifest.features.join(" "))],
            vec!["model".into(), manifest.model_hash.clone()],
            vec!["inputs".into(), tensors(&manifest.inputs)],
            vec!["outputs".into(), tensors(&manifest.outputs)],
            vec!["layers".into(), widths.join(", ")],
            vec!["steps".into(), manifest.steps.len().to_string()],
            vec!["weights".into(), bytes(manifest.weight_bytes)],
            vec!["constants".into(), bytes(manifest.constant_bytes)],
            vec!["arena".into(), bytes(manifest.arena_bytes)],
        ];
        table(&["property", "value"], rows)
    })
}
