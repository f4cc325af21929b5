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
        let half = Matrix::from_fn(self.rows, right.cols, |i, j| {
            (0..self.cols).map(|k| self.get(i, k) * x[k * right.cols + j]).sum()
        });
        Matrix::from_fn(self.rows, right.rows, |i, j| (0..right.cols).map(|k| half.get(i, k) * right.get(j, k)).sum())
            .data
    }

    /// Largest sum of magnitudes of a row: how much wider than its inputs a result can be.
    pub fn growth(&self) -> i64 {
        (0..self.rows).map(|i| self.row_growth(i)).max().unwrap_or(0)
    }

    pub fn row_growth(&self, row: usize) -> i64 {
        self.row(row).iter().map(|v| v.abs()).sum()
    }

    /// Greatest common divisor of a column.
    pub(super) fn column_content(&self, col: usize) -> i64 {
        (0..self.rows).fold(0, |acc, i| gcd(acc, self.get(i, col)))
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
