//! 1x1 convolution by Strassen's algorithm in lanes of 8 bits.
//!
//! A unit of work adds up the inputs of its tiles to `[position][tile][C / parts]`, and then for every channel block
//! multiplies each position's inputs with its weights ([`Positions`]) and combines the sums `[position][tile][block]` to
//! outputs with the epilogue. A tile is as many consecutive pixels as there are parts; behind the last pixel it repeats it,
//! and such outputs are not stored.
//!
//! That operands fit their lanes is proved from the layer's weights and inputs when it is compiled
//! ([`hawqc_schedules::strassen`]); a layer whose do not is refused, and another schedule serves.

use cranelift_codegen::ir::{FuncRef, Value};
use hawqc_ir::{KernelSpec, Tensor};
use hawqc_schedules::strassen::{INPUTS, Levels, OUTPUTS, Sum, prove};
use hawqc_schedules::{ConvGeometry, DIRECT_MACS_PER_WORK, Machine, Multiply, Parts, StrassenSchedule, Units};

use super::call;
use super::epilogue::{Hold, WideEpilogue, splat_byte};
use super::positions::{Buffers, FIRST_EPILOGUE_TABLE, Group, LITERALS, Positions};
use super::store::{Pixels, Vectors};
use super::window::Window;
use crate::asm::{Asm, AsmError, Binary, Isa, Mem, V};
use crate::error::Unsupported;
use crate::kernels::conv::Geometry;
use crate::kernels::emit::{Code, UnitPlace};
use crate::kernels::{Body, Dst, Frame, Leaf, Lowered};

/// Words of the output leaf's table before the epilogue's: the tile's sums, its first output, the number of vectors of
/// channels, the literals.
const OUTPUT_WORDS: usize = 4;

struct Strassen {
    geometry: Geometry,
    isa: Isa,
    schedule: StrassenSchedule,
    levels: Levels,
    /// What makes each position's inputs unsigned.
    offsets: Vec<i64>,
    dst: Dst,
    positions: Positions,
    /// Pixels of each output leaf, behind the products'; the input leaves follow in the same order.
    valid: Vec<usize>,
    operand_bytes: Vec<usize>,
    table_strides: Vec<usize>,
}

pub fn lower(
    spec: &KernelSpec,
    constants: &[Option<&Tensor>],
    machine: Machine,
    schedule: StrassenSchedule,
    dst: Dst,
) -> Result<Lowered, Unsupported> {
    let (geometry, [src, wei], bias) = Geometry::of(spec)?;
    let (weights, bias) = Geometry::constants(constants, wei, bias)?;
    let Some(wide) = ConvGeometry::of(spec).and_then(|g| g.dense_machine(machine)) else {
        return Err(Unsupported::new("a wide kernel of this convolution"));
    };
    if geometry.is_padded() {
        return Err(Unsupported::new("Strassen's algorithm for a convolution with padding"));
    }
    let isa = Isa::of(wide);
    let levels = Levels(schedule.levels);
    let shape = [geometry.group_out, geometry.group_in];
    let operands = prove(levels, &weights.ints()?, shape, spec.operands()[src].int_range()?, bias.as_deref());
    let operands = operands.map_err(Unsupported::new)?;
    let (mut epilogue, requant_tables) = WideEpilogue::new(spec, constants, wide)?;
    operands.offsets.iter().for_each(|&offset| epilogue.literal(splat_byte(offset)));
    let parts = levels.parts();
    let part = [geometry.group_in / parts, geometry.group_out / parts];
    let units = Parts::of(geometry.pixels().div_ceil(parts), schedule.tiles);
    let positions = Positions {
        isa,
        multiply: Multiply::Dot,
        dot: true,
        mr: schedule.mr,
        nr: schedule.nr,
        groups: vec![Group { sums: levels.positions(), positions: 1, window: Window::All }],
        unit_tiles: units.sizes().map(|(tiles, _)| tiles),
        channels: part,
        inputs_bytes: (units.largest() * part[0]).next_multiple_of(64),
        products: Vec::new(),
    };
    let mut tables = positions.tables(&operands.weights, &operands.starts);
    tables.push(epilogue.literal_table(isa));
    tables.extend(requant_tables);
    let mut strassen = Strassen {
        geometry,
        isa,
        schedule,
        levels,
        offsets: operands.offsets.clone(),
        dst,
        positions,
        valid: Vec::new(),
        operand_bytes: epilogue.operand_bytes(),
        table_strides: epilogue.table_strides(isa),
    };
    let mut reads = vec![src];
    reads.extend(epilogue.operands());
    let none = WideEpilogue::none(spec)?;
    let leaves = strassen.leaves(&none, &epilogue).map_err(|e| Unsupported::new(e.to_string()))?;
    Ok(Lowered {
        family: "strassen",
        operands: reads,
        tables,
        forms: format!("{}{:?}", epilogue.form(), operands.offsets),
        second: epilogue.has_second(),
        proof: operands.to_string(),
        scratch_bytes: strassen.positions.scratch().iter().sum(),
        units: strassen.units().count(),
        work: geometry.macs() / DIRECT_MACS_PER_WORK as u64,
        macs: geometry.macs(),
        is_border: false,
        leaves,
        body: Box::new(strassen),
    })
}

