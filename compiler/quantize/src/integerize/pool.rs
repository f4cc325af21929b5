//! Pooling: a maximum of the integers themselves, a mean as sum with a divided scale.

use hawqc_ir::{AvgPool, SumPool, ValueId};

use super::error::Obstacle;
use super::scaled::{Scale, Sum, Term};
use super::{Form, Lowering, describe_all};

const NEEDED: &str = "one quantised operand: a quantize and dequantize before the pooling";

fn operand(args: &[Form]) -> Result<&Sum, Obstacle> {
    match args {
        [Form::Sum(sum)] => Ok(sum),
        _ => Err(Obstacle::new(describe_all(args), NEEDED)),
    }
}

impl Lowering<'_> {
    /// The maximum commutes with the scale, which is positive and the same within a channel, and
    /// with the limit, which is monotone.
    pub(super) fn max_pool(&mut self, id: ValueId, args: &[Form]) -> Result<Form, Obstacle> {
        let sum = operand(args)?;
        let term = sum.single()?;
        if !term.scale.is_per_channel() {
            return Err(Obstacle::new("a scale that differs per pixel", NEEDED));
        }
        let value = self.emit(self.old.name(id), self.old.op(id).clone(), &[term.value])?;
        Ok(Form::Sum(Sum { terms: vec![Term { value, ..term.clone() }], limit: sum.limit }))
    }

    /// The mean is the sum less zero points at the scale divided by the number of taps, which
    /// depends on the pixel where only taps in the image count.
    pub(super) fn avg_pool(&mut self, id: ValueId, pool: &AvgPool, args: &[Form]) -> Result<Form, Obstacle> {
        let sum = self.settled(self.old.name(id), operand(args)?)?;
        let term = sum.single()?;
        let [_, h, w, _] = self.new.ty(term.value).nhwc()?;
        let [_, oh, ow, _] = self.old.ty(id).nhwc()?;
        let divisors = (0..oh * ow).map(|i| pool.divisor([h, w], (i / ow, i % ow)) as f64).collect();
        let divisors = Scale::per_pixel([oh, ow], divisors);
        let scale = match term.scale.is_per_channel().then(|| term.scale.ratio(&divisors)).flatten() {
            Some(scale) => scale,
            None => return Err(Obstacle::new("a scale that differs per channel or pixel", NEEDED)),
        };
        let sum_pool = SumPool { kernel: pool.kernel, stride: pool.stride, pad: pool.pad, zero: term.zero };
        let value = self.emit(self.old.name(id), sum_pool, &[term.value])?;
        Ok(Form::Sum(Sum::of(Term { value, zero: 0, scale })))
    }
}
