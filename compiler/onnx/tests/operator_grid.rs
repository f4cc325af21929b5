//! Single-operator models with onnxruntime's results: the interpreter on the imported graph must agree.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hawqc_ir::{Tensor, interp};
use hawqc_onnx::{ImportOptions, import};
use hawqc_runtime::npy::Npz;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/onnx_ops")
}

/// All arrays of an archive, as f32.
fn arrays(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let arrays = Npz::open(path).unwrap().read_all().unwrap();
    arrays.into_iter().map(|(name, t)| (name, (t.shape().to_vec(), t.as_slice::<f32>().unwrap().to_vec()))).collect()
}

/// `Ok` if the model's outputs agree, else what went wrong.
fn check(model: &Path) -> Result<(), String> {
    let arrays = arrays(&model.with_extension("npz"));
    let base_dir = folder();
    let bytes = std::fs::read(model).map_err(|e| e.to_string())?;
    let batch = arrays.get("x").map(|x| x.0[0]);
    let options = ImportOptions { base_dir: Some(&base_dir), batch };
    let graph = import(&bytes, &options).map_err(|e| e.to_string())?.graph;
    let inputs: Vec<Tensor> = graph
        .inputs()
        .iter()
        .map(|&id| {
            let (shape, data) = arrays[graph.name(id)].clone();
            Tensor::from_f32(shape, data).unwrap()
        })
        .collect();
    let outputs = interp::run(&graph, &inputs).map_err(|e| e.to_string())?;
    for ((name, _), ours) in graph.outputs().iter().zip(&outputs) {
        let (shape, theirs) = &arrays[name];
        if ours.shape() != shape.as_slice() {
            return Err(format!("`{name}` has shape {:?}, expected {shape:?}", ours.shape()));
        }
        let largest = theirs.iter().fold(1e-6f32, |m, v| m.max(v.abs()));
        for (i, (a, b)) in ours.f32s().unwrap().iter().zip(theirs).enumerate() {
            if (a - b).abs() > 1e-4 * largest {
                return Err(format!("`{name}`[{i}] is {a}, expected {b}"));
            }
        }
    }
    Ok(())
}

#[test]
fn every_model_agrees() {
    let mut models: Vec<PathBuf> = std::fs::read_dir(folder())
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "onnx"))
        .collect();
    models.sort();
    assert!(models.len() >= 190, "{} models found", models.len());
    let failures: Vec<String> = models
        .iter()
        .filter_map(|m| check(m).err().map(|e| format!("{}: {e}", m.file_stem().unwrap().display())))
        .collect();
    assert!(failures.is_empty(), "{} of {} models:\n{}", failures.len(), models.len(), failures.join("\n"));
}
