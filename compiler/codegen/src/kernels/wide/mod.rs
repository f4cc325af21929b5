//! Convolution with inner kernels assembled for vectors of 256 or 512 bits.
//!
//! The loop nest is Cranelift's: a unit of work prepares its source rows ([`source`]), then for every channel block
//! turns the packed weights into operands, if they are not, and runs the tiles of the block ([`micro`]), those
//! beyond the last whole one with an inner kernel of fewer pixels.
//!
//! Weights are packed at compile time as `[channel block][run][step][vector][lane][4 bytes]`. The vectors of a block lie in
//! one section of a grouped convolution's channels, or are those of several ([`Sections`]).

mod cells;
pub mod depthwise;
mod epilogue;
pub mod image;
mod micro;
pub mod pointwise;
pub mod pool;
mod positions;
mod requant;
mod several;
mod source;
mod store;
pub mod strassen;
mod transform;
mod window;
pub mod winograd;

use std::borrow::Cow;

use cranelift_codegen::ir::{FuncRef, InstBuilder, StackSlotData, StackSlotKind, Value, types};
use hawqc_ir::{Elem, KernelSpec, Range, Tensor};
use hawqc_schedules::{
    ConvGeometry, DIRECT_MACS_PER_WORK, Machine, Multiply, Sections, Units, WideMachine, WideSchedule, unpacks_beside,
    unsigned_offset,
};

use super::conv::Geometry;
use super::emit::{Code, UnitPlace};
use super::{Body, Dst, Frame, Leaf, Lowered, Table};
use crate::asm::{AsmError, Isa};
use crate::error::Unsupported;
use epilogue::WideEpilogue;
use micro::{Ahead, FIXED_WORDS, Inputs, Load, Micro, Word, assemble_expand};
use source::Source;
use window::Window;

/// Tiles from which on the weights of a channel block are turned into operands once for all of them.
const EXPAND_TILES: usize = 3;

const WEIGHTS: usize = 0;
const START: usize = 1;
const PIXELS: usize = 2;
const RUNS: usize = 3;
const LITERALS: usize = 4;
const FIRST_EPILOGUE_TABLE: usize = 5;

struct Wide {
    geometry: Geometry,
    isa: Isa,
    schedule: WideSchedule,
    sections: Sections,
    units: Units,
    source: Source,
    dst: Dst,
    /// Vectors of weights of a channel block's vector: runs times steps.
    depth: usize,
    load: Load,
    /// Whether weights are turned into operands before the tiles run.
    expands: bool,
    /// The inner kernels, in the order of the leaves.
    inner: Vec<Inner>,
    operand_bytes: Vec<usize>,
    table_strides: Vec<usize>,
}

/// An inner kernel.
#[derive(PartialEq)]
struct Inner {
    pixels: usize,
    vectors: usize,
    /// Whether it computes more than one tile.
    several: bool,
}

