//! ONNX in: a model's bytes to a float or QDQ graph.
//!
//! Comes in: an encoded `ModelProto` of opset 9 to 23, and the folder its data files are in. Goes out: an [`Imported`]
//! graph in NHWC whose inputs and outputs keep ONNX's order of axes, with the graph value of every ONNX tensor that is
//! still computed. What holds on the way out: shapes are static, every constant is finite, every operator is one of the
//! IR's, and the graph passes [`hawqc_ir::verify::check`].
//!
//! The driver here orders the nodes, resolves names, hands each node to its row of [`ops::TABLE`], and collects what
//! is refused, so that one run reports all of it. A malformed model stops at the first fault.

mod constant;
mod context;
mod external;
mod node;
mod ops;
mod order;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use hawqc_ir::{Graph, IrError, TensorType, ValueId, verify};
use prost::Message;
use tract_onnx::pb::tensor_shape_proto::dimension::Value as Dim;
use tract_onnx::pb::{GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, type_proto};

use crate::error::{ImportError, Unsupported};
use constant::{data_type_name, elem_of};
use context::{Context, NHWC};
use node::{Node, NodeError, Value};

/// Opsets whose operators are understood.
pub const OPSETS: std::ops::RangeInclusive<i64> = 9..=23;
/// Largest dimension of an input.
const MAX_DIM: i64 = 1 << 24;
/// Most elements of one input.
const MAX_INPUT: usize = 1 << 31;

/// How to import.
#[derive(Clone, Copy, Debug, Default)]
pub struct ImportOptions<'a> {
    /// Folder of the model file, for tensor data in files of their own. Without it such models are refused.
    pub base_dir: Option<&'a Path>,
    /// First dimension of every input of rank 2 or more. Without it a fixed one is kept and a variable one becomes 1.
    pub batch: Option<usize>,
}

/// An imported network.
#[derive(Debug)]
pub struct Imported {
    /// Values are named after the ONNX node they come from (its first output where the node has no name).
    pub graph: Graph,
    /// The graph value of each ONNX tensor that is still computed. A tensor `[N,C,H,W]` is a value `[N,H,W,C]`, except
    /// inputs and outputs of the network, which keep their shape.
    pub tensors: BTreeMap<String, ValueId>,
}

/// Imports a model.
///
/// # Errors
/// [`ImportError::Invalid`] for damaged or malformed models and those over a limit, [`ImportError::Unsupported`] with
/// every node that cannot be compiled.
pub fn import(bytes: &[u8], options: &ImportOptions) -> Result<Imported, ImportError> {
    let model =
        ModelProto::decode(bytes).map_err(|e| ImportError::invalid("model", format!("not an ONNX file: {e}")))?;
    let opset = opset(&model)?;
    let graph = model.graph.ok_or_else(|| ImportError::invalid("model", "there is no graph"))?;
    Driver::new(graph, opset, options)?.run(options)
}

fn opset(model: &ModelProto) -> Result<i64, ImportError> {
    let standard = model.opset_import.iter().find(|o| o.domain.is_empty() || o.domain == "ai.onnx");
    let version = standard.map(|o| o.version).ok_or_else(|| ImportError::invalid("model", "no opset is declared"))?;
    if OPSETS.contains(&version) {
        return Ok(version);
    }
    Err(ImportError::Unsupported(vec![Unsupported {
        node: "model".into(),
        op: "opset_import".into(),
        attribute: "version".into(),
        found: version.to_string(),
        supported: "9 to 23".into(),
        hint: "convert the model with onnx.version_converter".into(),
    }]))
}

/// The node's name, or that of its first output.
fn display_name(node: &NodeProto) -> &str {
    if node.name.is_empty() { node.output.first().map_or("", String::as_str) } else { &node.name }
}

struct Driver<'a> {
    cx: Context<'a>,
    proto: GraphProto,
    opset: i64,
    /// Constants not yet asked for.
    initializers: HashMap<String, TensorProto>,
    /// What each tensor name stands for; `None` after a refusal.
    values: HashMap<String, Option<Value>>,
    refused: Vec<Unsupported>,
}

