//! Accuracy of the bundled digits network after quantisation, under the reference interpreter.

use std::path::PathBuf;

use hawqc_ir::{Graph, Tensor, interp};
use hawqc_onnx::{ImportOptions, import};
use hawqc_quantize::{Calibration, Calibrator, Method, Options, PrecisionPlan, fold_batch_norm, insert, integerize};
use hawqc_runtime::npy::Npz;

fn examples(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples/digits").join(file)
}

/// Images and labels.
fn data(file: &str) -> (Vec<Tensor>, Vec<usize>) {
    let mut archive = Npz::open(&examples(file)).unwrap();
    let images = archive.read("images").unwrap();
    let labels = archive.read("labels").unwrap();
    let images = images.as_slice::<f32>().unwrap().chunks(64);
    let labels = labels.as_slice::<i64>().unwrap().iter().map(|&l| l as usize).collect();
    (images.map(|i| Tensor::from_f32([1, 1, 8, 8], i.to_vec()).unwrap()).collect(), labels)
}

fn network() -> (Graph, Calibration) {
    let onnx = std::fs::read(examples("digits.onnx")).unwrap();
    let graph = fold_batch_norm(&import(&onnx, &ImportOptions::default()).unwrap().graph).unwrap();
    let mut calibrator = Calibrator::new(&graph).unwrap();
    for image in data("calibration.npz").0 {
        calibrator.observe(&[image]).unwrap();
    }
    let calibration = calibrator.finish("digits").unwrap();
    (graph, calibration)
}

/// Top-1 in percent.
fn accuracy(graph: &Graph) -> f64 {
    let (images, labels) = data("test.npz");
    let right = |(image, label): (&Tensor, usize)| {
        let logits = interp::run(graph, std::slice::from_ref(image)).unwrap().remove(0);
        let logits = logits.f32s().unwrap();
        (0..10).all(|i| i == label || logits[i] < logits[label])
    };
    let count = images.iter().zip(labels.iter().copied()).filter(|&pair| right(pair)).count();
    100.0 * count as f64 / labels.len() as f64
}

#[test]
fn digits_keep_their_accuracy() {
    let (graph, calibration) = network();
    let float = accuracy(&graph);
    assert!(float >= 98.0, "float {float}");
    for (weights, activations, loss) in [(8, 8, 0.5), (4, 8, 1.0), (4, 4, 2.0)] {
        for method in [Method::MinMax, Method::Percentile(99.9), Method::Mse] {
            let plan = PrecisionPlan::uniform(&graph, weights, activations).unwrap();
            let qdq = insert(&graph, &calibration, &plan, Options { method, ..Options::default() }).unwrap();
            let found = accuracy(&integerize(&qdq).unwrap());
            assert!(found >= float - loss, "w{weights}a{activations} {method}: {found} after {float}");
        }
    }
}
