//! Depthwise convolution with inner kernels assembled for vectors of 256 or 512 bits.
//!
//! A unit of work brings its source rows into scratch memory as cells ([`super::cells`]): 4 bytes of a channel that lie
//! side by side in the source, in a lane. A product instruction multiplies them and adds up the products in 32 bits,
//! for every lane, a channel. An output begins in the first or another row and column of a cell (its *phase*); weights
//! are packed for every phase, those of places that no tap meets being 0:
//! `[row phase][vector][column phase][cell row][cell column][lane][4 bytes]`.
//!
//! Products are summed modulo 2^32, as are all sums, so any operands of up to 16 bits are exact. What making the source
//! unsigned adds is taken off from the sums' start.

use cranelift_codegen::ir::{FuncRef, Value};
use hawqc_ir::{Elem, KernelSpec, Tensor};
use hawqc_schedules::{CELL_BYTES, CellAxis, DepthwiseGeometry, DepthwiseSchedule, Machine};

use super::cells::{Cells, Place};
use super::epilogue::{Hold, Pointers, WideEpilogue};
use super::store::Pixels;
use super::{call, ints};
use crate::asm::{Asm, AsmError, Binary, Gpr, Isa, Mem, Src, V};
use crate::error::Unsupported;
use crate::kernels::conv::Geometry;
use crate::kernels::emit::Code;
use crate::kernels::{Body, Frame, Leaf, Lowered, Table};

const WEIGHTS: usize = 0;
const START: usize = 1;
const PAD: usize = 2;
const ROWS: usize = 3;
const LITERALS: usize = 4;
const FIRST_EPILOGUE_TABLE: usize = 5;
/// Multiply-accumulates that take about as long as an element operation of other kernels.
const MACS_PER_WORK: u64 = 2;

struct Depthwise {
    geometry: Geometry,
    isa: Isa,
    /// Whether one instruction multiplies and adds up.
    dot: bool,
    schedule: DepthwiseSchedule,
    dst: Elem,
    cells: Cells,
    positions: Vec<Position>,
    operand_bytes: Vec<usize>,
    table_strides: Vec<usize>,
}

/// A vector of weights: in a column phase, the cell it is multiplied with, counted from the one that an output begins in.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Position {
    phase: usize,
    cell: [usize; 2],
}

/// All vectors of weights of a vector of channels in a row phase, in their order.
fn positions([rows, columns]: [CellAxis; 2]) -> Vec<Position> {
    let mut all = Vec::new();
    for phase in 0..columns.phases() {
        for y in rows.all_cells() {
            all.extend(columns.cells(phase).into_iter().map(|x| Position { phase, cell: [y, x] }));
        }
    }
    all
}

pub(in crate::kernels) fn lower(
    spec: &KernelSpec,
    constants: &[Option<&Tensor>],
    machine: Machine,
    schedule: DepthwiseSchedule,
) -> Result<Lowered, Unsupported> {
    let (geometry, [src, wei], bias) = Geometry::of(spec)?;
    let (weights, bias) = Geometry::constants(constants, wei, bias)?;
    let found = DepthwiseGeometry::of(spec).and_then(|g| g.wide_machine(machine).map(|wide| (g.axes(wide), wide)));
    let Some((axes, wide)) = found else {
        return Err(Unsupported::new("a wide kernel of this convolution"));
    };
    let isa = Isa::of(wide);
    let cells = Cells { geometry, isa, axes, vectors: schedule.vectors, rows: schedule.rows };
    let (mut epilogue, requant_tables) = WideEpilogue::new(spec, constants, isa)?;
    cells.literals(&mut epilogue);
    let depthwise = Depthwise {
        geometry,
        isa,
        dot: wide.dot,
        schedule,
        dst: spec.result().elem,
        positions: positions(axes),
        operand_bytes: epilogue.operand_bytes(),
        table_strides: epilogue.table_strides(isa),
        cells,
    };
    let weights = weights.ints()?;
    let mut literals = epilogue.literal_table(isa);
    let order_at = literals.bytes.len();
    literals.bytes.extend(ints(&depthwise.cells.order()));
    let mut tables = vec![
        Table { bytes: depthwise.pack(&weights), is_weights: true },
        Table::new(ints(&depthwise.start(&weights, bias.as_deref()))),
        Table::new(depthwise.cells.pad_row()),
        Table::new(ints(&depthwise.row_offsets())),
        literals,
    ];
    tables.extend(requant_tables);
    let mut operands = vec![src];
    operands.extend(epilogue.operands());
    let refused = |e: AsmError| Unsupported::new(e.to_string());
    let rows = depthwise.assemble(&epilogue).map_err(refused)?;
    let cells = depthwise.cells.assemble(&epilogue, order_at).map_err(refused)?;
    Ok(Lowered {
        family: "depthwise",
        operands,
        tables,
        forms: epilogue.form(),
        proof: String::new(),
        scratch_bytes: depthwise.cells.scratch_bytes(),
        units: geometry.batch * depthwise.row_blocks() * depthwise.groups(),
        work: geometry.macs() / MACS_PER_WORK,
        macs: geometry.macs(),
        is_border: false,
        leaves: vec![Leaf { name: "rows".into(), code: rows }, Leaf { name: "cells".into(), code: cells }],
        body: Box::new(depthwise),
    })
}

