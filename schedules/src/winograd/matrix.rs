//! Small integer matrices.

/// A matrix of integers, row-major.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Matrix {
    rows: usize,
    cols: usize,
    data: Vec<i64>,
}

impl Matrix {
    pub fn from_fn(rows: usize, cols: usize, mut entry: impl FnMut(usize, usize) -> i64) -> Matrix {
        let data = (0..rows * cols).map(|i| entry(i / cols, i % cols)).collect();
        Matrix { rows, cols, data }
    }

    pub fn identity(n: usize) -> Matrix {
        Matrix::from_fn(n, n, |i, j| i64::from(i == j))
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    pub fn get(&self, row: usize, col: usize) -> i64 {
        self.data[row * self.cols + col]
    }

    pub fn row(&self, row: usize) -> &[i64] {
        &self.data[row * self.cols..][..self.cols]
    }

    /// Product with a vector of `cols` entries.
    pub fn apply(&self, x: &[i64]) -> Vec<i64> {
        (0..self.rows).map(|i| self.row(i).iter().zip(x).map(|(a, b)| a * b).sum()).collect()
    }

    /// `self * x * right^T` for `x` of `self.cols` by `right.cols` entries, row-major.
    pub fn sandwich(&self, x: &[i64], right: &Matrix) -> Vec<i64> {
        self.sandwich_by(x, right, |sum, a, b| sum + a * b)
    }

    /// The same modulo 2^64, of which the low 32 bits are the result modulo 2^32.
    pub fn sandwich_wrapping(&self, x: &[i64], right: &Matrix) -> Vec<i64> {
        self.sandwich_by(x, right, |sum, a, b| sum.wrapping_add(a.wrapping_mul(b)))
    }

    fn sandwich_by(&self, x: &[i64], right: &Matrix, step: impl Fn(i64, i64, i64) -> i64) -> Vec<i64> {
        let half = Matrix::from_fn(self.rows, right.cols, |i, j| {
            (0..self.cols).fold(0, |sum, k| step(sum, self.get(i, k), x[k * right.cols + j]))
        });
        Matrix::from_fn(self.rows, right.rows, |i, j| {
            (0..right.cols).fold(0, |sum, k| step(sum, half.get(i, k), right.get(j, k)))
        })
        .data
    }

    /// Largest sum of magnitudes of a row: how much wider than its inputs a result can be.
    pub fn growth(&self) -> i64 {
        (0..self.rows).map(|i| self.row_growth(i)).max().unwrap_or(0)
    }

    pub fn row_growth(&self, row: usize) -> i64 {
        self.row(row).iter().map(|v| v.abs()).sum()
    }

    pub(super) fn scale_row(&mut self, row: usize, factor: i64) {
        self.data[row * self.cols..][..self.cols].iter_mut().for_each(|v| *v *= factor);
    }

    /// Greatest common divisor of a column.
    pub(super) fn column_content(&self, col: usize) -> i64 {
        (0..self.rows).fold(0, |acc, i| gcd(acc, self.get(i, col)))
    }

    /// Replaces a column by its image under `f`.
    pub(super) fn map_column(&mut self, col: usize, f: impl Fn(i64) -> i64) {
        for i in 0..self.rows {
            let entry = &mut self.data[i * self.cols + col];
            *entry = f(*entry);
        }
    }
}

/// Greatest common divisor, not negative.
pub(super) fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a.abs() } else { gcd(b, a % b) }
}

/// Least common multiple of positive numbers, if it fits.
pub(super) fn lcm(a: i64, b: i64) -> Option<i64> {
    (a / gcd(a, b)).checked_mul(b)
}
