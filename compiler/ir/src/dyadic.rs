//! Dyadic numbers m / 2^e and the one definition of requantisation (HAWQ-V3, section 3.1).

use std::fmt;
use std::str::FromStr;

/// How the bits shifted out are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rounding {
    /// Nearest, ties towards +infinity. The default.
    HalfUp,
    /// Nearest, ties to even.
    HalfEven,
    /// Nearest, ties away from zero.
    HalfAway,
    /// Towards -infinity.
    Floor,
}

impl Rounding {
    pub const ALL: [Rounding; 4] = [Rounding::HalfUp, Rounding::HalfEven, Rounding::HalfAway, Rounding::Floor];

    fn name(self) -> &'static str {
        match self {
            Rounding::HalfUp => "half_up",
            Rounding::HalfEven => "half_even",
            Rounding::HalfAway => "half_away",
            Rounding::Floor => "floor",
        }
    }
}

impl fmt::Display for Rounding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Rounding {
    type Err = String;
    fn from_str(s: &str) -> Result<Rounding, String> {
        Rounding::ALL.into_iter().find(|r| r.name() == s).ok_or_else(|| format!("`{s}` is not a rounding"))
    }
}

/// `value / 2^shift`, rounded. Exact for |value| <= 2^62 and shift in 1..=62.
pub fn round_shift(value: i64, shift: u32, rounding: Rounding) -> i64 {
    let floor = value >> shift;
    let half = 1i64 << (shift - 1);
    match rounding {
        Rounding::Floor => floor,
        // |value| + 2^61 < 2^63, so the sum cannot overflow.
        Rounding::HalfUp => (value + half) >> shift,
        Rounding::HalfEven | Rounding::HalfAway => {
            let remainder = value - (floor << shift);
            let up = match remainder.cmp(&half) {
                std::cmp::Ordering::Less => false,
                std::cmp::Ordering::Greater => true,
                // A tie: floor is below the value, floor + 1 above it.
                std::cmp::Ordering::Equal if rounding == Rounding::HalfEven => floor & 1 == 1,
                std::cmp::Ordering::Equal => value >= 0,
            };
            floor + i64::from(up)
        }
    }
}

/// A non-negative real held as `mult / 2^shift`, mult in [2^30, 2^31) or 0, shift in 1..=62.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dyadic {
    pub mult: i32,
    pub shift: u8,
}

impl Dyadic {
    pub const MAX_SHIFT: u8 = 62;
    /// So that the product with a value of 16 bits is one of 32.
    pub const SHORT_BITS: u32 = 15;
    /// Exactly one: requantising by it leaves every i32 as it is, under every rounding.
    pub const ONE: Dyadic = Dyadic { mult: 1 << 30, shift: 30 };

    /// The dyadic nearest to `scale`: m = floor(f * 2^31 + 0.5), e = 31 - x with (f, x) = frexp(scale).
    ///
    /// A scale too small for a shift of 62 becomes 0. `None` if `scale` is negative, not finite, or
    /// 2^30 and more (no shift of at least 1 is left).
    pub fn from_real(scale: f64) -> Option<Dyadic> {
        Dyadic::of_bits(scale, 31)
    }

    /// The same with m of [`Dyadic::SHORT_BITS`] bits, followed by zeros.
    pub fn short(scale: f64) -> Option<Dyadic> {
        Dyadic::of_bits(scale, Dyadic::SHORT_BITS)
    }

    fn of_bits(scale: f64, bits: u32) -> Option<Dyadic> {
        if !scale.is_finite() || scale < 0.0 {
            return None;
        }
        let (fraction, exponent) = frexp(scale);
        let mut mult = ((fraction * (1u64 << bits) as f64 + 0.5).floor() as i64) << (31 - bits);
        let mut shift = 31 - exponent;
        if mult == 1 << 31 {
            mult = 1 << 30;
            shift -= 1;
        }
        if mult == 0 || shift > i32::from(Dyadic::MAX_SHIFT) {
            return Some(Dyadic { mult: 0, shift: Dyadic::MAX_SHIFT });
        }
        let shift = u8::try_from(shift).ok().filter(|&s| s >= 1)?;
        Some(Dyadic { mult: i32::try_from(mult).ok()?, shift })
    }

