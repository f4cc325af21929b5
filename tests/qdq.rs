//! Quantised models (see `data/qdq/README.md`) against onnxruntime's recorded integers, and compiled.
//!
//! Three executions of every model: the imported graph, in floats between its quantised tensors as
//! onnxruntime computes it; the integer graph; compiled code. Every quantised tensor is within one unit
//! of the recording: through the whole imported graph, and in integers for every step from recorded tensors
//! to the next (over several steps a unit may become more, where scales become finer). Compiled code
//! equals the integer graph.

mod agree;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use hawqc_driver::verify::Difference;
use hawqc_driver::{Source, lower, tensors};
use hawqc_ir::{Elem, Graph, IrError, Op, Tensor, TensorType, Transpose, ValueId, interp};
use hawqc_quantize::integerize;
use hawqc_runtime::npy::Npz;
use hawqc_tests::images;

struct Case {
    name: String,
    source: Source,
    /// Recorded tensors by ONNX name.
    recorded: BTreeMap<String, Tensor>,
}

fn cases() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/qdq");
    let mut models: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    models.retain(|p| p.extension().is_some_and(|e| e == "onnx"));
    models.sort();
    let cases: Vec<Case> = models
        .iter()
        .map(|model| {
            let arrays = Npz::open(&model.with_extension("npz")).unwrap().read_all().unwrap();
            let recorded: BTreeMap<String, Tensor> =
                arrays.into_iter().map(|(name, t)| (name, tensors::to_ir_same(&t).unwrap())).collect();
            let batch = recorded["x"].shape()[0];
            let name = model.file_stem().unwrap().to_string_lossy().into_owned();
            Case { name, source: Source::load(model, Some(batch)).unwrap(), recorded }
        })
        .collect();
    assert!(cases.len() >= 33, "{} models found", cases.len());
    cases
}

impl Case {
    /// The recorded quantised tensors with the values of the imported graph that stand for them.
    fn quantised(&self) -> Vec<(&str, ValueId)> {
        let is_quantised = |id: ValueId| matches!(self.source.graph.op(id), Op::Quantize(_));
        let found: Vec<(&str, ValueId)> = self
            .recorded
            .keys()
            .filter_map(|name| Some((name.as_str(), *self.source.tensors.get(name)?)))
            .filter(|&(_, id)| is_quantised(id))
            .collect();
        // All but the input and the output.
        assert_eq!(found.len(), self.recorded.len() - 2, "{}: a recorded tensor is not imported", self.name);
        found
    }

    /// The imported graph with its quantised tensors as further outputs.
    fn exposed(&self) -> Graph {
        let graph = &self.source.graph;
        let mut moved = BTreeMap::new();
        let copy = graph.rebuild(|new, id, args| {
            let value = new.copy(graph, id, args)?;
            moved.insert(id, value);
            Ok::<_, IrError>(value)
        });
        let mut copy = copy.unwrap();
        for (name, id) in self.quantised() {
            copy.output(name, moved[&id]);
        }
        copy
    }

    /// The part of the imported graph that computes `last` from the recorded tensors nearest to it, in
    /// integers: they are its inputs.
    fn step(&self, last: ValueId, recorded: &BTreeMap<ValueId, &str>) -> Graph {
        let graph = &self.source.graph;
        let given = |id: ValueId| recorded.get(&id).filter(|_| id != last);
        let (mut needed, mut pending) = (BTreeSet::from([last]), vec![last]);
        while let Some(id) = pending.pop() {
            let args = if given(id).is_some() { Vec::new() } else { graph.args(id) };
            pending.extend(args.into_iter().filter(|&a| needed.insert(a)));
        }
        let mut step = Graph::new();
        let mut moved: BTreeMap<ValueId, ValueId> = BTreeMap::new();
        for id in needed {
            let value = match (given(id), graph.op(id), graph.tensor(id)) {
                (Some(name), _, _) => step.input(*name, graph.ty(id).clone()).unwrap(),
                (_, Op::Input(ty), _) => step.input(graph.name(id), ty.clone()).unwrap(),
                (_, _, Some(tensor)) => step.constant(tensor.clone()),
                _ => {
                    let args: Vec<ValueId> = graph.args(id).iter().map(|a| moved[a]).collect();
                    step.copy(graph, id, &args).unwrap()
                }
            };
            moved.insert(id, value);
        }
        step.output(recorded[&last], moved[&last]);
        integerize(&step).unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }

    /// Recorded tensors for the inputs of a graph.
    fn input(&self, graph: &Graph) -> Vec<Tensor> {
        let of = |&id: &ValueId| {
            let recorded = &self.recorded[graph.name(id)];
            if graph.ty(id).is_float() { recorded.clone() } else { recorded_as(recorded, graph.ty(id)) }
        };
        graph.inputs().iter().map(of).collect()
    }
}

