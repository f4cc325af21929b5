//! One-dimensional transforms by Cook-Toom, in integers.
//!
//! With points `(a_i : b_i)`, `i < n`, a polynomial S of degree `n - 1`, homogenised, is
//! `S(x, z) = sum_i S(a_i, b_i) N_i(x, z) / e_i`, where `N_i = prod_{j != i} (b_j x - a_j z)` and
//! `e_i = N_i(a_i, b_i)`. Taking S as the product of polynomials with `m` and `r` coefficients, and
//! transposing, gives for the filter `y_k = sum_j w_j x_{k+j}`:
//!
//! `y_k = sum_i (1 / e_i) * V_m[i][k] * (V_r[i] . w) * (N_i . x)`,
//!
//! where `V_d[i] = (b^(d-1), a b^(d-2), .., a^(d-1))` and `N_i` stands for its coefficients. Every row
//! is primitive as it stands, so inputs and weights grow as little as the points allow, and the least
//! common multiple of the `e_i` is the least divisor that keeps `at` integral.

use std::sync::OnceLock;

use super::matrix::{Matrix, gcd, lcm};
use super::program::Program;

/// Most multiplications of a one-dimensional transform.
pub const MAX_N: usize = 8;

/// A point of the projective line, `a / b` in lowest terms; infinity is `1 / 0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Point {
    a: i64,
    b: i64,
}

/// The points that transforms are made of by default.
pub const POINTS: [Point; MAX_N] = [
    Point { a: 0, b: 1 },
    Point { a: 1, b: 1 },
    Point { a: -1, b: 1 },
    Point { a: 2, b: 1 },
    Point { a: -2, b: 1 },
    Point { a: 1, b: 2 },
    Point { a: -1, b: 2 },
    Point { a: 1, b: 0 },
];

impl Point {
    /// `a / b`, infinity for `b = 0`; both at most 8 in magnitude.
    pub fn new(a: i64, b: i64) -> Option<Point> {
        let common = gcd(a, b);
        let small = (-8..=8).contains(&a) && (-8..=8).contains(&b);
        let sign = if b < 0 || (b == 0 && a < 0) { -1 } else { 1 };
        (common != 0 && small).then(|| Point { a: a / common * sign, b: b / common * sign })
    }

    /// `b^(len-1), a b^(len-2), .., a^(len-1)`.
    fn powers(self, len: usize) -> impl Fn(usize) -> i64 {
        move |k| power(self.a, k) * power(self.b, len - 1 - k)
    }

    /// The factor that vanishes at `other`, taken at this point.
    fn minus(self, other: Point) -> i64 {
        other.b * self.a - other.a * self.b
    }
}

fn power(base: i64, exponent: usize) -> i64 {
    (0..exponent).fold(1, |acc, _| acc * base)
}

/// `at * ((g w) .* (bt x)) = divisor * y` with `y_i = sum_k w_k x_{i+k}`, for all `w` and `x`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Transform1d {
    /// Outputs.
    pub m: usize,
    /// Taps.
    pub r: usize,
    /// Inputs and multiplications: `m + r - 1`.
    pub n: usize,
    /// `n` by `n`, of inputs.
    pub bt: Matrix,
    /// `n` by `r`, of weights.
    pub g: Matrix,
    /// `m` by `n`, of products.
    pub at: Matrix,
    pub divisor: u64,
}

impl Transform1d {
    /// The transform with `m + r - 1` given points, all different; `None` for other points.
    pub fn derive(m: usize, r: usize, points: &[Point]) -> Option<Transform1d> {
        let n = points.len();
        if m == 0 || r == 0 || n != m + r - 1 || n > MAX_N {
            return None;
        }
        let others = |i: usize| (0..n).filter(move |&j| j != i);
        let mut bt_rows = Vec::new();
        let mut values = Vec::new();
        let mut divisor = 1;
        for (i, &point) in points.iter().enumerate() {
            let mut value: i64 = others(i).map(|j| point.minus(points[j])).product();
            if value == 0 {
                return None;
            }
            let mut row = others(i).fold(vec![1], |poly, j| times_linear(&poly, points[j]));
            // Inputs rather positive than negative: one offset then serves more positions.
            let first = row.iter().copied().find(|&v| v != 0).unwrap_or(1);
            if (row.iter().sum::<i64>(), first) < (0, 0) {
                row.iter_mut().for_each(|v| *v = -*v);
                value = -value;
            }
            divisor = lcm(divisor, value.abs())?;
            bt_rows.push(row);
            values.push(value);
        }
        Some(Transform1d {
            m,
            r,
            n,
            bt: Matrix::from_fn(n, n, |i, j| bt_rows[i][j]),
            g: Matrix::from_fn(n, r, |i, k| points[i].powers(r)(k) * values[i].signum()),
            at: Matrix::from_fn(m, n, |k, i| points[i].powers(m)(k) * (divisor / values[i].abs())),
            divisor: u64::try_from(divisor).ok()?,
        })
    }

