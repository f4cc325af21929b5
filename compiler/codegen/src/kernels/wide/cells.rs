//! The source rows of a depthwise convolution as its products want them.
//!
//! In: rows of a source in memory. Out: *cells* in scratch memory, `[cell row][vector][cell column][lane][4 bytes]`,
//! padding filled in: of every channel the 2x2 bytes, row by row and made unsigned, or the two rows' 16 bits that one
//! lane of a product multiplies ([`CellAxis`]). Cells are counted from the padding's first row and column.

use cranelift_codegen::ir::{FuncRef, Value};
use hawqc_schedules::{CellAxis, unsigned_offset};

use super::call;
use super::epilogue::{WideEpilogue, splat_byte};
use crate::asm::{Asm, AsmError, Binary, Gpr, Isa, Mem, Shift, V, Widen};
use crate::kernels::conv::Geometry;
use crate::kernels::emit::Code;

/// Vectors of channels whose cells are made at once: those whose bytes fill a vector.
const MOST_VECTORS: usize = 4;
/// The low half of a lane.
const LOW_HALF: i32 = 0xffff;

/// See the module's documentation.
pub struct Cells {
    pub geometry: Geometry,
    pub isa: Isa,
    pub axes: [CellAxis; 2],
    /// Vectors of channels of a unit.
    pub vectors: usize,
    /// Output rows of a larger unit.
    pub rows: usize,
}

/// Where a unit's source lies, and what its preparation needs besides.
pub struct Place {
    /// The image's first row at the unit's first channel.
    pub image: Value,
    /// The unit's first output row.
    pub first_row: Value,
    /// Rows of cells to prepare.
    pub rows: Value,
    pub scratch: Value,
    pub pad: Value,
    pub literals: Value,
}

/// Cells side by side, the same columns of which lie in the image.
struct Run {
    cells: usize,
    inside: Vec<bool>,
}

impl Cells {
    /// Whether cells are of 2x2 bytes.
    pub fn are_bytes(&self) -> bool {
        self.axes[1].cell == 2
    }

    /// What is added to source values.
    pub fn offset(&self) -> i64 {
        if self.are_bytes() { unsigned_offset(self.geometry.src) } else { 0 }
    }

    fn columns(&self) -> usize {
        self.axes[1].extent(self.geometry.out[1])
    }

    /// Bytes of a row of cells of a vector of channels.
    pub fn vector_bytes(&self) -> usize {
        self.columns() * self.isa.bytes()
    }

    pub fn row_bytes(&self) -> usize {
        self.vectors * self.vector_bytes()
    }

    pub fn scratch_bytes(&self) -> usize {
        (self.axes[0].extent(self.rows) * self.row_bytes()).next_multiple_of(64)
    }

    /// A unit's channels of padding.
    pub fn pad_row(&self) -> Vec<u8> {
        self.geometry.pad_row(self.vectors * self.isa.lanes())
    }

    /// Adds the constants that the preparation needs.
    pub fn literals(&self, epilogue: &mut WideEpilogue) {
        epilogue.literal(if self.are_bytes() { splat_byte(self.offset()) } else { LOW_HALF });
    }

    /// The dwords of a vector of bytes such that each 128 bits have the same of every quarter, or half: unpacked, they are
    /// in order again.
    pub fn order(&self) -> Vec<i32> {
        let lanes = self.isa.lanes();
        (0..lanes).map(|to| (to % 4 * (lanes / 4) + to / 4) as i32).collect()
    }

    fn runs(&self) -> Vec<Run> {
        let (size, left, width) = (self.axes[1].cell, self.geometry.window.pad[1], self.geometry.size[1]);
        let inside = |cell: usize| {
            let columns = cell * size..(cell + 1) * size;
            columns.map(|column| (left..left + width).contains(&column)).collect::<Vec<_>>()
        };
        let mut runs: Vec<Run> = Vec::new();
        for cell in 0..self.columns() {
            match runs.last_mut() {
                Some(run) if run.inside == inside(cell) => run.cells += 1,
                _ => runs.push(Run { cells: 1, inside: inside(cell) }),
            }
        }
        runs
    }
}