pub(super) fn lower(
    spec: &KernelSpec,
    constants: &[Option<&Tensor>],
    machine: Machine,
    schedule: WideSchedule,
    dst: Dst,
) -> Result<Lowered, Unsupported> {
    let (geometry, [src, wei], bias) = Geometry::of(spec)?;
    let (weights, bias) = Geometry::constants(constants, wei, bias)?;
    let found = ConvGeometry::of(spec).and_then(|conv| conv.wide_machine(machine).map(|wide| (conv, wide)));
    let Some((conv, wide)) = found else {
        return Err(Unsupported::new("a wide kernel of this convolution"));
    };
    let wide_dot = wide.dot;
    let isa = Isa::of(wide);
    let weights = weights.ints()?;
    let multiply = schedule.multiply;
    let offset = if multiply.operand_bytes() == 1 { unsigned_offset(geometry.src) } else { 0 };
    let sections = conv.sections(wide.lanes, multiply);
    let section_bytes = sections.inputs * multiply.operand_bytes();
    let source = Source::new(geometry, multiply.operand_bytes(), offset, section_bytes % 4);
    let (run_offsets, run_values) = source.runs(sections.inputs);
    let steps = sections.spread.map_or(run_values.div_ceil(multiply.step()), |spread| spread.steps);
    let four_bits = spec.operands()[wei].elem == Elem::I4;
    // 4-bit weights are packed two vectors in one, so blocks hold an even number of vectors.
    let load = match (multiply, four_bits) {
        (Multiply::I16, _) => Load::Extend,
        (_, true) => Load::Nibbles,
        _ => Load::Direct,
    };
    let (epilogue, requant_tables) = WideEpilogue::new(spec, constants, wide)?;
    let expands = load != Load::Direct && expands(&geometry, isa, load, schedule, run_offsets.len() * steps);
    let pad = i64::from(geometry.pad_value);
    let src_range = spec.operands()[src].int_range()?.union(Range::new(pad, pad));
    let packing =
        Packing { geometry: &geometry, sections, isa, multiply, nr: schedule.nr, runs: run_offsets.len(), steps };
    let window = packing.window(&weights, src_range)?;
    let mut wide = Wide {
        geometry,
        isa,
        schedule,
        sections,
        units: schedule.units(&conv, wide.lanes),
        dst,
        depth: run_offsets.len() * steps,
        load,
        expands,
        inner: Vec::new(),
        operand_bytes: epilogue.operand_bytes(),
        table_strides: epilogue.table_strides(isa),
        source,
    };
    let mut literals = epilogue.literal_table(isa);
    let order_at = literals.bytes.len();
    literals.bytes.extend(packing.channel_order());
    let mut tables = vec![
        Table { bytes: packing.pack(&weights, load), is_weights: true },
        Table::new(packing.start(&weights, bias.as_deref())),
        Table::new(ints(&wide.source.pixel_offsets(wide.units.rows.largest()))),
        Table::new(ints(&run_offsets)),
        literals,
    ];
    tables.extend(requant_tables);
    let mut operands = vec![src];
    operands.extend(epilogue.operands());
    let micro = Micro {
        isa,
        multiply,
        dot: wide_dot,
        runs: run_offsets.len(),
        steps,
        load: if expands { Load::Direct } else { load },
        inputs: Inputs {
            section: sections.vectors,
            section_bytes,
            spread: sections.spread.map(|spread| (spread, order_at)),
        },
        window,
        readers: wide.readers(),
        epilogue: &epilogue,
        dst,
        channels: geometry.channels_out(),
    };
    let leaves = wide.leaves(&micro, &epilogue).map_err(|e| Unsupported::new(e.to_string()))?;
    Ok(Lowered {
        family: "wide",
        operands,
        tables,
        forms: format!("{}{window:?}", epilogue.form()),
        second: epilogue.has_second(),
        proof: if multiply == Multiply::Sum16 { window.to_string() } else { String::new() },
        scratch_bytes: wide.source.scratch_bytes(wide.units.rows.largest()) + wide.panel_bytes(),
        units: wide.units.count(),
        work: geometry.macs() / DIRECT_MACS_PER_WORK as u64,
        macs: geometry.macs(),
        is_border: false,
        leaves,
        body: Box::new(wide),
    })
}

/// Whether weights are turned into operands once for all tiles of a unit: if there are enough tiles, or if
/// that cannot be done while a tile is computed.
fn expands(geometry: &Geometry, isa: Isa, load: Load, schedule: WideSchedule, steps: usize) -> bool {
    let WideSchedule { multiply, mr, nr, rows, .. } = schedule;
    let tiles = (rows * geometry.out[1]).div_ceil(mr);
    let has_odd_block = nr % 2 == 1 || (geometry.channels_out() / isa.lanes()) % nr % 2 == 1;
    // A dot product leaves units idle that unpack beside it, if enough pixels share a step's weights.
    let is_free = load == Load::Nibbles && multiply == Multiply::Dot && unpacks_beside(mr, steps);
    tiles >= EXPAND_TILES && !is_free
        || load == Load::Nibbles && has_odd_block
        || Micro::registers_holding_weights(multiply, load, mr, nr) > isa.registers()
}

/// The vectors of kernels that need nothing but whole vectors of channels.
fn wide_for(machine: Machine, channels: usize) -> Result<WideMachine, Unsupported> {
    machine.wide_for(channels).ok_or_else(|| Unsupported::new(format!("a wide kernel of {channels} channels")))
}

