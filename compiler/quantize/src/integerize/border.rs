//! The way out: from the last integers to floats.

use hawqc_ir::{Dequantize, Elem, Tensor, ValueId};

use super::error::Obstacle;
use super::{Form, Lowering, describe_all};

impl Lowering<'_> {
    pub(super) fn softmax(&mut self, id: ValueId, args: &[Form]) -> Result<Form, Obstacle> {
        let src = match args {
            [Form::After(src)] => *src,
            [Form::Sum(_)] if self.leaves[id.index()] => self.leave(self.old.args(id)[0])?,
            [Form::Sum(_)] => {
                return Err(Obstacle::new("a softmax inside the network", "softmax at the output only"));
            }
            _ => return Err(Obstacle::new(describe_all(args), "a quantised operand under a dequantize")),
        };
        Ok(Form::After(self.emit(self.old.name(id), self.old.op(id).clone(), &[src])?))
    }

    /// The floats of a sum of one term, by a `dequantize` that stays; one per value.
    pub(super) fn leave(&mut self, id: ValueId) -> Result<ValueId, Obstacle> {
        if let Some(&value) = self.dequantized.get(&id) {
            return Ok(value);
        }
        let Form::Sum(sum) = self.forms[id.index()].clone() else {
            let found = format!("{} at the output", self.forms[id.index()].describe());
            return Err(Obstacle::new(found, "a quantize and dequantize before the output"));
        };
        let sum = self.settled(self.old.name(id), &sum)?;
        let term = sum.single()?;
        let ty = self.new.ty(term.value);
        let axis = match term.scale.axis() {
            Some(axis) => axis,
            None if term.scale.as_uniform().is_some() => ty.rank().saturating_sub(1),
            None => return Err(Obstacle::new("a scale that differs per pixel at the output", "a quantize before")),
        };
        let zero = i64::from(term.zero);
        let zero_elem = if ty.elem.range().is_some_and(|r| r.lo <= zero && zero <= r.hi) { ty.elem } else { Elem::I32 };
        let scales: Vec<f32> = term.scale.values().iter().map(|&s| s as f32).collect();
        if let Some(bad) = scales.iter().find(|s| !s.is_normal()) {
            return Err(Obstacle::new(format!("scale {bad:e} at the output"), "a scale in the range of f32"));
        }
        let zeros = Tensor::from_ints(zero_elem, [scales.len()], scales.iter().map(|_| zero))?;
        let scales = self.new.constant(Tensor::from_f32([scales.len()], scales)?);
        let zeros = self.new.constant(zeros);
        let value = self.emit(self.old.name(id), Dequantize { axis }, &[term.value, scales, zeros])?;
        self.dequantized.insert(id, value);
        Ok(value)
    }
}
