//! The border between floats and integers.

use super::{Operator, operands};
use crate::attributes::attributes;
use crate::elem::Elem;
use crate::error::TypeError;
use crate::tensor::Tensor;
use crate::types::{Range, TensorType};

attributes! {
    /// `dst = clamp(round_half_even(src / scale) + zero, lo, hi)` (ONNX QuantizeLinear), stored as `elem`.
    ///
    /// Operands: `src` f32, `scale` f32 > 0 and `zero` integer, both `[1]` or, along `axis`, `[C]`.
    /// The division is f32; the quotient is clamped to `[lo - zero, hi - zero]` before it becomes
    /// an integer; NaN counts as 0.
    pub struct Quantize {
        pub lo: i64,
        pub hi: i64,
        pub axis: usize,
        pub elem: Elem,
    }
}

attributes! {
    /// `dst = f32(src - zero) * scale` (ONNX DequantizeLinear).
    ///
    /// Operands: `src` integer, `scale` f32 > 0 and `zero` integer, both `[1]` or, along `axis`, `[C]`.
    /// The difference is exact, then rounded to f32 (nearest, even), then multiplied in f32.
    pub struct Dequantize {
        pub axis: usize,
    }
}

fn check_parameters(src: &TensorType, scale: &TensorType, zero: &TensorType, axis: usize) -> Result<(), TypeError> {
    if scale.elem != Elem::F32 || zero.is_float() || scale.shape != zero.shape {
        return Err(TypeError::new(format!("scale {scale} must be f32 and zero {zero} an integer of the same shape")));
    }
    let per_axis = src.shape.get(axis).is_some_and(|&c| scale.shape == [c]);
    if scale.shape != [1] && !per_axis {
        return Err(TypeError::new(format!("scale {scale} is neither [1] nor along axis {axis} of {src}")));
    }
    Ok(())
}

/// Maps an index into `shape` to the parameter index along `axis`.
fn parameter_index(count: usize, shape: &[usize], axis: usize) -> impl Fn(usize) -> usize {
    let inner: usize = shape.iter().skip(axis + 1).product();
    move |i| if count == 1 { 0 } else { i / inner % count }
}

impl Operator for Quantize {
    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [src, scale, zero] = operands(args)?;
        check_parameters(src, scale, zero, self.axis)?;
        if !src.is_float() {
            return Err(TypeError::new(format!("expected floats, found {src}")));
        }
        if self.lo > self.hi {
            return Err(TypeError::new(format!("empty clamp [{}, {}]", self.lo, self.hi)));
        }
        TensorType::with_range(self.elem, src.shape.clone(), Range::new(self.lo, self.hi))
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType) -> Result<Tensor, TypeError> {
        let [src, scale, zero] = operands(args)?;
        let (scale, zero) = (scale.f32s()?, zero.ints()?);
        let index = parameter_index(scale.len(), &out.shape, self.axis);
        let values = src.f32s()?.iter().enumerate().map(|(i, &v)| {
            let (scale, zero) = (scale[index(i)], zero[index(i)]);
            let (lo, hi) = ((self.lo - zero) as f32, (self.hi - zero) as f32);
            // NaN fails every comparison and becomes 0 by the cast, like a saturating conversion.
            let rounded = (v / scale).round_ties_even();
            let limited = if rounded.is_nan() { 0.0 } else { rounded.max(lo).min(hi) };
            limited as i64 + zero
        });
        Tensor::from_ints(self.elem, out.shape.clone(), values)
    }
}

impl Operator for Dequantize {
    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [src, scale, zero] = operands(args)?;
        check_parameters(src, scale, zero, self.axis)?;
        src.int_range()?;
        Ok(TensorType::new(Elem::F32, src.shape.clone()))
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType) -> Result<Tensor, TypeError> {
        let [src, scale, zero] = operands(args)?;
        let (scale, zero) = (scale.f32s()?, zero.ints()?);
        let index = parameter_index(scale.len(), &out.shape, self.axis);
        let values = src.ints()?.into_iter().enumerate();
        Tensor::from_f32(
            out.shape.clone(),
            values.map(|(i, v)| (v - zero[index(i)]) as f32 * scale[index(i)]).collect(),
        )
    }
}