fn ints(values: &[i32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// How weights are laid out, and what follows from their values.
struct Packing<'a> {
    geometry: &'a Geometry,
    sections: Sections,
    isa: Isa,
    multiply: Multiply,
    nr: usize,
    runs: usize,
    /// Steps of a run.
    steps: usize,
}

impl Packing<'_> {
    /// What the sum of a lane is multiplied with, `[run][step][value of the step]`; lanes are counted through all vectors.
    fn row(&self, weights: &[i64], lane: usize) -> Vec<i64> {
        let (Geometry { group_in, group_out, .. }, lanes, step) =
            (self.geometry, self.isa.lanes(), self.multiply.step());
        let channel = self.channel(lane);
        let all = self.geometry.taps() * group_in;
        let run_values = all / self.runs;
        // Before the inputs of the channel's group are those of groups merged with it, and a spread's dwords have places
        // that depend on the lane.
        let before = channel / group_out % self.sections.merged * group_in;
        let exchanged = self.sections.spread.map_or(0, |spread| lane % lanes % spread.dwords % spread.steps);
        let mut row = vec![0; self.runs * self.steps * step];
        for (run, own) in weights[channel * all..][..all].chunks(run_values).enumerate() {
            for (at, &weight) in (before..).zip(own) {
                let place = ((at / step) ^ exchanged) * step + at % step;
                row[run * self.steps * step + place] = weight;
            }
        }
        row
    }

    /// The output channel that a lane sums.
    fn channel(&self, lane: usize) -> usize {
        let (lanes, spread) = (self.isa.lanes(), self.sections.spread);
        spread.map_or(lane, |spread| lane / lanes * lanes + spread.channel(lanes, lane % lanes))
    }

    /// The lane of each of a vector's channels, where these are not the same.
    fn channel_order(&self) -> Vec<u8> {
        if self.sections.spread.is_none() {
            return Vec::new();
        }
        let lanes = 0..self.isa.lanes();
        let lane = |channel: usize| lanes.clone().find(|&lane| self.channel(lane) == channel);
        ints(&lanes.clone().filter_map(|channel| lane(channel).map(|lane| lane as i32)).collect::<Vec<_>>())
    }

    /// Calls `block` with the weights of every block's vectors in packed order, each `[lane][value of the step]`.
    fn blocks(&self, weights: &[i64], mut block: impl FnMut(Vec<Vec<i64>>)) {
        let (lanes, step, channels) = (self.isa.lanes(), self.multiply.step(), self.geometry.channels_out());
        for first in (0..channels).step_by(self.nr * lanes) {
            let block_lanes = first..(first + self.nr * lanes).min(channels);
            let rows: Vec<Vec<i64>> = block_lanes.map(|lane| self.row(weights, lane)).collect();
            let mut out = Vec::new();
            for start in (0..self.runs * self.steps).map(|index| index * step) {
                for vector in rows.chunks(lanes) {
                    out.push(vector.iter().flat_map(|row| &row[start..start + step]).copied().collect());
                }
            }
            block(out);
        }
    }

    fn pack(&self, weights: &[i64], load: Load) -> Vec<u8> {
        let mut out = Vec::new();
        self.blocks(weights, |vectors| match load {
            Load::Nibbles => {
                for pair in vectors.chunks(2) {
                    let high = |i: usize| pair.get(1).map_or(0, |v| v[i] + 8);
                    out.extend((0..pair[0].len()).map(|i| ((pair[0][i] + 8) | high(i) << 4) as u8));
                }
            }
            _ => out.extend(vectors.iter().flatten().map(|&w| w as u8)),
        });
        out
    }

    /// The sums' start: the bias, and what making the source unsigned adds to every sum taken off again,
    /// modulo 2^32.
    fn start(&self, weights: &[i64], bias: Option<&[i64]>) -> Vec<u8> {
        let row = self.geometry.taps() * self.geometry.group_in;
        let offset = if self.multiply.operand_bytes() == 1 { unsigned_offset(self.geometry.src) } else { 0 };
        let start = |lane: usize| {
            let k = self.channel(lane);
            let sum: i64 = weights[k * row..][..row].iter().sum();
            (bias.map_or(0, |b| b[k]) - offset * sum) as i32
        };
        (0..self.geometry.channels_out()).flat_map(|lane| start(lane).to_le_bytes()).collect()
    }

    /// When sums of 16 bits are widened.
    fn window(&self, weights: &[i64], src: Range) -> Result<Window, Unsupported> {
        if self.multiply != Multiply::Sum16 {
            return Ok(Window::All);
        }
        let most = (src.hi + unsigned_offset(self.geometry.src)).max(0);
        let channels = self.geometry.channels_out();
        let sums = match self.geometry.groups {
            1 => Cow::Borrowed(weights),
            _ => (0..channels).flat_map(|lane| self.row(weights, lane)).collect(),
        };
        let longest = Window::longest(sums.chunks(sums.len() / channels).map(|row| (row, most)), self.runs);
        // The steps of a spread are not parted.
        let usable = longest.filter(|window| self.sections.spread.is_none() || !matches!(window, Window::Steps(_)));
        usable.ok_or_else(|| Unsupported::new("16-bit sums of these weights"))
    }
}