impl Strassen {
    fn parts(&self) -> usize {
        self.levels.parts()
    }

    /// Channels of a part.
    fn part_in(&self) -> usize {
        self.geometry.group_in / self.parts()
    }

    /// Rows are tiles.
    fn units(&self) -> Units {
        Units {
            images: 1,
            rows: Parts::of(self.tiles(), self.schedule.tiles),
            blocks: Parts::of(self.positions.blocks(), self.schedule.blocks),
        }
    }

    /// Tiles of the batch, the last perhaps cut.
    fn tiles(&self) -> usize {
        self.geometry.pixels().div_ceil(self.parts())
    }

    /// Pixels of the last tile if it is cut, otherwise 0.
    fn rest_pixels(&self) -> usize {
        self.geometry.pixels() % self.parts()
    }

    fn leaves(&mut self, none: &WideEpilogue, epilogue: &WideEpilogue) -> Result<Vec<Leaf>, AsmError> {
        let mut leaves = self.positions.leaves(none)?;
        self.valid = [self.parts(), self.rest_pixels()].into_iter().filter(|&v| v > 0).collect();
        for &valid in &self.valid {
            leaves.push(Leaf { name: format!("outputs.{valid}"), code: self.assemble_output(epilogue, valid)? });
        }
        for &valid in &self.valid {
            leaves.push(Leaf { name: format!("inputs.{valid}"), code: self.assemble_input(epilogue, valid)? });
        }
        Ok(leaves)
    }

    /// Adds up the inputs of a tile whose first `valid` pixels there are. Its table: the tile's first input, where its first
    /// position goes, the number of vectors of a part's channels, the literals.
    fn assemble_input(&self, epilogue: &WideEpilogue, valid: usize) -> Result<Vec<u8>, AsmError> {
        let (mut asm, table) = Asm::new(self.isa);
        let a = &mut asm;
        let [from, to, vectors, literals] = [0, 1, 2, 3].map(|word| a.argument(table, word));
        let input = |pixel: usize, part: usize| {
            Mem::at(from, pixel.min(valid - 1) * self.geometry.channels + part * self.part_in())
        };
        a.repeat_down(vectors, |a| {
            let mut position = 0;
            let mut done = |a: &mut Asm, value: V, owned: bool| {
                let mut stored = value;
                let offset = self.offsets[position];
                if offset != 0 {
                    stored = if owned { value } else { a.vec() };
                    a.binary(Binary::AddI8, stored, value, epilogue.at(a.isa, literals, splat_byte(offset)));
                }
                a.store(Mem::at(to, position * self.positions.inputs_bytes), stored);
                position += 1;
            };
            for outer in INPUTS {
                if self.levels.0 == 1 {
                    let value = sum_of_memory(a, outer, |block| input(block / 2, block % 2));
                    done(a, value, true);
                    continue;
                }
                let blocks = [0, 1, 2, 3].map(|inner| {
                    let at = |block: usize| input(block / 2 * 2 + inner / 2, block % 2 * 2 + inner % 2);
                    sum_of_memory(a, outer, at)
                });
                for inner in INPUTS {
                    let (op, x, y) = match inner {
                        Sum::One(x) => {
                            done(a, blocks[x], false);
                            continue;
                        }
                        Sum::Plus(x, y) => (Binary::AddI8, x, y),
                        Sum::Minus(x, y) => (Binary::SubI8, x, y),
                    };
                    let value = a.vec();
                    a.binary(op, value, blocks[x], blocks[y]);
                    done(a, value, true);
                }
            }
            a.add_int(from, self.isa.bytes());
            a.add_int(to, self.isa.bytes());
        });
        asm.finish()
    }

