//! 8-bit and 4-bit dot products of 128-bit vectors in Cranelift IR.
//!
//! In: vectors of bytes (`i8x16`) and an accumulator. Out: the accumulator plus the dot products,
//! exact for every operand value, wrapping like `iadd` only where the accumulator itself overflows.
//! Each function gives the same result for every [`Dot`]; the strategy chooses instructions only,
//! and is valid only on targets that chose it ([`crate::target::Target::dot`]), except
//! [`Dot::Widening`], which is valid everywhere.
//!
//! Cranelift has no dot-product operation. It recognises these exact trees, operand order
//! included, and nothing near them (the other order becomes a dozen instructions, correct and
//! slow), which is why the tests look at the machine code:
//!
//! | instruction | tree | settings |
//! |---|---|---|
//! | `vpdpbusd` | `iadd(quad(imul(swiden s, uwiden u)), acc)` | `has_avx_vnni`, or `has_avx512vnni` and `has_avx512vl` |
//! | `sdot` | `iadd(quad(imul(swiden a, swiden b)), acc)` | `has_dotprod` |
//! | `usdot` | `iadd(quad(imul(uwiden u, swiden s)), acc)` | `has_i8mm` |
//! | `pmaddwd` | `iadd_pairwise(imul(swiden_low x, swiden_low y), imul(swiden_high x, swiden_high y))` | |
//! | `pmaddubsw` | `x86_pmaddubsw(s, u)` | |
//!
//! where `quad(p)` is `iadd_pairwise(iadd_pairwise(swiden_low p_low, swiden_high p_low),
//! iadd_pairwise(swiden_low p_high, swiden_high p_high))`. An operand that is a `splat` of a constant
//! is widened at compile time, and the tree is no longer there: load it, or use `vconst`.

use cranelift_codegen::ir::{InstBuilder, Type, Value, types};
use cranelift_frontend::FunctionBuilder;

use crate::target::Dot;

/// How many [`emit_dot_4bit`] results a 16-bit lane can hold: each adds at most 2 * 15 * 8 = 240 in
/// magnitude, and 136 * 240 = 32640 < 32768. Then [`emit_widen_4bit`] and start again from zero.
pub const DOT_4BIT_STEPS: usize = 136;

/// `acc[i] + sum over j in 0..4 of unsigned[4i+j] * signed[4i+j]`, in `i32x4`, for u8 and i8 over
/// their full ranges.
///
/// A product lies in [-32640, 32385] and so is exact in 16 bits; the four are added in 32 bits.
pub fn emit_dot(b: &mut FunctionBuilder, dot: Dot, acc: Value, unsigned: Value, signed: Value) -> Value {
    match dot {
        Dot::Vnni => unsigned_tree(b, acc, unsigned, signed, Order::SignedFirst),
        Dot::Usdot | Dot::Widening => unsigned_tree(b, acc, unsigned, signed, Order::UnsignedFirst),
        Dot::Pmaddwd => {
            let (u_low, u_high) = (b.ins().uwiden_low(unsigned), b.ins().uwiden_high(unsigned));
            pmaddwd_dot(b, acc, (u_low, u_high), signed)
        }
        Dot::Sdot => {
            // u = 2 (u >> 1) + (u & 1), and both parts are below 128.
            let half = b.ins().ushr_imm_u(unsigned, 1);
            let one = splat(b, types::I8X16, 1);
            let odd = b.ins().band(unsigned, one);
            let acc = signed_tree(b, acc, half, signed);
            let acc = signed_tree(b, acc, half, signed);
            signed_tree(b, acc, odd, signed)
        }
    }
}

/// [`emit_dot`] where every unsigned byte is below 128, as a 4-bit or 7-bit activation is. One
/// instruction for [`Dot::Sdot`] too.
pub fn emit_dot_7bit(b: &mut FunctionBuilder, dot: Dot, acc: Value, unsigned: Value, signed: Value) -> Value {
    match dot {
        Dot::Sdot => signed_tree(b, acc, unsigned, signed),
        Dot::Vnni | Dot::Usdot | Dot::Pmaddwd | Dot::Widening => emit_dot(b, dot, acc, unsigned, signed),
    }
}

/// `acc[i] + sum over j in 0..4 of left[4i+j] * right[4i+j]`, in `i32x4`, for i8 over its full
/// range.
///
/// On [`Dot::Vnni`] this takes two dot products. Where one operand is constant it is cheaper to add
/// 128 to the other (`bxor` with 0x80), use [`emit_dot`], and start the accumulator from
/// `-128 * sum(constant)`.
pub fn emit_dot_signed(b: &mut FunctionBuilder, dot: Dot, acc: Value, left: Value, right: Value) -> Value {
    match dot {
        Dot::Sdot | Dot::Usdot | Dot::Widening => signed_tree(b, acc, left, right),
        Dot::Pmaddwd => {
            let (l_low, l_high) = (b.ins().swiden_low(left), b.ins().swiden_high(left));
            pmaddwd_dot(b, acc, (l_low, l_high), right)
        }
        Dot::Vnni => {
            // left = (left ^ 0x80) - 128, both terms unsigned, and -128 w = 128 (!w) + 128. The four
            // 128s of a lane join the accumulator first. (Subtracting a second sum instead, or a
            // `splat` for `sign`, is rewritten by the optimiser into a tree that does not fold.)
            let sign = b.func.dfg.constants.insert([0x80u8; 16][..].into());
            let sign = b.ins().vconst(types::I8X16, sign);
            let biased = b.ins().bxor(left, sign);
            let complement = b.ins().bnot(right);
            let offset = splat(b, types::I32X4, 4 * 128);
            let acc = b.ins().iadd(acc, offset);
            let acc = unsigned_tree(b, acc, biased, right, Order::SignedFirst);
            unsigned_tree(b, acc, sign, complement, Order::SignedFirst)
        }
    }
}

