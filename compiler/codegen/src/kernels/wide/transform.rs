//! Leaf functions of Winograd convolutions: the transform of a tile's inputs, and that of its sums with the
//! epilogue on the outputs.
//!
//! In: a [`Winograd2d`] and where things lie. A transform in two dimensions is one of every column, kept in
//! the frame, then one of every row; one of inputs is that of every piece of a filter. Inputs are lanes of 8 or 16 bits, sums of 32; all may wrap, see
//! [`hawqc_schedules::winograd`].

use hawqc_ir::Elem;
use hawqc_schedules::winograd::{Filter, Lane, Op, Piece, Program, Winograd2d};

use super::epilogue::{Hold, WideEpilogue, splat_byte};
use super::micro::store;
use crate::asm::{Asm, AsmError, Binary, Gpr, Isa, Mem, Shift, V};

/// Words of [`assemble_output`]'s table before the epilogue's: the tile's sums, its first output, the number of
/// vectors of channels, the literals.
pub const OUTPUT_WORDS: usize = 4;

/// Registers left to the last pass of an output transform: no program holds so many values at once.
const PROGRAM_REGISTERS: usize = 18;

/// Lanes that a program runs in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lanes {
    I8,
    I16,
    I32,
}

impl From<Lane> for Lanes {
    fn from(lane: Lane) -> Lanes {
        match lane {
            Lane::I8 => Lanes::I8,
            Lane::I16 => Lanes::I16,
        }
    }
}

/// A constant in every lane, as 32 bits; wrapping is the lanes' own.
fn splat(lanes: Lanes, value: i64) -> i32 {
    match lanes {
        Lanes::I8 => splat_byte(value),
        Lanes::I16 => (value as u16 as u32 * 0x0001_0001) as i32,
        Lanes::I32 => value as i32,
    }
}

/// Adds the constants that the transforms read to the epilogue's literals.
pub fn add_literals(algorithm: &Winograd2d, lane: Lane, offsets: &[i64], epilogue: &mut WideEpilogue) {
    let lanes = Lanes::from(lane);
    let filters = [&algorithm.rows, &algorithm.cols];
    let inputs = filters.into_iter().flat_map(Filter::input_programs).map(|p| (lanes, p));
    let outputs = filters.map(|filter| (Lanes::I32, filter.output_program()));
    for (lanes, program) in inputs.chain(outputs) {
        for op in &program.ops {
            // There is no multiplication of bytes.
            if let (Op::Mul(_, by), true) = (op, lanes != Lanes::I8) {
                epilogue.literal(splat(lanes, *by));
            }
        }
    }
    offsets.iter().for_each(|&offset| epilogue.literal(splat(lanes, offset)));
    epilogue.literal(algorithm.divisor().inverse.cast_signed());
}

/// `to = a * by` by doubling and adding.
fn times(asm: &mut Asm, add: Binary, to: V, a: V, by: u64) {
    asm.zero(to);
    for bit in (0..u64::BITS - by.leading_zeros()).rev() {
        asm.binary(add, to, to, to);
        if by >> bit & 1 == 1 {
            asm.binary(add, to, to, a);
        }
    }
}

