//! Depthwise convolution with inner kernels assembled for vectors of 256 or 512 bits.
//!
//! A unit of work brings its source rows into scratch memory as *pairs*: `[pair][column][channel][2]`, the values of
//! rows 2p and 2p+1 in 16 bits, padding filled in. A product instruction then takes one column's two rows for every
//! lane, a channel, and adds them up in 32 bits. An output row begins in the first or in the second row of a pair (its
//! *phase*), for which weights are packed apart, those of rows that no tap reads being 0:
//! `[phase][vector][pair][kx][lane][2]`.
//!
//! Pairs of 16-bit products are summed modulo 2^32, as are all sums, so any operands of up to 16 bits are exact.

use cranelift_codegen::ir::{FuncRef, Value};
use hawqc_ir::{Elem, KernelSpec, Tensor};
use hawqc_schedules::{DepthwiseGeometry, DepthwiseSchedule, Machine};

use super::epilogue::{Hold, WideEpilogue};
use super::store::Pixels;
use super::{call, ints};
use crate::asm::{Asm, AsmError, Binary, Gpr, Isa, Mem, Shift, Src, V, Widen};
use crate::error::Unsupported;
use crate::kernels::conv::Geometry;
use crate::kernels::emit::Code;
use crate::kernels::{Body, Dst, Frame, Leaf, Lowered, Table};

const WEIGHTS: usize = 0;
const START: usize = 1;
const PAD: usize = 2;
const LITERALS: usize = 3;
const FIRST_EPILOGUE_TABLE: usize = 4;
/// Bytes of a pair of values.
const PAIR_BYTES: usize = 4;
/// The low half of a lane.
const LOW_HALF: i32 = 0xffff;
/// Multiply-accumulates that take about as long as an element operation of other kernels.
const MACS_PER_WORK: u64 = 2;

struct Depthwise {
    geometry: Geometry,
    isa: Isa,
    /// Whether one instruction multiplies pairs and adds them.
    dot: bool,
    schedule: DepthwiseSchedule,
    dst: Dst,
    taps: Taps,
    /// Pixels of each inner kernel, in the order of the leaves; the preparation is the last leaf.
    tiles: Vec<usize>,
    operand_bytes: Vec<usize>,
    table_strides: Vec<usize>,
}

/// Which pairs of rows the taps of an output row lie in.
struct Taps {
    /// Rows by which an output row may begin behind a pair's first: 1, or 2 where the stride is odd.
    phases: usize,
    /// Pairs with a tap in some phase, counted from the one that the output row begins in.
    pairs: Vec<usize>,
    kernel: [usize; 2],
    dilation: [usize; 2],
    stride: usize,
}

impl Taps {
    fn new(geometry: &Geometry) -> Taps {
        let window = geometry.window;
        let phases = 1 + window.stride[0] % 2;
        let row = |phase: usize, ky: usize| phase + ky * window.dilation[0];
        let touched = (0..phases).flat_map(|phase| (0..window.kernel[0]).map(move |ky| row(phase, ky) / 2));
        let pairs: std::collections::BTreeSet<usize> = touched.collect();
        Taps {
            phases,
            pairs: pairs.into_iter().collect(),
            kernel: window.kernel,
            dilation: window.dilation,
            stride: window.stride[1],
        }
    }

    /// Vectors of weights for a vector of channels.
    fn positions(&self) -> usize {
        self.pairs.len() * self.kernel[1]
    }

    /// The row of taps that `half` of `pair` meets.
    fn tap_row(&self, phase: usize, pair: usize, half: usize) -> Option<usize> {
        let row = (2 * pair + half).checked_sub(phase)?;
        let ky = row / self.dilation[0];
        (row.is_multiple_of(self.dilation[0]) && ky < self.kernel[0]).then_some(ky)
    }

