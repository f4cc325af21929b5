//! Whether a member gives every bit of a layer.
//!
//! In: the layer's actual weights and the range of its inputs, the padding value included. Bounds are
//! exact where that is possible: a transformed input is a sum of independent inputs, so both ends of its
//! bound are attained; transformed weights are known; a result is bounded per output channel by the signs
//! of its weights, and both ends are attained.

use std::fmt;

use hawqc_ir::Range;
use thiserror::Error;

use super::member::{Lane, Member};
use super::nested::Winograd2d;

/// What a proof needs to know of a layer.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    /// `[k][kh][kw][c]`, of a grouped convolution `c` per group.
    pub weights: &'a [i64],
    pub shape: [usize; 4],
    /// Range of the inputs, the padding value included.
    pub src: Range,
    /// Per output channel; what joins the sums before the division. `None` where it is added later.
    pub bias: Option<&'a [i64]>,
}

/// That a member gives every bit of a layer, and with what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    pub member: Member,
    /// Transformed weights of every position.
    pub weights: Range,
    /// What a lane holds, per position: transformed inputs plus the offset.
    pub inputs: Vec<Range>,
    /// Per position, what is added to transformed inputs; the same everywhere where that is possible.
    pub offsets: Vec<i64>,
    /// How many sums of two products of 8-bit lanes (as `vpmaddubsw` forms them), of any channels of a position in any
    /// order, stay within 16 bits: 0 where not even one does (and in 16-bit lanes), half the channels,
    /// rounded up, where all do.
    pub pair_steps: usize,
    /// Results, bias included where the layer has one. Times `2^shift` of the divisor they fit 32 bits too, so
    /// that shift may be left to a requantisation that follows.
    pub result: Range,
}

/// Why a member may not be used for a layer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    #[error(
        "{member} refused: the layer has {found}; it needs weights of {}x{} taps, one bias per output channel, \
         16-bit inputs and weights, 32-bit biases",
        taps[0], taps[1]
    )]
    Layer { member: String, taps: [usize; 2], found: String },
    #[error("{member} refused: transformed weights in {}, a lane holds {}; {}", Show(*found), Show(*lane), ADVICE)]
    Weights { member: String, found: Range, lane: Range },
    #[error(
        "{member} refused: inputs at position {},{} in {}, wider than the {width} values a lane holds; {}",
        position.0, position.1, Show(*found), ADVICE
    )]
    Inputs { member: String, position: (usize, usize), found: Range, width: i64 },
    #[error(
        "{member} refused: results in {}, times 2^{shift} beyond 32 bits; use a smaller tile or fewer bits",
        Show(*found)
    )]
    Result { member: String, found: Range, shift: u32 },
}

const ADVICE: &str = "use wider lanes, a smaller tile or fewer bits";
const I16: Range = Range { lo: -(1 << 15), hi: (1 << 15) - 1 };
const I32: Range = Range { lo: -(1 << 31), hi: (1 << 31) - 1 };

impl Lane {
    fn weights(self) -> Range {
        match self {
            Lane::I8 => Range { lo: -128, hi: 127 },
            Lane::I16 => I16,
        }
    }

    fn inputs(self) -> Range {
        match self {
            Lane::I8 => Range { lo: 0, hi: 255 },
            Lane::I16 => I16,
        }
    }
}

/// Proves that `member` gives every bit of `layer`, or says what does not fit.
pub fn prove(member: &Member, layer: &Layer) -> Result<Proof, Refusal> {
    check(member, layer)?;
    let algorithm = &member.algorithm;
    let raw: Vec<Range> = (0..algorithm.positions()).map(|p| input_range(algorithm, p, layer.src)).collect();
    let lane = member.lane.inputs();
    let columns = algorithm.cols.products();
    let offsets = offsets(&raw, lane).map_err(|p| Refusal::Inputs {
        member: member.to_string(),
        position: (p / columns, p % columns),
        found: raw[p],
        width: lane.hi - lane.lo + 1,
    })?;
    let inputs: Vec<Range> = raw.iter().zip(&offsets).map(|(r, o)| Range::new(r.lo + o, r.hi + o)).collect();
    let [k, _, _, c] = layer.shape;
    let weights = Weights::of(algorithm, layer.weights, [k, c], &inputs);
    let lane = member.lane.weights();
    if !lane.contains(weights.range) {
        return Err(Refusal::Weights { member: member.to_string(), found: weights.range, lane });
    }
    let pair_steps = if member.lane == Lane::I8 { weights.pair_steps } else { 0 };
    let result = result_range(layer);
    let shift = algorithm.divisor().shift;
    if !I32.contains(result) || !I32.contains(Range::new(result.lo << shift, result.hi << shift)) {
        return Err(Refusal::Result { member: member.to_string(), found: result, shift });
    }
    Ok(Proof { member: member.clone(), weights: weights.range, inputs, offsets, pair_steps, result })
}

