//! The source of a unit of work as inner kernels read it: in place, or as rows brought into scratch memory.
//!
//! In: a convolution and the form in which its products want the source. Out: where each output pixel's inputs
//! begin ([`Source::pixel_offsets`]) and each run of them ([`Source::runs`]), and for prepared rows the code that makes
//! them ([`Source::prepare`]): padding filled in, elements widened to 16 bits or made unsigned.

use cranelift_codegen::ir::{InstBuilder, Value, types};
use hawqc_ir::Elem;

use crate::kernels::conv::Geometry;
use crate::kernels::emit::Code;

/// Bytes that an inner kernel may read behind the last run: the rest of a step.
const SLACK_BYTES: usize = 64;

/// See the module's documentation.
pub struct Source {
    geometry: Geometry,
    /// Bytes of an element as it is multiplied.
    elem_bytes: usize,
    /// Added to every element.
    offset: i64,
    form: Form,
}

enum Form {
    /// The source itself.
    InPlace,
    /// Rows in scratch memory, of `columns` pixels each. A row or column is made for every one that a window may
    /// touch, or, for windows of one row or column, for every output row or column.
    Rows { columns: usize, every: [bool; 2] },
}

impl Source {
    /// For operands of `elem_bytes` bytes, the source's elements increased by `offset`; `overhang` other than 0 where a
    /// kernel reads behind the channels of a pixel.
    pub fn new(geometry: Geometry, elem_bytes: usize, offset: i64, overhang: usize) -> Source {
        let window = geometry.window;
        let run_bytes = if window.dilation[1] == 1 { window.kernel[1] } else { 1 } * geometry.channels * elem_bytes;
        let same = elem_bytes == geometry.src.bytes() && offset == 0;
        let inside = !geometry.is_padded()
            && [0, 1].iter().all(|&axis| extent(&geometry, axis, geometry.out[axis]) <= geometry.size[axis]);
        let in_place = same && inside && overhang == 0 && run_bytes.is_multiple_of(4);
        let every = [0, 1].map(|axis| window.kernel[axis] > 1 || window.stride[axis] == 1 || geometry.is_padded());
        let columns = if every[1] { extent(&geometry, 1, geometry.out[1]) } else { geometry.out[1] };
        let form = if in_place { Form::InPlace } else { Form::Rows { columns, every } };
        Source { geometry, elem_bytes, offset, form }
    }

    fn pixel_bytes(&self) -> usize {
        self.geometry.channels * self.elem_bytes
    }

    /// Bytes from one row of the source, as it is read, to the next.
    pub fn row_bytes(&self) -> usize {
        match self.form {
            Form::InPlace => self.geometry.size[1] * self.pixel_bytes(),
            Form::Rows { columns, .. } => columns * self.pixel_bytes(),
        }
    }

    /// Steps from one output row or column to the next, in rows or columns of the source as it is read.
    fn stride(&self, axis: usize) -> usize {
        match self.form {
            Form::Rows { every, .. } if !every[axis] => 1,
            _ => self.geometry.window.stride[axis],
        }
    }

    /// Scratch bytes of a unit of `rows` output rows.
    pub fn scratch_bytes(&self, rows: usize) -> usize {
        match self.form {
            Form::InPlace => 0,
            Form::Rows { .. } => (self.rows(rows) * self.row_bytes() + SLACK_BYTES).next_multiple_of(64),
        }
    }

    /// Prepared rows of a unit of `rows` output rows.
    pub fn rows(&self, rows: usize) -> usize {
        match self.form {
            Form::Rows { every, .. } if !every[0] => rows,
            _ => extent(&self.geometry, 0, rows),
        }
    }

    /// Byte offsets of the first `rows * OW` pixels' inputs.
    pub fn pixel_offsets(&self, rows: usize) -> Vec<i32> {
        let columns = self.geometry.out[1];
        let offset = |row: usize, column: usize| {
            row * self.stride(0) * self.row_bytes() + column * self.stride(1) * self.pixel_bytes()
        };
        (0..rows).flat_map(|row| (0..columns).map(move |column| offset(row, column) as i32)).collect()
    }

    /// Byte offsets of the runs of windows over the first `inputs` channels, and the values of each: without groups, taps of
    /// a row side by side are one run.
    pub fn runs(&self, inputs: usize) -> (Vec<i32>, usize) {
        let ([kh, kw], [dy, dx]) = (self.geometry.window.kernel, self.geometry.window.dilation);
        let row = |ky: usize| ky * dy * self.row_bytes();
        if dx == 1 && self.geometry.groups == 1 || kw == 1 {
            return ((0..kh).map(|ky| row(ky) as i32).collect(), kw * inputs);
        }
        let tap = |ky: usize, kx: usize| (row(ky) + kx * dx * self.pixel_bytes()) as i32;
        ((0..kh).flat_map(|ky| (0..kw).map(move |kx| tap(ky, kx))).collect(), inputs)
    }

