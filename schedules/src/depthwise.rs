//! Schedules of the wide depthwise convolution, whose inner kernels are assembled for vectors of 256 or 512 bits.
//!
//! The kernel computes `mr` pixels of a row at a time, vector of channels by vector of channels. A unit of work,
//! which one task runs, is a block of at most `rows` output rows of an image by `vectors` vectors of channels, whose source
//! rows are brought into the form that the products want once: cells of 4 bytes a channel.

use std::fmt;
use std::str::FromStr;

use hawqc_ir::{Arg, Elem, KernelSpec, Op};

use crate::cells::CellAxis;
use crate::conv::plain_rounding;
use crate::units::{balanced, near};
use crate::{DEPTHWISE_MACS_PER_WORK, Machine, Parts, TASK_WORK, Units, WideMachine};

/// See the module's documentation. All at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DepthwiseSchedule {
    pub mr: usize,
    pub rows: usize,
    /// Divides the channels' vectors.
    pub vectors: usize,
}

/// What of a depthwise convolution matters to its schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DepthwiseGeometry {
    pub channels: usize,
    pub batch: usize,
    /// Output rows and columns.
    pub out: [usize; 2],
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    pub dilation: [usize; 2],
    /// Source and weights of up to 16 bits, roundings half up or down to the floor.
    plain: bool,
    /// Source and weights of up to 8 bits, the weights signed.
    bytes: bool,
}

/// Bytes of a channel's cell.
pub const CELL_BYTES: usize = 4;
const MAX_MR: usize = 8;
/// Bytes that displacements may span.
const FAR: usize = 1 << 30;
/// Bytes of prepared source rows of a unit: a part of the first-level cache, or else of the second; and those it should not
/// exceed.
const REGION_BYTES: [usize; 2] = [20 << 10, 128 << 10];
const MOST_REGION_BYTES: usize = 224 << 10;
/// Rows of a unit from which on rows that two units read count for little.
const MOST_ROWS: usize = 16;
/// Channels of a cache line, of one byte each.
const LINE_CHANNELS: usize = 64;

impl DepthwiseGeometry {
    /// The geometry of a spec whose first step is a depthwise convolution: one input and one output channel per group.
    pub fn of(spec: &KernelSpec) -> Option<DepthwiseGeometry> {
        let step = spec.steps().first()?;
        let (Op::Conv(conv), [Arg::Operand(src), Arg::Operand(wei), ..]) = (&step.op, step.args.as_slice()) else {
            return None;
        };
        let (src, wei) = (spec.operands().get(*src)?, spec.operands().get(*wei)?);
        let (&[k, kh, kw, 1], &[n, oh, ow, _]) = (wei.shape.as_slice(), step.ty.shape.as_slice()) else {
            return None;
        };
        (conv.groups > 1 && k == conv.groups).then(|| DepthwiseGeometry {
            channels: k,
            batch: n,
            out: [oh, ow],
            kernel: [kh, kw],
            stride: conv.stride,
            dilation: conv.dilation,
            plain: src.elem.bytes() <= 2 && wei.elem.bytes() <= 2 && plain_rounding(spec),
            bytes: src.elem.bytes() == 1 && matches!(wei.elem, Elem::I4 | Elem::I8),
        })
    }

    /// The vectors that a wide kernel of this convolution would use.
    pub fn wide_machine(&self, machine: Machine) -> Option<WideMachine> {
        machine.wide_for(self.channels).filter(|_| self.plain)
    }

    /// Rows and columns of a channel that lie side by side where they are multiplied: those of 2x2 bytes, which an
    /// 8-bit dot product takes, or two rows of 16 bits.
    pub fn axes(&self, wide: WideMachine) -> [CellAxis; 2] {
        let cell = [2, if self.bytes && wide.dot { 2 } else { 1 }];
        [0, 1].map(|axis| CellAxis {
            kernel: self.kernel[axis],
            stride: self.stride[axis],
            dilation: self.dilation[axis],
            cell: cell[axis],
        })
    }

    /// Bytes of the prepared rows of a unit.
    fn region_bytes(&self, wide: WideMachine, rows: usize, vectors: usize) -> usize {
        let [y, x] = self.axes(wide);
        y.extent(rows) * x.extent(self.out[1]) * vectors * wide.lanes * CELL_BYTES
    }

    /// Whether every tile of a row begins in the same phase.
    fn tiles_begin_alike(&self, wide: WideMachine, mr: usize) -> bool {
        let [_, x] = self.axes(wide);
        self.out[1] <= mr || x.begin(mr).1 == 0
    }
}