/// Registers of the preparation of a row of cells.
struct Registers {
    /// The cell of the first vector.
    to: Gpr,
    /// Of each place of the cell, row by row: the first channel's value.
    from: Vec<Gpr>,
    /// From a cell to the next, in each row.
    steps: Vec<Gpr>,
    pad: Gpr,
    /// Bytes behind the first channel, in the source and in scratch memory.
    at: [Gpr; 2],
    convert: Convert,
}

enum Convert {
    /// The order of dwords, and what is added.
    Bytes { order: V, offset: Option<V> },
    /// To 32 bits; the mask of the lower half, for signed values.
    Pairs { widen: Widen, low_half: Option<V> },
}

impl Cells {
    /// Brings a row of cells into scratch memory. Its table: where to, where from for each place of the first cell, by
    /// how much these advance in each row, padding, the literals.
    pub fn assemble(&self, epilogue: &WideEpilogue, order_at: usize) -> Result<Vec<u8>, AsmError> {
        let (mut asm, table) = Asm::new(self.isa);
        let a = &mut asm;
        let [height, width] = self.axes.map(|axis| axis.cell);
        let mut word = 0;
        let mut next = |a: &mut Asm| {
            word += 1;
            a.argument(table, word - 1)
        };
        let to = next(a);
        let from = (0..height * width).map(|_| next(a)).collect();
        let steps = (0..height).map(|_| next(a)).collect();
        let (pad, literals) = (next(a), next(a));
        let convert = self.convert(a, epilogue, literals, order_at);
        let registers = Registers { to, from, steps, pad, at: [a.gpr(), a.gpr()], convert };
        for run in self.runs() {
            a.repeat(run.cells, |a| self.cell(a, &registers, &run.inside));
        }
        asm.finish()
    }

    fn convert(&self, a: &mut Asm, epilogue: &WideEpilogue, literals: Gpr, order_at: usize) -> Convert {
        let src = self.geometry.src;
        let mut load = |from: Mem| {
            let constant = a.vec();
            a.load(constant, from);
            constant
        };
        let literal = |value: i32| epilogue.at(self.isa, literals, value);
        if self.are_bytes() {
            let offset = (self.offset() != 0).then(|| load(literal(splat_byte(self.offset()))));
            return Convert::Bytes { order: load(Mem::at(literals, order_at)), offset };
        }
        let widen = match (src.bytes(), src.is_signed()) {
            (1, false) => Widen::U8ToI32,
            (1, true) => Widen::I8ToI32,
            _ => Widen::I16ToI32,
        };
        Convert::Pairs { widen, low_half: src.is_signed().then(|| load(literal(LOW_HALF))) }
    }

    /// A cell of every channel.
    fn cell(&self, a: &mut Asm, registers: &Registers, inside: &[bool]) {
        let from = registers.from.iter().zip(inside.iter().cycle());
        let from: Vec<Gpr> = from.map(|(&from, &inside)| if inside { from } else { registers.pad }).collect();
        registers.at.iter().for_each(|&at| a.set(at, 0));
        let part = |a: &mut Asm, vectors: usize| {
            self.vectors(a, registers, &from, vectors);
            a.add_int(registers.at[0], vectors * self.isa.lanes() * self.geometry.src.bytes());
            a.add_int(registers.at[1], vectors * self.vector_bytes());
        };
        if self.vectors >= MOST_VECTORS {
            a.repeat(self.vectors / MOST_VECTORS, |a| part(a, MOST_VECTORS));
        }
        let rest = self.vectors % MOST_VECTORS;
        [2, 1].into_iter().filter(|vectors| rest & vectors != 0).for_each(|vectors| part(a, vectors));
        a.add_int(registers.to, self.isa.bytes());
        for (places, &step) in registers.from.chunks(self.axes[1].cell).zip(&registers.steps) {
            places.iter().for_each(|&from| a.add(from, step));
        }
    }

