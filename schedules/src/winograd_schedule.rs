//! Schedules of convolutions by an exact integer Winograd algorithm ([`crate::winograd`]) in lanes of 8 or 16 bits.
//!
//! A unit of work is at most `rows` rows of tiles of an image by a group of `blocks` channel blocks (of `nr` vectors); its
//! products run in register tiles of `mr` tiles by `nr` vectors. With a stride, or with taps in `runs`, several products of a
//! tile share a sum.

use std::fmt;
use std::str::FromStr;

use crate::conv::ConvGeometry;
use crate::units::{balanced, shared_ns};
use crate::wide::registers;
use crate::winograd::{Kernel, Lane, Member};
use crate::{Machine, Multiply, Parts, Units, WideMachine, WideSchedule};

/// See the module's documentation. All at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WinogradSchedule {
    /// How products are formed; with it the lanes.
    pub multiply: Multiply,
    /// Outputs of a tile along height and width.
    pub outputs: [usize; 2],
    /// What the taps of a dimension that has so many are split into; whole where empty.
    pub runs: &'static [usize],
    pub mr: usize,
    pub nr: usize,
    pub rows: usize,
    pub blocks: usize,
}

/// Tiles and runs that are tried for a kernel.
fn algorithms(taps: [usize; 2], stride: [usize; 2]) -> &'static [([usize; 2], &'static [usize])] {
    match (taps, stride) {
        ([3, 3], [1, 1]) => &[([4, 4], &[]), ([4, 2], &[]), ([3, 2], &[]), ([2, 2], &[])],
        ([3, 3], [2, 2]) => &[([4, 4], &[]), ([4, 3], &[]), ([4, 2], &[]), ([3, 3], &[]), ([3, 2], &[]), ([2, 2], &[])],
        ([5, 5], [1, 1]) => &[([2, 2], &[]), ([4, 4], &[3, 2]), ([3, 2], &[3, 2]), ([2, 2], &[3, 2])],
        ([1, 3], [1, 1]) => &[([1, 4], &[]), ([1, 2], &[])],
        ([3, 1], [1, 1]) => &[([4, 1], &[]), ([2, 1], &[])],
        ([1, 5], [1, 1]) => &[([1, 4], &[]), ([1, 2], &[]), ([1, 4], &[3, 2])],
        ([5, 1], [1, 1]) => &[([4, 1], &[]), ([2, 1], &[]), ([4, 1], &[3, 2])],
        ([1, 7], [1, 1]) => &[([1, 2], &[]), ([1, 4], &[3, 3, 1]), ([1, 3], &[4, 3])],
        ([7, 1], [1, 1]) => &[([2, 1], &[]), ([4, 1], &[3, 3, 1]), ([3, 1], &[4, 3])],
        _ => &[],
    }
}

/// What taps are split into, as schedules name it.
const RUNS: [&[usize]; 3] = [&[3, 2], &[4, 3], &[3, 3, 1]];

const MAX_MR: usize = 8;
/// Where several positions add to a sum, one of the tile's addresses has to make room for the loop over them.
const MAX_MR_SHARED: usize = 7;
const MAX_NR: usize = 4;
/// See [`WinogradSchedule::sums_last`]; the growth of two dimensions of 2 and 2 taps.
const SUM16_GROWTH: i64 = 4;
/// Register tiles that are tried.
const TILES: [(usize, usize); 5] = [(7, 2), (6, 2), (4, 3), (8, 1), (4, 2)];
/// Tiles of a unit: enough to read a block's weights for, few enough to stay in the second-level cache.
const UNIT_TILES: usize = 28;

impl WinogradSchedule {
    pub fn lane(&self) -> Lane {
        if self.multiply == Multiply::I16 { Lane::I16 } else { Lane::I8 }
    }

    /// The algorithm for a kernel, if there is one.
    pub fn member(&self, kernel: Kernel) -> Option<Member> {
        Member::new(kernel, self.outputs, self.runs_of(kernel), self.lane())
    }

    /// What the taps of each dimension are split into.
    fn runs_of(&self, kernel: Kernel) -> [&'static [usize]; 2] {
        kernel.taps.map(|taps| if self.runs.iter().sum::<usize>() == taps { self.runs } else { &[] })
    }

    /// Schedules worth having without a measurement, the best of each algorithm, the best first: those that an estimate
    /// expects to be faster than direct convolution by `direct`.
    pub(crate) fn defaults_for(
        geometry: &ConvGeometry,
        machine: Machine,
        direct: &WideSchedule,
    ) -> Vec<WinogradSchedule> {
        let Some(wide) = geometry.dense_machine(machine) else {
            return Vec::new();
        };
        let limit = direct.estimated_ns(geometry, wide);
        let all = WinogradSchedule::candidates(geometry, machine).into_iter().filter(|s| s.sums_last(geometry));
        let estimated = all.map(|s| (s.estimated_ns(geometry, wide), s)).filter(|&(ns, _)| ns < limit);
        let mut shared: Vec<(f64, WinogradSchedule)> =
            estimated.map(|(ns, s)| (shared_ns(ns, s.balance(geometry, wide)), s)).collect();
        shared.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut seen = Vec::new();
        let mut all: Vec<WinogradSchedule> = shared.into_iter().map(|(_, s)| s).collect();
        all.retain(|s| {
            let algorithm = (s.multiply, s.outputs, s.runs);
            let is_new = !seen.contains(&algorithm);
            seen.push(algorithm);
            is_new
        });
        all
    }

