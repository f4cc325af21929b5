//! Leaf functions of Winograd convolutions: the transform of a tile's inputs, and that of its sums with the
//! epilogue on the outputs.
//!
//! In: a [`Winograd2d`] and where things lie. A transform in two dimensions is one of every column, kept in
//! the frame, then one of every row. Inputs are lanes of 8 or 16 bits, sums of 32; all may wrap, see
//! [`hawqc_schedules::winograd`].

use hawqc_ir::Elem;
use hawqc_schedules::winograd::{Lane, Op, Program, Winograd2d};

use super::epilogue::{Hold, WideEpilogue, splat_byte};
use super::store::Pixels;
use crate::asm::{Asm, AsmError, Binary, Gpr, Isa, Mem, Shift, V};

/// Words of [`assemble_output`]'s table before the epilogue's: the tile's sums, its first output, the number of
/// vectors of channels, the literals.
pub const OUTPUT_WORDS: usize = 4;

/// Registers left to the last pass of an output transform: no program holds so many values at once.
const PROGRAM_REGISTERS: usize = 21;

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
pub fn add_literals(transform: &Winograd2d, lane: Lane, offsets: &[i64], epilogue: &mut WideEpilogue) {
    let lanes = Lanes::from(lane);
    let inputs = [transform.rows.input_program(), transform.cols.input_program()].map(|p| (lanes, p));
    let outputs = [transform.rows.output_program(), transform.cols.output_program()].map(|p| (Lanes::I32, p));
    for (lanes, program) in inputs.into_iter().chain(outputs) {
        for op in &program.ops {
            // There is no multiplication of bytes.
            if let (Op::Mul(_, by), true) = (op, lanes != Lanes::I8) {
                epilogue.literal(splat(lanes, *by));
            }
        }
    }
    offsets.iter().for_each(|&offset| epilogue.literal(splat(lanes, offset)));
    epilogue.literal(transform.divisor().inverse.cast_signed());
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
    /// From one position to the next.
    pub position: usize,
}

/// The transform of a tile's inputs, each position's increased by its offset. Its table: the tile's first input, where
/// its first position goes, the number of vectors of channels, the literals.
pub fn assemble_input(
    isa: Isa,
    transform: &Winograd2d,
    (lane, offsets): (Lane, &[i64]),
    epilogue: &WideEpilogue,
    layout: &InputLayout,
) -> Result<Vec<u8>, AsmError> {
    let lanes = Lanes::from(lane);
    let add = if lanes == Lanes::I8 { Binary::AddI8 } else { Binary::AddI16 };
    let (mut asm, table) = Asm::new(isa);
    let a = &mut asm;
    let [from, to, vectors, literals] = [0, 1, 2, 3].map(|word| a.argument(table, word));
    let (height, width) = (transform.rows.n, transform.cols.n);
    let (down, across) = (transform.rows.input_program(), transform.cols.input_program());
    let slots: Vec<Mem> = (0..height * width).map(|_| a.frame_slot()).collect();
    a.repeat_down(vectors, |a| {
        // The next vector of channels, or the next tile's first, which follows. Stores to lines that are not near wait for
        // each other.
        for position in 0..height * width {
            a.prefetch(Mem::at(to, position * layout.position + isa.bytes()));
        }
        for j in 0..width {
            let load = |a: &mut Asm, i: usize| {
                let value = a.vec();
                a.load(value, Mem::at(from, i * layout.row + j * layout.pixel));
                value
            };
            let column = emit_program(a, &down, lanes, (epilogue, literals), load);
            for (i, &value) in column.iter().enumerate() {
                a.store(slots[i * width + j], value);
            }
        }
        for i in 0..height {
            let load = |a: &mut Asm, j: usize| {
                let value = a.vec();
                a.load(value, slots[i * width + j]);
                value
            };
            let row = emit_program(a, &across, lanes, (epilogue, literals), load);
            for (j, &value) in row.iter().enumerate() {
                let position = i * width + j;
                let mut stored = value;
                if offsets[position] != 0 {
                    // The results may be one another.
                    stored = a.vec();
                    a.binary(add, stored, value, epilogue.at(isa, literals, splat(lanes, offsets[position])));
                }
                a.store(Mem::at(to, position * layout.position), stored);
            }
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
    /// Bytes from one position's sums to the next.
    pub position: usize,
    /// Rows and columns of the tile that lie in the result.
    pub valid: [usize; 2],
}

/// The transform of a tile's sums, of every vector of channels, with the epilogue.
pub fn assemble_output(
    isa: Isa,
    transform: &Winograd2d,
    epilogue: &WideEpilogue,
    outputs: &Outputs,
) -> Result<Vec<u8>, AsmError> {
    let (mut asm, table) = Asm::new(isa);
    let a = &mut asm;
    a.set_even_mask();
    let [from, to, vectors, literals] = [0, 1, 2, 3].map(|word| a.argument(table, word));
    let mut pointers = epilogue.pointers(a, (table, OUTPUT_WORDS), literals);
    let (height, width) = (transform.rows.n, transform.cols.n);
    let (down, across) = (transform.rows.output_program(), transform.cols.output_program());
    let divisor = transform.divisor();
    let [rows, columns] = outputs.valid;
    let slots: Vec<Mem> = (0..rows * width).map(|_| a.frame_slot()).collect();
    for (i, j) in (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j))) {
        a.prefetch(Mem::at(to, (i * outputs.columns + j) * outputs.channels * outputs.dst.bytes()));
    }
    a.repeat_down(vectors, |a| {
        for j in 0..width {
            let load = |a: &mut Asm, i: usize| {
                let value = a.vec();
                a.load(value, Mem::at(from, (i * width + j) * outputs.position));
                value
            };
            let column = emit_program(a, &down, Lanes::I32, (epilogue, literals), load);
            for (i, &value) in column.iter().take(rows).enumerate() {
                a.store(slots[i * width + j], value);
            }
        }
        debug_assert!(height >= rows);
        let free = isa.registers().saturating_sub(PROGRAM_REGISTERS + epilogue.temporaries());
        epilogue.hold(a, &mut pointers, Hold::Vector, free);
        let pixels = Pixels { dst: outputs.dst, to, channels: outputs.channels, literals };
        let mut sums: Vec<(usize, V)> = Vec::new();
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
                sums.push((i * outputs.columns + j, value));
            }
            // Where registers allow, rows of two pixels wait for each other.
            let ready = if isa == Isa::Avx512 && i + 1 < rows { sums.len() / 4 * 4 } else { sums.len() };
            let ready: Vec<(usize, V)> = sums.drain(..ready).collect();
            pixels.finish(a, epilogue, &pointers, &ready);
        }
        a.add_int(from, isa.bytes());
        a.add_int(to, isa.lanes() * outputs.dst.bytes());
        epilogue.advance(a, &pointers);
    });
    asm.finish()
}
