//! Leaf functions of Winograd convolutions: the transform of a tile's inputs, and that of its sums with the
//! epilogue on the outputs.
//!
//! In: a [`Winograd2d`] and where things lie. A transform in two dimensions is one of every column, kept in
//! the frame, then one of every row; one of inputs is that of every piece of a filter. Inputs are lanes of 8 or 16 bits, sums of 32; all may wrap, see
//! [`hawqc_schedules::winograd`].

use hawqc_schedules::winograd::{Filter, Lane, Op, Piece, Program, Winograd2d};

use super::epilogue::{Hold, WideEpilogue, splat_byte};
use super::store::Pixels;
use crate::asm::{Asm, AsmError, Binary, Gpr, Isa, Mem, Shift, V};
use crate::kernels::Dst;

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
                    // More units add than shift.
                    _ if by == 1 => asm.binary(add, to, a, a),
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

/// The programs of a pass over columns or rows.
struct Pass {
    program: Program,
    /// Of each input of the program, that of the pass.
    inputs: Vec<usize>,
    /// The program's first result, of the pass's.
    first: usize,
}

impl Pass {
    /// Those of a filter's input transform.
    fn of(filter: &Filter) -> Vec<Pass> {
        let mut first = 0;
        let pass = |(piece, program): (&Piece, Program)| {
            let inputs = (0..piece.transform.n).map(|i| piece.first + filter.stride * i).collect();
            first += piece.transform.n;
            Pass { program, inputs, first: first - piece.transform.n }
        };
        filter.pieces.iter().zip(filter.input_programs()).map(pass).collect()
    }

    fn results(&self) -> usize {
        self.program.outputs.len()
    }

    /// The same in so many parts, which share no work.
    fn split(&self, parts: usize) -> Vec<Pass> {
        let size = self.results().div_ceil(parts).max(1);
        let part = |first: usize| {
            let program = self.program.restricted(first..(first + size).min(self.results()));
            Pass { program, inputs: self.inputs.clone(), first: self.first + first }
        };
        (0..self.results()).step_by(size).map(part).collect()
    }

    /// `load` makes an input where it is first needed; the results may not be overwritten.
    fn emit(
        &self,
        asm: &mut Asm,
        lanes: Lanes,
        constants: (&WideEpilogue, Gpr),
        load: impl Fn(&mut Asm, usize) -> V,
    ) -> Vec<V> {
        emit_program(asm, &self.program, lanes, constants, |asm, i| load(asm, self.inputs[i]))
    }
}

/// Where the results of the first pass wait for the second.
#[derive(Clone, Copy)]
enum Keep {
    /// In registers; for fewer at a time the first pass is made in parts. So many registers are left to constants.
    Registers {
        parts: usize,
        constants: usize,
    },
    Frame,
}

impl Keep {
    /// The code of the first way for which registers suffice.
    fn first(code: impl Fn(Keep) -> Result<Vec<u8>, AsmError>) -> Result<Vec<u8>, AsmError> {
        let ways = [(1, 6), (1, 3), (1, 0), (2, 6), (2, 0)];
        for way in ways.map(|(parts, constants)| Keep::Registers { parts, constants }) {
            match code(way) {
                Err(AsmError::Registers { .. }) => {}
                done => return done,
            }
        }
        code(Keep::Frame)
    }

    fn parts(self, passes: &[Pass]) -> Vec<Pass> {
        let parts = if let Keep::Registers { parts, .. } = self { parts } else { 1 };
        passes.iter().flat_map(|pass| pass.split(parts)).collect()
    }

    fn keep(self, asm: &mut Asm, value: V) -> Place {
        let Keep::Frame = self else { return Place::Register(value) };
        let slot = asm.frame_slot();
        asm.store(slot, value);
        Place::Frame(slot)
    }
}

#[derive(Clone, Copy)]
enum Place {
    Register(V),
    Frame(Mem),
}

impl Place {
    fn load(self, asm: &mut Asm) -> V {
        match self {
            Place::Register(value) => value,
            Place::Frame(slot) => loaded(asm, slot),
        }
    }
}

/// The same places row by row.
fn rows_of(columns: &[Vec<Place>]) -> impl Iterator<Item = Vec<Place>> {
    (0..columns[0].len()).map(|row| columns.iter().map(|column| column[row]).collect())
}

