//! Dyadic requantisation of four `i32` lanes at a time, exact for every multiplier, shift and rounding.
//!
//! In: a [`Requant`], the range of its source, and its constants. Out: a [`RequantForm`], which
//! decides the instructions, and the table they read ([`RequantTable`]). The table has one record for
//! the tensor, or one for every four channels, or one for every pixel.
//!
//! Let v = src - src_zero with |v| <= a (from the source's range), p = v * m. A lane's constants are
//! first normalised: m / 2^e = (2m) / 2^(e+1), a rational number, so rounding is unchanged. A lane
//! with a small shift may also move a factor 2^k from the divisor to the value: round(v m / 2^e)
//! = round((v 2^k) m / 2^(e+k)), as long as a * 2^k < 2^31. With E = e + k:
//!
//! * `Uniform`: E is the same in all lanes, hence an immediate.
//! * `Split`: 34 <= E <= 62 differs. floor(p / 2^E) = floor(floor(p / 2^32) / 2^(E-32)); the inner one is the
//!   high half of p, and the outer one is a multiplication by 2^(64-E) <= 2^30 followed by taking the
//!   high half.
//! * `Scalar`: everything else (a result beyond 32 bits before the clamp, or shifts that cannot be
//!   reconciled), lane by lane in 64 bits.
//!
//! In the first two forms |round(p / 2^E)| + |dst_zero| < 2^31 is checked from a and the constants,
//! so only the low 32 bits of the shifted product matter, and they are right although the 64-bit
//! shift is a logical one: for E <= 32 they are bits E..E+32 of p; for E > 32 they come from an
//! arithmetic 32-bit shift of the high half.
//!
//! Rounding adds r before the floor (h = 2^(E-1)): 0 for `floor`, h for `half_up`, h - 1 + bit E of p for
//! `half_even`, h - [v < 0] for `half_away`. |p| <= 2^62 and r <= 2^61 never overflow.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value, types};
use hawqc_ir::{Range, Requant, Rounding, Tensor, TensorType};

use super::emit::{Code, LANES};
use super::epilogue::{clamp_lanes, clamp_literals};
use super::literals::{LiteralTable, Literals};
use crate::error::Unsupported;

/// What a record of the table belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    Tensor,
    /// Four channels.
    Channel,
    /// One pixel of an image; its four lanes are equal.
    Pixel,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Shape {
    Uniform { shift: u8, scaled: bool },
    Split { scaled: bool },
    Scalar,
}

/// The instructions of a requantisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequantForm {
    pub scope: Scope,
    shape: Shape,
}

/// A form and its table.
#[derive(Debug)]
pub struct RequantTable {
    pub form: RequantForm,
    pub bytes: Vec<u8>,
}

/// Byte offsets in a record. Four multipliers (i32) come first.
const RECORD_MULT: usize = 0;
/// Scalar form: four shifts (i32). Uniform and scaled: four factors 2^k (i32).
const RECORD_SECOND: usize = 16;
/// Split form: four factors 2^(64-E) (i32).
const SPLIT_POST: usize = 16;
/// Split form: four times 2^(E-1) (i64).
const SPLIT_HALF: usize = 32;
/// Split form: four masks 2^(E-32) (i32).
const SPLIT_BIT: usize = 64;
/// Split form: four factors 2^k (i32).
const SPLIT_FACTOR: usize = 80;
const SPLIT_RECORD: usize = 96;

const MAX_SHIFT: u32 = 62;
/// Smallest E of the split form: 2^(64-E) fits an i32.
const SPLIT_MIN: u32 = 34;

/// A lane's constants, normalised. `free` lanes (m = 0) may have any shift.
#[derive(Clone, Copy)]
struct Lane {
    mult: i32,
    shift: u32,
}

impl Lane {
    fn new(mult: i64, shift: i64) -> Result<Lane, Unsupported> {
        let (Ok(mut mult), Ok(mut shift)) = (i32::try_from(mult), u32::try_from(shift)) else {
            return Err(Unsupported::new(format!("requant by {mult} / 2^{shift}")));
        };
        if mult < 0 || !(1..=MAX_SHIFT).contains(&shift) {
            return Err(Unsupported::new(format!("requant by {mult} / 2^{shift}")));
        }
        while mult != 0 && mult < 1 << 30 && shift < MAX_SHIFT {
            mult *= 2;
            shift += 1;
        }
        Ok(Lane { mult, shift })
    }

    fn is_free(self) -> bool {
        self.mult == 0
    }
}