/// Emits a program; `load` makes an input where it is first needed. The results may not be overwritten.
fn emit_program(
    asm: &mut Asm,
    program: &Program,
    lanes: Lanes,
    (epilogue, literals): (&WideEpilogue, Gpr),
    load: impl Fn(&mut Asm, usize) -> V,
) -> Vec<V> {
    let mut values: Vec<Option<V>> = vec![None; program.inputs];
    let (add, sub) = match lanes {
        Lanes::I8 => (Binary::AddI8, Binary::SubI8),
        Lanes::I16 => (Binary::AddI16, Binary::SubI16),
        Lanes::I32 => (Binary::AddI32, Binary::SubI32),
    };
    let wide = match lanes {
        Lanes::I8 => None,
        Lanes::I16 => Some((Binary::MulI16, Shift::LeftI16)),
        Lanes::I32 => Some((Binary::MulI32, Shift::LeftI32)),
    };
    let get = |asm: &mut Asm, values: &mut Vec<Option<V>>, i: usize| *values[i].get_or_insert_with(|| load(asm, i));
    for op in &program.ops {
        let to = asm.vec();
        match *op {
            Op::Add(a, b) => {
                let (a, b) = (get(asm, &mut values, a), get(asm, &mut values, b));
                asm.binary(add, to, a, b);
            }
            Op::Sub(a, b) => {
                let (a, b) = (get(asm, &mut values, a), get(asm, &mut values, b));
                asm.binary(sub, to, a, b);
            }
            Op::Shl(a, by) => {
                let a = get(asm, &mut values, a);
                match wide {
                    Some((_, left)) => asm.shift(left, to, a, by as u8),
                    None => times(asm, add, to, a, 1 << by),
                }
            }
            Op::Mul(a, by) => {
                let a = get(asm, &mut values, a);
                match wide {
                    Some((mul, _)) => {
                        let constant = epilogue.at(asm.isa, literals, splat(lanes, by));
                        asm.binary(mul, to, a, constant);
                    }
                    // Modulo 256.
                    None => times(asm, add, to, a, u64::from(by as u8)),
                }
            }
            Op::Neg(a) => {
                let a = get(asm, &mut values, a);
                asm.zero(to);
                asm.binary(sub, to, to, a);
            }
        }
        values.push(Some(to));
    }
    program.outputs.iter().map(|&i| get(asm, &mut values, i)).collect()
}

/// Where the tiles of a unit lie, in bytes.
pub struct InputLayout {
    /// From one row of prepared inputs to the next.
    pub row: usize,
    pub pixel: usize,
    /// Where every position goes.
    pub positions: Vec<usize>,
}

/// Programs of a filter's pieces.
struct Passes(Vec<Pass>);

struct Pass {
    program: Program,
    /// Of each input, that of the filter.
    inputs: Vec<usize>,
    /// The piece's first product.
    first: usize,
}

impl Passes {
    fn of(filter: &Filter) -> Passes {
        let mut first = 0;
        let pass = |(piece, program): (&Piece, Program)| {
            let inputs = (0..piece.transform.n).map(|i| piece.first + filter.stride * i).collect();
            first += piece.transform.n;
            Pass { program, inputs, first: first - piece.transform.n }
        };
        Passes(filter.pieces.iter().zip(filter.input_programs()).map(pass).collect())
    }

    /// Emits all; `load` makes an input of the filter where it is first needed, `done` takes each product, which it may
    /// not overwrite.
    fn emit(
        &self,
        asm: &mut Asm,
        lanes: Lanes,
        constants: (&WideEpilogue, Gpr),
        load: impl Fn(&mut Asm, usize) -> V,
        done: impl Fn(&mut Asm, usize, V),
    ) {
        for Pass { program, inputs, first } in &self.0 {
            let values = emit_program(asm, program, lanes, constants, |asm, i| load(asm, inputs[i]));
            values.into_iter().enumerate().for_each(|(i, value)| done(asm, first + i, value));
        }
    }
}

/// The transform of a tile's inputs, each position's increased by its offset. Its table: the tile's first input, where
/// its first position goes, the number of vectors of channels, the literals.
pub fn assemble_input(
    isa: Isa,
    algorithm: &Winograd2d,
    (lane, offsets): (Lane, &[i64]),
    epilogue: &WideEpilogue,
    layout: &InputLayout,
) -> Result<Vec<u8>, AsmError> {
    let lanes = Lanes::from(lane);
    let add = if lanes == Lanes::I8 { Binary::AddI8 } else { Binary::AddI16 };
    let (mut asm, table) = Asm::new(isa);
    let a = &mut asm;
    let [from, to, vectors, literals] = [0, 1, 2, 3].map(|word| a.argument(table, word));
    let (width, across) = (algorithm.cols.inputs(), algorithm.cols.products());
    let (rows, cols) = (Passes::of(&algorithm.rows), Passes::of(&algorithm.cols));
    let slots: Vec<Mem> = (0..algorithm.rows.products() * width).map(|_| a.frame_slot()).collect();
    let loaded = |a: &mut Asm, from: Mem| {
        let value = a.vec();
        a.load(value, from);
        value
    };
    a.repeat_down(vectors, |a| {
        for j in 0..width {
            let load = |a: &mut Asm, i: usize| loaded(a, Mem::at(from, i * layout.row + j * layout.pixel));
            let done = |a: &mut Asm, i: usize, value: V| a.store(slots[i * width + j], value);
            rows.emit(a, lanes, (epilogue, literals), load, done);
        }
        for i in 0..algorithm.rows.products() {
            let load = |a: &mut Asm, j: usize| loaded(a, slots[i * width + j]);
            let done = |a: &mut Asm, j: usize, value: V| {
                let position = i * across + j;
                let mut stored = value;
                if offsets[position] != 0 {
                    // The results may be one another.
                    stored = a.vec();
                    a.binary(add, stored, value, epilogue.at(isa, literals, splat(lanes, offsets[position])));
                }
                a.store(Mem::at(to, layout.positions[position]), stored);
            };
            cols.emit(a, lanes, (epilogue, literals), load, done);
        }
        a.add_int(from, isa.bytes());
        a.add_int(to, isa.bytes());
    });
    asm.finish()
}

