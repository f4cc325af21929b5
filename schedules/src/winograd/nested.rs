//! Two dimensions by nesting: rows inside columns.
//!
//! Positions are numbered `i * cols.n + j`; outputs `i * cols.m + j`. Either dimension may be
//! [`Transform1d::identity`], which leaves a one-dimensional member.

use super::transform::{Divisor, Transform1d};

/// `rows` along the height, `cols` along the width.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Winograd2d {
    pub rows: Transform1d,
    pub cols: Transform1d,
}

impl Winograd2d {
    /// Multiplications per tile, input channel and output channel.
    pub fn positions(&self) -> usize {
        self.rows.n * self.cols.n
    }

    /// Outputs of a tile.
    pub fn outputs(&self) -> usize {
        self.rows.m * self.cols.m
    }

    pub fn divisor(&self) -> Divisor {
        Divisor::of(self.rows.divisor * self.cols.divisor)
    }

    /// Weights `[k][rows.r][cols.r][c]` to `[positions][k][c]`.
    pub fn transform_weights(&self, weights: &[i64], k: usize, c: usize) -> Vec<i64> {
        let (rows, cols) = (&self.rows, &self.cols);
        let mut out = vec![0; self.positions() * k * c];
        for (ki, weights) in weights.chunks_exact(rows.r * cols.r * c).enumerate() {
            for i in 0..rows.n {
                let mut half = vec![0; cols.r * c];
                for (taps, &factor) in weights.chunks_exact(cols.r * c).zip(rows.g.row(i)) {
                    add_times(&mut half, taps, factor);
                }
                for j in 0..cols.n {
                    let position = &mut out[((i * cols.n + j) * k + ki) * c..][..c];
                    half.chunks_exact(c).zip(cols.g.row(j)).for_each(|(taps, &g)| add_times(position, taps, g));
                }
            }
        }
        out
    }

    /// Inputs of a tile, `[rows.n][cols.n]`, to `[positions]`.
    pub fn transform_input(&self, tile: &[i64]) -> Vec<i64> {
        self.rows.bt.sandwich(tile, &self.cols.bt)
    }

    /// How many times wider than an input a transformed one may be.
    pub fn input_growth(&self) -> i64 {
        self.rows.bt.growth() * self.cols.bt.growth()
    }

    /// The sums of a position's positive and negative coefficients of inputs.
    pub fn input_coefficients(&self, position: usize) -> (i64, i64) {
        let (row, col) = (self.rows.bt.row(position / self.cols.n), self.cols.bt.row(position % self.cols.n));
        let products = row.iter().flat_map(|a| col.iter().map(move |b| a * b));
        products.fold((0, 0), |(positive, negative), v| (positive + v.max(0), negative + v.min(0)))
    }

    /// Sums of products `[positions]` to outputs `[rows.m][cols.m]`; `None` for values that are not the
    /// sums of any convolution.
    pub fn transform_output(&self, sums: &[i64]) -> Option<Vec<i64>> {
        let divisor = i64::try_from(self.divisor().value).ok()?;
        let scaled = self.rows.at.sandwich(sums, &self.cols.at);
        scaled.into_iter().map(|v| (v % divisor == 0).then_some(v / divisor)).collect()
    }

    /// The outputs times the divisor, modulo 2^32, from sums modulo 2^32. Those of several parts are
    /// added before [`Divisor::divide`].
    pub fn scaled_output(&self, sums: &[i32]) -> Vec<i32> {
        let sums: Vec<i64> = sums.iter().map(|&v| v.into()).collect();
        let scaled = self.rows.at.sandwich_wrapping(&sums, &self.cols.at);
        scaled.into_iter().map(|v| v as i32).collect()
    }

    /// `[positions]` with which a bias joins the sums: `b` times these adds `b` to every output.
    pub fn ones(&self) -> Option<Vec<i64>> {
        let (rows, cols) = (self.rows.ones()?, self.cols.ones()?);
        Some(rows.iter().flat_map(|a| cols.iter().map(move |b| a * b)).collect())
    }
}

fn add_times(sum: &mut [i64], values: &[i64], factor: i64) {
    if factor != 0 {
        sum.iter_mut().zip(values).for_each(|(sum, v)| *sum += factor * v);
    }
}
