//! Images at the border: planes of floats (NCHW) to pixels of bytes (NHWC), quantised, bit for bit as the interpreter
//! does it (every operation is one IEEE f32 operation).
//!
//! The channels of a pixel are the bytes of an i32 lane; shuffles take out the bytes that no channel fills. Pixels behind
//! the last whole vector are computed together with some before them, twice.

use cranelift_codegen::ir::{InstBuilder, Value};
use hawqc_ir::{Arg, Elem, KernelSpec, Op, Tensor};
use hawqc_schedules::Machine;

use super::call;
use crate::asm::{Asm, AsmError, Binary, Isa, Mem, Shift, V};
use crate::error::Unsupported;
use crate::kernels::border::Parameters;
use crate::kernels::emit::Code;
use crate::kernels::{Body, Frame, Leaf, Lowered, Table};

const LITERALS: usize = 0;
/// Vectors of a channel's literals: scale, bounds less the zero point, zero point.
const CHANNEL_VECTORS: usize = 4;
/// Vectors before the channels': the shuffle, the order of lanes, the mask of a byte.
const FIXED_VECTORS: usize = 3;
/// Vectors of pixels of a unit.
const UNIT_VECTORS: usize = 256;

struct Image {
    isa: Isa,
    channels: usize,
    /// Pixels of a plane.
    pixels: usize,
}

pub(in crate::kernels) fn lower(
    spec: &KernelSpec,
    constants: &[Option<&Tensor>],
    machine: Machine,
) -> Result<Lowered, Unsupported> {
    let [_, step] = spec.steps() else {
        return Err(Unsupported::new("an image that is more than transposed and quantised"));
    };
    let (Op::Quantize(quantize), Some(&Arg::Operand(src))) = (&step.op, spec.steps()[0].args.first()) else {
        return Err(Unsupported::new("an image that is not quantised"));
    };
    let out = spec.result();
    let &[images, height, width, channels] = out.shape.as_slice() else {
        return Err(Unsupported::new(format!("an image of shape {:?}", out.shape)));
    };
    let wide = machine.wide.into_iter().flatten().find(|wide| height * width >= wide.lanes);
    let isa = wide.map(Isa::of).ok_or_else(|| Unsupported::new("so small an image"))?;
    let parameters = Parameters::new(&step.args, constants, quantize.axis)?;
    let image = Image { isa, channels, pixels: height * width };
    if parameters.axis.is_some_and(|axis| axis != 3) {
        return Err(Unsupported::new("scales that differ along an axis other than the channels"));
    }
    let literals = image.literals(&parameters, [quantize.lo, quantize.hi])?;
    let code = image.assemble(quantize.elem).map_err(|e| Unsupported::new(e.to_string()))?;
    Ok(Lowered {
        family: "wide_image",
        operands: vec![src],
        tables: vec![literals],
        forms: String::new(),
        second: false,
        proof: String::new(),
        leaves: vec![Leaf { name: "image".into(), code }],
        scratch_bytes: 0,
        units: images * image.units(),
        work: out.elements() as u64,
        macs: 0,
        is_border: true,
        body: Box::new(image),
    })
}

impl Image {
    /// Vectors of a plane, the last one perhaps not whole.
    fn vectors(&self) -> usize {
        self.pixels.div_ceil(self.isa.lanes())
    }

    /// Units of an image.
    fn units(&self) -> usize {
        self.vectors().div_ceil(UNIT_VECTORS)
    }

    fn literals(&self, parameters: &Parameters, range: [i64; 2]) -> Result<Table, Unsupported> {
        let lanes = self.isa.lanes();
        let kept =
            |byte: usize| if byte < 4 * self.channels { byte / self.channels * 4 + byte % self.channels } else { 0x80 };
        let shuffle = (0..lanes / 4).flat_map(|_| (0..16).map(|byte| kept(byte) as u8));
        // Each part of 128 bits holds as many words as there are channels.
        let order = (0..lanes).map(|word| (word / self.channels % (lanes / 4) * 4 + word % self.channels) as i32);
        let mut bytes: Vec<u8> = shuffle.collect();
        bytes.extend(order.flat_map(i32::to_le_bytes));
        bytes.extend(0xffi32.to_le_bytes().repeat(lanes));
        let tables = parameters.quantize_tables(range)?;
        for channel in 0..self.channels {
            let entry = if parameters.axis.is_some() { 4 * channel } else { 0 };
            // Scale, bounds, zero point.
            for table in [0, 2, 3, 1] {
                bytes.extend(tables[table].bytes[entry..entry + 4].repeat(lanes));
            }
        }
        Ok(Table::new(bytes))
    }

