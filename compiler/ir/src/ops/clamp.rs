//! Limits: the only form of activation functions.

use std::fmt;
use std::str::FromStr;

use ordered_float::OrderedFloat;

use super::{Operator, operands};
use crate::attributes::{AttributeValue, attributes};
use crate::elem::Elem;
use crate::error::TypeError;
use crate::tensor::Tensor;
use crate::types::TensorType;

attributes! {
    /// `dst = min(max(src, lo), hi)` of integers, stored as `elem`, which must hold `[lo, hi]`
    /// as far as the source reaches.
    pub struct Clamp {
        pub lo: i64,
        pub hi: i64,
        pub elem: Elem,
    }
}

impl Operator for Clamp {
    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [src] = operands(args)?;
        if self.lo > self.hi {
            return Err(TypeError::new(format!("empty clamp [{}, {}]", self.lo, self.hi)));
        }
        TensorType::with_range(self.elem, src.shape.clone(), src.int_range()?.clamped(self.lo, self.hi))
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType) -> Result<Tensor, TypeError> {
        let [src] = operands(args)?;
        let values = src.ints()?.into_iter().map(|v| v.clamp(self.lo, self.hi));
        Tensor::from_ints(self.elem, out.shape.clone(), values)
    }
}

/// A real attribute, totally ordered so that operators can be compared and hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Real(OrderedFloat<f32>);

impl Real {
    pub fn new(value: f32) -> Real {
        Real(OrderedFloat(value))
    }

    pub fn get(self) -> f32 {
        self.0.0
    }
}

impl fmt::Display for Real {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.get())
    }
}

impl FromStr for Real {
    type Err = std::num::ParseFloatError;
    fn from_str(s: &str) -> Result<Real, Self::Err> {
        s.parse().map(Real::new)
    }
}

impl AttributeValue for Real {
    fn print(&self) -> String {
        self.to_string()
    }
    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

attributes! {
    /// `dst = min(max(src, lo), hi)` of floats. ReLU is `lo=0.0 hi=inf`, ReLU6 `lo=0.0 hi=6.0`.
    pub struct ClampReal {
        pub lo: Real,
        pub hi: Real,
    }
}

impl ClampReal {
    pub fn relu() -> ClampReal {
        ClampReal { lo: Real::new(0.0), hi: Real::new(f32::INFINITY) }
    }
}

impl Operator for ClampReal {
    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [src] = operands(args)?;
        if self.lo.get().is_nan() || self.hi.get().is_nan() || self.lo > self.hi {
            return Err(TypeError::new(format!("empty clamp [{}, {}]", self.lo, self.hi)));
        }
        if !src.is_float() {
            return Err(TypeError::new(format!("expected floats, found {src}")));
        }
        Ok((*src).clone())
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType) -> Result<Tensor, TypeError> {
        let [src] = operands(args)?;
        let values = src.f32s()?.iter().map(|v| v.max(self.lo.get()).min(self.hi.get())).collect();
        Tensor::from_f32(out.shape.clone(), values)
    }
}
