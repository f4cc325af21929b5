//! A constant border around the spatial axes.

use super::clamp::Real;
use super::window::Padding;
use super::{Operator, operands};
use crate::attributes::attributes;
use crate::error::TypeError;
use crate::tensor::{Data, Tensor};
use crate::types::{Range, TensorType};

attributes! {
    /// `[N,H,W,C]` with `pad` pixels of `value` around. For integers `value` is a whole number
    /// that fits the element.
    pub struct Pad {
        pub pad: Padding,
        pub value: Real,
    }
}

impl Operator for Pad {
    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [src] = operands(args)?;
        let [n, h, w, c] = src.nhwc()?;
        let [top, left, bottom, right] = self.pad;
        let sum = |parts: [usize; 3]| parts.into_iter().fold(0usize, usize::saturating_add);
        let shape = vec![n, sum([h, top, bottom]), sum([w, left, right]), c];
        let Some(range) = src.range else {
            return Ok(TensorType::new(src.elem, shape));
        };
        let value = self.value.get();
        // Whole numbers below 2^24 in magnitude are exact in f32.
        if value.fract() != 0.0 || value.abs() >= 16_777_216.0 {
            return Err(TypeError::new(format!("{value} is not a whole number below 2^24")));
        }
        let value = value as i64;
        TensorType::with_range(src.elem, shape, range.union(Range::new(value, value)))
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType) -> Result<Tensor, TypeError> {
        let [src] = operands(args)?;
        match src.data() {
            Data::F32(values) => {
                Tensor::from_f32(out.shape.clone(), self.surround(values, src.shape(), out, self.value.get())?)
            }
            _ => {
                let values = self.surround(&src.ints()?, src.shape(), out, self.value.get() as i64)?;
                Tensor::from_ints(out.elem, out.shape.clone(), values)
            }
        }
    }
}

impl Pad {
    fn surround<T: Copy>(&self, src: &[T], shape: &[usize], out: &TensorType, value: T) -> Result<Vec<T>, TypeError> {
        let (&[n, h, w, c], [_, oh, ow, _]) = (shape, out.nhwc()?) else {
            return Err(TypeError::new("expected rank 4"));
        };
        let mut dst = vec![value; out.elements()];
        for row in 0..n * h {
            let (image, y) = (row / h, row % h);
            let to = ((image * oh + y + self.pad[0]) * ow + self.pad[1]) * c;
            dst[to..to + w * c].copy_from_slice(&src[row * w * c..][..w * c]);
        }
        Ok(dst)
    }
}
