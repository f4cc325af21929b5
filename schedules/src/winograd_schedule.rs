//! Schedules of convolutions by an exact integer Winograd algorithm ([`crate::winograd`]) in lanes of 16 bits.
//!
//! A unit of work is `rows` rows of tiles of an image by a group of `blocks` channel blocks (of `nr` vectors); its
//! products run in register tiles of `mr` tiles by `nr` vectors.

use std::fmt;
use std::str::FromStr;

use hawqc_ir::Elem;

use crate::Machine;
use crate::conv::ConvGeometry;
use crate::winograd::{Kernel, Lane, Member};

/// See the module's documentation. All at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WinogradSchedule {
    /// Outputs of a tile along height and width.
    pub outputs: [usize; 2],
    pub mr: usize,
    pub nr: usize,
    pub rows: usize,
    pub blocks: usize,
}

/// Tiles that are tried.
const OUTPUTS: [[usize; 2]; 2] = [[4, 4], [2, 2]];
const MAX_MR: usize = 8;
const MAX_NR: usize = 4;
/// Tiles of a unit: enough to read a block's weights for, few enough to stay in the second-level cache.
const UNIT_TILES: usize = 28;

impl WinogradSchedule {
    /// The algorithm for a kernel of `taps`, if there is one.
    pub fn member(&self, taps: [usize; 2]) -> Option<Member> {
        Member::new(Kernel { taps, stride: [1, 1] }, self.outputs, [&[], &[]], Lane::I16)
    }

    /// The schedule worth having without a measurement: tiles of 4x4 outputs on machines without an 8-bit dot
    /// product, where products of 16-bit lanes cost no more, for images large enough to make up for weights that
    /// take eight times the bytes. Measured on one core with AVX2: `docs/results.md`.
    pub(crate) fn default_for(geometry: &ConvGeometry, machine: Machine) -> Option<WinogradSchedule> {
        let four_bits = geometry.wei == Elem::I4;
        let smallest = if four_bits { 28 } else { 14 };
        let large = geometry.image_rows.min(geometry.row_pixels) >= smallest;
        let worthwhile = large && !geometry.wide_machine(machine)?.dot;
        let mut all = WinogradSchedule::candidates(geometry, machine).into_iter();
        all.find(|s| worthwhile && s.outputs == [4, 4] && (s.mr, s.nr) == (6, 2))
    }

    pub(crate) fn candidates(geometry: &ConvGeometry, machine: Machine) -> Vec<WinogradSchedule> {
        let mut all = Vec::new();
        for outputs in OUTPUTS {
            let [height, width] = [geometry.image_rows, geometry.row_pixels];
            let [down, across] = [height.div_ceil(outputs[0]), width.div_ceil(outputs[1])];
            for (mr, nr) in [(7, 2), (6, 2), (4, 3), (8, 1), (4, 2)] {
                for tiles in [UNIT_TILES, 2 * UNIT_TILES] {
                    let rows = (tiles / across).clamp(1, down);
                    let rows = down.div_ceil(down.div_ceil(rows));
                    let units = down.div_ceil(rows);
                    let blocks_all = geometry.channels.div_ceil(8 * nr);
                    let blocks = if units >= 4 { blocks_all } else { blocks_all.div_ceil(4) };
                    let schedule = WinogradSchedule { outputs, mr, nr, rows, blocks };
                    if schedule.legal(geometry, machine).is_ok() && !all.contains(&schedule) {
                        all.push(schedule);
                    }
                }
            }
        }
        all
    }

    /// Whether the schedule may be asked for; the proof that it gives every bit needs the weights.
    pub(crate) fn legal(self, geometry: &ConvGeometry, machine: Machine) -> Result<(), String> {
        let WinogradSchedule { outputs, mr, nr, rows, blocks } = self;
        let Some(wide) = geometry.wide_machine(machine) else {
            return Err(geometry.not_wide(machine));
        };
        if geometry.kernel != [3, 3] || geometry.stride != [1, 1] || geometry.dilation != [1, 1] {
            return Err("the algorithm is for 3x3 taps, stride 1, without dilation".to_owned());
        }
        if !OUTPUTS.contains(&outputs) {
            return Err("tiles are of 2x2 or 4x4 outputs".to_owned());
        }
        if geometry.wide || !geometry.group_in.is_multiple_of(2 * wide.lanes) {
            return Err(format!(
                "the algorithm takes inputs of up to 8 bits, {} channels at a time, not {} channels",
                2 * wide.lanes,
                geometry.group_in
            ));
        }
        if !(1..=MAX_MR).contains(&mr) || !(1..=MAX_NR).contains(&nr) || rows == 0 || blocks == 0 {
            return Err(format!("a tile is 1 to {MAX_MR} by 1 to {MAX_NR} vectors, rows and blocks are at least 1"));
        }
        if rows > geometry.image_rows.div_ceil(outputs[0]) {
            return Err(format!("an image has {} rows of tiles", geometry.image_rows.div_ceil(outputs[0])));
        }
        let needed = mr * nr + 1 + usize::from(nr > 1);
        if needed > wide.registers {
            return Err(format!("a tile of {mr} x {nr} needs {needed} registers, there are {}", wide.registers));
        }
        Ok(())
    }
}

impl fmt::Display for WinogradSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WinogradSchedule { outputs: [h, w], mr, nr, rows, blocks } = self;
        write!(f, "winograd m={h}x{w} mr={mr} nr={nr} rows={rows} blocks={blocks}")
    }
}

impl FromStr for WinogradSchedule {
    type Err = ();
    fn from_str(text: &str) -> Result<WinogradSchedule, ()> {
        let words: Vec<&str> = text.split(' ').collect();
        let ["winograd", outputs, mr, nr, rows, blocks] = words.as_slice() else {
            return Err(());
        };
        let outputs = OUTPUTS.into_iter().find(|[h, w]| *outputs == format!("m={h}x{w}")).ok_or(())?;
        let number = crate::number;
        Ok(WinogradSchedule {
            outputs,
            mr: number(mr, "mr")?,
            nr: number(nr, "nr")?,
            rows: number(rows, "rows")?,
            blocks: number(blocks, "blocks")?,
        })
    }
}