/// That the layer is one the bounds can be computed for without overflow.
fn check(member: &Member, layer: &Layer) -> Result<(), Refusal> {
    let [k, kh, kw, c] = layer.shape;
    let refuse = |found: String| {
        let taps = member.kernel().taps;
        Err(Refusal::Layer { member: member.to_string(), taps, found })
    };
    if [kh, kw] != member.kernel().taps || layer.weights.len() != k * kh * kw * c || layer.weights.is_empty() {
        return refuse(format!("{} weights of shape {:?}", layer.weights.len(), layer.shape));
    }
    if !I16.contains(layer.src) || !layer.weights.iter().all(|&w| within(w, I16)) {
        return refuse(format!("inputs in {} and weights in {}", Show(layer.src), Show(range(layer.weights))));
    }
    match layer.bias {
        Some(bias) if bias.len() != k => refuse(format!("{} biases", bias.len())),
        Some(bias) if !bias.iter().all(|&b| within(b, I32)) => refuse(format!("biases in {}", Show(range(bias)))),
        _ => Ok(()),
    }
}

fn within(v: i64, range: Range) -> bool {
    range.contains(Range { lo: v, hi: v })
}

/// From the least to the greatest; zero for none.
fn range(values: &[i64]) -> Range {
    let lo = values.iter().copied().min().unwrap_or(0);
    Range { lo, hi: values.iter().copied().max().unwrap_or(0) }
}

/// All values of a position's transformed input.
fn input_range(algorithm: &Winograd2d, position: usize, src: Range) -> Range {
    let (positive, negative) = algorithm.input_coefficients(position);
    Range::new(positive * src.lo + negative * src.hi, positive * src.hi + negative * src.lo)
}

/// What brings every position into the lane: nothing, or one offset (a power of two if one will do), or
/// one per position; the position that no offset brings in.
fn offsets(raw: &[Range], lane: Range) -> Result<Vec<i64>, usize> {
    let all = raw.iter().copied().reduce(Range::union).unwrap_or(lane);
    let fits = |r: Range, offset: i64| lane.contains(Range { lo: r.lo + offset, hi: r.hi + offset });
    let least = lane.lo - all.lo;
    let power = (0..17).map(|k| 1i64 << k).find(|&power| power >= least && fits(all, power));
    if let Some(offset) = [0].into_iter().chain(power).chain([least]).find(|&offset| fits(all, offset)) {
        return Ok(vec![offset; raw.len()]);
    }
    let own = |(p, r): (usize, &Range)| [0, lane.lo - r.lo].into_iter().find(|&offset| fits(*r, offset)).ok_or(p);
    raw.iter().enumerate().map(own).collect()
}

/// Transformed weights.
struct Weights {
    range: Range,
    pair_steps: usize,
}

impl Weights {
    /// `taps` are `[k][kh][kw][c]`.
    fn of(algorithm: &Winograd2d, taps: &[i64], [k, c]: [usize; 2], inputs: &[Range]) -> Weights {
        let per_channel = taps.len() / k;
        let mut all: Option<Range> = None;
        let mut pair_steps = c.div_ceil(2);
        for taps in taps.chunks_exact(per_channel) {
            let transformed = algorithm.transform_weights(taps, 1, c);
            let own = range(&transformed);
            all = Some(all.map_or(own, |r| r.union(own)));
            for (weights, input) in transformed.chunks_exact(c).zip(inputs) {
                pair_steps = steps_within_16_bits(weights, *input, pair_steps);
            }
        }
        Weights { range: all.unwrap_or(Range { lo: 0, hi: 0 }), pair_steps }
    }
}