    /// `(pixel, kx)` of the taps of a tile of `mr` pixels in a column, counted from the tile's first.
    fn readers(&self, mr: usize, column: usize) -> Vec<(usize, usize)> {
        let all = (0..mr).flat_map(|pixel| (0..self.kernel[1]).map(move |kx| (pixel, kx)));
        all.filter(|(pixel, kx)| pixel * self.stride + kx * self.dilation[1] == column).collect()
    }
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
    let Some(wide) = DepthwiseGeometry::of(spec).and_then(|g| g.wide_machine(machine)) else {
        return Err(Unsupported::new("a wide kernel of this convolution"));
    };
    let isa = Isa::of(wide);
    let (mut epilogue, requant_tables) = WideEpilogue::new(spec, constants, isa)?;
    epilogue.literal(LOW_HALF);
    let mut depthwise = Depthwise {
        geometry,
        isa,
        dot: wide.dot,
        schedule,
        dst,
        taps: Taps::new(&geometry),
        tiles: Vec::new(),
        operand_bytes: epilogue.operand_bytes(),
        table_strides: epilogue.table_strides(isa),
    };
    let start: Vec<i32> = (0..geometry.channels).map(|k| bias.as_ref().map_or(0, |b| b[k]) as i32).collect();
    let mut tables = vec![
        Table { bytes: depthwise.pack(&weights.ints()?), is_weights: true },
        Table::new(ints(&start)),
        Table::new(geometry.pad_row(isa.lanes())),
        epilogue.literal_table(isa),
    ];
    tables.extend(requant_tables);
    let mut operands = vec![src];
    operands.extend(epilogue.operands());
    let leaves = depthwise.leaves(&epilogue).map_err(|e| Unsupported::new(e.to_string()))?;
    Ok(Lowered {
        family: "depthwise",
        operands,
        tables,
        forms: epilogue.form(),
        second: epilogue.has_second(),
        proof: String::new(),
        scratch_bytes: depthwise.scratch_bytes(),
        units: geometry.batch * depthwise.row_blocks() * depthwise.groups(),
        work: geometry.macs() / MACS_PER_WORK,
        macs: geometry.macs(),
        is_border: false,
        leaves,
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

    /// Columns of prepared rows.
    fn columns(&self) -> usize {
        let window = &self.geometry.window;
        (self.geometry.out[1] - 1) * window.stride[1] + (window.kernel[1] - 1) * window.dilation[1] + 1
    }

    /// Pairs of rows of a unit.
    fn pairs(&self) -> usize {
        let last = (self.schedule.rows - 1) * self.geometry.window.stride[0] / 2;
        last + self.taps.pairs.last().map_or(0, |last| last + 1)
    }

    fn column_bytes(&self) -> usize {
        self.unit_channels() * PAIR_BYTES
    }

    fn pair_bytes(&self) -> usize {
        self.columns() * self.column_bytes()
    }

    fn scratch_bytes(&self) -> usize {
        (self.pairs() * self.pair_bytes()).next_multiple_of(64)
    }

    /// Bytes of the weights of a vector of channels in a phase.
    fn vector_bytes(&self) -> usize {
        self.taps.positions() * self.isa.bytes()
    }

    fn pack(&self, weights: &[i64]) -> Vec<u8> {
        let ([kh, kw], lanes) = (self.taps.kernel, self.isa.lanes());
        let mut out = Vec::new();
        for phase in 0..self.taps.phases {
            for first in (0..self.geometry.channels).step_by(lanes) {
                for &pair in &self.taps.pairs {
                    for kx in 0..kw {
                        for k in first..first + lanes {
                            for half in 0..2 {
                                let ky = self.taps.tap_row(phase, pair, half);
                                let weight = ky.map_or(0, |ky| weights[(k * kh + ky) * kw + kx]);
                                out.extend((weight as i16).to_le_bytes());
                            }
                        }
                    }
                }
            }
        }
        out
    }

    fn leaves(&mut self, epilogue: &WideEpilogue) -> Result<Vec<Leaf>, AsmError> {
        let (columns, mr) = (self.geometry.out[1], self.schedule.mr);
        let mut leaves = Vec::new();
        for size in [if columns >= mr { mr } else { 0 }, columns % mr].into_iter().filter(|&size| size > 0) {
            leaves.push(Leaf { name: format!("depthwise.{size}"), code: self.assemble_tile(epilogue, size)? });
            self.tiles.push(size);
        }
        let code = self.assemble_pairs(epilogue)?;
        leaves.push(Leaf { name: "pairs".into(), code });
        Ok(leaves)
    }
}

/// Words of [`Depthwise::assemble_tile`]'s table before the epilogue's: the first column's first pair, the weights, the
/// sums' start, the result, the literals.
const TILE_WORDS: usize = 5;

/// How a tile reads the weights of a vector of channels.
enum Weights {
    Held(Vec<V>),
    At(Gpr),
}

impl Depthwise {
    /// A tile of `mr` pixels of a row, for all vectors of a unit's channels.
    fn assemble_tile(&self, epilogue: &WideEpilogue, mr: usize) -> Result<Vec<u8>, AsmError> {
        let (mut asm, table) = Asm::new(self.isa);
        let a = &mut asm;
        a.set_even_mask();
        let [src, weights, start, dst, literals] = [0, 1, 2, 3, 4].map(|word| a.argument(table, word));
        let mut pointers = epilogue.pointers(a, (table, TILE_WORDS), literals);
        let free = self.isa.registers().saturating_sub(mr + epilogue.temporaries());
        let bytes = self.isa.bytes();
        let pixels = Pixels { dst: self.dst, to: dst, literals };
        a.repeat(self.schedule.vectors, |a| {
            let sums = self.products(a, mr, src, weights, start);
            epilogue.hold(a, &mut pointers, Hold::Vector, free);
            let sums: Vec<(usize, V)> = sums.into_iter().enumerate().collect();
            pixels.finish(a, epilogue, &pointers, &sums);
            a.add_int(src, self.isa.lanes() * PAIR_BYTES);
            a.add_int(weights, self.vector_bytes());
            a.add_int(start, bytes);
            a.add_int(dst, self.isa.lanes() * self.dst.elem.bytes());
            epilogue.advance(a, &pointers);
        });
        asm.finish()
    }

    /// The sums of a tile's pixels for one vector of channels.
    fn products(&self, a: &mut Asm, mr: usize, src: Gpr, weights: Gpr, start: Gpr) -> Vec<V> {
        let (bytes, kw, positions) = (self.isa.bytes(), self.taps.kernel[1], self.taps.positions());
        let sums = a.vecs(mr);
        if self.dot {
            sums.iter().for_each(|&sum| a.load(sum, Mem::at(start, 0)));
        }
        let mut is_first = vec![!self.dot; mr];
        // Beside these, an input and a product.
        let weights = if mr + positions + 2 <= self.isa.registers() {
            let held = a.vecs(positions);
            for (i, &weight) in held.iter().enumerate() {
                a.load(weight, Mem::at(weights, i * bytes));
            }
            Weights::Held(held)
        } else {
            Weights::At(weights)
        };
        let columns = (mr - 1) * self.taps.stride + (kw - 1) * self.taps.dilation[1] + 1;
        for (p, &pair) in self.taps.pairs.iter().enumerate() {
            for column in 0..columns {
                let readers = self.taps.readers(mr, column);
                let from = Mem::at(src, pair * self.pair_bytes() + column * self.column_bytes());
                let in_memory = readers.len() == 1 && matches!(weights, Weights::Held(_));
                let input = a.vec();
                if !in_memory && !readers.is_empty() {
                    a.load(input, from);
                }
                for (pixel, kx) in readers {
                    let position = p * kw + kx;
                    let (x, other): (V, Src) = match &weights {
                        Weights::Held(held) if in_memory => (held[position], from.into()),
                        Weights::Held(held) => (input, held[position].into()),
                        Weights::At(base) => (input, Mem::at(*base, position * bytes).into()),
                    };
                    if std::mem::take(&mut is_first[pixel]) {
                        a.binary(Binary::Maddwd, sums[pixel], x, other);
                        a.binary(Binary::AddI32, sums[pixel], sums[pixel], Mem::at(start, 0));
                    } else {
                        self.product(a, sums[pixel], x, other);
                    }
                }
            }
        }
        sums
    }

    fn product(&self, a: &mut Asm, sum: V, x: V, other: Src) {
        if self.dot {
            return a.dot_i16(sum, x, other);
        }
        let product = a.vec();
        a.binary(Binary::Maddwd, product, x, other);
        a.binary(Binary::AddI32, sum, sum, product);
    }

    /// Brings columns of a pair of rows into scratch memory. Its table: where to, where from in each row, by how much
    /// each advances for a vector and for a pixel beyond its vectors, the number of columns, the literals.
    fn assemble_pairs(&self, epilogue: &WideEpilogue) -> Result<Vec<u8>, AsmError> {
        let (mut asm, table) = Asm::new(self.isa);
        let a = &mut asm;
        let [to, from0, from1, step0, step1, skip0, skip1, columns, literals] =
            [0, 1, 2, 3, 4, 5, 6, 7, 8].map(|word| a.argument(table, word));
        let src = self.geometry.src;
        let widen = match (src.bytes(), src.is_signed()) {
            (1, false) => Widen::U8ToI32,
            (1, true) => Widen::I8ToI32,
            _ => Widen::I16ToI32,
        };
        let convert = |a: &mut Asm, to: Mem, [from0, from1]: [Mem; 2]| {
            let [low, high] = [a.vec(), a.vec()];
            a.load_widened(widen, low, from0);
            a.load_widened(widen, high, from1);
            a.shift(Shift::LeftI32, high, high, 16);
            if src.is_signed() {
                a.binary(Binary::And, low, low, epilogue.at(self.isa, literals, LOW_HALF));
            }
            a.binary(Binary::AddI32, low, low, high);
            a.store(to, low);
        };
        let bytes = self.isa.bytes();
        let (twos, rest) = (self.schedule.vectors / 2, self.schedule.vectors % 2);
        let step = |a: &mut Asm| {
            a.add(from0, step0);
            a.add(from1, step1);
        };
        a.repeat_down(columns, |a| {
            if twos > 0 {
                a.repeat(twos, |a| {
                    convert(a, Mem::at(to, 0), [Mem::at(from0, 0), Mem::at(from1, 0)]);
                    let second = [Mem::indexed(from0, step0, 0), Mem::indexed(from1, step1, 0)];
                    convert(a, Mem::at(to, bytes), second);
                    step(a);
                    step(a);
                    a.add_int(to, 2 * bytes);
                });
            }
            if rest > 0 {
                convert(a, Mem::at(to, 0), [Mem::at(from0, 0), Mem::at(from1, 0)]);
                step(a);
                a.add_int(to, bytes);
            }
            a.add(from0, skip0);
            a.add(from1, skip1);
        });
        asm.finish()
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

impl Body for Depthwise {
    fn emit(&self, c: &mut Code, frame: &Frame) -> Result<(), Unsupported> {
        let units = c.int(self.geometry.batch * self.row_blocks() * self.groups());
        let mut outcome = Ok(());
        c.range(frame.task, units, frame.tasks, |c, unit| {
            let (row_unit, group) = c.div_rem(unit, self.groups());
            let (image, row_block) = c.div_rem(row_unit, self.row_blocks());
            let first_row = c.mul_int(row_block, self.schedule.rows);
            let channel = c.mul_int(group, self.unit_channels());
            let unit = Unit { image, first_row, group, channel };
            outcome = self.prepare(c, frame, &unit).and_then(|()| self.rows(c, frame, &unit));
        });
        outcome
    }
}

impl Depthwise {
    fn leaf(&self, frame: &Frame, position: usize) -> Result<FuncRef, Unsupported> {
        let missing = || Unsupported::new(format!("no inner kernel {position} of a depthwise convolution"));
        frame.leaves.get(position).copied().ok_or_else(missing)
    }

    /// Brings the unit's rows into scratch memory.
    fn prepare(&self, c: &mut Code, frame: &Frame, unit: &Unit) -> Result<(), Unsupported> {
        let leaf = self.leaf(frame, self.tiles.len())?;
        let geometry = &self.geometry;
        let ([h, w], window, src_bytes) = (geometry.size, &geometry.window, geometry.src.bytes());
        let left = window.pad[1].min(self.columns());
        let middle = (self.columns() - left).min(w);
        let right = self.columns() - left - middle;
        let row_bytes = w * geometry.pixel_bytes();
        let image = c.offset(frame.operands[0], unit.image, h * row_bytes);
        let image = c.offset(image, unit.channel, src_bytes);
        let first = c.mul_int(unit.first_row, window.stride[0]);
        let first = c.sub_int(first, window.pad[0]);
        let (pad, zero) = (frame.tables[PAD], c.int(0));
        c.count(self.pairs(), 1, |c, pair| {
            let top = c.offset(first, pair, 2);
            let to = c.offset(frame.scratch, pair, self.pair_bytes());
            // Of each row: where from, and the advances; a row of padding stays at the one vector there is.
            let rows = [0, 1].map(|half| {
                let y = c.add_int(top, half);
                let inside = c.below(y, h);
                let from = c.offset(image, y, row_bytes);
                let [step, skip] = [self.isa.lanes(), geometry.channels - self.unit_channels()];
                let [step, skip] = [step, skip].map(|values| c.int(values * src_bytes));
                [(from, pad), (step, zero), (skip, zero)].map(|(yes, no)| c.select(inside, yes, no))
            });
            let padding = [[pad, zero, zero]; 2];
            let mut column = 0;
            for (columns, [[from0, step0, skip0], [from1, step1, skip1]]) in
                [(left, padding), (middle, rows), (right, padding)]
            {
                if columns > 0 {
                    let to = c.add_int(to, column * self.column_bytes());
                    let count = c.int(columns);
                    let literals = frame.tables[LITERALS];
                    call(c, leaf, &[to, from0, from1, step0, step1, skip0, skip1, count, literals]);
                }
                column += columns;
            }
        });
        Ok(())
    }

    /// Computes the unit's rows.
    fn rows(&self, c: &mut Code, frame: &Frame, unit: &Unit) -> Result<(), Unsupported> {
        let [height, width] = self.geometry.out;
        let leaves = (0..self.tiles.len()).map(|i| self.leaf(frame, i)).collect::<Result<Vec<_>, _>>()?;
        let end = c.add_int(unit.first_row, self.schedule.rows);
        let (end, one) = (c.min_int(end, height), c.int(1));
        let mr = self.schedule.mr;
        c.range(unit.first_row, end, one, |c, row| {
            let in_unit = c.sub(row, unit.first_row);
            let top = c.mul_int(in_unit, self.geometry.window.stride[0]);
            let (pair, phase) = c.div_rem(top, 2);
            let src = c.offset(frame.scratch, pair, self.pair_bytes());
            let phase_bytes = self.geometry.channels / self.isa.lanes() * self.vector_bytes();
            let weights = c.offset(frame.tables[WEIGHTS], phase, phase_bytes);
            let weights = c.offset(weights, unit.group, self.schedule.vectors * self.vector_bytes());
            let image_row = c.offset(row, unit.image, height);
            let first = c.mul_int(image_row, width);
            let tile = |c: &mut Code, column: Value, leaf: FuncRef| {
                let pixel = c.add(first, column);
                let element = c.offset(unit.channel, pixel, self.geometry.channels);
                let mut words = vec![
                    c.offset(src, column, self.geometry.window.stride[1] * self.column_bytes()),
                    weights,
                    c.offset(frame.tables[START], unit.channel, Elem::I32.bytes()),
                    self.dst.at(c, frame.dst, pixel, unit.channel),
                    frame.tables[LITERALS],
                ];
                for (i, &bytes) in self.operand_bytes.iter().enumerate() {
                    words.push(c.offset(frame.operands[1 + i], element, bytes));
                }
                for (i, &stride) in self.table_strides.iter().enumerate() {
                    let table = frame.tables[FIRST_EPILOGUE_TABLE + i];
                    words.push(c.offset(table, unit.group, stride * self.schedule.vectors));
                }
                call(c, leaf, &words);
            };
            let (whole, rest) = (width / mr * mr, width % mr);
            if whole > 0 {
                c.count(whole, mr, |c, column| tile(c, column, leaves[0]));
            }
            if rest > 0 {
                let column = c.int(whole);
                tile(c, column, leaves[leaves.len() - 1]);
            }
        });
        Ok(())
    }
}
