//! Pointwise steps alone, in an inner kernel assembled for vectors of 256 or 512 bits.
//!
//! A unit of work is a pixel, or where all elements are treated alike any part of the result.

use cranelift_codegen::ir::Value;
use hawqc_ir::{KernelSpec, Tensor};
use hawqc_schedules::Machine;

use super::epilogue::{Hold, WideEpilogue};
use super::store::{Pixels, Vectors};
use super::{call, wide_for};
use crate::asm::{Asm, AsmError, Isa};
use crate::error::Unsupported;
use crate::kernels::emit::Code;
use crate::kernels::{Body, Dst, Frame, Leaf, Lowered};

const LITERALS: usize = 0;
const FIRST_EPILOGUE_TABLE: usize = 1;
/// Vectors of a round.
const UNROLL: usize = 4;
/// Vectors of a unit where any will do.
const UNIT_VECTORS: usize = 512;
/// Elements and steps that take about as long as an element operation of other kernels.
const STEPS_PER_WORK: usize = 2;

struct Pointwise {
    /// Elements of a unit.
    row: usize,
    /// Bytes from a unit's results to the next one's.
    dst_bytes: usize,
    operand_bytes: Vec<usize>,
    table_strides: Vec<usize>,
}

pub(in crate::kernels) fn lower(
    spec: &KernelSpec,
    constants: &[Option<&Tensor>],
    machine: Machine,
    dst: Dst,
) -> Result<Lowered, Unsupported> {
    let out = spec.result();
    let channels = out.shape.last().copied().unwrap_or(1);
    let wide = wide_for(machine, channels)?;
    let isa = Isa::of(wide);
    let (epilogue, requant_tables) = WideEpilogue::new(spec, constants, wide)?;
    let table_strides = epilogue.table_strides(isa);
    let is_uniform = table_strides.iter().all(|&stride| stride == 0);
    let vectors_all = out.elements() / isa.lanes();
    let fitting = || (1..=UNIT_VECTORS).rev().find(|v| vectors_all.is_multiple_of(*v)).unwrap_or(1);
    let is_dense = dst.pitch == channels;
    let vectors = if is_uniform && is_dense { fitting() } else { channels / isa.lanes() };
    let row = vectors * isa.lanes();
    let pointwise = Pointwise {
        row,
        dst_bytes: if is_dense { row * dst.elem.bytes() } else { dst.pixel_bytes() },
        operand_bytes: epilogue.operand_bytes(),
        table_strides,
    };
    let mut tables = vec![epilogue.literal_table(isa)];
    tables.extend(requant_tables);
    let code = assemble(isa, &epilogue, dst, vectors).map_err(|e| Unsupported::new(e.to_string()))?;
    Ok(Lowered {
        family: "wide_pointwise",
        operands: epilogue.operands(),
        tables,
        forms: epilogue.form(),
        second: epilogue.has_second(),
        proof: String::new(),
        leaves: vec![Leaf { name: "pointwise".into(), code }],
        scratch_bytes: 0,
        units: vectors_all / vectors,
        work: (out.elements() * spec.steps().len() / STEPS_PER_WORK) as u64,
        macs: 0,
        is_border: false,
        body: Box::new(pointwise),
    })
}

/// The steps for `vectors` vectors. Its table: the result, the literals, then the epilogue's.
fn assemble(isa: Isa, epilogue: &WideEpilogue, dst: Dst, vectors: usize) -> Result<Vec<u8>, AsmError> {
    let (mut asm, table) = Asm::new(isa);
    let a = &mut asm;
    a.set_even_mask();
    let [to, literals] = [0, 1].map(|word| a.argument(table, word));
    let mut pointers = epilogue.pointers(a, (table, 2), literals);
    let free = isa.registers().saturating_sub(UNROLL + epilogue.temporaries());
    epilogue.hold(a, &mut pointers, Hold::Uniform, free);
    let pixels = Pixels { dst, to, literals };
    let round = |a: &mut Asm, count: usize| {
        pixels.finish_values(a, epilogue, &pointers, Vectors { pixel: 0, first: 0, count });
        a.add_int(to, count * isa.lanes() * dst.elem.bytes());
        epilogue.advance_by(a, &pointers, count);
    };
    if vectors / UNROLL > 0 {
        a.repeat(vectors / UNROLL, |a| round(a, UNROLL));
    }
    if !vectors.is_multiple_of(UNROLL) {
        round(a, vectors % UNROLL);
    }
    asm.finish()
}

impl Body for Pointwise {
    fn emit(&self, c: &mut Code, frame: &Frame) -> Result<(), Unsupported> {
        let Some(&leaf) = frame.leaves.first() else {
            return Err(Unsupported::new("pointwise steps without their inner kernel"));
        };
        frame.units(c, |c, unit| {
            let element = c.mul_int(unit, self.row);
            let mut words: Vec<Value> = vec![c.offset(frame.dst, unit, self.dst_bytes), frame.tables[LITERALS]];
            for (&operand, &bytes) in frame.operands.iter().zip(&self.operand_bytes) {
                words.push(c.offset(operand, element, bytes));
            }
            words.extend((0..self.table_strides.len()).map(|i| frame.tables[FIRST_EPILOGUE_TABLE + i]));
            call(c, leaf, &words);
        });
        Ok(())
    }
}
