//! Quantised graphs: the values an independent reading of ONNX gives.

use hawqc_ir::{Elem, Op, Range};
use proptest::prelude::*;

use super::*;
use crate::pb_build::{f32_tensor, int, ints, raw_tensor};

fn scalar(m: &mut ModelBuilder, name: &str, scale: f32, elem: DataType, zero: u8) -> [String; 2] {
    let zero = if matches!(elem, DataType::Int4 | DataType::Uint4) { zero & 15 } else { zero };
    [
        m.constant(f32_tensor(&format!("{name}_scale"), &[], &[scale])),
        m.constant(raw_tensor(&format!("{name}_zero"), elem, &[], vec![zero])),
    ]
}

/// x -> QuantizeLinear -> DequantizeLinear -> y.
fn pair(elem: DataType, scale: f32, zero: u8) -> Vec<u8> {
    model(&[4], |m| {
        let [s, z] = scalar(m, "x", scale, elem, zero);
        m.node("q", "QuantizeLinear", &["x", &s, &z], "xq", vec![]);
        m.node("d", "DequantizeLinear", &["xq", &s, &z], "y", vec![]);
    })
}

#[test]
fn elements_round_and_saturate() {
    let x = [-1000.0, 0.25, 0.75, 1000.0];
    assert_eq!(run(&pair(DataType::Uint8, 0.5, 128), &[4], &x), [-64.0, 0.0, 1.0, 63.5]);
    assert_eq!(run(&pair(DataType::Int8, 0.5, 0), &[4], &x), [-64.0, 0.0, 1.0, 63.5]);
    assert_eq!(run(&pair(DataType::Uint4, 0.5, 3), &[4], &x), [-1.5, 0.0, 1.0, 6.0]);
    assert_eq!(run(&pair(DataType::Int4, 0.5, 0), &[4], &x), [-4.0, 0.0, 1.0, 3.5]);
}

#[test]
fn unusable_scales() {
    for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert!(invalid_message(&pair(DataType::Int8, scale, 0)).contains("scale"));
    }
}

#[test]
fn clip_narrows_the_quantisation() {
    let bytes = model(&[1, 2, 2, 1], |m| {
        let [s, z] = scalar(m, "x", 0.5, DataType::Int8, 0);
        m.constant(raw_tensor("lo", DataType::Int8, &[], vec![0xf8]));
        m.constant(raw_tensor("hi", DataType::Int8, &[], vec![7]));
        m.node("q", "QuantizeLinear", &["x", &s, &z], "xq", vec![]);
        m.node("c", "Clip", &["xq", "lo", "hi"], "xc", vec![]);
        m.node("d", "DequantizeLinear", &["xc", &s, &z], "y", vec![]);
    });
    let imported = imported(&bytes);
    let clipped = imported.tensors["xc"];
    assert!(matches!(imported.graph.op(clipped), Op::Quantize(q) if (q.lo, q.hi) == (-8, 7)));
    assert_eq!(imported.graph.ty(clipped).range, Some(Range::new(-8, 7)));
    assert_eq!(imported.graph.ty(clipped).elem, Elem::I8);
    assert_eq!(run(&bytes, &[1, 2, 2, 1], &[-9.0, -1.0, 1.0, 9.0]), [-4.0, -1.0, 1.0, 3.5]);
}

#[test]
fn quantised_float_weights_are_folded() {
    let bytes = model(&[1, 1, 1, 1], |m| {
        m.constant(f32_tensor("w", &[2, 1, 1, 1], &[0.26, -3.0]));
        m.constant(f32_tensor("s", &[2], &[0.5, 0.25]));
        m.constant(raw_tensor("z", DataType::Int8, &[2], vec![0, 0]));
        m.node("q", "QuantizeLinear", &["w", "s", "z"], "wq", vec![int("axis", 0)]);
        m.node("d", "DequantizeLinear", &["wq", "s", "z"], "wd", vec![int("axis", 0)]);
        m.node("c", "Conv", &["x", "wd"], "y", vec![]);
    });
    assert_eq!(run(&bytes, &[1, 1, 1, 1], &[1.0]), [0.5, -3.0]);
    let graph = imported(&bytes).graph;
    assert!(graph.values().all(|v| !matches!(graph.op(v), Op::Quantize(_))));
}