impl RequantTable {
    /// `src` is the range of the source, `out` the type of the result; `order` as in
    /// [`Slots::order`](super::epilogue::Slots).
    pub fn new(
        requant: &Requant,
        src: Range,
        [mult, shift]: [&Tensor; 2],
        out: &TensorType,
        order: Option<&[Option<usize>]>,
    ) -> Result<RequantTable, Unsupported> {
        let scope = scope(mult.shape(), &out.shape)?;
        let pairs = mult.ints()?.into_iter().zip(shift.ints()?);
        let mut lanes = pairs.map(|(m, e)| Lane::new(m, e)).collect::<Result<Vec<Lane>, _>>()?;
        match scope {
            Scope::Tensor => lanes = vec![lanes[0]; LANES],
            Scope::Channel => {
                let nothing = Lane { mult: 0, shift: MAX_SHIFT };
                if let Some(order) = order {
                    lanes = order.iter().map(|channel| channel.map_or(nothing, |k| lanes[k])).collect();
                }
                lanes.resize(lanes.len().next_multiple_of(LANES), nothing);
            }
            Scope::Pixel => lanes = lanes.into_iter().flat_map(|lane| [lane; LANES]).collect(),
        }
        let zero = i64::from(requant.src_zero);
        let magnitude = Range::new(src.lo - zero, src.hi - zero).magnitude();
        let shape = choose(&lanes, magnitude, i64::from(requant.dst_zero).abs());
        let form = RequantForm { scope, shape };
        Ok(RequantTable { form, bytes: lanes.chunks(LANES).flat_map(|record| form.record(record)).collect() })
    }
}

/// How constants of shape `small` index a result of shape `out`.
fn scope(small: &[usize], out: &[usize]) -> Result<Scope, Unsupported> {
    let channels = out.last().copied().unwrap_or(1);
    match small {
        s if s.iter().all(|&d| d == 1) => Ok(Scope::Tensor),
        [rest @ .., last] if *last == channels && rest.iter().all(|&d| d == 1) => Ok(Scope::Channel),
        [.., h, w, 1]
            if out.len() == 4 && [*h, *w] == out[1..3] && small[..small.len() - 3].iter().all(|&d| d == 1) =>
        {
            Ok(Scope::Pixel)
        }
        _ => Err(Unsupported::new(format!(
            "requant constants of shape {small:?} for a result of shape {out:?} (one per tensor, channel or pixel)"
        ))),
    }
}

fn choose(lanes: &[Lane], magnitude: i64, dst_zero: i64) -> Shape {
    let limit = i64::from(i32::MAX);
    let used = || lanes.iter().filter(|lane| !lane.is_free());
    let fits = |lane: &Lane| {
        let product = i128::from(magnitude) * i128::from(lane.mult);
        (product >> lane.shift) + 2 + i128::from(dst_zero) <= i128::from(limit)
    };
    if !used().all(fits) {
        return Shape::Scalar;
    }
    let can_scale = |lane: &Lane, target: u32| {
        let k = target.saturating_sub(lane.shift);
        k == 0 || k < 31 && magnitude << k <= limit
    };
    let (lowest, highest) = (used().map(|l| l.shift).min(), used().map(|l| l.shift).max());
    let (lowest, highest) = (lowest.unwrap_or(MAX_SHIFT), highest.unwrap_or(MAX_SHIFT));
    if used().all(|lane| can_scale(lane, highest)) {
        return Shape::Uniform { shift: highest as u8, scaled: lowest != highest };
    }
    if used().all(|lane| can_scale(lane, SPLIT_MIN)) {
        return Shape::Split { scaled: lowest < SPLIT_MIN };
    }
    Shape::Scalar
}

impl RequantForm {
    /// Bytes of a record: a multiple of 16.
    pub fn record_bytes(self) -> usize {
        match self.shape {
            Shape::Uniform { scaled: false, .. } => 16,
            Shape::Uniform { scaled: true, .. } | Shape::Scalar => 32,
            Shape::Split { .. } => SPLIT_RECORD,
        }
    }

    fn record(self, lanes: &[Lane]) -> Vec<u8> {
        let ints = |f: &dyn Fn(&Lane) -> i32| lanes.iter().flat_map(|l| f(l).to_le_bytes()).collect::<Vec<u8>>();
        let mut out = ints(&|l| l.mult);
        match self.shape {
            Shape::Uniform { scaled: false, .. } => {}
            Shape::Uniform { shift, .. } => {
                out.extend(ints(&|l| if l.is_free() { 0 } else { 1 << (u32::from(shift) - l.shift) }));
            }
            Shape::Scalar => out.extend(ints(&|l| l.shift as i32)),
            Shape::Split { .. } => {
                let target = |l: &Lane| if l.is_free() { MAX_SHIFT } else { l.shift.max(SPLIT_MIN) };
                out.extend(ints(&|l| 1 << (64 - target(l))));
                out.extend(lanes.iter().flat_map(|l| (1i64 << (target(l) - 1)).to_le_bytes()));
                out.extend(ints(&|l| 1 << (target(l) - 32)));
                out.extend(ints(&|l| if l.is_free() { 0 } else { 1 << (target(l) - l.shift) }));
            }
        }
        out
    }