    /// The transform of least growth over the default points: least product of the growths of inputs
    /// and weights, then of inputs, then least divisor. `None` where `m + r - 1` exceeds [`MAX_N`].
    pub fn best(m: usize, r: usize) -> Option<Transform1d> {
        static BEST: [[OnceLock<Option<Transform1d>>; MAX_N]; MAX_N] =
            [const { [const { OnceLock::new() }; MAX_N] }; MAX_N];
        let entry = BEST.get(m.checked_sub(1)?)?.get(r.checked_sub(1)?)?;
        entry.get_or_init(|| Transform1d::search(m, r)).clone()
    }

    fn search(m: usize, r: usize) -> Option<Transform1d> {
        let n = (m + r).checked_sub(1).filter(|&n| n <= MAX_N)?;
        if m == 1 || r == 1 {
            return Some(Transform1d::direct(m, r));
        }
        let subsets = (0u32..1 << MAX_N).filter(|mask| mask.count_ones() as usize == n);
        let transforms = subsets.filter_map(|mask| {
            let points: Vec<Point> = (0..MAX_N).filter(|i| mask >> i & 1 == 1).map(|i| POINTS[i]).collect();
            Transform1d::derive(m, r, &points)
        });
        transforms.min_by_key(|t| (t.bt.growth() * t.g.growth(), t.bt.growth(), t.divisor))
    }

    /// One output or one tap: nothing to save, nothing grows.
    fn direct(m: usize, r: usize) -> Transform1d {
        let n = m.max(r);
        let ones = |rows, cols| Matrix::from_fn(rows, cols, |_, _| 1);
        let (g, at) = if r == 1 { (ones(n, 1), Matrix::identity(n)) } else { (Matrix::identity(n), ones(1, n)) };
        Transform1d { m, r, n, bt: Matrix::identity(n), g, at, divisor: 1 }
    }

    /// How inputs are transformed.
    pub fn input_program(&self) -> Program {
        Program::of(&self.bt)
    }
}

/// Coefficients of `poly * (b x - a)`, lowest first; the polynomial is homogeneous, so a point at
/// infinity (`b = 0`) adds a coefficient too.
fn times_linear(poly: &[i64], point: Point) -> Vec<i64> {
    let mut product = vec![0; poly.len() + 1];
    for (i, &c) in poly.iter().enumerate() {
        product[i] -= c * point.a;
        product[i + 1] += c * point.b;
    }
    product
}

/// An exact division modulo 2^32: `divisor = 2^shift * odd`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Divisor {
    pub value: u64,
    pub shift: u32,
    pub odd: u64,
    /// Inverse of `odd` modulo 2^32.
    pub inverse: u32,
}

impl Divisor {
    /// `value` is not zero.
    pub fn of(value: u64) -> Divisor {
        let shift = value.trailing_zeros() % u64::BITS;
        let odd = value >> shift;
        // The low 32 bits. An odd number is its own inverse modulo 8; each step doubles the bits.
        let low = (odd & u64::from(u32::MAX)) as u32;
        let inverse = (0..4).fold(low, |x, _| x.wrapping_mul(2u32.wrapping_sub(low.wrapping_mul(x))));
        Divisor { value, shift, odd, inverse }
    }

    /// `y` from `value * y` modulo 2^32; right where `y * 2^shift` fits 32 bits.
    pub fn divide(self, scaled: i32) -> i32 {
        scaled.wrapping_mul(self.inverse.cast_signed()) >> self.shift
    }
}
