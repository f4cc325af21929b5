//! Softmax at the border.

use super::exp::exp;
use super::{Operator, operands};
use crate::attributes::attributes;
use crate::error::TypeError;
use crate::tensor::Tensor;
use crate::types::TensorType;

attributes! {
    /// `dst = exp(src - max) / sum exp(src - max)` of floats along the last axis, in the order of
    /// operations that [`exp::exp`](super::exp::exp) and the interpreter spell out: maximum, exponentials, sum
    /// from the first element to the last, one division each. Every step is an IEEE f32 operation.
    pub struct Softmax {}
}

impl Operator for Softmax {
    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [src] = operands(args)?;
        if !src.is_float() || src.rank() == 0 {
            return Err(TypeError::new(format!("expected floats of rank >= 1, found {src}")));
        }
        Ok((*src).clone())
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType) -> Result<Tensor, TypeError> {
        let [src] = operands(args)?;
        let row = out.shape.last().copied().unwrap_or(1);
        let mut dst = Vec::with_capacity(out.elements());
        for src in src.f32s()?.chunks(row) {
            let max = src.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let exps: Vec<f32> = src.iter().map(|&x| exp(x - max)).collect();
            let sum = exps.iter().fold(0f32, |sum, e| sum + e);
            dst.extend(exps.iter().map(|e| e / sum));
        }
        Tensor::from_f32(out.shape.clone(), dst)
    }
}