impl<'a> Driver<'a> {
    fn new(mut proto: GraphProto, opset: i64, options: &ImportOptions<'a>) -> Result<Self, ImportError> {
        let mut initializers = HashMap::new();
        for tensor in std::mem::take(&mut proto.initializer) {
            let name = tensor.name.clone();
            if initializers.insert(name.clone(), tensor).is_some() {
                return Err(ImportError::invalid(format!("initializer `{name}`"), "the name is used twice"));
            }
        }
        let cx = Context { graph: Graph::new(), base_dir: options.base_dir };
        Ok(Driver { cx, proto, opset, initializers, values: HashMap::new(), refused: Vec::new() })
    }

    fn run(mut self, options: &ImportOptions) -> Result<Imported, ImportError> {
        if let Some(sparse) = self.proto.sparse_initializer.first() {
            let node = sparse.values.as_ref().map_or(String::new(), |v| v.name.clone());
            self.refuse(&node, "initializer", node::unsupported("format", "sparse", "dense", ""))?;
        }
        for input in std::mem::take(&mut self.proto.input) {
            if !self.initializers.contains_key(&input.name) {
                self.input(&input, options)?;
            }
        }
        let nodes = std::mem::take(&mut self.proto.node);
        let order = order::topological(&nodes)?;
        let read: BTreeSet<&str> = nodes.iter().flat_map(|n| &n.input).map(String::as_str).collect();
        for index in order {
            self.node(&nodes[index], &read)?;
        }
        for output in std::mem::take(&mut self.proto.output) {
            self.output(&output.name)?;
        }
        if self.refused.is_empty() { self.finish() } else { Err(ImportError::Unsupported(self.refused)) }
    }

    /// Declares an input; rank 4 is brought to NHWC.
    fn input(&mut self, info: &ValueInfoProto, options: &ImportOptions) -> Result<(), ImportError> {
        let place = format!("input `{}`", info.name);
        let invalid = |message: String| ImportError::invalid(place.clone(), message);
        let (elem_type, dims) =
            declared(info).ok_or_else(|| invalid("no tensor type with a shape is declared".into()))?;
        let mut shape = Vec::with_capacity(dims.len());
        for (axis, dim) in dims.iter().enumerate() {
            let batch = if axis == 0 && dims.len() >= 2 { options.batch } else { None };
            let size = match (dim, batch) {
                (_, Some(batch)) => i64::try_from(batch).unwrap_or(i64::MAX),
                (Some(size), None) => *size,
                (None, None) if axis == 0 => 1,
                (None, None) => {
                    let supported = "fixed dimensions, except the batch";
                    let hint = "export the model with a fixed input size";
                    let found = format!("dimension {axis} variable");
                    self.values.insert(info.name.clone(), None);
                    return self.refuse(&info.name, "input", node::unsupported("shape", found, supported, hint));
                }
            };
            if !(1..=MAX_DIM).contains(&size) {
                return Err(invalid(format!("dimension {axis} is {size}; it must be 1 to {MAX_DIM}")));
            }
            shape.push(size as usize);
        }
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        if elements.is_none_or(|n| n > MAX_INPUT) {
            return Err(invalid(format!("shape {shape:?} has more than {MAX_INPUT} elements")));
        }
        let Some(elem) = elem_of(elem_type) else {
            let supported = "float, int8, uint8, int16, int32, int4, uint4";
            let refusal = node::unsupported(
                "element",
                data_type_name(elem_type),
                supported,
                "convert the input outside the model",
            );
            self.values.insert(info.name.clone(), None);
            return self.refuse(&info.name, "input", refusal);
        };
        let rank = shape.len();
        let id = self.cx.graph.input(&info.name, TensorType::new(elem, shape)).map_err(|e| internal(&place, e))?;
        let value = if rank == 4 { self.cx.transpose(&info.name, id, &NHWC) } else { Ok(id) };
        let value = value.map_err(|e| invalid(format!("{e:?}")))?;
        if self.values.insert(info.name.clone(), Some(Value::Run(value))).is_some() {
            return Err(invalid("the name is used twice".into()));
        }
        Ok(())
    }

