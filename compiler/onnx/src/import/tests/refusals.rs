//! Malformed and unsupported models, each with what the error must name.

use prost::Message;
use tract_onnx::pb::tensor_shape_proto::Dimension;

use super::*;
use crate::pb_build::{f32_tensor, int, ints, raw_tensor};

/// The model with its parts changed after encoding.
fn edited(bytes: &[u8], edit: impl FnOnce(&mut ModelProto)) -> Vec<u8> {
    let mut model = ModelProto::decode(bytes).unwrap();
    edit(&mut model);
    model.encode_to_vec()
}

fn relu() -> Vec<u8> {
    model(&[1, 2, 4, 4], |m| m.node("r", "Relu", &["x"], "y", vec![]))
}

fn conv(weight: TensorProto) -> Vec<u8> {
    model(&[1, 2, 4, 4], |m| {
        let w = m.constant(weight);
        m.node("c", "Conv", &["x", &w], "y", vec![]);
    })
}

#[test]
fn every_offending_node_is_listed() {
    let bytes = model(&[1, 2, 4, 4], |m| {
        m.node("a", "Sigmoid", &["x"], "t1", vec![]);
        m.node("b", "MaxPool", &["t1"], "t2", vec![ints("kernel_shape", &[2, 2, 2])]);
        m.node("c", "Relu", &["t2"], "t3", vec![]);
        m.node("d", "NonMaxSuppression", &["t3"], "t4", vec![]);
        m.node("e", "Relu", &["x"], "t5", vec![int("threshold", 1)]);
        m.node("f", "Mul", &["x", "t5"], "y", vec![]);
    });
    let found: Vec<(String, String)> = refusals(&bytes).into_iter().map(|u| (u.node, u.attribute)).collect();
    let expected = [("a", "operator"), ("b", "kernel_shape"), ("d", "operator"), ("e", "attribute")];
    assert_eq!(found, expected.map(|(n, a)| (n.to_string(), a.to_string())));
    assert_eq!(import(&bytes, &NO_OPTIONS).unwrap_err().exit_code(), 4);
}

#[test]
fn operators_and_forms_that_are_refused_by_name() {
    let one = |op: &str, inputs: &[&str], attributes| {
        let bytes = model(&[1, 2, 4, 4], |m| {
            m.constant(f32_tensor("w", &[2, 1], &[1.0, 2.0]));
            m.node("n", op, inputs, "y", attributes);
        });
        refusals(&bytes).remove(0)
    };
    assert_eq!(one("ConvInteger", &["x", "w"], vec![]).found, "ConvInteger");
    assert_eq!(one("MatMul", &["x", "x"], vec![]).attribute, "B");
    assert_eq!(one("Mul", &["x", "x"], vec![]).attribute, "operands");
    assert_eq!(one("Conv", &["x", "w"], vec![]).attribute, "rank of the weight");
    let blocked = vec![int("block_size", 16), int("axis", 1)];
    let refused = one("QuantizeLinear", &["x", "w"], blocked);
    assert_eq!((refused.attribute.as_str(), refused.found.as_str()), ("block_size", "16"));
    assert_eq!(one("QuantizeLinear", &["x", "w"], vec![]).attribute, "shape of the scale");
    assert_eq!(one("ReduceMean", &["x"], vec![]).attribute, "axes");
}

#[test]
fn opsets_outside_the_range() {
    for version in [1, 8, 24, i64::MAX, i64::MIN] {
        let refused = refusals(&edited(&relu(), |m| m.opset_import[0].version = version));
        assert_eq!((refused[0].found.clone(), refused[0].supported.as_str()), (version.to_string(), "9 to 23"));
    }
    assert!(invalid_message(&edited(&relu(), |m| m.opset_import.clear())).contains("opset"));
}

#[test]
fn not_a_model() {
    assert!(invalid_message(b"not a model at all").contains("ONNX"));
    assert!(invalid_message(b"").contains("opset"));
    assert!(invalid_message(&edited(&relu(), |m| m.graph = None)).contains("graph"));
    assert_eq!(import(b"x", &NO_OPTIONS).unwrap_err().exit_code(), 3);
}

#[test]
fn cycles_and_broken_names() {
    let cycle = model(&[1, 2, 4, 4], |m| {
        m.node("a", "Add", &["x", "t2"], "t1", vec![]);
        m.node("b", "Relu", &["t1"], "t2", vec![]);
        m.node("c", "Relu", &["t2"], "y", vec![]);
    });
    assert!(invalid_message(&cycle).contains("`a`") && invalid_message(&cycle).contains("cycle"));
    let own = model(&[1, 2, 4, 4], |m| m.node("a", "Relu", &["y"], "y", vec![]));
    assert!(invalid_message(&own).contains("cycle"));
    let undefined = model(&[1, 2, 4, 4], |m| m.node("a", "Relu", &["nowhere"], "y", vec![]));
    assert!(invalid_message(&undefined).contains("`nowhere`"));
    let twice = model(&[1, 2, 4, 4], |m| {
        m.node("a", "Relu", &["x"], "y", vec![]);
        m.node("b", "Relu", &["x"], "y", vec![]);
    });
    assert!(invalid_message(&twice).contains("`y`"));
}

