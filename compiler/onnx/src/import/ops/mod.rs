//! The operators of ONNX that are understood, one row each.
//!
//! To add an operator: write its function in the file that bears the name of the IR operator it becomes, and add a row.
//! A row lists every attribute its function reads or may ignore; an attribute not listed is refused, so that nothing a
//! model says is dropped in silence.

mod affine;
mod clamp;
mod concat;
mod conv;
mod dense;
mod fold;
mod pad;
mod pool;
mod quantize;
mod reshape;
mod softmax;
mod transpose;
mod window;

use super::context::Context;
use super::node::{Node, NodeError, Value};

/// Adds a node to the graph, or computes it if it is constant. Returns the value of its first output.
type Import = fn(&mut Context, &Node) -> Result<Value, NodeError>;

/// An operator.
pub struct Row {
    pub op: &'static str,
    /// Oldest opset whose definition of the operator is understood; all later ones up to 23 are.
    pub since: i64,
    pub attributes: &'static [&'static str],
    pub import: Import,
}

const fn row(op: &'static str, since: i64, attributes: &'static [&'static str], import: Import) -> Row {
    Row { op, since, attributes, import }
}

const CONV: &[&str] = &["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"];

/// Every operator of the standard domain, by name.
pub const TABLE: &[Row] = &[
    row("Add", 7, &[], affine::add),
    row(
        "AveragePool",
        7,
        &["auto_pad", "ceil_mode", "count_include_pad", "dilations", "kernel_shape", "pads", "strides"],
        pool::average,
    ),
    row("BatchNormalization", 9, &["epsilon", "momentum", "training_mode"], affine::batch_normalization),
    row("Cast", 9, &["to", "saturate", "round_mode"], fold::cast),
    row("Clip", 6, &["max", "min"], clamp::clip),
    row("Concat", 4, &["axis"], concat::concat),
    row(
        "Constant",
        9,
        &["sparse_value", "value", "value_float", "value_floats", "value_int", "value_ints"],
        fold::constant,
    ),
    row("ConstantOfShape", 9, &["value"], fold::constant_of_shape),
    row("Conv", 1, CONV, conv::conv),
    row("DequantizeLinear", 10, &["axis", "block_size", "output_dtype"], quantize::dequantize_linear),
    row("Div", 7, &[], affine::div),
    row("Dropout", 7, &["ratio", "seed"], reshape::dropout),
    row("Flatten", 1, &["axis"], reshape::flatten),
    row("Gather", 1, &["axis"], fold::gather),
    row("Gemm", 7, &["alpha", "beta", "transA", "transB"], dense::gemm),
    row("GlobalAveragePool", 1, &[], pool::global_average),
    row("GlobalMaxPool", 1, &[], pool::global_max),
    row("Identity", 1, &[], reshape::identity),
    row("MatMul", 1, &[], dense::matmul),
    row(
        "MaxPool",
        8,
        &["auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "storage_order", "strides"],
        pool::max,
    ),
    row("Mul", 7, &[], affine::mul),
    row("Pad", 2, &["mode", "pads", "value"], pad::pad),
    row("QLinearConv", 10, CONV, quantize::qlinear_conv),
    row("QLinearMatMul", 10, &[], quantize::qlinear_matmul),
    row(
        "QuantizeLinear",
        10,
        &["axis", "block_size", "output_dtype", "precision", "saturate"],
        quantize::quantize_linear,
    ),
    row("ReduceMean", 1, &["axes", "keepdims", "noop_with_empty_axes"], pool::reduce_mean),
    row("Relu", 6, &[], clamp::relu),
    row("Reshape", 5, &["allowzero"], reshape::reshape),
    row("Shape", 1, &["end", "start"], fold::shape),
    row("Slice", 1, &["axes", "ends", "starts"], fold::slice),
    row("Softmax", 1, &["axis"], softmax::softmax),
    row("Squeeze", 1, &["axes"], reshape::squeeze),
    row("Sub", 7, &[], affine::sub),
    row("Sum", 6, &[], affine::sum),
    row("Transpose", 1, &["perm"], transpose::transpose),
    row("Unsqueeze", 1, &["axes"], reshape::unsqueeze),
];

/// The row of an operator; quantisation nodes also exist in onnxruntime's domain with the same meaning.
pub fn find(domain: &str, op: &str) -> Option<&'static Row> {
    let known = match domain {
        "" | "ai.onnx" => true,
        "com.microsoft" => matches!(op, "QuantizeLinear" | "DequantizeLinear"),
        _ => false,
    };
    TABLE.iter().find(|row| known && row.op == op)
}

/// Operators without a row whose result has the shape and element of their first input: after refusing one, the driver
/// can go on and find what else is refused.
pub const ELEMENTWISE: &[&str] = &[
    "Abs",
    "Celu",
    "Elu",
    "Erf",
    "Exp",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "InstanceNormalization",
    "LRN",
    "LayerNormalization",
    "LeakyRelu",
    "Log",
    "Mish",
    "Neg",
    "PRelu",
    "Pow",
    "Reciprocal",
    "Selu",
    "Sigmoid",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tanh",
];
