//! Quantising weights: integers and one scale per output channel.
//!
//! In: float weights `[K, ...]`. Out: integers in `[-n, n]`, n = 2^(bits-1) - 1, and K positive scales.
//! At 6 bits and fewer the scale of a channel is the one of the smallest squared error among
//! clipping points from 30 % to 100 % of the largest weight; above, the largest weight maps to n.

use hawqc_ir::{Elem, Graph, Op, Tensor, TypeError};
use rayon::prelude::*;

use crate::error::QuantizeError;
use crate::plan::PrecisionPlan;

/// Widths up to this clip the largest weights where that lowers the squared error.
const CLIP_UP_TO_BITS: u8 = 6;

/// Weights as integers. `scales[k] * values[k * row ..][..row]` approximates channel k.
pub(crate) struct QuantizedWeights {
    pub values: Vec<i8>,
    pub scales: Vec<f32>,
    pub bits: u8,
}

impl QuantizedWeights {
    /// Quantises `channels` rows of `wei`.
    ///
    /// `bias_units[k]` is |bias[k]| / s_x, the bias in units of the source's scale. The scale of a channel
    /// is at least `bias_units[k] / 2^29`, so that the bias is an integer of at most 2^29 even where
    /// the weights are zero or nearly so.
    pub fn new(wei: &[f32], bits: u8, bias_units: &[f64]) -> QuantizedWeights {
        let row = wei.len() / bias_units.len();
        let channel = |(wei, units): (&[f32], &f64)| {
            let scale = channel_scale(wei, bits).max((units / MAX_BIAS) as f32).max(f32::MIN_POSITIVE);
            let values: Vec<i8> = wei.iter().map(|&w| round(w, 1.0 / scale, limit(bits)) as i8).collect();
            (scale, values)
        };
        let channels: Vec<(f32, Vec<i8>)> = wei.par_chunks(row).zip(bias_units).map(channel).collect();
        let (scales, values): (Vec<f32>, Vec<Vec<i8>>) = channels.into_iter().unzip();
        QuantizedWeights { values: values.concat(), scales, bits }
    }

    /// The float weights that the integers stand for.
    pub fn dequantized(&self) -> Vec<f32> {
        let row = self.values.len() / self.scales.len();
        self.values.iter().enumerate().map(|(i, &v)| f32::from(v) * self.scales[i / row]).collect()
    }

    pub fn elem(&self) -> Elem {
        if self.bits <= 4 { Elem::I4 } else { Elem::I8 }
    }

    pub fn tensor(&self, shape: &[usize]) -> Result<Tensor, TypeError> {
        Tensor::from_ints(self.elem(), shape, self.values.iter().map(|&v| v.into()))
    }
}

/// Largest bias in integer units: leaves three quarters of i32 to the products.
const MAX_BIAS: f64 = (1u32 << 29) as f64;

/// n of the range `[-n, n]`.
pub(crate) fn limit(bits: u8) -> f32 {
    ((1i32 << (bits - 1)) - 1) as f32
}

/// `w * inverse` (the inverse of the scale) rounded to the nearest integer and limited to `[-limit, limit]`, limit <= 127.
fn round(w: f32, inverse: f32, limit: f32) -> f32 {
    // Added to a small number, 1.5 * 2^23 leaves no bits for its fraction: the addition rounds, ties to even.
    const ROUNDER: f32 = 12_582_912.0;
    ((w * inverse).max(-limit).min(limit) + ROUNDER) - ROUNDER
}

/// The scale of one channel; 1 if all its weights are zero.
fn channel_scale(wei: &[f32], bits: u8) -> f32 {
    let limit = limit(bits);
    let max = wei.iter().fold(0f32, |m, w| m.max(w.abs()));
    if max == 0.0 {
        return 1.0;
    }
    let full = max / limit;
    if bits > CLIP_UP_TO_BITS {
        return full;
    }
    let candidates = (30..100).rev().step_by(2).map(|percent| full * percent as f32 / 100.0);
    let error = |scale: f32| squared_error(wei, scale, limit);
    let start = (full, error(full));
    candidates
        .fold(start, |best, scale| {
            let e = error(scale);
            if e < best.1 { (scale, e) } else { best }
        })
        .0
}

