//! Arithmetic on shapes that exporters leave in graphs is gone after import.

use hawqc_ir::Op;

use super::*;
use crate::pb_build::{i64_tensor, int, ints, tensor};

fn constant(m: &mut ModelBuilder, name: &str, values: &[i64]) {
    m.node(name, "Constant", &[], name, vec![tensor("value", i64_tensor("", values))]);
}

/// `x.view(x.size(0), -1)`.
#[test]
fn view_becomes_a_reshape() {
    let bytes = model_of(13, &[2, 3, 1, 1], |m| {
        m.node("shape", "Shape", &["x"], "s", vec![]);
        m.constant(raw_index("zero", 0));
        m.node("first", "Gather", &["s", "zero"], "n", vec![int("axis", 0)]);
        constant(m, "axes", &[0]);
        m.node("unsqueeze", "Unsqueeze", &["n", "axes"], "n1", vec![]);
        constant(m, "rest", &[-1]);
        m.node("concat", "Concat", &["n1", "rest"], "target", vec![int("axis", 0)]);
        m.node("view", "Reshape", &["x", "target"], "y", vec![]);
    });
    let graph = imported(&bytes).graph;
    assert_eq!(graph.ty(graph.outputs()[0].1).shape, [2, 3]);
    assert!(graph.values().all(|v| matches!(graph.op(v), Op::Input(_) | Op::Reshape(_))));
}

fn raw_index(name: &str, value: i64) -> TensorProto {
    TensorProto { dims: vec![], ..i64_tensor(name, &[value]) }
}

/// Torch computes the amounts of `Pad` by reversing its own list of pairs.
#[test]
fn reversed_amounts_of_padding() {
    let bytes = model_of(13, &[1, 1, 2, 2], |m| {
        // Last axis first: left 1, right 2, top 0, bottom 1; then zeros for the other axes.
        constant(m, "pairs", &[1, 2, 0, 1]);
        constant(m, "four", &[4]);
        m.node("zeros", "ConstantOfShape", &["four"], "zeros", vec![tensor("value", i64_tensor("", &[0]))]);
        m.node("all", "Concat", &["pairs", "zeros"], "all", vec![int("axis", 0)]);
        constant(m, "by_two", &[-1, 2]);
        m.node("rows", "Reshape", &["all", "by_two"], "rows", vec![]);
        for (name, value) in [("minus_one", -1), ("least", i64::MIN), ("axis", 0)] {
            constant(m, name, &[value]);
        }
        m.node("reverse", "Slice", &["rows", "minus_one", "least", "axis", "minus_one"], "reversed", vec![]);
        m.node("columns", "Transpose", &["reversed"], "columns", vec![ints("perm", &[1, 0])]);
        m.node("flat", "Reshape", &["columns", "minus_one"], "flat", vec![]);
        m.node("cast", "Cast", &["flat"], "amounts", vec![int("to", 7)]);
        m.node("pad", "Pad", &["x", "amounts"], "y", vec![]);
    });
    let y = run(&bytes, &[1, 1, 2, 2], &[1.0, 2.0, 3.0, 4.0]);
    assert_eq!(y, [[0.0, 1.0, 2.0, 0.0, 0.0], [0.0, 3.0, 4.0, 0.0, 0.0], [0.0; 5]].concat());
}