fn loaded(asm: &mut Asm, from: Mem) -> V {
    let value = asm.vec();
    asm.load(value, from);
    value
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
    let (width, across) = (algorithm.cols.inputs(), algorithm.cols.products());
    let (rows, cols) = (Pass::of(&algorithm.rows), Pass::of(&algorithm.cols));
    Keep::first(|keep| {
        let (mut asm, table) = Asm::new(isa);
        let [from, to, vectors, literals] = [0, 1, 2, 3].map(|word| asm.argument(table, word));
        let put = |a: &mut Asm, position: usize, value: V| {
            let mut stored = value;
            if offsets[position] != 0 {
                // The results may be one another.
                stored = a.vec();
                a.binary(add, stored, value, epilogue.at(isa, literals, splat(lanes, offsets[position])));
            }
            a.store(Mem::at(to, layout.positions[position]), stored);
        };
        asm.repeat_down(vectors, |a| {
            // The next vector of channels, or the next tile's first, which follows. Stores to lines that are not near wait
            // for each other.
            layout.positions.iter().for_each(|&position| a.prefetch(Mem::at(to, position + isa.bytes())));
            for part in keep.parts(&rows) {
                let column = |a: &mut Asm, j: usize| -> Vec<Place> {
                    let load = |a: &mut Asm, i: usize| loaded(a, Mem::at(from, i * layout.row + j * layout.pixel));
                    let values = part.emit(a, lanes, (epilogue, literals), load);
                    values.into_iter().map(|value| keep.keep(a, value)).collect()
                };
                let columns: Vec<Vec<Place>> = (0..width).map(|j| column(a, j)).collect();
                for (i, kept) in rows_of(&columns).enumerate() {
                    for pass in &cols {
                        let row = pass.emit(a, lanes, (epilogue, literals), |a, j| kept[j].load(a));
                        let first = (part.first + i) * across + pass.first;
                        row.into_iter().enumerate().for_each(|(j, value)| put(a, first + j, value));
                    }
                }
            }
            a.add_int(from, isa.bytes());
            a.add_int(to, isa.bytes());
        });
        asm.finish()
    })
}

/// What an output transform writes.
pub struct Outputs {
    pub dst: Dst,
    /// Pixels of a row.
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
    let [rows, columns] = outputs.valid;
    let pass = |filter: &Filter, results: usize| {
        let (program, inputs) = (filter.output_program().restricted(0..results), (0..filter.sums()).collect());
        Pass { program, inputs, first: 0 }
    };
    let (down, across) = ([pass(&algorithm.rows, rows)], pass(&algorithm.cols, columns));
    let width = algorithm.cols.sums();
    Keep::first(|keep| {
        let (mut asm, table) = Asm::new(isa);
        asm.set_even_mask();
        let [from, to, vectors, literals] = [0, 1, 2, 3].map(|word| asm.argument(table, word));
        let mut pointers = epilogue.pointers(&mut asm, (table, OUTPUT_WORDS), literals);
        let pixels = Pixels { dst: outputs.dst, to, literals };
        let pixel = |i: usize, j: usize| i * outputs.columns + j;
        for (i, j) in (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j))) {
            asm.prefetch(pixels.at(pixel(i, j), 0, isa.lanes()));
        }
        let constants = match keep {
            Keep::Registers { constants, .. } => constants,
            Keep::Frame => isa.registers().saturating_sub(PROGRAM_REGISTERS + epilogue.temporaries()),
        };
        asm.repeat_down(vectors, |a| {
            let mut sums: Vec<(usize, V)> = Vec::new();
            for part in keep.parts(&down) {
                let column = |a: &mut Asm, j: usize| -> Vec<Place> {
                    let load = |a: &mut Asm, i: usize| loaded(a, Mem::at(from, outputs.sums[i * width + j]));
                    let values = part.emit(a, Lanes::I32, (epilogue, literals), load);
                    values.into_iter().map(|value| keep.keep(a, value)).collect()
                };
                let columns: Vec<Vec<Place>> = (0..width).map(|j| column(a, j)).collect();
                epilogue.hold(a, &mut pointers, Hold::Vectors(1), constants);
                for (i, kept) in rows_of(&columns).enumerate() {
                    let row = across.emit(a, Lanes::I32, (epilogue, literals), |a, j| kept[j].load(a));
                    for (j, scaled) in row.into_iter().enumerate() {
                        let value = divided(a, scaled, algorithm, (epilogue, literals));
                        sums.push((pixel(part.first + i, j), value));
                    }
                    // Where registers allow, rows of two pixels wait for each other.
                    let is_last = part.first + i + 1 == rows;
                    let ready = if isa == Isa::Avx512 && !is_last { sums.len() / 4 * 4 } else { sums.len() };
                    let ready: Vec<(usize, V)> = sums.drain(..ready).collect();
                    pixels.finish(a, epilogue, &pointers, &ready);
                }
            }
            a.add_int(from, isa.bytes());
            a.add_int(to, isa.lanes() * outputs.dst.elem.bytes());
            epilogue.advance(a, &pointers);
        });
        asm.finish()
    })
}

/// The exact quotient by the algorithm's divisor.
fn divided(asm: &mut Asm, scaled: V, algorithm: &Winograd2d, (epilogue, literals): (&WideEpilogue, Gpr)) -> V {
    let (divisor, value) = (algorithm.divisor(), asm.vec());
    let mut product = scaled;
    if divisor.odd != 1 {
        asm.binary(Binary::MulI32, value, scaled, epilogue.at(asm.isa, literals, divisor.inverse.cast_signed()));
        product = value;
    }
    asm.shift(Shift::RightI32, value, product, divisor.shift as u8);
    value
}
