//! Two dimensions by nesting: rows inside columns.
//!
//! Positions, one for each product of a tile, are numbered `i * cols.products() + j`; sums and outputs likewise.

use super::filter::Filter;
use super::transform::Divisor;

/// `rows` along the height, `cols` along the width.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Winograd2d {
    pub rows: Filter,
    pub cols: Filter,
}

impl Winograd2d {
    /// Multiplications per tile, input channel and output channel.
    pub fn positions(&self) -> usize {
        self.rows.products() * self.cols.products()
    }

    /// The sum that each position is added to.
    pub fn sum_of(&self) -> Vec<usize> {
        let (rows, cols) = (&self.rows, &self.cols);
        rows.sum_of.iter().flat_map(|i| cols.sum_of.iter().map(move |j| i * cols.sums() + j)).collect()
    }

    pub fn sums(&self) -> usize {
        self.rows.sums() * self.cols.sums()
    }

    /// Outputs of a tile, along height and width.
    pub fn outputs(&self) -> [usize; 2] {
        [self.rows.outputs(), self.cols.outputs()]
    }

    /// Inputs from one tile to the next.
    pub fn steps(&self) -> [usize; 2] {
        [&self.rows, &self.cols].map(|filter| filter.stride * filter.outputs())
    }

    pub fn divisor(&self) -> Divisor {
        Divisor::of(self.rows.divisor * self.cols.divisor)
    }

    /// Weights `[k][rows.taps][cols.taps][c]` to `[positions][k][c]`.
    pub fn transform_weights(&self, weights: &[i64], k: usize, c: usize) -> Vec<i64> {
        let (rows, cols) = (&self.rows, &self.cols);
        let mut out = vec![0; self.positions() * k * c];
        for (ki, weights) in weights.chunks_exact(rows.taps * cols.taps * c).enumerate() {
            for i in 0..rows.products() {
                let mut half = vec![0; cols.taps * c];
                for (taps, &factor) in weights.chunks_exact(cols.taps * c).zip(rows.g.row(i)) {
                    add_times(&mut half, taps, factor);
                }
                for j in 0..cols.products() {
                    let position = &mut out[((i * cols.products() + j) * k + ki) * c..][..c];
                    half.chunks_exact(c).zip(cols.g.row(j)).for_each(|(taps, &g)| add_times(position, taps, g));
                }
            }
        }
        out
    }

    /// Inputs of a tile, `[rows.inputs()][cols.inputs()]`, to `[positions]`.
    pub fn transform_input(&self, tile: &[i64]) -> Vec<i64> {
        self.rows.bt.sandwich(tile, &self.cols.bt)
    }

    /// How many times wider than an input a transformed one may be.
    pub fn input_growth(&self) -> i64 {
        self.rows.bt.growth() * self.cols.bt.growth()
    }

    /// The sums of a position's positive and negative coefficients of inputs.
    pub fn input_coefficients(&self, position: usize) -> (i64, i64) {
        let columns = self.cols.products();
        let (row, col) = (self.rows.bt.row(position / columns), self.cols.bt.row(position % columns));
        let products = row.iter().flat_map(|a| col.iter().map(move |b| a * b));
        products.fold((0, 0), |(positive, negative), v| (positive + v.max(0), negative + v.min(0)))
    }

    /// Sums of products to outputs `[rows.outputs()][cols.outputs()]`; `None` for values that are not the sums of any
    /// convolution.
    pub fn transform_output(&self, sums: &[i64]) -> Option<Vec<i64>> {
        let divisor = i64::try_from(self.divisor().value).ok()?;
        let scaled = self.rows.at.sandwich(sums, &self.cols.at);
        scaled.into_iter().map(|v| (v % divisor == 0).then_some(v / divisor)).collect()
    }

    /// What a bias is multiplied by for every sum: added there, it is added to every output.
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
