//! Tensor types: element, shape, range.

use std::fmt;

use crate::elem::Elem;
use crate::error::TypeError;

/// Largest number of elements any tensor may have. Beyond it a shape is rejected, so that sizes
/// and byte offsets never overflow anywhere in the compiler.
pub const MAX_ELEMENTS: usize = 1 << 31;

/// An inclusive range of integers, `lo <= hi`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Range {
    pub lo: i64,
    pub hi: i64,
}

impl Range {
    pub fn new(lo: i64, hi: i64) -> Range {
        debug_assert!(lo <= hi);
        Range { lo, hi }
    }

    pub fn contains(self, other: Range) -> bool {
        self.lo <= other.lo && other.hi <= self.hi
    }

    /// Largest absolute value in the range.
    pub fn magnitude(self) -> i64 {
        self.lo.abs().max(self.hi.abs())
    }

    pub fn union(self, other: Range) -> Range {
        Range::new(self.lo.min(other.lo), self.hi.max(other.hi))
    }

    /// The image of this range under clamping to `[lo, hi]`.
    pub fn clamped(self, lo: i64, hi: i64) -> Range {
        Range::new(self.lo.clamp(lo, hi), self.hi.clamp(lo, hi))
    }

    pub fn saturating_add(self, other: Range) -> Range {
        Range::new(self.lo.saturating_add(other.lo), self.hi.saturating_add(other.hi))
    }
}

/// Element, static shape, and the range of values an integer tensor can hold.
///
/// `range` is `None` exactly for floats, and otherwise lies within the element's range. An empty
/// shape is a scalar; no dimension is zero; the element count is at most [`MAX_ELEMENTS`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorType {
    pub elem: Elem,
    pub shape: Vec<usize>,
    pub range: Option<Range>,
}

impl TensorType {
    /// A type whose values span the whole element range.
    pub fn new(elem: Elem, shape: impl Into<Vec<usize>>) -> TensorType {
        TensorType { elem, shape: shape.into(), range: elem.range() }
    }

    pub fn with_range(elem: Elem, shape: impl Into<Vec<usize>>, range: Range) -> Result<TensorType, TypeError> {
        match elem.range() {
            Some(full) if full.contains(range) => Ok(TensorType { elem, shape: shape.into(), range: Some(range) }),
            Some(_) => Err(TypeError::new(format!("range [{}, {}] does not fit {elem}", range.lo, range.hi))),
            None => Err(TypeError::new("a float tensor has no integer range")),
        }
    }

    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes the tensor occupies in memory, row-major.
    pub fn bytes(&self) -> usize {
        self.elements() * self.elem.bytes()
    }

    pub fn is_float(&self) -> bool {
        self.elem.is_float()
    }

    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The range of an integer tensor.
    pub fn int_range(&self) -> Result<Range, TypeError> {
        self.range.ok_or_else(|| TypeError::new(format!("expected an integer tensor, found {self}")))
    }

    /// The shape as `[N, H, W, C]`.
    pub fn nhwc(&self) -> Result<[usize; 4], TypeError> {
        <[usize; 4]>::try_from(self.shape.as_slice())
            .map_err(|_| TypeError::new(format!("expected rank 4 [N,H,W,C], found {self}")))
    }

    /// Checks what every shape must satisfy.
    pub fn check(&self) -> Result<(), TypeError> {
        checked_elements(&self.shape)?;
        match (self.range, self.elem.range()) {
            (None, None) => Ok(()),
            (Some(r), Some(full)) if full.contains(r) && r.lo <= r.hi => Ok(()),
            _ => Err(TypeError::new(format!("{:?} is not a range of {}", self.range, self.elem))),
        }
    }
}

/// The number of elements of `shape`, if it is legal (no zero dimension, at most [`MAX_ELEMENTS`]).
pub fn checked_elements(shape: &[usize]) -> Result<usize, TypeError> {
    let mut count = 1usize;
    for &d in shape {
        count = count.checked_mul(d).filter(|&c| c > 0 && c <= MAX_ELEMENTS).ok_or_else(|| {
            TypeError::new(format!("shape {shape:?} has a zero dimension or more than {MAX_ELEMENTS} elements"))
        })?;
    }
    Ok(count)
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.elem)?;
        if let Some(r) = self.range
            && self.range != self.elem.range()
        {
            write!(f, "<{},{}>", r.lo, r.hi)?;
        }
        let dims: Vec<String> = self.shape.iter().map(usize::to_string).collect();
        write!(f, "[{}]", dims.join(","))
    }
}