    /// Adds the constants that [`RequantForm::emit`] reads.
    pub fn add_literals(self, requant: &Requant, literals: &mut Literals) {
        if requant.src_zero != 0 {
            literals.add_i32(requant.src_zero);
        }
        if self.shape == Shape::Scalar {
            return;
        }
        if let Shape::Uniform { shift, .. } = self.shape {
            let half = 1i64 << (shift - 1);
            match requant.round {
                Rounding::Floor => {}
                Rounding::HalfUp | Rounding::HalfAway => literals.add_i64(half),
                Rounding::HalfEven => {
                    literals.add_i64(half - 1);
                    literals.add_i64(1);
                }
            }
        }
        if requant.dst_zero != 0 {
            literals.add_i32(requant.dst_zero);
        }
        clamp_literals(Range::new(requant.lo, requant.hi), literals);
    }

    /// Emits the requantisation of `value` (i32x4) with the record `vector` records behind `table`
    /// (the same one for every vector if the scope is not the channel).
    pub fn emit(
        self,
        c: &mut Code,
        requant: &Requant,
        value: Value,
        (table, literals): (Value, LiteralTable),
        vector: usize,
    ) -> Value {
        let at = if self.scope == Scope::Channel { vector * self.record_bytes() } else { 0 };
        let mut value = value;
        if requant.src_zero != 0 {
            let zero = literals.i32(c, requant.src_zero);
            value = c.b.ins().isub(value, zero);
        }
        if self.shape == Shape::Scalar {
            return emit_scalar(c, requant, value, table, at);
        }
        let mut value = match self.shape {
            Shape::Uniform { shift, scaled } => {
                let value = scale(c, value, table, scaled.then_some(at + RECORD_SECOND));
                let [low, high] = products(c, value, table, at + RECORD_MULT);
                emit_uniform(c, requant.round, u32::from(shift), value, [low, high], literals)
            }
            _ => {
                let scaled = self.shape == Shape::Split { scaled: true };
                let value = scale(c, value, table, scaled.then_some(at + SPLIT_FACTOR));
                let [low, high] = products(c, value, table, at + RECORD_MULT);
                emit_split(c, requant.round, value, [low, high], table, at)
            }
        };
        if requant.dst_zero != 0 {
            let zero = literals.i32(c, requant.dst_zero);
            value = c.b.ins().iadd(value, zero);
        }
        clamp_lanes(c, value, Range::new(requant.lo, requant.hi), literals)
    }
}

fn scale(c: &mut Code, value: Value, table: Value, factor: Option<usize>) -> Value {
    let Some(at) = factor else {
        return value;
    };
    let factor = c.load(types::I32X4, table, at);
    c.b.ins().imul(value, factor)
}

/// The 64-bit products of lanes 0, 1 and of lanes 2, 3.
fn products(c: &mut Code, value: Value, table: Value, at: usize) -> [Value; 2] {
    let mult = c.load(types::I32X4, table, at);
    widening_products(c, value, mult)
}

fn widening_products(c: &mut Code, a: Value, b: Value) -> [Value; 2] {
    let (a_low, b_low) = (c.b.ins().swiden_low(a), c.b.ins().swiden_low(b));
    let (a_high, b_high) = (c.b.ins().swiden_high(a), c.b.ins().swiden_high(b));
    [c.b.ins().imul(a_low, b_low), c.b.ins().imul(a_high, b_high)]
}

/// The high (`half` = 1) or low (0) halves of four 64-bit lanes, in order.
fn halves(c: &mut Code, [low, high]: [Value; 2], half: u8) -> Value {
    let mask = std::array::from_fn(|i| (i as u8 / 4) * 8 + half * 4 + i as u8 % 4);
    let bytes = c.shuffle(low, high, mask);
    c.cast(types::I32X4, bytes)
}

/// -1 in each 64-bit lane whose value is negative.
fn signs(c: &mut Code, value: Value) -> [Value; 2] {
    let sign = c.b.ins().sshr_imm_u(value, 31);
    [c.b.ins().swiden_low(sign), c.b.ins().swiden_high(sign)]
}

