//! The same values under another shape.

use super::{Operator, operands};
use crate::attributes::attributes;
use crate::error::TypeError;
use crate::tensor::Tensor;
use crate::types::{TensorType, checked_elements};

attributes! {
    /// Row-major order is kept; the element counts are equal.
    pub struct Reshape {
        pub shape: Vec<usize>,
    }
}

impl Operator for Reshape {
    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [src] = operands(args)?;
        if checked_elements(&self.shape)? != src.elements() {
            return Err(TypeError::new(format!("{src} has not as many elements as {:?}", self.shape)));
        }
        Ok(TensorType { elem: src.elem, shape: self.shape.clone(), range: src.range })
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType) -> Result<Tensor, TypeError> {
        let [src] = operands(args)?;
        src.reshaped(&out.shape)
    }
}
