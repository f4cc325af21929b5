//! 1x1 convolution by Strassen's algorithm in lanes of 8 bits.
//!
//! A unit of work adds up the inputs of its tiles to `[position][tile][C / parts]`, and then for every channel block
//! multiplies each position's inputs with its weights ([`Micro`], whose pixels are the tiles) and combines the sums
//! `[position][tile][block]` to outputs with the epilogue. A tile is as many consecutive pixels as there are parts; behind
//! the last pixel it repeats it, and such outputs are not stored.
//!
//! That operands fit their lanes is proved from the layer's weights and inputs when it is compiled
//! ([`hawqc_schedules::strassen`]); a layer whose do not is refused, and another schedule serves.

use cranelift_codegen::ir::{FuncRef, Value};
use hawqc_ir::{Elem, KernelSpec, Tensor};
use hawqc_schedules::strassen::{INPUTS, Levels, OUTPUTS, Sum, prove};
use hawqc_schedules::{ConvGeometry, Machine, Multiply, StrassenSchedule};

use super::epilogue::WideEpilogue;
use super::micro::{FIXED_WORDS, Load, Micro, Word, store};
use super::window::Window;
use super::{MACS_PER_WORK, call, ints};
use crate::asm::{Asm, AsmError, Binary, Isa, Mem, V};
use crate::error::Unsupported;
use crate::kernels::conv::Geometry;
use crate::kernels::emit::Code;
use crate::kernels::{Body, Frame, Leaf, Lowered, Table};

const WEIGHTS: usize = 0;
const START: usize = 1;
const TILES: usize = 2;
const RUNS: usize = 3;
const LITERALS: usize = 4;
const FIRST_EPILOGUE_TABLE: usize = 5;
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
    dst: Elem,
    /// `(tiles, vectors)` of each product kernel, in the order of the leaves, the first ones.
    products: Vec<(usize, usize)>,
    /// Pixels of each output leaf, behind them; the input leaves follow in the same order.
    valid: Vec<usize>,
    operand_bytes: Vec<usize>,
    table_strides: Vec<usize>,
}

pub fn lower(
    spec: &KernelSpec,
    constants: &[Option<&Tensor>],
    machine: Machine,
    schedule: StrassenSchedule,
) -> Result<Lowered, Unsupported> {
    let (geometry, [src, wei], bias) = Geometry::of(spec)?;
    let (weights, bias) = Geometry::constants(constants, wei, bias)?;
    let Some(wide) = ConvGeometry::of(spec).and_then(|g| g.wide_machine(machine)) else {
        return Err(Unsupported::new("a wide kernel of this convolution"));
    };
    if geometry.is_padded() {
        return Err(Unsupported::new("Strassen's algorithm for a convolution with padding"));
    }
    let isa = Isa::with_lanes(wide.lanes);
    let levels = Levels(schedule.levels);
    let shape = [geometry.group_out, geometry.group_in];
    let operands = prove(levels, &weights.ints()?, shape, spec.operands()[src].int_range()?, bias.as_deref());
    let operands = operands.map_err(Unsupported::new)?;
    let (mut epilogue, requant_tables) = WideEpilogue::new(spec, constants, isa)?;
    operands.offsets.iter().for_each(|&offset| epilogue.literal(splat(offset)));
    let mut strassen = Strassen {
        geometry,
        isa,
        schedule,
        levels,
        offsets: operands.offsets.clone(),
        dst: spec.result().elem,
        products: Vec::new(),
        valid: Vec::new(),
        operand_bytes: epilogue.operand_bytes(),
        table_strides: epilogue.table_strides(isa),
    };
    let tiles: Vec<i32> = (0..schedule.tiles).map(|tile| (tile * strassen.part_in()) as i32).collect();
    let mut tables = vec![
        Table { bytes: strassen.pack(&operands.weights), is_weights: true },
        Table::new(ints(&operands.starts)),
        Table::new(ints(&tiles)),
        Table::new(ints(&[0])),
        epilogue.literal_table(isa),
    ];
    tables.extend(requant_tables);
    let mut reads = vec![src];
    reads.extend(epilogue.operands());
    let none = WideEpilogue::none(spec)?;
    let leaves = strassen.leaves(&none, &epilogue).map_err(|e| Unsupported::new(e.to_string()))?;
    Ok(Lowered {
        family: "strassen",
        operands: reads,
        tables,
        forms: format!("{}{:?}", epilogue.form(), operands.offsets),
        proof: operands.to_string(),
        scratch_bytes: strassen.inputs_bytes() * levels.positions() + strassen.sums_bytes() * levels.positions(),
        units: strassen.pixel_units() * strassen.channel_groups(),
        work: geometry.macs() / MACS_PER_WORK,
        macs: geometry.macs(),
        is_border: false,
        leaves,
        body: Box::new(strassen),
    })
}

