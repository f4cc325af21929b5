//! The grid of single-operator models (see `data/onnx_ops/README.md`), quantised to eight bits and
//! compiled: compiled code equals the interpreter bit for bit, and both stay close to what
//! onnxruntime computed in floats. (That the importer alone agrees is tested where it is written.)

mod agree;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hawqc_driver::{Precision, Source, float_form, lower, tensors};
use hawqc_ir::{Graph, Tensor, interp};
use hawqc_quantize::{Calibrator, Options, PrecisionPlan};
use hawqc_runtime::npy::Npz;
use hawqc_tests::images;

/// Models that cannot be computed in integers, and what the refusal says.
const REFUSED: &[(&str, &str)] = &[
    ("add_constant_full_op13", "a constant activation"),
    ("constant_value_floats_op12", "a constant activation"),
    ("pad_attribute_value_op9", "only a border of zeros is exact in every scale"),
    ("pad_channels_op13", "a constant activation"),
    ("pad_input_value_op13", "only a border of zeros is exact in every scale"),
];

/// Largest error of a result, relative to the largest magnitude in it.
const CLOSE: f32 = 0.05;

/// All arrays of an archive.
fn arrays(path: &Path) -> BTreeMap<String, Tensor> {
    let arrays = Npz::open(path).unwrap().read_all().unwrap();
    arrays.into_iter().map(|(name, t)| (name, tensors::to_ir_same(&t).unwrap())).collect()
}

fn models() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/onnx_ops");
    let mut models: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    models.retain(|p| p.extension().is_some_and(|e| e == "onnx"));
    models.sort();
    models
}

/// Inputs that no calibration saw: beyond every range, and not numbers.
fn extremes(graph: &Graph) -> Vec<Tensor> {
    const VALUES: [f32; 7] = [f32::MAX, f32::MIN, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, 1e-45];
    let values = |n: usize| (0..n).map(|i| VALUES[i * i % VALUES.len()]).collect();
    let of = |&id| Tensor::from_f32(graph.ty(id).shape.clone(), values(graph.ty(id).elements())).unwrap();
    graph.inputs().iter().map(of).collect()
}

/// Compiles a model at eight bits and compares; gives the error relative to onnxruntime's floats.
fn check(model: &Path) -> Result<f32, String> {
    let arrays = arrays(&model.with_extension("npz"));
    let bytes = std::fs::read(model).map_err(|e| e.to_string())?;
    let batch = arrays["x"].shape()[0];
    let source = Source::from_bytes(&bytes, model.parent(), Some(batch)).map_err(|e| e.to_string())?;
    let float = float_form(&source).map_err(|e| e.to_string())?;
    let recorded: Vec<Tensor> = float.inputs().iter().map(|&id| arrays[float.name(id)].clone()).collect();
    let mut inputs = vec![recorded, images(&float, 1), images(&float, 2)];
    let mut calibrator = Calibrator::new(&float).map_err(|e| e.to_string())?;
    for input in &inputs {
        calibrator.observe(input).map_err(|e| e.to_string())?;
    }
    let calibration = calibrator.finish(&source.hash).map_err(|e| e.to_string())?;
    let plan = PrecisionPlan::uniform(&float, 8, 8).map_err(|e| e.to_string())?;
    let precision = Precision { calibration, plan, options: Options::default() };
    let make = || lower(&source, Some(&precision));
    let lowered = make().map_err(|e| e.to_string())?;
    inputs.push(extremes(&float));
    agree::check(lowered.integer(), make, &agree::targets(), &inputs)?;
    error(lowered.integer(), &inputs[0], &arrays)
}

fn error(graph: &Graph, input: &[Tensor], arrays: &BTreeMap<String, Tensor>) -> Result<f32, String> {
    let outputs = interp::run(graph, input).map_err(|e| e.to_string())?;
    let mut worst = 0f32;
    for ((name, _), output) in graph.outputs().iter().zip(&outputs) {
        let (ours, theirs) = (output.f32s().unwrap(), arrays[name].f32s().unwrap());
        if output.shape() != arrays[name].shape() {
            return Err(format!("`{name}` has shape {:?}, expected {:?}", output.shape(), arrays[name].shape()));
        }
        let largest = theirs.iter().fold(1e-6f32, |m, v| m.max(v.abs()));
        worst = ours.iter().zip(theirs).fold(worst, |w, (a, b)| w.max((a - b).abs() / largest));
    }
    Ok(worst)
}

#[test]
fn every_operator_compiles() {
    let models = models();
    assert!(models.len() >= 190, "{} models found", models.len());
    let mut failures = Vec::new();
    let mut refused = Vec::new();
    let mut worst: (f32, String) = (0.0, String::new());
    for model in &models {
        let name = model.file_stem().unwrap().to_string_lossy().into_owned();
        let expected = REFUSED.iter().find(|(refused, _)| *refused == name);
        match (check(model), expected) {
            (Err(e), Some((_, reason))) if e.contains(reason) => refused.push(name),
            (Ok(error), None) if error <= CLOSE => worst = if error > worst.0 { (error, name) } else { worst },
            (Ok(error), None) => failures.push(format!("{name}: the relative error is {error}")),
            (Ok(_), Some(_)) => failures.push(format!("{name}: compiles, and is listed as refused")),
            (Err(e), _) => failures.push(format!("{name}: {e}")),
        }
    }
    eprintln!(
        "{} models compiled, {} refused as listed, largest relative error {} in {}",
        models.len() - refused.len() - failures.len(),
        refused.len(),
        worst.0,
        worst.1
    );
    let missing: Vec<_> = REFUSED.iter().filter(|(name, _)| !refused.iter().any(|r| r == name)).collect();
    assert!(failures.is_empty(), "{} of {} models:\n{}", failures.len(), models.len(), failures.join("\n"));
    assert!(missing.is_empty(), "listed as refused, not in the grid: {missing:?}");
}
