//! Schedules of the wide dense convolution, whose inner kernels are assembled for vectors of 256 or 512 bits.
//!
//! The kernel computes tiles of `mr` pixels by `nr` vectors of output channels. A unit of work, which one task
//! runs, is at most `rows` output rows of an image by at most `blocks` channel blocks (of `nr` vectors).
//! The unit's source rows are brought into the form that the products want once; for each channel block the
//! weights likewise, then all tiles of the block run.

use std::fmt;
use std::str::FromStr;

use hawqc_ir::{Elem, Range};

use crate::conv::ConvGeometry;
use crate::units::{balanced, near, shared_ns};
use crate::{DIRECT_MACS_PER_WORK, Machine, Parts, TASK_WORK, Units, WideMachine};

/// How products are formed and summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Multiply {
    /// Operands extended to 16 bits, pairs of products summed in 32: any 8-bit operands.
    I16,
    /// u8 times i8, pairs summed in 16 bits, which are added up in 16 bits over a window of steps.
    Sum16,
    /// u8 times i8, pairs summed in 16 bits, then two pairs in 32.
    Sum32,
    /// u8 times i8, four products summed in 32 bits by one instruction.
    Dot,
}

impl Multiply {
    pub const ALL: [Multiply; 4] = [Multiply::I16, Multiply::Sum16, Multiply::Sum32, Multiply::Dot];

    pub fn name(self) -> &'static str {
        match self {
            Multiply::I16 => "i16",
            Multiply::Sum16 => "sum16",
            Multiply::Sum32 => "sum32",
            Multiply::Dot => "dot",
        }
    }

    /// Reads `mul=i16`.
    pub(crate) fn read(word: &str) -> Result<Multiply, ()> {
        let name = word.strip_prefix("mul=").ok_or(())?;
        Multiply::ALL.into_iter().find(|m| m.name() == name).ok_or(())
    }

    /// Bytes of an operand as it is multiplied.
    pub fn operand_bytes(self) -> usize {
        if self == Multiply::I16 { 2 } else { 1 }
    }

    /// Consecutive input channels of a step: four bytes.
    pub fn step(self) -> usize {
        4 / self.operand_bytes()
    }
}

/// See the module's documentation. All at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WideSchedule {
    pub multiply: Multiply,
    /// Pixels of a register tile.
    pub mr: usize,
    /// Vectors of output channels of a register tile.
    pub nr: usize,
    /// Output rows of a unit at most.
    pub rows: usize,
    /// Channel blocks of a unit at most.
    pub blocks: usize,
}

/// Largest tile: general registers hold an address for every pixel.
const MAX_MR: usize = 8;
const MAX_NR: usize = 4;
const MAX_BLOCKING: usize = 1 << 16;
/// Bytes of prepared source rows that a unit should not exceed: half of a second-level cache.
const REGION_BYTES: usize = 192 << 10;
/// Pixels from which on units are rows rather than channels.
const LARGE_IMAGE: usize = 256;
/// Multiply-accumulates below which splitting work further does not pay.
const UNIT_MACS: usize = 400_000;
/// Tiles whose estimate is at most this many times the best are candidates.
const WORTH_TRYING: f64 = 4.0 / 3.0;
/// What reading from another core's cache costs two threads, weighed as [`shared_ns`] does: a quarter of what was measured
/// between cores of one third-level cache (Zen 4), not fitted.
const FOREIGN_NS_PER_BYTE: f64 = 0.025;
/// Shortest window of 16-bit sums that is worth its widening.
const SHORTEST_WINDOW: i64 = 4;

/// What a source of range `src` must be increased by to be unsigned.
pub fn unsigned_offset(src: Elem) -> i64 {
    match src {
        Elem::I4 => 8,
        Elem::I8 => 128,
        _ => 0,
    }
}

/// How many steps of `Sum16` stay within 16 bits for every source and weight in the given ranges; 0 if not one.
pub fn worst_window(src: Elem, src_range: Range, wei: Range) -> i64 {
    let offset = unsigned_offset(src);
    let most = (src_range.hi + offset).max(0);
    // A lane sums two products a step.
    let pair = 2 * most * wei.hi.abs().max(wei.lo.abs());
    if pair == 0 { i64::MAX } else { i64::from(i16::MAX) / pair }
}

impl WideSchedule {
    pub(crate) fn default_for(geometry: &ConvGeometry, machine: Machine) -> Option<WideSchedule> {
        let all = tiles(geometry, machine);
        let wide = geometry.wide_machine(machine)?;
        let cost = |s: &WideSchedule| {
            if !is_shared(geometry) {
                return s.estimated_ns(geometry, wide);
            }
            let shared = shared_ns(s.estimated_ns(geometry, wide), s.balance(geometry, wide.lanes));
            shared + s.foreign_bytes(geometry, wide.lanes) as f64 * FOREIGN_NS_PER_BYTE
        };
        let cheaper = |a: &&WideSchedule, b: &&WideSchedule| cost(a).total_cmp(&cost(b)).then(a.mr.cmp(&b.mr));
        all.iter().min_by(cheaper).copied()
    }

