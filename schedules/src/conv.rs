//! Schedules of the portable dense convolution.
//!
//! The kernel computes tiles of `mr` pixels by `nr` vectors of four output channels. A unit of work,
//! which one task runs, is a block of `tiles` pixel tiles by a group of `blocks` channel blocks
//! (of `4 * nr` channels): the weights of a channel block are reused over the pixel block, the
//! pixels over the group.

use std::fmt;
use std::str::FromStr;

use hawqc_ir::{Arg, Elem, KernelSpec, Op, Range, Rounding};

use crate::Machine;

/// See the module's documentation. All at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConvSchedule {
    /// Pixels of a register tile.
    pub mr: usize,
    /// Vectors of four output channels of a register tile.
    pub nr: usize,
    /// Pixel tiles of a unit.
    pub tiles: usize,
    /// Channel blocks of a unit.
    pub blocks: usize,
}

/// What of a convolution matters to its schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvGeometry {
    /// Output pixels, batch included.
    pub pixels: usize,
    /// Output channels per group.
    pub channels: usize,
    /// Taps times input channels per group.
    pub depth: usize,
    /// Bytes of an input value.
    pub src_bytes: usize,
    /// Weights of 4 bits are packed two per byte, in pairs of vectors.
    pub packed_pairs: bool,
    /// Inputs or weights of 16 bits.
    pub wide: bool,
    pub groups: usize,
    pub src: Elem,
    /// Of the source and the padding's value.
    pub src_range: Range,
    pub wei: Elem,
    pub wei_range: Range,
    /// Output pixels of a row, output rows of an image.
    pub row_pixels: usize,
    pub image_rows: usize,
    /// Source values that one more output row needs.
    pub row_values: usize,
    /// See [`plain_rounding`].
    pub plain_rounding: bool,
    /// Taps, stride and dilation along height and width, and input channels of a group.
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    pub dilation: [usize; 2],
    pub group_in: usize,
}

/// Largest of each parameter.
const MAX_TILE: usize = 8;
const MAX_BLOCKING: usize = 1 << 16;
/// Bytes of input that a unit's pixel block should not exceed, to stay in the first-level cache.
const PIXEL_BLOCK_BYTES: usize = 24 << 10;
/// Multiply-accumulates below which splitting work further does not pay.
const UNIT_MACS: usize = 100_000;

impl ConvGeometry {
    /// The geometry of a spec whose first step is a convolution; `None` for every other,
    /// depthwise convolutions (one input and one output channel per group) included.
    pub fn of(spec: &KernelSpec) -> Option<ConvGeometry> {
        let step = spec.steps().first()?;
        let (Op::Conv(conv), [Arg::Operand(src), Arg::Operand(wei), ..]) = (&step.op, step.args.as_slice()) else {
            return None;
        };
        let (src, wei) = (spec.operands().get(*src)?, spec.operands().get(*wei)?);
        let (&[k, kh, kw, cg], &[_, _, w, c], &[_, oh, ow, _]) =
            (wei.shape.as_slice(), src.shape.as_slice(), step.ty.shape.as_slice())
        else {
            return None;
        };
        if conv.groups > 1 && cg == 1 && k == conv.groups {
            return None;
        }
        Some(ConvGeometry {
            pixels: step.ty.elements() / k,
            channels: k / conv.groups,
            depth: kh * kw * cg,
            src_bytes: src.elem.bytes(),
            packed_pairs: wei.elem == Elem::I4,
            wide: src.elem == Elem::I16 || wei.elem == Elem::I16,
            groups: conv.groups,
            src: src.elem,
            src_range: src.int_range().ok()?.union(Range::new(conv.pad_value.into(), conv.pad_value.into())),
            wei: wei.elem,
            wei_range: wei.int_range().ok()?,
            row_pixels: ow,
            image_rows: oh,
            row_values: conv.stride[0] * w * c,
            kernel: [kh, kw],
            stride: conv.stride,
            dilation: conv.dilation,
            group_in: cg,
            plain_rounding: plain_rounding(spec),
        })
    }
}

/// Whether all requantisations round half up or down to the floor.
pub(crate) fn plain_rounding(spec: &KernelSpec) -> bool {
    let steps = spec.second().into_iter().flat_map(|second| second.steps()).chain(spec.steps());
    steps.into_iter().all(|step| match &step.op {
        Op::Requant(requant) => matches!(requant.round, Rounding::HalfUp | Rounding::Floor),
        _ => true,
    })
}

impl ConvGeometry {
    /// Output channels of all groups.
    pub fn channels_out(&self) -> usize {
        self.channels * self.groups
    }

    /// Vector registers that hold inputs and weights while a tile of `mr` pixels is computed.
    fn other_registers(&self, mr: usize, machine: Machine) -> usize {
        let per_step = if machine.quad_dot && !self.wide { 1 } else { 2 };
        // Packed weights, the mask that unpacks them, and the unpacked ones.
        let weights = if self.packed_pairs { 2 + per_step } else { per_step };
        mr * per_step + weights
    }
}