/// A convolution of 4-bit weights, two per byte, per channel, with a dequantised int32 bias.
#[test]
fn packed_weights_and_integer_bias() {
    // K=2, C=3, 1x1: [1, -8, 7], [-1, 0, 2]; the low half of a byte comes first.
    let packed = vec![0x81, 0xf7, 0x20];
    let bytes = model(&[1, 3, 1, 1], |m| {
        m.constant(raw_tensor("w", DataType::Int4, &[2, 3, 1, 1], packed));
        m.constant(f32_tensor("ws", &[2], &[0.5, 2.0]));
        let bias: Vec<u8> = [10i32, -3].iter().flat_map(|v| v.to_le_bytes()).collect();
        m.constant(raw_tensor("b", DataType::Int32, &[2], bias));
        m.constant(f32_tensor("bs", &[2], &[0.1, 1.0]));
        m.node("dw", "DequantizeLinear", &["w", "ws"], "wd", vec![int("axis", 0)]);
        m.node("db", "DequantizeLinear", &["b", "bs"], "bd", vec![int("axis", -1)]);
        m.node("c", "Conv", &["x", "wd", "bd"], "y", vec![]);
    });
    assert_eq!(run(&bytes, &[1, 3, 1, 1], &[1.0, 10.0, 100.0]), [0.5 * 621.0 + 1.0, 2.0 * 199.0 - 3.0]);
    let graph = imported(&bytes).graph;
    let weights = graph.values().find_map(|v| graph.tensor(v).filter(|t| t.elem() == Elem::I4)).unwrap();
    assert_eq!((weights.shape(), weights.ints().unwrap()), (&[2, 1, 1, 3][..], vec![1, -8, 7, -1, 0, 2]));
}

#[test]
fn per_channel_activations_follow_their_axis() {
    let bytes = model(&[1, 2, 1, 2], |m| {
        m.constant(f32_tensor("s", &[2], &[1.0, 10.0]));
        m.constant(raw_tensor("z", DataType::Int8, &[2], vec![0, 0]));
        m.node("q", "QuantizeLinear", &["x", "s", "z"], "xq", vec![int("axis", 1)]);
        m.node("d", "DequantizeLinear", &["xq", "s", "z"], "y", vec![int("axis", 1)]);
    });
    assert_eq!(run(&bytes, &[1, 2, 1, 2], &[1.2, 2.2, 14.0, 26.0]), [1.0, 2.0, 10.0, 30.0]);
}

#[test]
fn mismatched_parameters() {
    let with = |scales: &[f32], zero: TensorProto| {
        model(&[1, 3, 2, 2], |m| {
            m.constant(f32_tensor("s", &[scales.len()], scales));
            m.constant(zero);
            m.node("q", "QuantizeLinear", &["x", "s", "z"], "y", vec![]);
        })
    };
    let zeros = |n: usize| raw_tensor("z", DataType::Int8, &[n], vec![0; n]);
    assert!(invalid_message(&with(&[1.0, 2.0], zeros(2))).contains("axis 1"));
    assert!(invalid_message(&with(&[1.0, 2.0, 3.0], zeros(2))).contains("zero points"));
    let refused = refusals(&with(&[1.0], raw_tensor("z", DataType::Uint16, &[1], vec![0; 2])));
    assert_eq!((refused[0].node.as_str(), refused[0].found.as_str()), ("z", "uint16"));
}