/// `acc[i] + x[2i] * y[2i] + x[2i+1] * y[2i+1]`, in `i32x4`, for vectors of 16-bit values
/// (`i16x8`): x86 `pmaddwd`. With activations and weights widened once and used many times, this is
/// the fast form of [`Dot::Pmaddwd`], whose [`emit_dot`] widens each time.
///
/// Exact unless all four values are -32768.
pub fn emit_pair_dot(b: &mut FunctionBuilder, acc: Value, x: Value, y: Value) -> Value {
    let pairs = pairs(b, x, y);
    b.ins().iadd(acc, pairs)
}

/// `acc16[i] + unsigned[2i] * signed[2i] + unsigned[2i+1] * signed[2i+1]`, in `i16x8`, for unsigned
/// bytes in 0..=15 and signed bytes in -8..=7. At most [`DOT_4BIT_STEPS`] in a row.
///
/// Here [`Dot::Widening`] too belongs to aarch64 only: x86 has no multiplication of 8-bit lanes, and
/// compiling it there fails.
pub fn emit_dot_4bit(b: &mut FunctionBuilder, dot: Dot, acc16: Value, unsigned: Value, signed: Value) -> Value {
    let pairs = match dot {
        // Cannot saturate: a pair is at most 240 in magnitude.
        Dot::Vnni | Dot::Pmaddwd => b.ins().x86_pmaddubsw(signed, unsigned),
        Dot::Sdot | Dot::Usdot | Dot::Widening => {
            // A product lies in [-120, 105] and so is exact in 8 bits.
            let products = b.ins().imul(unsigned, signed);
            let (low, high) = (b.ins().swiden_low(products), b.ins().swiden_high(products));
            b.ins().iadd_pairwise(low, high)
        }
    };
    b.ins().iadd(pairs, acc16)
}

/// `acc[i] + acc16[2i] + acc16[2i+1]`, in `i32x4`: the 16-bit sums of [`emit_dot_4bit`] in the lanes
/// of [`emit_dot`].
pub fn emit_widen_4bit(b: &mut FunctionBuilder, acc: Value, acc16: Value) -> Value {
    let (low, high) = (b.ins().swiden_low(acc16), b.ins().swiden_high(acc16));
    let sums = b.ins().iadd_pairwise(low, high);
    b.ins().iadd(sums, acc)
}

/// Which operand of the multiplication is the unsigned one: x86 and aarch64 differ.
enum Order {
    SignedFirst,
    UnsignedFirst,
}

fn unsigned_tree(b: &mut FunctionBuilder, acc: Value, unsigned: Value, signed: Value, order: Order) -> Value {
    let (u_low, u_high) = (b.ins().uwiden_low(unsigned), b.ins().uwiden_high(unsigned));
    let (s_low, s_high) = (b.ins().swiden_low(signed), b.ins().swiden_high(signed));
    let (low, high) = match order {
        Order::SignedFirst => (b.ins().imul(s_low, u_low), b.ins().imul(s_high, u_high)),
        Order::UnsignedFirst => (b.ins().imul(u_low, s_low), b.ins().imul(u_high, s_high)),
    };
    add_quads(b, acc, low, high)
}

fn signed_tree(b: &mut FunctionBuilder, acc: Value, left: Value, right: Value) -> Value {
    let (l_low, l_high) = (b.ins().swiden_low(left), b.ins().swiden_high(left));
    let (r_low, r_high) = (b.ins().swiden_low(right), b.ins().swiden_high(right));
    let low = b.ins().imul(l_low, r_low);
    let high = b.ins().imul(l_high, r_high);
    add_quads(b, acc, low, high)
}

/// `acc` plus the sums of four neighbours of the 16-bit products `low ++ high`.
fn add_quads(b: &mut FunctionBuilder, acc: Value, low: Value, high: Value) -> Value {
    let mut widened_pairs = |products| {
        let (low, high) = (b.ins().swiden_low(products), b.ins().swiden_high(products));
        b.ins().iadd_pairwise(low, high)
    };
    let (low, high) = (widened_pairs(low), widened_pairs(high));
    let quads = b.ins().iadd_pairwise(low, high);
    b.ins().iadd(quads, acc)
}

fn pmaddwd_dot(b: &mut FunctionBuilder, acc: Value, (left_low, left_high): (Value, Value), right: Value) -> Value {
    let (r_low, r_high) = (b.ins().swiden_low(right), b.ins().swiden_high(right));
    let low = pairs(b, left_low, r_low);
    let high = pairs(b, left_high, r_high);
    let quads = b.ins().iadd_pairwise(low, high);
    b.ins().iadd(quads, acc)
}

fn splat(b: &mut FunctionBuilder, ty: Type, value: i64) -> Value {
    let lane = b.ins().iconst(ty.lane_type(), value);
    b.ins().splat(ty, lane)
}

/// Products of 16-bit values added in pairs, `i32x4`.
fn pairs(b: &mut FunctionBuilder, x: Value, y: Value) -> Value {
    let (x_low, x_high) = (b.ins().swiden_low(x), b.ins().swiden_high(x));
    let (y_low, y_high) = (b.ins().swiden_low(y), b.ins().swiden_high(y));
    let low = b.ins().imul(x_low, y_low);
    let high = b.ins().imul(x_high, y_high);
    b.ins().iadd_pairwise(low, high)
}

#[cfg(test)]
mod tests;