    /// The blockings that suit a tile: units of all channels, so that no input is brought into form twice, and of as few rows as
    /// there are units wanted; or else of as many rows as fit and of some of the channels, so that no weights are read twice.
    fn with_tile(geometry: &ConvGeometry, lanes: usize, multiply: Multiply, mr: usize, nr: usize) -> Vec<WideSchedule> {
        let rows_all = geometry.pixels / geometry.row_pixels;
        let blocks_all = geometry.channels_out().div_ceil(lanes * nr);
        let row_bytes = (geometry.row_values * multiply.operand_bytes()).max(1);
        let rows = (REGION_BYTES / row_bytes).clamp(1, geometry.image_rows);
        let rows = Parts::of(geometry.image_rows, rows).largest();
        // Enough units to share, few enough that a unit is worth handing over.
        let wanted = (macs(geometry) / UNIT_MACS).clamp(1, 8);
        let row_units = rows_all.div_ceil(rows);
        let schedule = WideSchedule { multiply, mr, nr, rows, blocks: blocks_all };
        if !is_shared(geometry) {
            return vec![schedule];
        }
        // A little larger or smaller, if threads then share the work better.
        let balance = |schedule: WideSchedule| schedule.balance(geometry, lanes);
        let fewer = if row_units < wanted { rows_all.div_ceil(wanted).clamp(1, rows) } else { rows };
        let fewer = Parts::of(geometry.image_rows, fewer).largest();
        let of_rows = |rows: usize| WideSchedule { rows, ..schedule };
        let by_rows =
            balanced(of_rows(fewer), near(geometry.image_rows, fewer, geometry.image_rows).map(of_rows), balance);
        let is_large = geometry.row_pixels * geometry.image_rows >= LARGE_IMAGE;
        if row_units >= wanted || is_large || geometry.groups > 1 || blocks_all == 1 {
            return vec![by_rows];
        }
        let fewer = blocks_all.div_ceil(wanted.div_ceil(row_units)).max(1);
        let of_blocks = |blocks: usize| WideSchedule { blocks, ..schedule };
        let by_blocks = balanced(of_blocks(fewer), near(blocks_all, fewer, blocks_all).map(of_blocks), balance);
        vec![by_rows, by_blocks]
    }

    /// Bytes that threads read of each other's results: all inputs, where threads share channels.
    fn foreign_bytes(&self, geometry: &ConvGeometry, lanes: usize) -> usize {
        let Units { images, rows, blocks } = self.units(geometry, lanes);
        let is_by_rows = blocks.count == 1 || images * rows.count > 1;
        if is_by_rows { 0 } else { geometry.image_rows * geometry.row_values * geometry.src_bytes }
    }

    /// What the work is cut into; blocks are those of `nr` vectors of so many lanes.
    pub fn units(&self, geometry: &ConvGeometry, lanes: usize) -> Units {
        Units {
            images: geometry.pixels / (geometry.row_pixels * geometry.image_rows),
            rows: Parts::of(geometry.image_rows, self.rows),
            blocks: Parts::of(geometry.channels_out().div_ceil(lanes * self.nr), self.blocks),
        }
    }

    /// How well threads share the units.
    fn balance(&self, geometry: &ConvGeometry, lanes: usize) -> f64 {
        self.units(geometry, lanes).balance((self.nr, geometry.channels_out().div_ceil(lanes)))
    }

