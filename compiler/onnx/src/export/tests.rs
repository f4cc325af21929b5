//! What is written reads back to the same results, bit for bit.

use hawqc_ir::{Data, Dequantize, IrError, Tensor, interp};
use prost::Message;
use tract_onnx::pb::ModelProto;

use super::*;
use crate::zoo::{self, ZooOptions};
use crate::{ImportOptions, import};

/// Largest absolute value of each value of a float graph on one image.
fn magnitudes(graph: &Graph, image: &Tensor) -> HashMap<ValueId, f32> {
    let mut largest = HashMap::new();
    interp::run_observed(graph, std::slice::from_ref(image), |id, t| {
        if let Data::F32(v) = t.data() {
            largest.insert(id, v.iter().fold(1e-3f32, |m, x| m.max(x.abs())));
        }
    })
    .unwrap();
    largest
}

/// A quantise and dequantise pair on `src`.
fn requantised(
    new: &mut Graph,
    name: &str,
    src: ValueId,
    op: Quantize,
    scale: f32,
    zero: i64,
) -> Result<ValueId, IrError> {
    let elem = op.elem;
    let scale = new.constant(Tensor::from_f32([1], vec![scale]).unwrap());
    let zero = new.constant(Tensor::from_ints(elem, [1], [zero]).unwrap());
    let q = new.add(name, op, &[src, scale, zero])?;
    new.add(name, Dequantize { axis: 0 }, &[q, scale, zero])
}

/// `graph` with quantised weights (per channel, `elem`), int32 biases and quantised activations of `bits` bits.
fn quantised(graph: &Graph, image: &Tensor, elem: Elem, bits: u32) -> Graph {
    let largest = magnitudes(graph, image);
    let quantised = graph.rebuild(|new, id, args| {
        let mut args = args.to_vec();
        if let Op::Conv(_) = graph.op(id) {
            let wei = new.tensor(args[1]).unwrap().clone();
            let row = wei.len() / wei.shape()[0];
            let n = elem.range().unwrap().hi as f32;
            let scales: Vec<f32> =
                wei.f32s().unwrap().chunks(row).map(|r| r.iter().fold(1e-6f32, |m, w| m.max(w.abs())) / n).collect();
            let ints = wei.f32s().unwrap().iter().enumerate().map(|(i, w)| (w / scales[i / row]).round() as i64);
            let ints = new.constant(Tensor::from_ints(elem, wei.shape(), ints).unwrap());
            let zeros = new.constant(Tensor::from_ints(elem, [scales.len()], vec![0; scales.len()]).unwrap());
            let scale = new.constant(Tensor::from_f32([scales.len()], scales.clone()).unwrap());
            args[1] = new.add(graph.name(id), Dequantize { axis: 0 }, &[ints, scale, zeros])?;
            if let Some(&bias) = args.get(2) {
                let values = new.tensor(bias).unwrap().clone();
                let bias_scales: Vec<f32> = scales.iter().map(|s| s * 0.01).collect();
                let ints = values.f32s().unwrap().iter().zip(&bias_scales).map(|(b, s)| (b / s).round() as i64);
                let ints = new.constant(Tensor::from_ints(Elem::I32, [scales.len()], ints).unwrap());
                let zeros = new.constant(Tensor::from_ints(Elem::I32, [scales.len()], vec![0; scales.len()]).unwrap());
                let scale = new.constant(Tensor::from_f32([scales.len()], bias_scales).unwrap());
                args[2] = new.add(graph.name(id), Dequantize { axis: 0 }, &[ints, scale, zeros])?;
            }
        }
        let y = new.copy(graph, id, &args)?;
        let hi = (1 << bits) - 1;
        match graph.op(id) {
            Op::ClampReal(_) => {
                let op = Quantize { lo: 0, hi, axis: 0, elem: if bits == 4 { Elem::U4 } else { Elem::U8 } };
                requantised(new, graph.name(id), y, op, largest[&id] / hi as f32, 0)
            }
            Op::Add(_) => {
                let op = Quantize { lo: -32768, hi: 32767, axis: 0, elem: Elem::I16 };
                requantised(new, graph.name(id), y, op, largest[&id] / 32767.0, 0)
            }
            Op::Transpose(_) => {
                let op = Quantize { lo: 0, hi: 255, axis: 0, elem: Elem::U8 };
                requantised(new, graph.name(id), y, op, largest[&id] / 127.0, 128)
            }
            _ => Ok(y),
        }
    });
    quantised.unwrap_or_else(|e: IrError| panic!("{e}"))
}