    /// Combines the sums of a tile, of every vector of channels, to the outputs of its first `valid` pixels, with the
    /// epilogue.
    fn assemble_output(&self, epilogue: &WideEpilogue, valid: usize) -> Result<Vec<u8>, AsmError> {
        let (mut asm, table) = Asm::new(self.isa);
        let a = &mut asm;
        a.set_even_mask();
        let [from, to, vectors, literals] = [0, 1, 2, 3].map(|word| a.argument(table, word));
        let mut pointers = epilogue.pointers(a, (table, OUTPUT_WORDS), literals);
        let sums = self.parts() * self.parts();
        let free = self.isa.registers().saturating_sub(2 * sums + epilogue.temporaries());
        epilogue.hold(a, &mut pointers, Hold::Uniform, free);
        let pixels = Pixels { dst: self.dst, to, literals };
        a.repeat_down(vectors, |a| {
            let values = combine(a, self.levels.0, &|position| Mem::at(from, position * self.positions.sums_bytes()));
            for (block, value) in values.into_iter().enumerate() {
                let (pixel, part) = place(self.levels.0, block);
                if pixel >= valid {
                    continue;
                }
                let vectors = Vectors { pixel, first: part * self.positions.vectors(), count: 1 };
                pixels.finish_pixel(a, epilogue, &pointers, vectors, |_, _| Some(value));
            }
            a.add_int(from, self.isa.bytes());
            a.add_int(to, self.isa.lanes() * self.dst.elem.bytes());
            epilogue.advance(a, &pointers);
        });
        asm.finish()
    }
}

fn sum_of_memory(asm: &mut Asm, sum: Sum, at: impl Fn(usize) -> Mem) -> V {
    let value = asm.vec();
    let (Sum::One(first) | Sum::Plus(first, _) | Sum::Minus(first, _)) = sum;
    asm.load(value, at(first));
    match sum {
        Sum::One(_) => {}
        Sum::Plus(_, second) => asm.binary(Binary::AddI8, value, value, at(second)),
        Sum::Minus(_, second) => asm.binary(Binary::SubI8, value, value, at(second)),
    }
    value
}

/// The pixel and the part of the channels of an output block, the outer level's blocks one after the other.
fn place(levels: usize, block: usize) -> (usize, usize) {
    (0..levels).rev().fold((0, 0), |(pixel, part), level| {
        let block = block >> (2 * level) & 3;
        (2 * pixel + block / 2, 2 * part + block % 2)
    })
}

/// An output block under construction.
enum Block {
    Nothing,
    /// The product itself, which others may need.
    Product(Vec<V>),
    Sum(Vec<V>),
}

/// The output blocks of the sums at every position, the outer level's blocks one after the other.
fn combine(asm: &mut Asm, levels: usize, at: &dyn Fn(usize) -> Mem) -> Vec<V> {
    if levels == 0 {
        let value = asm.vec();
        asm.load(value, at(0));
        return vec![value];
    }
    let inner = Levels(levels - 1).positions();
    let mut blocks = [const { Block::Nothing }; 4];
    for (product, outputs) in OUTPUTS.iter().enumerate() {
        let sums = combine(asm, levels - 1, &|position| at(product * inner + position));
        for &(block, sign) in *outputs {
            let op = if sign > 0 { Binary::AddI32 } else { Binary::SubI32 };
            blocks[block] = match std::mem::replace(&mut blocks[block], Block::Nothing) {
                Block::Nothing => Block::Product(sums.clone()),
                Block::Product(first) => {
                    let to = asm.vecs(sums.len());
                    (0..sums.len()).for_each(|i| asm.binary(op, to[i], first[i], sums[i]));
                    Block::Sum(to)
                }
                Block::Sum(to) => {
                    (0..sums.len()).for_each(|i| asm.binary(op, to[i], to[i], sums[i]));
                    Block::Sum(to)
                }
            };
        }
    }
    let values = blocks.into_iter().map(|block| match block {
        Block::Nothing => Vec::new(),
        Block::Product(values) | Block::Sum(values) => values,
    });
    values.flatten().collect()
}

/// A unit of work.
struct Unit {
    /// Counted in the batch.
    first_tile: Value,
    /// One of [`Positions::unit_tiles`].
    tiles: usize,
    /// Whether the last tile of the batch is in it.
    is_last: bool,
    /// Where its blocks begin and end.
    blocks: [Value; 2],
    inputs: Value,
    sums: Value,
}