fn emit_uniform(
    c: &mut Code,
    round: Rounding,
    shift: u32,
    value: Value,
    products: [Value; 2],
    literals: LiteralTable,
) -> Value {
    let half = 1i64 << (shift - 1);
    let rounded: [Value; 2] = match round {
        Rounding::Floor => products,
        Rounding::HalfUp => products.map(|p| {
            let half = literals.i64(c, half);
            c.b.ins().iadd(p, half)
        }),
        Rounding::HalfAway => {
            let half = literals.i64(c, half);
            let [low, high] = signs(c, value);
            let sums = [(products[0], low), (products[1], high)];
            sums.map(|(p, sign)| {
                let term = c.b.ins().iadd(half, sign);
                c.b.ins().iadd(p, term)
            })
        }
        Rounding::HalfEven => {
            let (half, one) = (literals.i64(c, half - 1), literals.i64(c, 1));
            products.map(|p| {
                let bit = c.b.ins().ushr_imm_u(p, i64::from(shift));
                let bit = c.b.ins().band(bit, one);
                let term = c.b.ins().iadd(bit, half);
                c.b.ins().iadd(p, term)
            })
        }
    };
    if shift >= 32 {
        let high = halves(c, rounded, 1);
        return c.b.ins().sshr_imm_u(high, i64::from(shift - 32));
    }
    let shifted = rounded.map(|p| c.b.ins().ushr_imm_u(p, i64::from(shift)));
    halves(c, shifted, 0)
}

fn emit_split(c: &mut Code, round: Rounding, value: Value, products: [Value; 2], table: Value, at: usize) -> Value {
    let mut rounded = products;
    if round != Rounding::Floor {
        let half = [0, 16].map(|lane| c.load(types::I64X2, table, at + SPLIT_HALF + lane));
        rounded = [0, 1].map(|i| c.b.ins().iadd(products[i], half[i]));
    }
    // h - [v < 0], and h - 1 + bit = h - [bit is clear], are both h plus a mask.
    let masks = match round {
        Rounding::HalfUp | Rounding::Floor => None,
        Rounding::HalfAway => Some(signs(c, value)),
        Rounding::HalfEven => {
            let bit = c.load(types::I32X4, table, at + SPLIT_BIT);
            let high = halves(c, products, 1);
            let found = c.b.ins().band(high, bit);
            let zero = c.splat_int(types::I32X4, 0);
            let clear = c.b.ins().icmp(IntCC::Equal, found, zero);
            Some([c.b.ins().swiden_low(clear), c.b.ins().swiden_high(clear)])
        }
    };
    if let Some(masks) = masks {
        rounded = [0, 1].map(|i| c.b.ins().iadd(rounded[i], masks[i]));
    }
    let high = halves(c, rounded, 1);
    let post = c.load(types::I32X4, table, at + SPLIT_POST);
    let shifted = widening_products(c, high, post);
    halves(c, shifted, 1)
}

/// Lane by lane in 64 bits; the clamp comes before the narrowing.
fn emit_scalar(c: &mut Code, requant: &Requant, value: Value, table: Value, at: usize) -> Value {
    let mut out = c.splat_int(types::I32X4, 0);
    let (lo, hi) = (c.b.ins().iconst(types::I64, requant.lo), c.b.ins().iconst(types::I64, requant.hi));
    let one = c.int(1);
    for lane in 0..LANES {
        let wide = c.b.ins().extractlane(value, lane as u8);
        let wide = c.b.ins().sextend(types::I64, wide);
        let mult = c.load(types::I32, table, at + RECORD_MULT + 4 * lane);
        let mult = c.b.ins().sextend(types::I64, mult);
        let shift = c.load(types::I32, table, at + RECORD_SECOND + 4 * lane);
        let shift = c.b.ins().uextend(types::I64, shift);
        let product = c.b.ins().imul(wide, mult);
        let below = c.sub(shift, one);
        let half = c.b.ins().ishl(one, below);
        let rounded = match requant.round {
            Rounding::Floor => product,
            Rounding::HalfUp => c.add(product, half),
            Rounding::HalfAway => {
                let sign = c.b.ins().sshr_imm_u(wide, 63);
                let term = c.add(half, sign);
                c.add(product, term)
            }
            Rounding::HalfEven => {
                let bit = c.b.ins().ushr(product, shift);
                let bit = c.b.ins().band(bit, one);
                let term = c.sub(half, one);
                let term = c.add(term, bit);
                c.add(product, term)
            }
        };
        let result = c.b.ins().sshr(rounded, shift);
        let result = c.b.ins().iadd_imm_s(result, i64::from(requant.dst_zero));
        let result = c.b.ins().smax(result, lo);
        let result = c.b.ins().smin(result, hi);
        let result = c.b.ins().ireduce(types::I32, result);
        out = c.b.ins().insertlane(out, result, lane as u8);
    }
    out
}
