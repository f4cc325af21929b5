//! Convolutions: weights and bias become constants of the accumulator's scale.

use hawqc_ir::{Conv, Elem, Tensor, ValueId};

use super::error::Obstacle;
use super::scaled::{Scale, Sum, Term};
use super::{Form, Lowering, describe_all};

/// Constant weights `[K, ..]`, zero point 0.
struct Weights {
    value: ValueId,
    /// Per output channel: sum of the weights and sum of their magnitudes.
    sums: Vec<(i64, i64)>,
    scale: Scale,
}

impl Lowering<'_> {
    /// `bias[k] + sum (x - zx) sx * w sw[k]` is `(bias' + sum x w) * sx sw[k]` with
    /// `bias' = bias / (sx sw[k]) - zx * sum w`, where the padding reads `zx`.
    pub(super) fn conv(&mut self, id: ValueId, conv: &Conv, args: &[Form]) -> Result<Form, Obstacle> {
        let (src, wei, bias) = match args {
            [src, wei] => (src, wei, None),
            [src, wei, bias] => (src, wei, Some(bias)),
            _ => return Err(Obstacle::new(describe_all(args), "a source, weights and at most a bias")),
        };
        let (src, src_scale) = self.conv_source(id, src)?;
        let wei = self.conv_weights(wei)?;
        let channels = self.old.ty(id).shape.last().copied().unwrap_or(1);
        let scale = Scale::along(4, 3, (0..channels).map(|k| src_scale * wei.scale.at(k)).collect());
        let bias = match bias {
            Some(bias) => self.conv_bias(bias, &scale, channels)?,
            None => vec![0; channels],
        };
        let zero = i64::from(src.zero);
        let folded: Vec<i64> = bias.iter().zip(&wei.sums).map(|(b, (sum, _))| b - zero * sum).collect();
        let magnitude = self.new.ty(src.value).int_range()?.magnitude().max(zero.abs());
        check_accumulators(&folded, &wei.sums, magnitude)?;

        let mut operands = vec![src.value, wei.value];
        if args.len() == 3 || folded.iter().any(|&b| b != 0) {
            operands.push(self.new.constant(Tensor::from_ints(Elem::I32, [channels], folded)?));
        }
        // Without padding nothing reads the value; 0 keeps equal convolutions equal.
        let pad_value = if conv.pad == [0; 4] { 0 } else { src.zero };
        let value = self.emit(self.old.name(id), Conv { pad_value, ..conv.clone() }, &operands)?;
        Ok(Form::Sum(Sum::of(Term { value, zero: 0, scale })))
    }

    fn conv_source(&mut self, id: ValueId, src: &Form) -> Result<(Term, f64), Obstacle> {
        const NEEDED: &str = "a source of at most 8 bits with one scale: a quantize and dequantize before";
        let Form::Sum(sum) = src else {
            return Err(Obstacle::new(format!("{} as source", src.describe()), NEEDED));
        };
        let sum = self.settled(self.old.name(id), sum)?;
        let term = sum.single()?;
        let elem = self.new.ty(term.value).elem;
        if elem.bits() > 8 {
            return Err(Obstacle::new(format!("{elem} as source"), NEEDED));
        }
        match term.scale.as_uniform() {
            Some(scale) => Ok((term.clone(), scale)),
            None => Err(Obstacle::new("a source whose scale differs per channel or pixel", NEEDED)),
        }
    }

    fn conv_weights(&mut self, wei: &Form) -> Result<Weights, Obstacle> {
        const NEEDED: &str = "constant integer weights under a dequantize, one scale or one per output channel";
        let Form::Sum(sum) = wei else {
            return Err(Obstacle::new(format!("{} as weights", wei.describe()), NEEDED));
        };
        let term = sum.single()?;
        let Some(tensor) = self.new.tensor(term.value) else {
            return Err(Obstacle::new("weights computed at run time", NEEDED));
        };
        if sum.limit != super::scaled::Limit::NONE {
            return Err(Obstacle::new("weights under a clamp", NEEDED));
        }
        if tensor.elem().bits() > 16 {
            return Err(Obstacle::new(format!("{} weights", tensor.elem()), "weights of at most 16 bits"));
        }
        if term.scale.axis().is_some_and(|a| a != 0) || term.scale.axis().is_none() && term.scale.as_uniform().is_none()
        {
            return Err(Obstacle::new("weight scales that differ along another axis", NEEDED));
        }
        let row = tensor.len() / tensor.shape().first().copied().unwrap_or(1);
        let sums = |row: &[i64]| (row.iter().sum(), row.iter().map(|w| w.abs()).sum());
        let sums = tensor.ints()?.chunks(row).map(sums).collect();
        Ok(Weights { value: term.value, sums, scale: term.scale.clone() })
    }

    /// The bias in units of the accumulator: as it is if it was quantised so, else rounded.
    fn conv_bias(&self, bias: &Form, scale: &Scale, channels: usize) -> Result<Vec<i64>, Obstacle> {
        const NEEDED: &str = "a constant bias, float or integers under a dequantize";
        match bias {
            Form::Const(tensor) => {
                let values = tensor.f32s()?;
                values.iter().enumerate().map(|(k, &b)| rounded_bias(b.into(), scale.at(k), k)).collect()
            }
            Form::Sum(sum) => {
                let term = sum.single()?;
                let tensor = self.new.tensor(term.value).ok_or_else(|| Obstacle::new("a computed bias", NEEDED))?;
                let ratio = |k: usize| term.scale.at(k) / scale.at(k);
                let ints = tensor.ints()?;
                // A scale stored as f32 differs from the exact product by a rounding of 2^-24.
                if (0..channels).all(|k| (ratio(k) - 1.0).abs() < 1e-6) {
                    return Ok(ints);
                }
                ints.iter().enumerate().map(|(k, &b)| rounded_bias(b as f64 * ratio(k), 1.0, k)).collect()
            }
            other => Err(Obstacle::new(format!("{} as bias", other.describe()), NEEDED)),
        }
    }
}

fn rounded_bias(bias: f64, scale: f64, channel: usize) -> Result<i64, Obstacle> {
    let rounded = (bias / scale).round_ties_even();
    if rounded.abs() <= f64::from(i32::MAX) {
        return Ok(rounded as i64);
    }
    Err(Obstacle::new(
        format!("a bias of {rounded} units of the accumulator ({scale:e}) in output channel {channel}"),
        "a bias that fits i32: larger weight or source scales",
    ))
}

/// `sum |w| * max|x| + |bias| < 2^31` in every output channel.
fn check_accumulators(bias: &[i64], sums: &[(i64, i64)], magnitude: i64) -> Result<(), Obstacle> {
    let bounds = bias.iter().zip(sums).map(|(b, (_, total))| total.saturating_mul(magnitude).saturating_add(b.abs()));
    match bounds.enumerate().find(|&(_, bound)| bound > i32::MAX.into()) {
        None => Ok(()),
        Some((channel, bound)) => Err(Obstacle::new(
            format!("an accumulator that may reach {bound} in output channel {channel}"),
            "at most 2^31 - 1: fewer bits for source or weights, or fewer input channels",
        )),
    }
}