    pub fn to_real(self) -> f64 {
        f64::from(self.mult) / (1u64 << self.shift) as f64
    }

    /// `round(value * mult / 2^shift)`. `value` must fit in 32 bits signed plus one
    /// (|value| < 2^32), so that the product stays below 2^63 with room for the rounding term.
    pub fn apply(self, value: i64, rounding: Rounding) -> i64 {
        // |value| <= 2^31 and mult < 2^31 give |product| <= 2^62.
        round_shift(value * i64::from(self.mult), u32::from(self.shift), rounding)
    }
}

/// `(f, x)` with `value = f * 2^x` and f in [0.5, 1); `(0, 0)` for zero. `value` finite, >= 0.
fn frexp(value: f64) -> (f64, i32) {
    if value == 0.0 {
        return (0.0, 0);
    }
    // Subnormals are brought into the normal range first.
    let (value, bias) = if value < f64::MIN_POSITIVE { (value * 2f64.powi(64), 64) } else { (value, 0) };
    let bits = value.to_bits();
    let exponent = ((bits >> 52) & 0x7ff) as i32 - 1022;
    let fraction = f64::from_bits((bits & !(0x7ff << 52)) | (1022 << 52));
    (fraction, exponent - bias)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_values() {
        assert_eq!(Dyadic::from_real(1.0), Some(Dyadic::ONE));
        assert_eq!(Dyadic::from_real(0.5), Some(Dyadic { mult: 1 << 30, shift: 31 }));
        assert_eq!(Dyadic::from_real(0.0), Some(Dyadic { mult: 0, shift: 62 }));
        assert_eq!(Dyadic::from_real(1e-300), Some(Dyadic { mult: 0, shift: 62 }));
        // Just below a power of two, the mantissa rounds up to 2^31 and renormalises.
        assert_eq!(Dyadic::from_real(1.0 - 1e-15), Some(Dyadic::ONE));
        assert_eq!(Dyadic::from_real(f64::NAN), None);
        assert_eq!(Dyadic::from_real(-1.0), None);
        assert_eq!(Dyadic::from_real(1e12), None);
    }

    #[test]
    fn short_ones() {
        assert_eq!(Dyadic::short(0.5), Dyadic::from_real(0.5));
        assert_eq!(Dyadic::short(1.0 - 1e-9), Some(Dyadic::ONE));
        let short = Dyadic::short(1.0 / 3.0).unwrap();
        assert_eq!((short.mult, short.shift), (21845 << 16, 32));
    }

    #[test]
    fn ties() {
        let half = Dyadic::from_real(0.5).unwrap();
        let at = |v, r| half.apply(v, r);
        assert_eq!([3, -3, 1, -1].map(|v| at(v, Rounding::HalfUp)), [2, -1, 1, 0]);
        assert_eq!([3, -3, 1, -1].map(|v| at(v, Rounding::HalfEven)), [2, -2, 0, 0]);
        assert_eq!([3, -3, 1, -1].map(|v| at(v, Rounding::HalfAway)), [2, -2, 1, -1]);
        assert_eq!([3, -3, 1, -1].map(|v| at(v, Rounding::Floor)), [1, -2, 0, -1]);
    }

    proptest! {
        #[test]
        fn one_is_identity(v in any::<i32>()) {
            for r in Rounding::ALL {
                prop_assert_eq!(Dyadic::ONE.apply(v.into(), r), i64::from(v));
            }
        }

        #[test]
        fn matches_wide_arithmetic(v in any::<i32>(), scale in 1e-12f64..1e6) {
            let d = Dyadic::from_real(scale).unwrap();
            prop_assert!((d.to_real() / scale - 1.0).abs() <= 2f64.powi(-31));
            let wide = i128::from(v) * i128::from(d.mult);
            let expected = (wide + (1i128 << (d.shift - 1))) >> d.shift;
            prop_assert_eq!(i128::from(d.apply(v.into(), Rounding::HalfUp)), expected);
        }
    }
}
