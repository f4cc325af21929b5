//! Constants as ONNX has them: dimensions in ONNX order, and for quantised weights the scale that makes them real.
//!
//! Comes in: `TensorProto`s and, through [`super::external`], bytes of data files. Goes out: [`Constant`]s whose element
//! count has been checked against the data that was actually there, so that no declared size is ever allocated on trust.

use std::borrow::Cow;
use std::path::Path;
use std::rc::Rc;

use hawqc_ir::{Data, Elem, Tensor};
use tract_onnx::pb::TensorProto;
use tract_onnx::pb::tensor_proto::{DataLocation, DataType};

use super::external;
use super::node::{NodeError, invalid, unsupported};

/// Elements of a constant.
#[derive(Clone, Debug)]
pub enum Payload {
    F32(Vec<f32>),
    /// Shapes, axes, indices; also booleans as 0 and 1.
    I64(Vec<i64>),
    /// Integers of an element the IR knows, never `F32`.
    Int(Elem, Data),
}

/// How integers become reals: `(value - zero) * scale`, one pair for all or one per index of `axis`.
#[derive(Clone, Debug)]
pub struct Quant {
    pub scale: Vec<f32>,
    pub zero: Vec<i64>,
    pub axis: usize,
}

/// A constant tensor. With `quant` it stands for the dequantised floats and the payload is `Int`.
#[derive(Clone, Debug)]
pub struct Constant {
    pub dims: Vec<usize>,
    /// Shared, so that a change of shape or scale copies no data.
    pub payload: Rc<Payload>,
    pub quant: Option<Quant>,
}

/// Most elements of one constant.
const MAX_ELEMENTS: usize = 1 << 31;

impl Constant {
    pub fn new(dims: Vec<usize>, payload: Payload) -> Constant {
        Constant { dims, payload: Rc::new(payload), quant: None }
    }

    pub fn i64s(dims: Vec<usize>, values: Vec<i64>) -> Constant {
        Constant::new(dims, Payload::I64(values))
    }

    pub fn f32s(dims: Vec<usize>, values: Vec<f32>) -> Constant {
        Constant::new(dims, Payload::F32(values))
    }

    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// Whether it stands for floats.
    pub fn is_float(&self) -> bool {
        self.quant.is_some() || matches!(*self.payload, Payload::F32(_))
    }

    /// The element, as ONNX would call it.
    pub fn type_name(&self) -> &'static str {
        match &*self.payload {
            _ if self.quant.is_some() => "f32",
            Payload::F32(_) => "f32",
            Payload::I64(_) => "i64",
            Payload::Int(elem, _) => elem.name(),
        }
    }

    /// The values as floats, dequantised where needed.
    pub fn to_f32s(&self) -> Result<Cow<'_, [f32]>, NodeError> {
        match (&*self.payload, &self.quant) {
            (Payload::F32(v), _) => Ok(Cow::Borrowed(v)),
            (Payload::Int(..), Some(quant)) => {
                let inner: usize = self.dims.iter().skip(quant.axis + 1).product();
                let count = quant.scale.len();
                let real = |(i, v): (usize, i64)| {
                    let at = if count == 1 { 0 } else { i / inner % count };
                    (v - quant.zero[at]) as f32 * quant.scale[at]
                };
                Ok(Cow::Owned(self.tensor()?.ints()?.into_iter().enumerate().map(real).collect()))
            }
            _ => Err(invalid(format!("expected a float constant, found {}", self.type_name()))),
        }
    }

    /// The values as indices, from int64 or int32.
    pub fn to_i64s(&self) -> Result<Vec<i64>, NodeError> {
        match (&*self.payload, &self.quant) {
            (Payload::I64(v), None) => Ok(v.clone()),
            (Payload::Int(Elem::I32, Data::I32(v)), None) => Ok(v.iter().map(|&v| v.into()).collect()),
            _ => Err(invalid(format!("expected int64 or int32, found {}", self.type_name()))),
        }
    }

    /// The only element, as a float.
    pub fn scalar(&self) -> Result<f32, NodeError> {
        match *self.to_f32s()? {
            [v] => Ok(v),
            _ => Err(invalid(format!("expected a scalar, found dimensions {:?}", self.dims))),
        }
    }

    /// The stored elements, without `quant`, as a tensor of the IR in this order of axes.
    pub fn tensor(&self) -> Result<Tensor, NodeError> {
        let (elem, data) = match &*self.payload {
            Payload::F32(v) if v.iter().all(|v| v.is_finite()) => (Elem::F32, Data::F32(v.clone())),
            Payload::F32(_) => return Err(invalid("a constant holds NaN or infinity")),
            Payload::Int(elem, data) => (*elem, data.clone()),
            Payload::I64(_) => return Err(invalid("expected a float or quantised constant, found int64")),
        };
        Ok(Tensor::new(elem, self.dims.clone(), data)?)
    }

    /// Axis `i` of the result is axis `perm[i]` of this one; `perm` must be a permutation of the axes.
    pub fn permuted(&self, perm: &[usize]) -> Constant {
        let quant = self
            .quant
            .as_ref()
            .map(|q| Quant { axis: perm.iter().position(|&p| p == q.axis).unwrap_or(q.axis), ..q.clone() });
        let payload = match &*self.payload {
            Payload::F32(v) => Payload::F32(permute(v, &self.dims, perm)),
            Payload::I64(v) => Payload::I64(permute(v, &self.dims, perm)),
            Payload::Int(elem, data) => Payload::Int(
                *elem,
                match data {
                    Data::U8(v) => Data::U8(permute(v, &self.dims, perm)),
                    Data::I8(v) => Data::I8(permute(v, &self.dims, perm)),
                    Data::I16(v) => Data::I16(permute(v, &self.dims, perm)),
                    Data::I32(v) => Data::I32(permute(v, &self.dims, perm)),
                    Data::F32(v) => Data::F32(permute(v, &self.dims, perm)),
                },
            ),
        };
        Constant { dims: perm.iter().map(|&p| self.dims[p]).collect(), payload: Rc::new(payload), quant }
    }

    /// The same elements under other dimensions. A per-channel axis must survive as an axis.
    pub fn reshaped(&self, dims: &[usize]) -> Result<Constant, NodeError> {
        if dims.iter().product::<usize>() != self.len() {
            return Err(invalid(format!("{:?} cannot take the shape {dims:?}", self.dims)));
        }
        let mut quant = self.quant.clone();
        if let Some(q) = &mut quant
            && q.scale.len() > 1
        {
            let outer: usize = self.dims[..q.axis].iter().product();
            let axis = (0..dims.len())
                .find(|&a| dims[a] == self.dims[q.axis] && dims[..a].iter().product::<usize>() == outer)
                .ok_or_else(|| {
                    unsupported(
                        "shape",
                        format!("{dims:?} of a constant quantised along axis {}", q.axis),
                        "a shape that keeps the quantised axis",
                        "",
                    )
                })?;
            q.axis = axis;
        }
        Ok(Constant { dims: dims.to_vec(), payload: Rc::clone(&self.payload), quant })
    }
}