impl Wide {
    fn vectors(&self) -> usize {
        self.geometry.channels_out() / self.isa.lanes()
    }

    fn blocks(&self) -> usize {
        self.vectors().div_ceil(self.schedule.nr)
    }

    /// Vectors of the last channel block, if it has fewer than the others.
    fn rest_vectors(&self) -> usize {
        self.vectors() % self.schedule.nr
    }

    /// Pixels of a larger and of a smaller unit.
    fn unit_pixels(&self) -> [usize; 2] {
        self.units.rows.sizes().map(|(rows, _)| rows * self.geometry.out[1])
    }

    /// Tiles that read a block's weights where these lie in memory.
    fn readers(&self) -> usize {
        if self.expands { usize::MAX } else { self.unit_pixels()[0].div_ceil(self.schedule.mr) }
    }

    /// Bytes of a channel block's packed weights.
    fn block_bytes(&self, vectors: usize) -> usize {
        let count = self.depth * vectors;
        match self.load {
            Load::Direct => count * self.isa.bytes(),
            Load::Extend => count * self.isa.bytes() / 2,
            Load::Nibbles => count.div_ceil(2) * self.isa.bytes(),
        }
    }

    /// Bytes of a channel block's operands in scratch memory.
    fn panel_bytes(&self) -> usize {
        if self.expands { (self.depth * self.schedule.nr).next_multiple_of(2) * self.isa.bytes() } else { 0 }
    }

    /// Assembles the inner kernels: tiles of every size that occurs, then the expansion of weights.
    fn leaves(&mut self, micro: &Micro, epilogue: &WideEpilogue) -> Result<Vec<Leaf>, AsmError> {
        let mr = self.schedule.mr;
        let mut pixels = vec![];
        for unit in self.unit_pixels() {
            for size in [if unit >= mr { mr } else { 0 }, unit % mr] {
                if size > 0 && !pixels.contains(&size) {
                    pixels.push(size);
                }
            }
        }
        let mut vectors = vec![self.rest_vectors()];
        if self.vectors() >= self.schedule.nr {
            vectors.push(self.schedule.nr);
        }
        let mut leaves = Vec::new();
        for &m in &pixels {
            for &n in vectors.iter().filter(|&&n| n > 0) {
                leaves.push(Leaf { name: format!("{m}x{n}"), code: micro.assemble(m, n)? });
                self.inner.push(Inner { pixels: m, vectors: n, several: false });
                if self.unit_pixels().iter().any(|pixels| m == mr && pixels / mr > 1) {
                    leaves.push(Leaf { name: format!("{m}x{n}.several"), code: micro.assemble_several(m, n)? });
                    self.inner.push(Inner { pixels: m, vectors: n, several: true });
                }
            }
        }
        if self.expands {
            let code = assemble_expand(self.isa, self.load, epilogue)?;
            leaves.push(Leaf { name: "expand".into(), code });
        }
        Ok(leaves)
    }

