//! The border between floats and integers: quantize, dequantize, softmax, bit for bit as the
//! interpreter computes them (every operation is one IEEE f32 operation, none is fused).

use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::{InstBuilder, Type, Value, types};
use hawqc_ir::{Arg, Elem, KernelSpec, Op, Range, Tensor, exp};

use super::emit::{Code, LANES};
use super::movement::Nest;
use super::{Body, Frame, Lowered, Table};
use crate::error::Unsupported;

/// Integers below this are exact in f32.
const EXACT: i64 = 1 << 24;

pub(super) fn lower(spec: &KernelSpec, constants: &[Option<&Tensor>]) -> Result<Lowered, Unsupported> {
    let ops: Vec<&Op> = spec.steps().iter().map(|s| &s.op).collect();
    let Some(&Arg::Operand(src)) = spec.steps()[0].args.first() else {
        return Err(Unsupported::new("a border kernel of other than the kernel's operand"));
    };
    let (src_ty, out) = (&spec.operands()[src], spec.result());
    let last = &spec.steps()[spec.steps().len() - 1];
    let parameters = |axis: usize| Parameters::new(&last.args, constants, axis);
    let (family, body, units, tables): (_, Box<dyn Body>, usize, Vec<Table>) = match ops.as_slice() {
        [Op::Quantize(quantize)] | [Op::Transpose(_), Op::Quantize(quantize)] => {
            let parameters = parameters(quantize.axis)?;
            let nest = match ops[0] {
                Op::Transpose(transpose) => Nest::transposed(transpose, src_ty, out, parameters.axis),
                _ => Nest::straight(out, parameters.axis),
            };
            let tables = parameters.quantize_tables([quantize.lo, quantize.hi])?;
            let units = nest.units();
            ("quantize", Box::new(Quantize { nest, elem: out.elem }), units, tables)
        }
        [Op::Dequantize(dequantize)] => {
            let parameters = parameters(dequantize.axis)?;
            let nest = Nest::straight(out, parameters.axis);
            let tables = parameters.dequantize_tables(src_ty.int_range()?)?;
            let units = nest.units();
            ("dequantize", Box::new(Dequantize { nest, elem: src_ty.elem }), units, tables)
        }
        [Op::Softmax(_)] => {
            let row = out.shape.last().copied().unwrap_or(1);
            let rows = out.elements() / row;
            ("softmax", Box::new(Softmax { row }), rows, Vec::new())
        }
        _ => {
            let names: Vec<&str> = ops.iter().map(|op| op.name()).collect();
            return Err(Unsupported::new(format!("a border kernel of {}", names.join(", "))));
        }
    };
    Ok(Lowered {
        family,
        body,
        operands: vec![src],
        tables,
        forms: String::new(),
        second: false,
        proof: String::new(),
        leaves: Vec::new(),
        scratch_bytes: 0,
        units,
        work: out.elements() as u64 * 2,
        macs: 0,
        is_border: true,
    })
}

/// Scales and zero points, one each or one per entry of an axis.
pub(super) struct Parameters {
    scale: Vec<f32>,
    zero: Vec<i64>,
    pub axis: Option<usize>,
}

impl Parameters {
    pub fn new(args: &[Arg], constants: &[Option<&Tensor>], axis: usize) -> Result<Parameters, Unsupported> {
        let constant = |position: usize| match args.get(position) {
            Some(&Arg::Operand(i)) => constants.get(i).copied().flatten(),
            _ => None,
        };
        let (Some(scale), Some(zero)) = (constant(1), constant(2)) else {
            return Err(Unsupported::new("a scale or zero point that is not constant"));
        };
        let (scale, zero) = (scale.f32s()?.to_vec(), zero.ints()?);
        let axis = (scale.len() > 1).then_some(axis);
        Ok(Parameters { scale, zero, axis })
    }

    /// The parameter at each place a run may start, repeated so that four can always be loaded.
    fn table<T: Copy>(&self, values: &[T], bytes: impl Fn(T) -> [u8; 4]) -> Table {
        let count = values.len().max(LANES).next_multiple_of(LANES);
        let at = |i: usize| if values.len() == 1 { values[0] } else { values[i.min(values.len() - 1)] };
        Table::new((0..count).flat_map(|i| bytes(at(i))).collect())
    }

