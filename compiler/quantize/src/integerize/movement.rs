//! Data movement: on the integers where they are, on floats outside the borders.

use hawqc_ir::{Concat, Op, Pad, Real, ValueId};

use super::error::Obstacle;
use super::scaled::{Scale, Sum, Term};
use super::{Form, Lowering, describe_all};

impl Lowering<'_> {
    /// Reshape, transpose and pad.
    pub(super) fn movement(&mut self, id: ValueId, args: &[Form]) -> Result<Form, Obstacle> {
        let (op, name) = (self.old.op(id).clone(), self.old.name(id));
        match args {
            [Form::Before(src)] => Ok(Form::Before(self.emit(name, op, &[*src])?)),
            [Form::After(src)] if !matches!(op, Op::Pad(_)) => Ok(Form::After(self.emit(name, op, &[*src])?)),
            [Form::Sum(sum)] => match &op {
                Op::Pad(pad) => self.pad(id, pad, sum),
                _ => self.rearrange(id, &op, sum),
            },
            _ => Err(Obstacle::new(describe_all(args), "one quantised operand: a quantize and dequantize before")),
        }
    }

    /// Reshape and transpose, of every term by itself. Behind the last quantize they move floats
    /// where that keeps the channels, and with them their scales, last.
    fn rearrange(&mut self, id: ValueId, op: &Op, sum: &Sum) -> Result<Form, Obstacle> {
        let moved: Option<Vec<Scale>> = sum.terms.iter().map(|t| self.moved_scale(id, op, t)).collect();
        let per_channel = moved.as_ref().is_some_and(|scales| scales.iter().all(Scale::is_per_channel));
        if !per_channel && self.leaves[id.index()] {
            let src = self.leave(self.old.args(id)[0])?;
            return Ok(Form::After(self.emit(self.old.name(id), op.clone(), &[src])?));
        }
        let Some(moved) = moved else {
            return Err(Obstacle::new(
                "scales that differ along an axis which the movement does not keep",
                "one scale: a quantize and dequantize before",
            ));
        };
        let mut terms = Vec::new();
        for (term, scale) in sum.terms.iter().zip(moved) {
            let value = self.emit(self.old.name(id), op.clone(), &[term.value])?;
            terms.push(Term { value, zero: term.zero, scale });
        }
        Ok(Form::Sum(Sum { terms, limit: sum.limit }))
    }

    fn moved_scale(&self, id: ValueId, op: &Op, term: &Term) -> Option<Scale> {
        match op {
            Op::Transpose(transpose) => term.scale.transposed(&transpose.perm),
            _ => term.scale.reshaped(&self.new.ty(term.value).shape, &self.old.ty(id).shape),
        }
    }

    /// Padding with a real is padding with its integer, which must exist.
    fn pad(&mut self, id: ValueId, pad: &Pad, sum: &Sum) -> Result<Form, Obstacle> {
        let real = pad.value.get();
        // The limit may wait only if it leaves the padding as it is.
        let sum = if sum.limit.apply(real) == real { sum.clone() } else { self.settled(self.old.name(id), sum)? };
        let mut terms = Vec::new();
        for (i, term) in sum.terms.iter().enumerate() {
            if !term.scale.is_per_channel() {
                return Err(Obstacle::new("a scale that differs per pixel", "a quantize and dequantize before"));
            }
            // The sum of all terms' padding is the real.
            let value = padding(term, if i == 0 { real } else { 0.0 })?;
            let value = self.emit(self.old.name(id), Pad { pad: pad.pad, value: Real::new(value) }, &[term.value])?;
            terms.push(Term { value, ..term.clone() });
        }
        Ok(Form::Sum(Sum { terms, limit: sum.limit }))
    }

    pub(super) fn concat(&mut self, id: ValueId, concat: &Concat, args: &[Form]) -> Result<Form, Obstacle> {
        let name = self.old.name(id);
        let values: Option<Vec<ValueId>> = args.iter().map(before).collect();
        if let Some(values) = values {
            return Ok(Form::Before(self.emit(name, concat.clone(), &values)?));
        }
        let mut parts = Vec::new();
        for arg in args {
            match arg {
                Form::Sum(sum) => parts.push(sum.clone()),
                Form::Concat { axis, parts: inner } if *axis == concat.axis => parts.extend(inner.iter().cloned()),
                _ => return Err(Obstacle::new(describe_all(args), "quantised operands, each under a dequantize")),
            }
        }
        match self.common(&parts) {
            Some(term) => {
                let values: Vec<ValueId> = parts.iter().flat_map(|p| p.terms.iter().map(|t| t.value)).collect();
                let value = self.emit(name, concat.clone(), &values)?;
                Ok(Form::Sum(Sum { terms: vec![Term { value, ..term }], limit: parts[0].limit }))
            }
            None => Ok(Form::Concat { axis: concat.axis, parts }),
        }
    }

    /// The first operand, if all are single terms of its element, one scale, zero point and limit.
    fn common(&self, parts: &[Sum]) -> Option<Term> {
        let first = parts.first()?.single().ok()?;
        first.scale.as_uniform()?;
        let elem = |t: &Term| self.new.ty(t.value).elem;
        let alike = |p: &Sum| {
            p.limit == parts[0].limit
                && p.single().is_ok_and(|t| t.scale == first.scale && t.zero == first.zero && elem(t) == elem(first))
        };
        parts.iter().all(alike).then(|| first.clone())
    }
}

fn before(form: &Form) -> Option<ValueId> {
    match form {
        Form::Before(value) => Some(*value),
        _ => None,
    }
}

/// The integer that stands for a real, as attribute of an integer `pad`.
fn padding(term: &Term, real: f32) -> Result<f32, Obstacle> {
    let zero = f64::from(term.zero);
    let real = f64::from(real);
    let value = match term.scale.as_uniform() {
        _ if real == 0.0 => Some(zero),
        Some(scale) => {
            Some((real / scale).round_ties_even()).filter(|i| i.is_finite() && i * scale == real).map(|i| i + zero)
        }
        None => None,
    };
    value.map(|v| v as f32).ok_or_else(|| {
        Obstacle::new(
            format!("padding with {real}, which is no multiple of the scale"),
            "padding with 0, or a quantize and dequantize after the padding only",
        )
    })
}
