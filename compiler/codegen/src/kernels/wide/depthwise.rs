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
use hawqc_schedules::{
    CELL_BYTES, CellAxis, DEPTHWISE_MACS_PER_WORK, DepthwiseGeometry, DepthwiseSchedule, Machine, Units,
};

use super::cells::{Cells, Place};
use super::epilogue::{Hold, Pointers, WideEpilogue};
use super::store::Pixels;
use super::{call, ints};
use crate::asm::{Asm, AsmError, Binary, Gpr, Isa, Mem, Src, V};
use crate::error::Unsupported;
use crate::kernels::conv::Geometry;
use crate::kernels::emit::{Code, UnitPlace};
use crate::kernels::{Body, Dst, Frame, Leaf, Lowered, Table};

const WEIGHTS: usize = 0;
const START: usize = 1;
const PAD: usize = 2;
const ROWS: usize = 3;
const LITERALS: usize = 4;
const FIRST_EPILOGUE_TABLE: usize = 5;

/// Output pixels of a vector of channels after which the next vector is computed.
const BAND_PIXELS: usize = 256;
/// Words of [`Depthwise::row_offsets`] of a row.
const ROW_OFFSETS: usize = 2;

struct Depthwise {
    geometry: Geometry,
    isa: Isa,
    /// Whether one instruction multiplies and adds up.
    dot: bool,
    schedule: DepthwiseSchedule,
    units: Units,
    dst: Dst,
    cells: Cells,
    positions: Vec<Position>,
    /// Of the epilogue's operands, then of the second result.
    operand_bytes: Vec<usize>,
    has_second: bool,
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
    dst: Dst,
) -> Result<Lowered, Unsupported> {
    let (geometry, [src, wei], bias) = Geometry::of(spec)?;
    let (weights, bias) = Geometry::constants(constants, wei, bias)?;
    let found = DepthwiseGeometry::of(spec).and_then(|found| found.wide_machine(machine).map(|wide| (found, wide)));
    let Some((found, wide)) = found else {
        return Err(Unsupported::new("a wide kernel of this convolution"));
    };
    let (axes, units) = (found.axes(wide), schedule.units(&found, wide));
    let isa = Isa::of(wide);
    let cells = Cells { geometry, isa, axes, vectors: schedule.vectors, rows: units.rows.largest() };
    let (mut epilogue, requant_tables) = WideEpilogue::new(spec, constants, wide)?;
    cells.literals(&mut epilogue);
    let depthwise = Depthwise {
        geometry,
        isa,
        dot: wide.dot,
        schedule,
        units,
        dst,
        positions: positions(axes),
        operand_bytes: epilogue.operand_bytes(),
        has_second: epilogue.has_second(),
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
        second: epilogue.has_second(),
        proof: String::new(),
        scratch_bytes: depthwise.cells.scratch_bytes(),
        units: units.count(),
        work: geometry.macs() / DEPTHWISE_MACS_PER_WORK as u64,
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

    /// Output rows of a unit that are computed for a vector of channels before the next: as many as write into cache lines
    /// that the first-level cache keeps until the next vectors, whose results these hold too, are written.
    fn band(&self) -> usize {
        (BAND_PIXELS / self.geometry.out[1]).clamp(1, self.schedule.rows)
    }

    /// Of each output row of a unit, where its first cell and its weights are.
    fn row_offsets(&self) -> Vec<i32> {
        let phase_bytes = self.geometry.channels / self.isa.lanes() * self.vector_bytes();
        let offsets = |row: usize| -> [i32; ROW_OFFSETS] {
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
    /// Of the rows; see [`Depthwise::row_offsets`].
    Offsets,
    /// The second result, if there is one; the epilogue's word of it moves from pixel to pixel.
    Second,
}

const FIXED_WORDS: usize = 8;

/// How a tile reads the weights of a vector of channels.
enum Weights {
    Held(Vec<V>),
    At(Gpr),
}

/// Where a tile reads.
struct Inputs {
    cells: Gpr,
    start: Gpr,
    weights: Weights,
}

impl Depthwise {
    /// Rows of a unit, for every vector of channels one after the other. Overwrites its table.
    fn assemble(&self, epilogue: &WideEpilogue) -> Result<Vec<u8>, AsmError> {
        let (mut asm, table) = Asm::new(self.isa);
        let a = &mut asm;
        a.set_even_mask();
        a.repeat(self.schedule.vectors, |a| {
            let [start, dst, literals, offsets, rows] =
                [Word::Start, Word::Dst, Word::Literals, Word::Offsets, Word::Rows]
                    .map(|word| a.argument(table, word as usize));
            let mut pointers = epilogue.pointers(a, (table, FIXED_WORDS), literals);
            epilogue.hold(a, &mut pointers, Hold::Vectors(1), self.free(epilogue) - self.held(epilogue));
            epilogue.place_second(a, &pointers, Mem::word(table, Word::Second as usize));
            let pixels = Pixels { dst: self.dst, to: dst, literals };
            a.repeat_down(rows, |a| {
                let [cells, weights] = [Word::Cells, Word::Weights].map(|word| a.argument(table, word as usize));
                for (i, address) in [cells, weights].into_iter().enumerate() {
                    let offset = a.gpr();
                    a.load_int(offset, Mem::at(offsets, 4 * i));
                    a.add(address, offset);
                }
                a.add_int(offsets, 8);
                let inputs = Inputs { cells, start, weights: self.hold(a, epilogue, weights) };
                self.row(a, epilogue, &pointers, &inputs, &pixels);
            });
            for (word, bytes) in self.vector_words() {
                a.add_to_word(Mem::word(table, word), bytes);
            }
        });
        asm.finish()
    }

    /// The words that move from a vector of channels to the next, and by how much.
    fn vector_words(&self) -> Vec<(usize, usize)> {
        let lanes = self.isa.lanes();
        let fixed = [
            (Word::Cells, self.cells.vector_bytes()),
            (Word::Weights, self.vector_bytes()),
            (Word::Start, self.isa.bytes()),
            (Word::Dst, lanes * self.dst.elem.bytes()),
        ];
        let second = self.has_second.then(|| (Word::Second, lanes * self.operand_bytes.last().copied().unwrap_or(0)));
        let fixed = fixed.into_iter().chain(second).map(|(word, bytes)| (word as usize, bytes));
        let operands = self.operand_bytes.iter().map(|bytes| lanes * bytes);
        fixed.chain((FIXED_WORDS..).zip(operands.chain(self.table_strides.iter().copied()))).collect()
    }

    /// Registers that a tile leaves: it needs its sums, an input and a product, or what the epilogue does.
    fn free(&self, epilogue: &WideEpilogue) -> usize {
        let temporaries = epilogue.temporaries().max(if self.dot { 1 } else { 2 });
        self.isa.registers().saturating_sub(self.schedule.mr + temporaries)
    }

    /// Those that hold weights: all, or none if they are too many.
    fn held(&self, epilogue: &WideEpilogue) -> usize {
        let weights = self.positions.len();
        if weights <= self.free(epilogue) { weights } else { 0 }
    }

    fn hold(&self, a: &mut Asm, epilogue: &WideEpilogue, weights: Gpr) -> Weights {
        let held = a.vecs(self.held(epilogue));
        if held.is_empty() {
            return Weights::At(weights);
        }
        for (i, &weight) in held.iter().enumerate() {
            a.load(weight, Mem::at(weights, i * self.isa.bytes()));
        }
        Weights::Held(held)
    }

    /// A row of a vector of channels. Moves the addresses on: of results to the next row's.
    fn row(&self, a: &mut Asm, epilogue: &WideEpilogue, pointers: &Pointers, inputs: &Inputs, pixels: &Pixels) {
        let (mr, width) = (self.schedule.mr, self.geometry.out[1]);
        let tile = |a: &mut Asm, size: usize| {
            let sums: Vec<(usize, V)> = self.products(a, size, inputs).into_iter().enumerate().collect();
            pixels.finish(a, epilogue, pointers, &sums);
            a.add_int(pixels.to, size * self.dst.pixel_bytes());
            epilogue.advance_pixels(a, pointers, size);
        };
        if width >= mr {
            a.repeat(width / mr, |a| {
                tile(a, mr);
                a.add_int(inputs.cells, self.cells.axes[1].begin(mr).0 * self.isa.bytes());
            });
        }
        if !width.is_multiple_of(mr) {
            tile(a, width % mr);
        }
    }

    /// The sums of a tile's pixels for one vector of channels.
    fn products(&self, a: &mut Asm, mr: usize, inputs: &Inputs) -> Vec<V> {
        let [rows, columns] = self.cells.axes;
        let sums = a.vecs(mr);
        let start = Mem::at(inputs.start, 0);
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
                a.load(input, Mem::at(inputs.cells, y * self.cells.row_bytes() + x * self.isa.bytes()));
                for (pixel, position) in readers {
                    let weight: Src = match &inputs.weights {
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
        let &[band, cells] = frame.leaves.as_slice() else {
            return Err(Unsupported::new("no inner kernels of a depthwise convolution"));
        };
        let geometry = &self.geometry;
        frame.units(c, |c, unit| {
            let units = self.units;
            let UnitPlace { image, rows, blocks: [group, _] } = c.place(units, unit);
            let channel = c.mul_int(group, self.unit_channels());
            let image_bytes = geometry.size[0] * geometry.size[1] * geometry.pixel_bytes();
            let src = c.offset(frame.operands[0], image, image_bytes);
            let cell_rows = c.of_part(units.rows, rows, |rows| self.cells.axes[0].extent(rows));
            let place = Place {
                image: c.offset(src, channel, geometry.src.bytes()),
                first_row: rows[0],
                rows: cell_rows,
                scratch: frame.scratch,
                pad: frame.tables[PAD],
                literals: frame.tables[LITERALS],
            };
            self.cells.prepare(c, cells, &place);
            self.rows(c, frame, band, &Unit { image, rows, group, channel });
        });
        Ok(())
    }
}

/// A unit of work.
struct Unit {
    image: Value,
    /// Where its rows begin and end.
    rows: [Value; 2],
    group: Value,
    /// First channel.
    channel: Value,
}

impl Depthwise {
    /// Computes the unit's rows, a band of them at a time.
    fn rows(&self, c: &mut Code, frame: &Frame, leaf: FuncRef, unit: &Unit) {
        let ([height, width], band) = (self.geometry.out, self.band());
        let [first, end] = unit.rows;
        let step = c.int(band);
        c.range(first, end, step, |c, row| {
            let rows = c.sub(end, row);
            let rows = c.min_int(rows, band);
            let in_unit = c.sub(row, first);
            let image_row = c.offset(row, unit.image, height);
            let pixel = c.mul_int(image_row, width);
            let element = c.offset(unit.channel, pixel, self.geometry.channels);
            let mut words = vec![frame.scratch; FIXED_WORDS];
            let group_weights = self.schedule.vectors * self.vector_bytes();
            words[Word::Weights as usize] = c.offset(frame.tables[WEIGHTS], unit.group, group_weights);
            words[Word::Start as usize] = c.offset(frame.tables[START], unit.channel, Elem::I32.bytes());
            words[Word::Dst as usize] = self.dst.at(c, frame.dst, pixel, unit.channel);
            words[Word::Literals as usize] = frame.tables[LITERALS];
            words[Word::Rows as usize] = rows;
            words[Word::Offsets as usize] = c.offset(frame.tables[ROWS], in_unit, ROW_OFFSETS * Elem::I32.bytes());
            for (i, &bytes) in self.operand_bytes.iter().enumerate() {
                words.push(c.offset(frame.operands[1 + i], element, bytes));
            }
            if let (true, Some(&second)) = (self.has_second, words.last()) {
                words[Word::Second as usize] = second;
            }
            for (i, &stride) in self.table_strides.iter().enumerate() {
                let table = frame.tables[FIRST_EPILOGUE_TABLE + i];
                words.push(c.offset(table, unit.group, stride * self.schedule.vectors));
            }
            call(c, leaf, &words);
        });
    }
}
