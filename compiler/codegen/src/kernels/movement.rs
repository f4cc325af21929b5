//! Data movement: concatenation, padding, transposition, of any element type. Values move as bits.

use cranelift_codegen::ir::{Value, types};
use hawqc_ir::{Arg, Elem, KernelSpec, Op, TensorType, Transpose};

use super::emit::Code;
use super::{Body, Frame, Lowered, Placement};
use crate::error::Unsupported;

pub(super) fn lower(spec: &KernelSpec, placement: &Placement) -> Result<Lowered, Unsupported> {
    let step = &spec.steps()[0];
    let operand = |arg: &Arg| match arg {
        Arg::Operand(i) => Ok(*i),
        Arg::Step(_) => Err(Unsupported::new("data movement of a step")),
    };
    let mut operands = step.args.iter().map(operand).collect::<Result<Vec<usize>, _>>()?;
    let types: Vec<&TensorType> = operands.iter().map(|&i| &spec.operands()[i]).collect();
    let (body, units): (Box<dyn Body>, usize) = match &step.op {
        Op::Concat(op) => {
            let concat = Concat::new(op.axis, (&operands, &types), &step.ty, placement);
            operands.retain(|operand| !placement.written.contains(operand));
            let outer = concat.outer;
            (Box::new(concat), outer)
        }
        Op::Pad(op) => {
            let ([n, h, w, c], [_, oh, ow, _]) = (types[0].nhwc()?, step.ty.nhwc()?);
            let elem = step.ty.elem;
            let bits = if elem == Elem::F32 { op.value.get().to_bits().cast_signed() } else { op.value.get() as i32 };
            let pad =
                Pad { size: [h, w], out: [oh, ow], at: [op.pad[0], op.pad[1]], pixel: c * elem.bytes(), elem, bits };
            (Box::new(pad), n * oh)
        }
        Op::Transpose(op) => {
            let nest = Nest::transposed(op, types[0], &step.ty, None);
            let units = nest.units();
            (Box::new(Move { nest, elem: step.ty.elem }), units)
        }
        op => return Err(Unsupported::new(format!("`{}` as data movement", op.name()))),
    };
    Ok(Lowered {
        family: match &step.op {
            Op::Concat(_) => "concat",
            Op::Pad(_) => "pad",
            _ => "transpose",
        },
        body,
        operands,
        tables: Vec::new(),
        forms: if placement.written.is_empty() { String::new() } else { format!("without {:?}", placement.written) },
        second: false,
        proof: String::new(),
        leaves: Vec::new(),
        scratch_bytes: 0,
        units,
        work: step.ty.elements() as u64 / 4,
        macs: 0,
        is_border: step.ty.is_float(),
    })
}

/// For each of `outer` steps, the next block of bytes of every operand that is not in the result already.
struct Concat {
    outer: usize,
    /// Bytes from a step's blocks to the next one's.
    pitch: usize,
    /// In the order of the operands: where in a step's blocks, and how many bytes.
    blocks: Vec<[usize; 2]>,
}

impl Concat {
    fn new(
        axis: usize,
        (operands, types): (&[usize], &[&TensorType]),
        out: &TensorType,
        placement: &Placement,
    ) -> Concat {
        let block = |ty: &TensorType| ty.shape[axis..].iter().product::<usize>() * ty.elem.bytes();
        let (mut blocks, mut at) = (Vec::new(), 0);
        for (operand, ty) in operands.iter().zip(types) {
            if !placement.written.contains(operand) {
                blocks.push([at, block(ty)]);
            }
            at += block(ty);
        }
        // Pixels lie apart only where they are joined.
        let pitch = if axis + 1 == out.rank() { placement.dst.pixel_bytes() } else { block(out) };
        Concat { outer: out.shape[..axis].iter().product(), pitch, blocks }
    }
}

impl Body for Concat {
    fn emit(&self, c: &mut Code, frame: &Frame) -> Result<(), Unsupported> {
        frame.units(c, |c, step| {
            let whole = c.offset(frame.dst, step, self.pitch);
            for (&[at, bytes], &src) in self.blocks.iter().zip(&frame.operands) {
                let (to, from) = (c.add_int(whole, at), c.offset(src, step, bytes));
                c.copy(to, from, bytes);
            }
        });
        Ok(())
    }
}

struct Pad {
    size: [usize; 2],
    out: [usize; 2],
    /// Rows above, columns before.
    at: [usize; 2],
    /// Bytes of a pixel.
    pixel: usize,
    elem: Elem,
    /// The padding's value in the low bits.
    bits: i32,
}

impl Body for Pad {
    fn emit(&self, c: &mut Code, frame: &Frame) -> Result<(), Unsupported> {
        let ([h, w], [oh, ow], [top, left]) = (self.size, self.out, self.at);
        let lane = match self.elem.bytes() {
            1 => types::I8X16,
            2 => types::I16X8,
            _ => types::I32X4,
        };
        let pattern = c.splat_int(lane, self.bits.into());
        frame.units(c, |c, row| {
            let to = c.offset(frame.dst, row, ow * self.pixel);
            let (image, y) = c.div_rem(row, oh);
            let y = c.sub_int(y, top);
            let inside = c.below(y, h);
            c.if_else(
                inside,
                |c| {
                    let from = c.offset(y, image, h);
                    let zero = c.int(0);
                    let from = c.offset(zero, from, w * self.pixel);
                    let from = c.add(frame.operands[0], from);
                    c.fill(to, pattern, left * self.pixel);
                    let to = c.add_int(to, left * self.pixel);
                    c.copy(to, from, w * self.pixel);
                    let to = c.add_int(to, w * self.pixel);
                    c.fill(to, pattern, (ow - left - w) * self.pixel);
                },
                |c| c.fill(to, pattern, ow * self.pixel),
            );
        });
        Ok(())
    }
}

