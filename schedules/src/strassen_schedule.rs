//! Schedules of 1x1 convolutions by Strassen's algorithm ([`crate::strassen`]) in lanes of 8 bits.
//!
//! A *tile* is as many consecutive pixels as parts that pixels are split into. A unit of work is at most `tiles` tiles by a group of at most
//! `blocks` channel blocks (of `nr` vectors of every part of the channels); its products run in register tiles of `mr`
//! tiles by `nr` vectors.

use std::fmt;
use std::str::FromStr;

use crate::conv::ConvGeometry;
use crate::strassen::{Levels, MAX_LEVELS};
use crate::wide::registers;
use crate::{Machine, Multiply, WideMachine};

/// See the module's documentation. All at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StrassenSchedule {
    /// Halvings, at most [`MAX_LEVELS`].
    pub levels: usize,
    pub mr: usize,
    pub nr: usize,
    pub tiles: usize,
    pub blocks: usize,
}

const MAX_MR: usize = 8;
const MAX_NR: usize = 4;
/// Bounds scratch memory, and with it displacements within it.
const MAX_TILES: usize = 1 << 10;
const MAX_BLOCKS: usize = 1 << 16;
/// Register tiles that are tried, the default one first, and pixels of a unit.
const TILES: [(usize, usize); 4] = [(7, 3), (4, 4), (6, 4), (8, 3)];
const UNIT_PIXELS: [usize; 2] = [56, 112];
/// Input channels and pixels from which on one level is faster than direct products, with as many output channels at
/// most: `docs/strassen.md`.
const WORTH_CHANNELS: usize = 512;
const WORTH_PIXELS: usize = 49;
/// Registers that combining the sums of two levels takes.
const COMBINING_REGISTERS: usize = 32;

impl StrassenSchedule {
    /// The schedule worth having without a measurement. It was measured with AVX-512 only, and one level nearly as fast in a
    /// network as two, whose weights take more memory.
    pub(crate) fn default_for(geometry: &ConvGeometry, machine: Machine) -> Option<StrassenSchedule> {
        let is_large = geometry.group_in >= WORTH_CHANNELS.max(geometry.channels) && geometry.pixels >= WORTH_PIXELS;
        let was_measured = geometry.dense_machine(machine)?.registers >= COMBINING_REGISTERS;
        let first = StrassenSchedule::candidates(geometry, machine).into_iter().next()?;
        (is_large && was_measured && first.levels == 1).then_some(first)
    }

    pub(crate) fn candidates(geometry: &ConvGeometry, machine: Machine) -> Vec<StrassenSchedule> {
        let mut all = Vec::new();
        let Some(wide) = geometry.dense_machine(machine) else {
            return all;
        };
        for levels in 1..=MAX_LEVELS {
            let parts = Levels(levels).parts();
            // Wider weights may be narrow enough, but seldom are.
            if geometry.wei_range.magnitude() * parts as i64 > 1 << 7 {
                break;
            }
            for (mr, nr) in TILES {
                for pixels in UNIT_PIXELS {
                    let schedule = StrassenSchedule::with_tile(geometry, wide, levels, (mr, nr), pixels);
                    if schedule.legal(geometry, machine).is_ok() && !all.contains(&schedule) {
                        all.push(schedule);
                    }
                }
            }
        }
        all
    }

    /// Equal units of about so many pixels.
    fn with_tile(
        geometry: &ConvGeometry,
        wide: WideMachine,
        levels: usize,
        (mr, nr): (usize, usize),
        pixels: usize,
    ) -> StrassenSchedule {
        let parts = Levels(levels).parts();
        let (units, all) = (geometry.pixels.div_ceil(pixels), geometry.pixels.div_ceil(parts));
        let tiles = all.div_ceil(units).next_multiple_of(mr).min(all);
        let blocks = (geometry.channels / parts / wide.lanes).div_ceil(nr).max(1);
        // Enough units to share.
        let blocks = if units >= 4 { blocks } else { blocks.div_ceil(4) };
        StrassenSchedule { levels, mr, nr, tiles, blocks }
    }

    /// Whether the schedule may be asked for; the proof that it gives every bit needs the weights.
    pub(crate) fn legal(self, geometry: &ConvGeometry, machine: Machine) -> Result<(), String> {
        let wide = geometry.dense_machine(machine).ok_or_else(|| geometry.not_wide(machine))?;
        self.algorithm_legal(geometry, wide)?;
        let StrassenSchedule { mr, nr, tiles, blocks, .. } = self;
        if !(1..=MAX_MR).contains(&mr) || !(1..=MAX_NR).contains(&nr) {
            return Err(format!("a tile is 1 to {MAX_MR} by 1 to {MAX_NR} vectors"));
        }
        if !(1..=MAX_TILES).contains(&tiles) || !(1..=MAX_BLOCKS).contains(&blocks) {
            return Err(format!("tiles are 1 to {MAX_TILES}, blocks 1 to {MAX_BLOCKS}"));
        }
        let all = geometry.pixels.div_ceil(Levels(self.levels).parts());
        if tiles > all {
            return Err(format!("there are {all} tiles"));
        }
        let needed = registers(Multiply::Dot, mr, nr);
        if needed > wide.registers {
            return Err(format!("a tile of {mr} x {nr} needs {needed} registers, there are {}", wide.registers));
        }
        Ok(())
    }

    fn algorithm_legal(&self, geometry: &ConvGeometry, wide: WideMachine) -> Result<(), String> {
        if !(1..=MAX_LEVELS).contains(&self.levels) {
            return Err(format!("levels are 1 to {MAX_LEVELS}"));
        }
        if geometry.kernel != [1, 1] || geometry.stride != [1, 1] {
            return Err("the algorithm is for 1x1 taps of stride 1".to_owned());
        }
        if !wide.dot {
            return Err("the target has no 8-bit dot product of this width".to_owned());
        }
        if self.levels > 1 && wide.registers < COMBINING_REGISTERS {
            return Err(format!("two levels need {COMBINING_REGISTERS} registers, there are {}", wide.registers));
        }
        let parts = Levels(self.levels).parts();
        let (inputs, outputs) = (4 * wide.lanes * parts, wide.lanes * parts);
        if geometry.wide || !geometry.group_in.is_multiple_of(inputs) || !geometry.channels.is_multiple_of(outputs) {
            return Err(format!(
                "the algorithm takes inputs of up to 8 bits, {inputs} channels at a time, to {outputs} channels at a time, \
                 not {} to {}",
                geometry.group_in, geometry.channels
            ));
        }
        let span = geometry.src_range.hi - geometry.src_range.lo;
        if span.saturating_mul(parts as i64) >= 1 << 8 {
            return Err(format!("inputs that span {span} do not fit 8 bits in sums of {parts}"));
        }
        Ok(())
    }
}

impl fmt::Display for StrassenSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StrassenSchedule { levels, mr, nr, tiles, blocks } = self;
        write!(f, "strassen levels={levels} mr={mr} nr={nr} tiles={tiles} blocks={blocks}")
    }
}

impl FromStr for StrassenSchedule {
    type Err = ();
    fn from_str(text: &str) -> Result<StrassenSchedule, ()> {
        let words: Vec<&str> = text.split(' ').collect();
        let ["strassen", levels, mr, nr, tiles, blocks] = words.as_slice() else {
            return Err(());
        };
        let number = crate::number;
        Ok(StrassenSchedule {
            levels: number(levels, "levels")?,
            mr: number(mr, "mr")?,
            nr: number(nr, "nr")?,
            tiles: number(tiles, "tiles")?,
            blocks: number(blocks, "blocks")?,
        })
    }
}