fn image(size: usize, mut state: u32) -> Tensor {
    let values = (0..3 * size * size).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 8) as f32 / (1 << 24) as f32 - 0.5) * 12f32.sqrt()
    });
    Tensor::from_f32([1, 3, size, size], values.collect()).unwrap()
}

fn network(name: &str, size: usize, width: f64) -> Graph {
    let options = ZooOptions { image_size: Some(size), width, classes: 7, seed: 4 };
    import(&zoo::write(name, &options).unwrap(), &ImportOptions::default()).unwrap().graph
}

/// Asserts that `graph` reads back with the same results and the same layers; returns the written model.
fn reads_back(graph: &Graph, format: Format, image: &Tensor) -> ModelProto {
    let bytes = export(graph, format).unwrap_or_else(|e| panic!("{e}"));
    let again = import(&bytes, &ImportOptions::default()).unwrap_or_else(|e| panic!("{e}")).graph;
    let images = std::slice::from_ref(image);
    assert_eq!(interp::run(graph, images).unwrap(), interp::run(&again, images).unwrap());
    let layers = |g: &Graph| -> Vec<String> {
        g.values().filter(|&v| matches!(g.op(v), Op::Conv(_))).map(|v| g.name(v).to_string()).collect()
    };
    assert_eq!(layers(graph), layers(&again));
    ModelProto::decode(bytes.as_slice()).unwrap()
}

const NETWORKS: [(&str, usize, f64); 6] = [
    ("tiny_resnet", 16, 0.5),
    ("resnet50", 33, 0.06),
    ("inception_v3", 79, 0.05),
    ("mobilenet_v2", 33, 0.2),
    ("squeezenet1_1", 35, 0.06),
    ("vgg11_bn", 64, 0.02),
];

#[test]
fn float_networks_read_back() {
    for (name, size, width) in NETWORKS {
        for format in [Format::Qdq, Format::Qcdq] {
            reads_back(&network(name, size, width), format, &image(size, 3));
        }
    }
}

#[test]
fn quantised_networks_read_back() {
    for (name, size, width) in NETWORKS {
        let float = network(name, size, width);
        let image = image(size, 9);
        for (elem, bits) in [(Elem::I8, 8), (Elem::I4, 4), (Elem::I8, 6)] {
            let graph = quantised(&float, &image, elem, bits);
            for format in [Format::Qdq, Format::Qcdq] {
                reads_back(&graph, format, &image);
            }
        }
    }
}

#[test]
fn formats_differ_in_types_and_clips() {
    let float = network("tiny_resnet", 16, 0.5);
    let image = image(16, 1);
    let count = |format, elem, bits| {
        let model = reads_back(&quantised(&float, &image, elem, bits), format, &image);
        let graph = model.graph.unwrap();
        let clips = graph.node.iter().filter(|n| n.op_type == "Clip").count();
        let four_bits = [DataType::Int4 as i32, DataType::Uint4 as i32];
        let packed = graph.initializer.iter().filter(|t| four_bits.contains(&t.data_type)).count();
        (clips, packed > 0)
    };
    // Seven activations: after the stem and after each of the six convolutions of the blocks.
    assert_eq!(count(Format::Qdq, Elem::I4, 4), (0, true));
    assert_eq!(count(Format::Qcdq, Elem::I4, 4), (7, false));
    assert_eq!(count(Format::Qdq, Elem::I8, 6), (7, false));
    assert_eq!(count(Format::Qcdq, Elem::I8, 8), (0, false));
}

#[test]
fn integer_arithmetic_is_refused() {
    let mut graph = Graph::new();
    let ty = hawqc_ir::TensorType::new(Elem::I8, [1, 2, 2, 3]);
    let x = graph.input("x", ty).unwrap();
    let y = graph.add("sum", hawqc_ir::Add {}, &[x, x]).unwrap();
    graph.output("y", y);
    let message = export(&graph, Format::Qdq).unwrap_err().to_string();
    assert!(message.contains("`sum`") && message.contains("add"), "{message}");
}