/// `src` of dimensions `dims` with its axes in the order `perm`.
fn permute<T: Copy>(src: &[T], dims: &[usize], perm: &[usize]) -> Vec<T> {
    let Some((&last, outer)) = perm.split_last() else { return src.to_vec() };
    let mut strides = vec![1; dims.len()];
    for a in (1..dims.len()).rev() {
        strides[a - 1] = strides[a] * dims[a];
    }
    let mut dst = Vec::with_capacity(src.len());
    let mut index = vec![0; outer.len()];
    while dst.len() < src.len() {
        let base: usize = index.iter().zip(outer).map(|(i, &a)| i * strides[a]).sum();
        dst.extend((0..dims[last]).map(|i| src[base + i * strides[last]]));
        for (i, &a) in index.iter_mut().zip(outer).rev() {
            *i += 1;
            if *i < dims[a] {
                break;
            }
            *i = 0;
        }
    }
    dst
}

/// The element of the IR for an ONNX data type; `None` where the IR has none.
pub fn elem_of(data_type: i32) -> Option<Elem> {
    Some(match DataType::try_from(data_type).ok()? {
        DataType::Float => Elem::F32,
        DataType::Int8 => Elem::I8,
        DataType::Uint8 => Elem::U8,
        DataType::Int16 => Elem::I16,
        DataType::Int32 => Elem::I32,
        DataType::Int4 => Elem::I4,
        DataType::Uint4 => Elem::U4,
        _ => return None,
    })
}

/// The name of an ONNX data type.
pub fn data_type_name(data_type: i32) -> String {
    match DataType::try_from(data_type) {
        Ok(known) => known.as_str_name().to_ascii_lowercase(),
        Err(_) => format!("data type {data_type}"),
    }
}

