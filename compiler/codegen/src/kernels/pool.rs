//! Maximum and sum over windows, with pointwise steps.
//!
//! A tap in the padding reads a constant row that leaves the result as it is: the element's least
//! value for a maximum, the zero point for a sum of `src - zero`.

use cranelift_codegen::ir::{InstBuilder, Value, types};
use hawqc_ir::{Arg, Elem, KernelSpec, Op, Range, Tensor};

use super::conv::Geometry;
use super::emit::{CHUNK, Code, LANES};
use super::epilogue::{Epilogue, Slots};
use super::rows::Rows;
use super::{Body, Frame, Lowered, Table};
use crate::error::Unsupported;

enum Fold {
    Max,
    /// The sum starts from this value: minus the zero point for every tap, modulo 2^32.
    Sum(i64),
}

struct Pool {
    geometry: Geometry,
    fold: Fold,
    rows: Rows,
    epilogue: Epilogue,
    dst: Elem,
}

const PAD: usize = 0;

pub(super) fn lower(spec: &KernelSpec, constants: &[Option<&Tensor>]) -> Result<Lowered, Unsupported> {
    let step = &spec.steps()[0];
    let &[Arg::Operand(src)] = step.args.as_slice() else {
        return Err(Unsupported::new("a pool of other than the kernel's operand"));
    };
    let ty = &spec.operands()[src];
    let ([n, h, w, channels], [_, oh, ow, _]) = (ty.nhwc()?, step.ty.nhwc()?);
    let range = ty.elem.range().unwrap_or(Range::new(0, 0));
    let (window, fold, neutral) = match &step.op {
        Op::MaxPool(pool) => (pool.window(), Fold::Max, range.lo),
        Op::SumPool(pool) => {
            let taps = (pool.kernel[0] * pool.kernel[1]) as i64;
            (pool.window(), Fold::Sum(-taps * i64::from(pool.zero)), i64::from(pool.zero))
        }
        op => return Err(Unsupported::new(format!("`{}` as a pool", op.name()))),
    };
    if window.pad != [0; 4] && !range.contains(Range::new(neutral, neutral)) {
        return Err(Unsupported::new(format!("a padded sum of {} with zero point {neutral}", ty.elem)));
    }
    let geometry = Geometry {
        batch: n,
        size: [h, w],
        out: [oh, ow],
        channels,
        groups: channels,
        group_in: 1,
        group_out: 1,
        window,
        // In range where it is read.
        pad_value: neutral as i32,
        src: ty.elem,
        wei: Elem::I8,
    };
    let (epilogue, requant_tables) = Epilogue::new(spec, 1, constants, Slots { operand: 1, table: 1, order: None })?;
    let mut tables = vec![Table::new(geometry.pad_row(CHUNK))];
    tables.extend(requant_tables);
    let rows = Rows { pixels: geometry.pixels(), channels, image: oh * ow, cost: geometry.taps() + spec.steps().len() };
    let mut operands = vec![src];
    operands.extend(epilogue.operands());
    Ok(Lowered {
        family: "pool",
        operands,
        tables,
        forms: epilogue.form(),
        second: epilogue.has_second(),
        proof: String::new(),
        leaves: Vec::new(),
        scratch_bytes: 0,
        units: rows.units(),
        work: rows.work(),
        macs: 0,
        is_border: false,
        body: Box::new(Pool { geometry, fold, rows, epilogue, dst: spec.result().elem }),
    })
}

impl Body for Pool {
    fn emit(&self, c: &mut Code, frame: &Frame) -> Result<(), Unsupported> {
        self.rows.emit(c, frame, self.epilogue.per_pixel(), |c, pixel, site| {
            let start = match self.fold {
                Fold::Max => i64::from(i32::MIN),
                Fold::Sum(start) => start,
            };
            let start = c.splat_int(types::I32X4, start);
            let vectors = vec![start; site.lanes.div_ceil(LANES)];
            let place = (pixel, site.channel, site.lanes);
            let values = self.geometry.fold_taps(
                c,
                (frame.operands[0], frame.tables[PAD]),
                place,
                &vectors,
                |c, _, input, acc| input.iter().zip(acc).map(|(&x, &acc)| self.fold.emit(c, acc, x)).collect(),
            );
            let values = self.epilogue.apply(c, frame, site, values)?;
            let dst = c.offset(frame.dst, site.element, self.dst.bytes());
            c.store_chunk(self.dst, &values, dst, site.lanes);
            Ok(())
        })
    }
}

impl Fold {
    fn emit(&self, c: &mut Code, acc: Value, input: Value) -> Value {
        match self {
            Fold::Max => c.b.ins().smax(acc, input),
            Fold::Sum(_) => c.b.ins().iadd(acc, input),
        }
    }
}

impl Geometry {
    /// Goes through the taps of a pixel for a chunk of channels, threading vectors through
    /// `visit(tap, input, vectors)`. A tap in the padding reads `pad`, [`CHUNK`] values.
    pub fn fold_taps(
        &self,
        c: &mut Code,
        (src, pad): (Value, Value),
        (pixel, channel, lanes): (Value, Value, usize),
        start: &[Value],
        visit: impl Fn(&mut Code, Value, &[Value], &[Value]) -> Vec<Value>,
    ) -> Vec<Value> {
        let ([kh, kw], [h, w]) = (self.window.kernel, self.size);
        let (y0, x0, image) = self.origin(c, src, pixel);
        let image = c.offset(image, channel, self.src.bytes());
        c.count_with(kh, 1, start, |c, ky, carried| {
            let y = c.offset(y0, ky, self.window.dilation[0]);
            let row_inside = c.below(y, h);
            let row = c.offset(image, y, w * self.pixel_bytes());
            c.count_with(kw, 1, carried, |c, kx, carried| {
                let x = c.offset(x0, kx, self.window.dilation[1]);
                let mut from = c.offset(row, x, self.pixel_bytes());
                if self.is_padded() {
                    let column_inside = c.below(x, w);
                    let inside = c.and(row_inside, column_inside);
                    from = c.select(inside, from, pad);
                }
                let input = c.load_chunk(self.src, from, lanes);
                let tap = c.offset(kx, ky, kw);
                visit(c, tap, &input, carried)
            })
        })
    }
}
