//! The exponential that compiled code reproduces bit for bit.

/// `e^x` for x <= 0, to about 1 ulp.
///
/// Range reduction x = n ln 2 + r (Cody and Waite, ln 2 in two parts), then the polynomial of degree 6 of
/// Cephes' `expf`, then scaling by 2^n through the exponent bits. Below -87 the result is 0.
/// No fused multiply-add.
pub fn exp(x: f32) -> f32 {
    if x < MIN {
        return 0.0;
    }
    let n = (x * LOG2_E).round_ties_even();
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = POLY[0];
    for &c in &POLY[1..] {
        p = p * r + c;
    }
    let y = (p * (r * r) + r) + 1.0;
    y * f32::from_bits(((n as i32 + 127) as u32) << 23)
}

/// Below this the result is 0.
pub const MIN: f32 = -87.0;
pub const LOG2_E: f32 = std::f32::consts::LOG2_E;
pub const LN2_HIGH: f32 = 0.693_359_4;
pub const LN2_LOW: f32 = -2.121_944_4e-4;
/// Highest power first.
pub const POLY: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn exponential_is_accurate() {
        for i in 0..=8700 {
            let x = -(i as f32) / 100.0;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 2.5e-7, "exp({x}) is off by {error}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-1000.0), 0.0);
    }
}