    /// Whether an estimate holds for the algorithm, which does not see how soon sums of 16 bits have to be widened: where
    /// positions share sums, those whose inputs grow more were slower than it expects.
    fn sums_last(&self, geometry: &ConvGeometry) -> bool {
        let growth = || self.member(geometry.taps()).map_or(1, |member| member.algorithm.input_growth());
        self.multiply != Multiply::Sum16 || !self.shares_sums(geometry) || growth() <= SUM16_GROWTH
    }

    /// Whether several positions add to a sum.
    fn shares_sums(&self, geometry: &ConvGeometry) -> bool {
        geometry.stride != [1, 1] || !self.runs.is_empty()
    }

    /// What the work is cut into; rows are those of tiles, blocks those of `nr` vectors.
    pub fn units(&self, geometry: &ConvGeometry, wide: WideMachine) -> Units {
        Units {
            images: geometry.pixels / (geometry.row_pixels * geometry.image_rows),
            rows: Parts::of(geometry.image_rows.div_ceil(self.outputs[0]), self.rows),
            blocks: Parts::of(geometry.channels.div_ceil(wide.lanes * self.nr), self.blocks),
        }
    }

    /// How well threads share the units.
    fn balance(&self, geometry: &ConvGeometry, wide: WideMachine) -> f64 {
        self.units(geometry, wide).balance((self.nr, geometry.channels.div_ceil(wide.lanes)))
    }

    pub(crate) fn candidates(geometry: &ConvGeometry, machine: Machine) -> Vec<WinogradSchedule> {
        let mut all = Vec::new();
        let Some(wide) = geometry.dense_machine(machine) else {
            return all;
        };
        let [height, width] = [geometry.image_rows, geometry.row_pixels];
        let products = |&(outputs, runs)| Multiply::ALL.map(|multiply| (multiply, outputs, runs));
        for (multiply, outputs, runs) in algorithms(geometry.kernel, geometry.stride).iter().flat_map(products) {
            let [down, across] = [height.div_ceil(outputs[0]), width.div_ceil(outputs[1])];
            let mut of_algorithm = Vec::new();
            for (mr, nr) in TILES {
                for unit in [UNIT_TILES, 2 * UNIT_TILES] {
                    let rows = (unit / across).clamp(1, down);
                    let rows = Parts::of(down, rows).largest();
                    let blocks_all = geometry.channels.div_ceil(wide.lanes * nr);
                    let whole = WinogradSchedule { multiply, outputs, runs, mr, nr, rows, blocks: blocks_all };
                    let balance = |rows: usize| WinogradSchedule { rows, ..whole }.balance(geometry, wide);
                    let rows = balanced(rows, rows..=(2 * UNIT_TILES / across).min(down), balance);
                    let units = down.div_ceil(rows);
                    // Every group of blocks transforms the inputs again.
                    let groups: &[usize] = if units >= 4 { &[1] } else { &[2, 4] };
                    for groups in groups {
                        let blocks = blocks_all.div_ceil(*groups);
                        let schedule = WinogradSchedule { rows, blocks, ..whole };
                        if schedule.blocking_legal(geometry, wide).is_ok() && !of_algorithm.contains(&schedule) {
                            of_algorithm.push(schedule);
                        }
                    }
                }
            }
            // Deriving the algorithm takes longest: once for all its blockings.
            if of_algorithm.first().is_some_and(|s| s.algorithm_legal(geometry, wide).is_ok()) {
                all.extend(of_algorithm);
            }
        }
        all
    }

    /// Whether the schedule may be asked for; the proof that it gives every bit needs the weights.
    pub(crate) fn legal(self, geometry: &ConvGeometry, machine: Machine) -> Result<(), String> {
        let wide = geometry.dense_machine(machine).ok_or_else(|| geometry.not_wide(machine))?;
        self.algorithm_legal(geometry, wide)?;
        self.blocking_legal(geometry, wide)
    }