impl Body for Strassen {
    fn emit(&self, c: &mut Code, frame: &Frame) -> Result<(), Unsupported> {
        let mut outcome = Ok(());
        frame.units(c, |c, unit| {
            let units = self.units();
            let UnitPlace { rows: [first_tile, end_tile], blocks, .. } = c.place(units, unit);
            let sums = c.add_int(frame.scratch, self.levels.positions() * self.positions.inputs_bytes);
            let unit =
                |tiles: usize, is_last: bool| Unit { first_tile, tiles, is_last, blocks, inputs: frame.scratch, sums };
            let [larger, smaller] = self.positions.unit_tiles;
            // The last part is one of the smaller.
            let of_size = |c: &mut Code, is_last: bool| {
                if larger == smaller || is_last {
                    return self.unit(c, frame, &unit(smaller, is_last));
                }
                let is_smaller = c.is_smaller(units.rows, [first_tile, end_tile]);
                c.either(is_smaller, |c, is_smaller| {
                    self.unit(c, frame, &unit(if is_smaller { smaller } else { larger }, false))
                })
            };
            outcome = match (units.rows.count, self.rest_pixels()) {
                (_, 0) => of_size(c, false),
                (1, _) => of_size(c, true),
                _ => {
                    let is_before = c.below(end_tile, units.rows.all);
                    c.either(is_before, |c, is_before| of_size(c, !is_before))
                }
            };
        });
        outcome
    }
}

impl Strassen {
    fn unit(&self, c: &mut Code, frame: &Frame, unit: &Unit) -> Result<(), Unsupported> {
        self.add_inputs(c, frame, unit)?;
        let buffers = Buffers { inputs: unit.inputs, sums: unit.sums, tiles: unit.tiles };
        self.positions.every_block(c, unit.blocks, |c, block, vectors| {
            self.positions.multiply(c, frame, &buffers, (block, vectors))?;
            self.combine_outputs(c, frame, unit, (block, vectors))
        })
    }

    /// Runs `tile` for every tile of a unit, with the leaf for its pixels: the first of those that start at `leaves`, or the
    /// second for a cut one.
    fn every_tile(
        &self,
        c: &mut Code,
        frame: &Frame,
        unit: &Unit,
        leaves: usize,
        tile: impl Fn(&mut Code, Value, FuncRef),
    ) -> Result<(), Unsupported> {
        let leaf =
            |i: usize| frame.leaves.get(leaves + i).copied().ok_or_else(|| Unsupported::new("no leaf of a cut tile"));
        let cut = usize::from(unit.is_last && self.rest_pixels() > 0);
        let whole = unit.tiles - cut;
        if whole > 0 {
            let leaf = leaf(0)?;
            c.count(whole, 1, |c, i| tile(c, i, leaf));
        }
        if cut > 0 {
            let last = c.int(whole);
            tile(c, last, leaf(1)?);
        }
        Ok(())
    }

    fn add_inputs(&self, c: &mut Code, frame: &Frame, unit: &Unit) -> Result<(), Unsupported> {
        let vectors = c.int(self.part_in() / self.isa.bytes());
        let tile_bytes = self.parts() * self.geometry.channels;
        let from = c.offset(frame.operands[0], unit.first_tile, tile_bytes);
        self.every_tile(c, frame, unit, self.positions.products.len() + self.valid.len(), |c, tile, leaf| {
            let from = c.offset(from, tile, tile_bytes);
            let to = c.offset(unit.inputs, tile, self.part_in());
            call(c, leaf, &[from, to, vectors, frame.tables[LITERALS]]);
        })
    }

    fn combine_outputs(
        &self,
        c: &mut Code,
        frame: &Frame,
        unit: &Unit,
        (block, vectors): (Value, usize),
    ) -> Result<(), Unsupported> {
        let channel = c.mul_int(block, self.schedule.nr * self.isa.lanes());
        let count = c.int(vectors);
        self.every_tile(c, frame, unit, self.positions.products.len(), |c, tile, leaf| {
            let sums = c.offset(unit.sums, tile, self.positions.tile_sum_bytes());
            let tile = c.add(unit.first_tile, tile);
            let pixel = c.mul_int(tile, self.parts());
            let element = c.offset(channel, pixel, self.geometry.channels_out());
            let to = self.dst.at(c, frame.dst, pixel, channel);
            let mut words = vec![sums, to, count, frame.tables[LITERALS]];
            for (i, &bytes) in self.operand_bytes.iter().enumerate() {
                words.push(c.offset(frame.operands[1 + i], element, bytes));
            }
            for (i, &stride) in self.table_strides.iter().enumerate() {
                words.push(c.offset(frame.tables[FIRST_EPILOGUE_TABLE + i], block, stride * self.schedule.nr));
            }
            call(c, leaf, &words);
        })
    }
}