    fn leaf(&self, frame: &Frame, inner: Inner) -> Result<FuncRef, Unsupported> {
        let Inner { pixels, vectors, .. } = inner;
        let found = self.inner.iter().position(|known| *known == inner).and_then(|i| frame.leaves.get(i));
        found.copied().ok_or_else(|| Unsupported::new(format!("no inner kernel of {pixels} x {vectors}")))
    }
}

/// What the tiles of a unit have in common.
struct Unit {
    /// Base of the pixel offsets.
    src: Value,
    /// Index of the first pixel in the whole result.
    first_pixel: Value,
    /// Pixels, one of [`Wide::unit_pixels`].
    pixels: usize,
}

impl Body for Wide {
    fn emit(&self, c: &mut Code, frame: &Frame) -> Result<(), Unsupported> {
        let mut outcome = Ok(());
        frame.units(c, |c, unit| outcome = self.unit(c, frame, unit));
        outcome
    }
}

impl Wide {
    fn unit(&self, c: &mut Code, frame: &Frame, unit: Value) -> Result<(), Unsupported> {
        let geometry = &self.geometry;
        let units = self.units;
        let UnitPlace { image, rows: [first_row, end_row], blocks: [first_block, end_block] } = c.place(units, unit);
        let image_bytes = geometry.size[0] * geometry.size[1] * geometry.pixel_bytes();
        let src = c.offset(frame.operands[0], image, image_bytes);
        let rows_at = c.add_int(frame.scratch, self.panel_bytes());
        let image_pixel = c.mul_int(image, geometry.out[0] * geometry.out[1]);
        let first_pixel = c.offset(image_pixel, first_row, geometry.out[1]);
        let [larger, smaller] = self.unit_pixels();
        let prepared = c.of_part(units.rows, [first_row, end_row], |rows| self.source.rows(rows));
        let src = self.source.prepare(c, src, first_row, prepared, rows_at);
        let one = c.int(1);
        let mut outcome = Ok(());
        c.range(first_block, end_block, one, |c, block| {
            let src = self.section(c, src, block);
            let either = |c: &mut Code, vectors: usize| {
                let weights = self.weights(c, frame, block, vectors);
                let unit = |pixels: usize| Unit { src, first_pixel, pixels };
                if larger == smaller {
                    return self.tiles(c, frame, &unit(larger), (block, vectors), weights);
                }
                let is_smaller = c.is_smaller(units.rows, [first_row, end_row]);
                c.either(is_smaller, |c, is_smaller| {
                    let pixels = if is_smaller { smaller } else { larger };
                    self.tiles(c, frame, &unit(pixels), (block, vectors), weights)
                })
            };
            outcome = match (self.rest_vectors(), self.blocks()) {
                (0, _) => either(c, self.schedule.nr),
                (rest, 1) => either(c, rest),
                (rest, blocks) => {
                    let is_full = c.below(block, blocks - 1);
                    c.either(is_full, |c, is_full| either(c, if is_full { self.schedule.nr } else { rest }))
                }
            };
        });
        outcome
    }

    /// The address of the inputs of a block's first section, where those of the first block are at `src`.
    fn section(&self, c: &mut Code, src: Value, block: Value) -> Value {
        let (vectors, nr) = (self.sections.vectors, self.schedule.nr);
        let section_bytes = self.sections.inputs * self.schedule.multiply.operand_bytes();
        if vectors == self.vectors() {
            src
        } else if nr.is_multiple_of(vectors) {
            c.offset(src, block, nr / vectors * section_bytes)
        } else {
            let (section, _) = c.div_rem(block, vectors / nr);
            c.offset(src, section, section_bytes)
        }
    }

    /// The address of a block's weights as tiles read them.
    fn weights(&self, c: &mut Code, frame: &Frame, block: Value, vectors: usize) -> Value {
        let packed = c.offset(frame.tables[WEIGHTS], block, self.block_bytes(self.schedule.nr));
        let (true, Some(&expand)) = (self.expands, frame.leaves.last()) else {
            return packed;
        };
        let pairs = c.int((self.depth * vectors).div_ceil(2));
        call(c, expand, &[packed, frame.scratch, pairs, frame.tables[LITERALS]]);
        frame.scratch
    }

