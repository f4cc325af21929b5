//! How long a convolution with assembled kernels is expected to take by a schedule: counts of what it does, each at a
//! price fitted to measurements.
//!
//! Direct convolution and Winograd's algorithms share what they share, the register tile, and so are comparable. The
//! measurements are in `schedules/data`; there are two lists of prices, for machines with and without an 8-bit dot
//! product. A machine that differs from the measured ones has other prices, but what decides, instructions against loads
//! and memory, differs less. A test fits the prices anew.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use hawqc_ir::Elem;

use crate::conv::ConvGeometry;
use crate::wide::{registers, unsigned_offset};
use crate::{Multiply, Parts, Sections, Units, WideMachine, WideSchedule, WinogradSchedule};

/// What is counted.
const TERMS: usize = 11;
/// Vector instructions that form or add products; loads of a source value to all lanes; tiles.
const PRODUCT: usize = 0;
const SOURCE: usize = 1;
const TILE: usize = 2;
/// Weights made operands ahead of the tiles; outputs.
const PREPARED: usize = 3;
const OUTPUT: usize = 4;
/// Vectors of transformed inputs; vectors of sums to be transformed; bytes of weights, each once, as
/// later units find them in a nearer cache.
const INPUT: usize = 5;
const SUM: usize = 6;
const WEIGHT_BYTE: usize = 7;
/// Of every tile whose epilogue follows its products, the square of its sums' vectors: the longer an epilogue, the less of it
/// runs beside the products of the next tile.
const CROWD: usize = 8;
/// Loads of a vector of weights.
const WEIGHT: usize = 9;
/// Source values that are copied with what makes them operands.
const COPIED: usize = 10;

/// Nanoseconds of each, from `schedules/data/zen3_avx2.txt`.
const AVX2: [f64; TERMS] = [0.0881, 0.0486, 10.3489, 0.0336, 0.0292, 2.3258, 0.3722, 0.0471, 0.0560, 0.0422, 0.0135];
/// From `schedules/data/zen4_avx512.txt`.
const DOT: [f64; TERMS] = [0.2594, 0.0264, 0.0000, 0.0205, 0.0584, 2.0836, 0.6646, 0.0134, 0.0156, 0.0567, 0.0201];

/// Products that a tile must have at least, for the unit that forms them not to wait for sums.
const LATENCY: usize = 5;
/// Bytes of a block's weights that stay in the first-level cache, and products that take as long as loading a vector of
/// weights from beyond it.
const FIRST_CACHE: usize = 24 << 10;
const FAR: usize = 3;
/// Transformed weights of more bytes come from memory at every inference, beside the work, at so many nanoseconds a byte. Not
/// fitted: a tuner that runs one kernel again and again finds them in a cache.
const NEAR_BYTES: usize = 6 << 20;
const MEMORY_NS_PER_BYTE: f64 = 0.038;

fn prices(wide: WideMachine) -> &'static [f64; TERMS] {
    if wide.dot { &DOT } else { &AVX2 }
}

fn total_ns(counts: [f64; TERMS], wide: WideMachine) -> f64 {
    counts.iter().zip(prices(wide)).map(|(count, price)| count * price).sum()
}

/// The products of many pixels with all channels, in register tiles of `mr` by `nr`.
struct Products {
    multiply: Multiply,
    mr: usize,
    nr: usize,
    /// Vectors of channels, and how many side by side have the same inputs.
    vectors: usize,
    section: usize,
    /// Products of an output.
    depth: usize,
    /// Of these, in one run of source bytes.
    run: usize,
    four_bits: bool,
}

/// What is counted of tiles: [`PRODUCT`], [`SOURCE`], [`TILE`], [`CROWD`] and [`WEIGHT`].
type Tiles = [usize; 5];

/// Pixels of a tile from which on 4-bit weights are unpacked beside its dot products at no cost, if it has steps enough for its
/// epilogue not to want the same units.
const UNPACKING_PIXELS: usize = 3;
/// Steps of a tile from which on the epilogue of the tile before is put beside its products; with fewer, storing the sums
/// costs more than is hidden.
pub const OVERLAP_STEPS: usize = 16;
/// What decides in kernels whether registers suffice for that, about: most pixels of a tile, and registers of an epilogue beside
/// its results.
const OVERLAP_PIXELS: usize = 6;
const OVERLAP_REGISTERS: usize = 2;
/// Most steps of a run that is put beside a pixel as a whole.
const OVERLAP_RUN: usize = 4;