    /// Scale, zero point, and the bounds before the zero point is added.
    pub fn quantize_tables(&self, [lo, hi]: [i64; 2]) -> Result<Vec<Table>, Unsupported> {
        let bounds = [lo, hi].map(|bound| self.zero.iter().map(|zero| bound - zero).collect::<Vec<i64>>());
        if bounds.iter().flatten().chain(&self.zero).any(|b| b.abs() >= EXACT) {
            return Err(Unsupported::new(format!("quantize to [{lo}, {hi}] with bounds beyond 2^24")));
        }
        let float = |values: &[i64]| self.table(values, |v| (v as f32).to_le_bytes());
        Ok(vec![
            self.table(&self.scale, f32::to_le_bytes),
            self.table(&self.zero, |v| (v as i32).to_le_bytes()),
            float(&bounds[0]),
            float(&bounds[1]),
        ])
    }

    /// Scale and zero point.
    fn dequantize_tables(&self, src: Range) -> Result<Vec<Table>, Unsupported> {
        let fits = |zero: &i64| [src.lo - zero, src.hi - zero, *zero].iter().all(|&v| i32::try_from(v).is_ok());
        if !self.zero.iter().all(fits) {
            return Err(Unsupported::new("dequantize whose source less its zero point exceeds 32 bits"));
        }
        Ok(vec![self.table(&self.scale, f32::to_le_bytes), self.table(&self.zero, |v| (v as i32).to_le_bytes())])
    }
}

/// A parameter of the lanes of a run: four neighbours where the nest's axis is the row, else one
/// for all. Tables of one parameter repeat it, so index 0 serves both.
fn parameter(c: &mut Code, ty: Type, nest: &Nest, table: Value, index: Value) -> Value {
    let address = c.offset(table, index, 4);
    if nest.varies_in_row() {
        return c.load(ty, address, 0);
    }
    let lane = c.load(ty.lane_type(), address, 0);
    c.b.ins().splat(ty, lane)
}

struct Quantize {
    nest: Nest,
    elem: Elem,
}

impl Body for Quantize {
    fn emit(&self, c: &mut Code, frame: &Frame) -> Result<(), Unsupported> {
        self.nest.emit(c, frame, LANES, |c, run| {
            let from = c.offset(frame.operands[0], run.src, 4);
            let to = c.offset(frame.dst, run.dst, self.elem.bytes());
            let bits = c.load_chunk(Elem::F32, from, run.lanes)[0];
            let src = c.cast(types::F32X4, bits);
            let mut of = |ty, table: usize| parameter(c, ty, &self.nest, frame.tables[table], run.parameter);
            let (scale, zero) = (of(types::F32X4, 0), of(types::I32X4, 1));
            let (lo, hi) = (of(types::F32X4, 2), of(types::F32X4, 3));
            let quotient = c.b.ins().fdiv(src, scale);
            let rounded = c.b.ins().nearest(quotient);
            let above = c.float_select(FloatCC::GreaterThan, rounded, lo);
            let limited = c.float_select(FloatCC::LessThan, above, hi);
            // NaN counts as 0.
            let number = c.b.ins().fcmp(FloatCC::Equal, rounded, rounded);
            let limited = c.cast(types::I32X4, limited);
            let limited = c.b.ins().band(limited, number);
            let limited = c.cast(types::F32X4, limited);
            let whole = c.b.ins().fcvt_to_sint_sat(types::I32X4, limited);
            let result = c.b.ins().iadd(whole, zero);
            if self.nest.row[2] == 1 {
                c.store_chunk(self.elem, &[result], to, run.lanes);
                return Ok(());
            }
            for lane in 0..run.lanes {
                let value = c.b.ins().extractlane(result, lane as u8);
                c.store_element_far(self.elem, value, to, lane * self.nest.row[2] * self.elem.bytes());
            }
            Ok(())
        })
    }
}

struct Dequantize {
    nest: Nest,
    elem: Elem,
}