    /// Whether there is such an algorithm for the convolution, in lanes that inputs fit.
    fn algorithm_legal(&self, geometry: &ConvGeometry, wide: WideMachine) -> Result<(), String> {
        let ([kh, kw], [sh, sw]) = (geometry.kernel, geometry.stride);
        if geometry.dilation != [1, 1] {
            return Err("the algorithm is for convolutions without dilation".to_owned());
        }
        let known = algorithms(geometry.kernel, geometry.stride);
        let member = self.member(geometry.taps()).filter(|_| known.contains(&(self.outputs, self.runs)));
        let Some(member) = member else {
            let known: Vec<String> = known.iter().map(|&(outputs, runs)| tile(outputs, runs)).collect();
            return Err(format!("tiles for {kh}x{kw} taps at stride {sh}x{sw} are: {}", known.join(", ")));
        };
        let step = self.multiply.step();
        if geometry.wide || !geometry.group_in.is_multiple_of(step) {
            return Err(format!(
                "the algorithm takes inputs of up to 8 bits, {step} channels at a time, not {} channels",
                geometry.group_in
            ));
        }
        if self.multiply == Multiply::Dot && !wide.dot {
            return Err("the target has no 8-bit dot product of this width".to_owned());
        }
        let span = geometry.src_range.hi - geometry.src_range.lo;
        let growth = member.algorithm.input_growth();
        if span.saturating_mul(growth) >= 1 << self.lane().bits() {
            return Err(format!("inputs that span {span} and grow {growth} times do not fit lanes of {}", self.lane()));
        }
        Ok(())
    }

    fn blocking_legal(&self, geometry: &ConvGeometry, wide: WideMachine) -> Result<(), String> {
        let WinogradSchedule { multiply, outputs, mr, nr, rows, blocks, .. } = *self;
        let most = if self.shares_sums(geometry) { MAX_MR_SHARED } else { MAX_MR };
        if !(1..=most).contains(&mr) || !(1..=MAX_NR).contains(&nr) || rows == 0 || blocks == 0 {
            return Err(format!("a tile is 1 to {most} by 1 to {MAX_NR} vectors, rows and blocks are at least 1"));
        }
        if rows > geometry.image_rows.div_ceil(outputs[0]) {
            return Err(format!("an image has {} rows of tiles", geometry.image_rows.div_ceil(outputs[0])));
        }
        let needed = registers(multiply, mr, nr);
        if needed > wide.registers {
            return Err(format!("a tile of {mr} x {nr} needs {needed} registers, there are {}", wide.registers));
        }
        Ok(())
    }
}

impl ConvGeometry {
    pub(crate) fn taps(&self) -> Kernel {
        Kernel { taps: self.kernel, stride: self.stride }
    }
}

/// `m=4x4`, with runs `m=4x4 taps=3+2`.
fn tile([height, width]: [usize; 2], runs: &[usize]) -> String {
    let taps = if runs.is_empty() { String::new() } else { format!(" taps={}", sum_of(runs)) };
    format!("m={height}x{width}{taps}")
}

/// `3+2`.
fn sum_of(runs: &[usize]) -> String {
    let runs: Vec<String> = runs.iter().map(usize::to_string).collect();
    runs.join("+")
}

impl fmt::Display for WinogradSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WinogradSchedule { multiply, outputs, runs, mr, nr, rows, blocks } = self;
        let (multiply, tile) = (multiply.name(), tile(*outputs, runs));
        write!(f, "winograd mul={multiply} {tile} mr={mr} nr={nr} rows={rows} blocks={blocks}")
    }
}

impl FromStr for WinogradSchedule {
    type Err = ();
    fn from_str(text: &str) -> Result<WinogradSchedule, ()> {
        let words: Vec<&str> = text.split(' ').collect();
        let (multiply, outputs, taps, [mr, nr, rows, blocks]) = match *words.as_slice() {
            ["winograd", multiply, m, mr, nr, rows, blocks] => (multiply, m, None, [mr, nr, rows, blocks]),
            ["winograd", multiply, m, taps, mr, nr, rows, blocks] => (multiply, m, Some(taps), [mr, nr, rows, blocks]),
            _ => return Err(()),
        };
        let named = |taps: &str| RUNS.into_iter().find(|runs| taps == format!("taps={}", sum_of(runs))).ok_or(());
        let number = crate::number;
        let (height, width) = outputs.strip_prefix("m=").and_then(|m| m.split_once('x')).ok_or(())?;
        let side = |text: &str| number(&format!("m={text}"), "m");
        Ok(WinogradSchedule {
            multiply: Multiply::read(multiply)?,
            outputs: [side(height)?, side(width)?],
            runs: taps.map_or(Ok(&[][..]), named)?,
            mr: number(mr, "mr")?,
            nr: number(nr, "nr")?,
            rows: number(rows, "rows")?,
            blocks: number(blocks, "blocks")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::winograd::members;

    /// What the tests of the family say holds for what schedules use.
    #[test]
    fn every_algorithm_is_a_member_of_the_family() {
        for taps in [[3, 3], [5, 5], [1, 3], [3, 1], [1, 5], [5, 1], [1, 7], [7, 1]] {
            for stride in [[1, 1], [2, 2]] {
                let kernel = Kernel { taps, stride };
                let all = members(kernel);
                assert!(stride == [2, 2] || !algorithms(taps, stride).is_empty());
                for &(outputs, runs) in algorithms(taps, stride) {
                    for multiply in [Multiply::Dot, Multiply::I16] {
                        let schedule = WinogradSchedule { multiply, outputs, runs, mr: 1, nr: 1, rows: 1, blocks: 1 };
                        let member = schedule.member(kernel).unwrap();
                        assert!(all.contains(&member), "{member}");
                    }
                }
            }
        }
    }
}