/// Whether 4-bit weights of a tile of `mr` pixels are unpacked beside its dot products rather than ahead of the tiles.
pub fn unpacks_beside(mr: usize, steps: usize) -> bool {
    mr >= UNPACKING_PIXELS && steps >= OVERLAP_STEPS
}

impl Products {
    /// For pixels that no tile reaches beyond.
    fn counts(&self, pixels: usize, wide: WideMachine) -> Tiles {
        whole_and_rest(pixels, self.mr, |mr| whole_and_rest(self.vectors, self.nr, |nr| self.tile(mr, nr, wide)))
    }

    fn tile(&self, mr: usize, nr: usize, wide: WideMachine) -> Tiles {
        let steps = (self.depth / self.multiply.step()).max(1);
        let per_product = match self.multiply {
            Multiply::I16 if wide.dot => 1,
            Multiply::Dot => 1,
            Multiply::I16 | Multiply::Sum16 => 2,
            Multiply::Sum32 => 3,
        };
        // Weights that no register is left for are read again for every pixel.
        let held = mr > 1 && registers(self.multiply, mr, nr) + nr <= wide.registers;
        let weights = if held { nr } else { mr * nr };
        let far = steps * nr * 4 * wide.lanes > FIRST_CACHE;
        let step = (mr * nr * per_product).max(LATENCY).max(if far { FAR * nr } else { 0 });
        let crowd = if self.overlaps(mr, nr, wide) { 0 } else { (mr * nr).pow(2) };
        [step * steps, mr * steps * nr.div_ceil(self.section), 1, crowd, weights * steps]
    }

    /// Whether kernels put an epilogue beside products.
    fn overlaps(&self, mr: usize, nr: usize, wide: WideMachine) -> bool {
        let dot = wide.dot && matches!(self.multiply, Multiply::Dot | Multiply::I16);
        let steps = |values: usize| values / self.multiply.step();
        let nibbles = if self.four_bits { 2 } else { 0 };
        let needed = registers(self.multiply, mr, nr) + 2 * nr + nibbles + OVERLAP_REGISTERS;
        let fits = needed <= wide.registers && mr <= OVERLAP_PIXELS;
        let short_runs = self.depth / self.run >= mr && steps(self.run) <= OVERLAP_RUN;
        dot && fits && (steps(self.run) >= mr || short_runs) && steps(self.depth) >= OVERLAP_STEPS
    }
}

/// What `count` things cost in parts of `size`, the last part smaller.
fn whole_and_rest(count: usize, size: usize, of_part: impl Fn(usize) -> Tiles) -> Tiles {
    let rest = if count.is_multiple_of(size) { Tiles::default() } else { of_part(count % size) };
    sum(times(of_part(size), count / size), rest)
}

/// What the parts cost together.
fn of_parts(parts: Parts, of_part: impl Fn(usize) -> Tiles) -> Tiles {
    parts.sizes().into_iter().map(|(size, count)| times(of_part(size), count)).fold(Tiles::default(), sum)
}

fn sum(a: Tiles, b: Tiles) -> Tiles {
    std::array::from_fn(|i| a[i] + b[i])
}

fn times(counts: Tiles, factor: usize) -> Tiles {
    counts.map(|count| count * factor)
}

impl WideSchedule {
    /// Whether weights are made operands once for all tiles of a unit: 16-bit ones, and 4-bit ones that are not unpacked beside
    /// dot products.
    fn expands(&self, geometry: &ConvGeometry, wide: WideMachine, depth: usize) -> bool {
        let is_odd = |vectors: usize| !vectors.is_multiple_of(2);
        let has_odd_block = is_odd(self.nr) || is_odd(geometry.channels_out() / wide.lanes % self.nr);
        match self.multiply {
            Multiply::I16 => true,
            Multiply::Dot => {
                geometry.wei == Elem::I4 && (!unpacks_beside(self.mr, depth / self.multiply.step()) || has_odd_block)
            }
            _ => geometry.wei == Elem::I4,
        }
    }

    pub(crate) fn estimated_ns(&self, geometry: &ConvGeometry, wide: WideMachine) -> f64 {
        total_ns(self.counts(geometry, wide), wide)
    }

