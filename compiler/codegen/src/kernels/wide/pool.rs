//! Maximum and sum over windows, with inner kernels assembled for vectors of 256 or 512 bits.
//!
//! A window's fold is one of columns, then one of rows. A unit of work is a row of the result: its source rows are
//! folded into one row of scratch memory, as elements for a maximum and as `i32` for a sum; then windows of that
//! row are folded, with the pointwise steps on the results in registers. Padding holds what leaves a result as it
//! is: the element's least value for a maximum, the zero point for a sum of `src - zero`.

use cranelift_codegen::ir::{FuncRef, Value, types};
use hawqc_ir::{Arg, Elem, KernelSpec, Op, Range, Tensor, Window};
use hawqc_schedules::Machine;

use super::epilogue::{WideEpilogue, load_values};
use super::store::{Pixels, Vectors};
use super::{call, wide_for};
use crate::asm::{Asm, AsmError, Binary, Gpr, Isa, Mem, V};
use crate::error::Unsupported;
use crate::kernels::emit::Code;
use crate::kernels::{Body, Dst, Frame, Leaf, Lowered, Table};

const PAD: usize = 0;
const LITERALS: usize = 1;
const FIRST_EPILOGUE_TABLE: usize = 2;
/// Pixels of a tile.
const TILE: usize = 4;
/// Vectors of a round of the fold of columns.
const UNROLL: usize = 4;
/// Taps of an element that take about as long as an element operation of other kernels.
const TAPS_PER_WORK: usize = 8;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fold {
    Max,
    /// The sum of `src - zero`.
    Sum {
        zero: i32,
    },
}

struct Pool {
    isa: Isa,
    fold: Fold,
    window: Window,
    size: [usize; 2],
    out: [usize; 2],
    channels: usize,
    src: Elem,
    dst: Dst,
    /// Whether results are elements as they are in scratch memory.
    plain: bool,
    operand_bytes: Vec<usize>,
    table_strides: Vec<usize>,
}

pub(in crate::kernels) fn lower(
    spec: &KernelSpec,
    constants: &[Option<&Tensor>],
    machine: Machine,
    dst: Dst,
) -> Result<Lowered, Unsupported> {
    let step = &spec.steps()[0];
    let &[Arg::Operand(src)] = step.args.as_slice() else {
        return Err(Unsupported::new("a pool of other than the kernel's operand"));
    };
    let ty = &spec.operands()[src];
    let ([batch, h, w, channels], [_, oh, ow, _]) = (ty.nhwc()?, step.ty.nhwc()?);
    let range = ty.elem.range().unwrap_or(Range::new(0, 0));
    let (window, fold, neutral) = match &step.op {
        Op::MaxPool(pool) => (pool.window(), Fold::Max, range.lo),
        Op::SumPool(pool) => (pool.window(), Fold::Sum { zero: pool.zero }, pool.zero.into()),
        op => return Err(Unsupported::new(format!("`{}` as a pool", op.name()))),
    };
    let wide = wide_for(machine, channels)?;
    let isa = Isa::of(wide);
    if window.pad != [0; 4] && !range.contains(Range::new(neutral, neutral)) {
        return Err(Unsupported::new(format!("a padded sum of {} with zero point {neutral}", ty.elem)));
    }
    let (mut epilogue, requant_tables) = WideEpilogue::new(spec, constants, wide)?;
    let mut pool = Pool {
        isa,
        fold,
        window,
        size: [h, w],
        out: [oh, ow],
        channels,
        src: ty.elem,
        dst,
        plain: false,
        operand_bytes: epilogue.operand_bytes(),
        table_strides: epilogue.table_strides(isa),
    };
    pool.plain = spec.steps().len() == 1 && fold == Fold::Max && channels * ty.elem.bytes() >= isa.bytes();
    if fold == Fold::Max && w * channels * ty.elem.bytes() < isa.bytes() {
        return Err(Unsupported::new("a wide maximum of rows shorter than a vector"));
    }
    epilogue.literal(pool.start());
    let values = if window.pad[0] + window.pad[2] > 0 { w * channels } else { 0 };
    let mut tables =
        vec![Table::new(neutral.to_le_bytes()[..ty.elem.bytes()].repeat(values)), epilogue.literal_table(isa)];
    tables.extend(requant_tables);
    let mut operands = vec![src];
    operands.extend(epilogue.operands());
    let leaves = pool.leaves(&epilogue).map_err(|e| Unsupported::new(e.to_string()))?;
    let taps = window.kernel[0] + window.kernel[1] + spec.steps().len();
    Ok(Lowered {
        family: "wide_pool",
        operands,
        tables,
        forms: epilogue.form(),
        second: epilogue.has_second(),
        proof: String::new(),
        leaves,
        scratch_bytes: (pool.columns() * pool.column_bytes()).next_multiple_of(64),
        units: batch * oh,
        work: (batch * oh * w * channels * taps / TAPS_PER_WORK) as u64,
        macs: 0,
        is_border: false,
        body: Box::new(pool),
    })
}

