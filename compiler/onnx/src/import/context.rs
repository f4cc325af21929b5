//! The graph under construction, and the one place that knows how ONNX's order of axes maps to the IR's.
//!
//! Rank 4 is `[N, C, H, W]` in ONNX and `[N, H, W, C]` in the graph; every other rank is the same in both. Memory of a
//! rank-4 value therefore differs from ONNX's row-major order, and operators that speak of that order (reshapes) go
//! through [`Context::in_onnx_order`] and [`Context::shaped_as_in_onnx`].

use std::path::Path;

use hawqc_ir::{Conv, Dequantize, Elem, Graph, Op, Reshape, Tensor, Transpose, ValueId};

use super::constant::Constant;
use super::node::{NodeError, Value, invalid, unsupported};

/// ONNX axis of each axis of a rank-4 value in the graph.
pub const NHWC: [usize; 4] = [0, 2, 3, 1];
/// Graph axis of each ONNX axis of a rank-4 value.
pub const NCHW: [usize; 4] = [0, 3, 1, 2];

/// Most channels a scalar is spread over.
const MAX_CHANNELS: usize = 1 << 20;

/// See the module's documentation.
pub struct Context<'a> {
    pub graph: Graph,
    /// Folder of the model, for data files.
    pub base_dir: Option<&'a Path>,
}