    /// What a tensor name stands for; `None` if it depends on something refused.
    fn resolve(&mut self, name: &str, user: &str) -> Result<Option<Value>, ImportError> {
        if let Some(value) = self.values.get(name) {
            return Ok(value.clone());
        }
        let Some(tensor) = self.initializers.remove(name) else {
            return Err(ImportError::invalid(user, format!("tensor `{name}` is never defined")));
        };
        let value = match constant::decode(tensor, self.cx.base_dir) {
            Ok(constant) => Some(Value::Const(constant.into())),
            Err(error) => {
                self.refuse(name, "initializer", error)?;
                None
            }
        };
        self.values.insert(name.to_string(), value.clone());
        Ok(value)
    }

    fn node(&mut self, proto: &NodeProto, read: &BTreeSet<&str>) -> Result<(), ImportError> {
        let name = display_name(proto);
        let place = format!("node `{name}` ({})", proto.op_type);
        let mut inputs = Vec::with_capacity(proto.input.len());
        let mut reachable = true;
        for input in &proto.input {
            let value = if input.is_empty() { None } else { self.resolve(input, &place)? };
            reachable &= input.is_empty() || value.is_some();
            inputs.push(value);
        }
        let node = Node { proto, name, opset: self.node_opset(proto), inputs };
        let result = match ops::find(&proto.domain, &proto.op_type) {
            None => Err(unknown_operator(proto)),
            Some(row) => match admit(row, &node, read) {
                Err(refusal) => Err(refusal),
                Ok(()) if !reachable => return self.define(proto, None),
                Ok(()) => (row.import)(&mut self.cx, &node),
            },
        };
        match result {
            Ok(value) => self.define(proto, Some(value)),
            Err(error) => {
                let placeholder = self.placeholder(&node);
                self.refuse(name, &proto.op_type, error)?;
                self.define(proto, placeholder)
            }
        }
    }

    /// The version a node's operator is bound to. Quantisation nodes of onnxruntime's domain follow opset 21.
    fn node_opset(&self, proto: &NodeProto) -> i64 {
        if proto.domain == "com.microsoft" { 21 } else { self.opset }
    }

    fn define(&mut self, proto: &NodeProto, value: Option<Value>) -> Result<(), ImportError> {
        let Some(output) = proto.output.first().filter(|o| !o.is_empty()) else {
            return Err(ImportError::invalid(
                format!("node `{}` ({})", proto.name, proto.op_type),
                "no output is named",
            ));
        };
        if self.initializers.contains_key(output) || self.values.insert(output.clone(), value).is_some() {
            let place = format!("node `{}` ({})", display_name(proto), proto.op_type);
            return Err(ImportError::invalid(place, format!("tensor `{output}` is defined twice")));
        }
        // Further outputs are unread, or the node was refused.
        for output in proto.output.iter().skip(1).filter(|o| !o.is_empty()) {
            self.values.insert(output.clone(), None);
        }
        Ok(())
    }

    /// Records a refusal; a malformed node ends the import.
    fn refuse(&mut self, name: &str, op: &str, error: NodeError) -> Result<(), ImportError> {
        match error {
            NodeError::Invalid(message) => {
                // Behind a refusal the graph goes on with stand-ins, whose faults are not the model's.
                if self.refused.is_empty() {
                    Err(ImportError::invalid(format!("node `{name}` ({op})"), message))
                } else {
                    Ok(())
                }
            }
            NodeError::Unsupported(refusal) => {
                let node::Refusal { attribute, found, supported, hint } = *refusal;
                self.refused.push(Unsupported { node: name.into(), op: op.into(), attribute, found, supported, hint });
                Ok(())
            }
        }
    }

