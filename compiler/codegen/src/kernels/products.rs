//! How a convolution multiplies: the layout of packed weights and the instructions that read it.
//!
//! A *step* is four consecutive input channels of one tap. Its weights are one vector for every four
//! output channels, 16 values each:
//!
//! * [`Products::Quad`]: `[4 output channels][4 input channels]`, multiplied with four input bytes
//!   repeated in every lane.
//! * [`Products::Pair`]: `[2 halves][4 output channels][2 input channels]`, widened to 16 bits, each half
//!   multiplied with a repeated pair of 16-bit inputs.
//!
//! 4-bit weights hold two such vectors in 16 bytes, byte i being `first[i] & 15 | second[i] << 4`. They are
//! unpacked to 16 times their value, `byte << 4` and `byte & 0xf0` as signed bytes, which takes no
//! subtraction; the sum is 16 times the convolution and the low four bits are shifted out at the end.
//! That is exact, modular arithmetic included, where the convolution lies in [-2^27, 2^27)
//! ([`weight_storage`]).

use cranelift_codegen::ir::{InstBuilder, Value, types};
use hawqc_ir::{Elem, Range};

use super::emit::Code;
use crate::dot::{emit_dot, emit_dot_7bit, emit_dot_signed, emit_pair_dot};
use crate::target::Dot;

/// Input channels of a step.
pub const STEP: usize = 4;

/// The arithmetic of a convolution's inner loop.
#[derive(Clone, Copy, Debug)]
pub enum Products {
    Quad { dot: Dot, input: Input },
    Pair,
}

/// What the input bytes of a quad product are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    Unsigned,
    /// Below 128.
    SevenBit,
    Signed,
    /// Signed, turned into unsigned by adding 128.
    MadeUnsigned,
    /// Unsigned, turned into signed by subtracting 128.
    MadeSigned,
}

impl Products {
    /// The fastest products for these operands. `src_range` includes the padding's value.
    pub fn choose(dot: Dot, src: Elem, src_range: Range, wei: Elem) -> Products {
        if src.bytes() > 1 || wei.bytes() > 1 || dot == Dot::Pmaddwd {
            return Products::Pair;
        }
        let input = match (src.is_signed(), dot) {
            (true, Dot::Vnni) => Input::MadeUnsigned,
            (true, _) => Input::Signed,
            (false, _) if src_range.hi < 128 => Input::SevenBit,
            (false, Dot::Sdot) => Input::MadeSigned,
            (false, _) => Input::Unsigned,
        };
        Products::Quad { dot, input }
    }

    /// What an input's value is minus what the products take it for, times the sum of a channel's
    /// weights, must be added to that channel's sum: `x = (x + 128) - 128`, `x = (x - 128) + 128`. The
    /// additions are modulo 2^32 like the products' sum, whose true value the verifier has
    /// proved to fit.
    pub fn compensation(self) -> i64 {
        match self {
            Products::Quad { input: Input::MadeUnsigned, .. } => -128,
            Products::Quad { input: Input::MadeSigned, .. } => 128,
            _ => 0,
        }
    }

    /// The order of a vector's 16 values: `(output channel, input channel)` of each.
    fn order(self) -> [(usize, usize); 16] {
        std::array::from_fn(|i| match self {
            Products::Quad { .. } => (i / 4, i % 4),
            Products::Pair => (i % 8 / 2, i / 8 * 2 + i % 2),
        })
    }

    /// Packs the weights of one step, `weight(output channel, input channel)`, for `vectors` vectors.
    pub fn pack(self, wei: Elem, vectors: usize, weight: impl Fn(usize, usize) -> i64, out: &mut Vec<u8>) {
        let values = |vector: usize| self.order().map(|(k, c)| weight(4 * vector + k, c));
        match wei {
            Elem::I4 => {
                for pair in 0..vectors / 2 {
                    let (first, second) = (values(2 * pair), values(2 * pair + 1));
                    out.extend(first.iter().zip(second).map(|(a, b)| ((a & 15) | (b << 4)) as u8));
                }
            }
            Elem::I16 => out.extend((0..vectors).flat_map(values).flat_map(|v| (v as i16).to_le_bytes())),
            _ => out.extend((0..vectors).flat_map(values).map(|v| v as u8)),
        }
    }