/// Reads a tensor. Its data may lie in a file below `base_dir`.
pub fn decode(mut proto: TensorProto, base_dir: Option<&Path>) -> Result<Constant, NodeError> {
    let mut elements = 1usize;
    let mut dims = Vec::with_capacity(proto.dims.len());
    for &d in &proto.dims {
        let d = usize::try_from(d).map_err(|_| invalid(format!("negative dimension in {:?}", proto.dims)))?;
        elements = elements
            .checked_mul(d)
            .filter(|&n| n <= MAX_ELEMENTS)
            .ok_or_else(|| invalid(format!("dimensions {:?} have more than {MAX_ELEMENTS} elements", proto.dims)))?;
        dims.push(d);
    }
    if dims.len() > 16 {
        return Err(invalid(format!("rank {} is above 16", dims.len())));
    }
    if proto.segment.is_some() {
        return Err(unsupported("segment", "present", "tensors in one piece", ""));
    }
    let bits = match DataType::try_from(proto.data_type) {
        Ok(DataType::Int64) => 64,
        Ok(DataType::Bool) => 8,
        _ => match elem_of(proto.data_type) {
            Some(elem) => elem.bits() as usize,
            None => {
                let supported = "float, int8, uint8, int16, int32, int64, int4, uint4, bool";
                return Err(unsupported(
                    "data type",
                    data_type_name(proto.data_type),
                    supported,
                    "convert the model to float32",
                ));
            }
        },
    };
    let bytes = (elements * bits).div_ceil(8);
    if proto.data_location == Some(DataLocation::External as i32) {
        proto.raw_data = external::read(&proto.external_data, bytes, base_dir)?;
    }
    let payload = if !proto.raw_data.is_empty() || elements == 0 {
        if proto.raw_data.len() != bytes {
            let found = proto.raw_data.len();
            return Err(invalid(format!("dimensions {dims:?} need {bytes} bytes of data, found {found}")));
        }
        from_raw(&proto, elements)
    } else {
        from_fields(proto, elements)?
    };
    Ok(Constant::new(dims, payload))
}

fn from_raw(proto: &TensorProto, elements: usize) -> Payload {
    let raw = &proto.raw_data;
    let signed = || raw.iter().map(|&b| b.cast_signed());
    match DataType::try_from(proto.data_type) {
        Ok(DataType::Float) => Payload::F32(raw.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()),
        Ok(DataType::Int64) => Payload::I64(raw.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b)).collect()),
        Ok(DataType::Bool) => Payload::I64(raw.iter().map(|&b| i64::from(b != 0)).collect()),
        Ok(DataType::Int32) => {
            Payload::Int(Elem::I32, Data::I32(raw.as_chunks().0.iter().map(|&b| i32::from_le_bytes(b)).collect()))
        }
        Ok(DataType::Int16) => {
            Payload::Int(Elem::I16, Data::I16(raw.as_chunks().0.iter().map(|&b| i16::from_le_bytes(b)).collect()))
        }
        Ok(DataType::Int4) => Payload::Int(Elem::I4, Data::I8(nibbles(raw, elements).map(signed_nibble).collect())),
        Ok(DataType::Uint4) => Payload::Int(Elem::U4, Data::U8(nibbles(raw, elements).collect())),
        Ok(DataType::Uint8) => Payload::Int(Elem::U8, Data::U8(raw.clone())),
        _ => Payload::Int(Elem::I8, Data::I8(signed().collect())),
    }
}

/// Data in the typed fields, one entry per element, except two 4-bit elements per int32 entry.
fn from_fields(proto: TensorProto, elements: usize) -> Result<Payload, NodeError> {
    let data_type = DataType::try_from(proto.data_type);
    let entries = match data_type {
        Ok(DataType::Float) => proto.float_data.len(),
        Ok(DataType::Int64) => proto.int64_data.len(),
        _ => proto.int32_data.len(),
    };
    let packed = matches!(data_type, Ok(DataType::Int4 | DataType::Uint4));
    let expected = if packed { elements.div_ceil(2) } else { elements };
    if entries != expected {
        return Err(invalid(format!("dimensions {:?} need {expected} data entries, found {entries}", proto.dims)));
    }
    let ints = || proto.int32_data.iter().map(|&v| i64::from(v));
    let narrow = |elem: Elem| match Tensor::from_ints(elem, vec![elements], ints()) {
        Ok(tensor) => Ok(Payload::Int(elem, tensor.data().clone())),
        Err(error) => Err(invalid(error.to_string())),
    };
    match data_type {
        Ok(DataType::Float) => Ok(Payload::F32(proto.float_data)),
        Ok(DataType::Int64) => Ok(Payload::I64(proto.int64_data)),
        Ok(DataType::Bool) => Ok(Payload::I64(ints().map(|v| i64::from(v != 0)).collect())),
        Ok(DataType::Int4 | DataType::Uint4) => {
            let bytes: Option<Vec<u8>> = ints().map(|v| u8::try_from(v & 0xff).ok()).collect();
            let raw_data = bytes.ok_or_else(|| invalid("a packed entry does not fit a byte"))?;
            Ok(from_raw(&TensorProto { data_type: proto.data_type, raw_data, ..Default::default() }, elements))
        }
        _ => narrow(elem_of(proto.data_type).unwrap_or(Elem::I8)),
    }
}

/// Two values per byte, the first in the low half.
fn nibbles(raw: &[u8], elements: usize) -> impl Iterator<Item = u8> {
    raw.iter().flat_map(|b| [b & 15, b >> 4]).take(elements)
}

fn signed_nibble(v: u8) -> i8 {
    (v << 4).cast_signed() >> 4
}
