//! Writing ONNX: a thin layer over the protobuf types that appends nodes and constants to one graph.
//!
//! Comes in: operator names, tensor names, attributes, constant data. Goes out: the bytes of a `ModelProto`.
//! Nothing is checked here beyond what the types say; the zoo and the exporter know what they write. All constant data is
//! little-endian `raw_data`, as ONNX demands of that field on every machine.

use prost::Message;
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, attribute_proto::AttributeType, tensor_proto::DataType, tensor_shape_proto, type_proto,
};

/// Integer attribute.
pub fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: AttributeType::Int as i32, i, ..Default::default() }
}

/// Integer-list attribute.
pub fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        r#type: AttributeType::Ints as i32,
        ints: values.to_vec(),
        ..Default::default()
    }
}

/// Float attribute.
pub fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: AttributeType::Float as i32, f, ..Default::default() }
}

/// Tensor attribute.
pub fn tensor(name: &str, t: TensorProto) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: AttributeType::Tensor as i32, t: Some(t), ..Default::default() }
}

/// A constant tensor from little-endian bytes (two elements per byte, low nibble first, for the 4-bit types).
pub fn raw_tensor(name: &str, elem: DataType, dims: &[usize], raw_data: Vec<u8>) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: dims.iter().map(|&d| d as i64).collect(),
        data_type: elem as i32,
        raw_data,
        ..Default::default()
    }
}

/// A constant f32 tensor.
pub fn f32_tensor(name: &str, dims: &[usize], values: &[f32]) -> TensorProto {
    raw_tensor(name, DataType::Float, dims, values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// A constant i64 tensor of rank 1.
pub fn i64_tensor(name: &str, values: &[i64]) -> TensorProto {
    raw_tensor(name, DataType::Int64, &[values.len()], values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// One ONNX graph being written. Nodes appear in the order of the calls, which must be a topological order.
pub struct ModelBuilder {
    graph: GraphProto,
    opset: i64,
}

impl ModelBuilder {
    /// An empty graph named `name` that binds its operators to version `opset` of the standard domain.
    pub fn new(name: &str, opset: i64) -> Self {
        ModelBuilder { graph: GraphProto { name: name.into(), ..Default::default() }, opset }
    }

    /// Declares a graph input.
    pub fn input(&mut self, name: &str, elem: DataType, dims: &[usize]) {
        self.graph.input.push(value_info(name, elem, dims));
    }

    /// Declares a graph output.
    pub fn output(&mut self, name: &str, elem: DataType, dims: &[usize]) {
        self.graph.output.push(value_info(name, elem, dims));
    }

    /// Adds a constant and returns its name.
    pub fn constant(&mut self, tensor: TensorProto) -> String {
        let name = tensor.name.clone();
        self.graph.initializer.push(tensor);
        name
    }

    /// Adds a node of one output; an empty input name is an absent optional input.
    pub fn node(&mut self, name: &str, op: &str, inputs: &[&str], output: &str, attributes: Vec<AttributeProto>) {
        self.graph.node.push(NodeProto {
            name: name.into(),
            op_type: op.into(),
            input: inputs.iter().map(|s| s.to_string()).collect(),
            output: vec![output.into()],
            attribute: attributes,
            ..Default::default()
        });
    }

    /// The encoded model. The IR version is the oldest that knows the opset's types.
    pub fn finish(self) -> Vec<u8> {
        ModelProto {
            ir_version: if self.opset >= 21 { 10 } else { 8 },
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: self.opset }],
            producer_name: "hawqc".into(),
            producer_version: env!("CARGO_PKG_VERSION").into(),
            graph: Some(self.graph),
            ..Default::default()
        }
        .encode_to_vec()
    }
}

fn value_info(name: &str, elem: DataType, dims: &[usize]) -> ValueInfoProto {
    let dim = dims
        .iter()
        .map(|&d| tensor_shape_proto::Dimension {
            value: Some(tensor_shape_proto::dimension::Value::DimValue(d as i64)),
            ..Default::default()
        })
        .collect();
    let tensor = type_proto::Tensor { elem_type: elem as i32, shape: Some(TensorShapeProto { dim }) };
    ValueInfoProto {
        name: name.into(),
        r#type: Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() }),
        ..Default::default()
    }
}