/// A byte in every lane.
fn splat(value: i64) -> i32 {
    (value as u8 as u32 * 0x0101_0101).cast_signed()
}

impl Strassen {
    fn parts(&self) -> usize {
        self.levels.parts()
    }

    /// Channels of a part.
    fn part_in(&self) -> usize {
        self.geometry.group_in / self.parts()
    }

    fn part_out(&self) -> usize {
        self.geometry.group_out / self.parts()
    }

    /// Vectors of output channels of a part.
    fn vectors(&self) -> usize {
        self.part_out() / self.isa.lanes()
    }

    fn blocks(&self) -> usize {
        self.vectors().div_ceil(self.schedule.nr)
    }

    fn rest_vectors(&self) -> usize {
        self.vectors() % self.schedule.nr
    }

    fn channel_groups(&self) -> usize {
        self.blocks().div_ceil(self.schedule.blocks)
    }

    /// Tiles of the batch, the last perhaps cut.
    fn tiles(&self) -> usize {
        self.geometry.pixels().div_ceil(self.parts())
    }

    fn pixel_units(&self) -> usize {
        self.tiles().div_ceil(self.schedule.tiles)
    }

    /// Tiles of a unit, and of the last one.
    fn unit_tiles(&self) -> [usize; 2] {
        [self.schedule.tiles, self.tiles() - (self.pixel_units() - 1) * self.schedule.tiles]
    }

    /// Pixels of the last tile if it is cut, otherwise 0.
    fn rest_pixels(&self) -> usize {
        self.geometry.pixels() % self.parts()
    }

    /// Bytes of the inputs of all tiles at a position.
    fn inputs_bytes(&self) -> usize {
        (self.schedule.tiles * self.part_in()).next_multiple_of(64)
    }

    fn tile_sum_bytes(&self) -> usize {
        self.schedule.nr * self.isa.bytes()
    }

    /// Bytes of the sums of a block at a position.
    fn sums_bytes(&self) -> usize {
        self.schedule.tiles * self.tile_sum_bytes()
    }

    fn vector_weights_bytes(&self) -> usize {
        self.part_in() * self.isa.lanes()
    }

    /// `[block][position][step of channels][vector][lane][channel of the step]`.
    fn pack(&self, weights: &[i64]) -> Vec<u8> {
        let (k, c, lanes) = (self.part_out(), self.part_in(), self.isa.lanes());
        let step = Multiply::Dot.step();
        let mut out = Vec::with_capacity(weights.len());
        for first in (0..k).step_by(self.schedule.nr * lanes) {
            let end = (first + self.schedule.nr * lanes).min(k);
            for position in 0..self.levels.positions() {
                for channel in (0..c).step_by(step) {
                    for row in first..end {
                        let at = (position * k + row) * c + channel;
                        out.extend(weights[at..at + step].iter().map(|&w| w as u8));
                    }
                }
            }
        }
        out
    }

