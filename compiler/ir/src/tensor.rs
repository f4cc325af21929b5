//! Tensors: constants of a graph and values of the interpreter.

use std::fmt;

use crate::elem::Elem;
use crate::error::TypeError;
use crate::types::{Range, TensorType, checked_elements};

/// Storage of a tensor, row-major, one slot per value. `U4` lives in `U8`, `I4` in `I8`.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    U8(Vec<u8>),
    I8(Vec<i8>),
    I16(Vec<i16>),
    I32(Vec<i32>),
    F32(Vec<f32>),
}

/// A dense tensor. The storage matches the element, the length matches the shape, and every
/// value lies within the element's range.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    elem: Elem,
    shape: Vec<usize>,
    data: Data,
}

/// Identity of a constant: a hash of element, shape and content.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConstId(pub u128);

impl fmt::Debug for ConstId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl Tensor {
    /// A tensor from storage that fits the element.
    pub fn new(elem: Elem, shape: impl Into<Vec<usize>>, data: Data) -> Result<Tensor, TypeError> {
        let shape = shape.into();
        let expected = checked_elements(&shape)?;
        let tensor = Tensor { elem, shape, data };
        if tensor.len() != expected {
            return Err(TypeError::new(format!(
                "shape {:?} needs {expected} values, found {}",
                tensor.shape,
                tensor.len()
            )));
        }
        match (elem, &tensor.data) {
            (Elem::F32, Data::F32(_))
            | (Elem::I32, Data::I32(_))
            | (Elem::I16, Data::I16(_))
            | (Elem::I8, Data::I8(_))
            | (Elem::U8, Data::U8(_)) => Ok(tensor),
            (Elem::I4, Data::I8(v)) if v.iter().all(|&x| (-8..8).contains(&x)) => Ok(tensor),
            (Elem::U4, Data::U8(v)) if v.iter().all(|&x| x < 16) => Ok(tensor),
            (Elem::I4, Data::I8(_)) | (Elem::U4, Data::U8(_)) => {
                Err(TypeError::new(format!("a value does not fit {elem}")))
            }
            _ => Err(TypeError::new(format!("storage does not match element {elem}"))),
        }
    }

    pub fn from_f32(shape: impl Into<Vec<usize>>, data: Vec<f32>) -> Result<Tensor, TypeError> {
        Tensor::new(Elem::F32, shape, Data::F32(data))
    }

    /// An integer tensor from wide values; an error if one does not fit `elem`.
    pub fn from_ints(
        elem: Elem,
        shape: impl Into<Vec<usize>>,
        values: impl IntoIterator<Item = i64>,
    ) -> Result<Tensor, TypeError> {
        fn narrow<T: TryFrom<i64>>(elem: Elem, values: impl Iterator<Item = i64>) -> Result<Vec<T>, TypeError> {
            values.map(|v| T::try_from(v).map_err(|_| TypeError::new(format!("{v} does not fit {elem}")))).collect()
        }
        let values = values.into_iter();
        let data = match elem {
            Elem::U4 | Elem::U8 => Data::U8(narrow(elem, values)?),
            Elem::I4 | Elem::I8 => Data::I8(narrow(elem, values)?),
            Elem::I16 => Data::I16(narrow(elem, values)?),
            Elem::I32 => Data::I32(narrow(elem, values)?),
            Elem::F32 => return Err(TypeError::new("integers given for a float tensor")),
        };
        Tensor::new(elem, shape, data)
    }

    pub fn elem(&self) -> Elem {
        self.elem
    }

    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub fn data(&self) -> &Data {
        &self.data
    }

    pub fn len(&self) -> usize {
        match &self.data {
            Data::U8(v) => v.len(),
            Data::I8(v) => v.len(),
            Data::I16(v) => v.len(),
            Data::I32(v) => v.len(),
            Data::F32(v) => v.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values of a float tensor.
    pub fn f32s(&self) -> Result<&[f32], TypeError> {
        match &self.data {
            Data::F32(v) => Ok(v),
            _ => Err(TypeError::new(format!("expected f32, found {}", self.elem))),
        }
    }

    /// The values of an integer tensor, widened.
    pub fn ints(&self) -> Result<Vec<i64>, TypeError> {
        match &self.data {
            Data::U8(v) => Ok(v.iter().map(|&x| x.into()).collect()),
            Data::I8(v) => Ok(v.iter().map(|&x| x.into()).collect()),
            Data::I16(v) => Ok(v.iter().map(|&x| x.into()).collect()),
            Data::I32(v) => Ok(v.iter().map(|&x| x.into()).collect()),
            Data::F32(_) => Err(TypeError::new("expected integers, found f32")),
        }
    }

    /// Little-endian bytes, row-major, [`Elem::bytes`] per value.
    pub fn to_bytes(&self) -> Vec<u8> {
        match &self.data {
            Data::U8(v) => v.clone(),
            Data::I8(v) => v.iter().map(|&x| x.cast_unsigned()).collect(),
            Data::I16(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Data::I32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Data::F32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }

    /// Reads what [`Tensor::to_bytes`] writes.
    pub fn from_bytes(elem: Elem, shape: impl Into<Vec<usize>>, bytes: &[u8]) -> Result<Tensor, TypeError> {
        let words = || bytes.as_chunks::<4>().0.iter();
        let data = match elem {
            Elem::U4 | Elem::U8 => Data::U8(bytes.to_vec()),
            Elem::I4 | Elem::I8 => Data::I8(bytes.iter().map(|&b| b.cast_signed()).collect()),
            Elem::I16 => Data::I16(bytes.as_chunks::<2>().0.iter().map(|&c| i16::from_le_bytes(c)).collect()),
            Elem::I32 => Data::I32(words().map(|&c| i32::from_le_bytes(c)).collect()),
            Elem::F32 => Data::F32(words().map(|&c| f32::from_le_bytes(c)).collect()),
        };
        Tensor::new(elem, shape, data)
    }

    /// The smallest range holding every value; `None` for floats.
    pub fn range(&self) -> Option<Range> {
        fn span<T: Copy + Ord + Into<i64>>(values: &[T]) -> Option<Range> {
            let lo = values.iter().copied().min()?;
            let hi = values.iter().copied().max()?;
            Some(Range::new(lo.into(), hi.into()))
        }
        match &self.data {
            Data::U8(v) => span(v),
            Data::I8(v) => span(v),
            Data::I16(v) => span(v),
            Data::I32(v) => span(v),
            Data::F32(_) => None,
        }
    }

    /// The tensor's type, its range being the span of the actual values.
    pub fn ty(&self) -> TensorType {
        TensorType { elem: self.elem, shape: self.shape.clone(), range: self.range() }
    }

    /// The same values under another shape of as many elements.
    pub fn reshaped(&self, shape: &[usize]) -> Result<Tensor, TypeError> {
        Tensor::new(self.elem, shape, self.data.clone())
    }

    pub fn const_id(&self) -> ConstId {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.elem.name().as_bytes());
        for &d in &self.shape {
            hasher.update(&(d as u64).to_le_bytes());
        }
        hasher.update(&[0xff]);
        hasher.update(&self.to_bytes());
        let mut id = [0; 16];
        hasher.finalize_xof().fill(&mut id);
        ConstId(u128::from_be_bytes(id))
    }
}