/// What an output transform writes.
pub struct Outputs {
    pub dst: Elem,
    /// Output channels of a pixel, and pixels of a row.
    pub channels: usize,
    pub columns: usize,
    /// Where every sum is, in bytes.
    pub sums: Vec<usize>,
    /// Rows and columns of the tile that lie in the result.
    pub valid: [usize; 2],
}

/// The transform of a tile's sums, of every vector of channels, with the epilogue.
pub fn assemble_output(
    isa: Isa,
    algorithm: &Winograd2d,
    epilogue: &WideEpilogue,
    outputs: &Outputs,
) -> Result<Vec<u8>, AsmError> {
    let (mut asm, table) = Asm::new(isa);
    let a = &mut asm;
    a.set_even_mask();
    let [from, to, vectors, literals] = [0, 1, 2, 3].map(|word| a.argument(table, word));
    let mut pointers = epilogue.pointers(a, (table, OUTPUT_WORDS), literals);
    let width = algorithm.cols.sums();
    let (down, across) = (algorithm.rows.output_program(), algorithm.cols.output_program());
    let divisor = algorithm.divisor();
    let [rows, columns] = outputs.valid;
    let slots: Vec<Mem> = (0..rows * width).map(|_| a.frame_slot()).collect();
    a.repeat_down(vectors, |a| {
        for j in 0..width {
            let load = |a: &mut Asm, i: usize| {
                let value = a.vec();
                a.load(value, Mem::at(from, outputs.sums[i * width + j]));
                value
            };
            let column = emit_program(a, &down, Lanes::I32, (epilogue, literals), load);
            for (i, &value) in column.iter().take(rows).enumerate() {
                a.store(slots[i * width + j], value);
            }
        }
        let free = isa.registers().saturating_sub(PROGRAM_REGISTERS + epilogue.temporaries());
        epilogue.hold(a, &mut pointers, Hold::Vector, free);
        for i in 0..rows {
            let load = |a: &mut Asm, j: usize| {
                let value = a.vec();
                a.load(value, slots[i * width + j]);
                value
            };
            let row = emit_program(a, &across, Lanes::I32, (epilogue, literals), load);
            for (j, &scaled) in row.iter().take(columns).enumerate() {
                let value = a.vec();
                let inverse = epilogue.at(isa, literals, divisor.inverse.cast_signed());
                if divisor.odd == 1 {
                    a.shift(Shift::RightI32, value, scaled, divisor.shift as u8);
                } else {
                    a.binary(Binary::MulI32, value, scaled, inverse);
                    a.shift(Shift::RightI32, value, value, divisor.shift as u8);
                }
                let pixel = i * outputs.columns + j;
                let results = epilogue.emit(a, &pointers, pixel, &[value]);
                store(
                    a,
                    outputs.dst,
                    Mem::at(to, pixel * outputs.channels * outputs.dst.bytes()),
                    &results,
                    (epilogue, literals),
                );
            }
        }
        a.add_int(from, isa.bytes());
        a.add_int(to, isa.lanes() * outputs.dst.bytes());
        epilogue.advance(a, &pointers);
    });
    asm.finish()
}