/// Flatten of an image into Gemm: the weights are permuted, nothing is transposed when the network runs.
#[test]
fn flattened_images_need_no_transpose() {
    let weights: Vec<f32> = (0..24).map(|v| v as f32).collect();
    for quantised in [false, true] {
        let bytes = model(&[1, 3, 2, 2], |m| {
            m.constant(f32_tensor("w", &[2, 12], &weights));
            m.constant(f32_tensor("one", &[1, 1, 1, 1], &[1.0]));
            let [s, z] = scalar(m, "x", 1.0, DataType::Int8, 0);
            m.node("p", "MaxPool", &["x"], "p", vec![ints("kernel_shape", &[1, 1])]);
            m.node("f", "Flatten", &["p"], "f", vec![]);
            m.node("q", "QuantizeLinear", &["f", &s, &z], "fq", vec![]);
            m.node("d", "DequantizeLinear", &["fq", &s, &z], "fd", vec![]);
            m.node("g", "Gemm", &[if quantised { "fd" } else { "f" }, "w"], "y", vec![int("transB", 1)]);
        });
        let x: Vec<f32> = (0..12).map(|v| v as f32 - 4.0).collect();
        let expected: Vec<f32> = weights.chunks(12).map(|row| row.iter().zip(&x).map(|(w, x)| w * x).sum()).collect();
        assert_eq!(run(&bytes, &[1, 3, 2, 2], &x), expected);
        let graph = imported(&bytes).graph;
        let transposes = graph.values().filter(|&v| matches!(graph.op(v), Op::Transpose(_))).count();
        assert_eq!(transposes, 1, "only the input's");
    }
}

#[test]
fn fused_operators_are_their_float_form_between_two_quantisers() {
    let weights: Vec<u8> = [1i8, -2, 3, 4].iter().map(|v| v.cast_unsigned()).collect();
    let quantisers = |m: &mut ModelBuilder| {
        scalar(m, "x", 0.5, DataType::Uint8, 3);
        scalar(m, "y", 0.25, DataType::Uint8, 100);
        m.constant(f32_tensor("w_scale", &[2], &[0.5, 1.0]));
        m.constant(raw_tensor("w_zero", DataType::Int8, &[2], vec![0, 0]));
        m.constant(raw_tensor("w", DataType::Int8, &[2, 2, 1, 1], weights.clone()));
        m.constant(raw_tensor("b", DataType::Int32, &[2], [4i32, -8].iter().flat_map(|v| v.to_le_bytes()).collect()));
        m.node("q", "QuantizeLinear", &["x", "x_scale", "x_zero"], "xq", vec![]);
    };
    let fused = model(&[1, 2, 1, 1], |m| {
        quantisers(m);
        let inputs = ["xq", "x_scale", "x_zero", "w", "w_scale", "w_zero", "y_scale", "y_zero", "b"];
        m.node("c", "QLinearConv", &inputs, "yq", vec![]);
        m.node("d", "DequantizeLinear", &["yq", "y_scale", "y_zero"], "y", vec![]);
    });
    // x = 2, -1: real products 0.5*2 + 1.0 and 3*2 - 4*1, biases 4*0.25 and -8*0.5.
    assert_eq!(run(&fused, &[1, 2, 1, 1], &[2.0, -1.0]), [3.0, -2.0]);
}

proptest! {
    #[test]
    fn packed_nibbles_read_back(values in prop::collection::vec(-8i8..8, 1..40)) {
        let mut packed = vec![0u8; values.len().div_ceil(2)];
        for (i, v) in values.iter().enumerate() {
            packed[i / 2] |= (v.cast_unsigned() & 15) << (4 * (i % 2));
        }
        let proto = raw_tensor("t", DataType::Int4, &[values.len()], packed);
        let read = constant::decode(proto, None).unwrap().tensor().unwrap();
        prop_assert_eq!(read.ints().unwrap(), values.iter().map(|&v| i64::from(v)).collect::<Vec<_>>());
    }
}