impl Depthwise {
    /// Channels of a unit.
    fn unit_channels(&self) -> usize {
        self.schedule.vectors * self.isa.lanes()
    }

    fn groups(&self) -> usize {
        self.geometry.channels / self.unit_channels()
    }

    fn row_blocks(&self) -> usize {
        self.geometry.out[0].div_ceil(self.schedule.rows)
    }

    /// Bytes of the weights of a vector of channels in a row phase.
    fn vector_bytes(&self) -> usize {
        self.positions.len() * self.isa.bytes()
    }

    fn pack(&self, weights: &[i64]) -> Vec<u8> {
        let ([kh, kw], [rows, columns]) = (self.geometry.window.kernel, self.cells.axes);
        let places: Vec<[usize; 2]> = (0..rows.cell).flat_map(|y| (0..columns.cell).map(move |x| [y, x])).collect();
        let mut out = Vec::new();
        for row_phase in 0..rows.phases() {
            for first in (0..self.geometry.channels).step_by(self.isa.lanes()) {
                for Position { phase, cell } in &self.positions {
                    for k in first..first + self.isa.lanes() {
                        for place in &places {
                            let ky = rows.tap(row_phase, cell[0], place[0]);
                            let kx = columns.tap(*phase, cell[1], place[1]);
                            let weight = ky.zip(kx).map_or(0, |(ky, kx)| weights[(k * kh + ky) * kw + kx]);
                            out.extend(&weight.to_le_bytes()[..CELL_BYTES / places.len()]);
                        }
                    }
                }
            }
        }
        out
    }

    /// The sums' start: the bias, less what the source's offset adds, modulo 2^32.
    fn start(&self, weights: &[i64], bias: Option<&[i64]>) -> Vec<i32> {
        let offset = self.cells.offset();
        let added = weights.chunks(self.geometry.taps()).map(|taps| offset * taps.iter().sum::<i64>());
        added.enumerate().map(|(k, added)| (bias.map_or(0, |b| b[k]) - added) as i32).collect()
    }

    /// Of each output row of a unit, where its first cell and its weights are.
    fn row_offsets(&self) -> Vec<i32> {
        let phase_bytes = self.geometry.channels / self.isa.lanes() * self.vector_bytes();
        let offsets = |row: usize| {
            let (cell, phase) = self.cells.axes[0].begin(row);
            [cell * self.cells.row_bytes(), phase * phase_bytes].map(|offset| offset as i32)
        };
        (0..self.schedule.rows).flat_map(offsets).collect()
    }
}

/// A word of the table of [`Depthwise::assemble`]. The epilogue's follow.
#[derive(Clone, Copy)]
enum Word {
    /// The unit's first cell.
    Cells,
    Weights,
    Start,
    Dst,
    Literals,
    /// Output rows.
    Rows,
    /// [`Depthwise::row_offsets`].
    Offsets,
}

const FIXED_WORDS: usize = 7;

/// How a tile reads the weights of a vector of channels.
enum Weights {
    Held(Vec<V>),
    At(Gpr),
}

/// Addresses of a tile.
struct Tile {
    cells: Gpr,
    start: Gpr,
    weights: Weights,
    dst: Gpr,
}