    fn leaves(&mut self, none: &WideEpilogue, epilogue: &WideEpilogue) -> Result<Vec<Leaf>, AsmError> {
        let (mr, nr) = (self.schedule.mr, self.schedule.nr);
        let micro = Micro {
            isa: self.isa,
            multiply: Multiply::Dot,
            dot: true,
            runs: 1,
            steps: self.part_in() / Multiply::Dot.step(),
            load: Load::Direct,
            window: Window::All,
            epilogue: none,
            dst: Elem::I32,
            channels: nr * self.isa.lanes(),
        };
        let mut leaves = Vec::new();
        let sizes = self.unit_tiles().into_iter().flat_map(|tiles| [mr.min(tiles), tiles % mr]);
        let sizes: std::collections::BTreeSet<usize> = sizes.filter(|&size| size > 0).collect();
        let full = if self.vectors() >= nr { nr } else { 0 };
        for &size in &sizes {
            for vectors in [full, self.rest_vectors()].into_iter().filter(|&v| v > 0) {
                leaves.push(Leaf { name: format!("products.{size}x{vectors}"), code: micro.assemble(size, vectors)? });
                self.products.push((size, vectors));
            }
        }
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
                    a.binary(Binary::AddI8, stored, value, epilogue.at(a.isa, literals, splat(offset)));
                }
                a.store(Mem::at(to, position * self.inputs_bytes()), stored);
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
        a.set_odd_mask();
        let [from, to, vectors, literals] = [0, 1, 2, 3].map(|word| a.argument(table, word));
        let pointers = epilogue.pointers(a, (table, OUTPUT_WORDS), literals);
        let channels = self.geometry.channels_out();
        a.repeat_down(vectors, |a| {
            let values = combine(a, self.levels.0, &|position| Mem::at(from, position * self.sums_bytes()));
            for (block, value) in values.into_iter().enumerate() {
                let (pixel, part) = place(self.levels.0, block);
                if pixel >= valid {
                    continue;
                }
                let result = epilogue.emit_one(a, &pointers, pixel, part * self.vectors(), value);
                let element = pixel * channels + part * self.part_out();
                store(a, self.dst, Mem::at(to, element * self.dst.bytes()), &[result]);
            }
            a.add_int(from, self.isa.bytes());
            a.add_int(to, self.isa.lanes() * self.dst.bytes());
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
    /// One of [`Strassen::unit_tiles`].
    tiles: usize,
    /// Whether the last tile of the batch is in it.
    is_last: bool,
    first_block: Value,
    end_block: Value,
    inputs: Value,
    sums: Value,
}

impl Body for Strassen {
    fn emit(&self, c: &mut Code, frame: &Frame) -> Result<(), Unsupported> {
        let units = c.int(self.pixel_units() * self.channel_groups());
        let mut outcome = Ok(());
        c.range(frame.task, units, frame.tasks, |c, unit| {
            let (pixel_unit, group) = c.div_rem(unit, self.channel_groups());
            let first_block = c.mul_int(group, self.schedule.blocks);
            let end_block = c.add_int(first_block, self.schedule.blocks);
            let unit = Unit {
                first_tile: c.mul_int(pixel_unit, self.schedule.tiles),
                tiles: 0,
                is_last: false,
                first_block,
                end_block: c.min_int(end_block, self.blocks()),
                inputs: frame.scratch,
                sums: c.add_int(frame.scratch, self.levels.positions() * self.inputs_bytes()),
            };
            let [whole, last] = self.unit_tiles();
            if self.pixel_units() == 1 || whole == last && self.rest_pixels() == 0 {
                outcome = self.unit(c, frame, &Unit { tiles: last, is_last: true, ..unit });
                return;
            }
            let is_whole = c.below(pixel_unit, self.pixel_units() - 1);
            let (mut a, mut b) = (Ok(()), Ok(()));
            c.if_else(
                is_whole,
                |c| a = self.unit(c, frame, &Unit { tiles: whole, ..unit }),
                |c| b = self.unit(c, frame, &Unit { tiles: last, is_last: true, ..unit }),
            );
            outcome = a.and(b);
        });
        outcome
    }
}

impl Strassen {
    fn unit(&self, c: &mut Code, frame: &Frame, unit: &Unit) -> Result<(), Unsupported> {
        self.add_inputs(c, frame, unit)?;
        let one = c.int(1);
        let mut outcome = Ok(());
        c.range(unit.first_block, unit.end_block, one, |c, block| {
            let run = |c: &mut Code, vectors: usize| {
                self.multiply(c, frame, unit, (block, vectors))?;
                self.combine_outputs(c, frame, unit, (block, vectors))
            };
            outcome = match (self.rest_vectors(), self.blocks()) {
                (0, _) => run(c, self.schedule.nr),
                (rest, 1) => run(c, rest),
                (rest, blocks) => {
                    let is_full = c.below(block, blocks - 1);
                    let (mut a, mut b) = (Ok(()), Ok(()));
                    c.if_else(is_full, |c| a = run(c, self.schedule.nr), |c| b = run(c, rest));
                    a.and(b)
                }
            };
        });
        outcome
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
        self.every_tile(c, frame, unit, self.products.len() + self.valid.len(), |c, tile, leaf| {
            let from = c.offset(from, tile, tile_bytes);
            let to = c.offset(unit.inputs, tile, self.part_in());
            call(c, leaf, &[from, to, vectors, frame.tables[LITERALS]]);
        })
    }

    fn product(&self, frame: &Frame, tiles: usize, vectors: usize) -> Result<FuncRef, Unsupported> {
        let found = self.products.iter().position(|&p| p == (tiles, vectors)).and_then(|i| frame.leaves.get(i));
        found.copied().ok_or_else(|| Unsupported::new(format!("no product kernel of {tiles} x {vectors}")))
    }

    /// The sums of a block at every position.
    fn multiply(
        &self,
        c: &mut Code,
        frame: &Frame,
        unit: &Unit,
        (block, vectors): (Value, usize),
    ) -> Result<(), Unsupported> {
        let mr = self.schedule.mr;
        let (whole, rest) = (unit.tiles / mr, unit.tiles % mr);
        let positions = self.levels.positions();
        let block_bytes = positions * self.schedule.nr * self.vector_weights_bytes();
        let block_weights = c.offset(frame.tables[WEIGHTS], block, block_bytes);
        let block_start = c.offset(frame.tables[START], block, self.schedule.nr * self.isa.bytes());
        let (leaf, rest_leaf) = (
            if whole > 0 { Some(self.product(frame, mr, vectors)?) } else { None },
            if rest > 0 { Some(self.product(frame, rest, vectors)?) } else { None },
        );
        c.count(positions, 1, |c, position| {
            let src = c.offset(unit.inputs, position, self.inputs_bytes());
            let weights = c.offset(block_weights, position, vectors * self.vector_weights_bytes());
            let start = c.offset(block_start, position, 4 * self.part_out());
            let sums = c.offset(unit.sums, position, self.sums_bytes());
            let run = |c: &mut Code, tile: Value, leaf: FuncRef| {
                let mut words = [frame.dst; FIXED_WORDS];
                words[Word::Pixels as usize] = c.offset(frame.tables[TILES], tile, 4);
                words[Word::Src as usize] = src;
                words[Word::Weights as usize] = weights;
                words[Word::Start as usize] = start;
                words[Word::Dst as usize] = c.offset(sums, tile, self.tile_sum_bytes());
                words[Word::Runs as usize] = frame.tables[RUNS];
                words[Word::Literals as usize] = frame.tables[LITERALS];
                call(c, leaf, &words);
            };
            if let Some(leaf) = leaf {
                c.count(whole, 1, |c, group| {
                    let tile = c.mul_int(group, mr);
                    run(c, tile, leaf);
                });
            }
            if let Some(leaf) = rest_leaf {
                let tile = c.int(whole * mr);
                run(c, tile, leaf);
            }
        });
        Ok(())
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
        self.every_tile(c, frame, unit, self.products.len(), |c, tile, leaf| {
            let sums = c.offset(unit.sums, tile, self.tile_sum_bytes());
            let tile = c.add(unit.first_tile, tile);
            let element = c.offset(channel, tile, self.parts() * self.geometry.channels_out());
            let to = c.offset(frame.dst, element, self.dst.bytes());
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