/// In 16 interleaved sums, which the compiler turns into vector arithmetic.
fn squared_error(wei: &[f32], scale: f32, limit: f32) -> f64 {
    let inverse = 1.0 / scale;
    let square = |w: f32| (w - round(w, inverse, limit) * scale).powi(2);
    let (blocks, rest) = wei.as_chunks::<16>();
    let mut sums = [0f32; 16];
    for block in blocks {
        sums.iter_mut().zip(block).for_each(|(sum, &w)| *sum += square(w));
    }
    sums.into_iter().chain(rest.iter().map(|&w| square(w))).map(f64::from).sum()
}

/// ||Q(W) - W||^2 of every layer of the plan, in its order: HAWQ's perturbation, to be weighted by the
/// Hessian's trace.
///
/// # Errors
/// A plan that does not name every convolution of the graph exactly once.
pub fn weight_errors(graph: &Graph, plan: &PrecisionPlan) -> Result<Vec<f64>, QuantizeError> {
    let layers = plan.resolve(graph)?;
    let mut errors = Vec::with_capacity(layers.len());
    for (id, bits) in layers {
        let wei = constant_weights(graph, id)?;
        let channels = graph.ty(id).shape[3];
        let quantized = QuantizedWeights::new(wei, bits.weights, &vec![0.0; channels]).dequantized();
        errors.push(wei.iter().zip(&quantized).map(|(w, q)| f64::from(w - q).powi(2)).sum());
    }
    Ok(errors)
}

/// The weights of a convolution.
pub(crate) fn constant_weights(graph: &Graph, id: hawqc_ir::ValueId) -> Result<&[f32], QuantizeError> {
    let node = graph.name(id);
    let weights = graph.args(id).get(1).and_then(|&w| graph.tensor(w)).and_then(|t| t.f32s().ok());
    let weights = weights.ok_or_else(|| QuantizeError::Unsupported {
        node: node.into(),
        op: graph.op(id).name().into(),
        message: "weights must be float constants".into(),
    })?;
    debug_assert!(matches!(graph.op(id), Op::Conv(_)));
    check_finite(node, "weights", weights)?;
    Ok(weights)
}

pub(crate) fn check_finite(node: &str, operand: &'static str, values: &[f32]) -> Result<(), QuantizeError> {
    match values.iter().find(|v| !v.is_finite()) {
        None => Ok(()),
        Some(&found) => Err(QuantizeError::WeightNotFinite { node: node.into(), operand, found }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fold::fold_batch_norm;
    use crate::test_networks::{random, residual_network};

    #[test]
    fn fewer_bits_cost_more() {
        let graph = fold_batch_norm(&residual_network(1)).unwrap();
        let errors = |bits| weight_errors(&graph, &PrecisionPlan::uniform(&graph, bits, 8).unwrap()).unwrap();
        let (two, four, eight) = (errors(2), errors(4), errors(8));
        assert_eq!(four.len(), 9);
        // First and last stay at 8 bits.
        assert_eq!((two[0], two[8]), (eight[0], eight[8]));
        assert!((1..8).all(|i| two[i] > 2.0 * four[i] && four[i] > 50.0 * eight[i] && eight[i] > 0.0));
    }

    #[test]
    fn clipping_lowers_the_error() {
        let wei: Vec<f32> = random(1, 64).into_iter().map(|v| v.powi(5)).collect();
        let scale = channel_scale(&wei, 4);
        let full = wei.iter().fold(0f32, |m, v| m.max(v.abs())) / 7.0;
        assert!(scale < full && squared_error(&wei, scale, 7.0) < squared_error(&wei, full, 7.0));
    }

    proptest! {
        #[test]
        fn integers_stay_in_range(
            wei in prop::collection::vec(-1e3f32..1e3, 24),
            zero in any::<bool>(),
            bits in 2u8..=8,
            units in prop::collection::vec(0f64..1e15, 4),
        ) {
            let mut wei = wei;
            if zero {
                wei[..6].fill(0.0);
            }
            let quantized = QuantizedWeights::new(&wei, bits, &units);
            let n = limit(bits) as i8;
            prop_assert!(quantized.values.iter().all(|v| (-n..=n).contains(v)));
            for (k, &scale) in quantized.scales.iter().enumerate() {
                prop_assert!(scale > 0.0 && units[k] / f64::from(scale) <= 1.001 * MAX_BIAS);
                if bits > CLIP_UP_TO_BITS {
                    let error = |i: usize| (wei[i] - quantized.dequantized()[i]).abs();
                    prop_assert!((k * 6..k * 6 + 6).all(|i| error(i) <= 0.501 * scale));
                }
            }
        }
    }
}