    /// The four input channels at `address`, ready to be multiplied.
    pub fn load_input(self, c: &mut Code, src: Elem, address: Value) -> Vec<Value> {
        match self {
            Products::Quad { input, .. } => {
                let mut bytes = c.load(types::I32, address, 0);
                if matches!(input, Input::MadeUnsigned | Input::MadeSigned) {
                    // In a general register, where the constant takes no vector register.
                    bytes = c.b.ins().bxor_imm_u(bytes, 0x8080_8080);
                }
                let vector = c.b.ins().splat(types::I32X4, bytes);
                vec![c.cast(types::I8X16, vector)]
            }
            Products::Pair if src.bytes() == 2 => [0, 4]
                .map(|at| {
                    let pair = c.load(types::I32, address, at);
                    let vector = c.b.ins().splat(types::I32X4, pair);
                    c.cast(types::I16X8, vector)
                })
                .to_vec(),
            Products::Pair => {
                let bytes = c.load(types::I32, address, 0);
                let vector = c.b.ins().scalar_to_vector(types::I32X4, bytes);
                let vector = c.cast(types::I8X16, vector);
                let wide = if src.is_signed() { c.b.ins().swiden_low(vector) } else { c.b.ins().uwiden_low(vector) };
                [0u8, 4]
                    .map(|first| {
                        let pair = c.shuffle(wide, wide, std::array::from_fn(|i| first + i as u8 % 4));
                        c.cast(types::I16X8, pair)
                    })
                    .to_vec()
            }
        }
    }

    /// The weights of `vectors` vectors of a step at `address`, ready to be multiplied.
    pub fn load_weights(self, c: &mut Code, wei: Elem, address: Value, vectors: usize) -> Vec<Vec<Value>> {
        match wei {
            Elem::I4 => (0..vectors)
                .map(|vector| {
                    let packed = c.load_constant(types::I8X16, address, vector / 2 * 16);
                    let values = if vector % 2 == 0 {
                        c.b.ins().ishl_imm_u(packed, 4)
                    } else {
                        let mask = c.splat_bytes(0xf0);
                        c.b.ins().band(packed, mask)
                    };
                    self.widen(c, values)
                })
                .collect(),
            Elem::I16 => (0..vectors)
                .map(|vector| [0, 16].map(|at| c.load_constant(types::I16X8, address, 32 * vector + at)).to_vec())
                .collect(),
            _ => (0..vectors)
                .map(|vector| {
                    let values = c.load_constant(types::I8X16, address, 16 * vector);
                    self.widen(c, values)
                })
                .collect(),
        }
    }

    fn widen(self, c: &mut Code, values: Value) -> Vec<Value> {
        match self {
            Products::Quad { .. } => vec![values],
            Products::Pair => vec![c.b.ins().swiden_low(values), c.b.ins().swiden_high(values)],
        }
    }

    /// `acc` plus the products of a step.
    pub fn multiply(self, c: &mut Code, acc: Value, input: &[Value], weights: &[Value]) -> Value {
        match self {
            Products::Quad { dot, input: kind } => match kind {
                Input::Unsigned | Input::MadeUnsigned => emit_dot(&mut c.b, dot, acc, input[0], weights[0]),
                Input::SevenBit => emit_dot_7bit(&mut c.b, dot, acc, input[0], weights[0]),
                Input::Signed | Input::MadeSigned => emit_dot_signed(&mut c.b, dot, acc, input[0], weights[0]),
            },
            Products::Pair => input.iter().zip(weights).fold(acc, |acc, (&x, &w)| emit_pair_dot(&mut c.b, acc, x, w)),
        }
    }
}

/// How weights are stored: 4-bit ones in 4 bits (`I4`) if the convolution, whose range is `range`,
/// leaves the head-room for it, else in 8.
pub fn weight_storage(wei: Elem, range: Range) -> Elem {
    let fits = Range::new(-(1 << 27), (1 << 27) - 1).contains(range);
    match wei {
        Elem::I4 if fits => Elem::I4,
        Elem::I16 => Elem::I16,
        _ => Elem::I8,
    }
}

/// By how many bits sums exceed the convolution.
pub fn sum_shift(storage: Elem) -> u32 {
    if storage == Elem::I4 { 4 } else { 0 }
}

/// Bytes of one vector's weights of one step; two vectors share 16 bytes where weights have 4 bits.
pub fn vector_bytes(wei: Elem) -> usize {
    match wei {
        Elem::I4 => 8,
        wei => 16 * wei.bytes(),
    }
}