    fn counts(&self, geometry: &ConvGeometry, wide: WideMachine) -> [f64; TERMS] {
        let WideSchedule { multiply, mr, nr, .. } = *self;
        let channels = geometry.channels_out();
        let vectors = channels.div_ceil(wide.lanes);
        let Sections { vectors: section, depth, .. } = geometry.sections(wide.lanes, multiply);
        let [kh, kw] = geometry.kernel;
        let run = depth / if geometry.groups == 1 { kh } else { kh * kw };
        let four_bits = geometry.wei == Elem::I4;
        let products = Products { multiply, mr, nr, vectors, section, depth, run, four_bits };
        let Units { images, rows, blocks } = self.units(geometry, wide.lanes);
        let of_unit = |rows: usize| products.counts(rows * geometry.row_pixels, wide);
        let tiles = times(of_parts(rows, of_unit), images);
        let mut counts = [0.0; TERMS];
        [counts[PRODUCT], counts[SOURCE], counts[TILE], counts[CROWD], counts[WEIGHT]] =
            tiles.map(|count| count as f64);
        let weights = (channels * depth) as f64;
        if self.expands(geometry, wide, depth) {
            counts[PREPARED] = (images * rows.count) as f64 * weights;
        } else {
            counts[WEIGHT_BYTE] = if four_bits { weights / 2.0 } else { weights };
        }
        counts[OUTPUT] = (geometry.pixels * channels) as f64;
        let is_operand = geometry.src_bytes == multiply.operand_bytes() && unsigned_offset(geometry.src) == 0;
        if !is_operand || geometry.kernel != [1, 1] {
            // Every group of channels copies again, every unit some rows that others copy too.
            let shared = rows.count * (geometry.kernel[0] - 1) / geometry.stride[0];
            counts[COPIED] = (blocks.count * images * (rows.all + shared) * geometry.row_values) as f64;
        }
        counts
    }
}

impl WinogradSchedule {
    pub(crate) fn estimated_ns(&self, geometry: &ConvGeometry, wide: WideMachine) -> f64 {
        let positions = self.depths(geometry).iter().map(|(depth, sums)| depth * sums).sum();
        let bytes = self.weight_bytes(geometry, positions);
        let memory = if bytes > NEAR_BYTES { bytes as f64 * MEMORY_NS_PER_BYTE } else { 0.0 };
        total_ns(self.counts(geometry, wide), wide).max(memory)
    }

    fn weight_bytes(&self, geometry: &ConvGeometry, positions: usize) -> usize {
        positions * geometry.channels * geometry.group_in * self.multiply.operand_bytes()
    }

    fn counts(&self, geometry: &ConvGeometry, wide: WideMachine) -> [f64; TERMS] {
        let WinogradSchedule { multiply, outputs: [_, width], mr, nr, .. } = *self;
        let depths = self.depths(geometry);
        let positions: usize = depths.iter().map(|(depth, sums)| depth * sums).sum();
        let Units { images, rows, blocks } = self.units(geometry, wide);
        let across = geometry.row_pixels.div_ceil(width);
        let vectors = geometry.channels.div_ceil(wide.lanes);
        let of_depth = |(&depth, &sums): (&usize, &usize)| {
            let depth = depth * geometry.group_in;
            let products =
                Products { multiply, mr, nr, vectors, section: vectors, depth, run: depth, four_bits: false };
            times(of_parts(rows, |rows| products.counts(rows * across, wide)), sums)
        };
        let of_image = depths.iter().map(of_depth).fold(Tiles::default(), sum);
        let tiles = images * rows.all * across;
        let mut counts = [0.0; TERMS];
        [counts[PRODUCT], counts[SOURCE], counts[TILE], _, counts[WEIGHT]] =
            times(of_image, images).map(|count| count as f64);
        counts[OUTPUT] = (geometry.pixels * geometry.channels) as f64;
        let input_lanes = 4 * wide.lanes / multiply.operand_bytes();
        // Every group of channels transforms its inputs again.
        counts[INPUT] = (blocks.count * tiles * positions * geometry.group_in.div_ceil(input_lanes)) as f64;
        counts[SUM] = (tiles * depths.values().sum::<usize>() * vectors) as f64;
        counts[WEIGHT_BYTE] = self.weight_bytes(geometry, positions) as f64;
        counts
    }

    /// How many sums have so many positions.
    fn depths(&self, geometry: &ConvGeometry) -> BTreeMap<usize, usize> {
        let mut depths = BTreeMap::new();
        if let Some(member) = self.member(geometry.taps()) {
            let sum_of = member.algorithm.sum_of();
            for sum in 0..member.algorithm.sums() {
                *depths.entry(sum_of.iter().filter(|&&s| s == sum).count()).or_default() += 1;
            }
        }
        depths
    }
}