impl ConvSchedule {
    pub(crate) fn default_for(geometry: &ConvGeometry, machine: Machine) -> ConvSchedule {
        let vectors = geometry.channels.div_ceil(4);
        let mut best = (usize::MAX, 1, 1);
        for (mr, nr) in tiles(geometry, machine) {
            let padded = geometry.pixels.div_ceil(mr) * mr * vectors.div_ceil(nr) * nr;
            // Per step of a tile: mr broadcasts, nr weight vectors, mr * nr dot products; fewer than
            // eight accumulators leave the multiplier waiting.
            let step = (mr * nr).max(8) * 2 + mr + nr;
            let cost = padded * step * 64 / (mr * nr);
            if cost < best.0 {
                best = (cost, mr, nr);
            }
        }
        ConvSchedule::with_tile(geometry, best.1, best.2)
    }

    /// The blocking that suits a tile.
    fn with_tile(geometry: &ConvGeometry, mr: usize, nr: usize) -> ConvSchedule {
        let tiles_all = geometry.pixels.div_ceil(mr);
        let blocks_all = geometry.channels.div_ceil(4 * nr);
        let tile_bytes = mr * geometry.depth * geometry.src_bytes;
        let tiles = (PIXEL_BLOCK_BYTES / tile_bytes).clamp(1, tiles_all).max(tiles_all.min(4));
        // Enough units to share, few enough that a unit is worth handing over.
        let block_macs = tiles * mr * nr * 4 * geometry.depth;
        let pixel_blocks = tiles_all.div_ceil(tiles);
        let wanted = blocks_all.min(8usize.div_ceil(pixel_blocks));
        let blocks = blocks_all.div_ceil(wanted).max((UNIT_MACS / block_macs.max(1)).clamp(1, blocks_all));
        ConvSchedule { mr, nr, tiles, blocks }
    }

    pub(crate) fn candidates(geometry: &ConvGeometry, machine: Machine) -> Vec<ConvSchedule> {
        let mut all: Vec<_> =
            tiles(geometry, machine).map(|(mr, nr)| ConvSchedule::with_tile(geometry, mr, nr)).collect();
        for schedule in all.clone() {
            all.push(ConvSchedule { tiles: schedule.tiles.div_ceil(2), ..schedule });
            all.push(ConvSchedule { blocks: schedule.blocks.div_ceil(2), ..schedule });
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    pub(crate) fn legal(self, geometry: &ConvGeometry, machine: Machine) -> Result<(), String> {
        let ConvSchedule { mr, nr, tiles, blocks } = self;
        if ![mr, nr].iter().all(|v| (1..=MAX_TILE).contains(v)) {
            return Err(format!("a tile is 1 to {MAX_TILE} pixels by 1 to {MAX_TILE} vectors"));
        }
        if ![tiles, blocks].iter().all(|v| (1..=MAX_BLOCKING).contains(v)) {
            return Err(format!("tiles and blocks are 1 to {MAX_BLOCKING}"));
        }
        if geometry.packed_pairs && nr % 2 != 0 {
            return Err("4-bit weights are packed in pairs of vectors, so nr must be even".to_owned());
        }
        let others = geometry.other_registers(mr, machine);
        if mr * nr + others > machine.vector_registers {
            return Err(format!(
                "{mr} x {nr} accumulators and {others} inputs and weights exceed {} registers",
                machine.vector_registers
            ));
        }
        Ok(())
    }
}

/// Every legal tile that does not exceed the convolution by more than needed.
fn tiles(geometry: &ConvGeometry, machine: Machine) -> impl Iterator<Item = (usize, usize)> {
    let geometry = *geometry;
    let all = (1..=MAX_TILE).flat_map(|nr| (1..=MAX_TILE).map(move |mr| (mr, nr)));
    all.filter(move |&(mr, nr)| {
        let needed = geometry.channels.div_ceil(4).next_multiple_of(2);
        let schedule = ConvSchedule { mr, nr, tiles: 1, blocks: 1 };
        nr <= needed && mr <= geometry.pixels && schedule.legal(&geometry, machine).is_ok()
    })
}

impl fmt::Display for ConvSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "conv mr={} nr={} tiles={} blocks={}", self.mr, self.nr, self.tiles, self.blocks)
    }
}

impl FromStr for ConvSchedule {
    type Err = ();
    fn from_str(text: &str) -> Result<ConvSchedule, ()> {
        let words: Vec<&str> = text.split(' ').collect();
        let ["conv", mr, nr, tiles, blocks] = words.as_slice() else {
            return Err(());
        };
        let number = crate::number;
        Ok(ConvSchedule {
            mr: number(mr, "mr")?,
            nr: number(nr, "nr")?,
            tiles: number(tiles, "tiles")?,
            blocks: number(blocks, "blocks")?,
        })
    }
}