/// A walk over a result whose source has the same elements in another order.
pub(super) struct Nest {
    /// `(size, source stride, result stride)` in elements, of every axis but the row's, outermost
    /// first, at least one.
    outer: Vec<[usize; 3]>,
    /// The same of the axis whose neighbours lie side by side in the source.
    pub row: [usize; 3],
    /// Where the axis given to [`Nest::transposed`] is.
    axis: Option<Axis>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Axis {
    Outer(usize),
    Row,
}

/// A chunk of a row.
pub(super) struct Run {
    /// Element indices.
    pub src: Value,
    pub dst: Value,
    /// Index along the nest's axis of the first element.
    pub parameter: Value,
    pub lanes: usize,
}

impl Nest {
    /// A walk over `out`, the transposition of `src`; `axis` is an axis of `out`.
    pub fn transposed(op: &Transpose, src: &TensorType, out: &TensorType, axis: Option<usize>) -> Nest {
        let (src_strides, out_strides) = (strides(&src.shape), strides(&out.shape));
        let all: Vec<[usize; 3]> =
            op.perm.iter().enumerate().map(|(i, &a)| [out.shape[i], src_strides[a], out_strides[i]]).collect();
        let last = op.perm.iter().position(|&a| a + 1 == src.rank()).unwrap_or(0);
        let mut outer = all.clone();
        let row = if outer.is_empty() { [1, 1, 1] } else { outer.remove(last) };
        let place = |axis: usize| match axis.cmp(&last) {
            std::cmp::Ordering::Equal => Axis::Row,
            std::cmp::Ordering::Less => Axis::Outer(axis),
            std::cmp::Ordering::Greater => Axis::Outer(axis - 1),
        };
        if outer.is_empty() {
            outer.push([1, 0, 0]);
        }
        Nest { outer, row, axis: axis.map(place) }
    }

    /// The walk of a tensor in its own order.
    pub fn straight(ty: &TensorType, axis: Option<usize>) -> Nest {
        Nest::transposed(&Transpose { perm: (0..ty.rank()).collect() }, ty, ty, axis)
    }

    /// Whether the index along the axis changes within a run.
    pub fn varies_in_row(&self) -> bool {
        self.axis == Some(Axis::Row)
    }

    pub fn units(&self) -> usize {
        self.outer.iter().map(|axis| axis[0]).product()
    }

    /// Emits `run` for every run of at most `lanes` elements of this task.
    pub fn emit(
        &self,
        c: &mut Code,
        frame: &Frame,
        lanes: usize,
        run: impl Fn(&mut Code, Run) -> Result<(), Unsupported>,
    ) -> Result<(), Unsupported> {
        let mut outcome = Ok(());
        frame.units(c, |c, unit| {
            let (mut src, mut dst, mut parameter, mut rest) = (c.int(0), c.int(0), c.int(0), unit);
            for (i, &[size, from, to]) in self.outer.iter().enumerate().rev() {
                let (quotient, index) = c.div_rem(rest, size);
                rest = quotient;
                src = c.offset(src, index, from);
                dst = c.offset(dst, index, to);
                if self.axis == Some(Axis::Outer(i)) {
                    parameter = index;
                }
            }
            let mut emit = |c: &mut Code, at: Value, lanes: usize| {
                let parameter = if self.axis == Some(Axis::Row) { at } else { parameter };
                let (src, dst) = (c.add(src, at), c.offset(dst, at, self.row[2]));
                let result = run(c, Run { src, dst, parameter, lanes });
                outcome = std::mem::replace(&mut outcome, Ok(())).and(result);
            };
            let whole = self.row[0] / lanes * lanes;
            if whole > 0 {
                c.count(whole, lanes, |c, at| emit(c, at, lanes));
            }
            if self.row[0] > whole {
                let at = c.int(whole);
                emit(c, at, self.row[0] - whole);
            }
        });
        outcome
    }
}

fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}

/// Moves elements one by one, or in chunks where rows stay rows.
struct Move {
    nest: Nest,
    elem: Elem,
}

impl Body for Move {
    fn emit(&self, c: &mut Code, frame: &Frame) -> Result<(), Unsupported> {
        let (bytes, stride) = (self.elem.bytes(), self.nest.row[2]);
        let lanes = if stride == 1 { 16 } else { 4 };
        self.nest.emit(c, frame, lanes, |c, run| {
            let from = c.offset(frame.operands[0], run.src, bytes);
            let to = c.offset(frame.dst, run.dst, bytes);
            if stride == 1 {
                c.copy(to, from, run.lanes * bytes);
                return Ok(());
            }
            for lane in 0..run.lanes {
                let value = c.load_element(self.elem, from, lane * bytes);
                c.store_element_far(self.elem, value, to, lane * stride * bytes);
            }
            Ok(())
        })
    }
}