    /// A stand-in for the result of a refused node, so that what follows can be examined too: of the type the model
    /// declares for it, or of its first input's if the operator works elementwise.
    fn placeholder(&mut self, node: &Node) -> Option<Value> {
        let output = node.proto.output.first()?;
        let info = self.proto.value_info.iter().find(|v| v.name == *output);
        let shape = match info.and_then(declared) {
            Some((elem, dims)) if elem_of(elem).is_some_and(|e| e.is_float()) => {
                let fixed = dims.iter().enumerate().map(|(axis, d)| d.or(if axis == 0 { Some(1) } else { None }));
                fixed.map(|d| d.and_then(|d| usize::try_from(d).ok())).collect::<Option<Vec<usize>>>()?
            }
            _ if ops::ELEMENTWISE.contains(&node.proto.op_type.as_str()) => self.cx.dims(node.optional(0)?),
            _ => return None,
        };
        let shape = if let &[n, c, h, w] = shape.as_slice() { vec![n, h, w, c] } else { shape };
        self.cx.graph.input("", TensorType::new(hawqc_ir::Elem::F32, shape)).ok().map(Value::Run)
    }

    /// Declares an output; rank 4 goes back to NCHW.
    fn output(&mut self, name: &str) -> Result<(), ImportError> {
        let place = format!("output `{name}`");
        if self.cx.graph.outputs().iter().any(|(n, _)| n == name) {
            return Err(ImportError::invalid(place, "the name is used twice"));
        }
        let Some(value) = self.resolve(name, &place)? else { return Ok(()) };
        let id = self.cx.value(name, &value).and_then(|id| {
            if self.cx.graph.ty(id).rank() == 4 { self.cx.transpose(name, id, &context::NCHW) } else { Ok(id) }
        });
        match id {
            Ok(id) => self.cx.graph.output(name, id),
            Err(error) => self.refuse(name, "output", error)?,
        }
        Ok(())
    }

    /// Drops what no output needs and checks the result.
    fn finish(self) -> Result<Imported, ImportError> {
        let old = &self.cx.graph;
        let mut moved: HashMap<ValueId, ValueId> = HashMap::new();
        let swept = old.rebuild(|new, id, args| {
            let mapped = new.copy(old, id, args)?;
            moved.insert(id, mapped);
            Ok::<_, IrError>(mapped)
        });
        let graph = swept.map_err(|e| internal("model", e))?;
        moved.extend(old.inputs().iter().copied().zip(graph.inputs().iter().copied()));
        verify::check(&graph).map_err(|e| ImportError::invalid("model", e.to_string()))?;
        let run_time = self.values.into_iter().filter_map(|(name, value)| match value {
            Some(Value::Run(id)) => moved.get(&id).map(|&id| (name, id)),
            _ => None,
        });
        Ok(Imported { tensors: run_time.collect(), graph })
    }
}

fn internal(place: &str, error: IrError) -> ImportError {
    ImportError::invalid(place, error.to_string())
}

/// Element type and dimensions of a declared tensor; `None` dimensions are variable.
fn declared(info: &ValueInfoProto) -> Option<(i32, Vec<Option<i64>>)> {
    let Some(type_proto::Value::TensorType(tensor)) = info.r#type.as_ref()?.value.as_ref() else { return None };
    let dims = tensor.shape.as_ref()?.dim.iter();
    let dims = dims.map(|d| if let Some(Dim::DimValue(v)) = d.value { Some(v) } else { None }).collect();
    Some((tensor.elem_type, dims))
}

fn unknown_operator(proto: &NodeProto) -> NodeError {
    let domain = if proto.domain.is_empty() { String::new() } else { format!("{}.", proto.domain) };
    let names: Vec<&str> = ops::TABLE.iter().map(|row| row.op).collect();
    node::unsupported("operator", format!("{domain}{}", proto.op_type), &names.join(", "), "")
}

/// Refuses what the row of an operator does not cover: its opset, an attribute, a second output.
fn admit(row: &ops::Row, node: &Node, read: &BTreeSet<&str>) -> Result<(), NodeError> {
    if node.opset < row.since {
        let supported = format!("{} to 23", row.since);
        return Err(node::unsupported("opset", node.opset.to_string(), &supported, ""));
    }
    for attribute in &node.proto.attribute {
        if !row.attributes.contains(&attribute.name.as_str()) {
            let supported = row.attributes.join(", ");
            return Err(node::unsupported("attribute", attribute.name.clone(), &supported, ""));
        }
    }
    match node.proto.output.iter().skip(1).find(|o| read.contains(o.as_str())) {
        Some(second) => Err(node::unsupported("output", format!("`{second}` in use"), "the first output only", "")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