/// A recorded tensor in NHWC as a value of type `ty`.
fn recorded_as(recorded: &Tensor, ty: &TensorType) -> Tensor {
    let tensor = Tensor::from_ints(ty.elem, recorded.shape(), recorded.ints().unwrap()).unwrap();
    if tensor.shape().len() != 4 {
        return tensor.reshaped(&ty.shape).unwrap();
    }
    let to_nhwc = Op::from(Transpose::to_nhwc());
    let ty = to_nhwc.infer(&[&tensor.ty()]).unwrap();
    to_nhwc.eval(&[&tensor], &ty).unwrap()
}

/// Compares every quantised tensor of an exposed graph with the recording; the sum of all differences.
fn compare(case: &Case, exposed: &Graph) -> Difference {
    let outputs = interp::run(exposed, &case.input(exposed)).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    let empty = Tensor::from_ints(Elem::U8, [1], [0]).unwrap();
    let mut total = Difference::between(&case.name, &empty, &empty).unwrap();
    for ((name, _), found) in exposed.outputs().iter().zip(&outputs).filter(|(_, t)| t.elem() != Elem::F32) {
        let recorded = recorded_as(&case.recorded[name], &found.ty());
        let difference = Difference::between(name, &recorded, found).unwrap();
        assert!(
            difference.max_lsb() <= 1,
            "{}: `{name}` differs by {}, {:?}",
            case.name,
            difference.max_lsb(),
            difference.first
        );
        total.merge(difference);
    }
    total
}

fn report(what: &str, differences: &[Difference]) {
    let elements: usize = differences.iter().map(|d| d.elements).sum();
    let off: Vec<String> =
        differences.iter().filter(|d| d.max_lsb() > 0).map(|d| format!("{} {:?}", d.value, d.histogram)).collect();
    eprintln!(
        "{what}: {elements} elements, differences by size: {}",
        if off.is_empty() { "none".into() } else { off.join(", ") }
    );
}

#[test]
fn imported_graphs_agree_with_onnxruntime() {
    let differences: Vec<Difference> = cases().iter().map(|case| compare(case, &case.exposed())).collect();
    report("imported graphs against onnxruntime", &differences);
}

#[test]
fn every_step_in_integers_agrees_with_onnxruntime() {
    let mut differences = Vec::new();
    for case in cases() {
        let recorded: BTreeMap<ValueId, &str> = case.quantised().into_iter().map(|(name, id)| (id, name)).collect();
        let steps = recorded.keys().map(|&id| compare(&case, &case.step(id, &recorded)));
        let mut steps: Vec<Difference> = steps.collect();
        let mut total = steps.remove(0);
        steps.into_iter().for_each(|d| total.merge(d));
        differences.push(total);
    }
    report("steps in integers against onnxruntime", &differences);
}

/// Outputs that leave the last integers without being quantised: as many units apart as f32 rounding allows.
#[test]
fn integer_graphs_give_the_recorded_outputs() {
    for case in cases() {
        let integer = integerize(&case.source.graph).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        let outputs = interp::run(&integer, &case.input(&integer)).unwrap();
        let (ours, theirs) = (outputs[0].f32s().unwrap(), case.recorded["y"].f32s().unwrap());
        assert_eq!(outputs[0].shape(), case.recorded["y"].shape(), "{}", case.name);
        let lsb = last_scale(&integer);
        for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
            let rounding = 1e-5 * b.abs().max(1.0);
            assert!((a - b).abs() <= lsb + rounding, "{}: y[{i}] is {a}, recorded {b}", case.name);
        }
    }
}

/// The largest scale by which integers leave a graph.
fn last_scale(graph: &Graph) -> f32 {
    let scales = graph.values().filter(|&id| matches!(graph.op(id), Op::Dequantize(_))).map(|id| {
        let scales = graph.tensor(graph.args(id)[1]).unwrap();
        scales.f32s().unwrap().iter().fold(0f32, |m, &s| m.max(s))
    });
    scales.fold(0.0, f32::max)
}

#[test]
fn compiled_code_equals_the_integer_graphs() {
    let mut failures = Vec::new();
    for case in cases() {
        let make = || lower(&case.source, None);
        let lowered = make().unwrap_or_else(|e| panic!("{}: {e}", case.name));
        let integer = lowered.integer();
        let inputs = vec![case.input(integer), images(integer, 1), images(integer, 2)];
        if let Err(e) = agree::check(integer, make, &agree::targets(), &inputs) {
            failures.push(format!("{}: {e}", case.name));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
