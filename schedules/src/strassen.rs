//! Matrix products by Strassen's algorithm: 7 products of halves instead of 8, exactly.
//!
//! In: how often matrices are halved. Out: the algorithm on blocks ([`inputs`], [`weights`], [`OUTPUTS`]), the weights
//! it multiplies with, and the proof that operands fit lanes of 8 bits ([`prove`]).
//!
//! Pixels, input channels and output channels are halved, `levels` times. Block `2 p + h` of the inputs is pixel half `p`,
//! channel half `h`; block `2 j + h` of the weights is output half `j`, input half `h`; block `2 p + j` of the outputs
//! likewise. One position of the inner level follows the other: position `7 i + j` is `j` within `i`.
//!
//! Everything but the products is additions in a ring: inputs modulo 2^8 with an offset for each position that makes them
//! unsigned, sums modulo 2^32. The offset's share, `-offset * sum(weights)`, and the bias are where sums start.
//!
//! Source: Strassen, *Gaussian Elimination is not Optimal*, 1969.

use std::fmt;

use hawqc_ir::Range;

/// Products of a level.
pub const PRODUCTS: usize = 7;
/// Most levels: sums of 4 operands.
pub const MAX_LEVELS: usize = 2;

/// `a`, `a + b` or `a - b`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    One(usize),
    Plus(usize, usize),
    Minus(usize, usize),
}

use Sum::{Minus, One, Plus};

/// What of the inputs' blocks each product multiplies.
pub const INPUTS: [Sum; PRODUCTS] = [Plus(0, 3), Plus(2, 3), One(0), One(3), Plus(0, 1), Minus(2, 0), Minus(1, 3)];
/// What of the weights' blocks.
pub const WEIGHTS: [Sum; PRODUCTS] = [Plus(0, 3), One(0), Minus(2, 3), Minus(1, 0), One(3), Plus(0, 2), Plus(1, 3)];
/// To which output blocks each product is added, and with which sign.
pub const OUTPUTS: [&[(usize, i64)]; PRODUCTS] = [
    &[(0, 1), (3, 1)],
    &[(2, 1), (3, -1)],
    &[(1, 1), (3, 1)],
    &[(0, 1), (2, 1)],
    &[(0, -1), (1, 1)],
    &[(3, 1)],
    &[(0, 1)],
];
/// The products of which one is in both outputs of each half of channels, both times added: where a bias starts.
const BIAS: [usize; 2] = [3, 2];

impl Sum {
    /// The sum of ranges.
    fn range(self, range: Range) -> Range {
        match self {
            One(_) => range,
            Plus(..) => Range::new(2 * range.lo, 2 * range.hi),
            Minus(..) => Range::new(range.lo - range.hi, range.hi - range.lo),
        }
    }

    /// The sum of blocks, element by element.
    fn of(self, blocks: &[Vec<i64>]) -> Vec<i64> {
        let both =
            |a: usize, b: usize, sign: i64| blocks[a].iter().zip(&blocks[b]).map(|(a, b)| a + sign * b).collect();
        match self {
            One(a) => blocks[a].clone(),
            Plus(a, b) => both(a, b, 1),
            Minus(a, b) => both(a, b, -1),
        }
    }
}

/// Halvings and what they need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Levels(pub usize);

/// `Strassen of 1 level`.
impl fmt::Display for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Strassen of {} level{}", self.0, if self.0 == 1 { "" } else { "s" })
    }
}

impl Levels {
    /// Into how many parts pixels and channels are split.
    pub fn parts(self) -> usize {
        1 << self.0
    }

    pub fn positions(self) -> usize {
        PRODUCTS.pow(self.0 as u32)
    }

    /// What the inputs of every position can be.
    fn ranges(self, src: Range) -> Vec<Range> {
        (0..self.0)
            .fold(vec![src], |ranges, _| ranges.iter().flat_map(|&range| INPUTS.map(|sum| sum.range(range))).collect())
    }

