//! Constants, scales and zero points as ONNX initialisers.

use hawqc_ir::{Elem, Op, Tensor, Transpose, ValueId};
use tract_onnx::pb::tensor_proto::DataType;

use super::{ExportError, Exporter, Format, GRAPH_AXIS, Order};
use crate::pb_build::{f32_tensor, raw_tensor};

impl Exporter<'_> {
    /// Writes a constant, or a dequantised one, in the wanted order.
    pub(super) fn constant_value(&mut self, id: ValueId, order: Order) -> Result<String, ExportError> {
        let graph = self.graph;
        if let Some(tensor) = graph.tensor(id) {
            return self.initializer(id, tensor, order);
        }
        let args = graph.args(id);
        let (Op::Dequantize(dequantize), Some(tensor)) = (graph.op(id), args.first().and_then(|&a| graph.tensor(a)))
        else {
            return Err(self.unsupported(id, "values written before their users"));
        };
        let container = self.constant_type(tensor.elem());
        let src = self.initializer(args[0], tensor, order)?;
        let inputs = self.with_parameters(id, src, &args, container)?;
        let attributes = self.onnx_axis(dequantize.axis, args[1], order);
        let node = if self.tensors.keys().any(|&(known, _)| known == id) {
            self.names.fresh(&format!("{}.dequantized", self.names.of(id)))
        } else {
            self.names.of(id).to_string()
        };
        self.emit(&node, "DequantizeLinear", &inputs, &node, attributes);
        Ok(node)
    }

    /// Writes the data of a constant.
    fn initializer(&mut self, id: ValueId, tensor: &Tensor, order: Order) -> Result<String, ExportError> {
        if let Some(name) = self.tensors.get(&(id, order)) {
            return Ok(name.clone());
        }
        let data_type = self.constant_type(tensor.elem());
        let permuted;
        let tensor = if order == Order::Nchw {
            let op = Op::from(Transpose { perm: GRAPH_AXIS.to_vec() });
            let moved = op.infer(&[&tensor.ty()]).and_then(|ty| op.eval(&[tensor], &ty));
            permuted = moved.map_err(|_| self.unsupported(id, "constants of rank 4 as images"))?;
            &permuted
        } else {
            tensor
        };
        let bytes = tensor.to_bytes();
        let raw = if matches!(data_type, DataType::Int4 | DataType::Uint4) { packed(&bytes) } else { bytes };
        let name = if self.tensors.keys().any(|&(known, _)| known == id) {
            self.names.fresh(&format!("{}.transposed", self.names.of(id)))
        } else {
            self.names.of(id).to_string()
        };
        self.model.constant(raw_tensor(&name, data_type, tensor.shape(), raw));
        self.tensors.insert((id, order), name.clone());
        Ok(name)
    }

    /// The ONNX type a constant of element `elem` is stored in. 4-bit constants widen where the format has no such type.
    fn constant_type(&self, elem: Elem) -> DataType {
        match (elem, self.format) {
            (Elem::F32, _) => DataType::Float,
            (Elem::I32, _) => DataType::Int32,
            (Elem::I16, _) => DataType::Int16,
            (Elem::U4, Format::Qdq) => DataType::Uint4,
            (Elem::I4, Format::Qdq) => DataType::Int4,
            (Elem::U4 | Elem::U8, _) => DataType::Uint8,
            (Elem::I4 | Elem::I8, _) => DataType::Int8,
        }
    }

    /// The type of an input or output that is not quantised inside the graph.
    pub(super) fn plain_type(&self, id: ValueId) -> Result<DataType, ExportError> {
        match self.graph.ty(id).elem {
            Elem::F32 => Ok(DataType::Float),
            Elem::U8 => Ok(DataType::Uint8),
            Elem::I8 => Ok(DataType::Int8),
            Elem::I16 => Ok(DataType::Int16),
            _ => Err(self.unsupported(id, "inputs of f32, 8 or 16 bits")),
        }
    }

    /// Inputs of a QuantizeLinear or DequantizeLinear: `src`, the scale `args[1]` and the zero point `args[2]`, which has
    /// the type of the integers. int32 has none.
    pub(super) fn with_parameters(
        &mut self,
        id: ValueId,
        src: String,
        args: &[ValueId],
        container: DataType,
    ) -> Result<Vec<String>, ExportError> {
        let graph = self.graph;
        let constant = |at: usize| args.get(at).and_then(|&a| graph.tensor(a));
        let (Some(scale), Some(zero)) = (constant(1), constant(2)) else {
            return Err(self.unsupported(id, "constant scales and zero points"));
        };
        let (Ok(scales), Ok(zeros)) = (scale.f32s(), zero.ints()) else {
            return Err(self.unsupported(id, "float scales and integer zero points"));
        };
        let dims = if scales.len() == 1 { vec![] } else { vec![scales.len()] };
        let name = self.names.fresh(&format!("{}.scale", self.names.of(id)));
        let mut inputs = vec![src, self.model.constant(f32_tensor(&name, &dims, scales))];
        if container == DataType::Int32 {
            return Ok(inputs);
        }
        let raw =
            integers(container, &zeros).ok_or_else(|| self.unsupported(id, "zero points that fit the element"))?;
        let name = self.names.fresh(&format!("{}.zero_point", self.names.of(id)));
        inputs.push(self.model.constant(raw_tensor(&name, container, &dims, raw)));
        Ok(inputs)
    }

    /// Inputs of a Clip of integers.
    pub(super) fn integer_bounds(
        &mut self,
        id: ValueId,
        src: String,
        container: DataType,
        lo: i64,
        hi: i64,
    ) -> Vec<String> {
        let mut inputs = vec![src];
        for (part, bound) in [("min", lo), ("max", hi)] {
            // A bound outside the type does not bind.
            inputs.push(match integers(container, &[bound]) {
                Some(raw) => {
                    let name = self.names.fresh(&format!("{}.{part}", self.names.of(id)));
                    self.model.constant(raw_tensor(&name, container, &[], raw))
                }
                None => String::new(),
            });
        }
        inputs
    }
}

/// Little-endian values of an integer type, 4-bit types packed; `None` if one does not fit.
fn integers(data_type: DataType, values: &[i64]) -> Option<Vec<u8>> {
    let elem = match data_type {
        DataType::Uint8 => Elem::U8,
        DataType::Int8 => Elem::I8,
        DataType::Int16 => Elem::I16,
        DataType::Int32 => Elem::I32,
        DataType::Uint4 => Elem::U4,
        DataType::Int4 => Elem::I4,
        _ => return None,
    };
    let bytes = Tensor::from_ints(elem, vec![values.len()], values.iter().copied()).ok()?.to_bytes();
    Some(if elem.bits() == 4 { packed(&bytes) } else { bytes })
}

/// Two values per byte, the first in the low half.
fn packed(bytes: &[u8]) -> Vec<u8> {
    bytes.chunks(2).map(|pair| (pair[0] & 15) | (pair.get(1).copied().unwrap_or(0) << 4)).collect()
}
