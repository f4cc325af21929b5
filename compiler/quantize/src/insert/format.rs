//! Integer formats of activations: range, element and scale. The zero point is always 0.

use hawqc_ir::Elem;

use crate::calibrate::{Method, Statistics};

/// How an activation is held in integers: `real = scale * integer`, integer in `[lo, hi]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Format {
    pub scale: f32,
    pub lo: i64,
    pub hi: i64,
    pub elem: Elem,
    pub bits: u8,
}

/// Statistics and what is known without them.
pub(super) struct Span<'a> {
    pub statistics: &'a Statistics,
    /// No value is negative, whatever the input.
    pub non_negative: bool,
    /// No value is larger, whatever the input.
    pub upper: f32,
}

impl Format {
    /// Up to 8 bits: `[0, 2^b - 1]` for values that are never negative, else `[-2^(b-1), 2^(b-1) - 1]`,
    /// the largest integer standing for the clipping point.
    ///
    /// 16 bits: i16 and, whatever the method, twice the largest magnitude seen: resolution is
    /// plentiful, and inputs other than the calibration's may reach farther.
    pub fn new(span: &Span, bits: u8, method: Method) -> Format {
        let signed_bits = if span.non_negative && bits < 16 { bits } else { bits - 1 };
        let hi = (1i64 << signed_bits) - 1;
        let lo = if span.non_negative { 0 } else { -hi - 1 };
        let point = if bits < 16 {
            span.statistics.clipping_point(method, lo, hi)
        } else {
            2.0 * span.statistics.clipping_point(Method::MinMax, lo, hi)
        };
        // Negative values reach as far as they were seen to, whatever the bound above.
        let limit = if span.non_negative { span.upper } else { f32::INFINITY };
        let elem = match (bits, span.non_negative) {
            (..=4, true) => Elem::U4,
            (..=4, false) => Elem::I4,
            (..=8, true) => Elem::U8,
            (..=8, false) => Elem::I8,
            _ => Elem::I16,
        };
        Format { scale: point.min(limit) / hi as f32, lo, hi, elem, bits }
    }
}