impl DepthwiseSchedule {
    /// Of few tiles to a row the shortest. Whole images of as many channels as fit; where these would be few, as many
    /// rows of all channels as fit, as reading parts of cache lines costs more than reading rows again. Smaller units of either
    /// kind, if threads then share the work better.
    pub(crate) fn default_for(geometry: &DepthwiseGeometry, machine: Machine) -> Option<DepthwiseSchedule> {
        let wide = geometry.wide_machine(machine)?;
        let alike = |mr: &usize| geometry.tiles_begin_alike(wide, *mr);
        let mr = (1..=MAX_MR).filter(alike).min_by_key(|mr| geometry.out[1].div_ceil(*mr))?;
        let vectors_all = geometry.channels / wide.lanes;
        let rows_all = geometry.out[0].min(MOST_ROWS);
        let bytes = |rows: usize, vectors: usize| geometry.region_bytes(wide, rows, vectors);
        let is_part =
            |v: usize| vectors_all.is_multiple_of(v) && v * wide.lanes >= geometry.channels.min(LINE_CHANNELS);
        let largest = |region: usize| (1..=vectors_all).rev().find(|&v| is_part(v) && bytes(rows_all, v) <= region);
        let (most, vectors) = match REGION_BYTES.into_iter().find_map(largest) {
            Some(vectors) => (rows_all, vectors),
            None => {
                let fits = |rows: &usize| bytes(*rows, vectors_all) <= MOST_REGION_BYTES;
                ((1..=rows_all).rev().find(fits).unwrap_or(1), vectors_all)
            }
        };
        let whole = DepthwiseSchedule { mr, rows: Parts::of(geometry.out[0], most).largest(), vectors };
        let sizes = [geometry.batch, geometry.channels];
        let macs: usize = sizes.iter().chain(&geometry.out).chain(&geometry.kernel).product();
        let is_shared = macs >= 2 * TASK_WORK * DEPTHWISE_MACS_PER_WORK;
        let parts = (vectors.div_ceil(2)..vectors).rev().filter(|v| is_part(*v));
        let of_parts = parts.map(|vectors| DepthwiseSchedule { vectors, ..whole });
        let of_rows = near(geometry.out[0], whole.rows, whole.rows).map(|rows| DepthwiseSchedule { rows, ..whole });
        let others = of_parts.chain(of_rows).filter(|_| is_shared);
        let schedule = balanced(whole, others, |schedule| {
            schedule.units(geometry, wide).balance((1, vectors_all / schedule.vectors))
        });
        Some(schedule).filter(|schedule| schedule.legal(geometry, machine).is_ok())
    }

    /// What the work is cut into; blocks are those of `vectors` vectors.
    pub fn units(&self, geometry: &DepthwiseGeometry, wide: WideMachine) -> Units {
        Units {
            images: geometry.batch,
            rows: Parts::of(geometry.out[0], self.rows),
            blocks: Parts::of(geometry.channels / wide.lanes / self.vectors, 1),
        }
    }

    pub(crate) fn candidates(geometry: &DepthwiseGeometry, machine: Machine) -> Vec<DepthwiseSchedule> {
        let mut all = Vec::new();
        let Some((wide, first)) = geometry.wide_machine(machine).zip(Self::default_for(geometry, machine)) else {
            return all;
        };
        let vectors_all = geometry.channels / wide.lanes;
        let parts = [1, 2, 3, 4, 6, 8].into_iter().filter(|parts| vectors_all.is_multiple_of(*parts));
        for vectors in parts.map(|parts| vectors_all / parts) {
            for rows in [2, 4, 8, 16, 32].map(|rows| Parts::of(geometry.out[0], rows).largest()) {
                for mr in [first.mr, first.mr.div_ceil(2)] {
                    all.push(DepthwiseSchedule { mr, rows, vectors });
                }
            }
        }
        all.retain(|s| {
            let bytes = geometry.region_bytes(wide, s.rows, s.vectors);
            bytes <= MOST_REGION_BYTES && s.legal(geometry, machine).is_ok()
        });
        all.push(first);
        all.sort_unstable();
        all.dedup();
        all
    }

    pub(crate) fn legal(self, geometry: &DepthwiseGeometry, machine: Machine) -> Result<(), String> {
        let DepthwiseSchedule { mr, rows, vectors } = self;
        let Some(wide) = geometry.wide_machine(machine) else {
            return Err(match machine.wide {
                [None, None] => "the target has no vectors of 256 bits".to_owned(),
                _ => format!(
                    "a wide kernel takes operands of up to 16 bits, channels in eights and plain roundings, not {} channels",
                    geometry.channels
                ),
            });
        };
        if !(1..=MAX_MR).contains(&mr) {
            return Err(format!("a tile is 1 to {MAX_MR} pixels"));
        }
        if !(1..=geometry.out[0]).contains(&rows) {
            return Err(format!("an image has {} rows", geometry.out[0]));
        }
        let vectors_all = geometry.channels / wide.lanes;
        if vectors == 0 || !vectors_all.is_multiple_of(vectors) {
            return Err(format!("{vectors} does not divide {vectors_all} vectors of channels"));
        }
        if !geometry.tiles_begin_alike(wide, mr) {
            return Err(format!("tiles of {mr} pixels begin in either column of two"));
        }
        if geometry.region_bytes(wide, rows, vectors) > FAR {
            return Err("the source rows of a unit are too long".to_owned());
        }
        Ok(())
    }
}

impl fmt::Display for DepthwiseSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DepthwiseSchedule { mr, rows, vectors } = self;
        write!(f, "depthwise mr={mr} rows={rows} vectors={vectors}")
    }
}

impl FromStr for DepthwiseSchedule {
    type Err = ();
    fn from_str(text: &str) -> Result<DepthwiseSchedule, ()> {
        let words: Vec<&str> = text.split(' ').collect();
        let ["depthwise", mr, rows, vectors] = words.as_slice() else {
            return Err(());
        };
        let number = crate::number;
        Ok(DepthwiseSchedule {
            mr: number(mr, "mr")?,
            rows: number(rows, "rows")?,
            vectors: number(vectors, "vectors")?,
        })
    }
}
