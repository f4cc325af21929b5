//! Small QDQ networks with onnxruntime's results: the float interpretation of the imported graph gives the same integers
//! after every QuantizeLinear, within one step, and writing the graph and reading it again changes nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hawqc_ir::{Graph, Op, Tensor, Transpose, ValueId, interp};
use hawqc_onnx::{Format, ImportOptions, Imported, export, import};
use hawqc_runtime::npy::Npz;

fn models() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/qdq");
    let mut models: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    models.retain(|p| p.extension().is_some_and(|e| e == "onnx"));
    models.sort();
    assert!(models.len() >= 30, "{} models found", models.len());
    models
}

fn read(model: &Path) -> (Vec<u8>, BTreeMap<String, hawqc_runtime::Tensor>) {
    let arrays = Npz::open(&model.with_extension("npz")).unwrap().read_all().unwrap();
    (std::fs::read(model).unwrap(), arrays.into_iter().collect())
}

fn floats(tensor: &hawqc_runtime::Tensor) -> Tensor {
    Tensor::from_f32(tensor.shape(), tensor.as_slice::<f32>().unwrap().to_vec()).unwrap()
}

/// Recorded integers of any width.
fn integers(tensor: &hawqc_runtime::Tensor) -> Option<Vec<i64>> {
    fn widen<T: Copy + Into<i64>>(values: &[T]) -> Vec<i64> {
        values.iter().map(|&v| v.into()).collect()
    }
    let as_u8 = tensor.as_slice::<u8>().map(widen);
    as_u8.or_else(|| tensor.as_slice::<i8>().map(widen)).or_else(|| tensor.as_slice::<i16>().map(widen))
}

/// A value in ONNX's order of axes.
fn in_onnx_order(value: &Tensor) -> Vec<i64> {
    if value.shape().len() != 4 {
        return value.ints().unwrap();
    }
    let op = Op::from(Transpose::to_nchw());
    op.eval(&[value], &op.infer(&[&value.ty()]).unwrap()).unwrap().ints().unwrap()
}

#[test]
fn integers_agree_within_one_step() {
    let (mut compared, mut differing) = (0usize, 0usize);
    for model in models() {
        let (bytes, arrays) = read(&model);
        let name = model.file_stem().unwrap().display().to_string();
        let Imported { graph, tensors } = import(&bytes, &ImportOptions::default()).unwrap();
        let mut values: BTreeMap<ValueId, Tensor> = BTreeMap::new();
        let outputs = interp::run_observed(&graph, &[floats(&arrays["x"])], |id, t| {
            values.insert(id, t.clone());
        })
        .unwrap();
        let mut seen = 0;
        for (tensor, id) in &tensors {
            let Some(theirs) = arrays.get(tensor).and_then(integers) else { continue };
            let ours = in_onnx_order(&values[id]);
            assert_eq!(ours.len(), theirs.len(), "{name}: {tensor}");
            for (a, b) in ours.iter().zip(&theirs) {
                assert!((a - b).abs() <= 1, "{name}: {tensor}: {a} against {b}");
                differing += usize::from(a != b);
            }
            compared += ours.len();
            seen += 1;
        }
        assert!(seen > 0, "{name}: no integers compared");
        let (ours, theirs) = (outputs[0].f32s().unwrap(), floats(&arrays["y"]));
        let theirs = theirs.f32s().unwrap();
        let largest = theirs.iter().fold(0f32, |m, v| m.max(v.abs()));
        let worst = ours.iter().zip(theirs).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(worst <= 1e-4 * largest, "{name}: {worst} of {largest}");
    }
    assert!(compared > 10_000 && differing * 1000 < compared, "{differing} of {compared} differ");
}

#[test]
fn written_graphs_read_back() {
    let run = |graph: &Graph, x: &Tensor| interp::run(graph, std::slice::from_ref(x)).unwrap();
    for model in models() {
        let (bytes, arrays) = read(&model);
        let name = model.file_stem().unwrap().display().to_string();
        let graph = import(&bytes, &ImportOptions::default()).unwrap().graph;
        let x = floats(&arrays["x"]);
        for format in [Format::Qdq, Format::Qcdq] {
            let written = export(&graph, format).unwrap_or_else(|e| panic!("{name}: {e}"));
            let again = import(&written, &ImportOptions::default()).unwrap_or_else(|e| panic!("{name}: {e}")).graph;
            assert_eq!(run(&graph, &x), run(&again, &x), "{name} {format:?}");
        }
    }
}