    /// Vectors of pixels. Its table: the first pixel in the first plane, where it goes, the number of vectors, the literals.
    fn assemble(&self, elem: Elem) -> Result<Vec<u8>, AsmError> {
        let (mut asm, table) = Asm::new(self.isa);
        let a = &mut asm;
        let [from, to, vectors, literals] = [0, 1, 2, 3].map(|word| a.argument(table, word));
        let literal = |vector: usize| Mem::at(literals, vector * self.isa.bytes());
        let fixed = [0, 1, 2].map(|vector| {
            let register = a.vec();
            a.load(register, literal(vector));
            register
        });
        let [shuffle, order, byte] = fixed;
        a.repeat_down(vectors, |a| {
            let mut pixels: Option<V> = None;
            for channel in 0..self.channels {
                let at = |part: usize| literal(FIXED_VECTORS + channel * CHANNEL_VECTORS + part);
                let (value, limited) = (a.vec(), a.vec());
                a.load(value, Mem::at(from, 4 * channel * self.pixels));
                a.binary(Binary::DivF32, value, value, at(0));
                a.round_nearest(value, value);
                // Of two operands that cannot be compared it is the second.
                a.binary(Binary::MaxF32, limited, value, at(1));
                a.binary(Binary::MinF32, limited, limited, at(2));
                a.zero_unordered(limited, value);
                a.float_to_int(limited, limited);
                a.binary(Binary::AddI32, limited, limited, at(3));
                if elem.is_signed() {
                    a.binary(Binary::And, limited, limited, byte);
                }
                if let Some(pixels) = pixels {
                    a.shift(Shift::LeftI32, limited, limited, 8 * channel as u8);
                    a.binary(Binary::AddI32, pixels, pixels, limited);
                } else {
                    pixels = Some(limited);
                }
            }
            if let Some(pixels) = pixels {
                a.binary(Binary::Shuffle, pixels, pixels, shuffle);
                a.binary(Binary::Permute, pixels, order, pixels);
                a.store_first(Mem::at(to, 0), pixels, self.channels * self.isa.lanes());
            }
            a.add_int(from, self.isa.bytes());
            a.add_int(to, self.channels * self.isa.lanes());
        });
        asm.finish()
    }
}

impl Body for Image {
    fn emit(&self, c: &mut Code, frame: &Frame) -> Result<(), Unsupported> {
        let Some(&leaf) = frame.leaves.first() else {
            return Err(Unsupported::new("an image without its inner kernel"));
        };
        let lanes = self.isa.lanes();
        let (whole, last) = (self.pixels / lanes, self.vectors() - 1);
        frame.units(c, |c, unit| {
            let (image, block) = c.div_rem(unit, self.units());
            let src = c.offset(frame.operands[0], image, 4 * self.channels * self.pixels);
            let dst = c.offset(frame.dst, image, self.channels * self.pixels);
            let run = |c: &mut Code, pixel: Value, vectors: Value| {
                let words = [c.offset(src, pixel, 4), c.offset(dst, pixel, self.channels)];
                call(c, leaf, &[words[0], words[1], vectors, frame.tables[LITERALS]]);
            };
            let first = c.mul_int(block, UNIT_VECTORS);
            let end = c.add_int(first, UNIT_VECTORS);
            let end = c.min_int(end, whole);
            let pixel = c.mul_int(first, lanes);
            let vectors = c.b.ins().isub(end, first);
            let some = c.below(first, whole);
            c.if_else(some, |c| run(c, pixel, vectors), |_| ());
            if whole <= last {
                // The unit that the last vector belongs to.
                let is_last = c.below(block, last / UNIT_VECTORS);
                let (pixel, one) = (c.int(self.pixels - lanes), c.int(1));
                c.if_else(is_last, |_| (), |c| run(c, pixel, one));
            }
        });
        Ok(())
    }
}