    /// The weights of every position, `[position][output channel][input channel]` of parts, from `[K][C]`.
    pub fn weights(self, weights: &[i64], k: usize, c: usize) -> Vec<i64> {
        if self.0 == 0 {
            return weights.to_vec();
        }
        let (k, c) = (k / 2, c / 2);
        let block = |block: usize| {
            let (j, h) = (block / 2, block % 2);
            (0..k).flat_map(|row| weights[((j * k + row) * 2 + h) * c..][..c].to_vec()).collect::<Vec<i64>>()
        };
        let blocks = [0, 1, 2, 3].map(block);
        WEIGHTS.iter().flat_map(|sum| Levels(self.0 - 1).weights(&sum.of(&blocks), k, c)).collect()
    }

    /// A bias of every output channel, as starts of `[position][output channel]` of parts.
    fn starts(self, bias: &[i64]) -> Vec<i64> {
        if self.0 == 0 {
            return bias.to_vec();
        }
        let halves = bias.split_at(bias.len() / 2);
        let zero = vec![0; bias.len() / 2];
        let of = |position: usize| match BIAS.iter().position(|&p| p == position) {
            Some(0) => halves.0,
            Some(_) => halves.1,
            None => &zero,
        };
        (0..PRODUCTS).flat_map(|position| Levels(self.0 - 1).starts(of(position))).collect()
    }
}

/// The operands of a layer that is computed so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operands {
    pub levels: Levels,
    /// `[position][output channel][input channel]` of parts.
    pub weights: Vec<i64>,
    /// Where sums start, modulo 2^32: `[position][output channel]` of parts.
    pub starts: Vec<i32>,
    /// What makes each position's inputs unsigned.
    pub offsets: Vec<i64>,
    /// Of transformed inputs with their offsets, and of transformed weights.
    pub inputs: Range,
    pub range: Range,
}

/// `Strassen of 1 level legal: weights in [-16, 14], inputs in [0, 30]`.
impl fmt::Display for Operands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d] = [self.range.lo, self.range.hi, self.inputs.lo, self.inputs.hi];
        write!(f, "{} legal: weights in [{a}, {b}], inputs in [{c}, {d}]", self.levels)
    }
}

/// The operands for weights `[K][C]` and inputs in `src`; if some may not fit 8 bits, why.
///
/// Inputs are independent of each other, so both ends of their ranges are attained.
pub fn prove(
    levels: Levels,
    weights: &[i64],
    [k, c]: [usize; 2],
    src: Range,
    bias: Option<&[i64]>,
) -> Result<Operands, String> {
    let ranges = levels.ranges(src);
    let offsets: Vec<i64> = ranges.iter().map(|range| (-range.lo).max(0)).collect();
    let moved = ranges.iter().zip(&offsets).map(|(range, offset)| Range::new(range.lo + offset, range.hi + offset));
    let inputs = moved.reduce(Range::union).unwrap_or(src);
    if inputs.hi > i64::from(u8::MAX) {
        return Err(format!(
            "{levels} refused: inputs with their offsets reach {}; use fewer levels or bits",
            inputs.hi
        ));
    }
    let weights = levels.weights(weights, k, c);
    let range = weights.iter().fold(Range::new(0, 0), |range, &w| range.union(Range::new(w, w)));
    if range.lo < i64::from(i8::MIN) || range.hi > i64::from(i8::MAX) {
        return Err(format!("{levels} refused: weights in [{}, {}]; use fewer levels or bits", range.lo, range.hi));
    }
    let (k, c) = (k / levels.parts(), c / levels.parts());
    let none = vec![0; k * levels.parts()];
    let starts = levels.starts(bias.unwrap_or(&none));
    let sums = weights.chunks(c).map(|row| row.iter().sum::<i64>());
    let start = |(i, (start, sum)): (usize, (&i64, i64))| (start - offsets[i / k] * sum) as i32;
    let starts = starts.iter().zip(sums).enumerate().map(start).collect();
    Ok(Operands { levels, weights, starts, offsets, inputs, range })
}

#[cfg(test)]
mod tests;