impl Pool {
    fn columns(&self) -> usize {
        let window = &self.window;
        (self.out[1] - 1) * window.stride[1] + (window.kernel[1] - 1) * window.dilation[1] + 1
    }

    /// Bytes of an element of the folded row.
    fn folded_bytes(&self) -> usize {
        if self.fold == Fold::Max { self.src.bytes() } else { Elem::I32.bytes() }
    }

    fn column_bytes(&self) -> usize {
        self.channels * self.folded_bytes()
    }

    /// Columns of padding on the left, of the image, and of padding on the right.
    fn split(&self) -> [usize; 3] {
        let left = self.window.pad[1].min(self.columns());
        let middle = (self.columns() - left).min(self.size[1]);
        [left, middle, self.columns() - left - middle]
    }

    /// What a sum starts from, modulo 2^32: minus the zero point for every tap, those of the padding included.
    fn start(&self) -> i32 {
        let taps = (self.window.kernel[0] * self.window.kernel[1]) as i64;
        match self.fold {
            Fold::Max => 0,
            Fold::Sum { zero } => (-taps * i64::from(zero)) as i32,
        }
    }

    /// The maximum of elements as they are in memory.
    fn max(&self) -> Binary {
        match (self.src.bytes(), self.src.is_signed()) {
            (1, false) => Binary::MaxU8,
            (1, true) => Binary::MaxI8,
            (2, _) => Binary::MaxI16,
            _ => Binary::MaxI32,
        }
    }

    fn leaves(&self, epilogue: &WideEpilogue) -> Result<Vec<Leaf>, AsmError> {
        let mut leaves = vec![Leaf { name: "columns".into(), code: self.assemble_columns()? }];
        for pixels in [TILE.min(self.out[1]), self.out[1] % TILE].into_iter().filter(|&pixels| pixels > 0) {
            let code = if self.plain { self.assemble_plain(pixels)? } else { self.assemble_tile(epilogue, pixels)? };
            leaves.push(Leaf { name: format!("windows.{pixels}"), code });
        }
        Ok(leaves)
    }

    /// The fold of the columns of an image's rows. Its table: where to, then the address of each row.
    fn assemble_columns(&self) -> Result<Vec<u8>, AsmError> {
        let (mut asm, table) = Asm::new(self.isa);
        let a = &mut asm;
        let to = a.argument(table, 0);
        let rows: Vec<Gpr> = (1..=self.window.kernel[0]).map(|word| a.argument(table, word)).collect();
        let values = self.split()[1] * self.channels;
        if values == 0 {
            return asm.finish();
        }
        let step = if self.fold == Fold::Max { self.isa.bytes() / self.src.bytes() } else { self.isa.lanes() };
        let fold = |a: &mut Asm, value: usize| {
            let from = |row: usize| Mem::at(rows[row], value * self.src.bytes());
            let sum = a.vec();
            if self.fold == Fold::Max {
                a.load(sum, from(0));
            } else {
                load_values(a, self.src, sum, from(0));
            }
            for row in 1..rows.len() {
                if self.fold == Fold::Max {
                    a.binary(self.max(), sum, sum, from(row));
                } else {
                    let value = a.vec();
                    load_values(a, self.src, value, from(row));
                    a.binary(Binary::AddI32, sum, sum, value);
                }
            }
            a.store(Mem::at(to, value * self.folded_bytes()), sum);
        };
        let advance = |a: &mut Asm, values: usize| {
            rows.iter().for_each(|&row| a.add_int(row, values * self.src.bytes()));
            a.add_int(to, values * self.folded_bytes());
        };
        // Values behind the last whole vector are computed together with some before them, twice.
        if !values.is_multiple_of(step) {
            fold(a, values - step);
        }
        let vectors = values / step;
        if vectors / UNROLL > 0 {
            a.repeat(vectors / UNROLL, |a| {
                (0..UNROLL).for_each(|i| fold(a, i * step));
                advance(a, UNROLL * step);
            });
        }
        (0..vectors % UNROLL).for_each(|i| fold(a, i * step));
        asm.finish()
    }

