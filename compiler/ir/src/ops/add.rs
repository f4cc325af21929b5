//! Elementwise sum.

use super::{Operator, operands};
use crate::attributes::attributes;
use crate::elem::Elem;
use crate::error::TypeError;
use crate::tensor::{Data, Tensor};
use crate::types::{Range, TensorType};

attributes! {
    /// `dst = a + b`, shapes equal. Floats give f32; integers give i32, and the sum of the operands'
    /// ranges must fit i32.
    pub struct Add {}
}

impl Operator for Add {
    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [a, b] = operands(args)?;
        if a.shape != b.shape {
            return Err(TypeError::new(format!("shapes differ: {a} and {b}")));
        }
        match (a.range, b.range) {
            (None, None) => Ok(TensorType::new(Elem::F32, a.shape.clone())),
            (Some(x), Some(y)) => {
                TensorType::with_range(Elem::I32, a.shape.clone(), Range::new(x.lo + y.lo, x.hi + y.hi))
            }
            _ => Err(TypeError::new(format!("operands must be both floats or both integers, found {a} and {b}"))),
        }
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType) -> Result<Tensor, TypeError> {
        let [a, b] = operands(args)?;
        if let (Data::F32(a), Data::F32(b)) = (a.data(), b.data()) {
            return Tensor::from_f32(out.shape.clone(), a.iter().zip(b).map(|(x, y)| x + y).collect());
        }
        let sums = a.ints()?.into_iter().zip(b.ints()?).map(|(x, y)| x + y);
        Tensor::from_ints(Elem::I32, out.shape.clone(), sums)
    }
}