#[test]
fn nodes_out_of_order_are_ordered() {
    let bytes = model(&[1, 1, 1, 2], |m| {
        m.node("b", "Relu", &["t"], "y", vec![]);
        m.node("a", "Identity", &["x"], "t", vec![]);
    });
    assert_eq!(run(&bytes, &[1, 1, 1, 2], &[-1.0, 2.0]), [0.0, 2.0]);
}

#[test]
fn variable_dimensions() {
    let bytes = edited(&relu(), |m| {
        let info = &mut m.graph.as_mut().unwrap().input[0];
        let Some(type_proto::Value::TensorType(t)) = &mut info.r#type.as_mut().unwrap().value else { panic!() };
        t.shape.as_mut().unwrap().dim[0] = Dimension::default();
    });
    assert_eq!(imported(&bytes).graph.outputs().len(), 1);
    let batched = import(&bytes, &ImportOptions { batch: Some(8), ..NO_OPTIONS }).unwrap().graph;
    assert_eq!(batched.ty(batched.inputs()[0]).shape, [8, 2, 4, 4]);
    let bytes = edited(&bytes, |m| {
        let info = &mut m.graph.as_mut().unwrap().input[0];
        let Some(type_proto::Value::TensorType(t)) = &mut info.r#type.as_mut().unwrap().value else { panic!() };
        t.shape.as_mut().unwrap().dim[2] = Dimension::default();
    });
    let refused = refusals(&bytes);
    assert_eq!((refused[0].node.as_str(), refused[0].found.as_str()), ("x", "dimension 2 variable"));
}

#[test]
fn absurd_shapes() {
    let huge = model(&[1, 1 << 20, 1 << 20, 1], |m| m.node("r", "Relu", &["x"], "y", vec![]));
    assert!(invalid_message(&huge).contains("`x`"));
    for dims in [vec![-1, 2, 4, 4], vec![1, 0, 4, 4], vec![1, i64::MAX, i64::MAX, 2]] {
        let bytes = edited(&relu(), |m| {
            let info = &mut m.graph.as_mut().unwrap().input[0];
            let Some(type_proto::Value::TensorType(t)) = &mut info.r#type.as_mut().unwrap().value else { panic!() };
            for (dim, v) in t.shape.as_mut().unwrap().dim.iter_mut().zip(dims) {
                dim.value = Some(Dim::DimValue(v));
            }
        });
        assert!(invalid_message(&bytes).contains("`x`"));
    }
    for dims in [vec![1 << 40], vec![1 << 20, 1 << 20], vec![-2, 2, 1, 1], vec![i64::MAX, i64::MAX, 1, 1]] {
        let tensor = TensorProto { dims, ..f32_tensor("w", &[], &[1.0]) };
        assert!(matches!(import(&conv(tensor), &NO_OPTIONS), Err(ImportError::Invalid { .. })));
    }
}

#[test]
fn weights_that_are_not_numbers_or_not_floats() {
    for bad in [f32::NAN, f32::INFINITY] {
        assert!(invalid_message(&conv(f32_tensor("w", &[1, 2, 1, 1], &[1.0, bad]))).contains("NaN"));
    }
    let bytes = conv(raw_tensor("w", DataType::Int8, &[1, 2, 1, 1], vec![1, 2]));
    assert!(invalid_message(&bytes).contains("i8"));
    let refused = refusals(&conv(raw_tensor("w", DataType::Double, &[1, 2, 1, 1], vec![0; 16])));
    assert_eq!((refused[0].node.as_str(), refused[0].found.as_str()), ("w", "double"));
    let short = conv(raw_tensor("w", DataType::Float, &[1, 2, 1, 1], vec![0; 7]));
    assert!(invalid_message(&short).contains("8 bytes"));
}

#[test]
fn attributes_of_the_wrong_type_or_value() {
    let pool = |attribute| {
        model(&[1, 2, 4, 4], |m| m.node("p", "MaxPool", &["x"], "y", vec![ints("kernel_shape", &[2, 2]), attribute]))
    };
    assert!(invalid_message(&pool(int("strides", 2))).contains("strides"));
    assert!(invalid_message(&pool(ints("strides", &[0, 1]))).contains("strides"));
    assert!(invalid_message(&pool(ints("strides", &[1, i64::MAX]))).contains("strides"));
    assert!(invalid_message(&pool(ints("pads", &[2, 0, 0, 0]))).contains("pads"));
    assert_eq!(refusals(&pool(ints("pads", &[-1, 0, 0, 0])))[0].attribute, "pads");
}