    /// Windows of `pixels` pixels of a folded row, without pointwise steps. Its table: the first column, the result.
    fn assemble_plain(&self, pixels: usize) -> Result<Vec<u8>, AsmError> {
        let (mut asm, table) = Asm::new(self.isa);
        let a = &mut asm;
        let [src, dst] = [0, 1].map(|word| a.argument(table, word));
        let (bytes, row) = (self.isa.bytes(), self.column_bytes());
        let windows = |a: &mut Asm, at: usize| {
            for pixel in 0..pixels {
                let tap = |kx: usize| Mem::at(src, self.column(pixel, kx) * row + at);
                let max = a.vec();
                a.load(max, tap(0));
                (1..self.window.kernel[1]).for_each(|kx| a.binary(self.max(), max, max, tap(kx)));
                a.store(Mem::at(dst, pixel * self.dst.pixel_bytes() + at), max);
            }
        };
        if !row.is_multiple_of(bytes) {
            windows(a, row - bytes);
        }
        a.repeat(row / bytes, |a| {
            windows(a, 0);
            a.add_int(src, bytes);
            a.add_int(dst, bytes);
        });
        asm.finish()
    }

    /// The column of a tap, counted from the tile's first.
    fn column(&self, pixel: usize, kx: usize) -> usize {
        pixel * self.window.stride[1] + kx * self.window.dilation[1]
    }

    /// Windows of `pixels` pixels of a folded row, with the pointwise steps. Its table: the first column, the result,
    /// the literals, then the epilogue's.
    fn assemble_tile(&self, epilogue: &WideEpilogue, pixels: usize) -> Result<Vec<u8>, AsmError> {
        let (mut asm, table) = Asm::new(self.isa);
        let a = &mut asm;
        a.set_even_mask();
        let [src, dst, literals] = [0, 1, 2].map(|word| a.argument(table, word));
        let pointers = epilogue.pointers(a, (table, 3), literals);
        let results = Pixels { dst: self.dst, to: dst, literals };
        let lanes = self.isa.lanes();
        a.repeat(self.channels / lanes, |a| {
            let sums: Vec<V> = (0..pixels).map(|pixel| self.fold_window(a, epilogue, literals, src, pixel)).collect();
            for (pixel, &sum) in sums.iter().enumerate() {
                let vectors = Vectors { pixel, first: 0, count: 1 };
                results.finish_pixel(a, epilogue, &pointers, vectors, |_, _| Some(sum));
            }
            a.add_int(src, lanes * self.folded_bytes());
            a.add_int(dst, lanes * self.dst.elem.bytes());
            epilogue.advance(a, &pointers);
        });
        asm.finish()
    }

    fn fold_window(&self, a: &mut Asm, epilogue: &WideEpilogue, literals: Gpr, src: Gpr, pixel: usize) -> V {
        let tap = |kx: usize| Mem::at(src, self.column(pixel, kx) * self.column_bytes());
        let folded = if self.fold == Fold::Max { self.src } else { Elem::I32 };
        let sum = a.vec();
        load_values(a, folded, sum, tap(0));
        for kx in 1..self.window.kernel[1] {
            if self.fold == Fold::Max {
                let value = a.vec();
                load_values(a, folded, value, tap(kx));
                a.binary(Binary::MaxI32, sum, sum, value);
            } else {
                a.binary(Binary::AddI32, sum, sum, tap(kx));
            }
        }
        if self.start() != 0 {
            a.binary(Binary::AddI32, sum, sum, epilogue.at(self.isa, literals, self.start()));
        }
        sum
    }
}