impl Depthwise {
    /// A unit's rows, for every one the vectors of channels, for each of these the tiles. Overwrites its table.
    fn assemble(&self, epilogue: &WideEpilogue) -> Result<Vec<u8>, AsmError> {
        let (mut asm, table) = Asm::new(self.isa);
        let a = &mut asm;
        a.set_even_mask();
        let word = |word: Word| Mem::word(table, word as usize);
        a.repeat_word_down(word(Word::Rows), |a| {
            let [offsets, cells, weights] = [Word::Offsets, Word::Cells, Word::Weights].map(|w| a.load_word(word(w)));
            for (i, address) in [cells, weights].into_iter().enumerate() {
                let offset = a.gpr();
                a.load_int(offset, Mem::at(offsets, 4 * i));
                a.add(address, offset);
            }
            a.add_to_word(word(Word::Offsets), 8);
            let [start, dst, literals] = [Word::Start, Word::Dst, Word::Literals].map(|w| a.load_word(word(w)));
            let mut pointers = epilogue.pointers(a, (table, FIXED_WORDS), literals);
            a.repeat(self.schedule.vectors, |a| {
                let tile = Tile { cells, start, weights: self.hold(a, epilogue, weights), dst };
                self.vector(a, epilogue, &mut pointers, &tile, literals);
                a.add_int(weights, self.vector_bytes());
                a.add_int(start, self.isa.bytes());
            });
            for (word, bytes) in self.result_words() {
                a.add_to_word(Mem::word(table, word), self.geometry.out[1] * self.geometry.channels * bytes);
            }
        });
        asm.finish()
    }

    /// The words that move with the result, and the bytes of an element each.
    fn result_words(&self) -> impl Iterator<Item = (usize, usize)> {
        let operands = self.operand_bytes.iter().enumerate().map(|(i, &bytes)| (FIXED_WORDS + i, bytes));
        [(Word::Dst as usize, self.dst.bytes())].into_iter().chain(operands)
    }

    /// Registers that a tile needs beside its sums and the weights: an input and a product, or the epilogue's.
    fn temporaries(&self, epilogue: &WideEpilogue) -> usize {
        epilogue.temporaries().max(if self.dot { 1 } else { 2 })
    }

    /// Registers that a tile leaves.
    fn free(&self, epilogue: &WideEpilogue) -> usize {
        self.isa.registers().saturating_sub(self.schedule.mr + self.temporaries(epilogue))
    }

    /// The weights in registers, if these suffice.
    fn hold(&self, a: &mut Asm, epilogue: &WideEpilogue, weights: Gpr) -> Weights {
        if self.positions.len() > self.free(epilogue) {
            return Weights::At(weights);
        }
        let held = a.vecs(self.positions.len());
        for (i, &weight) in held.iter().enumerate() {
            a.load(weight, Mem::at(weights, i * self.isa.bytes()));
        }
        Weights::Held(held)
    }

    /// A row of a vector of channels. Moves the addresses of cells and results to the next vector's.
    fn vector(&self, a: &mut Asm, epilogue: &WideEpilogue, pointers: &mut Pointers, tile: &Tile, literals: Gpr) {
        let held = if let Weights::Held(held) = &tile.weights { held.len() } else { 0 };
        epilogue.hold(a, pointers, Hold::Vector, self.free(epilogue) - held);
        let (mr, [_, columns]) = (self.schedule.mr, self.cells.axes);
        let (whole, rest) = (self.geometry.out[1] / mr, self.geometry.out[1] % mr);
        let pixels = Pixels { dst: self.dst, to: tile.dst, channels: self.geometry.channels, literals };
        let compute = |a: &mut Asm, size: usize| {
            let sums: Vec<(usize, V)> = self.products(a, size, tile).into_iter().enumerate().collect();
            pixels.finish(a, epilogue, pointers, &sums);
        };
        let result_bytes = self.geometry.channels * self.dst.bytes();
        let tile_cells = columns.begin(mr).0 * self.isa.bytes();
        let several = whole > 1 || rest > 0;
        if whole > 0 {
            a.repeat(whole, |a| {
                compute(a, mr);
                if several {
                    a.add_int(tile.cells, tile_cells);
                    a.add_int(tile.dst, mr * result_bytes);
                    epilogue.advance_pixels(a, pointers, mr);
                }
            });
        }
        if rest > 0 {
            compute(a, rest);
        }
        let tiles = if several { whole } else { 0 };
        a.move_int(tile.cells, self.cells.vector_bytes(), tiles * tile_cells);
        a.move_int(tile.dst, self.isa.lanes() * self.dst.bytes(), tiles * mr * result_bytes);
        epilogue.advance_and_return(a, pointers, tiles * mr);
    }

