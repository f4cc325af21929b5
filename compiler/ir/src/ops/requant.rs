//! Dyadic requantisation: from one integer scale to another by multiply, add and shift.

use super::{Operator, operands};
use crate::attributes::attributes;
use crate::dyadic::{Dyadic, Rounding};
use crate::elem::Elem;
use crate::error::TypeError;
use crate::tensor::Tensor;
use crate::types::{Range, TensorType};

attributes! {
    /// `dst = clamp(dst_zero + round((src - src_zero) * mult / 2^shift), lo, hi)`, stored as `elem`.
    ///
    /// Operands: `src`, `mult` (i32, >= 0) and `shift` (u8, 1..=62). `mult` and `shift` have one
    /// shape, which broadcasts against the trailing axes of `src` as in numpy: `[1]` per tensor,
    /// `[C]` per channel, `[H,W,1]` per pixel. Every operand integer; see [`Dyadic::apply`].
    pub struct Requant {
        pub src_zero: i32,
        pub dst_zero: i32,
        pub lo: i64,
        pub hi: i64,
        pub round: Rounding,
        pub elem: Elem,
    }
}

impl Requant {
    /// Round-half-up to `[lo, hi]` stored as `elem`, both zero points 0.
    pub fn to_range(range: Range, elem: Elem) -> Requant {
        Requant { src_zero: 0, dst_zero: 0, lo: range.lo, hi: range.hi, round: Rounding::HalfUp, elem }
    }

    /// The result for one value.
    pub fn apply(&self, value: i64, dyadic: Dyadic) -> i64 {
        let scaled = dyadic.apply(value - i64::from(self.src_zero), self.round);
        (scaled + i64::from(self.dst_zero)).clamp(self.lo, self.hi)
    }
}

impl Operator for Requant {
    fn infer(&self, args: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [src, mult, shift] = operands(args)?;
        let range = src.int_range()?;
        if self.lo > self.hi {
            return Err(TypeError::new(format!("empty clamp [{}, {}]", self.lo, self.hi)));
        }
        // value - src_zero must stay an i32 for the product to fit in 63 bits.
        let shifted = Range::new(range.lo - i64::from(self.src_zero), range.hi - i64::from(self.src_zero));
        if Elem::I32.range().is_none_or(|r| !r.contains(shifted)) {
            return Err(TypeError::new(format!("{src} less src_zero {} does not fit i32", self.src_zero)));
        }
        if mult.elem != Elem::I32 || mult.range.is_none_or(|r| r.lo < 0) {
            return Err(TypeError::new(format!("mult must be non-negative i32, found {mult}")));
        }
        let shifts = Range::new(1, Dyadic::MAX_SHIFT.into());
        if shift.elem != Elem::U8 || shift.range.is_none_or(|r| !shifts.contains(r)) {
            return Err(TypeError::new(format!("shift must be u8 in 1..=62, found {shift}")));
        }
        if mult.shape != shift.shape || !broadcasts(&mult.shape, &src.shape) {
            return Err(TypeError::new(format!("mult {mult} and shift {shift} do not broadcast against {src}")));
        }
        TensorType::with_range(self.elem, src.shape.clone(), Range::new(self.lo, self.hi))
    }

    fn eval(&self, args: &[&Tensor], out: &TensorType) -> Result<Tensor, TypeError> {
        let [src, mult, shift] = operands(args)?;
        let (src, mult, shift) = (src.ints()?, mult.ints()?, shift.ints()?);
        let index = broadcast_index(args[1].shape(), &out.shape);
        let values = src.iter().enumerate().map(|(i, &v)| {
            let j = index(i);
            // The type rule bounds both.
            self.apply(v, Dyadic { mult: mult[j] as i32, shift: shift[j] as u8 })
        });
        Tensor::from_ints(self.elem, out.shape.clone(), values)
    }
}

/// Whether `small` broadcasts against the trailing axes of `big`.
fn broadcasts(small: &[usize], big: &[usize]) -> bool {
    small.len() <= big.len() && small.iter().rev().zip(big.iter().rev()).all(|(&s, &b)| s == 1 || s == b)
}

/// Maps a row-major index into `big` to the index into `small` that broadcasts onto it.
pub(crate) fn broadcast_index(small: &[usize], big: &[usize]) -> impl Fn(usize) -> usize {
    // (size in big, stride in small) from the last axis; axes that `small` lacks have stride 0.
    let mut stride = 1;
    let mut axes = Vec::new();
    for (i, &size) in big.iter().rev().enumerate() {
        let s = small.len().checked_sub(i + 1).map_or(1, |j| small[j]);
        axes.push((size, if s == 1 { 0 } else { stride }));
        stride *= s;
    }
    move |mut index| {
        let mut out = 0;
        for &(size, stride) in &axes {
            out += index % size * stride;
            index /= size;
        }
        out
    }
}
