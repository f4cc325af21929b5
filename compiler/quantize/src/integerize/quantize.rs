//! `dequantize` opens a sum of scaled integers; `quantize` resolves one into requantisations.

use std::sync::Arc;

use hawqc_ir::{
    Add, Clamp, Concat, Dequantize, Dyadic, Elem, Op, Quantize, Range, Requant, Tensor, TypeError, ValueId,
};

use super::error::Obstacle;
use super::scaled::{Limit, Scale, Sum, Term};
use super::{Form, Lowering, describe_all};

/// The parameters of a `quantize` or `dequantize`, of one length: 1, or that of the axis.
struct Parameters {
    scales: Vec<f32>,
    zeros: Vec<i64>,
}

impl Parameters {
    fn read(scale: &Form, zero: &Form) -> Result<Parameters, Obstacle> {
        let (Form::Const(scale), Form::Const(zero)) = (scale, zero) else {
            return Err(Obstacle::new("a scale or zero point computed at run time", "constant scale and zero point"));
        };
        let (scales, zeros) = (scale.f32s()?.to_vec(), zero.ints()?);
        match scales.iter().find(|s| !(s.is_normal() && **s > 0.0)) {
            Some(bad) => Err(Obstacle::new(format!("scale {bad}"), "positive, normal, finite scales")),
            None => Ok(Parameters { scales, zeros }),
        }
    }

    /// The zero point shared by all.
    fn zero(&self) -> Result<i32, Obstacle> {
        match self.zeros.as_slice() {
            [first, rest @ ..] if rest.iter().all(|z| z == first) => {
                i32::try_from(*first).map_err(|_| Obstacle::new(format!("zero point {first}"), "an i32 zero point"))
            }
            _ => Err(Obstacle::new(
                "zero points that differ per channel",
                "one zero point (only constants may have several)",
            )),
        }
    }

    fn scale(&self, rank: usize, axis: usize) -> Scale {
        Scale::along(rank, axis, self.scales.iter().map(|&s| s.into()).collect())
    }
}

/// What a `quantize` asks for.
struct Target {
    parameters: Parameters,
    scale: Scale,
    zero: i32,
    range: Range,
    elem: Elem,
}

impl Target {
    /// The integers between the images of the limit's bounds. Quantisation is monotone, so that
    /// clamping the result to them is the same as limiting the source.
    fn limited(&self, limit: Limit) -> Result<Range, Obstacle> {
        Ok(Range::new(self.image(limit.lo)?, self.image(limit.hi)?))
    }

    /// The quantised value of a real, as the `quantize` operator defines it.
    fn image(&self, bound: f32) -> Result<i64, Obstacle> {
        let zero = i64::from(self.zero);
        let (lo, hi) = ((self.range.lo - zero) as f64, (self.range.hi - zero) as f64);
        let images = self.parameters.scales.iter().map(|s| {
            let rounded = f64::from((bound / s).round_ties_even());
            rounded.clamp(lo, hi) as i64 + zero
        });
        let images: Vec<i64> = images.collect();
        match images.as_slice() {
            [first, rest @ ..] if rest.iter().all(|i| i == first) => Ok(*first),
            _ => Err(Obstacle::new(
                format!("the bound {bound} under scales that differ per channel"),
                "bounds 0 or infinite, or one scale",
            )),
        }
    }
}