    /// The sums of a tile's pixels for one vector of channels.
    fn products(&self, a: &mut Asm, mr: usize, tile: &Tile) -> Vec<V> {
        let [rows, columns] = self.cells.axes;
        let sums = a.vecs(mr);
        let start = Mem::at(tile.start, 0);
        if self.dot {
            sums.iter().for_each(|&sum| a.load(sum, start));
        }
        let mut is_first = vec![!self.dot; mr];
        for y in rows.all_cells() {
            for x in 0..columns.extent(mr) {
                let readers: Vec<(usize, usize)> =
                    (0..mr).filter_map(|pixel| self.reader(pixel, [y, x]).map(|at| (pixel, at))).collect();
                if readers.is_empty() {
                    continue;
                }
                let input = a.vec();
                a.load(input, Mem::at(tile.cells, y * self.cells.row_bytes() + x * self.isa.bytes()));
                for (pixel, position) in readers {
                    let weight: Src = match &tile.weights {
                        Weights::Held(held) => held[position].into(),
                        Weights::At(base) => Mem::at(*base, position * self.isa.bytes()).into(),
                    };
                    if std::mem::take(&mut is_first[pixel]) {
                        a.binary(Binary::Maddwd, sums[pixel], input, weight);
                        a.binary(Binary::AddI32, sums[pixel], sums[pixel], start);
                    } else {
                        self.product(a, sums[pixel], input, weight);
                    }
                }
            }
        }
        sums
    }

    /// The weights that a tile's pixel multiplies a cell with, which is counted from the tile's first.
    fn reader(&self, pixel: usize, [y, x]: [usize; 2]) -> Option<usize> {
        let (first, phase) = self.cells.axes[1].begin(pixel);
        let wanted = Position { phase, cell: [y, x.checked_sub(first)?] };
        self.positions.iter().position(|&position| position == wanted)
    }

    fn product(&self, a: &mut Asm, sum: V, input: V, weight: Src) {
        match (self.dot, self.cells.are_bytes()) {
            (true, true) => a.dot_u8i8(sum, input, weight),
            (true, false) => a.dot_i16(sum, input, weight),
            _ => {
                let product = a.vec();
                a.binary(Binary::Maddwd, product, input, weight);
                a.binary(Binary::AddI32, sum, sum, product);
            }
        }
    }
}

impl Body for Depthwise {
    fn emit(&self, c: &mut Code, frame: &Frame) -> Result<(), Unsupported> {
        let &[rows, cells] = frame.leaves.as_slice() else {
            return Err(Unsupported::new("no inner kernels of a depthwise convolution"));
        };
        let geometry = &self.geometry;
        let units = c.int(geometry.batch * self.row_blocks() * self.groups());
        c.range(frame.task, units, frame.tasks, |c, unit| {
            let (row_unit, group) = c.div_rem(unit, self.groups());
            let (image, row_block) = c.div_rem(row_unit, self.row_blocks());
            let first_row = c.mul_int(row_block, self.schedule.rows);
            let channel = c.mul_int(group, self.unit_channels());
            let image_bytes = geometry.size[0] * geometry.size[1] * geometry.pixel_bytes();
            let src = c.offset(frame.operands[0], image, image_bytes);
            let place = Place {
                image: c.offset(src, channel, geometry.src.bytes()),
                first_row,
                scratch: frame.scratch,
                pad: frame.tables[PAD],
                literals: frame.tables[LITERALS],
            };
            self.cells.prepare(c, cells, &place);
            self.rows(c, frame, rows, &Unit { image, first_row, group, channel });
        });
        Ok(())
    }
}

/// A unit of work.
struct Unit {
    image: Value,
    first_row: Value,
    group: Value,
    /// First channel.
    channel: Value,
}

impl Depthwise {
    /// Computes the unit's rows.
    fn rows(&self, c: &mut Code, frame: &Frame, leaf: FuncRef, unit: &Unit) {
        let [height, width] = self.geometry.out;
        let end = c.add_int(unit.first_row, self.schedule.rows);
        let end = c.min_int(end, height);
        let row = c.offset(unit.first_row, unit.image, height);
        let pixel = c.mul_int(row, width);
        let element = c.offset(unit.channel, pixel, self.geometry.channels);
        let mut words = vec![frame.scratch; FIXED_WORDS];
        let group_weights = self.schedule.vectors * self.vector_bytes();
        words[Word::Weights as usize] = c.offset(frame.tables[WEIGHTS], unit.group, group_weights);
        words[Word::Start as usize] = c.offset(frame.tables[START], unit.channel, Elem::I32.bytes());
        words[Word::Dst as usize] = c.offset(frame.dst, element, self.dst.bytes());
        words[Word::Literals as usize] = frame.tables[LITERALS];
        words[Word::Rows as usize] = c.sub(end, unit.first_row);
        words[Word::Offsets as usize] = frame.tables[ROWS];
        for (i, &bytes) in self.operand_bytes.iter().enumerate() {
            words.push(c.offset(frame.operands[1 + i], element, bytes));
        }
        for (i, &stride) in self.table_strides.iter().enumerate() {
            let table = frame.tables[FIRST_EPILOGUE_TABLE + i];
            words.push(c.offset(table, unit.group, stride * self.schedule.vectors));
        }
        call(c, leaf, &words);
    }
}
