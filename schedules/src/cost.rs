//! How long a wide schedule is expected to take: counts of what it does, each at a price fitted to measurements.
//!
//! The measurements are `schedules/data/zen3_avx2.txt`. A machine that differs from that one has other prices, but what decides
//! between tiles, instructions against loads, differs less. A test fits the prices anew.

#[cfg(test)]
mod tests;

use crate::conv::ConvGeometry;
use crate::wide::registers;
use crate::{Multiply, WideMachine, WideSchedule};

/// What is counted.
const TERMS: usize = 5;
/// Nanoseconds of a vector instruction that forms or adds products, of a load (of a source value to all lanes, or of a
/// vector of weights), of a tile, of a weight brought into form, of an output.
const PRICES: [f64; TERMS] = [0.0908, 0.0442, 8.40, 0.0363, 0.124];

impl WideSchedule {
    pub(crate) fn estimated_ns(&self, geometry: &ConvGeometry, wide: WideMachine) -> f64 {
        self.counts(geometry, wide).iter().zip(PRICES).map(|(count, price)| count * price).sum()
    }

    fn counts(&self, geometry: &ConvGeometry, wide: WideMachine) -> [f64; TERMS] {
        let vectors = geometry.channels.div_ceil(wide.lanes);
        let steps = (geometry.depth / self.multiply.step()).max(1);
        let per_product = match self.multiply {
            Multiply::Dot => 1,
            Multiply::I16 | Multiply::Sum16 => 2,
            Multiply::Sum32 => 3,
        };
        // Instructions, loads and tiles.
        let tile = |mr: usize, nr: usize| {
            // Weights that no register is left for are read again for every pixel.
            let held = mr > 1 && registers(self.multiply, mr, nr) + nr <= wide.registers;
            let loads = mr + nr + if held { 0 } else { (mr - 1) * nr };
            [mr * nr * per_product * steps, loads * steps, 1]
        };
        let column = |mr: usize| {
            let full = tile(mr, self.nr).map(|count| count * (vectors / self.nr));
            match vectors % self.nr {
                0 => full,
                rest => sum(full, tile(mr, rest)),
            }
        };
        let unit = |pixels: usize| {
            let full = column(self.mr).map(|count| count * (pixels / self.mr));
            match pixels % self.mr {
                0 => full,
                rest => sum(full, column(rest)),
            }
        };
        let rows = geometry.pixels / geometry.row_pixels;
        let full = unit(self.rows * geometry.row_pixels).map(|count| count * (rows / self.rows));
        let tiles = sum(full, unit(rows % self.rows * geometry.row_pixels));
        let prepared = rows.div_ceil(self.rows) * geometry.channels * geometry.depth;
        let outputs = geometry.pixels * geometry.channels;
        [tiles[0], tiles[1], tiles[2], prepared, outputs].map(|count| count as f64)
    }
}

fn sum(a: [usize; 3], b: [usize; 3]) -> [usize; 3] {
    [a[0] + b[0], a[1] + b[1], a[2] + b[2]]
}