    /// The address that pixel offsets count from, for output rows from `first_row` of `image` on; prepared rows
    /// are made in `scratch`, as many as [`Source::rows`] says.
    pub fn prepare(&self, c: &mut Code, image: Value, first_row: Value, rows: Value, scratch: Value) -> Value {
        let geometry = &self.geometry;
        let [h, w] = geometry.size;
        let src_row_bytes = w * geometry.pixel_bytes();
        let y0 = c.mul_int(first_row, geometry.window.stride[0]);
        let Form::Rows { columns, every } = self.form else {
            return c.offset(image, y0, src_row_bytes);
        };
        let y0 = c.sub_int(y0, geometry.window.pad[0]);
        let step = if every[0] { 1 } else { geometry.window.stride[0] };
        let pad = self.pad_pattern(c);
        let left = geometry.window.pad[1].min(columns);
        let middle = (columns - left).min(w);
        let right = columns - left - middle;
        let pixel_bytes = self.pixel_bytes();
        let (zero, one) = (c.int(0), c.int(1));
        c.range(zero, rows, one, |c, row| {
            let y = c.offset(y0, row, step);
            let to = c.offset(scratch, row, self.row_bytes());
            let inside = c.below(y, h);
            c.if_else(
                inside,
                |c| {
                    let from = c.offset(image, y, src_row_bytes);
                    if !every[1] {
                        return c.count(columns, 1, |c, column| {
                            let from = c.offset(from, column, geometry.window.stride[1] * geometry.pixel_bytes());
                            let to = c.offset(to, column, pixel_bytes);
                            self.convert(c, to, from, geometry.channels);
                        });
                    }
                    if left > 0 {
                        c.fill(to, pad, left * pixel_bytes);
                    }
                    let to = c.add_int(to, left * pixel_bytes);
                    self.convert(c, to, from, middle * geometry.channels);
                    if right > 0 {
                        let to = c.add_int(to, middle * pixel_bytes);
                        c.fill(to, pad, right * pixel_bytes);
                    }
                },
                |c| c.fill(to, pad, self.row_bytes()),
            );
        });
        scratch
    }

    fn pad_pattern(&self, c: &mut Code) -> Value {
        let value = i64::from(self.geometry.pad_value) + self.offset;
        c.splat_int(if self.elem_bytes == 1 { types::I8X16 } else { types::I16X8 }, value)
    }

    /// Brings `count` elements into the products' form.
    fn convert(&self, c: &mut Code, to: Value, from: Value, count: usize) {
        let src_bytes = self.geometry.src.bytes();
        if src_bytes == self.elem_bytes && self.offset == 0 {
            return c.copy(to, from, count * src_bytes);
        }
        let whole = count / 16 * 16;
        let step = |c: &mut Code, i: Value| {
            let from = c.add(from, i);
            let bytes = c.load(types::I8X16, from, 0);
            let to = c.offset(to, i, self.elem_bytes);
            if self.elem_bytes == 1 {
                let offset = c.splat_bytes(self.offset as u8);
                let value = c.b.ins().iadd(bytes, offset);
                return c.store(value, to, 0);
            }
            let signed = self.geometry.src.is_signed();
            let low = if signed { c.b.ins().swiden_low(bytes) } else { c.b.ins().uwiden_low(bytes) };
            let high = if signed { c.b.ins().swiden_high(bytes) } else { c.b.ins().uwiden_high(bytes) };
            c.store(low, to, 0);
            c.store(high, to, 16);
        };
        if whole > 0 {
            c.count(whole, 16, step);
        }
        if count > whole {
            let (from, to) = (c.add_int(from, whole), c.add_int(to, whole * self.elem_bytes));
            let elem = if self.elem_bytes == 1 { Elem::I8 } else { Elem::I16 };
            c.count(count - whole, 1, |c, i| {
                let from = c.add(from, i);
                let value = c.load_element(self.geometry.src, from, 0);
                let value = c.b.ins().iadd_imm_s(value, self.offset);
                let to = c.offset(to, i, self.elem_bytes);
                c.store_element(elem, value, to, 0);
            });
        }
    }
}

/// Source rows (axis 0) or columns (axis 1) that windows of `out` outputs span.
fn extent(geometry: &Geometry, axis: usize, out: usize) -> usize {
    let window = &geometry.window;
    (out - 1) * window.stride[axis] + (window.kernel[axis] - 1) * window.dilation[axis] + 1
}
