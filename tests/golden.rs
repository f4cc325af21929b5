//! ResNet-18 as kernels, in files small enough to read: what the passes make of a well-known network,
//! uniformly at 8 bits and under one of HAWQ-V3's mixed plans. `HAWQC_BLESS=1` renews them.
//!
//! A kernel is shown with the types of its operands and with its steps. Left out is what follows from
//! the values of activations, and so from the last bit of the float executor: the data of
//! constants, and the ranges of i32 values and bounds of requantisations to i32.

mod expectation;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use hawqc_driver::{Precision, lower};
use hawqc_ir::{Elem, Graph, KernelSpec, Op, TensorType, ValueId, text};
use hawqc_onnx::zoo::ZooOptions;
use hawqc_quantize::{Options, PrecisionPlan};
use hawqc_tests::Network;

/// A type without what depends on calibration.
fn stable(ty: &TensorType) -> String {
    match ty.elem {
        Elem::I32 => TensorType::new(Elem::I32, ty.shape.clone()).to_string(),
        _ => ty.to_string(),
    }
}

/// The steps of a kernel, without what depends on calibration.
fn steps(spec: &KernelSpec) -> String {
    let printed = text::print_spec(spec);
    let lines = printed.lines().zip(spec.steps()).map(|(line, step)| {
        let head = line.rsplit_once(" : ").map_or(line, |(head, _)| head);
        let wide = matches!(step.op, Op::Requant(_)) && step.ty.elem == Elem::I32;
        let kept = head.split(' ').filter(|word| !(wide && (word.starts_with("lo=") || word.starts_with("hi="))));
        format!("{} : {}\n", kept.collect::<Vec<_>>().join(" "), stable(&step.ty))
    });
    let second = spec.second().map(|second| format!("  second\n{}", steps(second)));
    lines.chain(second).collect()
}

/// How an operand reads: a kernel by its number and name, a constant by its type.
fn operand(graph: &Graph, numbers: &BTreeMap<ValueId, String>, id: ValueId) -> String {
    match graph.op(id) {
        Op::Const(_) => {
            let ty = graph.ty(id);
            format!("const {}", TensorType::new(ty.elem, ty.shape.clone()))
        }
        Op::Reshape(_) => format!("reshape({})", operand(graph, numbers, graph.args(id)[0])),
        Op::Input(_) => format!("input {}", stable(graph.ty(id))),
        _ => format!("{}: {}", numbers[&id], stable(graph.ty(id))),
    }
}

fn describe(graph: &Graph) -> String {
    let mut out = String::new();
    let mut numbers: BTreeMap<ValueId, String> = BTreeMap::new();
    let mut count = 0;
    let mut weights: BTreeMap<Elem, usize> = BTreeMap::new();
    for id in graph.values() {
        if let Op::Second(_) = graph.op(id) {
            numbers.insert(id, format!("second of {}", numbers[&graph.args(id)[0]]));
        }
        let Op::Kernel(spec) = graph.op(id) else { continue };
        if let (Op::Conv(_), [_, wei, ..]) = (&spec.steps()[0].op, graph.args(id).as_slice()) {
            *weights.entry(graph.ty(*wei).elem).or_default() += graph.ty(*wei).elements();
        }
        let operands: Vec<String> = graph.args(id).iter().map(|&a| operand(graph, &numbers, a)).collect();
        let _ = writeln!(out, "{count} {} ({}) {{\n{}}}", graph.name(id), operands.join(", "), steps(spec));
        numbers.insert(id, count.to_string());
        count += 1;
    }
    for (name, id) in graph.outputs() {
        let _ = writeln!(out, "output {name} = {}", operand(graph, &numbers, *id));
    }
    let weights: Vec<String> = weights.iter().map(|(elem, count)| format!("{count} {elem}")).collect();
    format!("// {count} kernels, weights: {}\n{out}", weights.join(", "))
}

fn golden(file: &str, network: &Network, plan: PrecisionPlan) {
    let precision = Precision { calibration: network.calibration.clone(), plan, options: Options::default() };
    let lowered = lower(&network.source, Some(&precision)).unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(file);
    let found = describe(lowered.kernels());
    if expectation::blessing() {
        return std::fs::write(path, found).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    expectation::compare(&expected, &found).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

#[test]
fn resnet18() {
    let network = Network::zoo("resnet18", &ZooOptions::default());
    golden("resnet18-w8a8.kernels", &network, network.plan("8"));
    golden("resnet18-modelsize-0.5.kernels", &network, network.plan("resnet18_modelsize_0.5"));
}
