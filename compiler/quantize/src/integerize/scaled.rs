//! Real values expressed through integers: what a float value of the source graph stands for.

use hawqc_ir::ValueId;

use super::error::Obstacle;

/// Positive reals that broadcast onto a value of the same rank: every dimension is 1 or the value's.
///
/// Canonical: if all are equal there is only one.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scale {
    shape: Vec<usize>,
    values: Vec<f64>,
}

impl Scale {
    fn new(shape: Vec<usize>, values: Vec<f64>) -> Scale {
        match values.as_slice() {
            [first, rest @ ..] if rest.iter().all(|v| v == first) => Scale::uniform(shape.len(), *first),
            _ => Scale { shape, values },
        }
    }

    pub fn uniform(rank: usize, value: f64) -> Scale {
        Scale { shape: vec![1; rank], values: vec![value] }
    }

    /// One value for every index of `axis`, or a single one.
    pub fn along(rank: usize, axis: usize, values: Vec<f64>) -> Scale {
        let mut shape = vec![1; rank];
        if let Some(d) = shape.get_mut(axis) {
            *d = values.len();
        }
        Scale::new(shape, values)
    }

    /// One value for every pixel of `[N,H,W,C]`, row-major.
    pub fn per_pixel([h, w]: [usize; 2], values: Vec<f64>) -> Scale {
        Scale::new(vec![1, h, w, 1], values)
    }

    pub fn values(&self) -> &[f64] {
        &self.values
    }

    pub fn as_uniform(&self) -> Option<f64> {
        match self.values.as_slice() {
            &[value] => Some(value),
            _ => None,
        }
    }

    /// The only axis along which the scale varies.
    pub fn axis(&self) -> Option<usize> {
        let mut varying = (0..self.shape.len()).filter(|&a| self.shape[a] > 1);
        varying.next().filter(|_| varying.next().is_none())
    }

    /// Whether there is one scale, or one per index of the last axis.
    pub fn is_per_channel(&self) -> bool {
        self.as_uniform().is_some() || self.axis().is_some_and(|a| a + 1 == self.shape.len())
    }

    /// The value for index `i` of the axis along which the scale varies, if it does.
    pub fn at(&self, i: usize) -> f64 {
        self.values[i % self.values.len()]
    }

    pub fn map(&self, f: impl Fn(f64) -> f64) -> Scale {
        Scale::new(self.shape.clone(), self.values.iter().map(|&v| f(v)).collect())
    }

    /// `self / other`, where one is uniform or both vary alike.
    pub fn ratio(&self, other: &Scale) -> Option<Scale> {
        if let Some(divisor) = other.as_uniform() {
            Some(self.map(|v| v / divisor))
        } else if let Some(dividend) = self.as_uniform() {
            Some(other.map(|v| dividend / v))
        } else if self.shape == other.shape {
            let values = self.values.iter().zip(&other.values).map(|(a, b)| a / b).collect();
            Some(Scale::new(self.shape.clone(), values))
        } else {
            None
        }
    }

    /// Shape and values as operand of the requant of a value of shape `dst`: `[1]`, `[C]` or, with
    /// repetitions if need be, `[H,W,1]`; `None` for anything else.
    pub fn for_requant(&self, dst: &[usize]) -> Option<(Vec<usize>, Vec<f64>)> {
        match (self.shape.as_slice(), dst) {
            _ if self.as_uniform().is_some() => Some((vec![1], self.values.clone())),
            ([.., c], _) if self.is_per_channel() => Some((vec![*c], self.values.clone())),
            (&[1, rows, columns, 1], &[_, h, w, _]) => {
                let at = |y, x| self.values[y % rows * columns + x % columns];
                Some((vec![h, w, 1], (0..h * w).map(|i| at(i / w, i % w)).collect()))
            }
            _ => None,
        }
    }

    /// The scale of a value reshaped `from` one shape `to` another, if every axis along which it
    /// varies is still an axis.
    pub fn reshaped(&self, from: &[usize], to: &[usize]) -> Option<Scale> {
        let mut shape = vec![1; to.len()];
        for axis in (0..from.len()).filter(|&a| self.shape[a] > 1) {
            let inner: usize = from[axis + 1..].iter().product();
            let kept = |&b: &usize| to[b] == from[axis] && to[b + 1..].iter().product::<usize>() == inner;
            let target = (0..to.len()).find(kept)?;
            shape[target] = from[axis];
        }
        Some(Scale { shape, values: self.values.clone() })
    }

    /// The scale of a value transposed by `perm`, if the axes along which it varies keep their order.
    pub fn transposed(&self, perm: &[usize]) -> Option<Scale> {
        let varying: Vec<usize> = perm.iter().copied().filter(|&a| self.shape[a] > 1).collect();
        let shape = perm.iter().map(|&a| self.shape[a]).collect();
        varying.is_sorted().then(|| Scale { shape, values: self.values.clone() })
    }
}

/// The reals `(value - zero) * scale`; `value` is an integer value of the new graph.
#[derive(Clone, Debug)]
pub(super) struct Term {
    pub value: ValueId,
    pub zero: i32,
    pub scale: Scale,
}

/// A limit `min(max(x, lo), hi)` of reals, `lo <= hi`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Limit {
    pub lo: f32,
    pub hi: f32,
}

impl Limit {
    pub const NONE: Limit = Limit { lo: f32::NEG_INFINITY, hi: f32::INFINITY };

    /// This limit, then `next`: again one limit.
    pub fn then(self, next: Limit) -> Limit {
        Limit { lo: next.apply(self.lo), hi: next.apply(self.hi) }
    }

    pub fn apply(self, x: f32) -> f32 {
        x.max(self.lo).min(self.hi)
    }
}

/// The reals `limit(sum of the terms)`; at least one term, all of one shape.
#[derive(Clone, Debug)]
pub(super) struct Sum {
    pub terms: Vec<Term>,
    pub limit: Limit,
}

impl Sum {
    pub fn of(term: Term) -> Sum {
        Sum { terms: vec![term], limit: Limit::NONE }
    }

    /// The only term, whatever the limit.
    pub fn single(&self) -> Result<&Term, Obstacle> {
        match self.terms.as_slice() {
            [term] => Ok(term),
            terms => Err(Obstacle::new(
                format!("a sum of {} differently scaled values", terms.len()),
                "a quantize and dequantize after the addition",
            )),
        }
    }
}