    /// Runs all tiles of a block.
    fn tiles(
        &self,
        c: &mut Code,
        frame: &Frame,
        unit: &Unit,
        (block, vectors): (Value, usize),
        weights: Value,
    ) -> Result<(), Unsupported> {
        let mr = self.schedule.mr;
        let (whole, rest) = (unit.pixels / mr, unit.pixels % mr);
        let mut run = |first: usize, tiles: usize, pixels: usize| {
            let leaf = self.leaf(frame, Inner { pixels, vectors, several: tiles > 1 })?;
            let tile = c.int(first);
            let weights = (weights, self.ahead(c, vectors, tile));
            self.tile(c, frame, unit, (block, weights), (tile, tiles), leaf);
            Ok::<(), Unsupported>(())
        };
        if whole > 0 {
            run(0, whole, mr)?;
        }
        if rest > 0 {
            run(whole, 1, rest)?;
        }
        Ok(())
    }

    /// The word of that name for a tile of a block of `vectors`.
    fn ahead(&self, c: &mut Code, vectors: usize, tile: Value) -> Value {
        let ahead = Ahead::new(self.readers(), self.depth, self.block_bytes(vectors) / self.depth);
        distance(c, ahead, tile)
    }

    /// Runs `leaf` for `tiles` tiles from `tile` on.
    fn tile(
        &self,
        c: &mut Code,
        frame: &Frame,
        unit: &Unit,
        (block, (weights, ahead)): (Value, (Value, Value)),
        (tile, tiles): (Value, usize),
        leaf: FuncRef,
    ) {
        let pixel = c.mul_int(tile, self.schedule.mr);
        let block_vectors = self.schedule.nr;
        let channel = c.mul_int(block, block_vectors * self.isa.lanes());
        let in_result = c.add(unit.first_pixel, pixel);
        let element = c.offset(channel, in_result, self.geometry.channels_out());
        let mut words = vec![Word::Pixels as usize; FIXED_WORDS].into_iter().map(|_| frame.dst).collect::<Vec<_>>();
        words[Word::Pixels as usize] = c.offset(frame.tables[PIXELS], pixel, 4);
        words[Word::Src as usize] = unit.src;
        words[Word::Weights as usize] = weights;
        words[Word::Start as usize] = c.offset(frame.tables[START], block, block_vectors * self.isa.bytes());
        words[Word::Dst as usize] = self.dst.at(c, frame.dst, in_result, channel);
        words[Word::Runs as usize] = frame.tables[RUNS];
        words[Word::Literals as usize] = frame.tables[LITERALS];
        words[Word::Ahead as usize] = ahead;
        words[Word::Tiles as usize] = c.int(tiles);
        for (i, &bytes) in self.operand_bytes.iter().enumerate() {
            words.push(c.offset(frame.operands[1 + i], element, bytes));
        }
        for (i, &stride) in self.table_strides.iter().enumerate() {
            words.push(c.offset(frame.tables[FIRST_EPILOGUE_TABLE + i], block, stride * block_vectors));
        }
        call(c, leaf, &words);
    }
}

/// [`Word::Ahead`] of a tile, counted among those that read the same weights.
fn distance(c: &mut Code, ahead: Option<Ahead>, tile: Value) -> Value {
    let [first, more] = ahead.map_or([0, 0], |ahead| ahead.distance());
    let more = c.mul_int(tile, more);
    c.add_int(more, first)
}

/// Calls a leaf function with a table of words.
fn call(c: &mut Code, leaf: FuncRef, words: &[Value]) {
    let slot = c.b.create_sized_stack_slot(StackSlotData::new(StackSlotKind::ExplicitSlot, 8 * words.len() as u32, 3));
    for (i, &word) in words.iter().enumerate() {
        c.b.ins().stack_store(types::I64, word, slot, 8 * i as i32);
    }
    let table = c.b.ins().stack_addr(types::I64, slot, 0);
    c.b.ins().call(leaf, &[table]);
}