impl Lowering<'_> {
    pub(super) fn dequantize(&mut self, id: ValueId, op: &Dequantize, args: &[Form]) -> Result<Form, Obstacle> {
        let [src, scale, zero] = args else {
            return Err(Obstacle::new(describe_all(args), "a source, a scale and a zero point"));
        };
        let parameters = Parameters::read(scale, zero)?;
        let scale = parameters.scale(self.old.ty(id).rank(), op.axis);
        let term = match src {
            Form::Const(tensor) => {
                let value = self.new.constant(without_zero(tensor, &parameters.zeros, op.axis)?);
                Term { value, zero: 0, scale }
            }
            Form::Int(value) => Term { value: *value, zero: parameters.zero()?, scale },
            other => return Err(Obstacle::new(other.describe(), "integers")),
        };
        Ok(Form::Sum(Sum::of(term)))
    }

    pub(super) fn quantize(&mut self, id: ValueId, op: &Quantize, args: &[Form]) -> Result<Form, Obstacle> {
        let [src, scale, zero] = args else {
            return Err(Obstacle::new(describe_all(args), "a source, a scale and a zero point"));
        };
        let parameters = Parameters::read(scale, zero)?;
        let target = Target {
            scale: parameters.scale(self.old.ty(id).rank(), op.axis),
            zero: parameters.zero()?,
            range: Range::new(op.lo, op.hi),
            elem: op.elem,
            parameters,
        };
        let value = match src {
            Form::Before(src) => {
                let placed: Vec<ValueId> = args[1..].iter().filter_map(|a| self.place(a)).collect();
                let args = [&[*src], placed.as_slice()].concat();
                self.emit(self.old.name(id), op.clone(), &args)?
            }
            Form::Sum(sum) => self.requantize(id, sum, &target)?,
            Form::Concat { axis, parts } => {
                if target.scale.as_uniform().is_none() {
                    return Err(Obstacle::new("a concatenation quantised per channel", "one scale"));
                }
                let mut values = Vec::new();
                for part in parts {
                    values.push(self.requantize(id, part, &target)?);
                }
                self.emit(self.old.name(id), Concat { axis: *axis }, &values)?
            }
            other => return Err(Obstacle::new(other.describe(), "quantised values, or the model's input")),
        };
        Ok(Form::Int(value))
    }

    /// The integers nearest to a sum, in the target's parameters.
    fn requantize(&mut self, id: ValueId, sum: &Sum, target: &Target) -> Result<ValueId, Obstacle> {
        let name = self.old.name(id);
        let range = target.limited(sum.limit)?;
        if let [term] = sum.terms.as_slice() {
            let ty = self.new.ty(term.value);
            let same = term.scale == target.scale && term.zero == target.zero && ty.elem == target.elem;
            if same && range.contains(ty.int_range()?) {
                return Ok(term.value);
            }
            // Of a factor to few bits the last 16 bits would hardly tell.
            let is_short = ty.elem == Elem::I16 && target.elem.bytes() == 1;
            let dyadics =
                self.dyadics(term, &target.scale, if is_short { Dyadic::short } else { Dyadic::from_real })?;
            let op = self.requant(term, target.zero, range, target.elem);
            return self.emit_requant(name, op, term.value, &dyadics);
        }
        // Every branch within these bounds, so that the sum of all stays within i32.
        let bound = i64::from(i32::MAX) / sum.terms.len() as i64;
        let mut total: Option<ValueId> = None;
        for term in &sum.terms {
            let zero = if total.is_none() { target.zero } else { 0 };
            let branch = self.branch(term, target, zero, Range::new(-bound, bound))?;
            total = Some(match total {
                None => branch,
                Some(total) => self.emit(name, Add {}, &[total, branch])?,
            });
        }
        let total = total.ok_or_else(|| Obstacle::new("an empty sum", "at least one term"))?;
        Ok(self.emit(name, Clamp { lo: range.lo, hi: range.hi, elem: target.elem }, &[total])?)
    }

    /// A term in the target's scale, with this zero point and within these bounds; itself if it is so already.
    fn branch(&mut self, term: &Term, target: &Target, zero: i32, bounds: Range) -> Result<ValueId, Obstacle> {
        let range = self.new.ty(term.value).int_range()?;
        if term.scale == target.scale && term.zero == zero && bounds.contains(range) {
            return Ok(term.value);
        }
        let dyadics = self.dyadics(term, &target.scale, Dyadic::from_real)?;
        let mut op = self.requant(term, zero, Range::new(i64::MIN, i64::MAX), Elem::I32);
        let image = dyadics.image(&op, range).clamped(bounds.lo, bounds.hi);
        (op.lo, op.hi) = (image.lo, image.hi);
        let source = self.new.name(term.value).to_string();
        self.emit_requant(&source, op, term.value, &dyadics)
    }

    /// The ratio of scales as dyadic numbers, each by `nearest`.
    fn dyadics(&self, term: &Term, dst: &Scale, nearest: fn(f64) -> Option<Dyadic>) -> Result<Dyadics, Obstacle> {
        let ratio = term
            .scale
            .ratio(dst)
            .ok_or_else(|| Obstacle::new("source and result scaled along different axes", "a common axis of scales"))?;
        let (shape, ratios) = ratio.for_requant(&self.new.ty(term.value).shape).ok_or_else(|| {
            Obstacle::new("scales that differ along other axes than the channels", "one scale, or one per channel")
        })?;
        let dyadic = |&r: &f64| {
            let obstacle = || Obstacle::new(format!("a scale ratio of {r}"), "a positive ratio below 2^30");
            nearest(r).ok_or_else(obstacle)
        };
        Ok(Dyadics { shape, values: ratios.iter().map(dyadic).collect::<Result<_, _>>()? })
    }

    fn requant(&self, term: &Term, dst_zero: i32, range: Range, elem: Elem) -> Requant {
        Requant { src_zero: term.zero, dst_zero, lo: range.lo, hi: range.hi, round: self.rounding, elem }
    }

    fn emit_requant(&mut self, name: &str, op: Requant, src: ValueId, dyadics: &Dyadics) -> Result<ValueId, Obstacle> {
        let (mult, shift) = dyadics.tensors()?;
        let (mult, shift) = (self.new.constant(mult), self.new.constant(shift));
        Ok(self.emit(name, op, &[src, mult, shift])?)
    }

    /// The sum with its limit applied to the integers, at the nearest integers to its bounds.
    pub(super) fn settled(&mut self, name: &str, sum: &Sum) -> Result<Sum, Obstacle> {
        if sum.limit == Limit::NONE {
            return Ok(sum.clone());
        }
        let term = sum.single()?;
        let ty = self.new.ty(term.value).clone();
        let range = ty.int_range()?;
        let lo = integer_bound(term, sum.limit.lo)?.unwrap_or(range.lo);
        let hi = integer_bound(term, sum.limit.hi)?.unwrap_or(range.hi);
        // An infinite bound gives way to a finite one on the other side.
        let (lo, hi) = if sum.limit.lo.is_finite() { (lo, hi.max(lo)) } else { (lo.min(hi), hi) };
        if lo <= range.lo && range.hi <= hi {
            return Ok(Sum::of(term.clone()));
        }
        let elem = match ty.elem.range() {
            Some(full) if full.contains(range.clamped(lo, hi)) => ty.elem,
            _ => Elem::I32,
        };
        let value = self.emit(name, Op::Clamp(Clamp { lo, hi, elem }), &[term.value])?;
        Ok(Sum::of(Term { value, ..term.clone() }))
    }
}

