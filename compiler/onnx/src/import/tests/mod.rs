//! Small models written here: what is refused, and how quantised graphs come in.

mod external;
mod quantised;
mod refusals;
mod shapes;

use hawqc_ir::{Tensor, interp};
use tract_onnx::pb::tensor_proto::DataType;

use super::*;
use crate::pb_build::ModelBuilder;

const NO_OPTIONS: ImportOptions = ImportOptions { base_dir: None, batch: None };

/// A model of opset 21 with an f32 input `x` and an f32 output `y`; its shape is declared as unknown to the importer.
fn model(input: &[usize], build: impl FnOnce(&mut ModelBuilder)) -> Vec<u8> {
    model_of(21, input, build)
}

fn model_of(opset: i64, input: &[usize], build: impl FnOnce(&mut ModelBuilder)) -> Vec<u8> {
    let mut m = ModelBuilder::new("test", opset);
    m.input("x", DataType::Float, input);
    build(&mut m);
    m.output("y", DataType::Float, &[]);
    m.finish()
}

fn imported(bytes: &[u8]) -> Imported {
    import(bytes, &NO_OPTIONS).unwrap_or_else(|e| panic!("{e}"))
}

fn invalid_message(bytes: &[u8]) -> String {
    match import(bytes, &NO_OPTIONS) {
        Err(e @ ImportError::Invalid { .. }) => e.to_string(),
        other => panic!("expected a malformed model, found {other:?}"),
    }
}

fn refusals(bytes: &[u8]) -> Vec<Unsupported> {
    match import(bytes, &NO_OPTIONS) {
        Err(ImportError::Unsupported(list)) => list,
        other => panic!("expected refusals, found {other:?}"),
    }
}

fn run(bytes: &[u8], shape: &[usize], data: &[f32]) -> Vec<f32> {
    let graph = imported(bytes).graph;
    let outputs = interp::run(&graph, &[Tensor::from_f32(shape, data.to_vec()).unwrap()]).unwrap();
    outputs[0].f32s().unwrap().to_vec()
}