impl Body for Dequantize {
    fn emit(&self, c: &mut Code, frame: &Frame) -> Result<(), Unsupported> {
        self.nest.emit(c, frame, LANES, |c, run| {
            let from = c.offset(frame.operands[0], run.src, self.elem.bytes());
            let to = c.offset(frame.dst, run.dst, 4);
            let src = c.load_chunk(self.elem, from, run.lanes)[0];
            let scale = parameter(c, types::F32X4, &self.nest, frame.tables[0], run.parameter);
            let zero = parameter(c, types::I32X4, &self.nest, frame.tables[1], run.parameter);
            let difference = c.b.ins().isub(src, zero);
            let float = c.b.ins().fcvt_from_sint(types::F32X4, difference);
            let result = c.b.ins().fmul(float, scale);
            let bits = c.cast(types::I32X4, result);
            c.store_chunk(Elem::F32, &[bits], to, run.lanes);
            Ok(())
        })
    }
}

struct Softmax {
    row: usize,
}

impl Body for Softmax {
    fn emit(&self, c: &mut Code, frame: &Frame) -> Result<(), Unsupported> {
        frame.units(c, |c, row| {
            let src = c.offset(frame.operands[0], row, 4 * self.row);
            let dst = c.offset(frame.dst, row, 4 * self.row);
            let least = c.b.ins().f32const(f32::NEG_INFINITY);
            let max = c.count_with(self.row, 1, &[least], |c, i, max| {
                let from = c.offset(src, i, 4);
                let x = c.load(types::F32, from, 0);
                // A NaN is never greater, as in `f32::max`.
                let greater = c.b.ins().fcmp(FloatCC::GreaterThan, x, max[0]);
                vec![c.select(greater, x, max[0])]
            });
            let zero = c.b.ins().f32const(0.0);
            let sum = c.count_with(self.row, 1, &[zero], |c, i, sum| {
                let from = c.offset(src, i, 4);
                let x = c.load(types::F32, from, 0);
                let x = c.b.ins().fsub(x, max[0]);
                let e = emit_exp(c, x);
                let to = c.offset(dst, i, 4);
                c.store(e, to, 0);
                vec![c.b.ins().fadd(sum[0], e)]
            });
            c.count(self.row, 1, |c, i| {
                let at = c.offset(dst, i, 4);
                let e = c.load(types::F32, at, 0);
                let quotient = c.b.ins().fdiv(e, sum[0]);
                c.store(quotient, at, 0);
            });
        });
        Ok(())
    }
}

/// The interpreter's `exp`, operation by operation.
fn emit_exp(c: &mut Code, x: Value) -> Value {
    let constant = |c: &mut Code, value: f32| c.b.ins().f32const(value);
    let log2_e = constant(c, exp::LOG2_E);
    let n = c.b.ins().fmul(x, log2_e);
    let n = c.b.ins().nearest(n);
    let (high, low) = (constant(c, exp::LN2_HIGH), constant(c, exp::LN2_LOW));
    let r = c.b.ins().fmul(n, high);
    let r = c.b.ins().fsub(x, r);
    let low = c.b.ins().fmul(n, low);
    let r = c.b.ins().fsub(r, low);
    let mut p = constant(c, exp::POLY[0]);
    for &coefficient in &exp::POLY[1..] {
        let coefficient = constant(c, coefficient);
        p = c.b.ins().fmul(p, r);
        p = c.b.ins().fadd(p, coefficient);
    }
    let square = c.b.ins().fmul(r, r);
    let y = c.b.ins().fmul(p, square);
    let y = c.b.ins().fadd(y, r);
    let one = constant(c, 1.0);
    let y = c.b.ins().fadd(y, one);
    let exponent = c.b.ins().fcvt_to_sint_sat(types::I32, n);
    let exponent = c.b.ins().iadd_imm_s(exponent, 127);
    let exponent = c.b.ins().ishl_imm_u(exponent, 23);
    let power = c.cast(types::F32, exponent);
    let result = c.b.ins().fmul(y, power);
    let (min, zero) = (constant(c, exp::MIN), constant(c, 0.0));
    let tiny = c.b.ins().fcmp(FloatCC::LessThan, x, min);
    c.select(tiny, zero, result)
}