    /// A cell of some vectors of channels.
    fn vectors(&self, a: &mut Asm, registers: &Registers, from: &[Gpr], vectors: usize) {
        let [at, to_at] = registers.at;
        let to = |vector: usize| Mem::indexed(registers.to, to_at, vector * self.vector_bytes());
        match registers.convert {
            Convert::Bytes { order, offset } => {
                let inputs = a.vecs(from.len());
                for (&input, &from) in inputs.iter().zip(from) {
                    a.load_first(input, Mem::indexed(from, at, 0), vectors * self.isa.lanes());
                    a.binary(Binary::Permute, input, order, input);
                }
                let cells = interleave(a, &inputs, vectors);
                for (vector, cell) in cells.into_iter().enumerate() {
                    if let Some(offset) = offset {
                        a.binary(Binary::AddI8, cell, cell, offset);
                    }
                    a.store(to(vector), cell);
                }
            }
            Convert::Pairs { widen, low_half } => {
                for vector in 0..vectors {
                    let behind = vector * self.isa.lanes() * self.geometry.src.bytes();
                    let [low, high] = [from[0], from[1]].map(|from| {
                        let input = a.vec();
                        a.load_widened(widen, input, Mem::indexed(from, at, behind));
                        input
                    });
                    a.shift(Shift::LeftI32, high, high, 16);
                    if let Some(mask) = low_half {
                        a.binary(Binary::And, low, low, mask);
                    }
                    a.binary(Binary::AddI32, low, low, high);
                    a.store(to(vector), low);
                }
            }
        }
    }
}

/// The first `vectors` vectors, at most [`MOST_VECTORS`], of four values' bytes in turn. Each 128 bits of the values have 4 bytes of every
/// vector.
fn interleave(a: &mut Asm, values: &[V], vectors: usize) -> Vec<V> {
    let mut cells = Vec::new();
    let bytes = [Binary::UnpackLowI8, Binary::UnpackHighI8];
    let words = [Binary::UnpackLowI16, Binary::UnpackHighI16];
    for (half, bytes) in bytes.into_iter().enumerate().take(vectors.div_ceil(2)) {
        let rows: Vec<V> = values
            .chunks(2)
            .map(|row| {
                let both = a.vec();
                a.binary(bytes, both, row[0], row[1]);
                both
            })
            .collect();
        for words in words.into_iter().take(vectors - 2 * half) {
            let cell = a.vec();
            a.binary(words, cell, rows[0], rows[1]);
            cells.push(cell);
        }
    }
    cells
}

impl Cells {
    /// Brings a unit's rows into scratch memory by the `leaf` that [`Cells::assemble`] makes.
    pub fn prepare(&self, c: &mut Code, leaf: FuncRef, place: &Place) {
        let geometry = &self.geometry;
        let (window, [height, width]) = (&geometry.window, self.axes.map(|axis| axis.cell));
        let (pixel_bytes, row_bytes) = (geometry.pixel_bytes(), geometry.size[1] * geometry.pixel_bytes());
        let first = c.mul_int(place.first_row, window.stride[0]);
        let first = c.sub_int(first, window.pad[0]);
        let zero = c.int(0);
        let one = c.int(1);
        c.range(zero, place.rows, one, |c, cell_row| {
            let top = c.offset(first, cell_row, height);
            let mut words = vec![c.offset(place.scratch, cell_row, self.row_bytes())];
            let mut steps = Vec::new();
            for row in 0..height {
                let y = c.add_int(top, row);
                let inside = c.below(y, geometry.size[0]);
                let from = c.offset(place.image, y, row_bytes);
                let from = c.sub_int(from, window.pad[1] * pixel_bytes);
                for column in 0..width {
                    let from = c.add_int(from, column * pixel_bytes);
                    words.push(c.select(inside, from, place.pad));
                }
                let step = c.int(width * pixel_bytes);
                steps.push(c.select(inside, step, zero));
            }
            words.extend(steps);
            words.extend([place.pad, place.literals]);
            call(c, leaf, &words);
        });
    }
}