/// The most pairs of `weights`, at most `most`, whichever they are, whose products with inputs up to
/// `input.hi` stay in 16 bits. Inputs are not negative.
fn steps_within_16_bits(weights: &[i64], input: Range, most: usize) -> usize {
    let steps = |sign: i64, limit: i64| {
        let largest = weights.iter().map(|w| w * sign).max().unwrap_or(0).max(0);
        let pairs = i64::try_from(most).unwrap_or(i64::MAX);
        if largest.saturating_mul(input.hi).saturating_mul(pairs).saturating_mul(2) <= limit {
            return most;
        }
        let mut weights: Vec<i64> = weights.iter().map(|w| w * sign).filter(|&w| w > 0).collect();
        weights.sort_unstable_by(|a, b| b.cmp(a));
        let sums = weights.iter().scan(0, |sum, w| {
            *sum += w * input.hi;
            Some(*sum)
        });
        let fitting = sums.take_while(|&sum| sum <= limit).count();
        if fitting == weights.len() { most } else { most.min(fitting / 2) }
    };
    steps(1, I16.hi).min(steps(-1, -I16.lo))
}

/// All values of the layer's results.
fn result_range(layer: &Layer) -> Range {
    let per_channel = layer.weights.len() / layer.shape[0];
    let channels = layer.weights.chunks_exact(per_channel).enumerate().map(|(k, weights)| {
        let start = layer.bias.map_or(0, |bias| bias[k]);
        weights.iter().fold(Range { lo: start, hi: start }, |sum, &w| {
            let ends = [w * layer.src.lo, w * layer.src.hi];
            Range { lo: sum.lo + ends[0].min(ends[1]), hi: sum.hi + ends[0].max(ends[1]) }
        })
    });
    channels.reduce(Range::union).unwrap_or(Range { lo: 0, hi: 0 })
}

impl Proof {
    /// Whether transformed inputs fit signed lanes of 8 bits without the offset, as `sdot` wants them.
    pub fn signed_inputs(&self) -> bool {
        let lane = Lane::I8.weights();
        let raw = self.inputs.iter().zip(&self.offsets).map(|(r, o)| Range { lo: r.lo - o, hi: r.hi - o });
        raw.into_iter().all(|r| lane.contains(r))
    }

    /// Where sums start, `[sum][k]` modulo 2^32, given the transformed weights `[positions][k][c]`: what takes the
    /// offsets out again, and the bias. `None` where the algorithm has no place for a bias.
    pub fn starts(&self, transformed: &[i64], k: usize, bias: Option<&[i64]>) -> Option<Vec<i32>> {
        let algorithm = &self.member.algorithm;
        let mut starts = vec![0i64; algorithm.sums() * k];
        if let Some(bias) = bias {
            let ones = algorithm.ones()?;
            starts.iter_mut().enumerate().for_each(|(i, start)| *start = bias[i % k].wrapping_mul(ones[i / k]));
        }
        let c = transformed.len() / (self.offsets.len() * k);
        for (p, sum) in algorithm.sum_of().into_iter().enumerate() {
            for (ki, start) in starts[sum * k..][..k].iter_mut().enumerate() {
                let weights: i64 = transformed[(p * k + ki) * c..][..c].iter().sum();
                *start = start.wrapping_sub(self.offsets[p].wrapping_mul(weights));
            }
        }
        Some(starts.into_iter().map(|start| start as i32).collect())
    }
}

/// A range as `[lo, hi]`.
struct Show(Range);

impl fmt::Display for Show {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {}]", self.0.lo, self.0.hi)
    }
}

/// `F(2x2,3x3)/i8 legal: transformed weights in [-61, 58], inputs in [2, 92] with 32 added, results in
/// [-4000, 5000] times 4, 16-bit sums of 3 pairs`.
impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inputs = self.inputs.iter().copied().reduce(Range::union).unwrap_or(Range { lo: 0, hi: 0 });
        let weights = Show(self.weights);
        write!(f, "{} legal: transformed weights in {weights}, inputs in {}", self.member, Show(inputs))?;
        let added = range(&self.offsets);
        match (added.lo, added.hi) {
            (0, 0) => {}
            (lo, hi) if lo == hi => write!(f, " with {lo} added")?,
            _ => write!(f, " with {} added by position", Show(added))?,
        }
        let divisor = self.member.algorithm.divisor().value;
        write!(f, ", results in {} times {divisor}", Show(self.result))?;
        match (self.member.lane, self.pair_steps) {
            (Lane::I16, _) => Ok(()),
            (Lane::I8, 0) => f.write_str(", no 16-bit sums of pairs"),
            (Lane::I8, steps) => write!(f, ", 16-bit sums of {steps} pairs"),
        }
    }
}
