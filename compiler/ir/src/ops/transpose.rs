//! Axes in another order.

use super::{Operator, operands};
use crate::attributes::attributes;
use crate::error::TypeError;
use crate::tensor::{Data, Tensor};
use crate::types::TensorType;

attributes! {
    /// Axis `i` of the result is axis `perm[i]` of the source.
    pub struct Transpose {
        pub perm: Vec<usize>,
    }
}

impl Transpose {
    /// NCHW to NHWC.
    pub fn to_nhwc() -> Transpose {
        Transpose { perm: vec![0, 2, 3, 1] }
    }

    /// NHWC to NCHW.
    pub fn to_nchw() -> Transpose {
        Transpose { perm: vec![0, 3, 1, 2] }
    }

    /// Whether only axes of length 1 move, so that the order in memory stays as it is.
    pub fn keeps_order(&self, shape: &[usize]) -> bool {
        let long: Vec<usize> = self.perm.iter().copied().filter(|&a| shape.get(a).is_some_and(|&d| d > 1)).collect();
        long.is_sorted()
    }
}

/// `shape` with its axes in the order `perm`; an error if `perm` is not a permutation of them.
pub fn permuted_shape(shape: &[usize], perm: &[usize]) -> Result<Vec<usize>, TypeError> {
    let mut sorted = perm.to_vec();
    sorted.sort_unstable();
    if !sorted.into_iter().eq(0..shape.len()) {
        return Err(TypeError::new(format!("{perm:?} is not a permutation of the axes of {shape:?}")));
    }
    Ok(perm.iter().map(|&a| shape[a]).collect())
}

impl Operator for Transpose {
    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [src] = operands(args)?;
        Ok(TensorType { elem: src.elem, shape: permuted_shape(&src.shape, &self.perm)?, range: src.range })
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType) -> Result<Tensor, TypeError> {
        let [src] = operands(args)?;
        let shape = src.shape();
        let data = match src.data() {
            Data::U8(v) => Data::U8(self.permute(v, shape)),
            Data::I8(v) => Data::I8(self.permute(v, shape)),
            Data::I16(v) => Data::I16(self.permute(v, shape)),
            Data::I32(v) => Data::I32(self.permute(v, shape)),
            Data::F32(v) => Data::F32(self.permute(v, shape)),
        };
        Tensor::new(src.elem(), out.shape.clone(), data)
    }
}

impl Transpose {
    fn permute<T: Copy>(&self, src: &[T], shape: &[usize]) -> Vec<T> {
        let mut strides = vec![1; shape.len()];
        for a in (1..shape.len()).rev() {
            strides[a - 1] = strides[a] * shape[a];
        }
        let axes: Vec<(usize, usize)> = self.perm.iter().map(|&a| (shape[a], strides[a])).collect();
        let source = |mut index: usize| {
            let mut from = 0;
            for &(size, stride) in axes.iter().rev() {
                from += index % size * stride;
                index /= size;
            }
            src[from]
        };
        (0..src.len()).map(source).collect()
    }
}
