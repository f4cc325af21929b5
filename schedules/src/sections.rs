//! How the output channels of a grouped convolution fill vectors.
//!
//! Vectors hold consecutive output channels. Those that read the same inputs are a *section*: the channels of a group, or,
//! where these fill no vectors, those of the fewest groups that do, weights of zero standing where an input is not of an
//! output's group. A vector of several groups whose inputs fill steps of four bytes has none of these zeros but loads
//! steps of all its groups at once ([`Spread`]).

use crate::Multiply;
use crate::conv::ConvGeometry;

/// See the module's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sections {
    /// Vectors of output channels of a section.
    pub vectors: usize,
    /// Input channels of a section.
    pub inputs: usize,
    /// Groups that are summed as if they were one.
    pub merged: usize,
    /// How the lanes of a section of one vector are given inputs; `None` where all have the same.
    pub spread: Option<Spread>,
    /// Products that are formed for an output, those with zeros included.
    pub depth: usize,
}

/// The inputs of a vector: `dwords` dwords, repeated until they fill it, so that lane `i` has dword `i % dwords`. The
/// inputs of a group are `steps` consecutive dwords; in step `i`, dwords `j` and `j ^ i` have changed places, so that each
/// lane meets every dword of its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spread {
    /// 2, 4, 8 or 16.
    pub dwords: usize,
    /// 1, 2 or 4, at most `dwords`.
    pub steps: usize,
}

impl Spread {
    /// For groups of `inputs` bytes and `outputs` channels, in vectors of so many lanes.
    fn of(inputs: usize, outputs: usize, lanes: usize) -> Option<Spread> {
        let steps = inputs / 4;
        let fits = inputs.is_multiple_of(4) && [1, 2, 4].contains(&steps) && steps <= outputs;
        let several = outputs < lanes && lanes.is_multiple_of(outputs);
        (fits && several).then(|| Spread { dwords: steps * lanes / outputs, steps })
    }

    /// The output channel, among those of a vector of so many lanes, that a lane sums.
    pub fn channel(self, lanes: usize, lane: usize) -> usize {
        let (copy, dword) = (lane / self.dwords, lane % self.dwords);
        let group_lanes = lanes / self.dwords * self.steps;
        dword / self.steps * group_lanes + copy * self.steps + dword % self.steps
    }
}

impl ConvGeometry {
    /// The sections of whole vectors of so many lanes.
    pub fn sections(&self, lanes: usize, multiply: Multiply) -> Sections {
        let (taps, step) = (self.kernel[0] * self.kernel[1], multiply.step());
        if self.groups == 1 {
            let vectors = self.channels / lanes;
            return Sections { vectors, inputs: self.group_in, merged: 1, spread: None, depth: self.depth };
        }
        // The fewest groups whose inputs are whole steps.
        let merged = step / gcd(step, self.group_in);
        let inputs = merged * self.group_in;
        if let Some(spread) = Spread::of(inputs * multiply.operand_bytes(), merged * self.channels, lanes) {
            let depth = taps * spread.steps * step;
            return Sections { vectors: 1, inputs: spread.dwords * step, merged, spread: Some(spread), depth };
        }
        let merged = lanes / gcd(lanes, self.channels);
        let (vectors, inputs) = (merged * self.channels / lanes, merged * self.group_in);
        Sections { vectors, inputs, merged, spread: None, depth: taps * inputs.next_multiple_of(step) }
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use hawqc_ir::{Arg, Conv, Elem, KernelSpec, TensorType};

    use super::*;

    fn sections(c: usize, k: usize, groups: usize, lanes: usize, multiply: Multiply) -> Sections {
        let types = [(Elem::U8, vec![1, 3, 3, c]), (Elem::I8, vec![k, 3, 3, c / groups])];
        let types = types.map(|(elem, shape)| TensorType::new(elem, shape)).to_vec();
        let op = Conv { groups, ..Conv::unit() };
        let spec = KernelSpec::new(types, vec![(op.into(), vec![Arg::Operand(0), Arg::Operand(1)])]).unwrap();
        ConvGeometry::of(&spec).unwrap().sections(lanes, multiply)
    }

    #[test]
    fn groups_fill_vectors() {
        let of = |c, k, groups, lanes| {
            let Sections { vectors, inputs, merged, spread, depth } = sections(c, k, groups, lanes, Multiply::Dot);
            (vectors, inputs, merged, spread.map(|s| (s.dwords, s.steps)), depth)
        };
        assert_eq!(of(64, 96, 1, 16), (6, 64, 1, None, 9 * 64));
        assert_eq!(of(128, 256, 4, 16), (4, 32, 1, None, 9 * 32));
        // Groups that share a vector.
        assert_eq!(of(128, 128, 32, 16), (1, 16, 1, Some((4, 1)), 9 * 4));
        assert_eq!(of(256, 256, 32, 16), (1, 16, 1, Some((4, 2)), 9 * 8));
        assert_eq!(of(256, 128, 32, 8), (1, 16, 1, Some((4, 2)), 9 * 8));
        assert_eq!(of(64, 64, 32, 16), (1, 16, 2, Some((4, 1)), 9 * 4));
        // Zeros: groups of 12 inputs, of three vectors in two.
        assert_eq!(of(48, 16, 4, 8), (1, 24, 2, None, 9 * 24));
        assert_eq!(of(48, 96, 8, 8), (3, 12, 2, None, 9 * 12));
        assert_eq!(of(60, 48, 2, 8), (3, 30, 1, None, 9 * 32));
    }

    /// Lanes are all channels of the vector, and those of a group meet its dwords and no others.
    #[test]
    fn spread_lanes_meet_their_inputs() {
        for (c, k, groups, lanes, multiply) in [
            (128, 128, 32, 16, Multiply::Dot),
            (128, 128, 32, 16, Multiply::I16),
            (256, 256, 32, 16, Multiply::Dot),
            (64, 256, 32, 16, Multiply::I16),
            (256, 256, 32, 16, Multiply::I16),
            (128, 64, 32, 8, Multiply::Dot),
            (32, 32, 16, 8, Multiply::I16),
        ] {
            let sections = sections(c, k, groups, lanes, multiply);
            let Spread { dwords, steps } = sections.spread.unwrap();
            let outputs = sections.merged * k / groups;
            let mut channels: Vec<usize> =
                (0..lanes).map(|lane| Spread { dwords, steps }.channel(lanes, lane)).collect();
            for (lane, channel) in channels.iter().enumerate() {
                let met = (0..steps).map(|step| (lane % dwords) ^ step);
                assert!(met.into_iter().all(|dword| dword / steps == channel / outputs), "{lane} of {sections:?}");
            }
            channels.sort_unstable();
            assert!(channels.into_iter().eq(0..lanes));
        }
    }
}