    pub(crate) fn candidates(geometry: &ConvGeometry, machine: Machine) -> Vec<WideSchedule> {
        let mut all = tiles(geometry, machine);
        let Some(wide) = geometry.wide_machine(machine) else {
            return all;
        };
        let estimate = |s: &WideSchedule| s.estimated_ns(geometry, wide);
        let best = all.iter().map(estimate).fold(f64::INFINITY, f64::min);
        all.retain(|s| estimate(s) <= best * WORTH_TRYING);
        for schedule in all.clone() {
            all.push(WideSchedule { rows: schedule.rows.div_ceil(2), ..schedule });
            all.push(WideSchedule { blocks: schedule.blocks.div_ceil(2), ..schedule });
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    pub(crate) fn legal(self, geometry: &ConvGeometry, machine: Machine) -> Result<(), String> {
        let WideSchedule { multiply, mr, nr, rows, blocks } = self;
        let Some(wide) = geometry.wide_machine(machine) else {
            return Err(geometry.not_wide(machine));
        };
        if !(1..=MAX_MR).contains(&mr) || !(1..=MAX_NR).contains(&nr) {
            return Err(format!("a tile is 1 to {MAX_MR} pixels by 1 to {MAX_NR} vectors"));
        }
        if ![rows, blocks].iter().all(|v| (1..=MAX_BLOCKING).contains(v)) {
            return Err(format!("rows and blocks are 1 to {MAX_BLOCKING}"));
        }
        if rows > geometry.image_rows {
            return Err(format!("an image has {} rows", geometry.image_rows));
        }
        geometry.multiply_legal(multiply, wide)?;
        let section = geometry.sections(wide.lanes, multiply).vectors;
        let is_one = section * wide.lanes == geometry.channels_out();
        if !is_one && !nr.is_multiple_of(section) && !section.is_multiple_of(nr) {
            return Err(format!("{nr} vectors are neither a part nor a multiple of sections of {section} vectors"));
        }
        let needed = registers(multiply, mr, nr);
        if needed > wide.registers {
            return Err(format!("a tile of {mr} x {nr} needs {needed} registers, there are {}", wide.registers));
        }
        Ok(())
    }
}

fn macs(geometry: &ConvGeometry) -> usize {
    geometry.pixels * geometry.channels_out() * geometry.depth
}

/// Whether there is work enough for two threads.
fn is_shared(geometry: &ConvGeometry) -> bool {
    macs(geometry) >= 2 * TASK_WORK * DIRECT_MACS_PER_WORK
}

/// Registers of a tile whose weights come from memory: sums, an input, products in flight, a constant.
pub(crate) fn registers(multiply: Multiply, mr: usize, nr: usize) -> usize {
    let products = match multiply {
        Multiply::Dot => 0,
        _ => usize::from(nr > 1),
    };
    mr * nr + 1 + products + usize::from(multiply == Multiply::Sum32)
}

impl ConvGeometry {
    /// The vectors that a wide kernel of this convolution would use.
    pub fn wide_machine(&self, machine: Machine) -> Option<WideMachine> {
        let fits = self.wei != Elem::I16 && self.plain_rounding;
        let multiply = if self.src == Elem::I16 { Multiply::I16 } else { Multiply::Dot };
        let filled = |wide: &WideMachine| fits && self.channels_out().is_multiple_of(wide.lanes);
        // Narrower vectors may need fewer zeros.
        machine.wide.into_iter().flatten().filter(filled).min_by_key(|wide| self.sections(wide.lanes, multiply).depth)
    }

    /// The same, of convolutions of one group.
    pub fn dense_machine(&self, machine: Machine) -> Option<WideMachine> {
        self.wide_machine(machine).filter(|_| self.groups == 1)
    }

    pub(crate) fn not_wide(&self, machine: Machine) -> String {
        match machine.wide {
            [None, None] => "the target has no vectors of 256 bits".to_owned(),
            _ => format!(
                "a wide kernel takes convolutions with weights of up to 8 bits, output channels in eights and plain \
                 roundings, and some only of one group, not {} channels in {} groups",
                self.channels_out(),
                self.groups
            ),
        }
    }

    fn multiply_legal(&self, multiply: Multiply, wide: WideMachine) -> Result<(), String> {
        let name = multiply.name();
        let four_bits = self.wei == Elem::I4;
        if multiply == Multiply::I16 {
            return if four_bits && self.src != Elem::I16 {
                Err("4-bit weights are multiplied as bytes".to_owned())
            } else if four_bits {
                Err("4-bit weights with 16-bit inputs are left to the portable kernel".to_owned())
            } else {
                Ok(())
            };
        }
        if self.src == Elem::I16 {
            return Err(format!("`{name}` multiplies bytes"));
        }
        let window = worst_window(self.src, self.src_range, self.wei_range);
        match multiply {
            Multiply::Dot if !wide.dot => Err("the target has no 8-bit dot product of this width".to_owned()),
            Multiply::Sum32 if window < 1 => Err("a pair of products may exceed 16 bits".to_owned()),
            Multiply::Sum16 if window < SHORTEST_WINDOW => Err(format!("sums may exceed 16 bits after {window} steps")),
            _ => Ok(()),
        }
    }
}

/// Every legal tile with its blockings.
pub(crate) fn tiles(geometry: &ConvGeometry, machine: Machine) -> Vec<WideSchedule> {
    let mut all = Vec::new();
    let Some(wide) = geometry.wide_machine(machine) else {
        return all;
    };
    let vectors = geometry.channels_out() / wide.lanes;
    for multiply in Multiply::ALL {
        for nr in 1..=MAX_NR.min(vectors) {
            for mr in 1..=MAX_MR.min(geometry.pixels) {
                let blockings = WideSchedule::with_tile(geometry, wide.lanes, multiply, mr, nr);
                all.extend(blockings.into_iter().filter(|schedule| schedule.legal(geometry, machine).is_ok()));
            }
        }
    }
    all
}

impl fmt::Display for WideSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WideSchedule { multiply, mr, nr, rows, blocks } = self;
        write!(f, "wide mul={} mr={mr} nr={nr} rows={rows} blocks={blocks}", multiply.name())
    }
}

impl FromStr for WideSchedule {
    type Err = ();
    fn from_str(text: &str) -> Result<WideSchedule, ()> {
        let words: Vec<&str> = text.split(' ').collect();
        let ["wide", multiply, mr, nr, rows, blocks] = words.as_slice() else {
            return Err(());
        };
        let number = crate::number;
        Ok(WideSchedule {
            multiply: Multiply::read(multiply)?,
            mr: number(mr, "mr")?,
            nr: number(nr, "nr")?,
            rows: number(rows, "rows")?,
            blocks: number(blocks, "blocks")?,
        })
    }
}