impl Context<'_> {
    /// Dimensions in ONNX order.
    pub fn dims(&self, value: &Value) -> Vec<usize> {
        match value {
            Value::Const(constant) => constant.dims.clone(),
            Value::Run(id) => self.run_dims(*id),
        }
    }

    /// Dimensions of a run-time value in ONNX order.
    pub fn run_dims(&self, id: ValueId) -> Vec<usize> {
        let shape = &self.graph.ty(id).shape;
        if shape.len() == 4 { NCHW.iter().map(|&a| shape[a]).collect() } else { shape.clone() }
    }

    /// The graph axis of an ONNX axis.
    pub fn graph_axis(rank: usize, onnx: usize) -> usize {
        if rank == 4 { NCHW[onnx] } else { onnx }
    }

    /// A value of the graph for `value`; constants are added in the graph's layout.
    pub fn value(&mut self, name: &str, value: &Value) -> Result<ValueId, NodeError> {
        match value {
            Value::Run(id) => Ok(*id),
            Value::Const(constant) if constant.dims.len() == 4 => self.constant(name, &constant.permuted(&NHWC)),
            Value::Const(constant) => self.constant(name, constant),
        }
    }

    /// As [`Context::value`], but of floats and of rank 4.
    pub fn image(&mut self, name: &str, value: &Value) -> Result<ValueId, NodeError> {
        let id = self.floats(name, value)?;
        let rank = self.graph.ty(id).rank();
        if rank != 4 {
            let dims = format!("{:?}", self.run_dims(id));
            return Err(unsupported("rank of input 0", format!("{rank} {dims}"), "rank 4 [N,C,H,W]", ""));
        }
        Ok(id)
    }

    /// As [`Context::value`], but of floats.
    pub fn floats(&mut self, name: &str, value: &Value) -> Result<ValueId, NodeError> {
        let id = self.value(name, value)?;
        if !self.graph.ty(id).is_float() {
            let found = self.graph.ty(id).elem.to_string();
            return Err(unsupported("element of input 0", found, "f32", "dequantise before the operator"));
        }
        Ok(id)
    }

    /// Adds a constant whose axes are already in the graph's order, dequantised where it has a scale.
    pub fn constant(&mut self, name: &str, constant: &Constant) -> Result<ValueId, NodeError> {
        let tensor = constant.tensor()?;
        let elem = tensor.elem();
        let id = self.graph.constant(tensor);
        let Some(quant) = &constant.quant else { return Ok(id) };
        let (scale, zero) = self.parameters(elem, &quant.scale, &quant.zero)?;
        Ok(self.graph.add(name, Dequantize { axis: quant.axis }, &[id, scale, zero])?)
    }

    /// Scale and zero point as constants of the graph.
    pub fn parameters(&mut self, elem: Elem, scale: &[f32], zero: &[i64]) -> Result<(ValueId, ValueId), NodeError> {
        let scale_tensor = Tensor::from_f32(vec![scale.len()], scale.to_vec())?;
        let zero_tensor = Tensor::from_ints(elem, vec![zero.len()], zero.iter().copied())?;
        Ok((self.graph.constant(scale_tensor), self.graph.constant(zero_tensor)))
    }

    /// Adds a reshape, or finds the value that already has the shape.
    pub fn reshape(&mut self, name: &str, id: ValueId, shape: &[usize]) -> Result<ValueId, NodeError> {
        let mut src = id;
        while let Op::Reshape(_) = self.graph.op(src) {
            src = self.graph.args(src)[0];
        }
        for same in [id, src] {
            if self.graph.ty(same).shape == shape {
                return Ok(same);
            }
        }
        Ok(self.graph.add(name, Reshape { shape: shape.to_vec() }, &[src])?)
    }

    /// Adds a transpose in the graph's axes, merged with one before it, as a reshape where memory does not move.
    pub fn transpose(&mut self, name: &str, id: ValueId, perm: &[usize]) -> Result<ValueId, NodeError> {
        let (src, perm) = match self.graph.op(id) {
            Op::Transpose(first) => (self.graph.args(id)[0], perm.iter().map(|&p| first.perm[p]).collect()),
            _ => (id, perm.to_vec()),
        };
        let op = Transpose { perm };
        if op.perm.is_sorted() {
            return Ok(src);
        }
        let shape = self.graph.ty(src).shape.clone();
        if op.keeps_order(&shape) {
            let shape: Vec<usize> = op.perm.iter().map(|&a| shape[a]).collect();
            return self.reshape(name, src, &shape);
        }
        Ok(self.graph.add(name, op, &[src])?)
    }

    /// A value whose memory is the row-major order of `id`'s ONNX dimensions; its shape may differ from them.
    pub fn in_onnx_order(&mut self, name: &str, id: ValueId) -> Result<ValueId, NodeError> {
        if self.graph.ty(id).rank() == 4 { self.transpose(name, id, &NCHW) } else { Ok(id) }
    }

    /// The graph's form of a value of ONNX dimensions `dims`, from `id` whose memory is in their row-major order.
    pub fn shaped_as_in_onnx(&mut self, name: &str, id: ValueId, dims: &[usize]) -> Result<ValueId, NodeError> {
        let same_order = self.reshape(name, id, dims)?;
        if dims.len() == 4 { self.transpose(name, same_order, &NHWC) } else { Ok(same_order) }
    }

    /// `x * scale + bias` per channel, as a depthwise 1x1 convolution. Channels are axis 1 of rank 4, else the last
    /// axis. `scale` and `bias` have one element or one per channel.
    pub fn scale_channels(
        &mut self,
        name: &str,
        x: ValueId,
        scale: &[f32],
        bias: &[f32],
    ) -> Result<ValueId, NodeError> {
        let shape = self.graph.ty(x).shape.clone();
        let channels = shape.last().copied().unwrap_or(1);
        if channels > MAX_CHANNELS {
            return Err(invalid(format!("{channels} channels are more than {MAX_CHANNELS}")));
        }
        let spread = |v: &[f32]| if let [v] = v { vec![*v; channels] } else { v.to_vec() };
        let weights = self.constant(name, &Constant::f32s(vec![channels, 1, 1, 1], spread(scale)))?;
        let bias = self.constant(name, &Constant::f32s(vec![channels], spread(bias)))?;
        let rows = self.graph.ty(x).elements() / channels;
        let image = if shape.len() == 4 { x } else { self.reshape(name, x, &[rows, 1, 1, channels])? };
        let conv = Conv { groups: channels, ..Conv::unit() };
        let y = self.graph.add(name, conv, &[image, weights, bias])?;
        self.reshape(name, y, &shape)
    }
}
