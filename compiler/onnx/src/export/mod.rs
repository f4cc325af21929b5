//! ONNX out: a float or QDQ graph as a model that other runtimes execute.
//!
//! Comes in: a graph whose only integer values are quantised activations and dequantised constants, as the importer and the
//! quantiser make them. Goes out: an encoded model with the graph's inputs and outputs. What holds: importing the result
//! gives a graph that the interpreter evaluates to the same bits.
//!
//! A rank-4 value of the graph is `[N,H,W,C]`. In ONNX it appears as `[N,C,H,W]` wherever operators want images, which is
//! nearly everywhere, and in the graph's order at inputs, outputs and reshapes: [`Order`]. A transpose of the graph between
//! the two is then no node at all, and each tensor exists in the orders that are asked for.

mod constants;
mod names;

use std::collections::HashMap;

use hawqc_ir::{AvgPool, Clamp, ClampReal, Concat, Conv, Elem, Graph, MaxPool, Op, Pad, Quantize, Range, ValueId};
use tract_onnx::pb::AttributeProto;
use tract_onnx::pb::tensor_proto::DataType;

use crate::pb_build::{ModelBuilder, f32_tensor, i64_tensor, int, ints};
use names::Names;

/// How quantisation is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The narrowest ONNX type that has exactly the range, 4-bit types included (opset 21); 8 or 16 bits and a Clip
    /// where none has.
    Qdq,
    /// 8- and 16-bit types only, with a Clip after QuantizeLinear where the range is narrower. Opset 13, or 21 where
    /// 16-bit values need it.
    Qcdq,
}

/// Why a graph cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The graph computes something the formats have no words for.
    #[error("node `{node}` ({op}): {found} cannot be written to ONNX; {supported} can")]
    Unsupported {
        /// Name of the value.
        node: String,
        /// Its operator.
        op: String,
        /// What it is.
        found: String,
        /// What could be written.
        supported: &'static str,
    },
}

/// Order of a tensor's axes in ONNX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Order {
    /// As in the graph. The only order of ranks other than 4.
    Graph,
    /// `[N,C,H,W]` of a value `[N,H,W,C]`.
    Nchw,
}

/// ONNX axis of each graph axis in order `Nchw`.
const ONNX_AXIS: [usize; 4] = [0, 2, 3, 1];
/// Graph axis of each ONNX axis in order `Nchw`.
const GRAPH_AXIS: [usize; 4] = [0, 3, 1, 2];

/// Writes a graph.
///
/// # Errors
/// [`ExportError`] names the first node that is neither float nor part of quantising or dequantising.
pub fn export(graph: &Graph, format: Format) -> Result<Vec<u8>, ExportError> {
    let wide = graph.values().any(|id| graph.ty(id).elem == Elem::I16);
    let opset = if format == Format::Qdq || wide { 21 } else { 13 };
    let mut exporter = Exporter {
        graph,
        format,
        model: ModelBuilder::new("hawqc", opset),
        names: Names::new(graph),
        tensors: HashMap::new(),
        containers: HashMap::new(),
    };
    let live = graph.live();
    for id in graph.values() {
        if live[id.index()] || matches!(graph.op(id), Op::Input(_)) {
            exporter.value(id)?;
        }
    }
    exporter.outputs()?;
    Ok(exporter.model.finish())
}

struct Exporter<'a> {
    graph: &'a Graph,
    format: Format,
    model: ModelBuilder,
    names: Names,
    /// Name of each tensor already written, by order.
    tensors: HashMap<(ValueId, Order), String>,
    /// ONNX type of each integer value.
    containers: HashMap<ValueId, DataType>,
}