impl Body for Pool {
    fn emit(&self, c: &mut Code, frame: &Frame) -> Result<(), Unsupported> {
        let (Some(&columns), Some(&tile), Some(&rest)) =
            (frame.leaves.first(), frame.leaves.get(1), frame.leaves.last())
        else {
            return Err(Unsupported::new("a pool without its inner kernels"));
        };
        self.fill_padding(c, frame);
        frame.units(c, |c, unit| {
            let (image, row) = c.div_rem(unit, self.out[0]);
            self.fold_columns(c, frame, columns, [image, row]);
            let pixel = c.mul_int(unit, self.out[1]);
            let tile_pixels = TILE.min(self.out[1]);
            c.count(self.out[1] / tile_pixels * tile_pixels, tile_pixels, |c, column| {
                self.tile(c, frame, tile, (pixel, column));
            });
            let left = self.out[1] % tile_pixels;
            if left > 0 {
                let column = c.int(self.out[1] - left);
                self.tile(c, frame, rest, (pixel, column));
            }
        });
        Ok(())
    }
}

impl Pool {
    /// Fills the folded row's padding, which nothing else writes.
    fn fill_padding(&self, c: &mut Code, frame: &Frame) {
        let [left, middle, right] = self.split();
        let ty = match self.folded_bytes() {
            1 => types::I8X16,
            2 => types::I16X8,
            _ => types::I32X4,
        };
        let neutral = match self.fold {
            Fold::Max => self.src.range().map_or(0, |range| range.lo),
            Fold::Sum { zero } => i64::from(zero) * self.window.kernel[0] as i64,
        };
        let pattern = c.splat_int(ty, neutral);
        for (first, columns) in [(0, left), (left + middle, right)] {
            if columns > 0 {
                let to = c.add_int(frame.scratch, first * self.column_bytes());
                c.fill(to, pattern, columns * self.column_bytes());
            }
        }
    }

    fn fold_columns(&self, c: &mut Code, frame: &Frame, leaf: FuncRef, [image, row]: [Value; 2]) {
        let ([h, w], window) = (self.size, &self.window);
        let row_bytes = w * self.channels * self.src.bytes();
        let image = c.offset(frame.operands[0], image, h * row_bytes);
        let first = c.mul_int(row, window.stride[0]);
        let first = c.sub_int(first, window.pad[0]);
        let mut words = vec![c.add_int(frame.scratch, self.split()[0] * self.column_bytes())];
        for ky in 0..window.kernel[0] {
            let y = c.add_int(first, ky * window.dilation[0]);
            let mut from = c.offset(image, y, row_bytes);
            if window.pad[0] + window.pad[2] > 0 {
                let inside = c.below(y, h);
                from = c.select(inside, from, frame.tables[PAD]);
            }
            words.push(from);
        }
        call(c, leaf, &words);
    }

    fn tile(&self, c: &mut Code, frame: &Frame, leaf: FuncRef, (first, column): (Value, Value)) {
        let pixel = c.add(first, column);
        let element = c.mul_int(pixel, self.channels);
        let mut words = vec![
            c.offset(frame.scratch, column, self.window.stride[1] * self.column_bytes()),
            c.offset(frame.dst, pixel, self.dst.pixel_bytes()),
        ];
        if !self.plain {
            words.push(frame.tables[LITERALS]);
            for (i, &bytes) in self.operand_bytes.iter().enumerate() {
                words.push(c.offset(frame.operands[1 + i], element, bytes));
            }
            words.extend((0..self.table_strides.len()).map(|i| frame.tables[FIRST_EPILOGUE_TABLE + i]));
        }
        call(c, leaf, &words);
    }
}