/// The integer nearest to a real bound; `None` for an infinite one.
fn integer_bound(term: &Term, bound: f32) -> Result<Option<i64>, Obstacle> {
    let nearest = if !bound.is_finite() {
        return Ok(None);
    } else if bound == 0.0 {
        0.0
    } else if let Some(scale) = term.scale.as_uniform() {
        (f64::from(bound) / scale).round_ties_even()
    } else {
        return Err(Obstacle::new(
            format!("the bound {bound} on values whose scale differs per channel"),
            "a quantize and dequantize after the activation",
        ));
    };
    // The cast saturates; the second limit leaves room for the zero point.
    let nearest = (nearest as i64).clamp(i32::MIN.into(), i32::MAX.into());
    Ok(Some((nearest + i64::from(term.zero)).clamp(i32::MIN.into(), i32::MAX.into())))
}

/// A constant less its zero points, in the narrowest signed element at least as wide as its own;
/// unsigned elements become signed ones, of the same width where the values fit.
fn without_zero(tensor: &Arc<Tensor>, zeros: &[i64], axis: usize) -> Result<Arc<Tensor>, TypeError> {
    if tensor.elem().is_signed() && zeros.iter().all(|&z| z == 0) {
        return Ok(Arc::clone(tensor));
    }
    let inner: usize = tensor.shape().iter().skip(axis + 1).product();
    let zero = |i: usize| zeros[i / inner % zeros.len()];
    let values: Vec<i64> = tensor.ints()?.into_iter().enumerate().map(|(i, v)| v - zero(i)).collect();
    let (lo, hi) = values.iter().fold((0, 0), |(lo, hi), &v| (v.min(lo), v.max(hi)));
    let fits =
        |e: &Elem| e.bits() >= tensor.elem().bits() && e.range().is_some_and(|full| full.contains(Range::new(lo, hi)));
    let elem = [Elem::I4, Elem::I8, Elem::I16, Elem::I32].into_iter().find(fits);
    let elem = elem.ok_or_else(|| TypeError::new(format!("values less zero points reach [{lo}, {hi}], beyond i32")))?;
    Ok(Arc::new(Tensor::from_ints(elem, tensor.shape(), values)?))
}

/// Multipliers and shifts with the shape in which they broadcast.
struct Dyadics {
    shape: Vec<usize>,
    values: Vec<Dyadic>,
}

impl Dyadics {
    fn tensors(&self) -> Result<(Tensor, Tensor), TypeError> {
        let mult = self.values.iter().map(|d| d.mult.into());
        let shift = self.values.iter().map(|d| d.shift.into());
        Ok((
            Tensor::from_ints(Elem::I32, self.shape.clone(), mult)?,
            Tensor::from_ints(Elem::U8, self.shape.clone(), shift)?,
        ))
    }

    /// The values that requantising a range can give; a requant is monotone.
    fn image(&self, op: &Requant, range: Range) -> Range {
        let at = |v| self.values.iter().map(move |&d| op.apply(v, d));
        Range::new(at(range.lo).min().unwrap_or(op.lo), at(range.hi).max().unwrap_or(op.hi))
    }
}