impl Exporter<'_> {
    /// Writes the node of a value, unless it is constant: constants are written where they are used.
    fn value(&mut self, id: ValueId) -> Result<(), ExportError> {
        let args = self.graph.args(id);
        match self.graph.op(id) {
            Op::Input(ty) => {
                let data_type = self.plain_type(id)?;
                let name = self.graph.name(id).to_string();
                self.model.input(&name, data_type, &ty.shape);
                self.containers.insert(id, data_type);
                self.tensors.insert((id, Order::Graph), name);
                Ok(())
            }
            Op::Const(_) => Ok(()),
            Op::Dequantize(_) if self.graph.tensor(args[0]).is_some() => Ok(()),
            Op::Conv(conv) => self.conv(id, conv, &args),
            Op::MaxPool(pool) => self.max_pool(id, pool, args[0]),
            Op::AvgPool(pool) => self.avg_pool(id, pool, args[0]),
            Op::Pad(pad) => self.pad(id, pad, args[0]),
            Op::ClampReal(clamp) => self.clamp_real(id, clamp, args[0]),
            Op::Clamp(clamp) => self.clamp(id, clamp, args[0]),
            Op::Add(_) => {
                let order = self.order(args[0]);
                self.float_only(id)?;
                let inputs = self.all(&args, order)?;
                self.node(id, order, "Add", &inputs, vec![])
            }
            Op::Concat(concat) => self.concat(id, concat, &args),
            Op::Softmax(_) => {
                let order = self.order(args[0]);
                let axis = if order == Order::Nchw { 1 } else { self.graph.ty(id).rank() as i64 - 1 };
                let inputs = self.all(&args, order)?;
                self.node(id, order, "Softmax", &inputs, vec![int("axis", axis)])
            }
            Op::Reshape(reshape) => {
                let shape: Vec<i64> = reshape.shape.iter().map(|&d| d as i64).collect();
                let src = self.tensor(args[0], Order::Graph)?;
                let shape = self.vector(id, "shape", &shape);
                self.inherit(id, args[0]);
                self.node(id, Order::Graph, "Reshape", &[src, shape], vec![])
            }
            Op::Transpose(transpose) => self.transpose(id, &transpose.perm, args[0]),
            Op::Quantize(quantize) => self.quantize(id, quantize, &args),
            Op::Dequantize(dequantize) => {
                let order = self.order(args[0]);
                let container = self.container(args[0])?;
                let src = self.tensor(args[0], order)?;
                let inputs = self.with_parameters(id, src, &args, container)?;
                let axis = self.onnx_axis(dequantize.axis, args[1], order);
                self.node(id, order, "DequantizeLinear", &inputs, axis)
            }
            _ => Err(self.unsupported(id, "float operators, quantisation and dequantisation")),
        }
    }

    fn conv(&mut self, id: ValueId, conv: &Conv, args: &[ValueId]) -> Result<(), ExportError> {
        self.float_only(id)?;
        let mut inputs = vec![self.tensor(args[0], Order::Nchw)?, self.tensor(args[1], Order::Nchw)?];
        if let Some(&bias) = args.get(2) {
            inputs.push(self.tensor(bias, Order::Graph)?);
        }
        let wei = &self.graph.ty(args[1]).shape;
        let mut attributes = window([wei[1], wei[2]], conv.stride, conv.pad);
        attributes.push(ints("dilations", &conv.dilation.map(|d| d as i64)));
        attributes.push(int("group", conv.groups as i64));
        self.node(id, Order::Nchw, "Conv", &inputs, attributes)
    }

    fn max_pool(&mut self, id: ValueId, pool: &MaxPool, src: ValueId) -> Result<(), ExportError> {
        self.inherit(id, src);
        if matches!(self.containers.get(&id), Some(DataType::Int4 | DataType::Uint4)) {
            return Err(self.unsupported(id, "pooling of floats and of 8-bit integers"));
        }
        let mut attributes = window(pool.kernel, pool.stride, pool.pad);
        attributes.push(ints("dilations", &pool.dilation.map(|d| d as i64)));
        let src = self.tensor(src, Order::Nchw)?;
        self.node(id, Order::Nchw, "MaxPool", &[src], attributes)
    }

    fn avg_pool(&mut self, id: ValueId, pool: &AvgPool, src: ValueId) -> Result<(), ExportError> {
        let shape = &self.graph.ty(src).shape;
        let whole = pool.kernel == [shape[1], shape[2]] && pool.pad == [0; 4];
        let src = self.tensor(src, Order::Nchw)?;
        if whole {
            return self.node(id, Order::Nchw, "GlobalAveragePool", &[src], vec![]);
        }
        let mut attributes = window(pool.kernel, pool.stride, pool.pad);
        attributes.push(int("count_include_pad", i64::from(pool.count_include_pad)));
        self.node(id, Order::Nchw, "AveragePool", &[src], attributes)
    }

    fn pad(&mut self, id: ValueId, pad: &Pad, src: ValueId) -> Result<(), ExportError> {
        self.float_only(id)?;
        let [top, left, bottom, right] = pad.pad.map(|p| p as i64);
        let src = self.tensor(src, Order::Nchw)?;
        let pads = self.vector(id, "pads", &[0, 0, top, left, 0, 0, bottom, right]);
        let value = self.scalar(id, "value", pad.value.get());
        self.node(id, Order::Nchw, "Pad", &[src, pads, value], vec![])
    }

    fn clamp_real(&mut self, id: ValueId, clamp: &ClampReal, src: ValueId) -> Result<(), ExportError> {
        let order = self.order(src);
        let src = self.tensor(src, order)?;
        if *clamp == ClampReal::relu() {
            return self.node(id, order, "Relu", &[src], vec![]);
        }
        let mut bound = |part, value: f32| if value.is_finite() { self.scalar(id, part, value) } else { String::new() };
        let inputs = [src, bound("min", clamp.lo.get()), bound("max", clamp.hi.get())];
        self.node(id, order, "Clip", &inputs, vec![])
    }

    fn clamp(&mut self, id: ValueId, clamp: &Clamp, src: ValueId) -> Result<(), ExportError> {
        let container = self.container(src)?;
        if self.graph.ty(src).elem != clamp.elem || matches!(container, DataType::Int4 | DataType::Uint4) {
            return Err(self.unsupported(id, "clamps within an 8-bit element"));
        }
        self.containers.insert(id, container);
        let order = self.order(src);
        let src = self.tensor(src, order)?;
        let inputs = self.integer_bounds(id, src, container, clamp.lo, clamp.hi);
        self.node(id, order, "Clip", &inputs, vec![])
    }

    fn concat(&mut self, id: ValueId, concat: &Concat, args: &[ValueId]) -> Result<(), ExportError> {
        let order = self.order(args[0]);
        if !self.graph.ty(id).is_float() {
            let container = self.container(args[0])?;
            if args.iter().any(|a| self.containers.get(a) != Some(&container)) {
                return Err(self.unsupported(id, "concatenation of floats and of integers of one type"));
            }
            self.containers.insert(id, container);
        }
        let axis = if order == Order::Nchw { ONNX_AXIS[concat.axis] } else { concat.axis };
        let inputs = self.all(args, order)?;
        self.node(id, order, "Concat", &inputs, vec![int("axis", axis as i64)])
    }

    /// Between the two orders a transpose is another name for the same tensor.
    fn transpose(&mut self, id: ValueId, perm: &[usize], src: ValueId) -> Result<(), ExportError> {
        self.inherit(id, src);
        for (from, to, this) in [(Order::Graph, Order::Nchw, ONNX_AXIS), (Order::Nchw, Order::Graph, GRAPH_AXIS)] {
            if perm == this
                && let Some(name) = self.tensors.get(&(src, from)).cloned()
            {
                self.tensors.insert((id, to), name);
                return Ok(());
            }
        }
        let src = self.tensor(src, Order::Graph)?;
        let perm: Vec<i64> = perm.iter().map(|&p| p as i64).collect();
        self.node(id, Order::Graph, "Transpose", &[src], vec![ints("perm", &perm)])
    }

    fn quantize(&mut self, id: ValueId, quantize: &Quantize, args: &[ValueId]) -> Result<(), ExportError> {
        let (container, full) = self.container_for(id, quantize)?;
        self.containers.insert(id, container);
        let order = self.order(args[0]);
        let src = self.tensor(args[0], order)?;
        let inputs = self.with_parameters(id, src, args, container)?;
        let axis = self.onnx_axis(quantize.axis, args[1], order);
        if full == Range::new(quantize.lo, quantize.hi) {
            return self.node(id, order, "QuantizeLinear", &inputs, axis);
        }
        let node = self.names.fresh(&format!("{}.quantize", self.names.of(id)));
        self.emit(&node, "QuantizeLinear", &inputs, &node, axis);
        let inputs = self.integer_bounds(id, node, container, quantize.lo, quantize.hi);
        self.node(id, order, "Clip", &inputs, vec![])
    }

    /// The ONNX type that holds a quantised activation, and the range of that type.
    fn container_for(&self, id: ValueId, quantize: &Quantize) -> Result<(DataType, Range), ExportError> {
        let range = Range::new(quantize.lo, quantize.hi);
        for (elem, data_type) in [(Elem::U4, DataType::Uint4), (Elem::I4, DataType::Int4)] {
            if self.format == Format::Qdq && elem.range() == Some(range) {
                return Ok((data_type, range));
            }
        }
        let (elem, data_type) = match quantize.elem {
            Elem::U4 | Elem::U8 => (Elem::U8, DataType::Uint8),
            Elem::I4 | Elem::I8 => (Elem::I8, DataType::Int8),
            Elem::I16 => (Elem::I16, DataType::Int16),
            Elem::I32 | Elem::F32 => return Err(self.unsupported(id, "quantisation to at most 16 bits")),
        };
        Ok((data_type, elem.range().unwrap_or(range)))
    }

    /// The tensor of a value in the wanted order, transposed or written as a constant if it is not there yet.
    fn tensor(&mut self, id: ValueId, order: Order) -> Result<String, ExportError> {
        let order = if self.graph.ty(id).rank() == 4 { order } else { Order::Graph };
        if let Some(name) = self.tensors.get(&(id, order)) {
            return Ok(name.clone());
        }
        let (other, perm) = match order {
            Order::Graph => (Order::Nchw, ONNX_AXIS),
            Order::Nchw => (Order::Graph, GRAPH_AXIS),
        };
        let name = match self.tensors.get(&(id, other)).cloned() {
            None => self.constant_value(id, order)?,
            Some(src) => {
                let node = self.names.fresh(&format!("{}.transposed", self.names.of(id)));
                self.emit(&node, "Transpose", &[src], &node, vec![ints("perm", &perm.map(|p| p as i64))]);
                node
            }
        };
        self.tensors.insert((id, order), name.clone());
        Ok(name)
    }

    /// The order a value is there in; images where it is there in both, or not yet.
    fn order(&self, id: ValueId) -> Order {
        let only_graph =
            self.tensors.contains_key(&(id, Order::Graph)) && !self.tensors.contains_key(&(id, Order::Nchw));
        if self.graph.ty(id).rank() == 4 && !only_graph { Order::Nchw } else { Order::Graph }
    }

    fn all(&mut self, args: &[ValueId], order: Order) -> Result<Vec<String>, ExportError> {
        args.iter().map(|&a| self.tensor(a, order)).collect()
    }

    /// The axis attribute of a node with one scale per channel.
    fn onnx_axis(&self, axis: usize, scale: ValueId, order: Order) -> Vec<AttributeProto> {
        if self.graph.ty(scale).elements() == 1 {
            return vec![];
        }
        vec![int("axis", if order == Order::Nchw { ONNX_AXIS[axis] } else { axis } as i64)]
    }

    /// Writes the node of `id`, named after it.
    fn node(
        &mut self,
        id: ValueId,
        order: Order,
        op: &str,
        inputs: &[String],
        attributes: Vec<AttributeProto>,
    ) -> Result<(), ExportError> {
        let order = if self.graph.ty(id).rank() == 4 { order } else { Order::Graph };
        let name = self.names.of(id).to_string();
        self.emit(&name, op, inputs, &name, attributes);
        self.tensors.insert((id, order), name);
        Ok(())
    }

    fn emit(&mut self, name: &str, op: &str, inputs: &[String], output: &str, attributes: Vec<AttributeProto>) {
        let end = inputs.iter().rposition(|i| !i.is_empty()).map_or(0, |last| last + 1);
        let inputs: Vec<&str> = inputs[..end].iter().map(String::as_str).collect();
        self.model.node(name, op, &inputs, output, attributes);
    }

    fn scalar(&mut self, id: ValueId, part: &str, value: f32) -> String {
        let name = self.names.fresh(&format!("{}.{part}", self.names.of(id)));
        self.model.constant(f32_tensor(&name, &[], &[value]))
    }

    fn vector(&mut self, id: ValueId, part: &str, values: &[i64]) -> String {
        let name = self.names.fresh(&format!("{}.{part}", self.names.of(id)));
        self.model.constant(i64_tensor(&name, values))
    }

    /// An operator that moves integers without changing them keeps their type.
    fn inherit(&mut self, id: ValueId, src: ValueId) {
        if let Some(&container) = self.containers.get(&src) {
            self.containers.insert(id, container);
        }
    }

    fn container(&self, id: ValueId) -> Result<DataType, ExportError> {
        self.containers.get(&id).copied().ok_or_else(|| self.unsupported(id, "integers that come from a quantisation"))
    }

    fn float_only(&self, id: ValueId) -> Result<(), ExportError> {
        if self.graph.ty(id).is_float() { Ok(()) } else { Err(self.unsupported(id, "the float form of this operator")) }
    }

    /// Declares the outputs under their own names.
    fn outputs(&mut self) -> Result<(), ExportError> {
        for (name, id) in self.graph.outputs() {
            let src = self.tensor(*id, Order::Graph)?;
            let data_type = match self.containers.get(id) {
                Some(&container) if !self.graph.ty(*id).is_float() => container,
                _ => self.plain_type(*id)?,
            };
            let node = self.names.fresh(&format!("{name}.output"));
            self.emit(&node, "Identity", &[src], name, vec![]);
            self.model.output(name, data_type, &self.graph.ty(*id).shape);
        }
        Ok(())
    }

    fn unsupported(&self, id: ValueId, supported: &'static str) -> ExportError {
        ExportError::Unsupported {
            node: self.graph.name(id).into(),
            op: self.graph.op(id).name().into(),
            found: self.graph.ty(id).to_string(),
            supported,
        }
    }
}

fn window(kernel: [usize; 2], stride: [usize; 2], pad: [usize; 4]) -> Vec<AttributeProto> {
    vec![
        ints("kernel_shape", &kernel.map(|v| v as i64)),
        ints("pads", &pad.map(|v| v as i64)),
        ints("strides", &stride.map(|v| v as i64)),
    ]
}

#[cfg(test)]
mod tests;
